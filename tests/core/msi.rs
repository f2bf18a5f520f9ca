//! Where a device raises its interrupts.

use iommu::domain::DomainOptions;
use iommu::ops::Stage;
use iommu::{Domain, Error, InvalidReason, Iova, NoSpaceReason, PhysAddr, Prot, RegionKind};

use crate::fake::first_traits;
use crate::world::{World, map, range};

#[test]
fn doorbells_are_mapped_where_interrupts_are_translated() {
    let world = World::new(1);
    world.reserve(2, 0x8000, 0x9fff, RegionKind::SoftwareMsi);
    let (plain, translated) = (world.device(1), world.device(2));
    let domain = world.domain(&translated);
    let doorbell = PhysAddr::new(0x0902_0040);
    let address = |domain: &Domain, device, doorbell| world.iommu.msi_address(domain, device, doorbell);
    assert_eq!(address(&domain, &plain, doorbell), Ok(Iova::new(0x0902_0040)), "not translated");
    assert_eq!(address(&domain, &translated, doorbell), Ok(Iova::new(0x8040)));
    assert_eq!(address(&domain, &translated, PhysAddr::new(0x0902_0080)), Ok(Iova::new(0x8080)), "the same page");
    assert_eq!(address(&domain, &translated, PhysAddr::new(0x0a00_0000)), Ok(Iova::new(0x9000)));
    let full = Err(Error::NoSpace(NoSpaceReason::Doorbells));
    assert_eq!(address(&domain, &translated, PhysAddr::new(0x0b00_0000)), full);
    world.iommu.attach_device(&domain, &translated).unwrap();
    assert_eq!(world.write(2, 0x8040), Some(0x0902_0040), "the interrupt arrives");
    assert!(map(&domain, range(0x8000, 0x8fff), 0, Prot::RW).is_err(), "the window is not for buffers");
    let (blocked, identity) = (world.iommu.blocked_domain(), world.iommu.identity_domain());
    assert_eq!(address(identity, &translated, doorbell), Ok(Iova::new(0x0902_0040)));
    assert_eq!(address(blocked, &translated, doorbell), Err(Error::Invalid(InvalidReason::NotPaging)));
}

/// Its tables have no permission to write only.
#[test]
fn a_first_stage_has_doorbells_too() {
    let world = World::new(1);
    world.units[0].state().first = Some(first_traits());
    world.reserve(1, 0x8000, 0x9fff, RegionKind::SoftwareMsi);
    let device = world.device(1);
    let options = DomainOptions { stage: Some(Stage::First), ..DomainOptions::default() };
    let domain = world.iommu.paging_domain_with(&[&device], options).unwrap();
    let address = world.iommu.msi_address(&domain, &device, PhysAddr::new(0x0902_0040));
    assert_eq!(address, Ok(Iova::new(0x8040)));
    assert_eq!(domain.iova_to_phys(Iova::new(0x8040)), Some(PhysAddr::new(0x0902_0040)));
}
