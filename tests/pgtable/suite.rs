//! The tests, generic over the format. `suite!` makes a module of them for one format.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use iommu::pgtable::{
    AccessedDirty, Config, DirtyRead, Format, LiveSplit, MapError, PageSize, PageSizes, TableList, WalkerCoherency,
};
use iommu::platform::Platform;
use iommu::{BusyReason, Error, InvalidReason, Iova, IovaRange, PhysAddr, Prot, UnsupportedReason};

use crate::random::Random;
use crate::setup::{BREAK, Setup, range};

#[macro_export]
macro_rules! suite {
    ($name:ident, $format:expr, $shape:expr) => {
        mod $name {
            use iommu::pgtable::WalkerCoherency;

            use super::*;

            $crate::suite!(@ $format, $shape,
                each_page_size
                edges_of_the_range
                straddling_ranges
                top_to_bottom
                wrong_arguments
                undone_on_conflict
                large_page_over_empty_tables
                covered_tables_leave_unread
                partial_pages_are_cut
                permissions_change
                kinds_of_memory_stay
                hardware_bits_survive
                dirty_pages_are_read
                dirty_pages_are_marked_again
                no_dirty_page_is_lost_to_hardware
                snooping_is_enforced
                readers_park_tables
                random_operations
                every_allocation_fails_once
                prepared_tables_are_discarded
                one_clean_a_line
            );
        }
    };
    (@ $format:expr, $shape:expr, $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                for walker in [WalkerCoherency::Snoops, WalkerCoherency::NeedsClean] {
                    $crate::suite::$test($format, $crate::setup::Shape::config($shape, &$format), walker);
                }
            }
        )*
    };
}

const PHYS: u64 = 1 << 42;
const INVALID: fn(InvalidReason) -> Error = Error::Invalid;

fn sizes_of<F: Format>(setup: &Setup<F>) -> Vec<PageSize> {
    setup.table.page_sizes().iter().collect()
}

/// A page of each size at the beginning, in the middle and at the very end.
pub(crate) fn each_page_size<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    for size in sizes_of(&setup) {
        let (start, last) = (setup.start(), setup.last());
        let middle = (start + (last - start) / 2) & !(size.bytes() - 1);
        for (turn, at) in [start, middle, last - (size.bytes() - 1)].into_iter().enumerate() {
            let prot = if turn == 1 { Prot::READ } else { Prot::RW };
            setup.map(range(at, size.bytes()), PHYS, prot).unwrap();
            setup.probe(at);
            setup.probe(at + (size.bytes() - 1));
            let reader = setup.table.reader();
            let run = reader.next_run(Iova::new(at), Iova::new(at)).unwrap();
            assert_eq!((run.page_size, run.prot, run.phys), (size, prot, PhysAddr::new(PHYS)));
        }
        setup.check();
        for at in [start, middle, last - (size.bytes() - 1)] {
            setup.unmap(range(at, size.bytes())).unwrap();
        }
        assert_eq!(setup.runs(), []);
    }
    setup.finish();
}

/// The first and the last page, and what lies just beyond.
pub(crate) fn edges_of_the_range<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let (start, last, granule) = (setup.start(), setup.last(), setup.granule());
    for at in [start, last - (granule - 1)] {
        setup.map(range(at, granule), PHYS, Prot::RW).unwrap();
    }
    setup.probe(start);
    setup.probe(last);
    assert_eq!(setup.table.iova_to_phys(Iova::new(start.wrapping_sub(1))), None);
    let mut stray = TableList::new();
    // One page on both sides of each edge, where there is an outside.
    if let Some(below) = start.checked_sub(granule) {
        let across = range(below, 2 * granule);
        let expected = Error::OutOfRange { iova: Iova::new(below) };
        // SAFETY: no device uses the table.
        assert_eq!(unsafe { setup.table.unmap(across, &mut stray) }, Err(expected));
    }
    if let Some(beyond) = last.checked_add(1) {
        let across = range(beyond - granule, 2 * granule);
        let expected = Error::OutOfRange { iova: Iova::new(beyond) };
        // SAFETY: no device uses the table.
        unsafe {
            assert_eq!(setup.table.unmap(across, &mut stray), Err(expected));
            assert_eq!(setup.table.protect(across, Prot::RW, &mut stray), Err(expected));
            let mapped = setup.table.map(across, PhysAddr::new(PHYS), Prot::RW, PageSizes::ALL, &mut stray);
            assert_eq!(mapped, Err(MapError::from(expected)));
        }
        assert_eq!(setup.table.iova_to_phys(Iova::new(beyond)), None);
    }
    assert!(stray.is_empty());
    setup.finish();
}

/// Ranges across the borders of tables of every level, with physical addresses that fit large pages
/// and with some that do not.
pub(crate) fn straddling_ranges<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let granule = setup.granule();
    for level in 1..shape.levels {
        let entry = 1u64 << (u32::from(F::GRANULE_LOG2) + u32::from(level) * u32::from(F::INDEX_BITS));
        let border = setup.start() + 2 * entry;
        if setup.last() < border + entry {
            continue; // a root of few entries
        }
        for (before, after) in [(1, 1), (1, 700), (700, 1), (3, 0), (0, 3)] {
            for phys in [PHYS, PHYS + 2 * entry - before * granule, PHYS + granule] {
                let at = range(border - before * granule, (before + after) * granule);
                setup.map(at, phys, Prot::RW).unwrap();
                setup.check();
                setup.unmap(at).unwrap();
            }
        }
        // A large page with small ones on both sides, if there is such a page.
        let at = range(border - granule, entry + 2 * granule);
        if setup.table.page_sizes().bits() & entry != 0 {
            setup.map(at, PHYS + entry - granule, Prot::READ).unwrap();
            setup.check();
            setup.unmap(at).unwrap();
        }
    }
    setup.finish();
}

/// The whole range at once: mapped in the largest pages where that is feasible, unmapped in any case.
pub(crate) fn top_to_bottom<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let all = setup.table.range();
    let largest = setup.table.page_sizes().largest().unwrap();
    let bits = (all.last().as_u64() - all.start().as_u64()).count_ones();
    if bits <= u32::from(F::OUTPUT_BITS) && bits - u32::from(largest.log2()) <= 10 {
        setup.map(all, 0, Prot::RW).unwrap();
        assert_eq!(setup.runs().len(), 1);
        setup.unmap(all).unwrap();
    }
    let granule = setup.granule();
    for at in [setup.start(), setup.last() - (granule - 1)] {
        setup.map(range(at, granule), PHYS, Prot::RW).unwrap();
    }
    setup.unmap(all).unwrap();
    assert_eq!(setup.runs(), []);
    setup.finish();
}

/// Each mistake has its own error, and changes nothing.
pub(crate) fn wrong_arguments<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let setup = Setup::new(format, shape, walker);
    let (start, granule) = (setup.start(), setup.granule());
    let before = setup.platform.frames_in_use();
    let map = |at, phys, prot, sizes| {
        let mut stray = TableList::new();
        // SAFETY: no device uses the table.
        let result = unsafe { setup.table.map(at, PhysAddr::new(phys), prot, sizes, &mut stray) };
        assert!(stray.is_empty());
        result.map_err(|failed| {
            assert_eq!(failed.undone, None);
            failed.error
        })
    };
    let page = range(start, granule);
    let all = PageSizes::ALL;
    assert_eq!(map(page, PHYS, Prot::empty(), all), Err(INVALID(InvalidReason::NoPermission)));
    assert_eq!(map(page, PHYS, Prot::CACHE, all), Err(INVALID(InvalidReason::NoPermission)));
    assert_eq!(map(page, PHYS, Prot::RW, PageSizes::NONE), Err(INVALID(InvalidReason::NoPageSize)));
    assert_eq!(map(page, PHYS, Prot::RW, PageSizes::from_bits(1 << 5)), Err(INVALID(InvalidReason::NoPageSize)));
    let misaligned = Err(INVALID(InvalidReason::Misaligned));
    assert_eq!(map(range(start, granule / 2), PHYS, Prot::RW, all), misaligned);
    assert_eq!(map(range(start + granule / 2, granule), PHYS, Prot::RW, all), misaligned);
    assert_eq!(map(page, PHYS + granule / 2, Prot::RW, all), misaligned);
    // Aligned for the table, but not for the sizes of this call.
    let larger = sizes_of(&setup).into_iter().nth(1).unwrap();
    assert_eq!(map(page, PHYS, Prot::RW, PageSizes::only(larger)), misaligned);
    // The second page's address is one bit too wide.
    let beyond = shape.output_last.as_u64() + 1;
    let top = beyond - granule;
    let second = Error::OutOfRange { iova: Iova::new(start + granule) };
    assert_eq!(map(range(start, 2 * granule), top, Prot::RW, all), Err(second));
    let first = Error::OutOfRange { iova: Iova::new(start) };
    assert_eq!(map(page, beyond, Prot::RW, all), Err(first));
    // SAFETY: no device uses the table.
    unsafe {
        let mut stray = TableList::new();
        assert_eq!(setup.table.unmap(range(start, granule / 2), &mut stray), misaligned);
        assert_eq!(setup.table.protect(page, Prot::empty(), &mut stray), Err(INVALID(InvalidReason::NoPermission)));
        assert_eq!(setup.table.protect(page, Prot::RW, &mut stray), Err(Error::NotMapped { iova: Iova::new(start) }));
        assert_eq!(setup.table.cut(range(start + 1, granule), &mut stray), misaligned);
    }
    assert_eq!((setup.platform.frames_in_use(), setup.runs()), (before, vec![]));
    setup.finish();
}

/// A mapping that runs into another leaves nothing behind, wherever that one is and however large.
pub(crate) fn undone_on_conflict<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    for size in Setup::new(format, shape, walker).table.page_sizes().iter() {
        let mut setup = Setup::new(format, shape, walker);
        let granule = setup.granule();
        // Far enough up, at a multiple of the size, for what is to lie below.
        let below = (64 * granule).next_multiple_of(size.bytes()).max(2 * size.bytes());
        let taken = setup.start() + below;
        setup.map(range(taken, size.bytes()), PHYS, Prot::READ).unwrap();
        for pages in [1, 2, 9, 40] {
            for after in [1, 30] {
                let at = range(taken - pages * granule, (pages + after) * granule);
                // In small pages, and in any that fit.
                for phys in [PHYS + granule, PHYS + below - pages * granule] {
                    let failed = setup.map(at, phys, Prot::RW).unwrap_err();
                    assert_eq!(failed.error, Error::Exists { iova: Iova::new(taken) });
                    setup.check();
                }
            }
        }
        // From the very beginning, in large pages.
        let at = range(setup.start(), below + size.bytes());
        setup.map(at, PHYS, Prot::RW).unwrap_err();
        setup.check();
        setup.unmap(range(taken, size.bytes())).unwrap();
        setup.map(at, PHYS, Prot::RW).unwrap();
        setup.finish();
    }
}

/// Small pages come and go; where their tables stayed, a large page fits again.
pub(crate) fn large_page_over_empty_tables<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let granule = setup.granule();
    for size in sizes_of(&setup).into_iter().skip(1) {
        let at = setup.start() + size.bytes();
        for offset in [0, size.bytes() / 2, size.bytes() - granule] {
            setup.map(range(at + offset, granule), PHYS, Prot::RW).unwrap();
            // With that page there, the large one is refused.
            let taken = Error::Exists { iova: Iova::new(at + offset) };
            assert_eq!(setup.map(range(at, size.bytes()), PHYS, Prot::RW).unwrap_err().error, taken);
            setup.unmap(range(at + offset, granule)).unwrap();
        }
        let table_below = size.log2() >= F::GRANULE_LOG2 + F::INDEX_BITS;
        let mut map = || setup.map_once(range(at, size.bytes()), PHYS, Prot::RW, PageSizes::ALL);
        if format.live_split() == LiveSplit::Forbidden && table_below {
            assert_eq!(map(), (true, Err(BREAK)));
            assert_eq!(map(), (false, Ok(())));
        } else {
            assert_eq!(map(), (table_below, Ok(())));
        }
        assert_eq!(setup.runs()[0].page_size, size);
        setup.model.map(range(at, size.bytes()), PHYS, Prot::RW, setup.table.page_sizes()).unwrap();
        setup.check();
        setup.unmap(range(at, size.bytes())).unwrap();
    }
    setup.finish();
}

/// A range that covers tables takes them out with one store each: their frames come back, and what
/// hardware may still walk is whole but for its first entry.
pub(crate) fn covered_tables_leave_unread<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let granule = setup.granule();
    let empty = setup.platform.frames_in_use();
    let entry = granule << F::INDEX_BITS;
    let at = range(setup.start(), 4 * entry);
    setup.map(range(setup.start(), 3 * entry), PHYS + granule, Prot::RW).unwrap();
    let full = setup.platform.frames_in_use();
    setup.platform.take_cleans();
    let mut stray = TableList::new();
    // SAFETY: no device uses the table.
    unsafe { setup.table.unmap(at, &mut stray).unwrap() };
    setup.model.unmap(at).unwrap();
    // Three entries that lie in one line were cleared.
    let lines = if walker == WalkerCoherency::NeedsClean { 1 } else { 0 };
    assert_eq!(setup.platform.take_cleans(), lines);
    assert_eq!(setup.platform.frames_in_use(), full);
    assert_eq!(setup.runs(), []);
    // SAFETY: as above.
    unsafe { setup.table.free(stray) };
    let tables = 3 * (1usize << F::INDEX_BITS.saturating_sub(9));
    assert_eq!(setup.platform.frames_in_use(), full - tables);
    // A table of tables, then.
    if shape.levels > 2 {
        setup.map(range(setup.start() + entry, 2 * entry), PHYS + granule, Prot::RW).unwrap();
        setup.map(range(setup.start(), granule), PHYS, Prot::RW).unwrap();
        setup.unmap(range(setup.start(), entry << F::INDEX_BITS)).unwrap();
    }
    setup.unmap(setup.table.range()).unwrap();
    assert_eq!(setup.platform.frames_in_use(), empty);
    setup.finish();
}

/// A large page that is covered in part stops `unmap`; after `cut` it does not, and in between every
/// address leads where it did.
pub(crate) fn partial_pages_are_cut<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    for size in Setup::new(format, shape, walker).table.page_sizes().iter().skip(1) {
        let mut setup = Setup::new(format, shape, walker);
        let granule = setup.granule();
        let page = setup.start() + 2 * size.bytes();
        setup.map(range(page, size.bytes()), PHYS, Prot::RW).unwrap();
        setup.map(range(page - granule, granule), 3 * PHYS, Prot::RW).unwrap();
        let partial = Err(Error::PartialPage { page: Iova::new(page), size });
        assert_eq!(setup.unmap(range(page + granule, granule)), partial);
        assert_eq!(setup.unmap(range(page + size.bytes() - granule, 2 * granule)), partial);
        assert_eq!(setup.protect(range(page, granule), Prot::READ), partial);
        setup.check();
        // What lies below the page is unmapped before the error.
        assert_eq!(setup.unmap(range(page - granule, 2 * granule)), partial);
        setup.check();
        let middle = range(page + granule, size.bytes() - 2 * granule);
        if middle.last().as_u64() < middle.start().as_u64() {
            continue;
        }
        if format.live_split() == LiveSplit::Forbidden {
            // SAFETY: no device uses the table.
            let refused = unsafe { setup.table.cut(middle, &mut TableList::new()) };
            assert_eq!(refused, Err(Error::Unsupported(UnsupportedReason::Split)));
            setup.finish();
            continue;
        }
        // Edges of pages need no cut.
        setup.cut(range(page, size.bytes()));
        assert_eq!(setup.runs().len(), 1);
        setup.cut(middle);
        setup.check();
        for probe in [page, page + granule, page + size.bytes() / 2, page + size.bytes() - granule] {
            setup.probe(probe);
        }
        setup.unmap(middle).unwrap();
        assert_eq!(setup.runs().len(), 2);
        // What remains can be cut by every failing allocation as well: nothing changes.
        setup.unmap(range(page, size.bytes())).unwrap();
        setup.map(range(page, size.bytes()), PHYS, Prot::RW).unwrap();
        for budget in 0.. {
            setup.platform.set_budget(Some(budget));
            // SAFETY: no device uses the table.
            let result = unsafe { setup.table.cut(middle, &mut TableList::new()) };
            setup.platform.set_budget(None);
            setup.probe(page + granule);
            if result.is_ok() {
                break;
            }
            assert_eq!(result, Err(Error::NoMemory));
        }
        setup.model.cut(middle, setup.table.page_sizes());
        setup.finish();
    }
}

/// Permissions change, accessed and dirty bits stay, addresses stay.
pub(crate) fn permissions_change<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let (start, granule) = (setup.start(), setup.granule());
    let largest = setup.table.page_sizes().largest().unwrap().bytes();
    let all = range(start, largest + 20 * granule);
    setup.map(range(start, largest), PHYS, Prot::RW).unwrap();
    setup.map(range(start + largest, 20 * granule), 2 * PHYS + granule, Prot::RW).unwrap();
    setup.protect(range(start, largest), Prot::READ).unwrap();
    setup.check();
    setup.protect(range(start + largest + granule, 3 * granule), Prot::READ).unwrap();
    setup.check();
    setup.unmap(range(start + largest + 5 * granule, granule)).unwrap();
    let hole = Error::NotMapped { iova: Iova::new(start + largest + 5 * granule) };
    assert_eq!(setup.protect(all, Prot::READ), Err(hole));
    setup.check();
    assert_eq!(setup.runs()[0].prot, Prot::READ);
    setup.finish();
}

/// A page in use keeps its kind of memory where the format cannot change it, and every page below it in
/// the range has the new permissions.
pub(crate) fn kinds_of_memory_stay<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let (start, granule) = (setup.start(), setup.granule());
    setup.map(range(start, 2 * granule), PHYS + granule, Prot::RW).unwrap();
    setup.map(range(start + 2 * granule, granule), PHYS, Prot::RW | Prot::MMIO).unwrap();
    let cached = Prot::READ | Prot::MMIO;
    let differ = |prot| (format.attributes(Prot::RW).unwrap() ^ format.attributes(prot).unwrap()) & F::FIXED != 0;
    // SAFETY: no device uses the table.
    let result = unsafe { setup.table.protect(range(start, 3 * granule), cached, &mut TableList::new()) };
    if !differ(cached) {
        assert_eq!(result, Ok(()));
        return;
    }
    assert_eq!(result, Err(Error::Unsupported(UnsupportedReason::MemoryType)));
    assert_eq!(setup.runs(), setup.model.runs());
    setup.protect(range(start + 2 * granule, granule), cached).unwrap();
    // SAFETY: as above.
    let result = unsafe { setup.table.protect(range(start, 3 * granule), Prot::READ, &mut TableList::new()) };
    assert_eq!(result, Err(Error::Unsupported(UnsupportedReason::MemoryType)));
    setup.model.protect(range(start, 2 * granule), Prot::READ).unwrap();
    setup.finish();
}

/// What hardware has set in a leaf is there after a change of permissions and after a cut, in every
/// part; a new mapping begins without it.
pub(crate) fn hardware_bits_survive<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    if format.accessed_dirty() == AccessedDirty::Unused {
        return;
    }
    let mut setup = Setup::new(format, shape, walker);
    let granule = setup.granule();
    let size = setup.table.page_sizes().largest().unwrap().bytes();
    let page = range(setup.start(), size);
    setup.map(page, PHYS, Prot::RW).unwrap();
    let bits = |setup: &Setup<F>, at: u64| setup.entry(at).load(Ordering::Acquire) & F::ACCESSED_DIRTY;
    assert_eq!(bits(&setup, setup.start()) & F::DIRTY, 0);
    setup.entry(setup.start()).fetch_or(F::ACCESSED_DIRTY, Ordering::AcqRel);
    // SAFETY: no device uses the table.
    unsafe { setup.table.protect(page, Prot::READ, &mut TableList::new()).unwrap() };
    setup.model.protect(page, Prot::READ).unwrap();
    assert_eq!(bits(&setup, setup.start()), F::ACCESSED_DIRTY);
    let middle = range(setup.start() + granule, size - 2 * granule);
    // SAFETY: no device uses the table.
    unsafe { setup.table.cut(middle, &mut TableList::new()).unwrap() };
    setup.model.cut(middle, setup.table.page_sizes());
    for at in [0, granule, size / 2, size - granule] {
        assert_eq!(bits(&setup, setup.start() + at), F::ACCESSED_DIRTY);
    }
    assert_eq!(setup.runs(), setup.model.runs());
    setup.unmap(page).unwrap();
    setup.finish();
}

/// Writes each page in the list as a device does.
fn write<F: Format>(setup: &Setup<F>, pages: &[u64]) {
    for page in pages {
        let entry = setup.entry(*page);
        entry.fetch_or(F::DIRTY, Ordering::AcqRel);
        // It is in memory then, and not in a cache alone.
        setup.platform.clean(NonNull::from(entry).cast(), 8);
    }
}

/// The pages of the range that are dirty.
fn dirty<F: Format>(setup: &Setup<F>, at: IovaRange, read: DirtyRead) -> Result<Vec<IovaRange>, Error> {
    let mut found = Vec::new();
    setup.table.read_dirty(at, read, &mut |page| found.push(page))?;
    if setup.table.walker() == WalkerCoherency::NeedsClean {
        setup.check_walker();
    }
    // An item may be visited once for each of its entries.
    found.dedup();
    Ok(found)
}

/// Pages of every size are reported when they were written, until their record is cleared.
pub(crate) fn dirty_pages_are_read<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let (start, granule) = (setup.start(), setup.granule());
    if format.accessed_dirty() == AccessedDirty::Unused {
        let unsupported = Err(Error::Unsupported(UnsupportedReason::Features));
        setup.map(range(start, granule), PHYS, Prot::RW).unwrap();
        assert_eq!(dirty(&setup, range(start, granule), DirtyRead::Keep), unsupported);
        assert_eq!(setup.table.clear_dirty(), Err(Error::Unsupported(UnsupportedReason::Features)));
        assert_eq!(
            setup.table.mark_dirty(range(start, granule), &|_| true),
            Err(Error::Unsupported(UnsupportedReason::Features))
        );
        return;
    }
    // One page of each size, the largest first, and a few of the smallest behind.
    let mut sizes: Vec<u64> = sizes_of(&setup).iter().map(|size| size.bytes()).collect();
    sizes.reverse();
    sizes.extend([granule; 5]);
    let mut pages = Vec::new();
    let mut at = start;
    for size in sizes {
        // Each leads elsewhere, so that no two make a larger one.
        setup.map(range(at, size), PHYS + 3 * size * pages.len() as u64, Prot::RW).unwrap();
        pages.push(range(at, size));
        at += size;
    }
    let all = IovaRange::new(Iova::new(start), Iova::new(at - 1)).unwrap();
    assert_eq!(dirty(&setup, all, DirtyRead::Keep), Ok(vec![]));
    // The last byte: of an item, the last entry.
    let written = |setup: &Setup<F>, numbers: &[usize]| -> Vec<IovaRange> {
        numbers.iter().map(|number| pages[*number]).inspect(|page| write(setup, &[page.last().as_u64()])).collect()
    };
    let last = pages.len() - 1;
    let every: Vec<usize> = (0..=last).collect();
    for numbers in [&every[..], &[0, last], &[1, last - 2, last - 1]] {
        let expected = written(&setup, numbers);
        assert_eq!(dirty(&setup, all, DirtyRead::Keep), Ok(expected.clone()));
        assert_eq!(dirty(&setup, all, DirtyRead::Clear), Ok(expected));
        assert_eq!(dirty(&setup, all, DirtyRead::Clear), Ok(vec![]));
    }
    // A part of the range, and what cannot be.
    let expected = written(&setup, &every);
    assert_eq!(dirty(&setup, pages[last - 1], DirtyRead::Clear), Ok(vec![pages[last - 1]]));
    let beyond = range(at - granule, 2 * granule);
    assert_eq!(dirty(&setup, beyond, DirtyRead::Clear), Err(Error::NotMapped { iova: Iova::new(at) }));
    let size = pages[0].bytes().unwrap();
    for part in [range(start, size - granule), range(start + granule, size - granule)] {
        let partial = Error::PartialPage { page: Iova::new(start), size: PageSize::from_log2(size.ilog2() as u8) };
        assert_eq!(dirty(&setup, part, DirtyRead::Clear), Err(partial));
    }
    let odd = range(start + granule / 2, granule);
    assert_eq!(dirty(&setup, odd, DirtyRead::Keep), Err(INVALID(InvalidReason::Misaligned)));
    let rest: Vec<IovaRange> = expected.iter().copied().filter(|page| *page != pages[last - 1]).collect();
    assert_eq!(dirty(&setup, all, DirtyRead::Keep), Ok(rest), "what was refused has changed nothing");
    setup.table.clear_dirty().unwrap();
    assert_eq!(dirty(&setup, all, DirtyRead::Keep), Ok(vec![]));
    setup.finish();
}

/// What was read can be put back, and holes are no matter.
pub(crate) fn dirty_pages_are_marked_again<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    if format.accessed_dirty() == AccessedDirty::Unused {
        return;
    }
    let mut setup = Setup::new(format, shape, walker);
    let (start, granule) = (setup.start(), setup.granule());
    // Addresses that fit nothing larger.
    setup.map(range(start, 8 * granule), PHYS + granule, Prot::RW).unwrap();
    setup.unmap(range(start + 3 * granule, granule)).unwrap();
    let page = |number: u64| range(start + number * granule, granule);
    let (all, wanted) = (range(start, 8 * granule), [page(1), page(3), page(6)]);
    setup.table.mark_dirty(all, &|page| wanted.contains(&page)).unwrap();
    setup.check();
    assert_eq!(dirty(&setup, range(start, 3 * granule), DirtyRead::Keep), Ok(vec![page(1)]));
    assert_eq!(dirty(&setup, range(start + 4 * granule, 4 * granule), DirtyRead::Clear), Ok(vec![page(6)]));
    setup.finish();
}

/// Each time that hardware sets a clean page's bit, one read reports it: also while other pages of the
/// table, and permissions of these, change.
pub(crate) fn no_dirty_page_is_lost_to_hardware<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    const PAGES: u64 = 8;
    if format.accessed_dirty() == AccessedDirty::Unused || walker == WalkerCoherency::NeedsClean {
        return;
    }
    let mut setup = Setup::new(format, shape, walker);
    let (start, granule) = (setup.start(), setup.granule());
    let all = range(start, PAGES * granule);
    setup.map(all, PHYS + granule, Prot::RW).unwrap();
    let (stop, mut reported) = (AtomicBool::new(false), [0; PAGES as usize]);
    let setup = &setup;
    let set = std::thread::scope(|scope| {
        let hardware = scope.spawn(|| {
            let mut set = [0; PAGES as usize];
            while !stop.load(Ordering::Relaxed) {
                for page in 0..PAGES {
                    let entry = setup.entry(start + page * granule);
                    let found = entry.load(Ordering::Acquire);
                    let dirty = found | F::DIRTY;
                    if found & F::DIRTY == 0
                        && entry.compare_exchange(found, dirty, Ordering::AcqRel, Ordering::Acquire).is_ok()
                    {
                        set[page as usize] += 1;
                    }
                }
            }
            set
        });
        let others = scope.spawn(|| {
            let neighbour = range(start + PAGES * granule, 4 * granule);
            let mut stray = TableList::new();
            for turn in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let prot = if turn % 2 == 0 { Prot::READ } else { Prot::RW };
                // SAFETY: no device uses the memory, and only this thread changes these ranges.
                unsafe {
                    setup.table.map(neighbour, PhysAddr::new(PHYS), prot, PageSizes::ALL, &mut stray).unwrap();
                    setup.table.protect(all, prot, &mut stray).unwrap();
                    setup.table.unmap(neighbour, &mut stray).unwrap();
                }
            }
            // SAFETY: as above.
            unsafe { setup.table.free(stray) };
        });
        let mut read = || {
            let mut count = |page: IovaRange| reported[((page.start().as_u64() - start) / granule) as usize] += 1;
            setup.table.read_dirty(all, DirtyRead::Clear, &mut count).unwrap();
            reported.iter().all(|count| *count >= 50)
        };
        while !read() {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        others.join().unwrap();
        let set = hardware.join().unwrap();
        read();
        set
    });
    assert_eq!(reported, set);
}

/// Leaves say that every request snoops from the moment on when it is enforced, which must be before
/// the first; in a format without such a bit nothing changes.
pub(crate) fn snooping_is_enforced<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let (start, granule) = (setup.start(), setup.granule());
    let snoops = |setup: &Setup<F>, at: u64| setup.entry(at).load(Ordering::Acquire) & F::SNOOP == F::SNOOP;
    setup.map(range(start, granule), PHYS, Prot::RW).unwrap();
    let refused = if F::SNOOP == 0 { Ok(()) } else { Err(Error::Busy(BusyReason::InUse)) };
    assert_eq!(setup.table.enforce_snoop(), refused);
    setup.map(range(start + granule, granule), PHYS, Prot::RW).unwrap();
    assert_eq!(snoops(&setup, start + granule), F::SNOOP == 0, "a refusal changes nothing");
    setup.unmap(range(start, 2 * granule)).unwrap();
    setup.table.enforce_snoop().unwrap();
    let largest = setup.table.page_sizes().largest().unwrap().bytes();
    setup.map(range(start, largest), PHYS, Prot::RW).unwrap();
    setup.map(range(start + largest, 700 * granule), PHYS + granule, Prot::READ).unwrap();
    setup.protect(range(start, largest), Prot::READ).unwrap();
    if format.live_split() == LiveSplit::Allowed {
        setup.cut(range(start + granule, granule));
    }
    for at in [start, start + granule, start + largest, start + largest + 699 * granule] {
        assert!(snoops(&setup, at));
    }
    setup.table.enforce_snoop().unwrap();
    setup.finish();
}

/// While a reader is registered, no table is freed; when the last one leaves, all are.
pub(crate) fn readers_park_tables<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let granule = setup.granule();
    let empty = setup.platform.frames_in_use();
    let all = setup.table.range();
    let first = granule << F::INDEX_BITS;
    for turn in 0..3 {
        setup.map(range(setup.start() + turn * first, 3 * granule), PHYS, Prot::RW).unwrap();
    }
    let full = setup.platform.frames_in_use();
    let (one, two) = (setup.table.reader(), setup.table.reader());
    for turn in 0..3 {
        let mut stray = TableList::new();
        // SAFETY: no device uses the table.
        unsafe {
            setup.table.unmap(range(setup.start() + turn * first, first), &mut stray).unwrap();
            setup.table.free(stray);
        }
    }
    assert_eq!(setup.platform.frames_in_use(), full);
    assert_eq!(one.next_run(all.start(), all.last()), None);
    drop(one);
    assert_eq!(setup.platform.frames_in_use(), full);
    drop(two);
    assert!(setup.platform.frames_in_use() < full);
    setup.model.unmap(all).unwrap();
    setup.unmap(all).unwrap();
    assert_eq!(setup.platform.frames_in_use(), empty);
    // Parked tables belong to the page table: they do not outlive it, though a reader leaks.
    setup.map(range(setup.start(), granule), PHYS, Prot::RW).unwrap();
    core::mem::forget(setup.table.reader());
    setup.unmap(range(setup.start(), first)).unwrap();
    setup.finish();
}

/// Thousands of random operations against the oracle.
pub(crate) fn random_operations<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let (seeds, operations) = if walker == WalkerCoherency::Snoops { (2, 1000) } else { (1, 300) };
    for seed in 1..=seeds {
        let mut setup = Setup::new(format, shape, walker);
        let mut random = Random::new(seed);
        for operation in 0..operations {
            let at = some_range(&setup, &mut random);
            let prot = random.choose(&[Prot::READ, Prot::RW]);
            match random.below(16) {
                0..8 => {
                    // An address that fits large pages, or one that does not.
                    let small = at.bytes().unwrap() / setup.granule() <= 1200;
                    let phys = match random.below(3) {
                        0 if small => PHYS + random.below(1 << 20) * setup.granule(),
                        _ => at.start().as_u64() & (PHYS - 1),
                    };
                    let _ = setup.map(at, phys, prot);
                }
                8..13 => {
                    let _ = setup.unmap(at);
                }
                13 => {
                    let _ = setup.protect(at, prot);
                }
                14 if format.live_split() == LiveSplit::Allowed && setup.model.pages.len() < 20_000 => setup.cut(at),
                _ => {
                    let _ = setup.unmap(setup.table.range());
                }
            }
            setup.probe(at.start().as_u64());
            setup.probe(at.last().as_u64());
            if operation % 50 == 0 {
                setup.check();
            }
        }
        setup.finish();
    }
}

/// A range of up to a few pages of some size, around one of a few places, so that ranges often meet.
fn some_range<F: Format>(setup: &Setup<F>, random: &mut Random) -> iommu::IovaRange {
    let (start, last, granule) = (setup.start(), setup.last(), setup.granule());
    let size = random.choose(&sizes_of(setup)).bytes();
    let anchor = random.choose(&[start, start + (last - start) / 4 + 1, last - (8 * size - 1)]);
    let mut at = anchor + random.below(4) * size;
    let mut bytes = (1 + random.below(4)) * size;
    if random.below(2) == 0 {
        at += random.below(3) * granule;
        bytes += random.below(3) * granule;
    }
    if random.below(4) == 0 {
        bytes = (bytes - granule).max(granule);
    }
    range(at, bytes.min(last - at + 1))
}

/// Whichever allocation fails: nothing is mapped that was not before, no frame is lost, and the same
/// call works when there is memory again.
pub(crate) fn every_allocation_fails_once<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let granule = Setup::new(format, shape, walker).granule();
    let entry = granule << F::INDEX_BITS;
    for budget in 0.. {
        let mut setup = Setup::new(format, shape, walker);
        setup.map(range(setup.start() + 5 * entry, granule), PHYS, Prot::READ).unwrap();
        let before = setup.runs();
        // From the end of one table through a second into a third, in small pages.
        let at = range(setup.start() + entry - granule, entry + 2 * granule);
        setup.platform.set_budget(Some(budget));
        let mut stray = TableList::new();
        // SAFETY: no device uses the table.
        let result = unsafe { setup.table.map(at, PhysAddr::new(PHYS), Prot::RW, PageSizes::ALL, &mut stray) };
        setup.platform.set_budget(None);
        assert!(stray.is_empty());
        if result.is_ok() {
            assert!(budget >= 3, "three tables were needed");
            setup.model.map(at, PHYS, Prot::RW, setup.table.page_sizes()).unwrap();
            setup.finish();
            return;
        }
        assert_eq!(result, Err(MapError::from(Error::NoMemory)));
        assert_eq!(setup.runs(), before);
        setup.map(at, PHYS, Prot::RW).unwrap();
        setup.finish();
    }
}

/// A range that fills a table of tables prepares all of them before a walker sees one. When memory
/// runs out in the middle, they go; the few on the way to the range may stay.
pub(crate) fn prepared_tables_are_discarded<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let setup = Setup::new(format, shape, walker);
    let granule = setup.granule();
    let entry = granule << F::INDEX_BITS;
    let all = range(setup.start(), entry << F::INDEX_BITS);
    let before = setup.platform.frames_in_use();
    for budget in [1, 2, 3, 100] {
        setup.platform.set_budget(Some(budget));
        let mut stray = TableList::new();
        let smallest = PageSizes::from_bits(granule);
        // SAFETY: no device uses the table.
        let result = unsafe { setup.table.map(all, PhysAddr::new(PHYS), Prot::RW, smallest, &mut stray) };
        setup.platform.set_budget(None);
        assert!(stray.is_empty());
        assert_eq!(result, Err(MapError::from(Error::NoMemory)));
        assert_eq!(setup.runs(), []);
        let tables = (setup.platform.frames_in_use() - before) >> F::INDEX_BITS.saturating_sub(9);
        assert!(tables < usize::from(shape.levels), "{tables} tables stayed");
    }
    setup.finish();
}

/// A walker that does not snoop costs one clean for each line that was touched, and no more.
pub(crate) fn one_clean_a_line<F: Format>(format: F, shape: Config, walker: WalkerCoherency) {
    let mut setup = Setup::new(format, shape, walker);
    let granule = setup.granule();
    setup.map(range(setup.start(), granule), PHYS, Prot::RW).unwrap();
    setup.platform.take_cleans();
    // Entries 8 to 17 lie in two lines; with physical addresses that fit nothing larger.
    let at = range(setup.start() + 8 * granule, 10 * granule);
    let lines = if walker == WalkerCoherency::NeedsClean { 2 } else { 0 };
    setup.map(at, PHYS + granule, Prot::RW).unwrap();
    assert_eq!(setup.platform.take_cleans(), lines);
    setup.protect(at, Prot::READ).unwrap();
    assert_eq!(setup.platform.take_cleans(), lines);
    setup.unmap(at).unwrap();
    assert_eq!(setup.platform.take_cleans(), lines);
    setup.finish();
}
