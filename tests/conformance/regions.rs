//! Reserved regions.

use iommu::{DomainKind, Error, IncompatibleReason, Iova, Policy, Prot, RegionKind};
use iommu_harness::runner::TestError;
use iommu_harness::{Access, Buffer, Machine, TestResult};

use crate::firmware::Firmware;
use crate::rig::{Rig, map, phys, range};

/// A machine whose firmware has a region one to one for `edu`: a buffer of two pages.
fn with_direct_region(machine: &dyn Machine) -> Result<(Rig<'_>, Buffer), TestError> {
    // Whole pages of any size that a domain may have at least.
    let buffer = machine.buffer(0x2_0000)?;
    let firmware = Firmware::of(machine)?.with_direct_region(machine.device("edu").address(), &buffer);
    Ok((Rig::boot(machine, Policy::default(), firmware, |_| true)?, buffer))
}

/// Reachable from the start, in every domain, before and after a change.
pub(crate) fn direct(machine: &dyn Machine) -> TestResult {
    let (rig, buffer) = with_direct_region(machine)?;
    let (group, there) = (rig.group("edu"), buffer.iova());
    let poke = || -> TestResult {
        buffer.fill(0);
        let _ = rig.engine("edu").poke(there, Access::Write)?;
        assert_eq!(buffer.read(0, 4), *b"POKE");
        assert_eq!(rig.faults(), []);
        Ok(())
    };
    poke()?;
    let domain = rig.domain("edu")?;
    rig.iommu.attach_group(&domain, &group)?;
    poke()?;
    assert!(matches!(map(&domain, there.as_u64(), &buffer, Prot::RW), Err(Error::OutsideWindow { .. })));
    let other = rig.domain("edu")?;
    rig.iommu.replace(&other, &group)?;
    poke()?;
    rig.iommu.detach_group(&other, &group)?;
    poke()?;
    rig.assert_blocked("edu", Iova::new(there.as_u64() + buffer.bytes()), Access::Write);
    Ok(())
}

/// A device that the kernel does not know goes on reaching what firmware gave it, and nothing else.
pub(crate) fn direct_never_probed(machine: &dyn Machine) -> TestResult {
    let (buffer, edu) = (machine.buffer(0x2_0000)?, machine.device("edu").address());
    let firmware = Firmware::of(machine)?.with_direct_region(edu, &buffer);
    let rig = Rig::boot(machine, Policy::default(), firmware, |address| address != edu)?;
    let _ = rig.engine("edu").poke(buffer.iova(), Access::Write)?;
    assert_eq!((buffer.read(0, 4), rig.faults()), (b"POKE".to_vec(), vec![]));
    rig.assert_blocked("edu", Iova::new(buffer.iova().as_u64() + buffer.bytes()), Access::Write);
    Ok(())
}

pub(crate) fn direct_refuses_blocked(machine: &dyn Machine) -> TestResult {
    let (rig, _buffer) = with_direct_region(machine)?;
    let blocked = rig.iommu.blocked_domain().clone();
    let refused = Err(Error::Incompatible(IncompatibleReason::DirectRegion));
    assert_eq!(rig.iommu.replace(&blocked, &rig.group("edu")), refused);
    assert_eq!(rig.iommu.domain_of(&rig.group("edu")).kind(), DomainKind::Paging);
    Ok(())
}

/// Interrupt addresses are never translated on x86, so nothing can be mapped there.
pub(crate) fn interrupts(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let device = rig.device("edu");
    let msi = range(0xfee0_0000, 0x10_0000);
    let regions = device.reserved_regions()?;
    assert!(regions.iter().any(|region| region.kind == RegionKind::Msi && region.range == msi));
    let domain = rig.domain("edu")?;
    let buffer = machine.buffer(4096)?;
    for page in [0xfee0_0000, 0xfeef_f000] {
        assert!(matches!(map(&domain, page, &buffer, Prot::RW), Err(Error::OutsideWindow { .. })));
    }
    map(&domain, 0xfedf_f000, &buffer, Prot::RW)?;
    map(&domain, 0xfef0_0000, &buffer, Prot::RW)?;
    assert!(!rig.iommu.isolated_msi(device.group()?));
    Ok(())
}

/// On Arm interrupts are translated: the doorbell has a place of its own in each domain.
pub(crate) fn doorbell(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    // Any memory will do, and shows what arrives.
    let buffer = rig.pages(1)?;
    let address = rig.iommu.msi_address(&domain, &rig.device("edu"), phys(&buffer, 0x40))?;
    let _ = rig.engine("edu").poke(address, Access::Write)?;
    assert_eq!((buffer.read(0x40, 4), rig.faults()), (b"POKE".to_vec(), vec![]));
    let taken = map(&domain, address.align_down(rig.page()).as_u64(), &buffer, Prot::RW);
    assert!(matches!(taken, Err(Error::OutsideWindow { .. })), "{taken:?}");
    Ok(())
}
