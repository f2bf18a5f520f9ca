//! An IOMMU layer for kernels in Rust: what Linux's `drivers/iommu` gives Linux, without a heap.
//!
//! # The layers
//!
//! ```text
//! kernel
//!   |  Iommu: probe, attach, own           Domain: map, unmap, walk
//!   v                                         v
//! core       devices, groups, default domains, faults          src/
//!   |  IommuOps, one object per unit          |  DomainOps, one per domain
//!   v                                         v
//! backend    a folder each: firmware tables, entries, queue    arch/
//!   |                                         |
//!   v                                         v
//! hardware   registers, queue                page tables       pgtable, hwmem
//! ```
//!
//! - [`platform`]: what the kernel lends: frames, registers, barriers, time. One trait, about five
//!   methods.
//! - [`Iommu`]: all units of a machine and the devices behind them. Firmware tables, units, direct
//!   regions, devices, enable: in this order.
//! - [`Domain`]: an I/O address space. [`Domain::map`] lends memory to devices; [`Domain::unmap`]
//!   and [`iotlb::Gather::sync`] get it back.
//! - [`ops`]: what a backend implements.
//! - [`arch`]: the backends.
//! - [`pgtable`]: one walker over formats that are small files.
//! - [`pci`]: aliases, bridges and ACS, which decide who shares a group.
//! - `bus` (feature `device`): the other side, the hardware in software.
//!
//! # Example
//!
//! A page table without hardware, over memory that the caller lends. With hardware the calls are the
//! same, on a [`Domain`].
//!
//! ```
//! use iommu::pgtable::{Config, PageSizes, PageTable, SecondStage, TableList};
//! use iommu::platform::{Arena, Frame};
//! use iommu::{Iova, IovaRange, PhysAddr, Prot};
//!
//! let arena = Arena::new(Box::leak(vec![Frame::ZERO; 16].into_boxed_slice()))?;
//! let table = PageTable::new(arena, SecondStage::default(), Config::new::<SecondStage>(4))?;
//! let range = IovaRange::from_len(Iova::new(0x1000), 0x3000)?;
//! let mut stray = TableList::new();
//! // SAFETY: no device uses the table.
//! unsafe { table.map(range, PhysAddr::new(0x8000_0000), Prot::RW, PageSizes::ALL, &mut stray) }.map_err(|failed| failed.error)?;
//! assert_eq!(table.iova_to_phys(Iova::new(0x2345)), Some(PhysAddr::new(0x8000_1345)));
//! # Ok::<(), iommu::Error>(())
//! ```
//!
//! # What is never done
//!
//! No heap: every byte is a frame of the platform or the caller's. No panic, on any input from a
//! caller, a device or firmware. No wait without a bound. Memory that a device may still reach is
//! never given back: when an invalidation fails, it stays quarantined.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | IOVA | I/O virtual address: what a device puts on the bus |
//! | domain | an I/O address space: blocked, identity or paging |
//! | group | devices that hardware cannot tell apart; they share a domain |
//! | attach | let requests of a group go through a domain |
//! | default domain | the domain of a group that nobody attached another one to |
//! | source id | who a request comes from, as the IOMMU sees it: PCI segment and requester id |
//! | alias | another source id under which a device's requests arrive |
//! | window | a range of IOVAs that a domain can translate |
//! | reserved region | a range of IOVAs that a device cannot use freely |
//! | direct region | one that firmware wants mapped one to one (VT-d: RMRR, IORT: RMR) |
//! | leaf, table | a page-table entry that maps a page, or that points to another table |
//! | IOTLB | a unit's cache of translations; device TLB: the device's own (ATS) |
//! | cache tag | where a unit may have cached translations of a domain |
//! | gather | what was unmapped and is still to be invalidated |
//! | snoop | a device's or walker's access sees the processor's caches |
//! | quarantine | memory and numbers kept because an invalidation did not complete |
//! | fenced | a unit that stopped answering: its devices are blocked until it is reset |
#![no_std]
#![deny(missing_docs)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::todo)
)]

#[cfg(loom)]
extern crate std;

#[cfg(any(feature = "smmuv3", feature = "vtd"))]
mod acpi;
mod addr;
#[path = "../arch/mod.rs"]
pub mod arch;
#[cfg(feature = "device")]
pub mod bus;
pub mod device;
pub mod device_tree;
pub mod domain;
mod error;
mod fault;
pub mod frames;
mod group;
pub mod hwmem;
mod id;
pub mod iommu;
pub mod iotlb;
pub mod ops;
pub mod pci;
pub mod pgtable;
pub mod platform;
mod prot;
mod region;
mod requester;
pub mod sync;
mod window;

pub use addr::{GuestPhysAddr, Iova, IovaRange, PhysAddr, PhysRange};
pub use device::Device;
pub use domain::{Domain, DomainKind};
pub use error::{
    BusyReason, Error, IncompatibleReason, InvalidReason, InvalidationReason, NoSpaceReason, ParseError,
    ParseErrorKind, Result, UnsupportedReason, WaitReason,
};
pub use fault::{
    Access, DrainedFaults, FAULT_LOG_RECORDS, FAULT_WATCHED_SOURCES, FAULT_WINDOW, FAULTS_PER_WINDOW, FaultKind,
    FaultLog, FaultRecord, FaultsLeft, LostFaults, StallAnswer, StallTag,
};
pub use group::{Group, Owner};
pub use id::{Pasid, PciAddress, SourceId};
pub use iommu::{AtsPolicy, BootPolicy, Iommu, Policy, StallPolicy};
pub use prot::Prot;
pub use region::{MAX_RESERVED_REGIONS, RegionKind, ReservedRegion, ReservedRegions};
pub use window::{MAX_WINDOWS, Window, Windows};
