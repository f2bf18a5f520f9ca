//! Scalable mode: context and PASID caches, PASIDs of requests, first stage, nesting (VT-d 6.2.3, 7.1.3).

extern crate std;
use std::sync::atomic::Ordering;

use super::{DEVICE, ROOT, Unit, read, tables, top, unit, with, write};
use crate::arch::vtd::device::{DeviceConfig, Privilege, Request};
use crate::arch::vtd::layout::registers::Global;
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::bus::AddressType;
use crate::platform::Registers;
use crate::prot::Prot;

/// PASID directory and first PASID table.
const DIRECTORY: u64 = 0x4000;
const PASIDS: u64 = 0x5000;

const ALL: Ecap = Ecap::SMTS
    .union(Ecap::SSTS)
    .union(Ecap::FSTS)
    .union(Ecap::NEST)
    .union(Ecap::PASID)
    .union(Ecap::SRS)
    .union(Ecap::RPS)
    .union(Ecap::SMPWCS)
    .union(Ecap::DT)
    .union(Ecap::PRS)
    // PSS: 20 bits.
    .union(Ecap::from_bits_retain(19 << 35));

pub(super) fn configured(cap: Cap) -> DeviceConfig {
    with(cap, ALL)
}

impl Unit {
    /// The first three quadwords of the PASID table entry (9.6); the device's and everybody else's.
    pub(super) fn pasid_entry(&self, pasid: u64, words: [u64; 3]) {
        for (index, word) in words.into_iter().enumerate() {
            self.host().poke(PASIDS + pasid * 64 + index as u64 * 8, word);
        }
    }

    /// The scalable-mode context entry of the device (9.4).
    pub(super) fn scalable_context(&self, low: u64, high: u64) {
        self.host().poke(ROOT, 0x2001);
        self.host().poke(0x2000 + u64::from(DEVICE) * 32, low);
        self.host().poke(0x2000 + u64::from(DEVICE) * 32 + 8, high);
    }

    /// Scalable mode with a queue. Requests without PASID have PASID 0, second stage (PGTT 2) of domain 7 by
    /// page table 0; PASID 1 has the first stage (PGTT 1) in domain 9 by page table 1.
    pub(super) fn start_scalable(&self, context: u64) {
        self.scalable_context(DIRECTORY | context | 1, 0);
        self.host().poke(DIRECTORY, PASIDS | 1);
        self.pasid_entry(0, [top(0) | 2 << 6 | 2 << 2 | 1, 7, 0]);
        self.pasid_entry(1, [1 << 6 | 1, 1 << 23 | 9, top(1)]);
        self.start_queue();
        self.set_root(ROOT | 1 << 10);
        self.set(Global::TE);
        self.host().log();
    }
}

/// DTE, PASIDE, PRE in a context entry.
pub(super) const DTE: u64 = 1 << 2;
pub(super) const PASIDE: u64 = 1 << 3;
pub(super) const PRE: u64 = 1 << 4;
/// Entries of a first stage: present, writable, user; accessed and dirty.
const FIRST: u64 = 0x67;

fn started() -> Unit {
    let unit = unit(configured(Cap::empty()));
    unit.start_scalable(PASIDE);
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.map(1, FIRST, 0x5000, 0, 0x8000 | FIRST);
    unit
}

fn of(pasid: u32, request: Request) -> Request {
    Request { pasid: Some(pasid), ..request }
}

#[test]
fn requests_with_and_without_pasid() {
    let unit = started();
    for _ in 0..2 {
        assert_eq!(unit.goes(read(0x5123)), Ok(0x7123));
        assert_eq!(unit.goes(of(1, read(0x5123))), Ok(0x8123));
    }
    assert_eq!(unit.goes(of(2, read(0x5000))), Err(0x59), "SPT.2");
    assert_eq!(unit.goes(of(64, read(0x5000))), Err(0x51), "SPD.2");
    assert_eq!(unit.goes(of(0, read(0x5000))), Err(0x48), "SCT.9");
    assert_eq!(unit.goes(of(1 << 13, read(0x5000))), Err(0x46), "SCT.7");
    assert_eq!(unit.goes(of(1, read(1 << 47))), Err(0x80), "SGN.1");
    assert_eq!(unit.goes(read(0x6000)), Err(0x79), "SSS.2");
    assert_eq!(unit.goes(of(1, read(0x6000))), Err(0x71), "SFS.2");
    let supervisor = Request { privilege: Privilege::Supervisor, ..of(1, read(0x5000)) };
    assert_eq!(unit.goes(supervisor), Err(0x5d), "SPT.6");
    let narrow =
        super::unit(with(Cap::empty(), (ALL - Ecap::from_bits_retain(0x1f << 35)) | Ecap::from_bits_retain(7 << 35)));
    narrow.start_scalable(PASIDE);
    assert_eq!(narrow.goes(of(256, read(0x5000))), Err(0x89), "SGN.10");
    let closed = super::unit(configured(Cap::empty()));
    closed.start_scalable(0);
    assert_eq!(closed.goes(of(1, read(0x5000))), Err(0x45), "SCT.6");
}

/// 11.4.7.6: PP is set for requests that had a PASID.
#[test]
fn records_of_requests_with_pasid() {
    let unit = started();
    assert_eq!(unit.goes(of(0xedcb, write(0x5678))), Err(0x46));
    assert_eq!((unit.read64(0x220), unit.read64(0x228)), (0x5000, 0x80ed_cb46_8000_0010));
}

#[test]
fn a_pasid_entry_stays_until_it_is_invalidated() {
    let unit = started();
    unit.goes(of(1, read(0x5000))).unwrap();
    unit.map(2, FIRST, 0x5000, 0, 0xa000 | FIRST);
    unit.map(2, FIRST, 0x6000, 0, 0x9000 | FIRST);
    unit.pasid_entry(1, [1 << 6 | 1, 1 << 23 | 10, top(2)]);
    // Other caches, other PASIDs, other domains.
    unit.process(&[[0x11, 0], [0x2_0009_0017, 0], [0x1_000a_0017, 0]]);
    assert_eq!(unit.goes(of(1, read(0x6000))), Err(0x71), "the old table");
    unit.process(&[[0x1_0009_0017, 0]]);
    assert_eq!(unit.goes(of(1, read(0x6000))), Ok(0x9000));
    assert_eq!(unit.goes(of(1, read(0x5000))), Ok(0x8000), "the IOTLB is next");
    unit.process(&[[0x1_0009_0026, 0]]);
    assert_eq!(unit.goes(of(1, read(0x5000))), Ok(0xa000));
}

#[test]
fn a_context_entry_of_scalable_mode_stays_until_it_is_invalidated() {
    let unit = started();
    unit.goes(read(0x5000)).unwrap();
    unit.scalable_context(0, 0);
    unit.process(&[[0x37, 0], [0x12, 0]]);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
    // Device-selective; the domain is ignored.
    unit.process(&[[0x10_ffff_0031, 0], [0x12, 0]]);
    assert_eq!(unit.goes(read(0x5000)), Err(0x41));
}

#[test]
fn iotlb_invalidations_of_scalable_mode() {
    let change = |unit: &Unit| {
        unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
        unit.map(1, FIRST, 0x5000, 0, 0x8000 | FIRST);
        unit.process(&[[0x12, 0]]);
        unit.goes(read(0x5000)).unwrap();
        unit.goes(of(1, read(0x5000))).unwrap();
        unit.map(0, 3, 0x5000, 0, 0xb000 | 3);
        unit.map(1, FIRST, 0x5000, 0, 0xc000 | FIRST);
    };
    let unit = started();
    for (descriptor, second, first) in [
        ([0x7_0032, 0x5000], 0xb000, 0x8000),      // IOTLB, page of domain 7
        ([0x9_0032, 0x6000], 0x7000, 0xc000),      // any page of domain 9: all of its first stage
        ([0x7_0036, 0x5000], 0x7000, 0x8000),      // PASID-based, PASID 0 of domain 7, page
        ([0x7_0026, 0], 0xb000, 0x8000),           // PASID 0 is RID_PASID
        ([0x1_0009_0036, 0x6000], 0x7000, 0x8000), // another page
        ([0x1_0009_0036, 0x5000], 0x7000, 0xc000),
        ([0x2_0009_0026, 0], 0x7000, 0x8000), // another PASID
        ([0x1_0009_0026, 0], 0x7000, 0xc000),
    ] {
        change(&unit);
        unit.process(&[descriptor]);
        let seen = (unit.goes(read(0x5000)), unit.goes(of(1, read(0x5000))));
        assert_eq!(seen, (Ok(second), Ok(first)), "{descriptor:x?}");
    }
}

#[test]
fn a_write_to_a_clean_page_walks_to_make_it_dirty() {
    let unit = started();
    unit.map(1, 0x27, 0x5000, 0, 0x8000 | 0x7);
    unit.goes(of(1, read(0x5000))).unwrap();
    let entry = tables(1) + 5 * 8;
    assert_eq!(unit.host().peek(entry), 0x8000 | 0x27, "accessed");
    unit.goes(of(1, write(0x5000))).unwrap();
    assert_eq!(unit.host().peek(entry), 0x8000 | 0x67, "and dirty");
    unit.host().poke(entry, 0x8000 | 0x27);
    unit.goes(of(1, write(0x5000))).unwrap();
    assert_eq!(unit.host().peek(entry), 0x8000 | 0x27, "the IOTLB knows that it was dirty");
}

/// U/S 0, and SRE in the PASID table entry (bit 128).
#[test]
fn privileges_have_translations_of_their_own() {
    let unit = started();
    unit.pasid_entry(1, [1 << 6 | 1, 1 << 23 | 9, top(1) | 1]);
    unit.map(1, FIRST, 0x5000, 0, 0x8000 | 0x63);
    let supervisor = Request { privilege: Privilege::Supervisor, ..of(1, read(0x5000)) };
    for _ in 0..2 {
        assert_eq!((unit.goes(supervisor), unit.goes(of(1, read(0x5000)))), (Ok(0x8000), Err(0x81)), "SGN.2");
    }
}

/// RID_PRIV, bit 84 of the context entry.
#[test]
fn requests_without_pasid_can_be_privileged() {
    let config = configured(Cap::empty());
    let unit = unit(DeviceConfig { ecap: config.ecap | Ecap::RPRIVS, ..config });
    unit.start_scalable(0);
    unit.scalable_context(DIRECTORY | 1, 1 << 20 | 1);
    assert_eq!(unit.goes(read(0x5000)), Err(0x5d), "SPT.6");
    unit.pasid_entry(1, [1 << 6 | 1, 1 << 23 | 9, top(1) | 1]);
    unit.map(1, FIRST, 0x5000, 0, 0x8000 | 0x63);
    unit.process(&[[0x37, 0]]);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x8000));
}

/// PGSNP, bit 88; SNP of a second-stage leaf, bit 11.
#[test]
fn snooping_is_enforced_by_the_entry_or_the_page() {
    let config = configured(Cap::empty());
    let unit = unit(DeviceConfig { ecap: config.ecap | Ecap::SC, ..config });
    unit.start_scalable(0);
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.map(0, 3, 0x6000, 0, 0x8000 | 1 << 11 | 3);
    let enforced = |address| unit.translate(&read(address)).unwrap().enforces_snooping;
    for _ in 0..2 {
        assert_eq!((enforced(0x5000), enforced(0x6000)), (false, true));
    }
    unit.pasid_entry(0, [top(0) | 2 << 6 | 2 << 2 | 1, 1 << 24 | 7, 0]);
    unit.process(&[[0x37, 0], [0x12, 0]]);
    for _ in 0..2 {
        assert!(enforced(0x5000));
    }
}

/// SFS.10: a translation request is answered, and the fault is recorded all the same.
#[test]
fn an_accessed_bit_that_cannot_be_set_is_recorded() {
    let unit = unit(configured(Cap::empty()));
    unit.start_scalable(PASIDE | DTE);
    unit.map(1, FIRST, 0x5000, 0, 0x8000 | 0x7);
    unit.host().frozen.store(true, Ordering::Relaxed);
    let asks = Request { address_type: AddressType::TranslationRequest, ..of(1, read(0x5000)) };
    assert_eq!(unit.translate(&asks).map(|answer| answer.prot), Ok(Prot::empty()));
    assert_eq!(unit.read64(0x228) >> 32 & 0xff, 0x91);
}

#[test]
fn in_caching_mode_a_pasid_beyond_the_directory_is_not_cached() {
    let unit = unit(configured(Cap::CM));
    unit.start_scalable(PASIDE);
    unit.map(1, FIRST, 0x5000, 0, 0x8000 | FIRST);
    // The entry 128 of the directory, which is the first beyond PDTS 0, names the PASID table.
    unit.host().poke(DIRECTORY + 128 * 8, PASIDS | 1);
    let request = of(128 * 64 + 1, read(0x5000));
    assert_eq!(unit.goes(request), Err(0x46));
    unit.scalable_context(DIRECTORY | PASIDE | 1 << 9 | 1, 0);
    unit.process(&[[0x11, 0]]);
    assert_eq!(unit.goes(request), Ok(0x8000));
}

#[test]
fn caching_mode_does_not_reach_the_first_stage() {
    let unit = unit(configured(Cap::CM));
    unit.start_scalable(PASIDE);
    assert_eq!((unit.goes(read(0x5000)), unit.goes(of(1, read(0x5000)))), (Err(0x79), Err(0x71)));
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.map(1, FIRST, 0x5000, 0, 0x8000 | FIRST);
    assert_eq!((unit.goes(read(0x5000)), unit.goes(of(1, read(0x5000)))), (Err(0x79), Ok(0x8000)));
    unit.process(&[[0x7_0032, 0x5000]]);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
    // A PASID entry that is not present is cached under domain 0.
    assert_eq!(unit.goes(of(2, read(0x5000))), Err(0x59));
    unit.pasid_entry(2, [1 << 6 | 1, 1 << 23 | 9, top(1)]);
    unit.process(&[[0x2_0009_0017, 0]]);
    assert_eq!(unit.goes(of(2, read(0x5000))), Err(0x59));
    unit.process(&[[0x2_0000_0017, 0]]);
    assert_eq!(unit.goes(of(2, read(0x5000))), Ok(0x8000));
}

#[test]
fn pass_through_is_cached_too() {
    let unit = unit(configured(Cap::empty()));
    unit.start_scalable(0);
    unit.pasid_entry(0, [4 << 6 | 2 << 2 | 1, 7, 0]);
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x5000));
    unit.pasid_entry(0, [top(0) | 2 << 6 | 2 << 2 | 1, 7, 0]);
    unit.process(&[[0x7_0017, 0]]);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x5000));
    unit.process(&[[0x7_0032, 0x5000]]);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000));
}

#[test]
fn nested_translations() {
    let unit = unit(configured(Cap::empty()));
    unit.start_scalable(PASIDE);
    // The first stage of page table 1 in guest-physical addresses; the second maps the 2 MiB that hold it, and
    // 0x60_0000 for 0x40_0000.
    unit.pasid_entry(1, [top(0) | 3 << 6 | 2 << 2 | 1, 1 << 23 | 7, top(1)]);
    unit.map(0, 3, tables(1), 1, 0x20_0000 | 0x83);
    unit.map(0, 3, 0x40_0000, 1, 0x60_0000 | 0x83);
    unit.map(1, FIRST, 0x5000, 0, 0x41_2000 | FIRST);
    for _ in 0..2 {
        assert_eq!(unit.goes(of(1, write(0x5678))), Ok(0x61_2678));
    }
    // A page-selective invalidation of the second stage drops what is nested in the domain, wherever.
    unit.map(0, 3, 0x40_0000, 1, 0xa0_0000 | 0x83);
    assert_eq!(unit.goes(of(1, write(0x5678))), Ok(0x61_2678));
    unit.process(&[[0x7_0032, 0x40_0000 | 9]]);
    assert_eq!(unit.goes(of(1, write(0x5678))), Ok(0xa1_2678));
}

/// 6.2.4.1: what faulted in the second stage may be cached, what faulted in the first is not.
#[test]
fn caching_mode_reaches_the_second_stage_of_nested_translations() {
    let unit = unit(configured(Cap::CM));
    unit.start_scalable(PASIDE);
    unit.pasid_entry(1, [top(0) | 3 << 6 | 2 << 2 | 1, 1 << 23 | 7, top(1)]);
    unit.map(0, 3, tables(1), 1, 0x20_0000 | 0x83);
    unit.map(1, FIRST, 0x5000, 0, 0);
    assert_eq!(unit.goes(of(1, read(0x5000))), Err(0x71), "SFS.2");
    unit.map(1, FIRST, 0x5000, 0, 0x41_2000 | FIRST);
    assert_eq!(unit.goes(of(1, read(0x5000))), Err(0x79), "SSS.2");
    unit.map(0, 3, 0x40_0000, 1, 0x60_0000 | 0x83);
    assert_eq!(unit.goes(of(1, read(0x5000))), Err(0x79));
    // Another page goes through the same entry, and was not asked for before.
    unit.map(1, FIRST, 0x6000, 0, 0x41_2000 | FIRST);
    assert_eq!(unit.goes(of(1, read(0x6000))), Ok(0x61_2000));
    unit.process(&[[0x7_0032, 0x40_0000 | 9]]);
    assert_eq!(unit.goes(of(1, read(0x5000))), Ok(0x61_2000));
}

#[test]
fn modes_that_the_unit_does_not_have() {
    let unit = unit(DeviceConfig::default());
    unit.set(Global::TE);
    for mode in 1..4 {
        unit.set_root(ROOT | mode << 10);
        assert_eq!(unit.goes(read(0x5000)), Err(0x30), "RTA.1");
    }
    let abort = super::unit(with(Cap::empty(), Ecap::ADMS));
    abort.set(Global::TE);
    abort.set_root(ROOT | 3 << 10);
    assert_eq!(abort.goes(read(0x5000)), Err(0x33), "RTA.4");
    abort.set_root(ROOT);
    assert_eq!(abort.goes(of(1, read(0x5000))), Err(0x31), "RTA.2");
}
