//! Root and context entries (VT-d 9.1 and 9.3).
//!
//! Both are pairs of quadwords. The driver writes the high one first, then the low one with P.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::{DomainId, field};
use crate::addr::PhysAddr;

/// Entries in a root table: one a bus (VT-d 9.1).
pub const ROOT_ENTRIES: usize = 256;
/// Entries in a legacy context table: one a function (VT-d 9.3).
pub const CONTEXT_ENTRIES: usize = 256;
/// Quadwords of a root entry and of a legacy context entry.
pub const ENTRY_WORDS: usize = 2;

/// Bits 63:12 of an entry: the address of a table.
const ADDRESS: u64 = !0xfff;
const P: u64 = 1 << 0;
const FPD: u64 = 1 << 1;

/// A root entry: which context table describes the functions of a bus (VT-d 9.1).
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::layout::RootEntry;
/// let entry = RootEntry::new(PhysAddr::new(0x7000));
/// assert_eq!((entry.low, entry.high), (0x7001, 0));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RootEntry {
    /// Quadword 0: P and the context table.
    pub low: u64,
    /// Quadword 1: reserved in legacy mode, zero.
    pub high: u64,
}

impl RootEntry {
    /// A present entry for the context table at `table`, aligned to 4096 bytes.
    pub const fn new(table: PhysAddr) -> Self {
        Self { low: table.as_u64() & ADDRESS | P, high: 0 }
    }

    /// The context table, or `None` when the entry is not present.
    pub const fn context_table(self) -> Option<PhysAddr> {
        if self.low & P == 0 { None } else { Some(PhysAddr::new(self.low & ADDRESS)) }
    }

    /// Whether a reserved bit is set, which faults when the entry is present (LRT.3).
    pub const fn has_reserved_bits(self) -> bool {
        self.low & 0xffe != 0 || self.high != 0
    }
}

/// How many bits of address a second stage translates, and with how many levels (VT-d 9.3, AW).
///
/// ```
/// use iommu::arch::vtd::layout::AddressWidth;
/// assert_eq!(AddressWidth::from_levels(4), Some(AddressWidth::Bits48));
/// assert_eq!(AddressWidth::Bits48.bits(), 48);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AddressWidth {
    /// 39 bits, 3 levels.
    Bits39 = 1,
    /// 48 bits, 4 levels.
    Bits48 = 2,
    /// 57 bits, 5 levels.
    Bits57 = 3,
}

impl AddressWidth {
    /// The width of a table of 3, 4 or 5 levels.
    pub const fn from_levels(levels: u32) -> Option<Self> {
        match levels {
            3 => Some(Self::Bits39),
            4 => Some(Self::Bits48),
            5 => Some(Self::Bits57),
            _ => None,
        }
    }

    /// The width with this encoding in an entry (and this bit number in SAGAW).
    pub const fn from_encoding(aw: u64) -> Option<Self> {
        match aw {
            1 => Some(Self::Bits39),
            2 => Some(Self::Bits48),
            3 => Some(Self::Bits57),
            _ => None,
        }
    }

    /// Levels of the table.
    pub const fn levels(self) -> u32 {
        match self {
            Self::Bits39 => 3,
            Self::Bits48 => 4,
            Self::Bits57 => 5,
        }
    }

    /// Bits of an address.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits39 => 39,
            Self::Bits48 => 48,
            Self::Bits57 => 57,
        }
    }
}

/// What happens to a device's requests (VT-d 9.3, TT).
///
/// ```
/// use iommu::arch::vtd::layout::tables::TranslationType;
/// assert_eq!(TranslationType::PassThrough as u64, 2);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranslationType {
    /// Untranslated requests go through the second stage; what ATS sends is blocked.
    Untranslated = 0,
    /// As above, and ATS is served. Needs ECAP.DT.
    DeviceTlb = 1,
    /// Untranslated requests pass, the table is ignored. Needs ECAP.PT.
    PassThrough = 2,
}

/// A legacy context entry: how requests of one function are translated (VT-d 9.3).
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::layout::tables::TranslationType;
/// use iommu::arch::vtd::layout::{AddressWidth, ContextEntry, DomainId};
///
/// let table = PhysAddr::new(0x1234_5000);
/// let entry = ContextEntry::new(TranslationType::Untranslated, table, AddressWidth::Bits48, DomainId::new(7));
/// assert_eq!((entry.low, entry.high), (0x1234_5001, 0x702));
/// assert_eq!(entry.domain_id(), DomainId::new(7));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ContextEntry {
    /// Quadword 0: P, FPD, TT and the second-stage table.
    pub low: u64,
    /// Quadword 1: AW and the domain id.
    pub high: u64,
}

impl ContextEntry {
    /// A present entry. `table` is the top second-stage table, aligned to 4096 bytes; with
    /// pass-through it is ignored, but `width` must be the largest that the unit has.
    pub const fn new(kind: TranslationType, table: PhysAddr, width: AddressWidth, domain: DomainId) -> Self {
        Self {
            low: table.as_u64() & ADDRESS | (kind as u64) << 2 | P,
            high: width as u64 | (domain.as_u16() as u64) << 8,
        }
    }

    /// The same entry, whose qualified faults are not recorded (FPD).
    pub const fn without_fault_recording(self) -> Self {
        Self { low: self.low | FPD, high: self.high }
    }

    /// The same entry, not present: P cleared, the rest kept. The first step of every change.
    pub const fn not_present(self) -> Self {
        Self { low: self.low & !P, high: self.high }
    }

    /// P.
    pub const fn is_present(self) -> bool {
        self.low & P != 0
    }

    /// FPD: qualified faults are not recorded.
    pub const fn suppresses_faults(self) -> bool {
        self.low & FPD != 0
    }

    /// TT; `None` for the encoding that is reserved.
    pub const fn translation_type(self) -> Option<TranslationType> {
        match field(self.low, 3, 2) {
            0 => Some(TranslationType::Untranslated),
            1 => Some(TranslationType::DeviceTlb),
            2 => Some(TranslationType::PassThrough),
            _ => None,
        }
    }

    /// SSPTPTR: the top second-stage table.
    pub const fn table(self) -> PhysAddr {
        PhysAddr::new(self.low & ADDRESS)
    }

    /// AW; `None` for encodings that are reserved.
    pub const fn width(self) -> Option<AddressWidth> {
        AddressWidth::from_encoding(field(self.high, 2, 0))
    }

    /// DID.
    pub const fn domain_id(self) -> DomainId {
        DomainId::new(field(self.high, 23, 8) as u16)
    }

    /// Whether a reserved bit is set, which faults when the entry is present (LCT.3).
    pub const fn has_reserved_bits(self) -> bool {
        self.low & 0xff0 != 0 || self.high & !0xff_ff7f != 0
    }
}

impl From<[u64; ENTRY_WORDS]> for ContextEntry {
    fn from([low, high]: [u64; ENTRY_WORDS]) -> Self {
        Self { low, high }
    }
}

impl From<ContextEntry> for [u64; ENTRY_WORDS] {
    fn from(entry: ContextEntry) -> Self {
        [entry.low, entry.high]
    }
}

#[cfg(test)]
mod tests {
    use super::{AddressWidth, ContextEntry, RootEntry, TranslationType};
    use crate::addr::PhysAddr;
    use crate::arch::vtd::layout::DomainId;

    #[test]
    fn root_entries() {
        // 9.1: P bit 0, CTP bits 63:12.
        let entry = RootEntry::new(PhysAddr::new(0x000a_bcde_f123_4000));
        assert_eq!(entry, RootEntry { low: 0x000a_bcde_f123_4001, high: 0 });
        assert_eq!(entry.context_table(), Some(PhysAddr::new(0x000a_bcde_f123_4000)));
        assert_eq!(RootEntry::default().context_table(), None);
        assert!(RootEntry { low: 0x4003, high: 0 }.has_reserved_bits());
        assert!(RootEntry { low: 0x4001, high: 1 }.has_reserved_bits());
        assert!(!entry.has_reserved_bits());
    }

    #[test]
    fn context_entries() {
        // 9.3: P 0, FPD 1, TT 3:2, SSPTPTR 63:12; AW 66:64, DID 87:72.
        let entry = ContextEntry::new(
            TranslationType::PassThrough,
            PhysAddr::new(0x9_8765_4000),
            AddressWidth::Bits39,
            DomainId::new(0xabcd),
        );
        assert_eq!((entry.low, entry.high), (0x9_8765_4009, 0xab_cd01));
        assert_eq!(entry.without_fault_recording().low, 0x9_8765_400b);
        assert_eq!(entry.not_present().low, 0x9_8765_4008);
        assert_eq!(entry.translation_type(), Some(TranslationType::PassThrough));
        assert_eq!(entry.width(), Some(AddressWidth::Bits39));
        assert_eq!(entry.table(), PhysAddr::new(0x9_8765_4000));
        assert!(!entry.has_reserved_bits());
    }

    #[test]
    fn context_entries_from_anywhere() {
        let bad = ContextEntry { low: 0x1d, high: 0x100_0080 };
        assert_eq!((bad.translation_type(), bad.width()), (None, None));
        assert!(bad.has_reserved_bits());
        // Bits 70:67 are ignored by hardware and bit 71 is reserved (9.3).
        assert!(!ContextEntry { low: 1, high: 0x7a }.has_reserved_bits());
        assert!(ContextEntry { low: 1, high: 0x80 }.has_reserved_bits());
    }
}
