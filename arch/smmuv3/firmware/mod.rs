//! What firmware says of SMMUs: which there are, and under which StreamIDs devices arrive.
//!
//! Servers say it in an ACPI table ([`iort`]), boards in a [device tree](crate::device_tree). Both
//! come to the same [`Firmware`], which the driver asks.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod device_tree;
mod from_iort;
pub mod iort;
mod store;
mod types;

#[cfg(test)]
mod tests;

pub use store::{Firmware, PlatformStreams};
pub use types::{
    Coherency, Httu, Interrupt, InterruptCells, Interrupts, MsiController, MsiTarget, PciStreams, PlatformStream,
    Quirks, UnitNode,
};
