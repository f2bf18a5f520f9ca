//! Bits of registers and structures in memory, each defined once with its section.
//!
//! Sections are those of issue G.b of the specification (IHI 0070, "SMMU" for short). Nothing here
//! touches hardware: these are numbers and what they mean, for the driver that programs a unit and for
//! the device that is one. All structures are little-endian.

pub mod commands;
pub mod context;
pub mod events;
pub mod identification;
pub mod page_requests;
pub mod registers;
pub mod stream_table;

pub use commands::Command;
pub use context::{Cd, L1Cd};
pub use events::EventRecord;
pub use identification::Identification;
pub use stream_table::{L1Std, Ste};

use core::fmt;

/// Who issued a request, as a unit sees it (SMMU 3.2): an index into its stream table.
///
/// ```
/// use iommu::arch::smmuv3::layout::StreamId;
/// assert_eq!(StreamId(0x20).to_string(), "0x20");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct StreamId(pub u32);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The number under which a unit caches stage-1 translations of one address space (SMMU 3.17).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Asid(pub u16);

/// The number under which a unit caches the translations of one virtual machine, those of stage 1
/// included (SMMU 3.17). Without stage 2 it is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Vmid(pub u16);

/// A translation granule.
///
/// The same two bits stand for it in STE.S2TG and CD.TG0 (SMMU 5.2, 5.4), others in CD.TG1, and others
/// in commands (4.4.1).
///
/// ```
/// use iommu::arch::smmuv3::layout::Granule;
/// assert_eq!(Granule::Size64K.tg0(), 1);
/// assert_eq!(Granule::from_tg0(2), Some(Granule::Size16K));
/// assert_eq!(Granule::Size4K.log2(), 12);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Granule {
    /// 4 KiB.
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

impl Granule {
    /// All of them, the smallest first.
    pub const ALL: [Self; 3] = [Self::Size4K, Self::Size16K, Self::Size64K];

    /// Binary logarithm of its bytes.
    pub const fn log2(self) -> u8 {
        match self {
            Self::Size4K => 12,
            Self::Size16K => 14,
            Self::Size64K => 16,
        }
    }

    /// CD.TG0 and STE.S2TG.
    pub const fn tg0(self) -> u64 {
        match self {
            Self::Size4K => 0,
            Self::Size64K => 1,
            Self::Size16K => 2,
        }
    }

    /// What CD.TG0 or STE.S2TG stands for; `None` for the reserved value.
    pub const fn from_tg0(bits: u64) -> Option<Self> {
        match bits {
            0 => Some(Self::Size4K),
            1 => Some(Self::Size64K),
            2 => Some(Self::Size16K),
            _ => None,
        }
    }

    /// CD.TG1.
    pub const fn tg1(self) -> u64 {
        match self {
            Self::Size16K => 1,
            Self::Size4K => 2,
            Self::Size64K => 3,
        }
    }

    /// What CD.TG1 stands for; `None` for the reserved value.
    pub const fn from_tg1(bits: u64) -> Option<Self> {
        match bits {
            1 => Some(Self::Size16K),
            2 => Some(Self::Size4K),
            3 => Some(Self::Size64K),
            _ => None,
        }
    }

    /// TG of a command (SMMU 4.4.1); zero there says that no range is given.
    pub const fn command_tg(self) -> u64 {
        match self {
            Self::Size4K => 1,
            Self::Size16K => 2,
            Self::Size64K => 3,
        }
    }

    /// What TG of a command stands for; `None` for zero.
    pub const fn from_command_tg(bits: u64) -> Option<Self> {
        match bits {
            1 => Some(Self::Size4K),
            2 => Some(Self::Size16K),
            3 => Some(Self::Size64K),
            _ => None,
        }
    }
}

/// Bits `low` to `high` (both included) of `value`, shifted down.
const fn field(value: u64, high: u32, low: u32) -> u64 {
    value >> low & u64::MAX >> (63 - (high - low))
}

/// `value` with bits `low` to `high` (both included) replaced; what does not fit is cut off.
const fn with_field(value: u64, high: u32, low: u32, bits: u64) -> u64 {
    let mask = u64::MAX >> (63 - (high - low));
    value & !(mask << low) | (bits & mask) << low
}
