//! The commonest calls, kept short: one page where all tables are there.

use super::geometry::{has_items, is_one_entry, shift};
use super::table::{Kind, Place};
use super::{Format, PageSizes, PageTable, WalkerCoherency};
use crate::addr::{IovaRange, PhysAddr};
use crate::platform::Platform;
use crate::prot::Prot;

/// Whether a short way did the whole call, or nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Short {
    /// All.
    Done,
    /// Nothing: take the long way, which also finds the error if there is one.
    NotTaken,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// [`map`](Self::map) for a range that is one page.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    #[inline(always)]
    pub(crate) unsafe fn map_one(&self, range: IovaRange, phys: PhysAddr, prot: Prot, sizes: PageSizes) -> Short {
        let phys = phys.as_u64();
        let bytes = if self.walker == WalkerCoherency::Snoops { one_page::<F>(range) } else { 0 };
        if bytes & self.sizes & sizes.bits() == 0 {
            return Short::NotTaken;
        }
        let rest = bytes - 1;
        if phys & rest != 0 || phys | rest > self.output_last {
            return Short::NotTaken;
        }
        let (Ok(attributes), Some(place)) = (self.attributes(prot), self.place_of(range, bytes)) else {
            return Short::NotTaken;
        };
        let entry = place.table.entry(place.index);
        if entry.load_relaxed() != 0 {
            return Short::NotTaken;
        }
        entry.store(self.format.leaf(place.level, 0, phys, attributes));
        Short::Done
    }

    /// [`unmap`](Self::unmap) for a range that is one page.
    ///
    /// # Safety
    /// As [`unmap`](Self::unmap).
    #[inline(always)]
    pub(crate) unsafe fn unmap_one(&self, range: IovaRange) -> Short {
        let bytes = if self.plain { one_page::<F>(range) } else { 0 };
        if bytes & self.sizes == 0 {
            return Short::NotTaken;
        }
        let Some(place) = self.place_of(range, bytes) else { return Short::NotTaken };
        let entry = place.table.entry(place.index);
        // Small pages are cleared unread, unless a page of several entries may be there; a large range may
        // hold a table instead.
        if (has_items::<F>() || bytes != 1 << shift::<F>(0)) && !self.is_one_page(place.level, entry.load()) {
            return Short::NotTaken;
        }
        entry.store(0);
        Short::Done
    }

    /// Whether an entry of `level` is a page by itself.
    #[inline(always)]
    pub(super) fn is_one_page(&self, level: u8, entry: u64) -> bool {
        self.kind(level, entry) == Kind::Leaf && (!has_items::<F>() || self.format.item(level, entry) == 0)
    }

    /// The entry for a page of `bytes` bytes, if all tables on the way are there.
    #[inline(always)]
    fn place_of(&self, range: IovaRange, bytes: u64) -> Option<Place<'_>> {
        let at = self.offset(range.start())?;
        // The smallest size is a constant, which makes the way down a short one.
        if bytes == 1 << shift::<F>(0) {
            self.descend(at, shift::<F>(0))
        } else {
            self.descend(at, bytes.trailing_zeros())
        }
    }
}

/// The length of a range that is an aligned power of two, and not that of pages of several entries; else
/// zero.
#[inline(always)]
fn one_page<F: Format>(range: IovaRange) -> u64 {
    let (start, last) = (range.start().as_u64(), range.last().as_u64());
    let low = start ^ last;
    let one = start & low == 0 && low & low.wrapping_add(1) == 0;
    if one && is_one_entry::<F>(low.wrapping_add(1)) { low.wrapping_add(1) } else { 0 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec;

    use super::Short::{Done, NotTaken};
    use crate::addr::{Iova, IovaRange, PhysAddr};
    use crate::pgtable::{Config, PageSize, PageSizes, PageTable, SecondStage, TableList, WalkerCoherency};
    use crate::platform::{Arena, Frame};
    use crate::prot::Prot;

    fn table(change: impl Fn(&mut Config)) -> PageTable<SecondStage, &'static Arena> {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 32].into_boxed_slice())).unwrap();
        let mut config = Config::new::<SecondStage>(4);
        change(&mut config);
        let table = PageTable::new(arena, SecondStage::default(), config).unwrap();
        // The tables around the first 2 MiB, and a large page behind them.
        for (at, bytes) in [(0, 0x1000), (0x20_0000, 0x20_0000)] {
            let range = IovaRange::from_len(Iova::new(at), bytes).unwrap();
            let mut stray = TableList::new();
            // SAFETY: no device uses the table.
            unsafe { table.map(range, PhysAddr::new(at), Prot::RW, PageSizes::ALL, &mut stray) }.unwrap();
            assert!(stray.is_empty());
        }
        table
    }

    fn page(at: u64) -> IovaRange {
        IovaRange::from_len(Iova::new(at), 0x1000).unwrap()
    }

    #[test]
    fn one_page_goes_the_short_way_and_reads_as_if_it_had_gone_the_long_one() {
        let table = table(|_| ());
        // SAFETY: no device uses the table.
        unsafe {
            assert_eq!(table.map_one(page(0x3000), PhysAddr::new(0x9000), Prot::READ, PageSizes::ALL), Done);
            let run = table.reader().next_run(Iova::new(0x1000), Iova::new(0xffff)).unwrap();
            assert_eq!((run.range, run.phys, run.prot), (page(0x3000), PhysAddr::new(0x9000), Prot::READ));
            assert_eq!(table.unmap_one(page(0x3000)), Done);
        }
        assert_eq!(table.iova_to_phys(Iova::new(0x3000)), None);
    }

    #[test]
    fn a_large_page_goes_the_short_way_too() {
        let table = table(|_| ());
        let large = IovaRange::from_len(Iova::new(0x40_0000), 0x20_0000).unwrap();
        // SAFETY: no device uses the table.
        unsafe {
            assert_eq!(table.map_one(large, PhysAddr::new(0x60_0000), Prot::RW, PageSizes::ALL), Done);
            let run = table.reader().next_run(Iova::new(0x40_0000), Iova::new(0x5f_ffff)).unwrap();
            assert_eq!((run.range, run.page_size), (large, PageSize::SIZE_2M));
            assert_eq!(table.unmap_one(large), Done);
            assert_eq!(table.unmap_one(large), NotTaken, "a hole is left to the long way");
        }
        assert_eq!(table.iova_to_phys(Iova::new(0x40_0000)), None);
    }

    #[test]
    fn everything_else_is_left_to_the_long_way_untouched() {
        let all = PageSizes::ALL;
        let plain = table(|_| ());
        let before = std::format!("{plain:?}");
        let two = IovaRange::from_len(Iova::new(0x3000), 0x2000).unwrap();
        let odd = IovaRange::from_len(Iova::new(0x3800), 0x1000).unwrap();
        let high = PhysAddr::new(1 << 60);
        let large = IovaRange::from_len(Iova::new(0), 0x20_0000).unwrap();
        let cases = [
            ("taken", page(0), PhysAddr::new(0), Prot::RW, all),
            ("no table", page(1 << 40), PhysAddr::new(0), Prot::RW, all),
            ("a large page is there", page(0x20_0000), PhysAddr::new(0), Prot::RW, all),
            ("two pages", two, PhysAddr::new(0), Prot::RW, all),
            ("misaligned IOVA", odd, PhysAddr::new(0), Prot::RW, all),
            ("misaligned address", page(0x3000), PhysAddr::new(0x800), Prot::RW, all),
            ("too high", page(0x3000), high, Prot::RW, all),
            ("no permission", page(0x3000), PhysAddr::new(0), Prot::CACHE, all),
            ("a table is there", large, PhysAddr::new(0), Prot::RW, all),
            ("no such size", page(0x3000), PhysAddr::new(0), Prot::RW, PageSizes::only(PageSize::SIZE_2M)),
            ("beyond the width", page(1 << 50), PhysAddr::new(0), Prot::RW, all),
        ];
        for (case, range, phys, prot, sizes) in cases {
            // SAFETY: no device uses the table.
            assert_eq!(unsafe { plain.map_one(range, phys, prot, sizes) }, NotTaken, "{case}");
        }
        for range in [page(1 << 40), page(0x20_0000), two, odd, large, page(1 << 50)] {
            // SAFETY: as above.
            assert_eq!(unsafe { plain.unmap_one(range) }, NotTaken);
        }
        assert_eq!(std::format!("{plain:?}"), before);
        let cleaned = table(|config| config.walker = WalkerCoherency::NeedsClean);
        // SAFETY: as above.
        assert_eq!(unsafe { cleaned.map_one(page(0x3000), PhysAddr::new(0), Prot::RW, all) }, NotTaken);
    }
}
