//! What each invalidation drops (VT-d 6.5.2, Tables 21, 23 and 24).

extern crate std;
use std::vec::Vec;

use super::arena;
use crate::addr::{Iova, PhysAddr};
use crate::arch::vtd::device::cache::{Caches, IotlbKey, IotlbLine, Mapping};
use crate::arch::vtd::device::walk::{
    ContextInfo, Dirty, Leaf, Mode, PasidInfo, PermissionBits, Rights, SecondStageRoot, Stage, Stages, Structure,
};
use crate::arch::vtd::device::{Blocked, Privilege, Recorded, Snoop};
use crate::arch::vtd::layout::descriptors::{Changed, ContextScope, IotlbScope, PasidIotlbScope, PasidScope};
use crate::arch::vtd::layout::scalable::{PasidEntry, ScalableContextEntry};
use crate::arch::vtd::layout::tables::TranslationType;
use crate::arch::vtd::layout::{AddressWidth, DomainId, FaultReason};
use crate::bus::Retention::{Evict, Keep};
use crate::platform::Arena;
use crate::prot::Prot;

const A: DomainId = DomainId::new(1);
const B: DomainId = DomainId::new(2);

fn caches() -> Caches<&'static Arena> {
    Caches::new(&arena(), 2, 48).unwrap()
}

fn leaf(page_bits: u8) -> Leaf {
    let phys = PhysAddr::new(0);
    Leaf { phys, page_bits, prot: Prot::RW, enforces_snooping: false, dirty: Dirty::Settled }
}

/// One line of each kind for each of: domain A and B, PASID 1 and 2, page at 0x5000 and at 0x6000.
const MAPPINGS: [Mapping; 4] = [Mapping::Second, Mapping::PassThrough, Mapping::First, Mapping::Nested];
const ADDRESSES: [u64; 2] = [0x5000, 0x6000];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line {
    Iotlb(Mapping, DomainId, u32, u64),
    Structure(Stage, DomainId, u32, u64),
}

/// Blocks of structures: 2 MiB each.
fn structure_address(address: u64) -> u64 {
    address << 9
}

fn lines() -> Vec<Line> {
    let mut lines = Vec::new();
    for domain in [A, B] {
        for address in ADDRESSES {
            for pasid in [1, 2] {
                lines.extend(MAPPINGS.map(|mapping| Line::Iotlb(mapping, domain, pasid, address)));
                lines.push(Line::Structure(Stage::First, domain, pasid, address));
            }
            lines.push(Line::Structure(Stage::Second, domain, 0, address));
        }
    }
    lines
}

/// Lines of different mappings and domains have different sources.
fn key(mapping: Mapping, domain: DomainId, pasid: u32) -> IotlbKey {
    let source = mapping as u16 * 16 + domain.as_u16();
    IotlbKey { source, pasid: Some(pasid), privilege: Privilege::User }
}

fn fill(caches: &mut Caches<&'static Arena>) {
    for line in lines() {
        match line {
            Line::Iotlb(mapping, domain, pasid, base) => caches.insert_translation(IotlbLine {
                key: key(mapping, domain, pasid),
                domain,
                pasid,
                mapping,
                base,
                block_bits: 12,
                found: Ok(leaf(12)),
                recorded: Recorded::Yes,
            }),
            Line::Structure(stage, domain, pasid, address) => {
                let structure = Structure { level: 0, table: PhysAddr::new(0x7000), rights: Rights::all() };
                caches.insert_structure(stage, domain, pasid, structure_address(address), structure);
            }
        }
    }
}

fn holds(caches: &mut Caches<&'static Arena>, line: Line) -> bool {
    match line {
        Line::Iotlb(mapping, domain, pasid, address) => {
            caches.translation(&key(mapping, domain, pasid), address, Keep).is_some()
        }
        Line::Structure(stage, domain, pasid, address) => {
            caches.structure(stage, domain, pasid, structure_address(address), Keep).is_some()
        }
    }
}

#[derive(Clone, Copy)]
enum Cell {
    /// "NA".
    Kept,
    All,
    Domain,
    DomainAddress,
    DomainPasid,
    DomainPasidAddress,
}

impl Cell {
    /// Whether the line of this domain, PASID and address goes when A, 1 and 0x5000 are named.
    fn drops(self, domain: DomainId, pasid: u32, address: u64) -> bool {
        match self {
            Self::Kept => false,
            Self::All => true,
            Self::Domain => domain == A,
            Self::DomainAddress => domain == A && address == 0x5000,
            Self::DomainPasid => domain == A && pasid == 1,
            Self::DomainPasidAddress => domain == A && pasid == 1 && address == 0x5000,
        }
    }
}

/// A row of Table 23 or 24: second stage and pass-through, first stage and nested, first-stage structures,
/// second-stage structures. `address` is that of structures in rows about these.
fn check(name: &str, row: [Cell; 4], invalidate: impl Fn(&mut Caches<&'static Arena>)) {
    let mut caches = caches();
    fill(&mut caches);
    for line in lines() {
        assert!(holds(&mut caches, line), "{name}: {line:?}");
    }
    invalidate(&mut caches);
    for line in lines() {
        let (cell, domain, pasid, address) = match line {
            Line::Iotlb(Mapping::Second | Mapping::PassThrough, domain, pasid, address) => {
                (row[0], domain, pasid, address)
            }
            Line::Iotlb(_, domain, pasid, address) => (row[1], domain, pasid, address),
            Line::Structure(Stage::First, domain, pasid, address) => (row[2], domain, pasid, address),
            Line::Structure(Stage::Second, domain, pasid, address) => (row[3], domain, pasid, address),
        };
        assert_eq!(holds(&mut caches, line), !cell.drops(domain, pasid, address), "{name}: {line:?}");
    }
}

#[test]
fn table_23() {
    use Cell::{All, Domain, DomainAddress, Kept};
    let pages = |address: u64, changed| IotlbScope::Pages { domain: A, address: Iova::new(address), mask: 0, changed };
    let in_block = structure_address(0x5000) + 0x3000;
    for (name, row, scope) in [
        ("global", [All; 4], IotlbScope::Global),
        ("domain", [Domain; 4], IotlbScope::Domain(A)),
        // The address of a page, far from the blocks of structures; then the other way around.
        ("page", [DomainAddress, Domain, Domain, Kept], pages(0x5000, Changed::Tables)),
        ("page, IH", [DomainAddress, Domain, Domain, Kept], pages(0x5000, Changed::Leaves)),
        ("block", [Kept, Domain, Domain, DomainAddress], pages(in_block, Changed::Tables)),
        ("block, IH", [Kept, Domain, Domain, Kept], pages(in_block, Changed::Leaves)),
    ] {
        check(name, row, |caches| caches.invalidate_iotlb(scope));
    }
}

#[test]
fn table_24() {
    use Cell::{DomainPasid, DomainPasidAddress, Kept};
    let pages = |address: u64, changed| {
        let address = Iova::new(address);
        PasidIotlbScope::Pages { domain: A, pasid: 1, address, mask: 0, changed }
    };
    let in_block = structure_address(0x5000) + 0x3000;
    for (name, row, scope) in [
        ("PASID", [DomainPasid, DomainPasid, DomainPasid, Kept], PasidIotlbScope::Pasid { domain: A, pasid: 1 }),
        ("page", [Kept, DomainPasidAddress, Kept, Kept], pages(0x5000, Changed::Tables)),
        ("page, IH", [Kept, DomainPasidAddress, Kept, Kept], pages(0x5000, Changed::Leaves)),
        ("block", [Kept, Kept, DomainPasidAddress, Kept], pages(in_block, Changed::Tables)),
        ("block, IH", [Kept; 4], pages(in_block, Changed::Leaves)),
    ] {
        check(name, row, |caches| caches.invalidate_pasid_iotlb(scope));
    }
}

#[test]
fn the_caches_of_entries_are_not_those_of_translations() {
    check("context", [Cell::Kept; 4], |caches| caches.invalidate_contexts(ContextScope::Global));
    check("PASID", [Cell::Kept; 4], |caches| caches.invalidate_pasids(PasidScope::Global));
    check("all", [Cell::All; 4], Caches::clear);
}

/// Table 22: 2^AM pages, aligned; a page that is larger goes when any of it is named.
#[test]
fn masks_and_large_pages() {
    let one = |base, block_bits, address, mask| {
        let mut caches = caches();
        let key = key(Mapping::Second, A, 1);
        let (domain, pasid, mapping, recorded) = (A, 1, Mapping::Second, Recorded::Yes);
        let found = Ok(leaf(block_bits));
        caches.insert_translation(IotlbLine { key, domain, pasid, mapping, base, block_bits, found, recorded });
        let address = Iova::new(address);
        caches.invalidate_iotlb(IotlbScope::Pages { domain: A, address, mask, changed: Changed::Leaves });
        caches.translation(&key, base, Keep).is_none()
    };
    assert!(one(0x5000, 12, 0x5000, 0) && !one(0x5000, 12, 0x4000, 0) && !one(0x5000, 12, 0x6000, 0));
    assert!(one(0x5000, 12, 0x4000, 1) && one(0x5000, 12, 0x5000, 1) && !one(0x5000, 12, 0x6000, 1));
    assert!(one(0x5000, 12, 0, 18) && !one(0x4000_5000, 12, 0, 18));
    assert!(one(0x20_0000, 21, 0x3f_f000, 0) && !one(0x20_0000, 21, 0x40_0000, 0) && one(0x20_0000, 21, 0, 10));
    assert!(one(0x8000_0000, 30, 0x8020_0000, 9));
    assert!(one(0x5000, 12, 0, 63) && one(0x5000, 12, 1 << 60 | 0x5000, 0), "bits above MGAW are ignored");
}

const ROOT_OF_A: SecondStageRoot = SecondStageRoot {
    mode: Mode::Legacy,
    table: PhysAddr::new(0x7000),
    width: AddressWidth::Bits48,
    snoop: Snoop::Yes,
    permissions: PermissionBits::Shared,
    keeps_dirty: false,
    recorded: Recorded::Yes,
};
const FAULT: Blocked = Blocked { reason: FaultReason(2), recorded: Recorded::Yes };

fn legacy(domain: DomainId) -> Result<ContextInfo, Blocked> {
    Ok(ContextInfo::Legacy { domain, translation: TranslationType::Untranslated, root: ROOT_OF_A })
}

/// 6.5.2.1. Of legacy mode: 0x10 to 0x17 in domain A, 0x18 in B, 0x19 faulted; 0x20 of scalable mode.
#[test]
fn context_invalidation() {
    let scalable = Ok(ContextInfo::Scalable { entry: ScalableContextEntry::new(PhysAddr::new(0x7000), 0) });
    let survivors = |scope| {
        let mut caches = caches();
        let all = 0x10..=0x20;
        for source in all.clone() {
            match source {
                0x10..=0x17 => caches.insert_context(source, Mode::Legacy, legacy(A)),
                0x18 => caches.insert_context(source, Mode::Legacy, legacy(B)),
                0x19 => caches.insert_context(source, Mode::Legacy, Err(FAULT)),
                0x20 => caches.insert_context(source, Mode::Scalable, scalable),
                _ => {}
            }
        }
        caches.invalidate_contexts(scope);
        all.filter(|source| caches.context(*source, Keep).is_some()).collect::<Vec<_>>()
    };
    let device = |domain, source, function_mask| ContextScope::Device { domain, source, function_mask };
    let others = |gone: &[u16]| (0x10..=0x19).chain([0x20]).filter(|id| !gone.contains(id)).collect::<Vec<_>>();
    assert_eq!(survivors(ContextScope::Global), []);
    assert_eq!(survivors(ContextScope::Domain(A)), [0x18, 0x19], "scalable mode knows no domains here");
    assert_eq!(survivors(ContextScope::Domain(DomainId::new(0))), others(&[0x19, 0x20]), "faults have domain 0");
    assert_eq!(survivors(device(A, 0x12, 0)), others(&[0x12]));
    assert_eq!(survivors(device(A, 0x12, 1)), others(&[0x12, 0x16]));
    assert_eq!(survivors(device(A, 0x12, 2)), others(&[0x10, 0x12, 0x14, 0x16]));
    assert_eq!(survivors(device(A, 0x12, 3)), others(&[0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17]));
    assert_eq!(survivors(device(B, 0x12, 0)), others(&[]));
    assert_eq!(survivors(device(A, 0x19, 0)), others(&[]));
    assert_eq!(survivors(device(DomainId::new(0), 0x19, 0)), others(&[0x19]));
    assert_eq!(survivors(device(B, 0x20, 0)), others(&[0x20]), "the domain is ignored");
}

/// 6.5.2.2.
#[test]
fn pasid_cache_invalidation() {
    let info = |domain| {
        let entry = PasidEntry::pass_through(AddressWidth::Bits48, domain);
        PasidInfo { entry, stages: Stages::PassThrough, recorded: Recorded::Yes }
    };
    let survivors = |scope| {
        let mut caches = caches();
        for (source, domain) in [(1, A), (2, B)] {
            for pasid in 1..=2 {
                caches.insert_pasid(source, pasid, Some(domain), Ok(info(domain)));
            }
        }
        caches.insert_pasid(3, 1, None, Err(FAULT));
        caches.invalidate_pasids(scope);
        let all = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)];
        all.into_iter().filter(|(source, pasid)| caches.pasid(*source, *pasid, Keep).is_some()).collect::<Vec<_>>()
    };
    assert_eq!(survivors(PasidScope::Global), []);
    assert_eq!(survivors(PasidScope::Domain(A)), [(2, 1), (2, 2), (3, 1)]);
    assert_eq!(survivors(PasidScope::Pasid { domain: A, pasid: 1 }), [(1, 2), (2, 1), (2, 2), (3, 1)]);
    assert_eq!(survivors(PasidScope::Pasid { domain: B, pasid: 3 }).len(), 5);
    assert_eq!(survivors(PasidScope::Domain(DomainId::new(0))).len(), 4);
}

#[test]
fn a_line_can_be_evicted_when_it_is_found() {
    let mut caches = caches();
    fill(&mut caches);
    caches.insert_context(1, Mode::Legacy, legacy(A));
    caches.insert_pasid(1, 1, None, Err(FAULT));
    assert!(caches.context(1, Evict).is_none() && caches.context(1, Keep).is_none());
    assert!(caches.pasid(1, 1, Evict).is_none() && caches.pasid(1, 1, Keep).is_none());
    let key = key(Mapping::First, A, 1);
    assert!(caches.translation(&key, 0x5000, Evict).is_none() && caches.translation(&key, 0x5000, Keep).is_none());
    let address = structure_address(0x5000);
    assert!(caches.structure(Stage::First, A, 1, address, Evict).is_none());
    assert!(!holds(&mut caches, Line::Structure(Stage::First, A, 1, 0x5000)));
    assert!(holds(&mut caches, Line::Structure(Stage::First, A, 1, 0x6000)));
}
