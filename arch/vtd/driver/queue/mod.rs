//! Queued invalidation (VT-d 6.5.2), for many producers.
//!
//! A batch of requests is appended together with one wait descriptor, which writes the batch's
//! *sequence number* to a status word that all waiters share: a batch is done when the status has
//! reached its number. That reading needs waits to complete in order, and each to stand for
//! everything before it; a wait alone stands only for what follows the previous wait, and later
//! requests may overtake it (6.5.2.12), so that every wait carries the fence flag.
//!
//! Queue and status word are snooped on every unit (11.4.3, C): no cache line is cleaned here.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod recovery;
mod ring;
mod state;

use core::mem::ManuallyDrop;
use core::time::Duration;

pub(super) use self::recovery::device_of;
use self::state::{Fate, Mode, State};
use super::{UnitRegisters, site};
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::Descriptor;
use crate::arch::vtd::layout::descriptors::kind;
use crate::arch::vtd::layout::registers::DescriptorWidth;
use crate::error::{Error, InvalidReason, InvalidationReason, Result, WaitReason};
use crate::hwmem::FrameTable;
use crate::platform::Platform;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Lock, wait_until};

/// The most batches in flight; when there are more, producers wait.
pub const MAX_BATCHES: usize = 128;
/// The most failures that no waiter has taken notice of; one more fences the queue.
pub const MAX_FAILURES: usize = 16;
/// Slots that stay free beside the one that tells a full queue from an empty one: recovery appends a
/// wait.
const RESERVED_SLOTS: u32 = 1;
/// How many turns of a waiting loop pass between two looks at the fault status register.
#[cfg(not(loom))]
const TURNS_PER_LOOK: u32 = 128;
#[cfg(loom)]
const TURNS_PER_LOOK: u32 = 1;
/// How often a batch may have to be repeated because a device did not answer to another.
const MAX_MOVES: u32 = 8;

/// How a [`Queue`] is made.
///
/// ```
/// use iommu::arch::vtd::driver::QueueConfig;
/// assert_eq!(QueueConfig::default().order, 0); // one frame: 256 descriptors of 128 bits
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueConfig {
    /// Width of the descriptors. Legacy mode takes either on a unit with scalable mode, and 128 bits
    /// on others; scalable mode needs 256.
    pub width: DescriptorWidth,
    /// log2 of the queue's frames, at most 7.
    pub order: u8,
    /// How long a batch may take before the queue is fenced. A device may answer to an invalidation
    /// late; the unit's own time-out, where it has one, should be shorter.
    pub limit: Duration,
    /// The last physical address that the unit reaches.
    pub last: PhysAddr,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { width: DescriptorWidth::Bits128, order: 0, limit: Duration::from_secs(1), last: PhysAddr::new(u64::MAX) }
    }
}

/// Stands for a batch in the queue; [`Queue::wait`] turns it into the outcome.
///
/// Dropping it is allowed, but a failure of the batch then stays recorded until the queue is reset,
/// and what was to be invalidated must not be taken for gone.
#[derive(Debug)]
#[must_use = "the invalidation is not known to be done before `Queue::wait`"]
pub struct Ticket {
    pub(super) sequence: u64,
}

/// The invalidation queue of one unit.
///
/// All methods are to be called with the registers of the same unit. [`submit`](Self::submit) and
/// [`wait`](Self::wait) may be called in any context; nothing is locked while they wait.
///
/// ```
/// use iommu::Result;
/// use iommu::arch::vtd::driver::{Queue, UnitRegisters};
/// use iommu::arch::vtd::layout::descriptors::{ContextScope, Drain, IotlbScope, Request};
/// use iommu::platform::Platform;
///
/// fn invalidate_everything<P: Platform>(unit: &UnitRegisters<P>, queue: &Queue<P>) -> Result<()> {
///     let context = Request::Context(ContextScope::Global).encode();
///     let iotlb = Request::Iotlb(IotlbScope::Global, Drain::READS | Drain::WRITES).encode();
///     let ticket = queue.submit(unit, &[context, iotlb])?;
///     // ... whatever else there is to do ...
///     queue.wait(unit, ticket)
/// }
/// ```
#[derive(Debug)]
pub struct Queue<P: Platform> {
    platform: P,
    ring: ManuallyDrop<FrameTable<P>>,
    /// Word 0 is the status word, word 1 takes the writes that nobody reads.
    status: ManuallyDrop<FrameTable<P>>,
    width: DescriptorWidth,
    order: u8,
    limit: Duration,
    /// Sequence number of the newest batch. Written under the lock.
    submitted: AtomicU64,
    /// Batches up to this one were given up by a reset. Written under the lock.
    given_up: AtomicU64,
    /// Whether a waiter must look into the state: something failed, or the queue does not run.
    /// Written under the lock.
    attention: AtomicBool,
    /// Guards the ring and IQT. Innermost: nothing else is locked under it.
    state: Lock<State>,
}

/// What a waiter finds.
enum Found {
    Outcome(Result<()>),
    Moved(u64),
}

/// What came of an attempt to append a batch. Small enough for registers: a `Result` goes through memory.
enum Appended {
    /// It has this sequence number.
    Batch(u64),
    NoRoom,
    Fenced,
}

impl Appended {
    /// `None` when there is no room.
    fn outcome(self) -> Option<Result<Ticket>> {
        match self {
            Self::Batch(sequence) => Some(Ok(Ticket { sequence })),
            Self::Fenced => Some(Err(Error::Fenced)),
            Self::NoRoom => None,
        }
    }
}

impl<P: Platform> Queue<P> {
    /// Memory for a queue, which is not [started](Self::start) yet.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::Configuration`] for an order above 7.
    pub fn new(platform: P, config: QueueConfig) -> Result<Self> {
        if config.order > 7 {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        let ring = FrameTable::new(platform.clone(), config.order, config.last)?;
        let status = FrameTable::new(platform.clone(), 0, config.last)?;
        Ok(Self {
            platform,
            ring: ManuallyDrop::new(ring),
            status: ManuallyDrop::new(status),
            width: config.width,
            order: config.order,
            limit: config.limit,
            submitted: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            attention: AtomicBool::new(true),
            state: Lock::new(State::new()),
        })
    }

    /// Appends `requests` and one wait for all of them. *Any context.*
    ///
    /// Waits for room when the queue is full. Requests that would not fit at once are split, and all
    /// but the last part are waited for; if such a part fails, the rest is not submitted.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the queue does not run; [`Error::TimedOut`] when no room came free;
    /// [`InvalidReason::Configuration`] when a request is itself a wait.
    pub fn submit(&self, unit: &UnitRegisters<P>, requests: &[Descriptor]) -> Result<Ticket> {
        if requests.iter().any(|request| request.kind() == kind::WAIT) {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        let mut rest = requests;
        loop {
            let (part, later) = rest.split_at_checked(self.largest_batch()).unwrap_or((rest, &[]));
            let ticket = self.submit_part(unit, part)?;
            if later.is_empty() {
                return Ok(ticket);
            }
            self.wait(unit, ticket)?;
            rest = later;
        }
    }

    /// Waits until the batch is done, spinning. *Any context.*
    ///
    /// # Errors
    /// [`Error::Invalidation`] with what became of the batch; when its bound passed, the queue is
    /// fenced. [`Error::Fenced`] when the queue was fenced or reset before the batch was known to be
    /// done. Whatever the error, nothing in the batch may be taken for invalidated.
    pub fn wait(&self, unit: &UnitRegisters<P>, ticket: Ticket) -> Result<()> {
        if self.is_simply_done(ticket.sequence) { Ok(()) } else { self.wait_longer(unit, ticket.sequence) }
    }

    /// Waits for a batch that is not done yet, or of which something else is to be told.
    #[inline(never)]
    fn wait_longer(&self, unit: &UnitRegisters<P>, mut sequence: u64) -> Result<()> {
        for _move in 0..MAX_MOVES {
            let mut turn = 0u32;
            let found = wait_until(&self.platform, self.limit, WaitReason::QueueSpace, || {
                self.look_now_and_then(unit, &mut turn);
                self.find(sequence)
            });
            let found = found.ok().or_else(|| {
                self.recover(unit);
                self.find(sequence)
            });
            match found {
                Some(Found::Outcome(outcome)) => return outcome,
                Some(Found::Moved(to)) => sequence = to,
                None => return Err(self.give_up()),
            }
        }
        Err(self.give_up())
    }

    /// Whether [`wait`](Self::wait) would return at once. *Any context.*
    pub fn is_done(&self, ticket: &Ticket) -> bool {
        let completed = self.is_completed(ticket.sequence);
        if !self.attention.load(Ordering::Acquire) {
            return completed;
        }
        let state = self.state.lock(&self.platform);
        let mut sequence = ticket.sequence;
        while let Some(fate) = state.fate(sequence) {
            match fate {
                // Always to a newer one, so that this ends.
                Fate::Moved(to) => sequence = to,
                Fate::Failed(_) => return true,
            }
        }
        state.mode != Mode::Running || self.is_completed(sequence)
    }

    /// Submits and waits. *Any context.*
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit) and [`wait`](Self::wait).
    pub fn run(&self, unit: &UnitRegisters<P>, requests: &[Descriptor]) -> Result<()> {
        let ticket = self.submit(unit, requests)?;
        self.wait(unit, ticket)
    }

    /// The most requests that are submitted in one go.
    pub fn largest_batch(&self) -> usize {
        // One slot for the wait, one to tell full from empty.
        self.entries().saturating_sub(RESERVED_SLOTS).saturating_sub(2) as usize
    }

    /// Refuses new batches until [`reset`](Self::reset); waiters get [`Error::Fenced`] unless their
    /// batch is done. *Any context.*
    pub fn fence(&self) {
        let mut state = self.state.lock(&self.platform);
        self.fence_locked(&mut state);
    }

    /// Whether the queue takes batches. *Any context.*
    pub fn is_running(&self) -> bool {
        self.state.lock(&self.platform).mode == Mode::Running
    }

    /// Whether the queue was fenced and not reset since. *Any context.*
    pub fn is_fenced(&self) -> bool {
        self.state.lock(&self.platform).mode == Mode::Fenced
    }

    fn platform(&self) -> &P {
        &self.platform
    }

    fn is_completed(&self, sequence: u64) -> bool {
        self.completed() >= sequence
    }

    /// Whether a batch is done, and nothing went wrong in the queue that a waiter must look at.
    fn is_simply_done(&self, sequence: u64) -> bool {
        // The status first, as in `find`.
        self.is_completed(sequence)
            && sequence > self.given_up.load(Ordering::Acquire)
            && !self.attention.load(Ordering::Acquire)
    }

    /// What became of a batch, if anything has. A failure is forgotten by being found.
    fn find(&self, sequence: u64) -> Option<Found> {
        // The status first: failures and resets are recorded before the status passes them.
        let completed = self.is_completed(sequence);
        if sequence <= self.given_up.load(Ordering::Acquire) {
            return Some(Found::Outcome(Err(Error::Fenced)));
        }
        if self.attention.load(Ordering::Acquire) {
            let mut state = self.state.lock(&self.platform);
            if let Some(fate) = state.fate(sequence) {
                state.forget(sequence);
                self.update_attention(&state);
                return Some(match fate {
                    Fate::Failed(error) => Found::Outcome(Err(error)),
                    Fate::Moved(to) => Found::Moved(to),
                });
            }
            if !completed && state.mode != Mode::Running {
                return Some(Found::Outcome(Err(Error::Fenced)));
            }
        }
        completed.then_some(Found::Outcome(Ok(())))
    }

    #[inline(never)]
    fn update_attention(&self, state: &State) {
        let attention = state.mode != Mode::Running || state.failures.iter().any(Option::is_some);
        self.attention.store(attention, Ordering::Release);
    }

    #[inline(never)]
    fn fence_locked(&self, state: &mut State) {
        if state.mode == Mode::Running {
            state.mode = Mode::Fenced;
            self.update_attention(state);
        }
    }

    fn look_now_and_then(&self, unit: &UnitRegisters<P>, turn: &mut u32) {
        *turn = turn.wrapping_add(1);
        if turn.is_multiple_of(TURNS_PER_LOOK) {
            self.recover(unit);
        }
    }

    fn submit_part(&self, unit: &UnitRegisters<P>, requests: &[Descriptor]) -> Result<Ticket> {
        match self.append(unit, requests) {
            Appended::Batch(sequence) => Ok(Ticket { sequence }),
            Appended::Fenced => Err(Error::Fenced),
            Appended::NoRoom => self.submit_later(unit, requests),
        }
    }

    /// Waits for room.
    #[inline(never)]
    fn submit_later(&self, unit: &UnitRegisters<P>, requests: &[Descriptor]) -> Result<Ticket> {
        let mut turn = 0u32;
        let mut seen = self.completed();
        let room = wait_until(&self.platform, self.limit, WaitReason::QueueSpace, || {
            self.look_now_and_then(unit, &mut turn);
            let completed = self.completed();
            if completed == seen && !turn.is_multiple_of(TURNS_PER_LOOK) {
                return None;
            }
            seen = completed;
            self.append(unit, requests).outcome()
        });
        match room {
            Ok(outcome) => outcome,
            Err(late) => {
                self.recover(unit);
                self.append(unit, requests).outcome().unwrap_or(Err(late))
            }
        }
    }

    /// Appends a batch and its wait, with one write of the tail.
    fn append(&self, unit: &UnitRegisters<P>, requests: &[Descriptor]) -> Appended {
        let mut state = self.state.lock(&self.platform);
        if state.mode != Mode::Running {
            return Appended::Fenced;
        }
        state.reclaim(self.completed());
        let sequence = self.submitted.load(Ordering::Relaxed).wrapping_add(1);
        let in_flight = sequence.wrapping_sub(state.freed_sequence) as usize;
        let needed = u32::try_from(requests.len()).unwrap_or(u32::MAX).saturating_add(1);
        let room = self.entries().saturating_sub(1).saturating_sub(RESERVED_SLOTS);
        // One place among the batches is recovery's, one holds where the oldest begins.
        if state.used().saturating_add(needed) > room || in_flight > MAX_BATCHES.wrapping_sub(2) {
            return Appended::NoRoom;
        }
        for request in requests {
            self.write(state.tail, request);
            state.tail = state.tail.wrapping_add(1);
        }
        self.finish_batch(&mut state, sequence);
        // Everything stored before, tables included: a unit that has seen the tail sees it.
        site::REQUESTS.publish(&self.platform);
        unit.set_queue_tail(self.offset(state.tail));
        Appended::Batch(sequence)
    }

    /// Appends the wait of a batch whose requests are written. The tail is still to be published.
    fn finish_batch(&self, state: &mut State, sequence: u64) {
        self.write(state.tail, &self.status_wait(sequence));
        state.tail = state.tail.wrapping_add(1);
        let end = state.tail;
        state.set_end(sequence, end);
        self.submitted.store(sequence, Ordering::Release);
    }

    /// A batch passed its bound: fences the queue and tells why.
    fn give_up(&self) -> Error {
        let mut state = self.state.lock(&self.platform);
        state.reclaim(self.completed());
        self.fence_locked(&mut state);
        // The oldest batch is what the queue stands at, whoever lost patience.
        let oldest = state.freed_sequence.wrapping_add(1);
        let reason = if state.broken == Some(oldest) {
            InvalidationReason::CompletionError
        } else {
            InvalidationReason::TimedOut
        };
        Error::Invalidation { reason, request: self.suspect(&state) }
    }
}

impl<P: Platform> Drop for Queue<P> {
    fn drop(&mut self) {
        if self.state.get_mut().exposed {
            return; // The unit may still read and write this memory: it is lost.
        }
        // SAFETY: dropped here and nowhere else, and not used afterwards. No unit knows the memory:
        // it was never told, or the queue was stopped.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            ManuallyDrop::drop(&mut self.status);
        }
    }
}
