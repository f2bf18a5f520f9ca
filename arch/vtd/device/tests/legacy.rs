//! Legacy mode: what is cached, what stays stale, what is recorded (VT-d 6.2, 7.1.3, 7.2).

extern crate std;
use std::vec;

use super::{DEVICE, Event, Machine, ROOT, Unit, arena, read, top, unit, with, write};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::{
    Absence, Answer, Chooser, DeviceConfig, Fracture, Precision, Request, RequestAccess, Retention, VtdDevice,
};
use crate::arch::vtd::layout::registers::{Global, offset};
use crate::arch::vtd::layout::{Cap, Ecap, FaultReason};
use crate::ops::Msi;
use crate::platform::Registers;
use crate::prot::Prot;

fn started(config: DeviceConfig) -> Unit {
    let unit = unit(config);
    unit.start_legacy();
    unit.start_queue();
    unit.host().log();
    unit
}

/// Domain-selective (10b) and page-selective (11b) IOTLB invalidations of domain 7.
const DOMAIN: [u64; 2] = [0x7_0022, 0];
const fn pages(address_and_mask: u64) -> [u64; 2] {
    [0x7_0032, address_and_mask]
}
/// Device-selective context invalidations of 00:02.0 (11b), in domain 7 and in domain 0.
const CONTEXT: [u64; 2] = [0x10_0007_0031, 0];
const CONTEXT_OF_0: [u64; 2] = [0x10_0000_0031, 0];

#[test]
fn pages_of_every_size() {
    let unit = started(DeviceConfig::default());
    unit.map(0, 3, 0x5000, 0, 0x12_3456_7000 | 3);
    unit.map(0, 3, 0x20_0000, 1, 0x1_4020_0000 | 0x81);
    unit.map(0, 3, 0x4000_0000, 2, 0x8000_0000 | 0x82);
    let answer =
        |phys, page_bits, prot| Ok(Answer { phys: PhysAddr::new(phys), page_bits, prot, enforces_snooping: false });
    // Each twice: from tables, and from the IOTLB.
    for _ in 0..2 {
        assert_eq!(unit.translate(&read(0x5123)), answer(0x12_3456_7123, 12, Prot::RW));
        assert_eq!(unit.translate(&read(0x23_4567)), answer(0x1_4023_4567, 21, Prot::READ));
        assert_eq!(unit.translate(&write(0x4765_4321)), answer(0x8765_4321, 30, Prot::WRITE));
        assert_eq!(unit.goes(write(0x23_4567)), Err(5));
        assert_eq!(unit.goes(read(0x4765_4321)), Err(6));
        assert_eq!(unit.goes(Request::new(DEVICE, 0x4765_4321, RequestAccess::Atomic)), Err(6));
        assert_eq!(unit.goes(Request::new(DEVICE, 0x4765_4321, RequestAccess::ZeroLengthRead)), Err(6));
    }
    let zlr = started(with(Cap::ZLR, Ecap::empty()));
    zlr.map(0, 3, 0x4000_0000, 2, 0x8000_0000 | 0x82);
    for _ in 0..2 {
        assert!(zlr.goes(Request::new(DEVICE, 0x4000_0000, RequestAccess::ZeroLengthRead)).is_ok());
        assert_eq!(zlr.goes(write(0x4000_0000)), Ok(0x8000_0000));
    }
}

#[test]
fn a_translation_stays_until_it_is_invalidated() {
    let unit = started(DeviceConfig::default());
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
    unit.map(0, 3, 0x5000, 0, 0);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
    // Neither another domain, nor another page, nor the context cache.
    unit.process(&[[0x8_0022, 0], pages(0x6000), [0x11, 0]]);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
    unit.process(&[pages(0x5000)]);
    assert_eq!(unit.goes(read(0x5000)), Err(6));
}

#[test]
fn permissions_are_cached_too() {
    let unit = started(DeviceConfig::default());
    unit.map(0, 3, 0x5000, 0, 0x7000 | 1);
    assert_eq!((unit.goes(read(0x5000)), unit.goes(write(0x5000))), (Ok(0x7000), Err(5)));
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    assert_eq!(unit.goes(write(0x5000)), Err(5), "an upgrade needs an invalidation (6.5.3.5)");
    unit.process(&[pages(0x5000)]);
    assert_eq!(unit.goes(write(0x5000)), Ok(0x7000));
}

#[test]
fn tables_stay_until_they_are_invalidated() {
    let unit = started(DeviceConfig::default());
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.goes(read(0x5000)).unwrap();
    // Page table 1 takes the place of page table 0 below the top: another page at 0x6000.
    unit.map(0, 3, 0x6000, 0, 0x8000 | 3);
    unit.map(1, 3, 0x6000, 0, 0x9000 | 3);
    unit.host().poke(top(0), (super::tables(1) + 0x2000) | 3);
    assert_eq!(unit.goes(read(0x6000)), Ok(0x8000));
    unit.process(&[pages(0x6000 | 1 << 6)]);
    assert_eq!(unit.goes(read(0x6000)), Ok(0x8000), "IH: tables are kept");
    unit.process(&[pages(0x6000)]);
    assert_eq!(unit.goes(read(0x6000)), Ok(0x9000));
}

#[test]
fn a_context_entry_stays_until_it_is_invalidated() {
    let unit = started(DeviceConfig::default());
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.map(1, 3, 0x6000, 0, 0x8000 | 3);
    unit.goes(read(0x5000)).unwrap();
    // The device goes to domain 8 with page table 1.
    unit.legacy_context(DEVICE, top(1) | 1, 0x802);
    unit.process(&[DOMAIN]);
    assert_eq!((unit.goes(read(0x5000)), unit.goes(read(0x6000))), (Ok(0x7000), Err(6)), "the old table");
    unit.process(&[CONTEXT]);
    assert_eq!(unit.goes(read(0x6000)), Ok(0x8000));
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000), "the IOTLB is next (6.2.2.1)");
    unit.process(&[DOMAIN]);
    assert_eq!(unit.goes(read(0x5000)), Err(6));
}

#[test]
fn other_sources_have_translations_of_their_own() {
    let unit = started(DeviceConfig::default());
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.goes(read(0x5000)).unwrap();
    unit.map(0, 3, 0x5000, 0, 0x9000 | 3);
    unit.legacy_context(0x18, top(0) | 1, 0x702);
    let other = Request { source: 0x18, ..read(0x5000) };
    assert_eq!((unit.goes(other), unit.goes(read(0x5000))), (Ok(0x9000), Ok(0x7000)));
    unit.process(&[pages(0x5000)]);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x9000));
}

#[test]
fn without_caching_mode_nothing_that_faults_is_cached() {
    let unit = started(DeviceConfig::default());
    assert_eq!(unit.goes(read(0x5000)), Err(6));
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
    let other = Request { source: 0x18, ..read(0x5000) };
    assert_eq!(unit.goes(other), Err(2));
    unit.legacy_context(0x18, top(0) | 1, 0x702);
    assert_eq!(unit.goes(other), Ok(0x7000));
}

#[test]
fn in_caching_mode_a_missing_page_is_cached_under_its_domain() {
    let unit = started(with(Cap::CM, Ecap::empty()));
    unit.map(0, 3, 0x5000, 0, 0);
    assert_eq!(unit.goes(read(0x5000)), Err(6));
    unit.map(0, 3, 0x5000, 0, 0x7000 | 1);
    unit.process(&[[0x8_0022, 0], [0x22, 0], pages(0x6000)]);
    assert_eq!((unit.goes(read(0x5000)), unit.goes(write(0x5000))), (Err(6), Err(5)));
    unit.process(&[pages(0x5000)]);
    // A write that is not permitted: what is permitted is cached.
    assert_eq!(unit.goes(write(0x5000)), Err(5));
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    assert_eq!((unit.goes(write(0x5000)), unit.goes(read(0x5000))), (Err(5), Ok(0x7000)));
    unit.process(&[pages(0x5000)]);
    assert_eq!(unit.goes(write(0x5000)), Ok(0x7000));
}

/// Caching mode that is only shown.
struct Walks;

impl Chooser for Walks {
    fn choose(&self, _: usize) -> usize {
        0
    }
    fn absence(&self) -> Absence {
        Absence::Walked
    }
}

#[test]
fn caching_mode_may_be_shown_and_nothing_absent_be_cached() {
    let config = with(Cap::CM, Ecap::empty());
    let unit = VtdDevice::with_chooser(arena(), Machine::default(), config, Walks).unwrap();
    unit.legacy_context(DEVICE, 0, 0);
    unit.set_root(ROOT);
    unit.set(Global::TE);
    assert_eq!(unit.goes(read(0x5000)), Err(2));
    unit.legacy_context(DEVICE, top(0) | 1, 0x702);
    unit.map(0, 3, 0x5000, 0, 0);
    assert_eq!(unit.goes(read(0x5000)), Err(6));
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
}

#[test]
fn in_caching_mode_a_missing_table_is_cached_for_all_that_it_would_cover() {
    let unit = started(with(Cap::CM, Ecap::empty()));
    // The entry of level 1 for the 2 MiB at 0x20_0000 is clear.
    unit.map(0, 3, 0x20_0000, 1, 0);
    assert_eq!(unit.goes(read(0x20_0000)), Err(6));
    unit.map(0, 3, 0x23_0000, 0, 0x7000 | 3);
    assert_eq!(unit.goes(read(0x23_0000)), Err(6));
    unit.process(&[pages(0x23_0000)]);
    assert_eq!(unit.goes(read(0x23_0000)), Ok(0x7000));
}

/// 6.2.5.5, and 11.4.6.4: IH says that nothing changed but leaves.
#[test]
fn in_caching_mode_a_missing_table_outlives_an_invalidation_of_leaves() {
    const LEAVES: u64 = 1 << 6;
    let unit = started(with(Cap::CM, Ecap::empty()));
    unit.map(0, 3, 0x20_0000, 1, 0);
    assert_eq!(unit.goes(read(0x23_0000)), Err(6));
    unit.map(0, 3, 0x23_0000, 0, 0x7000 | 3);
    unit.process(&[pages(0x23_0000 | LEAVES), pages(0x20_0000 | LEAVES | 8)]);
    assert_eq!(unit.goes(read(0x23_0000)), Err(6), "the table that was put there is none of them");
    unit.process(&[pages(0x23_0000)]);
    assert_eq!(unit.goes(read(0x23_0000)), Ok(0x7000));
    // A large page is a leaf, if all of it is named.
    unit.map(0, 3, 0x40_0000, 1, 0);
    assert_eq!(unit.goes(read(0x43_0000)), Err(6));
    unit.map(0, 3, 0x40_0000, 1, 0x80_0000 | 0x83);
    unit.process(&[pages(0x40_0000 | LEAVES | 9)]);
    assert_eq!(unit.goes(read(0x43_0000)), Ok(0x83_0000));
}

#[test]
fn in_caching_mode_a_missing_context_entry_is_cached_under_domain_0() {
    let unit = unit(with(Cap::CM, Ecap::empty()));
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.legacy_context(DEVICE, 0, 0);
    unit.set_root(ROOT);
    unit.set(Global::TE);
    unit.start_queue();
    assert_eq!(unit.goes(read(0x5000)), Err(2));
    unit.legacy_context(DEVICE, top(0) | 1, 0x702);
    unit.process(&[CONTEXT]);
    assert_eq!(unit.goes(read(0x5000)), Err(2), "the new domain is not the tag");
    unit.process(&[CONTEXT_OF_0]);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
}

#[test]
fn pass_through_and_its_limit() {
    let unit = unit(DeviceConfig { host_address_bits: 46, ..DeviceConfig::default() });
    unit.legacy_context(DEVICE, 2 << 2 | 1, 0x702);
    unit.set_root(ROOT);
    unit.set(Global::TE);
    assert_eq!(unit.goes(write(0x3fff_ffff_ffff)), Ok(0x3fff_ffff_ffff));
    assert_eq!(unit.goes(write(0x4000_0000_0000)), Err(4));
}

#[test]
fn the_interrupt_address_range() {
    let unit = started(DeviceConfig::default());
    unit.map(0, 3, 0x5000, 0, 0xfee0_0000 | 3);
    unit.map(0, 3, 0xfee0_1000, 0, 0x7000 | 3);
    assert_eq!(unit.goes(write(0xfee0_1004)), Ok(0xfee0_1004), "an interrupt, not translated");
    assert_eq!(unit.goes(read(0xfee0_1004)), Err(0));
    for _ in 0..2 {
        assert_eq!(unit.goes(write(0x5000)), Err(0xe), "LGN.4");
    }
}

/// Who keeps an answer for all of its block must not send interrupts to memory.
#[test]
fn an_answer_holds_for_no_more_than_its_block() {
    let unit = started(DeviceConfig::default());
    let bits = |address| unit.translate(&write(address)).unwrap().page_bits;
    unit.map(0, 3, 0xfee0_0000, 1, 0x80_0000 | 0x83);
    assert_eq!(bits(0xfef8_0000), 20, "half of a page of 2 MiB: the other half are interrupts");
    unit.map(0, 3, 0xc000_0000, 2, 0x4000_0000 | 0x83);
    unit.process(&[DOMAIN]);
    assert_eq!((bits(0xc000_5000), bits(0xfef0_0000)), (29, 20));
    // By where it leads.
    unit.map(0, 3, 0x4000_0000, 2, 0xc000_0000 | 0x83);
    assert_eq!(bits(0x4000_5000), 29);
    unit.legacy_context(DEVICE, 2 << 2 | 1, 0x702);
    unit.process(&[CONTEXT, DOMAIN]);
    assert_eq!((bits(0x5000), bits(0x1_0000_0000)), (31, 32), "passed through");
}

/// 11.4.7.6, bits worked out by hand.
#[test]
fn faults_are_recorded() {
    let config = with(Cap::from_bits_retain(1 << 40), Ecap::empty());
    let unit = unit(config);
    unit.start_legacy();
    unit.write32(offset::FEADDR, 0xfee0_2000);
    unit.write32(offset::FEDATA, 0x51);
    unit.write32(offset::FECTL, 0);
    unit.run();
    unit.host().log();
    assert_eq!(unit.goes(write(0x12_3456_7abc)), Err(5));
    assert_eq!(unit.read32(offset::FSTS), 2);
    unit.run();
    assert_eq!(unit.host().log(), [Event::Interrupt(Msi { address: PhysAddr::new(0xfee0_2000), data: 0x51 })]);
    assert_eq!((unit.read64(0x220), unit.read64(0x228)), (0x12_3456_7000, 0x8000_0005_0000_0010));
    assert_eq!(unit.goes(Request { source: 0x18, ..read(0x5000) }), Err(2));
    assert_eq!((unit.read64(0x230), unit.read64(0x238)), (0x5000, 0xc000_0002_0000_0018));
    assert_eq!(unit.goes(read(0x6000)), Err(6));
    assert_eq!(unit.read32(offset::FSTS), 3, "PFO");
    unit.write64(0x228, 1 << 63);
    unit.write64(0x238, 1 << 63);
    unit.write32(offset::FSTS, 1);
    assert_eq!((unit.run(), unit.read32(offset::FSTS) & 0xff), (0, 0));
    assert_eq!(unit.goes(Request::new(DEVICE, 0x6000, RequestAccess::Atomic)), Err(5));
    assert_eq!((unit.read64(0x220), unit.read64(0x228)), (0x6000, 0xc000_0005_1000_0010));
    // Beyond the domain's 48 bits: the largest AGAW has no more.
    unit.write64(0x228, 1 << 63);
    assert_eq!(unit.goes(write(0xffff_0000_0000_5000)), Err(4));
    assert_eq!((unit.read64(0x230), unit.read64(0x238)), (0x5000, 0x8000_0004_0000_0010));
}

#[test]
fn records_begin_at_the_first_register_after_translation_was_off() {
    let unit = unit(with(Cap::from_bits_retain(1 << 40), Ecap::empty()));
    unit.start_legacy();
    assert_eq!(unit.goes(write(0x5000)), Err(5));
    unit.write64(0x228, 1 << 63);
    unit.unset(Global::TE);
    unit.set(Global::TE);
    assert_eq!(unit.goes(write(0x6000)), Err(5));
    assert_eq!((unit.read32(offset::FSTS), unit.read64(0x220)), (2, 0x6000));
}

#[test]
fn in_caching_mode_what_is_wrong_with_the_root_table_address_is_not_cached() {
    let unit = started(with(Cap::CM, Ecap::SSIRWS));
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.set_root(ROOT | 1 << 7);
    assert_eq!(unit.goes(read(0x5000)), Err(0x30), "RTA.1.4");
    unit.set_root(ROOT);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
}

#[test]
fn fpd_hides_qualified_faults_only() {
    let unit = started(DeviceConfig::default());
    unit.legacy_context(0x18, top(0) | 3, 0x702);
    for _ in 0..2 {
        assert_eq!(unit.goes(Request { source: 0x18, ..write(0x5000) }), Err(5));
    }
    unit.map(0, 3, 0x6000, 0, 0x7000 | 1);
    unit.goes(Request { source: 0x18, ..read(0x6000) }).unwrap();
    assert_eq!(unit.goes(Request { source: 0x18, ..write(0x6000) }), Err(5), "from the IOTLB");
    assert_eq!(unit.read32(offset::FSTS), 0);
    assert_eq!(unit.goes(Request { source: 0x118, ..write(0x5000) }), Err(1), "root entry not present");
    assert_eq!(unit.read32(offset::FSTS), 2);
    assert_eq!(FaultReason(1).text(), "root entry not present");
}

/// Evicts always, invalidates everything, or cuts large pages to pieces.
struct Habit(Retention, Precision, Fracture);

impl Chooser for Habit {
    fn choose(&self, _: usize) -> usize {
        0
    }
    fn retention(&self) -> Retention {
        self.0
    }
    fn precision(&self) -> Precision {
        self.1
    }
    fn fracture(&self) -> Fracture {
        self.2
    }
}

#[test]
fn what_the_chooser_may_do_beside_the_order() {
    let habits = [
        Habit(Retention::Keep, Precision::Exact, Fracture::Whole),
        Habit(Retention::Evict, Precision::Exact, Fracture::Whole),
        Habit(Retention::Keep, Precision::Coarse, Fracture::Whole),
        Habit(Retention::Keep, Precision::Exact, Fracture::Pieces),
    ];
    let mut seen = vec![];
    for habit in habits {
        let unit = VtdDevice::with_chooser(arena(), Machine::default(), DeviceConfig::default(), habit).unwrap();
        unit.start_legacy();
        unit.start_queue();
        unit.map(0, 3, 0x20_0000, 1, 0x40_0000 | 0x83);
        unit.goes(read(0x20_0000)).unwrap();
        unit.goes(read(0x20_1000)).unwrap();
        unit.map(0, 3, 0x20_0000, 1, 0x60_0000 | 0x83);
        let stale = unit.goes(read(0x20_1000)) == Ok(0x40_1000);
        unit.process(&[pages(0x80_0000)]);
        let stale_after_other = unit.goes(read(0x20_1000)) == Ok(0x40_1000);
        // A mask too small for the page.
        unit.process(&[pages(0x20_0000)]);
        let stale_after_small = unit.goes(read(0x20_1000)) == Ok(0x40_1000);
        seen.push([stale, stale_after_other, stale_after_small]);
    }
    assert_eq!(seen, [[true, true, false], [false; 3], [true, false, false], [true, true, true]]);
}
