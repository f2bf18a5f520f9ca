//! The first stage nested in the second (VT-d 3.8): conditions SFS.5 to SFS.8, and those of the second
//! stage.

use super::memory::Memory;
use super::{Everything, reason, unit};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::walk::{
    Dirty, FirstStageRoot, Goal, Leaf, Lookup, Mode, NoStructureCache, PermissionBits, Rights, SecondStageRoot, Stage,
    Structure, first_stage,
};
use crate::arch::vtd::device::{Blocked, DeviceConfig, Privilege, Recorded, RequestAccess, Snoop};
use crate::arch::vtd::layout::scalable::FirstStageLevels;
use crate::arch::vtd::layout::{AddressWidth, Cap, Ecap};
use crate::prot::Prot;

/// Its indexes are 0x24, 0xd1, 0xb3 and 0x189.
const ADDRESS: u64 = 0x1234_5678_9abc;

// The first stage is at guest-physical 0x4000_0000 and on, one page a table, which the second stage
// maps to 0x1_0000 and on; its page is guest-physical 0x8765_4000, mapped to 0xabcd_e000.
const PML4E: u64 = 0x1_0120;
const PDPE: u64 = 0x1_1688;
const PDE: u64 = 0x1_2598;
const PTE: u64 = 0x1_3c48;

// The second stage has three levels: 0x2000; 0x3000 for 1 GiB, 0x4000 for 2 GiB; 0x5000 for the
// tables. Guest-physical 0x8765_4000 has the indexes 2, 0x3b and 0x54.
const SS_TABLES: [u64; 4] = [0x5000, 0x5008, 0x5010, 0x5018];
const SS_PAGE: u64 = 0x62a0;

const WORDS: [(u64, u64); 13] = [
    (PML4E, 0x4000_1067),
    (PDPE, 0x4000_2067),
    (PDE, 0x4000_3067),
    (PTE, 0x8765_4067),
    (0x2008, 0x3003),
    (0x2010, 0x4003),
    (0x3000, 0x5003),
    (0x41d8, 0x6003),
    (SS_TABLES[0], 0x1_0003),
    (SS_TABLES[1], 0x1_1003),
    (SS_TABLES[2], 0x1_2003),
    (SS_TABLES[3], 0x1_3003),
    (SS_PAGE, 0xabcd_e003),
];

const FIRST: FirstStageRoot = FirstStageRoot {
    table: PhysAddr::new(0x4000_0000),
    levels: FirstStageLevels::Four,
    snoop: Snoop::Yes,
    protects_writes: false,
    keeps_extended_accessed: false,
    recorded: Recorded::Yes,
};

const SECOND: SecondStageRoot = SecondStageRoot {
    mode: Mode::Scalable,
    table: PhysAddr::new(0x2000),
    width: AddressWidth::Bits39,
    snoop: Snoop::Yes,
    permissions: PermissionBits::Shared,
    keeps_dirty: false,
    recorded: Recorded::Yes,
};
const DIRTY: SecondStageRoot = SecondStageRoot { keeps_dirty: true, ..SECOND };

const READ: Goal = Goal::Access(RequestAccess::Read);
const WRITE: Goal = Goal::Access(RequestAccess::Write);

fn plain() -> DeviceConfig {
    unit(Cap::LARGE_2M | Cap::LARGE_1G | Cap::FS1GP, Ecap::FSTS | Ecap::SSTS | Ecap::NEST | Ecap::SC)
}

fn walk(memory: &Memory, second: &SecondStageRoot, goal: Goal) -> Result<Leaf, Blocked> {
    let lookup = Lookup { address: ADDRESS, goal, privilege: Privilege::User };
    first_stage(memory, &plain(), &FIRST, Some(second), &lookup, &mut NoStructureCache)
}

/// The walk of [`WORDS`], one of which is another one.
fn with(word: (u64, u64), goal: Goal) -> Result<Leaf, Blocked> {
    let memory = Memory::new(&WORDS);
    memory.put(word.0, word.1);
    walk(&memory, &SECOND, goal)
}

#[test]
fn pages() {
    let page = Leaf {
        phys: PhysAddr::new(0xabcd_e000),
        page_bits: 12,
        prot: Prot::RW,
        enforces_snooping: false,
        dirty: Dirty::Settled,
    };
    let memory = Memory::new(&WORDS);
    assert_eq!(walk(&memory, &SECOND, WRITE), Ok(page));
    // Four tables and a page through three levels, and four entries.
    assert_eq!(memory.take_reads(), 5 * 3 + 4);
    assert_eq!(with((SS_PAGE, 0xabcd_e803), WRITE), Ok(Leaf { enforces_snooping: true, ..page }));
    // Permissions of both stages.
    assert_eq!(with((SS_PAGE, 0xabcd_e001), READ).unwrap().prot, Prot::READ);
    assert_eq!(with((PTE, 0x8765_4065), READ).unwrap().prot, Prot::READ);
    assert_eq!(with((SS_PAGE, 0xabcd_e002), WRITE).unwrap().prot, Prot::WRITE);
}

#[test]
fn the_smaller_page() {
    // 2 MiB at guest-physical 0x8760_0000, which the second stage maps in 4 KiB: the part of the
    // address is 0x8778_9000, indexes 2, 0x3b and 0x189.
    let memory = Memory::new(&WORDS);
    memory.put(PDE, 0x8760_00e7);
    memory.put(0x6c48, 0x7_7777_7003);
    let leaf = walk(&memory, &SECOND, READ).unwrap();
    assert_eq!((leaf.phys, leaf.page_bits), (PhysAddr::new(0x7_7777_7000), 12));
    assert_eq!(leaf.output(ADDRESS), PhysAddr::new(0x7_7777_7abc));
    // 4 KiB at guest-physical 0x8765_4000, in 2 MiB at 0x1_2340_0000.
    let leaf = with((0x41d8, 0x1_2340_0083), READ).unwrap();
    assert_eq!((leaf.phys, leaf.page_bits), (PhysAddr::new(0x1_2345_4000), 12));
    // 1 GiB in 1 GiB: guest-physical 0x8000_0000 at 0x3_c000_0000.
    let memory = Memory::new(&WORDS);
    memory.put(PDPE, 0x8000_00e7);
    memory.put(0x2010, 0x3_c000_0083);
    let leaf = walk(&memory, &SECOND, READ).unwrap();
    assert_eq!((leaf.phys, leaf.page_bits), (PhysAddr::new(0x3_c000_0000), 30));
    assert_eq!(leaf.output(ADDRESS), PhysAddr::new(0x3_d678_9abc));
    // 2 MiB in 1 GiB.
    memory.put(PDPE, 0x4000_2067);
    memory.put(PDE, 0x8760_00e7);
    let leaf = walk(&memory, &SECOND, READ).unwrap();
    assert_eq!((leaf.phys, leaf.page_bits), (PhysAddr::new(0x3_c760_0000), 21));
}

#[test]
fn tables_that_the_second_stage_hides() {
    // Write only: the top table, then others.
    assert_eq!(reason(with((SS_TABLES[0], 0x1_0002), READ)), 0x75); // SFS.6
    assert_eq!(reason(with((SS_TABLES[1], 0x1_1002), READ)), 0x76); // SFS.7
    assert_eq!(reason(with((SS_TABLES[2], 0x1_2002), WRITE)), 0x76);
    assert_eq!(reason(with((SS_TABLES[3], 0x1_3002), READ)), 0x76);
    // SSS.1 to SSS.4.
    for at in SS_TABLES.into_iter().chain([SS_PAGE]) {
        assert_eq!(reason(with((at, 0), READ)), 0x79);
        assert_eq!(reason(with((at, 1 << 62 | 1), READ)), 0x7a);
    }
    assert_eq!(reason(with((0x3000, 0x8000_0003), READ)), 0x78);
    let memory = Memory::new(&WORDS);
    let nowhere = SecondStageRoot { table: PhysAddr::new(0x8000_0000), ..SECOND };
    assert_eq!(reason(walk(&memory, &nowhere, READ)), 0x7b);
    // The second stage maps a table to where no memory is.
    assert_eq!(reason(with((SS_TABLES[0], 0x8000_0003), READ)), 0x73); // SFS.4
    assert_eq!(reason(with((SS_TABLES[1], 0x8000_0003), READ)), 0x70); // SFS.1
}

#[test]
fn addresses_beyond_the_second_stage() {
    for (at, word) in [(PML4E, 0x80_0000_0067), (PDPE, 0x80_0000_0067), (PDE, 0x80_0000_0067), (PTE, 0x80_0000_0067)] {
        assert_eq!(reason(with((at, word), READ)), 0x74, "{at:x}"); // SFS.5
    }
    for (at, word) in [(PDE, 0x80_0000_00e7), (PDPE, 0x80_0000_00e7)] {
        assert_eq!(reason(with((at, word), READ)), 0x74, "{at:x}");
    }
    // MGAW of 32 bits.
    let narrow = DeviceConfig { cap: Cap::from_bits_retain(0x001f_0606), ..plain() };
    let memory = Memory::new(&WORDS);
    memory.put(PTE, 0x1_0000_0067);
    let lookup = Lookup { address: ADDRESS, goal: READ, privilege: Privilege::User };
    assert_eq!(reason(first_stage(&memory, &narrow, &FIRST, Some(&SECOND), &lookup, &mut NoStructureCache)), 0x74);
    // Bits beyond the host are reserved all the same.
    assert_eq!(reason(with((PTE, 0x4000_0000_0067), READ)), 0x72);
}

#[test]
fn pages_that_the_second_stage_forbids() {
    assert_eq!(reason(with((SS_PAGE, 0xabcd_e001), WRITE)), 0x85); // SGN.6
    assert_eq!(reason(with((SS_PAGE, 0xabcd_e002), READ)), 0x86); // SGN.7
    assert_eq!(reason(with((SS_PAGE, 0xfee0_0003), READ)), 0x87); // SGN.8
    // That the guest writes where the second stage forbids it leaves no trace.
    let memory = Memory::new(&WORDS);
    memory.put(PTE, 0x8765_4027);
    memory.put(SS_PAGE, 0xabcd_e001);
    assert_eq!(reason(walk(&memory, &SECOND, WRITE)), 0x85);
    assert_eq!(memory.get(PTE), 0x8765_4027);
}

#[test]
fn updates_of_the_first_stage() {
    let at = [PML4E, PDPE, PDE, PTE];
    let clear = |memory: &Memory| at.map(|at| memory.put(at, memory.get(at) & !0x60));
    let memory = Memory::new(&WORDS);
    clear(&memory);
    assert_eq!(walk(&memory, &SECOND, WRITE).unwrap().dirty, Dirty::Settled);
    assert_eq!(at.map(|at| memory.get(at)), [0x4000_1027, 0x4000_2027, 0x4000_3027, 0x8765_4067]);
    for slot in SS_TABLES {
        let memory = Memory::new(&WORDS);
        memory.put(slot, memory.get(slot) & !2);
        assert!(walk(&memory, &SECOND, WRITE).is_ok(), "nothing to update");
        clear(&memory);
        assert_eq!(reason(walk(&memory, &SECOND, READ)), 0x77, "{slot:x}"); // SFS.8
    }
}

#[test]
fn dirty_bits_of_the_second_stage() {
    let memory = Memory::new(&WORDS);
    let leaf = walk(&memory, &DIRTY, READ).unwrap();
    assert_eq!(leaf.dirty, Dirty::WalkToWrite);
    // Tables count as written (3.8.1), the page only as read.
    assert_eq!(SS_TABLES.map(|at| memory.get(at)), [0x1_0303, 0x1_1303, 0x1_2303, 0x1_3303]);
    assert_eq!((memory.get(SS_PAGE), memory.get(0x2008), memory.get(0x41d8)), (0xabcd_e103, 0x3103, 0x6103));
    assert_eq!(walk(&memory, &DIRTY, WRITE).unwrap().dirty, Dirty::Settled);
    assert_eq!(memory.get(SS_PAGE), 0xabcd_e303);
    // Therefore tables must be writable.
    for (slot, code) in SS_TABLES.into_iter().zip([0x75, 0x76, 0x76, 0x76]) {
        let memory = Memory::new(&WORDS);
        memory.put(slot, memory.get(slot) & !2);
        assert_eq!(reason(walk(&memory, &DIRTY, READ)), code, "{slot:x}");
    }
    // A page that the first stage makes read-only does not become dirty for who asks to write.
    let memory = Memory::new(&WORDS);
    memory.put(PTE, 0x8765_4065);
    let leaf = walk(&memory, &DIRTY, Goal::Translation(RequestAccess::Write)).unwrap();
    assert_eq!((leaf.prot, memory.get(SS_PAGE)), (Prot::READ, 0xabcd_e103));
    // SSS.5.
    let blind = SecondStageRoot { snoop: Snoop::No, ..DIRTY };
    assert_eq!(reason(walk(&Memory::new(&WORDS), &blind, READ)), 0x7c);
}

#[test]
fn interrupts_in_what_both_stages_map() {
    // 4 KiB of a page of 2 MiB that reaches into the interrupt range, but these 4 KiB do not.
    let asks = Goal::Translation(RequestAccess::Read);
    let memory = Memory::new(&WORDS);
    memory.put(0x41d8, 0xfee0_0083);
    memory.put(PTE, 0x8770_0067);
    assert_eq!(walk(&memory, &SECOND, asks).unwrap().phys, PhysAddr::new(0xfef0_0000));
    memory.put(PTE, 0x876f_f067);
    assert_eq!(reason(walk(&memory, &SECOND, asks)), 0x87);
    assert_eq!(reason(walk(&memory, &SECOND, READ)), 0x87);
}

#[test]
fn structures_are_cached() {
    let mut cache = Everything::default();
    let memory = Memory::new(&WORDS);
    memory.put(SS_TABLES[3], 0x1_3001);
    let find = |cache: &mut Everything| {
        let lookup = Lookup { address: ADDRESS, goal: READ, privilege: Privilege::User };
        first_stage(&memory, &plain(), &FIRST, Some(&SECOND), &lookup, cache)
    };
    assert!(find(&mut cache).is_ok());
    // The table is host-physical, and known not to be writable.
    let lowest = Structure { level: 0, table: PhysAddr::new(0x1_3000), rights: Rights::all() - Rights::UPDATE };
    assert!(cache.structures.contains(&(Stage::First, ADDRESS >> 21, lowest)));
    let of_guest = Structure { level: 0, table: PhysAddr::new(0x6000), rights: Rights::all() };
    assert!(cache.structures.contains(&(Stage::Second, 0x8765_4000 >> 21, of_guest)));
    // The PTE, and the last level of the second stage for the page.
    memory.take_reads();
    assert!(find(&mut cache).is_ok());
    assert_eq!(memory.take_reads(), 2);
    memory.put(PTE, 0x8765_4007);
    assert_eq!(reason(find(&mut cache)), 0x77);
}
