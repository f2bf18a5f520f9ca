//! One pool of frames for all contenders, last in first out, as a kernel's per-processor lists are.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

use iommu::platform::{FRAME_BYTES, Hosted, Instant, NoRegisters, Platform};
use iommu::{Error, PhysAddr, UnsupportedReason};

/// Frames in the pool: enough for a leaf table for every 2 MiB of 64 GiB, and their parents.
const FRAMES: usize = 34_000;

struct Pool {
    base: *mut u8,
    free: Vec<u64>,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::new());
}

impl Pool {
    fn new() -> Self {
        let bytes = FRAMES * FRAME_BYTES as usize;
        let layout = Layout::from_size_align(bytes, FRAME_BYTES as usize).expect("a valid layout");
        // SAFETY: the size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: just allocated; touches every page, so that no measurement pays for that.
        unsafe { base.write_bytes(0, bytes) };
        let mut pool = Self { base, free: Vec::with_capacity(FRAMES) };
        pool.reset();
        pool
    }

    fn reset(&mut self) {
        self.free.clear();
        self.free.extend((0..FRAMES as u64).rev().map(|frame| self.base as u64 + frame * FRAME_BYTES));
    }
}

/// A zeroed frame. Not inlined anywhere: to a kernel's allocator there is a call.
#[inline(never)]
pub(crate) fn alloc() -> Option<u64> {
    let frame = POOL.with_borrow_mut(|pool| pool.free.pop())?;
    // SAFETY: a frame of the pool, used by nobody.
    unsafe { (frame as *mut u8).write_bytes(0, FRAME_BYTES as usize) };
    Some(frame)
}

/// Takes a frame back.
#[inline(never)]
pub(crate) fn free(frame: u64) {
    POOL.with_borrow_mut(|pool| pool.free.push(frame));
}

/// Takes all frames back, in the same order each time.
pub(crate) fn reset() {
    POOL.with_borrow_mut(Pool::reset);
}

/// How many frames are not in use.
pub(crate) fn left() -> usize {
    POOL.with_borrow(|pool| pool.free.len())
}

/// The pool as a platform: physical addresses are virtual ones.
#[derive(Clone, Copy)]
pub(crate) struct Frames;

// SAFETY: each frame is handed out once and stays mapped; devices are not involved. The benches run
// on one thread.
unsafe impl Platform for Frames {
    type Registers = NoRegisters;
    type Processor = Hosted;

    #[inline]
    fn alloc_frames(&self, order: u8, _last: PhysAddr) -> Option<PhysAddr> {
        if order > 0 { None } else { alloc().map(PhysAddr::new) }
    }

    #[inline]
    unsafe fn free_frames(&self, first: PhysAddr, _order: u8) {
        free(first.as_u64());
    }

    #[inline]
    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        // SAFETY: a frame of the pool is not at address zero.
        unsafe { NonNull::new_unchecked(phys.as_u64() as *mut u8) }
    }

    /// As in a kernel on this processor, where stores are ordered.
    #[inline]
    fn publish(&self) {
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<NoRegisters, Error> {
        Err(Error::Unsupported(UnsupportedReason::Operation))
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }
}
