//! A platform that counts and poisons frames, fails on demand, and keeps what a walker that does not
//! snoop would see.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use iommu::platform::{FRAME_BYTES, Hosted, Instant, NoRegisters, Platform};
use iommu::{Error, PhysAddr, UnsupportedReason};

/// What memory holds where nothing was ever cleaned: it looks like entries that are present.
const STALE: u64 = 0x0bad_0bad_0bad_0fff;
const LINE: u64 = 64;

#[derive(Default)]
struct State {
    /// Blocks in use, with their order.
    blocks: BTreeMap<u64, u8>,
    /// Blocks that were freed: kept until the end, so that their addresses are not used again and a
    /// use after free reads poison.
    freed: Vec<(u64, u8)>,
    /// Lines as they were when they were cleaned.
    cleaned: HashMap<u64, [u64; 8]>,
    /// How many lines were cleaned so far.
    cleans: usize,
    /// Allocations that still succeed.
    budget: Option<usize>,
}

#[derive(Clone, Default)]
pub(crate) struct TestPlatform(Arc<Mutex<State>>);

impl TestPlatform {
    pub(crate) fn frames_in_use(&self) -> usize {
        self.0.lock().unwrap().blocks.values().map(|order| 1 << order).sum()
    }

    /// From now on, `budget` allocations succeed; all of them for `None`.
    pub(crate) fn set_budget(&self, budget: Option<usize>) {
        self.0.lock().unwrap().budget = budget;
    }

    /// How many lines were cleaned since the last call.
    pub(crate) fn take_cleans(&self) -> usize {
        std::mem::take(&mut self.0.lock().unwrap().cleans)
    }

    /// The words of the table at `phys`, as the cache holds them.
    pub(crate) fn cached(&self, phys: u64, count: u64) -> Vec<u64> {
        let state = self.0.lock().unwrap();
        let (block, order) = state.blocks.range(..=phys).next_back().expect("a block at or below");
        assert!(phys + count * 8 <= block + (FRAME_BYTES << order), "{phys:#x} is linked, but not in use");
        // SAFETY: inside a block that is in use; this is the only thread.
        unsafe { std::slice::from_raw_parts(phys as *const u64, count as usize) }.to_vec()
    }

    /// The words of the table at `phys`: as memory holds them, and as the cache does.
    pub(crate) fn words(&self, phys: u64, count: u64) -> Vec<(u64, u64)> {
        let state = self.0.lock().unwrap();
        let (block, order) = state.blocks.range(..=phys).next_back().expect("a block at or below");
        assert!(phys + count * 8 <= block + (FRAME_BYTES << order), "{phys:#x} is linked, but not in use");
        let mut words = Vec::with_capacity(count as usize);
        for line in phys / LINE..(phys + count * 8).div_ceil(LINE) {
            let memory = state.cleaned.get(&line).copied().unwrap_or([STALE; 8]);
            for (word, memory) in memory.into_iter().enumerate() {
                // SAFETY: inside a block that is in use.
                words.push((memory, unsafe { ((line * LINE) as *const u64).add(word).read_volatile() }));
            }
        }
        words.truncate(count as usize);
        words
    }
}

fn layout(order: u8) -> Layout {
    let bytes = (FRAME_BYTES << order) as usize;
    Layout::from_size_align(bytes, bytes).unwrap()
}

// SAFETY: blocks come from the allocator, aligned to their size, and stay until the platform is
// dropped; virtual addresses serve as physical ones.
unsafe impl Platform for TestPlatform {
    type Registers = NoRegisters;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        let mut state = self.0.lock().unwrap();
        match &mut state.budget {
            Some(0) => return None,
            Some(budget) => *budget -= 1,
            None => {}
        }
        // SAFETY: the size is not zero.
        let block = unsafe { alloc(layout(order)) };
        assert!(!block.is_null() && block as u64 + (FRAME_BYTES << order) - 1 <= last.as_u64());
        // SAFETY: just allocated.
        unsafe { block.write_bytes(0, (FRAME_BYTES << order) as usize) };
        state.blocks.insert(block as u64, order);
        Some(PhysAddr::new(block as u64))
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        let mut state = self.0.lock().unwrap();
        assert_eq!(state.blocks.remove(&first.as_u64()), Some(order), "freed twice, or with another order");
        // SAFETY: the block is still there; nobody may look at it any more.
        unsafe { (first.as_u64() as *mut u8).write_bytes(0xff, (FRAME_BYTES << order) as usize) };
        let lines = first.as_u64() / LINE..(first.as_u64() + (FRAME_BYTES << order)) / LINE;
        for line in lines {
            state.cleaned.remove(&line);
        }
        state.freed.push((first.as_u64(), order));
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        NonNull::new(phys.as_u64() as *mut u8).expect("not null")
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<NoRegisters, Error> {
        Err(Error::Unsupported(UnsupportedReason::Operation))
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }

    fn clean(&self, start: NonNull<u8>, bytes: usize) {
        let mut state = self.0.lock().unwrap();
        let start = start.as_ptr() as u64;
        for line in start / LINE..=(start + bytes as u64 - 1) / LINE {
            // SAFETY: whoever cleans owns the memory.
            let words = std::array::from_fn(|word| unsafe { ((line * LINE) as *const u64).add(word).read_volatile() });
            state.cleaned.insert(line, words);
            state.cleans += 1;
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for &(block, order) in &self.freed {
            // SAFETY: allocated with this layout and not deallocated yet.
            unsafe { dealloc(block as *mut u8, layout(order)) };
        }
    }
}
