//! Descriptors in the invalidation queue (VT-d 6.5.2).
//!
//! [`Request`] is the meaning, [`Descriptor`] the bits; [`Request::encode`] and
//! [`Descriptor::decode`] go from one to the other.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod page_request;
mod scope;

use bitflags::bitflags;

pub use page_request::{PageRequest, PageRequestFlags, ResponseCode};
pub use scope::{Changed, ContextScope, DevicePasids, DeviceRange, Drain, IotlbScope, PasidIotlbScope, PasidScope};

use super::{DomainId, field};
use crate::addr::{Iova, PhysAddr};

/// A descriptor: four quadwords, of which a queue of 128-bit descriptors holds the first two.
///
/// ```
/// use iommu::arch::vtd::layout::descriptors::{ContextScope, Request};
/// let descriptor = Request::Context(ContextScope::Global).encode();
/// assert_eq!(descriptor.words, [0x11, 0, 0, 0]);
/// assert_eq!(descriptor.decode(), Some(Request::Context(ContextScope::Global)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Descriptor {
    /// The quadwords, lowest first.
    pub words: [u64; 4],
}

/// Which kind of request a descriptor is: bits 11:9 and 3:0 of it (VT-d 6.5.2).
pub mod kind {
    /// Context-cache invalidation (6.5.2.1).
    pub const CONTEXT: u8 = 0x1;
    /// IOTLB invalidation (6.5.2.3).
    pub const IOTLB: u8 = 0x2;
    /// Device-TLB invalidation (6.5.2.5).
    pub const DEVICE_TLB: u8 = 0x3;
    /// Interrupt entry cache invalidation (6.5.2.8).
    pub const INTERRUPT: u8 = 0x4;
    /// Wait (6.5.2.9).
    pub const WAIT: u8 = 0x5;
    /// PASID-based IOTLB invalidation (6.5.2.4), 256 bits.
    pub const PASID_IOTLB: u8 = 0x6;
    /// PASID-cache invalidation (6.5.2.2), 256 bits.
    pub const PASID_CACHE: u8 = 0x7;
    /// PASID-based device-TLB invalidation (6.5.2.6), 256 bits.
    pub const PASID_DEVICE_TLB: u8 = 0x8;
    /// Page group response (7.6.1), 256 bits.
    pub const PAGE_GROUP_RESPONSE: u8 = 0x9;
}

bitflags! {
    /// What a wait does (VT-d 6.5.2.9). Never ask for an interrupt and a status write at once: QEMU
    /// 7.2 dies of it.
    ///
    /// ```
    /// use iommu::arch::vtd::layout::descriptors::WaitFlags;
    /// assert_eq!((WaitFlags::STATUS_WRITE | WaitFlags::FENCE).bits(), 0x60);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct WaitFlags: u64 {
        /// IF: sets ICS.IWC, which may interrupt.
        const INTERRUPT = 1 << 4;
        /// SW: writes the status.
        const STATUS_WRITE = 1 << 5;
        /// FN: what follows is processed only afterwards.
        const FENCE = 1 << 6;
        /// PD: page requests received before are visible first. Needs ECAP.PDS.
        const DRAIN_PAGE_REQUESTS = 1 << 7;
    }
}

/// What a descriptor asks for.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::layout::descriptors::{Request, WaitFlags};
/// let wait = Request::Wait {
///     flags: WaitFlags::STATUS_WRITE | WaitFlags::FENCE,
///     address: PhysAddr::new(0x9000),
///     data: 5,
/// };
/// assert_eq!(wait.encode().words, [0x5_0000_0065, 0x9000, 0, 0]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Drop entries of the context cache. An IOTLB invalidation must follow.
    Context(ContextScope),
    /// Drop entries of the IOTLB and, unless told otherwise, of the paging-structure caches.
    Iotlb(IotlbScope, Drain),
    /// Drop entries of a device-TLB. The IOTLB must be invalidated before.
    DeviceTlb {
        /// Requester id of the device.
        source: u16,
        /// Requester id of its physical function if ECAP.DIT is set, else 0.
        physical_function: u16,
        /// How many invalidations the device takes at once, 1 to 31; 0 stands for 32.
        max_pending: u8,
        /// Which.
        range: DeviceRange,
    },
    /// Drop entries of the PASID cache; 256 bits. An IOTLB invalidation must follow.
    PasidCache(PasidScope),
    /// Drop entries of a first stage from the IOTLB and, unless told otherwise, of its paging-structure
    /// caches; 256 bits.
    PasidIotlb(PasidIotlbScope),
    /// Drop what a device-TLB holds for requests with PASID; 256 bits. The IOTLB must be invalidated
    /// before.
    PasidDeviceTlb {
        /// Requester id of the device.
        source: u16,
        /// Requester id of its physical function if ECAP.DIT is set, else 0.
        physical_function: u16,
        /// How many invalidations the device takes at once, 1 to 31; 0 stands for 32.
        max_pending: u8,
        /// Of which PASIDs.
        pasids: DevicePasids,
        /// Which.
        range: DeviceRange,
    },
    /// Answer the page requests of a group (7.6.1); 256 bits.
    PageGroupResponse {
        /// Requester id of the device.
        source: u16,
        /// The PASID of the requests, 20 bits, if they had one.
        pasid: Option<u32>,
        /// The group (PRGI), 9 bits.
        group: u16,
        /// What became of them.
        code: ResponseCode,
    },
    /// Drop all of the interrupt entry cache.
    InterruptAll,
    /// Drop `1 << mask` entries of the interrupt entry cache.
    Interrupt {
        /// The first.
        index: u16,
        /// log2 of their number, at most ECAP.MHMV.
        mask: u8,
    },
    /// Wait until everything before is done.
    Wait {
        /// What to do then.
        flags: WaitFlags,
        /// Where the status goes, aligned to 4 bytes.
        address: PhysAddr,
        /// The status.
        data: u32,
    },
}

impl Request {
    /// The bits. Fields that are too large for their place are cut.
    // Callers know the kind: then this is a few constants.
    #[inline(always)]
    pub const fn encode(self) -> Descriptor {
        let (low, high) = match self {
            Self::Context(ContextScope::Global) => (kind::CONTEXT as u64 | 1 << 4, 0),
            Self::Context(ContextScope::Domain(domain)) => (kind::CONTEXT as u64 | 2 << 4 | did(domain), 0),
            Self::Context(ContextScope::Device { domain, source, function_mask }) => {
                let function_mask = (function_mask as u64 & 3) << 48;
                (kind::CONTEXT as u64 | 3 << 4 | did(domain) | (source as u64) << 32 | function_mask, 0)
            }
            Self::Iotlb(IotlbScope::Global, drain) => (kind::IOTLB as u64 | 1 << 4 | drain.bits(), 0),
            Self::Iotlb(IotlbScope::Domain(domain), drain) => {
                (kind::IOTLB as u64 | 2 << 4 | did(domain) | drain.bits(), 0)
            }
            Self::Iotlb(IotlbScope::Pages { domain, address, mask, changed }, drain) => (
                kind::IOTLB as u64 | 3 << 4 | did(domain) | drain.bits(),
                address.as_u64() & !0xfff | (changed as u64) << 6 | mask as u64 & 0x3f,
            ),
            Self::DeviceTlb { source, physical_function, max_pending, range } => {
                let low = kind::DEVICE_TLB as u64 | (max_pending as u64 & 0x1f) << 16 | (source as u64) << 32;
                (low | function(physical_function), range.encode())
            }
            Self::PasidCache(PasidScope::Global) => (kind::PASID_CACHE as u64 | 3 << 4, 0),
            Self::PasidCache(PasidScope::Domain(domain)) => (kind::PASID_CACHE as u64 | did(domain), 0),
            Self::PasidCache(PasidScope::Pasid { domain, pasid: number }) => {
                (kind::PASID_CACHE as u64 | 1 << 4 | did(domain) | pasid(number), 0)
            }
            Self::PasidIotlb(PasidIotlbScope::Pasid { domain, pasid: number }) => {
                (kind::PASID_IOTLB as u64 | 2 << 4 | did(domain) | pasid(number), 0)
            }
            Self::PasidIotlb(PasidIotlbScope::Pages { domain, pasid: number, address, mask, changed }) => (
                kind::PASID_IOTLB as u64 | 3 << 4 | did(domain) | pasid(number),
                address.as_u64() & !0xfff | (changed as u64) << 6 | mask as u64 & 0x3f,
            ),
            Self::PasidDeviceTlb { source, physical_function, max_pending, pasids, range } => {
                let low = kind::PASID_DEVICE_TLB as u64 | (max_pending as u64 & 0x1f) << 4 | (source as u64) << 16;
                let (number, all) = match pasids {
                    DevicePasids::All => (0, 1),
                    DevicePasids::One(number) => (number, 0),
                };
                // S stands at bit 11 here.
                let range = range.encode();
                let range = range & !0xfff | (range & 1) << 11;
                (low | function(physical_function) | pasid(number), range | all)
            }
            Self::PageGroupResponse { source, pasid: number, group, code } => {
                let low = kind::PAGE_GROUP_RESPONSE as u64 | (code as u64) << 12 | (source as u64) << 16;
                let number = match number {
                    Some(number) => pasid(number) | 1 << 4,
                    None => 0,
                };
                // The type goes on in bits 11:9, which are zero for it.
                (low | number, (group as u64 & 0x1ff) << 3)
            }
            Self::InterruptAll => (kind::INTERRUPT as u64, 0),
            Self::Interrupt { index, mask } => {
                (kind::INTERRUPT as u64 | 1 << 4 | (mask as u64 & 0x1f) << 27 | (index as u64) << 32, 0)
            }
            Self::Wait { flags, address, data } => {
                (kind::WAIT as u64 | flags.bits() | (data as u64) << 32, address.as_u64() & !3)
            }
        };
        Descriptor { words: [low, high, 0, 0] }
    }
}

const fn did(domain: DomainId) -> u64 {
    (domain.as_u16() as u64) << 16
}

const fn pasid(number: u32) -> u64 {
    (number as u64 & 0xf_ffff) << 32
}

/// PFSID, which is split in two.
const fn function(requester: u16) -> u64 {
    let function = requester as u64;
    (function & 0xf) << 12 | function >> 4 << 52
}

/// PFSID of a request for a device TLB, by its first quadword.
pub(in crate::arch::vtd) const fn physical_function(low: u64) -> u16 {
    (field(low, 15, 12) | field(low, 63, 52) << 4) as u16
}

/// MIP of a request without PASID for a device TLB, by its first quadword.
pub(in crate::arch::vtd) const fn max_pending(low: u64) -> u8 {
    field(low, 20, 16) as u8
}

impl From<Request> for Descriptor {
    fn from(request: Request) -> Self {
        request.encode()
    }
}

impl Descriptor {
    /// Which kind of request this is: one of [`kind`], or anything.
    pub const fn kind(self) -> u8 {
        let [low, ..] = self.words;
        (low & 0xf | low >> 5 & 0x70) as u8
    }

    /// What the descriptor asks for; `None` where a unit must report an invalidation queue error: an
    /// unknown type, a reserved field or a reserved encoding.
    ///
    /// Limits that depend on the unit (address mask, PSI, ECAP.DIT, ...) are left to the caller.
    pub const fn decode(self) -> Option<Request> {
        let [low, high, third, fourth] = self.words;
        if third != 0 || fourth != 0 {
            return None;
        }
        let domain = DomainId::new(field(low, 31, 16) as u16);
        let source = field(low, 47, 32) as u16;
        match self.kind() {
            // Figure 6-1: G 5:4, DID 31:16, SID 47:32, FM 49:48.
            kind::CONTEXT if low & 0xfffc_0000_0000_f1c0 == 0 && high == 0 => match field(low, 5, 4) {
                1 => Some(Request::Context(ContextScope::Global)),
                2 => Some(Request::Context(ContextScope::Domain(domain))),
                3 => {
                    let function_mask = field(low, 49, 48) as u8;
                    Some(Request::Context(ContextScope::Device { domain, source, function_mask }))
                }
                _ => None,
            },
            // Figure 6-3: G 5:4, DW 6, DR 7, DID 31:16; AM 69:64, IH 70, address 127:76.
            kind::IOTLB if low & 0xffff_ffff_0000_f100 == 0 && high & 0xf80 == 0 => {
                let drain = Drain::from_bits_truncate(low);
                let mask = field(high, 5, 0) as u8;
                let address = Iova::new(high & !0xfff);
                let changed = if high & 1 << 6 == 0 { Changed::Tables } else { Changed::Leaves };
                match field(low, 5, 4) {
                    1 => Some(Request::Iotlb(IotlbScope::Global, drain)),
                    2 => Some(Request::Iotlb(IotlbScope::Domain(domain), drain)),
                    3 => Some(Request::Iotlb(IotlbScope::Pages { domain, address, mask, changed }, drain)),
                    _ => None,
                }
            }
            // Figure 6-5: PFSID 15:12 and 63:52, MIP 20:16, SID 47:32; S 64, address 127:76.
            kind::DEVICE_TLB if low & 0x000f_0000_ffe0_01f0 == 0 && high & 0xffe == 0 => Some(Request::DeviceTlb {
                source,
                physical_function: physical_function(low),
                max_pending: max_pending(low),
                range: DeviceRange::decode(high),
            }),
            // Figure 6-2: G 5:4, DID 31:16, PASID 51:32.
            kind::PASID_CACHE if low & 0xfff0_0000_0000_f1c0 == 0 && high == 0 => {
                let pasid = field(low, 51, 32) as u32;
                match field(low, 5, 4) {
                    0 => Some(Request::PasidCache(PasidScope::Domain(domain))),
                    1 => Some(Request::PasidCache(PasidScope::Pasid { domain, pasid })),
                    3 => Some(Request::PasidCache(PasidScope::Global)),
                    _ => None,
                }
            }
            // Figure 6-4: G 5:4, DID 31:16, PASID 51:32; AM 69:64, IH 70, address 127:76.
            kind::PASID_IOTLB if low & 0xfff0_0000_0000_f1c0 == 0 && high & 0xf80 == 0 => {
                let pasid = field(low, 51, 32) as u32;
                let changed = if high & 1 << 6 == 0 { Changed::Tables } else { Changed::Leaves };
                let (address, mask) = (Iova::new(high & !0xfff), field(high, 5, 0) as u8);
                match field(low, 5, 4) {
                    2 => Some(Request::PasidIotlb(PasidIotlbScope::Pasid { domain, pasid })),
                    3 => Some(Request::PasidIotlb(PasidIotlbScope::Pages { domain, pasid, address, mask, changed })),
                    _ => None,
                }
            }
            // Figure 6-6: MIP 8:4, PFSID 15:12 and 63:52, SID 31:16, PASID 51:32; GI 64, S 75, address
            // 127:76.
            kind::PASID_DEVICE_TLB if high & 0x7fe == 0 => Some(Request::PasidDeviceTlb {
                source: field(low, 31, 16) as u16,
                physical_function: physical_function(low),
                max_pending: field(low, 8, 4) as u8,
                pasids: if high & 1 == 0 { DevicePasids::One(field(low, 51, 32) as u32) } else { DevicePasids::All },
                range: DeviceRange::decode(high & !0xfff | high >> 11 & 1),
            }),
            // Figure 7-2: PP 4, RC 15:12, RID 31:16, PASID 51:32 (ignored without PP); ignored 66, PRGI 75:67.
            kind::PAGE_GROUP_RESPONSE if low & 0xfff0_0000_0000_01e0 == 0 && high & !0xffc == 0 => {
                let code = match ResponseCode::from_encoding(field(low, 15, 12)) {
                    Some(code) => code,
                    None => return None,
                };
                let pasid = if low & 1 << 4 == 0 { None } else { Some(field(low, 51, 32) as u32) };
                let (source, group) = (field(low, 31, 16) as u16, field(high, 11, 3) as u16);
                Some(Request::PageGroupResponse { source, pasid, group, code })
            }
            // Figure 6-8: G 4, IM 31:27, IIDX 47:32.
            kind::INTERRUPT if low & 0xffff_0000_07ff_f1e0 == 0 && high == 0 => match field(low, 4, 4) {
                0 => Some(Request::InterruptAll),
                _ => Some(Request::Interrupt { index: source, mask: field(low, 31, 27) as u8 }),
            },
            // Figure 6-9: IF 4, SW 5, FN 6, PD 7, data 63:32; status address 127:66.
            kind::WAIT if low & 0xffff_f100 == 0 && high & 3 == 0 => Some(Request::Wait {
                flags: WaitFlags::from_bits_truncate(low),
                address: PhysAddr::new(high),
                data: field(low, 63, 32) as u32,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Changed, ContextScope, Descriptor, DevicePasids, DeviceRange, Drain, IotlbScope, PasidIotlbScope, PasidScope,
        Request, ResponseCode, WaitFlags,
    };
    use crate::addr::{Iova, PhysAddr};
    use crate::arch::vtd::layout::DomainId;

    const DOMAIN: DomainId = DomainId::new(0xabcd);

    /// Values worked out by hand from the figures of 6.5.2.
    const GOLDEN: [(Request, [u64; 2]); 22] = [
        (Request::Context(ContextScope::Global), [0x11, 0]),
        (Request::Context(ContextScope::Domain(DOMAIN)), [0xabcd_0021, 0]),
        (
            Request::Context(ContextScope::Device { domain: DOMAIN, source: 0x1234, function_mask: 3 }),
            [0x3_1234_abcd_0031, 0],
        ),
        (Request::Iotlb(IotlbScope::Global, Drain::empty()), [0x12, 0]),
        (Request::Iotlb(IotlbScope::Domain(DOMAIN), Drain::WRITES), [0xabcd_0062, 0]),
        (
            Request::Iotlb(
                IotlbScope::Pages {
                    domain: DOMAIN,
                    address: Iova::new(0xffff_ffff_fff0_0000),
                    mask: 8,
                    changed: Changed::Tables,
                },
                Drain::READS,
            ),
            [0xabcd_00b2, 0xffff_ffff_fff0_0008],
        ),
        (
            Request::DeviceTlb {
                source: 0x1234,
                physical_function: 0x5678,
                max_pending: 31,
                range: DeviceRange { address: Iova::new(0x7000), order: 0 },
            },
            [0x5670_1234_001f_8003, 0x7000],
        ),
        (
            Request::DeviceTlb { source: 1, physical_function: 0, max_pending: 0, range: DeviceRange::ALL },
            [0x1_0000_0003, 0x7fff_ffff_ffff_f001],
        ),
        (
            Request::DeviceTlb {
                source: 1,
                physical_function: 0,
                max_pending: 0,
                range: DeviceRange { address: Iova::new(0x2000), order: 1 },
            },
            [0x1_0000_0003, 0x2001],
        ),
        (Request::InterruptAll, [0x4, 0]),
        (Request::Interrupt { index: 0xfff0, mask: 4 }, [0xfff0_2000_0014, 0]),
        (Request::Wait { flags: WaitFlags::INTERRUPT, address: PhysAddr::new(0), data: 0 }, [0x15, 0]),
        (
            Request::Wait {
                flags: WaitFlags::STATUS_WRITE.union(WaitFlags::FENCE),
                address: PhysAddr::new(0x1_2345_6788),
                data: 0xffff_ffff,
            },
            [0xffff_ffff_0000_0065, 0x1_2345_6788],
        ),
        (Request::PasidCache(PasidScope::Global), [0x37, 0]),
        (Request::PasidCache(PasidScope::Domain(DOMAIN)), [0xabcd_0007, 0]),
        (Request::PasidCache(PasidScope::Pasid { domain: DOMAIN, pasid: 0xf_edcb }), [0xf_edcb_abcd_0017, 0]),
        (Request::PasidIotlb(PasidIotlbScope::Pasid { domain: DOMAIN, pasid: 0x1_2345 }), [0x1_2345_abcd_0026, 0]),
        (
            Request::PasidIotlb(PasidIotlbScope::Pages {
                domain: DOMAIN,
                pasid: 1,
                address: Iova::new(0x7fff_ffe0_0000),
                mask: 9,
                changed: Changed::Leaves,
            }),
            [0x1_abcd_0036, 0x7fff_ffe0_0049],
        ),
        (
            Request::PasidDeviceTlb {
                source: 0x1234,
                physical_function: 0x5678,
                max_pending: 31,
                pasids: DevicePasids::One(0xf_ffff),
                range: DeviceRange { address: Iova::new(0x2000), order: 1 },
            },
            [0x567f_ffff_1234_81f8, 0x2800],
        ),
        (
            Request::PasidDeviceTlb {
                source: 1,
                physical_function: 0,
                max_pending: 0,
                pasids: DevicePasids::All,
                range: DeviceRange::ALL,
            },
            [0x1_0008, 0x7fff_ffff_ffff_f801],
        ),
        (
            Request::PageGroupResponse {
                source: 0x1234,
                pasid: Some(0xf_edcb),
                group: 0x1ff,
                code: ResponseCode::Failure,
            },
            [0xf_edcb_1234_f019, 0xff8],
        ),
        (
            Request::PageGroupResponse { source: 1, pasid: None, group: 5, code: ResponseCode::InvalidRequest },
            [0x1_1009, 0x28],
        ),
    ];

    #[test]
    fn golden_values() {
        for (request, [low, high]) in GOLDEN {
            let descriptor = Descriptor { words: [low, high, 0, 0] };
            assert_eq!(request.encode(), descriptor, "{request:?}");
            assert_eq!(descriptor.decode(), Some(request), "{low:#x} {high:#x}");
        }
    }

    #[test]
    fn device_ranges_of_every_size() {
        for order in 0..52 {
            let range = DeviceRange { address: Iova::new(1 << 63), order };
            assert_eq!(DeviceRange::decode(range.encode()), range, "order {order}");
        }
        assert_eq!(DeviceRange::decode(DeviceRange::ALL.encode()), DeviceRange::ALL);
        // All ones, which no driver writes, is taken for everything.
        assert_eq!(DeviceRange::decode(u64::MAX), DeviceRange::ALL);
    }

    #[test]
    fn reserved_bits_are_refused() {
        // One descriptor of each type, and the bits (of 128) that RsvdZ covers in its figure.
        let cases: [(usize, &[(u32, u32)]); 9] = [
            (0, &[(6, 8), (12, 15), (50, 63), (64, 127)]),
            (5, &[(8, 8), (12, 15), (32, 63), (71, 75)]),
            (6, &[(4, 8), (21, 31), (48, 51), (65, 75)]),
            (10, &[(5, 8), (12, 26), (48, 63), (64, 127)]),
            (12, &[(8, 8), (12, 31), (64, 65)]),
            (15, &[(6, 8), (12, 15), (52, 63), (64, 127)]),
            (17, &[(6, 8), (12, 15), (52, 63), (71, 75)]),
            (18, &[(65, 74)]),
            (20, &[(5, 8), (52, 63), (64, 65), (76, 127)]),
        ];
        for (case, ranges) in cases {
            let (request, [low, high]) = GOLDEN[case];
            for bit in ranges.iter().flat_map(|&(first, last)| first..=last) {
                let both = u128::from(low) | u128::from(high) << 64 | 1 << bit;
                let descriptor = Descriptor { words: [both as u64, (both >> 64) as u64, 0, 0] };
                assert_eq!(descriptor.decode(), None, "bit {bit} of {request:?}");
            }
            assert_eq!(Descriptor { words: [low, high, 1, 0] }.decode(), None);
            assert_eq!(Descriptor { words: [low, high, 0, 1] }.decode(), None);
            assert_eq!(Descriptor { words: [low | 0x200, high, 0, 0] }.decode(), None, "type[6:4]");
        }
        for word in [0x0, 0x01, 0x02, 0x6, 0x16, 0x27, 0x2009, 0xf] {
            assert_eq!(Descriptor { words: [word, 0, 0, 0] }.decode(), None, "{word:#x}");
        }
    }
}
