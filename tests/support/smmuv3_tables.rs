//! An IORT in bytes (DEN 0049), and stream tables as a unit reads them.

use iommu::arch::smmuv3::layout::registers::{StreamTableFormat, StrtabBase, StrtabBaseCfg};
use iommu::arch::smmuv3::layout::{Cd, L1Std, Ste, StreamId};

use crate::hardware::Machine;

/// Requester ids and their StreamIDs: first id, how many, StreamID of the first.
pub(crate) type Mapping = (u32, u32, u32);

/// Whether a PCI host passes ATS on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    Plain,
    WithAts,
}

/// A memory range that streams use on firmware's behalf: first byte, bytes, StreamID.
pub(crate) type Reserved = (u64, u64, u32);

/// A table with one SMMUv3, coherent or not, a PCI host, and reserved memory.
pub(crate) fn iort(coherent: u32, host: Host, mappings: &[Mapping], reserved: &[Reserved]) -> Vec<u8> {
    const UNIT: u32 = 48;
    let mut nodes = Vec::new();
    // An SMMUv3 of revision 0: 60 bytes, no mapping.
    node(&mut nodes, 4, 0, 60, 0, 0);
    long(&mut nodes, 0x0905_0000);
    words(&mut nodes, &[coherent, 0, 0, 0, 0, 0, 0, 0, 0]);
    // A PCI host of revision 0, segment 0, and its mappings.
    node(&mut nodes, 2, 0, 32 + 20 * mappings.len(), mappings.len(), 32);
    words(&mut nodes, &[1, 3 << 24, u32::from(host == Host::WithAts), 0]);
    for (first, count, stream) in mappings {
        words(&mut nodes, &[*first, count - 1, *stream, UNIT, 0]);
    }
    for (start, bytes, stream) in reserved {
        // Reserved memory of revision 3, write-back: one range at 28, one mapping at 48.
        node(&mut nodes, 6, 3, 68, 1, 48);
        words(&mut nodes, &[5 << 2, 1, 28]);
        long(&mut nodes, *start);
        long(&mut nodes, *bytes);
        words(&mut nodes, &[0, 0, 0, *stream, UNIT, 1]);
    }
    let mut table = b"IORT".to_vec();
    words(&mut table, &[48 + nodes.len() as u32]);
    table.extend([6, 0]);
    table.extend(*b"HANDMDSAMPLE  ");
    words(&mut table, &[1, 0, 1, 2 + reserved.len() as u32, 48, 0]);
    table.extend(nodes);
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

/// Type, length, revision, identifier, mappings and where they are.
fn node(table: &mut Vec<u8>, kind: u8, revision: u8, bytes: usize, mappings: usize, at: u32) {
    table.push(kind);
    table.extend((bytes as u16).to_le_bytes());
    table.push(revision);
    words(table, &[table.len() as u32, mappings as u32, at]);
}

fn words(table: &mut Vec<u8>, words: &[u32]) {
    table.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn long(table: &mut Vec<u8>, value: u64) {
    table.extend(value.to_le_bytes());
}

/// The entry that the unit finds for a stream, in what is visible to it (SMMU 3.3.1).
pub(crate) fn entry(machine: &Machine, stream: StreamId) -> Option<Ste> {
    let (base, cfg) = {
        let hardware = machine.hardware();
        (StrtabBase(hardware.stream_table).address().as_u64(), StrtabBaseCfg(hardware.stream_table_cfg))
    };
    assert!(u64::from(stream.0) >> cfg.log2_size() == 0);
    let table = match cfg.format() {
        StreamTableFormat::Linear => base + u64::from(stream.0) * 64,
        StreamTableFormat::TwoLevel { split } => {
            let descriptor = L1Std(machine.visible(base + u64::from(stream.0 >> split) * 8));
            assert_eq!(descriptor.entries_log2()?, split);
            descriptor.table().as_u64() + u64::from(stream.0 & ((1 << split) - 1)) * 64
        }
    };
    Some(Ste { words: core::array::from_fn(|word| machine.visible(table + word as u64 * 8)) })
}

/// The descriptor that an entry leads to.
pub(crate) fn descriptor(machine: &Machine, entry: Ste) -> Cd {
    let table = entry.cd_table().as_u64();
    Cd { words: core::array::from_fn(|word| machine.visible(table + word as u64 * 8)) }
}
