//! What the lock of a queue guards.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::{MAX_BATCHES, MAX_FAILURES};
use crate::error::Error;

/// What becomes of new batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Queued invalidation is off.
    Stopped,
    /// Being started, stopped or reset.
    Changing,
    Running,
    /// Something is wrong with it; only a reset helps.
    Fenced,
}

/// What became of a batch that was not simply done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Failed(Error),
    /// It was appended anew, as part of this batch.
    Moved(u64),
}

/// Positions count descriptors since the start, and wrap; a slot is a position modulo the length.
#[derive(Debug)]
pub(super) struct State {
    pub(super) mode: Mode,
    /// Whether the unit may know where the ring is.
    pub(super) exposed: bool,
    /// Position after the newest descriptor.
    pub(super) tail: u32,
    /// Position of the oldest descriptor that is not known to be done.
    pub(super) freed: u32,
    /// Newest batch of which nothing is left in the ring.
    pub(super) freed_sequence: u64,
    /// Position after the wait of each batch in flight, by sequence number modulo the length.
    pub(super) ends: [u32; MAX_BATCHES],
    pub(super) failures: [Option<(u64, Fate)>; MAX_FAILURES],
    /// A batch that the unit has fetched in part, and whose outcome is recorded already.
    pub(super) settled: Option<u64>,
    /// The batch during which the unit reported a broken completion.
    pub(super) broken: Option<u64>,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            mode: Mode::Stopped,
            exposed: false,
            tail: 0,
            freed: 0,
            freed_sequence: 0,
            ends: [0; MAX_BATCHES],
            failures: [None; MAX_FAILURES],
            settled: None,
            broken: None,
        }
    }

    #[allow(clippy::indexing_slicing, reason = "the index is reduced modulo the length")]
    pub(super) fn end(&self, sequence: u64) -> u32 {
        self.ends[sequence as usize % MAX_BATCHES]
    }

    #[allow(clippy::indexing_slicing, reason = "the index is reduced modulo the length")]
    pub(super) fn set_end(&mut self, sequence: u64, end: u32) {
        self.ends[sequence as usize % MAX_BATCHES] = end;
    }

    /// Descriptors between `freed` and `tail`.
    pub(super) fn used(&self) -> u32 {
        self.tail.wrapping_sub(self.freed)
    }

    /// Takes note that everything up to this batch is done.
    pub(super) fn reclaim(&mut self, completed: u64) {
        if completed > self.freed_sequence {
            self.freed_sequence = completed;
            self.freed = self.end(completed);
        }
    }

    pub(super) fn fate(&self, sequence: u64) -> Option<Fate> {
        self.failures.iter().flatten().find(|(of, _)| *of == sequence).map(|(_, fate)| *fate)
    }

    /// Records what became of a batch, unless that is known already; `None` when the list is full.
    pub(super) fn record(&mut self, sequence: u64, fate: Fate) -> Option<()> {
        if self.fate(sequence).is_some() {
            return Some(());
        }
        let free = self.failures.iter_mut().find(|failure| failure.is_none())?;
        *free = Some((sequence, fate));
        Some(())
    }

    pub(super) fn forget(&mut self, sequence: u64) {
        for failure in &mut self.failures {
            if failure.is_some_and(|(of, _)| of == sequence) {
                *failure = None;
            }
        }
    }
}
