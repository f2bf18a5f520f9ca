//! The command queue (SMMU 3.5, 4), for many producers.
//!
//! A batch of commands is appended together with one CMD_SYNC, and is done when CMDQ_CONS has passed
//! that: a unit begins nothing behind a CMD_SYNC before all in front of it is complete (4.7.3). So
//! batches are done in order, and one reading of CMDQ_CONS tells all who wait. Nothing is written to
//! memory for them: with a message to poll instead of the register, each batch would need a place of its
//! own, and a unit that fails has two stories to tell.
//!
//! Producers take a lock for as long as they write a batch. Two that do nothing else take no longer than
//! Linux's, which reserve their slots without one.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod recovery;
mod ring;
mod site;
mod state;

use core::mem::ManuallyDrop;
use core::time::Duration;

#[cfg(order_mutants)]
pub use self::site::SITES;
use self::state::{Mode, State};
use super::SmmuRegisters;
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::Command;
use crate::arch::smmuv3::layout::commands::Completion;
use crate::arch::smmuv3::layout::registers::CONS_RESERVED;
use crate::error::{Error, InvalidReason, InvalidationReason, Result, WaitReason};
use crate::hwmem::{ENTRIES_PER_FRAME_LOG2, FrameTable};
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use crate::sync::{Lock, wait_until};

/// The most failures that no waiter has taken notice of; one more fences the queue.
pub const MAX_FAILURES: usize = 16;
/// The most devices that did not answer and were not [taken](CommandQueue::take_silent_devices); one more
/// fences the queue.
pub const MAX_SILENT_DEVICES: usize = 16;
/// Binary logarithm of the most commands that a queue can hold (SMMU 3.5.1).
pub const MAX_LOG2_ENTRIES: u8 = 19;
/// How many turns of a waiting loop pass between two looks at the global errors.
#[cfg(not(loom))]
const TURNS_PER_LOOK: u32 = 128;
#[cfg(loom)]
const TURNS_PER_LOOK: u32 = 1;

/// How a [`CommandQueue`] is made.
///
/// ```
/// use iommu::arch::smmuv3::driver::QueueConfig;
/// assert_eq!(QueueConfig::default().log2_entries, 8); // one frame
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueConfig {
    /// Binary logarithm of its commands, 1 to [`MAX_LOG2_ENTRIES`] and at most what the unit says
    /// (IDR1.CMDQS).
    pub log2_entries: u8,
    /// Whether the unit snoops the caches when it reads the queue (IDR0.COHACC).
    pub coherency: WalkerCoherency,
    /// How long a batch may take before the queue is fenced. Devices may answer a CMD_ATC_INV late; to
    /// be told of one that does not answer at all, a kernel waits longer than the root complex does.
    pub limit: Duration,
    /// The last physical address that the unit reaches.
    pub last: PhysAddr,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            log2_entries: 8,
            coherency: WalkerCoherency::Snoops,
            limit: Duration::from_secs(1),
            last: PhysAddr::new(u64::MAX),
        }
    }
}

/// Stands for a batch in the queue; [`CommandQueue::wait`] turns it into the outcome.
///
/// Dropping it is allowed, but a failure of the batch then stays recorded until the queue is reset,
/// and what was to be invalidated must not be taken for gone.
#[derive(Debug)]
#[must_use = "the commands are not known to be done before `CommandQueue::wait`"]
pub struct Ticket {
    /// Position after the last command.
    pub(super) end: u64,
}

/// The command queue of one unit.
///
/// All methods are to be called with the registers of the same unit. [`submit`](Self::submit) and
/// [`wait`](Self::wait) may be called in any context; nothing is locked while they wait.
///
/// ```
/// use iommu::Result;
/// use iommu::arch::smmuv3::driver::{CommandQueue, SmmuRegisters};
/// use iommu::arch::smmuv3::layout::Command;
/// use iommu::platform::Platform;
///
/// fn invalidate_everything<P: Platform>(unit: &SmmuRegisters<P>, queue: &CommandQueue<P>) -> Result<()> {
///     let ticket = queue.submit(unit, &[Command::ConfigAll, Command::TlbNsnhAll])?;
///     // ... whatever else there is to do ...
///     queue.wait(unit, ticket)
/// }
/// ```
#[derive(Debug)]
pub struct CommandQueue<P: Platform> {
    platform: P,
    ring: ManuallyDrop<FrameTable<P>>,
    log2_entries: u8,
    coherency: WalkerCoherency,
    limit: Duration,
    /// Position after the newest batch. Written under the lock.
    submitted: AtomicU64,
    /// What the unit is known to have consumed; it may be further. Never goes back, and never lies more
    /// than a ring behind `submitted`.
    consumed: AtomicU64,
    /// Batches up to this position were given up by a reset. Written under the lock.
    given_up: AtomicU64,
    /// Whether a waiter must look into the state: something failed, or the queue does not run.
    /// Written under the lock.
    attention: AtomicBool,
    /// Guards the ring and CMDQ_PROD. Innermost, but for that of the registers.
    state: Lock<State>,
}

/// What came of an attempt to append a batch. Small enough for registers: a `Result` goes through memory.
enum Appended {
    /// It ends at this position.
    Batch(u64),
    NoRoom,
    Fenced,
}

impl Appended {
    /// `None` when there is no room.
    fn outcome(self) -> Option<Result<Ticket>> {
        match self {
            Self::Batch(end) => Some(Ok(Ticket { end })),
            Self::Fenced => Some(Err(Error::Fenced)),
            Self::NoRoom => None,
        }
    }
}

impl<P: Platform> CommandQueue<P> {
    /// Memory for a queue, which is not [started](Self::start) yet.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::Configuration`] for a size that is none.
    pub fn new(platform: P, config: QueueConfig) -> Result<Self> {
        if !(1..=MAX_LOG2_ENTRIES).contains(&config.log2_entries) {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        // Two words each.
        let order = config.log2_entries.saturating_add(1).saturating_sub(ENTRIES_PER_FRAME_LOG2);
        let ring = FrameTable::new(platform.clone(), order, config.last)?;
        Ok(Self {
            platform,
            ring: ManuallyDrop::new(ring),
            log2_entries: config.log2_entries,
            coherency: config.coherency,
            limit: config.limit,
            submitted: AtomicU64::new(0),
            consumed: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            attention: AtomicBool::new(true),
            state: Lock::new(State::new()),
        })
    }

    /// Appends `commands` and a CMD_SYNC for all of them. *Any context.*
    ///
    /// `commands` may have a CMD_SYNC within, where some are to be complete before others begin. Waits for
    /// room when the queue is full. Commands that would not fit at once are split, and all but the last
    /// part are waited for; if such a part fails, the rest is not submitted.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the queue does not run; [`Error::TimedOut`] when no room came free;
    /// [`InvalidReason::Configuration`] for a CMD_SYNC that tells of its completion.
    pub fn submit(&self, unit: &SmmuRegisters<P>, commands: &[Command]) -> Result<Ticket> {
        if commands.iter().any(signals) {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        let mut rest = commands;
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
    /// [`Error::Invalidation`] with what became of the batch: [`Refused`](InvalidationReason::Refused) with
    /// the command that the unit did not take; [`DeviceTimeOut`](InvalidationReason::DeviceTimeOut) with
    /// the first CMD_ATC_INV of which it is not known whether the device answered, all of which are in
    /// [`take_silent_devices`](Self::take_silent_devices); [`TimedOut`](InvalidationReason::TimedOut) when
    /// its bound passed, which fences the queue. [`Error::Fenced`] when the queue was fenced or reset before
    /// the batch was known to be done. Whatever the error, nothing in the batch may be taken for done.
    pub fn wait(&self, unit: &SmmuRegisters<P>, ticket: Ticket) -> Result<()> {
        if self.is_simply_done(unit, ticket.end) { Ok(()) } else { self.wait_longer(unit, ticket.end) }
    }

    /// Waits for a batch that is not done yet, or of which something else is to be told.
    #[inline(never)]
    fn wait_longer(&self, unit: &SmmuRegisters<P>, end: u64) -> Result<()> {
        let (mut turn, mut seen) = (0u32, 0);
        let found = wait_until(&self.platform, self.limit, WaitReason::QueueSpace, || {
            self.look_now_and_then(unit, &mut turn);
            // The register is read for all: who sees that another has done so need not.
            let consumed = self.consumed.load(Ordering::Acquire);
            let consumed = if consumed == seen { self.refresh(unit) } else { consumed };
            seen = consumed;
            self.find(consumed, end)
        });
        found.or_else(|_late| {
            self.recover(unit);
            self.find(self.refresh(unit), end).ok_or_else(|| self.give_up())
        })?
    }

    /// Whether [`wait`](Self::wait) would return at once. *Any context.*
    pub fn is_done(&self, unit: &SmmuRegisters<P>, ticket: &Ticket) -> bool {
        let completed = self.refresh(unit) >= ticket.end;
        if !self.attention.load(Ordering::Acquire) {
            return completed;
        }
        let state = self.state.lock(&self.platform);
        completed || state.mode != Mode::Running || state.failure(ticket.end).is_some()
    }

    /// Submits and waits. *Any context.*
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit) and [`wait`](Self::wait).
    pub fn run(&self, unit: &SmmuRegisters<P>, commands: &[Command]) -> Result<()> {
        let ticket = self.submit(unit, commands)?;
        self.wait(unit, ticket)
    }

    /// The most commands that are submitted in one go.
    pub fn largest_batch(&self) -> usize {
        self.entries().wrapping_sub(1) as usize
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

    /// What the unit is known to have consumed, by a look at CMDQ_CONS.
    fn refresh(&self, unit: &SmmuRegisters<P>) -> u64 {
        // In this order: the register is at `known` or further, by less than a round, or else what comes out
        // is too little.
        let known = self.consumed.load(Ordering::Acquire);
        let Some(position) = self.position(unit.command_cons(), known) else { return known };
        // What the unit did before is seen by whoever learns of it.
        fence(Ordering::Acquire);
        if position > known {
            self.consumed.fetch_max(position, Ordering::Release);
        }
        position
    }

    /// The first position from `known` on that CMDQ_CONS may stand for; `None` for what is no place in
    /// this queue.
    fn position(&self, cons: u32, known: u64) -> Option<u64> {
        let ahead = u64::from(cons).wrapping_sub(known) & self.index_mask();
        let position = known.wrapping_add(ahead);
        (cons & CONS_RESERVED == 0 && position <= self.submitted.load(Ordering::Acquire)).then_some(position)
    }

    /// Whether a batch is done, and nothing went wrong in the queue that a waiter must look at.
    fn is_simply_done(&self, unit: &SmmuRegisters<P>, end: u64) -> bool {
        // What is consumed first, as in `find`.
        (self.consumed.load(Ordering::Acquire) >= end || self.refresh(unit) >= end)
            && end > self.given_up.load(Ordering::Acquire)
            && !self.attention.load(Ordering::Acquire)
    }

    /// What became of a batch, if anything has. A failure is forgotten by being found. What is `consumed`
    /// was read before: failures and resets are recorded before the unit passes them.
    fn find(&self, consumed: u64, end: u64) -> Option<Result<()>> {
        let completed = consumed >= end;
        if end <= self.given_up.load(Ordering::Acquire) {
            return Some(Err(Error::Fenced));
        }
        if self.attention.load(Ordering::Acquire) {
            let mut state = self.state.lock(&self.platform);
            if let Some(error) = state.failure(end) {
                state.forget(end);
                self.update_attention(&state);
                return Some(Err(error));
            }
            if !completed && state.mode != Mode::Running {
                return Some(Err(Error::Fenced));
            }
        }
        completed.then_some(Ok(()))
    }

    #[inline(never)]
    fn update_attention(&self, state: &State) {
        self.attention.store(state.mode != Mode::Running || state.has_failures(), Ordering::Release);
    }

    #[inline(never)]
    fn fence_locked(&self, state: &mut State) {
        if state.mode == Mode::Running {
            state.mode = Mode::Fenced;
            self.update_attention(state);
        }
    }

    fn look_now_and_then(&self, unit: &SmmuRegisters<P>, turn: &mut u32) {
        *turn = turn.wrapping_add(1);
        if turn.is_multiple_of(TURNS_PER_LOOK) {
            self.recover(unit);
        }
    }

    fn submit_part(&self, unit: &SmmuRegisters<P>, commands: &[Command]) -> Result<Ticket> {
        match self.append(unit, commands) {
            Appended::Batch(end) => Ok(Ticket { end }),
            Appended::Fenced => Err(Error::Fenced),
            Appended::NoRoom => self.submit_later(unit, commands),
        }
    }

    /// Waits for room.
    #[inline(never)]
    fn submit_later(&self, unit: &SmmuRegisters<P>, commands: &[Command]) -> Result<Ticket> {
        let (mut turn, mut seen) = (0u32, self.refresh(unit));
        let room = wait_until(&self.platform, self.limit, WaitReason::QueueSpace, || {
            self.look_now_and_then(unit, &mut turn);
            let consumed = self.refresh(unit);
            if consumed == seen && !turn.is_multiple_of(TURNS_PER_LOOK) {
                return None;
            }
            seen = consumed;
            self.append(unit, commands).outcome()
        });
        match room {
            Ok(outcome) => outcome,
            Err(late) => {
                self.recover(unit);
                self.append(unit, commands).outcome().unwrap_or(Err(late))
            }
        }
    }

    /// Appends a batch and its CMD_SYNC, with one write of CMDQ_PROD.
    fn append(&self, unit: &SmmuRegisters<P>, commands: &[Command]) -> Appended {
        let mut state = self.state.lock(&self.platform);
        if state.mode != Mode::Running {
            return Appended::Fenced;
        }
        let needed = (commands.len() as u64).wrapping_add(1);
        if !self.has_room(unit, &mut state, needed) {
            return Appended::NoRoom;
        }
        let begin = state.tail;
        for command in commands {
            self.write(state.tail, command.encode());
            state.tail = state.tail.wrapping_add(1);
        }
        self.write_end(state.tail);
        state.tail = state.tail.wrapping_add(1);
        self.clean(site::COMMANDS_CLEAN, begin, state.tail);
        self.submitted.store(state.tail, Ordering::Release);
        // Everything stored before, tables included: a unit that has seen CMDQ_PROD sees it (3.5.2).
        site::COMMANDS.publish(&self.platform);
        unit.set_command_prod((state.tail & self.index_mask()) as u32);
        Appended::Batch(state.tail)
    }

    /// Whether so many slots are free, or become so: those of whole batches that the unit has consumed. A
    /// batch stays until then, for what failed in it is to be told.
    fn has_room(&self, unit: &SmmuRegisters<P>, state: &mut State, needed: u64) -> bool {
        let has_room = |state: &State| state.used().saturating_add(needed) <= self.entries();
        has_room(state) || {
            let consumed = self.refresh(unit);
            // Not all of them at once: the caller has interrupts disabled.
            while !has_room(state)
                && let Some(end) = self.end_of_batch(state.freed, state.tail).filter(|end| *end <= consumed)
            {
                state.freed = end;
            }
            has_room(state)
        }
    }

    /// A batch passed its bound: fences the queue and tells why.
    #[cold]
    fn give_up(&self) -> Error {
        let mut state = self.state.lock(&self.platform);
        self.fence_locked(&mut state);
        let request = self.suspect(&state);
        Error::Invalidation { reason: InvalidationReason::TimedOut, request }
    }
}

/// Whether a command is a CMD_SYNC that tells somebody of its completion.
fn signals(command: &Command) -> bool {
    matches!(command, Command::Sync { completion: Completion::Interrupt { .. } | Completion::Event })
}

impl<P: Platform> Drop for CommandQueue<P> {
    fn drop(&mut self) {
        if self.state.get_mut().exposed {
            return; // The unit may still read this memory: it is lost.
        }
        // SAFETY: dropped here and nowhere else, and not used afterwards. No unit knows the memory:
        // it was never told, or the queue was stopped.
        unsafe { ManuallyDrop::drop(&mut self.ring) }
    }
}
