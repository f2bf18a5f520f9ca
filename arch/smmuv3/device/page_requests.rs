//! Requests of devices for pages (SMMU 8).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::events::Merging;
use super::interrupts::Source;
use super::output::{self, Place, Written};
use super::unit::State;
use super::walk::{Access, Lookup};
use super::{Host, SmmuDevice};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::commands::PageResponse;
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::identification::{Idr0, Idr3};
use crate::arch::smmuv3::layout::page_requests::{PAGE_REQUEST_BYTES, PageRequest, PageRequestFlags};
use crate::arch::smmuv3::layout::registers::{Cr0, Cr2, Gerror};
use crate::bus::Chooser;
use crate::platform::Platform;

/// What becomes of a page request.
///
/// ```
/// use iommu::arch::smmuv3::device::PageRequestOutcome;
/// assert_ne!(PageRequestOutcome::Queued, PageRequestOutcome::Dropped);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageRequestOutcome {
    /// It is in the queue; software answers its group with [`Host::respond`].
    Queued,
    /// The unit answers for its group.
    Answered {
        /// The answer.
        response: PageResponse,
        /// The SubstreamID that it has.
        substream: Option<u32>,
    },
    /// It is lost: the last of its group will be answered.
    Dropped,
}

/// Why a page request is not put into the queue.
enum Refused {
    /// There is no queue, or it could not be written before.
    Off,
    /// There is no room, or there was none and software has yet to look.
    Overflow,
}

impl<P: Platform, H: Host, C: Chooser> SmmuDevice<P, H, C> {
    /// Takes a page request.
    ///
    /// Task only: the host is asked for memory.
    pub fn page_request(&self, request: &PageRequest) -> PageRequestOutcome {
        let reserved = self.state.lock(&self.platform).reserve_page_request();
        let place = match reserved {
            Ok(place) => place,
            Err(Refused::Off) => return answer(request, PageResponse::Denied, None),
            Err(Refused::Overflow) if request.flags.contains(PageRequestFlags::LAST) => {
                self.state.lock(&self.platform).raise_last();
                let (response, substream) = self.overflow_response(request);
                return answer(request, response, substream);
            }
            Err(Refused::Overflow) => return PageRequestOutcome::Dropped,
        };
        let mut written = Written::Whole;
        let mut address = self.output_address(place.address);
        for word in request.encode() {
            if self.host.write64(address, word).is_err() {
                written = Written::Aborted;
            }
            address = PhysAddr::new(address.as_u64().wrapping_add(8));
        }
        self.state.lock(&self.platform).publish_page_request(place, written, request.flags);
        match written {
            Written::Whole => PageRequestOutcome::Queued,
            // 8.2.
            Written::Aborted => answer(request, PageResponse::Denied, None),
        }
    }

    /// What the unit answers when there is no room (8.1), and with which SubstreamID.
    fn overflow_response(&self, request: &PageRequest) -> (PageResponse, Option<u32>) {
        if request.substream.is_none() || self.config.identification.idr3().contains(Idr3::PPS) {
            return (PageResponse::Success, request.substream);
        }
        let Ok(view) = self.view() else { return (PageResponse::Denied, None) };
        match self.entry(&view, request.stream) {
            Ok(ste) => (PageResponse::Success, request.substream.filter(|_| ste.answers_with_substream())),
            Err(fault) => {
                let unseen = fault.kind == EventKind::C_BAD_STREAMID && !view.cr2.contains(Cr2::RECINVSID);
                if view.cr2.contains(Cr2::REC_CFG_ATS) && !unseen {
                    let lookup = Lookup::new(request.address, Access::Read);
                    self.record(fault.event(request.stream, request.substream, &lookup), Merging::Inhibited);
                }
                (PageResponse::Denied, None)
            }
        }
    }
}

/// An answer of the unit: to the last request of a group when it was lost, to any when nothing is taken;
/// never to a marker.
fn answer(request: &PageRequest, response: PageResponse, substream: Option<u32>) -> PageRequestOutcome {
    match request.is_stop_marker() {
        true => PageRequestOutcome::Dropped,
        false => PageRequestOutcome::Answered { response, substream },
    }
}

impl<P: Platform> State<P> {
    fn reserve_page_request(&mut self) -> Result<Place, Refused> {
        let registers = &mut self.registers;
        // 6.3.9.5: without SMMUEN there are none.
        let enabled = registers.enabled.contains(Cr0::PRIQEN | Cr0::SMMUEN);
        let has_pri = registers.identification().idr0().contains(Idr0::PRI);
        if !has_pri || !enabled || registers.active_errors().contains(Gerror::PRIQ_ABT_ERR) {
            return Err(Refused::Off);
        }
        if output::has_overflowed(&registers.pages) {
            return Err(Refused::Overflow);
        }
        match self.page_writers.reserve(&registers.pages, PAGE_REQUEST_BYTES.trailing_zeros() as u8) {
            Some(place) => Ok(place),
            None => {
                output::overflow(&mut registers.pages);
                Err(Refused::Overflow)
            }
        }
    }

    fn publish_page_request(&mut self, place: Place, written: Written, flags: PageRequestFlags) {
        let registers = &mut self.registers;
        let filled = self.page_writers.publish(&mut registers.pages, place, written);
        if written == Written::Aborted {
            registers.report(Gerror::PRIQ_ABT_ERR);
            return;
        }
        // 6.3.36.
        match registers.interrupts.last_only() {
            true if flags.contains(PageRequestFlags::LAST) => registers.raise(Source::PageRequests),
            false if filled => registers.raise(Source::PageRequests),
            _ => {}
        }
    }

    /// The last request of a group was lost for want of room (6.3.36, LO).
    fn raise_last(&mut self) {
        if self.registers.interrupts.last_only() {
            self.registers.raise(Source::PageRequests);
        }
    }
}
