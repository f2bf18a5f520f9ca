//! What one descriptor of VMSAv8-64 tables says (Arm ARM D8.2, D8.3).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::{Permissions, Structure, low_bits};
use crate::arch::smmuv3::layout::{Granule, Identification};

/// The last level: of pages.
pub(super) const LAST: i8 = 3;

/// How descriptors are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Format {
    pub granule: Granule,
    /// 52 bits with granules of 4 KiB and 16 KiB (DS, FEAT_LPA2); never with 64 KiB.
    wide: bool,
    /// 52 bits with the granule of 64 KiB (FEAT_LPA): as the unit has them, whatever IPS or S2PS says.
    wide_64k: bool,
    big_endian: bool,
}

/// What a descriptor says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    Invalid,
    Table(u64),
    Leaf(u64),
}

impl Format {
    /// `wide` is DS as it stands in CD or STE.
    pub(super) const fn new(identification: &Identification, granule: Granule, wide: bool, big_endian: bool) -> Self {
        let is_64k = matches!(granule, Granule::Size64K);
        Self {
            granule,
            wide: wide && !is_64k && identification.has_wide_small_granules(),
            wide_64k: is_64k && super::output_size(identification) >= 52,
            big_endian,
        }
    }

    /// Whether shareability is not in descriptors, where address bits are instead.
    pub(super) const fn lacks_shareability(&self) -> bool {
        self.wide
    }

    /// The most bits of an address that a descriptor, or a base register beside it, may have.
    pub(super) const fn address_bits(&self) -> u8 {
        match self.granule {
            Granule::Size64K => 52,
            _ if self.wide => 52,
            _ => 48,
        }
    }

    const fn stride(&self) -> u8 {
        self.granule.log2().saturating_sub(3)
    }

    /// log2 of the bytes that a descriptor of this level maps.
    pub(super) const fn bits(&self, level: i8) -> u8 {
        let above = LAST.saturating_sub(level);
        let above = if above < 0 { 0 } else { above as u8 };
        self.granule.log2().saturating_add(self.stride().saturating_mul(above))
    }

    /// The level at which stage 1 starts (Arm ARM D8.2.3 to D8.2.5).
    pub(super) const fn first_level(&self, input_bits: u8) -> i8 {
        let mut level = LAST;
        while level > -1 && self.bits(level.saturating_sub(1)) < input_bits {
            level = level.saturating_sub(1);
        }
        level
    }

    /// The level at which stage 2 starts, by S2SL0 (with S2SL0_2 in bit 2; Arm ARM D8.2.6), unless it says
    /// nothing for this granule.
    pub(super) const fn stage2_level(&self, start: u8) -> Option<i8> {
        let low = start & 0b11;
        match self.granule {
            Granule::Size4K => match if self.wide { start & 0b111 } else { low } {
                0b000 => Some(2),
                0b001 => Some(1),
                0b010 => Some(0),
                0b011 => Some(3),
                0b100 => Some(-1),
                _ => None,
            },
            Granule::Size16K => match low {
                0b00 => Some(3),
                0b01 => Some(2),
                0b10 => Some(1),
                _ if self.wide => Some(0),
                _ => None,
            },
            Granule::Size64K => match low {
                0b00 => Some(3),
                0b01 => Some(2),
                0b10 => Some(1),
                _ => None,
            },
        }
    }

    /// The fewest and the most bits of input that tables of stage 2 translate from this level, of which up to
    /// 16 are concatenated.
    pub(super) const fn stage2_input(&self, level: i8) -> (u8, u8) {
        let fewest = self.bits(level).saturating_add(1);
        (fewest, fewest.saturating_add(self.stride()).saturating_add(3))
    }

    /// What is in memory, as a number.
    pub(super) const fn load(&self, word: u64) -> u64 {
        if self.big_endian { word.swap_bytes() } else { word }
    }

    /// Whether blocks may be at this level (Arm ARM D8.3.1).
    const fn has_blocks(&self, level: i8) -> bool {
        match (self.granule, level) {
            (_, 2) => true,
            (Granule::Size4K, 1) => true,
            (Granule::Size4K, 0) | (Granule::Size16K, 1) => self.wide,
            (Granule::Size64K, 1) => self.wide_64k,
            _ => false,
        }
    }

    /// The address in a descriptor. Where the unit has 52 bits, the upper ones count even if IPS or S2PS is
    /// less, and are too large then.
    const fn address(&self, entry: u64) -> u64 {
        let in_place = if self.wide { 50 } else { 48 };
        let address = entry & low_bits(in_place) & !low_bits(self.granule.log2());
        if self.wide {
            address | (entry >> 8 & 0b11) << 50
        } else if self.wide_64k {
            address | (entry >> 12 & 0xf) << 48
        } else {
            address
        }
    }

    /// What a descriptor of this level says.
    pub(super) const fn meaning(&self, level: i8, entry: u64) -> Meaning {
        match entry & 0b11 {
            0b11 if level < LAST => Meaning::Table(self.address(entry)),
            0b11 => Meaning::Leaf(self.address(entry)),
            0b01 if self.has_blocks(level) => Meaning::Leaf(self.address(entry) & !low_bits(self.bits(level))),
            _ => Meaning::Invalid,
        }
    }

    /// log2 of the bytes of the run that a leaf says it is a part of (Arm ARM D8.7.1).
    pub(super) const fn contiguous_bits(&self, level: i8, entry: u64) -> u8 {
        const CONTIGUOUS: u64 = 1 << 52;
        let more = match (self.granule, level) {
            _ if entry & CONTIGUOUS == 0 => 0,
            (Granule::Size4K, 1..=3) => 4,
            (Granule::Size16K, 2) | (Granule::Size64K, 2 | 3) => 5,
            (Granule::Size16K, 3) => 7,
            _ => 0,
        };
        self.bits(level).saturating_add(more)
    }
}

/// The tables of one stage, as far as one of its base registers leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tree {
    pub format: Format,
    /// Bits of an input address.
    pub input_bits: u8,
    /// Bits of an address that comes out, of tables too.
    pub output_bits: u8,
    first: i8,
    table: u64,
}

impl Tree {
    pub(super) const fn new(format: Format, input_bits: u8, output_bits: u8, first: i8, base: u64) -> Self {
        // The base is aligned to the size of the first tables, and to 64 bytes with 52 bits of output (SMMU
        // 5.2 and 5.4, S2TTB and TTB0).
        let index_bits = input_bits.saturating_sub(format.bits(first));
        let size = index_bits.saturating_add(3);
        let least = if output_bits >= 52 { 6 } else { 4 };
        let alignment = if size < least { least } else { size };
        Self { format, input_bits, output_bits, first, table: base & !low_bits(alignment) }
    }

    /// Where a walk begins.
    pub(super) const fn root(&self) -> Structure {
        Structure { level: self.first, table: self.table, block_bits: self.input_bits, rights: Permissions::all() }
    }

    /// The table that a descriptor of `above` names.
    pub(super) const fn below(&self, above: Structure, table: u64, rights: Permissions) -> Structure {
        let level = above.level.saturating_add(1);
        Structure { level, table, block_bits: self.format.bits(above.level), rights }
    }

    /// Whether a walk could have got there.
    pub(super) const fn has(&self, structure: &Structure) -> bool {
        self.first < structure.level && structure.level <= LAST
    }

    /// Where the descriptor for `address` is.
    pub(super) const fn slot(&self, at: Structure, address: u64) -> u64 {
        let index = (address & low_bits(at.block_bits)) >> (self.format.bits(at.level) & 63);
        at.table | index.wrapping_shl(3)
    }
}
