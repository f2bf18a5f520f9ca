//! A group that cannot be moved as a whole stays where it is.

use iommu::{Device, DomainKind, Error, IncompatibleReason, Prot, RegionKind};

use crate::fake::Event;
use crate::world::{World, group, map, pages, source};

/// A group of three devices with four sources, attached to a domain that maps page 1.
fn three(world: &World) -> ([Device; 3], iommu::Domain) {
    let devices = [2, 3, 4].map(|id| world.behind(1, id));
    let domain = world.domain(&devices[0]);
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    world.iommu.attach_group(&domain, group(&devices[0])).unwrap();
    (devices, domain)
}

#[test]
fn whichever_attach_fails_all_devices_have_the_old_domain() {
    for error in [Error::NoMemory, Error::Incompatible(IncompatibleReason::Features)] {
        for nth in 0..4 {
            let world = World::new(1);
            let (devices, old) = three(&world);
            let new = world.domain(&devices[0]);
            map(&new, pages(2, 1), 0x9000, Prot::RW).unwrap();
            world.unit().state().fail_attach = Some((nth, error));
            assert_eq!(world.iommu.replace(&new, group(&devices[0])), Err(error));
            assert!(world.iommu.domain_of(group(&devices[0])).ptr_eq(&old));
            for id in 1..=4 {
                assert_eq!((world.read(id, 0x1000), world.read(id, 0x2000)), (Some(0x8000), None), "{nth} {id}");
                assert!(world.unit().domain_of(source(id)).unwrap().ptr_eq(&old));
            }
            // Nothing of the new domain is left: its tag and its frames go with it.
            world.iommu.replace(&new, group(&devices[0])).unwrap();
            world.iommu.detach_group(&new, group(&devices[0])).unwrap();
            drop((devices, old, new));
            assert_eq!(world.end(), 0);
        }
    }
}

#[test]
fn after_hardware_failed_the_same_domain_is_attached_anew_and_what_does_not_fit_changes_nothing() {
    let world = World::new(1);
    world.reserve(1, 0x10_0000, 0x10_ffff, RegionKind::Direct);
    let device = world.device(1);
    let (old, new) = (world.domain(&device), world.domain(&device));
    world.iommu.attach_device(&old, &device).unwrap();
    world.unit().state().fail_attach = Some((0, Error::Fenced));
    assert_eq!(world.iommu.replace(&new, group(&device)), Err(Error::Fenced));
    let blocked = world.iommu.replace(world.iommu.blocked_domain(), group(&device));
    assert_eq!(blocked, Err(Error::Incompatible(IncompatibleReason::DirectRegion)));
    assert!(world.unit().domain_of(source(1)).unwrap().ptr_eq(&old), "this unit has not blocked it");
    world.unit().take_log();
    world.iommu.attach_device(&old, &device).unwrap();
    let log = world.unit().take_log();
    assert!(matches!(log[..], [Event::Block(_), .., Event::Attach(_, DomainKind::Paging)]), "{log:?}");
    // Once.
    world.iommu.attach_device(&old, &device).unwrap();
    assert!(world.unit().take_log().is_empty());
    drop((device, old, new));
    assert_eq!(world.end(), 0);
}

#[test]
fn a_device_that_cannot_be_rolled_back_is_blocked() {
    let world = World::new(1);
    let (devices, old) = three(&world);
    let new = world.domain(&devices[0]);
    // The third attach fails, then the first of the way back.
    world.unit().state().fail_attach = Some((2, Error::NoMemory));
    let unit = world.units[0].clone();
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    arm(unit, seen);
    assert_eq!(world.iommu.replace(&new, group(&devices[0])), Err(Error::NoMemory));
    let reach: Vec<_> = (1..=4).map(|id| world.read(id, 0x1000)).collect();
    assert_eq!(reach, [None, Some(0x8000), Some(0x8000), Some(0x8000)]);
    assert!(world.unit().domain_of(source(1)).is_none(), "blocked, not in the new domain");
    world.iommu.detach_group(&old, group(&devices[0])).unwrap();
    drop((devices, old, new));
    assert_eq!(world.end(), 0);
}

/// Makes the attach after the third one of this call fail as well.
fn arm(unit: iommu::frames::Ref<crate::fake::FakeUnit>, calls: std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    use std::sync::atomic::Ordering;
    let next = unit.clone();
    unit.state().during_attach = Some(Box::new(move || {
        if calls.fetch_add(1, Ordering::SeqCst) == 3 {
            next.state().fail_attach = Some((0, Error::NoMemory));
        } else {
            arm(next, calls);
        }
    }));
}

#[test]
fn a_device_that_the_domain_does_not_fit_stops_it_before_anything_moves() {
    use iommu::RegionKind::Reserved;
    let world = World::new(1);
    world.reserve(4, 0x10_0000, 0x1f_ffff, Reserved);
    let (first, last) = (world.behind(1, 3), world.behind(1, 4));
    let wide = world.domain(&first);
    world.unit().take_log();
    assert_eq!(world.iommu.attach_group(&wide, group(&last)), Err(Error::Incompatible(IncompatibleReason::Window)));
    assert!(world.unit().take_log().is_empty());
}
