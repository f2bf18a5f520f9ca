//! Device TLBs: what a device has cached is given up when its domain says so.

use std::sync::Arc;

use iommu::{AtsPolicy, Error, Iova, Policy, Prot};
use iommu_harness::runner::TestError;
use iommu_harness::{Access, DeviceTlb, Machine, TestResult, TlbAnswer};

use crate::rig::{Rig, map, unmap};

const HERE: Iova = Iova::new(0x10_0000);

fn rig(machine: &dyn Machine) -> Result<(Rig<'_>, Arc<DeviceTlb>), TestError> {
    let rig = Rig::with_policy(machine, Policy { ats: AtsPolicy::Trusted, ..Policy::default() })?;
    let tlb = rig.engine("edu").device_tlb().ok_or(TestError::failed("edu has no device TLB"))?;
    Ok((rig, tlb))
}

/// Without the caller's wish there is none.
pub(crate) fn off(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 256);
    let tlb = rig.engine("edu").device_tlb().ok_or(TestError::failed("edu has no device TLB"))?;
    assert_eq!((tlb.entries(), tlb.invalidations().len()), (0, 0));
    Ok(())
}

/// The device keeps translations; what is unmapped, or mapped anew, it does not use any more.
pub(crate) fn unmap_reaches_the_device(machine: &dyn Machine) -> TestResult {
    let (rig, tlb) = rig(machine)?;
    let domain = rig.attached("edu")?;
    let (first, second) = (machine.buffer(0x20_0000)?, machine.buffer(0x20_0000)?);
    for buffer in [&first, &second] {
        let mapped = map(&domain, 0x4000_0000, buffer, Prot::RW)?;
        for offset in [0, 0x7000, 0x1f_f000] {
            rig.assert_reaches("edu", Iova::new(0x4000_0000 + offset), buffer, offset, 64);
        }
        assert!(tlb.entries() > 0, "the device keeps what it was told");
        buffer.fill(0);
        let before = tlb.invalidations().len();
        unmap(&domain, mapped)?;
        assert!(tlb.invalidations().len() > before);
        for offset in [0, 0x7000, 0x1f_f000] {
            rig.assert_blocked("edu", Iova::new(0x4000_0000 + offset), Access::Write);
        }
        assert!(buffer.is_filled(0));
    }
    // A permission that is taken away.
    let mapped = map(&domain, 0x4000_0000, &first, Prot::RW)?;
    rig.assert_reaches("edu", Iova::new(0x4000_0000), &first, 0, 64);
    // SAFETY: the buffer is the test's.
    unsafe { domain.protect(mapped, Prot::READ) }?;
    rig.assert_blocked("edu", Iova::new(0x4000_0000), Access::Write);
    Ok(())
}

/// From domain to domain the device takes nothing along.
pub(crate) fn moving(machine: &dyn Machine) -> TestResult {
    let (rig, tlb) = rig(machine)?;
    let group = rig.group("edu");
    let (first, second) = (rig.pages(1)?, rig.pages(1)?);
    let (a, b) = (rig.domain("edu")?, rig.domain("edu")?);
    map(&a, 0x10_0000, &first, Prot::RW)?;
    map(&b, 0x10_0000, &second, Prot::RW)?;
    for _ in 0..3 {
        rig.iommu.replace(&a, &group)?;
        rig.assert_reaches("edu", HERE, &first, 0, 128);
        rig.iommu.replace(&b, &group)?;
        rig.assert_reaches("edu", HERE, &second, 0, 128);
        assert!(tlb.entries() > 0);
    }
    rig.iommu.replace(&rig.iommu.blocked_domain().clone(), &group)?;
    second.fill(0);
    rig.assert_no_domain("edu", HERE, Access::Write);
    assert!(second.is_filled(0));
    assert_eq!(tlb.entries(), 0);
    rig.iommu.replace(&a, &group)?;
    rig.assert_reaches("edu", HERE, &first, 0, 128);
    Ok(())
}

/// A device that keeps what it was told to drop reaches nothing any more; another one goes on.
pub(crate) fn no_answer(machine: &dyn Machine) -> TestResult {
    let (rig, tlb) = rig(machine)?;
    let (domain, others) = (rig.attached("edu")?, rig.attached("alone")?);
    let (mine, theirs) = (rig.pages(1)?, rig.pages(1)?);
    let mapped = map(&domain, 0x10_0000, &mine, Prot::RW)?;
    let lent = map(&others, 0x10_0000, &theirs, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &mine, 0, 64);
    rig.assert_reaches("alone", HERE, &theirs, 0, 64);
    tlb.set_answer(TlbAnswer::None);
    mine.fill(0);
    assert!(matches!(unmap(&domain, mapped), Err(Error::Invalidation { .. })), "nobody knows what edu does");
    assert!(tlb.entries() > 0);
    let _ = rig.engine("edu").poke(HERE, Access::Write)?;
    assert!(mine.is_filled(0), "what edu has kept is of no use");
    let _ = rig.faults();
    rig.assert_reaches("alone", HERE, &theirs, 0, 64);
    unmap(&others, lent)?;
    rig.assert_blocked("alone", HERE, Access::Write);
    // Once it answers, and the unit starts anew, all is as before.
    tlb.set_answer(TlbAnswer::Done);
    rig.iommu.suspend()?;
    rig.iommu.resume()?;
    let again = rig.pages(1)?;
    map(&domain, 0x20_0000, &again, Prot::RW)?;
    rig.assert_reaches("edu", Iova::new(0x20_0000), &again, 0, 64);
    Ok(())
}

/// The device TLB is off while the unit is, and on again afterwards.
pub(crate) fn power(machine: &dyn Machine) -> TestResult {
    let (rig, tlb) = rig(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 64);
    rig.iommu.suspend()?;
    rig.iommu.resume()?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 64);
    assert!(tlb.entries() > 0);
    rig.iommu.shutdown()?;
    let _ = rig.engine("edu").poke(buffer.iova(), Access::Write)?;
    assert_eq!(buffer.read(0, 4), *b"POKE", "without translation the device reaches everything");
    Ok(())
}
