//! Stream table descriptors and entries (SMMU 5.1, 5.2).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::{Vmid, field, with_field};
use crate::addr::PhysAddr;

/// Quadwords of a stream table entry.
pub const STE_WORDS: usize = 8;
/// Bytes of a stream table entry; a table of them is aligned to its size.
pub const STE_BYTES: u64 = 64;
/// Bytes of a level-1 descriptor.
pub const L1STD_BYTES: u64 = 8;

/// A level-1 descriptor: the entries for a range of StreamIDs (SMMU 5.1).
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::smmuv3::layout::L1Std;
/// // All 256 entries of a table that is split at bit 8.
/// let descriptor = L1Std::new(PhysAddr::new(0x8_4000), 8);
/// assert_eq!(descriptor.0, 0x8_4009);
/// assert_eq!(descriptor.entries_log2(), Some(8));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct L1Std(pub u64);

impl L1Std {
    /// A descriptor of `1 << entries_log2` entries (0 to 10) at `table`, aligned to their size.
    pub const fn new(table: PhysAddr, entries_log2: u8) -> Self {
        Self(table.as_u64() & ADDRESS | entries_log2.saturating_add(1) as u64 & 0x1f)
    }

    /// Span, bits 4:0: 0 for no entries, `n` for `1 << (n - 1)` of them.
    pub const fn span(self) -> u8 {
        field(self.0, 4, 0) as u8
    }

    /// Binary logarithm of the entries; `None` when there are none, or Span is one of the reserved values.
    pub const fn entries_log2(self) -> Option<u8> {
        match self.span() {
            span @ 1..=11 => span.checked_sub(1),
            _ => None,
        }
    }

    /// Where the entries are; lower bits than those of their size are taken for 0.
    pub const fn table(self) -> PhysAddr {
        PhysAddr::new(self.0 & ADDRESS)
    }
}

/// Bits 55:6 of an address: L2Ptr, S1ContextPtr.
const ADDRESS: u64 = (1 << 56) - (1 << 6);
/// Bits 51:4 of an address.
const TABLE_ADDRESS: u64 = (1 << 52) - (1 << 4);

/// STE.Config (SMMU 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Config {
    /// Requests are aborted, and nothing is recorded.
    Abort,
    /// Requests pass untranslated.
    Bypass,
    /// Stage 1.
    Stage1,
    /// Stage 2.
    Stage2,
    /// Stage 1, then stage 2.
    Nested,
}

impl Config {
    const fn bits(self) -> u64 {
        match self {
            Self::Abort => 0b000,
            Self::Bypass => 0b100,
            Self::Stage1 => 0b101,
            Self::Stage2 => 0b110,
            Self::Nested => 0b111,
        }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & 0b111 {
            0b100 => Self::Bypass,
            0b101 => Self::Stage1,
            0b110 => Self::Stage2,
            0b111 => Self::Nested,
            _ => Self::Abort,
        }
    }

    /// Whether stage 1 translates.
    pub const fn has_stage1(self) -> bool {
        matches!(self, Self::Stage1 | Self::Nested)
    }

    /// Whether stage 2 translates.
    pub const fn has_stage2(self) -> bool {
        matches!(self, Self::Stage2 | Self::Nested)
    }
}

/// STE.S1Fmt: the shape of a CD table (SMMU 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CdTableFormat {
    /// One table of CDs.
    Linear,
    /// Two levels, the second of 64 CDs (4 KiB).
    TwoLevel4K,
    /// Two levels, the second of 1024 CDs (64 KiB).
    TwoLevel64K,
}

impl CdTableFormat {
    const fn bits(self) -> u64 {
        match self {
            Self::Linear => 0,
            Self::TwoLevel4K => 1,
            Self::TwoLevel64K => 2,
        }
    }

    /// Bits of a SubstreamID that select a CD in its second table; `None` for one level.
    pub const fn split(self) -> Option<u8> {
        match self {
            Self::Linear => None,
            Self::TwoLevel4K => Some(6),
            Self::TwoLevel64K => Some(10),
        }
    }
}

/// STE.S1DSS: requests without SubstreamID, where there are substreams (SMMU 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DefaultSubstream {
    /// They are aborted.
    Terminate,
    /// They pass stage 1 untranslated.
    Bypass,
    /// They have CD 0, which requests with SubstreamID 0 then must not use.
    Substream0,
    /// The reserved value.
    Reserved,
}

impl DefaultSubstream {
    const fn bits(self) -> u64 {
        match self {
            Self::Terminate => 0,
            Self::Bypass => 1,
            Self::Substream0 => 2,
            Self::Reserved => 3,
        }
    }
}

/// STE.EATS: what a device may do with ATS (SMMU 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Eats {
    /// Translation requests and translated requests are refused.
    Off,
    /// A device gets the result of all stages.
    Full,
    /// A device gets what stage 1 gives; translated requests go through stage 2.
    Split,
    /// The third value: full ATS with a permission table, or reserved.
    Dpt,
}

impl Eats {
    const fn bits(self) -> u64 {
        match self {
            Self::Off => 0,
            Self::Full => 1,
            Self::Split => 2,
            Self::Dpt => 3,
        }
    }
}

/// What STE says of a stage-2 table (SMMU 5.2, the S2 fields); AArch64 tables only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2 {
    /// S2VMID.
    pub vmid: Vmid,
    /// S2TTB: the first table, or the first of those that are concatenated.
    pub table: PhysAddr,
    /// S2T0SZ: 64 minus the bits of an input address.
    pub t0sz: u8,
    /// S2SL0: where the walk starts, in the encoding of the granule.
    pub sl0: u8,
    /// S2TG, see [`Granule::tg0`](super::Granule::tg0).
    pub tg: u8,
    /// S2PS, see [`output_code`](super::identification::output_code).
    pub ps: u8,
    /// S2IR0 and S2OR0: cacheability of walks.
    pub cacheability: u8,
    /// S2SH0: shareability of walks.
    pub shareability: u8,
    /// S2AFFD: access flags are not checked.
    pub access_flag_fault_disabled: bool,
    /// S2R: faults are recorded.
    pub record: bool,
    /// S2S: faulting requests wait.
    pub stall: bool,
}

/// A stream table entry: what becomes of the requests of one stream (SMMU 5.2). `words` are its
/// quadwords, lowest first.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::smmuv3::layout::Ste;
/// use iommu::arch::smmuv3::layout::stream_table::{CdTableFormat, Config, DefaultSubstream};
/// let entry = Ste::stage1(PhysAddr::new(0x8_5000), CdTableFormat::Linear, 0);
/// assert_eq!(entry.words[0], 0x8_5000 | 0b101 << 1 | 1);
/// assert_eq!((entry.config(), entry.cd_table()), (Config::Stage1, PhysAddr::new(0x8_5000)));
/// assert!(!Ste::default().is_valid());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ste {
    /// The quadwords.
    pub words: [u64; STE_WORDS],
}

impl Ste {
    /// V, in quadword 0.
    pub const V: u64 = 1 << 0;

    /// A valid entry that aborts.
    pub const fn abort() -> Self {
        Self::of(Config::Abort)
    }

    /// A valid entry that lets requests pass, with the attributes that they have (SHCFG).
    pub const fn bypass() -> Self {
        Self::of(Config::Bypass).with_incoming_shareability()
    }

    /// A valid entry for stage 1, with `1 << cd_max` context descriptors at `table` (aligned to their
    /// size, or to 64 bytes), that are read write-back, inner shareable.
    pub const fn stage1(table: PhysAddr, format: CdTableFormat, cd_max: u8) -> Self {
        Self::of(Config::Stage1).with_incoming_shareability().with_cds(table, format, cd_max)
    }

    /// A valid entry for stage 2.
    pub const fn stage2(stage2: Stage2) -> Self {
        Self::of(Config::Stage2).with_incoming_shareability().with_stage2(stage2)
    }

    /// The same entry, nested: its stage 1 under this stage 2.
    pub const fn nested_under(self, stage2: Stage2) -> Self {
        self.with(0, 3, 1, Config::Nested.bits()).with_stage2(stage2)
    }

    const fn of(config: Config) -> Self {
        let mut words = [0; STE_WORDS];
        words[0] = Self::V | config.bits() << 1;
        Self { words }
    }

    const fn with_incoming_shareability(self) -> Self {
        // SHCFG, bits 109:108.
        self.with(1, 45, 44, 0b01)
    }

    const fn with_cds(self, table: PhysAddr, format: CdTableFormat, cd_max: u8) -> Self {
        // S1ContextPtr, S1Fmt, S1CDMax; S1CIR, S1COR, S1CSH.
        let low = self.words[0] | table.as_u64() & ADDRESS;
        let entry = Self { words: [low, self.words[1], self.words[2], self.words[3], 0, 0, 0, 0] };
        let entry = entry.with(0, 5, 4, format.bits()).with(0, 63, 59, cd_max as u64);
        entry.with_cd_attributes(super::registers::cacheability::WB as u8, super::registers::shareability::ISH as u8)
    }

    /// The same entry; its CDs are read with these attributes (S1CIR, S1COR, S1CSH).
    pub const fn with_cd_attributes(self, cacheability: u8, shareability: u8) -> Self {
        let cacheability = cacheability as u64;
        self.with(1, 3, 2, cacheability).with(1, 5, 4, cacheability).with(1, 7, 6, shareability as u64)
    }

    const fn with_stage2(self, stage2: Stage2) -> Self {
        const AA64: u64 = 1 << 51;
        let mut word = AA64 | stage2.vmid.0 as u64;
        word = with_field(word, 37, 32, stage2.t0sz as u64);
        word = with_field(word, 39, 38, stage2.sl0 as u64);
        word = with_field(word, 41, 40, stage2.cacheability as u64);
        word = with_field(word, 43, 42, stage2.cacheability as u64);
        word = with_field(word, 45, 44, stage2.shareability as u64);
        word = with_field(word, 47, 46, stage2.tg as u64);
        word = with_field(word, 50, 48, stage2.ps as u64);
        word = with_field(word, 53, 53, stage2.access_flag_fault_disabled as u64);
        word = with_field(word, 57, 57, stage2.stall as u64);
        word = with_field(word, 58, 58, stage2.record as u64);
        let [low, second, _, _, rest @ ..] = self.words;
        let table = stage2.table.as_u64() & TABLE_ADDRESS;
        Self { words: [low, second, word, table, rest[0], rest[1], rest[2], rest[3]] }
    }

    /// The same entry with this S2VMID, which also tags stage-1 translations where the unit has stage 2.
    pub const fn with_vmid(self, vmid: Vmid) -> Self {
        self.with(2, 15, 0, vmid.0 as u64)
    }

    /// The same entry with this S1DSS.
    pub const fn with_default_substream(self, default: DefaultSubstream) -> Self {
        self.with(1, 1, 0, default.bits())
    }

    /// The same entry with this EATS.
    pub const fn with_eats(self, eats: Eats) -> Self {
        self.with(1, 29, 28, eats.bits())
    }

    /// The same entry; stage-1 faults never stall, whatever the CD says (S1STALLD).
    pub const fn with_stalls_disabled(self) -> Self {
        self.with(1, 27, 27, 1)
    }

    /// The same entry; events of the same kind may be merged (MEV).
    pub const fn with_merged_events(self) -> Self {
        self.with(1, 19, 19, 1)
    }

    const fn with(self, word: usize, high: u32, low: u32, bits: u64) -> Self {
        let [a, b, c, d, rest @ ..] = self.words;
        let words = match word {
            0 => [with_field(a, high, low, bits), b, c, d, rest[0], rest[1], rest[2], rest[3]],
            1 => [a, with_field(b, high, low, bits), c, d, rest[0], rest[1], rest[2], rest[3]],
            2 => [a, b, with_field(c, high, low, bits), d, rest[0], rest[1], rest[2], rest[3]],
            _ => [a, b, c, with_field(d, high, low, bits), rest[0], rest[1], rest[2], rest[3]],
        };
        Self { words }
    }

    /// V: without it requests are aborted with C_BAD_STE.
    pub const fn is_valid(self) -> bool {
        self.words[0] & Self::V != 0
    }

    /// Config.
    pub const fn config(self) -> Config {
        Config::from_bits(field(self.words[0], 3, 1))
    }

    /// S1Fmt; the fourth value is taken for linear.
    pub const fn cd_format(self) -> CdTableFormat {
        match field(self.words[0], 5, 4) {
            1 => CdTableFormat::TwoLevel4K,
            2 => CdTableFormat::TwoLevel64K,
            _ => CdTableFormat::Linear,
        }
    }

    /// S1ContextPtr: a physical address, or nested an intermediate one.
    pub const fn cd_table(self) -> PhysAddr {
        PhysAddr::new(self.words[0] & ADDRESS)
    }

    /// S1CDMax: binary logarithm of the CDs.
    pub const fn cd_max(self) -> u8 {
        field(self.words[0], 63, 59) as u8
    }

    /// S1DSS.
    pub const fn default_substream(self) -> DefaultSubstream {
        match field(self.words[1], 1, 0) {
            0 => DefaultSubstream::Terminate,
            1 => DefaultSubstream::Bypass,
            2 => DefaultSubstream::Substream0,
            _ => DefaultSubstream::Reserved,
        }
    }

    /// PPAR: responses that the unit makes itself have the SubstreamID of their page request.
    pub const fn answers_with_substream(self) -> bool {
        self.words[1] >> 18 & 1 != 0
    }

    /// MEV.
    pub const fn merges_events(self) -> bool {
        self.words[1] >> 19 & 1 != 0
    }

    /// S1STALLD.
    pub const fn disables_stalls(self) -> bool {
        self.words[1] >> 27 & 1 != 0
    }

    /// EATS.
    pub const fn eats(self) -> Eats {
        match field(self.words[1], 29, 28) {
            0 => Eats::Off,
            1 => Eats::Full,
            2 => Eats::Split,
            _ => Eats::Dpt,
        }
    }

    /// STRW: 0 is NS-EL1, 2 EL2.
    pub const fn stream_world(self) -> u8 {
        field(self.words[1], 31, 30) as u8
    }

    /// S1CIR and S1COR (inner, then outer cacheability), S1CSH: how CDs are read.
    pub const fn cd_attributes(self) -> [u8; 3] {
        let word = self.words[1];
        [field(word, 3, 2) as u8, field(word, 5, 4) as u8, field(word, 7, 6) as u8]
    }

    /// S2FWB: stage 2 says memory types alone.
    pub const fn forces_write_back(self) -> bool {
        self.words[1] >> 25 & 1 != 0
    }

    /// MTCFG and MemAttr: the memory type that requests have instead of their own, encoded as in stage-2
    /// tables.
    pub const fn memory_type(self) -> Option<u8> {
        if self.words[1] >> 36 & 1 == 0 { None } else { Some(field(self.words[1], 35, 32) as u8) }
    }

    /// SHCFG: 0b01 leaves requests the shareability that they have.
    pub const fn shareability(self) -> u8 {
        field(self.words[1], 45, 44) as u8
    }

    /// PRIVCFG: 2 makes requests unprivileged, 3 privileged.
    pub const fn privilege(self) -> u8 {
        field(self.words[1], 49, 48) as u8
    }

    /// INSTCFG: 2 makes reads data reads, 3 instruction reads.
    pub const fn instruction(self) -> u8 {
        field(self.words[1], 51, 50) as u8
    }

    /// S2VMID.
    pub const fn vmid(self) -> Vmid {
        Vmid(field(self.words[2], 15, 0) as u16)
    }

    /// S2AA64: stage-2 tables are AArch64's.
    pub const fn has_aarch64_stage2(self) -> bool {
        self.words[2] >> 51 & 1 != 0
    }

    /// S2ENDI: stage-2 tables are big-endian.
    pub const fn has_big_endian_stage2(self) -> bool {
        self.words[2] >> 52 & 1 != 0
    }

    /// S2PTW: stage-1 walks must not reach device memory.
    pub const fn protects_walks(self) -> bool {
        self.words[2] >> 54 & 1 != 0
    }

    /// S2DS: addresses of 52 bits with granules of 4 KiB and 16 KiB.
    pub const fn has_wide_stage2(self) -> bool {
        self.words[3] >> 3 & 1 != 0
    }

    /// S2SL0_2 and S2SL0, in bits 2 and 1:0; the first counts only with S2DS and the granule of 4 KiB.
    pub const fn stage2_start(self) -> u8 {
        (field(self.words[3], 2, 2) << 2 | field(self.words[2], 39, 38)) as u8
    }

    /// S2IR0 and S2OR0 (inner, then outer cacheability), S2SH0: how stage-2 tables are read.
    pub const fn stage2_walk_attributes(self) -> [u8; 3] {
        let word = self.words[2];
        [field(word, 41, 40) as u8, field(word, 43, 42) as u8, field(word, 45, 44) as u8]
    }

    /// S2HD and S2HA, in bits 1 and 0: hardware updates dirty state and access flags.
    pub const fn stage2_updates(self) -> u8 {
        (field(self.words[2], 55, 55) << 1 | field(self.words[2], 56, 56)) as u8
    }

    /// The S2 fields.
    pub const fn stage2_fields(self) -> Stage2 {
        let word = self.words[2];
        Stage2 {
            vmid: self.vmid(),
            table: PhysAddr::new(self.words[3] & TABLE_ADDRESS),
            t0sz: field(word, 37, 32) as u8,
            sl0: field(word, 39, 38) as u8,
            tg: field(word, 47, 46) as u8,
            ps: field(word, 50, 48) as u8,
            cacheability: field(word, 41, 40) as u8,
            shareability: field(word, 45, 44) as u8,
            access_flag_fault_disabled: field(word, 53, 53) != 0,
            stall: field(word, 57, 57) != 0,
            record: field(word, 58, 58) != 0,
        }
    }
}

impl From<Ste> for [u64; STE_WORDS] {
    fn from(entry: Ste) -> Self {
        entry.words
    }
}

impl From<[u64; STE_WORDS]> for Ste {
    fn from(words: [u64; STE_WORDS]) -> Self {
        Self { words }
    }
}
