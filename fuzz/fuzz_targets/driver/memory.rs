//! The frames lent to the driver, as the processor and the units see them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use iommu::PhysAddr;
use iommu::bus::{Snoop, Unreachable};

use crate::unit::STALE;
use crate::world;

pub const FRAME: u64 = 4096;
/// More frames that the next kernel has.
const FRAMES_OF_NEXT: u64 = 256;
/// Bytes of a line of the processor's caches.
const LINE: u64 = 64;

/// A lock of its own, taken after the world's: units read memory while the world is looked at.
static MEMORY: Mutex<Memory> = Mutex::new(Memory::new(0, 0));

/// Blocks that come back go to the system's allocator, where the sanitizer finds whoever uses them
/// afterwards.
pub struct Memory {
    /// All that were ever handed out, and which of them each frame from `base` on belongs to.
    blocks: Vec<Option<Block>>,
    frames: Vec<u32>,
    /// Where blocks are mapped, to their physical addresses.
    mapped: BTreeMap<usize, u64>,
    /// Below there is firmware's memory, which nobody can read.
    pub base: u64,
    next: u64,
    /// From here on it belongs to the kernel that runs; a previous one has left the rest.
    pub owned: u64,
    /// Frames that a previous kernel has left.
    pub left_behind: u64,
    /// Frames that may still be handed out.
    left: u64,
    /// Allocations until one fails.
    pub fail_after: Option<u32>,
    /// Units have write buffers (CAP.RWBF), and these are what is in them.
    pub buffers: Option<Vec<(u64, u64)>>,
}

struct Block {
    first: u64,
    at: NonNull<u8>,
    order: u8,
    /// What those see who do not snoop the processor's caches.
    behind: Box<[u64]>,
}

// SAFETY: the pointer is used under the lock, or by the driver, which owns the block.
unsafe impl Send for Block {}

/// Begins with all frames free, and frees what was not given back.
pub fn begin(base: u64, frames: u64) {
    *MEMORY.lock().unwrap() = Memory::new(base, frames);
}

pub fn memory() -> MutexGuard<'static, Memory> {
    MEMORY.lock().unwrap()
}

impl Memory {
    const fn new(base: u64, frames: u64) -> Self {
        Self {
            blocks: Vec::new(),
            frames: Vec::new(),
            mapped: BTreeMap::new(),
            base,
            next: base,
            owned: base,
            left_behind: 0,
            left: frames,
            fail_after: None,
            buffers: None,
        }
    }

    /// The kernel is gone, and its memory stays as it is.
    pub fn leave_behind(&mut self) {
        self.left_behind += self.frames_in_use();
        self.owned = self.next;
        self.left += FRAMES_OF_NEXT;
    }

    /// Of the kernel that runs.
    pub fn frames_in_use(&self) -> u64 {
        let all: u64 = self.blocks.iter().flatten().map(|block| 1 << block.order).sum();
        all - self.left_behind
    }

    /// The place of the block around `phys`.
    fn place(&self, phys: u64) -> Option<usize> {
        let frame = phys.checked_sub(self.base)? / FRAME;
        self.frames.get(usize::try_from(frame).ok()?).map(|block| *block as usize)
    }

    /// The block around `phys`, and the quadword in it.
    fn find(&self, phys: u64) -> Option<(&Block, usize)> {
        let block = self.blocks.get(self.place(phys)?)?.as_ref()?;
        Some((block, (phys - block.first) as usize / 8))
    }

    fn find_mut(&mut self, phys: u64) -> Option<(&mut Block, usize)> {
        let place = self.place(phys)?;
        let block = self.blocks.get_mut(place)?.as_mut()?;
        let index = (phys - block.first) as usize / 8;
        Some((block, index))
    }

    /// The quadword at `phys`, if it lies in a block that the driver has.
    pub fn word(&self, phys: u64) -> Option<&AtomicU64> {
        let (block, index) = self.find(phys)?;
        Some(block.word(index))
    }

    pub fn load(&self, phys: u64, snoop: Snoop) -> Option<u64> {
        let (block, index) = self.find(phys)?;
        Some(match snoop {
            Snoop::Yes => block.load(index),
            Snoop::No => block.behind[index],
        })
    }

    /// What a unit does to the quadword at `phys`; `false` when it changed meanwhile.
    pub fn update(&mut self, phys: u64, change: impl FnOnce(u64) -> Option<u64>) -> Option<bool> {
        let (block, index) = self.find_mut(phys)?;
        let Some(new) = change(block.word(index).load(Ordering::Relaxed)) else { return Some(false) };
        block.word(index).store(new, Ordering::Release);
        block.behind[index] = new;
        Some(true)
    }

    /// The processor writes lines back.
    pub fn clean(&mut self, at: NonNull<u8>, bytes: usize) {
        let at = at.as_ptr().addr();
        let Some((start, phys)) = self.mapped.range(..=at).next_back() else { return };
        let first = (phys + (at - start) as u64) & !(LINE - 1);
        let end = phys + (at - start + bytes) as u64;
        let last = (end - 1) | (LINE - 1);
        let mut buffers = self.buffers.take();
        if let Some((block, index)) = self.find_mut(first) {
            let words = index..=index + (last - first) as usize / 8;
            match &mut buffers {
                Some(buffers) => {
                    buffers.extend(words.map(|index| (block.first + index as u64 * 8, block.load(index))));
                }
                // SAFETY: inside a live block, which nobody else writes to meanwhile: there is one processor.
                None => block.behind[words].copy_from_slice(unsafe {
                    std::slice::from_raw_parts(block.at.cast().add(index).as_ptr(), (last - first) as usize / 8 + 1)
                }),
            }
        }
        self.buffers = buffers;
    }

    pub fn flush_write_buffers(&mut self) {
        let buffered = self.buffers.as_mut().map(std::mem::take);
        for (phys, word) in buffered.into_iter().flatten() {
            // It may have been freed meanwhile.
            if let Some((block, index)) = self.find_mut(phys) {
                block.behind[index] = word;
            }
        }
    }

    pub fn alloc(&mut self, order: u8, last: u64) -> Option<u64> {
        let bytes = FRAME.checked_shl(u32::from(order))?;
        if let Some(count) = &mut self.fail_after {
            *count = count.checked_sub(1)?;
        }
        self.left = self.left.checked_sub(bytes / FRAME)?;
        // Every address is used once, so that what is freed is never mistaken for what came after.
        let phys = self.next.next_multiple_of(bytes);
        if phys + bytes - 1 > last {
            return None;
        }
        self.next = phys + bytes;
        self.frames.resize(((phys - self.base) / FRAME) as usize, u32::MAX);
        self.frames.resize(((self.next - self.base) / FRAME) as usize, self.blocks.len() as u32);
        // SAFETY: the layout has a size.
        let at = NonNull::new(unsafe { alloc_zeroed(layout(order)) })?;
        let behind = vec![STALE; (bytes / 8) as usize].into_boxed_slice();
        self.blocks.push(Some(Block { first: phys, at, order, behind }));
        self.mapped.insert(at.as_ptr().addr(), phys);
        Some(phys)
    }

    /// Takes a block out of the driver's memory, which goes when this is dropped.
    pub fn take(&mut self, phys: u64, order: u8) -> Freed {
        let place = self.place(phys).and_then(|place| self.blocks.get_mut(place));
        let block = place.and_then(Option::take).unwrap_or_else(|| panic!("{phys:#x} is freed and not in use"));
        assert_eq!((block.first, block.order), (phys, order), "{phys:#x} is freed otherwise than it was allocated");
        self.mapped.remove(&block.at.as_ptr().addr());
        self.left += 1 << order;
        Freed(block)
    }

    /// Whether one of so many words from `table` on leads into a block. `target` says where a word leads.
    pub fn leads_to(&self, table: u64, words: usize, target: impl Fn(u64) -> Option<u64>, block: (u64, u64)) -> bool {
        let Some((found, start)) = self.find(table) else { return false };
        let end = found.behind.len().min(start + words);
        (start..end).filter_map(|index| target(found.load(index))).any(|phys| phys.wrapping_sub(block.0) < block.1)
    }
}

impl Block {
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.behind.len());
        // SAFETY: inside a live block, aligned to 8 bytes; the driver shares these words as atomics.
        unsafe { self.at.cast().add(index).as_ref() }
    }

    fn load(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // What the driver has leaked it does not use any more: the run is over.
        std::mem::take(&mut self.blocks).into_iter().flatten().for_each(|block| drop(Freed(block)));
    }
}

/// Nothing that is not lent to the unit, unless it is firmware's, is ever accessed.
pub fn lent<T>(address: PhysAddr, found: Option<T>) -> Result<T, Unreachable> {
    let is_firmware = address.as_u64() < memory().base;
    assert!(found.is_some() || is_firmware || !world::is_truthful(), "{address} is accessed and not lent to the unit");
    found.ok_or(Unreachable)
}

/// A block that nobody uses any more.
pub struct Freed(Block);

impl Drop for Freed {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and the driver has given it up.
        unsafe { dealloc(self.0.at.as_ptr(), layout(self.0.order)) };
    }
}

fn layout(order: u8) -> Layout {
    let bytes = (FRAME as usize) << order;
    Layout::from_size_align(bytes, bytes).expect("a power of two")
}
