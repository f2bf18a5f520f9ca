//! The vendor-neutral core over a backend that is implemented outside the crate.
//!
//! The fake unit (`fake`) walks real page tables and keeps what it walked in a fake IOTLB and a fake
//! walk cache until it is told, and waited for, to drop it: a forgotten invalidation shows as a DMA
//! that still works, and a table that is freed too early ends the test.
#![cfg(not(loom))]

mod ats;
mod attach;
mod boot;
mod coherency;
mod devices;
mod direct;
mod dirty;
mod domain;
mod fake;
mod faults;
mod flush;
mod limits;
mod memory;
mod msi;
mod owner;
mod pci;
mod platform;
mod rollback;
mod several;
mod sizes;
mod stages;
mod stalls;
mod tags;
mod world;
