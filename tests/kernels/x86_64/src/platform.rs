//! What the kernel lends to the `iommu` crate. This file is all of it.

use core::ptr::NonNull;

use iommu::platform::{Arena, FRAME_BYTES, Instant, Mmio, Platform, X86_64};
use iommu::{Error, PhysAddr, PhysRange, Result};

use crate::clock::Clock;
use crate::failure::Failure;
use crate::pvh::StartInfo;

/// Where device registers begin: boot code maps the last of the first four GiB uncached.
const DEVICES: PhysRange = match PhysRange::new(PhysAddr::new(0xc000_0000), PhysAddr::new(0xffff_ffff)) {
    Ok(range) => range,
    Err(_) => panic!("a constant range"),
};

/// The kernel, as the `iommu` crate sees it.
#[derive(Clone, Copy)]
pub struct Kernel {
    start_info: &'static StartInfo,
    frames: &'static Arena,
    clock: Clock,
}

impl Kernel {
    /// Takes the largest range of RAM behind the kernel as its supply of frames.
    ///
    /// # Safety
    /// Called once; nobody else uses RAM above 1 MiB.
    pub unsafe fn new(start_info: &'static StartInfo) -> Result<Self, Failure> {
        unsafe extern "C" {
            /// The first byte behind the kernel; the link script puts it there.
            static KERNEL_END: u8;
        }
        let behind_kernel = PhysAddr::new(&raw const KERNEL_END as u64);
        let usable = PhysRange::new(behind_kernel, PhysAddr::new(DEVICES.start().as_u64() - 1))?;
        let largest = start_info
            .ram()
            .filter_map(|ram| ram.intersection(&usable))
            .max_by_key(PhysRange::bytes)
            .ok_or(Failure::Missing("memory"))?;
        let first = largest.start().as_u64().next_multiple_of(FRAME_BYTES);
        let frames = (largest.last().as_u64() + 1).saturating_sub(first) / FRAME_BYTES;
        let base = NonNull::new(first as *mut u8).ok_or(Failure::Missing("memory"))?;
        // SAFETY: that range is RAM, mapped one to one, behind the kernel's own memory; the caller
        // says that nobody else uses it.
        let frames = unsafe { Arena::from_raw(base, frames as usize, 0) }?;
        let clock = Clock::calibrate().ok_or(Failure::Missing("a timer"))?;
        Ok(Self { start_info, frames, clock })
    }

    /// Frames that are in use.
    pub fn frames_in_use(&self) -> usize {
        self.frames.frames_in_use()
    }
}

// SAFETY: the arena gives each frame to one holder and frees it when told; all memory is mapped one
// to one for good; `X86_64` has the barriers of this processor; there is one processor.
unsafe impl Platform for Kernel {
    type Registers = Mmio;
    type Processor = X86_64;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        self.frames.alloc_frames(order, last)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        // SAFETY: passed on from the caller.
        unsafe { self.frames.free_frames(first, order) }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.frames.phys_to_virt(phys)
    }

    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Result<Mmio> {
        let wanted = PhysRange::from_len(base, bytes as u64)?;
        if !DEVICES.covers(&wanted) {
            return Err(Error::NoMemory);
        }
        let base = NonNull::new(base.as_u64() as *mut u8).ok_or(Error::NoMemory)?;
        // SAFETY: that part of the address space is mapped uncached for good, and holds devices.
        Ok(unsafe { Mmio::new(base, bytes) })
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn ram(&self, visit: &mut dyn FnMut(PhysRange)) {
        self.start_info.ram().for_each(visit);
    }
}
