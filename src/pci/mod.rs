//! PCI configuration space, as far as DMA isolation needs it.
//!
//! The kernel lends access to configuration space ([`PciConfig`]); everything else is read from
//! there: what a function offers ([`PciFunction`]), the bridges above it ([`path`]), the requester
//! ids its DMA may carry ([`aliases`]) and which functions cannot be isolated from each other
//! ([`group_key`], after [`enable_acs`]).
//!
//! Nothing is remembered between calls, and whatever hardware answers, each walk is bounded. All of
//! it is *task only*: one call may take thousands of configuration reads, and it does not expect bus
//! numbers to change meanwhile.
//!
//! "PCIe" with a section number means the PCI Express Base Specification 5.0, "PCI" the PCI Local
//! Bus Specification 3.0.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod ats;
mod capability;
mod config;
#[cfg(test)]
mod fake;
mod function;
mod group;
mod topology;

pub use ats::AtsState;
pub use capability::{Capabilities, ExtendedCapabilities, find_capability, find_extended};
pub use config::PciConfig;
pub use function::{Acs, AcsFlags, Ats, BusNumbers, PasidCapability, PciFunction, PciKind, Pri};
pub use group::{GroupKey, enable_acs, group_key};
pub use topology::{BusFunctions, MAX_ALIASES, MAX_DEPTH, aliases, path};

/// Numbers of capabilities (PCI appendix H).
pub mod capability_id {
    /// PCI Express (PCIe 7.5.3).
    pub const EXPRESS: u8 = 0x10;
}

/// Numbers of extended capabilities (PCIe 7.6.3, and the section of each).
pub mod extended_id {
    /// Access Control Services (PCIe 7.7.8).
    pub const ACS: u16 = 0x0d;
    /// Alternative Routing-ID Interpretation (PCIe 7.8.7).
    pub const ARI: u16 = 0x0e;
    /// Address Translation Services (PCIe 10.5.1).
    pub const ATS: u16 = 0x0f;
    /// Page Request Interface (PCIe 10.5.2).
    pub const PRI: u16 = 0x13;
    /// Process Address Space IDs (PCIe 7.8.8).
    pub const PASID: u16 = 0x1b;
}
