//! Who goes through which domain.

use std::num::NonZeroU64;

use iommu::{BootPolicy, BusyReason, DomainKind, Error, FaultKind, Iova, Owner, Policy, Prot};
use iommu_harness::{Access, Machine, TestResult};

use crate::firmware::Firmware;
use crate::rig::{Rig, map, unmap};

const HERE: Iova = Iova::new(0x10_0000);

/// The same IOVA in two domains leads to two places, and neither device reaches the other's.
pub(crate) fn isolated(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let (mine, theirs) = (rig.attached("edu")?, rig.attached("other")?);
    let (first, second) = (rig.pages(1)?, rig.pages(1)?);
    map(&mine, 0x10_0000, &first, Prot::RW)?;
    map(&theirs, 0x10_0000, &second, Prot::RW)?;
    map(&theirs, 0x20_0000, &second, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &first, 0, 256);
    rig.assert_reaches("other", HERE, &second, 0, 256);
    rig.assert_reaches("other", Iova::new(0x20_0000), &second, 0, 256);
    rig.assert_blocked("edu", Iova::new(0x20_0000), Access::Write);
    Ok(())
}

/// Two devices in one domain: an unmap stops both.
pub(crate) fn shared(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    rig.map_workspace(&domain, "other")?;
    rig.iommu.attach_group(&domain, &rig.group("other"))?;
    let buffer = rig.pages(1)?;
    let mapped = map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 256);
    rig.assert_reaches("other", HERE, &buffer, 0, 256);
    unmap(&domain, mapped)?;
    rig.assert_blocked("edu", HERE, Access::Write);
    rig.assert_blocked("other", HERE, Access::Write);
    Ok(())
}

/// From domain to domain; each time the device sees the new one only.
pub(crate) fn moving(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let group = rig.group("edu");
    let (first, second) = (rig.pages(1)?, rig.pages(1)?);
    let (a, b) = (rig.domain("edu")?, rig.domain("edu")?);
    map(&a, 0x10_0000, &first, Prot::RW)?;
    map(&b, 0x10_0000, &second, Prot::RW)?;
    rig.iommu.attach_group(&a, &group)?;
    for _ in 0..3 {
        rig.assert_reaches("edu", HERE, &first, 0, 128);
        assert_eq!(rig.iommu.attach_group(&b, &group), Err(Error::Busy(BusyReason::Attached)));
        rig.iommu.replace(&b, &group)?;
        rig.assert_reaches("edu", HERE, &second, 0, 128);
        rig.iommu.replace(&a, &group)?;
    }
    rig.iommu.detach_group(&a, &group)?;
    rig.assert_blocked("edu", HERE, Access::Write);
    assert!(rig.iommu.domain_of(&group).ptr_eq(&rig.iommu.default_domain_of(&group)));
    Ok(())
}

/// Addresses pass unchanged, by pass-through or by a table over RAM.
pub(crate) fn identity(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let engine = rig.engine("edu");
    engine.place_workspace(Iova::new(engine.workspace().phys.as_u64()));
    let identity = rig.iommu.identity_domain().clone();
    rig.iommu.attach_group(&identity, &rig.group("edu"))?;
    let buffer = rig.pages(1)?;
    rig.assert_reaches("edu", buffer.iova(), &buffer, 0, 2048);
    let domain = rig.domain("edu")?;
    rig.iommu.replace(&domain, &rig.group("edu"))?;
    rig.assert_blocked("edu", buffer.iova(), Access::Write);
    Ok(())
}

pub(crate) fn blocked(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 64);
    let blocked = rig.iommu.blocked_domain().clone();
    rig.iommu.replace(&blocked, &rig.group("edu"))?;
    buffer.fill(0);
    rig.assert_no_domain("edu", HERE, Access::Write);
    assert!(buffer.is_filled(0));
    rig.iommu.replace(&domain, &rig.group("edu"))?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 64);
    Ok(())
}

/// While a group has an owner it is blocked, but for the owner's domains.
pub(crate) fn owner(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let group = rig.group("edu");
    let owner = Owner(NonZeroU64::MIN);
    rig.iommu.claim_dma_owner(&group, owner)?;
    rig.assert_no_domain("edu", HERE, Access::Read);
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 64);
    rig.iommu.detach_group(&domain, &group)?;
    rig.assert_no_domain("edu", HERE, Access::Read);
    rig.iommu.release_dma_owner(&group, owner)?;
    assert_eq!(rig.assert_blocked("edu", HERE, Access::Read).kind, FaultKind::Translation);
    Ok(())
}

/// Everything is reachable until a driver is bound.
pub(crate) fn identity_until_claimed(machine: &dyn Machine) -> TestResult {
    let policy = Policy { boot: BootPolicy::IdentityUntilClaimed, ..Policy::default() };
    let rig = Rig::with_policy(machine, policy)?;
    let engine = rig.engine("edu");
    engine.place_workspace(Iova::new(engine.workspace().phys.as_u64()));
    let buffer = rig.pages(1)?;
    rig.assert_reaches("edu", buffer.iova(), &buffer, 0, 512);
    rig.iommu.use_default_domain(&rig.device("edu"))?;
    rig.assert_blocked("edu", buffer.iova(), Access::Write);
    assert_eq!(rig.iommu.domain_of(&rig.group("edu")).kind(), DomainKind::Paging);
    Ok(())
}

/// The off switch.
pub(crate) fn off(machine: &dyn Machine) -> TestResult {
    let rig = Rig::with_policy(machine, Policy { boot: BootPolicy::Off, ..Policy::default() })?;
    let engine = rig.engine("edu");
    engine.place_workspace(Iova::new(engine.workspace().phys.as_u64()));
    let buffer = rig.pages(1)?;
    rig.assert_reaches("edu", buffer.iova(), &buffer, 0, 512);
    assert_eq!(rig.iommu.devices().count(), 0);
    Ok(())
}

/// Units and the ids of their devices, taken from the device tree instead.
pub(crate) fn device_tree(machine: &dyn Machine) -> TestResult {
    let firmware = Firmware::DeviceTree(machine.device_tree()?);
    let rig = Rig::boot(machine, Policy::default(), firmware, |_| true)?;
    assert_eq!(rig.iommu.units().count(), 1);
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 256);
    rig.assert_blocked("edu", Iova::new(0x20_0000), Access::Write);
    rig.assert_blocked("other", HERE, Access::Write);
    Ok(())
}

/// What the kernel does not know reaches nothing.
pub(crate) fn never_probed(machine: &dyn Machine) -> TestResult {
    let other = machine.device("other").address();
    let rig = Rig::boot(machine, Policy::default(), Firmware::of(machine)?, |address| address != other)?;
    rig.assert_no_domain("other", HERE, Access::Write);
    Ok(())
}

/// A device that is released is blocked, and can be probed again.
pub(crate) fn released(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 64);
    let device = rig.device("edu");
    rig.iommu.release_device(&device)?;
    rig.assert_no_domain("edu", HERE, Access::Write);
    assert!(rig.iommu.find(rig.engine("edu").requester()).is_none());
    let address = rig.engine("edu").address();
    rig.iommu.probe_pci(machine.config(), address, iommu::device::Trust::Trusted)?;
    assert_eq!(rig.assert_blocked("edu", HERE, Access::Write).kind, FaultKind::Translation);
    Ok(())
}

/// Hundreds of domains, one after the other and all alive: ids are given back.
pub(crate) fn many(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let group = rig.group("edu");
    let buffer = rig.pages(1)?;
    let at = |index: u64| 0x10_0000 + index * rig.page();
    let mut domains = Vec::new();
    for index in 0..200u64 {
        let domain = rig.domain("edu")?;
        map(&domain, at(index), &buffer, Prot::RW)?;
        rig.iommu.replace(&domain, &group)?;
        domains.push(domain);
    }
    for (index, domain) in domains.iter().enumerate().step_by(37) {
        rig.iommu.replace(domain, &group)?;
        rig.assert_reaches("edu", Iova::new(at(index as u64)), &buffer, 0, 32);
        rig.assert_blocked("edu", Iova::new(at(index as u64 + 1)), Access::Write);
    }
    Ok(())
}

/// Suspend and resume: the same domains as before.
pub(crate) fn power(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 64);
    rig.iommu.suspend()?;
    rig.iommu.resume()?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 64);
    rig.assert_blocked("edu", Iova::new(0x20_0000), Access::Write);
    Ok(())
}

/// A kernel starts on hardware that another one left on.
pub(crate) fn second_kernel(machine: &dyn Machine) -> TestResult {
    let before = Rig::new(machine)?;
    let buffer = before.pages(1)?;
    let old = before.attached("edu")?;
    map(&old, 0x10_0000, &buffer, Prot::RW)?;
    before.assert_reaches("edu", HERE, &buffer, 0, 64);
    before.assert_blocked("edu", Iova::new(0x20_0000), Access::Write);
    // The first kernel is not asked: the unit keeps translating while the second one comes up.
    let workspace = before.engine("edu").workspace().iova;
    let rig = Rig::new(machine)?;
    rig.assert_blocked("edu", HERE, Access::Write);
    let domain = rig.attached("edu")?;
    map(&domain, 0x30_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", Iova::new(0x30_0000), &buffer, 0, 64);
    drop((domain, rig));
    // The first one gets the hardware back.
    before.iommu.resume()?;
    before.engine("edu").place_workspace(workspace);
    before.assert_reaches("edu", HERE, &buffer, 0, 64);
    Ok(())
}

/// Everything is given back, whatever the order in which handles go.
pub(crate) fn teardown(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let buffer = machine.buffer(0x20_0000)?;
    let domain = rig.attached("edu")?;
    map(&domain, 0x4000_0000, &buffer, Prot::RW)?;
    map(&domain, 0x12_3450_0000, &buffer, Prot::RW)?;
    let device = rig.device("other");
    rig.attached("other")?;
    drop(rig);
    drop(device);
    drop(domain);
    Ok(())
}

/// With the n-th allocation failing, for every n: an error, nothing lost, and it works afterwards.
pub(crate) fn out_of_memory(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let frames = machine.platform().frames();
    let buffer = rig.pages(1)?;
    let group = rig.group("edu");
    let before = machine.platform().frames_in_use();
    let mut failures = 0;
    loop {
        frames.fail_after(Some(failures));
        let attempt = || -> Result<(), Error> {
            let domain = rig.iommu.paging_domain(&[&rig.device("edu")])?;
            map(&domain, 0x10_0000, &buffer, Prot::RW)?;
            map(&domain, 0x1_4000_0000, &buffer, Prot::RW)?;
            rig.iommu.attach_group(&domain, &group)?;
            rig.iommu.detach_group(&domain, &group)
        };
        let result = attempt();
        let exhausted = !frames.failure_pending();
        frames.fail_after(None);
        match result {
            Ok(()) if !exhausted => break,
            // A device that cannot go back to its default domain is blocked, of which not every unit tells.
            Ok(()) => {
                buffer.fill(0);
                let _ = rig.engine("edu").poke(HERE, Access::Write)?;
                assert!(buffer.is_filled(0));
            }
            Err(error) => {
                assert_eq!(error, Error::NoMemory);
                rig.assert_blocked("edu", HERE, Access::Write);
            }
        }
        failures += 1;
    }
    assert!(failures >= 3, "only {failures} allocations");
    // Slots of slabs stay for reuse; another round needs none.
    let after = machine.platform().frames_in_use();
    assert!(after <= before + 2, "{before} frames before, {after} after");
    Ok(())
}

/// Translation is turned off before anything is dropped: nothing is lost, and nothing is needed.
pub(crate) fn shutdown(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let buffer = rig.pages(1)?;
    let domain = rig.attached("edu")?;
    let mapped = map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 64);
    rig.iommu.shutdown()?;
    let engine = rig.engine("edu");
    let _ = engine.poke(buffer.iova(), Access::Write)?;
    assert_eq!(buffer.read(0, 4), *b"POKE", "without translation the device reaches everything");
    unmap(&domain, mapped)?;
    Ok(())
}
