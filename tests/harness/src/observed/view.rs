//! What a device may see: the versions of each word, and which of them are ruled out.
//!
//! Time is counted in *steps*: each store and each barrier takes one. A version is *due* when the
//! first barrier of its thread after it is not later than the *horizon*. The horizon is what the
//! device knows: a register write moves it to now, and whoever sees a version knows all that was
//! ordered before that version by a barrier. A due version hides the older ones. Nothing else does,
//! whatever a processor would do.
//!
//! A reader that does not snoop sees memory: there, a version hides the older ones when its line was
//! cleaned after it. Newer ones may have got there by themselves, with what barriers ordered before
//! them in the same line.

use std::collections::{HashMap, VecDeque};

use super::adversary::Adversary;
use super::{Reader, Writer};
use crate::frames::POISON;

const FRAME: u64 = 4096;
const LINE: u64 = 64;
/// Versions of one word that are kept. Beyond it one in between goes: the adversary has less choice.
const MAX_VERSIONS: usize = 16;

/// What is in a frame that was freed, or not yet written by its new owner.
pub(super) const STALE: u64 = u64::from_ne_bytes([POISON; 8]);

#[derive(Clone, Copy, Debug)]
struct Version {
    value: u64,
    /// When it was stored.
    step: u64,
    /// The first barrier after it, when there was one.
    barrier_after: Option<u64>,
    /// The last barrier before it.
    barrier_before: u64,
    writer: Option<Writer>,
    /// The store of 16 bytes that it is a half of.
    pair: Option<u64>,
    /// Nobody may come across it.
    is_stale: bool,
}

#[derive(Clone, Debug)]
struct Word {
    /// Oldest first, at least one.
    versions: Vec<Version>,
    /// The oldest one that a reader that snoops may see.
    seen: usize,
    /// The oldest one that a reader that does not snoop may see.
    in_memory: usize,
}

impl Word {
    fn push(&mut self, version: Version) {
        // What no reader can see any more goes.
        let dead = self.seen.min(self.in_memory);
        self.versions.drain(..dead);
        self.seen -= dead;
        self.in_memory -= dead;
        if self.versions.len() >= MAX_VERSIONS {
            // What readers may see at the oldest stays.
            let spare = (1..self.versions.len()).find(|index| ![self.seen, self.in_memory].contains(index));
            let spare = spare.unwrap_or(1);
            self.versions.remove(spare);
            for floor in [&mut self.seen, &mut self.in_memory].into_iter().filter(|floor| **floor > spare) {
                *floor -= 1;
            }
        }
        self.versions.push(version);
    }

    fn last(&self) -> usize {
        self.versions.len() - 1
    }

    /// Hides what is older than a version that is due.
    fn settle(&mut self, horizon: u64) {
        self.seen = self.seen.max(self.due(horizon));
    }

    /// The newest version that a barrier not later than `horizon` has ordered.
    fn due(&self, horizon: u64) -> usize {
        let due = |version: &Version| version.barrier_after.is_some_and(|barrier| barrier <= horizon);
        self.versions.iter().rposition(due).unwrap_or(0)
    }

    fn pair_at(&self, index: usize) -> Option<u64> {
        self.versions.get(..=index)?.iter().rev().find_map(|version| version.pair)
    }

    fn index_of_pair(&self, pair: u64) -> Option<usize> {
        self.versions.iter().position(|version| version.pair == Some(pair))
    }
}

#[derive(Debug)]
struct Frame {
    /// The zeros it came with.
    zeros: Version,
    /// Words that were written, read or cleaned since.
    words: HashMap<u64, Word>,
    is_free: bool,
}

impl Frame {
    fn word(&mut self, address: u64) -> &mut Word {
        let zeros = self.zeros;
        self.words.entry(address).or_insert_with(|| {
            let stale = Version { value: STALE, step: 0, barrier_after: None, is_stale: true, ..zeros };
            Word { versions: vec![stale, zeros], seen: 0, in_memory: 0 }
        })
    }
}

/// A version in a write buffer.
#[derive(Clone, Copy, Debug)]
struct Buffered {
    /// When it was written back.
    step: u64,
    address: u64,
    /// When it was stored.
    stored: u64,
}

/// What a thread has stored since its last barrier.
#[derive(Debug, Default)]
struct Pending {
    barrier: u64,
    words: Vec<u64>,
    frames: Vec<u64>,
}

/// The memory of a machine, as devices may see it. Addresses are physical.
#[derive(Debug)]
pub(super) struct View {
    adversary: Adversary,
    frames: HashMap<u64, Frame>,
    writers: HashMap<Writer, Pending>,
    /// What was written back and is still in write buffers, when there are such, oldest first.
    buffered: Option<VecDeque<Buffered>>,
    step: u64,
    horizon: u64,
    reads: u64,
    violations: Vec<String>,
}

impl View {
    pub(super) fn new(adversary: Adversary) -> Self {
        Self {
            adversary,
            frames: HashMap::new(),
            writers: HashMap::new(),
            buffered: None,
            step: 0,
            horizon: 0,
            reads: 0,
            violations: Vec::new(),
        }
    }

    pub(super) fn set_adversary(&mut self, adversary: Adversary) {
        self.adversary = adversary;
    }

    /// What the device did that no device should have to.
    pub(super) fn violations(&self) -> &[String] {
        &self.violations
    }

    // The driver.

    /// `writer` was given zeroed frames.
    pub(super) fn allocated(&mut self, writer: Writer, first: u64, frames: u64) {
        for index in 0..frames {
            let address = first + index * FRAME;
            let zeros = self.version(writer, 0, None);
            self.writers.entry(writer).or_default().frames.push(address);
            self.frames.insert(address, Frame { zeros, words: HashMap::new(), is_free: false });
        }
    }

    /// The frames are nobody's.
    pub(super) fn freed(&mut self, first: u64, frames: u64) {
        for index in 0..frames {
            if let Some(frame) = self.frames.get_mut(&(first + index * FRAME)) {
                frame.is_free = true;
            }
        }
    }

    pub(super) fn stored(&mut self, writer: Writer, address: u64, value: u64) {
        self.add(writer, address, value, None);
    }

    pub(super) fn stored_pair(&mut self, writer: Writer, address: u64, values: [u64; 2]) {
        let pair = Some(self.step + 1);
        self.add(writer, address, values[0], pair);
        self.add(writer, address + 8, values[1], pair);
    }

    fn add(&mut self, writer: Writer, address: u64, value: u64, pair: Option<u64>) {
        let version = self.version(writer, value, pair);
        let horizon = self.horizon;
        if let Some(word) = self.word(address) {
            word.settle(horizon);
            word.push(version);
            self.writers.entry(writer).or_default().words.push(address);
        }
    }

    pub(super) fn published(&mut self, writer: Writer) {
        self.step += 1;
        let now = self.step;
        let pending = self.writers.entry(writer).or_default();
        pending.barrier = now;
        let (words, frames) = (std::mem::take(&mut pending.words), std::mem::take(&mut pending.frames));
        let end = |version: &mut Version| {
            if version.writer == Some(writer) && !version.is_stale {
                version.barrier_after.get_or_insert(now);
            }
        };
        for address in frames {
            if let Some(frame) = self.frames.get_mut(&address) {
                end(&mut frame.zeros);
                frame.words.values_mut().flat_map(|word| &mut word.versions).for_each(end);
            }
        }
        for address in words {
            if let Some(word) = self.word(address) {
                word.versions.iter_mut().for_each(end);
            }
        }
    }

    pub(super) fn cleaned(&mut self, address: u64, bytes: u64) {
        self.step += 1;
        let step = self.step;
        for address in (address & !(LINE - 1)..(address + bytes).next_multiple_of(LINE)).step_by(8) {
            let has_buffers = self.buffered.is_some();
            let Some(word) = self.word(address) else { continue };
            if has_buffers {
                let stored = word.versions.last().map_or(0, |version| version.step);
                self.buffered.get_or_insert_default().push_back(Buffered { step, address, stored });
            } else {
                word.in_memory = word.last();
            }
        }
    }

    /// What is written back stays in buffers from now on, until they are flushed. What a reader sees of
    /// them shows that everything older has left them too.
    pub(super) fn hold_write_buffers(&mut self) {
        self.buffered.get_or_insert_default();
    }

    /// What was written back is in memory.
    pub(super) fn flushed_write_buffers(&mut self) {
        self.leave_buffers(self.step + 1);
    }

    /// What was written back before `step` is in memory.
    fn leave_buffers(&mut self, step: u64) {
        while let Some(buffered) = self.oldest_buffered(step) {
            if let Some(word) = self.word(buffered.address)
                && let Some(index) = word.versions.iter().position(|version| version.step >= buffered.stored)
            {
                word.in_memory = word.in_memory.max(index);
            }
        }
    }

    fn oldest_buffered(&mut self, before: u64) -> Option<Buffered> {
        let buffered = self.buffered.as_mut()?;
        buffered.front().filter(|first| first.step < before)?;
        buffered.pop_front()
    }

    /// The device is told something, by a store that follows all barriers so far.
    pub(super) fn told(&mut self) {
        self.horizon = self.step;
    }

    // The device.

    /// What the device reads, or `None` in memory that is not a driver's.
    pub(super) fn read(&mut self, address: u64, reader: Reader) -> Option<u64> {
        let index = self.choose(address, reader)?;
        self.see(address, index, reader)
    }

    /// As two [`read`](Self::read)s, but a store of 16 bytes is seen whole or not at all.
    pub(super) fn read_pair(&mut self, address: u64, reader: Reader) -> Option<[u64; 2]> {
        let mut indices = [self.choose(address, reader)?, self.choose(address + 8, reader)?];
        // Newer is always allowed, so that whoever saw the half of a store sees the other half too, and
        // what was ordered before it.
        loop {
            let mut changed = false;
            for (from, to) in [(0, 1), (1, 0)] {
                let at = |half: usize| address + half as u64 * 8;
                let word = self.word(at(from))?;
                let (pair, before) = (word.pair_at(indices[from]), word.versions.get(indices[from])?.barrier_before);
                let other = self.word(at(to))?;
                let whole = pair.and_then(|pair| other.index_of_pair(pair)).unwrap_or(0);
                let needed = other.due(before).max(whole);
                if needed > indices[to] {
                    indices[to] = needed;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        Some([self.see(address, indices[0], reader)?, self.see(address + 8, indices[1], reader)?])
    }

    /// The device writes; everybody sees it at once.
    pub(super) fn device_wrote(&mut self, address: u64, value: u64) {
        self.step += 1;
        let barrier_after = Some(0);
        let version = Version {
            value,
            step: self.step,
            barrier_after,
            barrier_before: 0,
            writer: None,
            pair: None,
            is_stale: false,
        };
        let is_free = self.frames.get(&(address & !(FRAME - 1))).is_some_and(|frame| frame.is_free);
        if is_free {
            self.violations.push(format!("the device writes {value:#x} at {address:#x}, in a frame that was freed"));
        } else if let Some(word) = self.word(address) {
            word.push(version);
            (word.seen, word.in_memory) = (word.last(), word.last());
        }
    }

    /// The device has looked at the word with a locked access, which sees the newest version.
    pub(super) fn device_locked(&mut self, address: u64) {
        if let Some(word) = self.word(address) {
            (word.seen, word.in_memory) = (word.last(), word.last());
        }
    }

    fn choose(&mut self, address: u64, reader: Reader) -> Option<usize> {
        self.reads += 1;
        let (adversary, horizon, read) = (self.adversary, self.horizon, self.reads);
        let word = self.word(address)?;
        word.settle(horizon);
        let oldest = match reader {
            Reader::Snoops => word.seen,
            Reader::ReadsMemory => word.in_memory,
        };
        Some(oldest + adversary.choose(address, read, word.last() - oldest))
    }

    fn see(&mut self, address: u64, index: usize, reader: Reader) -> Option<u64> {
        let is_free = self.frames.get(&(address & !(FRAME - 1)))?.is_free;
        if is_free {
            self.violations.push(format!("the device reads {address:#x}, in a frame that was freed"));
            return Some(STALE);
        }
        let word = self.word(address)?;
        let version = *word.versions.get(index)?;
        match reader {
            Reader::Snoops => word.seen = word.seen.max(index),
            Reader::ReadsMemory => word.in_memory = word.in_memory.max(index),
        }
        if reader == Reader::ReadsMemory {
            self.leave_buffers(version.step);
            // A line is written back in one piece.
            for other in (address & !(LINE - 1)..).step_by(8).take(LINE as usize / 8) {
                if let Some(word) = self.word(other) {
                    word.in_memory = word.in_memory.max(word.due(version.barrier_before));
                }
            }
        }
        if reader == Reader::Snoops {
            self.horizon = self.horizon.max(version.barrier_before);
            if let Some(pair) = version.pair
                && let Some(other) = self.word(address ^ 8)
                && let Some(half) = other.index_of_pair(pair)
            {
                other.seen = other.seen.max(half);
            }
        }
        if version.is_stale {
            self.violations.push(format!("the device reads {address:#x} before the zeros of its frame are there"));
        }
        Some(version.value)
    }

    fn version(&mut self, writer: Writer, value: u64, pair: Option<u64>) -> Version {
        self.step += 1;
        let barrier_before = self.writers.entry(writer).or_default().barrier;
        Version {
            value,
            step: self.step,
            barrier_after: None,
            barrier_before,
            writer: Some(writer),
            pair,
            is_stale: false,
        }
    }

    fn word(&mut self, address: u64) -> Option<&mut Word> {
        Some(self.frames.get_mut(&(address & !(FRAME - 1)))?.word(address))
    }
}
