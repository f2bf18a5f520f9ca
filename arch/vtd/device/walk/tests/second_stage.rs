//! Second-stage entries: Figure 9-8, conditions LCT.4.3, LSS, LGN, SSS, SGN.

use super::memory::Memory;
use super::{Everything, reason, suppressed, unit};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::walk::{
    Dirty, Goal, Leaf, Lookup, Mode, NoStructureCache, PermissionBits, Rights, SecondStageRoot, Stage, Structure,
    StructureCache, second_stage,
};
use crate::arch::vtd::device::{Blocked, DeviceConfig, Privilege, Recorded, RequestAccess, Snoop};
use crate::arch::vtd::layout::{AddressWidth, Cap, Ecap};
use crate::prot::Prot;

/// Its indexes are 0x24, 0xd1, 0xb3 and 0x189.
const ADDRESS: u64 = 0x1234_5678_9abc;
const PML4E: u64 = 0x1_0120;
const PDPE: u64 = 0x1_1688;
const PDE: u64 = 0x1_2598;
const PTE: u64 = 0x1_3c48;

/// Four levels to the page at 0xabcd_e000.
const TABLES: [(u64, u64); 4] = [(PML4E, 0x1_1003), (PDPE, 0x1_2003), (PDE, 0x1_3003), (PTE, 0xabcd_e003)];

const LEGACY: SecondStageRoot = SecondStageRoot {
    mode: Mode::Legacy,
    table: PhysAddr::new(0x1_0000),
    width: AddressWidth::Bits48,
    snoop: Snoop::Yes,
    permissions: PermissionBits::Shared,
    keeps_dirty: false,
    recorded: Recorded::Yes,
};
const SCALABLE: SecondStageRoot = SecondStageRoot { mode: Mode::Scalable, ..LEGACY };
const DIRTY: SecondStageRoot = SecondStageRoot { keeps_dirty: true, ..SCALABLE };

const READ: Goal = Goal::Access(RequestAccess::Read);
const WRITE: Goal = Goal::Access(RequestAccess::Write);
const ATOMIC: Goal = Goal::Access(RequestAccess::Atomic);
const FLUSH: Goal = Goal::Access(RequestAccess::ZeroLengthRead);

fn plain() -> DeviceConfig {
    unit(Cap::LARGE_2M | Cap::LARGE_1G, Ecap::SC)
}

fn lookup(address: u64, goal: Goal) -> Lookup {
    Lookup { address, goal, privilege: Privilege::User }
}

fn walk(memory: &Memory, config: &DeviceConfig, root: &SecondStageRoot, goal: Goal) -> Result<Leaf, Blocked> {
    second_stage(memory, config, root, &lookup(ADDRESS, goal), &mut NoStructureCache)
}

/// The walk of [`TABLES`], one word of which is another one.
fn with(config: &DeviceConfig, root: &SecondStageRoot, word: (u64, u64), goal: Goal) -> Result<Leaf, Blocked> {
    let memory = Memory::new(&TABLES);
    memory.put(word.0, word.1);
    let found = walk(&memory, config, root, goal);
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
    for root in [LEGACY, SCALABLE] {
        let memory = Memory::new(&TABLES);
        assert_eq!(walk(&memory, &config, &root, ATOMIC), Ok(page));
        assert_eq!(memory.take_reads(), 4);
        assert_eq!(memory.get(PTE), 0xabcd_e003);
        assert_eq!(page.output(ADDRESS), PhysAddr::new(0xabcd_eabc));
        // Bits 60:52, 63, 61, 10:9, 8, 6:2 of any entry are ignored (without SSADE), bit 7 of a PTE too.
        let ignored = 0xbff0_0000_0000_077c;
        for (at, word) in TABLES {
            let more = if at == PTE { 0x80 } else { 0 };
            assert_eq!(with(&config, &root, (at, word | ignored | more), READ), Ok(page), "{at:x}");
        }
        let snooped = Leaf { enforces_snooping: true, ..page };
        assert_eq!(with(&config, &root, (PTE, 0xabcd_e803), READ), Ok(snooped));
        // 2 MiB and 1 GiB.
        let two = Leaf { phys: PhysAddr::new(0xabc0_0000), page_bits: 21, ..page };
        assert_eq!(with(&config, &root, (PDE, 0xabc0_0083), WRITE), Ok(two));
        assert_eq!(two.output(ADDRESS), PhysAddr::new(0xabd8_9abc));
        let one = Leaf { phys: PhysAddr::new(0x2_c000_0000), page_bits: 30, enforces_snooping: true, ..page };
        assert_eq!(with(&config, &root, (PDPE, 0x2_c000_0883), WRITE), Ok(one));
        assert_eq!(one.output(ADDRESS), PhysAddr::new(0x2_d678_9abc));
    }
}

#[test]
fn widths() {
    // 3 levels: the PDPT is the top, and bits 47:39 must be zero.
    let root = SecondStageRoot { table: PhysAddr::new(0x1_1000), width: AddressWidth::Bits39, ..LEGACY };
    let memory = Memory::new(&TABLES);
    let found = second_stage(&memory, &plain(), &root, &lookup(0x34_5678_9abc, READ), &mut NoStructureCache);
    assert_eq!(found.unwrap().phys, PhysAddr::new(0xabcd_e000));
    assert_eq!(memory.take_reads(), 3);
    let beyond = |config: &DeviceConfig, root: &SecondStageRoot, address| {
        reason(second_stage(&memory, config, root, &lookup(address, READ), &mut NoStructureCache))
    };
    assert_eq!(beyond(&plain(), &root, 0x80_0000_0000), 0x04); // LGN.1.1
    assert_eq!(beyond(&plain(), &SecondStageRoot { mode: Mode::Scalable, ..root }, 0x80_0000_0000), 0x84); // SGN.5
    assert_eq!(beyond(&plain(), &LEGACY, 1 << 48), 0x04);
    assert_eq!(beyond(&plain(), &LEGACY, u64::MAX), 0x04);
    // MGAW of 40 bits.
    let narrow = DeviceConfig { cap: Cap::from_bits_retain(0x0027_0606), ..plain() };
    assert_eq!(beyond(&narrow, &LEGACY, 0x100_0000_0000), 0x04);
    assert_eq!(beyond(&narrow, &LEGACY, 0xff_ffff_ffff), 0x06);
    assert_eq!(memory.take_reads(), 1);
    // 5 levels: indexes 0x12, 0x68, 0x159, 0x1c4 and 0x1ab.
    let words =
        [(0x1_0090, 0x1_1003), (0x1_1340, 0x1_2003), (0x1_2ac8, 0x1_3003), (0x1_3e20, 0x1_4003), (0x1_4d58, 0x5003)];
    let memory = Memory::new(&words);
    let root = SecondStageRoot { width: AddressWidth::Bits57, ..SCALABLE };
    let wide = DeviceConfig { cap: Cap::from_bits_retain(0x0038_0e06), ..plain() };
    let found = second_stage(&memory, &wide, &root, &lookup(0x12_3456_789a_bcde, READ), &mut NoStructureCache).unwrap();
    assert_eq!(found.output(0x12_3456_789a_bcde), PhysAddr::new(0x5cde));
    assert_eq!(memory.take_reads(), 5);
}

#[test]
fn what_is_not_permitted() {
    let config = plain();
    let with = |root, at: u64, word: u64, goal| with(&config, root, (at, word), goal);
    for (at, word) in TABLES {
        let none = word & !3;
        // LGN.2, LGN.3: legacy mode knows no "not present".
        for (goal, code) in [(WRITE, 0x05), (ATOMIC, 0x05), (READ, 0x06), (FLUSH, 0x06)] {
            assert_eq!(reason(with(&LEGACY, at, none, goal)), code, "{at:x}");
            // Nothing else of it counts, reserved or not.
            assert_eq!(reason(with(&LEGACY, at, !3, goal)), code, "{at:x}");
            // SSS.2.
            assert_eq!(reason(with(&SCALABLE, at, none, goal)), 0x79, "{at:x}");
        }
        // One permission, at any level.
        assert_eq!(reason(with(&LEGACY, at, none | 1, WRITE)), 0x05);
        assert_eq!(reason(with(&SCALABLE, at, none | 1, WRITE)), 0x85); // SGN.6
        assert_eq!(reason(with(&LEGACY, at, none | 1, ATOMIC)), 0x05);
        assert_eq!(reason(with(&SCALABLE, at, none | 1, ATOMIC)), 0x85);
        assert_eq!(with(&LEGACY, at, none | 1, READ).unwrap().prot, Prot::READ);
        assert_eq!(reason(with(&LEGACY, at, none | 2, READ)), 0x06);
        assert_eq!(reason(with(&SCALABLE, at, none | 2, READ)), 0x86); // SGN.7
        assert_eq!(reason(with(&LEGACY, at, none | 2, ATOMIC)), 0x06);
        assert_eq!(reason(with(&SCALABLE, at, none | 2, ATOMIC)), 0x86);
        assert_eq!(with(&SCALABLE, at, none | 2, WRITE).unwrap().prot, Prot::WRITE);
    }
    let quiet = SecondStageRoot { recorded: Recorded::Suppressed, ..LEGACY };
    assert_eq!(suppressed(with(&quiet, PTE, 0xabcd_e001, WRITE)), 0x05);
    // Readable above, writable below: nothing is left (SSS.2).
    let memory = Memory::new(&TABLES);
    memory.put(PDPE, 0x1_2001);
    memory.put(PTE, 0xabcd_e002);
    assert_eq!(reason(walk(&memory, &config, &LEGACY, READ)), 0x06);
    assert_eq!(reason(walk(&memory, &config, &LEGACY, WRITE)), 0x05);
    assert_eq!(reason(walk(&memory, &config, &SCALABLE, READ)), 0x79);
}

#[test]
fn zero_length_reads() {
    let zlr = DeviceConfig { cap: plain().cap | Cap::ZLR, ..plain() };
    let writable = (PTE, 0xabcd_e002);
    assert_eq!(with(&zlr, &LEGACY, writable, FLUSH).unwrap().prot, Prot::WRITE);
    assert_eq!(reason(with(&zlr, &LEGACY, writable, READ)), 0x06);
    assert_eq!(reason(with(&plain(), &LEGACY, writable, FLUSH)), 0x06);
    assert_eq!(reason(with(&plain(), &SCALABLE, writable, FLUSH)), 0x86);
    assert!(with(&plain(), &LEGACY, (PTE, 0xabcd_e001), FLUSH).is_ok());
}

#[test]
fn translation_requests_learn_what_is_permitted() {
    let config = plain();
    let wants = |access, prot: u64| with(&config, &LEGACY, (PTE, 0xabcd_e000 | prot), Goal::Translation(access));
    assert_eq!(wants(RequestAccess::Write, 1).unwrap().prot, Prot::READ);
    assert_eq!(wants(RequestAccess::Read, 2).unwrap().prot, Prot::WRITE);
    assert_eq!(reason(wants(RequestAccess::Read, 0)), 0x06);
    assert_eq!(reason(wants(RequestAccess::Write, 0)), 0x05);
}

#[test]
fn unreadable_tables() {
    let config = plain();
    let nowhere = |root: SecondStageRoot| SecondStageRoot { table: PhysAddr::new(0x8000_0000), ..root };
    assert_eq!(reason(walk(&Memory::new(&[]), &config, &nowhere(LEGACY), READ)), 0x03); // LCT.4.3
    assert_eq!(reason(walk(&Memory::new(&[]), &config, &nowhere(SCALABLE), READ)), 0x7b); // SSS.4
    for at in [PML4E, PDPE, PDE] {
        assert_eq!(reason(with(&config, &LEGACY, (at, 0x8000_0003), READ)), 0x07); // LSS.1
        assert_eq!(reason(with(&config, &SCALABLE, (at, 0x8000_0003), READ)), 0x78); // SSS.1
    }
    // A page need not be memory.
    assert!(with(&config, &LEGACY, (PTE, 0x3fff_ffff_f003), READ).is_ok());
}

#[test]
fn reserved_bits() {
    let check = |config: &DeviceConfig, word: (u64, u64)| {
        assert_eq!(reason(with(config, &LEGACY, word, READ)), 0x0c, "{word:x?}"); // LSS.2
        assert_eq!(reason(with(config, &SCALABLE, word, READ)), 0x7a, "{word:x?}"); // SSS.3
        // With any permission, wanted or not.
        let other = (word.0, word.1 & !1);
        assert_eq!(reason(with(config, &SCALABLE, other, READ)), 0x7a, "{other:x?}");
    };
    let all = plain();
    for (at, word) in TABLES {
        // Bits 51:46 of a host of 46 bits; IW.
        for bit in [46, 51, 62] {
            check(&all, (at, word | 1 << bit));
        }
    }
    // SNP where there is no page; PS in a PML4E.
    for (at, word) in [(PML4E, 0x1_1803), (PDPE, 0x1_2803), (PDE, 0x1_3803), (PML4E, 0x1_1083)] {
        check(&all, (at, word));
    }
    // Addresses of large pages that are not aligned.
    for bit in 12..21 {
        check(&all, (PDE, 0xabc0_0083 | 1 << bit));
    }
    for bit in 12..30 {
        check(&all, (PDPE, 0x2_c000_0083 | 1 << bit));
    }
    // What the unit does not have.
    check(&unit(Cap::LARGE_1G, Ecap::SC), (PDE, 0xabc0_0083));
    check(&unit(Cap::LARGE_2M, Ecap::SC), (PDPE, 0x2_c000_0083));
    let no_snoop = unit(Cap::LARGE_2M | Cap::LARGE_1G, Ecap::empty());
    for (at, word) in [(PTE, 0xabcd_e803), (PDE, 0xabc0_0883), (PDPE, 0x2_c000_0883)] {
        check(&no_snoop, (at, word));
    }
    // PS in an SS-PML5E.
    let root = SecondStageRoot { width: AddressWidth::Bits57, ..SCALABLE };
    let wide = DeviceConfig { cap: Cap::from_bits_retain(0x0038_0e06), ..all };
    let found =
        second_stage(&Memory::new(&[(0x1_0000, 0x1_1083)]), &wide, &root, &lookup(0, READ), &mut NoStructureCache);
    assert_eq!(reason(found), 0x7a);
}

#[test]
fn permissions_for_devices() {
    // SSIRWE: IR 61 and IW 62 instead of R and W.
    let config = plain();
    let root = SecondStageRoot { permissions: PermissionBits::Io, ..SCALABLE };
    const IR: u64 = 1 << 61;
    const IW: u64 = 1 << 62;
    let memory = Memory::new(&[
        (PML4E, IR | IW | 0x1_1000),
        (PDPE, IR | IW | 0x1_2000),
        (PDE, IR | 0x1_3000),
        (PTE, IR | IW | 0xabcd_e000),
    ]);
    assert_eq!(walk(&memory, &config, &root, READ).unwrap().prot, Prot::READ);
    assert_eq!(reason(walk(&memory, &config, &root, WRITE)), 0x85);
    assert_eq!(reason(walk(&Memory::new(&TABLES), &config, &root, READ)), 0x79);
}

#[test]
fn interrupts_are_not_memory() {
    let config = plain();
    for page in [0xfee0_0000, 0xfeef_f000] {
        assert_eq!(reason(with(&config, &LEGACY, (PTE, page | 3), WRITE)), 0x0e); // LGN.4
        assert_eq!(reason(with(&config, &SCALABLE, (PTE, page | 3), WRITE)), 0x87); // SGN.8
    }
    assert!(with(&config, &LEGACY, (PTE, 0xfedf_f003), WRITE).is_ok());
    assert!(with(&config, &LEGACY, (PTE, 0xfef0_0003), WRITE).is_ok());
    // Of a large page a request may use the rest; a device that asks gets the whole of it.
    let large = (PDE, 0xfee0_0083);
    // Here to 0xfef8_9abc.
    assert!(with(&config, &LEGACY, large, READ).is_ok());
    assert_eq!(reason(with(&config, &LEGACY, large, Goal::Translation(RequestAccess::Read))), 0x0e);
    let memory = Memory::new(&TABLES);
    memory.put(PDE, 0xfee0_0083);
    let within = second_stage(&memory, &config, &LEGACY, &lookup(0x1234_5660_0abc, READ), &mut NoStructureCache);
    assert_eq!(reason(within), 0x0e);
}

#[test]
fn accessed_and_dirty() {
    let config = plain();
    let memory = Memory::new(&TABLES);
    let found = walk(&memory, &config, &DIRTY, READ).unwrap();
    assert_eq!(found.dirty, Dirty::WalkToWrite);
    // A is bit 8 and D bit 9, in the page only.
    let words = || [PML4E, PDPE, PDE, PTE].map(|at| memory.get(at));
    assert_eq!(words(), [0x1_1103, 0x1_2103, 0x1_3103, 0xabcd_e103]);
    // A write that is not permitted makes nothing dirty, nor does one that only asks.
    memory.put(PTE, 0xabcd_e001);
    assert_eq!(reason(walk(&memory, &config, &DIRTY, WRITE)), 0x85);
    assert!(walk(&memory, &config, &DIRTY, Goal::Translation(RequestAccess::Write)).is_ok());
    assert_eq!(words()[3], 0xabcd_e101);
    memory.put(PTE, 0xabcd_e003);
    assert!(walk(&memory, &config, &DIRTY, Goal::Translation(RequestAccess::Read)).is_ok());
    assert_eq!(words()[3], 0xabcd_e103);
    let found = walk(&memory, &config, &DIRTY, Goal::Translation(RequestAccess::Write)).unwrap();
    assert_eq!((words()[3], found.dirty), (0xabcd_e303, Dirty::Settled));
    assert_eq!(walk(&memory, &config, &DIRTY, READ).unwrap().dirty, Dirty::Settled);
    // A page of 2 MiB.
    memory.put(PDE, 0xabc0_0083);
    assert!(walk(&memory, &config, &DIRTY, WRITE).is_ok());
    assert_eq!(words()[2], 0xabc0_0383);
}

#[test]
fn updates_that_fail() {
    let config = plain();
    // SSS.5: the walker does not snoop; what needs no update is fine.
    let blind = SecondStageRoot { snoop: Snoop::No, ..DIRTY };
    assert_eq!(reason(walk(&Memory::new(&TABLES), &config, &blind, READ)), 0x7c);
    let set = TABLES.map(|(at, word)| (at, word | 0x100));
    assert!(walk(&Memory::new(&set), &config, &blind, READ).is_ok());
    assert_eq!(reason(walk(&Memory::new(&set), &config, &blind, WRITE)), 0x7c);
    // SSS.6.
    let memory = Memory::new(&TABLES);
    memory.forbid_writes();
    assert_eq!(reason(walk(&memory, &config, &DIRTY, READ)), 0x7d);
    // An entry that always changes.
    let memory = Memory::new(&TABLES);
    memory.interfere(&[0x1_1403, 0x1_1003, 0x1_1403, 0x1_1003, 0x1_1403, 0x1_1003, 0x1_1403, 0x1_1003]);
    memory.put(PML4E, 0x1_1403);
    assert_eq!(reason(walk(&memory, &config, &DIRTY, READ)), 0x7d);
    assert_eq!(memory.take_reads(), 4);
}

#[test]
fn entries_that_change_while_they_are_updated() {
    let config = plain();
    // The page table is replaced, then the entry is removed: what is in memory at the end counts.
    let memory = Memory::new(&TABLES);
    memory.interfere(&[0x1_4003]);
    memory.put(0x1_1c48, 0x5003);
    assert_eq!(memory.get(PML4E), 0x1_1003);
    // The PML4E now names a table in which the PDPE is clear.
    assert_eq!(reason(walk(&memory, &config, &DIRTY, READ)), 0x79);
    assert_eq!(memory.get(PML4E), 0x1_4103);
    let memory = Memory::new(&TABLES);
    memory.interfere(&[0]);
    assert_eq!(reason(walk(&memory, &config, &DIRTY, READ)), 0x79);
    assert_eq!(memory.get(PML4E), 0);
}

#[test]
fn snooping() {
    let config = plain();
    let blind = SecondStageRoot { snoop: Snoop::No, ..LEGACY };
    let memory = Memory::new(&TABLES[..3]);
    memory.put_uncleaned(PTE, 0xabcd_e003);
    assert_eq!(reason(walk(&memory, &config, &blind, READ)), 0x06);
    assert!(walk(&memory, &config, &LEGACY, READ).is_ok());
}

#[test]
fn structures_are_cached() {
    let config = plain();
    let mut cache = Everything::default();
    let memory = Memory::new(&TABLES);
    memory.put(PDPE, 0x1_2001);
    let find = |cache: &mut Everything, goal| second_stage(&memory, &config, &LEGACY, &lookup(ADDRESS, goal), cache);
    assert!(find(&mut cache, READ).is_ok());
    let read = Rights::all() - Rights::WRITE;
    let kept = |level, table, rights| Structure { level, table: PhysAddr::new(table), rights };
    let wanted = [
        (Stage::Second, ADDRESS >> 39, kept(2, 0x1_1000, Rights::all())),
        (Stage::Second, ADDRESS >> 30, kept(1, 0x1_2000, read)),
        (Stage::Second, ADDRESS >> 21, kept(0, 0x1_3000, read)),
    ];
    assert_eq!(cache.structures, wanted);
    // From now on only the PTE is read; what was above it stays in force.
    memory.take_reads();
    memory.put(PDPE, 0);
    memory.put(PTE, 0x5003);
    assert_eq!(find(&mut cache, READ).unwrap().phys, PhysAddr::new(0x5000));
    assert_eq!(memory.take_reads(), 1);
    assert_eq!(reason(find(&mut cache, WRITE)), 0x05);
    // What cannot be of this table is not used.
    let mut odd = Everything::default();
    odd.insert(Stage::Second, ADDRESS, kept(3, 0x1_1000, Rights::all()));
    assert_eq!(reason(find(&mut odd, READ)), 0x06);
    assert_eq!(odd.missing, [(ADDRESS >> 30, 30, 0x06)]);
}

#[test]
fn what_is_missing_for_everybody() {
    let config = plain();
    let missing = |root, at: u64, word: u64, goal| {
        let mut cache = Everything::default();
        let memory = Memory::new(&TABLES);
        memory.put(at, word);
        let _ = second_stage(&memory, &config, root, &lookup(ADDRESS, goal), &mut cache);
        cache.missing
    };
    assert_eq!(missing(&LEGACY, PML4E, 0, READ), [(ADDRESS >> 39, 39, 0x06)]);
    assert_eq!(missing(&LEGACY, PDPE, 0, WRITE), [(ADDRESS >> 30, 30, 0x05)]);
    assert_eq!(missing(&SCALABLE, PDE, 0, WRITE), [(ADDRESS >> 21, 21, 0x79)]);
    assert_eq!(missing(&SCALABLE, PTE, 1 << 62 | 1, WRITE), [(ADDRESS >> 12, 12, 0x7a)]);
    // Other requests may pass there, or other parts of the page.
    assert_eq!(missing(&LEGACY, PTE, 0xabcd_e001, WRITE), []);
    assert_eq!(missing(&SCALABLE, PTE, 0xabcd_e002, READ), []);
    assert_eq!(missing(&LEGACY, PDE, 0xfee0_0083, Goal::Translation(RequestAccess::Read)), []);
}
