//! The IOMMU of this kernel: how it comes up, how its faults arrive, how it goes.

use iommu::arch::vtd;
use iommu::device::Trust;
use iommu::ops::InterruptKind;
use iommu::platform::Platform;
use iommu::{Error, Iommu, Policy};
use spin::RwLock;

use crate::failure::Failure;
use crate::pci::ConfigPorts;
use crate::platform::Kernel;
use crate::{interrupts, println};

/// Where tasks and the interrupt handler find it. Readers do not keep each other out; it is written
/// with interrupts disabled, lest the handler waits for the task that it has interrupted.
static IOMMU: RwLock<Option<Iommu<Kernel>>> = RwLock::new(None);
// What grows with the machine lies in frames.
const _: () = assert!(size_of_val(&IOMMU) <= 16 * 1024);

/// Brings up every unit that the DMAR table names. When this returns, a device reaches nothing but
/// what is mapped for it.
pub fn start(kernel: Kernel, dmar: &[u8]) -> Result<(), Failure> {
    let iommu = Iommu::new(kernel, Policy::default())?;
    vtd::init(&iommu, dmar)?;
    for unit in iommu.units() {
        println!("found {unit:?}");
    }
    for function in ConfigPorts.functions() {
        match iommu.probe_pci(&ConfigPorts, function, Trust::Trusted) {
            Ok(device) => println!("probed {device:?}"),
            Err(Error::NoDevice) => {} // told below
            Err(error) => println!("{function} stays blocked: {error}"),
        }
    }
    for device in iommu.uncovered() {
        println!("{device:?} is behind no IOMMU: nothing restricts its DMA");
    }
    // Before translation starts, so that no fault goes unheard.
    put(kernel, Some(iommu));
    let message = interrupts::message_for(on_fault).ok_or(Failure::Missing("a free vector"))?;
    with(|iommu| {
        iommu.set_fault_interrupt(message)?;
        Ok(iommu.enable()?)
    })
}

/// Runs as the handler of the units' fault message. It only moves the records out of the hardware:
/// printing takes time, and a task does it.
fn on_fault() {
    if let Some(iommu) = &*IOMMU.read() {
        iommu.handle_interrupt(InterruptKind::Fault);
    }
}

/// Calls `task` with the IOMMU.
pub fn with<T>(task: impl FnOnce(&Iommu<Kernel>) -> Result<T, Failure>) -> Result<T, Failure> {
    IOMMU.read().as_ref().ok_or(Failure::Missing("an IOMMU that was started")).and_then(task)
}

/// Lets go of everything. Devices are quiet by now.
pub fn stop(kernel: Kernel) {
    // Dropped here, with interrupts as they were: it waits for hardware.
    drop(put(kernel, None));
}

/// Puts `new` in place of what the handler sees.
fn put(kernel: Kernel, new: Option<Iommu<Kernel>>) -> Option<Iommu<Kernel>> {
    let interrupts = kernel.save_interrupts();
    let old = core::mem::replace(&mut *IOMMU.write(), new);
    kernel.restore_interrupts(interrupts);
    old
}
