//! The device side: what the hardware between a device and memory does with an access.
//!
//! An IOMMU has one or more *translation regimes*, numbered from zero: its `iommu_idx`. For a given
//! regime and address the result is always the same, so whoever caches translations keeps them by
//! regime and needs to know nothing of the attributes behind it.
//!
//! Units in software share who decides what a specification leaves open ([`Chooser`]), what they cache
//! in, and the words for their accesses to memory.

#[allow(dead_code, unused_imports)] // Without a backend nobody uses it.
pub(crate) mod cache;
mod chooser;
mod memory;

pub use chooser::{Absence, Chooser, Fracture, InOrder, Precision, Retention, Seeded};
pub use memory::{Snoop, Unreachable};

use crate::addr::{Iova, PhysAddr};
use crate::fault::{Access, FaultKind};
use crate::id::{Pasid, SourceId};
use crate::pgtable::PageSize;
use crate::prot::Prot;

/// What a request carries beside its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Attrs {
    /// Who sends it.
    pub source: SourceId,
    /// The PASID, if it has one.
    pub pasid: Option<Pasid>,
    /// Whether the device has had the address translated already (ATS).
    pub address_type: AddressType,
}

impl Attrs {
    /// A plain request by `source`.
    ///
    /// ```
    /// use iommu::SourceId;
    /// use iommu::bus::{AddressType, Attrs};
    /// assert_eq!(Attrs::new(SourceId::pci(0, 0x20)).address_type, AddressType::Untranslated);
    /// ```
    pub const fn new(source: SourceId) -> Self {
        Self { source, pasid: None, address_type: AddressType::Untranslated }
    }
}

/// The address type field of a PCIe request (PCIe 10.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressType {
    /// To be translated on the way.
    Untranslated,
    /// Asks for the translation only.
    TranslationRequest,
    /// Translated already, by the device's own cache.
    Translated,
}

/// Where an address goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The address behind the IOMMU.
    pub phys: PhysAddr,
    /// The naturally aligned block around the address for which this holds.
    pub page_size: PageSize,
    /// What is permitted there.
    pub prot: Prot,
}

/// Why an access was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// What kind of refusal.
    pub kind: FaultKind,
    /// The hardware's number for the reason.
    pub reason: u32,
}

/// Number of a translation regime.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RegimeIndex(pub u32);

/// An IOMMU as the bus sees it: the hardware in software.
///
/// ```
/// use iommu::bus::{Attrs, Refusal, RegimeIndex, Translation, Translator};
/// use iommu::pgtable::PageSize;
/// use iommu::{Access, FaultKind, Iova, PhysAddr, Prot, SourceId};
///
/// /// Adds 1 GiB to every address below 1 GiB.
/// struct Shift;
///
/// impl Translator for Shift {
///     fn translate(&self, _: RegimeIndex, iova: Iova, _: Access) -> Result<Translation, Refusal> {
///         if iova.as_u64() >> 30 != 0 {
///             return Err(Refusal { kind: FaultKind::AddressSize, reason: 0 });
///         }
///         let phys = PhysAddr::new(iova.as_u64() + (1 << 30));
///         Ok(Translation { phys, page_size: PageSize::SIZE_1G, prot: Prot::RW })
///     }
/// }
///
/// let index = Shift.index_from_attrs(&Attrs::new(SourceId::pci(0, 8)));
/// assert!(index.0 < Shift.num_indexes());
/// let there = Shift.translate(index, Iova::new(0x1234), Access::Read).unwrap();
/// assert_eq!(there.phys, PhysAddr::new(0x4000_1234));
/// ```
pub trait Translator: Send + Sync {
    /// How many translation regimes there are. Fixed for the life of the IOMMU, so that a user that
    /// can follow only one may refuse early.
    fn num_indexes(&self) -> u32 {
        1
    }

    /// The regime of a request with these attributes, below [`num_indexes`](Self::num_indexes).
    fn index_from_attrs(&self, attrs: &Attrs) -> RegimeIndex {
        let _ = attrs;
        RegimeIndex(0)
    }

    /// Where `iova` goes in a regime. The same arguments give the same result until the IOMMU's
    /// tables or caches change.
    ///
    /// # Errors
    /// The refusal; whether it is recorded is the IOMMU's matter.
    fn translate(&self, index: RegimeIndex, iova: Iova, access: Access) -> Result<Translation, Refusal>;
}
