//! DMAR tables, from a few good ones to any bytes, and what is made of them.

use iommu::arch::vtd::{self, ModeWish, PreviousTables, VtdOptions};
use iommu::device::{DeviceInfo, Trust};
use iommu::{Iommu, Result, SourceId};

use crate::input::Input;
use crate::world::Kernel;

/// A firmware table, and how units are taken over.
pub struct Firmware {
    table: Vec<u8>,
    options: u8,
}

impl Firmware {
    pub fn choose(input: &mut Input<'_>, options: u8) -> Self {
        Self { table: dmar(input), options }
    }

    pub fn init(&self, iommu: &Iommu<Kernel>) -> Result<()> {
        // Whatever was left in force lies in memory that is gone.
        let previous = match self.options & 0x20 {
            0 => PreviousTables::Replace,
            _ => PreviousTables::CopyUntilClaimed(&|_| None),
        };
        let mode = if self.options & 0x40 == 0 { ModeWish::Best } else { ModeWish::Legacy };
        vtd::init_with(iommu, &self.table, VtdOptions { mode, previous })
    }

    /// A platform device, which no unit has.
    pub fn platform_device(&self, input: &mut Input<'_>) -> Option<DeviceInfo> {
        let sources: Vec<_> = (0..input.below(4)).map(|_| SourceId::platform(input.u8().into(), input.u32())).collect();
        DeviceInfo::platform(&sources, Trust::Trusted).ok()
    }
}

/// Two units: one for 00:02.0, one for the rest; memory reserved for 00:03.0 and for what is below
/// the root port; ATS below every root port.
const STRUCTURES: [&[u8]; 6] = [
    &[0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, 1, 8, 0, 0, 0, 0, 2, 0],
    &[1, 0, 32, 0, 0, 0, 0, 0, 0, 0x40, 0, 0x7b, 0, 0, 0, 0, 0xff, 0x5f, 0, 0x7b, 0, 0, 0, 0, 1, 8, 0, 0, 0, 0, 3, 0],
    &[
        1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0x7c, 0, 0, 0, 0, 0xff, 0xff, 0x1f, 0x7c, 0, 0, 0, 0, 2, 8, 0, 0, 0, 0, 0x1c,
        0,
    ],
    &[0, 0, 16, 0, 1, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0],
    &[4, 0, 20, 0, 0, 0, 0, 0, 1, 1, b'\\', b'_', b'S', b'B', b'.', b'I', b'2', b'C', b'0', 0],
    &[2, 0, 8, 0, 1, 0, 0, 0],
];

/// A table with the structures of a mask, some bytes of it changed, or any bytes; length and checksum
/// are right.
fn dmar(input: &mut Input<'_>) -> Vec<u8> {
    let mask = input.u8() ^ 0x2f;
    let changes = input.below(4);
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"DMAR");
    (table[8], table[36]) = (1, 45);
    for (index, structure) in STRUCTURES.iter().enumerate() {
        if mask >> index & 1 != 0 {
            table.extend_from_slice(structure);
        }
    }
    if mask & 0x80 != 0 {
        let count = usize::from(input.u8());
        table.extend_from_slice(input.bytes(count));
    }
    for _ in 0..changes {
        let at = usize::from(input.u16()) % table.len();
        table[at] = input.u8();
    }
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}
