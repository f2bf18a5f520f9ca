//! Requests that wait until software decides (SMMU 3.12.2).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::events::{Merging, Unwritable};
use super::{Host, SmmuDevice};
use crate::arch::smmuv3::layout::commands::Resume;
use crate::arch::smmuv3::layout::identification::Idr0;
use crate::arch::smmuv3::layout::{EventRecord, StreamId};
use crate::bus::Chooser;
use crate::bus::cache::FrameSlice;
use crate::error::Result;
use crate::platform::Platform;

/// A request that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stall {
    stream: StreamId,
    told: Told,
}

/// Whether software knows of a request that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    /// Its event is being written.
    Soon,
    /// It has an event.
    Yes,
    /// There was no room: it is tried again when there is (7.2.1).
    No,
}

/// All of them, found by their tag (STAG).
pub(super) struct Stalls<P: Platform> {
    slots: FrameSlice<Option<Stall>, P>,
    /// How many there can be (IDR5.STALL_MAX).
    most: usize,
}

impl<P: Platform> Stalls<P> {
    /// None yet, `most` at the most; fewer if a frame does not hold as many.
    ///
    /// # Errors
    /// [`Error::NoMemory`](crate::Error::NoMemory).
    pub(super) fn new(platform: P, most: u16) -> Result<Self> {
        Ok(Self { slots: FrameSlice::new(platform, 0, None)?, most: usize::from(most) })
    }

    /// As after a reset.
    pub(super) fn clear(&mut self) {
        self.slots.values_mut().fill(None);
    }

    /// Lets a request wait; its tag, if there is room.
    fn insert(&mut self, stream: StreamId) -> Option<u16> {
        let slots = self.slots.values_mut().iter_mut().take(self.most);
        let (tag, slot) = slots.enumerate().find(|(_, slot)| slot.is_none())?;
        *slot = Some(Stall { stream, told: Told::Soon });
        u16::try_from(tag).ok()
    }

    fn slot(&mut self, tag: u16) -> Option<&mut Option<Stall>> {
        self.slots.values_mut().get_mut(usize::from(tag))
    }

    /// Removes one for which `goes` holds; its tag.
    fn take(&mut self, goes: impl Fn(StreamId, Told) -> bool) -> Option<u16> {
        let slots = self.slots.values_mut().iter_mut().take(self.most);
        let is = |slot: &Option<Stall>| slot.as_ref().is_some_and(|stall| goes(stall.stream, stall.told));
        let (tag, slot) = slots.enumerate().find(|(_, slot)| is(slot))?;
        *slot = None;
        u16::try_from(tag).ok()
    }

    /// Whether there is one that software knows nothing of.
    pub(super) fn has_untold(&self) -> bool {
        let slots = self.slots.values().iter().take(self.most);
        slots.flatten().any(|stall| stall.told == Told::No)
    }
}

impl<P: Platform, H: Host, C: Chooser> SmmuDevice<P, H, C> {
    /// Lets a request wait that `event` is about; its tag, if there is room.
    pub(super) fn stall(&self, event: EventRecord) -> Option<u16> {
        let tag = self.state.lock(&self.platform).stalls.insert(event.stream)?;
        let event = EventRecord { stall: Some(tag), ..event };
        let told = match self.try_record(event, Merging::Inhibited) {
            Ok(()) => Told::Yes,
            Err(Unwritable::Off | Unwritable::Full) => Told::No,
        };
        // It may have been terminated meanwhile.
        if let Some(Some(stall)) = self.state.lock(&self.platform).stalls.slot(tag)
            && stall.told == Told::Soon
            && stall.stream == event.stream
        {
            stall.told = told;
        }
        Some(tag)
    }

    /// CMD_RESUME (4.7.1).
    pub(super) fn resume(&self, stream: StreamId, tag: u16, action: Resume) {
        let found = {
            let mut state = self.state.lock(&self.platform);
            let slot = state.stalls.slot(tag);
            slot.and_then(|slot| slot.take_if(|stall| stall.stream == stream && stall.told != Told::No)).is_some()
        };
        if found {
            self.host.resume(tag, self.termination(action));
        }
    }

    /// Without RAZ/WI there are aborts only (TERM_MODEL).
    fn termination(&self, action: Resume) -> Resume {
        let aborts = self.config.identification.idr0().contains(Idr0::TERM_MODEL);
        if action == Resume::Terminate && aborts { Resume::Abort } else { action }
    }

    /// CMD_STALL_TERM (4.7.2).
    pub(super) fn terminate(&self, stream: StreamId) {
        while let Some(tag) = self.take_stall(|of, _| of == stream) {
            self.host.resume(tag, Resume::Abort);
        }
    }

    /// SMMUEN becomes 0 (6.3.9.6).
    pub(super) fn terminate_all(&self) {
        while let Some(tag) = self.take_stall(|_, _| true) {
            self.host.resume(tag, Resume::Abort);
        }
    }

    /// Events can be written again: what could not have one is as though it had just arrived.
    pub(super) fn retry_untold(&self) {
        while let Some(tag) = self.take_stall(|_, told| told == Told::No) {
            self.host.resume(tag, Resume::Retry);
        }
    }

    fn take_stall(&self, goes: impl Fn(StreamId, Told) -> bool) -> Option<u16> {
        self.state.lock(&self.platform).stalls.take(goes)
    }
}
