//! The context descriptors of one stream: its address spaces of stage 1 (SMMU 3.3.2, 5.3, 5.4).

use super::entries::{DESCRIPTORS_LOG2, ENTRIES_LOG2, Entries, Made};
use super::slot::{EntrySync, Slot};
use super::stream_table::{Levels, StreamTable};
use super::table_site as site;
use super::update::{Passage, Plan};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::commands::Leaf;
use crate::arch::smmuv3::layout::registers::{cacheability, shareability};
use crate::arch::smmuv3::layout::stream_table::CdTableFormat;
use crate::arch::smmuv3::layout::{Cd, L1Cd, Ste, StreamId};
use crate::error::{Error, InvalidReason, Result};
use crate::hwmem::Visibility;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::sync::atomic::{AtomicU32, Ordering};

/// Bits of a SubstreamID (IDR1.SSIDSIZE), at most.
pub(super) const MAX_SUBSTREAM_BITS: u8 = 20;
/// V of a level-1 descriptor.
const LINK: u64 = L1Cd::new(PhysAddr::new(0)).0;

/// The CDs of one stream, and the second tables with them, which are made when they are first needed.
/// CD 0 is the one of requests without SubstreamID; a stream without substreams has no other.
///
/// Dropping it frees all tables: no STE may lead to them any more, nor be cached.
#[derive(Debug)]
pub(super) struct CdTable<P: Platform> {
    entries: Entries<P>,
    format: CdTableFormat,
    bits: u8,
    /// CDs that are valid, but for CD 0. Counted by whoever has the stream's group claimed.
    substreams: AtomicU32,
}

impl<P: Platform> CdTable<P> {
    /// A table for SubstreamIDs of `bits` bits, 0 without substreams, in which none is valid: linear up
    /// to 64 CDs or without `levels` for more, else in two levels, with second tables of 64 CDs up to 15
    /// bits and of 1024 CDs beyond. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::Pasid`] beyond 20 bits.
    pub(super) fn new(visibility: Visibility<P>, bits: u8, levels: Levels) -> Result<Self> {
        let format = match bits {
            ..=MAX_SUBSTREAM_BITS if levels == Levels::One => CdTableFormat::Linear,
            _ if bits <= ENTRIES_LOG2 => CdTableFormat::Linear,
            _ if bits <= ENTRIES_LOG2 + DESCRIPTORS_LOG2 => CdTableFormat::TwoLevel4K,
            ..=MAX_SUBSTREAM_BITS => CdTableFormat::TwoLevel64K,
            _ => return Err(Error::Invalid(InvalidReason::Pasid)),
        };
        let entries = match format.split() {
            None => Entries::linear(visibility, bits, site::CD_TABLE_CLEAN, &|_| {})?,
            Some(split) => Entries::two_level(visibility, bits, split, LINK, &site::CD_TABLES)?,
        };
        Ok(Self { entries, format, bits, substreams: AtomicU32::new(0) })
    }

    /// An entry for stage 1 that leads here: its CDs are read as the unit's walks are, snooping or not.
    pub(super) fn stream_entry(&self) -> Ste {
        let entry = Ste::stage1(self.entries.phys(), self.format, self.bits);
        match self.entries.visibility().coherency {
            WalkerCoherency::Snoops => entry,
            WalkerCoherency::NeedsClean => entry.with_cd_attributes(cacheability::NC as u8, shareability::OSH as u8),
        }
    }

    /// Whether a CD is valid beside CD 0.
    pub(super) fn has_substreams(&self) -> bool {
        self.substreams.load(Ordering::Relaxed) != 0
    }

    /// The CD of a substream; one that is not valid if there is none. Any context.
    pub(super) fn read(&self, substream: u32) -> Cd {
        let found = self.entries.find(substream).filter(|_| self.covers(substream));
        found.map_or_else(Cd::default, |(table, first)| self.slot(table, first).read())
    }

    /// Turns the CD of a substream into `new`, hitlessly where the hardware allows it. `stream` is the one
    /// whose STE leads here, `None` while none does. Task only; the stream's group is claimed.
    ///
    /// # Errors
    /// [`InvalidReason::Pasid`] beyond the table; [`Error::NoMemory`]: nothing has changed then. Those of
    /// `sync`: the CD is not valid then, but may be cached.
    pub(super) fn write(
        &self,
        stream: Option<StreamId>,
        substream: u32,
        new: Cd,
        sync: &dyn EntrySync,
    ) -> Result<Passage> {
        if !self.covers(substream) {
            return Err(Error::Invalid(InvalidReason::Pasid));
        }
        let ((table, first), made) = match self.entries.find(substream) {
            // A table is not made for nothing.
            None if !new.is_valid() => return Ok(Passage::Hitless),
            _ => self.entries.find_or_fill(substream, &|_| {})?,
        };
        let slot = self.slot(table, first);
        let was_valid = slot.read().is_valid();
        let written = match stream {
            // Nothing that is not reachable is fetched (3.21.3.1).
            None => {
                slot.fill(new);
                Ok(Passage::Hitless)
            }
            Some(stream) => {
                let descriptor = match made {
                    // That there is no table may be cached (5.3.1).
                    Made::Now if !site::CD.descriptor_sync.is_skipped() => sync.cd(stream, substream, Leaf::AllLevels),
                    _ => Ok(()),
                };
                descriptor.and_then(|()| slot.replace(new, &mut || sync.cd(stream, substream, Leaf::Only)))
            }
        };
        let is_valid = slot.read().is_valid();
        match (was_valid, is_valid) {
            (false, true) if substream != 0 => self.substreams.fetch_add(1, Ordering::Relaxed),
            (true, false) if substream != 0 => self.substreams.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        written
    }

    fn covers(&self, substream: u32) -> bool {
        substream >> self.bits == 0
    }

    fn slot<'a>(&'a self, table: crate::hwmem::Table<'a>, first: usize) -> Slot<'a, Cd, P> {
        Slot::new(self.entries.visibility(), table, first, &site::CD)
    }

    /// An empty table of the same shape.
    fn another(&self) -> Result<Self> {
        let levels = if self.format == CdTableFormat::Linear { Levels::One } else { Levels::OneOrTwo };
        Self::new(self.entries.visibility().clone(), self.bits, levels)
    }
}

/// What became of a CD table in [`replace_default`].
#[derive(Debug)]
pub(super) enum Replaced<P: Platform> {
    /// Its CD 0 was changed.
    InPlace,
    /// The stream has this table now, and nothing of the old one is cached: it may be dropped.
    Moved(CdTable<P>),
}

/// What a failed [`replace_default`] leaves behind.
#[derive(Debug)]
pub(super) struct Failed<P: Platform> {
    /// Why.
    pub(super) error: Error,
    /// A table that the unit may have cached beside the old one: both are kept until it has not.
    pub(super) kept: Option<CdTable<P>>,
}

impl<P: Platform> From<Error> for Failed<P> {
    fn from(error: Error) -> Self {
        Self { error, kept: None }
    }
}

/// Turns CD 0 of `stream`, whose STE leads to `current`, into `new`, without a gap if possible. A CD of
/// another table and ASID cannot take the place of one that is in use (see [`Plan`]); but if the stream
/// has no other CDs, a new table with it can take the place of the old one, for that is one quadword of
/// the STE. Else the CD passes through V = 0. Task only; the stream's group is claimed.
///
/// # Errors
/// [`Error::NoMemory`]: nothing has changed then. As for [`CdTable::write`] and [`StreamTable::replace`]:
/// CD or STE is not valid then, but may be cached, and `current` must be kept until it is not.
pub(super) fn replace_default<P: Platform>(
    streams: &StreamTable<P>,
    stream: StreamId,
    current: &CdTable<P>,
    new: Cd,
    sync: &dyn EntrySync,
) -> core::result::Result<Replaced<P>, Failed<P>> {
    let hitless = Plan::new(current.read(0), new).passage() == Passage::Hitless;
    if hitless || current.has_substreams() {
        current.write(Some(stream), 0, new, sync)?;
        return Ok(Replaced::InPlace);
    }
    let next = current.another()?;
    next.write(None, 0, new, sync)?;
    let slot = streams.find_or_make(stream)?;
    let mut ste: Ste = slot.read();
    // Nothing else: so it is one store.
    ste.words[0] ^= current.entries.phys().as_u64() ^ next.entries.phys().as_u64();
    match slot.replace(ste, &mut || sync.ste(stream, Leaf::Only)) {
        Ok(_) => Ok(Replaced::Moved(next)),
        Err(error) => Err(Failed { error, kept: Some(next) }),
    }
}

#[cfg(all(test, not(loom)))]
#[path = "cd_table_tests.rs"]
mod tests;
