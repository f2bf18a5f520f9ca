//! The driver half: programs SMMUv3 units.
//!
//! | file | what it holds |
//! |---|---|
//! | `capabilities` | what a unit can do |
//! | `registers` | commands to the unit, each with its wait |
//! | `site`, `table_site` | every barrier, clean, command and wait by name |
//! | `queue` | the command queue, for many producers |
//! | `entries` | tables of entries, in one level or two |
//! | `stream_table`, `cd_table` | the stream table of a unit, the context descriptors of a stream |
//! | `slot` | one entry of them, never seen torn |
//! | `faults` | what the unit tells, as the core has it |
//! | `events` | the event queue, global errors |
//! | `stalls` | requests that wait for an answer |
//! | `model` | for loom models and tests of mutants outside of the crate |
//! | `update` | the stores that turn one STE or CD into another |
//! | `unit` | who goes through which domain |
//! | `streams` | what the entry of each stream says at present |
//! | `domains` | what the domains of a unit can be |
//! | `translation` | what an entry says, whichever stage it is for |
//! | `reserved` | memory that firmware has streams use before they are attached |
//! | `startup` | from any state to translating, and back |
//! | `orders` | what is invalidated after which change |
//! | `invalidation` | which commands drop a set of ranges |
//! | `device_tlb` | the caches in devices, and devices that do not answer |
//! | `ops` | the unit as the core sees it |

pub mod capabilities;
mod cd_table;
mod device_tlb;
mod domains;
mod entries;
pub mod events;
mod faults;
mod invalidation;
#[cfg(any(loom, order_mutants))]
mod model;
mod ops;
mod orders;
pub mod queue;
pub mod registers;
mod reserved;
mod site;
mod slot;
mod stalls;
mod startup;
mod stream_table;
mod streams;
mod table_site;
mod translation;
mod unit;
mod update;

pub use capabilities::Capabilities;
pub use events::{DrainedEvents, EventQueue};
#[cfg(any(loom, order_mutants))]
pub use model::OneStream;
pub use queue::{CommandQueue, QueueConfig, Ticket};
pub use registers::{RegisterPages, SmmuRegisters, Untranslated};
#[cfg(order_mutants)]
pub use site::SITES;
pub use slot::EntrySync;
pub use stream_table::MAX_STREAM_ID_BITS;
#[cfg(order_mutants)]
pub use table_site::SITES as TABLE_SITES;
pub use unit::SmmuUnit;
pub use update::Passage;

use core::time::Duration;

use crate::arch::smmuv3::firmware::Firmware;
use crate::arch::smmuv3::layout::Granule;
use crate::device_tree::DeviceTree;
use crate::error::{Error, Result};
use crate::frames::{Ref, Slab};
use crate::iommu::Iommu;
use crate::ops::IommuOps;
use crate::platform::Platform;

/// How units are taken over.
///
/// ```
/// use iommu::arch::smmuv3::driver::SmmuOptions;
/// use iommu::arch::smmuv3::layout::Granule;
/// let large = SmmuOptions { granule: Some(Granule::Size64K), ..SmmuOptions::default() };
/// assert_ne!(large, SmmuOptions::default());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SmmuOptions {
    /// The granule of all page tables, which every unit must have then. Without, it is 4 KiB for units
    /// that have it, and the smallest that there is for others.
    pub granule: Option<Granule>,
    /// How long a batch of commands may take before its unit is fenced, with all devices behind it; without,
    /// a second ([`QueueConfig`]). A device may take a minute and a half over an invalidation of its TLB
    /// (PCIe 10.3.1): only if this is longer, one that does not answer at all is told from a unit that does
    /// not, and fenced alone.
    pub batch_limit: Option<Duration>,
}

/// Takes over every SMMUv3 that the IORT names, and adds it to `iommu`.
///
/// `iort` is the whole table as firmware left it; what it says is copied. Afterwards the kernel probes its
/// devices, which maps the memory that firmware reserved for them (RMR), and calls [`Iommu::enable`]. Until
/// then the units stay as firmware or a previous kernel left them. Streams with such memory that are never
/// probed reach that, and nothing else, from then on. Task only.
///
/// # Errors
/// [`Error::Firmware`] for a malformed table; [`Error::NoDevice`] when there is no unit that answers;
/// [`Error::Unsupported`] for a unit that cannot be used (see [`Capabilities::new`]) or lacks the granule;
/// [`Error::NoMemory`]. Units that came before the failing one are added all the same.
///
/// ```no_run
/// use iommu::arch::smmuv3;
/// use iommu::{Iommu, Policy};
/// # fn example<P: iommu::platform::Platform>(kernel: P, iort: &[u8]) -> iommu::Result<()> {
/// let iommu = Iommu::new(kernel, Policy::default())?;
/// smmuv3::init(&iommu, iort)?;
/// // ... iommu.probe_pci(..) for every function ...
/// iommu.enable()
/// # }
/// ```
pub fn init<P: Platform>(iommu: &Iommu<P>, iort: &[u8]) -> Result<()> {
    init_with(iommu, Firmware::from_iort(iommu.platform().clone(), iort)?, SmmuOptions::default()).map(drop)
}

/// As [`init`], for the units that a device tree names.
///
/// # Errors
/// As [`init`], and those of [`Firmware::from_device_tree`].
pub fn init_device_tree<P: Platform, T: DeviceTree>(iommu: &Iommu<P>, tree: &T) -> Result<()> {
    init_with(iommu, Firmware::from_device_tree(iommu.platform().clone(), tree)?, SmmuOptions::default()).map(drop)
}

/// As [`init`], with choices, and with what firmware says read before. It is given back, for it also tells
/// of platform devices, and where units have wires for their interrupts.
///
/// # Errors
/// As [`init`].
///
/// ```no_run
/// use iommu::arch::smmuv3::{self, SmmuOptions, firmware::Firmware};
/// use iommu::device::Trust;
/// # fn example<P: iommu::platform::Platform>(iommu: &iommu::Iommu<P>, kernel: P, iort: &[u8]) -> iommu::Result<()> {
/// let firmware = smmuv3::init_with(iommu, Firmware::from_iort(kernel, iort)?, SmmuOptions::default())?;
/// iommu.probe_platform(firmware.platform_device("\\_SB.DMA0", Trust::Trusted)?)?;
/// # Ok(())
/// # }
/// ```
pub fn init_with<P: Platform>(
    iommu: &Iommu<P>,
    firmware: Firmware<P>,
    options: SmmuOptions,
) -> Result<Ref<Firmware<P>>> {
    let platform = iommu.platform();
    let (slot, units) = (Slab::new(platform.clone())?, Slab::new(platform.clone())?);
    let firmware = slot.insert(firmware).map_err(|(error, _)| error)?;
    let mut found = Err(Error::NoDevice);
    for index in 0..firmware.units().len() {
        let unit = match units.insert_with(|_| SmmuUnit::new(platform.clone(), firmware.clone(), index, options)) {
            Ok(unit) => unit,
            // Firmware lists it, but it does not answer.
            Err(Error::NoDevice) => continue,
            Err(error) => return Err(error),
        };
        #[cfg(feature = "log")]
        log::info!("{:?}", &*unit);
        iommu.add_unit(Ref::map(unit, |unit| unit as &dyn IommuOps))?;
        found = Ok(());
    }
    found.map(|()| firmware)
}
