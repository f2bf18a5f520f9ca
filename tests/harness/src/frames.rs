//! An allocator of physical frames that tells on those who misuse it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use iommu::platform::FRAME_BYTES;
use iommu::{PhysAddr, PhysRange};

use crate::ram::GuestRam;

/// What freed frames are filled with in poison mode.
pub const POISON: u8 = 0xa5;

/// Blocks of frames out of one range of guest RAM.
///
/// Blocks are powers of two, aligned to their size and zeroed. A search begins where the last one
/// ended, so that a freed frame is not reused at once. Freeing what is not allocated panics.
pub struct FramePool {
    ram: Arc<GuestRam>,
    range: PhysRange,
    state: Mutex<State>,
}

struct State {
    /// One entry a frame.
    frames: Vec<FrameState>,
    /// The order of each block in use, by the number of its first frame.
    blocks: HashMap<usize, u8>,
    next: usize,
    in_use: usize,
    peak: usize,
    allocations: u64,
    /// How many allocations succeed before one fails.
    fail_after: Option<u64>,
    poison: bool,
    violations: Vec<PhysAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FrameState {
    Free,
    Poisoned,
    Used,
}

impl FramePool {
    /// A pool over `range`, which lies in `ram` and is a whole number of frames.
    pub fn new(ram: Arc<GuestRam>, range: PhysRange) -> Self {
        let frames = (range.bytes().unwrap_or(0) / FRAME_BYTES) as usize;
        let state = State {
            frames: vec![FrameState::Free; frames],
            blocks: HashMap::new(),
            next: 0,
            in_use: 0,
            peak: 0,
            allocations: 0,
            fail_after: None,
            poison: false,
            violations: Vec::new(),
        };
        Self { ram, range, state: Mutex::new(state) }
    }

    /// The guest RAM that the frames lie in.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The range that the frames are taken from.
    pub fn range(&self) -> PhysRange {
        self.range
    }

    /// A zeroed block of `1 << order` frames, every byte at or below `last`.
    pub fn alloc(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        let count = 1usize.checked_shl(u32::from(order))?;
        let mut state = self.lock();
        state.allocations += 1;
        match state.fail_after {
            Some(0) => {
                state.fail_after = None;
                return None;
            }
            Some(more) => state.fail_after = Some(more - 1),
            None => {}
        }
        let first = self.find(&state, count, last)?;
        for frame in first..first + count {
            if state.frames[frame] == FrameState::Poisoned
                && !self.ram.is_filled(self.phys(frame), FRAME_BYTES as usize, POISON)
            {
                let phys = self.phys(frame);
                state.violations.push(phys);
            }
            state.frames[frame] = FrameState::Used;
        }
        state.blocks.insert(first, order);
        state.next = first + count;
        state.in_use += count;
        state.peak = state.peak.max(state.in_use);
        drop(state);
        self.ram.fill(self.phys(first), count * FRAME_BYTES as usize, 0);
        Some(self.phys(first))
    }

    /// Takes back the block of `1 << order` frames at `first`.
    ///
    /// # Panics
    /// When there is no such block in use.
    pub fn free(&self, first: PhysAddr, order: u8) {
        let frame = first.as_u64().wrapping_sub(self.range.start().as_u64()) / FRAME_BYTES;
        let frame = usize::try_from(frame).unwrap_or(usize::MAX);
        let mut state = self.lock();
        let known = first.is_aligned(FRAME_BYTES) && state.blocks.get(&frame) == Some(&order);
        if !known {
            drop(state);
            // A second panic while one unwinds would abort and hide the first.
            assert!(thread::panicking(), "free of {first}, order {order}, which is not in use");
            return;
        }
        state.blocks.remove(&frame);
        let count = 1 << order;
        let after = if state.poison { FrameState::Poisoned } else { FrameState::Free };
        if state.poison {
            self.ram.fill(first, count * FRAME_BYTES as usize, POISON);
        }
        state.frames[frame..frame + count].fill(after);
        state.in_use -= count;
    }

    /// Frames that are handed out now.
    pub fn in_use(&self) -> usize {
        self.lock().in_use
    }

    /// The most frames that were handed out at once.
    pub fn peak(&self) -> usize {
        self.lock().peak
    }

    /// Calls of [`alloc`](Self::alloc) so far, failed ones included.
    pub fn allocations(&self) -> u64 {
        self.lock().allocations
    }

    /// Makes one allocation fail: the one after `after` more have been tried. `None` calls it off.
    pub fn fail_after(&self, after: Option<u64>) {
        self.lock().fail_after = after;
    }

    /// Whether a failure that [`fail_after`](Self::fail_after) asked for is still to come.
    pub fn failure_pending(&self) -> bool {
        self.lock().fail_after.is_some()
    }

    /// From now on frames are filled with [`POISON`] when they are freed.
    pub fn poison_freed(&self) {
        self.lock().poison = true;
    }

    /// Poisoned frames that somebody wrote to after they were freed: those that were found when they
    /// were handed out again, and those that lie free now.
    pub fn poison_violations(&self) -> Vec<PhysAddr> {
        let state = self.lock();
        let mut found = state.violations.clone();
        for (frame, _) in state.frames.iter().enumerate().filter(|(_, state)| **state == FrameState::Poisoned) {
            if !self.ram.is_filled(self.phys(frame), FRAME_BYTES as usize, POISON) {
                found.push(self.phys(frame));
            }
        }
        found
    }

    fn find(&self, state: &State, count: usize, last: PhysAddr) -> Option<usize> {
        // The pool may begin at an address that is aligned less than the block.
        let base = (self.range.start().as_u64() / FRAME_BYTES) as usize;
        let fits = |first: usize| {
            let end = self.phys(first).checked_add(count as u64 * FRAME_BYTES - 1);
            end.is_some_and(|end| end <= last)
                && state
                    .frames
                    .get(first..first + count)
                    .is_some_and(|frames| frames.iter().all(|f| *f != FrameState::Used))
        };
        let aligned = |from: usize| (base + from).next_multiple_of(count) - base;
        let search = |from: usize, to: usize| (aligned(from)..to).step_by(count).find(|&first| fits(first));
        search(state.next, state.frames.len()).or_else(|| search(0, state.frames.len().min(state.next + count)))
    }

    fn phys(&self, frame: usize) -> PhysAddr {
        PhysAddr::new(self.range.start().as_u64() + frame as u64 * FRAME_BYTES)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked meanwhile leaves the state whole: nothing here panics half-way.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl fmt::Debug for FramePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FramePool({}, {} in use)", self.range, self.in_use())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use iommu::{PhysAddr, PhysRange};

    use super::FramePool;
    use crate::ram::GuestRam;

    const TOP: PhysAddr = PhysAddr::new(u64::MAX);

    fn pool(start: u64, frames: u64) -> FramePool {
        let range = PhysRange::from_len(PhysAddr::new(start), frames << 12).unwrap();
        FramePool::new(Arc::new(GuestRam::private(&[range]).unwrap()), range)
    }

    #[test]
    fn blocks_are_aligned_limited_and_come_back() {
        let pool = pool(0x3000, 16);
        let block = pool.alloc(2, TOP).unwrap();
        assert_eq!(block, PhysAddr::new(0x4000));
        assert_eq!(pool.alloc(0, PhysAddr::new(0x3ffe)), None);
        assert_eq!(pool.alloc(0, PhysAddr::new(0x3fff)), Some(PhysAddr::new(0x3000)));
        assert_eq!(pool.alloc(9, TOP), None);
        assert_eq!(pool.in_use(), 5);
        pool.free(block, 2);
        assert_eq!((pool.in_use(), pool.peak()), (1, 5));
        assert_eq!((0..20).filter(|_| pool.alloc(0, TOP).is_some()).count(), 15);
    }

    #[test]
    fn one_allocation_fails_on_demand() {
        let pool = pool(0, 8);
        pool.fail_after(Some(1));
        assert!(pool.alloc(0, TOP).is_some());
        assert!(pool.failure_pending());
        assert!(pool.alloc(0, TOP).is_none());
        assert!(!pool.failure_pending() && pool.alloc(0, TOP).is_some());
        assert_eq!(pool.allocations(), 3);
    }

    #[test]
    fn a_store_to_a_freed_frame_is_found() {
        let pool = pool(0, 8);
        pool.poison_freed();
        let frame = pool.alloc(0, TOP).unwrap();
        pool.free(frame, 0);
        assert_eq!(pool.poison_violations(), []);
        pool.ram().write(frame, &[1]);
        assert_eq!(pool.poison_violations(), [frame]);
        while pool.alloc(0, TOP).is_some() {}
        assert_eq!(pool.poison_violations(), [frame], "also after it was reused");
    }

    #[test]
    #[should_panic(expected = "not in use")]
    fn a_double_free_panics() {
        let pool = pool(0, 8);
        let frame = pool.alloc(0, TOP).unwrap();
        pool.free(frame, 0);
        pool.free(frame, 0);
    }
}
