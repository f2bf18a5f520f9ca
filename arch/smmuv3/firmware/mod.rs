//! What firmware says of SMMUs: which there are, and under which StreamIDs devices arrive.
//!
//! Servers say it in an ACPI table, [`iort`].

pub mod iort;
