//! What a loom model, outside of the crate, needs of tables with one entry.

use super::cd_table::CdTable;
use super::slot::EntrySync;
use super::stream_table::{Levels, StreamTable};
use super::update::Passage;
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::{Cd, Ste, StreamId};
use crate::error::Result;
use crate::hwmem::Visibility;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;

const STREAM: StreamId = StreamId(0);

/// A stream table with one entry, and a table with one CD to which it may lead.
#[derive(Debug)]
pub struct OneStream<P: Platform> {
    streams: StreamTable<P>,
    cds: CdTable<P>,
}

impl<P: Platform> OneStream<P> {
    /// The stream is blocked, the CD not valid.
    pub fn new(platform: P) -> Result<Self> {
        let visibility = Visibility { platform, coherency: WalkerCoherency::Snoops };
        let streams = StreamTable::new(visibility.clone(), 0, Levels::One, Ste::abort())?;
        Ok(Self { streams, cds: CdTable::new(visibility, 0, Levels::One)? })
    }

    /// Where the STE lies.
    pub fn ste(&self) -> PhysAddr {
        self.streams.base().address()
    }

    /// Where the CD lies.
    pub fn cd(&self) -> PhysAddr {
        self.cds.stream_entry().cd_table()
    }

    /// Turns the STE into `new`.
    pub fn replace(&self, new: Ste, sync: &dyn EntrySync) -> Result<Passage> {
        self.streams.replace(STREAM, new, sync)
    }

    /// Turns the CD into `new`.
    pub fn write(&self, new: Cd, sync: &dyn EntrySync) -> Result<Passage> {
        self.cds.write(Some(STREAM), 0, new, sync)
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
