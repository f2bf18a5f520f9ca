//! Stage 2 (Arm ARM D8.2 to D8.4; SMMU 3.4, 5.2, 7.3).

extern crate std;

use super::memory::Memory;
use super::{Access, FULL, Fault, Lookup, NoStructureCache, QEMU, TABLE, check_ste, request};
use crate::arch::smmuv3::device::walk::attributes::{Attributes, Device, MemoryType};
use crate::arch::smmuv3::device::walk::stage2::{Intermediate, attributes, stage2};
use crate::arch::smmuv3::device::walk::{
    Goal, Leaf, Permissions, Privilege, Retained, Scope, Shareability, Stage, StructureCache,
};
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};
use crate::arch::smmuv3::layout::{Granule, Identification, Ste, StreamId};
use crate::bus::Snoop;

/// S2T0SZ, S2SL0, S2TG, S2PS; write-back, inner shareable walks; S2AA64, S2R.
const fn word2(t0sz: u64, sl0: u64, tg: u64, ps: u64) -> u64 {
    (t0sz | sl0 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | tg << 14 | ps << 16 | 1 << 19 | 1 << 26) << 32
}

const AFFD: u64 = 1 << 53;
const ENDI: u64 = 1 << 52;

const fn ste(word2: u64, word3: u64) -> Ste {
    Ste { words: [0b1101, 0, word2, word3, 0, 0, 0, 0] }
}

const fn input(address: u64, access: Access) -> Intermediate {
    Intermediate {
        address,
        class: FaultClass::Input,
        access,
        privilege: Privilege::Unprivileged,
        goal: Goal::Access,
        attributes: Attributes::INCOMING,
    }
}

fn walk_as(memory: &Memory, unit: &Identification, ste: &Ste, what: &Intermediate) -> Result<Leaf, Fault> {
    check_ste(unit, ste)?;
    stage2(memory, unit, ste, what, &mut NoStructureCache)
}

fn walk(memory: &Memory, ste: &Ste, address: u64) -> Result<Leaf, Fault> {
    walk_as(memory, &FULL, ste, &input(address, Access::Read))
}

/// The kind of a fault of stage 2 for this address.
fn kind(address: u64, result: Result<Leaf, Fault>) -> EventKind {
    let fault = result.expect_err("a fault");
    assert_eq!((fault.stage, fault.class, fault.second_address), (Stage::Two, FaultClass::Input, address));
    fault.kind
}

fn end(leaf: Leaf) -> (u64, u8, i8) {
    (leaf.output, leaf.bits, leaf.level)
}

/// Levels 1, 2 and 3 of 4 KiB: 1 GiB, 2 MiB and a page, for everybody.
fn three_levels() -> Memory {
    Memory::new(&[
        (0x3_0000, 0x3_1003),
        (0x3_0008, 0x40_4000_07fd),
        (0x3_1000, 0x3_2003),
        (0x3_1ff8, 0x7fe0_07fd),
        (0x3_2000, 0x7_07ff),
        (0x3_2ff8, 0x7_f7ff),
    ])
}

#[test]
fn levels_of_4k() {
    let memory = three_levels();
    let from1 = ste(word2(25, 1, 0, 6), 0x3_0000);
    assert_eq!(walk(&memory, &from1, 0x123).map(end), Ok((0x7_0000, 12, 3)));
    assert_eq!(walk(&memory, &from1, 0x1f_ffff).map(end), Ok((0x7_f000, 12, 3)));
    assert_eq!(walk(&memory, &from1, 0x3fff_ffff).map(end), Ok((0x7fe0_0000, 21, 2)));
    assert_eq!(walk(&memory, &from1, 0x4000_0000).map(end), Ok((0x40_4000_0000, 30, 1)));
    assert_eq!(kind(0x20_0000, walk(&memory, &from1, 0x20_0000)), EventKind::F_TRANSLATION);
    assert_eq!(kind(1 << 39, walk(&memory, &from1, 1 << 39)), EventKind::F_TRANSLATION);
    memory.put(0x2_0ff8, 0x3_0003);
    let from0 = ste(word2(16, 2, 0, 6), 0x2_0000);
    assert_eq!(walk(&memory, &from0, 0xff80_0000_0123).map(end), Ok((0x7_0000, 12, 3)));
    // From level 3 (small tables), and from level -1 with S2DS.
    let from3 = ste(word2(43, 3, 0, 6), 0x3_2000);
    assert_eq!(walk(&memory, &from3, 0x1f_f123).map(end), Ok((0x7_f000, 12, 3)));
    memory.put(0x1_8008, 0x2_0003);
    let wide = ste(word2(12, 0, 0, 6), 0x1_8000 | 1 << 3 | 1 << 2);
    assert_eq!(walk(&memory, &wide, 0x1_ff80_0000_0123).map(end), Ok((0xc_0000_0007_0000, 12, 3)));
}

#[test]
fn concatenated_tables() {
    // 43 bits from level 1: 16 tables of 4 KiB at 0x10_0000.
    let memory = Memory::new(&[(0x10_fff8, 0x40_4000_07fd), (0x10_0000, 0x8000_07fd)]);
    let from1 = ste(word2(21, 1, 0, 6), 0x10_0000);
    assert_eq!(walk(&memory, &from1, 0x7ff_c000_0000).map(end), Ok((0x40_4000_0000, 30, 1)));
    assert_eq!(kind(1 << 43, walk(&memory, &from1, 1 << 43)), EventKind::F_TRANSLATION);
    // They are aligned to the size of all.
    let unaligned = ste(word2(21, 1, 0, 6), 0x10_f000);
    assert_eq!(walk(&memory, &unaligned, 0).map(end), Ok((0x8000_0000, 30, 1)));
    // 40 bits from level 2 of 16 KiB: 16 tables; 33 bits from level 3 of 64 KiB: 16 as well.
    let memory = Memory::new(&[(0x13_fff8, 0x600_07fd), (0x1f_fff8, 0x7_07ff)]);
    let of16k = ste(word2(24, 1, 2, 6), 0x10_0000);
    assert_eq!(walk(&memory, &of16k, (1 << 40) - 1).map(end), Ok((0x600_0000, 25, 2)));
    let of64k = ste(word2(31, 0, 1, 6), 0x10_0000);
    assert_eq!(walk(&memory, &of64k, (1 << 33) - 1).map(end), Ok((0x7_0000, 16, 3)));
    // 34 bits from level 2 of 4 KiB.
    let memory = Memory::new(&[(0x10_fff8, 0x7fe0_07fd)]);
    let from2 = ste(word2(30, 0, 0, 6), 0x10_0000);
    assert_eq!(walk(&memory, &from2, (1 << 34) - 1).map(end), Ok((0x7fe0_0000, 21, 2)));
}

#[test]
fn levels_of_16k_and_64k() {
    let memory = Memory::new(&[(0x4_0000, 0x4_4003), (0x4_4000, 0x4_8003), (0x4_bff8, 0x7_c7ff)]);
    let of16k = ste(word2(17, 2, 2, 6), 0x4_0000);
    assert_eq!(walk(&memory, &of16k, 0x1ff_ffff).map(end), Ok((0x7_c000, 14, 3)));
    // 52 bits in and out.
    let memory = Memory::new(&[
        (0x4_1ff8, 0x5_a003),
        (0x4_0008, 0x400_0000_f7fd),
        (0xa_0000_0005_0000, 0x6_0003),
        (0x6_fff8, 0x7_c7ff),
    ]);
    let of64k = ste(word2(12, 2, 1, 6), 0x4_0000);
    assert_eq!(walk(&memory, &of64k, 0xf_fc00_1fff_ffff).map(end), Ok((0xc_0000_0007_0000, 16, 3)));
    assert_eq!(walk(&memory, &of64k, 0x400_0000_0000).map(end), Ok((0xf_0400_0000_0000, 42, 1)));
}

#[test]
fn sizes_of_output() {
    let memory = three_levels();
    let narrow = ste(word2(25, 1, 0, 2), 0x3_0000);
    assert!(walk(&memory, &narrow, 0x4000_0000).is_ok());
    memory.put(0x3_0008, 0x140_4000_07fd);
    assert_eq!(kind(0x4000_0000, walk(&memory, &narrow, 0x4000_0000)), EventKind::F_ADDR_SIZE);
    memory.put(0x3_1000, 0x100_0003_2003);
    assert_eq!(kind(0, walk(&memory, &narrow, 0)), EventKind::F_ADDR_SIZE);
    // OAS caps it.
    memory.put(0x3_0008, 0x1000_4000_07fd);
    let all = ste(word2(25, 1, 0, 7), 0x3_0000);
    let what = input(0x4000_0000, Access::Read);
    assert_eq!(kind(0x4000_0000, walk_as(&memory, &QEMU, &all, &what)), EventKind::F_ADDR_SIZE);
    assert!(walk(&memory, &all, 0x4000_0000).is_ok());
}

#[test]
fn reserved_descriptors_and_access_flags() {
    let memory = three_levels();
    let tables = ste(word2(25, 1, 0, 6), 0x3_0000);
    for bits in [0b00, 0b10] {
        for at in [0x3_0000, 0x3_1000, 0x3_2000] {
            let word = memory.get(at);
            memory.put(at, word & !3 | bits);
            assert_eq!(kind(0, walk(&memory, &tables, 0)), EventKind::F_TRANSLATION);
            memory.put(at, word);
        }
    }
    memory.put(0x3_2000, 0x7_07fd);
    assert_eq!(kind(0, walk(&memory, &tables, 0)), EventKind::F_TRANSLATION);
    // AF, before permissions.
    memory.put(0x3_2000, 0x7_033f);
    assert_eq!(kind(0, walk(&memory, &tables, 0)), EventKind::F_ACCESS);
    memory.put(0x3_2000, 0x7_03ff);
    assert_eq!(kind(0, walk(&memory, &tables, 0)), EventKind::F_ACCESS);
    assert!(walk(&memory, &ste(word2(25, 1, 0, 6) | AFFD, 0x3_0000), 0).is_ok());
}

#[test]
fn permissions() {
    let memory = three_levels();
    let tables = ste(word2(25, 1, 0, 6), 0x3_0000);
    let of = |unit: &Identification, bits: u64| {
        memory.put(0x3_2000, 0x7_073f | bits);
        let what = Intermediate { goal: Goal::Translation, ..input(0, Access::Read) };
        walk_as(&memory, unit, &tables, &what).unwrap().permissions.bits()
    };
    // In bits: unprivileged X, W, R; privileged X, W, R. S2AP, then XN[1:0].
    for (s2ap, permitted) in [(0, 0b100_100), (1, 0b101_101), (2, 0b110_110), (3, 0b111_111)] {
        assert_eq!(of(&FULL, s2ap << 6), permitted);
    }
    for (xn, permitted) in [(0b00, 0b100_100), (0b01, 0b100_000), (0b10, 0), (0b11, 0b000_100)] {
        assert_eq!(of(&FULL, xn << 53), permitted, "{xn:#b}");
    }
    let without = Identification { idr3: FULL.idr3 & !(1 << 4), ..FULL };
    for (xn, permitted) in [(0b00, 0b100_100), (0b01, 0b100_100), (0b10, 0), (0b11, 0)] {
        assert_eq!(of(&without, xn << 53), permitted, "{xn:#b}");
    }
    // Tables have no permissions in stage 2.
    memory.put(0x3_1000, 0x1f << 59 | 0x3_2003);
    assert_eq!(of(&FULL, 3 << 6), 0b111_111);
}

#[test]
fn permission_faults() {
    let memory = three_levels();
    let tables = ste(word2(25, 1, 0, 6), 0x3_0000);
    memory.put(0x3_2000, 0x7_077f);
    assert!(walk(&memory, &tables, 0).is_ok());
    for access in [Access::Write, Access::Atomic] {
        let fault = walk_as(&memory, &FULL, &tables, &input(8, access)).unwrap_err();
        assert_eq!(fault, Fault::stage2(EventKind::F_PERMISSION, FaultClass::Input, 8));
        let event = fault.event(StreamId(0), None, &Lookup::new(8, access)).encode();
        assert_eq!(event, [0x13, 0x280 << 32, 8, 0]);
    }
    // An atomic operation that may write, and not read, counts as a read (13.1.1).
    memory.put(0x3_2000, 0x7_07bf);
    let fault = walk_as(&memory, &FULL, &tables, &input(8, Access::Atomic)).unwrap_err();
    let event = fault.event(StreamId(0), None, &Lookup::new(8, Access::Atomic)).encode();
    assert_eq!(event, [0x13, 0x288 << 32, 8, 0]);
    // XN 01: the privileged may not execute.
    memory.put(0x3_2000, 1 << 53 | 0x7_07ff);
    let system = Intermediate { privilege: Privilege::Privileged, ..input(8, Access::Execute) };
    assert_eq!(kind(8, walk_as(&memory, &FULL, &tables, &system)), EventKind::F_PERMISSION);
    assert!(walk_as(&memory, &FULL, &tables, &input(8, Access::Execute)).is_ok());
}

#[test]
fn what_a_leaf_says() {
    let memory = three_levels();
    let tables = ste(word2(25, 1, 0, 6), 0x3_0000);
    // MemAttr 1, outer shareable, contiguous. Bit 11 is nothing here.
    memory.put(0x3_2000, 1 << 52 | 0x7_0ec7);
    let leaf = walk(&memory, &tables, 0).unwrap();
    let expected = Leaf {
        output: 0x7_0000,
        bits: 12,
        contiguous_bits: 16,
        level: 3,
        granule: Granule::Size4K,
        permissions: Permissions::all(),
        memory: 1,
        shareability: Shareability::Outer,
        scope: Scope::Global,
        retained: Retained::Freely,
    };
    assert_eq!(leaf, expected);
    let after = attributes(&FULL, &tables, Attributes::INCOMING, &leaf);
    assert_eq!(after.memory, MemoryType::Device(Device::NgNrE));
    // With S2FWB the same bits are combined otherwise: 7 leaves what there was.
    memory.put(0x3_2000, 0x7_07df);
    let leaf = walk(&memory, &tables, 0).unwrap();
    let mut forces = tables;
    forces.words[1] = 1 << 25;
    let before = Attributes::from_mair(0xbb, Shareability::Inner);
    assert_eq!(attributes(&FULL, &forces, before, &leaf), before);
    let combined = before.combine(Attributes::from_stage2(7, Shareability::Inner));
    assert_eq!(attributes(&FULL, &tables, before, &leaf), combined);
    assert_ne!(combined, before);
    let without = Identification { idr3: FULL.idr3 & !(1 << 8), ..FULL };
    assert_eq!(attributes(&without, &forces, before, &leaf), attributes(&FULL, &tables, before, &leaf));
    // nT of a block.
    memory.put(0x3_0008, 0x4001_07fd);
    assert_eq!(walk(&memory, &tables, 0x4000_0000).unwrap().retained, Retained::Not);
}

#[test]
fn unreadable_tables_and_the_order_of_bytes() {
    let tables = ste(word2(25, 1, 0, 6), 0x3_0000);
    for at in [0x3_0000, 0x3_1000, 0x3_2000] {
        for class in [FaultClass::Input, FaultClass::TranslationTable, FaultClass::Cd] {
            let memory = three_levels();
            memory.remove(at);
            let what = Intermediate { class, ..input(0, Access::Read) };
            let fault = walk_as(&memory, &FULL, &tables, &what).unwrap_err();
            assert_eq!(fault, Fault::walk_abort(Stage::Two, class, at));
        }
    }
    let memory = Memory::new(&[(0x3_0008, 0x4000_07fd_u64.swap_bytes())]);
    let swapped = ste(word2(25, 1, 0, 6) | ENDI, 0x3_0000);
    assert_eq!(walk(&memory, &swapped, 0x4000_0000).map(end), Ok((0x4000_0000, 30, 1)));
    assert_eq!(memory.take_reads(), [(0x3_0008, Snoop::Yes)]);
    let unsnooped = ste(swapped.words[2] & !(0xf << 40), 0x3_0000);
    walk(&memory, &unsnooped, 0x4000_0000).unwrap();
    assert_eq!(memory.take_reads(), [(0x3_0008, Snoop::No)]);
}

/// Stage 2 alone, from the stream: what is beyond the output size is a fault of stage 1 (3.4).
#[test]
fn stage2_only() {
    let memory = three_levels();
    memory.put_all(TABLE.base.as_u64(), &ste(word2(25, 1, 0, 4), 0x3_0000).words);
    let at = |address| request(&memory, &QEMU, 0, None, &Lookup::new(address, Access::Read));
    assert_eq!(at(0x123).unwrap().unwrap().translate(0x123).as_u64(), 0x7_0123);
    assert_eq!(at(1 << 44).unwrap_err(), Fault::stage1(EventKind::F_ADDR_SIZE));
    assert_eq!(at(1 << 43).unwrap_err(), Fault::stage2(EventKind::F_TRANSLATION, FaultClass::Input, 1 << 43));
    let lookup = Lookup::new(0, Access::Read);
    let fault = request(&memory, &QEMU, 0, Some(0), &lookup).unwrap_err();
    assert_eq!(fault.kind, EventKind::C_BAD_SUBSTREAMID);
}

/// Remembers one page.
#[derive(Default)]
struct One(Option<Leaf>);

impl StructureCache for One {
    fn page(&mut self, _: u64) -> Option<Leaf> {
        self.0
    }

    fn keep_page(&mut self, _: u64, leaf: Leaf) {
        assert_eq!(self.0.replace(leaf), None);
    }
}

#[test]
fn pages_that_were_kept() {
    let memory = three_levels();
    let tables = ste(word2(25, 1, 0, 6), 0x3_0000);
    memory.put(0x3_2000, 0x7_077f);
    let mut cache = One::default();
    // Kept though it does not permit this; and what was kept is judged again.
    let mut walk = |what: &Intermediate| stage2(&memory, &FULL, &tables, what, &mut cache);
    assert_eq!(kind(0, walk(&input(0, Access::Write))), EventKind::F_PERMISSION);
    memory.take_reads();
    assert!(walk(&input(0, Access::Read)).is_ok());
    assert_eq!(kind(0, walk(&input(0, Access::Write))), EventKind::F_PERMISSION);
    assert_eq!(memory.take_reads(), []);
    // A block with nT is not.
    memory.put(0x3_0008, 0x4001_07fd);
    let mut cache = One::default();
    stage2(&memory, &FULL, &tables, &input(0x4000_0000, Access::Read), &mut cache).unwrap();
    assert_eq!(cache.0, None);
}
