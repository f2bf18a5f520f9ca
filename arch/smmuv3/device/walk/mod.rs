//! How tables are walked: from the StreamID to the page (SMMU 3.3, 3.4, chapters 5, 13 and 15; "Arm ARM" is
//! the A-profile architecture, DDI 0487, D8).
//!
//! Nothing is cached here, and nothing is kept: what is read comes from the [`Host`](super::Host) each time,
//! once for each word, and is judged from that copy. The tables may belong to a hostile guest that changes
//! them meanwhile.
//!
//! | file | what it does |
//! |---|---|
//! | `stream`, `ste` | finds a stream table entry, and says whether it is valid |
//! | `context`, `cd` | finds a context descriptor, and says whether it is valid |
//! | `stage1`, `stage2` | walk the tables of one stage |
//! | `nested` | a request through the stages that its stream has |
//! | `format` | what one descriptor says, for each granule |
//! | `permissions`, `attributes` | what is permitted, and which type the memory has |
//! | `fault` | what goes wrong, as an event record says it |
//! | `structure` | the hook for caches within a walk |
//!
//! Only what Non-secure streams use is here, and of that not: VMSAv8-32 and VMSAv9-128 tables, hardware update
//! of access flags and dirty state (the place is [`stage1`]'s and [`stage2`]'s check of the access flag),
//! permission indirections and overlays, MPAM, DPT. [`supported`] takes them out of the identification
//! registers.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

pub mod attributes;
mod cd;
pub mod context;
mod fault;
mod format;
pub mod nested;
mod permissions;
pub mod stage1;
pub mod stage2;
mod ste;
pub mod stream;
pub mod structure;
#[cfg(test)]
mod tests;

pub use attributes::{Attributes, MemoryType, Shareability};
pub use cd::check as check_cd;
pub use context::{Context, Tags, context};
pub use fault::{Fault, Response, Stage, Verdict};
pub use nested::{Translation, translate};
pub use permissions::Permissions;
pub use ste::check as check_ste;
pub use stream::{E2h, Route, StreamTable, StreamWorld, overridden, route, stream, world};
pub use structure::{NoStructureCache, Structure, StructureCache};

use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::identification::output_bits_of;
use crate::arch::smmuv3::layout::{Granule, Identification};

/// What a request does to memory.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::Access;
/// assert!(Access::Execute.is_read() && !Access::Atomic.is_read());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads data.
    Read,
    /// Reads instructions. There are no writes of instructions (SMMU 13.1.2).
    Execute,
    /// Writes.
    Write,
    /// Reads and writes (SMMU 13.1.1: an atomic operation).
    Atomic,
}

impl Access {
    /// RnW of an event, but for an atomic operation that may write and not read.
    pub const fn is_read(self) -> bool {
        matches!(self, Self::Read | Self::Execute)
    }
}

/// Who a request speaks for (PnU).
///
/// ```
/// use iommu::arch::smmuv3::device::walk::Privilege;
/// assert_ne!(Privilege::Unprivileged, Privilege::Privileged);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// An application; also every PCIe request without PASID (SMMU 13.7).
    Unprivileged,
    /// An operating system.
    Privileged,
}

/// What a walk is made for.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::Goal;
/// assert_ne!(Goal::Access, Goal::Translation);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// A request: what it lacks permission for is a fault.
    Access,
    /// A translation request, or a prefetch: it learns what is permitted.
    Translation,
}

/// What is looked up.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{Access, Goal, Lookup};
/// let lookup = Lookup::new(0x1234, Access::Write);
/// assert_eq!(lookup.goal, Goal::Access);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lookup {
    /// The address, all 64 bits as the request has them.
    pub address: u64,
    /// What is done there.
    pub access: Access,
    /// Who for. What the STE says instead goes in with [`overridden`].
    pub privilege: Privilege,
    /// What for.
    pub goal: Goal,
}

impl Lookup {
    /// An unprivileged request.
    pub const fn new(address: u64, access: Access) -> Self {
        Self { address, access, privilege: Privilege::Unprivileged, goal: Goal::Access }
    }
}

/// For whom a stage-1 translation holds (nG of a descriptor).
///
/// ```
/// use iommu::arch::smmuv3::device::walk::Scope;
/// assert_ne!(Scope::Global, Scope::Asid);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// For all ASIDs, and invalidated without one.
    Global,
    /// For the ASID that it was walked for.
    Asid,
}

/// Whether a translation may be kept (nT of a block, SMMU 3.21.1.3).
///
/// ```
/// use iommu::arch::smmuv3::device::walk::Retained;
/// assert_ne!(Retained::Freely, Retained::Not);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retained {
    /// It may.
    Freely,
    /// The block is about to be replaced without break-before-make.
    Not,
}

/// Where the walk of one stage ends: a page or a block.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{
///     Leaf, Permissions, Retained, Scope, Shareability,
/// };
/// use iommu::arch::smmuv3::layout::Granule;
/// let leaf = Leaf {
///     output: 0x20_0000,
///     bits: 12,
///     contiguous_bits: 16,
///     level: 3,
///     granule: Granule::Size4K,
///     permissions: Permissions::all(),
///     memory: 0xff,
///     shareability: Shareability::Inner,
///     scope: Scope::Asid,
///     retained: Retained::Freely,
/// };
/// assert_eq!(leaf.translate(0x7123), 0x20_0123);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The first byte of the page or block: an intermediate address, or a physical one.
    pub output: u64,
    /// log2 of its bytes.
    pub bits: u8,
    /// log2 of the bytes of the naturally aligned run that it says it is a part of (the contiguous bit), and
    /// that one entry of a TLB may hold (Arm ARM D8.7.1); as `bits` when it is no part of one.
    pub contiguous_bits: u8,
    /// The level of the descriptor, from -1 to 3: what TTL of a command names.
    pub level: i8,
    /// The granule of its tables: what TG of a command names.
    pub granule: Granule,
    /// What is permitted.
    pub permissions: Permissions,
    /// Stage 1: the attribute of MAIR. Stage 2: MemAttr.
    pub memory: u8,
    /// SH, or what stands for it where the tables have no room (DS).
    pub shareability: Shareability,
    /// For whom it holds; in stage 2 global.
    pub scope: Scope,
    /// Whether it may be kept.
    pub retained: Retained,
}

impl Leaf {
    /// Where `address` goes, of which only the bits within the page or block count.
    pub const fn translate(&self, address: u64) -> u64 {
        self.output & !low_bits(self.bits) | address & low_bits(self.bits)
    }
}

/// What a unit with these registers can do when it walks as it is done here: the same without the features
/// that are missing. Whoever makes a unit shows these.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::supported;
/// use iommu::arch::smmuv3::layout::Identification;
/// let wish = Identification { idr0: 0b11 << 6 | 0b11 << 2 | 0b11, ..Identification::default() };
/// assert_eq!(supported(wish).idr0, 0b10 << 2 | 0b11);
/// ```
pub const fn supported(wish: Identification) -> Identification {
    // IDR0: HTTU, VMSAv8-32 tables.
    const IDR0: u32 = 0b11 << 6 | 1 << 2;
    // IDR3: AIE, MTEPERM, THE, S2PO, S2PI, S1PI, DPT, MPAM.
    const IDR3: u32 = 1 << 23 | 1 << 22 | 1 << 21 | 1 << 20 | 1 << 19 | 1 << 18 | 1 << 15 | 1 << 7;
    // IDR5: D128.
    const IDR5: u32 = 1 << 8;
    let mut idr5 = wish.idr5 & !IDR5;
    if idr5 & 0b111 == 7 {
        idr5 &= !1; // OAS of 56 bits comes with D128.
    }
    if idr5 >> 10 & 0b11 >= 2 {
        idr5 = idr5 & !(0b11 << 10) | 1 << 10; // So does VAX of 56 bits.
    }
    Identification { idr0: wish.idr0 & !IDR0, idr3: wish.idr3 & !IDR3, idr5, ..wish }
}

/// The lowest `bits` bits.
const fn low_bits(bits: u8) -> u64 {
    match 1_u64.checked_shl(bits as u32) {
        Some(bit) => bit.wrapping_sub(1),
        None => u64::MAX,
    }
}

/// Bits of a physical address (OAS), which are those of an intermediate one as well (SMMU 3.4, without
/// VMSAv8-32).
const fn output_size(identification: &Identification) -> u8 {
    match identification.output_bits() {
        Some(bits) => bits,
        None => 52,
    }
}

/// Bits of what a stage outputs, by IPS or S2PS: at most those of a physical address, which also hold for
/// reserved values (SMMU 5.2, 5.4). SMMUv3.0 has no 52 bits.
const fn effective_size(identification: &Identification, code: u64) -> u8 {
    let most = output_size(identification);
    let said = match output_bits_of(code) {
        Some(bits) => bits,
        None => most,
    };
    let most = if identification.minor_revision() == 0 && most > 48 { 48 } else { most };
    if said < most { said } else { most }
}

/// Whether `address` has more than `bits` bits.
const fn is_beyond(address: u64, bits: u8) -> bool {
    address & !low_bits(bits) != 0
}

/// The physical address of a quadword in a structure: `index` quadwords behind `base`, which is aligned to
/// more than that.
const fn quadword(base: u64, index: u64) -> PhysAddr {
    PhysAddr::new(base | index.wrapping_shl(3))
}
