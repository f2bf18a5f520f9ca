//! The DMAR table of the machine (VT-d 8.1), byte by byte.

use iommu::PhysAddr;
use iommu::arch::vtd::device::DeviceConfig;
use iommu::arch::vtd::layout::Ecap;

/// DRHD: every device of the segment that no other unit names.
const INCLUDE_PCI_ALL: u8 = 1;
/// ATSR: every root port forwards translated requests.
const ALL_PORTS: u8 = 1;

/// The table of a machine with one unit at `base`.
pub(super) fn dmar(config: &DeviceConfig, base: PhysAddr) -> Vec<u8> {
    let mut table = b"DMAR\0\0\0\0\x01\0IOMMU MODEL   ".to_vec();
    // OEM revision, creator and its revision.
    table.extend([1, 0, 0, 0, b'T', b'E', b'S', b'T', 1, 0, 0, 0]);
    // Host address width less one; flags; reserved.
    table.extend([config.host_address_bits - 1, 0]);
    table.extend([0; 10]);
    // 8.3: type 0, length 16, flags, size, segment.
    table.extend([0, 0, 16, 0, INCLUDE_PCI_ALL, 0, 0, 0]);
    table.extend(base.as_u64().to_le_bytes());
    if config.ecap.contains(Ecap::DT) {
        // 8.5: type 2, length 8, flags, reserved, segment.
        table.extend([2, 0, 8, 0, ALL_PORTS, 0, 0, 0]);
    }
    let bytes = table.len() as u32;
    table[4..8].copy_from_slice(&bytes.to_le_bytes());
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    table
}

#[cfg(test)]
mod tests {
    use iommu::PhysAddr;
    use iommu::arch::vtd::device::DeviceConfig;
    use iommu::arch::vtd::dmar::Dmar;
    use iommu::arch::vtd::layout::Ecap;

    use super::dmar;

    #[test]
    fn it_parses() {
        let mut config = DeviceConfig { host_address_bits: 46, ..DeviceConfig::default() };
        let base = PhysAddr::new(0xfed9_0000);
        let table = dmar(&config, base);
        let parsed = Dmar::parse(&table).unwrap();
        let units: Vec<_> = parsed.units().collect();
        assert_eq!(units.len(), 1);
        assert_eq!(units[0].registers.start(), base);
        assert_eq!(parsed.structures().count(), 1);
        config.ecap |= Ecap::DT;
        assert_eq!(Dmar::parse(&dmar(&config, base)).unwrap().structures().count(), 2);
    }
}
