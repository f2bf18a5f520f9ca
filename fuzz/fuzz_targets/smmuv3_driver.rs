//! The SMMUv3 driver on hardware that may lie: registers, queue memory, firmware and configuration
//! space are the fuzzer's, and so are what the units are able to do and what the kernel does.
//!
//! Whatever happens, the driver must not panic, wait without bound, free what it does not have, or
//! call the kernel with a lock held. As long as units fail but do not lie, they find only valid
//! commands, and touch no frame that was given back; devices do not reach memory that a successful sync
//! has covered. As long as units work, the driver does nothing that the specification does not permit,
//! devices reach what the domains say and nothing else, and nothing is lost in the end.
//!
//! The units are the crate's own device half, which keeps in its caches all that it may.
#![no_main]

#[path = "driver/choices.rs"]
mod choices;
#[path = "driver/device_tlbs.rs"]
mod device_tlbs;
#[path = "smmuv3_driver/firmware.rs"]
mod firmware;
#[path = "smmuv3_driver/host.rs"]
mod host;
#[path = "smmuv3_driver/identification.rs"]
mod identification;
#[allow(dead_code, reason = "shared with another target")]
#[path = "driver/input.rs"]
mod input;
#[path = "driver/kernel.rs"]
mod kernel;
#[allow(dead_code, reason = "shared with another target")]
#[path = "driver/memory.rs"]
mod memory;
#[path = "driver/pci.rs"]
mod pci;
#[path = "driver/space.rs"]
mod space;
#[path = "smmuv3_driver/trouble.rs"]
mod trouble;
#[path = "smmuv3_driver/unit.rs"]
mod unit;
#[path = "driver/world.rs"]
mod world;

use iommu::arch::smmuv3::layout::registers::Cr0;
use iommu::{AtsPolicy, Policy, StallPolicy};
use libfuzzer_sys::fuzz_target;

use crate::firmware::Streams;
use crate::input::Input;
use crate::trouble::Trouble;
use crate::unit::Template;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mode = input.u8();
    let options = input.u8();
    let base = if mode & 1 == 0 { 0x1000_0000 } else { 0x12_3450_0000 };
    let frames = if mode & 2 == 0 { 4096 } else { 8 + u64::from(input.u8()) };
    let clock_step = [2_500_000, 10_000_000, 100_000_000, 300_000_000][usize::from(mode >> 2 & 3)];
    let template = Template {
        identification: [identification::choose(&mut input), identification::choose(&mut input)],
        left_on: Cr0::from_bits_truncate(u32::from(input.u8()) & 0x1f),
        // A command of a previous kernel that cannot be fetched.
        left_error: options & 1 != 0,
        seed: (options & 2 != 0).then(|| u64::from(options)),
        // A unit that takes its time is in order, as long as the clock leaves it some.
        trouble: Trouble { lazy: if options & 0x80 != 0 && mode & 0xc == 0 { 2 } else { 0 }, ..Trouble::default() },
        troubled: false,
        streams: Streams::default(),
    };
    world::begin(base, frames, clock_step, template);
    world::with(|world| world.devices_are_busy = options & 4 == 0);
    let ats = if options & 0x10 == 0 { AtsPolicy::Trusted } else { AtsPolicy::Off };
    let stalls = if options & 0x20 == 0 { StallPolicy::Hold } else { StallPolicy::Off };
    kernel::run(&mut input, options, Policy { ats, stalls, ..Policy::default() });
    world::end();
});
