//! What a loom model, or a test of mutants, outside of the crate, needs of tables for one stream.

use super::cd_table::CdTable;
use super::slot::EntrySync;
use super::stream_table::{Levels, StreamTable};
use super::update::Passage;
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::registers::{StrtabBase, StrtabBaseCfg};
use crate::arch::smmuv3::layout::{Cd, Ste, StreamId};
use crate::error::Result;
use crate::hwmem::Visibility;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;

const STREAM: StreamId = StreamId(0);

/// A stream table with one entry, and a table with CDs to which it may lead.
#[derive(Debug)]
pub struct OneStream<P: Platform> {
    streams: StreamTable<P>,
    cds: CdTable<P>,
}

impl<P: Platform> OneStream<P> {
    /// The stream is blocked, the only CD not valid.
    pub fn new(platform: P) -> Result<Self> {
        Self::with_substreams(platform, WalkerCoherency::Snoops, 0)
    }

    /// The stream is blocked, and no CD is valid of those for SubstreamIDs of `bits` bits.
    pub fn with_substreams(platform: P, coherency: WalkerCoherency, bits: u8) -> Result<Self> {
        let visibility = Visibility { platform, coherency, last: PhysAddr::new(u64::MAX) };
        let streams = StreamTable::new(visibility.clone(), 0, Levels::One)?;
        Ok(Self { streams, cds: CdTable::new(visibility, bits, Levels::OneOrTwo)? })
    }

    /// Where the stream table is, and its shape, for the registers.
    pub fn stream_table(&self) -> (StrtabBase, StrtabBaseCfg) {
        (self.streams.base(), self.streams.config())
    }

    /// Where the STE lies.
    pub fn ste(&self) -> PhysAddr {
        self.streams.base().address()
    }

    /// Where the CDs lie.
    pub fn cd(&self) -> PhysAddr {
        self.cds.stream_entry().cd_table()
    }

    /// An STE that leads to the CDs.
    pub fn stage1(&self) -> Ste {
        self.cds.stream_entry()
    }

    /// Turns the STE into `new`.
    pub fn replace(&self, new: Ste, sync: &dyn EntrySync) -> Result<Passage> {
        self.streams.replace(STREAM, new, sync)
    }

    /// Turns the CD of a substream into `new`.
    pub fn write(&self, substream: u32, new: Cd, sync: &dyn EntrySync) -> Result<Passage> {
        self.cds.write(Some(STREAM), substream, new, sync)
    }

    /// Turns the CD of a substream into `new` while the STE does not lead to it.
    pub fn fill(&self, substream: u32, new: Cd, sync: &dyn EntrySync) -> Result<Passage> {
        self.cds.write(None, substream, new, sync)
    }

    /// Fences the stream; whether it was valid.
    pub fn fence(&self) -> bool {
        self.streams.find(STREAM).is_some_and(|slot| slot.fence())
    }

    /// Undoes that.
    pub fn unfence(&self) {
        self.streams.find(STREAM).into_iter().for_each(|slot| slot.unfence());
    }
}
