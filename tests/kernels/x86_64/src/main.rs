//! A kernel that protects its memory from a PCI device with the `iommu` crate: the smallest complete
//! example of what a kernel must provide.
//!
//! - `platform.rs` is what the crate asks for: frames, registers, a clock, the map of RAM.
//! - `acpi.rs` finds the firmware's table of IOMMUs, `pci.rs` reaches configuration space.
//! - `interrupts.rs` makes a message from a device call a function.
//! - `edu.rs` drives the device whose DMA is let through, and blocked.
//! - `boot.s`, `runtime.rs`, `console.rs`, `clock.rs`, `pvh.rs` and `port.rs` are what any kernel has.
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
use core::time::Duration;

use iommu::hwmem::FrameTable;
use iommu::platform::Platform;
use iommu::{Iova, PhysAddr};
use spin::Once;

use crate::by_hand::Unit;
use crate::console::Outcome;
use crate::edu::Edu;
use crate::failure::Failure;
use crate::pci::ConfigPorts;
use crate::platform::Kernel;
use crate::pvh::StartInfo;

core::arch::global_asm!(include_str!("boot.s"));

/// Where the device sees the page that it may read, and the one that it may write.
const SOURCE: Iova = Iova::new(0x10_0000);
const TARGET: Iova = Iova::new(0x11_0000);
/// Bytes that the device copies at once.
const BYTES: u32 = 64;

/// The IOMMU, where the interrupt handler finds it.
static IOMMU: Once<Unit> = Once::new();
/// Faults that were reported.
static FAULTS: AtomicUsize = AtomicUsize::new(0);

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

    // The firmware's table, and the device that is not trusted.
    // SAFETY: the loader passed what firmware told it, and nothing writes to the tables.
    let dmar = unsafe { acpi::find(start_info.rsdp(), b"DMAR") }.ok_or(Failure::Missing("a DMAR table: no VT-d"))?;
    let edu = Edu::find(kernel, ConfigPorts)?;
    println!("DMAR has {} bytes, the device is {}", dmar.len(), edu.function());

    // Three pages: one to read, one to write, and one that is nobody's business.
    let source = filled(kernel, 0x0123_4567_89ab_cdef)?;
    let target = filled(kernel, 0)?;
    let secret = filled(kernel, 0x5ec2_e75e_c2e7_5ec2)?;

    // Without an IOMMU the device reaches whatever it names.
    edu.read_memory(Iova::new(source.phys().as_u64()), BYTES)?;
    edu.write_memory(Iova::new(target.phys().as_u64()), BYTES)?;
    expect(holds(&target, 0x0123_4567_89ab_cdef), "without an IOMMU, the DMA did not arrive")?;
    println!("without an IOMMU: the DMA went through");
    fill(&target, 0);

    // The IOMMU: two pages are mapped for the device, nothing else.
    let base = dmar.get(56..64).and_then(|field| field.try_into().ok()).map(u64::from_le_bytes);
    let base = PhysAddr::new(base.ok_or(Failure::Missing("a unit in the DMAR table"))?);
    let message = interrupts::message_for(on_fault).ok_or(Failure::Missing("a free vector"))?;
    let unit = Unit::new(kernel, base, message)?;
    let unit = IOMMU.call_once(|| unit);
    unit.map(edu.function(), SOURCE, source.phys());
    unit.map(edu.function(), TARGET, target.phys());
    unit.enable();
    println!("the unit at {base} translates, {} frames are in use", kernel.frames_in_use());

    // Inside the mapping.
    edu.read_memory(SOURCE, BYTES)?;
    edu.write_memory(TARGET, BYTES)?;
    expect(holds(&target, 0x0123_4567_89ab_cdef), "inside its mapping, the DMA did not arrive")?;
    expect(FAULTS.load(Ordering::Acquire) == 0, "a fault was reported for a DMA that is allowed")?;
    println!("inside the mapping: the DMA went through");

    // Outside: nothing is written, and the fault's interrupt arrives.
    edu.write_memory(Iova::new(secret.phys().as_u64()), BYTES)?;
    expect(holds(&secret, 0x5ec2_e75e_c2e7_5ec2), "the device wrote to a page that was not mapped for it")?;
    expect(a_fault_arrives(kernel), "no fault was reported")?;
    println!("outside the mapping: the DMA was blocked");
    Ok(())
}

/// Runs as the interrupt handler of the IOMMU's fault message.
fn on_fault() {
    let Some(iommu) = IOMMU.get() else { return };
    while let Some(fault) = iommu.take_fault() {
        println!("fault interrupt: {} at {}, reason {:#x}", fault.source, fault.iova, fault.reason);
        FAULTS.fetch_add(1, Ordering::Release);
    }
}

/// Waits for a fault to be reported, a second at most.
fn a_fault_arrives(kernel: Kernel) -> bool {
    let deadline = kernel.now() + Duration::from_secs(1);
    while FAULTS.load(Ordering::Acquire) == 0 && kernel.now() < deadline {
        kernel.spin_hint();
    }
    FAULTS.load(Ordering::Acquire) > 0
}

/// A page for the device's data, full of `pattern`.
fn filled(kernel: Kernel, pattern: u64) -> Result<FrameTable<Kernel>, Failure> {
    let page = FrameTable::new(kernel, 0, PhysAddr::new(u64::MAX))?;
    fill(&page, pattern);
    Ok(page)
}

fn fill(page: &FrameTable<Kernel>, pattern: u64) {
    page.view().entries(0, usize::MAX).iter().for_each(|word| word.store(pattern));
}

/// Whether the part of `page` that a DMA reaches is full of `pattern`.
fn holds(page: &FrameTable<Kernel>, pattern: u64) -> bool {
    page.view().entries(0, BYTES as usize / size_of::<u64>()).iter().all(|word| word.load() == pattern)
}

fn expect(told: bool, otherwise: &'static str) -> Result<(), Failure> {
    if told { Ok(()) } else { Err(Failure::Wrong(otherwise)) }
}
