//! The driver half: programs VT-d units, in scalable mode where they have it, else in legacy mode.
//!
//! | file | what it holds |
//! |---|---|
//! | `capabilities` | what a unit can do |
//! | `registers` | commands to the unit, each with its wait |
//! | `site` | every barrier, clean, request and wait by name |
//! | `queue` | queued invalidation, for many producers |
//! | `slot` | one entry of such a table, never seen torn |
//! | `context` | root and context tables of both modes |
//! | `pasid` | PASID directories and tables, how their entries change |
//! | `unit` | who goes through which domain |
//! | `domains` | what the domains of a unit can be |
//! | `translation` | what an entry says, whichever mode it is for |
//! | `legacy`, `scalable` | how an entry changes, in either mode |
//! | `takeover` | tables that a previous kernel left in force |
//! | `orders` | what is invalidated after which change |
//! | `device_tlb` | the caches in devices, and devices that do not answer |
//! | `ops` | the unit as the core sees it |
//! | `faults` | the fault recording registers |
//! | `firmware` | the DMAR table, kept for devices that come later |

pub mod capabilities;
mod context;
mod device_tlb;
mod domains;
pub mod faults;
mod firmware;
mod invalidation;
mod legacy;
mod ops;
mod orders;
mod pasid;
pub mod queue;
pub mod registers;
mod scalable;
mod site;
mod slot;
mod takeover;
mod translation;
mod unit;

pub use capabilities::Capabilities;
pub use faults::{Drained, FaultLog};
#[cfg(loom)]
pub use pasid::OnePasid;
pub use queue::{Queue, QueueConfig, Ticket};
pub use registers::UnitRegisters;
#[cfg(order_mutants)]
pub use site::SITES;
pub use unit::VtdUnit;

use core::fmt;

use self::firmware::Firmware;
use crate::addr::PhysAddr;
use crate::arch::vtd::dmar::Dmar;
use crate::error::{Error, Result};
use crate::frames::{Ref, Slab};
use crate::iommu::Iommu;
use crate::ops::IommuOps;
use crate::platform::Platform;

/// Takes over every unit that the DMAR table names, and adds it to `iommu`.
///
/// `dmar` is the whole table as firmware left it; it is copied. Afterwards the kernel probes its
/// devices, which maps their direct regions (RMRR), and calls [`Iommu::enable`]. Until then
/// translation stays as firmware or a previous kernel left it; interrupt remapping, which this crate
/// does not do yet, is turned off. Task only.
///
/// # Errors
/// [`Error::Firmware`] for a malformed table; [`Error::NoDevice`] when there is no unit that answers
/// (one that firmware lists but has switched off is passed over, and its devices are
/// [`uncovered`](Iommu::uncovered)); [`Error::Unsupported`] for a unit without queued invalidation or
/// address width; [`Error::TimedOut`]; [`Error::NoMemory`]. Units that came before the failing one are
/// added all the same.
///
/// ```no_run
/// use iommu::arch::vtd;
/// use iommu::{Iommu, Policy};
/// # fn example<P: iommu::platform::Platform>(kernel: P, dmar: &[u8]) -> iommu::Result<()> {
/// let iommu = Iommu::new(kernel, Policy::default())?;
/// vtd::init(&iommu, dmar)?;
/// // ... iommu.probe_pci(..) for every function ...
/// iommu.enable()
/// # }
/// ```
pub fn init<P: Platform>(iommu: &Iommu<P>, dmar: &[u8]) -> Result<()> {
    init_with(iommu, dmar, VtdOptions::default())
}

/// Which mode of the tables (VT-d 3.4) a kernel wants.
///
/// ```
/// use iommu::arch::vtd::driver::ModeWish;
/// assert_eq!(ModeWish::default(), ModeWish::Best);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ModeWish {
    /// Scalable mode on units that have it and translate in it (ECAP.SMTS, and SSTS or FSTS); legacy
    /// mode on others.
    #[default]
    Best,
    /// Legacy mode on every unit.
    Legacy,
}

/// How units are taken over.
///
/// ```
/// use iommu::arch::vtd::driver::{ModeWish, VtdOptions};
/// let cautious = VtdOptions { mode: ModeWish::Legacy, ..VtdOptions::default() };
/// assert_ne!(cautious.mode, VtdOptions::default().mode);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct VtdOptions<'a> {
    /// The mode of the tables.
    pub mode: ModeWish,
    /// What becomes of tables that a previous kernel left in force.
    pub previous: PreviousTables<'a>,
}

/// What becomes of the tables that a unit translates with when it is found: those of a kernel that
/// crashed and started this one, or of firmware. Until [`Iommu::enable`] they stay in force, and
/// translation does not go off when they are replaced: a device sees the old tables, nothing, or the new
/// ones.
///
/// Only if they are in another mode than ours will be, and the unit lacks CAP.ESRTPS, does translation go
/// off for a moment (VT-d 6.6): such a unit should be asked for [`ModeWish::Legacy`] by a kernel whose
/// predecessor used that, or its devices be kept quiet.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::driver::{PreviousTables, VtdOptions};
/// // A kernel that can read its predecessor's memory.
/// let read = |_address: PhysAddr| -> Option<u64> { None };
/// let options = VtdOptions { previous: PreviousTables::CopyUntilClaimed(&read), ..VtdOptions::default() };
/// assert!(format!("{options:?}").contains("CopyUntilClaimed"));
/// ```
#[derive(Clone, Copy, Default)]
pub enum PreviousTables<'a> {
    /// A device that was not probed is blocked when the unit is enabled.
    #[default]
    Replace,
    /// What a device could reach it can reach until it is attached for the first time, to whatever domain:
    /// a disk controller may go on writing where the previous kernel had it write. Page tables and PASID
    /// tables stay in that kernel's memory, which must not be used for anything else meanwhile.
    ///
    /// The function reads the aligned quadword at a physical address, wherever firmware or a table says,
    /// and gives `None` for what is no memory of the previous kernel; what depends on it is then
    /// blocked. It is called by [`init_with`] only.
    CopyUntilClaimed(&'a dyn Fn(PhysAddr) -> Option<u64>),
}

impl fmt::Debug for PreviousTables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replace => "Replace",
            Self::CopyUntilClaimed(_) => "CopyUntilClaimed",
        })
    }
}

/// As [`init`], with choices.
///
/// # Errors
/// As [`init`].
pub fn init_with<P: Platform>(iommu: &Iommu<P>, dmar: &[u8], options: VtdOptions<'_>) -> Result<()> {
    let table = Dmar::parse(dmar)?;
    let platform = iommu.platform();
    let tables = Slab::new(platform.clone())?;
    let units = Slab::new(platform.clone())?;
    let firmware = tables.insert(Firmware::new(platform.clone(), dmar)?).map_err(|(error, _)| error)?;
    let mut found = Err(Error::NoDevice);
    for drhd in table.units() {
        let base = drhd.registers.start();
        let made = units.insert_with(|_| VtdUnit::new(platform.clone(), base, drhd.segment, firmware.clone(), options));
        let unit = match made {
            Ok(unit) => unit,
            // Firmware lists it, but has switched it off.
            Err(Error::NoDevice) => continue,
            Err(error) => return Err(error),
        };
        #[cfg(feature = "log")]
        log::info!("{:?}", &*unit);
        iommu.add_unit(Ref::map(unit, |unit| unit as &dyn IommuOps))?;
        found = Ok(());
    }
    found
}
