//! What the lock of a queue guards.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::{MAX_FAILURES, MAX_SILENT_DEVICES};
use crate::arch::smmuv3::layout::StreamId;
use crate::error::Error;

/// What becomes of new batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// The queue is off.
    Stopped,
    /// Being started, stopped or reset.
    Changing,
    Running,
    /// Something is wrong with it; only a reset helps.
    Fenced,
}

/// Positions count commands from the first start on; a slot is a position modulo the length.
#[derive(Debug)]
pub(super) struct State {
    pub(super) mode: Mode,
    /// Whether the unit may know where the ring is.
    pub(super) exposed: bool,
    /// Position after the newest command.
    pub(super) tail: u64,
    /// Where a batch begins; those before it are done, and their slots free.
    pub(super) freed: u64,
    /// Batches that failed, by the position after their last command.
    failures: heapless::Vec<(u64, Error), MAX_FAILURES>,
    /// The batch that failed last: the unit may not have passed it yet, but its outcome is recorded.
    pub(super) settled: Option<u64>,
    pub(super) silent: heapless::Vec<StreamId, MAX_SILENT_DEVICES>,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            mode: Mode::Stopped,
            exposed: false,
            tail: 0,
            freed: 0,
            failures: heapless::Vec::new(),
            settled: None,
            silent: heapless::Vec::new(),
        }
    }

    /// Commands between `freed` and `tail`.
    pub(super) fn used(&self) -> u64 {
        self.tail.wrapping_sub(self.freed)
    }

    pub(super) fn failure(&self, batch: u64) -> Option<Error> {
        self.failures.iter().find(|(of, _)| *of == batch).map(|(_, error)| *error)
    }

    pub(super) fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Records that a batch failed; `None` when the list is full.
    pub(super) fn record(&mut self, batch: u64, error: Error) -> Option<()> {
        self.failures.push((batch, error)).ok()
    }

    pub(super) fn forget(&mut self, batch: u64) {
        self.failures.retain(|(of, _)| *of != batch);
    }

    pub(super) fn forget_all(&mut self) {
        self.failures.clear();
    }

    /// Notes a device that did not answer; `None` when the list is full.
    pub(super) fn note_silent(&mut self, stream: StreamId) -> Option<()> {
        if self.silent.contains(&stream) { Some(()) } else { self.silent.push(stream).ok() }
    }
}
