//! The VT-d device half under a hostile guest: registers, tables and queues are the fuzzer's, and so is
//! what devices ask; memory changes while the unit looks at it.
//!
//! Whatever happens, the unit must not panic, must end each step and each request after a bounded number
//! of accesses, and must touch nothing but the memory it is given. While memory does not change, the
//! walks find what a walker finds that was written from the specification alone; and whatever the unit
//! caches, no request goes where no tables ever said that it may.
#![no_main]

#[path = "device/choices.rs"]
mod choices;
#[path = "vtd_device/guest.rs"]
mod guest;
#[allow(dead_code, reason = "shared with another target")]
#[path = "driver/input.rs"]
mod input;
#[path = "vtd_device/naive.rs"]
mod naive;
#[path = "vtd_device/tables.rs"]
mod tables;
#[path = "vtd_device/unit.rs"]
mod unit;
#[path = "vtd_device/walks.rs"]
mod walks;

use libfuzzer_sys::fuzz_target;

use crate::input::Input;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    match input.u8() & 1 {
        0 => walks::run(&mut input),
        _ => unit::run(&mut input),
    }
});
