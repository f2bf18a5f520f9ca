//! A platform that counts its frames, fails the n-th allocation and knows which frames are live.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iommu::pci::PciConfig;
use iommu::platform::{Hosted, Instant, NoRegisters, Platform, Processor};
use iommu::{Error, PhysAddr, Result, UnsupportedReason};

use crate::pci::Space;

const FRAMES: usize = 4096;
const FRAME: usize = 4096;

/// Frames over one block of the heap; physical addresses are offsets in it, from [`BASE`] on.
#[derive(Clone, Debug)]
pub(crate) struct Frames(Arc<Shared>);

/// Where the frames lie in physical memory.
pub(crate) const BASE: u64 = 0x1_0000_0000;

#[derive(Debug)]
struct Shared {
    block: NonNull<u8>,
    /// First frame of each live block, and its order.
    live: Mutex<BTreeMap<usize, u8>>,
    /// Allocations until one fails; negative for never.
    until_failure: AtomicI64,
    clock: AtomicU64,
    /// Barriers so far.
    published: AtomicU64,
    space: Space,
    /// Whether the platform lends it for good.
    lends_space: AtomicBool,
}

// SAFETY: the block is shared by design; everything else is synchronised.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

fn layout() -> Layout {
    Layout::from_size_align(FRAMES * FRAME, 1 << 20).unwrap()
}

impl Frames {
    pub(crate) fn new() -> Self {
        // SAFETY: the size is not zero.
        let block = NonNull::new(unsafe { alloc_zeroed(layout()) }).unwrap();
        Self(Arc::new(Shared {
            block,
            live: Mutex::default(),
            until_failure: AtomicI64::new(-1),
            clock: AtomicU64::new(0),
            published: AtomicU64::new(0),
            space: Space::default(),
            lends_space: AtomicBool::new(true),
        }))
    }

    /// Frames handed out now.
    pub(crate) fn in_use(&self) -> usize {
        self.0.live.lock().unwrap().values().map(|order| 1 << order).sum()
    }

    /// Lets `nth` allocations succeed, then fails one.
    pub(crate) fn fail_nth(&self, nth: i64) {
        self.0.until_failure.store(nth, Ordering::SeqCst);
    }

    /// Fails no allocation any more; tells whether one was failed.
    pub(crate) fn fail_never(&self) -> bool {
        self.0.until_failure.swap(-1, Ordering::SeqCst) == -1
    }

    /// Barriers so far.
    pub(crate) fn published(&self) -> u64 {
        self.0.published.load(Ordering::SeqCst)
    }

    /// The configuration space.
    pub(crate) fn space(&self) -> &Space {
        &self.0.space
    }

    /// Lends the configuration space for probes only.
    pub(crate) fn hide_space(&self) {
        self.0.lends_space.store(false, Ordering::SeqCst);
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.0.clock.fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
    }

    /// Reads a word as hardware does; ends the test if its frame is free.
    pub(crate) fn read(&self, phys: u64) -> u64 {
        self.word(phys, |word| word.load(Ordering::Acquire))
    }

    /// Sets bits in a word that still is `found`, as hardware does; whether it was.
    pub(crate) fn set_bits(&self, phys: u64, found: u64, bits: u64) -> bool {
        self.word(phys, |word| word.compare_exchange(found, found | bits, Ordering::AcqRel, Ordering::Acquire).is_ok())
    }

    fn word<T>(&self, phys: u64, access: impl FnOnce(&AtomicU64) -> T) -> T {
        let index = (phys - BASE) as usize / FRAME;
        let live = self.0.live.lock().unwrap();
        let held = live.range(..=index).next_back().is_some_and(|(first, order)| index < first + (1 << order));
        assert!(held, "hardware reads the free frame at {phys:#x}");
        // SAFETY: inside a live frame, and every word of a table is an atomic.
        access(unsafe { self.phys_to_virt(PhysAddr::new(phys)).cast::<AtomicU64>().as_ref() })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout; no platform is left.
        unsafe { dealloc(self.block.as_ptr(), layout()) };
    }
}

// SAFETY: `live` gives each frame to one holder; the block stays as long as a clone does.
unsafe impl Platform for Frames {
    type Registers = NoRegisters;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        let until = self.0.until_failure.load(Ordering::SeqCst);
        if until >= 0 && self.0.until_failure.fetch_sub(1, Ordering::SeqCst) == 0 {
            return None;
        }
        let count = 1 << order;
        let mut live = self.0.live.lock().unwrap();
        let is_free = |first: usize| {
            let before = live.range(..first).next_back().is_none_or(|(held, order)| held + (1 << order) <= first);
            before && live.range(first..first + count).next().is_none()
        };
        let first = (0..FRAMES).step_by(count).find(|&first| is_free(first))?;
        let phys = PhysAddr::new(BASE + (first * FRAME) as u64);
        if phys.checked_add((count * FRAME) as u64 - 1)? > last {
            return None;
        }
        live.insert(first, order);
        // SAFETY: the frames were just given to this call.
        unsafe { self.phys_to_virt(phys).write_bytes(0, count * FRAME) };
        Some(phys)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        // SAFETY: the frames are the caller's until they leave the list below.
        unsafe { self.phys_to_virt(first).write_bytes(0xa5, FRAME << order) };
        let index = (first.as_u64() - BASE) as usize / FRAME;
        assert_eq!(self.0.live.lock().unwrap().remove(&index), Some(order), "freed twice, or otherwise than allocated");
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        let offset = (phys.as_u64() - BASE) as usize;
        assert!(offset < FRAMES * FRAME, "{phys} is no frame");
        // SAFETY: inside the block.
        unsafe { self.0.block.add(offset) }
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<NoRegisters> {
        Err(Error::Unsupported(UnsupportedReason::Operation))
    }

    fn publish(&self) {
        self.0.published.fetch_add(1, Ordering::SeqCst);
        Hosted::publish();
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.clock.fetch_add(1000, Ordering::SeqCst))
    }

    fn pci(&self) -> Option<&dyn PciConfig> {
        self.0.lends_space.load(Ordering::SeqCst).then_some(&self.0.space)
    }

    fn spin_hint(&self) {
        // The clock runs as fast as it is read: who is waited for needs a processor before it is late.
        match self.0.clock.load(Ordering::Relaxed) / 1000 {
            turn if turn.is_multiple_of(4096) => std::thread::sleep(std::time::Duration::from_millis(1)),
            turn if turn.is_multiple_of(64) => std::thread::yield_now(),
            _ => {}
        }
    }
}
