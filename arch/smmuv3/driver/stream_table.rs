//! The stream table of a unit: what becomes of the requests of each stream (SMMU 3.3.1, 5.1, 5.2).

use super::entries::{DESCRIPTORS_LOG2, ENTRIES_LOG2, Entries, first_words};
use super::slot::{EntrySync, Slot, write};
use super::table_site as site;
use super::update::Passage;
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::commands::Leaf;
use crate::arch::smmuv3::layout::registers::{StreamTableFormat, StrtabBase, StrtabBaseCfg};
use crate::arch::smmuv3::layout::{L1Std, Ste, StreamId};
use crate::error::{Error, InvalidReason, Result};
use crate::hwmem::{Table, Visibility};
use crate::platform::Platform;

/// Bits of a StreamID beyond which second tables have 1024 entries, not 256: the first one would pass
/// 1 MiB.
const MAX_BITS_OF_SMALL_TABLES: u8 = 25;

/// Bits of a StreamID for which there are tables, at most: the first one has 1 MiB then. Streams beyond
/// are blocked (C_BAD_STREAMID).
pub const MAX_STREAM_ID_BITS: u8 = 27;

/// What streams have that were never installed.
const UNCLAIMED: Ste = Ste::abort();

/// One STE in memory.
pub(super) type StreamSlot<'a, P> = Slot<'a, Ste, P>;

/// The stream table, and the second tables below it, which are made when a stream of theirs is first
/// installed.
///
/// Dropping it frees all of them: the unit must be off, or have another table and nothing of this one in
/// its caches.
#[derive(Debug)]
pub(super) struct StreamTable<P: Platform> {
    entries: Entries<P>,
    bits: u8,
}

impl<P: Platform> StreamTable<P> {
    /// A table for StreamIDs of `bits` bits, or fewer if that are more than [`MAX_STREAM_ID_BITS`], in
    /// two levels if the unit has them and one would not fit a frame. Streams are blocked in it: silently,
    /// but for those in two levels of which no neighbour was installed either. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub(super) fn new(visibility: Visibility<P>, bits: u8, levels: Levels) -> Result<Self> {
        let bits = bits.min(MAX_STREAM_ID_BITS);
        let entries = match split(bits, levels) {
            Some(split) => {
                let link = L1Std::new(PhysAddr::new(0), split).0;
                Entries::two_level(visibility, bits, split, link, &site::STREAM_TABLES)?
            }
            None => Entries::linear(visibility, bits, site::STREAM_TABLE_CLEAN, &fill)?,
        };
        Ok(Self { entries, bits })
    }

    /// How it becomes visible.
    pub(super) fn visibility(&self) -> &Visibility<P> {
        self.entries.visibility()
    }

    /// Where it lies, for SMMU_STRTAB_BASE.
    pub(super) fn base(&self) -> StrtabBase {
        StrtabBase::new(self.entries.phys())
    }

    /// Its shape, for SMMU_STRTAB_BASE_CFG.
    pub(super) fn config(&self) -> StrtabBaseCfg {
        let format = match &self.entries {
            Entries::Linear { .. } => StreamTableFormat::Linear,
            Entries::TwoLevel { split, .. } => StreamTableFormat::TwoLevel { split: *split },
        };
        StrtabBaseCfg::new(format, self.bits)
    }

    /// Whether it can have an entry for a stream.
    pub(super) fn covers(&self, stream: StreamId) -> bool {
        u64::from(stream.0) >> self.bits == 0
    }

    /// The entry of a stream, if there is a table with it. Any context.
    pub(super) fn find(&self, stream: StreamId) -> Option<StreamSlot<'_, P>> {
        let (table, first) = self.entries.find(stream.0).filter(|_| self.covers(stream))?;
        Some(self.slot(table, first))
    }

    /// The entry of a stream, in a new table if there is none: the unit may have cached that (5.1.1), until the
    /// entry is [replaced](Self::replace). Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::SourceId`] for one beyond the table.
    pub(super) fn find_or_make(&self, stream: StreamId) -> Result<StreamSlot<'_, P>> {
        if !self.covers(stream) {
            return Err(Error::Invalid(InvalidReason::SourceId));
        }
        let ((table, first), _) = self.entries.find_or_fill(stream.0, &fill)?;
        Ok(self.slot(table, first))
    }

    /// Turns the entry of a stream into `new`, hitlessly where the hardware allows it. Task only; the
    /// stream's group is claimed.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::SourceId`] for one beyond the table: nothing has changed then. Those
    /// of [`Slot::replace`].
    pub(super) fn replace(&self, stream: StreamId, new: Ste, sync: &dyn EntrySync) -> Result<Passage> {
        let slot = self.find_or_make(stream)?;
        // Whoever made its table, now or on another processor, may not have told the unit that there is one.
        let is_first = slot.read() == UNCLAIMED && !site::STE.descriptor_sync.is_skipped();
        let leaf = if is_first { Leaf::AllLevels } else { Leaf::Only };
        slot.replace(new, &mut || sync.ste(stream, leaf))
    }

    fn slot<'a>(&'a self, table: Table<'a>, first: usize) -> StreamSlot<'a, P> {
        Slot::new(self.visibility(), table, first, &site::STE)
    }
}

/// Of which shapes a unit's tables may be (IDR0.ST_LEVEL, IDR0.CD2L).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Levels {
    /// One level.
    One,
    /// One level, or two.
    OneOrTwo,
}

/// The bits of a StreamID that select an entry of a second table: 6, 8 or 10. `None` for one level.
fn split(bits: u8, levels: Levels) -> Option<u8> {
    match bits {
        _ if levels == Levels::One || bits <= ENTRIES_LOG2 => None,
        // Both tables fit a frame.
        _ if bits <= ENTRIES_LOG2 + DESCRIPTORS_LOG2 => Some(6),
        // The functions of one bus.
        0..=MAX_BITS_OF_SMALL_TABLES => Some(8),
        _ => Some(10),
    }
}

fn fill(table: Table<'_>) {
    first_words(table).for_each(|first| write(table, first, UNCLAIMED));
}

#[cfg(all(test, not(loom)))]
#[path = "stream_table_tests.rs"]
mod tests;
