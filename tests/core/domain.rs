//! Map, unmap, cut, protect, walk and `Debug` of a domain that a device uses.

use iommu::frames::{Ref, Slab};
use iommu::iotlb::{Depth, Flush};
use iommu::ops::DomainOps;
use iommu::pgtable::{PageSize, PageSizes};
use iommu::{
    Device, Domain, DomainKind, Error, InvalidReason, Iova, IovaRange, PhysAddr, PhysRange, Prot, Result, Window,
};

use crate::fake::Event;
use crate::platform::Frames;
use crate::world::{World, map, pages, range, unmap};

fn attached() -> (World, Device, Domain) {
    let world = World::new(1);
    let device = world.device(1);
    let domain = world.domain(&device);
    world.iommu.attach_device(&domain, &device).unwrap();
    (world, device, domain)
}

fn phys(start: u64, bytes: u64) -> PhysRange {
    PhysRange::from_len(PhysAddr::new(start), bytes).unwrap()
}

fn map_sg(domain: &Domain, iova: u64, list: &[PhysRange]) -> Result<IovaRange> {
    // SAFETY: no device is real.
    unsafe { domain.map_sg(Iova::new(iova), list, Prot::RW) }
}

#[test]
fn what_is_unmapped_is_not_reachable_although_it_was_cached() {
    let (world, _device, domain) = attached();
    map(&domain, pages(0, 4), 0x10_0000, Prot::RW).unwrap();
    map(&domain, range(0x20_0000, 0x3f_ffff), 0x40_0000, Prot::READ).unwrap();
    assert_eq!(domain.iova_to_phys(Iova::new(0x3210)), Some(PhysAddr::new(0x10_3210)));
    assert_eq!(domain.iova_to_phys(Iova::new(0x4000)), None);
    for page in 0..4 {
        assert_eq!(world.write(1, page << 12), Some(0x10_0000 + (page << 12)));
    }
    assert_eq!((world.read(1, 0x20_0000), world.write(1, 0x20_0000)), (Some(0x40_0000), None));
    unmap(&domain, pages(1, 2)).unwrap();
    let reach: Vec<_> = (0..4).map(|page| world.read(1, page << 12).is_some()).collect();
    assert_eq!(reach, [true, false, false, true]);
    // Mapped elsewhere, it is seen there.
    map(&domain, pages(1, 1), 0x70_0000, Prot::RW).unwrap();
    assert_eq!(world.write(1, 0x1000), Some(0x70_0000));
    unmap(&domain, range(0, 0x3f_ffff)).unwrap();
    assert_eq!((world.read(1, 0), world.read(1, 0x1000), world.read(1, 0x20_0000)), (None, None, None));
}

#[test]
fn tables_are_freed_when_the_walk_cache_was_told_and_not_earlier() {
    let (world, _device, domain) = attached();
    let before = world.frames.in_use();
    for round in 0..3u64 {
        map(&domain, range(0, 0x1f_ffff), 0x10_0000 + round * 0x1000, Prot::RW).unwrap();
        assert_eq!(world.write(1, 0x5000), Some(0x10_5000 + round * 0x1000));
        let with_table = world.frames.in_use();
        let mut gather = domain.gather();
        // SAFETY: no device is real.
        unsafe { domain.unmap(range(0, 0x1f_ffff), &mut gather) }.unwrap();
        assert_eq!(world.frames.in_use(), with_table, "hardware may still walk the table");
        assert_eq!(world.write(1, 0x5000), Some(0x10_5000 + round * 0x1000), "and does");
        world.unit().take_log();
        gather.sync().unwrap();
        assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(_, 1, Depth::Tables), Event::Wait]));
        assert!(world.frames.in_use() < with_table);
        assert_eq!(world.write(1, 0x5000), None);
        // Another frame holder gets the table's frame.
        let other = world.device(100 + round as u32);
        assert_eq!(world.write(1, 0x6000), None);
        drop(other);
    }
    unmap(&domain, range(0, (1 << 48) - 1)).unwrap();
    assert!(world.frames.in_use() >= before);
}

#[test]
fn a_large_page_that_replaces_an_empty_table_leaves_no_stale_walk() {
    let (world, _device, domain) = attached();
    map(&domain, pages(0, 1), 0x10_0000, Prot::RW).unwrap();
    assert_eq!(world.write(1, 0), Some(0x10_0000));
    unmap(&domain, pages(0, 1)).unwrap();
    let with_table = world.frames.in_use();
    world.unit().take_log();
    map(&domain, range(0, 0x1f_ffff), 0x20_0000, Prot::RW).unwrap();
    assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(_, 1, Depth::Tables), Event::Wait]));
    assert_eq!(world.frames.in_use(), with_table - 1);
    assert_eq!(world.write(1, 0x3000), Some(0x20_3000));
    assert_eq!(domain.walk(IovaRange::full()).next().unwrap().page_size, PageSize::SIZE_2M);
}

#[test]
fn such_a_page_is_taken_back_when_the_walk_cannot_be_invalidated() {
    let (world, _device, domain) = attached();
    map(&domain, pages(0, 1), 0x10_0000, Prot::RW).unwrap();
    unmap(&domain, pages(0, 1)).unwrap();
    let before = world.frames.in_use();
    world.unit().state().fail_wait = Some((0, crate::fake::TIMED_OUT));
    assert_eq!(map(&domain, range(0, 0x1f_ffff), 0x20_0000, Prot::RW), Err(crate::fake::TIMED_OUT));
    assert_eq!(domain.walk(IovaRange::full()).count(), 0, "an error leaves nothing mapped");
    assert_eq!(world.frames.in_use(), before, "the table is kept: hardware may walk it");
    domain.flush_deferred().unwrap();
    assert_eq!(world.frames.in_use(), before - 1);
    assert_eq!(world.write(1, 0), None);
}

#[test]
fn a_map_that_fails_leaves_nothing_that_hardware_cached_meanwhile() {
    let (world, _device, domain) = attached();
    map(&domain, pages(8, 1), 0x10_0000, Prot::RW).unwrap();
    world.unit().take_log();
    let taken = map(&domain, pages(0, 16), 0x20_0000, Prot::RW);
    assert_eq!(taken, Err(Error::Exists { iova: Iova::new(0x8000) }));
    // The pages below were there for a moment.
    assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(_, 1, Depth::Leaves), Event::Wait]));
    assert_eq!((world.read(1, 0), world.read(1, 0x8000)), (None, Some(0x10_0000)));
    // Without a moment, nothing is invalidated.
    world.unit().take_log();
    assert_eq!(map(&domain, pages(8, 1), 0, Prot::RW), Err(Error::Exists { iova: Iova::new(0x8000) }));
    assert_eq!(map(&domain, pages(9, 1), 0, Prot::empty()), Err(Error::Invalid(InvalidReason::NoPermission)));
    assert_eq!(map(&domain, pages(9, 1), 0x123, Prot::RW), Err(Error::Invalid(InvalidReason::Misaligned)));
    assert!(world.unit().take_log().is_empty());
    // And when that invalidation fails, the reason is told and nothing is mapped.
    world.unit().state().fail_invalidate = Some((0, Error::Fenced));
    assert_eq!(map(&domain, pages(0, 16), 0x20_0000, Prot::RW), Err(Error::Fenced));
    assert_eq!(world.read(1, 0), None);
    world.unit().take_log();
    domain.flush_deferred().unwrap();
    assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(_, 1, _), Event::Wait]));
}

#[test]
fn only_the_sizes_asked_for_are_used() {
    let (world, _device, domain) = attached();
    let sizes = PageSizes::only(PageSize::SIZE_4K);
    // SAFETY: no device is real.
    unsafe { domain.map_with(range(0, 0x1f_ffff), PhysAddr::new(0), Prot::RW, sizes) }.unwrap();
    assert_eq!(domain.walk(IovaRange::full()).map(|run| run.page_size).collect::<Vec<_>>(), [PageSize::SIZE_4K]);
    // SAFETY: as above.
    let none = unsafe { domain.map_with(range(0x20_0000, 0x3f_ffff), PhysAddr::new(0), Prot::RW, PageSizes::NONE) };
    assert_eq!(none, Err(Error::Invalid(InvalidReason::NoPageSize)));
    assert_eq!(domain.page_sizes(), crate::fake::traits().page_sizes);
    assert_eq!(world.write(1, 0x1f_f000), Some(0x1f_f000));
}

#[test]
fn a_list_is_mapped_in_one_piece_and_neighbours_share_large_pages() {
    let (world, _device, domain) = attached();
    let list = [phys(0x40_0000, 0x10_0000), phys(0x50_0000, 0x10_0000), phys(0x1000, 0x1000), phys(0x9000, 0x2000)];
    assert_eq!(map_sg(&domain, 0x20_0000, &list), Ok(range(0x20_0000, 0x40_2fff)));
    let runs: Vec<_> = domain.walk(IovaRange::full()).map(|run| run.to_string()).collect();
    assert_eq!(
        runs,
        [
            "0x200000..=0x3fffff -> 0x400000 rw 2 MiB",
            "0x400000..=0x400fff -> 0x1000 rw 4 KiB",
            "0x401000..=0x402fff -> 0x9000 rw 4 KiB",
        ]
    );
    assert_eq!(world.write(1, 0x40_2000), Some(0xa000));
    assert_eq!(map_sg(&domain, 0, &[]), Err(Error::Invalid(InvalidReason::EmptyRange)));
}

#[test]
fn a_list_that_cannot_be_mapped_leaves_nothing() {
    let (world, _device, domain) = attached();
    map(&domain, pages(5, 1), 0x10_0000, Prot::RW).unwrap();
    let list = [phys(0x20_0000, 0x2000), phys(0x30_0000, 0x2000), phys(0x40_0000, 0x2000)];
    assert_eq!(map_sg(&domain, 0, &list), Err(Error::Exists { iova: Iova::new(0x5000) }));
    let misaligned = [phys(0x20_0000, 0x2000), phys(0x30_0000, 0x800)];
    assert_eq!(map_sg(&domain, 0, &misaligned), Err(Error::Invalid(InvalidReason::Misaligned)));
    assert_eq!(domain.walk(IovaRange::full()).count(), 1);
    assert_eq!(world.read(1, 0x1000), None);
    // Beyond the window's top, too: nothing is silently left out.
    let top = (1 << 48) - 0x1000;
    assert!(matches!(map_sg(&domain, top, &list[1..]), Err(Error::OutsideWindow { .. })));
    let last = [phys(0x20_0000, 0x1000), phys(0x50_0000, 0x1000)];
    assert!(matches!(map_sg(&domain, top, &last), Err(Error::OutsideWindow { .. })));
    assert_eq!(domain.walk(IovaRange::full()).count(), 1);
    // If what was mapped cannot be invalidated, the caller must know.
    world.unit().state().fail_wait = Some((0, crate::fake::TIMED_OUT));
    assert_eq!(map_sg(&domain, 0, &list), Err(crate::fake::TIMED_OUT));
    assert_eq!(domain.walk(IovaRange::full()).count(), 1);
}

#[test]
fn a_large_page_is_cut_before_a_part_of_it_is_unmapped() {
    let (world, _device, domain) = attached();
    map(&domain, range(0, 0x3f_ffff), 0x40_0000, Prot::RW).unwrap();
    assert_eq!(world.write(1, 0x5000), Some(0x40_5000));
    let partial = Error::PartialPage { page: Iova::new(0x20_0000), size: PageSize::SIZE_2M };
    let below = range(0, 0x20_0fff);
    assert_eq!(unmap(&domain, below), Err(partial));
    // What lies below is unmapped, and invalidated all the same.
    assert_eq!(world.write(1, 0x5000), None);
    assert_eq!(world.write(1, 0x20_0000), Some(0x60_0000));
    world.unit().take_log();
    // SAFETY: no device is real.
    unsafe { domain.cut(below) }.unwrap();
    // The large page must not stay cached beside the small ones.
    assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(..), Event::Wait]));
    assert_eq!(world.write(1, 0x20_0000), Some(0x60_0000));
    unmap(&domain, below).unwrap();
    assert_eq!((world.write(1, 0x20_0000), world.write(1, 0x20_1000)), (None, Some(0x60_1000)));
}

#[test]
fn what_was_mapped_is_visible_when_the_call_returns() {
    let (world, _device, domain) = attached();
    let before = world.frames.published();
    map(&domain, pages(0, 1), 0x10_0000, Prot::RW).unwrap();
    assert!(world.frames.published() > before, "the caller may tell its device at once");
}

#[test]
fn protection_is_obeyed_when_the_call_returns() {
    let (world, _device, domain) = attached();
    map(&domain, pages(0, 4), 0x10_0000, Prot::RW).unwrap();
    assert_eq!(world.write(1, 0x1000), Some(0x10_1000));
    // SAFETY: no device is real.
    unsafe { domain.protect(pages(0, 2), Prot::READ) }.unwrap();
    assert_eq!((world.write(1, 0x1000), world.read(1, 0x1000)), (None, Some(0x10_1000)));
    assert_eq!(world.write(1, 0x2000), Some(0x10_2000));
    // A hole stops it; what lies below has changed and was invalidated.
    // SAFETY: as above.
    let hole = unsafe { domain.protect(pages(2, 4), Prot::READ) };
    assert_eq!(hole, Err(Error::NotMapped { iova: Iova::new(0x4000) }));
    assert_eq!(world.write(1, 0x2000), None);
    // SAFETY: as above.
    let outside = unsafe { domain.protect(pages(1 << 36, 1), Prot::READ) };
    assert!(matches!(outside, Err(Error::OutsideWindow { .. })));
}

#[test]
fn a_dump_shows_every_run_once() {
    let (_world, _device, domain) = attached();
    map(&domain, range(0x1000, 0x40_0fff), 0x1000, Prot::RW).unwrap();
    map(&domain, pages(0x1000, 1), 0x8000, Prot::READ).unwrap();
    let dump = "Paging domain
  0x1000..=0x1fffff -> 0x1000 rw 4 KiB
  0x200000..=0x3fffff -> 0x200000 rw 2 MiB
  0x400000..=0x400fff -> 0x400000 rw 4 KiB
  0x1000000..=0x1000fff -> 0x8000 r- 4 KiB";
    assert_eq!(format!("{domain:?}"), dump);
    let inside: Vec<_> = domain.walk(pages(0x3ff, 0x1000)).map(|run| run.range).collect();
    assert_eq!(inside, [range(0x3f_f000, 0x3f_ffff), pages(0x400, 1), pages(0x1000, 1)]);
    assert_eq!(domain.walk(pages(0x500, 0x100)).count(), 0);
}

#[test]
fn nothing_is_mapped_in_blocked_and_identity_domains() {
    let world = World::new(1);
    for (domain, kind, seen) in [
        (world.iommu.blocked_domain(), DomainKind::Blocked, None),
        (world.iommu.identity_domain(), DomainKind::Identity, Some(PhysAddr::new(0x1000))),
    ] {
        let not_paging = Err(Error::Invalid(InvalidReason::NotPaging));
        assert_eq!(domain.kind(), kind);
        assert_eq!(map(domain, pages(1, 1), 0, Prot::RW), not_paging);
        assert_eq!(unmap(domain, pages(1, 1)), not_paging);
        assert_eq!(map_sg(domain, 0, &[phys(0, 0x1000)]).err(), not_paging.err());
        // SAFETY: no device is real.
        assert_eq!(unsafe { domain.cut(pages(1, 1)) }, not_paging);
        // SAFETY: as above.
        assert_eq!(unsafe { domain.protect(pages(1, 1), Prot::READ) }, not_paging);
        assert_eq!(domain.iova_to_phys(Iova::new(0x1000)), seen);
        assert_eq!((domain.geometry(), domain.page_sizes()), (None, PageSizes::NONE));
        assert_eq!(domain.walk(IovaRange::full()).count(), 0);
        domain.flush_deferred().unwrap();
    }
}

#[test]
fn disjoint_ranges_are_worked_on_by_several_threads_beside_dma() {
    let (world, _device, domain) = attached();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (world, domain) = (&world, &domain);
            scope.spawn(move || {
                for round in 0..100u64 {
                    let first = thread * 64 + round % 32;
                    map(domain, pages(first, 8), (thread * 100 + round) << 16, Prot::RW).unwrap();
                    assert_eq!(world.write(1, first << 12), Some((thread * 100 + round) << 16));
                    unmap(domain, pages(first, 8)).unwrap();
                    assert_eq!(world.write(1, first << 12), None);
                }
            });
        }
    });
    assert_eq!(domain.walk(IovaRange::full()).count(), 0);
}

/// A domain of all 64 bits that is no page table: it counts the bytes that are mapped.
struct Counter {
    windows: iommu::Windows,
    mapped: std::sync::atomic::AtomicU64,
}

impl DomainOps for Counter {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn kind(&self) -> DomainKind {
        DomainKind::Paging
    }

    fn windows(&self) -> &iommu::Windows {
        &self.windows
    }

    unsafe fn map(&self, range: IovaRange, _: PhysAddr, _: Prot, _: PageSizes) -> Result<()> {
        self.mapped.fetch_add(range.bytes().unwrap(), std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    unsafe fn unmap(&self, range: IovaRange, _: &mut Flush) -> Result<()> {
        self.mapped.fetch_sub(range.bytes().unwrap(), std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_list_may_end_at_the_top_of_the_space_but_not_pass_it() {
    let window = Window { range: IovaRange::full(), page_sizes: PageSizes::only(PageSize::SIZE_4K) };
    let counter = Counter { windows: iommu::Windows::new(window), mapped: 0.into() };
    let slab = Slab::new(Frames::new()).unwrap();
    let counter = slab.insert(counter).map_err(|(error, _)| error).unwrap();
    let domain = Domain::new(Ref::map(counter.clone(), |counter| counter as &dyn DomainOps));
    let mapped = || counter.mapped.load(std::sync::atomic::Ordering::SeqCst);
    let list = [phys(0, 0x1000), phys(0x8000, 0x1000), phys(0x2_0000, 0x1000)];
    let start = u64::MAX - 0x1fff;
    assert_eq!(map_sg(&domain, start, &list), Err(Error::Invalid(InvalidReason::AddressOverflow)));
    assert_eq!(mapped(), 0, "what had been mapped is unmapped again");
    assert_eq!(map_sg(&domain, start, &list[..2]), Ok(range(start, u64::MAX)));
    assert_eq!(mapped(), 0x2000);
}
