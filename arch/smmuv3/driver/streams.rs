//! What the unit's entry for each stream says at present, and what hardware may use because of it.

use super::cd_table::CdTable;
use super::invalidation::Tagged;
use super::stalls::Holds;
use super::translation::{Path, Served, Translation};
use crate::arch::smmuv3::layout::StreamId;
use crate::error::Result;
use crate::frames::{RadixMap, Ref, Registry};
use crate::ops::FaultModel;
use crate::platform::Platform;
use crate::sync::Lock;

/// What a stream goes through.
#[derive(Debug)]
pub(super) struct Attached<P: Platform> {
    pub(super) path: Path,
    /// Whether the entry lets a device TLB be filled.
    pub(super) served: Served,
    /// What becomes of requests that fault.
    pub(super) fault_model: FaultModel,
    /// Under which number it is cached.
    pub(super) tagged: Option<Tagged>,
    /// The descriptors that the entry leads to, with stage 1.
    pub(super) cds: Option<CdTable<P>>,
}

impl<P: Platform> Attached<P> {
    pub(super) const BLOCKED: Self =
        Self { path: Path::Blocked, served: Served::No, fault_model: FaultModel::Terminate, tagged: None, cds: None };
}

/// One stream. It is changed by one processor at a time: its sources belong to a group, which is claimed
/// meanwhile.
#[derive(Debug)]
pub(super) struct Stream<P: Platform> {
    pub(super) id: StreamId,
    /// Innermost.
    attached: Lock<Attached<P>>,
}

impl<P: Platform> Stream<P> {
    /// Whether the entry says this already.
    pub(super) fn says(&self, platform: &P, new: &Translation) -> bool {
        let attached = self.attached.lock(platform);
        (attached.path, attached.served, attached.fault_model) == (new.path, new.served(), new.fault_model)
    }

    /// Whether requests may wait now.
    pub(super) fn holds(&self, platform: &P) -> Holds {
        match self.attached.lock(platform).fault_model {
            FaultModel::Stall => Holds::Yes,
            FaultModel::Terminate => Holds::No,
        }
    }

    /// Notes what it goes through now; gives what it was.
    pub(super) fn replace(&self, platform: &P, new: Attached<P>) -> Attached<P> {
        core::mem::replace(&mut *self.attached.lock(platform), new)
    }
}

/// The streams that were attached once.
#[derive(Debug)]
pub(super) struct Streams<P: Platform> {
    streams: Registry<Stream<P>, P>,
    slots: RadixMap<u32, P>,
}

impl<P: Platform> Streams<P> {
    pub(super) fn new(platform: &P) -> Result<Self> {
        Ok(Self { streams: Registry::new(platform.clone())?, slots: RadixMap::new(platform.clone()) })
    }

    pub(super) fn find(&self, stream: StreamId) -> Option<Ref<Stream<P>>> {
        self.streams.get(self.slots.get(u64::from(stream.0))?)
    }

    /// Task only.
    pub(super) fn find_or_make(&self, id: StreamId) -> Result<Ref<Stream<P>>> {
        if let Some(stream) = self.find(id) {
            return Ok(stream);
        }
        let stream = self.streams.insert(Stream { id, attached: Lock::new(Attached::BLOCKED) })?;
        let slot = Ref::index(&stream);
        self.slots.insert(u64::from(id.0), slot).inspect_err(|_| self.streams.remove(slot))?;
        Ok(stream)
    }
}
