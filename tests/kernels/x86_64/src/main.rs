//! A kernel that protects its memory from a PCI device with the `iommu` crate: the smallest complete
//! example of what a kernel must provide.
//!
//! - `platform.rs` is what the crate asks for: frames, registers, a clock, the map of RAM.
//! - `acpi.rs` finds the firmware's table of IOMMUs, `pci.rs` reaches configuration space.
//! - `interrupts.rs` makes a fault message call a function.
//! - `boot.s`, `runtime.rs`, `console.rs`, `clock.rs`, `pvh.rs`, `port.rs` are what any kernel has.
//! - `edu.rs` drives the device that does the DMA.
#![no_std]
#![no_main]

mod acpi;
mod by_hand;
mod clock;
mod console;
mod edu;
mod failure;
mod interrupts;
mod pci;
mod platform;
mod port;
mod pvh;
mod runtime;

use core::sync::atomic::{AtomicUsize, Ordering};

use iommu::hwmem::FrameTable;
use iommu::platform::{Platform, Registers};
use iommu::{Iova, PhysAddr};
use spin::Once;

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

const ANYWHERE: PhysAddr = PhysAddr::new(u64::MAX);
static UNIT: Once<iommu::platform::Mmio> = Once::new();
static FAULTS: AtomicUsize = AtomicUsize::new(0);

fn run(start_info: usize) -> Result<(), Failure> {
    // SAFETY: this is what the loader passed; nothing writes there.
    let start_info = unsafe { StartInfo::at(start_info) }.ok_or(Failure::Missing("a PVH boot loader"))?;
    // SAFETY: called once; nothing else uses memory behind the kernel.
    let kernel = unsafe { Kernel::new(start_info) }?;
    // SAFETY: called once.
    unsafe { interrupts::init() };

    // SAFETY: the loader passed what firmware told it, and the tables are left alone.
    let dmar = unsafe { acpi::find(start_info.rsdp(), b"DMAR") }.ok_or(Failure::Missing("a DMAR: no VT-d"))?;
    let base = dmar.get(56..64).and_then(|field| field.try_into().ok()).map(u64::from_le_bytes);
    let base = base.ok_or(Failure::Missing("a unit in the DMAR"))?;
    let unit = kernel.map_registers(PhysAddr::new(base), 0x1000)?;
    println!("DMAR of {} bytes, unit at {base:#x}, CAP {:#x}", dmar.len(), unit.read64(8));

    let edu = Edu::find(kernel, ConfigPorts)?;
    println!("edu at {}", edu.function());

    let source = FrameTable::new(kernel, 0, ANYWHERE)?;
    let target = FrameTable::new(kernel, 0, ANYWHERE)?;
    source.view().entry(0).store(0x1234_5678_9abc_def0);
    edu.read_memory(Iova::new(source.phys().as_u64()), 8)?;
    edu.write_memory(Iova::new(target.phys().as_u64()), 8)?;
    if target.view().entry(0).load() != 0x1234_5678_9abc_def0 {
        return Err(Failure::Wrong("DMA without translation"));
    }
    println!("DMA without translation works, {} ms since boot", kernel.now().as_nanos() / 1_000_000);

    let message = interrupts::message_for(on_fault).ok_or(Failure::Missing("a vector"))?;
    let root = FrameTable::new(kernel, 0, ANYWHERE)?;
    let unit = UNIT.call_once(|| unit);
    by_hand::block_everything(unit, &root, message);
    target.view().entry(0).store(0);
    edu.write_memory(Iova::new(target.phys().as_u64()), 8)?;
    if target.view().entry(0).load() != 0 || FAULTS.load(Ordering::Acquire) == 0 {
        return Err(Failure::Wrong("DMA was not blocked, or without a fault interrupt"));
    }
    println!("{} frames in use", kernel.frames_in_use());
    Ok(())
}

fn on_fault() {
    if let Some(unit) = UNIT.get() {
        println!("fault: status {:#x} record {:#x} {:#x}", unit.read32(0x34), unit.read64(0x220), unit.read64(0x228));
        unit.write32(0x22c, 1 << 31);
        FAULTS.fetch_add(1, Ordering::Release);
    }
}
