//! A kernel that protects its memory from a PCI device with the `iommu` crate: the smallest complete
//! example of what a kernel must provide, and of what it does with it.
//!
//! What the crate asks for:
//! - `platform.rs`: frames, registers, a clock, the map of RAM.
//! - `pci.rs`: configuration space.
//! - `acpi.rs`: the firmware's table of IOMMUs.
//! - `interrupts.rs`: a message from a device calls a function.
//!
//! What the kernel does with the crate:
//! - `protection.rs` brings the IOMMU up, takes its fault interrupt, and lets it go.
//! - `story.rs` maps, attaches, unmaps; `edu.rs` drives the device whose DMA arrives or is stopped.
//!
//! The rest is what any kernel has: `boot.s`, `runtime.rs`, `console.rs`, `clock.rs`, `page.rs`,
//! `pvh.rs`, `port.rs`, `failure.rs`.
#![no_std]
#![no_main]

mod acpi;
mod clock;
mod console;
mod edu;
mod failure;
mod interrupts;
mod page;
mod pci;
mod platform;
mod port;
mod protection;
mod pvh;
mod runtime;
mod story;

use crate::console::Outcome;
use crate::edu::Edu;
use crate::failure::Failure;
use crate::pci::ConfigPorts;
use crate::platform::Kernel;
use crate::pvh::StartInfo;

core::arch::global_asm!(include_str!("boot.s"));

/// Where `boot.s` calls, with what the loader passed.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(start_info: usize) -> ! {
    console::init();
    let outcome = match run(start_info) {
        Ok(()) => Outcome::Pass,
        Err(failure) => {
            println!("FAILED: {failure}");
            Outcome::Fail
        }
    };
    console::exit(outcome)
}

fn run(start_info: usize) -> Result<(), Failure> {
    // The machine: memory, time, interrupts.
    // SAFETY: this is what the loader passed, and nothing writes there.
    let start_info = unsafe { StartInfo::at(start_info) }.ok_or(Failure::Missing("a PVH boot loader"))?;
    // SAFETY: called once; nothing else uses memory behind the kernel.
    let kernel = unsafe { Kernel::new(start_info) }?;
    // SAFETY: called once.
    unsafe { interrupts::init() };

    // The firmware's table, and the device that is not to be let at everything.
    // SAFETY: the loader passed what firmware told it, and nothing writes to the tables.
    let dmar = unsafe { acpi::find(start_info.rsdp(), b"DMAR") }.ok_or(Failure::Missing("a DMAR table: no VT-d"))?;
    let edu = Edu::find(kernel, ConfigPorts)?;
    println!("DMAR has {} bytes, the device is {}", dmar.len(), edu.function());
    story::tell(kernel, dmar, &edu)
}
