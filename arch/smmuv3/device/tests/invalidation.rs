//! What is kept of translations, and what drops it (SMMU 3.17, 4.4).

use super::{
    PAGE, S1_PAGE, S2_PAGE, STAGE1, STAGE2, STREAM, Unit, aborted, cd, execute, leaf, put_cd, put_ste, read, settle,
    stage1, stage2, submit, translating, write,
};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::{Access, DeviceConfig, InOrder, Request, Step};
use crate::arch::smmuv3::layout::commands::{Command, Leaf, TlbRange};
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::registers::offset;
use crate::arch::smmuv3::layout::stream_table::Stage2;
use crate::arch::smmuv3::layout::{Asid, Granule, Ste, StreamId, Vmid};
use crate::platform::Registers;

const V: Vmid = Vmid(5);
const A: Asid = Asid(7);

fn unit(ste: Ste) -> Unit {
    translating(ste, DeviceConfig::default(), InOrder)
}

fn va(asid: Asid, range: TlbRange, leaf: Leaf) -> Command {
    Command::TlbNhVa { vmid: V, asid, range, leaf }
}

fn page() -> TlbRange {
    TlbRange::page(PAGE)
}

/// One granule of 4 KiB, with this level.
fn granule(granule: Granule, ttl: u8) -> TlbRange {
    TlbRange { granule: Some(granule), ttl, ..page() }
}

const FAULT: EventKind = EventKind::F_TRANSLATION;

/// Has PAGE cached, unmaps it, and says whether a command is enough to see that.
fn suffices(ste: Ste, entry: u64, command: Command) -> bool {
    let unit = unit(ste);
    unit.host().put(leaf(STAGE1, PAGE), entry);
    let before = read(&unit, PAGE).unwrap();
    unit.host().put(leaf(STAGE1, PAGE), 0);
    assert_eq!(read(&unit, PAGE), Ok(before), "it is cached");
    execute(&unit, command);
    match read(&unit, PAGE) {
        Err(blocked) => {
            assert_eq!(blocked, aborted(FAULT));
            true
        }
        Ok(after) => {
            assert_eq!(after, before);
            false
        }
    }
}

#[test]
fn what_drops_a_translation_of_stage_1() {
    let own = 0x90_0000 | S1_PAGE;
    let range = |num, scale| TlbRange { address: PAGE - 0x2000, num, scale, ..granule(Granule::Size4K, 0) };
    for (command, expected) in [
        (Command::TlbNhAll { vmid: V }, true),
        (Command::TlbNhAll { vmid: Vmid(6) }, false),
        (Command::TlbNhAll { vmid: Vmid(0) }, false),
        (Command::TlbNhAsid { vmid: V, asid: A }, true),
        (Command::TlbNhAsid { vmid: V, asid: Asid(8) }, false),
        (Command::TlbNhAsid { vmid: Vmid(0), asid: A }, false),
        (va(A, page(), Leaf::Only), true),
        (va(A, TlbRange::page(PAGE + 0x1000), Leaf::AllLevels), false),
        (va(Asid(8), page(), Leaf::AllLevels), false),
        (Command::TlbNhVaa { vmid: V, range: page(), leaf: Leaf::Only }, true),
        (Command::TlbNhVaa { vmid: Vmid(0), range: page(), leaf: Leaf::Only }, false),
        // Granule and level.
        (va(A, granule(Granule::Size4K, 3), Leaf::Only), true),
        (va(A, granule(Granule::Size4K, 2), Leaf::Only), false),
        (va(A, TlbRange { address: 0x80_4000, num: 3, ..granule(Granule::Size16K, 0) }, Leaf::Only), false),
        // From two pages before: two do not reach it, three do, and so do two times two.
        (va(A, range(1, 0), Leaf::Only), false),
        (va(A, range(2, 0), Leaf::Only), true),
        (va(A, range(1, 1), Leaf::Only), true),
        // Of others.
        (Command::TlbS12Vmall { vmid: V }, true),
        (Command::TlbS12Vmall { vmid: Vmid(6) }, false),
        (Command::TlbNsnhAll, true),
        (Command::TlbS2Ipa { vmid: V, range: page(), leaf: Leaf::AllLevels }, false),
        (Command::ConfigAll, false),
    ] {
        assert_eq!(suffices(stage1(), own, command), expected, "{command:?}");
    }
}

#[test]
fn what_drops_a_global_translation() {
    // nG 0.
    let global = 0x90_0000 | S1_PAGE & !(1 << 11);
    for (command, expected) in [
        (Command::TlbNhAsid { vmid: V, asid: A }, false),
        (va(Asid(8), page(), Leaf::Only), true),
        (Command::TlbNhVaa { vmid: V, range: page(), leaf: Leaf::Only }, true),
        (Command::TlbNhAll { vmid: V }, true),
    ] {
        assert_eq!(suffices(stage1(), global, command), expected, "{command:?}");
    }
}

#[test]
fn a_nested_translation_stays_when_its_stage_2_goes() {
    let nested = stage1().nested_under(stage2());
    let ipa = |address, leaf| Command::TlbS2Ipa { vmid: V, range: TlbRange::page(address), leaf };
    for (commands, expected) in [
        (&[ipa(0x90_0000, Leaf::AllLevels)][..], false),
        (&[Command::TlbNhAll { vmid: V }][..], false),
        (&[ipa(0x90_0000, Leaf::Only), va(A, page(), Leaf::Only)][..], true),
        (&[ipa(0x91_0000, Leaf::Only), va(A, page(), Leaf::Only)][..], false),
        (&[Command::TlbS12Vmall { vmid: V }][..], true),
    ] {
        let unit = unit(nested);
        assert_eq!(read(&unit, PAGE), Ok(0xa0_0000));
        unit.host().put(leaf(STAGE2, 0x90_0000), 0);
        assert_eq!(read(&unit, PAGE), Ok(0xa0_0000));
        for command in commands {
            execute(&unit, *command);
        }
        assert_eq!(read(&unit, PAGE).is_err(), expected, "{commands:?}");
    }
}

#[test]
fn what_drops_a_translation_of_stage_2() {
    let ipa = |vmid, address, leaf| Command::TlbS2Ipa { vmid, range: TlbRange::page(address), leaf };
    for (command, expected) in [
        (ipa(V, PAGE, Leaf::Only), true),
        (ipa(V, PAGE + 0x1000, Leaf::AllLevels), false),
        (ipa(Vmid(6), PAGE, Leaf::AllLevels), false),
        (Command::TlbNhAll { vmid: V }, false),
        (Command::TlbNhVaa { vmid: V, range: page(), leaf: Leaf::AllLevels }, false),
        (Command::TlbS12Vmall { vmid: V }, true),
        (Command::TlbNsnhAll, true),
    ] {
        let unit = unit(Ste::stage2(stage2()));
        assert_eq!(read(&unit, PAGE), Ok(0xb0_0000));
        unit.host().put(leaf(STAGE2, PAGE), 0);
        assert_eq!(read(&unit, PAGE), Ok(0xb0_0000));
        execute(&unit, command);
        assert_eq!(read(&unit, PAGE).is_err(), expected, "{command:?}");
    }
}

#[test]
fn tables_stay_with_a_leaf_invalidation() {
    // The third table is replaced.
    for (command, expected) in [
        (va(A, page(), Leaf::Only), Ok(0x90_0000)),
        (va(A, page(), Leaf::AllLevels), Ok(0x92_0000)),
        // TTL 2: tables above level 2 and blocks of level 2 only.
        (
            va(A, TlbRange { address: 0x80_0000, num: 31, ..granule(Granule::Size4K, 2) }, Leaf::AllLevels),
            Ok(0x90_0000),
        ),
        (va(A, granule(Granule::Size4K, 3), Leaf::AllLevels), Ok(0x92_0000)),
        (Command::TlbNhAsid { vmid: V, asid: A }, Ok(0x92_0000)),
        (Command::TlbNhAsid { vmid: V, asid: Asid(8) }, Ok(0x90_0000)),
    ] {
        let unit = unit(stage1());
        assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
        unit.host().put(STAGE1 + 0x1000 + 4 * 8, 0x33_0003);
        unit.host().put(0x33_0000 + (PAGE >> 12 & 511) * 8, 0x92_0000 | S1_PAGE);
        execute(&unit, command);
        assert_eq!(read(&unit, PAGE), expected, "{command:?}");
    }
}

#[test]
fn permissions_are_kept_too() {
    // AP 0b11: read-only for all; from there to read and write.
    let unit = unit(stage1());
    unit.host().put(leaf(STAGE1, PAGE), 0x90_0000 | S1_PAGE | 1 << 7);
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    unit.host().put(leaf(STAGE1, PAGE), 0x90_0000 | S1_PAGE);
    assert_eq!(write(&unit, PAGE), Err(aborted(EventKind::F_PERMISSION)));
    execute(&unit, va(A, page(), Leaf::Only));
    assert_eq!(write(&unit, PAGE), Ok(0x90_0000));
}

#[test]
fn a_fault_is_not_kept() {
    let unit = unit(stage1());
    assert_eq!(read(&unit, PAGE + 0x1000), Err(aborted(FAULT)));
    unit.host().put(leaf(STAGE1, PAGE + 0x1000), 0x91_0000 | S1_PAGE);
    assert_eq!(read(&unit, PAGE + 0x1000), Ok(0x91_0000));
}

#[test]
fn an_address_space_is_one_for_all_streams() {
    let unit = unit(stage1());
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    unit.host().put(leaf(STAGE1, PAGE), 0);
    // The same ASID and VMID: the same translation.
    put_ste(&unit, StreamId(4), stage1());
    let other = Request::new(StreamId(4), PAGE, Access::Read);
    assert_eq!(unit.translate(&other).unwrap().phys, PhysAddr::new(0x90_0000));
    // Another VMID, with stage 1 only: none.
    put_ste(&unit, StreamId(5), stage1().with_vmid(Vmid(6)));
    execute(&unit, Command::ConfigSte { stream: StreamId(5), leaf: Leaf::Only });
    let other = Request::new(StreamId(5), PAGE, Access::Read);
    assert_eq!(unit.translate(&other), Err(aborted(FAULT)));
}

#[test]
fn a_vmid_that_is_used_again() {
    // A guest went, its VMID came back for tables elsewhere.
    let unit = unit(Ste::stage2(stage2()));
    assert_eq!(read(&unit, PAGE), Ok(0xb0_0000));
    super::put_tables(&unit, 0x38_0000);
    unit.host().put(leaf(0x38_0000, PAGE), 0xc0_0000 | S2_PAGE);
    put_ste(&unit, STREAM, Ste::stage2(Stage2 { table: PhysAddr::new(0x38_0000), ..stage2() }));
    execute(&unit, Command::ConfigSte { stream: STREAM, leaf: Leaf::Only });
    assert_eq!(read(&unit, PAGE), Ok(0xb0_0000));
    execute(&unit, Command::TlbS12Vmall { vmid: V });
    assert_eq!(read(&unit, PAGE), Ok(0xc0_0000));
}

#[test]
fn a_cd_that_is_released_lets_what_is_kept_through() {
    let unit = unit(stage1());
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    put_cd(&unit, 0, cd().released());
    execute(&unit, Command::ConfigCd { stream: STREAM, substream: 0, leaf: Leaf::Only });
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    execute(&unit, Command::TlbNhAsid { vmid: V, asid: A });
    assert_eq!(read(&unit, PAGE), Err(aborted(FAULT)));
}

#[test]
fn an_invalidation_acts_when_it_is_executed() {
    let unit = unit(stage1());
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    unit.host().put(leaf(STAGE1, PAGE), 0);
    let command = va(A, page(), Leaf::Only);
    submit(&unit, command.encode());
    assert_eq!(unit.step(), Step::Fetched(command));
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000), "consumed, and not executed");
    assert_eq!(unit.step(), Step::Executed(command));
    assert_eq!(read(&unit, PAGE), Err(aborted(FAULT)));
}

#[test]
fn a_run_of_pages_is_one_translation() {
    let unit = unit(stage1());
    // The contiguous bit, 52: sixteen pages.
    for page in 0..16 {
        unit.host().put(leaf(STAGE1, 0x81_0000 + page * 0x1000), (0x92_0000 + page * 0x1000) | 1 << 52 | S1_PAGE);
    }
    assert_eq!(read(&unit, 0x81_3000), Ok(0x92_3000));
    for page in 0..16 {
        unit.host().put(leaf(STAGE1, 0x81_0000 + page * 0x1000), 0);
    }
    assert_eq!(read(&unit, 0x81_f123), Ok(0x92_f123));
    execute(&unit, va(A, TlbRange::page(0x81_8000), Leaf::Only));
    assert_eq!(read(&unit, 0x81_3000), Err(aborted(FAULT)));
}

#[test]
fn translations_of_hypervisors() {
    let el2va = |asid, range, leaf| Command::TlbEl2Va { asid, range, leaf };
    for (command, without_e2h, with_e2h) in [
        (Command::TlbEl2All, true, true),
        (el2va(A, page(), Leaf::Only), true, true),
        (el2va(Asid(8), page(), Leaf::Only), true, false),
        (el2va(A, TlbRange::page(PAGE + 0x1000), Leaf::AllLevels), false, false),
        (Command::TlbEl2Vaa { range: page(), leaf: Leaf::Only }, true, true),
        (Command::TlbEl2Asid { asid: A }, false, true),
        (Command::TlbEl2Asid { asid: Asid(8) }, false, false),
        (Command::TlbNsnhAll, false, false),
        (Command::TlbNhAll { vmid: V }, false, false),
        (Command::TlbNhVaa { vmid: Vmid(0), range: page(), leaf: Leaf::AllLevels }, false, false),
    ] {
        for (e2h, expected) in [(0, without_e2h), (1, with_e2h)] {
            let mut ste = stage1();
            ste.words[1] |= 2 << 30; // STRW
            let unit = unit(ste);
            unit.write32(offset::CR0, 0b1100);
            settle(&unit);
            unit.write32(offset::CR2, 1 << 1 | e2h);
            unit.write32(offset::CR0, 0b1101);
            settle(&unit);
            assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
            unit.host().put(leaf(STAGE1, PAGE), 0);
            assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
            execute(&unit, command);
            assert_eq!(read(&unit, PAGE).is_err(), expected, "{command:?}, E2H {e2h}");
        }
    }
}

#[test]
fn pages_that_become_a_block_without_break_before_make() {
    for (level, expected) in [(1, Err(aborted(EventKind::F_TLB_CONFLICT))), (2, Ok(0xc0_5000))] {
        let mut config = DeviceConfig::default();
        config.identification.idr3 = config.identification.idr3 & !(3 << 11) | level << 11;
        let unit = translating(stage1(), config, InOrder);
        assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
        // A block of 2 MiB; of another page it is found.
        unit.host().put(STAGE1 + 0x1000 + 4 * 8, 0xc0_0000 | S1_PAGE & !2);
        execute(&unit, va(A, TlbRange::page(PAGE + 0x1000), Leaf::AllLevels));
        assert_eq!(read(&unit, PAGE + 0x1000), Ok(0xc0_6000));
        assert_eq!(read(&unit, PAGE), expected, "BBML {level}");
        execute(&unit, va(A, page(), Leaf::Only));
        assert_eq!(read(&unit, PAGE), Ok(0xc0_5000));
    }
}
