//! Tables written by hand for the tests, field by field. Their length, checksum and node count fields
//! are zero; [`finish`] fills them in.

extern crate std;

use std::vec::Vec;

/// The table with its length, its node count and its checksum in place.
pub(crate) fn finish(nodes: &[&[u8]]) -> Vec<u8> {
    let mut table = HEADER.to_vec();
    table.extend(nodes.concat());
    let length = (table.len() as u32).to_le_bytes();
    table[4..8].copy_from_slice(&length);
    table[36..40].copy_from_slice(&(nodes.len() as u32).to_le_bytes());
    fix_checksum(&mut table);
    table
}

/// Makes the bytes add up to zero again after a change.
pub(crate) fn fix_checksum(table: &mut [u8]) {
    table[9] = 0;
    table[9] = table.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
}

#[rustfmt::skip]
pub(crate) const HEADER: &[u8] = &[
    b'I', b'O', b'R', b'T', // signature
    0, 0, 0, 0, // length
    6, // revision
    0, // checksum
    b'H', b'A', b'N', b'D', b'M', b'D', // OEM id
    b'S', b'A', b'M', b'P', b'L', b'E', b' ', b' ', // OEM table id
    1, 0, 0, 0, // OEM revision
    b'T', b'E', b'S', b'T', // creator id
    1, 0, 0, 0, // creator revision
    0, 0, 0, 0, // node count
    48, 0, 0, 0, // node offset
    0, 0, 0, 0, // reserved
];

/// Where the nodes of [`everything`] begin.
pub(crate) const ITS_AT: u32 = 48;
pub(crate) const SMMU_AT: u32 = ITS_AT + 28;
pub(crate) const SMALL_SMMU_AT: u32 = SMMU_AT + 108;
pub(crate) const OLD_SMMU_AT: u32 = SMALL_SMMU_AT + 60;
pub(crate) const HOST_AT: u32 = OLD_SMMU_AT + 80;
pub(crate) const PLAIN_HOST_AT: u32 = HOST_AT + 100;
pub(crate) const ETHERNET_AT: u32 = PLAIN_HOST_AT + 56;
pub(crate) const BUS_AT: u32 = ETHERNET_AT + 80;
pub(crate) const PMCG_AT: u32 = BUS_AT + 60;
pub(crate) const RMR_AT: u32 = PMCG_AT + 60;
pub(crate) const FUTURE_AT: u32 = RMR_AT + 108;

/// Two services, numbers 4 and 5.
#[rustfmt::skip]
pub(crate) const ITS: &[u8] = &[
    0, 28, 0, 1, // type ITS group, length, revision
    0, 0, 0, 0, // identifier
    0, 0, 0, 0, 0, 0, 0, 0, // no mapping
    2, 0, 0, 0, // services
    4, 0, 0, 0, 5, 0, 0, 0,
];

/// The SMMUv3 at 0x9050000, coherent, with a mapping for its own MSIs.
#[rustfmt::skip]
pub(crate) const SMMU: &[u8] = &[
    4, 108, 0, 5, // type SMMUv3, length, revision
    1, 0, 0, 0, // identifier
    2, 0, 0, 0, 68, 0, 0, 0, // two mappings
    0, 0, 5, 9, 0, 0, 0, 0, // registers
    0b11011, 0, 0, 0, // flags: COHACC, HTTU access flag, proximity valid, DeviceID valid
    0, 0, 0, 0, // reserved
    0, 0, 0, 0, 0, 0, 0, 0, // VATOS
    0, 0, 0, 0, // model
    106, 0, 0, 0, 0, 0, 0, 0, 109, 0, 0, 0, 108, 0, 0, 0, // event, PRI, gerror, sync
    3, 0, 0, 0, // proximity domain
    1, 0, 0, 0, // mapping of its own MSIs
    // StreamIDs 0 to 0xffff to DeviceIDs 0x10000 to 0x1ffff
    0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 1, 0, ITS_AT as u8, 0, 0, 0, 0, 0, 0, 0,
    // its own MSIs have DeviceID 0x20007
    0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 2, 0, ITS_AT as u8, 0, 0, 0, 1, 0, 0, 0,
];

/// An SMMUv3 of revision 0, at 0x2b400000, of Hi161x.
#[rustfmt::skip]
pub(crate) const SMALL_SMMU: &[u8] = &[
    4, 60, 0, 0, // type SMMUv3, length, revision
    0, 0, 0, 0, // reserved
    0, 0, 0, 0, 0, 0, 0, 0, // no mapping
    0, 0, 0x40, 0x2b, 0, 0, 0, 0, // registers
    0, 0, 0, 0, // flags
    0, 0, 0, 0, // reserved
    0, 0, 0, 0, 0, 0, 0, 0, // VATOS
    1, 0, 0, 0, // model
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // event, PRI, gerror, sync
];

/// An SMMUv2 with 16 KiB of registers at 0x5000000, and its interrupts.
#[rustfmt::skip]
pub(crate) const OLD_SMMU: &[u8] = &[
    3, 80, 0, 3, // type SMMU, length, revision
    2, 0, 0, 0, // identifier
    0, 0, 0, 0, 0, 0, 0, 0, // no mapping
    0, 0, 0, 5, 0, 0, 0, 0, // registers
    0, 0x40, 0, 0, 0, 0, 0, 0, // span
    3, 0, 0, 0, // model MMU-500
    2, 0, 0, 0, // flags: coherent walk
    60, 0, 0, 0, // global interrupts
    0, 0, 0, 0, 0, 0, 0, 0, // no context interrupt
    0, 0, 0, 0, 0, 0, 0, 0, // no PMU interrupt
    64, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // global interrupts: 64, level
    0, 0, 0, 0,
];

/// PCI segment 0: buses 0 to 0x7f at the SMMU from StreamID 0x1000 on, buses 0x80 to 0xbf at the small
/// one, the rest past all SMMUs.
#[rustfmt::skip]
pub(crate) const HOST: &[u8] = &[
    2, 100, 0, 4, // type root complex, length, revision
    3, 0, 0, 0, // identifier
    3, 0, 0, 0, 40, 0, 0, 0, // three mappings
    1, 0, 0, 0, 0, 0, 0, 3, // memory: CCA, hints, reserved, CPM and DACS
    0b101, 0, 0, 0, // ATS: supported, PASIDs are passed on
    0, 0, 0, 0, // segment
    48, // address bits
    16, 0, // PASID bits
    0, // reserved
    1, 0, 0, 0, // flags: PASID supported
    // 0x80 to 0xbf; one too many, for 0xc000 is the first of the next
    0x00, 0x80, 0, 0, 0x00, 0x40, 0, 0, 0x00, 0x80, 0, 0, SMALL_SMMU_AT as u8, (SMALL_SMMU_AT >> 8) as u8, 0, 0, 0, 0, 0, 0,
    0x00, 0xc0, 0, 0, 0xff, 0x3f, 0, 0, 0x00, 0xc0, 0, 0, ITS_AT as u8, 0, 0, 0, 0, 0, 0, 0,
    0x00, 0x00, 0, 0, 0xff, 0x7f, 0, 0, 0x00, 0x10, 0, 0, SMMU_AT as u8, 0, 0, 0, 0, 0, 0, 0,
];

/// PCI segment 7, all of whose functions have one StreamID, 0x99; of revision 1.
#[rustfmt::skip]
pub(crate) const PLAIN_HOST: &[u8] = &[
    2, 56, 0, 1, // type root complex, length, revision
    0, 0, 0, 0, // reserved
    1, 0, 0, 0, 36, 0, 0, 0, // one mapping
    0, 0, 0, 0, 0, 0, 0, 0, // memory
    0, 0, 0, 0, // no ATS
    7, 0, 0, 0, // segment
    0, 0, 0, 0, // address bits, reserved
    0, 0, 0, 0, 0, 0, 0, 0, 0x99, 0, 0, 0, SMMU_AT as u8, 0, 0, 0, 1, 0, 0, 0,
];

/// \_SB.E0, which may stall and sends PASIDs of 8 bits; StreamIDs 0x40 and, at the small SMMU, 5.
#[rustfmt::skip]
pub(crate) const ETHERNET: &[u8] = &[
    1, 80, 0, 4, // type named component, length, revision
    4, 0, 0, 0, // identifier
    2, 0, 0, 0, 40, 0, 0, 0, // two mappings
    0b10001, 0, 0, 0, // flags: stall, 8 bits of PASID
    0, 0, 0, 0, 0, 0, 0, 1, // memory: not coherent, CPM
    40, // address bits
    b'\\', b'_', b'S', b'B', b'.', b'E', b'0', 0, // name
    0, 0, 0, // padding
    0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, SMMU_AT as u8, 0, 0, 0, 1, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, SMALL_SMMU_AT as u8, (SMALL_SMMU_AT >> 8) as u8, 0, 0, 1, 0, 0, 0,
];

/// \_SB.MC, a bus that passes ids 1 to 0x40 on.
#[rustfmt::skip]
pub(crate) const BUS: &[u8] = &[
    1, 60, 0, 2, // type named component, length, revision
    5, 0, 0, 0, // identifier
    1, 0, 0, 0, 40, 0, 0, 0, // one mapping
    0, 0, 0, 0, // flags
    1, 0, 0, 0, 0, 0, 0, 3, // memory
    0, // address bits
    b'\\', b'_', b'S', b'B', b'.', b'M', b'C', 0, // name
    0, 0, 0, // padding
    1, 0, 0, 0, 0x3f, 0, 0, 0, 1, 0x40, 0, 0, SMMU_AT as u8, 0, 0, 0, 0, 0, 0, 0,
];

/// Counters of the SMMU, at 0x9070000, with MSIs of their own.
#[rustfmt::skip]
pub(crate) const PMCG: &[u8] = &[
    5, 60, 0, 1, // type PMCG, length, revision
    6, 0, 0, 0, // identifier
    1, 0, 0, 0, 40, 0, 0, 0, // one mapping
    0, 0, 7, 9, 0, 0, 0, 0, // registers
    0, 0, 0, 0, // no wired interrupt
    SMMU_AT as u8, 0, 0, 0, // counts for the SMMU
    0, 0, 8, 9, 0, 0, 0, 0, // registers, page 1
    0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 2, 0, ITS_AT as u8, 0, 0, 0, 1, 0, 0, 0,
];

/// Memory for StreamIDs 0x1010 and 0x1011, and 0x40, of the SMMU: two ranges, write-back, privileged.
#[rustfmt::skip]
pub(crate) const RMR: &[u8] = &[
    6, 108, 0, 3, // type RMR, length, revision
    7, 0, 0, 0, // identifier
    2, 0, 0, 0, 28, 0, 0, 0, // two mappings
    0b10110, 0, 0, 0, // flags: privileged, write-back
    2, 0, 0, 0, 68, 0, 0, 0, // two ranges
    0, 0, 0, 0, 1, 0, 0, 0, 0x10, 0x10, 0, 0, SMMU_AT as u8, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, SMMU_AT as u8, 0, 0, 0, 1, 0, 0, 0,
    0, 0, 0, 0x90, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 64 KiB at 0x90000000
    0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 4 KiB at 0x80000000
];

/// A node of the future.
#[rustfmt::skip]
pub(crate) const FUTURE: &[u8] = &[
    7, 19, 0, 0, // unknown type, odd length
    8, 0, 0, 0, // identifier
    9, 0, 0, 0, 9, 0, 0, 0, // what would be mappings
    1, 2, 3,
];

/// Everything that a table can hold.
pub(crate) fn everything() -> Vec<u8> {
    finish(EVERYTHING)
}

pub(crate) const EVERYTHING: &[&[u8]] =
    &[ITS, SMMU, SMALL_SMMU, OLD_SMMU, HOST, PLAIN_HOST, ETHERNET, BUS, PMCG, RMR, FUTURE];
