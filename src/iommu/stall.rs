//! Requests that wait for an answer when they fault, instead of being terminated.

use super::attach::Claim;
use super::{Iommu, Policy};
use crate::device::{DeviceId, DeviceInfo};
use crate::error::{Error, InvalidReason, Result};
use crate::fault::{FaultRecord, StallAnswer};
use crate::id::SourceId;
use crate::ops::{FaultModel, Unit};
use crate::platform::Platform;

/// Which devices have requests that fault wait for the kernel, which can map what they want and have them
/// tried again.
///
/// Whatever this says, requests of PCI functions are terminated: what waits may hold up what it waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StallPolicy {
    /// None. The default: somebody must answer every fault, or a device hangs.
    #[default]
    Off,
    /// Platform devices, where the unit and firmware allow it. The kernel takes all faults
    /// ([`Iommu::next_fault`]) and answers those that wait. What the log has no room for, or whose source
    /// is muted, is terminated.
    Hold,
}

impl<P: Platform> Iommu<P> {
    /// Answers a request that [waits](FaultRecord::stalled). Any context.
    ///
    /// # Errors
    /// [`InvalidReason::NotWaiting`] when the record is of a request that did not wait, or was answered
    /// already, or ended when its device was attached to another domain; [`Error::NoDevice`] when its unit
    /// is not known; [`Error::Fenced`] and the like when the unit does not answer.
    #[doc(alias = "iommu_page_response")]
    pub fn answer_stall(&self, fault: &FaultRecord, answer: StallAnswer) -> Result<()> {
        let tag = fault.stalled.ok_or(Error::Invalid(InvalidReason::NotWaiting))?;
        let unit = self.units.iter().find(|unit| unit.base() == fault.unit).ok_or(Error::NoDevice)?;
        unit.answer_stall(tag, answer)
    }

    /// Puts a fault into the log; if it does not get there, nobody else would answer it. Any context.
    pub(super) fn take_fault(&self, unit: &Unit, fault: FaultRecord) {
        let waits = fault.stalled.filter(|_| self.policy.stalls == StallPolicy::Hold);
        let kept = self.faults.push(&self.platform, FaultRecord { stalled: waits, ..fault });
        #[cfg(feature = "log")]
        if kept {
            log::warn!("{fault}");
        }
        if let Some(tag) = fault.stalled.filter(|_| !kept || waits.is_none()) {
            // A unit that does not answer is fenced, and terminates everything when it is reset.
            let _ = unit.answer_stall(tag, StallAnswer::Terminate);
        }
    }

    /// What shall become of requests of a device that is being probed.
    pub(super) fn fault_model_of(&self, info: &DeviceInfo, unit: &Unit) -> FaultModel {
        match (self.policy, info.id) {
            (Policy { stalls: StallPolicy::Hold, .. }, DeviceId::Platform(_)) if unit.supports_stalls(info) => {
                FaultModel::Stall
            }
            _ => FaultModel::Terminate,
        }
    }
}

impl<P: Platform> Claim<'_, P> {
    /// Requests under an id wait if all who use it bear that.
    pub(super) fn fault_model(&self, source: SourceId) -> FaultModel {
        let mut models = self.members(None).filter_map(|member| {
            let uses = member.sources().contains(&source);
            member.iommu().ok().filter(|_| uses).map(|iommu| iommu.fault_model)
        });
        let first = models.next().unwrap_or_default();
        if models.all(|model| model == first) { first } else { FaultModel::Terminate }
    }
}
