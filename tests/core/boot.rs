//! What a device may do before anybody asks, and who decides.

use iommu::{AtsPolicy, BootPolicy, BusyReason, DomainKind, Error, Policy, Prot, RegionKind, StallPolicy};

use crate::world::{World, group, info, map, pages, source, untrusted};

const OPEN: Policy = Policy {
    boot: BootPolicy::IdentityUntilClaimed,
    default_domain: DomainKind::Paging,
    ats: AtsPolicy::Off,
    stalls: StallPolicy::Off,
};
const IDENTITY: Policy = Policy {
    boot: BootPolicy::Blocked,
    default_domain: DomainKind::Identity,
    ats: AtsPolicy::Off,
    stalls: StallPolicy::Off,
};

#[test]
fn blocked_is_the_default_and_the_default_domain_translates() {
    let world = World::new(1);
    let device = world.device(1);
    world.iommu.enable().unwrap();
    assert!(world.unit().state().enabled);
    assert_eq!(world.write(1, 0x1000), None);
    let default = world.iommu.default_domain_of(group(&device));
    map(&default, pages(1, 1), 0x8000, Prot::RW).unwrap();
    assert_eq!(world.write(1, 0x1000), Some(0x8000));
    world.iommu.suspend().unwrap();
    assert!(!world.unit().state().enabled);
    world.iommu.resume().unwrap();
    assert!(world.unit().state().enabled);
}

#[test]
fn identity_lasts_until_a_driver_is_bound() {
    let world = World::with_policy(1, OPEN);
    let device = world.device(1);
    assert_eq!(world.write(1, 0x5000), Some(0x5000));
    world.iommu.use_default_domain(&device).unwrap();
    assert_eq!(world.write(1, 0x5000), None);
    assert_eq!(world.iommu.domain_of(group(&device)).kind(), DomainKind::Paging);
    // It does not come back.
    world.iommu.unuse_default_domain(&device).unwrap();
    assert_eq!(world.write(1, 0x5000), None);
}

#[test]
fn identity_lasts_until_a_domain_is_attached() {
    let world = World::with_policy(1, OPEN);
    let device = world.device(1);
    let domain = world.domain(&device);
    world.iommu.attach_device(&domain, &device).unwrap();
    assert_eq!(world.write(1, 0x5000), None);
    world.iommu.detach_device(&domain, &device).unwrap();
    assert_eq!(world.write(1, 0x5000), None);
    assert!(world.iommu.domain_of(group(&device)).ptr_eq(&world.iommu.default_domain_of(group(&device))));
}

#[test]
fn untrusted_devices_are_translated_whatever_the_policy() {
    for policy in [OPEN, IDENTITY] {
        let world = World::with_policy(1, policy);
        world.unit().state().demanded = Some(DomainKind::Identity);
        let device = world.iommu.probe_platform(untrusted(&[source(1)])).unwrap();
        assert_eq!(world.iommu.domain_of(group(&device)).kind(), DomainKind::Paging);
        assert_eq!(world.write(1, 0x5000), None);
    }
}

#[test]
fn an_untrusted_device_takes_its_group_out_of_identity() {
    for policy in [OPEN, IDENTITY] {
        let world = World::with_policy(1, policy);
        let trusted = world.behind(1, 2);
        assert_eq!(world.write(1, 0x5000), Some(0x5000));
        let device = world.iommu.probe_platform(untrusted(&[source(1), source(3)])).unwrap();
        assert_eq!(group(&device), group(&trusted));
        let default = world.iommu.default_domain_of(group(&device));
        assert_eq!(default.kind(), DomainKind::Paging);
        assert!(world.iommu.domain_of(group(&device)).ptr_eq(&default));
        for id in [1, 2, 3] {
            assert_eq!(world.write(id, 0x5000), None);
            assert!(world.unit().domain_of(source(id)).unwrap().ptr_eq(&default));
        }
    }
}

#[test]
fn an_untrusted_device_does_not_join_a_group_that_a_driver_uses_untranslated() {
    let world = World::with_policy(1, IDENTITY);
    let trusted = world.behind(1, 2);
    world.iommu.use_default_domain(&trusted).unwrap();
    let refused = world.iommu.probe_platform(untrusted(&[source(1), source(3)]));
    assert_eq!(refused, Err(Error::Busy(BusyReason::InUse)));
    assert_eq!((world.write(2, 0x5000), world.write(3, 0x5000)), (Some(0x5000), None));
    world.iommu.unuse_default_domain(&trusted).unwrap();
    // When the way into translation fails, nobody has moved.
    world.unit().state().fail_attach = Some((1, Error::NoMemory));
    assert_eq!(world.iommu.probe_platform(untrusted(&[source(1), source(3)])), Err(Error::NoMemory));
    assert_eq!((world.write(1, 0x5000), world.write(2, 0x5000)), (Some(0x5000), Some(0x5000)));
    assert_eq!(world.iommu.default_domain_of(group(&trusted)).kind(), DomainKind::Identity);
    world.iommu.probe_platform(untrusted(&[source(1), source(3)])).unwrap();
    assert_eq!(world.write(2, 0x5000), None);
}

#[test]
fn a_newcomer_with_other_reserved_regions_gets_a_default_domain_that_fits_all() {
    let world = World::new(1);
    world.reserve(3, 0x7000, 0x7fff, RegionKind::Direct);
    let first = world.behind(1, 2);
    let old = world.iommu.default_domain_of(group(&first));
    let second = world.behind(1, 3);
    let default = world.iommu.default_domain_of(group(&first));
    assert!(!default.ptr_eq(&old) && world.iommu.domain_of(group(&first)).ptr_eq(&default));
    assert!(second.windows().unwrap().covers(default.windows()));
    for id in [1, 2, 3] {
        assert_eq!((world.write(id, 0x7000), world.write(id, 0x8000)), (Some(0x7000), None));
    }
    // In use, it is not taken away.
    world.reserve(4, 0x9000, 0x9fff, RegionKind::Direct);
    world.iommu.use_default_domain(&first).unwrap();
    let refused = world.iommu.probe_platform(info(&[source(1), source(4)]));
    assert_eq!(refused, Err(Error::Busy(BusyReason::InUse)));
    assert!(world.iommu.default_domain_of(group(&first)).ptr_eq(&default));
    drop((first, second, old, default));
    assert_eq!(world.end(), 0);
}

#[test]
fn a_unit_may_demand_a_kind_and_the_caller_may_choose_one() {
    let world = World::new(1);
    world.unit().state().demanded = Some(DomainKind::Identity);
    let device = world.device(1);
    assert!(world.iommu.default_domain_of(group(&device)).ptr_eq(world.iommu.identity_domain()));
    assert_eq!(world.write(1, 0x5000), Some(0x5000));

    let world = World::with_policy(1, IDENTITY);
    world.unit().state().demanded = Some(DomainKind::Paging);
    let device = world.device(1);
    assert_eq!(world.iommu.default_domain_of(group(&device)).kind(), DomainKind::Paging);
    world.unit().state().demanded = None;
    let device = world.device(2);
    assert_eq!(world.iommu.default_domain_of(group(&device)).kind(), DomainKind::Identity);
}

#[test]
fn a_device_with_a_direct_region_is_not_given_a_blocked_default_domain() {
    let world = World::with_policy(1, Policy { default_domain: DomainKind::Blocked, ..Policy::default() });
    world.reserve(2, 0x7000, 0x7fff, RegionKind::Direct);
    let device = world.device(1);
    assert!(world.iommu.domain_of(group(&device)).ptr_eq(world.iommu.blocked_domain()));
    let direct = world.device(2);
    assert_eq!(world.iommu.domain_of(group(&direct)).kind(), DomainKind::Paging);
    assert_eq!((world.write(2, 0x7000), world.write(2, 0x8000)), (Some(0x7000), None));
}

#[test]
fn off_is_off() {
    let world = World::with_policy(1, Policy { boot: BootPolicy::Off, ..Policy::default() });
    world.unit().state().enabled = true;
    assert_eq!(world.iommu.probe_platform(info(&[source(1)])), Err(Error::NoDevice));
    assert_eq!(world.iommu.devices().count(), 0);
    world.iommu.enable().unwrap();
    assert!(!world.unit().state().enabled, "what firmware left on is turned off");
}

#[test]
fn a_unit_that_does_not_stop_keeps_its_memory() {
    let world = World::new(2);
    let device = world.device(1);
    world.units[0].state().fail_shutdown = true;
    world.units[1].state().enabled = true;
    assert!(world.iommu.shutdown().is_err());
    assert!(!world.units[1].state().enabled, "the others are stopped all the same");
    drop(device);
    let frames = world.frames.clone();
    let without_iommu = {
        let World { iommu, units, .. } = world;
        drop(iommu);
        drop(units);
        frames.in_use()
    };
    assert!(without_iommu > 0);
}
