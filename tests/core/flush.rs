//! The gather: what is unmapped stays lent until an invalidation has completed.

use iommu::iotlb::{Depth, GATHER_RANGES, Gather};
use iommu::ops::MapFlush;
use iommu::{Device, Domain, Error, InvalidReason, IovaRange, Prot, WaitReason};

use crate::fake::{Event, TIMED_OUT};
use crate::world::{World, map, pages, range, unmap};

fn attached() -> (World, Device, Domain) {
    let world = World::new(1);
    let device = world.device(1);
    let domain = world.domain(&device);
    world.iommu.attach_device(&domain, &device).unwrap();
    (world, device, domain)
}

fn gathered<'d>(domain: &'d Domain, ranges: &[IovaRange]) -> Gather<'d> {
    let mut gather = domain.gather();
    for range in ranges {
        // SAFETY: no device is real.
        unsafe { domain.unmap(*range, &mut gather) }.unwrap();
    }
    gather
}

/// A whole table of mappings, used by the device, and how many frames there are then.
fn used_table(world: &World, domain: &Domain) -> (IovaRange, usize) {
    let range = range(0, 0x1f_ffff);
    map(domain, range, 0x10_0000, Prot::RW).unwrap();
    assert_eq!(world.write(1, 0x3000), Some(0x10_3000));
    (range, world.frames.in_use())
}

#[test]
fn neighbours_are_invalidated_as_one_and_an_empty_gather_not_at_all() {
    let (world, _device, domain) = attached();
    map(&domain, pages(0, 16), 0x10_0000, Prot::RW).unwrap();
    world.unit().take_log();
    let gather = gathered(&domain, &[pages(3, 1), pages(5, 1), pages(4, 1), pages(9, 2)]);
    assert!(!gather.is_empty());
    assert!(world.unit().take_log().is_empty(), "nothing is invalidated before the sync");
    gather.sync().unwrap();
    assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(_, 2, Depth::Leaves), Event::Wait]));
    let gather = domain.gather();
    assert!(gather.is_empty());
    gather.sync().unwrap();
    drop(domain.gather());
    domain.gather().defer();
    domain.flush_deferred().unwrap();
    assert!(world.unit().take_log().is_empty());
}

#[test]
fn a_gather_of_another_domain_is_refused_and_nothing_is_unmapped() {
    let (world, device, domain) = attached();
    let other = world.domain(&device);
    map(&domain, pages(0, 1), 0x10_0000, Prot::RW).unwrap();
    let mut gather = other.gather();
    assert!(gather.domain().ptr_eq(&other));
    // SAFETY: no device is real.
    let result = unsafe { domain.unmap(pages(0, 1), &mut gather) };
    assert_eq!(result, Err(Error::Invalid(InvalidReason::WrongDomain)));
    assert!(gather.is_empty());
    assert_eq!(world.write(1, 0), Some(0x10_0000));
}

#[test]
fn more_ranges_than_it_holds_are_joined_never_forgotten() {
    let (world, _device, domain) = attached();
    let ranges: Vec<_> = (0..3 * GATHER_RANGES as u64).map(|index| pages(index * 7 % 480, 1)).collect();
    map(&domain, pages(0, 512), 0x20_0000, Prot::RW).unwrap();
    // SAFETY: no device is real.
    unsafe { domain.cut(pages(1, 1)) }.unwrap();
    for range in &ranges {
        assert!(world.write(1, range.start().as_u64()).is_some());
    }
    world.unit().take_log();
    gathered(&domain, &ranges).sync().unwrap();
    let log = world.unit().take_log();
    assert!(matches!(log[..], [Event::Invalidate(_, GATHER_RANGES, Depth::Leaves), Event::Wait]), "{log:?}");
    for range in &ranges {
        assert_eq!(world.write(1, range.start().as_u64()), None);
    }
}

#[test]
fn a_failed_sync_gives_the_gather_back_and_frees_nothing() {
    for submit in [true, false] {
        let (world, _device, domain) = attached();
        let (range, with_table) = used_table(&world, &domain);
        let gather = gathered(&domain, &[range]);
        match submit {
            true => world.unit().state().fail_invalidate = Some((0, TIMED_OUT)),
            false => world.unit().state().fail_wait = Some((0, TIMED_OUT)),
        }
        let failed = gather.sync().unwrap_err();
        assert_eq!((failed.error, failed.to_string()), (TIMED_OUT, TIMED_OUT.to_string()));
        assert!(!failed.gather.is_empty());
        assert_eq!(world.frames.in_use(), with_table);
        // The hardware went on using the table, and could.
        assert_eq!(world.write(1, 0x4000), Some(0x10_4000));
        failed.gather.sync().unwrap();
        assert!(world.frames.in_use() < with_table);
        assert_eq!(world.write(1, 0x4000), None);
    }
}

#[test]
fn a_failed_sync_may_be_tried_again_in_place() {
    let (world, _device, domain) = attached();
    let (range, with_table) = used_table(&world, &domain);
    let mut gather = gathered(&domain, &[range]);
    world.unit().state().fail_wait = Some((0, TIMED_OUT));
    assert_eq!(gather.sync_in_place(), Err(TIMED_OUT));
    assert_eq!(world.frames.in_use(), with_table);
    assert!(!gather.is_empty());
    gather.sync_in_place().unwrap();
    assert!(gather.is_empty() && world.frames.in_use() < with_table);
}

#[test]
fn a_dropped_gather_is_synced_or_quarantined() {
    let (world, _device, domain) = attached();
    let (range, with_table) = used_table(&world, &domain);
    drop(gathered(&domain, &[range]));
    assert!(world.frames.in_use() < with_table);
    assert_eq!(world.write(1, 0x3000), None);

    let (range, with_table) = used_table(&world, &domain);
    world.unit().state().dead = true;
    drop(gathered(&domain, &[range]));
    assert_eq!(world.frames.in_use(), with_table);
    assert_eq!(domain.flush_deferred(), Err(Error::Fenced));
    assert_eq!(world.frames.in_use(), with_table, "still quarantined");
    assert_eq!(world.write(1, 0x4000), Some(0x10_4000), "for the hardware may still use it");
    world.iommu.resume().unwrap();
    domain.flush_deferred().unwrap();
    assert!(world.frames.in_use() < with_table);
    assert_eq!(world.write(1, 0x4000), None);
}

#[test]
fn an_error_of_unmap_sync_quarantines_and_does_not_wait_a_second_time() {
    let (world, _device, domain) = attached();
    let (range, with_table) = used_table(&world, &domain);
    world.unit().state().dead = true;
    world.unit().take_log();
    assert_eq!(unmap(&domain, range), Err(Error::Fenced));
    world.unit().state().dead = false;
    world.unit().state().fail_wait = Some((0, TIMED_OUT));
    let table = used_table(&world, &domain).0;
    world.unit().take_log();
    assert_eq!(unmap(&domain, table), Err(TIMED_OUT));
    assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(..), Event::Wait]));
    assert!(world.frames.in_use() > with_table, "both tables are quarantined");
    // One flush for both.
    domain.flush_deferred().unwrap();
    assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(_, 1, Depth::Tables), Event::Wait]));
    assert!(world.frames.in_use() < with_table);
}

#[test]
fn what_is_deferred_stays_lent_until_the_flush() {
    let (world, _device, domain) = attached();
    let (range, with_table) = used_table(&world, &domain);
    world.unit().take_log();
    gathered(&domain, &[range]).defer();
    assert!(world.unit().take_log().is_empty());
    assert_eq!(world.write(1, 0x3000), Some(0x10_3000));
    map(&domain, pages(0x1000, 1), 0x8000, Prot::RW).unwrap();
    let gather = gathered(&domain, &[pages(0x1000, 1)]);
    gather.sync().unwrap();
    assert!(world.frames.in_use() >= with_table, "another gather's sync does not free it");
    domain.flush_deferred().unwrap();
    assert_eq!(world.write(1, 0x3000), None);
    assert!(world.frames.in_use() < with_table + 1);
}

#[test]
fn a_flush_does_not_take_for_done_what_another_one_has_under_way() {
    use std::sync::{Arc, Mutex};
    let (world, _device, domain) = attached();
    let (range, _) = used_table(&world, &domain);
    gathered(&domain, &[range]).defer();
    let seen = Arc::new(Mutex::new(vec![]));
    let meanwhile = {
        let (domain, seen) = (domain.clone(), seen.clone());
        move || seen.lock().unwrap().push(domain.flush_deferred())
    };
    world.unit().state().during_wait = Some(Box::new(meanwhile));
    domain.flush_deferred().unwrap();
    assert_eq!(*seen.lock().unwrap(), [Err(Error::TimedOut(WaitReason::Claim))]);
    assert_eq!(world.write(1, 0x3000), None);
    // The one that failed left everything for the next.
    map(&domain, range, 0x10_0000, Prot::RW).unwrap();
    gathered(&domain, &[range]).defer();
    world.unit().state().fail_wait = Some((0, TIMED_OUT));
    assert_eq!(domain.flush_deferred(), Err(TIMED_OUT));
    domain.flush_deferred().unwrap();
    assert_eq!(domain.flush_deferred(), Ok(()));
}

#[test]
fn a_domain_that_ends_frees_what_was_deferred() {
    let (world, device, domain) = attached();
    world.iommu.detach_device(&domain, &device).unwrap();
    let (range, _) = {
        map(&domain, range(0, 0x1f_ffff), 0x10_0000, Prot::RW).unwrap();
        (range(0, 0x1f_ffff), ())
    };
    gathered(&domain, &[range]).defer();
    drop((domain, device));
    assert_eq!(world.end(), 0);
}

#[test]
fn tables_that_a_dead_unit_may_walk_outlive_their_domain() {
    let (world, device, domain) = attached();
    map(&domain, pages(0, 1), 0x10_0000, Prot::RW).unwrap();
    assert_eq!(world.write(1, 0), Some(0x10_0000));
    let before = world.frames.in_use();
    world.unit().state().dead = true;
    world.iommu.detach_device(&domain, &device).unwrap();
    assert_eq!(world.unit().ids().quarantined(), 1);
    drop(domain);
    assert_eq!(world.frames.in_use(), before, "detach cannot fail, so it keeps everything");
    drop(device);
    assert!(world.end() >= 4, "four levels of tables");
}

#[test]
fn units_that_cache_absent_entries_are_told_of_every_map() {
    let world = World::new(1);
    world.unit().state().traits.map_flush = MapFlush::Always;
    let device = world.device(1);
    let domain = world.domain(&device);
    world.iommu.attach_device(&domain, &device).unwrap();
    assert_eq!(world.read(1, 0x1000), None);
    world.unit().take_log();
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(_, 1, Depth::Tables), Event::Wait]));
    assert_eq!(world.read(1, 0x1000), Some(0x8000));
    // If it cannot be told, the mapping is taken back.
    for submit in [true, false] {
        assert_eq!(world.read(1, 0x5000), None);
        match submit {
            true => world.unit().state().fail_invalidate = Some((0, TIMED_OUT)),
            false => world.unit().state().fail_wait = Some((0, TIMED_OUT)),
        }
        assert_eq!(map(&domain, pages(5, 1), 0x8000, Prot::RW), Err(TIMED_OUT));
        assert_eq!(domain.walk(IovaRange::full()).count(), 1);
        world.unit().take_log();
        domain.flush_deferred().unwrap();
        assert!(matches!(world.unit().take_log()[..], [Event::Invalidate(..), Event::Wait]), "it was deferred");
        assert_eq!(world.read(1, 0x5000), None);
    }
    map(&domain, pages(5, 1), 0x9000, Prot::RW).unwrap();
    assert_eq!(world.read(1, 0x5000), Some(0x9000));
}
