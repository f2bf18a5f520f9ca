//! The page request queue (VT-d 7.4, 7.5, Tables 27 and 31).

extern crate std;
use std::sync::Arc;

use super::scalable::{DTE, PASIDE, PRE, configured};
use super::{DEVICE, Event, Unit, read, unit};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::DeviceConfig;
use crate::arch::vtd::device::PageRequestOutcome::{Answered, Dropped, Queued};
use crate::arch::vtd::layout::descriptors::{PageRequest, PageRequestFlags, ResponseCode};
use crate::arch::vtd::layout::registers::offset;
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::ops::Msi;
use crate::platform::Registers;

const PAGE_QUEUE: u64 = 0xa_0000;

fn started(context: u64) -> Unit {
    let unit = unit(configured(Cap::empty()));
    unit.start_scalable(context);
    unit.write64(offset::PQA, PAGE_QUEUE);
    unit.write32(offset::PEDATA, 0x61);
    unit.write32(offset::PECTL, 0);
    unit
}

const LAST: PageRequest = PageRequest {
    source: DEVICE,
    pasid: Some(1),
    address: 0x5000,
    group: 3,
    flags: PageRequestFlags::READ.union(PageRequestFlags::LAST),
};
const FIRST: PageRequest = PageRequest { flags: PageRequestFlags::WRITE, ..LAST };

#[test]
fn requests_are_queued_and_told_once() {
    let unit = started(DTE | PASIDE | PRE);
    assert_eq!(unit.page_request(&FIRST), Queued);
    assert_eq!(unit.page_request(&PageRequest { pasid: None, ..LAST }), Queued);
    let words = |index: u64| [0, 8, 16, 24].map(|at| unit.host().peek(PAGE_QUEUE + index * 32 + at));
    assert_eq!(words(0), [0x1_0010_0101, 0x501a, 0, 0]);
    assert_eq!(words(1), [0x10_0001, 0x501d, 0, 0]);
    assert_eq!((unit.read64(offset::PQT), unit.read32(offset::PRS)), (0x40, 1));
    unit.run();
    assert_eq!(unit.host().log(), [Event::Interrupt(Msi { address: PhysAddr::new(0), data: 0x61 })]);
    unit.write64(offset::PQH, 0x40);
    unit.write32(offset::PRS, 1);
    assert_eq!(unit.read32(offset::PRS), 0);
    assert_eq!(unit.page_request(&FIRST), Queued);
    assert_eq!((unit.run(), unit.host().log().len()), (1, 1));
}

#[test]
fn a_full_queue_answers_by_itself_until_software_has_looked() {
    let unit = started(DTE | PASIDE | PRE);
    unit.write64(offset::PQH, 0x40);
    assert_eq!(unit.page_request(&FIRST), Queued);
    assert_eq!(unit.page_request(&LAST), Answered(ResponseCode::Success));
    assert_eq!((unit.read32(offset::PRS), unit.read64(offset::PQT)), (3, 0x20));
    unit.write64(offset::PQH, 0x20);
    assert_eq!((unit.page_request(&FIRST), unit.page_request(&LAST)), (Dropped, Answered(ResponseCode::Success)));
    unit.write32(offset::PRS, 2);
    assert_eq!((unit.page_request(&LAST), unit.read64(offset::PQT)), (Queued, 0x40));
    // The end of the queue (PQS 0: one page).
    unit.write64(offset::PQT, 0xfe0);
    assert_eq!((unit.page_request(&LAST), unit.read64(offset::PQT)), (Queued, 0));
}

/// 7.1.3, the columns of page requests: the fault is recorded, and a last request is answered.
#[test]
fn faults_of_page_requests() {
    for (context, request, reason) in [
        (DTE | PASIDE, LAST, 0x47),
        (DTE | PRE, LAST, 0x45),
        (DTE | PASIDE | PRE, PageRequest { pasid: Some(0), ..LAST }, 0x48),
        (DTE | PASIDE | PRE, PageRequest { pasid: Some(2), ..LAST }, 0x59),
        (DTE | PASIDE | PRE, PageRequest { pasid: Some(1 << 13), ..LAST }, 0x46),
        (PASIDE | PRE, LAST, 0x43),
        (DTE | PASIDE | PRE, PageRequest { source: 0x18, ..LAST }, 0x41),
    ] {
        let unit = started(context);
        assert_eq!(unit.page_request(&request), Answered(ResponseCode::InvalidRequest), "{reason:#x}");
        // T1 0, T2 1: a page request.
        let high = unit.read64(0x228);
        assert_eq!((high >> 32 & 0xff, high >> 62, high >> 28 & 1), (reason, 2, 1), "{reason:#x}");
        assert_eq!((unit.read64(0x220), unit.read64(offset::PQT)), (0x5000, 0));
        let first = PageRequest { flags: PageRequestFlags::WRITE, ..request };
        assert_eq!(unit.page_request(&first), Dropped);
    }
    let legacy = super::unit(configured(Cap::empty()));
    legacy.start_legacy();
    assert_eq!(legacy.page_request(&LAST), Answered(ResponseCode::InvalidRequest));
    assert_eq!(legacy.read64(0x228) >> 32 & 0xff, 0x32, "RTA.3");
}

/// 7.4.1: the tail moves when what is before it is visible; 6.5.2.9: so does a wait that drains.
#[test]
fn the_tail_waits_for_all_that_are_being_written() {
    let config = configured(Cap::empty());
    let unit = Arc::new(super::unit(DeviceConfig { ecap: config.ecap | Ecap::PDS, ..config }));
    unit.start_scalable(DTE | PASIDE | PRE);
    unit.write64(offset::PQA, PAGE_QUEUE);
    let weak = Arc::downgrade(&unit);
    unit.host().trap(PAGE_QUEUE + 8, move || {
        let unit = weak.upgrade().unwrap();
        assert_eq!(unit.page_request(&LAST), Queued);
        assert_eq!(unit.read64(offset::PQT), 0);
        unit.process(&[[1 << 32 | 0xa5, 0x9_0000]]);
        assert_eq!(unit.host().log(), []);
    });
    assert_eq!(unit.page_request(&FIRST), Queued);
    assert_eq!(unit.read64(offset::PQT), 0x40);
    assert_eq!([unit.host().peek(PAGE_QUEUE + 8), unit.host().peek(PAGE_QUEUE + 40)], [0x501a, 0x501d]);
    unit.run();
    assert_eq!(unit.host().log(), [Event::Status(0x9_0000, 1)]);
}

/// Table 27.
#[test]
fn a_page_request_drops_what_is_cached_for_its_page() {
    let unit = started(DTE | PASIDE | PRE);
    unit.map(0, 3, 0x5000, 0, 0x7000 | 1);
    unit.map(0, 3, 0x6000, 0, 0x8000 | 1);
    unit.goes(read(0x5000)).unwrap();
    unit.goes(read(0x6000)).unwrap();
    unit.map(0, 3, 0x5000, 0, 0x9000 | 1);
    unit.map(0, 3, 0x6000, 0, 0xa000 | 1);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
    assert_eq!(unit.page_request(&PageRequest { pasid: None, ..LAST }), Queued);
    assert_eq!((unit.goes(read(0x5000)), unit.goes(read(0x6000))), (Ok(0x9000), Ok(0x8000)));
}
