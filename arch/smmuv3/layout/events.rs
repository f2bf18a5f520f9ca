//! Event records (SMMU 7.3).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::{StreamId, field, with_field};

/// Quadwords of an event record.
pub const EVENT_WORDS: usize = 4;
/// Bytes of an event record.
pub const EVENT_BYTES: u64 = 32;

/// The kind of an event: the number in its first byte (SMMU 7.3).
///
/// ```
/// use iommu::arch::smmuv3::layout::events::EventKind;
/// assert_eq!(EventKind::F_TRANSLATION.text(), "nothing is mapped there");
/// assert_eq!(EventKind(0x10), EventKind::F_TRANSLATION);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct EventKind(pub u8);

impl EventKind {
    /// Unsupported upstream transaction (7.3.2).
    pub const F_UUT: Self = Self(0x01);
    /// StreamID out of range (7.3.3).
    pub const C_BAD_STREAMID: Self = Self(0x02);
    /// The STE could not be read (7.3.4).
    pub const F_STE_FETCH: Self = Self(0x03);
    /// STE not valid, or illegal (7.3.5).
    pub const C_BAD_STE: Self = Self(0x04);
    /// A translation request that is not permitted (7.3.6).
    pub const F_BAD_ATS_TREQ: Self = Self(0x05);
    /// A request without SubstreamID, where STE.S1DSS terminates those (7.3.7).
    pub const F_STREAM_DISABLED: Self = Self(0x06);
    /// A translated request that is not permitted (7.3.8).
    pub const F_TRANSL_FORBIDDEN: Self = Self(0x07);
    /// SubstreamID out of range (7.3.9).
    pub const C_BAD_SUBSTREAMID: Self = Self(0x08);
    /// The CD could not be read (7.3.10).
    pub const F_CD_FETCH: Self = Self(0x09);
    /// CD not valid, or illegal (7.3.11).
    pub const C_BAD_CD: Self = Self(0x0a);
    /// A translation table could not be read (7.3.12).
    pub const F_WALK_EABT: Self = Self(0x0b);
    /// No translation (7.3.13).
    pub const F_TRANSLATION: Self = Self(0x10);
    /// An output address beyond the size (7.3.14).
    pub const F_ADDR_SIZE: Self = Self(0x11);
    /// The access flag is not set (7.3.15).
    pub const F_ACCESS: Self = Self(0x12);
    /// No permission (7.3.16).
    pub const F_PERMISSION: Self = Self(0x13);
    /// Conflicting TLB entries (7.3.17).
    pub const F_TLB_CONFLICT: Self = Self(0x20);
    /// Conflicting configuration cache entries (7.3.18).
    pub const F_CFG_CONFLICT: Self = Self(0x21);
    /// A hint about pages that will be needed (7.3.19).
    pub const E_PAGE_REQUEST: Self = Self(0x24);
    /// The VMS could not be read (7.3.20).
    pub const F_VMS_FETCH: Self = Self(0x25);

    /// The kind in words, to follow "refused:".
    pub const fn text(self) -> &'static str {
        match self {
            Self::F_UUT => "a kind of request that the unit does not know",
            Self::C_BAD_STREAMID => "StreamID beyond the stream table",
            Self::F_STE_FETCH => "stream table entry could not be read",
            Self::C_BAD_STE => "stream table entry not valid",
            Self::F_BAD_ATS_TREQ => "translation request not permitted",
            Self::F_STREAM_DISABLED => "request without SubstreamID not permitted",
            Self::F_TRANSL_FORBIDDEN => "translated request not permitted",
            Self::C_BAD_SUBSTREAMID => "SubstreamID beyond the context descriptors",
            Self::F_CD_FETCH => "context descriptor could not be read",
            Self::C_BAD_CD => "context descriptor not valid",
            Self::F_WALK_EABT => "translation table could not be read",
            Self::F_TRANSLATION => "nothing is mapped there",
            Self::F_ADDR_SIZE => "address beyond what the tables translate to",
            Self::F_ACCESS => "access flag not set",
            Self::F_PERMISSION => "not permitted",
            Self::F_TLB_CONFLICT => "conflicting TLB entries",
            Self::F_CFG_CONFLICT => "conflicting cached configuration",
            Self::E_PAGE_REQUEST => "page request hint",
            Self::F_VMS_FETCH => "virtual machine structure could not be read",
            _ => "unknown event",
        }
    }

    /// Whether the record has an input address, and what the request wanted.
    pub const fn has_address(self) -> bool {
        matches!(
            self,
            Self::F_UUT
                | Self::F_BAD_ATS_TREQ
                | Self::F_TRANSL_FORBIDDEN
                | Self::F_WALK_EABT
                | Self::F_TRANSLATION
                | Self::F_ADDR_SIZE
                | Self::F_ACCESS
                | Self::F_PERMISSION
                | Self::F_TLB_CONFLICT
                | Self::E_PAGE_REQUEST
        )
    }

    /// Whether it is one of the faults of a translation, which can stall: with CLASS and S2.
    pub const fn is_translation_fault(self) -> bool {
        matches!(self, Self::F_TRANSLATION | Self::F_ADDR_SIZE | Self::F_ACCESS | Self::F_PERMISSION)
    }
}

/// What a translation fault met (CLASS, SMMU 7.3.13).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FaultClass {
    /// The fetch of a context descriptor.
    Cd,
    /// The fetch of a translation table entry.
    TranslationTable,
    /// The request's own address.
    #[default]
    Input,
    /// The reserved value.
    Reserved,
}

/// An event record, all of its fields taken apart. Fields that a kind does not have are zero.
///
/// ```
/// use iommu::arch::smmuv3::layout::StreamId;
/// use iommu::arch::smmuv3::layout::events::{EventKind, EventRecord};
/// let event = EventRecord {
///     kind: EventKind::F_TRANSLATION,
///     stream: StreamId(8),
///     read: true,
///     address: 0x1234,
///     ..EventRecord::default()
/// };
/// let words = event.encode();
/// assert_eq!(words, [8 << 32 | 0x10, (0x200 | 1 << 3) << 32, 0x1234, 0]);
/// assert_eq!(EventRecord::decode(words), event);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventRecord {
    /// What happened.
    pub kind: EventKind,
    /// StreamID.
    pub stream: StreamId,
    /// SubstreamID, if SSV is set.
    pub substream: Option<u32>,
    /// STAG, if the request waits (Stall is set).
    pub stall: Option<u16>,
    /// PnU: the request was privileged.
    pub privileged: bool,
    /// InD: it was an instruction fetch.
    pub instruction: bool,
    /// RnW: it was a read.
    pub read: bool,
    /// S2: stage 2 refused.
    pub stage2: bool,
    /// CLASS.
    pub class: FaultClass,
    /// TTRnW: with F_PERMISSION and CLASS TT, that stage 2 refused the read of a stage-1 table.
    pub table_read: bool,
    /// InputAddr, to the byte.
    pub address: u64,
    /// Quadword 3: the intermediate address of a stage-2 fault, or the address that could not be read.
    pub second_address: u64,
}

impl Default for EventRecord {
    fn default() -> Self {
        Self {
            kind: EventKind(0),
            stream: StreamId(0),
            substream: None,
            stall: None,
            privileged: false,
            instruction: false,
            read: false,
            stage2: false,
            class: FaultClass::Input,
            table_read: false,
            address: 0,
            second_address: 0,
        }
    }
}

const SUBSTREAM_VALID: u64 = 1 << 11;
/// Bits of quadword 1.
const STALL: u64 = 1 << 31;
/// R, W, X and P of F_BAD_ATS_TREQ (7.3.6): what the translation request asked for.
const ATS_READ: u64 = 1 << 31;
const ATS_WRITE: u64 = 1 << 30;
const ATS_EXECUTE: u64 = 1 << 29;
const ATS_PRIVILEGED: u64 = 1 << 28;
const PRIVILEGED: u64 = 1 << 33;
const INSTRUCTION: u64 = 1 << 34;
const READ: u64 = 1 << 35;
const STAGE2: u64 = 1 << 39;
const TABLE_READ: u64 = 1 << 44;

impl EventRecord {
    /// The quadwords, lowest first.
    pub const fn encode(self) -> [u64; EVENT_WORDS] {
        let mut first = (self.stream.0 as u64) << 32 | self.kind.0 as u64;
        if let Some(substream) = self.substream {
            first = with_field(first | SUBSTREAM_VALID, 31, 12, substream as u64);
        }
        if self.kind.0 == EventKind::F_BAD_ATS_TREQ.0 {
            return [first, self.encode_ats(), self.address & !0xfff, 0];
        }
        let mut second = 0;
        if let Some(tag) = self.stall {
            second |= STALL | tag as u64;
        }
        if self.privileged {
            second |= PRIVILEGED;
        }
        if self.instruction {
            second |= INSTRUCTION;
        }
        if self.read {
            second |= READ;
        }
        if self.stage2 {
            second |= STAGE2;
        }
        if self.table_read {
            second |= TABLE_READ;
        }
        if self.kind.is_translation_fault() || self.kind.0 == EventKind::F_WALK_EABT.0 {
            let class = match self.class {
                FaultClass::Cd => 0,
                FaultClass::TranslationTable => 1,
                FaultClass::Input => 2,
                FaultClass::Reserved => 3,
            };
            second = with_field(second, 41, 40, class);
        }
        [first, second, self.address, self.second_address]
    }

    /// Quadword 1 of F_BAD_ATS_TREQ, which always asks for reading.
    const fn encode_ats(self) -> u64 {
        let mut word = ATS_READ;
        if !self.read {
            word |= ATS_WRITE;
        }
        if self.instruction {
            word |= ATS_EXECUTE;
        }
        if self.privileged {
            word |= ATS_PRIVILEGED;
        }
        word
    }

    /// What the quadwords say. A translation request that asks for writing is one that does not read.
    pub const fn decode(words: [u64; EVENT_WORDS]) -> Self {
        let [first, second, address, second_address] = words;
        let kind = EventKind(field(first, 7, 0) as u8);
        let ats = kind.0 == EventKind::F_BAD_ATS_TREQ.0;
        let has_class = kind.is_translation_fault() || kind.0 == EventKind::F_WALK_EABT.0;
        Self {
            kind,
            stream: StreamId(field(first, 63, 32) as u32),
            substream: if first & SUBSTREAM_VALID == 0 { None } else { Some(field(first, 31, 12) as u32) },
            stall: if second & STALL == 0 || !kind.is_translation_fault() { None } else { Some(second as u16) },
            privileged: second & if ats { ATS_PRIVILEGED } else { PRIVILEGED } != 0,
            instruction: second & if ats { ATS_EXECUTE } else { INSTRUCTION } != 0,
            read: if ats { second & ATS_WRITE == 0 } else { second & READ != 0 },
            stage2: has_class && second & STAGE2 != 0,
            class: match field(second, 41, 40) {
                _ if !has_class => FaultClass::Input,
                0 => FaultClass::Cd,
                1 => FaultClass::TranslationTable,
                2 => FaultClass::Input,
                _ => FaultClass::Reserved,
            },
            table_read: kind.0 == EventKind::F_PERMISSION.0 && second & TABLE_READ != 0,
            address,
            second_address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EventKind, EventRecord, FaultClass};
    use crate::arch::smmuv3::layout::StreamId;

    #[test]
    fn a_refused_translation_request_does_not_wait() {
        // R and P, InputAddr without its low bits.
        let words = [9 << 32 | 5 << 12 | 1 << 11 | 0x05, 0b1001 << 28, 0x1234_5000, 0];
        let event = EventRecord {
            kind: EventKind::F_BAD_ATS_TREQ,
            stream: StreamId(9),
            substream: Some(5),
            read: true,
            privileged: true,
            address: 0x1234_5000,
            ..EventRecord::default()
        };
        assert_eq!((EventRecord::decode(words), event.encode()), (event, words));
    }

    #[test]
    fn a_stalled_fault_of_stage_2() {
        let event = EventRecord {
            kind: EventKind::F_PERMISSION,
            stream: StreamId(1),
            stall: Some(0x1234),
            stage2: true,
            class: FaultClass::TranslationTable,
            second_address: 0x5000,
            ..EventRecord::default()
        };
        let words = event.encode();
        assert_eq!(words[1], 1 << 31 | 0x1234 | (1 << 7 | 1 << 8) << 32);
        assert_eq!(EventRecord::decode(words), event);
    }
}
