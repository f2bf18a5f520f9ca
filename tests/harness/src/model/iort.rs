//! The IORT of the machine (DEN 0049 E.f), byte by byte.

use iommu::PhysAddr;
use iommu::arch::smmuv3::layout::Identification;
use iommu::arch::smmuv3::layout::identification::Idr0;

use super::arm_options::Reserved;

/// Where the nodes are: that of the ITS, of the SMMUv3 and of the root complex.
const ITS_AT: u32 = 48;
const SMMU_AT: u32 = ITS_AT + 24;

/// The table of a machine with one unit at `base`, whose wires have the interrupts from `interrupt` on: events, page
/// requests, CMD_SYNC, global errors.
pub(super) fn iort(unit: &Identification, base: PhysAddr, interrupt: u32, reserved: Option<&Reserved>) -> Vec<u8> {
    let (coherent, ats) = (unit.idr0().contains(Idr0::COHACC), unit.idr0().contains(Idr0::ATS));
    let mut table = b"IORT\0\0\0\0\x06\0IOMMU MODEL   ".to_vec();
    // OEM revision, creator and its revision.
    table.extend([1, 0, 0, 0, b'T', b'E', b'S', b'T', 1, 0, 0, 0]);
    put(&mut table, &[3 + u32::from(reserved.is_some()), ITS_AT, 0]);
    // 3.1.1.1: type 0, length 24, revision 1; identifier, no mapping, one service: number 0.
    table.extend([0, 24, 0, 1]);
    put(&mut table, &[0, 0, 0, 1, 0]);
    // 3.1.1.2: type 4, length 88, revision 4; identifier, one mapping at 68.
    table.extend([4, 88, 0, 4]);
    put(&mut table, &[1, 1, 68]);
    table.extend(base.as_u64().to_le_bytes());
    // COHACC override; reserved; VATOS; generic model.
    put(&mut table, &[u32::from(coherent), 0, 0, 0, 0]);
    // Events, page requests, global errors, CMD_SYNC; proximity domain, DeviceID mapping.
    put(&mut table, &[interrupt, interrupt + 1, interrupt + 3, interrupt + 2, 0, 0]);
    mapping(&mut table, 0, 0xffff, ITS_AT, 0);
    // 3.1.1.4: type 2, length 60, revision 4; identifier, one mapping at 40; coherent memory, as devices see it.
    table.extend([2, 60, 0, 4]);
    put(&mut table, &[2, 1, 40, 1]);
    table.extend([0, 0, 0, 3]);
    // ATS; segment; 64 bits of address, no PASIDs; flags.
    put(&mut table, &[u32::from(ats), 0, 64, 0]);
    mapping(&mut table, 0, 0xffff, SMMU_AT, 0);
    if let Some(Reserved { first, count, range }) = reserved {
        // 3.1.1.5: type 6, length 68, revision 3; identifier, one mapping at 28; write-back memory; one range at 48.
        table.extend([6, 68, 0, 3]);
        put(&mut table, &[3, 1, 28, 5 << 2, 1, 48]);
        mapping(&mut table, *first, count.saturating_sub(1), SMMU_AT, 0);
        table.extend(range.start().as_u64().to_le_bytes());
        table.extend(range.bytes().unwrap_or(0).to_le_bytes());
        put(&mut table, &[0]);
    }
    let bytes = table.len() as u32;
    table[4..8].copy_from_slice(&bytes.to_le_bytes());
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    table
}

/// Ids from `first` on, as many as there are behind it, are the same at the node at `target`.
fn mapping(table: &mut Vec<u8>, first: u32, more: u32, target: u32, flags: u32) {
    put(table, &[first, more, first, target, flags]);
}

fn put(table: &mut Vec<u8>, words: &[u32]) {
    table.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use iommu::arch::smmuv3::firmware::iort::{Iort, NodeKind};
    use iommu::arch::smmuv3::layout::Identification;
    use iommu::{PhysAddr, PhysRange};

    use super::iort;
    use crate::model::arm_options::Reserved;

    #[test]
    fn it_parses() {
        let unit = Identification { idr0: 1 << 4, ..Identification::default() };
        let range = PhysRange::from_len(PhysAddr::new(0x4800_0000), 0x1_0000).unwrap();
        let reserved = Reserved { first: 8, count: 8, range };
        for reserved in [None, Some(&reserved)] {
            let table = iort(&unit, PhysAddr::new(0x905_0000), 106, reserved);
            let parsed = Iort::parse(&table).unwrap();
            assert_eq!(parsed.nodes().count(), 3 + usize::from(reserved.is_some()));
            for node in parsed.nodes() {
                match node.kind {
                    NodeKind::SmmuV3(smmu) => {
                        assert_eq!((smmu.base, smmu.event), (PhysAddr::new(0x905_0000), 106));
                        assert_eq!((smmu.pri, smmu.sync, smmu.gerror), (107, 108, 109));
                    }
                    NodeKind::Rmr(rmr) => assert_eq!(rmr.ranges().collect::<Vec<_>>(), [range]),
                    _ => {}
                }
            }
        }
    }
}
