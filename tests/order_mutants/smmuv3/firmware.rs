//! What firmware says of the machine (IORT, DEN 0049).

use iommu::bus::Snoop;

use crate::common::bench::{BASE, FIRST};
use crate::common::scenarios::RESERVED;

/// Where the SMMUv3's node is.
const UNIT: u32 = 48;

/// One unit, before a PCI host of segment 0 whose requester ids are StreamIDs and which passes ATS on; and a
/// reserved page of the first function.
pub(super) fn iort(snoops: Snoop) -> Vec<u8> {
    let mut nodes = Vec::new();
    // An SMMUv3 of revision 0: 60 bytes, no mapping.
    node(&mut nodes, 4, 0, 60, [0, 0]);
    long(&mut nodes, BASE);
    words(&mut nodes, &[u32::from(snoops == Snoop::Yes), 0, 0, 0, 0, 0, 0, 0, 0]);
    // A PCI host of revision 0: all ids in one mapping at 32.
    node(&mut nodes, 2, 0, 52, [1, 32]);
    words(&mut nodes, &[1, 3 << 24, 1, 0]);
    words(&mut nodes, &[0, 0xffff, 0, UNIT, 0]);
    // Reserved memory of revision 3, write-back: one range at 28, one mapping, of a single id, at 48.
    node(&mut nodes, 6, 3, 68, [1, 48]);
    words(&mut nodes, &[5 << 2, 1, 28]);
    long(&mut nodes, RESERVED);
    long(&mut nodes, 0x1000);
    words(&mut nodes, &[0, 0, 0, u32::from(FIRST), UNIT, 1]);
    let mut table = b"IORT".to_vec();
    words(&mut table, &[48 + nodes.len() as u32]);
    table.extend([6, 0]);
    table.extend(*b"HANDMDMUTANTS ");
    words(&mut table, &[1, 0, 1, 3, 48, 0]);
    table.extend(nodes);
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

/// Type, length, revision, identifier, mappings and where they are.
fn node(table: &mut Vec<u8>, kind: u8, revision: u8, bytes: u16, mappings: [u32; 2]) {
    table.push(kind);
    table.extend(bytes.to_le_bytes());
    table.push(revision);
    let id = table.len() as u32;
    words(table, &[id, mappings[0], mappings[1]]);
}

fn words(table: &mut Vec<u8>, words: &[u32]) {
    table.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn long(table: &mut Vec<u8>, value: u64) {
    table.extend(value.to_le_bytes());
}
