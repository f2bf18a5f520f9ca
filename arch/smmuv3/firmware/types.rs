//! What both kinds of firmware come to.

use bitflags::bitflags;

use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::StreamId;

/// Whether an SMMU's accesses to tables and queues see the processors' caches.
///
/// ```
/// use iommu::arch::smmuv3::firmware::Coherency;
/// assert_ne!(Coherency::Coherent, Coherency::NonCoherent);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coherency {
    /// They do.
    Coherent,
    /// They do not: tables are to be cleaned to memory.
    NonCoherent,
}

/// What an SMMU updates in page tables itself (section 3.13), as IDR0.HTTU says it.
///
/// ```
/// use iommu::arch::smmuv3::firmware::Httu;
/// assert!(Httu::AccessAndDirty > Httu::Access);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Httu {
    /// Nothing.
    None,
    /// The access flag.
    Access,
    /// The access flag and dirty state.
    AccessAndDirty,
}

/// The cells of a device tree that say which interrupt it is, as its controller defines them.
///
/// ```
/// use iommu::arch::smmuv3::firmware::InterruptCells;
/// let spi = InterruptCells::new(&[0, 74, 1]).unwrap();
/// assert_eq!(spi.cells(), [0, 74, 1]);
/// assert!(InterruptCells::new(&[0; 5]).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptCells {
    cells: [u32; Self::MAX],
    count: u8,
}

impl InterruptCells {
    /// The most cells of one interrupt: Arm's interrupt controllers have three or four.
    pub const MAX: usize = 4;

    /// These cells; `None` for more than [`Self::MAX`].
    pub fn new(cells: &[u32]) -> Option<Self> {
        let mut copy = [0; Self::MAX];
        copy.get_mut(..cells.len())?.copy_from_slice(cells);
        Some(Self { cells: copy, count: cells.len() as u8 })
    }

    /// The cells.
    pub fn cells(&self) -> &[u32] {
        self.cells.get(..usize::from(self.count)).unwrap_or_default()
    }
}

/// A wired interrupt.
///
/// ```
/// use iommu::arch::smmuv3::firmware::Interrupt;
/// assert_ne!(Interrupt::Gsiv(106), Interrupt::Gsiv(107));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupt {
    /// A global system interrupt of ACPI.
    Gsiv(u32),
    /// An interrupt of a device tree, at the `interrupt-parent` of the SMMU's node.
    Cells(InterruptCells),
}

/// The wired interrupts of an SMMU (section 3.18). What has none may send an MSI.
///
/// ```
/// use iommu::arch::smmuv3::firmware::{Interrupt, Interrupts};
/// let wired = Interrupts { event: Some(Interrupt::Gsiv(106)), ..Interrupts::default() };
/// assert_eq!(wired.gerror, None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Interrupts {
    /// Records came into the event queue.
    pub event: Option<Interrupt>,
    /// Records came into the page-request queue.
    pub pri: Option<Interrupt>,
    /// A global error.
    pub gerror: Option<Interrupt>,
    /// A CMD_SYNC completed.
    pub sync: Option<Interrupt>,
    /// Any of these, on implementations that join them.
    pub combined: Option<Interrupt>,
}

/// Who takes MSIs.
///
/// ```
/// use iommu::arch::smmuv3::firmware::MsiController;
/// assert_ne!(MsiController::Its(1), MsiController::Phandle(1));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsiController {
    /// The interrupt translation service with this number in the MADT.
    Its(u32),
    /// The node of the device tree with this phandle.
    Phandle(u32),
}

/// Where an SMMU's own MSIs go.
///
/// ```
/// use iommu::arch::smmuv3::firmware::{MsiController, MsiTarget};
/// let target = MsiTarget { controller: MsiController::Its(0), device_id: 0x2_0007 };
/// assert_eq!(target.device_id, 0x2_0007);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiTarget {
    /// Who takes them.
    pub controller: MsiController,
    /// The DeviceID that they carry; in a device tree, the first cell behind the phandle or zero.
    pub device_id: u32,
}

bitflags! {
    /// In what an implementation differs from the architecture.
    ///
    /// ```
    /// use iommu::arch::smmuv3::firmware::Quirks;
    /// assert!(Quirks::default().is_empty());
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Quirks: u8 {
        /// Prefetch commands do not work.
        const BROKEN_PREFETCH = 1 << 0;
        /// What should be in register page 1 is in page 0.
        const PAGE0_REGISTERS_ONLY = 1 << 1;
    }
}

/// An SMMUv3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct UnitNode {
    /// Where its registers begin: at a multiple of 64 KiB, never zero.
    pub base: PhysAddr,
    /// Whether it is coherent. What firmware says comes before IDR0.COHACC.
    pub coherency: Option<Coherency>,
    /// What it updates. What firmware says comes before IDR0.HTTU; device trees say nothing.
    pub httu: Option<Httu>,
    /// Its wired interrupts.
    pub interrupts: Interrupts,
    /// Where its own MSIs go, if it may send some.
    pub msi: Option<MsiTarget>,
    /// In what it differs.
    pub quirks: Quirks,
    /// The NUMA node it is near to.
    pub proximity_domain: Option<u32>,
    /// By what other parts of the firmware refer to it: an offset, or a phandle.
    pub(super) handle: Option<u32>,
}

/// Requester ids of a PCI segment that arrive at one SMMU.
///
/// ```
/// use iommu::arch::smmuv3::firmware::PciStreams;
/// use iommu::arch::smmuv3::layout::StreamId;
/// let streams = PciStreams {
///     segment: 0, first: 0x100, count: 0x100, mask: 0xffff, unit: 0, stream: StreamId(0x4000), ats: false,
///     pasid_bits: None,
/// };
/// assert_eq!(streams.stream_of(0x120), Some(StreamId(0x4020)));
/// assert_eq!(streams.requester_of(StreamId(0x4020)), Some(0x120));
/// assert_eq!(streams.stream_of(0x200), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciStreams {
    /// The segment.
    pub segment: u16,
    /// The first requester id, after masking.
    pub first: u16,
    /// How many there are, 1 to 0x10000.
    pub count: u32,
    /// The bits of a requester id that are looked at.
    pub mask: u16,
    /// The SMMU, by its index.
    pub unit: u16,
    /// The StreamID of `first`; those of the others follow.
    pub stream: StreamId,
    /// Whether these functions may use ATS.
    pub ats: bool,
    /// Bits of PASID that are passed on; `None` when firmware does not say.
    pub pasid_bits: Option<u8>,
}

impl PciStreams {
    /// The StreamID of this requester id, if it is one of these.
    pub fn stream_of(&self, requester_id: u16) -> Option<StreamId> {
        let offset = u32::from((requester_id & self.mask).checked_sub(self.first)?);
        if offset < self.count { self.stream.0.checked_add(offset).map(StreamId) } else { None }
    }

    /// A requester id with this StreamID: where a mask leaves several, the one whose other bits are
    /// zero.
    pub fn requester_of(&self, stream: StreamId) -> Option<u16> {
        let offset = stream.0.checked_sub(self.stream.0).filter(|&offset| offset < self.count)?;
        let requester = u32::from(self.first).checked_add(offset)?;
        u16::try_from(requester).ok().filter(|id| id & self.mask == *id)
    }
}

/// A StreamID of a platform device.
///
/// ```
/// # fn show(stream: iommu::arch::smmuv3::firmware::PlatformStream<'_>) {
/// println!("{} is {} at SMMU {}", stream.name, stream.stream, stream.unit);
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PlatformStream<'a> {
    /// The device's path: in the ACPI namespace (`\_SB.E0`), or in the device tree (`/soc/dma@1000`).
    pub name: &'a str,
    /// The SMMU, by its index.
    pub unit: u16,
    /// The StreamID.
    pub stream: StreamId,
    /// Bits of SubstreamID that the device can send; 0 without.
    pub pasid_bits: u8,
    /// Whether its transactions may be stalled.
    pub stall: bool,
}
