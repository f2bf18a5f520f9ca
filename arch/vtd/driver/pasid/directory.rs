//! The PASID directory of one requester, its PASID tables, and their entries.

use super::transition::{Invalidate, Passage, Plan, Step, Store};
use crate::addr::PhysAddr;
use crate::arch::vtd::driver::site;
use crate::arch::vtd::driver::slot::{Slot, SlotKind};
use crate::arch::vtd::driver::two_level::TwoLevel;
use crate::arch::vtd::layout::scalable::{
    MIN_DIRECTORY_ENTRIES, PASID_ENTRIES, PASID_INDEX_BITS, PASID_WORDS, PasidEntry,
};
use crate::error::{Error, InvalidReason, Result, UnsupportedReason};
use crate::hwmem::Table;
use crate::id::Pasid;
use crate::pgtable::WalkerCoherency;
use crate::platform::{FRAME_BYTES, Platform};

/// Bit 5 is reserved (9.6).
const PASID: SlotKind = SlotKind { fenced: 1 << 5, sites: site::PASID };
/// The fewest bits of a PASID for which there is a directory, for PDTS zero (VT-d 9.4).
const MIN_PASID_BITS: u32 = PASID_INDEX_BITS + MIN_DIRECTORY_ENTRIES.ilog2();
const FRAME_ENTRIES: u32 = FRAME_BYTES as u32 / size_of::<u64>() as u32;

/// One entry of a PASID table in memory, read and written as a [`PasidEntry`].
pub(in crate::arch::vtd::driver) type PasidSlot<'a, P> = Slot<'a, P, PASID_WORDS>;

/// A PASID directory and the PASID tables below it, which are made when they are first needed.
///
/// Dropping it frees all of them: no context entry may lead to it any more, nor be cached.
#[derive(Debug)]
pub(in crate::arch::vtd::driver) struct PasidDirectory<P: Platform> {
    tables: TwoLevel<P>,
    size: u8,
}

impl<P: Platform> PasidDirectory<P> {
    /// The smallest directory for PASIDs of `pasid_bits` bits, at most 20, in which all are blocked.
    /// Requests without PASID need no bits. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::Pasid`] beyond 20 bits.
    pub(in crate::arch::vtd::driver) fn new(platform: P, coherency: WalkerCoherency, pasid_bits: u32) -> Result<Self> {
        let size = pasid_bits.saturating_sub(MIN_PASID_BITS);
        if size > 7 {
            return Err(Error::Invalid(InvalidReason::Pasid));
        }
        let order = size.saturating_sub((FRAME_ENTRIES / MIN_DIRECTORY_ENTRIES).ilog2());
        Ok(Self { tables: TwoLevel::new(platform, coherency, order as u8, &site::PASID_TABLES)?, size: size as u8 })
    }

    /// Where the directory lies (PASIDDIRPTR).
    pub(in crate::arch::vtd::driver) fn phys(&self) -> PhysAddr {
        self.tables.phys()
    }

    /// PDTS: it has `1 << (size + 7)` entries.
    pub(in crate::arch::vtd::driver) fn size(&self) -> u8 {
        self.size
    }

    /// The entry of a PASID, if there is a table with it.
    pub(in crate::arch::vtd::driver) fn find(&self, pasid: Pasid) -> Option<PasidSlot<'_, P>> {
        let table = self.tables.find(self.index(pasid)?)?;
        Some(self.slot(table, pasid))
    }

    /// The entry of a PASID, in a new table if there is none. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::Pasid`] for one beyond the directory.
    pub(in crate::arch::vtd::driver) fn find_or_make(&self, pasid: Pasid) -> Result<PasidSlot<'_, P>> {
        let index = self.index(pasid).ok_or(Error::Invalid(InvalidReason::Pasid))?;
        let table = self.tables.find_or_make(index)?;
        Ok(self.slot(table, pasid))
    }

    /// Calls `visit` with every entry of every table, present or not.
    pub(in crate::arch::vtd::driver) fn each(&self, mut visit: impl FnMut(PasidSlot<'_, P>)) {
        for table in self.tables.tables() {
            for entry in 0..PASID_ENTRIES {
                visit(self.slot_at(table, entry));
            }
        }
    }

    fn index(&self, pasid: Pasid) -> Option<usize> {
        let index = pasid.as_u32() >> PASID_INDEX_BITS;
        (index < MIN_DIRECTORY_ENTRIES << self.size).then_some(index as usize)
    }

    fn slot<'a>(&'a self, table: Table<'a>, pasid: Pasid) -> PasidSlot<'a, P> {
        self.slot_at(table, pasid.as_u32() as usize % PASID_ENTRIES)
    }

    fn slot_at<'a>(&'a self, table: Table<'a>, entry: usize) -> PasidSlot<'a, P> {
        Slot { visibility: &self.tables.visibility, table, first: entry * PASID_WORDS, kind: &PASID }
    }
}

impl<P: Platform> PasidSlot<'_, P> {
    /// Turns the entry, present or not, into `new`, hitlessly where the hardware allows it (see
    /// [`Plan`]). `invalidate` is called where caches must forget what the entry was, and waits until
    /// they have. Task only.
    ///
    /// A fence that comes amid this may be undone by it: look afterwards, as after
    /// [`publish`](Slot::publish).
    ///
    /// # Errors
    /// Those of `invalidate`: the entry is not present then, but may be cached. [`Error::Fenced`] when
    /// it is fenced; nothing has changed then.
    pub(in crate::arch::vtd::driver) fn replace(
        &self,
        new: PasidEntry,
        mut invalidate: impl FnMut(Invalidate) -> Result<()>,
    ) -> Result<Passage> {
        self.replace_with(new, &mut invalidate)
    }

    fn replace_with(&self, new: PasidEntry, invalidate: &mut dyn FnMut(Invalidate) -> Result<()>) -> Result<Passage> {
        let mut store = Store::Bits128;
        loop {
            let old: PasidEntry = self.read();
            if !old.is_present() && self.word(0).load() & PASID.fenced != 0 {
                return Err(Error::Fenced);
            }
            let plan = Plan::new(old, new, store);
            let mut refused = false;
            let result = plan.each(&mut |step| match step {
                Step::Word(index, value) => {
                    self.word(index).store(value);
                    self.show(site::PASID_STEP, site::PASID_STEP_CLEAN);
                    Ok(())
                }
                Step::Pair(low, values) => {
                    let first = self.first.wrapping_add(low);
                    let stored = self.table.store_pair(&self.visibility.platform, first, values);
                    refused = stored.is_none();
                    self.show(site::PASID_STEP, site::PASID_STEP_CLEAN);
                    stored.ok_or(Error::Unsupported(UnsupportedReason::Operation))
                }
                Step::Invalidate(what) => invalidate(what),
            });
            match result {
                Ok(()) => return Ok(plan.passage()),
                // Nothing that hardware uses has changed yet.
                Err(_) if refused => store = Store::Bits64,
                Err(error) => {
                    self.withdraw::<PasidEntry>();
                    return Err(error);
                }
            }
        }
    }
}
