//! Arm SMMUv3 ("Arm System Memory Management Unit Architecture Specification, SMMU architecture
//! version 3", IHI 0070).
//!
//! Section numbers in this folder are those of that document, issue G.b.

pub mod firmware;
pub mod driver;
pub mod layout;
#[cfg(feature = "device")]
pub mod device;
