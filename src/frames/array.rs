//! Values one after the other, as many as were asked for.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;
use core::slice;

use super::words::ANYWHERE;
use crate::addr::PhysAddr;
use crate::error::{Error, Result};
use crate::platform::{FRAME_BYTES, Platform};

/// A slice in a block of frames, for what is written once and read often.
///
/// ```
/// use iommu::frames::Array;
/// use iommu::platform::{Arena, Frame};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 8].into_boxed_slice()))?;
/// let mut squares = Array::new(arena, 3)?;
/// for number in 1..4 {
///     squares.push(number * number)?;
/// }
/// assert_eq!(*squares, [1, 4, 9]);
/// assert!(squares.push(16).is_err());
/// # Ok::<(), iommu::Error>(())
/// ```
pub struct Array<T: Copy + Send + Sync + 'static, P: Platform> {
    platform: P,
    /// The block and its order; none for an array of no value.
    block: Option<(PhysAddr, u8)>,
    capacity: usize,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Copy + Send + Sync + 'static, P: Platform> Array<T, P> {
    /// An empty array with room for `capacity` values. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new(platform: P, capacity: usize) -> Result<Self> {
        const { assert!(align_of::<T>() <= FRAME_BYTES as usize) };
        let bytes = capacity.checked_mul(size_of::<T>()).ok_or(Error::NoMemory)? as u64;
        let block = match bytes.div_ceil(FRAME_BYTES).checked_next_power_of_two() {
            _ if bytes == 0 => None,
            None => return Err(Error::NoMemory),
            Some(frames) => {
                let order = frames.trailing_zeros() as u8;
                Some((platform.alloc_frames(order, ANYWHERE).ok_or(Error::NoMemory)?, order))
            }
        };
        Ok(Self { platform, block, capacity, len: 0, values: PhantomData })
    }

    /// Puts `value` behind the others.
    ///
    /// # Errors
    /// [`Error::Capacity`] when there is no room.
    pub fn push(&mut self, value: T) -> Result<()> {
        if self.len >= self.capacity {
            return Err(Error::Capacity("Array::new"));
        }
        // SAFETY: the block has room for `capacity` values, of which `len` are used.
        unsafe { self.first().add(self.len).write(value) };
        self.len += 1;
        Ok(())
    }

    fn first(&self) -> NonNull<T> {
        self.block.map_or(NonNull::dangling(), |(first, _)| self.platform.phys_to_virt(first).cast())
    }
}

impl<T: Copy + Send + Sync + 'static, P: Platform> Deref for Array<T, P> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `push` wrote so many values, and they change only through `&mut self`.
        unsafe { slice::from_raw_parts(self.first().as_ptr(), self.len) }
    }
}

impl<T: Copy + Send + Sync + 'static, P: Platform> Drop for Array<T, P> {
    fn drop(&mut self) {
        if let Some((first, order)) = self.block {
            // SAFETY: allocated by `new`, and every borrow of the values borrows `self`.
            unsafe { self.platform.free_frames(first, order) };
        }
    }
}

impl<T: Copy + Send + Sync + fmt::Debug + 'static, P: Platform> fmt::Debug for Array<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::testing::Counted;
    use super::Array;
    use crate::error::Error;

    #[test]
    fn values_fill_frames_and_frames_come_back() {
        let frames = Counted::new(16);
        for capacity in [0, 1, 512, 513, 2000] {
            let mut array = Array::<u64, _>::new(frames.clone(), capacity).unwrap();
            for value in 0..capacity as u64 {
                array.push(value * 3).unwrap();
            }
            assert!(matches!(array.push(0), Err(Error::Capacity(_))));
            assert!(array.iter().copied().eq((0..capacity as u64).map(|value| value * 3)));
            assert_eq!(frames.in_use(), (capacity * 8).div_ceil(4096).next_power_of_two() * usize::from(capacity != 0));
            drop(array);
            assert_eq!(frames.in_use(), 0);
        }
    }

    #[test]
    fn too_much_is_no_memory() {
        let frames = Counted::new(16);
        for capacity in [17 * 512, usize::MAX / 8, usize::MAX] {
            assert!(matches!(Array::<u64, _>::new(frames.clone(), capacity), Err(Error::NoMemory)));
        }
    }
}
