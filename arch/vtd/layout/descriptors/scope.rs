//! What a request covers.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use bitflags::bitflags;

use crate::addr::Iova;
use crate::arch::vtd::layout::DomainId;

/// Which context-cache entries are to go (VT-d 6.5.2.1).
///
/// ```
/// use iommu::arch::vtd::layout::DomainId;
/// use iommu::arch::vtd::layout::descriptors::{ContextScope, Request};
/// let scope = ContextScope::Device { domain: DomainId::new(2), source: 0x10, function_mask: 0 };
/// assert_eq!(Request::Context(scope).encode().words[0], 0x10_0002_0031);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextScope {
    /// All.
    Global,
    /// Those with this domain id.
    Domain(DomainId),
    /// Those of a function.
    Device {
        /// The domain id that its entry held.
        domain: DomainId,
        /// Its requester id.
        source: u16,
        /// How many bits of the function number are ignored, 0 to 3, counted from bit 2 downwards
        /// (Table 21).
        function_mask: u8,
    },
}

/// Which PASID-cache entries are to go (VT-d 6.5.2.2).
///
/// ```
/// use iommu::arch::vtd::layout::DomainId;
/// use iommu::arch::vtd::layout::descriptors::{PasidScope, Request};
/// let scope = PasidScope::Pasid { domain: DomainId::new(2), pasid: 5 };
/// assert_eq!(Request::PasidCache(scope).encode().words[0], 0x5_0002_0017);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidScope {
    /// All.
    Global,
    /// Those with this domain id.
    Domain(DomainId),
    /// Those of a PASID within a domain id.
    Pasid {
        /// The domain id that its entry held.
        domain: DomainId,
        /// The PASID, 20 bits.
        pasid: u32,
    },
}

/// Which IOTLB entries of a first stage are to go (VT-d 6.5.2.4).
///
/// ```
/// use iommu::arch::vtd::layout::DomainId;
/// use iommu::arch::vtd::layout::descriptors::{PasidIotlbScope, Request};
/// let scope = PasidIotlbScope::Pasid { domain: DomainId::new(2), pasid: 5 };
/// assert_eq!(Request::PasidIotlb(scope).encode().words, [0x5_0002_0026, 0, 0, 0]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidIotlbScope {
    /// Those of a PASID within a domain id.
    Pasid {
        /// The domain id.
        domain: DomainId,
        /// The PASID, 20 bits.
        pasid: u32,
    },
    /// Those of `1 << mask` pages of 4096 bytes.
    Pages {
        /// The domain id.
        domain: DomainId,
        /// The PASID, 20 bits.
        pasid: u32,
        /// Where they begin, aligned to their number.
        address: Iova,
        /// log2 of their number, at most CAP.MAMV.
        mask: u8,
        /// What was changed.
        changed: Changed,
    },
}

/// Which PASIDs a device-TLB drops entries of (VT-d 6.5.2.6, GI).
///
/// ```
/// use iommu::arch::vtd::layout::descriptors::DevicePasids;
/// assert_ne!(DevicePasids::All, DevicePasids::One(0));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DevicePasids {
    /// All of them, if the device honours Global Invalidate.
    All,
    /// One, 20 bits.
    One(u32),
}

/// Whether tables, or only leaf entries were changed (VT-d 6.5.2.3, IH).
///
/// ```
/// use iommu::arch::vtd::layout::descriptors::Changed;
/// assert_eq!(Changed::Leaves as u64, 1);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// IH clear: cached non-leaf entries go too. Needed whenever a table was unlinked.
    Tables = 0,
    /// IH set: cached non-leaf entries may stay.
    Leaves = 1,
}

/// Which IOTLB entries are to go (VT-d 6.5.2.3).
///
/// ```
/// use iommu::Iova;
/// use iommu::arch::vtd::layout::DomainId;
/// use iommu::arch::vtd::layout::descriptors::{Changed, Drain, IotlbScope, Request};
/// // 512 pages: 2 MiB.
/// let scope = IotlbScope::Pages {
///     domain: DomainId::new(7),
///     address: Iova::new(0x20_0000),
///     mask: 9,
///     changed: Changed::Leaves,
/// };
/// let words = Request::Iotlb(scope, Drain::READS | Drain::WRITES).encode().words;
/// assert_eq!(words, [0x7_00f2, 0x20_0049, 0, 0]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IotlbScope {
    /// All.
    Global,
    /// Those of a domain.
    Domain(DomainId),
    /// Those of `1 << mask` pages of 4096 bytes. Needs CAP.PSI.
    Pages {
        /// The domain.
        domain: DomainId,
        /// Where they begin, aligned to their number.
        address: Iova,
        /// log2 of their number, at most CAP.MAMV.
        mask: u8,
        /// What was changed.
        changed: Changed,
    },
}

bitflags! {
    /// Which requests in flight must be through before the next wait completes (VT-d 6.5.2.3). Set
    /// as CAP.DWD and CAP.DRD say; later units drain always.
    ///
    /// ```
    /// use iommu::arch::vtd::layout::descriptors::Drain;
    /// assert_eq!((Drain::READS | Drain::WRITES).bits(), 0xc0);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Drain: u64 {
        /// DW: writes.
        const WRITES = 1 << 6;
        /// DR: reads.
        const READS = 1 << 7;
    }
}

/// Which addresses are to go from a device-TLB (VT-d 6.5.2.5; PCIe 10.3.1).
///
/// ```
/// use iommu::Iova;
/// use iommu::arch::vtd::layout::descriptors::DeviceRange;
/// let range = DeviceRange { address: Iova::new(0x8000), order: 3 };
/// assert_eq!(range.encode(), 0xb001); // S, and bits below the size all ones
/// assert_eq!(DeviceRange::ALL.encode(), 0x7fff_ffff_ffff_f001);
/// assert_eq!(DeviceRange::decode(0xb001), range);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceRange {
    /// Where the pages begin, aligned to their number.
    pub address: Iova,
    /// log2 of the number of pages of 4096 bytes, at most 52.
    pub order: u8,
}

impl DeviceRange {
    /// Every address.
    pub const ALL: Self = Self { address: Iova::new(0), order: 52 };

    /// Address and S as they stand in a descriptor.
    pub const fn encode(self) -> u64 {
        match self.order {
            0 => self.address.as_u64() & !0xfff,
            order => {
                let order = if order > 52 { 52 } else { order as u32 };
                // The lowest zero bit from bit 12 on tells the size: all below it is ones.
                let ones = u64::MAX >> (64_u32.wrapping_sub(order)) >> 1 << 12;
                let size_and_offset = ones << 1 | 1 << 12;
                self.address.as_u64() & !0xfff & !size_and_offset | ones | 1
            }
        }
    }

    /// The range that address and S in a descriptor stand for.
    pub const fn decode(word: u64) -> Self {
        if word & 1 == 0 {
            return Self { address: Iova::new(word & !0xfff), order: 0 };
        }
        let ones = (word >> 12).trailing_ones();
        let order = if ones > 51 { 52 } else { ones.wrapping_add(1) };
        let address = if order == 52 { 0 } else { word >> 12 >> order << order << 12 };
        Self { address: Iova::new(address), order: order as u8 }
    }
}
