//! The VT-d driver on hardware that may lie: registers, queue memory, firmware and configuration
//! space are the fuzzer's, and so is what the kernel does.
//!
//! Whatever happens, the driver must not panic, wait without bound, free what it does not have, or
//! call the kernel with a lock held. As long as units fail but do not lie, they must not be able to
//! reach a frame that was given back, nor memory that a successful sync has covered. As long as they
//! work, devices see what the domains say, and nothing is lost in the end.
#![no_main]

#[path = "vtd_driver/firmware.rs"]
mod firmware;
#[path = "vtd_driver/input.rs"]
mod input;
#[path = "vtd_driver/kernel.rs"]
mod kernel;
#[path = "vtd_driver/queue.rs"]
mod queue;
#[path = "vtd_driver/space.rs"]
mod space;
#[path = "vtd_driver/unit.rs"]
mod unit;
#[path = "vtd_driver/walk.rs"]
mod walk;
#[path = "vtd_driver/world.rs"]
mod world;

use libfuzzer_sys::fuzz_target;

use crate::input::Input;
use crate::unit::{Template, Trouble};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mode = input.u8();
    let base = if mode & 1 == 0 { 0x1000_0000 } else { 0x12_3450_0000 };
    let frames = if mode & 2 == 0 { 4096 } else { 8 + u64::from(input.u8()) };
    let clock_step = [2_500_000, 10_000_000, 100_000_000, 300_000_000][usize::from(mode >> 2 & 3)];
    let template = Template {
        capabilities: [capabilities(&mut input), capabilities(&mut input)],
        status: input.u32() & 0x8680_0000,
        trouble: Trouble::default(),
    };
    world::begin(base, frames, clock_step, template);
    if mode & 0x80 == 0 {
        kernel::run(&mut input);
    } else {
        queue::run(&mut input);
    }
});

/// VER, CAP and ECAP: those of a plausible unit, some bits changed, or any.
fn capabilities(input: &mut Input<'_>) -> (u32, u64, u64) {
    let kind = input.u8();
    // 39 and 48 bits, 65536 domains, large pages, page-selective invalidation; 57 bits and
    // pass-through; caching mode; neither snooping nor anything that can be missing.
    let plausible = [
        (0x10, 0x00d2_008c_222f_0606, 0x00f0_0f42),
        (0x60, 0x80d2_008c_2238_0e06, 0x00f0_0f4b),
        (0x10, 0x00d2_008c_222f_0686, 0x00f0_0f4b),
        (0x10, 0x0000_0000_2226_0210, 0x00f0_0f02),
    ];
    let (version, cap, ecap) = plausible[usize::from(kind & 3)];
    match kind >> 2 {
        0..48 => (version, cap, ecap),
        48..60 => (version, cap ^ 1 << (input.u8() & 63) ^ 1 << (input.u8() & 63), ecap ^ 1 << (input.u8() & 63)),
        _ => (input.u32(), input.u64(), input.u64() | 2),
    }
}
