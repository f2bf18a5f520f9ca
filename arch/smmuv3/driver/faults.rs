//! What a unit tells: events, requests that wait, and global errors.

use super::events::{fault_record, take_global_errors};
use super::stalls::Holds;
use super::unit::SmmuUnit;
use crate::arch::smmuv3::layout::events::EventRecord;
use crate::arch::smmuv3::layout::registers::Gerror;
use crate::arch::smmuv3::layout::{Command, StreamId};
use crate::error::Result;
use crate::fault::{DrainedFaults, FaultRecord, FaultsLeft};
use crate::id::SourceId;
use crate::platform::Platform;

impl<P: Platform> SmmuUnit<P> {
    /// See [`IommuOps::drain_faults`](crate::ops::IommuOps::drain_faults). Before the unit is enabled its
    /// errors are another kernel's.
    pub(super) fn visit_faults(&self, visit: &mut dyn FnMut(FaultRecord)) -> DrainedFaults {
        if !self.may_cache() {
            return DrainedFaults::default();
        }
        // Before they are acknowledged: the queue fences itself if the unit does nothing any more.
        self.queue.recover(&self.registers);
        let errors = take_global_errors(&self.registers);
        #[cfg(feature = "log")]
        for error in errors {
            log::error!("{self:?}: {}", super::events::global_error_text(error));
        }
        // Nobody may be waiting for what the recovery gave up.
        if self.queue.is_fenced() {
            self.fence();
        }
        let drained = self.events.drain(&self.registers, &mut |event| visit(self.fault_of(&event)));
        let unwritten = errors.contains(Gerror::EVENTQ_ABT_ERR);
        DrainedFaults {
            left: if drained.pending { FaultsLeft::Some } else { FaultsLeft::None },
            overflows: u64::from(drained.lost) + u64::from(unwritten),
        }
    }

    /// An event in the core's words; a request that waits is noted, or terminated if it may not.
    fn fault_of(&self, event: &EventRecord) -> FaultRecord {
        let source = self.firmware.source_of(self.index, event.stream);
        let unnamed = || SourceId::platform(self.index as u16, event.stream.0);
        let holds = || self.streams.find(event.stream).map_or(Holds::No, |stream| stream.holds(&self.platform));
        let stalled = event.stall.and_then(|tag| {
            self.stalls.hold(&self.platform, (event.stream, tag), holds, &mut |command| self.resume_request(command))
        });
        fault_record(event, self.base, source.unwrap_or_else(unnamed), stalled)
    }

    /// Ends those requests of a stream that wait under what it was attached to. Any context.
    pub(super) fn terminate_stalls(&self, stream: StreamId) -> Result<()> {
        self.stalls.terminate(&self.platform, stream, &mut |command| self.resume_request(command))
    }

    /// Has a request go on, or end. Nothing waits while translation is off (6.3.9.6).
    pub(super) fn resume_request(&self, command: Command) -> Result<()> {
        if !self.may_cache() {
            return Ok(());
        }
        self.queue.run(&self.registers, &[command]).inspect_err(|error| self.contain(*error))
    }
}
