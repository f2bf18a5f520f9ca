//! Tables of entries: a power-of-two number of 64-bit words in a block of frames.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::slice;

use super::Entry;
use crate::addr::PhysAddr;
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::sync::Site;

/// Binary logarithm of the entries in one frame.
#[cfg(not(loom))]
pub const ENTRIES_PER_FRAME_LOG2: u8 = (crate::platform::FRAME_BYTES as usize / size_of::<u64>()).ilog2() as u8;
/// A loom model explores every entry: four to a "frame" are enough.
#[cfg(loom)]
pub const ENTRIES_PER_FRAME_LOG2: u8 = 2;

const ENTRIES_PER_FRAME: usize = 1 << ENTRIES_PER_FRAME_LOG2;

/// A borrowed table: the entries in a block of frames that somebody owns.
///
/// An index wraps at the table's length instead of failing, so that no index can panic or reach
/// other memory; callers pass indices in range.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    first: NonNull<Entry>,
    /// Length minus one; the length is a power of two.
    mask: usize,
    lifetime: PhantomData<&'a [Entry]>,
}

// SAFETY: it is a shared slice of atomics.
unsafe impl Send for Table<'_> {}
// SAFETY: as above.
unsafe impl Sync for Table<'_> {}

impl<'a> Table<'a> {
    /// The table in the block of `1 << order` frames at `phys`.
    ///
    /// # Safety
    /// The block came from [`alloc`](Self::alloc) with this platform and order, and is not freed
    /// during `'a`.
    #[inline]
    pub unsafe fn from_phys<P: Platform>(platform: &P, phys: PhysAddr, order: u8) -> Self {
        let first = platform.phys_to_virt(phys).cast();
        Self { first, mask: (ENTRIES_PER_FRAME << order) - 1, lifetime: PhantomData }
    }

    /// Allocates a block of `1 << order` frames at or below `last`, as a table of zeros.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn alloc<P: Platform>(platform: &P, order: u8, last: PhysAddr) -> Result<PhysAddr> {
        let phys = platform.alloc_frames(order, last).ok_or(Error::NoMemory)?;
        construct(platform, phys, order);
        Ok(phys)
    }

    /// Frees a block that [`alloc`](Self::alloc) gave.
    ///
    /// # Safety
    /// As for [`Platform::free_frames`].
    pub unsafe fn free<P: Platform>(platform: &P, phys: PhysAddr, order: u8) {
        // SAFETY: passed on from the caller.
        unsafe { platform.free_frames(phys, order) }
    }

    /// Number of entries.
    #[inline]
    pub fn len(self) -> usize {
        self.mask + 1
    }

    /// Whether there is no entry: never.
    #[inline]
    pub fn is_empty(self) -> bool {
        false
    }

    /// The entry at `index`, modulo the length.
    #[inline]
    pub fn entry(self, index: usize) -> &'a Entry {
        // SAFETY: the mask keeps the index inside the block, which lives during 'a.
        unsafe { self.first.add(index & self.mask).as_ref() }
    }

    /// The entries from `first` on, at most `count` of them and none beyond the end.
    #[inline]
    pub fn entries(self, first: usize, count: usize) -> &'a [Entry] {
        let first = first & self.mask;
        let count = count.min(self.len() - first);
        // SAFETY: `first + count` is at most the length, and the block lives during 'a.
        unsafe { slice::from_raw_parts(self.first.add(first).as_ptr(), count) }
    }

    /// Writes the entries at `first`, which is even, and behind it, so that hardware sees both values
    /// or neither. `None`, and nothing is written, when the platform cannot.
    pub fn store_pair<P: Platform>(self, platform: &P, first: usize, values: [u64; 2]) -> Option<()> {
        // A loom atomic is more than its value.
        if cfg!(loom) {
            return None;
        }
        let target = NonNull::from(self.entry(first & !1));
        let [low, high] = if cfg!(target_endian = "big") { [values[1], values[0]] } else { values };
        // SAFETY: an even index into a block of frames is aligned to 16 bytes, and the block lives
        // during 'a.
        unsafe { platform.store_128(target.cast(), u128::from(high) << 64 | u128::from(low)) }
    }

    /// Writes the `count` entries from `first` on back from the cache, for a walker that does not
    /// snoop.
    #[inline]
    pub fn clean<P: Platform>(self, site: Site, platform: &P, first: usize, count: usize) {
        if !site.is_skipped() {
            let entries = self.entries(first, count);
            platform.clean(NonNull::from(entries).cast(), size_of_val(entries));
        }
    }

    /// Drops the `count` entries from `first` on from the cache, so that they are read as a device wrote
    /// them that is not snooped.
    #[inline]
    pub fn invalidate<P: Platform>(self, site: Site, platform: &P, first: usize, count: usize) {
        if !site.is_skipped() {
            let entries = self.entries(first, count);
            platform.invalidate(NonNull::from(entries).cast(), size_of_val(entries));
        }
    }
}

/// Constructs the entries in place: a loom atomic is more than zeros.
fn construct<P: Platform>(platform: &P, phys: PhysAddr, order: u8) {
    #[cfg(loom)]
    {
        let first: NonNull<Entry> = platform.phys_to_virt(phys).cast();
        for index in 0..ENTRIES_PER_FRAME << order {
            // SAFETY: the block was just allocated; a loom platform gives blocks that hold this many.
            unsafe { first.add(index).write(Entry::zero()) };
        }
    }
    #[cfg(not(loom))]
    {
        // Frames come zeroed, and an `Entry` of zeros is what `Entry::zero` makes.
        let _ = (platform, phys, order, Entry::zero);
    }
}

/// A table that owns its block of frames.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::hwmem::FrameTable;
/// use iommu::platform::{Arena, Frame};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 4].into_boxed_slice()))?;
/// let table = FrameTable::new(arena, 0, PhysAddr::new(u64::MAX))?;
/// table.view().entry(3).store(7);
/// assert_eq!(table.view().entry(3).load(), 7);
/// drop(table);
/// assert_eq!(arena.frames_in_use(), 0);
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Debug)]
pub struct FrameTable<P: Platform> {
    platform: P,
    phys: PhysAddr,
    order: u8,
}

impl<P: Platform> FrameTable<P> {
    /// A table of zeros in `1 << order` frames at or below `last`.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new(platform: P, order: u8, last: PhysAddr) -> Result<Self> {
        let phys = Table::alloc(&platform, order, last)?;
        Ok(Self { platform, phys, order })
    }

    /// Where the table lies.
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }

    /// The entries.
    #[inline]
    pub fn view(&self) -> Table<'_> {
        // SAFETY: allocated by `new` and freed by `drop` only.
        unsafe { Table::from_phys(&self.platform, self.phys, self.order) }
    }

    /// Gives up the table without freeing it: hardware may still use it.
    pub fn leak(self) -> PhysAddr {
        let phys = self.phys;
        core::mem::forget(self);
        phys
    }
}

impl<P: Platform> Drop for FrameTable<P> {
    fn drop(&mut self) {
        // SAFETY: this value owns the block. Whoever told hardware of it owes the invalidation
        // before the drop.
        unsafe { Table::free(&self.platform, self.phys, self.order) }
    }
}
