//! What the kernel lends to this crate: frames, registers, barriers, time.
//!
//! A kernel implements [`Platform`] once. Five methods have no default ([`alloc_frames`],
//! [`free_frames`], [`phys_to_virt`], [`map_registers`], [`now`]); the rest comes from the
//! [`Processor`] it names, one of the helpers in this module.
//!
//! [`alloc_frames`]: Platform::alloc_frames
//! [`free_frames`]: Platform::free_frames
//! [`phys_to_virt`]: Platform::phys_to_virt
//! [`map_registers`]: Platform::map_registers
//! [`now`]: Platform::now

#[cfg(not(loom))]
mod arena;
mod processor;
mod registers;
mod time;

use core::ptr::NonNull;

#[cfg(not(loom))]
pub use arena::{Arena, Frame};
#[cfg(target_arch = "aarch64")]
pub use processor::Aarch64;
#[cfg(target_arch = "powerpc64")]
pub use processor::PowerPc64;
#[cfg(target_arch = "x86_64")]
pub use processor::X86_64;
pub use processor::{Hosted, Processor};
pub use registers::{Mmio, NoRegisters, Registers};
pub use time::Instant;

use crate::addr::{PhysAddr, PhysRange};
use crate::error::Result;
use crate::pci::PciConfig;

/// Bytes in a frame. Blocks of frames are powers of two of it.
pub const FRAME_BYTES: u64 = 4096;

/// Interrupt state of a processor, as [`Processor::save_interrupts`] found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptState(pub usize);

/// What the kernel lends to this crate.
///
/// A clone must stand for the same platform; it is usually a zero-size type, a `&'static` or an
/// `Arc`. Methods are called from any context in which the crate's own functions are called, but
/// never with a lock of this crate held or interrupts disabled by it, except those that say so.
///
/// # Safety
/// ## What the implementor owes
/// - [`alloc_frames`](Self::alloc_frames) gives each frame to one holder only, and the frames stay
///   mapped, readable and writable until they are freed.
/// - [`phys_to_virt`](Self::phys_to_virt) gives the address at which they are mapped.
/// - [`publish`](Self::publish), [`clean`](Self::clean) and [`invalidate`](Self::invalidate) do what
///   they say: devices read what they make visible.
/// - [`processor_id`](Self::processor_id) is below [`processor_count`](Self::processor_count).
///
/// ## What the caller owes
/// This crate is the caller: it frees only what it allocated, once, and with the same order.
///
/// ```
/// use core::ptr::NonNull;
/// use iommu::platform::{Hosted, InterruptState, Instant, Mmio, Platform};
/// use iommu::{PhysAddr, Result};
///
/// #[derive(Clone, Copy)]
/// struct Kernel;
/// # mod frames {
/// #     pub fn alloc(_: u8, _: u64) -> Option<u64> { None }
/// #     pub fn free(_: u64, _: u8) {}
/// #     pub fn uptime_ns() -> u64 { 0 }
/// # }
/// const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
///
/// // SAFETY: the kernel's frame allocator gives every frame once, and all RAM and device memory is
/// // mapped at DIRECT_MAP.
/// unsafe impl Platform for Kernel {
///     type Registers = Mmio;
///     type Processor = Hosted; // a kernel says `X86_64`, `Aarch64` or `PowerPc64`
///
///     fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
///         frames::alloc(order, last.as_u64()).map(PhysAddr::new)
///     }
///     unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
///         frames::free(first.as_u64(), order);
///     }
///     fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
///         NonNull::new((DIRECT_MAP + phys.as_u64()) as *mut u8).unwrap_or(NonNull::dangling())
///     }
///     fn map_registers(&self, base: PhysAddr, bytes: usize) -> Result<Mmio> {
///         // SAFETY: device memory is mapped uncached at DIRECT_MAP for good.
///         Ok(unsafe { Mmio::new(self.phys_to_virt(base), bytes) })
///     }
///     fn now(&self) -> Instant {
///         Instant::from_nanos(frames::uptime_ns())
///     }
/// }
/// ```
pub unsafe trait Platform: Clone + Send + Sync + 'static {
    /// How registers are accessed: [`Mmio`] in a kernel; a model or a socket in a test.
    type Registers: Registers;

    /// The processor this runs on: barriers, cache maintenance, interrupt flag.
    type Processor: Processor;

    /// A block of `1 << order` frames (4096 bytes each), *zeroed*, aligned to its own size, every
    /// byte at or below `last`. `None` when there is none.
    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr>;

    /// Takes back a block that [`alloc_frames`](Self::alloc_frames) gave.
    ///
    /// # Safety
    /// `first` and `order` are those of one allocation, and nothing uses the block any more, neither
    /// this program nor a device.
    unsafe fn free_frames(&self, first: PhysAddr, order: u8);

    /// Where the byte at `phys`, inside a block that [`alloc_frames`](Self::alloc_frames) gave, is
    /// mapped. Any context; may be called with interrupts disabled.
    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8>;

    /// Access to the `bytes` bytes of registers at `base`. A unit is mapped twice when the first
    /// page tells that it has more.
    ///
    /// # Errors
    /// The platform's own, usually [`Error::NoMemory`](crate::Error::NoMemory).
    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Result<Self::Registers>;

    /// Time since any fixed moment, never running backwards. May be called with interrupts disabled.
    fn now(&self) -> Instant;

    /// Tells the processor that the caller spins.
    fn spin_hint(&self) {
        core::hint::spin_loop();
    }

    /// Makes every store before it visible to devices before every store after it, register writes
    /// included. May be called with interrupts disabled.
    #[inline]
    fn publish(&self) {
        Self::Processor::publish();
    }

    /// Writes the cache lines of the `bytes` bytes at `start` back to memory, for devices that do
    /// not snoop, and waits until they are there. May be called with interrupts disabled.
    #[inline]
    fn clean(&self, start: NonNull<u8>, bytes: usize) {
        Self::Processor::clean(start, bytes);
    }

    /// Drops the cache lines of the `bytes` bytes at `start`, so that the next read sees what a
    /// device that does not snoop has written. May be called with interrupts disabled.
    #[inline]
    fn invalidate(&self, start: NonNull<u8>, bytes: usize) {
        Self::Processor::invalidate(start, bytes);
    }

    /// Disables interrupts on this processor and tells what was before.
    #[inline]
    fn save_interrupts(&self) -> InterruptState {
        Self::Processor::save_interrupts()
    }

    /// Puts the interrupt state back.
    #[inline]
    fn restore_interrupts(&self, state: InterruptState) {
        Self::Processor::restore_interrupts(state);
    }

    /// The processor this runs on, below [`processor_count`](Self::processor_count). Meaningful
    /// while interrupts are saved.
    #[inline]
    fn processor_id(&self) -> usize {
        0
    }

    /// How many processors there are.
    #[inline]
    fn processor_count(&self) -> usize {
        1
    }

    /// Calls `visit` with every range of RAM that an identity domain must reach. A platform that
    /// tells none has no identity domains on units without pass-through.
    fn ram(&self, visit: &mut dyn FnMut(PhysRange)) {
        let _ = visit;
    }

    /// The configuration space, for what must be written there long after a probe: device TLBs are
    /// turned on and off with the domains of their devices. Without it (the default) they stay off.
    fn pci(&self) -> Option<&dyn PciConfig> {
        None
    }

    /// Stores 16 bytes at once, as seen by every device, if the platform can. `None` says that it
    /// cannot, and that nothing was stored. May be called with interrupts disabled.
    ///
    /// # Safety
    /// `target` is aligned to 16 bytes and points into a live block of
    /// [`alloc_frames`](Self::alloc_frames).
    #[inline]
    unsafe fn store_128(&self, target: NonNull<u128>, value: u128) -> Option<()> {
        // SAFETY: passed on from the caller.
        unsafe { Self::Processor::store_128(target, value) }
    }
}
