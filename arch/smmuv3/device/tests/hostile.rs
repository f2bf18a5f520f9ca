//! Guests that write anything anywhere: the unit survives, and every call ends. And a guest that behaves,
//! on a unit that does what it may.

use super::{
    COMMANDS, EVENTS, PAGE, S1_PAGE, STAGE1, STREAM, STREAMS, execute, leaf, put_ste, read, running, settle, stage1,
    stage2, submit, sync, translating, unit_with,
};
use crate::arch::smmuv3::device::{
    Access, Chooser, DeviceConfig, Misuse, PageRequestOutcome, Privilege, Request, Seeded, Step,
};
use crate::arch::smmuv3::layout::commands::{Command, Leaf, TlbRange};
use crate::arch::smmuv3::layout::page_requests::PageRequest;
use crate::arch::smmuv3::layout::registers::offset;
use crate::arch::smmuv3::layout::{Asid, StreamId, Vmid};
use crate::bus::AddressType;
use crate::platform::Registers;

fn random(source: &Seeded) -> u64 {
    let half = || source.choose(1 << 32) as u64;
    let bits = half() << 32 | half();
    // All values, small ones, those that look like descriptors, and those that point somewhere.
    match source.choose(5) {
        0 => bits,
        1 => bits & 0xff,
        2 => bits & 0xffff_f000 | bits >> 54 | 3,
        3 => [COMMANDS, EVENTS, STREAMS, STAGE1][bits as usize & 3] | bits >> 60,
        _ => 1 << (bits & 63),
    }
}

fn request(source: &Seeded) -> Request {
    Request {
        stream: StreamId(random(source) as u32 & 0x1f),
        substream: (source.choose(2) == 0).then(|| random(source) as u32),
        address: if source.choose(2) == 0 { random(source) } else { PAGE },
        access: [Access::Read, Access::Execute, Access::Write, Access::Atomic][source.choose(4)],
        privilege: [Privilege::Unprivileged, Privilege::Privileged][source.choose(2)],
        address_type: [AddressType::Untranslated, AddressType::TranslationRequest, AddressType::Translated]
            [source.choose(3)],
    }
}

#[test]
fn nothing_that_is_written_harms() {
    for seed in 0..80 {
        let source = Seeded::new(seed);
        let mut config = DeviceConfig::default();
        if seed % 4 == 0 {
            // Anything, but that it must have an output size.
            let id = &mut config.identification;
            (id.idr0, id.idr1, id.idr3) = (random(&source) as u32, random(&source) as u32, random(&source) as u32);
            id.idr5 = random(&source) as u32 & !7 | 5;
        }
        let unit = match seed % 2 {
            0 => unit_with(config, Seeded::new(seed)),
            _ => translating(stage1().nested_under(stage2()), config, Seeded::new(seed)),
        };
        for _ in 0..400 {
            let at = source.choose(0xe0) & !3 | [0, 0x1_0000][source.choose(2)];
            match source.choose(8) {
                0 => unit.write32(at, random(&source) as u32),
                1 => unit.write64(at & !7, random(&source)),
                2 => unit.host().put(random(&source) & 0xffff_fff8, random(&source)),
                3 => {
                    let _ = unit.translate(&request(&source));
                }
                4 => submit(&unit, [random(&source), random(&source)]),
                5 => {
                    let page = PageRequest::decode([random(&source), random(&source)]);
                    assert!(matches!(
                        unit.page_request(&page),
                        PageRequestOutcome::Queued | PageRequestOutcome::Answered { .. } | PageRequestOutcome::Dropped
                    ));
                }
                6 => {
                    let word = STREAMS + random(&source) % 64 * 64 + random(&source) % 8 * 8;
                    unit.host().put(word, random(&source));
                }
                _ => {
                    let _ = unit.step();
                    unit.read64(at & !7);
                }
            }
        }
        for _ in 0..1000 {
            let _ = unit.step();
        }
    }
}

#[test]
fn a_guest_that_invalidates_sees_what_it_wrote() {
    for seed in 0..50 {
        let unit = translating(stage1(), DeviceConfig::default(), Seeded::new(seed));
        let mut page = 0x90_0000;
        for turn in 0..20 {
            assert_eq!(read(&unit, PAGE), Ok(page), "seed {seed}, turn {turn}");
            page += 0x1000;
            unit.host().put(leaf(STAGE1, PAGE), page | S1_PAGE);
            let range = TlbRange::page(PAGE);
            let command = Command::TlbNhVa { vmid: Vmid(5), asid: Asid(7), range, leaf: Leaf::Only };
            execute(&unit, command);
        }
        put_ste(&unit, STREAM, Default::default());
        execute(&unit, Command::ConfigSte { stream: STREAM, leaf: Leaf::Only });
        assert!(read(&unit, PAGE).is_err());
        assert_eq!(unit.misuse(), Misuse::empty());
    }
}

/// Leaves for later what it may.
struct Late;

impl Chooser for Late {
    fn choose(&self, choices: usize) -> usize {
        choices - 1
    }
}

#[test]
fn an_invalidation_without_sync_may_never_act() {
    let unit = translating(stage1(), DeviceConfig::default(), Late);
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    unit.host().put(leaf(STAGE1, PAGE), 0);
    submit(&unit, Command::TlbNhAll { vmid: Vmid(5) }.encode());
    settle(&unit);
    assert_eq!((unit.read32(offset::CMDQ_CONS), unit.step()), (1, Step::Idle), "consumed");
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    submit(&unit, sync());
    settle(&unit);
    assert!(read(&unit, PAGE).is_err());
}

#[test]
fn nothing_orders_commands_before_a_sync() {
    // CMD_ATC_INV overtakes CMD_TLBI_NH_ALL.
    let unit = running(DeviceConfig::default(), Late);
    let atc = Command::AtcInvalidate { stream: STREAM, substream: None, address: 0, size_log2: 64 };
    let tlb = Command::TlbNhAll { vmid: Vmid(5) };
    for words in [tlb.encode(), atc.encode(), sync()] {
        submit(&unit, words);
    }
    let mut steps = std::vec::Vec::new();
    loop {
        match unit.step() {
            Step::Idle => break,
            Step::Executed(command) => steps.push(command),
            _ => {}
        }
    }
    assert_eq!(steps, [atc, tlb]);
}

extern crate std;
