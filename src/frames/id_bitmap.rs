//! Numbers that are given out and taken back.

use core::array;
use core::fmt;

use super::words::{WORDS, Words};
use crate::addr::PhysAddr;
use crate::error::{Error, InvalidReason, NoSpaceReason, Result};
use crate::platform::{FRAME_BYTES, Platform};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Numbers from 0 to a limit below 2^20, given out in rising order: one that was freed comes again
/// only when all others had their turn. (Calls on several processors at once may bring it earlier;
/// nothing may depend on the order.)
///
/// A frame holds 32768 of them and is allocated when the first is needed. No lock is taken.
/// [`free`](Self::free) and [`in_use`](Self::in_use): any context. [`alloc`](Self::alloc) and
/// [`reserve`](Self::reserve) may allocate a frame: task only.
///
/// A number that hardware may still use must not come again: [`quarantine`](Self::quarantine) it
/// instead of freeing it.
///
/// ```
/// use iommu::NoSpaceReason;
/// use iommu::frames::IdBitmap;
/// use iommu::platform::{Arena, Frame};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 8].into_boxed_slice()))?;
/// let ids = IdBitmap::new(arena, 255, NoSpaceReason::DomainIds)?;
/// ids.reserve(0)?;
/// assert_eq!(ids.alloc()?, 1);
/// ids.free(1);
/// assert_eq!(ids.alloc()?, 2);
/// assert_eq!(ids.in_use(), 2);
/// # Ok::<(), iommu::Error>(())
/// ```
pub struct IdBitmap<P: Platform> {
    platform: P,
    limit: u32,
    full: NoSpaceReason,
    /// Where the next search begins.
    cursor: AtomicU32,
    in_use: AtomicU32,
    quarantined: AtomicU32,
    /// Physical addresses of the frames, with [`PRESENT`] set; zero where none is yet.
    leaves: [AtomicU64; LEAVES],
}

/// Frames of numbers.
const LEAVES: usize = 32;
/// Numbers in a frame.
const LEAF_IDS: u32 = WORDS as u32 * u64::BITS;
/// Marks an address, which may be zero.
const PRESENT: u64 = 1;
/// Searches that an allocation makes while the count says that a number is free.
const SEARCHES: u32 = 4;

impl<P: Platform> IdBitmap<P> {
    /// The largest number that can be given out: 2^20 - 1.
    pub const MAX_LIMIT: u32 = LEAVES as u32 * LEAF_IDS - 1;

    /// The numbers `0..=limit`, all free. `full` is what an allocation says when all are taken.
    ///
    /// # Errors
    /// [`InvalidReason::Configuration`] for a limit above [`MAX_LIMIT`](Self::MAX_LIMIT).
    pub fn new(platform: P, limit: u32, full: NoSpaceReason) -> Result<Self> {
        if limit > Self::MAX_LIMIT {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        Ok(Self {
            platform,
            limit,
            full,
            cursor: AtomicU32::new(0),
            in_use: AtomicU32::new(0),
            quarantined: AtomicU32::new(0),
            leaves: array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    /// The largest number.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Numbers that are taken: given out, reserved or quarantined.
    pub fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Numbers that are quarantined.
    pub fn quarantined(&self) -> u32 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Takes a free number. Task only.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when all are taken; [`Error::NoMemory`] when there is no frame for more
    /// and those in the frames that exist are taken.
    pub fn alloc(&self) -> Result<u32> {
        let mut result = Err(Error::NoSpace(self.full));
        for _ in 0..SEARCHES {
            let start = self.cursor.load(Ordering::Relaxed).min(self.limit);
            result = match self.search(start, self.limit) {
                // Of two reasons, want of memory is the one to tell.
                Err(error) if start > 0 => self.search(0, start - 1).map_err(|other| match error {
                    Error::NoMemory => error,
                    _ => other,
                }),
                searched => searched,
            };
            match result {
                // A number that was freed behind the search: search again.
                Err(Error::NoSpace(_)) if self.in_use() <= self.limit => {}
                _ => break,
            }
        }
        if let Ok(id) = result {
            self.cursor.store(if id == self.limit { 0 } else { id + 1 }, Ordering::Relaxed);
        }
        result
    }

    /// Takes this very number, for one that hardware gives a meaning of its own. Task only.
    ///
    /// # Errors
    /// [`InvalidReason::Duplicate`] when it is taken, [`InvalidReason::Configuration`] above the
    /// limit, [`Error::NoMemory`].
    #[inline(never)]
    pub fn reserve(&self, id: u32) -> Result<()> {
        if id > self.limit {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        let (word, bit) = place(self.leaf_or_new(id)?, id);
        if word.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return Err(Error::Invalid(InvalidReason::Duplicate));
        }
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a number back; one that is not taken stays as it is. What the caller did before is
    /// visible to whoever gets the number next. Any context.
    pub fn free(&self, id: u32) {
        let Some(leaf) = self.leaf(id) else { return };
        let (word, bit) = place(leaf, id);
        if word.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.in_use.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Keeps a taken number for good, because hardware may still use it. Any context.
    ///
    /// The number stays taken as long as the bitmap lives; this only counts it. Who resets the
    /// hardware afterwards makes a new bitmap, or frees the number after all.
    pub fn quarantine(&self, id: u32) {
        if self.is_taken(id) {
            self.quarantined.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the number is taken.
    pub fn is_taken(&self, id: u32) -> bool {
        self.leaf(id).is_some_and(|leaf| {
            let (word, bit) = place(leaf, id);
            word.load(Ordering::Acquire) & bit != 0
        })
    }

    /// Takes the first free number in `start..=last`.
    fn search(&self, start: u32, last: u32) -> Result<u32> {
        let mut failure = Error::NoSpace(self.full);
        let mut id = start;
        while id <= last {
            let end_of_leaf = (id | (LEAF_IDS - 1)).min(last);
            match self.leaf_or_new(id) {
                Ok(leaf) => {
                    if let Some(found) = self.search_leaf(leaf, id, end_of_leaf) {
                        return Ok(found);
                    }
                }
                // Other frames may have room.
                Err(error) => failure = error,
            }
            id = end_of_leaf + 1;
        }
        Err(failure)
    }

    #[inline(never)]
    fn search_leaf(&self, leaf: Words<'_>, start: u32, last: u32) -> Option<u32> {
        let mut id = start;
        while id <= last {
            let (word, first) = place(leaf, id);
            let base = id & !(u64::BITS - 1);
            let mut taken = word.load(Ordering::Relaxed);
            loop {
                // Bits below the first one do not count.
                let bit = (!taken & !(first - 1)).trailing_zeros();
                if bit == u64::BITS || base + bit > last {
                    break;
                }
                match word.compare_exchange_weak(taken, taken | 1 << bit, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => {
                        self.in_use.fetch_add(1, Ordering::Relaxed);
                        return Some(base + bit);
                    }
                    Err(found) => taken = found,
                }
            }
            id = base + u64::BITS;
        }
        None
    }

    fn leaf(&self, id: u32) -> Option<Words<'_>> {
        if id > self.limit {
            return None;
        }
        match self.leaves.get((id / LEAF_IDS) as usize)?.load(Ordering::Acquire) {
            0 => None,
            word => Some(self.words(word)),
        }
    }

    #[inline(never)]
    fn leaf_or_new(&self, id: u32) -> Result<Words<'_>> {
        if let Some(leaf) = self.leaf(id) {
            return Ok(leaf);
        }
        // `id` is within the limit, so its frame has a place.
        let place = self.leaves.get((id / LEAF_IDS) as usize).ok_or(Error::NoSpace(self.full))?;
        let phys = Words::alloc(&self.platform)?;
        match place.compare_exchange(0, phys.as_u64() | PRESENT, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(self.words(phys.as_u64())),
            Err(found) => {
                // SAFETY: allocated above and seen by nobody.
                unsafe { Words::free(&self.platform, phys) };
                Ok(self.words(found))
            }
        }
    }

    fn words(&self, leaf: u64) -> Words<'_> {
        // SAFETY: leaves are freed by `drop` only.
        unsafe { Words::at(&self.platform, PhysAddr::new(leaf).align_down(FRAME_BYTES)) }
    }
}

impl<P: Platform> Drop for IdBitmap<P> {
    fn drop(&mut self) {
        for leaf in &self.leaves {
            match leaf.load(Ordering::Acquire) {
                0 => {}
                // SAFETY: allocated by `leaf_or_new`; nobody uses the bitmap any more.
                word => unsafe { Words::free(&self.platform, PhysAddr::new(word).align_down(FRAME_BYTES)) },
            }
        }
    }
}

impl<P: Platform> fmt::Debug for IdBitmap<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdBitmap")
            .field("limit", &self.limit)
            .field("in_use", &self.in_use())
            .field("quarantined", &self.quarantined())
            .finish_non_exhaustive()
    }
}

/// The word and the bit of a number in its frame.
fn place(leaf: Words<'_>, id: u32) -> (&AtomicU64, u64) {
    (leaf.word((id / u64::BITS) as usize), 1 << (id % u64::BITS))
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::vec::Vec;

    use super::super::testing::Counted;
    use super::{IdBitmap, LEAF_IDS};
    use crate::error::{Error, InvalidReason, NoSpaceReason};

    const FULL: Error = Error::NoSpace(NoSpaceReason::Pasids);

    #[test]
    fn every_number_is_given_once() {
        let frames = Counted::new(64);
        let limit = IdBitmap::<Counted>::MAX_LIMIT;
        assert_eq!(limit, (1 << 20) - 1);
        let ids = IdBitmap::new(frames.clone(), limit, NoSpaceReason::Pasids).unwrap();
        for expected in 0..=limit {
            assert_eq!(ids.alloc(), Ok(expected));
        }
        assert_eq!((ids.alloc(), ids.in_use(), frames.in_use()), (Err(FULL), limit + 1, 32));
        ids.free(77_777);
        assert_eq!((ids.alloc(), ids.alloc()), (Ok(77_777), Err(FULL)));
        drop(ids);
        assert_eq!(frames.in_use(), 0);
    }

    #[test]
    fn a_freed_number_waits_for_its_turn() {
        let ids = IdBitmap::new(Counted::new(4), 99, NoSpaceReason::Pasids).unwrap();
        for expected in 0..100 {
            assert_eq!(ids.alloc(), Ok(expected));
            if expected != 50 {
                ids.free(expected);
            }
        }
        assert_eq!(ids.in_use(), 1);
        let second: Vec<_> = (0..99).map(|_| ids.alloc().unwrap()).collect();
        assert_eq!(second, (0..100).filter(|&id| id != 50).collect::<Vec<_>>());
    }

    #[test]
    fn limits_and_reservations() {
        let frames = Counted::new(4);
        let too_far = IdBitmap::new(frames.clone(), 1 << 20, NoSpaceReason::Pasids).unwrap_err();
        assert_eq!(too_far, Error::Invalid(InvalidReason::Configuration));
        let ids = IdBitmap::new(frames.clone(), 2, NoSpaceReason::Pasids).unwrap();
        ids.reserve(1).unwrap();
        assert_eq!(ids.reserve(1), Err(Error::Invalid(InvalidReason::Duplicate)));
        assert_eq!(ids.reserve(3), Err(Error::Invalid(InvalidReason::Configuration)));
        assert_eq!((ids.alloc(), ids.alloc(), ids.alloc()), (Ok(0), Ok(2), Err(FULL)));
        ids.free(3);
        ids.free(u32::MAX);
        ids.free(1);
        ids.free(1);
        assert_eq!((ids.in_use(), ids.alloc()), (2, Ok(1)));
        ids.quarantine(1);
        assert_eq!((ids.quarantined(), ids.alloc()), (1, Err(FULL)));
    }

    #[test]
    fn without_memory_the_frames_that_exist_are_used_up_first() {
        let frames = Counted::new(1);
        let ids = IdBitmap::new(frames.clone(), LEAF_IDS, NoSpaceReason::Pasids).unwrap();
        frames.fail_nth(0);
        // The only frame that may be missing is that of the last number.
        assert_eq!(ids.alloc(), Ok(LEAF_IDS));
        drop(ids);
        let ids = IdBitmap::new(frames.clone(), LEAF_IDS, NoSpaceReason::Pasids).unwrap();
        for expected in 0..LEAF_IDS {
            assert_eq!(ids.alloc(), Ok(expected));
        }
        assert_eq!(ids.alloc(), Err(Error::NoMemory));
        assert_eq!(ids.reserve(LEAF_IDS), Err(Error::NoMemory));
        ids.free(9);
        assert_eq!((ids.alloc(), ids.in_use(), frames.in_use()), (Ok(9), LEAF_IDS, 1));
    }

    #[test]
    fn threads_get_different_numbers() {
        let frames = Counted::new(8);
        let ids = IdBitmap::new(frames.clone(), 63, NoSpaceReason::Pasids).unwrap();
        let held = Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        let id = ids.alloc().unwrap();
                        assert!(held.lock().unwrap().insert(id));
                        assert!(held.lock().unwrap().remove(&id));
                        ids.free(id);
                    }
                });
            }
        });
        assert_eq!(ids.in_use(), 0);
    }
}
