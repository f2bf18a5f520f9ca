//! Devices come and go; groups form.

use iommu::device::DeviceId;
use iommu::ops::{Capability, Coverage};
use iommu::{BusyReason, DomainKind, Error, InvalidReason, Prot, SourceId};

use crate::world::{World, group, info, map, pages, source, unmap};

#[test]
fn a_probed_device_is_found_by_every_source_and_has_its_default_domain() {
    let world = World::new(2);
    let device = world.behind(1, 2);
    let other = world.device_of(1, 7);
    assert_eq!(world.iommu.find(source(1)), Some(device.clone()));
    assert_eq!(world.iommu.find(source(2)), Some(device.clone()));
    assert_eq!(world.iommu.find(SourceId::platform(1, 7)), Some(other.clone()));
    assert_eq!(world.iommu.find(SourceId::platform(1, 2)), None);
    assert_eq!(device.id(), DeviceId::Platform(source(2)));
    assert!(device.unit().unwrap().ptr_eq(&world.iommu.units().next().unwrap()));
    assert!(other.unit().unwrap().ptr_eq(&world.iommu.units().nth(1).unwrap()));
    assert_ne!(group(&device), group(&other));
    let default = world.iommu.domain_of(group(&device));
    assert_eq!(default.kind(), DomainKind::Paging);
    assert!(default.ptr_eq(&world.iommu.default_domain_of(group(&device))));
    // Both sources go through it, and nothing is mapped.
    for id in [1, 2] {
        assert!(world.unit().domain_of(source(id)).unwrap().ptr_eq(&default));
        assert_eq!(world.read(id, 0x1000), None);
    }
    assert!(world.iommu.capable(&device, Capability::CacheCoherency));
    assert!(!world.iommu.capable(&device, Capability::DirtyTracking));
    assert!(!world.iommu.isolated_msi(group(&device)));
}

#[test]
fn a_device_is_probed_once() {
    let world = World::new(1);
    let device = world.device(1);
    let again = world.iommu.probe_platform(info(&[source(1)]));
    assert_eq!(again, Err(Error::Invalid(InvalidReason::Duplicate)));
    assert_eq!(world.iommu.devices().collect::<Vec<_>>(), [device]);
}

#[test]
fn a_source_that_is_named_twice_is_attached_once() {
    let world = World::new(1);
    let device = world.iommu.probe_platform(info(&[source(1), source(1), source(2), source(1)])).unwrap();
    assert_eq!(device.sources(), [source(1), source(2)]);
    assert_eq!(world.unit().take_log().len(), 2);
}

#[test]
fn what_no_unit_covers_is_reported() {
    let world = World::new(1);
    let stranger = SourceId::platform(5, 1);
    assert_eq!(world.iommu.probe_platform(info(&[stranger])), Err(Error::NoDevice));
    let found: Vec<_> = world.iommu.uncovered().collect();
    assert_eq!(found.len(), 1);
    let device = &found[0];
    assert_eq!(device.sources(), [stranger]);
    assert_eq!(device.group().err(), Some(Error::NoDevice));
    assert_eq!(device.windows().err(), Some(Error::NoDevice));
    assert!(!world.iommu.capable(device, Capability::CacheCoherency));
    assert_eq!(world.iommu.paging_domain(&[device]).err(), Some(Error::NoDevice));
    assert_eq!(world.iommu.paging_domain(&[]).err(), Some(Error::NoDevice));
    assert_eq!(world.iommu.attach_device(world.iommu.blocked_domain(), device), Err(Error::NoDevice));
    world.iommu.release_device(device).unwrap();
    assert_eq!(world.iommu.uncovered().count(), 0);
}

#[test]
fn a_unit_that_names_the_device_wins_over_one_that_takes_the_rest() {
    let world = World::new(1);
    world.unit().state().coverage = Coverage::Rest;
    let _device = world.device(1);
    assert!(world.unit().domain_of(source(1)).is_some());
    let world = World::new(3);
    world.unit().state().coverage = Coverage::Rest;
    world.units[2].state().named.push(source(2));
    let (rest, named) = (world.device(1), world.device(2));
    let units: Vec<_> = world.iommu.units().collect();
    assert!(rest.unit().unwrap().ptr_eq(&units[0]));
    assert!(named.unit().unwrap().ptr_eq(&units[2]));
    world.unit().state().coverage = Coverage::No;
    assert_eq!(world.iommu.probe_platform(info(&[source(3)])), Err(Error::NoDevice));
}

#[test]
fn a_released_device_is_blocked_and_stays_no_device() {
    let world = World::new(1);
    let device = world.device(1);
    let domain = world.domain(&device);
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    world.iommu.attach_device(&domain, &device).unwrap();
    assert_eq!(world.write(1, 0x1000), Some(0x8000));
    world.iommu.release_device(&device).unwrap();
    assert_eq!(world.write(1, 0x1000), None);
    assert_eq!(world.iommu.find(source(1)), None);
    assert_eq!(world.iommu.devices().count(), 0);
    assert_eq!(world.unit().ids().in_use(), 1, "only the reserved id");
    assert_eq!(world.iommu.attach_device(&domain, &device), Err(Error::NoDevice));
    assert_eq!(world.iommu.replace(&domain, group(&device)), Err(Error::NoDevice));
    assert_eq!(world.iommu.use_default_domain(&device), Err(Error::NoDevice));

    // Whoever comes after it under the same id starts anew, whatever its predecessor left behind.
    let next = world.device(1);
    assert_ne!(group(&next), group(&device));
    assert_eq!(world.write(1, 0x1000), None);
    world.iommu.attach_device(&domain, &next).unwrap();
    // The old handle does nothing to the new device.
    world.unit().take_log();
    assert_eq!(world.iommu.release_device(&device), Err(Error::NoDevice));
    assert!(world.unit().take_log().is_empty());
    assert_eq!(world.write(1, 0x1000), Some(0x8000));
    assert_eq!(world.iommu.find(source(1)), Some(next));
    // The group that all devices left can still be detached, which gives the domain back.
    world.iommu.detach_group(&domain, group(&device)).unwrap();
    unmap(&domain, pages(1, 1)).unwrap();
    drop((domain, device));
    assert_eq!(world.end(), 0);
}

#[test]
fn devices_behind_one_alias_share_a_group_and_the_alias() {
    let world = World::new(1);
    let (first, second) = (world.behind(1, 2), world.behind(1, 3));
    assert_eq!(group(&first), group(&second));
    let members: Vec<_> = world.iommu.members(group(&first)).collect();
    assert_eq!(members, [first.clone(), second.clone()]);
    assert_eq!(world.iommu.find(source(1)), Some(first.clone()), "the one that was probed first");
    let domain = world.domain(&first);
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    world.unit().take_log();
    world.iommu.attach_group(&domain, group(&first)).unwrap();
    for id in [1, 2, 3] {
        assert_eq!(world.read(id, 0x1000), Some(0x8000));
    }
    // When one leaves, the alias stays with the other.
    world.iommu.release_device(&first).unwrap();
    assert_eq!((world.read(1, 0x1000), world.read(2, 0x1000)), (Some(0x8000), None));
    assert_eq!(world.iommu.find(source(1)), Some(second.clone()));
    // One that joins has the domain that the group has, at once; the alias is left alone.
    let third = world.behind(1, 4);
    assert_eq!((world.read(1, 0x1000), world.read(4, 0x1000)), (Some(0x8000), Some(0x8000)));
    world.iommu.release_device(&second).unwrap();
    world.iommu.release_device(&third).unwrap();
    for id in [1, 2, 3, 4] {
        assert_eq!(world.read(id, 0x1000), None);
    }
    assert_eq!(world.unit().ids().in_use(), 1);
    drop((first, second, third, domain, members));
    assert_eq!(world.end(), 0);
}

#[test]
fn two_groups_never_share_a_source() {
    let world = World::new(1);
    let behind = |alias, id| world.iommu.probe_platform(info(&[source(100 + id), source(alias), source(id)]));
    let (first, second) = (behind(9, 1).unwrap(), behind(9, 2).unwrap());
    assert_eq!(group(&first), group(&second), "whatever they name first");
    let other = behind(8, 3).unwrap();
    assert_ne!(group(&other), group(&first));
    let before = world.frames.in_use();
    let bridge = world.iommu.probe_platform(info(&[source(8), source(9), source(4)]));
    assert_eq!(bridge.unwrap_err(), Error::Invalid(InvalidReason::TwoGroups));
    assert!(world.unit().domain_of(source(4)).is_none());
    assert_eq!(world.frames.in_use(), before);
    // Once the two are one, it is probed.
    world.iommu.release_device(&other).unwrap();
    let bridge = world.iommu.probe_platform(info(&[source(8), source(9), source(4)])).unwrap();
    assert_eq!(group(&bridge), group(&first));
    assert_eq!(group(&behind(8, 3).unwrap()), group(&first));
}

#[test]
fn a_device_joining_a_group_is_not_attached_halfway() {
    let world = World::new(1);
    let first = world.behind(1, 2);
    let sources = [source(1), source(3), source(4), source(5)];
    for nth in 0..3 {
        world.unit().state().fail_attach = Some((nth, Error::NoMemory));
        assert_eq!(world.iommu.probe_platform(info(&sources)), Err(Error::NoMemory));
        for id in [3, 4, 5] {
            assert!(world.unit().domain_of(source(id)).is_none());
            assert_eq!(world.iommu.find(source(id)), None);
        }
        assert!(world.unit().domain_of(source(1)).is_some(), "the alias is the first device's");
    }
    world.unit().state().fail_attach = None;
    world.iommu.probe_platform(info(&sources)).unwrap();
    assert!(world.unit().domain_of(source(5)).is_some());
    drop(first);
    assert_eq!(world.end(), 0);
}

#[test]
fn a_change_from_within_a_change_is_refused_in_the_end() {
    use std::sync::Arc;
    let world = Arc::new(World::new(1));
    let device = world.device(1);
    let (seen, domain) = (Arc::new(std::sync::Mutex::new(vec![])), world.domain(&device));
    let again = {
        let (world, device, domain, seen) = (world.clone(), device.clone(), domain.clone(), seen.clone());
        move || {
            let mut seen = seen.lock().unwrap();
            seen.push(world.iommu.replace(&domain, group(&device)));
            seen.push(world.iommu.release_device(&device));
        }
    };
    world.unit().state().during_attach = Some(Box::new(again));
    world.iommu.attach_device(&domain, &device).unwrap();
    assert_eq!(*seen.lock().unwrap(), [Err(Error::Busy(BusyReason::Changing)); 2]);
    // The claims that were refused took nothing away: all goes on as usual.
    world.iommu.detach_device(&domain, &device).unwrap();
    world.iommu.release_device(&device).unwrap();
}

#[test]
fn probes_and_changes_on_several_threads() {
    let world = World::new(1);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..20 {
                    let device = world.behind(1, 10 + thread);
                    let domain = world.domain(&device);
                    // The group is everybody's: its domain may be another one's just now.
                    let attached = world.iommu.attach_group(&domain, group(&device));
                    assert!(matches!(attached, Ok(()) | Err(Error::Busy(BusyReason::Attached))), "{attached:?}");
                    if round % 2 == 0 && attached.is_ok() {
                        let _ = world.iommu.detach_group(&domain, group(&device));
                    }
                    world.iommu.release_device(&device).unwrap();
                    assert!(world.unit().domain_of(source(10 + thread)).is_none());
                }
            });
        }
    });
    assert_eq!(world.iommu.devices().count(), 0);
    assert_eq!(world.unit().ids().in_use(), 1);
    assert_eq!(world.end(), 0);
}

#[test]
fn an_alias_behind_two_units_is_known_to_both() {
    let world = World::new(2);
    let first = world.behind(1, 2);
    // Firmware that contradicts itself.
    world.units[0].state().coverage = Coverage::Rest;
    world.units[1].state().named.push(source(1));
    let second = world.behind(1, 3);
    assert_eq!(group(&first), group(&second));
    assert!(!first.unit().unwrap().ptr_eq(second.unit().unwrap()));
    let domain = world.iommu.paging_domain(&[&first, &second]).unwrap();
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    world.iommu.attach_group(&domain, group(&first)).unwrap();
    let reach = |unit: usize, id| world.units[unit].dma(source(id), 0x1000, Prot::READ);
    assert_eq!([reach(0, 1), reach(0, 2), reach(1, 1), reach(1, 3)], [Some(0x8000); 4]);
    world.iommu.release_device(&first).unwrap();
    assert_eq!([reach(0, 1), reach(0, 2), reach(1, 1), reach(1, 3)], [None, None, Some(0x8000), Some(0x8000)]);
    world.iommu.release_device(&second).unwrap();
    assert_eq!([reach(1, 1), reach(1, 3)], [None; 2]);
}
