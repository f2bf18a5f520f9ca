//! The invalidation queue, step by step (VT-d 6.5.2).

extern crate std;
use std::vec::Vec;

use super::{DEVICE, Event, Machine, QUEUE, Unit, WAIT, arena, read, unit, with};
use crate::addr::{Iova, PhysAddr};
use crate::arch::vtd::device::{Chooser, DeviceAnswer, DeviceConfig, Seeded, Step, VtdDevice};
use crate::arch::vtd::layout::descriptors::{
    ContextScope, DeviceRange, Drain, IotlbScope, Request, ResponseCode, WaitFlags,
};
use crate::arch::vtd::layout::registers::{Global, offset};
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::ops::{InterruptKind, Msi};
use crate::platform::Registers;

const GLOBAL_CONTEXT: [u64; 2] = [0x11, 0];
const GLOBAL_IOTLB: [u64; 2] = [0x12, 0];
/// For device 00:02.0, everything.
const DEVICE_TLB: [u64; 2] = [0x10_0000_0003, 0x7fff_ffff_ffff_f001];
const BOTH: Drain = Drain::READS.union(Drain::WRITES);

fn started(config: DeviceConfig) -> Unit {
    let unit = unit(config);
    unit.start_queue();
    unit.host().log();
    unit
}

#[test]
fn descriptors_are_fetched_executed_and_waited_for() {
    let unit = started(DeviceConfig::default());
    unit.submit(&[GLOBAL_CONTEXT, [0xd2, 0], WAIT]);
    assert_eq!(unit.step(), Step::Fetched(Request::Context(ContextScope::Global)));
    assert_eq!(unit.read64(offset::IQH), 0x10);
    assert_eq!(unit.step(), Step::Executed(Request::Context(ContextScope::Global)));
    let iotlb = Request::Iotlb(IotlbScope::Global, BOTH);
    assert_eq!((unit.step(), unit.step()), (Step::Fetched(iotlb), Step::Executed(iotlb)));
    assert_eq!(unit.host().log(), [Event::Drain(BOTH)], "6.5.4: before the next wait");
    let wait = Request::Wait { flags: WaitFlags::STATUS_WRITE, address: PhysAddr::new(0x9_0000), data: 1 };
    assert_eq!((unit.step(), unit.step()), (Step::Fetched(wait), Step::Completed(wait)));
    assert_eq!(unit.host().log(), [Event::Status(0x9_0000, 1)]);
    assert_eq!((unit.step(), unit.read64(offset::IQH)), (Step::Idle, 0x30));
}

#[test]
fn drains_are_what_the_unit_and_software_agree_on() {
    let plain = DeviceConfig::default();
    let narrow = DeviceConfig { cap: plain.cap - Cap::DRD, ..plain };
    let newer = DeviceConfig { version: 0x20, ..narrow };
    for (config, low, expected) in [
        (plain, 0x12, None),
        (plain, 0x52, Some(Drain::WRITES)),
        (plain, 0x92, Some(Drain::READS)),
        (narrow, 0xd2, Some(Drain::WRITES)),
        (newer, 0x12, Some(BOTH)),
    ] {
        let unit = started(config);
        unit.process(&[[low, 0]]);
        assert_eq!(unit.host().log(), expected.map(Event::Drain).into_iter().collect::<Vec<_>>(), "{low:#x}");
    }
    let unit = started(with(Cap::empty(), Ecap::SMTS));
    unit.set_root(1 << 10);
    unit.process(&[[0x26, 0]]);
    assert_eq!(unit.host().log(), [Event::Drain(BOTH)], "PASID-based ones always drain");
}

#[test]
fn the_queue_wraps() {
    let unit = started(DeviceConfig::default());
    for _ in 0..3 {
        for _ in 0..100 {
            unit.submit(&[GLOBAL_IOTLB]);
        }
        unit.process(&[WAIT]);
    }
    assert_eq!(unit.read64(offset::IQH), 303 % 256 * 16);
    assert_eq!(unit.host().log().len(), 3);
}

#[test]
fn wide_descriptors() {
    let unit = started(with(Cap::empty(), Ecap::SMTS));
    unit.process(&[GLOBAL_IOTLB, WAIT]);
    assert_eq!((unit.read64(offset::IQH), unit.host().log().len()), (0x40, 1));
    // The upper half is reserved.
    unit.submit(&[]);
    unit.host().poke(QUEUE + 0x40, 0x12);
    unit.host().poke(QUEUE + 0x58, 1);
    unit.write64(offset::IQT, 0x60);
    assert_eq!(unit.step(), Step::QueueError(4));
}

/// 11.4.9.1: bit 4 of IQH is zero with wide descriptors, also when the width changed under the queue.
/// Otherwise the head would never meet the tail.
#[test]
fn the_head_is_aligned_to_its_descriptor() {
    let unit = started(with(Cap::empty(), Ecap::SMTS));
    unit.write64(offset::IQA, QUEUE);
    unit.process(&[GLOBAL_IOTLB]);
    assert_eq!(unit.read64(offset::IQH), 0x10);
    for word in (0..0x1000).step_by(32) {
        unit.host().poke(QUEUE + word, 0x12);
    }
    unit.write64(offset::IQA, QUEUE | 1 << 11);
    unit.write64(offset::IQT, 0x40);
    assert_eq!(unit.run(), 4, "two are fetched and executed");
    assert_eq!(unit.read64(offset::IQH), 0x40);
}

/// IQEI (11.4.9.9), and what stands in memory or registers.
#[test]
fn errors_stop_at_their_descriptor() {
    let unit = started(DeviceConfig::default());
    unit.write32(offset::FEADDR, 0xfee0_0000);
    unit.write32(offset::FECTL, 0);
    unit.process(&[GLOBAL_IOTLB, [0x0, 0], WAIT]);
    assert_eq!((unit.read64(offset::IQH), unit.read32(offset::FSTS)), (0x10, 0x10));
    assert_eq!(unit.read64(offset::IQERCD), 3);
    assert_eq!(unit.host().log(), [Event::Interrupt(Msi { address: PhysAddr::new(0xfee0_0000), data: 0 })]);
    // The tail alone starts nothing.
    unit.host().poke(QUEUE + 0x10, 0x11);
    unit.process(&[WAIT]);
    assert_eq!((unit.read64(offset::IQH), unit.host().log().len()), (0x10, 0));
    // Clearing the error does: the descriptor is fetched again.
    unit.write32(offset::FSTS, 0x10);
    unit.run();
    assert_eq!((unit.read64(offset::IQH), unit.read32(offset::FSTS)), (0x40, 0));
    assert_eq!(unit.host().log(), [Event::Status(0x9_0000, 1); 2]);
}

#[test]
fn a_queue_that_is_not_there() {
    let unit = unit(DeviceConfig::default());
    unit.write64(offset::IQA, 0x1_0000_0000);
    unit.set(Global::QIE);
    unit.write64(offset::IQT, 0x10);
    assert_eq!(unit.step(), Step::QueueError(2));
    assert_eq!((unit.read64(offset::IQH), unit.read64(offset::IQERCD)), (0, 2));
    let beyond = super::unit(DeviceConfig { host_address_bits: 31, ..DeviceConfig::default() });
    beyond.write64(offset::IQA, 0x8000_0000);
    beyond.set(Global::QIE);
    beyond.write64(offset::IQT, 0x10);
    assert_eq!(beyond.step(), Step::QueueError(2), "beyond HAW");
    let tail = started(DeviceConfig::default());
    tail.write64(offset::IQT, 0x1000);
    assert_eq!((tail.step(), tail.read64(offset::IQERCD)), (Step::QueueError(1), 1));
}

#[test]
fn a_queue_is_disabled_when_it_is_quiet() {
    let unit = started(DeviceConfig::default());
    unit.process(&[GLOBAL_IOTLB]);
    unit.unset(Global::QIE);
    assert_eq!(unit.status(), Global::QIE, "the last was no wait");
    unit.process(&[WAIT]);
    assert_eq!((unit.status(), unit.read64(offset::IQH)), (Global::empty(), 0));
    assert_eq!(unit.read64(offset::IQT), 0x20, "the tail is software's");
    unit.submit(&[GLOBAL_IOTLB]);
    assert_eq!(unit.step(), Step::Idle);
}

#[test]
fn a_wait_can_interrupt() {
    let unit = started(DeviceConfig::default());
    unit.write32(offset::IEDATA, 0x31);
    unit.process(&[[0x15, 0]]);
    assert_eq!((unit.read32(offset::ICS), unit.read32(offset::IECTL)), (1, 0xc000_0000));
    unit.write32(offset::IECTL, 0);
    assert_eq!(unit.step(), Step::Interrupted(InterruptKind::InvalidationDone));
    assert_eq!(unit.host().log(), [Event::Interrupt(Msi { address: PhysAddr::new(0), data: 0x31 })]);
    // IWC is set still: not told again.
    unit.process(&[[0x15, 0]]);
    assert_eq!((unit.host().log().len(), unit.read32(offset::IECTL)), (0, 0));
    unit.write32(offset::ICS, 1);
    unit.write32(offset::IECTL, 1 << 31);
    unit.process(&[[0x15, 0]]);
    assert_eq!(unit.read32(offset::IECTL), 0xc000_0000);
    unit.write32(offset::ICS, 1);
    assert_eq!((unit.read32(offset::ICS), unit.read32(offset::IECTL)), (0, 0x8000_0000), "software was faster");
}

#[test]
fn devices_that_do_not_answer() {
    let unit = started(with(Cap::empty(), Ecap::DT));
    unit.host().answer(DEVICE, DeviceAnswer::None);
    unit.process(&[GLOBAL_IOTLB, WAIT, DEVICE_TLB, WAIT]);
    assert_eq!(unit.host().log(), [Event::Status(0x9_0000, 1), Event::DeviceTlb(DEVICE, None, DeviceRange::ALL)]);
    assert_eq!((unit.read32(offset::FSTS), unit.read64(offset::IQERCD)), (0x40, 0x10_0000_0000));
    assert_eq!(unit.read64(offset::IQH), 0x30, "nothing more is fetched");
    unit.write32(offset::FSTS, 0x40);
    unit.run();
    assert_eq!((unit.read64(offset::IQH), unit.host().log().len()), (0x40, 1));
}

#[test]
fn devices_that_answer_wrongly() {
    let unit = started(with(Cap::empty(), Ecap::DT));
    unit.host().answer(DEVICE, DeviceAnswer::Broken);
    unit.process(&[DEVICE_TLB, WAIT]);
    assert_eq!((unit.read32(offset::FSTS), unit.read64(offset::IQERCD)), (0x20, 0x10_0000_0000_0000));
    assert_eq!(unit.host().log().len(), 2, "the queue goes on");
}

#[test]
fn messages_to_devices() {
    let unit = started(with(Cap::empty(), Ecap::SMTS | Ecap::DT | Ecap::PRS));
    unit.set_root(1 << 10);
    let range = DeviceRange { address: Iova::new(0x2000), order: 1 };
    unit.process(&[[0xf_ffff_1234_0008, 0x2800], [0x5_0010_1019, 0x28]]);
    let pasids = Some(crate::arch::vtd::layout::descriptors::DevicePasids::One(0xf_ffff));
    assert_eq!(
        unit.host().log(),
        [Event::DeviceTlb(0x1234, pasids, range), Event::Response(0x10, Some(5), 5, ResponseCode::InvalidRequest),]
    );
}

#[test]
fn the_record_names_the_first_device_that_failed() {
    let unit = started(with(Cap::empty(), Ecap::DT));
    unit.host().answer(DEVICE, DeviceAnswer::Broken);
    unit.host().answer(0x18, DeviceAnswer::Broken);
    unit.process(&[DEVICE_TLB, [0x18_0000_0003, 0]]);
    assert_eq!(unit.read64(offset::IQERCD), 0x10_0000_0000_0000);
    unit.write32(offset::FSTS, 0x20);
    unit.process(&[[0x18_0000_0003, 0]]);
    assert_eq!(unit.read64(offset::IQERCD), 0x18_0000_0000_0000);
}

/// Prefers what comes last: it fetches all it can, then executes the youngest.
struct Backwards;

impl Chooser for Backwards {
    fn choose(&self, choices: usize) -> usize {
        choices - 1
    }
}

#[test]
fn later_requests_overtake_up_to_a_fence() {
    let unit = VtdDevice::with_chooser(arena(), Machine::default(), DeviceConfig::default(), Backwards).unwrap();
    unit.start_queue();
    let status = |data: u64, flags: u64| [data << 32 | 0x5 | flags, 0x9_0000];
    unit.process(&[GLOBAL_IOTLB, status(1, 0x20), status(2, 0x20), status(3, 0x60), status(4, 0x20), status(5, 0x20)]);
    let order: Vec<u32> = unit
        .host()
        .log()
        .into_iter()
        .filter_map(|event| if let Event::Status(_, data) = event { Some(data) } else { None })
        .collect();
    assert_eq!(order, [3, 5, 4, 2, 1]);
}

#[test]
fn a_time_out_that_is_noticed_late_aborts_the_waits_that_were_fetched() {
    let config = with(Cap::empty(), Ecap::DT);
    let unit = VtdDevice::with_chooser(arena(), Machine::default(), config, Backwards).unwrap();
    unit.start_queue();
    unit.host().answer(DEVICE, DeviceAnswer::None);
    unit.process(&[DEVICE_TLB, WAIT, DEVICE_TLB, [0x2_0000_0065, 0x9_0000]]);
    let events = unit.host().log();
    assert!(!events.iter().any(|event| matches!(event, Event::Status(..))), "{events:?}");
    assert_eq!((unit.read64(offset::IQH), unit.read32(offset::FSTS)), (0x40, 0x40));
    unit.write32(offset::FSTS, 0x40);
    unit.process(&[WAIT]);
    assert_eq!(unit.host().log(), [Event::Status(0x9_0000, 1)]);
}

/// Whatever the seed, a wait tells the truth: the translation that was invalidated before it is gone.
#[test]
fn whatever_the_order_a_wait_is_not_early() {
    for seed in 0..200 {
        let config = DeviceConfig::default();
        let unit = VtdDevice::with_chooser(arena(), Machine::default(), config, Seeded::new(seed)).unwrap();
        unit.start_legacy();
        unit.start_queue();
        for round in 1..4_u64 {
            unit.map(0, 3, 0x5000, 0, round << 12 | 3);
            let _ = unit.goes(read(0x5000));
            unit.map(0, 3, 0x5000, 0, (round + 8) << 12 | 3);
            unit.host().log();
            unit.submit(&[GLOBAL_CONTEXT, [0x7_0032, 0x5000], GLOBAL_CONTEXT, WAIT, GLOBAL_CONTEXT]);
            while !unit.host().log().contains(&Event::Status(0x9_0000, 1)) {
                assert_ne!(unit.step(), Step::Idle, "seed {seed}");
            }
            assert_eq!(unit.goes(read(0x5000)), Ok((round + 8) << 12), "seed {seed}");
            unit.process(&[[0x7_0032, 0x5000], WAIT]);
        }
    }
}
