//! Device TLBs: when they are on, and that an unmap reaches them.

use iommu::device::Trust;
use iommu::ops::Ats;
use iommu::{
    AtsPolicy, BootPolicy, Device, DomainKind, Error, IncompatibleReason, PciAddress, Policy, Prot, StallPolicy,
    WaitReason,
};

use crate::pci::Step::{Attach, Block, Off, On};
use crate::pci::Tlb::{Unused, Used};
use crate::world::{World, group, map, pages, unmap};

const TRUSTED: Policy = Policy {
    boot: BootPolicy::Blocked,
    default_domain: DomainKind::Paging,
    ats: AtsPolicy::Trusted,
    stalls: StallPolicy::Off,
};
const PAGING: DomainKind = DomainKind::Paging;
/// Requester id of 00:01.0.
const A: u16 = 0x08;

fn world(policy: Policy) -> World {
    let world = World::with_policy(1, policy);
    world.unit().state().supports_ats = true;
    world
}

impl World {
    fn steps(&self) -> Vec<crate::pci::Step> {
        self.frames.space().take_steps()
    }

    fn function(&self, device: u8) -> (PciAddress, Device) {
        let address = self.frames.space().add(device);
        (address, self.probe(address, Trust::Trusted))
    }

    fn probe(&self, address: PciAddress, trust: Trust) -> Device {
        self.iommu.probe_pci(self.frames.space(), address, trust).unwrap()
    }
}

#[test]
fn a_device_tlb_is_on_while_the_unit_permits_it() {
    let world = world(TRUSTED);
    let (address, device) = world.function(1);
    assert_eq!(world.steps(), [Attach(A, PAGING, Used)], "the unit does not translate yet");
    assert!(!device.ats_enabled());
    world.iommu.enable().unwrap();
    assert_eq!(world.steps(), [On(A)]);
    assert!(device.ats_enabled());
    // From one domain that uses it to another it stays on.
    let domain = world.domain(&device);
    world.iommu.attach_device(&domain, &device).unwrap();
    assert_eq!(world.steps(), [Attach(A, PAGING, Used)]);
    // Off before the entry goes, on after it has come.
    world.iommu.replace(world.iommu.blocked_domain(), group(&device)).unwrap();
    assert_eq!(world.steps(), [Off(A), Attach(A, DomainKind::Blocked, Used)]);
    assert!(!device.ats_enabled());
    world.iommu.replace(&domain, group(&device)).unwrap();
    assert_eq!(world.steps(), [Attach(A, PAGING, Used), On(A)]);
    world.iommu.replace(world.iommu.identity_domain(), group(&device)).unwrap();
    assert_eq!(world.steps(), [Off(A), Attach(A, DomainKind::Identity, Used)]);
    world.iommu.replace(&domain, group(&device)).unwrap();
    world.steps();
    world.iommu.release_device(&device).unwrap();
    assert_eq!(world.steps(), [Off(A), Block(A, Used)]);
    assert!(!world.frames.space().is_on(address));
    drop((device, domain));
    assert_eq!(world.end(), 0);
}

#[test]
fn a_device_that_comes_while_units_translate_is_turned_on_at_once() {
    let world = world(TRUSTED);
    world.iommu.enable().unwrap();
    let (_, device) = world.function(1);
    assert_eq!(world.steps(), [Attach(A, PAGING, Used), On(A)]);
    assert_eq!(
        world.unit().device_tlbs(&world.iommu.domain_of(group(&device))),
        [(u32::from(A), Ats { physical_function: 0, max_pending: 5 })]
    );
}

#[test]
fn device_tlbs_are_off_while_units_stop_and_forget() {
    let world = world(TRUSTED);
    let ((_, a), (_, b)) = (world.function(1), world.function(2));
    world.iommu.enable().unwrap();
    world.steps();
    world.iommu.replace(world.iommu.identity_domain(), group(&b)).unwrap();
    world.steps();
    world.iommu.suspend().unwrap();
    assert_eq!(world.steps(), [Off(A)]);
    assert!(!a.ats_enabled());
    world.iommu.resume().unwrap();
    assert_eq!(world.steps(), [On(A)], "the other has a domain that uses none");
    // A reset of a unit that runs: what devices hold may be stale.
    world.iommu.resume().unwrap();
    assert_eq!(world.steps(), [Off(A), On(A)]);
    world.unit().state().fail_shutdown = true;
    assert_eq!(world.iommu.shutdown(), Err(Error::TimedOut(WaitReason::Register)));
    assert_eq!(world.steps(), [Off(A)]);
    world.iommu.replace(world.iommu.blocked_domain(), group(&a)).unwrap();
    world.iommu.attach_device(&world.domain(&a), &a).unwrap();
    assert!(!world.steps().contains(&On(A)));
}

#[test]
fn who_has_none() {
    let on = |world: &World, device: &Device| {
        world.iommu.enable().unwrap();
        (device.ats_enabled(), world.steps().contains(&On(A)))
    };
    let allowed = world(TRUSTED);
    let (_, device) = allowed.function(1);
    assert_eq!(on(&allowed, &device), (true, true));

    let off = world(Policy::default());
    let (_, device) = off.function(1);
    assert_eq!(on(&off, &device), (false, false), "nobody asked for it");

    let untrusted = world(TRUSTED);
    let address = untrusted.frames.space().add(1);
    let device = untrusted.probe(address, Trust::Untrusted);
    assert_eq!(on(&untrusted, &device), (false, false), "not trusted");

    let unable = world(TRUSTED);
    unable.unit().state().supports_ats = false;
    let (_, device) = unable.function(1);
    assert_eq!(on(&unable, &device), (false, false), "the unit cannot");

    let broken = world(TRUSTED);
    let address = broken.frames.space().add(1);
    broken.frames.space().break_ats(address);
    let device = broken.probe(address, Trust::Trusted);
    assert_eq!(on(&broken, &device), (false, false), "broken");

    let blind = world(TRUSTED);
    blind.frames.hide_space();
    let (_, device) = blind.function(1);
    assert_eq!(on(&blind, &device), (false, false), "nobody could turn it off");
}

#[test]
fn what_was_left_on_is_turned_off_whatever_the_policy() {
    for policy in [Policy::default(), TRUSTED] {
        let world = world(policy);
        let address = world.frames.space().add(1);
        world.frames.space().leave_on(address);
        let device = world.probe(address, Trust::Trusted);
        assert_eq!(world.steps().first(), Some(&Off(A)), "before the unit hears of the device");
        assert!(!world.frames.space().is_on(address) && !device.ats_enabled());
    }
}

#[test]
fn an_attach_that_fails_leaves_the_device_tlb_as_it_was() {
    let world = world(TRUSTED);
    let ((_, a), (_, b)) = (world.function(1), world.function(2));
    world.iommu.enable().unwrap();
    world.steps();
    let domain = world.domain(&a);
    let incompatible = Error::Incompatible(IncompatibleReason::Driver);
    world.unit().state().fail_attach = Some((0, incompatible));
    assert_eq!(world.iommu.attach_device(&domain, &a), Err(incompatible));
    assert_eq!(world.steps(), [Off(A), On(A)], "empty, for nobody knows what the unit has left");
    world.unit().state().fail_attach = Some((0, incompatible));
    assert_eq!(world.iommu.replace(world.iommu.identity_domain(), group(&a)), Err(incompatible));
    assert_eq!(world.steps(), [Off(A), On(A)]);
    // If the unit is out of order the device may be blocked.
    world.unit().state().fail_attach = Some((0, Error::Fenced));
    assert_eq!(world.iommu.attach_device(&domain, &a), Err(Error::Fenced));
    assert_eq!(world.steps(), [Off(A)]);
    assert!(!a.ats_enabled() && b.ats_enabled());
}

#[test]
fn a_device_that_cannot_be_moved_is_turned_off_before_it_is_blocked() {
    let world = world(TRUSTED);
    let (_, device) = world.function(1);
    world.iommu.enable().unwrap();
    let domain = world.domain(&device);
    world.iommu.attach_device(&domain, &device).unwrap();
    world.steps();
    let incompatible = Error::Incompatible(IncompatibleReason::Driver);
    world.unit().state().fail_attach = Some((0, incompatible));
    world.iommu.detach_device(&domain, &device).unwrap();
    assert_eq!(world.steps(), [Off(A), On(A), Off(A), Block(A, Used)]);
}

#[test]
fn a_device_that_is_gone_is_not_told() {
    let world = world(TRUSTED);
    let (address, device) = world.function(1);
    world.iommu.enable().unwrap();
    world.steps();
    world.frames.space().unplug(address);
    world.iommu.release_device(&device).unwrap();
    assert_eq!(world.steps(), [Block(A, Unused)]);
}

#[test]
fn an_unmap_reaches_every_device_tlb_after_the_unit() {
    // More than one invalidation names.
    let world = world(TRUSTED);
    let devices: Vec<_> = (1..=6).map(|number| world.function(number)).collect();
    world.iommu.enable().unwrap();
    let domain = world.domain(&devices[0].1);
    for (_, device) in &devices {
        world.iommu.attach_device(&domain, device).unwrap();
    }
    map(&domain, pages(1, 2), 0x8000, Prot::RW).unwrap();
    let cached = |iova| -> Vec<_> {
        let asks = |(address, _): &(PciAddress, Device)| world.unit().translated(address.source_id(), iova);
        devices.iter().map(asks).collect()
    };
    assert_eq!((cached(0x1000), cached(0x2000)), (vec![Some(0x8000); 6], vec![Some(0x9000); 6]));
    world.unit().take_log();
    unmap(&domain, pages(1, 1)).unwrap();
    assert_eq!((cached(0x1000), cached(0x2000)), (vec![None; 6], vec![Some(0x9000); 6]));
    let invalidations = world.unit().take_log().into_iter().filter(|event| event.is_invalidation()).count();
    assert_eq!(invalidations, 2, "six devices, four at a time");
    // Whoever leaves is told to drop all, and not asked again.
    let (first, rest) = devices.split_first().unwrap();
    world.iommu.detach_device(&domain, &first.1).unwrap();
    assert_eq!(world.unit().device_tlbs(&domain).len(), 5);
    assert_eq!(world.unit().translated(first.0.source_id(), 0x2000), None);
    for (_, device) in rest {
        world.iommu.detach_device(&domain, device).unwrap();
    }
    assert!(crate::fake::tags(&domain).unwrap().is_empty());
}
