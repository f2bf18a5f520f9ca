//! First-stage entries: Figure 9-7, conditions SFS, SGN.

use super::memory::Memory;
use super::{Everything, reason, suppressed, unit};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::walk::{
    Dirty, FirstStageRoot, Goal, Leaf, Lookup, NoStructureCache, Rights, Stage, Structure, first_stage,
};
use crate::arch::vtd::device::{Blocked, DeviceConfig, Privilege, Recorded, RequestAccess, Snoop};
use crate::arch::vtd::layout::scalable::FirstStageLevels;
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::prot::Prot;

/// Its indexes are 0x24, 0xd1, 0xb3 and 0x189.
const ADDRESS: u64 = 0x1234_5678_9abc;
const PML4E: u64 = 0x1_0120;
const PDPE: u64 = 0x1_1688;
const PDE: u64 = 0x1_2598;
const PTE: u64 = 0x1_3c48;

/// Four levels to the page at 0xabcd_e000, for users, A and D set.
const TABLES: [(u64, u64); 4] = [(PML4E, 0x1_1027), (PDPE, 0x1_2027), (PDE, 0x1_3027), (PTE, 0xabcd_e067)];

const ROOT: FirstStageRoot = FirstStageRoot {
    table: PhysAddr::new(0x1_0000),
    levels: FirstStageLevels::Four,
    snoop: Snoop::Yes,
    protects_writes: false,
    keeps_extended_accessed: false,
    recorded: Recorded::Yes,
};

const READ: Goal = Goal::Access(RequestAccess::Read);
const WRITE: Goal = Goal::Access(RequestAccess::Write);
const ATOMIC: Goal = Goal::Access(RequestAccess::Atomic);

fn plain() -> DeviceConfig {
    unit(Cap::FS1GP, Ecap::FSTS)
}

fn walk_as(
    memory: &Memory,
    config: &DeviceConfig,
    root: &FirstStageRoot,
    goal: Goal,
    privilege: Privilege,
) -> Result<Leaf, Blocked> {
    first_stage(memory, config, root, None, &Lookup { address: ADDRESS, goal, privilege }, &mut NoStructureCache)
}

fn walk(memory: &Memory, root: &FirstStageRoot, goal: Goal) -> Result<Leaf, Blocked> {
    walk_as(memory, &plain(), root, goal, Privilege::User)
}

/// The walk of [`TABLES`], one word of which is another one.
fn with(config: &DeviceConfig, word: (u64, u64), goal: Goal) -> Result<Leaf, Blocked> {
    let memory = Memory::new(&TABLES);
    memory.put(word.0, word.1);
    let found = walk_as(&memory, config, &ROOT, goal, Privilege::User);
    assert!(memory.take_reads() <= 4);
    found
}

#[test]
fn pages() {
    let config = plain();
    let page = Leaf {
        phys: PhysAddr::new(0xabcd_e000),
        page_bits: 12,
        prot: Prot::RW,
        enforces_snooping: false,
        dirty: Dirty::Settled,
    };
    assert_eq!(with(&config, TABLES[0], ATOMIC), Ok(page));
    // Bits 63:52, 11:8, 4:3 of any entry are ignored, bit 6 of what is no page, and PAT (7) of a PTE.
    for (at, word) in TABLES {
        let more = if at == PTE { 0x80 } else { 0x40 };
        assert_eq!(with(&config, (at, word | 0xfff0_0000_0000_0f18 | more), READ), Ok(page), "{at:x}");
    }
    // 2 MiB and 1 GiB; bit 12 is PAT.
    let two = Leaf { phys: PhysAddr::new(0xabc0_0000), page_bits: 21, ..page };
    assert_eq!(with(&config, (PDE, 0xabc0_10e7), WRITE), Ok(two));
    let one = Leaf { phys: PhysAddr::new(0x2_c000_0000), page_bits: 30, ..page };
    assert_eq!(with(&config, (PDPE, 0x2_c000_10e7), WRITE), Ok(one));
    assert_eq!(one.output(ADDRESS), PhysAddr::new(0x2_d678_9abc));
}

#[test]
fn canonical_addresses() {
    let memory = Memory::new(&[(0x1_0800, 0x1_1027)]);
    let config = plain();
    let of = |root: &FirstStageRoot, address| {
        reason(first_stage(
            &memory,
            &config,
            root,
            None,
            &Lookup { address, goal: READ, privilege: Privilege::User },
            &mut NoStructureCache,
        ))
    };
    let five = FirstStageRoot { levels: FirstStageLevels::Five, ..ROOT };
    for address in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 0xfffe_8000_0000_0000, 1 << 63] {
        assert_eq!(of(&ROOT, address), 0x80, "{address:x}"); // SGN.1
    }
    for address in [0x0100_0000_0000_0000, 0xfeff_ffff_ffff_ffff] {
        assert_eq!(of(&five, address), 0x80, "{address:x}");
    }
    assert_eq!(memory.take_reads(), 0);
    for address in [0, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
        assert_eq!(of(&ROOT, address), 0x71, "{address:x}");
    }
    // Bit 47 alone selects entry 0x100 of the top table: two entries are read.
    memory.take_reads();
    assert_eq!(of(&ROOT, 0xffff_8000_0000_0000), 0x71);
    assert_eq!(memory.take_reads(), 2);
    for address in [0x00ff_ffff_ffff_ffff, 0xff00_0000_0000_0000] {
        assert_eq!(of(&five, address), 0x71, "{address:x}");
    }
}

#[test]
fn five_levels() {
    // Indexes 0x12, 0x68, 0x159, 0x1c4 and 0x1ab.
    let words =
        [(0x1_0090, 0x1_1027), (0x1_1340, 0x1_2027), (0x1_2ac8, 0x1_3027), (0x1_3e20, 0x1_4027), (0x1_4d58, 0x5067)];
    let memory = Memory::new(&words);
    let root = FirstStageRoot { levels: FirstStageLevels::Five, ..ROOT };
    let lookup = Lookup { address: 0x12_3456_789a_bcde, goal: READ, privilege: Privilege::User };
    let leaf = first_stage(&memory, &plain(), &root, None, &lookup, &mut NoStructureCache).unwrap();
    assert_eq!((leaf.output(lookup.address), memory.take_reads()), (PhysAddr::new(0x5cde), 5));
    memory.put(0x1_0090, 0x1_10a7); // PS in a PML5E
    assert_eq!(reason(first_stage(&memory, &plain(), &root, None, &lookup, &mut NoStructureCache)), 0x72);
}

#[test]
fn entries_that_cannot_be_used() {
    let config = plain();
    let nowhere = FirstStageRoot { table: PhysAddr::new(0x8000_0000), ..ROOT };
    assert_eq!(reason(walk(&Memory::new(&[]), &nowhere, READ)), 0x73); // SFS.4
    for (at, word) in TABLES {
        assert_eq!(reason(with(&config, (at, word & !1), READ)), 0x71, "{at:x}"); // SFS.2
        assert_eq!(reason(with(&config, (at, !1), READ)), 0x71, "{at:x}");
        for bit in [46, 51] {
            assert_eq!(reason(with(&config, (at, word | 1 << bit), READ)), 0x72, "{at:x}"); // SFS.3
        }
        if at != PTE {
            assert_eq!(reason(with(&config, (at, 0x8000_0027), READ)), 0x70, "{at:x}"); // SFS.1
        }
    }
    assert_eq!(reason(with(&config, (PML4E, 0x1_10a7), READ)), 0x72);
    for bit in 13..21 {
        assert_eq!(reason(with(&config, (PDE, 0xabc0_00e7 | 1 << bit), READ)), 0x72, "{bit}");
    }
    for bit in 13..30 {
        assert_eq!(reason(with(&config, (PDPE, 0x2_c000_00e7 | 1 << bit), READ)), 0x72, "{bit}");
    }
    // A unit without pages of 1 GiB; those of 2 MiB need no capability.
    let small = unit(Cap::empty(), Ecap::FSTS);
    assert_eq!(reason(with(&small, (PDPE, 0x2_c000_00e7), READ)), 0x72);
    assert!(with(&small, (PDE, 0xabc0_00e7), READ).is_ok());
    let quiet = FirstStageRoot { recorded: Recorded::Suppressed, ..ROOT };
    assert_eq!(suppressed(walk(&Memory::new(&[]), &quiet, READ)), 0x71);
}

#[test]
fn rights() {
    let config = plain();
    let (user, supervisor) = (Privilege::User, Privilege::Supervisor);
    let protects = FirstStageRoot { protects_writes: true, ..ROOT };
    for (at, word) in TABLES {
        // U/S clear at any level.
        let memory = Memory::new(&TABLES);
        memory.put(at, word & !4);
        assert_eq!(reason(walk_as(&memory, &config, &ROOT, READ, user)), 0x81, "{at:x}"); // SGN.2
        let leaf = walk_as(&memory, &config, &ROOT, WRITE, supervisor).unwrap();
        assert_eq!(leaf.prot, Prot::RW | Prot::PRIV);
        // R/W clear at any level: supervisors obey with WPE only.
        let memory = Memory::new(&TABLES);
        memory.put(at, word & !2);
        for goal in [WRITE, ATOMIC] {
            assert_eq!(reason(walk_as(&memory, &config, &ROOT, goal, user)), 0x85, "{at:x}"); // SGN.6
            assert_eq!(reason(walk_as(&memory, &config, &protects, goal, supervisor)), 0x85, "{at:x}");
            assert_eq!(walk_as(&memory, &config, &ROOT, goal, supervisor).unwrap().prot, Prot::RW);
        }
        for root in [ROOT, protects] {
            assert_eq!(walk_as(&memory, &config, &root, READ, user).unwrap().prot, Prot::READ);
        }
        let asks = Goal::Translation(RequestAccess::Write);
        assert_eq!(walk_as(&memory, &config, &ROOT, asks, user).unwrap().prot, Prot::READ);
    }
}

#[test]
fn accessed_and_dirty() {
    let clear = TABLES.map(|(at, word)| (at, word & !0x60));
    let memory = Memory::new(&clear);
    let words = || [PML4E, PDPE, PDE, PTE].map(|at| memory.get(at));
    // A is bit 5, D bit 6 of the page only.
    assert_eq!(walk(&memory, &ROOT, READ).unwrap().dirty, Dirty::WalkToWrite);
    assert_eq!(words(), [0x1_1027, 0x1_2027, 0x1_3027, 0xabcd_e027]);
    // A write that is not permitted makes nothing dirty.
    memory.put(PTE, 0xabcd_e005);
    assert_eq!(reason(walk(&memory, &ROOT, WRITE)), 0x85);
    assert!(walk(&memory, &ROOT, Goal::Translation(RequestAccess::Write)).is_ok());
    assert_eq!(words()[3], 0xabcd_e025);
    memory.put(PTE, 0xabcd_e007);
    assert!(walk(&memory, &ROOT, Goal::Translation(RequestAccess::Read)).is_ok());
    assert_eq!(words()[3], 0xabcd_e027);
    memory.put(PTE, 0xabcd_e007);
    assert_eq!(walk(&memory, &ROOT, WRITE).unwrap().dirty, Dirty::Settled);
    assert_eq!(words()[3], 0xabcd_e067);
    memory.put(PTE, 0xfee0_0007);
    assert_eq!(reason(walk(&memory, &ROOT, WRITE)), 0x87); // SGN.8
    assert_eq!(words()[3], 0xfee0_0007);
    // EA is bit 10, with EAFE only.
    let extended = FirstStageRoot { keeps_extended_accessed: true, ..ROOT };
    memory.put(PTE, 0xabcd_e007);
    assert!(walk(&memory, &extended, WRITE).is_ok());
    assert_eq!(words(), [0x1_1427, 0x1_2427, 0x1_3427, 0xabcd_e467]);
}

#[test]
fn updates_that_fail() {
    let clear = TABLES.map(|(at, word)| (at, word & !0x60));
    let blind = FirstStageRoot { snoop: Snoop::No, ..ROOT };
    assert_eq!(reason(walk(&Memory::new(&clear), &blind, READ)), 0x90); // SFS.9
    assert!(walk(&Memory::new(&TABLES), &blind, WRITE).is_ok());
    let memory = Memory::new(&TABLES);
    memory.put(PTE, 0xabcd_e027);
    assert!(walk(&memory, &blind, READ).is_ok());
    assert_eq!(reason(walk(&memory, &blind, WRITE)), 0x90);
    let extended = FirstStageRoot { keeps_extended_accessed: true, ..blind };
    assert_eq!(reason(walk(&Memory::new(&TABLES), &extended, READ)), 0x90);
    let memory = Memory::new(&clear);
    memory.forbid_writes();
    assert_eq!(reason(walk(&memory, &ROOT, READ)), 0x91); // SFS.10
    let memory = Memory::new(&clear);
    memory.interfere(&[0x1_1007, 0x1_1807, 0x1_1007, 0x1_1807]);
    assert_eq!(reason(walk(&memory, &ROOT, READ)), 0x91);
    assert_eq!(memory.take_reads(), 4);
    // What changed is judged again.
    let memory = Memory::new(&clear);
    memory.interfere(&[0x1_1003]);
    assert_eq!(reason(walk(&memory, &ROOT, READ)), 0x81);
}

#[test]
fn structures_are_cached() {
    let config = plain();
    let mut cache = Everything::default();
    let memory = Memory::new(&TABLES);
    memory.put(PDPE, 0x1_2025);
    memory.put(PDE, 0x1_3023);
    let find = |cache: &mut Everything, goal, privilege| {
        first_stage(&memory, &config, &ROOT, None, &Lookup { address: ADDRESS, goal, privilege }, cache)
    };
    assert!(find(&mut cache, READ, Privilege::Supervisor).is_ok());
    let kept = |level, table, rights| Structure { level, table: PhysAddr::new(table), rights };
    let all = Rights::all();
    let wanted = [
        (Stage::First, ADDRESS >> 39, kept(2, 0x1_1000, all)),
        (Stage::First, ADDRESS >> 30, kept(1, 0x1_2000, all - Rights::WRITE)),
        (Stage::First, ADDRESS >> 21, kept(0, 0x1_3000, all - Rights::WRITE - Rights::USER)),
    ];
    assert_eq!(cache.structures, wanted);
    memory.take_reads();
    memory.put(PML4E, 0);
    let leaf = find(&mut cache, WRITE, Privilege::Supervisor).unwrap();
    assert_eq!((leaf.prot, memory.take_reads()), (Prot::RW | Prot::PRIV, 1));
    // Who may not go there is told so whatever the last entry is.
    memory.put(PTE, 0);
    assert_eq!(reason(find(&mut cache, READ, Privilege::User)), 0x81);
    assert_eq!(memory.take_reads(), 0);
    assert_eq!(cache.missing, []);
}
