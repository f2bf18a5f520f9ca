//! Page requests of devices (VT-d 7.4 and 7.5).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::translate::{UNSUPPORTED, View};
use super::unit::State;
use super::walk::{ContextInfo, PasidInfo, Stages};
use super::{Blocked, Host, Privilege, Recorded, Request, RequestAccess, VtdDevice};
use crate::addr::{Iova, PhysAddr};
use crate::arch::vtd::layout::descriptors::{
    Changed, Drain, IotlbScope, PageRequest, PageRequestFlags, PasidIotlbScope, Request as QueueRequest, ResponseCode,
};
use crate::arch::vtd::layout::fault::Access;
use crate::arch::vtd::layout::registers::{Global, PageRequestStatus, TableMode};
use crate::arch::vtd::layout::{DomainId, Ecap, FaultReason};
use crate::bus::AddressType;
use crate::bus::{Chooser, Precision};
use crate::platform::Platform;

/// What became of a page request.
///
/// ```
/// use iommu::arch::vtd::device::PageRequestOutcome;
/// use iommu::arch::vtd::layout::descriptors::ResponseCode;
/// assert_ne!(PageRequestOutcome::Answered(ResponseCode::Success), PageRequestOutcome::Queued);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageRequestOutcome {
    /// It is in the queue; software answers its group.
    Queued,
    /// The unit answers its group by itself (Table 31).
    Answered(ResponseCode),
    /// It is lost; nobody answers, for it was not the last of its group.
    Dropped,
}

impl<P: Platform, H: Host, C: Chooser> VtdDevice<P, H, C> {
    /// Takes a page request of a device: looks up its PASID, drops what is cached for the page, and puts it
    /// into the queue (7.4.1). Task only.
    pub fn page_request(&self, request: &PageRequest) -> PageRequestOutcome {
        let refuse = |code| match request.flags.contains(PageRequestFlags::LAST) {
            true => PageRequestOutcome::Answered(code),
            false => PageRequestOutcome::Dropped,
        };
        let (info, pasid) = match self.requested(request) {
            Ok(found) => found,
            Err(blocked) => {
                let privileged = request.flags.contains(PageRequestFlags::PRIVILEGED);
                let fault = Request {
                    source: request.source,
                    pasid: request.pasid,
                    privilege: if privileged { Privilege::Supervisor } else { Privilege::User },
                    address_type: AddressType::Untranslated,
                    address: request.address,
                    access: RequestAccess::Read,
                };
                self.record(&fault, Access::PageRequest, blocked);
                return refuse(ResponseCode::InvalidRequest);
            }
        };
        let place = {
            let mut state = self.state.lock(&self.platform);
            match state.reserve_page_request() {
                Some(place) => {
                    state.invalidate(implied(&info, pasid, request.address), Precision::Exact);
                    place
                }
                None => return refuse(ResponseCode::Success),
            }
        };
        let mut address = place;
        for word in request.encode() {
            // A queue that is not in memory is the fault of software, and nothing is defined for it.
            if let Some(address) = self.host_address(PhysAddr::new(address)) {
                let _ = self.host.write64(address, word);
            }
            address = address.wrapping_add(8);
        }
        self.state.lock(&self.platform).publish_page_request();
        PageRequestOutcome::Queued
    }

    /// The PASID table entry of a page request, and the PASID that selects it.
    fn requested(&self, request: &PageRequest) -> Result<(PasidInfo, u32), Blocked> {
        let fault = |reason, recorded| Err(Blocked { reason: FaultReason(reason), recorded });
        let retention = self.chooser.retention();
        let (view, mode) = {
            let state = self.state.lock(&self.platform);
            let registers = &state.registers;
            if !registers.status.contains(Global::TE) || !self.config.ecap.contains(Ecap::PRS) {
                return Err(UNSUPPORTED);
            }
            (View { root: registers.latched_root, epoch: state.epoch, retention }, registers.mode())
        };
        match mode {
            None => return fault(0x30, Recorded::Yes),                      // RTA.1
            Some(TableMode::Legacy) => return fault(0x32, Recorded::Yes),   // RTA.3
            Some(TableMode::AbortDma) => return fault(0x33, Recorded::Yes), // RTA.4
            Some(TableMode::Scalable) => {}
        }
        let context = self.context(&view, request.source)?;
        let recorded = context.recorded();
        // A line from before legacy mode was left has no PASIDs.
        let ContextInfo::Scalable { entry } = context else { return fault(0x32, Recorded::Yes) };
        if !entry.permits_page_requests() {
            return fault(0x47, recorded); // SCT.8
        }
        let pasid = match request.pasid {
            None => entry.rid_pasid(),
            Some(_) if !entry.permits_pasids() => return fault(0x45, recorded), // SCT.6
            Some(pasid) if pasid == entry.rid_pasid() => return fault(0x48, recorded), // SCT.9
            Some(pasid) => pasid,
        };
        Ok((self.pasid(&view, request.source, &entry, pasid)?, pasid))
    }
}

/// What a page request drops from the caches (6.5.3.1, Table 27).
fn implied(info: &PasidInfo, pasid: u32, address: u64) -> QueueRequest {
    let (domain, address): (DomainId, _) = (info.domain(), Iova::new(address & !0xfff));
    let (mask, changed) = (0, Changed::Tables);
    match info.stages {
        Stages::First(_) => QueueRequest::PasidIotlb(PasidIotlbScope::Pages { domain, pasid, address, mask, changed }),
        Stages::Nested(..) => QueueRequest::Iotlb(IotlbScope::Domain(domain), Drain::empty()),
        Stages::Second(_) | Stages::PassThrough => {
            QueueRequest::Iotlb(IotlbScope::Pages { domain, address, mask, changed }, Drain::empty())
        }
    }
}

impl<P: Platform> State<P> {
    /// A place in the queue; `None` when there is none, or none was once and software has yet to look.
    fn reserve_page_request(&mut self) -> Option<u64> {
        if self.registers.page_status.contains(PageRequestStatus::PRO) {
            return None;
        }
        let size = 4096_u32 << (self.registers.page_address & 7);
        if self.page_writers == 0 {
            self.page_next = self.registers.page_tail & size.wrapping_sub(1);
        }
        let next = self.page_next.wrapping_add(PageRequest::BYTES as u32) & size.wrapping_sub(1);
        if next == self.registers.page_head {
            self.raise_page_event(PageRequestStatus::PRO);
            return None;
        }
        let place = (self.registers.page_address & !0xfff).wrapping_add(u64::from(self.page_next));
        self.page_next = next;
        self.page_writers = self.page_writers.wrapping_add(1);
        Some(place)
    }

    /// One more was written. The tail moves when all before it were.
    fn publish_page_request(&mut self) {
        self.page_writers = self.page_writers.saturating_sub(1);
        if self.page_writers == 0 {
            self.registers.page_tail = self.page_next;
        }
        self.raise_page_event(PageRequestStatus::PPR);
    }

    /// 7.5: nobody is told again while software has yet to look.
    fn raise_page_event(&mut self, status: PageRequestStatus) {
        if self.registers.page_status.is_empty() {
            self.registers.page_event.raise();
        }
        self.registers.page_status.insert(status);
    }
}
