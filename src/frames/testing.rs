//! A platform for tests: counts its frames and fails the n-th allocation.

extern crate std;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::boxed::Box;
use std::sync::Arc;
use std::vec;

use crate::addr::PhysAddr;
use crate::error::Result;
use crate::platform::{Arena, Frame, Hosted, Instant, NoRegisters, Platform};

/// An arena with a counter of live frames.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    arena: &'static Arena,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    in_use: AtomicUsize,
    /// Allocations until one fails; negative for never.
    until_failure: AtomicI64,
}

impl Counted {
    pub(super) fn new(frames: usize) -> Self {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; frames + 1].into_boxed_slice())).unwrap();
        Self { arena, shared: Arc::new(Shared { in_use: AtomicUsize::new(0), until_failure: AtomicI64::new(-1) }) }
    }

    /// Frames handed out now.
    pub(super) fn in_use(&self) -> usize {
        self.shared.in_use.load(Ordering::SeqCst)
    }

    /// Lets `nth` allocations succeed, then fails one.
    pub(super) fn fail_nth(&self, nth: i64) {
        self.shared.until_failure.store(nth, Ordering::SeqCst);
    }

    pub(super) fn fail_never(&self) {
        self.fail_nth(-1);
    }
}

// SAFETY: everything is the arena's.
unsafe impl Platform for Counted {
    type Registers = NoRegisters;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        if self.shared.until_failure.load(Ordering::SeqCst) >= 0
            && self.shared.until_failure.fetch_sub(1, Ordering::SeqCst) == 0
        {
            return None;
        }
        let phys = self.arena.alloc_frames(order, last)?;
        self.shared.in_use.fetch_add(1 << order, Ordering::SeqCst);
        Some(phys)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        // Whoever looks at freed memory shall notice.
        // SAFETY: the block is the caller's and is freed now.
        unsafe { self.phys_to_virt(first).write_bytes(0xa5, 4096 << order) };
        self.shared.in_use.fetch_sub(1 << order, Ordering::SeqCst);
        // SAFETY: passed on from the caller.
        unsafe { self.arena.free_frames(first, order) }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.arena.phys_to_virt(phys)
    }

    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Result<NoRegisters> {
        self.arena.map_registers(base, bytes)
    }

    fn now(&self) -> Instant {
        self.arena.now()
    }
}
