//! A platform for tests of tables: what a walker that does not snoop finds in memory, and frames that
//! are counted and may run out.

extern crate std;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::boxed::Box;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::vec;

use crate::addr::PhysAddr;
use crate::error::Result;
use crate::platform::{Arena, FRAME_BYTES, Frame, Hosted, Instant, NoRegisters, Platform, Processor};

const LINE: u64 = 64;

/// Whether there are stores of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pairs {
    Stored,
    Refused,
}

#[derive(Clone, Debug)]
pub(crate) struct Memory {
    arena: &'static Arena,
    pairs: Pairs,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    in_use: AtomicUsize,
    /// Allocations until one fails; negative for never.
    until_failure: AtomicI64,
    /// Lines that were written back, by address.
    lines: Mutex<HashMap<u64, [u64; 8]>>,
}

impl Memory {
    pub(crate) fn new(pairs: Pairs) -> Self {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 128].into_boxed_slice())).unwrap();
        let shared = Shared { until_failure: AtomicI64::new(-1), ..Shared::default() };
        Self { arena, pairs, shared: Arc::new(shared) }
    }

    /// Frames handed out now.
    pub(crate) fn in_use(&self) -> usize {
        self.shared.in_use.load(Ordering::SeqCst)
    }

    /// Lets `nth` allocations succeed, then fails one.
    pub(crate) fn fail_nth(&self, nth: i64) {
        self.shared.until_failure.store(nth, Ordering::SeqCst);
    }

    /// Whether any line was written back.
    pub(crate) fn has_cleaned(&self) -> bool {
        !self.shared.lines.lock().unwrap().is_empty()
    }

    /// The quadword at `address` as it was written back last; not zero if it never was.
    pub(crate) fn written_back(&self, address: PhysAddr) -> u64 {
        let (line, word) = (address.as_u64() & !(LINE - 1), address.as_u64() % LINE / 8);
        self.shared.lines.lock().unwrap().get(&line).map_or(0xa5a5_a5a5_a5a5_a5a5, |words| words[word as usize])
    }
}

// SAFETY: everything is the arena's.
unsafe impl Platform for Memory {
    type Registers = NoRegisters;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        let shared = &self.shared;
        if shared.until_failure.load(Ordering::SeqCst) >= 0 && shared.until_failure.fetch_sub(1, Ordering::SeqCst) == 0
        {
            return None;
        }
        let phys = self.arena.alloc_frames(order, last)?;
        shared.in_use.fetch_add(1 << order, Ordering::SeqCst);
        let bytes = FRAME_BYTES << order;
        self.shared.lines.lock().unwrap().retain(|line, _| line.wrapping_sub(phys.as_u64()) >= bytes);
        Some(phys)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
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

    fn clean(&self, start: NonNull<u8>, bytes: usize) {
        let first = start.as_ptr() as u64 & !(LINE - 1);
        let mut lines = self.shared.lines.lock().unwrap();
        // An arena's physical addresses are its virtual ones.
        for line in (first..start.as_ptr() as u64 + bytes as u64).step_by(LINE as usize) {
            let words = self.phys_to_virt(PhysAddr::new(line)).cast::<[u64; 8]>();
            // SAFETY: a line in a block that is in use; these tests have one thread.
            lines.insert(line, unsafe { words.read() });
        }
    }

    unsafe fn store_128(&self, target: NonNull<u128>, value: u128) -> Option<()> {
        match self.pairs {
            // SAFETY: passed on from the caller.
            Pairs::Stored => unsafe { Hosted::store_128(target, value) },
            Pairs::Refused => None,
        }
    }
}
