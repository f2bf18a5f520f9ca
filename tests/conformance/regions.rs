//! Reserved regions.

use iommu::{DomainKind, Error, IncompatibleReason, Iova, Policy, Prot, RegionKind};
use iommu_harness::{Access, Buffer, Machine, TestResult};

use crate::rig::{Rig, map, range};

/// The machine's DMAR table with one more RMRR: `buffer`, for the device called `name`.
fn with_direct_region(machine: &dyn Machine, name: &str, buffer: &Buffer) -> Result<Vec<u8>, iommu_harness::Error> {
    let mut table = machine.acpi_table(b"DMAR")?;
    let address = machine.device(name).address();
    assert_eq!(address.bus(), 0);
    // VT-d 8.4: type 1, length 32, segment 0, base, last, then one endpoint scope of 8 bytes.
    table.extend([1, 0, 32, 0, 0, 0, 0, 0]);
    table.extend(buffer.range().start().as_u64().to_le_bytes());
    table.extend(buffer.range().last().as_u64().to_le_bytes());
    table.extend([1, 8, 0, 0, 0, 0, address.device(), address.function()]);
    let bytes = u32::try_from(table.len()).expect("a small table");
    table[4..8].copy_from_slice(&bytes.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    Ok(table)
}

/// Reachable from the start, in every domain, before and after a change.
pub(crate) fn direct(machine: &dyn Machine) -> TestResult {
    let buffer = machine.buffer(0x2000)?;
    let dmar = with_direct_region(machine, "edu", &buffer)?;
    let rig = Rig::boot(machine, Policy::default(), &dmar, |_| true)?;
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
    rig.assert_blocked("edu", Iova::new(there.as_u64() + 0x2000), Access::Write);
    Ok(())
}

pub(crate) fn direct_refuses_blocked(machine: &dyn Machine) -> TestResult {
    let buffer = machine.buffer(0x1000)?;
    let dmar = with_direct_region(machine, "edu", &buffer)?;
    let rig = Rig::boot(machine, Policy::default(), &dmar, |_| true)?;
    let blocked = rig.iommu.blocked_domain().clone();
    let refused = Err(Error::Incompatible(IncompatibleReason::DirectRegion));
    assert_eq!(rig.iommu.replace(&blocked, &rig.group("edu")), refused);
    assert_eq!(rig.iommu.domain_of(&rig.group("edu")).kind(), DomainKind::Paging);
    Ok(())
}

/// Interrupt addresses are never translated, so nothing can be mapped there.
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
