//! What mutants of every vendor's driver have in common.

pub(crate) mod bench;
pub(crate) mod device_tlbs;
pub(crate) mod devices;
pub(crate) mod lives;
pub(crate) mod runner;
pub(crate) mod scenarios;
