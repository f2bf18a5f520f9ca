//! How events are recorded (SMMU 3.5.3 and 7.2 to 7.4).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::interrupts::Source;
use super::output::{self, Writers, Written};
use super::unit::State;
use super::{Host, SmmuDevice};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::EventRecord;
use crate::arch::smmuv3::layout::events::{EVENT_BYTES, EventKind};
use crate::arch::smmuv3::layout::registers::{Cr0, Gerror};
use crate::bus::Chooser;
use crate::platform::Platform;

/// Whether an event may stand for another one like it (MEV, 7.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Merging {
    Permitted,
    Inhibited,
}

/// Events that are being written, and the last one that was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Events {
    pub(super) writers: Writers,
    /// As long as software has not consumed it.
    last: Option<EventRecord>,
}

/// Why an event is not recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unwritable {
    /// The queue is off, or it could not be written before.
    Off,
    /// There is no room.
    Full,
}

impl<P: Platform, H: Host, C: Chooser> SmmuDevice<P, H, C> {
    /// Records an event. One that cannot be is lost; where there is no room, the overflow tells.
    pub(super) fn record(&self, event: EventRecord, merging: Merging) {
        if self.try_record(event, merging) == Err(Unwritable::Full) {
            output::overflow(&mut self.state.lock(&self.platform).registers.events);
        }
    }

    /// Records an event if the queue is writable (7.2.1).
    pub(super) fn try_record(&self, event: EventRecord, merging: Merging) -> Result<(), Unwritable> {
        let place = {
            let mut state = self.state.lock(&self.platform);
            state.check_writable()?;
            if state.merges(&event, merging) {
                return Ok(());
            }
            let State { registers, events, .. } = &mut *state;
            let entry_log2 = EVENT_BYTES.trailing_zeros() as u8;
            let place = events.writers.reserve(&registers.events, entry_log2).ok_or(Unwritable::Full)?;
            events.last = Some(event);
            place
        };
        let mut written = Written::Whole;
        let mut address = self.output_address(place.address);
        for word in event.encode() {
            if self.host.write64(address, word).is_err() {
                written = Written::Aborted;
            }
            address = PhysAddr::new(address.as_u64().wrapping_add(8));
        }
        let mut state = self.state.lock(&self.platform);
        let State { registers, events, .. } = &mut *state;
        if events.writers.publish(&mut registers.events, place, written) {
            registers.raise(Source::Events);
        }
        if written == Written::Aborted {
            events.last = None;
            registers.report(Gerror::EVENTQ_ABT_ERR);
        }
        Ok(())
    }
}

impl<P: Platform> State<P> {
    /// Whether the event queue is writable (7.2.1).
    pub(super) fn check_writable(&self) -> Result<(), Unwritable> {
        let registers = &self.registers;
        let enabled = registers.enabled.contains(Cr0::EVENTQEN);
        if !enabled || registers.active_errors().contains(Gerror::EVENTQ_ABT_ERR) {
            return Err(Unwritable::Off);
        }
        match self.events.writers.has_room(&registers.events) {
            true => Ok(()),
            false => Err(Unwritable::Full),
        }
    }

    /// Whether the last event, which software has not consumed, stands for this one.
    fn merges(&self, event: &EventRecord, merging: Merging) -> bool {
        let unread = self.registers.events.used() != 0 || !self.events.writers.is_quiet();
        merging == Merging::Permitted
            && unread
            && event.stall.is_none()
            && self.events.last.is_some_and(|last| identical(&last) == identical(event))
    }
}

/// What of an event tells it from others: the page of an address, where the definitions say so (7.3.8,
/// 7.3.12 to 7.3.16).
fn identical(event: &EventRecord) -> EventRecord {
    let by_page = event.kind.is_translation_fault()
        || matches!(event.kind, EventKind::F_WALK_EABT | EventKind::F_TRANSL_FORBIDDEN);
    EventRecord { address: if by_page { event.address & !0xfff } else { event.address }, ..*event }
}
