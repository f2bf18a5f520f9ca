//! What devices ask, and what it answers.

use super::walk::{Access, Attributes, Privilege};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::StreamId;
use crate::arch::smmuv3::layout::events::EventKind;
use crate::bus::AddressType;
use crate::prot::Prot;

/// A request of a device.
///
/// ```
/// use iommu::arch::smmuv3::device::{Access, Request};
/// use iommu::arch::smmuv3::layout::StreamId;
/// let request = Request { substream: Some(5), ..Request::new(StreamId(8), 0x1000, Access::Read) };
/// assert_eq!(request.stream, StreamId(8));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Who sends it.
    pub stream: StreamId,
    /// Its SubstreamID, if it has one.
    pub substream: Option<u32>,
    /// The address, to the byte.
    pub address: u64,
    /// What it does there. A translation request that asks for writing too has [`Access::Write`].
    pub access: Access,
    /// Who it speaks for.
    pub privilege: Privilege,
    /// Whether it is translated already, or asks for the translation only (ATS).
    pub address_type: AddressType,
}

impl Request {
    /// An unprivileged request without SubstreamID that is to be translated.
    pub const fn new(stream: StreamId, address: u64, access: Access) -> Self {
        let (privilege, address_type) = (Privilege::Unprivileged, AddressType::Untranslated);
        Self { stream, substream: None, address, access, privilege, address_type }
    }
}

/// Where a request goes.
///
/// ```
/// use iommu::arch::smmuv3::device::Answer;
/// use iommu::arch::smmuv3::device::walk::Attributes;
/// use iommu::{PhysAddr, Prot};
/// let attributes = Attributes::INCOMING;
/// let answer = Answer { phys: PhysAddr::new(0x6123), page_bits: 12, prot: Prot::RW, attributes };
/// assert!(answer.prot.contains(Prot::WRITE));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The address behind the unit; of a translation request with split-stage ATS, an intermediate one.
    pub phys: PhysAddr,
    /// log2 of the bytes of the naturally aligned block around the address for which this holds, at most 63.
    pub page_bits: u8,
    /// What is permitted there. A translation request may find that nothing is.
    pub prot: Prot,
    /// The type of memory that the access has.
    pub attributes: Attributes,
}

/// What becomes of a request that is not let through.
///
/// ```
/// use iommu::arch::smmuv3::device::Outcome;
/// assert_ne!(Outcome::Abort, Outcome::Ignored);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The device is told that it failed; of a translation request, with completer abort.
    Abort,
    /// A translation request failed as an unsupported request.
    Unsupported,
    /// Reads give zeroes, and writes do nothing (RAZ/WI).
    Ignored,
    /// It waits under this tag, until [`Host::resume`](super::Host::resume) is called.
    Stalled(u16),
    /// As many wait as can: it is not taken yet, and the device sends it again later.
    Busy,
}

/// A request that is not let through.
///
/// ```
/// use iommu::arch::smmuv3::device::{Blocked, Outcome};
/// let blocked = Blocked { outcome: Outcome::Abort, reason: None };
/// assert_eq!(blocked.reason, None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocked {
    /// What becomes of it.
    pub outcome: Outcome,
    /// The event that tells why, whether or not it was recorded; none where there is no event for it.
    pub reason: Option<EventKind>,
}
