//! The PASID directory of one requester, its PASID tables, and their entries.

use super::transition::{Invalidate, Passage, Plan, Step, Store};
use crate::addr::PhysAddr;
use crate::arch::vtd::driver::site;
use crate::arch::vtd::driver::slot::{Slot, SlotKind, leaves};
use crate::arch::vtd::layout::scalable::{
    MIN_DIRECTORY_ENTRIES, PASID_ENTRIES, PASID_INDEX_BITS, PASID_WORDS, PasidEntry,
};
use crate::error::{Error, InvalidReason, Result, UnsupportedReason};
use crate::hwmem::{Table, TwoLevel, Visibility};
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
        let visibility = Visibility { platform, coherency, last: PhysAddr::new(u64::MAX) };
        Ok(Self { tables: TwoLevel::new(visibility, order as u8, leaves(&site::PASID_TABLES))?, size: size as u8 })
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
        Slot { visibility: self.tables.visibility(), table, first: entry * PASID_WORDS, kind: &PASID }
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

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::{PasidDirectory, PasidSlot};
    use crate::addr::PhysAddr;
    use crate::arch::vtd::driver::pasid::{Invalidate, Passage};
    use crate::arch::vtd::layout::scalable::{FirstStageLevels, PasidDirectoryEntry, PasidEntry};
    use crate::arch::vtd::layout::{AddressWidth, DomainId};
    use crate::error::{Error, InvalidReason};
    use crate::hwmem::testing::{Memory, Pairs};
    use crate::id::Pasid;
    use crate::pgtable::WalkerCoherency;

    const SECOND: PasidEntry =
        PasidEntry::second_stage(PhysAddr::new(0x5000), AddressWidth::Bits48, DomainId::new(5)).with_page_snoop();
    const FIRST: PasidEntry = PasidEntry::first_stage(PhysAddr::new(0x6000), FirstStageLevels::Five, DomainId::new(6));
    const OTHER: PasidEntry = PasidEntry::first_stage(PhysAddr::new(0x7000), FirstStageLevels::Five, DomainId::new(7));

    fn pasid(pasid: u32) -> Pasid {
        Pasid::new(pasid).unwrap()
    }

    fn directory(platform: &Memory, bits: u32) -> PasidDirectory<Memory> {
        PasidDirectory::new(platform.clone(), WalkerCoherency::NeedsClean, bits).unwrap()
    }

    /// What hardware finds for a PASID, in what was written back (VT-d 3.4.3).
    fn walk(platform: &Memory, directory: &PasidDirectory<Memory>, pasid: Pasid) -> Option<PasidEntry> {
        let (index, entry) = (u64::from(pasid.as_u32()) >> 6, u64::from(pasid.as_u32()) & 63);
        let at = |base: PhysAddr, bytes: u64| platform.written_back(PhysAddr::new(base.as_u64() + bytes));
        let word = PasidDirectoryEntry { word: at(directory.phys(), index * 8) };
        let table = word.table()?;
        assert!(!word.has_reserved_bits());
        Some(PasidEntry { words: core::array::from_fn(|word| at(table, entry * 64 + word as u64 * 8)) })
    }

    #[test]
    fn directories_are_as_large_as_their_pasids_need() {
        for (bits, size, frames) in [(0, 0, 1), (13, 0, 1), (14, 1, 1), (15, 2, 1), (16, 3, 2), (20, 7, 32)] {
            let platform = Memory::new(Pairs::Refused);
            let directory = directory(&platform, bits);
            assert_eq!((directory.size(), platform.in_use()), (size, frames), "{bits} bits");
            let last = pasid((1 << (13 + u32::from(size))) - 1);
            directory.find_or_make(last).unwrap().publish(SECOND);
            assert_eq!(walk(&platform, &directory, last), Some(SECOND));
            if let Some(beyond) = Pasid::new(last.as_u32() + 1) {
                assert!(directory.find(beyond).is_none());
                assert_eq!(directory.find_or_make(beyond).err(), Some(Error::Invalid(InvalidReason::Pasid)));
            }
            drop(directory);
            assert_eq!(platform.in_use(), 0);
        }
        let platform = Memory::new(Pairs::Refused);
        let too_many = PasidDirectory::new(platform, WalkerCoherency::Snoops, 21);
        assert_eq!(too_many.err(), Some(Error::Invalid(InvalidReason::Pasid)));
    }

    #[test]
    fn hardware_finds_what_was_published() {
        let platform = Memory::new(Pairs::Refused);
        let directory = directory(&platform, 20);
        for pasid in [0, 1, 63, 64, 0xf_ffff].map(pasid) {
            assert!(walk(&platform, &directory, pasid).is_none_or(|entry| entry == PasidEntry::default()));
            let slot = directory.find_or_make(pasid).unwrap();
            assert_eq!(walk(&platform, &directory, pasid), Some(PasidEntry::default()));
            slot.publish(FIRST);
            assert_eq!(walk(&platform, &directory, pasid), Some(FIRST));
            assert_eq!(directory.find(pasid).unwrap().read::<PasidEntry>(), FIRST);
        }
        let mut present = 0;
        directory.each(|slot| present += u32::from(slot.read::<PasidEntry>().is_present()));
        assert_eq!(present, 5);
    }

    #[test]
    fn an_entry_is_withdrawn_before_it_is_cleared() {
        let platform = Memory::new(Pairs::Refused);
        let directory = directory(&platform, 0);
        let slot = directory.find_or_make(Pasid::ZERO).unwrap();
        let seen = || walk(&platform, &directory, Pasid::ZERO).unwrap();
        slot.publish(FIRST);
        slot.fence();
        assert!(!seen().is_present());
        slot.unfence();
        assert_eq!(seen(), FIRST);
        slot.fence();
        assert_eq!(slot.replace(SECOND, |_| Ok(())), Err(Error::Fenced));
        assert_eq!(slot.withdraw(), Some(FIRST));
        assert_eq!(seen(), FIRST.not_present());
        assert_eq!(slot.withdraw::<PasidEntry>(), None);
        slot.clear();
        assert_eq!(slot.read::<PasidEntry>(), PasidEntry::default());
        assert!(!seen().is_present(), "it need not be seen to be clear");
    }

    /// Replaces `old` by `new`; what was asked to be invalidated, and what memory held at the time.
    fn replace(pairs: Pairs, old: PasidEntry, new: PasidEntry) -> (Passage, Vec<(Invalidate, PasidEntry)>) {
        let platform = Memory::new(pairs);
        let directory = directory(&platform, 0);
        let slot = directory.find_or_make(Pasid::ZERO).unwrap();
        slot.publish(old);
        let seen = || walk(&platform, &directory, Pasid::ZERO).unwrap();
        let mut invalidated = Vec::new();
        let passage = slot.replace(new, |what| {
            assert_eq!(slot.read::<PasidEntry>(), seen());
            invalidated.push((what, seen()));
            Ok(())
        });
        assert_eq!(seen(), new);
        (passage.unwrap(), invalidated)
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_replacement_is_hitless_with_stores_of_128_bits() {
        let mut prepared = SECOND;
        prepared.words[2] = FIRST.words[2];
        let (passage, invalidated) = replace(Pairs::Stored, SECOND, FIRST);
        assert_eq!(passage, Passage::Hitless);
        assert_eq!(invalidated, [(Invalidate::Entry, prepared), (Invalidate::Translations, FIRST)]);
        let (passage, invalidated) = replace(Pairs::Stored, FIRST, SECOND);
        assert_eq!((passage, invalidated), (Passage::Hitless, [(Invalidate::Translations, prepared)].into()));
    }

    #[test]
    fn a_replacement_passes_through_blocked_where_it_must() {
        for (pairs, old, new) in [(Pairs::Refused, FIRST, SECOND), (Pairs::Stored, FIRST, OTHER)] {
            let (passage, invalidated) = replace(pairs, old, new);
            assert_eq!(passage, Passage::Blocked);
            assert_eq!(invalidated, [(Invalidate::Translations, old.not_present())]);
        }
        // What had been prepared for the store that was refused is not used, and still there.
        let mut prepared = SECOND;
        prepared.words[2] = FIRST.words[2];
        let (passage, invalidated) = replace(Pairs::Refused, SECOND, FIRST);
        assert_eq!(passage, Passage::Blocked);
        assert_eq!(invalidated, [(Invalidate::Entry, prepared), (Invalidate::Translations, prepared.not_present())]);
        assert_eq!(replace(Pairs::Refused, PasidEntry::default(), FIRST), (Passage::Hitless, Vec::new()));
    }

    #[test]
    fn an_invalidation_that_fails_leaves_nothing_present() {
        for pairs in [Pairs::Stored, Pairs::Refused] {
            for (old, new) in [(SECOND, FIRST), (FIRST, SECOND), (FIRST, OTHER)] {
                for failing in 0..2 {
                    let platform = Memory::new(pairs);
                    let directory = directory(&platform, 0);
                    let slot: PasidSlot<'_, _> = directory.find_or_make(Pasid::ZERO).unwrap();
                    slot.publish(old);
                    let mut calls = 0;
                    let result = slot.replace(new, |_| {
                        calls += 1;
                        if calls > failing { Err(Error::Fenced) } else { Ok(()) }
                    });
                    let present = walk(&platform, &directory, Pasid::ZERO).unwrap().is_present();
                    assert_eq!(result.is_ok(), present);
                    assert_eq!(result.is_ok(), calls <= failing);
                }
            }
        }
    }

    #[test]
    fn every_allocation_may_fail() {
        let platform = Memory::new(Pairs::Refused);
        for nth in 0..=2 {
            platform.fail_nth(nth);
            let made = PasidDirectory::new(platform.clone(), WalkerCoherency::Snoops, 20)
                .and_then(|directory| directory.find_or_make(pasid(1000)).map(drop));
            assert_eq!(made, if nth < 2 { Err(Error::NoMemory) } else { Ok(()) });
            assert_eq!(platform.in_use(), 0);
        }
    }

    #[test]
    fn a_walker_that_snoops_needs_no_clean() {
        let platform = Memory::new(Pairs::Refused);
        let directory = PasidDirectory::new(platform.clone(), WalkerCoherency::Snoops, 0).unwrap();
        let slot = directory.find_or_make(Pasid::ZERO).unwrap();
        slot.publish(FIRST);
        slot.replace(OTHER, |_| Ok(())).unwrap();
        assert!(!platform.has_cleaned());
    }
}
