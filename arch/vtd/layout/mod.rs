//! Bits of registers and structures in memory, each defined once with its section.
//!
//! Sections are those of revision 5.10 of the specification ("VT-d" for short). Names follow it too:
//! *first stage* and *second stage* are what revisions before 4.0 called first and second level.
//!
//! Nothing here touches hardware: these are numbers and what they mean, for the driver that programs
//! a unit and for the device that is one.

pub mod capability;
pub mod descriptors;
pub mod fault;
pub mod registers;
pub mod scalable;
pub mod tables;

pub use capability::{Cap, Ecap};
pub use descriptors::Descriptor;
pub use fault::{FaultReason, FaultRecord};
pub use tables::{AddressWidth, ContextEntry, RootEntry};

use core::fmt;

/// The number by which a unit tags what it caches for one domain (VT-d 6.2.1).
///
/// ```
/// use iommu::arch::vtd::layout::DomainId;
/// assert_eq!(DomainId::new(7).as_u16(), 7);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct DomainId(u16);

impl DomainId {
    /// The domain id with this number.
    pub const fn new(id: u16) -> Self {
        Self(id)
    }

    /// The number.
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Bits `low` to `high` (both included) of `value`, shifted down.
const fn field(value: u64, high: u32, low: u32) -> u64 {
    value >> low & u64::MAX >> (63 - (high - low))
}
