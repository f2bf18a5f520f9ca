//! Arm SMMUv3 ("Arm System Memory Management Unit Architecture Specification, SMMU architecture
//! version 3", IHI 0070).
//!
//! Section numbers in this folder are those of that document, issue G.b.

#[cfg(feature = "device")]
pub mod device;
pub mod driver;
pub mod firmware;
pub mod layout;

pub use driver::{SmmuOptions, init, init_device_tree, init_with};
