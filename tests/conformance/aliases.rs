//! Devices behind bridges: who the IOMMU takes them for, and who shares a group.

use iommu::{Error, InvalidReason, Iova, Prot};
use iommu_harness::{Access, Machine, TestResult};

use crate::rig::{Rig, map};

const HERE: Iova = Iova::new(0x10_0000);

/// Behind a root port a device is itself.
pub(crate) fn root_port(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let engine = rig.engine("edu");
    assert_eq!(engine.requester(), engine.address().source_id());
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 256);
    rig.assert_blocked("edu", Iova::new(0x20_0000), Access::Write);
    rig.assert_blocked("alone", HERE, Access::Write);
    Ok(())
}

/// Behind a conventional bus devices are seen as the bridge, or as its secondary bus: one group.
pub(crate) fn shared_alias(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let (edu, other) = (rig.device("edu"), rig.device("other"));
    assert!(edu.sources().contains(&rig.engine("edu").requester()));
    assert_eq!(edu.group()?, other.group()?);
    assert_ne!(edu.group()?, rig.device("alone").group()?);
    assert_eq!(rig.iommu.attach_device(&rig.domain("edu")?, &edu), Err(Error::Invalid(InvalidReason::SharedGroup)));
    let domain = rig.attached("edu")?;
    rig.map_workspace(&domain, "other")?;
    let buffer = rig.pages(1)?;
    map(&domain, 0x10_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", HERE, &buffer, 0, 256);
    rig.assert_reaches("other", HERE, &buffer, 0, 256);
    // One leaves: the alias stays for the other.
    rig.iommu.release_device(&edu)?;
    rig.assert_reaches("other", HERE, &buffer, 0, 256);
    rig.iommu.release_device(&other)?;
    // A conventional bridge sends under the same id.
    for member in rig.iommu.members(other.group()?).collect::<Vec<_>>() {
        rig.iommu.release_device(&member)?;
    }
    buffer.fill(0);
    rig.assert_no_domain("other", HERE, Access::Write);
    assert!(buffer.is_filled(0));
    Ok(())
}

/// Every function of the machine is accounted for: covered, or in the report.
pub(crate) fn report(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    assert_eq!(rig.iommu.devices().count(), machine.functions().len());
    for device in rig.iommu.devices() {
        let reported = rig.iommu.uncovered().any(|uncovered| uncovered == device);
        assert_eq!(device.unit().is_err(), reported, "{device:?}");
    }
    Ok(())
}
