//! Direct regions: reachable before, during and after every change.

use std::sync::{Arc, Mutex};

use iommu::{Device, Domain, Error, IncompatibleReason, PhysAddr, Prot, RegionKind};

use crate::fake::Paging;
use crate::world::{World, group, info, map, pages, range, source, unmap};

const DIRECT: u64 = 0x7000;

fn with_direct() -> (World, Device) {
    let world = World::new(1);
    world.reserve(1, DIRECT, DIRECT + 0xfff, RegionKind::Direct);
    let device = world.device(1);
    (world, device)
}

/// Whether the region is reachable, and nothing beside it.
fn is_direct(world: &World) -> bool {
    world.write(1, DIRECT) == Some(DIRECT) && world.write(1, DIRECT - 0x1000).is_none()
}

#[test]
fn a_direct_region_is_there_in_every_domain_of_the_device() {
    let (world, device) = with_direct();
    let device_group = group(&device);
    assert!(is_direct(&world));
    let (one, two) = (world.domain(&device), world.domain(&device));
    map(&one, pages(0, 4), 0x10_0000, Prot::RW).unwrap();
    world.iommu.attach_group(&one, device_group).unwrap();
    assert!(is_direct(&world));
    world.iommu.replace(&two, device_group).unwrap();
    assert!(is_direct(&world));
    world.iommu.detach_group(&two, device_group).unwrap();
    assert!(is_direct(&world));
    world.iommu.attach_group(world.iommu.identity_domain(), device_group).unwrap();
    assert_eq!(world.write(1, DIRECT), Some(DIRECT));
    // Users reach it in no domain: it lies outside the windows.
    assert!(matches!(unmap(&one, pages(7, 1)), Err(Error::OutsideWindow { .. })));
    assert!(matches!(map(&two, pages(7, 1), 0, Prot::RW), Err(Error::OutsideWindow { .. })));
    drop((one, two, device));
    assert_eq!(world.end(), 0);
}

#[test]
fn it_is_mapped_before_the_device_is_attached() {
    let (world, device) = with_direct();
    let domain = world.domain(&device);
    let seen = Arc::new(Mutex::new(None));
    let look = {
        let (domain, seen) = (domain.clone(), seen.clone());
        move || *seen.lock().unwrap() = domain.iova_to_phys(iommu::Iova::new(DIRECT))
    };
    world.unit().state().during_attach = Some(Box::new(look));
    world.iommu.attach_device(&domain, &device).unwrap();
    assert_eq!(*seen.lock().unwrap(), Some(PhysAddr::new(DIRECT)));
}

#[test]
fn a_blocked_domain_is_refused() {
    let (world, device) = with_direct();
    let refused = Err(Error::Incompatible(IncompatibleReason::DirectRegion));
    assert_eq!(world.iommu.attach_device(world.iommu.blocked_domain(), &device), refused);
    assert_eq!(world.iommu.replace(world.iommu.blocked_domain(), group(&device)), refused);
    assert!(is_direct(&world));
    // Also for one that joins a group which is blocked.
    let alone = world.behind(8, 9);
    world.iommu.attach_device(world.iommu.blocked_domain(), &alone).unwrap();
    world.reserve(10, DIRECT, DIRECT + 0xfff, RegionKind::Direct);
    let joining = world.iommu.probe_platform(info(&[source(8), source(10)]));
    assert_eq!(joining, Err(Error::Incompatible(IncompatibleReason::DirectRegion)));
}

#[test]
fn an_unaligned_region_is_mapped_whole() {
    let world = World::new(1);
    world.reserve(1, 0x7800, 0x9003, RegionKind::Direct);
    let device = world.device(1);
    let reach: Vec<_> = (6..=10).map(|page| world.write(1, page << 12)).collect();
    assert_eq!(reach, [None, Some(0x7000), Some(0x8000), Some(0x9000), None]);
    // The rest of its first and of its last page is no user's.
    let domain = world.domain(&device);
    for page in [7, 9] {
        assert!(matches!(map(&domain, pages(page, 1), 0, Prot::RW), Err(Error::OutsideWindow { .. })));
    }
    map(&domain, pages(6, 1), 0, Prot::RW).unwrap();
    world.iommu.attach_device(&domain, &device).unwrap();
}

#[test]
fn a_mapping_that_lies_in_the_region_refuses_the_domain() {
    let world = World::new(1);
    world.reserve(2, DIRECT, DIRECT + 0xfff, RegionKind::DirectRelaxable);
    world.reserve(3, DIRECT, DIRECT + 0x2fff, RegionKind::Direct);
    let (relaxable, direct) = (world.device(2), world.device(3));
    let refused = Err(Error::Incompatible(IncompatibleReason::Reserved));
    // Made for the device, so its windows fit; but what lies in the region is something else.
    for (phys, prot, expected) in
        [(0x5000, Prot::RW, refused), (DIRECT, Prot::READ, refused), (DIRECT, Prot::RW, Ok(()))]
    {
        let domain = world.domain(&direct);
        // Past the windows, as another device's direct region might have come in.
        let paging: &Paging = domain.ops().as_any().downcast_ref().unwrap();
        let mut stray = iommu::pgtable::TableList::new();
        let (phys, sizes) = (PhysAddr::new(phys), iommu::pgtable::PageSizes::ALL);
        // SAFETY: no device is real.
        unsafe { paging.table().map(pages(7, 1), phys, prot, sizes, &mut stray) }.unwrap();
        assert!(stray.is_empty());
        let before = world.iommu.domain_of(group(&direct));
        assert_eq!(world.iommu.attach_device(&domain, &direct), expected);
        match expected {
            Ok(()) => {
                assert_eq!(world.write(3, 0x9000), Some(0x9000), "what was missing is added");
                world.iommu.detach_device(&domain, &direct).unwrap();
            }
            Err(_) => assert!(world.iommu.domain_of(group(&direct)).ptr_eq(&before)),
        }
    }
    drop(relaxable);
}

#[test]
fn what_is_missing_around_mappings_is_added() {
    let world = World::new(1);
    world.reserve(1, DIRECT, DIRECT + 0x4fff, RegionKind::Direct);
    let device = world.device(1);
    let domain = world.domain(&device);
    for page in [8, 10] {
        // SAFETY: no device is real.
        unsafe { domain.ops().map_reserved(pages(page, 1), PhysAddr::new(page << 12), Prot::RW) }.unwrap();
    }
    world.iommu.attach_device(&domain, &device).unwrap();
    for page in 7..=11 {
        assert_eq!(world.write(1, page << 12), Some(page << 12));
    }
}

#[test]
fn a_relaxable_region_belongs_to_the_default_domain_alone() {
    let world = World::new(1);
    world.reserve(1, DIRECT, DIRECT + 0xfff, RegionKind::DirectRelaxable);
    let device = world.device(1);
    assert_eq!(world.write(1, DIRECT), Some(DIRECT));
    // There it is no window, or a user could unmap it.
    let default = world.iommu.default_domain_of(group(&device));
    assert!(matches!(unmap(&default, pages(7, 1)), Err(Error::OutsideWindow { .. })));
    // A domain of a driver's own has neither the mapping nor the hole.
    let domain = world.domain(&device);
    world.iommu.attach_device(&domain, &device).unwrap();
    assert_eq!(world.write(1, DIRECT), None);
    map(&domain, pages(7, 1), 0x10_0000, Prot::RW).unwrap();
    assert_eq!(world.write(1, DIRECT), Some(0x10_0000));
    world.iommu.detach_device(&domain, &device).unwrap();
    assert_eq!(world.write(1, DIRECT), Some(DIRECT));
    // And it may be blocked.
    world.iommu.attach_device(world.iommu.blocked_domain(), &device).unwrap();
    assert_eq!(world.write(1, DIRECT), None);
}

#[test]
fn permissions_that_a_format_cannot_express_are_no_conflict() {
    let world = World::new(1);
    let region = iommu::ReservedRegion {
        range: range(DIRECT, DIRECT + 0xfff),
        kind: RegionKind::Direct,
        prot: Prot::RW | Prot::CACHE | Prot::MMIO | Prot::PRIV,
    };
    world.unit().state().regions.insert(source(1), vec![region]);
    let device = world.device(1);
    let domain: Domain = world.domain(&device);
    for _ in 0..2 {
        world.iommu.attach_device(&domain, &device).unwrap();
        world.iommu.detach_device(&domain, &device).unwrap();
    }
    assert!(is_direct(&world));
}

#[test]
fn two_devices_with_the_same_region_share_a_domain() {
    let world = World::new(1);
    for id in [1, 2] {
        world.reserve(id, DIRECT, DIRECT + 0x3fff, RegionKind::Direct);
    }
    let (one, two) = (world.device(1), world.device(2));
    let domain = world.iommu.paging_domain(&[&one, &two]).unwrap();
    world.iommu.attach_device(&domain, &one).unwrap();
    world.iommu.attach_device(&domain, &two).unwrap();
    assert_eq!(world.write(2, DIRECT + 0x3000), Some(DIRECT + 0x3000));
    assert_eq!(domain.walk(iommu::IovaRange::full()).count(), 1);
}
