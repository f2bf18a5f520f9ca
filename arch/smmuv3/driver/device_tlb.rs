//! Device TLBs (SMMU 3.9.1): whose may be used, how they are told, and what becomes of one that does not
//! answer.
//!
//! A device fills its TLB with what the unit answers. So an invalidation asks for both in one batch, the
//! unit's TLB first, with a CMD_SYNC between them; and one behind each device, which tells who it was that
//! did not answer.
//!
//! Such a device is *fenced*: its entry is blocked, so that what its TLB holds is of no use, and it is
//! asked nothing more. Other devices go on. Invalidations of its domain fail, so that nothing it may have
//! cached is used for something else, until the unit is reset.

use super::domains::tags_of;
use super::invalidation::{MAX_COMMANDS, device_commands};
use super::orders::SYNC;
use super::unit::SmmuUnit;
use super::{queue, site};
use crate::arch::smmuv3::layout::StreamId;
use crate::arch::smmuv3::layout::commands::{Command, Leaf};
use crate::arch::smmuv3::layout::identification::Idr0;
use crate::device::{DeviceId, DeviceInfo};
use crate::domain::{Domain, DomainKind};
use crate::error::{Error, IncompatibleReason, InvalidationReason, Result};
use crate::iotlb::{CacheTag, DeviceTlb, Invalidation, MAX_DEVICE_TLBS};
use crate::ops::{Requester, Unit};
use crate::pci::{PciConfig, PciFunction};
use crate::platform::Platform;
use crate::sync::atomic::{Ordering, fence};

/// All that a device may hold.
const fn everything(stream: StreamId) -> Command {
    Command::AtcInvalidate { stream, substream: None, address: 0, size_log2: 64 }
}

impl<P: Platform> SmmuUnit<P> {
    /// Whether the unit serves the device TLB of `device`, and firmware says that its host does.
    pub(super) fn serves_device_tlb(&self, device: &DeviceInfo, pci: &dyn PciConfig) -> bool {
        let DeviceId::Pci(function) = device.id else { return false };
        // Invalidations name whole pages.
        let page_aligned =
            || PciFunction::read(pci, function).is_some_and(|f| f.ats.is_some_and(|ats| ats.page_aligned));
        let source = function.source_id();
        self.capabilities().idr0().contains(Idr0::ATS)
            // Neither invalidations nor entries would tell it from others of the same StreamID.
            && self.firmware.ats_supported(source) && self.firmware.is_alone(source)
            // An entry of stage 2 cannot have both (5.2.2).
            && !self.capabilities().stalls_always()
            && page_aligned()
    }

    /// Submits the commands for the TLB, then those for device TLBs.
    #[cold]
    #[inline(never)]
    pub(super) fn submit_with_devices(&self, invalidation: &Invalidation<'_>) -> Result<queue::Ticket> {
        let mut commands: heapless::Vec<Command, { MAX_COMMANDS + MAX_DEVICE_TLBS }> = heapless::Vec::new();
        self.add_tlb_commands(invalidation, &mut commands);
        let mut left_out = false;
        for device in invalidation.devices {
            let Some(stream) = self.stream_of(device.source) else { continue };
            if self.is_fenced_device(stream) {
                left_out = true;
                continue;
            }
            // There is room for so many.
            if !site::DEVICE_TLBS_ORDER.is_skipped() {
                let _ = commands.push(SYNC);
            }
            if !site::DEVICE_TLBS.is_skipped() {
                device_commands(stream, None, invalidation.ranges, &mut commands);
            }
        }
        let ticket = self.queue.submit(&self.registers, &commands)?;
        if left_out {
            // The others are told all the same.
            self.queue.wait(&self.registers, ticket)?;
            return Err(Error::Fenced);
        }
        Ok(ticket)
    }

    /// The tag of the requester's device TLB, if it has one and `domain` uses it: a use of the domain's
    /// tag in this unit, `tag`, is held. Its number is that one's.
    pub(super) fn acquire_device_tlb(
        &self,
        unit: &Unit,
        requester: &Requester,
        domain: &Domain,
        tag: Option<CacheTag>,
    ) -> Result<Option<CacheTag>> {
        let (Some(device), Some(tag), DomainKind::Paging) = (DeviceTlb::of(requester), tag, domain.kind()) else {
            return Ok(None);
        };
        let tags = tags_of::<P>(domain).ok_or(Error::Incompatible(IncompatibleReason::Driver))?;
        tags.acquire_device(unit, tag, device).map(Some)
    }

    /// The tag of the requester's device TLB in a domain that uses it.
    pub(super) fn device_tlb(&self, unit: &Unit, requester: &Requester, domain: &Domain) -> Option<CacheTag> {
        tags_of::<P>(domain)?.read().device_tlb_of(unit, requester.source)
    }

    /// Has a device drop everything, after its entry was changed and the unit's TLB told (3.9.1).
    pub(super) fn empty_device_tlb(&self, requester: &Requester, stream: StreamId) -> Result<()> {
        // Without one it is gone, with all it held.
        if requester.ats.is_none() || !self.asks_devices() {
            return Ok(());
        }
        self.refuse_fenced_device(stream)?;
        self.in_order(site::WITHDRAW_DEVICE_WAIT, &[(site::WITHDRAW_DEVICE, everything(stream))])
    }

    /// Whether a device TLB could hold anything that must go: not while nothing is translated, and then the
    /// unit passes nothing on to devices.
    fn asks_devices(&self) -> bool {
        self.registers.is_translating().unwrap_or(false)
    }

    /// A device that did not answer reaches nothing any more, until the unit is reset. Any context.
    #[cold]
    fn fence_device(&self, stream: StreamId) {
        if self.fenced_devices.note(&self.platform, stream, ()).is_none() {
            self.queue.fence();
            return self.fence();
        }
        // Whoever writes an entry looks at the list afterwards.
        fence(Ordering::SeqCst);
        if let Some(entry) = self.tables.find(stream)
            && entry.fence()
        {
            // If that fails the unit is fenced.
            let _ = self.in_order(site::FENCE_WAIT, &[(site::FENCE, Command::ConfigSte { stream, leaf: Leaf::Only })]);
        }
    }

    /// See [`FencedDevices::refuse`].
    pub(super) fn refuse_fenced_device(&self, stream: StreamId) -> Result<()> {
        self.fenced_devices.refuse(&self.platform, stream)
    }

    fn is_fenced_device(&self, stream: StreamId) -> bool {
        self.fenced_devices.any(&self.platform, |fenced| fenced == stream)
    }

    /// After a reset: has the fenced devices drop everything. Those that still do not answer stay fenced.
    /// Task.
    pub(super) fn retry_fenced_devices(&self) -> Result<()> {
        let fenced = self.fenced_devices.all(&self.platform);
        for (stream, ()) in fenced {
            match self.queue.run(&self.registers, &[everything(stream)]) {
                Ok(()) => {
                    self.fenced_devices.forget(&self.platform, stream);
                    if let Some(entry) = self.tables.find(stream) {
                        entry.unfence();
                        self.in_order(
                            site::FENCE_WAIT,
                            &[(site::FENCE, Command::ConfigSte { stream, leaf: Leaf::Only })],
                        )?;
                    }
                }
                // Somebody else's command was not done, and may have been to block a device.
                Err(Error::Fenced) => return Err(Error::Fenced),
                // It must not keep the others from going on; but theirs were given up with it.
                Err(_) if self.queue.is_fenced() => {
                    self.queue.reset(&self.registers)?;
                    self.forget_everything()?;
                }
                Err(_) => drop(self.queue.take_silent_devices()),
            }
        }
        Ok(())
    }

    /// After a device that is gone was blocked: another may come in its place.
    pub(super) fn forget_gone_device(&self, stream: StreamId) {
        if self.is_fenced_device(stream) {
            self.fenced_devices.forget(&self.platform, stream);
        }
    }
}

/// What to do after an invalidation failed.
impl<P: Platform> SmmuUnit<P> {
    /// Blocks whom an error leaves with something stale: the devices that did not answer; or every device,
    /// if the unit did not do what it was told, or its queue was fenced by somebody else.
    #[cold]
    #[inline(never)]
    pub(super) fn contain(&self, error: Error) {
        match error {
            Error::Invalidation { reason: InvalidationReason::DeviceTimeOut, .. } => {
                self.queue.take_silent_devices().into_iter().for_each(|stream| self.fence_device(stream));
            }
            Error::Invalidation { .. } | Error::TimedOut(_) => self.queue.fence(),
            _ => {}
        }
        if self.queue.is_fenced() {
            self.fence();
        }
    }
}
