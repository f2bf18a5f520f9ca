//! A queue that the unit writes: events, page requests (SMMU 3.5.1 and 3.5.2).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::registers::Queue;
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::registers::{OVERFLOW_FLAG, QueueIndex};

/// Entries that have a place and are being written. PROD moves when all of them are, so that software never
/// sees a place before what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Writers {
    count: u32,
    /// Where the next entry goes.
    next: QueueIndex,
    /// The first entry that could not be written: it and what is behind it is lost (7.2.2).
    lost: Option<QueueIndex>,
}

/// A place in a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) address: PhysAddr,
    index: QueueIndex,
}

/// What became of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Written {
    Whole,
    Aborted,
}

impl Writers {
    /// Whether all that has a place is written, and published.
    pub(super) const fn is_quiet(&self) -> bool {
        self.count == 0
    }

    /// Whether there is a place: the queue does not overflow.
    pub(super) fn has_room(&self, queue: &Queue) -> bool {
        let next = if self.is_quiet() { queue.prod() } else { self.next };
        !QueueIndex::is_full(next, queue.cons(), queue.log2_size())
    }

    /// Takes a place for an entry of `1 << entry_log2` bytes.
    pub(super) fn reserve(&mut self, queue: &Queue, entry_log2: u8) -> Option<Place> {
        if !self.has_room(queue) {
            return None;
        }
        if self.is_quiet() {
            self.next = queue.prod();
            self.lost = None;
        }
        let index = self.next;
        self.next = index.plus(1, queue.log2_size());
        self.count = self.count.wrapping_add(1);
        Some(Place { address: queue.address(index, entry_log2), index })
    }

    /// One more is written, or is not. Whether the queue was empty, and is not any more.
    pub(super) fn publish(&mut self, queue: &mut Queue, place: Place, written: Written) -> bool {
        let before = |index| QueueIndex::used(index, queue.prod(), queue.log2_size());
        if written == Written::Aborted && self.lost.is_none_or(|lost| before(place.index) < before(lost)) {
            self.lost = Some(place.index);
        }
        self.count = self.count.saturating_sub(1);
        if !self.is_quiet() {
            return false;
        }
        let was_empty = queue.used() == 0;
        queue.prod = queue.prod & OVERFLOW_FLAG | self.lost.unwrap_or(self.next).0;
        was_empty && queue.used() != 0
    }
}

/// An entry was lost: OVFLG tells, if software has seen that the last time (7.4, 8.1).
pub(super) fn overflow(queue: &mut Queue) {
    if !has_overflowed(queue) {
        queue.prod ^= OVERFLOW_FLAG;
    }
}

/// Whether entries were lost and software has not acknowledged it.
pub(super) const fn has_overflowed(queue: &Queue) -> bool {
    (queue.prod ^ queue.cons) & OVERFLOW_FLAG != 0
}
