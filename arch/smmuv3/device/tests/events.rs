//! The event queue (SMMU 3.5, 7.2 to 7.4).

use super::{
    EVENTS, HOLE, PAGE, STAGE1, STREAM, aborted, cd, events, leaf, put_cd, put_ste, read, running, settle, stage1,
    stage2, translating, write,
};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::{Access, DeviceConfig, InOrder, Interrupt, Line, Outcome, Request};
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};
use crate::arch::smmuv3::layout::registers::{Gerror, QueueBase, offset};
use crate::arch::smmuv3::layout::{Cd, Ste, StreamId};
use crate::ops::Msi;
use crate::platform::Registers;

const MISSING: u64 = PAGE + 0x1234;

#[test]
fn a_record_word_by_word() {
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    assert_eq!(write(&unit, MISSING), Err(aborted(EventKind::F_TRANSLATION)));
    let words = [0, 8, 16, 24].map(|at| unit.host().get(EVENTS + at));
    // F_TRANSLATION; CLASS IN, a write.
    assert_eq!(words, [3 << 32 | 0x10, 2 << 40, MISSING, 0]);
    assert_eq!(unit.read32(offset::EVENTQ_PROD), 1);
    settle(&unit);
    assert_eq!(unit.host().interrupts(), [Interrupt::Wired(Line::Events)]);
    // Not empty any more: not told again.
    assert!(read(&unit, MISSING).is_err());
    settle(&unit);
    assert!(unit.host().interrupts().is_empty());
    assert!(events(&unit)[1].read);
    assert!(read(&unit, MISSING).is_err());
    settle(&unit);
    assert_eq!(unit.host().interrupts(), [Interrupt::Wired(Line::Events)]);
}

#[test]
fn a_fault_of_stage_2() {
    let unit = translating(stage1().nested_under(stage2()), DeviceConfig::default(), InOrder);
    unit.host().put(leaf(super::STAGE2, 0x90_0000), 0);
    assert_eq!(read(&unit, PAGE + 0x10), Err(aborted(EventKind::F_TRANSLATION)));
    let event = events(&unit)[0];
    assert_eq!((event.stage2, event.class, event.second_address), (true, FaultClass::Input, 0x90_0000));
}

#[test]
fn what_is_not_recorded() {
    let unit = translating(Ste::abort(), DeviceConfig::default(), InOrder);
    assert_eq!(read(&unit, PAGE).unwrap_err().reason, None);
    // R 0.
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    put_cd(&unit, 0, Cd { words: cd().words.map(|word| if word == cd().words[0] { word & !Cd::R } else { word }) });
    assert_eq!(read(&unit, MISSING), Err(aborted(EventKind::F_TRANSLATION)));
    // RECINVSID decides on StreamIDs that are too large.
    let request = Request::new(StreamId(16), PAGE, Access::Read);
    assert_eq!(unit.translate(&request), Err(aborted(EventKind::C_BAD_STREAMID)));
    assert_eq!(events(&unit).len(), 1);
    unit.write32(offset::CR0, 0b1100);
    settle(&unit);
    unit.write32(offset::CR2, 0);
    unit.write32(offset::CR0, 0b1101);
    settle(&unit);
    assert!(unit.translate(&request).is_err());
    assert!(events(&unit).is_empty());
}

#[test]
fn terminated_quietly() {
    // A 0: reads give zeroes.
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    let [low, rest @ ..] = cd().words;
    let mut words = [low & !(1 << 46); 8];
    words[1..].copy_from_slice(&rest);
    put_cd(&unit, 0, Cd { words });
    assert_eq!(read(&unit, MISSING).unwrap_err().outcome, Outcome::Ignored);
    assert_eq!(events(&unit).len(), 1);
}

#[test]
fn an_overflow_is_told_once() {
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    for _ in 0..8 {
        assert!(read(&unit, MISSING).is_err());
    }
    assert_eq!(unit.read32(offset::EVENTQ_PROD), 8, "full, and nothing is lost");
    for _ in 0..2 {
        assert!(read(&unit, MISSING).is_err());
        assert_eq!(unit.read32(offset::EVENTQ_PROD), 1 << 31 | 8);
    }
    // Consumed and not acknowledged: records go on.
    unit.write32(offset::EVENTQ_CONS, 8);
    assert!(read(&unit, MISSING).is_err());
    assert_eq!(unit.read32(offset::EVENTQ_PROD), 1 << 31 | 9);
    assert_eq!(events(&unit).len(), 1);
    for _ in 0..9 {
        assert!(read(&unit, MISSING).is_err());
    }
    assert_eq!(unit.read32(offset::EVENTQ_PROD), 1, "toggled back");
}

#[test]
fn a_queue_that_is_off_or_not_there() {
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    unit.write32(offset::CR0, 0b1001);
    settle(&unit);
    assert!(read(&unit, MISSING).is_err());
    assert_eq!(unit.read32(offset::EVENTQ_PROD), 0, "lost without a trace");
    unit.write64(offset::EVENTQ_BASE, QueueBase::new(PhysAddr::new(HOLE), 3).0);
    unit.write32(offset::CR0, 0b1101);
    settle(&unit);
    assert!(read(&unit, MISSING).is_err());
    assert_eq!((unit.read32(offset::EVENTQ_PROD), unit.read32(offset::GERROR)), (0, Gerror::EVENTQ_ABT_ERR.bits()));
    settle(&unit);
    assert_eq!(unit.host().interrupts(), [Interrupt::Wired(Line::GlobalErrors)]);
}

#[test]
fn like_events_are_merged_where_the_stream_permits() {
    let unit = translating(stage1().with_merged_events(), DeviceConfig::default(), InOrder);
    for address in [MISSING, MISSING + 8, MISSING + 0x1000, MISSING] {
        assert!(read(&unit, address).is_err());
    }
    assert_eq!(events(&unit).len(), 3);
    assert!(read(&unit, MISSING).is_err());
    assert_eq!(events(&unit).len(), 1, "what was consumed stands for nothing");
    put_ste(&unit, StreamId(4), stage1());
    let request = Request::new(StreamId(4), MISSING, Access::Read);
    for _ in 0..2 {
        assert!(unit.translate(&request).is_err());
    }
    assert_eq!(events(&unit).len(), 2);
}

#[test]
fn a_table_that_is_not_there() {
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    unit.host().put(STAGE1, HOLE | 3);
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::F_WALK_EABT)));
    let event = events(&unit)[0];
    assert_eq!((event.stream, event.second_address, event.class), (STREAM, HOLE + 4 * 8, FaultClass::TranslationTable));
    let unit = running(DeviceConfig::default(), InOrder);
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_STE)));
}

#[test]
fn events_are_told_by_message() {
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    unit.write32(offset::IRQ_CTRL, 0);
    settle(&unit);
    unit.write64(offset::EVENTQ_IRQ_CFG0, 0x8090_0040);
    unit.write32(offset::EVENTQ_IRQ_CFG1, 0x77);
    // What happened while it was off is not told later.
    assert!(read(&unit, MISSING).is_err());
    unit.write32(offset::IRQ_CTRL, 0b101);
    settle(&unit);
    assert!(unit.host().interrupts().is_empty());
    assert_eq!(events(&unit).len(), 1);
    assert!(read(&unit, MISSING).is_err());
    settle(&unit);
    // Nothing is there.
    assert_eq!(unit.read32(offset::GERROR), Gerror::MSI_EVENTQ_ABT_ERR.bits());
    assert_eq!(unit.host().interrupts(), [Interrupt::Wired(Line::GlobalErrors)]);
    assert_eq!(events(&unit).len(), 1);
    unit.write32(offset::IRQ_CTRL, 0b001);
    settle(&unit);
    unit.write64(offset::EVENTQ_IRQ_CFG0, 0x809_0040);
    unit.write32(offset::IRQ_CTRL, 0b101);
    settle(&unit);
    assert!(read(&unit, MISSING).is_err());
    settle(&unit);
    let message = Msi { address: PhysAddr::new(0x809_0040), data: 0x77 };
    assert_eq!(unit.host().interrupts(), [Interrupt::Message(message)]);
}

#[test]
fn an_error_that_cannot_be_told() {
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    unit.write32(offset::IRQ_CTRL, 0);
    settle(&unit);
    unit.write64(offset::GERROR_IRQ_CFG0, HOLE);
    unit.write32(offset::IRQ_CTRL, 1);
    settle(&unit);
    super::submit(&unit, [0xff, 0]);
    settle(&unit);
    // MSI_GERROR_ABT_ERR, of which no message tells.
    assert_eq!(unit.read32(offset::GERROR), 1 << 7 | 1);
}
