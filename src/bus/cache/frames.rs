//! A slice of plain values in frames.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::slice;

use crate::addr::PhysAddr;
use crate::error::{Error, Result};
use crate::platform::{FRAME_BYTES, Platform};

/// As many values as fit in a block of frames, all initialised. No hardware sees them.
pub(crate) struct FrameSlice<T: Copy, P: Platform> {
    platform: P,
    phys: PhysAddr,
    order: u8,
    values: PhantomData<T>,
}

impl<T: Copy, P: Platform> FrameSlice<T, P> {
    /// Copies of `value` in `1 << order` frames (`order` at most 16).
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub(crate) fn new(platform: P, order: u8, value: T) -> Result<Self> {
        const { assert!(align_of::<T>() <= FRAME_BYTES as usize && size_of::<T>() != 0) };
        let phys = platform.alloc_frames(order, PhysAddr::new(u64::MAX)).ok_or(Error::NoMemory)?;
        let slice = Self { platform, phys, order, values: PhantomData };
        for index in 0..slice.len() {
            // SAFETY: the block is ours, holds `len()` values, and is aligned to its size.
            unsafe { slice.first().add(index).write(value) };
        }
        Ok(slice)
    }

    fn len(&self) -> usize {
        let bytes = (FRAME_BYTES as usize).wrapping_shl(u32::from(self.order));
        bytes.checked_div(size_of::<T>()).unwrap_or(0)
    }

    fn first(&self) -> NonNull<T> {
        self.platform.phys_to_virt(self.phys).cast()
    }

    /// The values.
    pub(crate) fn values(&self) -> &[T] {
        // SAFETY: `new` initialised `len()` values in a block that is freed by `drop` only.
        unsafe { slice::from_raw_parts(self.first().as_ptr(), self.len()) }
    }

    /// The values, to be changed.
    pub(crate) fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the exclusive borrow makes it the only reference.
        unsafe { slice::from_raw_parts_mut(self.first().as_ptr(), self.len()) }
    }
}

impl<T: Copy, P: Platform> Drop for FrameSlice<T, P> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this order, and borrowed by nobody any more. Values are
        // `Copy` and need no drop.
        unsafe { self.platform.free_frames(self.phys, self.order) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec;

    use super::FrameSlice;
    use crate::Error;
    use crate::platform::{Arena, Frame};

    #[test]
    fn values_fill_the_frames_which_are_given_back() {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 4].into_boxed_slice())).unwrap();
        let mut slice = FrameSlice::new(arena, 1, [7_u64; 3]).unwrap();
        assert_eq!(slice.values().len(), 8192 / 24);
        assert!(slice.values().iter().all(|value| *value == [7; 3]));
        slice.values_mut()[340] = [1, 2, 3];
        assert_eq!(slice.values()[340], [1, 2, 3]);
        assert_eq!(FrameSlice::new(arena, 2, 0_u8).err(), Some(Error::NoMemory));
        drop(slice);
        assert_eq!(arena.frames_in_use(), 0);
    }
}
