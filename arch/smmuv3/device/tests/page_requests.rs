//! Page requests (SMMU 8).

use super::{HOLE, STREAM, Unit, execute, put_ste, running, settle, stage1};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::{DeviceConfig, InOrder, Interrupt, Line, PageRequestOutcome};
use crate::arch::smmuv3::layout::commands::{Command, PageResponse};
use crate::arch::smmuv3::layout::page_requests::{PageRequest, PageRequestFlags};
use crate::arch::smmuv3::layout::registers::{Gerror, IrqCtrl, QueueBase, offset};
use crate::platform::Registers;

const PAGES: u64 = 0x12_0000;
const LAST: PageRequest = PageRequest {
    stream: STREAM,
    substream: Some(9),
    group: 0x105,
    address: 0x7000,
    flags: PageRequestFlags::READ.union(PageRequestFlags::LAST),
};
const FIRST: PageRequest = PageRequest { flags: PageRequestFlags::READ, ..LAST };

/// A queue of 4.
fn unit(base: u64, last_only: u32) -> Unit {
    let unit = running(DeviceConfig::default(), InOrder);
    unit.write64(offset::PRIQ_BASE, QueueBase::new(PhysAddr::new(base), 2).0);
    unit.write32(offset::PRIQ_PROD, 0);
    unit.write32(offset::PRIQ_CONS, 0);
    unit.write64(offset::PRIQ_IRQ_CFG0, 0);
    unit.write32(offset::PRIQ_IRQ_CFG2, last_only);
    unit.write32(offset::IRQ_CTRL, IrqCtrl::all().bits());
    unit.write32(offset::CR0, 0b1111);
    settle(&unit);
    assert_eq!(unit.read32(offset::IRQ_CTRLACK), 7);
    unit
}

fn answered(response: PageResponse, substream: Option<u32>) -> PageRequestOutcome {
    PageRequestOutcome::Answered { response, substream }
}

#[test]
fn a_request_and_its_answer() {
    let unit = unit(PAGES, 0);
    assert_eq!(unit.page_request(&LAST), PageRequestOutcome::Queued);
    assert_eq!((unit.host().get(PAGES), unit.host().get(PAGES + 8)), (0xd000_0009_0000_0003, 0x7105));
    assert_eq!(unit.read32(offset::PRIQ_PROD), 1);
    settle(&unit);
    assert_eq!(unit.host().interrupts(), [Interrupt::Wired(Line::PageRequests)]);
    let command =
        Command::PriResponse { stream: STREAM, substream: Some(9), group: 0x105, response: PageResponse::Success };
    execute(&unit, command);
    assert_eq!(*unit.host().responses.lock().unwrap(), [(STREAM, Some(9), 0x105, PageResponse::Success)]);
}

#[test]
fn an_overflow_holds_until_it_is_acknowledged() {
    let unit = unit(PAGES, 0);
    for _ in 0..4 {
        assert_eq!(unit.page_request(&FIRST), PageRequestOutcome::Queued);
    }
    assert_eq!(unit.page_request(&FIRST), PageRequestOutcome::Dropped);
    assert_eq!(unit.read32(offset::PRIQ_PROD), 1 << 31 | 4);
    // Without an STE nobody knows whether the answer has a SubstreamID.
    assert_eq!(unit.page_request(&LAST), answered(PageResponse::Denied, None));
    let plain = PageRequest { substream: None, ..LAST };
    assert_eq!(unit.page_request(&plain), answered(PageResponse::Success, None));
    put_ste(&unit, STREAM, stage1());
    execute(&unit, Command::ConfigAll);
    assert_eq!(unit.page_request(&LAST), answered(PageResponse::Success, None));
    let marker = PageRequest { flags: PageRequestFlags::LAST, ..LAST };
    assert_eq!(unit.page_request(&marker), PageRequestOutcome::Dropped);
    // Room alone is not enough.
    unit.write32(offset::PRIQ_CONS, 4);
    assert_eq!(unit.page_request(&FIRST), PageRequestOutcome::Dropped);
    unit.write32(offset::PRIQ_CONS, 1 << 31 | 4);
    assert_eq!(unit.page_request(&FIRST), PageRequestOutcome::Queued);
    assert_eq!(unit.read32(offset::PRIQ_PROD), 1 << 31 | 5);
}

#[test]
fn told_of_the_last_only() {
    let unit = unit(PAGES, 1 << 31);
    assert_eq!(unit.page_request(&FIRST), PageRequestOutcome::Queued);
    settle(&unit);
    assert!(unit.host().interrupts().is_empty());
    for _ in 0..2 {
        assert_eq!(unit.page_request(&LAST), PageRequestOutcome::Queued);
        settle(&unit);
        assert_eq!(unit.host().interrupts(), [Interrupt::Wired(Line::PageRequests)]);
    }
}

#[test]
fn a_queue_that_is_off_or_not_there() {
    let unit = running(DeviceConfig::default(), InOrder);
    assert_eq!(unit.page_request(&FIRST), answered(PageResponse::Denied, None));
    let unit = self::unit(HOLE, 0);
    assert_eq!(unit.page_request(&FIRST), answered(PageResponse::Denied, None));
    assert_eq!((unit.read32(offset::PRIQ_PROD), unit.read32(offset::GERROR)), (0, Gerror::PRIQ_ABT_ERR.bits()));
    assert_eq!(unit.page_request(&FIRST), answered(PageResponse::Denied, None));
}
