//! The command queue (SMMU 4.1, 4.7.3, 7.1).

use super::{COMMANDS, HOLE, running, settle, submit, sync};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::{DeviceConfig, InOrder, Interrupt, Line, Misuse, Step};
use crate::arch::smmuv3::layout::StreamId;
use crate::arch::smmuv3::layout::commands::{Command, Completion};
use crate::arch::smmuv3::layout::registers::{CommandError, offset};
use crate::ops::Msi;
use crate::platform::Registers;

fn unit() -> super::Unit {
    running(DeviceConfig::default(), InOrder)
}

fn signalled(address: u64, data: u32) -> [u64; 2] {
    let address = PhysAddr::new(address);
    Command::Sync { completion: Completion::Interrupt { address, data, attributes: 0, shareability: 0 } }.encode()
}

#[test]
fn a_sync_is_consumed_when_it_is_complete() {
    let unit = unit();
    submit(&unit, Command::ConfigAll.encode());
    submit(&unit, sync());
    // Another command is consumed before it is executed.
    assert_eq!(unit.step(), Step::Fetched(Command::ConfigAll));
    assert_eq!(unit.read32(offset::CMDQ_CONS), 1);
    assert_eq!(unit.step(), Step::Executed(Command::ConfigAll));
    assert_eq!(unit.step(), Step::Fetched(Command::Sync { completion: Completion::None }));
    assert_eq!((unit.read32(offset::CMDQ_CONS), *unit.host().drains.lock().unwrap()), (1, 0));
    assert_eq!(unit.step(), Step::Completed(Completion::None));
    assert_eq!(*unit.host().drains.lock().unwrap(), 1, "what was translated before is through");
    assert_eq!((unit.read32(offset::CMDQ_CONS), unit.step()), (2, Step::Idle));
    assert!(unit.host().interrupts().is_empty());
}

#[test]
fn indices_wrap() {
    let unit = unit();
    for turn in 0..20 {
        submit(&unit, sync());
        settle(&unit);
        assert_eq!(unit.read32(offset::CMDQ_CONS), (turn + 1) % 16);
    }
    assert_eq!(unit.misuse(), Misuse::empty());
    for _ in 0..9 {
        submit(&unit, sync());
    }
    assert_eq!(unit.misuse(), Misuse::INDEX, "9 of 8");
}

#[test]
fn completion_by_message_or_wire() {
    let unit = unit();
    submit(&unit, signalled(0x8000, 0x1234));
    settle(&unit);
    let message = Msi { address: PhysAddr::new(0x8000), data: 0x1234 };
    assert_eq!(unit.host().interrupts(), [Interrupt::Message(message)]);
    submit(&unit, signalled(0, 0x1234));
    settle(&unit);
    assert_eq!(unit.host().interrupts(), [Interrupt::Wired(Line::CommandSync)]);
    // MSI_CMDQ_ABT_ERR; the command is complete all the same.
    submit(&unit, signalled(HOLE, 1));
    settle(&unit);
    assert_eq!((unit.read32(offset::CMDQ_CONS), unit.read32(offset::GERROR)), (3, 1 << 4));
    assert_eq!(unit.host().interrupts(), [Interrupt::Wired(Line::GlobalErrors)]);
    // Active already: not toggled again.
    submit(&unit, signalled(HOLE, 1));
    settle(&unit);
    assert_eq!(unit.read32(offset::GERROR), 1 << 4);
    unit.write32(offset::GERRORN, 1 << 4);
    submit(&unit, signalled(HOLE, 1));
    settle(&unit);
    assert_eq!((unit.read32(offset::GERROR), unit.misuse()), (0, Misuse::empty()));
}

#[test]
fn an_illegal_command_stops_the_queue_until_it_is_acknowledged() {
    let unit = unit();
    submit(&unit, sync());
    submit(&unit, [0xff, 0]);
    submit(&unit, sync());
    settle(&unit);
    // ERR 1, RD at the command.
    assert_eq!((unit.read32(offset::CMDQ_CONS), unit.read32(offset::GERROR)), (0x0100_0001, 1));
    assert_eq!(unit.host().interrupts(), [Interrupt::Wired(Line::GlobalErrors)]);
    // What is at RD is fetched again, after the error is acknowledged.
    unit.host().put(COMMANDS + 16, sync()[0]);
    settle(&unit);
    assert_eq!(unit.read32(offset::CMDQ_CONS), 0x0100_0001);
    unit.write32(offset::GERRORN, 1);
    settle(&unit);
    assert_eq!((unit.read32(offset::CMDQ_CONS), unit.misuse()), (3, Misuse::empty()));
    unit.write32(offset::GERRORN, 0);
    assert_eq!(unit.misuse(), Misuse::INACTIVE_ERROR);
}

#[test]
fn commands_may_be_taken_back_while_an_error_stops_them() {
    let unit = unit();
    submit(&unit, [0xff, 0]);
    submit(&unit, sync());
    settle(&unit);
    unit.write32(offset::CMDQ_PROD, 0);
    assert_eq!(unit.misuse(), Misuse::empty());
    unit.write32(offset::GERRORN, 1);
    settle(&unit);
    assert_eq!(unit.read32(offset::CMDQ_CONS) & 0xf, 0);
    submit(&unit, sync());
    submit(&unit, sync());
    unit.write32(offset::CMDQ_PROD, 1);
    assert_eq!(unit.misuse(), Misuse::INDEX);
}

#[test]
fn a_queue_that_is_not_there() {
    let unit = unit();
    unit.write32(offset::CR0, 0);
    settle(&unit);
    unit.write64(offset::CMDQ_BASE, HOLE | 3);
    unit.write32(offset::CMDQ_PROD, 1);
    unit.write32(offset::CR0, 8);
    settle(&unit);
    assert_eq!((unit.read32(offset::CMDQ_CONS), unit.read32(offset::GERROR)), (0x0200_0000, 1));
}

#[test]
fn commands_that_are_illegal() {
    let without = |idr0: u32, idr3: u32| {
        let mut config = DeviceConfig::default();
        config.identification.idr0 &= !idr0;
        config.identification.idr3 &= !idr3;
        config
    };
    let cases: [(DeviceConfig, [u64; 2], &str); 19] = [
        (DeviceConfig::default(), [0x00, 0], "no opcode"),
        (DeviceConfig::default(), [0x07, 0], "CMD_CFGI_VMS_PIDM without MPAM"),
        (without(1 << 9, 0), [0x20, 0], "EL2 without Hyp"),
        (without(1 << 9, 0), [0x22, 0], "EL2 without Hyp"),
        (DeviceConfig::default(), [1 << 10 | 0x03, 1], "SSec"),
        (DeviceConfig::default(), [1 << 20 | 0x03, 1], "a reserved bit"),
        (DeviceConfig::default(), [0x46 | 3 << 12, 0], "CS 3"),
        (DeviceConfig::default(), [0x12, 1 << 10 | 1], "a range of one granule without a level"),
        (DeviceConfig::default(), [0x12, 2 << 10 | 1 << 8], "16 KiB has no leaves at level 1"),
        (DeviceConfig::default(), [1 << 12 | 0x12, 0], "NUM without TG"),
        (DeviceConfig::default(), [0x40, 53], "a size beyond all"),
        (DeviceConfig::default(), [0x41, 3 << 12], "no response"),
        (without(0, 1 << 10), [1 << 12 | 0x12, 1 << 10], "a range without RIL"),
        (without(1 << 1, 0), [0x10, 0], "CMD_TLBI_NH_ALL without stage 1"),
        (without(1 << 1, 0), [0x05, 0], "CMD_CFGI_CD without stage 1"),
        (without(1 << 0, 0), [0x28, 0], "CMD_TLBI_S12_VMALL without stage 2"),
        (without(1 << 0, 0), [0x2a, 0], "CMD_TLBI_S2_IPA without stage 2"),
        (without(1 << 10 | 1 << 16, 0), [0x40, 0], "CMD_ATC_INV without ATS"),
        (without(1 << 16, 0), [0x41, 0], "CMD_PRI_RESP without PRI"),
    ];
    for (config, words, what) in cases {
        let unit = running(config, InOrder);
        submit(&unit, words);
        settle(&unit);
        assert_eq!(unit.read32(offset::CMDQ_CONS), 0x0100_0000, "{what}");
    }
    let mut config = DeviceConfig::default();
    config.identification.idr0 |= 1 << 24;
    for opcode in [0x44, 0x45] {
        let unit = running(config, InOrder);
        submit(&unit, [opcode, 0]);
        settle(&unit);
        assert_eq!(unit.read32(offset::CMDQ_CONS), 0x0100_0000, "stalls are not configurable");
    }
}

#[test]
fn commands_that_are_legal() {
    let unit = unit();
    // CMD_TLBI_NH_VA with SCALE 32: six bits; CMD_RESUME with Retry and Ab.
    for words in [[32 << 20 | 0x12, 1 << 10], [0x44 | 3 << 12, 5], [0x02 | 1 << 11, 0x1000 | 3], [0x30, 0]] {
        submit(&unit, words);
        settle(&unit);
    }
    assert_eq!((unit.read32(offset::CMDQ_CONS), unit.misuse()), (4, Misuse::empty()));
}

#[test]
fn parameters_out_of_range() {
    let mut config = DeviceConfig::default();
    config.identification.idr0 &= !(1 << 12 | 1 << 18);
    let unaligned = [31 << 12 | 0x12, 1 << 10 | 2 << 8 | 0x1000];
    for words in [[1 << 56 | 0x11, 0], [1 << 40 | 0x10, 0], [0x1_0000 << 32 | 0x03, 1], unaligned] {
        let unit = running(config, InOrder);
        submit(&unit, words);
        settle(&unit);
        assert_eq!((unit.read32(offset::CMDQ_CONS), unit.misuse()), (1, Misuse::PARAMETER), "{words:x?}");
    }
}

#[test]
fn a_device_that_does_not_answer_fails_the_sync() {
    let unit = unit();
    *unit.host().deaf.lock().unwrap() = true;
    let command = Command::AtcInvalidate { stream: StreamId(2), substream: None, address: 0x5000, size_log2: 14 };
    submit(&unit, command.encode());
    submit(&unit, sync());
    settle(&unit);
    assert_eq!((unit.read32(offset::CMDQ_CONS), unit.read32(offset::GERROR)), (0x0300_0001, 1));
    assert_eq!(*unit.host().invalidations.lock().unwrap(), [(StreamId(2), None, 0x4000, 14)]);
    // The same CMD_SYNC is complete the next time.
    unit.write32(offset::GERRORN, 1);
    settle(&unit);
    assert_eq!((unit.read32(offset::CMDQ_CONS), CommandError::of_cons(0x0300_0001)), (2, CommandError::AtcInvSync));
}
