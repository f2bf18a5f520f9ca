//! Scalable-mode tables: root, context, PASID directory and PASID table entries (VT-d 9.2, 9.4 to
//! 9.6).
//!
//! Root and context tables of scalable mode are found by bus and by function as in legacy mode, but
//! a context entry takes 32 bytes, so that each root entry names two context tables of 128 functions.
//! A context entry names a PASID directory, each entry of which names a table of 64 PASIDs.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::{AddressWidth, DomainId, field};
use crate::addr::PhysAddr;

/// Entries in a scalable-mode context table (VT-d 9.4).
pub const CONTEXT_ENTRIES: usize = 128;
/// Quadwords of a scalable-mode context entry.
pub const CONTEXT_WORDS: usize = 4;
/// Entries in a PASID table (VT-d 9.6).
pub const PASID_ENTRIES: usize = 64;
/// Quadwords of a PASID table entry.
pub const PASID_WORDS: usize = 8;
/// Bits of a PASID that select the entry in a PASID table; the rest selects that of the directory.
pub const PASID_INDEX_BITS: u32 = 6;
/// The fewest entries of a PASID directory, for PDTS zero (VT-d 9.4).
pub const MIN_DIRECTORY_ENTRIES: u32 = 128;

/// Bits 63:12 of an entry: the address of a table.
const ADDRESS: u64 = !0xfff;
const P: u64 = 1 << 0;
const FPD: u64 = 1 << 1;

/// A scalable-mode root entry: which two context tables describe the functions of a bus (VT-d 9.2).
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::layout::scalable::ScalableRootEntry;
/// let entry = ScalableRootEntry { low: 0x7001, high: 0 };
/// assert_eq!(entry.context_table(0x7f), Some(PhysAddr::new(0x7000)));
/// assert_eq!(entry.context_table(0x80), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScalableRootEntry {
    /// Quadword 0: LP and the context table of device and function numbers 0x00 to 0x7f.
    pub low: u64,
    /// Quadword 1: UP and the context table of 0x80 to 0xff.
    pub high: u64,
}

impl ScalableRootEntry {
    /// The half of an entry that makes the context table at `table` (aligned to 4096 bytes) present.
    pub const fn half(table: PhysAddr) -> u64 {
        table.as_u64() & ADDRESS | P
    }

    /// The context table of this device and function number, or `None` when it is not present.
    pub const fn context_table(self, devfn: u8) -> Option<PhysAddr> {
        let half = self.half_of(devfn);
        if half & P == 0 { None } else { Some(PhysAddr::new(half & ADDRESS)) }
    }

    /// Whether a reserved bit is set in the half for this device and function number, which faults
    /// when it is present (SRT.3).
    pub const fn has_reserved_bits(self, devfn: u8) -> bool {
        self.half_of(devfn) & 0xffe != 0
    }

    const fn half_of(self, devfn: u8) -> u64 {
        if devfn < 0x80 { self.low } else { self.high }
    }
}

/// A scalable-mode context entry: which PASID directory a function has, and what it may send (VT-d
/// 9.4). `words` are its quadwords, lowest first; the upper two are reserved.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::layout::scalable::ScalableContextEntry;
/// let entry = ScalableContextEntry::new(PhysAddr::new(0x1234_5000), 0).with_rid_pasid(5);
/// assert_eq!(entry.words, [0x1234_5001, 5, 0, 0]);
/// assert_eq!(entry.directory_entries(), 128);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScalableContextEntry {
    /// The quadwords.
    pub words: [u64; CONTEXT_WORDS],
}

impl ScalableContextEntry {
    const DTE: u64 = 1 << 2;
    const PASIDE: u64 = 1 << 3;
    const PRE: u64 = 1 << 4;

    /// A present entry for the PASID directory at `directory` (aligned to 4096 bytes) of
    /// `1 << (size + 7)` entries (PDTS, `size` at most 7), that permits requests without PASID only.
    pub const fn new(directory: PhysAddr, size: u8) -> Self {
        Self { words: [directory.as_u64() & ADDRESS | (size as u64 & 7) << 9 | P, 0, 0, 0] }
    }

    /// The same entry, requests without PASID having this one (RID_PASID; needs ECAP.RPS if not 0).
    pub const fn with_rid_pasid(self, pasid: u32) -> Self {
        let [low, high, third, fourth] = self.words;
        Self { words: [low, high & !0xf_ffff | pasid as u64 & 0xf_ffff, third, fourth] }
    }

    /// The same entry, ATS permitted (DTE; needs ECAP.DT).
    pub const fn with_device_tlb(self) -> Self {
        self.with(Self::DTE)
    }

    /// The same entry, ATS not permitted.
    pub const fn without_device_tlb(self) -> Self {
        let [low, high, third, fourth] = self.words;
        Self { words: [low & !Self::DTE, high, third, fourth] }
    }

    /// The same entry, requests with PASID permitted (PASIDE; needs ECAP.PASID).
    pub const fn with_pasids(self) -> Self {
        self.with(Self::PASIDE)
    }

    /// The same entry, page requests permitted (PRE; needs ECAP.PRS).
    pub const fn with_page_requests(self) -> Self {
        self.with(Self::PRE)
    }

    /// P.
    pub const fn is_present(self) -> bool {
        self.low() & P != 0
    }

    /// FPD: qualified faults are not recorded.
    pub const fn suppresses_faults(self) -> bool {
        self.low() & FPD != 0
    }

    /// DTE: ATS is permitted.
    pub const fn permits_device_tlb(self) -> bool {
        self.low() & Self::DTE != 0
    }

    /// PASIDE: requests with PASID are permitted.
    pub const fn permits_pasids(self) -> bool {
        self.low() & Self::PASIDE != 0
    }

    /// PRE: page requests are permitted.
    pub const fn permits_page_requests(self) -> bool {
        self.low() & Self::PRE != 0
    }

    /// PASIDDIRPTR: the PASID directory.
    pub const fn directory(self) -> PhysAddr {
        PhysAddr::new(self.low() & ADDRESS)
    }

    /// How many entries the PASID directory has (PDTS).
    pub const fn directory_entries(self) -> u32 {
        MIN_DIRECTORY_ENTRIES << field(self.low(), 11, 9)
    }

    /// RID_PASID. Without ECAP.RPS it is reserved, and requests without PASID have PASID 0.
    pub const fn rid_pasid(self) -> u32 {
        let [_, high, ..] = self.words;
        field(high, 19, 0) as u32
    }

    /// Whether a bit is set that is reserved on every unit (SCT.3). Bits that are reserved on units
    /// without a capability are left to the caller: DTE, PASIDE, PRE, HPTE (5), EPTR (6), RID_PASID,
    /// RID_PRIV (84).
    pub const fn has_reserved_bits(self) -> bool {
        let [low, high, third, fourth] = self.words;
        low & 0x180 != 0 || high & !0x1f_ffff != 0 || third != 0 || fourth != 0
    }

    const fn low(self) -> u64 {
        let [low, ..] = self.words;
        low
    }

    const fn with(self, bits: u64) -> Self {
        let [low, high, third, fourth] = self.words;
        Self { words: [low | bits, high, third, fourth] }
    }
}

/// From the two quadwords that are not reserved.
impl From<[u64; 2]> for ScalableContextEntry {
    fn from([low, high]: [u64; 2]) -> Self {
        Self { words: [low, high, 0, 0] }
    }
}

/// The two quadwords that are not reserved.
impl From<ScalableContextEntry> for [u64; 2] {
    fn from(entry: ScalableContextEntry) -> Self {
        let [low, high, ..] = entry.words;
        [low, high]
    }
}

/// An entry of a PASID directory (VT-d 9.5).
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::layout::scalable::PasidDirectoryEntry;
/// assert_eq!(PasidDirectoryEntry::new(PhysAddr::new(0x5000)).word, 0x5001);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PasidDirectoryEntry {
    /// The quadword.
    pub word: u64,
}

impl PasidDirectoryEntry {
    /// A present entry for the PASID table at `table`, aligned to 4096 bytes.
    pub const fn new(table: PhysAddr) -> Self {
        Self { word: table.as_u64() & ADDRESS | P }
    }

    /// The PASID table, or `None` when the entry is not present.
    pub const fn table(self) -> Option<PhysAddr> {
        if self.word & P == 0 { None } else { Some(PhysAddr::new(self.word & ADDRESS)) }
    }

    /// FPD: qualified faults are not recorded.
    pub const fn suppresses_faults(self) -> bool {
        self.word & FPD != 0
    }

    /// Whether a reserved bit is set, which faults when the entry is present (SPD.3).
    pub const fn has_reserved_bits(self) -> bool {
        self.word & 0xffc != 0
    }
}

/// How requests of a PASID are translated (VT-d 9.6, PGTT).
///
/// ```
/// use iommu::arch::vtd::layout::scalable::PasidTranslation;
/// assert_eq!(PasidTranslation::Nested as u64, 3);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidTranslation {
    /// By the first-stage table. Needs ECAP.FSTS.
    FirstStage = 1,
    /// By the second-stage table. Needs ECAP.SSTS.
    SecondStage = 2,
    /// By the first-stage table, whose own addresses go through the second. Needs ECAP.NEST.
    Nested = 3,
    /// Not at all. Needs ECAP.PT.
    PassThrough = 4,
}

/// How many levels a first-stage table has (VT-d 9.6, FSPM).
///
/// ```
/// use iommu::arch::vtd::layout::scalable::FirstStageLevels;
/// assert_eq!(FirstStageLevels::Five as u64, 1);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstStageLevels {
    /// Four levels.
    Four = 0,
    /// Five levels. Needs CAP.FS5LP.
    Five = 1,
}

/// An entry of a PASID table (VT-d 9.6). `words` are its quadwords, lowest first. Hardware reads it in
/// pieces of 128 bits, aligned to their size.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::layout::scalable::PasidEntry;
/// use iommu::arch::vtd::layout::{AddressWidth, DomainId};
/// let entry = PasidEntry::second_stage(PhysAddr::new(0x8000), AddressWidth::Bits48, DomainId::new(7));
/// assert_eq!(entry.words[..3], [0x8000 | 2 << 6 | 2 << 2 | 1, 7, 0]);
/// assert_eq!(entry.with_page_walk_snoop().words[1], 1 << 23 | 7);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PasidEntry {
    /// The quadwords.
    pub words: [u64; PASID_WORDS],
}

impl PasidEntry {
    const SSADE: u64 = 1 << 9;
    const PWSNP: u64 = 1 << 23;
    const PGSNP: u64 = 1 << 24;
    const SRE: u64 = 1 << 0;
    const WPE: u64 = 1 << 4;
    const EAFE: u64 = 1 << 7;

    /// A present entry through the first-stage table at `table`, aligned to 4096 bytes.
    pub const fn first_stage(table: PhysAddr, levels: FirstStageLevels, domain: DomainId) -> Self {
        let low = (PasidTranslation::FirstStage as u64) << 6 | P;
        Self { words: [low, domain.as_u16() as u64, first_stage_word(table, levels), 0, 0, 0, 0, 0] }
    }

    /// A present entry through the second-stage table at `table`, aligned to 4096 bytes.
    pub const fn second_stage(table: PhysAddr, width: AddressWidth, domain: DomainId) -> Self {
        let low = second_stage_word(table, width) | (PasidTranslation::SecondStage as u64) << 6 | P;
        Self { words: [low, domain.as_u16() as u64, 0, 0, 0, 0, 0, 0] }
    }

    /// A present entry through the first-stage table at the *guest-physical* address `table`, and
    /// through the second-stage table at `parent`, each aligned to 4096 bytes.
    pub const fn nested(
        table: u64,
        levels: FirstStageLevels,
        parent: PhysAddr,
        width: AddressWidth,
        domain: DomainId,
    ) -> Self {
        let low = second_stage_word(parent, width) | (PasidTranslation::Nested as u64) << 6 | P;
        let third = first_stage_word(PhysAddr::new(table), levels);
        Self { words: [low, domain.as_u16() as u64, third, 0, 0, 0, 0, 0] }
    }

    /// A present entry for requests that pass. `width` is ignored by hardware (but must be legal on
    /// units that follow revisions before 3.0).
    pub const fn pass_through(width: AddressWidth, domain: DomainId) -> Self {
        let low = (width as u64) << 2 | (PasidTranslation::PassThrough as u64) << 6 | P;
        Self { words: [low, domain.as_u16() as u64, 0, 0, 0, 0, 0, 0] }
    }

    /// The same entry with this AW, or zero there. Hardware ignores AW where no second stage is walked,
    /// but wants it to be zero if it has no second stage at all.
    pub const fn with_width(self, width: Option<AddressWidth>) -> Self {
        let [low, second, third, fourth, fifth, sixth, seventh, eighth] = self.words;
        let encoding = match width {
            Some(width) => (width as u64) << 2,
            None => 0,
        };
        Self { words: [low & !0x1c | encoding, second, third, fourth, fifth, sixth, seventh, eighth] }
    }

    /// The same entry, its page tables snooped by the walker (PWSNP; needs ECAP.SMPWCS).
    pub const fn with_page_walk_snoop(self) -> Self {
        self.with(0, Self::PWSNP)
    }

    /// The same entry, every request snooping (PGSNP; needs ECAP.SC).
    pub const fn with_page_snoop(self) -> Self {
        self.with(0, Self::PGSNP)
    }

    /// The same entry, accessed and dirty bits kept in the second stage (SSADE; needs ECAP.SSADS).
    pub const fn with_second_stage_dirty(self) -> Self {
        self.with(Self::SSADE, 0)
    }

    /// The same entry, without PGSNP and SSADE: what domains switch on and off.
    pub const fn without_features(self) -> Self {
        let [low, second, third, fourth, fifth, sixth, seventh, eighth] = self.words;
        Self { words: [low & !Self::SSADE, second & !Self::PGSNP, third, fourth, fifth, sixth, seventh, eighth] }
    }

    /// The same entry, not present: P cleared, the rest kept. The first step of a removal.
    pub const fn not_present(self) -> Self {
        let [low, second, third, fourth, fifth, sixth, seventh, eighth] = self.words;
        Self { words: [low & !P, second, third, fourth, fifth, sixth, seventh, eighth] }
    }

    /// P.
    pub const fn is_present(self) -> bool {
        self.word(0) & P != 0
    }

    /// FPD: qualified faults are not recorded.
    pub const fn suppresses_faults(self) -> bool {
        self.word(0) & FPD != 0
    }

    /// PGTT; `None` for encodings that are reserved.
    pub const fn translation(self) -> Option<PasidTranslation> {
        match field(self.word(0), 8, 6) {
            1 => Some(PasidTranslation::FirstStage),
            2 => Some(PasidTranslation::SecondStage),
            3 => Some(PasidTranslation::Nested),
            4 => Some(PasidTranslation::PassThrough),
            _ => None,
        }
    }

    /// The table that addresses of requests go through first; `None` if they pass.
    pub const fn table(self) -> Option<PhysAddr> {
        match self.translation() {
            Some(PasidTranslation::FirstStage | PasidTranslation::Nested) => Some(self.first_stage_table()),
            Some(PasidTranslation::SecondStage) => Some(self.second_stage_table()),
            Some(PasidTranslation::PassThrough) | None => None,
        }
    }

    /// SSPTPTR: the top second-stage table.
    pub const fn second_stage_table(self) -> PhysAddr {
        PhysAddr::new(self.word(0) & ADDRESS)
    }

    /// AW; `None` for encodings that are reserved.
    pub const fn width(self) -> Option<AddressWidth> {
        AddressWidth::from_encoding(field(self.word(0), 4, 2))
    }

    /// SSADE: accessed and dirty bits are kept in the second stage.
    pub const fn keeps_second_stage_dirty(self) -> bool {
        self.word(0) & Self::SSADE != 0
    }

    /// DID.
    pub const fn domain_id(self) -> DomainId {
        DomainId::new(field(self.word(1), 15, 0) as u16)
    }

    /// PWSNP: the walker snoops.
    pub const fn snoops_page_walks(self) -> bool {
        self.word(1) & Self::PWSNP != 0
    }

    /// PGSNP: every request snoops.
    pub const fn enforces_snooping(self) -> bool {
        self.word(1) & Self::PGSNP != 0
    }

    /// SRE: supervisor requests are permitted.
    pub const fn permits_supervisor(self) -> bool {
        self.word(2) & Self::SRE != 0
    }

    /// WPE: supervisor requests obey R/W.
    pub const fn protects_writes(self) -> bool {
        self.word(2) & Self::WPE != 0
    }

    /// EAFE: extended accessed flags are kept in the first stage.
    pub const fn keeps_extended_accessed(self) -> bool {
        self.word(2) & Self::EAFE != 0
    }

    /// FSPM; `None` for encodings that are reserved.
    pub const fn first_stage_levels(self) -> Option<FirstStageLevels> {
        match field(self.word(2), 3, 2) {
            0 => Some(FirstStageLevels::Four),
            1 => Some(FirstStageLevels::Five),
            _ => None,
        }
    }

    /// FSPTPTR: the top first-stage table; a guest-physical address when nested.
    pub const fn first_stage_table(self) -> PhysAddr {
        PhysAddr::new(self.word(2) & ADDRESS)
    }

    /// The bits that hardware uses of an entry with this P and PGTT; it ignores the others where they are
    /// not reserved for want of a capability (9.6).
    pub const fn used_bits(self) -> [u64; PASID_WORDS] {
        if !self.is_present() {
            return [P | FPD, 0, 0, 0, 0, 0, 0, 0];
        }
        // SSPTPTR, SSADE and AW; FSPTPTR, EAFE, WPE and FSPM. Bits 6:5 of word 2 never are.
        let (first, second) = match self.translation() {
            Some(PasidTranslation::FirstStage) => (!0x60, !(ADDRESS | Self::SSADE | 0x1c)),
            Some(PasidTranslation::SecondStage) => (!(ADDRESS | Self::EAFE | Self::WPE | 0x6c), !0),
            Some(PasidTranslation::PassThrough) => {
                (!(ADDRESS | Self::EAFE | Self::WPE | 0x6c), !(ADDRESS | Self::SSADE | 0x1c))
            }
            Some(PasidTranslation::Nested) | None => (!0x60, !0),
        };
        [second, !0, first, !0, !0, !0, !0, !0]
    }

    /// Whether a bit is set that is reserved on every unit (SPT.3). Fields that are reserved on units
    /// without a capability are left to the caller (9.6).
    pub const fn has_reserved_bits(self) -> bool {
        let [low, second, third, fourth, fifth, sixth, seventh, eighth] = self.words;
        low & 0xc20 != 0
            || second & 0xf87f_0000 != 0
            || third & 0xf02 != 0
            || fourth != 0
            || fifth & 0xff8 != 0
            || sixth & !0xffff != 0
            || seventh != 0
            || eighth != 0
    }

    /// Quadword `index`, below 8.
    const fn word(self, index: usize) -> u64 {
        let [low, second, third, ..] = self.words;
        match index {
            0 => low,
            1 => second,
            _ => third,
        }
    }

    const fn with(self, low_bits: u64, second_bits: u64) -> Self {
        let [low, second, third, fourth, fifth, sixth, seventh, eighth] = self.words;
        Self { words: [low | low_bits, second | second_bits, third, fourth, fifth, sixth, seventh, eighth] }
    }
}

impl From<[u64; PASID_WORDS]> for PasidEntry {
    fn from(words: [u64; PASID_WORDS]) -> Self {
        Self { words }
    }
}

impl From<PasidEntry> for [u64; PASID_WORDS] {
    fn from(entry: PasidEntry) -> Self {
        entry.words
    }
}

const fn first_stage_word(table: PhysAddr, levels: FirstStageLevels) -> u64 {
    table.as_u64() & ADDRESS | (levels as u64) << 2
}

const fn second_stage_word(table: PhysAddr, width: AddressWidth) -> u64 {
    table.as_u64() & ADDRESS | (width as u64) << 2
}

#[cfg(test)]
mod tests {
    use super::{FirstStageLevels, PasidDirectoryEntry, PasidEntry, PasidTranslation, ScalableContextEntry};
    use crate::addr::PhysAddr;
    use crate::arch::vtd::layout::{AddressWidth, DomainId};

    const DOMAIN: DomainId = DomainId::new(0xabcd);

    #[test]
    fn context_entries() {
        // 9.4: P 0, FPD 1, DTE 2, PASIDE 3, PRE 4, PDTS 11:9, PASIDDIRPTR 63:12; RID_PASID 83:64.
        let entry = ScalableContextEntry::new(PhysAddr::new(0x9_8765_4000), 7).with_rid_pasid(0xf_fffe);
        let entry = entry.with_device_tlb().with_pasids().with_page_requests();
        assert_eq!(entry.words, [0x9_8765_4e1d, 0xf_fffe, 0, 0]);
        assert_eq!(entry.without_device_tlb().words, [0x9_8765_4e19, 0xf_fffe, 0, 0]);
        assert_eq!((entry.directory_entries(), entry.rid_pasid()), (1 << 14, 0xf_fffe));
        assert!(!entry.has_reserved_bits());
        for (word, bit) in [(0, 7), (0, 8), (1, 21), (1, 63), (2, 0), (3, 63)] {
            let mut bad = entry;
            bad.words[word] |= 1 << bit;
            assert!(bad.has_reserved_bits(), "bit {bit} of word {word}");
        }
    }

    #[test]
    fn pasid_entries() {
        // 9.6: AW 4:2, PGTT 8:6, SSADE 9, SSPTPTR 63:12; DID 79:64, PWSNP 87, PGSNP 88; SRE 128,
        // FSPM 131:130, WPE 132, EAFE 135, FSPTPTR 191:140.
        let table = PhysAddr::new(0x000a_bcde_f123_4000);
        let second = PasidEntry::second_stage(table, AddressWidth::Bits57, DOMAIN).with_second_stage_dirty();
        assert_eq!(second.words, [0x000a_bcde_f123_428d, 0xabcd, 0, 0, 0, 0, 0, 0]);
        let first = PasidEntry::first_stage(table, FirstStageLevels::Five, DOMAIN);
        let first = first.with_page_walk_snoop().with_page_snoop();
        assert_eq!(first.words, [0x41, 0x0180_abcd, 0x000a_bcde_f123_4004, 0, 0, 0, 0, 0]);
        let nested = PasidEntry::nested(0x7000, FirstStageLevels::Four, table, AddressWidth::Bits48, DOMAIN);
        assert_eq!(nested.words, [0x000a_bcde_f123_40c9, 0xabcd, 0x7000, 0, 0, 0, 0, 0]);
        let pass = PasidEntry::pass_through(AddressWidth::Bits39, DOMAIN);
        assert_eq!(pass.words, [0x105, 0xabcd, 0, 0, 0, 0, 0, 0]);
        assert_eq!(pass.translation(), Some(PasidTranslation::PassThrough));
        assert_eq!(nested.not_present().words[0], 0x000a_bcde_f123_40c8);
        for entry in [first, second, nested, pass] {
            assert!(!entry.has_reserved_bits() && entry.domain_id() == DOMAIN);
        }
    }

    #[test]
    fn reserved_bits_of_pasid_entries() {
        let entry = PasidEntry::second_stage(PhysAddr::new(0x7000), AddressWidth::Bits48, DOMAIN);
        // Bits of the whole entry; 133 and 134 are ignored.
        for bit in [5, 10, 11, 80, 86, 91, 95, 129, 136, 139, 192, 255, 259, 267, 336, 383, 384, 511] {
            let mut bad = entry;
            bad.words[bit / 64] |= 1 << (bit % 64);
            assert!(bad.has_reserved_bits(), "bit {bit}");
        }
        let mut fine = entry;
        fine.words[2] = 3 << 5;
        assert!(!fine.has_reserved_bits());
    }

    #[test]
    fn directory_entries() {
        let entry = PasidDirectoryEntry::new(PhysAddr::new(0x1000));
        assert_eq!(entry.table(), Some(PhysAddr::new(0x1000)));
        assert_eq!(PasidDirectoryEntry { word: 0x1002 }.table(), None);
        assert!(PasidDirectoryEntry { word: 0x1005 }.has_reserved_bits());
    }
}
