//! How tables are walked: from the root table to the page (VT-d 3.4 to 3.8 and chapter 9).
//!
//! Nothing is cached here, and nothing is kept: what is read comes from the [`Host`](super::Host) each
//! time, once for each entry, and is judged from that copy. The tables may belong to a hostile guest
//! that changes them meanwhile.
//!
//! | file | what it walks |
//! |---|---|
//! | `context` | root and context tables, legacy and scalable mode |
//! | `pasid` | PASID directory and PASID table |
//! | `second_stage` | second-stage tables |
//! | `first_stage` | first-stage tables, also nested in the second stage |
//! | `structure` | the hook for paging-structure caches |
//! | `entry` | reading and updating one entry |
//!
//! Every fault is one condition of Table 30 (7.1.3), which the code names. What depends on the request
//! and not on tables (RTA.2, LCT.5, SCT.5 to SCT.10, SPT.5, SPT.6, SGN.10) is for the caller.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

pub mod context;
mod entry;
pub mod first_stage;
pub mod pasid;
pub mod second_stage;
pub mod structure;
#[cfg(test)]
mod tests;

pub use context::{ContextInfo, context};
pub use first_stage::{FirstStageRoot, first_stage};
pub use pasid::{PasidInfo, Stages, pasid};
pub use second_stage::{PermissionBits, SecondStageRoot, second_stage};
pub use structure::{NoStructureCache, Rights, Stage, Structure, StructureCache};

use super::{Blocked, DeviceConfig, Privilege, Recorded, Request, RequestAccess};
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::{Cap, FaultReason};
use crate::bus::AddressType;
use crate::prot::Prot;

/// Whose codes a fault of the second stage has (VT-d 7.1.3: LSS and LGN, or SSS and SGN).
///
/// ```
/// use iommu::arch::vtd::device::walk::Mode;
/// assert_ne!(Mode::Legacy, Mode::Scalable);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Legacy mode.
    Legacy,
    /// Scalable mode.
    Scalable,
}

/// What a walk is made for.
///
/// ```
/// use iommu::arch::vtd::device::RequestAccess;
/// use iommu::arch::vtd::device::walk::Goal;
/// assert!(Goal::Access(RequestAccess::Atomic).access() == RequestAccess::Atomic);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// A request: without permission for this it is blocked.
    Access(RequestAccess),
    /// A translation request: it learns what is permitted. `Write` is one without the no-write flag;
    /// it sets dirty bits where writing is permitted.
    Translation(RequestAccess),
}

impl Goal {
    /// What is to be done with the page.
    pub const fn access(self) -> RequestAccess {
        match self {
            Self::Access(access) | Self::Translation(access) => access,
        }
    }

    /// Whether the page is to be written, if that is permitted.
    const fn writes(self) -> bool {
        matches!(self.access(), RequestAccess::Write | RequestAccess::Atomic)
    }

    /// What is missing when `granted` is permitted (VT-d 3.6.1, 3.7.1, and 3.14 for zero-length reads).
    fn lacks(self, config: &DeviceConfig, granted: Prot) -> Option<Lack> {
        let (read, write) = (granted.contains(Prot::READ), granted.contains(Prot::WRITE));
        match self {
            Self::Translation(_) => None,
            Self::Access(RequestAccess::Write | RequestAccess::Atomic) if !write => Some(Lack::Write),
            Self::Access(RequestAccess::Read | RequestAccess::Atomic) if !read => Some(Lack::Read),
            Self::Access(RequestAccess::ZeroLengthRead) if !(read || write && config.cap.contains(Cap::ZLR)) => {
                Some(Lack::Read)
            }
            Self::Access(_) => None,
        }
    }

    /// What is missing when nothing is permitted.
    const fn lacks_all(self) -> Lack {
        if self.writes() { Lack::Write } else { Lack::Read }
    }
}

/// What is looked up in page tables.
///
/// ```
/// use iommu::arch::vtd::device::walk::{Goal, Lookup};
/// use iommu::arch::vtd::device::{Request, RequestAccess};
/// let lookup = Lookup::from(&Request::new(0x10, 0x1000, RequestAccess::Write));
/// assert_eq!(lookup.goal, Goal::Access(RequestAccess::Write));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lookup {
    /// The address.
    pub address: u64,
    /// What for.
    pub goal: Goal,
    /// Who for; the second stage does not ask. Requests without PASID have the privilege that RID_PRIV
    /// says.
    pub privilege: Privilege,
}

impl From<&Request> for Lookup {
    fn from(request: &Request) -> Self {
        let goal = match request.address_type {
            AddressType::TranslationRequest => Goal::Translation(request.access),
            AddressType::Untranslated | AddressType::Translated => Goal::Access(request.access),
        };
        Self { address: request.address, goal, privilege: request.privilege }
    }
}

/// The permission that a request does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lack {
    Read,
    Write,
}

impl Lack {
    const fn reason(self, mode: Mode) -> u8 {
        match (mode, self) {
            (Mode::Legacy, Self::Write) => 0x05,   // LGN.2
            (Mode::Legacy, Self::Read) => 0x06,    // LGN.3
            (Mode::Scalable, Self::Write) => 0x85, // SGN.6
            (Mode::Scalable, Self::Read) => 0x86,  // SGN.7
        }
    }
}

/// Whether a write may use a translation as it is, or has to walk again to set a dirty bit.
///
/// ```
/// use iommu::arch::vtd::device::walk::Dirty;
/// assert_ne!(Dirty::Settled, Dirty::WalkToWrite);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dirty {
    /// Dirty bits are set, or not kept.
    Settled,
    /// A dirty bit is kept and was clear: the next write has to walk.
    WalkToWrite,
}

impl Dirty {
    /// Settled where both are.
    const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Settled, Self::Settled) => Self::Settled,
            _ => Self::WalkToWrite,
        }
    }
}

/// Where a walk ends: a page.
///
/// ```
/// use iommu::arch::vtd::device::walk::{Dirty, Leaf};
/// use iommu::{PhysAddr, Prot};
/// let leaf = Leaf { phys: PhysAddr::new(0x20_0000), page_bits: 21, prot: Prot::RW, enforces_snooping: false, dirty: Dirty::Settled };
/// assert_eq!(leaf.output(0x1234_5678), PhysAddr::new(0x34_5678));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The first byte of the page, behind the unit.
    pub phys: PhysAddr,
    /// log2 of the bytes of the page, in which the address lies: 12, 21 or 30; 63 when nothing is
    /// translated.
    pub page_bits: u8,
    /// What is permitted to who asked: READ, WRITE. A first-stage page that is not for users has PRIV
    /// as well: what is permitted there is so for supervisors only, and differs with WPE.
    pub prot: Prot,
    /// Whether a second-stage leaf says that accesses snoop (SNP, 3.10).
    pub enforces_snooping: bool,
    /// Whether a later write has to walk.
    pub dirty: Dirty,
}

impl Leaf {
    /// Where `address` goes, which must be of the page that was walked for.
    pub const fn output(&self, address: u64) -> PhysAddr {
        PhysAddr::new(self.phys.as_u64() | address & entry::low_bits(self.page_bits as u32))
    }
}

/// Checks a host-physical address that nothing translates: what passes through, and what a device
/// translated before (LGN.1.2, LGN.1.3, SGN.4 and LGN.4, SGN.8).
///
/// # Errors
/// The fault, which is qualified.
pub fn host_address(config: &DeviceConfig, mode: Mode, recorded: Recorded, address: u64) -> Result<Leaf, Blocked> {
    if address > entry::low_bits(u32::from(config.host_address_bits)) {
        let reason = match mode {
            Mode::Legacy => 0x04,
            Mode::Scalable => 0x83,
        };
        return Err(blocked(reason, recorded));
    }
    let leaf =
        Leaf { phys: PhysAddr::new(0), page_bits: 63, prot: Prot::RW, enforces_snooping: false, dirty: Dirty::Settled };
    check_output(mode, recorded, &leaf, address, Goal::Access(RequestAccess::Read))?;
    Ok(leaf)
}

/// Whether `address` may go where `leaf` says: not to the interrupt address range (VT-d 3.15; LGN.4,
/// SGN.8). Who keeps a leaf for longer asks again for each request. A translation request gets the
/// whole page, so that none of it may be there.
///
/// # Errors
/// The fault, which is qualified.
pub fn check_output(mode: Mode, recorded: Recorded, leaf: &Leaf, address: u64, goal: Goal) -> Result<(), Blocked> {
    const FIRST: u64 = 0xfee0_0000;
    const LAST: u64 = 0xfeef_ffff;
    let (first, last) = match goal {
        Goal::Access(_) => (leaf.output(address).as_u64(), leaf.output(address).as_u64()),
        Goal::Translation(_) => (leaf.phys.as_u64(), leaf.output(u64::MAX).as_u64()),
    };
    if first <= LAST && last >= FIRST {
        let reason = match mode {
            Mode::Legacy => 0x0e,
            Mode::Scalable => 0x87,
        };
        return Err(blocked(reason, recorded));
    }
    Ok(())
}

/// A fault with the reason of this number.
const fn blocked(reason: u8, recorded: Recorded) -> Blocked {
    Blocked { reason: FaultReason(reason), recorded }
}

/// How qualified faults are recorded when an entry with this FPD is on the way, and `others` before it
/// (VT-d 7.1.1: one FPD is enough).
const fn qualified(others: Recorded, suppresses: bool) -> Recorded {
    if suppresses { Recorded::Suppressed } else { others }
}
