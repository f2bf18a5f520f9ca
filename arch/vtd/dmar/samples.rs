//! Tables written by hand for the tests, field by field. Their length and checksum fields are
//! zero; [`finish`] fills them in.

extern crate std;

use std::vec::Vec;

/// The table with its length and its checksum in place.
pub(super) fn finish(parts: &[&[u8]]) -> Vec<u8> {
    let mut table = parts.concat();
    let length = (table.len() as u32).to_le_bytes();
    table[4..8].copy_from_slice(&length);
    fix_checksum(&mut table);
    table
}

/// Makes the bytes add up to zero again after a change.
pub(super) fn fix_checksum(table: &mut [u8]) {
    table[9] = 0;
    table[9] = table.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
}

#[rustfmt::skip]
pub(super) const HEADER: &[u8] = &[
    b'D', b'M', b'A', b'R', // signature
    0, 0, 0, 0, // length
    1, // revision
    0, // checksum
    b'H', b'A', b'N', b'D', b'M', b'D', // OEM id
    b'S', b'A', b'M', b'P', b'L', b'E', b' ', b' ', // OEM table id
    1, 0, 0, 0, // OEM revision
    b'T', b'E', b'S', b'T', // creator id
    1, 0, 0, 0, // creator revision
    45, // host address width: 46 bits
    0b101, // flags: INTR_REMAP, DMA_CTRL_PLATFORM_OPT_IN_FLAG
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // reserved
];

/// A unit for one endpoint: graphics at 00:02.0.
#[rustfmt::skip]
pub(super) const DRHD_GRAPHICS: &[u8] = &[
    0, 0, 24, 0, // type DRHD, length
    0, // flags
    0, // size: one page
    0, 0, // segment
    0x00, 0x00, 0xd9, 0xfe, 0, 0, 0, 0, // registers at 0xfed90000
    // endpoint, length, flags, reserved, enumeration id, start bus, path
    1, 8, 0, 0, 0, 0, 2, 0,
];

/// A unit for the root port 00:1c.4 and what is below it.
#[rustfmt::skip]
pub(super) const DRHD_HIERARCHY: &[u8] = &[
    0, 0, 24, 0, // type DRHD, length
    0, // flags
    1, // size: two pages
    0, 0, // segment
    0x00, 0x20, 0xd9, 0xfe, 0, 0, 0, 0, // registers at 0xfed92000
    2, 8, 0, 0, 0, 0, 0x1c, 4, // bridge 00:1c.4
];

/// A unit for one endpoint *inside* that hierarchy: 00:1c.4, then device 1 on its bus, then 00.0.
#[rustfmt::skip]
pub(super) const DRHD_DEEP: &[u8] = &[
    0, 0, 28, 0, // type DRHD, length
    0, // flags
    0, // size
    0, 0, // segment
    0x00, 0x40, 0xd9, 0xfe, 0, 0, 0, 0, // registers at 0xfed94000
    1, 12, 0, 0, 0, 0, 0x1c, 4, 1, 0, 0, 0, // endpoint 00:1c.4/01.0/00.0
];

/// The unit for everything else in segment 0, an I/O APIC, an HPET block and an ACPI device.
#[rustfmt::skip]
pub(super) const DRHD_ALL: &[u8] = &[
    0, 0, 40, 0, // type DRHD, length
    1, // flags: INCLUDE_PCI_ALL
    0, // size
    0, 0, // segment
    0x00, 0x10, 0xd9, 0xfe, 0, 0, 0, 0, // registers at 0xfed91000
    3, 8, 0, 0, 2, 0xf0, 0x1f, 0, // I/O APIC 2, source id f0:1f.0
    4, 8, 0, 0, 0, 0, 0x1f, 0, // HPET 0, source id 00:1f.0
    5, 8, 0, 0, 7, 0, 0x1e, 2, // ACPI device 7, source id 00:1e.2
];

/// The unit for everything in segment 1.
#[rustfmt::skip]
pub(super) const DRHD_SEGMENT_1: &[u8] = &[
    0, 0, 16, 0, // type DRHD, length
    1, // flags: INCLUDE_PCI_ALL
    0, // size
    1, 0, // segment
    0x00, 0x00, 0x00, 0xc0, 0x10, 0, 0, 0, // registers at 0x10_c0000000
];

/// Memory for USB at 00:14.0 and for what is below 00:1c.4; the limit is not at the end of a page.
#[rustfmt::skip]
pub(super) const RMRR: &[u8] = &[
    1, 0, 40, 0, // type RMRR, length
    0, 0, // reserved
    0, 0, // segment
    0x00, 0x00, 0x80, 0x7b, 0, 0, 0, 0, // base 0x7b800000
    0xfe, 0x0f, 0x82, 0x7b, 0, 0, 0, 0, // limit 0x7b820ffe
    1, 8, 0, 0, 0, 0, 0x14, 0, // endpoint 00:14.0
    2, 8, 0, 0, 0, 0, 0x1c, 4, // bridge 00:1c.4
];

/// Root port 00:01.0 supports ATS.
#[rustfmt::skip]
pub(super) const ATSR: &[u8] = &[
    2, 0, 16, 0, // type ATSR, length
    0, // flags
    0, // reserved
    0, 0, // segment
    2, 8, 0, 0, 0, 0, 1, 0, // bridge 00:01.0
];

/// All root ports of segment 1 support ATS.
#[rustfmt::skip]
pub(super) const ATSR_ALL: &[u8] = &[
    2, 0, 8, 0, // type ATSR, length
    1, // flags: ALL_PORTS
    0, // reserved
    1, 0, // segment
];

/// The unit at 0xfed91000 is near memory node 3.
#[rustfmt::skip]
pub(super) const RHSA: &[u8] = &[
    3, 0, 20, 0, // type RHSA, length
    0, 0, 0, 0, // reserved
    0x00, 0x10, 0xd9, 0xfe, 0, 0, 0, 0, // registers at 0xfed91000
    3, 0, 0, 0, // proximity domain
];

/// ACPI device 7 is \_SB.UA00, with padding behind the name's end.
#[rustfmt::skip]
pub(super) const ANDD: &[u8] = &[
    4, 0, 20, 0, // type ANDD, length
    0, 0, 0, // reserved
    7, // ACPI device number
    b'\\', b'_', b'S', b'B', b'.', b'U', b'A', b'0', b'0', 0, 0, 0, // object name
];

/// Graphics needs its translation cache.
#[rustfmt::skip]
pub(super) const SATC: &[u8] = &[
    5, 0, 16, 0, // type SATC, length
    1, // flags: ATC_REQUIRED
    0, // reserved
    0, 0, // segment
    1, 8, 0, 0, 0, 0, 2, 0, // endpoint 00:02.0
];

/// Graphics has a hardened cache and needs it.
#[rustfmt::skip]
pub(super) const SIDP: &[u8] = &[
    6, 0, 16, 0, // type SIDP, length
    0, 0, // reserved
    0, 0, // segment
    1, 8, 0b11000, 0, 0, 0, 2, 0, // endpoint 00:02.0 with ATC_HARDENED and ATC_REQUIRED
];

/// A structure, and a scope, of the future.
#[rustfmt::skip]
pub(super) const UNKNOWN: &[u8] = &[
    99, 0, 7, 0, // unknown type, odd length
    1, 2, 3,
    0, 0, 23, 0, // type DRHD, length
    0, 0, 2, 0, // flags, size, segment 2
    0x00, 0x00, 0x00, 0xd0, 0, 0, 0, 0, // registers at 0xd0000000
    77, 7, 0, 0, 9, 0, 0xff, // unknown scope with half a path entry
];

/// Everything that a table can hold.
pub(super) fn everything() -> Vec<u8> {
    finish(&[
        HEADER,
        DRHD_GRAPHICS,
        DRHD_HIERARCHY,
        DRHD_DEEP,
        DRHD_ALL,
        DRHD_SEGMENT_1,
        RMRR,
        ATSR,
        ATSR_ALL,
        RHSA,
        ANDD,
        SATC,
        SIDP,
        UNKNOWN,
    ])
}
