//! What the invalidation queue does when the unit stops, and how it is turned on and off.
//!
//! A unit stops fetching at a descriptor that it refuses (IQE) and when a device does not answer
//! (ITE); both keep all other producers waiting, so whoever notices first repairs the queue for all
//! (VT-d 6.5.2.11).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::Queue;
use super::state::{Fate, Mode, State};
use crate::arch::vtd::driver::{UnitRegisters, site};
use crate::arch::vtd::layout::Descriptor;
use crate::arch::vtd::layout::descriptors::kind;
use crate::arch::vtd::layout::registers::{FaultStatus, Global, offset};
use crate::error::{BusyReason, Error, InvalidationReason, Result, WaitReason};
use crate::platform::{Platform, Registers};
use crate::sync::atomic::Ordering;
use crate::sync::wait_until;

impl<P: Platform> Queue<P> {
    /// Looks at the fault status and repairs the queue if it stands. Waiters do this themselves; a
    /// fault interrupt may do it earlier. *Any context.*
    ///
    /// - *Queue error*: the refused request is replaced by a wait. Its batch fails, others go on.
    /// - *Time-out*: the batch with the device that did not answer fails. What the unit may have
    ///   dropped of other batches is appended anew.
    /// - *Completion error*: noted. The unit goes on by itself, and times out if the answer was lost.
    #[inline(never)]
    pub fn recover(&self, unit: &UnitRegisters<P>) {
        if !unit.fault_status().intersects(FaultStatus::QUEUE) {
            return;
        }
        let mut state = self.state.lock(unit.platform());
        if state.mode != Mode::Running {
            return;
        }
        let status = unit.fault_status() & FaultStatus::QUEUE;
        if status.is_empty() {
            return; // Somebody was faster.
        }
        // What is done is done, even if its status write is still under way.
        if !site::STATUS_WRITES.is_skipped() {
            unit.push_status_writes();
        }
        state.reclaim(self.completed());
        if status.contains(FaultStatus::ICE) {
            state.broken = Some(state.freed_sequence.wrapping_add(1));
        }
        if status.intersects(FaultStatus::IQE | FaultStatus::ITE) {
            let Some(head) = self.head(unit, &state) else {
                return self.fence_locked(&mut state); // Not a place in this queue.
            };
            if status.contains(FaultStatus::IQE) && self.replace_refused(&mut state, head).is_none() {
                return self.fence_locked(&mut state);
            }
            if status.contains(FaultStatus::ITE) && self.resubmit(unit, &mut state, head).is_none() {
                return self.fence_locked(&mut state);
            }
            self.update_attention(&state);
        }
        // Failures are recorded and the ring is repaired: the unit may go on. It takes up work only
        // when the tail is written again.
        site::RECOVERY.publish(unit.platform());
        unit.clear_fault_status(status);
        unit.set_queue_tail(self.offset(state.tail));
    }

    /// Turns queued invalidation on, whatever was before. *Task only.*
    ///
    /// # Errors
    /// [`Error::TimedOut`] and [`Error::NoDevice`] from the commands; [`BusyReason::Changing`] while
    /// another call is at it; [`BusyReason::InUse`] if it runs already; [`Error::Fenced`] after a
    /// failure ([`reset`](Self::reset) is for that).
    pub fn start(&self, unit: &UnitRegisters<P>) -> Result<()> {
        match self.begin_change(Mode::Stopped) {
            Ok(()) => {}
            Err(Mode::Running) => return Err(Error::Busy(BusyReason::InUse)),
            Err(Mode::Fenced) => return Err(Error::Fenced),
            Err(_) => return Err(Error::Busy(BusyReason::Changing)),
        }
        let started = self.turn_off(unit).and_then(|()| self.turn_on(unit));
        self.end_change(if started.is_ok() { Mode::Running } else { Mode::Stopped });
        started
    }

    /// Turns queued invalidation off, after all that was submitted. *Task only.* Nothing happens if
    /// it is off.
    ///
    /// # Errors
    /// As for [`start`](Self::start); the queue is fenced then.
    pub fn stop(&self, unit: &UnitRegisters<P>) -> Result<()> {
        // The queue is quiet when the last thing it did was a wait (VT-d 6.5.2).
        if self.is_running() && !site::STOP_REQUEST.is_skipped() {
            let _ = self.run(unit, &[]);
        }
        match self.begin_change(Mode::Running) {
            Ok(()) => {}
            Err(Mode::Stopped) => return Ok(()),
            Err(Mode::Fenced) => match self.begin_change(Mode::Fenced) {
                Ok(()) => {}
                Err(_) => return Err(Error::Busy(BusyReason::Changing)),
            },
            Err(_) => return Err(Error::Busy(BusyReason::Changing)),
        }
        let stopped = self.turn_off(unit);
        if stopped.is_ok() {
            self.state.lock(unit.platform()).exposed = false;
        }
        self.end_change(if stopped.is_ok() { Mode::Stopped } else { Mode::Fenced });
        stopped
    }

    /// Gives up everything in flight, and starts anew after the queue was fenced. *Task only.*
    ///
    /// Nothing that was in flight may be taken for invalidated: the caller owes a global
    /// invalidation before it uses again what it kept back.
    ///
    /// # Errors
    /// As for [`start`](Self::start); the queue stays fenced then.
    pub fn reset(&self, unit: &UnitRegisters<P>) -> Result<()> {
        self.fence();
        match self.begin_change(Mode::Fenced) {
            Ok(()) => {}
            Err(Mode::Stopped) => return self.start(unit),
            Err(_) => return Err(Error::Busy(BusyReason::Changing)),
        }
        let restarted = self.turn_off(unit).and_then(|()| self.turn_on(unit));
        self.end_change(if restarted.is_ok() { Mode::Running } else { Mode::Fenced });
        restarted
    }

    /// First quadword of the request that the queue probably stands at: the first one to a device in
    /// the oldest batch, or the first one.
    pub(super) fn suspect(&self, state: &State) -> u64 {
        let end = state.end(state.freed_sequence.wrapping_add(1));
        let batch = || self.range(state.freed, end);
        let request = batch().find(is_for_device).or_else(|| batch().next());
        request.map_or(0, |request| request.words[0])
    }

    /// The position of IQH, if it is between `freed` and `tail`.
    fn head(&self, unit: &UnitRegisters<P>, state: &State) -> Option<u32> {
        let slot = unit.queue_head() >> self.width.shift();
        let ahead = self.slot(slot.wrapping_sub(state.freed));
        (ahead <= state.used()).then(|| state.freed.wrapping_add(ahead))
    }

    /// The descriptors from one position to before another, at most a ring full.
    fn range(&self, from: u32, to: u32) -> impl Iterator<Item = Descriptor> {
        let count = to.wrapping_sub(from).min(self.entries());
        (0..count).map(move |index| self.read(from.wrapping_add(index)))
    }

    /// Records that the batch of the descriptor at `head`, which the unit refused, failed; waits take
    /// the place of the descriptor and of what follows in the batch. `None` when that does not help.
    fn replace_refused(&self, state: &mut State, head: u32) -> Option<()> {
        if head == state.tail {
            return None; // There is nothing to refuse.
        }
        let sequence = self.batch_of(state, head)?;
        // A unit that refuses the waits that end batches or stand in for requests cannot be driven.
        if head.wrapping_add(1) == state.end(sequence) || state.settled == Some(sequence) {
            return None;
        }
        let [request, ..] = self.read(head).words;
        state.record(sequence, failure(InvalidationReason::Refused, request))?;
        self.settle(state, sequence, head);
        Some(())
    }

    /// The batch that the descriptor at `position` belongs to.
    fn batch_of(&self, state: &State, position: u32) -> Option<u64> {
        let ahead = position.wrapping_sub(state.freed);
        (state.freed_sequence.wrapping_add(1)..=self.submitted.load(Ordering::Relaxed))
            .find(|&sequence| ahead < state.end(sequence).wrapping_sub(state.freed))
    }

    /// The outcome of a batch is recorded although the unit has yet to fetch what stands from `head`
    /// on: waits take the place of that, so that it has no second outcome.
    fn settle(&self, state: &mut State, sequence: u64, head: u32) {
        let wait = state.end(sequence).wrapping_sub(1);
        for index in 0..wait.wrapping_sub(head) {
            self.write(head.wrapping_add(index), &self.idle_wait());
        }
        state.settled = Some(sequence);
    }

    /// After a time-out: what the unit has fetched (what lies before `head`) and is not known to be
    /// done may never be. The batch of the device that did not answer fails, each other one is
    /// appended anew. `None` when that cannot be recorded.
    fn resubmit(&self, unit: &UnitRegisters<P>, state: &mut State, head: u32) -> Option<()> {
        let begin = state.freed;
        let fetched = head.wrapping_sub(begin);
        let first = state.freed_sequence.wrapping_add(1);
        let newest = self.submitted.load(Ordering::Relaxed);
        let named = self.named_device(unit, begin, head);
        let mut culprit_known = false;
        let mut from = 0;
        // Slots before the head are free now. Copies go into the slots that are always kept free,
        // then behind what is read next: no batch needs more slots than it had.
        state.freed = head;
        for sequence in first..=newest {
            if from >= fetched {
                break;
            }
            let end = state.end(sequence).wrapping_sub(begin);
            let start = begin.wrapping_add(from);
            from = end;
            let is_settled = state.settled == Some(sequence) || state.fate(sequence).is_some();
            let to = begin.wrapping_add(end.min(fetched));
            let culprit = self
                .range(start, to)
                .find(|request| is_for_device(request) && (named.is_none() || source(request) == named))
                .filter(|_| !culprit_known)
                .map(|request| request.words[0]);
            culprit_known |= culprit.is_some();
            if !is_settled {
                let fate = match culprit {
                    Some(request) => failure(InvalidationReason::DeviceTimeOut, request),
                    None => self.copy_batch(state, start, begin.wrapping_add(end).wrapping_sub(1)),
                };
                state.record(sequence, fate)?;
            }
            if end <= fetched {
                state.freed_sequence = sequence;
            } else if !is_settled {
                self.settle(state, sequence, head);
            }
        }
        Some(())
    }

    /// Appends the requests between two positions anew, as a batch. Without room for it, which can
    /// only be if the unit has fetched the old batch in part, that one has failed.
    fn copy_batch(&self, state: &mut State, from: u32, to: u32) -> Fate {
        let count = to.wrapping_sub(from);
        if state.used().saturating_add(count).saturating_add(1) >= self.entries() {
            let [request, ..] = self.read(from).words;
            return failure(InvalidationReason::TimedOut, request);
        }
        for index in 0..count {
            let request = self.read(from.wrapping_add(index));
            self.write(state.tail, &request);
            state.tail = state.tail.wrapping_add(1);
        }
        let copy = self.submitted.load(Ordering::Relaxed).wrapping_add(1);
        self.finish_batch(state, copy);
        Fate::Moved(copy)
    }

    /// The device that the unit names as the one that did not answer, if a request between two
    /// positions went to it.
    fn named_device(&self, unit: &UnitRegisters<P>, from: u32, to: u32) -> Option<u16> {
        let named = unit.queue_error().timed_out_source();
        named.filter(|_| self.range(from, to).any(|request| source(&request) == named))
    }

    #[inline(never)]
    fn begin_change(&self, from: Mode) -> Result<(), Mode> {
        let mut state = self.state.lock(self.platform());
        if state.mode != from {
            return Err(state.mode);
        }
        state.mode = Mode::Changing;
        self.update_attention(&state);
        Ok(())
    }

    #[inline(never)]
    fn end_change(&self, to: Mode) {
        let mut state = self.state.lock(self.platform());
        state.mode = to;
        self.update_attention(&state);
    }

    /// Lets the queue that the unit has run dry, this one or a predecessor's, and turns it off.
    fn turn_off(&self, unit: &UnitRegisters<P>) -> Result<()> {
        if !unit.status()?.contains(Global::QIE) {
            return Ok(());
        }
        // If it does not run dry, it is turned off all the same, as far as the unit lets itself.
        let _ = wait_until(unit.platform(), self.limit, WaitReason::Register, || {
            if site::DRY_WAIT.is_skipped() || unit.queue_head() == unit.raw().read32(offset::IQT) {
                return Some(());
            }
            let status = unit.fault_status() & FaultStatus::QUEUE;
            if !status.is_empty() {
                self.pass_over(unit, status);
            }
            None
        });
        unit.disable_queue()
    }

    /// Makes a unit that stands at an error go on, in a queue that is given up.
    fn pass_over(&self, unit: &UnitRegisters<P>, status: FaultStatus) {
        let state = self.state.lock(unit.platform());
        if state.exposed {
            // The waits that come through now stand for requests that the unit has not executed.
            self.given_up.store(self.submitted.load(Ordering::Relaxed), Ordering::Release);
            if status.contains(FaultStatus::IQE)
                && let Some(head) = self.head(unit, &state)
            {
                self.write(head, &self.idle_wait());
            }
        }
        let tail = unit.raw().read32(offset::IQT);
        site::GIVEN_UP.publish(unit.platform());
        unit.clear_fault_status(status);
        unit.set_queue_tail(tail);
    }

    fn turn_on(&self, unit: &UnitRegisters<P>) -> Result<()> {
        let mut state = self.state.lock(unit.platform());
        let submitted = self.submitted.load(Ordering::Relaxed);
        if self.completed() != submitted {
            // What was in flight is given up, before the status word passes it.
            self.given_up.store(submitted, Ordering::Release);
            state.failures.fill(None);
        }
        self.set_completed();
        state.tail = 0;
        state.freed = 0;
        state.freed_sequence = submitted;
        state.set_end(submitted, 0);
        state.settled = None;
        state.broken = None;
        state.exposed = true;
        drop(state);
        unit.clear_fault_status(FaultStatus::QUEUE);
        unit.enable_queue(self.address())
    }
}

fn failure(reason: InvalidationReason, request: u64) -> Fate {
    Fate::Failed(Error::Invalidation { reason, request })
}

fn is_for_device(request: &Descriptor) -> bool {
    matches!(request.kind(), kind::DEVICE_TLB | kind::PASID_DEVICE_TLB)
}

/// The device that a request with this first quadword goes to.
pub(in crate::arch::vtd::driver) fn device_of(request: u64) -> Option<u16> {
    source(&Descriptor { words: [request, 0, 0, 0] })
}

/// The device that a request goes to (VT-d 6.5.2.5, 6.5.2.6).
fn source(request: &Descriptor) -> Option<u16> {
    let [low, ..] = request.words;
    match request.kind() {
        kind::DEVICE_TLB => Some((low >> 32) as u16),
        kind::PASID_DEVICE_TLB => Some((low >> 16) as u16),
        _ => None,
    }
}
