//! Device TLBs (VT-d 4.1): whose may be used, how they are told, and what becomes of one that does
//! not answer.
//!
//! A device fills its TLB with what the unit answers from the IOTLB. So an invalidation asks for both
//! in one batch, the IOTLB first: a unit executes device-TLB requests only after the IOTLB requests
//! before them are completed (6.5.2.5, 6.5.2.12). Since it is one batch, that holds as well when the
//! queue recovers from somebody else's time-out, which appends whole batches anew: had the two parts a
//! batch each, the first could come behind the second.
//!
//! A device that does not answer in time is *fenced*: its entry is blocked, so that what its TLB holds
//! is of no use, and it is asked nothing more. Other devices go on. Invalidations of its domain fail,
//! so that nothing it may have cached is used for something else, until the unit is reset.

use super::context::Context;
use super::domains::tags_of;
use super::firmware::secondary_bus;
use super::invalidation::{MAX_PAGE_REQUESTS, Requests, covering_block, iotlb_requests};
use super::queue::{self, device_of};
use super::site;
use super::unit::VtdUnit;
use crate::arch::vtd::dmar::{Dmar, Structure};
use crate::arch::vtd::layout::descriptors::{DeviceRange, Request, max_pending, physical_function};
use crate::arch::vtd::layout::{Descriptor, Ecap};
use crate::device::{DeviceId, DeviceInfo};
use crate::domain::{Domain, DomainKind};
use crate::error::{Error, IncompatibleReason, InvalidationReason, Result};
use crate::iotlb::{CacheTag, DeviceTlb, GATHER_RANGES, Invalidation, MAX_DEVICE_TLBS};
use crate::ops::{Ats, Requester, Unit};
use crate::pci::{PciConfig, PciFunction};
use crate::platform::Platform;
use crate::sync::atomic::{Ordering, fence};

/// Requests of an invalidation that names device TLBs.
const MAX_REQUESTS: usize = MAX_PAGE_REQUESTS + MAX_DEVICE_TLBS * GATHER_RANGES;

impl<P: Platform> VtdUnit<P> {
    /// Whether the unit serves the device TLB of `device`, and firmware has nothing against it (VT-d
    /// 8.5, 8.8).
    pub(super) fn serves_device_tlb(&self, device: &DeviceInfo, pci: &dyn PciConfig) -> bool {
        let (DeviceId::Pci(function), Ok(dmar)) = (device.id, self.firmware.dmar()) else { return false };
        // Invalidations name whole pages.
        let page_aligned =
            || PciFunction::read(pci, function).is_some_and(|f| f.ats.is_some_and(|ats| ats.page_aligned));
        let named = || dmar.satc_of(function, &device.bridges, secondary_bus(pci)).is_some();
        let permitted = || match device.bridges.last() {
            Some(root_port) => dmar.root_port_supports_ats(*root_port, secondary_bus(pci)),
            // Integrated devices: tables from before there were SATCs do not speak of them.
            None => !has_satc(&dmar),
        };
        self.capabilities().ecap.contains(Ecap::DT) && page_aligned() && (named() || permitted())
    }

    /// Submits the requests for the IOTLB, then those for device TLBs.
    #[cold]
    #[inline(never)]
    pub(super) fn submit_with_devices(&self, invalidation: &Invalidation<'_>) -> Result<queue::Ticket> {
        // By domain for a first stage as well, which it drops whole (Table 23): behind requests by PASID
        // device TLBs without PASID would not have to wait (6.5.2.12).
        let by_domain = CacheTag { pasid: None, ..invalidation.tag };
        let mut iotlb = Requests::new();
        iotlb_requests(self.capabilities(), by_domain, invalidation.ranges, invalidation.depth, &mut iotlb);
        let mut requests: heapless::Vec<Descriptor, MAX_REQUESTS> = iotlb.into_iter().collect();
        let mut left_out = false;
        for device in invalidation.devices.iter().filter(|_| self.asks_devices() && !site::DEVICE_TLBS.is_skipped()) {
            let source = device.source.id() as u16;
            if self.is_fenced_device(source) {
                left_out = true;
                continue;
            }
            let everything = invalidation.ranges.is_empty().then_some(DeviceRange::ALL);
            let blocks = invalidation.ranges.iter().map(|range| {
                let (address, order) = covering_block(*range);
                DeviceRange { address, order }
            });
            for range in blocks.chain(everything) {
                // There is room for so many.
                let _ = requests.push(self.device_request(source, device.ats, range));
            }
        }
        let ticket = self.queue.submit(&self.registers, &requests)?;
        if left_out {
            // The others are told all the same.
            self.fence_with_queue(self.queue.wait(&self.registers, ticket))?;
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

    /// Has a device drop everything, after its entry was changed and the IOTLB told (6.5.3.3).
    pub(super) fn empty_device_tlb(&self, requester: &Requester) -> Result<()> {
        let source = requester.source.id() as u16;
        // Without one it is gone, with all it held.
        let Some(ats) = requester.ats.filter(|_| self.asks_devices()) else { return Ok(()) };
        self.refuse_fenced_device(source)?;
        let everything = self.device_request(source, ats, DeviceRange::ALL);
        self.in_order(site::WITHDRAW_DEVICE_WAIT, &[(site::WITHDRAW_DEVICE, everything)])
    }

    /// Has the devices of a domain drop everything, after bits of PASID entries were changed and the
    /// IOTLB told: what they have cached, they write without a trace (6.5.3.3).
    pub(super) fn empty_device_tlbs(&self, unit: &Unit, tag: CacheTag, domain: &Domain) -> Result<()> {
        let Some(tags) = tags_of::<P>(domain) else { return Ok(()) };
        tags.read().device_tlbs(unit, tag).filter(|_| self.asks_devices()).try_for_each(|device| {
            let source = device.source.id() as u16;
            self.refuse_fenced_device(source)?;
            let everything = self.device_request(source, device.ats, DeviceRange::ALL);
            self.in_order(site::REFRESH_DEVICE_WAIT, &[(site::REFRESH_DEVICE, everything)])
        })
    }

    /// Whether a device TLB could hold anything that must go: not while nothing is translated, and then
    /// the unit has no use for the answer.
    fn asks_devices(&self) -> bool {
        self.registers.is_translating().unwrap_or(false)
    }

    fn device_request(&self, source: u16, ats: Ats, range: DeviceRange) -> Descriptor {
        // Reserved without invalidation throttling (6.5.2.5).
        let throttles = self.capabilities().ecap.contains(Ecap::DIT);
        let physical_function = match ats.physical_function {
            _ if !throttles => 0,
            0 => source,
            function => function,
        };
        // Zero stands for 32.
        Request::DeviceTlb { source, physical_function, max_pending: ats.max_pending & 31, range }.encode()
    }

    /// A device that did not answer to `request` reaches nothing any more, until the unit is reset. Any
    /// context.
    #[cold]
    pub(super) fn fence_device(&self, request: u64) {
        let Some((source, ats)) = addressee(request) else { return };
        if self.fenced_devices.note(&self.platform, source, ats).is_none() {
            self.queue.fence();
            return self.fence();
        }
        // Whoever writes an entry looks at the list afterwards.
        fence(Ordering::SeqCst);
        // If that fails the unit is fenced.
        let _ = self.fence_entry(source);
    }

    /// See [`FencedDevices::refuse`].
    pub(super) fn refuse_fenced_device(&self, source: u16) -> Result<()> {
        self.fenced_devices.refuse(&self.platform, source)
    }

    /// Whether an entry is that of a device that did not answer.
    pub(super) fn is_of_fenced_device(&self, context: &Context<'_, P>) -> bool {
        let is_same = |own: Context<'_, P>| core::ptr::eq(own.word(0), context.word(0));
        self.fenced_devices.any(&self.platform, |source| self.tables.find(source).is_some_and(is_same))
    }

    fn is_fenced_device(&self, source: u16) -> bool {
        self.fenced_devices.any(&self.platform, |fenced| fenced == source)
    }

    /// After a reset: has the fenced devices drop everything. Those that still do not answer stay
    /// fenced. Task.
    pub(super) fn retry_fenced_devices(&self) -> Result<()> {
        let fenced = self.fenced_devices.all(&self.platform);
        let asks = self.registers.is_translating()?;
        for (source, ats) in fenced {
            let request = self.device_request(source, ats, DeviceRange::ALL);
            // Without translation they had nothing to ask for, and begin anew.
            let answer = if asks { self.queue.run(&self.registers, &[request]) } else { Ok(()) };
            match answer {
                Ok(()) => self.fenced_devices.forget(&self.platform, source),
                // It must not keep the others from going on.
                Err(_) if self.queue.is_fenced() => self.queue.reset(&self.registers)?,
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// After a device that is gone was blocked: another may come in its place.
    pub(super) fn forget_gone_device(&self, source: u16) {
        if !self.is_fenced_device(source) {
            return;
        }
        self.fenced_devices.forget(&self.platform, source);
        // In scalable mode the entry stays when a device is blocked; the next one gets a new one.
        if let Some(context) = self.tables.find(source)
            && context.withdraw::<[u64; 2]>().is_some()
        {
            context.clear();
        }
    }
}

fn has_satc(dmar: &Dmar<'_>) -> bool {
    dmar.structures().any(|structure| matches!(structure, Structure::Satc(_)))
}

/// Whom a request that was not answered went to, by its first quadword, and how to reach it again.
fn addressee(request: u64) -> Option<(u16, Ats)> {
    let source = device_of(request)?;
    // This driver makes none with PASID.
    Some((source, Ats { physical_function: physical_function(request), max_pending: max_pending(request) }))
}

/// What to do after an invalidation failed.
impl<P: Platform> VtdUnit<P> {
    /// Blocks whom an error leaves with stale translations: the device that did not answer; or every
    /// device, if the queue was fenced, by whomever.
    #[cold]
    #[inline(never)]
    pub(super) fn contain(&self, error: Error) {
        if self.queue.is_fenced() {
            self.fence();
        } else if let Error::Invalidation { reason: InvalidationReason::DeviceTimeOut, request } = error {
            self.fence_device(request);
        }
    }
}
