//! An IOMMU layer for kernels in Rust.
#![no_std]
#![deny(missing_docs)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::todo)
)]

#[cfg(loom)]
extern crate std;

mod addr;
#[path = "../arch/mod.rs"]
pub mod arch;
mod error;
pub mod frames;
pub mod hwmem;
mod id;
pub mod pci;
pub mod pgtable;
pub mod platform;
mod prot;
pub mod sync;

pub use addr::{GuestPhysAddr, Iova, IovaRange, PhysAddr, PhysRange};
pub use error::{
    BusyReason, Error, IncompatibleReason, InvalidReason, InvalidationReason, NoSpaceReason, ParseError,
    ParseErrorKind, Result, UnsupportedReason, WaitReason,
};
pub use id::{Pasid, PciAddress, SourceId};
pub use prot::Prot;
