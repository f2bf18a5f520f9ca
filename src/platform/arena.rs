//! A platform over one region of memory: for boot before the heap exists, for tests and examples.

use core::ptr::NonNull;

use super::{FRAME_BYTES, Hosted, Instant, NoRegisters, Platform};
use crate::addr::PhysAddr;
use crate::error::{Error, Result, UnsupportedReason};
use crate::sync::Lock;
use crate::sync::atomic::{AtomicU64, Ordering};

/// 4096 bytes of memory, aligned to their size.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct Frame([u8; FRAME_BYTES as usize]);

impl Frame {
    /// A frame of zeros.
    pub const ZERO: Self = Self([0; FRAME_BYTES as usize]);
}

/// Words of the bitmap of frames; with the other fields they fill the region's first frame.
const BITMAP_WORDS: usize = 500;

/// A frame allocator over a region that the caller lends for good. It lives in the region's first
/// frame and hands out the others, [`Arena::MAX_FRAMES`] at the most.
///
/// `&'static Arena` is a [`Platform`]: without registers, on the [`Hosted`] processor, with a clock
/// that advances by a microsecond whenever it is read. A kernel that wants more wraps it.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::platform::{Arena, Frame, Platform};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 8].into_boxed_slice())).unwrap();
/// let block = arena.alloc_frames(1, PhysAddr::new(u64::MAX)).unwrap();
/// assert!(block.is_aligned(8192));
/// // SAFETY: allocated above and not used.
/// unsafe { arena.free_frames(block, 1) };
/// assert_eq!(arena.frames_in_use(), 0);
/// ```
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Arena {
    /// Virtual address of the first frame that may be handed out.
    base: NonNull<u8>,
    /// Frames that may be handed out.
    frames: usize,
    /// What is added to a virtual address to give the physical one (wrapping).
    to_phys: u64,
    clock: AtomicU64,
    /// One bit a frame, set while it is in use. Guards nothing but itself.
    used: Lock<[u64; BITMAP_WORDS]>,
}

const _: () = assert!(size_of::<Arena>() == FRAME_BYTES as usize);

// SAFETY: `base` points to memory that the arena owns for good, and frames are handed out under the
// lock, each to one holder.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// The most frames that one arena hands out: 125 MiB.
    pub const MAX_FRAMES: usize = BITMAP_WORDS * 64;

    /// An arena over `region`, whose physical addresses are its virtual ones.
    ///
    /// # Errors
    /// [`Error::NoMemory`] for an empty region.
    pub fn new(region: &'static mut [Frame]) -> Result<&'static Self> {
        let frames = region.len();
        let base = NonNull::from(region).cast();
        // SAFETY: the region is borrowed for good, and virtual addresses serve as physical ones.
        unsafe { Self::from_raw(base, frames, 0) }
    }

    /// An arena over `frames` frames at `base`, whose physical address is `base + to_phys`, wrapping.
    ///
    /// # Errors
    /// [`Error::NoMemory`] for zero frames.
    ///
    /// # Safety
    /// The memory is aligned to a frame, mapped for good, and used by nobody else.
    pub unsafe fn from_raw(base: NonNull<u8>, frames: usize, to_phys: u64) -> Result<&'static Self> {
        let usable = frames.checked_sub(1).ok_or(Error::NoMemory)?.min(Self::MAX_FRAMES);
        let arena = base.cast::<Self>();
        // SAFETY: the first frame is ours, aligned and large enough (asserted above).
        unsafe {
            arena.write(Self {
                base: base.add(FRAME_BYTES as usize),
                frames: usable,
                to_phys,
                clock: AtomicU64::new(0),
                used: Lock::new([0; BITMAP_WORDS]),
            });
            Ok(arena.as_ref())
        }
    }

    /// Frames that are handed out now.
    pub fn frames_in_use(&'static self) -> usize {
        self.used.lock(&self).iter().map(|word| word.count_ones() as usize).sum()
    }

    fn phys_of(&self, index: usize) -> u64 {
        (self.base.as_ptr() as u64).wrapping_add(self.to_phys).wrapping_add(index as u64 * FRAME_BYTES)
    }
}

fn bit(index: usize) -> (usize, u64) {
    (index / 64, 1 << (index % 64))
}

// SAFETY: the bitmap gives each frame to one holder; the region is mapped for good at the address
// that `phys_to_virt` computes back; there is one processor number. `Hosted` fits software devices.
unsafe impl Platform for &'static Arena {
    type Registers = NoRegisters;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        let count = 1usize.checked_shl(u32::from(order))?;
        let bytes = FRAME_BYTES.checked_mul(count as u64)?;
        let found = {
            let mut used = self.used.lock(self);
            let free = |used: &[u64], first: usize| {
                (first..first + count).all(|frame| used.get(bit(frame).0).is_some_and(|word| word & bit(frame).1 == 0))
            };
            let first = (0..(self.frames + 1).saturating_sub(count)).find(|&first| {
                let phys = PhysAddr::new(self.phys_of(first));
                phys.is_aligned(bytes)
                    && phys.checked_add(bytes - 1).is_some_and(|end| end <= last)
                    && free(&*used, first)
            })?;
            for frame in first..first + count {
                if let Some(word) = used.get_mut(bit(frame).0) {
                    *word |= bit(frame).1;
                }
            }
            first
        };
        // SAFETY: the block is inside the region and was just given to this call alone.
        unsafe { self.base.add(found * FRAME_BYTES as usize).write_bytes(0, bytes as usize) };
        Some(PhysAddr::new(self.phys_of(found)))
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        let first = (first.as_u64().wrapping_sub(self.phys_of(0)) / FRAME_BYTES) as usize;
        let mut used = self.used.lock(self);
        for frame in first..first.saturating_add(1 << order) {
            if let Some(word) = used.get_mut(bit(frame).0) {
                *word &= !bit(frame).1;
            }
        }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        let offset = phys.as_u64().wrapping_sub(self.phys_of(0)) as usize;
        // Keeps the provenance of the region.
        NonNull::new(self.base.as_ptr().wrapping_add(offset)).unwrap_or(self.base)
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<NoRegisters> {
        Err(Error::Unsupported(UnsupportedReason::Operation))
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.clock.fetch_add(1000, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec;

    use super::{Arena, Frame, Platform};
    use crate::addr::PhysAddr;

    #[test]
    fn blocks_are_aligned_and_limited() {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 17].into_boxed_slice())).unwrap();
        let top = PhysAddr::new(u64::MAX);
        let block = arena.alloc_frames(3, top).unwrap();
        assert!(block.is_aligned(8 << 12));
        assert_eq!(arena.alloc_frames(0, PhysAddr::new(0xfff)), None, "no frame lies that low");
        let mut rest = 0;
        while arena.alloc_frames(0, top).is_some() {
            rest += 1;
        }
        assert_eq!(rest, 8);
        // SAFETY: allocated above, unused.
        unsafe { arena.free_frames(block, 3) };
        assert_eq!(arena.alloc_frames(3, top), Some(block));
    }
}
