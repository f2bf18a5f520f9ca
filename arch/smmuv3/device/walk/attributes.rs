//! The type of memory (SMMU chapter 13; Arm ARM D8.6). Hints of allocation are not modelled.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use crate::arch::smmuv3::layout::identification::{Idr0, Idr1};
use crate::arch::smmuv3::layout::{Identification, Ste};
use crate::bus::Snoop;

/// How normal memory is cached, the weakest first (SMMU 13.1.5).
///
/// ```
/// use iommu::arch::smmuv3::device::walk::attributes::Cacheability;
/// assert!(Cacheability::WriteBack < Cacheability::NonCacheable);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cacheability {
    /// Write-back.
    WriteBack,
    /// Write-through.
    WriteThrough,
    /// Not at all.
    NonCacheable,
}

/// What a device must not be spared, the weakest first.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::attributes::Device;
/// assert!(Device::Gre < Device::NgNrNe);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Device {
    /// Gathering, reordering, early write acknowledgement.
    Gre,
    /// No gathering.
    NgRe,
    /// Nor reordering.
    NgNrE,
    /// Nor early acknowledgement.
    NgNrNe,
}

/// A type of memory; a stronger one is greater.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::MemoryType;
/// use iommu::arch::smmuv3::device::walk::attributes::{Cacheability, Device};
/// let normal = MemoryType::Normal { inner: Cacheability::WriteBack, outer: Cacheability::WriteBack };
/// assert_ne!(normal, MemoryType::Device(Device::NgNrE));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryType {
    /// Memory.
    Normal {
        /// In the inner caches.
        inner: Cacheability,
        /// In the outer caches.
        outer: Cacheability,
    },
    /// A device's registers.
    Device(Device),
}

/// Who sees the same, the weakest first.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::Shareability;
/// assert!(Shareability::Not < Shareability::Outer);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Shareability {
    /// Non-shareable.
    Not,
    /// Inner shareable.
    Inner,
    /// Outer shareable.
    Outer,
}

impl Shareability {
    /// SH of descriptors, STE and CD; the reserved value is for non-shareable.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0b11 {
            0b10 => Self::Outer,
            0b11 => Self::Inner,
            _ => Self::Not,
        }
    }
}

/// Type and shareability of an access.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{Attributes, Shareability};
/// // Write-back, inner shareable.
/// let memory = Attributes::from_mair(0xff, Shareability::Inner);
/// let device = Attributes::from_mair(0x04, Shareability::Inner);
/// assert_eq!(memory.combine(device), device);
/// assert_eq!(device.shareability, Shareability::Outer);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// The type.
    pub memory: MemoryType,
    /// Who shares it.
    pub shareability: Shareability,
}

const WRITE_BACK: MemoryType = MemoryType::Normal { inner: Cacheability::WriteBack, outer: Cacheability::WriteBack };
const NON_CACHEABLE: MemoryType =
    MemoryType::Normal { inner: Cacheability::NonCacheable, outer: Cacheability::NonCacheable };

impl Attributes {
    /// What a request has that brings none (SMMU 13.1.3).
    pub const INCOMING: Self = Self { memory: WRITE_BACK, shareability: Shareability::Not };

    const fn new(memory: MemoryType, shareability: Shareability) -> Self {
        // 13.1.7.
        let shareability = match memory {
            MemoryType::Device(_)
            | MemoryType::Normal { inner: Cacheability::NonCacheable, outer: Cacheability::NonCacheable } => {
                Shareability::Outer
            }
            MemoryType::Normal { .. } => shareability,
        };
        Self { memory, shareability }
    }

    /// One attribute of MAIR (SMMU 5.4: what the Arm ARM leaves unpredictable is said there).
    pub const fn from_mair(attribute: u8, shareability: Shareability) -> Self {
        const fn cacheability(bits: u8) -> Cacheability {
            match bits {
                0b0100 => Cacheability::NonCacheable,
                0b0101..=0b0111 | 0b1100..=0b1111 => Cacheability::WriteBack,
                _ => Cacheability::WriteThrough,
            }
        }
        let memory = match attribute >> 4 {
            0 => MemoryType::Device(device(attribute >> 2)),
            outer => MemoryType::Normal { inner: cacheability(attribute & 0xf), outer: cacheability(outer) },
        };
        Self::new(memory, shareability)
    }

    /// Cacheability and shareability of CR1, STE and CD: inner, outer, SH.
    pub const fn from_fields([inner, outer, shareability]: [u8; 3]) -> Self {
        const fn cacheability(bits: u8) -> Cacheability {
            match bits & 0b11 {
                0b00 => Cacheability::NonCacheable,
                0b10 => Cacheability::WriteThrough,
                _ => Cacheability::WriteBack,
            }
        }
        let memory = MemoryType::Normal { inner: cacheability(inner), outer: cacheability(outer) };
        Self::new(memory, Shareability::from_bits(shareability))
    }

    /// MemAttr of stage 2 and of an STE. Reserved values are for the strongest device.
    pub const fn from_stage2(bits: u8, shareability: Shareability) -> Self {
        const fn cacheability(bits: u8) -> Option<Cacheability> {
            match bits & 0b11 {
                0b01 => Some(Cacheability::NonCacheable),
                0b10 => Some(Cacheability::WriteThrough),
                0b11 => Some(Cacheability::WriteBack),
                _ => None,
            }
        }
        let memory = match (cacheability(bits >> 2), cacheability(bits)) {
            (None, _) => MemoryType::Device(device(bits)),
            (Some(outer), Some(inner)) => MemoryType::Normal { inner, outer },
            (Some(_), None) => MemoryType::Device(Device::NgNrNe),
        };
        Self::new(memory, shareability)
    }

    /// What a request has before it is translated: its own attributes, for which the defaults are taken, or
    /// those of the STE (13.1.4).
    pub fn incoming(identification: &Identification, ste: &Ste) -> Self {
        if !identification.idr1().contains(Idr1::ATTR_TYPES_OVR) {
            return Self::INCOMING;
        }
        let shareability = match ste.shareability() {
            0b01 => Self::INCOMING.shareability,
            bits => Shareability::from_bits(bits),
        };
        match ste.memory_type() {
            Some(bits) => Self::from_stage2(bits, shareability),
            None => Self::new(WRITE_BACK, shareability),
        }
    }

    /// The stronger of both (13.1.5).
    pub fn combine(self, other: Self) -> Self {
        let memory = match (self.memory, other.memory) {
            (MemoryType::Device(one), MemoryType::Device(two)) => MemoryType::Device(one.max(two)),
            (MemoryType::Device(device), _) | (_, MemoryType::Device(device)) => MemoryType::Device(device),
            (MemoryType::Normal { inner, outer }, MemoryType::Normal { inner: other_inner, outer: other_outer }) => {
                MemoryType::Normal { inner: inner.max(other_inner), outer: outer.max(other_outer) }
            }
        };
        Self::new(memory, self.shareability.max(other.shareability))
    }

    /// What stage 2 makes of it when it forces types (S2FWB, 13.1.6; Arm ARM D8.6.6).
    pub fn forced(self, bits: u8, shareability: Shareability) -> Self {
        let is_device = matches!(self.memory, MemoryType::Device(_));
        let memory = match bits & 0b111 {
            0b111 => self.memory,
            0b110 => WRITE_BACK,
            0b100 | 0b101 if is_device => self.memory,
            0b100 | 0b101 => NON_CACHEABLE,
            bits => Self { memory: MemoryType::Device(device(bits)), ..self }.combine(self).memory,
        };
        Self::new(memory, self.shareability.max(shareability))
    }

    /// Whether it is a device's.
    pub const fn is_device(self) -> bool {
        matches!(self.memory, MemoryType::Device(_))
    }

    /// Whether an access of the unit itself sees what the processor has in its caches: only one that is
    /// cacheable and shareable may (SMMU 6.3.1, COHACC).
    pub fn snoop(self, identification: &Identification) -> Snoop {
        let cached = match self.memory {
            MemoryType::Normal { inner, outer } => {
                inner != Cacheability::NonCacheable && outer != Cacheability::NonCacheable
            }
            MemoryType::Device(_) => false,
        };
        let coherent = identification.idr0().contains(Idr0::COHACC);
        if coherent && cached && self.shareability != Shareability::Not { Snoop::Yes } else { Snoop::No }
    }
}

const fn device(bits: u8) -> Device {
    match bits & 0b11 {
        0b00 => Device::NgNrNe,
        0b01 => Device::NgNrE,
        0b10 => Device::NgRe,
        _ => Device::Gre,
    }
}
