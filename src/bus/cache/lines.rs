//! A set-associative cache.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::FrameSlice;
use crate::error::Result;
use crate::platform::Platform;

/// Lines of one set: where a line with some tag may be.
const WAYS: usize = 4;

/// Lines that are found by a hash of their tag. A line stays until it is removed, or until its set is
/// full of younger ones.
pub(crate) struct Lines<T: Copy, P: Platform> {
    slots: FrameSlice<Option<T>, P>,
    /// Sets minus one; their number is a power of two.
    mask: u64,
    /// Lines that hold something.
    used: usize,
    /// Which way is given up next.
    victim: usize,
}

impl<T: Copy, P: Platform> Lines<T, P> {
    pub(crate) fn new(platform: P, order: u8) -> Result<Self> {
        let slots = FrameSlice::new(platform, order, None)?;
        let sets = slots.values().len() / WAYS;
        // The largest power of two that there is room for.
        let mask = 1_u64.wrapping_shl(sets.max(1).ilog2()).wrapping_sub(1);
        Ok(Self { slots, mask, used: 0, victim: 0 })
    }

    fn set_of(&self, hash: u64) -> usize {
        // Multiplicative hashing: the upper bits are the mixed ones.
        (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & self.mask) as usize
    }

    fn set(&self, hash: u64) -> &[Option<T>] {
        self.slots.values().chunks_exact(WAYS).nth(self.set_of(hash)).unwrap_or(&[])
    }

    fn set_mut(&mut self, hash: u64) -> &mut [Option<T>] {
        let set = self.set_of(hash);
        self.slots.values_mut().chunks_exact_mut(WAYS).nth(set).unwrap_or(&mut [])
    }

    /// The line with this hash for which `is` holds.
    pub(crate) fn find(&self, hash: u64, is: impl Fn(&T) -> bool) -> Option<T> {
        self.set(hash).iter().flatten().find(|line| is(line)).copied()
    }

    /// Drops the lines with this hash for which `is` holds.
    pub(crate) fn evict(&mut self, hash: u64, is: impl Fn(&T) -> bool) {
        let mut gone = 0_usize;
        for slot in self.set_mut(hash) {
            if slot.as_ref().is_some_and(&is) {
                *slot = None;
                gone = gone.wrapping_add(1);
            }
        }
        self.used = self.used.saturating_sub(gone);
    }

    /// Puts a line in, in the place of one for which `is` holds if there is one.
    pub(crate) fn insert(&mut self, hash: u64, line: T, is: impl Fn(&T) -> bool) {
        let victim = self.victim;
        let set = self.set_mut(hash);
        let place = set.iter().position(|slot| slot.as_ref().is_some_and(&is));
        let place = place.or_else(|| set.iter().position(Option::is_none));
        if let Some(slot) = set.get_mut(place.unwrap_or(victim)) {
            let grown = usize::from(slot.is_none());
            *slot = Some(line);
            self.used = self.used.saturating_add(grown);
        }
        if place.is_none() {
            self.victim = victim.wrapping_add(1) % WAYS;
        }
    }

    /// Drops every line for which `goes` holds.
    pub(crate) fn remove(&mut self, goes: impl Fn(&T) -> bool) {
        let mut left = self.used;
        for slot in self.slots.values_mut() {
            if left == 0 {
                break;
            }
            if let Some(line) = slot {
                left = left.wrapping_sub(1);
                if goes(line) {
                    *slot = None;
                    self.used = self.used.saturating_sub(1);
                }
            }
        }
    }

    /// Every line.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.values().iter().flatten()
    }

    /// Lines that hold something.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec;

    use super::{Lines, WAYS};
    use crate::platform::{Arena, Frame};

    #[test]
    fn a_line_stays_until_its_set_is_full() {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 4].into_boxed_slice())).unwrap();
        let mut lines: Lines<(u64, u64), _> = Lines::new(arena, 0).unwrap();
        for key in 0..WAYS as u64 {
            lines.insert(5, (key, 0), |line| line.0 == key);
        }
        lines.insert(5, (2, 9), |line| line.0 == 2);
        assert_eq!(lines.len(), WAYS);
        assert_eq!(lines.find(5, |line| line.0 == 2), Some((2, 9)));
        lines.insert(5, (77, 0), |line| line.0 == 77);
        assert_eq!(lines.len(), WAYS);
        assert_eq!(lines.find(5, |line| line.0 == 0), None);
        lines.insert(5, (78, 0), |line| line.0 == 78);
        assert_eq!(lines.find(5, |line| line.0 == 1), None);
        assert!(lines.find(5, |line| line.0 == 77).is_some());
        lines.remove(|line| line.0 >= 77);
        assert_eq!(lines.len(), WAYS - 2);
        lines.evict(5, |line| line.0 == 2);
        assert_eq!((lines.len(), lines.find(5, |line| line.0 == 2)), (WAYS - 3, None));
    }
}
