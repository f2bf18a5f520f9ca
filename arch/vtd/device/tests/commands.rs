//! GCMD and its one shots, register-based invalidation, protected memory (VT-d 11.4.4, 11.4.6, 11.4.8).

use super::{DEVICE, Event, ROOT, Unit, read, unit, with, write};
use crate::arch::vtd::device::{DeviceConfig, Step};
use crate::arch::vtd::layout::descriptors::Drain;
use crate::arch::vtd::layout::registers::{Global, offset};
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::platform::Registers;

const BOTH: Drain = Drain::READS.union(Drain::WRITES);

#[test]
fn a_command_is_recorded_then_done() {
    let unit = unit(DeviceConfig::default());
    unit.write64(offset::RTADDR, ROOT);
    unit.write32(offset::GCMD, Global::RTP.bits());
    assert_eq!(unit.status(), Global::empty());
    assert_eq!(unit.step(), Step::Command(Global::RTP));
    assert_eq!(unit.status(), Global::RTP);
    assert_eq!(unit.step(), Step::Idle);
    // Asking again clears the status until it is done again.
    unit.write32(offset::GCMD, Global::RTP.bits());
    assert_eq!(unit.status(), Global::empty());
    unit.run();
    unit.write32(offset::GCMD, Global::TE.bits());
    assert_eq!((unit.status(), unit.step()), (Global::RTP, Step::Command(Global::TE)));
    assert_eq!(unit.status(), Global::RTP | Global::TE);
    assert_eq!(unit.host().log(), [Event::Drain(BOTH)], "6.5.4: requests in flight are through first");
    // What the unit does not have cannot be asked for.
    unit.write32(offset::GCMD, (Global::TE | Global::IRE | Global::IRTP | Global::WBF | Global::CFI).bits());
    assert_eq!(unit.step(), Step::Idle);
    unit.write32(offset::GCMD, 0);
    assert_eq!((unit.run(), unit.status()), (1, Global::RTP));
}

#[test]
fn after_a_reset_all_is_as_in_the_beginning() {
    let mut unit = unit(DeviceConfig::default());
    let registers = |unit: &Unit| -> [u32; 0x60] { core::array::from_fn(|index| unit.read32(index * 4)) };
    let fresh = registers(&unit);
    unit.start_legacy();
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    assert_eq!((unit.goes(read(0x5000)), unit.goes(read(0x9000))), (Ok(0x7000), Err(6)));
    unit.start_queue();
    unit.write_descriptors(&[[0x1f, 0]]);
    unit.write32(offset::IQT, 0x10);
    unit.run();
    unit.write32(offset::FECTL, 0);
    assert_ne!(registers(&unit), fresh);
    unit.reset();
    assert_eq!(registers(&unit), fresh);
    assert_eq!((unit.step(), unit.goes(read(0x5000))), (Step::Idle, Ok(0x5000)));
    // Of what was cached nothing is left: the same root table, whose first entry is absent now.
    unit.host().poke(ROOT, 0);
    unit.set_root(ROOT);
    unit.set(Global::TE);
    assert_eq!(unit.goes(read(0x5000)), Err(1));
}

#[test]
fn write_buffers_are_flushed_where_there_are_some() {
    let unit = unit(with(Cap::RWBF, Ecap::empty()));
    unit.write32(offset::GCMD, Global::WBF.bits());
    assert_eq!(unit.status(), Global::WBF);
    assert_eq!(unit.step(), Step::Command(Global::WBF));
    assert_eq!((unit.status(), unit.host().log().as_slice()), (Global::empty(), [Event::Flush].as_slice()));
    // 6.8: invalidations flush by themselves.
    unit.write64(offset::CCMD, 0xa000_0000_0000_0000);
    unit.run();
    assert_eq!(unit.host().log(), [Event::Flush]);
}

#[test]
fn a_root_table_counts_when_it_was_taken_over() {
    let unit = unit(DeviceConfig::default());
    unit.start_legacy();
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
    unit.write64(offset::RTADDR, 0xf000_0000_0000);
    let other = crate::arch::vtd::device::Request { source: 0x18, ..read(0x5000) };
    assert_eq!(unit.goes(other), Err(2), "the old table: context entry not present");
    unit.set(Global::RTP);
    assert_eq!(unit.goes(other), Err(8), "the new one cannot be read");
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000), "cached");
}

#[test]
fn setting_the_root_invalidates_with_esrtps_only() {
    for cap in [Cap::empty(), Cap::ESRTPS] {
        let unit = unit(with(cap, Ecap::empty()));
        unit.start_legacy();
        unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
        unit.goes(read(0x5000)).unwrap();
        unit.map(0, 3, 0x5000, 0, 0);
        unit.set_root(ROOT);
        let expected = if cap.is_empty() { Ok(0x7000) } else { Err(6) };
        assert_eq!(unit.goes(read(0x5000)), expected);
    }
}

#[test]
fn disabling_translation_invalidates_in_units_with_scalable_mode_only() {
    for ecap in [Ecap::empty(), Ecap::SMTS] {
        let unit = unit(with(Cap::empty(), ecap));
        unit.start_legacy();
        unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
        unit.goes(read(0x5000)).unwrap();
        unit.map(0, 3, 0x5000, 0, 0);
        unit.unset(Global::TE);
        assert_eq!(unit.goes(read(0x5000)), Ok(0x5000));
        unit.set(Global::TE);
        assert_eq!(unit.goes(read(0x5000)), if ecap.is_empty() { Ok(0x7000) } else { Err(6) });
    }
}

/// A unit with a stale context entry and a stale translation.
fn stale(config: DeviceConfig) -> Unit {
    let unit = unit(config);
    unit.start_legacy();
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.goes(read(0x5000)).unwrap();
    unit.map(0, 3, 0x5000, 0, 0x8000 | 3);
    unit.host().log();
    unit
}

#[test]
fn invalidation_through_registers() {
    let unit = stale(DeviceConfig::default());
    // Page-selective, domain 7, DR and DW: IIRG 3, DID 47:32. One page; then the wrong domain.
    for (command, address, done, phys) in [
        (0xb003_0008_0000_0000_u64, 0x5000, 0x3603_0008_0000_0000, 0x7000),
        (0xb003_0007_0000_0000, 0x6000, 0x3603_0007_0000_0000, 0x7000),
        (0xb000_0007_0000_0000, 0x5000 | 19, 0x3000_0007_0000_0000, 0x7000),
        (0xb003_0007_0000_0000, 0x5000, 0x3603_0007_0000_0000, 0x8000),
    ] {
        unit.write64(0xf0, address);
        unit.write64(0xf8, command);
        assert_eq!(unit.read64(0xf8) & !(3 << 57), command, "pending");
        unit.write64(0xf8, 0);
        assert_eq!(unit.read64(0xf8) & !(3 << 57), command, "it is the unit's register now");
        assert!(matches!(unit.step(), Step::RegisterInvalidation(_)));
        assert_eq!(unit.read64(0xf8), done);
        assert_eq!(unit.goes(read(0x5000)), Ok(phys));
    }
    assert_eq!(unit.host().log(), [Event::Drain(BOTH); 3]);
    for (command, done) in
        [(0x9000_0000_0000_0000_u64, 0x1200_0000_0000_0000), (0xa000_0007_0000_0000, 0x2400_0007_0000_0000)]
    {
        let unit = stale(DeviceConfig::default());
        unit.write64(0xf8, command);
        unit.run();
        assert_eq!((unit.read64(0xf8), unit.goes(read(0x5000))), (done, Ok(0x8000)));
    }
}

#[test]
fn context_invalidation_through_registers() {
    // CIRG 62:61, DID 15:0, SID 31:16; CAIG 60:59.
    for (command, done, drops) in [
        (0xa000_0000_0000_0000_u64, 0x2800_0000_0000_0000, true),
        (0xc000_0000_0000_0007, 0x5000_0000_0000_0007, true),
        (0xc000_0000_0000_0008, 0x5000_0000_0000_0008, false),
        (0xe000_0000_0010_0007, 0x7800_0000_0010_0007, true),
        (0xe000_0000_0010_0008, 0x7800_0000_0010_0008, false),
        (0xe000_0000_0018_0007, 0x7800_0000_0018_0007, false),
        (0xe000_0003_0017_0007, 0x7800_0003_0017_0007, true),
        (0x8000_0000_0000_0000, 0, false),
    ] {
        let unit = stale(DeviceConfig::default());
        unit.legacy_context(DEVICE, 0, 0);
        unit.write64(offset::CCMD, command);
        unit.run();
        assert_eq!(unit.read64(offset::CCMD), done);
        // An address that the IOTLB does not know.
        assert_eq!(unit.goes(write(0x9000)), Err(if drops { 2 } else { 5 }), "{command:#x}");
    }
}

#[test]
fn registers_do_not_invalidate_beside_the_queue_nor_in_newer_units() {
    let plain = DeviceConfig::default();
    let ignored = |unit: &Unit| {
        unit.write64(0xf8, 0x9000_0000_0000_0000);
        unit.write64(offset::CCMD, 0xa000_0000_0000_0000);
        unit.run();
        assert_eq!((unit.read64(0xf8), unit.read64(offset::CCMD)), (0x1000_0000_0000_0000, 0x2000_0000_0000_0000));
        assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
    };
    let unit = stale(plain);
    unit.start_queue();
    ignored(&unit);
    ignored(&stale(DeviceConfig { version: 0x60, ..plain }));
    let domain_only = stale(DeviceConfig { cap: plain.cap - Cap::PSI, version: 0x50, ..plain });
    domain_only.write64(0xf8, 0xb000_0007_0000_0000);
    domain_only.run();
    assert_eq!((domain_only.read64(0xf8), domain_only.goes(read(0x5000))), (0x3400_0007_0000_0000, Ok(0x8000)));
}

#[test]
fn protected_memory_is_blocked_without_a_fault() {
    let unit = unit(with(Cap::PLMR | Cap::PHMR, Ecap::empty()));
    unit.write32(offset::PLMBASE, 0x20_0000);
    unit.write32(offset::PLMLIMIT, 0x20_0000);
    unit.write64(offset::PHMBASE, 0x1_0020_0000);
    unit.write64(offset::PHMLIMIT, 0x1_0000_0000);
    unit.write32(offset::PMEN, 1 << 31);
    assert_eq!(unit.goes(write(0x20_0000)), Ok(0x20_0000), "PRS is clear");
    assert_eq!(unit.step(), Step::Protection);
    assert_eq!(unit.read32(offset::PMEN), 0x8000_0001);
    assert_eq!(unit.host().log(), [Event::Drain(BOTH)]);
    for (address, expected) in [
        (0x1f_ffff, Ok(0x1f_ffff)),
        (0x20_0000, Err(0)),
        (0x3f_ffff, Err(0)),
        (0x40_0000, Ok(0x40_0000)),
        (0x1_0020_0000, Ok(0x1_0020_0000)), // limit below base: no region
    ] {
        assert_eq!(unit.goes(write(address)), expected, "{address:#x}");
    }
    assert_eq!(unit.translate(&write(0x40_0000)).unwrap().page_bits, 21, "not so before it");
    // Translated requests are judged by where they go.
    unit.map(0, 3, 0x5000, 0, 0x20_1000 | 3);
    unit.map(0, 3, 0x20_0000, 0, 0x5000 | 3);
    unit.start_legacy();
    assert_eq!(unit.goes(write(0x5000)), Err(0));
    assert_eq!(unit.goes(write(0x20_0000)), Ok(0x5000));
    assert_eq!(unit.read32(offset::FSTS), 0);
    unit.write32(offset::PLMLIMIT, 0);
    assert_eq!(unit.goes(write(0x5000)), Err(0), "not to be changed while it is on");
    unit.write32(offset::PMEN, 0);
    unit.run();
    assert_eq!((unit.read32(offset::PMEN), unit.goes(write(0x5000))), (0, Ok(0x20_1000)));
}

/// A region that the unit does not have is none, whatever its registers read.
#[test]
fn one_protected_region_without_the_other() {
    for (cap, low, high) in [(Cap::PLMR, Err(0), Ok(0x4000_0000)), (Cap::PHMR, Ok(0x20_0000), Err(0))] {
        let unit = unit(with(cap, Ecap::empty()));
        unit.write64(offset::PLMBASE, 0x0020_0000_0020_0000);
        unit.write64(offset::PHMBASE, 0x4000_0000);
        unit.write64(offset::PHMLIMIT, 0x4000_0000);
        unit.write32(offset::PMEN, 1 << 31);
        unit.run();
        assert_eq!((unit.goes(write(0x20_0000)), unit.goes(write(0x4000_0000))), (low, high));
        assert_eq!(unit.goes(write(0x1000)), Ok(0x1000));
    }
}
