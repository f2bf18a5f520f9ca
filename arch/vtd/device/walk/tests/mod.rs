//! Tests of the walks. Tables are literal numbers, worked out from the figures of chapter 9, and
//! faults are those of Table 30; only `engine` reads tables that this crate's own driver half builds.

extern crate std;

mod context;
mod engine;
mod first_stage;
mod memory;
mod nested;
mod pasid;
mod second_stage;

use super::{Stage, Structure, StructureCache};
use crate::arch::vtd::device::{Blocked, DeviceConfig, Recorded};
use crate::arch::vtd::layout::{Cap, Ecap};

/// A unit with 46 bits of host address and these capabilities besides 39 and 48 bits of second stage.
fn unit(cap: Cap, ecap: Ecap) -> DeviceConfig {
    // ND 16 bits, SAGAW 39 and 48, MGAW 48.
    let plain = Cap::from_bits_retain(0x002f_0606);
    DeviceConfig { cap: plain | cap, ecap: Ecap::C | ecap, host_address_bits: 46, ..DeviceConfig::default() }
}

/// The number of a fault that is recorded.
fn reason<T: core::fmt::Debug>(result: Result<T, Blocked>) -> u8 {
    let fault = result.expect_err("a fault");
    assert_eq!(fault.recorded, Recorded::Yes);
    fault.reason.0
}

/// The number of a fault that an FPD suppresses.
fn suppressed<T: core::fmt::Debug>(result: Result<T, Blocked>) -> u8 {
    let fault = result.expect_err("a fault");
    assert_eq!(fault.recorded, Recorded::Suppressed);
    fault.reason.0
}

/// A cache that remembers everything, and what it was told.
#[derive(Default)]
struct Everything {
    structures: std::vec::Vec<(Stage, u64, Structure)>,
    missing: std::vec::Vec<(u64, u8, u8)>,
}

impl StructureCache for Everything {
    fn lookup(&mut self, stage: Stage, address: u64) -> Option<Structure> {
        let of = |(kind, block, structure): &(Stage, u64, Structure)| {
            *kind == stage && *block == address >> structure.block_bits()
        };
        self.structures.iter().filter(|entry| of(entry)).map(|(_, _, structure)| *structure).min_by_key(|s| s.level)
    }

    fn insert(&mut self, stage: Stage, address: u64, structure: Structure) {
        self.structures.push((stage, address >> structure.block_bits(), structure));
    }

    fn missing(&mut self, address: u64, block_bits: u8, blocked: Blocked) {
        self.missing.push((address >> block_bits, block_bits, blocked.reason.0));
    }
}
