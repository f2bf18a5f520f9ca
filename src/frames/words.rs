//! A frame as an array of atomic words: the node of the containers.

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::addr::PhysAddr;
use crate::error::{Error, Result};
use crate::platform::{FRAME_BYTES, Platform};
use crate::sync::atomic::AtomicU64;

/// Binary digits of an index into a frame.
#[cfg(not(loom))]
pub(super) const INDEX_BITS: u32 = 9;
/// A loom model explores every word: four to a "frame" are enough.
#[cfg(loom)]
pub(super) const INDEX_BITS: u32 = 2;

/// Words in a frame.
pub(super) const WORDS: usize = 1 << INDEX_BITS;

#[cfg(not(loom))]
const _: () = assert!(WORDS * size_of::<AtomicU64>() == FRAME_BYTES as usize);
#[cfg(loom)]
const _: () = assert!(WORDS * size_of::<AtomicU64>() <= FRAME_BYTES as usize);

/// No limit on where a frame lies.
pub(super) const ANYWHERE: PhysAddr = PhysAddr::new(u64::MAX);

/// The words of a frame that somebody owns.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    first: NonNull<AtomicU64>,
    lifetime: PhantomData<&'a [AtomicU64; WORDS]>,
}

impl<'a> Words<'a> {
    /// Allocates a frame of zeros.
    pub(super) fn alloc<P: Platform>(platform: &P) -> Result<PhysAddr> {
        let phys = platform.alloc_frames(0, ANYWHERE).ok_or(Error::NoMemory)?;
        // Frames come zeroed, and that is what an atomic zero is. A loom atomic is more.
        #[cfg(loom)]
        for index in 0..WORDS {
            // SAFETY: the frame was just allocated and holds this many (asserted above).
            unsafe { platform.phys_to_virt(phys).cast::<AtomicU64>().add(index).write(AtomicU64::new(0)) };
        }
        Ok(phys)
    }

    /// Frees a frame.
    ///
    /// # Safety
    /// It came from [`alloc`](Self::alloc) of this platform, and nobody uses it any more.
    pub(super) unsafe fn free<P: Platform>(platform: &P, phys: PhysAddr) {
        // SAFETY: passed on from the caller.
        unsafe { platform.free_frames(phys, 0) }
    }

    /// The words of the frame at `phys`.
    ///
    /// # Safety
    /// It came from [`alloc`](Self::alloc) of this platform, and is not freed during `'a`.
    #[inline]
    pub(super) unsafe fn at<P: Platform>(platform: &P, phys: PhysAddr) -> Self {
        Self { first: platform.phys_to_virt(phys).cast(), lifetime: PhantomData }
    }

    /// The word at `index`, modulo the length, so that no index reaches other memory.
    #[inline]
    pub(super) fn word(self, index: usize) -> &'a AtomicU64 {
        // SAFETY: the mask keeps the index inside the frame, which lives during 'a.
        unsafe { self.first.add(index & (WORDS - 1)).as_ref() }
    }
}
