//! What devices ask of the unit, and what it answers.

use crate::addr::PhysAddr;
use crate::arch::vtd::layout::FaultReason;
use crate::bus::AddressType;
use crate::prot::Prot;

/// What a request does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestAccess {
    /// Reads.
    Read,
    /// Reads nothing: a zero-length read, which needs no read permission where CAP.ZLR says so.
    ZeroLengthRead,
    /// Writes.
    Write,
    /// Reads and writes (an atomic operation).
    Atomic,
}

/// Who the request speaks for (VT-d 3.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// User level; also every request without PASID, unless RID_PRIV says otherwise.
    User,
    /// Supervisor level.
    Supervisor,
}

/// A request of a device (PCIe 2.2.7, 10.2).
///
/// ```
/// use iommu::arch::vtd::device::{Request, RequestAccess};
/// let request = Request::new(0x0010, 0x1234_5000, RequestAccess::Write);
/// assert_eq!(request.pasid, None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Requester id: bus, device, function.
    pub source: u16,
    /// The PASID, 20 bits, if it has one.
    pub pasid: Option<u32>,
    /// Its privilege; only requests with PASID have one of their own.
    pub privilege: Privilege,
    /// Whether it is to be translated, asks for the translation, or was translated already.
    pub address_type: AddressType,
    /// The first byte. A request does not cross a page of 4096 bytes.
    pub address: u64,
    /// What it does.
    pub access: RequestAccess,
}

impl Request {
    /// An untranslated request without PASID.
    pub const fn new(source: u16, address: u64, access: RequestAccess) -> Self {
        Self {
            source,
            pasid: None,
            privilege: Privilege::User,
            address_type: AddressType::Untranslated,
            address,
            access,
        }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The address behind the unit, the offset in the page included.
    pub phys: PhysAddr,
    /// log2 of the bytes of the naturally aligned block for which this holds: a page, or less of it where
    /// a part is answered otherwise (interrupts, protected memory). 63 while translation is off.
    pub page_bits: u8,
    /// What is permitted there.
    pub prot: Prot,
    /// Whether the request snoops whatever it asked for (PGSNP or SNP).
    pub enforces_snooping: bool,
}

/// A request that was blocked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocked {
    /// Why (VT-d 7.1.3).
    pub reason: FaultReason,
    /// Whether an entry on the way asked not to record it (FPD), and its kind permits that
    /// (*qualified*).
    pub recorded: Recorded,
}

/// Whether a blocked request is recorded as a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recorded {
    /// Yes, or lost as an overflow.
    Yes,
    /// No: an entry on the way says so.
    Suppressed,
}
