//! What is refused, and what the record says of it.

use iommu::{Error, InvalidReason, Iova, Prot};
use iommu_harness::{Access, Machine, TestResult};

use crate::firmware::Refusal;
use crate::rig::{Rig, is_first_stage, map, range};

pub(crate) fn unmapped(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    for (iova, access) in [(0x2_0000, Access::Write), (0x3_0000, Access::Read)] {
        let expected = rig.refusal(&domain, access, Refusal::Absent)?;
        let fault = rig.assert_blocked("edu", Iova::new(iova), access);
        assert_eq!(((fault.kind, fault.reason), fault.pasid), (expected, None));
        assert_eq!(Some(fault.unit), machine.iommu_base());
    }
    Ok(())
}

pub(crate) fn read_only(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::READ)?;
    buffer.fill(0x77);
    // First the write: a unit may drop a write silently that hits a cached read-only entry.
    let fault = rig.assert_blocked("edu", Iova::new(0x10_0000), Access::Write);
    assert_eq!((fault.kind, fault.reason), rig.refusal(&domain, Access::Write, Refusal::Forbidden)?);
    assert_eq!(rig.engine("edu").dma_read(Iova::new(0x10_0000), 64)?, [0x77; 64]);
    assert!(buffer.is_filled(0x77));
    Ok(())
}

pub(crate) fn write_only(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    let mapped = map(&domain, 0x10_0000, &buffer, Prot::WRITE);
    if is_first_stage(&domain) {
        assert_eq!(mapped, Err(Error::Invalid(InvalidReason::Permission)), "what is present can be read");
        return Ok(());
    }
    mapped?;
    let fault = rig.assert_blocked("edu", Iova::new(0x10_0000), Access::Read);
    assert_eq!((fault.kind, fault.reason), rig.refusal(&domain, Access::Read, Refusal::Forbidden)?);
    let _ = rig.engine("edu").dma_write(Iova::new(0x10_0000), &[0x42; 64])?;
    assert_eq!(buffer.read(0, 64), [0x42; 64]);
    Ok(())
}

pub(crate) fn beyond_the_width(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let last = domain.geometry().expect("a paging domain has windows").last();
    let edge = last.checked_add(1).expect("fewer than 64 bits");
    let far = Iova::new(1 << 60 | 0x5000);
    let (kind, reason) = rig.refusal(&domain, Access::Write, Refusal::Beyond)?;
    let stage = domain.ops().stage().expect("a paging domain has a stage");
    for beyond in [edge, far] {
        let _ = rig.engine("edu").poke(beyond, Access::Write)?;
        let faults = rig.faults();
        if faults.is_empty()
            && machine.quirks().is_some_and(|quirks| quirks.smmu_loses_wide_addresses_of == Some(stage))
        {
            continue;
        }
        let [fault] = faults[..] else { panic!("one fault, not {faults:?}") };
        assert_eq!((fault.kind, fault.reason, fault.access), (kind, reason, iommu::Access::Write));
        assert!(beyond == edge || fault.iova == Some(rig.recorded(beyond)), "{fault}");
    }
    Ok(())
}

/// A transfer that leaves its mapping: the part inside arrives, the rest does not.
pub(crate) fn across_the_end(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(2)?;
    let (page, start) = (rig.page(), 0x10_0000);
    let inside = range(start, page);
    // SAFETY: the buffer outlives what the device does.
    unsafe { domain.map(inside, buffer.phys(), Prot::RW) }?;
    let _ = rig.engine("edu").dma_write(Iova::new(start + page - 0x100), &[0x55; 512])?;
    assert_eq!(buffer.read(page - 0x100, 256), [0x55; 256]);
    assert_eq!(buffer.read(page, 0x1000), [0; 0x1000]);
    assert!(rig.faults().iter().any(|fault| fault.iova == Some(Iova::new(start + page))));
    Ok(())
}

/// The unit has room for few records: each must be taken before the next one comes.
pub(crate) fn each_one_is_told(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let _domain = rig.attached("edu")?;
    for page in 0..8 {
        rig.assert_blocked("edu", Iova::new(0x10_0000 + page * 0x1000), Access::Write);
    }
    Ok(())
}

/// More than a unit has room for, where it tells of each access: that something was lost is told, and what
/// comes after it is not.
pub(crate) fn overflow(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    assert_eq!(rig.iommu.lost_faults().overflows, 0);
    // QEMU's device takes what it cannot fetch for a script, and goes on for a hundred instructions.
    let pokes = if machine.quirks().is_some() { 100 } else { 600 };
    for _ in 0..pokes {
        let _ = rig.engine("lsi").poke(Iova::new(0x10_0000), Access::Write)?;
    }
    assert!(!rig.faults().is_empty());
    assert_ne!(rig.iommu.lost_faults().overflows, 0);
    let _domain = rig.attached("edu")?;
    for page in 0..8 {
        rig.assert_blocked("edu", Iova::new(0x10_0000 + page * 0x1000), Access::Write);
    }
    assert_eq!(rig.iommu.lost_faults().overflows, 1);
    Ok(())
}
