//! What is kept of STEs and CDs, and until when (SMMU 4.3, 5.2.1).

use super::{
    CDS, PAGE, STREAM, STREAMS, aborted, cd, events, execute, put_all, put_cd, put_ste, read, running, settle, stage1,
    stage2, translating,
};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::{Access, Blocked, DeviceConfig, InOrder, Outcome, Request};
use crate::arch::smmuv3::layout::commands::{Command, Leaf};
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::registers::{Gbpa, StreamTableFormat, StrtabBaseCfg, offset};
use crate::arch::smmuv3::layout::stream_table::{CdTableFormat, DefaultSubstream};
use crate::arch::smmuv3::layout::{Asid, Ste, StreamId};
use crate::platform::Registers;

const ABORTED: Blocked = Blocked { outcome: Outcome::Abort, reason: None };

#[test]
fn each_kind_of_stream() {
    let unit = translating(Ste::bypass(), DeviceConfig::default(), InOrder);
    assert_eq!(read(&unit, PAGE), Ok(PAGE));
    for (ste, expected) in [
        (Ste::abort(), Err(ABORTED)),
        (stage1(), Ok(0x90_0123)),
        (Ste::stage2(stage2()), Ok(0xb0_0123)),
        (stage1().nested_under(stage2()), Ok(0xa0_0123)),
        (Ste::default(), Err(aborted(EventKind::C_BAD_STE))),
    ] {
        put_ste(&unit, STREAM, ste);
        execute(&unit, Command::ConfigSte { stream: STREAM, leaf: Leaf::Only });
        execute(&unit, Command::TlbNsnhAll);
        assert_eq!(read(&unit, PAGE + 0x123), expected, "{ste:x?}");
    }
}

#[test]
fn while_the_unit_is_off_gbpa_decides() {
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    unit.write32(offset::CR0, 0);
    settle(&unit);
    assert_eq!(read(&unit, PAGE), Ok(PAGE));
    unit.write32(offset::GBPA, Gbpa::ABORT | Gbpa::UPDATE);
    assert_eq!(read(&unit, PAGE), Ok(PAGE), "not yet");
    settle(&unit);
    assert_eq!(read(&unit, PAGE), Err(ABORTED));
}

#[test]
fn an_ste_is_kept_in_whatever_state_it_was_read() {
    let unit = translating(Ste::default(), DeviceConfig::default(), InOrder);
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_STE)));
    put_ste(&unit, STREAM, Ste::bypass());
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_STE)), "V = 0 is cached");
    execute(&unit, Command::ConfigSte { stream: StreamId(2), leaf: Leaf::Only });
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_STE)), "another stream's");
    execute(&unit, Command::ConfigSte { stream: STREAM, leaf: Leaf::Only });
    assert_eq!(read(&unit, PAGE), Ok(PAGE));
    // 1 << 1 streams around 2: 2 and 3.
    put_ste(&unit, STREAM, Ste::abort());
    assert_eq!(read(&unit, PAGE), Ok(PAGE));
    execute(&unit, Command::ConfigSteRange { stream: StreamId(2), range: 0 });
    assert_eq!(read(&unit, PAGE), Err(ABORTED));
    put_ste(&unit, STREAM, Ste::bypass());
    execute(&unit, Command::ConfigAll);
    assert_eq!(read(&unit, PAGE), Ok(PAGE));
}

#[test]
fn what_cannot_be_read_is_not_kept() {
    let unit = running(DeviceConfig::default(), InOrder);
    unit.write32(offset::CR0, 0);
    settle(&unit);
    unit.write64(offset::STRTAB_BASE, super::HOLE);
    unit.write32(offset::CR0, 0b1101);
    settle(&unit);
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::F_STE_FETCH)));
    assert_eq!(events(&unit)[0].second_address, super::HOLE + 3 * 64);
}

#[test]
fn a_cd_is_kept_with_the_stream() {
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    put_cd(&unit, 0, Default::default());
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    execute(&unit, Command::ConfigCd { stream: STREAM, substream: 1, leaf: Leaf::AllLevels });
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000), "another index");
    execute(&unit, Command::ConfigCd { stream: STREAM, substream: 0, leaf: Leaf::Only });
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_CD)));
    put_cd(&unit, 0, cd());
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_CD)), "also with V = 0");
    execute(&unit, Command::ConfigCdAll { stream: STREAM });
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    put_cd(&unit, 0, Default::default());
    execute(&unit, Command::ConfigSte { stream: STREAM, leaf: Leaf::Only });
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_CD)), "an STE takes its CDs with it");
}

#[test]
fn a_level_1_stream_descriptor_stays_with_a_leaf_invalidation() {
    let unit = translating(stage1(), DeviceConfig::default(), InOrder);
    unit.write32(offset::CR0, 0);
    settle(&unit);
    // 1024 streams, 64 behind each descriptor; the one of ours is at 0x28_0000.
    unit.write64(offset::STRTAB_BASE, 0x28_0000);
    unit.write32(offset::STRTAB_BASE_CFG, StrtabBaseCfg::new(StreamTableFormat::TwoLevel { split: 6 }, 10).0);
    unit.write32(offset::CR0, 0b1101);
    settle(&unit);
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_STREAMID)), "Span 0");
    unit.host().put(0x28_0000, STREAMS | 7);
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_STREAMID)), "which is cached");
    execute(&unit, Command::ConfigSte { stream: STREAM, leaf: Leaf::Only });
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_STREAMID)));
    // Any stream behind the same descriptor will do.
    execute(&unit, Command::ConfigSte { stream: StreamId(63), leaf: Leaf::AllLevels });
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    // The descriptor moves; the STE that was read stays for itself.
    unit.host().put(0x28_0000, 0);
    execute(&unit, Command::ConfigSte { stream: StreamId(63), leaf: Leaf::AllLevels });
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    execute(&unit, Command::ConfigSteRange { stream: StreamId(0), range: 5 });
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::C_BAD_STREAMID)));
}

#[test]
fn a_level_1_context_descriptor_stays_with_a_leaf_invalidation() {
    // 128 CDs, 64 behind each of two descriptors at CDS.
    let ste = Ste::stage1(PhysAddr::new(CDS), CdTableFormat::TwoLevel4K, 7);
    let unit = translating(ste, DeviceConfig::default(), InOrder);
    put_all(&unit, CDS, &[0, 0x22_0001]);
    put_all(&unit, 0x22_0000 + 5 * 64, &cd().words);
    put_all(&unit, 0x23_0000 + 5 * 64, &cd().words);
    let request = Request { substream: Some(64 + 5), ..Request::new(STREAM, PAGE, Access::Read) };
    let ask = || unit.translate(&request).map(|answer| answer.phys.as_u64());
    assert_eq!(ask(), Ok(0x90_0000));
    // The second table is elsewhere, and the old one is used for something else.
    unit.host().put(CDS + 8, 0x23_0001);
    put_all(&unit, 0x22_0000 + 5 * 64, &[0; 8]);
    execute(&unit, Command::ConfigCd { stream: STREAM, substream: 64 + 5, leaf: Leaf::Only });
    assert_eq!(ask(), Err(aborted(EventKind::C_BAD_CD)));
    execute(&unit, Command::ConfigCd { stream: STREAM, substream: 64 + 5, leaf: Leaf::AllLevels });
    assert_eq!(ask(), Ok(0x90_0000));
    assert_eq!(read(&unit, PAGE), Err(aborted(EventKind::F_STREAM_DISABLED)), "S1DSS 0");
    let beyond = Request { substream: Some(128), ..request };
    assert_eq!(unit.translate(&beyond), Err(aborted(EventKind::C_BAD_SUBSTREAMID)));
}

#[test]
fn requests_without_substream_beside_others() {
    let ste = Ste::stage1(PhysAddr::new(CDS), CdTableFormat::Linear, 2);
    let unit = translating(ste.with_default_substream(DefaultSubstream::Bypass), DeviceConfig::default(), InOrder);
    let second = crate::arch::smmuv3::layout::Cd::new(
        Asid(8),
        PhysAddr::new(super::STAGE1),
        crate::arch::smmuv3::layout::Granule::Size4K,
        39,
        48,
    );
    put_cd(&unit, 1, second.with_memory_attributes(0xff));
    assert_eq!(read(&unit, PAGE), Ok(PAGE));
    let of = |substream| Request { substream: Some(substream), ..Request::new(STREAM, PAGE, Access::Read) };
    for substream in [0, 1] {
        assert_eq!(unit.translate(&of(substream)).unwrap().phys, PhysAddr::new(0x90_0000));
    }
    put_ste(&unit, STREAM, ste.with_default_substream(DefaultSubstream::Substream0));
    execute(&unit, Command::ConfigSte { stream: STREAM, leaf: Leaf::Only });
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    assert_eq!(unit.translate(&of(0)), Err(aborted(EventKind::F_STREAM_DISABLED)));
}

#[test]
fn what_lies_beside_is_read_too() {
    let ste = Ste::stage1(PhysAddr::new(CDS), CdTableFormat::Linear, 1);
    let unit = translating(ste.with_default_substream(DefaultSubstream::Substream0), DeviceConfig::default(), InOrder);
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    // Nothing was ever asked for stream 2, nor for SubstreamID 1.
    put_ste(&unit, StreamId(2), Ste::bypass());
    put_cd(&unit, 1, cd());
    let beside = Request::new(StreamId(2), PAGE, Access::Read);
    let below = Request { substream: Some(1), ..Request::new(STREAM, PAGE, Access::Read) };
    assert_eq!(unit.translate(&beside), Err(aborted(EventKind::C_BAD_STE)));
    assert_eq!(unit.translate(&below), Err(aborted(EventKind::C_BAD_CD)));
    execute(&unit, Command::ConfigSte { stream: StreamId(2), leaf: Leaf::Only });
    execute(&unit, Command::ConfigCd { stream: STREAM, substream: 1, leaf: Leaf::Only });
    assert_eq!(unit.translate(&beside).unwrap().phys, PhysAddr::new(PAGE));
    assert_eq!(unit.translate(&below).unwrap().phys, PhysAddr::new(0x90_0000));
}
