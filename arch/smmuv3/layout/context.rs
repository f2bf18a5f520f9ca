//! Context descriptors (SMMU 5.3, 5.4).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::{Asid, Granule, field, with_field};
use crate::addr::PhysAddr;

/// Quadwords of a context descriptor.
pub const CD_WORDS: usize = 8;
/// Bytes of a context descriptor.
pub const CD_BYTES: u64 = 64;
/// Bytes of a level-1 descriptor.
pub const L1CD_BYTES: u64 = 8;

/// A level-1 context descriptor: a second table of 64 or 1024 CDs (SMMU 5.3).
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::smmuv3::layout::L1Cd;
/// let descriptor = L1Cd::new(PhysAddr::new(0x9_0000));
/// assert_eq!((descriptor.0, descriptor.table()), (0x9_0001, Some(PhysAddr::new(0x9_0000))));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct L1Cd(pub u64);

impl L1Cd {
    /// A valid descriptor of the CDs at `table`, aligned to 4 KiB or 64 KiB as the format has it.
    pub const fn new(table: PhysAddr) -> Self {
        Self(table.as_u64() & L2_ADDRESS | 1)
    }

    /// The CDs; `None` when the descriptor is not valid.
    pub const fn table(self) -> Option<PhysAddr> {
        if self.0 & 1 == 0 { None } else { Some(PhysAddr::new(self.0 & L2_ADDRESS)) }
    }
}

/// Bits 55:12.
const L2_ADDRESS: u64 = (1 << 56) - (1 << 12);
/// Bits 51:4.
const TABLE_ADDRESS: u64 = (1 << 52) - (1 << 4);

/// What a CD says of one table (SMMU 5.4: T0SZ, TG0, IR0, OR0, SH0, EPD0, TTB0 and their twins).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// TTB: the first table.
    pub table: PhysAddr,
    /// TSZ: 64 minus the bits of an input address.
    pub tsz: u8,
    /// TG; `None` for a reserved value.
    pub granule: Option<Granule>,
    /// IR and OR: cacheability of walks.
    pub cacheability: u8,
    /// SH: shareability of walks.
    pub shareability: u8,
    /// EPD: nothing is walked, requests fault.
    pub walk_disabled: bool,
    /// HAD: hierarchical attributes in table entries are not obeyed.
    pub hierarchy_disabled: bool,
}

/// Which half of the addresses a table is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// TTB0: from 0 upwards.
    Lower,
    /// TTB1: up to the top.
    Upper,
}

/// A context descriptor: an address space of stage 1 (SMMU 5.4). `words` are its quadwords, lowest
/// first.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::smmuv3::layout::context::{Cd, Half};
/// use iommu::arch::smmuv3::layout::{Asid, Granule};
/// let cd = Cd::new(Asid(7), PhysAddr::new(0x8_6000), Granule::Size4K, 48, 44).recording();
/// assert_eq!(cd.words[1], 0x8_6000);
/// assert_eq!(cd.words[0] & 0x3f, 16);
/// assert_eq!(cd.words[0] >> 48, 7);
/// assert!(cd.is_valid() && cd.table(Half::Upper).walk_disabled);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cd {
    /// The quadwords.
    pub words: [u64; CD_WORDS],
}

impl Cd {
    /// V, in quadword 0.
    pub const V: u64 = 1 << 31;
    /// EPD0, in quadword 0.
    pub const EPD0: u64 = 1 << 14;
    /// S, in quadword 0.
    pub const S: u64 = 1 << 44;
    /// R, in quadword 0.
    pub const R: u64 = 1 << 45;
    const EPD1: u64 = 1 << 30;
    const AA64: u64 = 1 << 41;
    const A: u64 = 1 << 46;
    const ASET: u64 = 1 << 47;

    /// A valid descriptor of AArch64 tables for the lower half: `input_bits` of input, output of the
    /// widest size that [has at most](super::identification::output_code) `output_bits`. Walks snoop
    /// (write-back, inner shareable). Faulting requests are aborted (A) and nothing is recorded (R); the
    /// ASID takes no part in broadcast invalidation (ASET).
    pub const fn new(asid: Asid, table: PhysAddr, granule: Granule, input_bits: u8, output_bits: u8) -> Self {
        let mut low = Self::V | Self::AA64 | Self::A | Self::ASET | Self::EPD1;
        low |= 64u8.saturating_sub(input_bits) as u64 & 0x3f;
        low = with_field(low, 7, 6, granule.tg0());
        low = with_field(low, 23, 22, granule.tg1());
        low = with_field(low, 34, 32, super::identification::output_code(output_bits));
        low = with_field(low, 63, 48, asid.0 as u64);
        let ttb0 = table.as_u64() & TABLE_ADDRESS;
        let cd = Self { words: [low, ttb0, 0, 0, 0, 0, 0, 0] };
        cd.with_walk_attributes(super::registers::cacheability::WB as u8, super::registers::shareability::ISH as u8)
    }

    /// The same descriptor; the lower half is walked with these attributes (IR0, OR0, SH0).
    pub const fn with_walk_attributes(self, cacheability: u8, shareability: u8) -> Self {
        let low = with_field(self.words[0], 9, 8, cacheability as u64);
        let low = with_field(low, 11, 10, cacheability as u64);
        self.with_low(with_field(low, 13, 12, shareability as u64))
    }

    /// The same descriptor with these memory attributes (MAIR0, MAIR1), as in MAIR_EL1.
    pub const fn with_memory_attributes(self, mair: u64) -> Self {
        let [a, b, c, _, e, f, g, h] = self.words;
        Self { words: [a, b, c, mair, e, f, g, h] }
    }

    /// The same descriptor; faults are recorded (R).
    pub const fn recording(self) -> Self {
        self.with_low(self.words[0] | Self::R)
    }

    /// The same descriptor; faulting requests wait (S).
    pub const fn stalling(self) -> Self {
        self.with_low(self.words[0] | Self::S)
    }

    /// The same descriptor; hierarchical attributes of the lower half are not obeyed (HAD0, needs IDR3.HAD).
    pub const fn without_hierarchy(self) -> Self {
        let [a, b, c, d, e, f, g, h] = self.words;
        Self { words: [a, b | 1 << 1, c, d, e, f, g, h] }
    }

    /// The same descriptor with nothing to walk: every request faults quietly (EPD0; R and S off). It
    /// stays valid, and TTB0 and what belongs to it is not used any more.
    pub const fn released(self) -> Self {
        self.with_low(self.words[0] & !(Self::R | Self::S) | Self::EPD0)
    }

    const fn with_low(self, low: u64) -> Self {
        let [_, b, c, d, e, f, g, h] = self.words;
        Self { words: [low, b, c, d, e, f, g, h] }
    }

    /// V: without it requests are aborted with C_BAD_CD.
    pub const fn is_valid(self) -> bool {
        self.words[0] & Self::V != 0
    }

    /// AA64: tables are AArch64's.
    pub const fn is_aarch64(self) -> bool {
        self.words[0] & Self::AA64 != 0
    }

    /// ENDI: tables are big-endian.
    pub const fn is_big_endian(self) -> bool {
        self.words[0] >> 15 & 1 != 0
    }

    /// IPS, see [`output_bits_of`](super::identification::output_bits_of).
    pub const fn ips(self) -> u64 {
        field(self.words[0], 34, 32)
    }

    /// AFFD: access flags are not checked.
    pub const fn access_flag_fault_disabled(self) -> bool {
        self.words[0] >> 35 & 1 != 0
    }

    /// TBI of a half: the top byte of an address is not looked at.
    pub const fn ignores_top_byte(self, half: Half) -> bool {
        let bit = match half {
            Half::Lower => 38,
            Half::Upper => 39,
        };
        self.words[0] >> bit & 1 != 0
    }

    /// WXN, UWXN, PAN: permissions beyond those of the tables, in bits 0 to 2.
    pub const fn permission_controls(self) -> u8 {
        (field(self.words[0], 37, 36) | field(self.words[0], 40, 40) << 2) as u8
    }

    /// HD and HA, in bits 1 and 0: hardware updates dirty state and access flags.
    pub const fn updates(self) -> u8 {
        (field(self.words[0], 42, 42) << 1 | field(self.words[0], 43, 43)) as u8
    }

    /// S: faulting requests wait.
    pub const fn stalls(self) -> bool {
        self.words[0] & Self::S != 0
    }

    /// R: faults are recorded.
    pub const fn records(self) -> bool {
        self.words[0] & Self::R != 0
    }

    /// A: terminated requests are aborted, not answered with zeroes.
    pub const fn aborts(self) -> bool {
        self.words[0] & Self::A != 0
    }

    /// ASET: the ASID takes no part in broadcast invalidation.
    pub const fn is_asid_private(self) -> bool {
        self.words[0] & Self::ASET != 0
    }

    /// ASID.
    pub const fn asid(self) -> Asid {
        Asid(field(self.words[0], 63, 48) as u16)
    }

    /// What it says of one half.
    pub const fn table(self, half: Half) -> Table {
        let (word, base) = match half {
            Half::Lower => (self.words[0], self.words[1]),
            Half::Upper => (self.words[0] >> 16, self.words[2]),
        };
        Table {
            table: PhysAddr::new(base & TABLE_ADDRESS),
            tsz: field(word, 5, 0) as u8,
            granule: match half {
                Half::Lower => Granule::from_tg0(field(word, 7, 6)),
                Half::Upper => Granule::from_tg1(field(word, 7, 6)),
            },
            cacheability: field(word, 9, 8) as u8,
            shareability: field(word, 13, 12) as u8,
            walk_disabled: field(word, 14, 14) != 0,
            hierarchy_disabled: field(base, 1, 1) != 0,
        }
    }

    /// IR, OR (inner, then outer cacheability) and SH of a half: how its tables are read.
    pub const fn walk_attributes(self, half: Half) -> [u8; 3] {
        let word = match half {
            Half::Lower => self.words[0],
            Half::Upper => self.words[0] >> 16,
        };
        [field(word, 9, 8) as u8, field(word, 11, 10) as u8, field(word, 13, 12) as u8]
    }

    /// DS: addresses of 52 bits with granules of 4 KiB and 16 KiB.
    pub const fn is_wide(self) -> bool {
        self.words[2] >> 58 & 1 != 0
    }

    /// E0PD of a half: unprivileged requests fault there.
    pub const fn denies_unprivileged(self, half: Half) -> bool {
        let word = match half {
            Half::Lower => self.words[1],
            Half::Upper => self.words[2],
        };
        word >> 2 & 1 != 0
    }

    /// EPAN: PAN covers what the unprivileged may execute.
    pub const fn is_pan_enhanced(self) -> bool {
        self.words[1] >> 59 & 1 != 0
    }

    /// MAIR: eight memory attributes.
    pub const fn memory_attributes(self) -> u64 {
        self.words[3]
    }
}

impl From<Cd> for [u64; CD_WORDS] {
    fn from(cd: Cd) -> Self {
        cd.words
    }
}

impl From<[u64; CD_WORDS]> for Cd {
    fn from(words: [u64; CD_WORDS]) -> Self {
        Self { words }
    }
}
