//! Domains in which nothing is mapped: blocked and identity.

use core::any::Any;

use super::DomainKind;
use crate::addr::{Iova, PhysAddr};
use crate::ops::DomainOps;
use crate::window::Windows;

/// A domain whose translation is fixed: everything is blocked, or every address passes unchanged.
///
/// ```
/// use iommu::domain::{DomainKind, FixedDomain};
/// use iommu::ops::DomainOps;
/// use iommu::{Iova, PhysAddr};
///
/// let identity = FixedDomain::new(DomainKind::Identity);
/// assert_eq!(identity.iova_to_phys(Iova::new(0x1234)), Some(PhysAddr::new(0x1234)));
/// assert_eq!(FixedDomain::new(DomainKind::Blocked).iova_to_phys(Iova::new(0x1234)), None);
/// ```
#[derive(Debug)]
pub struct FixedDomain {
    kind: DomainKind,
    windows: Windows,
}

impl FixedDomain {
    /// A domain of this kind; a paging domain without windows if that is what is asked for.
    pub const fn new(kind: DomainKind) -> Self {
        Self { kind, windows: Windows::none() }
    }
}

impl DomainOps for FixedDomain {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn kind(&self) -> DomainKind {
        self.kind
    }

    fn windows(&self) -> &Windows {
        &self.windows
    }

    fn iova_to_phys(&self, iova: Iova) -> Option<PhysAddr> {
        (self.kind == DomainKind::Identity).then_some(PhysAddr::new(iova.as_u64()))
    }
}
