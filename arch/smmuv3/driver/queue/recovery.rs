//! What the command queue does when the unit stops, and how it is turned on and off.
//!
//! A unit stops at a command that it cannot execute, and all who wait with it, until the error is
//! acknowledged; so whoever notices first repairs the queue for all (SMMU 7.1).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::ring::{SYNC, Words, opcode_of};
use super::state::{Mode, State};
use super::{CommandQueue, MAX_SILENT_DEVICES, site};
use crate::arch::smmuv3::driver::SmmuRegisters;
use crate::arch::smmuv3::layout::StreamId;
use crate::arch::smmuv3::layout::commands::opcode;
use crate::arch::smmuv3::layout::registers::{CommandError, Cr0, Gerror};
use crate::error::{BusyReason, Error, InvalidationReason, Result};
use crate::platform::Platform;
use crate::sync::atomic::Ordering;

impl<P: Platform> CommandQueue<P> {
    /// Looks at the global errors and repairs the queue if it stands. Waiters do this themselves; the
    /// handler of the error interrupt may do it earlier. *Any context.*
    ///
    /// - *CERROR_ILL*: the batch of the command fails: CMD_SYNCs take the place of it and of what follows in
    ///   its batch. Others go on.
    /// - *CERROR_ATC_INV_SYNC*: likewise, and the devices that may not have answered are noted. The unit
    ///   executes the CMD_SYNC anew.
    /// - *CERROR_ABT*, for then the memory of the queue is not what the unit reads, a CMD_SYNC that is
    ///   refused, and what the specification does not have: the queue is fenced. So it is by a unit in
    ///   service failure mode.
    #[inline(never)]
    pub fn recover(&self, unit: &SmmuRegisters<P>) {
        const CONCERNED: Gerror = Gerror::CMDQ_ERR.union(Gerror::SFM_ERR);
        if !unit.global_errors().intersects(CONCERNED) {
            return;
        }
        let mut state = self.state.lock(&self.platform);
        let errors = unit.global_errors() & CONCERNED;
        if state.mode != Mode::Running || errors.is_empty() {
            return; // Nobody's business, or somebody was faster.
        }
        if errors.contains(Gerror::SFM_ERR) || self.repair(unit, &mut state).is_none() {
            // An error is left as it is, lest the unit goes on.
            return self.fence_locked(&mut state);
        }
        self.update_attention(&state);
        // The failure is recorded and the ring is repaired: the unit may go on.
        site::RECOVERY.publish(&self.platform);
        unit.acknowledge(Gerror::CMDQ_ERR);
    }

    /// Devices that did not answer to a CMD_ATC_INV since this was asked last: nothing that their TLBs hold
    /// may be relied on. The unit does not say which of several it was, so that all that were asked are
    /// among them. *Any context.*
    pub fn take_silent_devices(&self) -> heapless::Vec<StreamId, MAX_SILENT_DEVICES> {
        core::mem::take(&mut self.state.lock(&self.platform).silent)
    }

    /// Turns the queue on, whatever was before. The attributes of its accesses (CR1) are set. *Task
    /// only.*
    ///
    /// # Errors
    /// [`Error::TimedOut`] and [`Error::NoDevice`] from the commands; [`BusyReason::Changing`] while
    /// another call is at it; [`BusyReason::InUse`] if it runs already; [`Error::Fenced`] after a
    /// failure ([`reset`](Self::reset) is for that).
    pub fn start(&self, unit: &SmmuRegisters<P>) -> Result<()> {
        match self.begin_change(Mode::Stopped) {
            Ok(()) => {}
            Err(Mode::Running) => return Err(Error::Busy(BusyReason::InUse)),
            Err(Mode::Fenced) => return Err(Error::Fenced),
            Err(_) => return Err(Error::Busy(BusyReason::Changing)),
        }
        let started = unit.turn_off(Cr0::CMDQEN).and_then(|()| self.turn_on(unit));
        self.end_change(if started.is_ok() { Mode::Running } else { Mode::Stopped });
        started
    }

    /// Turns the queue off, after all that was submitted. *Task only.* Nothing happens if it is off.
    ///
    /// # Errors
    /// As for [`start`](Self::start); the queue is fenced then.
    pub fn stop(&self, unit: &SmmuRegisters<P>) -> Result<()> {
        if self.is_running() && !site::STOP_SYNC.is_skipped() {
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
        let stopped = unit.turn_off(Cr0::CMDQEN);
        if stopped.is_ok() {
            self.state.lock(&self.platform).exposed = false;
        }
        self.end_change(if stopped.is_ok() { Mode::Stopped } else { Mode::Fenced });
        stopped
    }

    /// Gives up everything in flight, and starts anew after the queue was fenced. *Task only.*
    ///
    /// Nothing that was in flight may be taken for done: the caller owes an invalidation of everything
    /// before it uses again what it kept back.
    ///
    /// # Errors
    /// As for [`start`](Self::start); the queue stays fenced then.
    pub fn reset(&self, unit: &SmmuRegisters<P>) -> Result<()> {
        self.fence();
        match self.begin_change(Mode::Fenced) {
            Ok(()) => {}
            Err(Mode::Stopped) => return self.start(unit),
            Err(_) => return Err(Error::Busy(BusyReason::Changing)),
        }
        let restarted = unit.turn_off(Cr0::CMDQEN).and_then(|()| self.turn_on(unit));
        self.end_change(if restarted.is_ok() { Mode::Running } else { Mode::Fenced });
        restarted
    }

    /// First quadword of the command that the queue probably stands at: one to a device if the unit waits
    /// for some, or else the next one.
    pub(super) fn suspect(&self, state: &State) -> u64 {
        let position = self.consumed.load(Ordering::Acquire);
        let next = || (position < state.tail).then(|| self.read(position));
        let [request, _] = self.outstanding(state.freed, position).last().or_else(next).unwrap_or_default();
        request
    }

    /// Repairs the ring where the unit stands. `None` when that does not help.
    fn repair(&self, unit: &SmmuRegisters<P>, state: &mut State) -> Option<()> {
        let cons = unit.command_cons();
        let position = self.position(cons, self.consumed.load(Ordering::Acquire))?;
        let end = self.end_of_batch(position, state.tail)?;
        self.consumed.fetch_max(position, Ordering::Release);
        let is_sync = opcode_of(self.read(position)) == opcode::SYNC;
        match CommandError::of_cons(cons) {
            // A unit that refuses a CMD_SYNC cannot be driven.
            CommandError::Illegal if !is_sync => self.settle_refused(state, position, end),
            CommandError::AtcInvSync if is_sync && state.settled == Some(end) => Some(()),
            CommandError::AtcInvSync if is_sync => self.settle_silent(state, position, end),
            _ => None,
        }
    }

    /// The batch that ends at `end` has failed for the command at `position`.
    fn settle_refused(&self, state: &mut State, position: u64, end: u64) -> Option<()> {
        let [request, _] = self.read(position);
        self.settle(state, position, end, Error::Invalidation { reason: InvalidationReason::Refused, request })
    }

    /// The batch that ends at `end` has failed for devices that were asked before the CMD_SYNC at
    /// `position`.
    fn settle_silent(&self, state: &mut State, position: u64, end: u64) -> Option<()> {
        // Somebody must have been asked.
        let [request, _] = self.outstanding(state.freed, position).last()?;
        for [asked, _] in self.outstanding(state.freed, position) {
            state.note_silent(StreamId((asked >> 32) as u32))?;
        }
        self.settle(state, position, end, Error::Invalidation { reason: InvalidationReason::DeviceTimeOut, request })
    }

    /// Records the outcome of a batch that the unit has yet to execute from `position` on: CMD_SYNCs take the
    /// place of that, so that it has no second outcome.
    fn settle(&self, state: &mut State, position: u64, end: u64, error: Error) -> Option<()> {
        state.record(end, error)?;
        let last = end.wrapping_sub(1);
        for index in 0..last.wrapping_sub(position) {
            self.write(position.wrapping_add(index), SYNC);
        }
        self.clean(site::RECOVERY_CLEAN, position, last);
        state.settled = Some(end);
        Some(())
    }

    /// Each CMD_ATC_INV that the CMD_SYNC at `position` waits for, the newest first.
    fn outstanding(&self, freed: u64, position: u64) -> impl Iterator<Item = Words> {
        self.unsynced(position, freed).filter(|words| opcode_of(*words) == opcode::ATC_INV)
    }

    #[inline(never)]
    fn begin_change(&self, from: Mode) -> Result<(), Mode> {
        let mut state = self.state.lock(&self.platform);
        if state.mode != from {
            return Err(state.mode);
        }
        state.mode = Mode::Changing;
        self.update_attention(&state);
        Ok(())
    }

    #[inline(never)]
    fn end_change(&self, to: Mode) {
        let mut state = self.state.lock(&self.platform);
        state.mode = to;
        self.update_attention(&state);
    }

    /// Begins anew with an empty queue, in a unit that does not run it.
    fn turn_on(&self, unit: &SmmuRegisters<P>) -> Result<()> {
        let mut state = self.state.lock(&self.platform);
        if state.exposed {
            self.refresh(unit);
        }
        if self.consumed.load(Ordering::Acquire) != state.tail {
            self.given_up.store(state.tail, Ordering::Release);
            state.forget_all();
        }
        // CMDQ_PROD and CMDQ_CONS begin with 0, and so do positions, in their bits.
        state.tail = state.tail.wrapping_add(self.index_mask()) & !self.index_mask();
        state.freed = state.tail;
        state.exposed = true;
        self.submitted.store(state.tail, Ordering::Release);
        self.consumed.fetch_max(state.tail, Ordering::Release);
        drop(state);
        // Who sees CMDQ_CONS begin anew sees what was given up.
        site::GIVEN_UP.publish(&self.platform);
        unit.set_command_queue(self.base());
        unit.acknowledge(Gerror::CMDQ_ERR);
        unit.turn_on(Cr0::CMDQEN)
    }
}
