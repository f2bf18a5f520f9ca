//! What is kept of the stream table and of context descriptors (SMMU 4.3).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use crate::arch::smmuv3::layout::commands::{Command, Leaf};
use crate::arch::smmuv3::layout::{Cd, L1Cd, L1Std, Ste, StreamId};
use crate::bus::Retention;
use crate::bus::cache::Lines;
use crate::error::Result;
use crate::platform::Platform;

/// An STE, in whatever state it was read (5.2.1).
#[derive(Clone, Copy)]
struct SteLine {
    stream: u32,
    entry: Ste,
}

/// A level-1 stream descriptor.
#[derive(Clone, Copy)]
struct StreamDescriptorLine {
    index: u32,
    split: u8,
    descriptor: L1Std,
}

/// A CD, in whatever state it was read.
#[derive(Clone, Copy)]
struct CdLine {
    stream: u32,
    index: u32,
    entry: Cd,
}

/// A level-1 context descriptor.
#[derive(Clone, Copy)]
struct ContextDescriptorLine {
    stream: u32,
    index: u32,
    split: u8,
    descriptor: L1Cd,
}

pub(in crate::arch::smmuv3::device) struct Configuration<P: Platform> {
    entries: Lines<SteLine, P>,
    stream_descriptors: Lines<StreamDescriptorLine, P>,
    contexts: Lines<CdLine, P>,
    context_descriptors: Lines<ContextDescriptorLine, P>,
}

impl<P: Platform> Configuration<P> {
    pub(super) fn new(platform: &P, order: u8) -> Result<Self> {
        Ok(Self {
            entries: Lines::new(platform.clone(), order)?,
            stream_descriptors: Lines::new(platform.clone(), order)?,
            contexts: Lines::new(platform.clone(), order)?,
            context_descriptors: Lines::new(platform.clone(), order)?,
        })
    }

    /// The STE of a stream.
    pub(in crate::arch::smmuv3::device) fn entry(&mut self, stream: StreamId, retention: Retention) -> Option<Ste> {
        let is = |line: &SteLine| line.stream == stream.0;
        if retention == Retention::Evict {
            self.entries.evict(u64::from(stream.0), is);
        }
        self.entries.find(u64::from(stream.0), is).map(|line| line.entry)
    }

    pub(in crate::arch::smmuv3::device) fn keep_entry(&mut self, stream: StreamId, entry: Ste) {
        let line = SteLine { stream: stream.0, entry };
        self.entries.insert(u64::from(stream.0), line, |old| old.stream == stream.0);
    }

    /// The level-1 descriptor for a stream in a table that is split there.
    pub(in crate::arch::smmuv3::device) fn stream_descriptor(
        &mut self,
        stream: StreamId,
        split: u8,
        retention: Retention,
    ) -> Option<L1Std> {
        let index = above(stream.0, split);
        let is = |line: &StreamDescriptorLine| line.index == index && line.split == split;
        if retention == Retention::Evict {
            self.stream_descriptors.evict(u64::from(index), is);
        }
        self.stream_descriptors.find(u64::from(index), is).map(|line| line.descriptor)
    }

    pub(in crate::arch::smmuv3::device) fn keep_stream_descriptor(
        &mut self,
        stream: StreamId,
        split: u8,
        descriptor: L1Std,
    ) {
        let index = above(stream.0, split);
        let line = StreamDescriptorLine { index, split, descriptor };
        self.stream_descriptors.insert(u64::from(index), line, |old| old.index == index && old.split == split);
    }

    /// The CD of this index.
    pub(in crate::arch::smmuv3::device) fn context(
        &mut self,
        stream: StreamId,
        index: u32,
        retention: Retention,
    ) -> Option<Cd> {
        let is = |line: &CdLine| line.stream == stream.0 && line.index == index;
        if retention == Retention::Evict {
            self.contexts.evict(hash(stream.0, index), is);
        }
        self.contexts.find(hash(stream.0, index), is).map(|line| line.entry)
    }

    pub(in crate::arch::smmuv3::device) fn keep_context(&mut self, stream: StreamId, index: u32, entry: Cd) {
        let line = CdLine { stream: stream.0, index, entry };
        self.contexts.insert(hash(stream.0, index), line, |old| old.stream == stream.0 && old.index == index);
    }

    /// The level-1 context descriptor for the CD of this index.
    pub(in crate::arch::smmuv3::device) fn context_descriptor(
        &mut self,
        stream: StreamId,
        index: u32,
        split: u8,
        retention: Retention,
    ) -> Option<L1Cd> {
        let index = above(index, split);
        let is = |line: &ContextDescriptorLine| line.stream == stream.0 && line.index == index && line.split == split;
        if retention == Retention::Evict {
            self.context_descriptors.evict(hash(stream.0, index), is);
        }
        self.context_descriptors.find(hash(stream.0, index), is).map(|line| line.descriptor)
    }

    pub(in crate::arch::smmuv3::device) fn keep_context_descriptor(
        &mut self,
        stream: StreamId,
        index: u32,
        split: u8,
        descriptor: L1Cd,
    ) {
        let index = above(index, split);
        let line = ContextDescriptorLine { stream: stream.0, index, split, descriptor };
        self.context_descriptors.insert(hash(stream.0, index), line, |old| {
            old.stream == stream.0 && old.index == index && old.split == split
        });
    }

    /// CMD_CFGI_*.
    pub(super) fn invalidate(&mut self, command: Command) {
        match command {
            Command::ConfigSte { stream, leaf } => {
                self.remove_streams(stream.0, 0);
                if leaf == Leaf::AllLevels {
                    self.stream_descriptors.remove(|line| line.index == above(stream.0, line.split));
                }
            }
            Command::ConfigSteRange { stream, range } => {
                let bits = range.saturating_add(1);
                self.remove_streams(stream.0, bits);
                self.stream_descriptors.remove(|line| {
                    let first = line.index.checked_shl(u32::from(line.split)).unwrap_or(0);
                    above(first ^ stream.0, bits.max(line.split)) == 0
                });
            }
            Command::ConfigCd { stream, substream, leaf } => {
                self.contexts.remove(|line| line.stream == stream.0 && line.index == substream);
                if leaf == Leaf::AllLevels {
                    self.context_descriptors
                        .remove(|line| line.stream == stream.0 && line.index == above(substream, line.split));
                }
            }
            Command::ConfigCdAll { stream } => self.remove_contexts(stream.0, 0),
            _ => self.clear(),
        }
    }

    /// Drops the STEs and CDs of the `1 << bits` streams around one.
    fn remove_streams(&mut self, stream: u32, bits: u8) {
        self.entries.remove(|line| above(line.stream ^ stream, bits) == 0);
        self.remove_contexts(stream, bits);
    }

    fn remove_contexts(&mut self, stream: u32, bits: u8) {
        self.contexts.remove(|line| above(line.stream ^ stream, bits) == 0);
        self.context_descriptors.remove(|line| above(line.stream ^ stream, bits) == 0);
    }

    pub(super) fn clear(&mut self) {
        self.entries.remove(|_| true);
        self.stream_descriptors.remove(|_| true);
        self.contexts.remove(|_| true);
        self.context_descriptors.remove(|_| true);
    }
}

/// `value` without its lowest `bits` bits.
fn above(value: u32, bits: u8) -> u32 {
    value.checked_shr(u32::from(bits)).unwrap_or(0)
}

fn hash(stream: u32, index: u32) -> u64 {
    u64::from(stream) << 20 ^ u64::from(index)
}
