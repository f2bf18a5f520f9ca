//! Whose requests a unit is told to translate.

use crate::id::SourceId;

/// A source id, and whether the device that uses it has a device TLB.
///
/// ```
/// use iommu::SourceId;
/// use iommu::ops::{Ats, Requester};
/// let plain = Requester::new(SourceId::platform(0, 7));
/// assert_eq!(plain.ats, None);
/// let caches = Requester { ats: Some(Ats { physical_function: 0, max_pending: 32 }), ..plain };
/// assert_eq!(caches.source, plain.source);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requester {
    /// Under which id its requests arrive.
    pub source: SourceId,
    /// The device TLB that may be used under this id; an alias of a device has none.
    pub ats: Option<Ats>,
    /// What becomes of its requests that fault.
    pub fault_model: FaultModel,
}

impl Requester {
    /// A requester without a device TLB, whose faulting requests are terminated.
    pub const fn new(source: SourceId) -> Self {
        Self { source, ats: None, fault_model: FaultModel::Terminate }
    }
}

/// What becomes of a request that faults in translation.
///
/// ```
/// use iommu::ops::FaultModel;
/// assert_eq!(FaultModel::default(), FaultModel::Terminate);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FaultModel {
    /// It is terminated.
    #[default]
    Terminate,
    /// It waits for an answer, [`IommuOps::answer_stall`](crate::ops::IommuOps::answer_stall).
    Stall,
}

/// What a unit must know of a device TLB (PCIe 10.1) to invalidate in it. The capability itself is
/// [`pci::Ats`](crate::pci::Ats).
///
/// ```
/// use iommu::ops::Ats;
/// let of_a_virtual_function = Ats { physical_function: 0x0300, max_pending: 8 };
/// assert!((1..=32).contains(&of_a_virtual_function.max_pending));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ats {
    /// The requester id of the physical function, for a virtual one (SR-IOV); else 0.
    pub physical_function: u16,
    /// How many invalidations it takes at a time, 1 to 32.
    pub max_pending: u8,
}
