//! DMA ownership: Linux's rules.

use std::num::NonZeroU64;

use iommu::{BootPolicy, BusyReason, Error, IncompatibleReason, InvalidReason, Owner, Policy, Prot, RegionKind};

use crate::world::{World, group, map, pages, source};

fn owner(number: u64) -> Owner {
    Owner(NonZeroU64::new(number).unwrap())
}

const OWNED: Error = Error::Busy(BusyReason::Owned);
const ATTACHED: Error = Error::Busy(BusyReason::Attached);
const WRONG_OWNER: Error = Error::Invalid(InvalidReason::WrongOwner);

#[test]
fn an_owner_gets_a_blocked_group_and_gives_it_back_to_the_default_domain() {
    let world = World::new(1);
    let device = world.device(1);
    let group = group(&device);
    let default = world.iommu.default_domain_of(group);
    map(&default, pages(1, 1), 0x7000, Prot::RW).unwrap();
    assert!(!world.iommu.dma_owner_claimed(group));
    world.iommu.claim_dma_owner(group, owner(1)).unwrap();
    assert!(world.iommu.dma_owner_claimed(group));
    assert!(world.iommu.domain_of(group).ptr_eq(world.iommu.blocked_domain()));
    assert_eq!(world.write(1, 0x1000), None);
    // Another one cannot have it, nor can a driver.
    assert_eq!(world.iommu.claim_dma_owner(group, owner(2)), Err(OWNED));
    assert_eq!(world.iommu.release_dma_owner(group, owner(2)), Err(WRONG_OWNER));
    assert_eq!(world.iommu.use_default_domain(&device), Err(OWNED));
    // The owner's domain; detached, the group is blocked.
    let domain = world.domain(&device);
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    world.iommu.attach_group(&domain, group).unwrap();
    assert_eq!(world.write(1, 0x1000), Some(0x8000));
    world.iommu.detach_group(&domain, group).unwrap();
    assert_eq!(world.write(1, 0x1000), None);
    assert!(world.iommu.domain_of(group).ptr_eq(world.iommu.blocked_domain()));
    // Claims are counted; the last release brings the default domain back, whatever is attached.
    world.iommu.claim_dma_owner(group, owner(1)).unwrap();
    world.iommu.attach_group(&domain, group).unwrap();
    world.iommu.release_dma_owner(group, owner(1)).unwrap();
    assert_eq!(world.write(1, 0x1000), Some(0x8000));
    world.iommu.release_dma_owner(group, owner(1)).unwrap();
    assert_eq!(world.write(1, 0x1000), Some(0x7000));
    assert!(!world.iommu.dma_owner_claimed(group));
    assert_eq!(world.iommu.release_dma_owner(group, owner(1)), Err(WRONG_OWNER));
    world.iommu.claim_dma_owner(group, owner(2)).unwrap();
    drop((domain, default, device));
    assert_eq!(world.end(), 0);
}

#[test]
fn bound_drivers_keep_owners_out() {
    let world = World::new(1);
    let (device, other) = (world.behind(1, 2), world.behind(1, 3));
    let error = Error::Busy(BusyReason::DriversBound);
    assert_eq!(error.errno(), 1, "EPERM, as in Linux");
    let bound = Err(error);
    world.iommu.use_default_domain(&device).unwrap();
    world.iommu.use_default_domain(&other).unwrap();
    assert_eq!(world.iommu.claim_dma_owner(group(&device), owner(1)), bound);
    world.iommu.unuse_default_domain(&other).unwrap();
    assert_eq!(world.iommu.claim_dma_owner(group(&device), owner(1)), bound);
    world.iommu.unuse_default_domain(&device).unwrap();
    assert_eq!(world.iommu.unuse_default_domain(&device), Err(WRONG_OWNER));
    world.iommu.claim_dma_owner(group(&device), owner(1)).unwrap();
}

#[test]
fn an_attached_domain_keeps_owners_and_drivers_out() {
    let world = World::new(1);
    let device = world.device(1);
    let domain = world.domain(&device);
    world.iommu.attach_device(&domain, &device).unwrap();
    assert_eq!(world.iommu.claim_dma_owner(group(&device), owner(1)), Err(ATTACHED));
    assert_eq!(world.iommu.use_default_domain(&device), Err(ATTACHED));
    assert_eq!(world.iommu.unuse_default_domain(&device), Err(WRONG_OWNER), "it was not counted");
    world.iommu.detach_device(&domain, &device).unwrap();
    world.iommu.claim_dma_owner(group(&device), owner(1)).unwrap();
}

#[test]
fn a_claim_that_cannot_block_is_no_claim() {
    let world = World::new(1);
    world.reserve(1, 0x7000, 0x7fff, RegionKind::Direct);
    let device = world.device(1);
    let refused = Err(Error::Incompatible(IncompatibleReason::DirectRegion));
    assert_eq!(world.iommu.claim_dma_owner(group(&device), owner(1)), refused);
    assert!(!world.iommu.dma_owner_claimed(group(&device)));
    assert_eq!(world.write(1, 0x7000), Some(0x7000));

    let device = world.device(2);
    world.unit().state().fail_attach = Some((0, Error::NoMemory));
    assert_eq!(world.iommu.claim_dma_owner(group(&device), owner(1)), Err(Error::NoMemory));
    assert!(!world.iommu.dma_owner_claimed(group(&device)));
    world.iommu.claim_dma_owner(group(&device), owner(1)).unwrap();
}

#[test]
fn a_claim_ends_the_boot_policys_identity() {
    let world = World::with_policy(1, Policy { boot: BootPolicy::IdentityUntilClaimed, ..Policy::default() });
    let device = world.device(1);
    assert_eq!(world.write(1, 0x5000), Some(0x5000));
    world.iommu.claim_dma_owner(group(&device), owner(1)).unwrap();
    assert_eq!(world.write(1, 0x5000), None);
    world.iommu.release_dma_owner(group(&device), owner(1)).unwrap();
    assert_eq!(world.write(1, 0x5000), None, "the default domain, not identity");
}

#[test]
fn a_release_that_cannot_attach_the_default_domain_leaves_the_group_blocked() {
    let world = World::new(1);
    let device = world.device(1);
    world.iommu.claim_dma_owner(group(&device), owner(1)).unwrap();
    world.unit().state().fail_attach = Some((0, Error::NoMemory));
    world.iommu.release_dma_owner(group(&device), owner(1)).unwrap();
    assert!(!world.iommu.dma_owner_claimed(group(&device)));
    assert!(world.unit().domain_of(source(1)).is_none());
    world.iommu.use_default_domain(&device).unwrap();
    assert!(world.unit().domain_of(source(1)).is_some());
}

#[test]
fn a_device_that_joins_an_owned_group_is_blocked_like_the_others() {
    let world = World::new(1);
    let first = world.behind(1, 2);
    world.iommu.claim_dma_owner(group(&first), owner(1)).unwrap();
    let second = world.behind(1, 3);
    assert!(world.unit().domain_of(source(3)).is_none());
    let domain = world.iommu.paging_domain(&[&first, &second]).unwrap();
    world.iommu.attach_group(&domain, group(&first)).unwrap();
    assert!(world.unit().domain_of(source(3)).unwrap().ptr_eq(&domain));
}
