//! Commands (SMMU 4).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::{Asid, Granule, StreamId, Vmid, field, with_field};
use crate::addr::PhysAddr;

/// Quadwords of a command.
pub const COMMAND_WORDS: usize = 2;
/// Bytes of a command.
pub const COMMAND_BYTES: u64 = 16;

/// Whether an invalidation leaves entries alone that are not at the last level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaf {
    /// Only the last level: an STE or CD without the descriptor above it, a page without the tables above it.
    Only,
    /// All levels.
    AllLevels,
}

/// Which addresses a TLB invalidation by address is for (SMMU 4.4.1).
///
/// Without `granule` (TG is 0) it is the one page or block at `address`, whatever its size; NUM, SCALE
/// and TTL are 0. With one (only where IDR3.RIL is set) it is `(num + 1) << scale` granules.
///
/// ```
/// use iommu::arch::smmuv3::layout::Granule;
/// use iommu::arch::smmuv3::layout::commands::TlbRange;
/// let page = TlbRange::page(0x7000);
/// assert_eq!(page.bytes(), None);
/// let range = TlbRange { granule: Some(Granule::Size4K), ttl: 3, num: 4, scale: 1, ..page };
/// assert_eq!(range.bytes(), Some(10 * 4096));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbRange {
    /// The first address, aligned to 4 KiB, or to the granule.
    pub address: u64,
    /// TG.
    pub granule: Option<Granule>,
    /// TTL: the level of the leaves, 1 to 3; 0 for any level.
    pub ttl: u8,
    /// NUM, 0 to 31.
    pub num: u8,
    /// SCALE, 0 to 63.
    pub scale: u8,
}

impl TlbRange {
    /// The page or block at `address`.
    pub const fn page(address: u64) -> Self {
        Self { address, granule: None, ttl: 0, num: 0, scale: 0 }
    }

    /// Bytes of the range, at most `u64::MAX`; `None` without a granule.
    pub const fn bytes(self) -> Option<u64> {
        match self.granule {
            Some(granule) => {
                let granules = (self.num as u64 & 0x1f).saturating_add(1);
                let shift = (self.scale & 0x3f).wrapping_add(granule.log2()) as u32;
                // What does not fit ends at the top (4.4.1.1: it does not wrap).
                Some(if granules.leading_zeros() > shift { granules << shift } else { u64::MAX })
            }
            None => None,
        }
    }
}

/// How a CMD_SYNC tells that it is done (SMMU 4.7.3); CMDQ_CONS passes it in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Completion {
    /// By CMDQ_CONS only (CS = 0).
    None,
    /// By an interrupt: a message if `address` is not 0 and the unit has messages (CS = 1).
    Interrupt {
        /// Where the message is written.
        address: PhysAddr,
        /// What is written, 32 bits.
        data: u32,
        /// MSIAttr, as STE.MemAttr.
        attributes: u8,
        /// MSH.
        shareability: u8,
    },
    /// By an event to waiting processors (CS = 2).
    Event,
}

/// CMD_PRI_RESP.Resp (SMMU 4.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageResponse {
    /// Page requests fail for good.
    Denied,
    /// The address is not valid, or not with this permission.
    Invalid,
    /// The page is there.
    Success,
}

/// CMD_RESUME: what becomes of a request that waits (SMMU 4.7.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resume {
    /// It is terminated as CD.A says.
    Terminate,
    /// It is tried again.
    Retry,
    /// It is terminated with an abort.
    Abort,
}

/// A command. `substream` is `None` where SSV is 0.
///
/// ```
/// use iommu::arch::smmuv3::layout::commands::{Command, Leaf};
/// use iommu::arch::smmuv3::layout::StreamId;
/// let command = Command::ConfigSte { stream: StreamId(0x20), leaf: Leaf::Only };
/// assert_eq!(command.encode(), [0x20 << 32 | 0x03, 1]);
/// assert_eq!(Command::decode(command.encode()), Some(command));
/// assert_eq!(Command::decode([0xff, 0]), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// CMD_PREFETCH_CONFIG (4.2.1).
    PrefetchConfig {
        /** StreamID. */
        stream: StreamId,
        /** SubstreamID. */
        substream: Option<u32>,
    },
    /// CMD_PREFETCH_ADDR (4.2.2); its range is a hint.
    PrefetchAddress {
        /** StreamID. */
        stream: StreamId,
        /** SubstreamID. */
        substream: Option<u32>,
        /** Addr. */
        address: u64,
    },
    /// CMD_CFGI_STE (4.3.1).
    ConfigSte {
        /** StreamID. */
        stream: StreamId,
        /** Leaf. */
        leaf: Leaf,
    },
    /// CMD_CFGI_STE_RANGE (4.3.2): `1 << (range + 1)` StreamIDs around `stream`.
    ConfigSteRange {
        /** StreamID. */
        stream: StreamId,
        /** Range, 0 to 30. */
        range: u8,
    },
    /// CMD_CFGI_CD (4.3.3).
    ConfigCd {
        /** StreamID. */
        stream: StreamId,
        /** SubstreamID. */
        substream: u32,
        /** Leaf. */
        leaf: Leaf,
    },
    /// CMD_CFGI_CD_ALL (4.3.4).
    ConfigCdAll {
        /** StreamID. */
        stream: StreamId,
    },
    /// CMD_CFGI_ALL (4.3.6): CMD_CFGI_STE_RANGE with Range 31.
    ConfigAll,
    /// CMD_TLBI_NH_ALL (4.4.2.1).
    TlbNhAll {
        /** VMID. */
        vmid: Vmid,
    },
    /// CMD_TLBI_NH_ASID (4.4.2.2).
    TlbNhAsid {
        /** VMID. */
        vmid: Vmid,
        /** ASID. */
        asid: Asid,
    },
    /// CMD_TLBI_NH_VAA (4.4.2.3).
    TlbNhVaa {
        /** VMID. */
        vmid: Vmid,
        /** Addresses. */
        range: TlbRange,
        /** Leaf. */
        leaf: Leaf,
    },
    /// CMD_TLBI_NH_VA (4.4.2.4).
    TlbNhVa {
        /** VMID. */
        vmid: Vmid,
        /** ASID. */
        asid: Asid,
        /** Addresses. */
        range: TlbRange,
        /** Leaf. */
        leaf: Leaf,
    },
    /// CMD_TLBI_EL2_ALL (4.4.2.7).
    TlbEl2All,
    /// CMD_TLBI_EL2_VA (4.4.2.8).
    TlbEl2Va {
        /** ASID; ignored without CR2.E2H. */
        asid: Asid,
        /** Addresses. */
        range: TlbRange,
        /** Leaf. */
        leaf: Leaf,
    },
    /// CMD_TLBI_EL2_VAA (4.4.2.9).
    TlbEl2Vaa {
        /** Addresses. */
        range: TlbRange,
        /** Leaf. */
        leaf: Leaf,
    },
    /// CMD_TLBI_EL2_ASID (4.4.2.10).
    TlbEl2Asid {
        /** ASID. */
        asid: Asid,
    },
    /// CMD_TLBI_S2_IPA (4.4.3.1).
    TlbS2Ipa {
        /** VMID. */
        vmid: Vmid,
        /** Addresses. */
        range: TlbRange,
        /** Leaf. */
        leaf: Leaf,
    },
    /// CMD_TLBI_S12_VMALL (4.4.3.2).
    TlbS12Vmall {
        /** VMID. */
        vmid: Vmid,
    },
    /// CMD_TLBI_NSNH_ALL (4.4.4.1).
    TlbNsnhAll,
    /// CMD_ATC_INV (4.5.1): `1 << size_log2` bytes around `address`, all of them with 64.
    AtcInvalidate {
        /** StreamID. */
        stream: StreamId,
        /** SubstreamID. */
        substream: Option<u32>,
        /** Address, aligned to 4 KiB. */
        address: u64,
        /** Binary logarithm of the bytes, 12 to 64. */
        size_log2: u8,
    },
    /// CMD_PRI_RESP (4.5.2).
    PriResponse {
        /** StreamID. */
        stream: StreamId,
        /** SubstreamID. */
        substream: Option<u32>,
        /** PRGIndex, 9 bits. */
        group: u16,
        /** Resp. */
        response: PageResponse,
    },
    /// CMD_RESUME (4.7.1).
    Resume {
        /** StreamID. */
        stream: StreamId,
        /** STAG. */
        tag: u16,
        /** Ac and Ab. */
        action: Resume,
    },
    /// CMD_STALL_TERM (4.7.2).
    StallTerminate {
        /** StreamID. */
        stream: StreamId,
    },
    /// CMD_SYNC (4.7.3).
    Sync {
        /** ComplSignal. */
        completion: Completion,
    },
}

/// Opcodes (SMMU 4.1.1).
pub mod opcode {
    /// CMD_PREFETCH_CONFIG.
    pub const PREFETCH_CONFIG: u8 = 0x01;
    /// CMD_PREFETCH_ADDR.
    pub const PREFETCH_ADDR: u8 = 0x02;
    /// CMD_CFGI_STE.
    pub const CFGI_STE: u8 = 0x03;
    /// CMD_CFGI_STE_RANGE and CMD_CFGI_ALL.
    pub const CFGI_STE_RANGE: u8 = 0x04;
    /// CMD_CFGI_CD.
    pub const CFGI_CD: u8 = 0x05;
    /// CMD_CFGI_CD_ALL.
    pub const CFGI_CD_ALL: u8 = 0x06;
    /// CMD_TLBI_NH_ALL.
    pub const TLBI_NH_ALL: u8 = 0x10;
    /// CMD_TLBI_NH_ASID.
    pub const TLBI_NH_ASID: u8 = 0x11;
    /// CMD_TLBI_NH_VA.
    pub const TLBI_NH_VA: u8 = 0x12;
    /// CMD_TLBI_NH_VAA.
    pub const TLBI_NH_VAA: u8 = 0x13;
    /// CMD_TLBI_EL2_ALL.
    pub const TLBI_EL2_ALL: u8 = 0x20;
    /// CMD_TLBI_EL2_ASID.
    pub const TLBI_EL2_ASID: u8 = 0x21;
    /// CMD_TLBI_EL2_VA.
    pub const TLBI_EL2_VA: u8 = 0x22;
    /// CMD_TLBI_EL2_VAA.
    pub const TLBI_EL2_VAA: u8 = 0x23;
    /// CMD_TLBI_S12_VMALL.
    pub const TLBI_S12_VMALL: u8 = 0x28;
    /// CMD_TLBI_S2_IPA.
    pub const TLBI_S2_IPA: u8 = 0x2a;
    /// CMD_TLBI_NSNH_ALL.
    pub const TLBI_NSNH_ALL: u8 = 0x30;
    /// CMD_ATC_INV.
    pub const ATC_INV: u8 = 0x40;
    /// CMD_PRI_RESP.
    pub const PRI_RESP: u8 = 0x41;
    /// CMD_RESUME.
    pub const RESUME: u8 = 0x44;
    /// CMD_STALL_TERM.
    pub const STALL_TERM: u8 = 0x45;
    /// CMD_SYNC.
    pub const SYNC: u8 = 0x46;
}

/// SSV.
const SUBSTREAM_VALID: u64 = 1 << 11;
/// Bits 63:12 of an address.
const PAGE_ADDRESS: u64 = !0xfff;
/// Range of CMD_CFGI_ALL.
const RANGE_ALL: u64 = 31;
/// Size of CMD_ATC_INV for all addresses.
const SIZE_ALL: u64 = 52;

impl Command {
    /// The quadwords, lowest first.
    pub const fn encode(self) -> [u64; COMMAND_WORDS] {
        use opcode::{
            ATC_INV, CFGI_CD, CFGI_CD_ALL, CFGI_STE, CFGI_STE_RANGE, PREFETCH_ADDR, PREFETCH_CONFIG, PRI_RESP, RESUME,
            STALL_TERM, SYNC, TLBI_EL2_ALL, TLBI_EL2_ASID, TLBI_EL2_VA, TLBI_EL2_VAA, TLBI_NH_ALL, TLBI_NH_ASID,
            TLBI_NH_VA, TLBI_NH_VAA, TLBI_NSNH_ALL, TLBI_S2_IPA, TLBI_S12_VMALL,
        };
        match self {
            Self::PrefetchConfig { stream, substream } => [substreamed(PREFETCH_CONFIG, stream, substream), 0],
            Self::PrefetchAddress { stream, substream, address } => {
                [substreamed(PREFETCH_ADDR, stream, substream), address & PAGE_ADDRESS]
            }
            Self::ConfigSte { stream, leaf } => [streamed(CFGI_STE, stream), leaf_bit(leaf)],
            Self::ConfigSteRange { stream, range } => [streamed(CFGI_STE_RANGE, stream), range as u64 & 0x1f],
            Self::ConfigCd { stream, substream, leaf } => {
                [with_field(streamed(CFGI_CD, stream), 31, 12, substream as u64), leaf_bit(leaf)]
            }
            Self::ConfigCdAll { stream } => [streamed(CFGI_CD_ALL, stream), 0],
            Self::ConfigAll => [CFGI_STE_RANGE as u64, RANGE_ALL],
            Self::TlbNhAll { vmid } => [tagged(TLBI_NH_ALL, vmid, Asid(0)), 0],
            Self::TlbNhAsid { vmid, asid } => [tagged(TLBI_NH_ASID, vmid, asid), 0],
            Self::TlbNhVaa { vmid, range, leaf } => ranged(tagged(TLBI_NH_VAA, vmid, Asid(0)), range, leaf),
            Self::TlbNhVa { vmid, asid, range, leaf } => ranged(tagged(TLBI_NH_VA, vmid, asid), range, leaf),
            Self::TlbEl2All => [TLBI_EL2_ALL as u64, 0],
            Self::TlbEl2Va { asid, range, leaf } => ranged(tagged(TLBI_EL2_VA, Vmid(0), asid), range, leaf),
            Self::TlbEl2Vaa { range, leaf } => ranged(tagged(TLBI_EL2_VAA, Vmid(0), Asid(0)), range, leaf),
            Self::TlbEl2Asid { asid } => [tagged(TLBI_EL2_ASID, Vmid(0), asid), 0],
            Self::TlbS2Ipa { vmid, range, leaf } => ranged(tagged(TLBI_S2_IPA, vmid, Asid(0)), range, leaf),
            Self::TlbS12Vmall { vmid } => [tagged(TLBI_S12_VMALL, vmid, Asid(0)), 0],
            Self::TlbNsnhAll => [TLBI_NSNH_ALL as u64, 0],
            Self::AtcInvalidate { stream, substream, address, size_log2 } => {
                let size = size_log2.saturating_sub(12) as u64 & 0x3f;
                [substreamed(ATC_INV, stream, substream), address & PAGE_ADDRESS | size]
            }
            Self::PriResponse { stream, substream, group, response } => {
                let response = match response {
                    PageResponse::Denied => 0,
                    PageResponse::Invalid => 1,
                    PageResponse::Success => 2,
                };
                [substreamed(PRI_RESP, stream, substream), group as u64 & 0x1ff | response << 12]
            }
            Self::Resume { stream, tag, action } => {
                let action = match action {
                    Resume::Terminate => 0,
                    Resume::Retry => 1,
                    Resume::Abort => 2,
                };
                [streamed(RESUME, stream) | action << 12, tag as u64]
            }
            Self::StallTerminate { stream } => [streamed(STALL_TERM, stream), 0],
            Self::Sync { completion: Completion::None } => [SYNC as u64, 0],
            Self::Sync { completion: Completion::Event } => [SYNC as u64 | 2 << 12, 0],
            Self::Sync { completion: Completion::Interrupt { address, data, attributes, shareability } } => {
                let low = with_field(SYNC as u64 | 1 << 12, 23, 22, shareability as u64);
                let low = with_field(low, 27, 24, attributes as u64);
                [with_field(low, 63, 32, data as u64), address.as_u64() & MESSAGE_ADDRESS]
            }
        }
    }

    /// What the quadwords say; `None` for an opcode that is not one of these, or a reserved value of a
    /// field that they have. Bits that no field has are not looked at, nor is SSec.
    pub const fn decode(words: [u64; COMMAND_WORDS]) -> Option<Self> {
        let [low, high] = words;
        let stream = StreamId(field(low, 63, 32) as u32);
        let substream = if low & SUBSTREAM_VALID == 0 { None } else { Some(field(low, 31, 12) as u32) };
        let (vmid, asid) = (Vmid(field(low, 47, 32) as u16), Asid(field(low, 63, 48) as u16));
        let leaf = if high & 1 == 0 { Leaf::AllLevels } else { Leaf::Only };
        let range = TlbRange {
            address: high & PAGE_ADDRESS,
            granule: Granule::from_command_tg(field(high, 11, 10)),
            ttl: field(high, 9, 8) as u8,
            num: field(low, 16, 12) as u8,
            scale: field(low, 25, 20) as u8,
        };
        Some(match field(low, 7, 0) as u8 {
            opcode::PREFETCH_CONFIG => Self::PrefetchConfig { stream, substream },
            opcode::PREFETCH_ADDR => Self::PrefetchAddress { stream, substream, address: high & PAGE_ADDRESS },
            opcode::CFGI_STE => Self::ConfigSte { stream, leaf },
            opcode::CFGI_STE_RANGE => match field(high, 4, 0) {
                RANGE_ALL => Self::ConfigAll,
                range => Self::ConfigSteRange { stream, range: range as u8 },
            },
            opcode::CFGI_CD => Self::ConfigCd { stream, substream: field(low, 31, 12) as u32, leaf },
            opcode::CFGI_CD_ALL => Self::ConfigCdAll { stream },
            opcode::TLBI_NH_ALL => Self::TlbNhAll { vmid },
            opcode::TLBI_NH_ASID => Self::TlbNhAsid { vmid, asid },
            opcode::TLBI_NH_VA => Self::TlbNhVa { vmid, asid, range, leaf },
            opcode::TLBI_NH_VAA => Self::TlbNhVaa { vmid, range, leaf },
            opcode::TLBI_EL2_ALL => Self::TlbEl2All,
            opcode::TLBI_EL2_VA => Self::TlbEl2Va { asid, range, leaf },
            opcode::TLBI_EL2_VAA => Self::TlbEl2Vaa { range, leaf },
            opcode::TLBI_EL2_ASID => Self::TlbEl2Asid { asid },
            opcode::TLBI_S12_VMALL => Self::TlbS12Vmall { vmid },
            opcode::TLBI_S2_IPA => Self::TlbS2Ipa { vmid, range, leaf },
            opcode::TLBI_NSNH_ALL => Self::TlbNsnhAll,
            opcode::ATC_INV => {
                let size = field(high, 5, 0);
                let size_log2 = if size >= SIZE_ALL { 64 } else { (size as u8).saturating_add(12) };
                Self::AtcInvalidate { stream, substream, address: high & PAGE_ADDRESS, size_log2 }
            }
            opcode::PRI_RESP => {
                let response = match field(high, 13, 12) {
                    0 => PageResponse::Denied,
                    1 => PageResponse::Invalid,
                    2 => PageResponse::Success,
                    _ => return None,
                };
                Self::PriResponse { stream, substream, group: field(high, 8, 0) as u16, response }
            }
            opcode::RESUME => {
                let action = match field(low, 13, 12) {
                    0 => Resume::Terminate,
                    2 => Resume::Abort,
                    _ => Resume::Retry,
                };
                Self::Resume { stream, tag: field(high, 15, 0) as u16, action }
            }
            opcode::STALL_TERM => Self::StallTerminate { stream },
            opcode::SYNC => Self::Sync {
                completion: match field(low, 13, 12) {
                    0 => Completion::None,
                    1 => Completion::Interrupt {
                        address: PhysAddr::new(high & MESSAGE_ADDRESS),
                        data: field(low, 63, 32) as u32,
                        attributes: field(low, 27, 24) as u8,
                        shareability: field(low, 23, 22) as u8,
                    },
                    2 => Completion::Event,
                    _ => return None,
                },
            },
            _ => return None,
        })
    }
}

/// Bits 51:2.
const MESSAGE_ADDRESS: u64 = (1 << 52) - (1 << 2);

const fn streamed(opcode: u8, stream: StreamId) -> u64 {
    (stream.0 as u64) << 32 | opcode as u64
}

const fn substreamed(opcode: u8, stream: StreamId, substream: Option<u32>) -> u64 {
    match substream {
        Some(substream) => with_field(streamed(opcode, stream) | SUBSTREAM_VALID, 31, 12, substream as u64),
        None => streamed(opcode, stream),
    }
}

const fn tagged(opcode: u8, vmid: Vmid, asid: Asid) -> u64 {
    (asid.0 as u64) << 48 | (vmid.0 as u64) << 32 | opcode as u64
}

const fn ranged(low: u64, range: TlbRange, leaf: Leaf) -> [u64; COMMAND_WORDS] {
    let high = range.address & PAGE_ADDRESS | leaf_bit(leaf);
    match range.granule {
        None => [low, high],
        Some(granule) => {
            let low = with_field(with_field(low, 16, 12, range.num as u64), 25, 20, range.scale as u64);
            [low, with_field(high, 9, 8, range.ttl as u64) | granule.command_tg() << 10]
        }
    }
}

const fn leaf_bit(leaf: Leaf) -> u64 {
    match leaf {
        Leaf::Only => 1,
        Leaf::AllLevels => 0,
    }
}
