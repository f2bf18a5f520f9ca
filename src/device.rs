//! Devices, as an IOMMU sees them.

use core::fmt;

use crate::error::{Error, Result};
use crate::frames::Ref;
use crate::group::{Group, GroupKey};
use crate::id::{PciAddress, SourceId};
use crate::ops::{Ats, FaultModel, Unit};
use crate::pci::{self, MAX_ALIASES, MAX_DEPTH};
use crate::region::ReservedRegions;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::window::Windows;

/// The most source ids under which requests of one device arrive: its own and its aliases.
pub const MAX_SOURCES: usize = MAX_ALIASES;

/// Which device it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceId {
    /// A PCI function.
    Pci(PciAddress),
    /// A platform device, by the first of its source ids.
    Platform(SourceId),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => fmt::Display::fmt(address, f),
            Self::Platform(source) => fmt::Display::fmt(source, f),
        }
    }
}

/// Whether the kernel trusts the device to be what it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trust {
    /// Soldered in, or put in by the administrator.
    #[default]
    Trusted,
    /// Behind a port that anybody can plug into: always translated, never given ATS.
    Untrusted,
}

/// What a PCI function offers beyond plain requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceFeatures {
    /// It has a device TLB (PCIe 10.5.1).
    pub ats: bool,
    /// It can request pages (PCIe 10.5.2).
    pub pri: bool,
    /// Bits of PASID that it can send (PCIe 7.8.9); 0 without PASIDs.
    pub pasid_bits: u8,
}

/// What the core knows of a device before a unit is found for it.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Which device.
    pub id: DeviceId,
    /// Under which source ids its requests arrive; at least one.
    pub sources: heapless::Vec<SourceId, MAX_SOURCES>,
    /// The bridges above a PCI function, the nearest first, up to the root port.
    pub bridges: heapless::Vec<PciAddress, MAX_DEPTH>,
    /// Whether it is trusted.
    pub trust: Trust,
    /// What it offers.
    pub features: DeviceFeatures,
}

impl DeviceInfo {
    /// A platform device whose requests arrive under `sources`.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a source, [`Error::Capacity`] beyond [`MAX_SOURCES`].
    pub fn platform(sources: &[SourceId], trust: Trust) -> Result<Self> {
        let first = *sources.first().ok_or(Error::NoDevice)?;
        let sources = heapless::Vec::from_slice(sources).map_err(|_| Error::Capacity("MAX_SOURCES"))?;
        let features = DeviceFeatures::default();
        Ok(Self { id: DeviceId::Platform(first), sources, bridges: heapless::Vec::new(), trust, features })
    }
}

/// A counted handle to a device that was probed.
///
/// Made by [`Iommu::probe_pci`](crate::Iommu::probe_pci) and
/// [`Iommu::probe_platform`](crate::Iommu::probe_platform).
#[derive(Clone)]
pub struct Device(Ref<DeviceSlot>);

/// What lies in the slab for each device.
pub(crate) struct DeviceSlot {
    pub(crate) info: DeviceInfo,
    /// `None` when no unit covers the device.
    pub(crate) iommu: Option<DeviceIommu>,
}

/// The part that only a covered device has.
pub(crate) struct DeviceIommu {
    pub(crate) unit: Unit,
    pub(crate) key: GroupKey,
    pub(crate) group: Group,
    pub(crate) regions: ReservedRegions,
    pub(crate) windows: Windows,
    /// Its device TLB, if that may be used.
    pub(crate) ats: Option<DeviceAts>,
    /// What becomes of its requests that fault.
    pub(crate) fault_model: FaultModel,
}

/// A device TLB that may be used.
pub(crate) struct DeviceAts {
    pub(crate) address: PciAddress,
    pub(crate) capability: pci::Ats,
    /// How the unit tells it.
    pub(crate) tlb: Ats,
    /// Whether it is on. Changed by who has claimed the group.
    pub(crate) on: AtomicBool,
}

impl Device {
    pub(crate) fn new(slot: Ref<DeviceSlot>) -> Self {
        Self(slot)
    }

    /// The number of its slot.
    pub(crate) fn index(&self) -> u32 {
        Ref::index(&self.0)
    }

    pub(crate) fn iommu(&self) -> Result<&DeviceIommu> {
        self.0.iommu.as_ref().ok_or(Error::NoDevice)
    }

    /// Which device it is.
    pub fn id(&self) -> DeviceId {
        self.0.info.id
    }

    /// Under which source ids its requests arrive.
    pub fn sources(&self) -> &[SourceId] {
        &self.0.info.sources
    }

    /// Whether it is trusted.
    pub fn trust(&self) -> Trust {
        self.0.info.trust
    }

    /// What it offers.
    pub fn features(&self) -> DeviceFeatures {
        self.0.info.features
    }

    /// The unit that translates its requests.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when none does.
    pub fn unit(&self) -> Result<&Unit> {
        Ok(&self.iommu()?.unit)
    }

    /// Whether it keeps translations in a device TLB now, see [`AtsPolicy`](crate::iommu::AtsPolicy).
    /// Any context.
    #[doc(alias = "pci_ats_enabled")]
    pub fn ats_enabled(&self) -> bool {
        self.iommu().is_ok_and(|iommu| iommu.ats.as_ref().is_some_and(|ats| ats.on.load(Ordering::Relaxed)))
    }

    /// The devices it cannot be told apart from, itself included.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when no IOMMU covers it.
    #[doc(alias = "iommu_group_get")]
    pub fn group(&self) -> Result<&Group> {
        Ok(&self.iommu()?.group)
    }

    /// The IOVAs that it cannot use freely.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when no IOMMU covers it.
    #[doc(alias = "iommu_get_resv_regions")]
    pub fn reserved_regions(&self) -> Result<&ReservedRegions> {
        Ok(&self.iommu()?.regions)
    }

    /// The IOVAs that a domain of this device can translate, in the stage that its unit prefers.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when no IOMMU covers it.
    pub fn windows(&self) -> Result<&Windows> {
        Ok(&self.iommu()?.windows)
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Ref::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}", self.id())
    }
}
