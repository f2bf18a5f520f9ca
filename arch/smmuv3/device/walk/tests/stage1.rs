//! Stage 1 (Arm ARM D8.2 to D8.4; SMMU 3.4, 5.4, 7.3).

extern crate std;
use std::vec::Vec;

use super::memory::Memory;
use super::{Access, FULL, Fault, Lookup, NoStructureCache, QEMU};
use crate::arch::smmuv3::device::walk::stage1::{Stage1, stage1};
use crate::arch::smmuv3::device::walk::{
    Goal, Leaf, Permissions, Privilege, Retained, Scope, Shareability, Stage, StreamWorld, Structure, StructureCache,
};
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};
use crate::arch::smmuv3::layout::{Cd, Granule, Identification, Ste};
use crate::bus::Snoop;

/// V, AA64, A, R; write-back, inner shareable walks of both halves.
const CD: u64 = 1 << 31 | 1 << 41 | 1 << 45 | 1 << 46 | ((1 << 8 | 1 << 10 | 3 << 12) * 0x1_0001);
const EPD1: u64 = 1 << 30;
const AFFD: u64 = 1 << 35;
/// T0SZ 16, TG0 4 KiB, IPS 52 bits.
const LOWER: u64 = CD | EPD1 | 16 | 6 << 32;

fn walk_as(
    memory: &Memory,
    unit: &Identification,
    world: StreamWorld,
    words: [u64; 4],
    lookup: &Lookup,
) -> Result<Leaf, Fault> {
    let ste = Ste { words: [0b1011, 0, 0, 0, 0, 0, 0, 0] };
    let [a, b, c, d] = words;
    let cd = Cd { words: [a, b, c, d, 0, 0, 0, 0] };
    super::check_cd(unit, &ste, world, &cd)?;
    stage1(memory, unit, &Stage1 { ste: &ste, cd: &cd, world }, lookup, &mut NoStructureCache)
}

fn walk(memory: &Memory, words: [u64; 4], address: u64) -> Result<Leaf, Fault> {
    walk_as(memory, &FULL, StreamWorld::NsEl1, words, &Lookup::new(address, Access::Read))
}

/// The kind of a fault of stage 1, which says nothing of another address.
fn kind(result: Result<Leaf, Fault>) -> EventKind {
    let fault = result.expect_err("a fault");
    assert_eq!((fault.stage, fault.class, fault.second_address), (Stage::One, FaultClass::Input, 0));
    fault.kind
}

/// Level 1 of 4 KiB with 39 bits: a block of 1 GiB, then 2 MiB and a page.
fn three_levels() -> Memory {
    Memory::new(&[
        (0x3_0000, 0x3_1003),
        (0x3_0008, 0x40_4000_0441),
        (0x3_1000, 0x3_2003),
        (0x3_1ff8, 0x7fe0_0441),
        (0x3_2000, 0x7_0443),
        (0x3_2ff8, 0x7_f443),
    ])
}

#[test]
fn levels_of_4k() {
    let memory = three_levels();
    let cd = [LOWER & !0x3f | 25, 0x3_0000, 0, 0];
    let end = |leaf: Leaf| (leaf.output, leaf.bits, leaf.level);
    assert_eq!(walk(&memory, cd, 0x123).map(end), Ok((0x7_0000, 12, 3)));
    assert_eq!(walk(&memory, cd, 0x1f_f123).map(end), Ok((0x7_f000, 12, 3)));
    assert_eq!(walk(&memory, cd, 0x3fff_ffff).map(end), Ok((0x7fe0_0000, 21, 2)));
    assert_eq!(walk(&memory, cd, 0x4000_0000).map(end), Ok((0x40_4000_0000, 30, 1)));
    assert_eq!(kind(walk(&memory, cd, 0x20_0000)), EventKind::F_TRANSLATION);
    // Four levels (T0SZ 16), and two of small tables (T0SZ 34, 30 bits) and one (T0SZ 48).
    memory.put(0x2_0ff8, 0x3_0003);
    assert_eq!(walk(&memory, [LOWER, 0x2_0000, 0, 0], 0xff80_0000_0123).map(end), Ok((0x7_0000, 12, 3)));
    assert_eq!(walk(&memory, [LOWER & !0x3f | 34, 0x3_1000, 0, 0], 0x1f_f000).map(end), Ok((0x7_f000, 12, 3)));
    memory.put(0x3_3000, 0x9_0443);
    memory.put(0x3_3078, 0x9_1443);
    assert_eq!(walk(&memory, [LOWER & !0x3f | 48, 0x3_3000, 0, 0], 0xf123).map(end), Ok((0x9_1000, 12, 3)));
    assert_eq!(kind(walk(&memory, [LOWER & !0x3f | 48, 0x3_3000, 0, 0], 0x1_0000)), EventKind::F_TRANSLATION);
    // The start table of 128 bytes is aligned to that.
    assert_eq!(walk(&memory, [LOWER & !0x3f | 48, 0x3_3070, 0, 0], 0).map(end), Ok((0x9_0000, 12, 3)));
    // It goes on with the table that was found, once for each level.
    memory.take_reads();
    walk(&memory, [LOWER, 0x2_0000, 0, 0], 0xff80_0000_0123).unwrap();
    let reads: Vec<_> = [0x2_0ff8, 0x3_0000, 0x3_1000, 0x3_2000].into_iter().map(|at| (at, Snoop::Yes)).collect();
    assert_eq!(memory.take_reads(), reads);
}

#[test]
fn fifty_two_bits_of_4k() {
    // DS: level -1 of 16 descriptors for bits 51:48. OA[51:50] is in bits 9:8.
    const DS: u64 = 1 << 58;
    let memory = Memory::new(&[
        (0x3_0078, 0x3_1003),
        (0x3_1000, 0x3_2003 | 0x300),
        (0xc_0000_0003_2000, 0x3_3003),
        (0x3_1008, 1 << 39 | 0x541),
        (0x3_3000, 0x3_4003),
        (0x3_4000, 0x7_0443 | 0x100 | 1 << 49),
    ]);
    let cd = [LOWER & !0x3f | 12, 0x3_0000, DS, 0];
    let leaf = walk(&memory, cd, 0xf_0000_0000_0123).unwrap();
    assert_eq!((leaf.output, leaf.bits, leaf.level), (0x6_0000_0007_0000, 12, 3));
    // Shareability is SH0 of the CD, not bits 9:8.
    assert_eq!(leaf.shareability, Shareability::Inner);
    // A block at level 0: 512 GiB.
    let leaf = walk(&memory, cd, 0xf_00ff_ffff_ffff).unwrap();
    assert_eq!((leaf.output, leaf.bits, leaf.level), (0x4_0080_0000_0000, 39, 0));
    assert_eq!(kind(walk(&memory, cd, 0x10_0000_0000_0000)), EventKind::F_TRANSLATION);
    // Without DS that block is reserved, and bits 49:48 are nothing.
    let memory = three_levels();
    memory.put(0x2_0000, 0x3_0003);
    memory.put(0x2_0008, 1 << 39 | 0x441);
    memory.put(0x3_2000, 3 << 48 | 0x7_0443);
    let cd = [LOWER, 0x2_0000, 0, 0];
    assert_eq!(walk(&memory, cd, 0).unwrap().output, 0x7_0000);
    assert_eq!(kind(walk(&memory, cd, 0x80_0000_0000)), EventKind::F_TRANSLATION);
}

#[test]
fn levels_of_16k() {
    let tg = 2 << 6;
    // 47 bits from level 1: 2048 descriptors of 64 GiB, then 32 MiB, then 16 KiB.
    let memory = Memory::new(&[
        (0x4_0000, 0x4_4003),
        (0x4_0008, 0x10_0000_0441),
        (0x4_4000, 0x4_8003),
        (0x4_7ff8, 0x600_0441),
        (0x4_bff8, 0x7_c443),
    ]);
    let cd = [LOWER & !0x3f | 17 | tg, 0x4_0000, 0, 0];
    let end = |leaf: Leaf| (leaf.output, leaf.bits, leaf.level);
    assert_eq!(walk(&memory, cd, 0x1ff_ffff).map(end), Ok((0x7_c000, 14, 3)));
    assert_eq!(walk(&memory, cd, 0xf_ffff_ffff).map(end), Ok((0x600_0000, 25, 2)));
    assert_eq!(kind(walk(&memory, cd, 0x10_0000_0000)), EventKind::F_TRANSLATION);
    // 48 bits: level 0 of two descriptors.
    memory.put(0x3_0008, 0x4_0003);
    let cd = [LOWER | tg, 0x3_0000, 0, 0];
    assert_eq!(walk(&memory, cd, 0x8000_01ff_ffff).map(end), Ok((0x7_c000, 14, 3)));
    // DS: blocks at level 1, and 52 bits.
    memory.put(0x3_0078, 0x4_0003);
    let cd = [LOWER & !0x3f | 13 | tg, 0x3_0000, 1 << 58, 0];
    assert_eq!(walk(&memory, cd, 0x7_8010_0000_0000).map(end), Ok((0x10_0000_0000, 36, 1)));
}

#[test]
fn levels_of_64k() {
    let tg = 1 << 6;
    // 52 bits from level 1: 1024 descriptors of 4 TiB, then 512 MiB, then 64 KiB. OA[51:48] is in bits 15:12.
    let memory = Memory::new(&[
        (0x4_1ff8, 0x5_a003),
        (0x4_0008, 0x400_0000_f441),
        (0xa_0000_0005_0000, 0x6_0003),
        (0xa_0000_0005_fff8, 0x6000_3441),
        (0x6_fff8, 0x7_c443),
    ]);
    let cd = [LOWER & !0x3f | 12 | tg, 0x4_0000, 0, 0];
    let end = |leaf: Leaf| (leaf.output, leaf.bits, leaf.level);
    assert_eq!(walk(&memory, cd, 0xf_fc00_1fff_ffff).map(end), Ok((0xc_0000_0007_0000, 16, 3)));
    assert_eq!(walk(&memory, cd, 0xf_ffff_ffff_ffff).map(end), Ok((0x3_0000_6000_0000, 29, 2)));
    assert_eq!(walk(&memory, cd, 0x400_0000_0000).map(end), Ok((0xf_0400_0000_0000, 42, 1)));
    // A unit of 44 bits: no blocks at level 1, and bits 15:12 are nothing.
    memory.put(0x4_0000, 0x5_a003);
    memory.put(0x5_0000, 0x6_f003);
    let cd = [LOWER & !0x3f | 16 | tg, 0x4_0000, 0, 0];
    let in_qemu =
        |address| walk_as(&memory, &QEMU, StreamWorld::NsEl1, cd, &Lookup::new(address, Access::Read)).map(end);
    assert_eq!(in_qemu(0x1fff_ffff), Ok((0x7_0000, 16, 3)));
    assert_eq!(in_qemu(0x400_0000_0000).unwrap_err().kind, EventKind::F_TRANSLATION);
    // A unit of 52 bits with an IPS of 48: bits 15:12 are too large.
    let cd = [cd[0] & !(7 << 32) | 5 << 32, 0x4_0000, 0, 0];
    assert_eq!(kind(walk(&memory, cd, 0)), EventKind::F_ADDR_SIZE);
}

#[test]
fn ranges() {
    let memory = three_levels();
    // 39 bits below, 48 above; then T1SZ 48.
    let both = CD | 25 | 16 << 16 | 2 << 22 | 6 << 32;
    let cd = [both, 0x3_0000, 0x2_0000, 0];
    memory.put(0x2_0ff8, 0x3_0003);
    let at = |address| walk(&memory, cd, address).map(|leaf| leaf.output);
    assert_eq!(at(0x123), Ok(0x7_0000));
    assert_eq!(at(0xffff_ff80_001f_f123), Ok(0x7_f000));
    for address in [
        0x80_0000_0000,
        0x0080_0000_0000_0000,
        0x0100_0000_0000_0000,
        0x8000_0000_0000_0000,
        0xff7f_ff80_001f_f123,
        0xfffe_ff80_001f_f123,
        0x7fff_ff80_001f_f123,
    ] {
        assert_eq!(kind(walk(&memory, cd, address)), EventKind::F_TRANSLATION, "{address:#x}");
    }
    // TBI0 and TBI1: bit 55 says which half.
    let tagged = [both | 3 << 38, 0x3_0000, 0x2_0000, 0];
    let at = |address| walk(&memory, tagged, address).map(|leaf| leaf.output);
    assert_eq!(at(0xab00_0000_0000_0123), Ok(0x7_0000));
    assert_eq!(at(0x5aff_ff80_001f_f123), Ok(0x7_f000));
    assert_eq!(kind(walk(&memory, tagged, 0x0001_0000_0000_0000)), EventKind::F_TRANSLATION);
    assert_eq!(kind(walk(&memory, [both | 1 << 38, 0x3_0000, 0x2_0000, 0], !0 >> 1)), EventKind::F_TRANSLATION);
    // EPD0 and EPD1 (5.4.1.1).
    let off = [both | 1 << 14, 0x3_0000, 0x2_0000, 0];
    assert_eq!(kind(walk(&memory, off, 0x123)), EventKind::F_TRANSLATION);
    assert!(walk(&memory, off, 0xffff_ff80_001f_f123).is_ok());
    let off = [both | 1 << 30, 0x3_0000, 0x2_0000, 0];
    assert_eq!(kind(walk(&memory, off, 0xffff_ff80_001f_f123)), EventKind::F_TRANSLATION);
    assert!(walk(&memory, off, 0x123).is_ok());
    // E0PD0, E0PD1: for the unprivileged.
    let privileged = |address| Lookup { privilege: Privilege::Privileged, ..Lookup::new(address, Access::Read) };
    for (words, denied, open) in [
        ([both, 0x3_0004, 0x2_0000, 0], 0x123, 0xffff_ff80_001f_f123),
        ([both, 0x3_0000, 0x2_0004, 0], 0xffff_ff80_001f_f123, 0x123),
    ] {
        assert_eq!(kind(walk(&memory, words, denied)), EventKind::F_TRANSLATION);
        assert!(walk(&memory, words, open).is_ok());
        assert!(walk_as(&memory, &FULL, StreamWorld::NsEl1, words, &privileged(denied)).is_ok());
        let without = Identification { idr3: FULL.idr3 & !(1 << 13), ..FULL };
        let lookup = Lookup::new(denied, Access::Read);
        assert!(walk_as(&memory, &without, StreamWorld::NsEl1, words, &lookup).is_ok());
    }
}

/// NS-EL2 has one table, and no sign (3.4.1, 5.4.1).
#[test]
fn hypervisors() {
    let memory = three_levels();
    let walk = |word0, address| {
        let lookup = Lookup::new(address, Access::Read);
        walk_as(&memory, &FULL, StreamWorld::NsEl2, [word0, 0x3_0000, 0, 0], &lookup)
    };
    let cd = LOWER & !0x3f | 25;
    let leaf = walk(cd, 0x123).unwrap();
    assert_eq!((leaf.output, leaf.scope), (0x7_0000, Scope::Global));
    // EPD0 does not count.
    assert!(walk(cd | 1 << 14, 0x123).is_ok());
    for address in [1 << 39, 1 << 55, 1 << 56, !0 << 39] {
        assert_eq!(kind(walk(cd, address)), EventKind::F_TRANSLATION, "{address:#x}");
    }
    assert!(walk(cd | 1 << 38, 0xff << 56 | 0x123).is_ok());
    assert_eq!(kind(walk(cd | 1 << 38, 1 << 55)), EventKind::F_TRANSLATION);
    // AP[1] and nG do not count, everybody is privileged, and execute-never is bit 54.
    memory.put(0x3_2000, 0x7_0c03);
    let leaf = walk(cd, 0).unwrap();
    assert_eq!((leaf.permissions, leaf.scope), (Permissions::all(), Scope::Global));
    memory.put(0x3_2000, 1 << 53 | 0x7_0c83);
    assert_eq!(walk(cd, 0).unwrap().permissions.bits(), 0b101_101);
    memory.put(0x3_2000, 1 << 54 | 0x7_0c03);
    assert_eq!(walk(cd, 0).unwrap().permissions.bits(), 0b011_011);
    // WXN.
    memory.put(0x3_2000, 0x7_0c03);
    assert_eq!(walk(cd | 1 << 36, 0).unwrap().permissions.bits(), 0b011_011);
    // APTable[1] and XNTable count, APTable[0] and PXNTable do not.
    memory.put(0x3_1000, 1 << 61 | 1 << 59 | 0x3_2003);
    assert_eq!(walk(cd, 0).unwrap().permissions, Permissions::all());
    memory.put(0x3_1000, 1 << 62 | 0x3_2003);
    assert_eq!(walk(cd, 0).unwrap().permissions.bits(), 0b101_101);
    memory.put(0x3_1000, 1 << 60 | 0x3_2003);
    assert_eq!(walk(cd, 0).unwrap().permissions.bits(), 0b011_011);
}

#[test]
fn reserved_descriptors() {
    let memory = three_levels();
    let cd = [LOWER, 0x2_0000, 0, 0];
    memory.put(0x2_0000, 0x3_0003);
    assert!(walk(&memory, cd, 0).is_ok());
    for bits in [0b00, 0b10] {
        for at in [0x2_0000, 0x3_0000, 0x3_1000, 0x3_2000] {
            let word = memory.get(at);
            memory.put(at, word & !3 | bits);
            assert_eq!(kind(walk(&memory, cd, 0)), EventKind::F_TRANSLATION);
            memory.put(at, word);
        }
    }
    // Blocks at level 0 and 3.
    for at in [0x2_0000, 0x3_2000] {
        let word = memory.get(at);
        memory.put(at, word & !3 | 1);
        assert_eq!(kind(walk(&memory, cd, 0)), EventKind::F_TRANSLATION);
        memory.put(at, word);
    }
}

#[test]
fn sizes_of_output() {
    let memory = three_levels();
    // IPS of 40 bits, for tables and for what they map.
    let cd = [LOWER & !0x3f & !(7 << 32) | 25 | 2 << 32, 0x3_0000, 0, 0];
    assert_eq!(walk(&memory, cd, 0x4000_0000).unwrap().output, 0x40_4000_0000);
    memory.put(0x3_0008, 0x140_4000_0441);
    assert_eq!(kind(walk(&memory, cd, 0x4000_0000)), EventKind::F_ADDR_SIZE);
    memory.put(0x3_1000, 0x100_0003_2003);
    assert_eq!(kind(walk(&memory, cd, 0)), EventKind::F_ADDR_SIZE);
    // It comes before the access flag.
    memory.put(0x3_0008, 0x140_4000_0041);
    assert_eq!(kind(walk(&memory, cd, 0x4000_0000)), EventKind::F_ADDR_SIZE);
    // OAS caps it.
    memory.put(0x3_0000, 0x1000_4000_0441);
    let cd = [LOWER & !0x3f | 25, 0x3_0000, 0, 0];
    let lookup = Lookup::new(0, Access::Read);
    assert_eq!(kind(walk_as(&memory, &QEMU, StreamWorld::NsEl1, cd, &lookup)), EventKind::F_ADDR_SIZE);
    assert!(walk(&memory, cd, 0).is_ok());
}

#[test]
fn access_flags() {
    let memory = three_levels();
    let cd = [LOWER & !0x3f | 25, 0x3_0000, 0, 0];
    memory.put(0x3_2000, 0x7_0043);
    assert_eq!(kind(walk(&memory, cd, 0)), EventKind::F_ACCESS);
    // Before permissions.
    memory.put(0x3_2000, 0x7_0003);
    assert_eq!(kind(walk(&memory, cd, 0)), EventKind::F_ACCESS);
    memory.put(0x3_2000, 0x7_0043);
    assert!(walk(&memory, [cd[0] | AFFD, cd[1], 0, 0], 0).is_ok());
    let lookup = Lookup { goal: Goal::Translation, ..Lookup::new(0, Access::Read) };
    assert_eq!(kind(walk_as(&memory, &FULL, StreamWorld::NsEl1, cd, &lookup)), EventKind::F_ACCESS);
}

/// Privileged R, W, X and unprivileged R, W, X, for AP[2:1], PXN, UXN (Arm ARM D8.4.1).
#[test]
fn permissions() {
    let memory = three_levels();
    let cd = LOWER & !0x3f | 25;
    let of = |word0: u64, word1: u64, table: u64, leaf: u64| {
        memory.put(0x3_1000, 0x3_2003 | table);
        memory.put(0x3_2000, 0x7_0403 | leaf);
        let lookup = Lookup { goal: Goal::Translation, ..Lookup::new(0, Access::Read) };
        let words = [cd | word0, 0x3_0000 | word1, 0, 0];
        walk_as(&memory, &FULL, StreamWorld::NsEl1, words, &lookup).unwrap().permissions.bits()
    };
    // In bits: unprivileged X, W, R; privileged X, W, R.
    let (pxn, uxn) = (1 << 53, 1 << 54);
    for (ap, permitted) in [(0b00, 0b100_111), (0b01, 0b111_011), (0b10, 0b100_101), (0b11, 0b101_101)] {
        assert_eq!(of(0, 0, 0, ap << 6), permitted, "{ap:#b}");
        assert_eq!(of(0, 0, 0, ap << 6 | pxn), permitted & !0b000_100);
        assert_eq!(of(0, 0, 0, ap << 6 | uxn), permitted & !0b100_000);
    }
    // APTable, PXNTable, UXNTable; HAD0.
    for (aptable, permitted) in [(0b00, 0b111_011), (0b01, 0b100_111), (0b10, 0b101_101), (0b11, 0b100_101)] {
        assert_eq!(of(0, 0, aptable << 61, 0b01 << 6), permitted, "{aptable:#b}");
        assert_eq!(of(0, 1 << 1, aptable << 61, 0b01 << 6), 0b111_011);
    }
    assert_eq!(of(0, 0, 1 << 59, 0), 0b100_011);
    assert_eq!(of(0, 0, 1 << 60, 0), 0b000_111);
    assert_eq!(of(0, 1 << 1, 3 << 59, 0), 0b100_111);
    // WXN; UWXN is not for these tables.
    assert_eq!(of(1 << 36, 0, 0, 0b00 << 6), 0b100_011);
    assert_eq!(of(1 << 36, 0, 0, 0b01 << 6), 0b011_011);
    assert_eq!(of(1 << 36, 0, 0, 0b11 << 6), 0b101_101);
    assert_eq!(of(1 << 37, 0, 0, 0b00 << 6), 0b100_111);
    // PAN: data that the unprivileged may read or write; with EPAN what they may execute, too.
    let (pan, epan) = (1 << 40, 1 << 59);
    assert_eq!(of(pan, 0, 0, 0b00 << 6), 0b100_111);
    assert_eq!(of(pan, 0, 0, 0b01 << 6), 0b111_000);
    assert_eq!(of(pan, 0, 0, 0b11 << 6), 0b101_100);
    assert_eq!(of(pan, epan, 0, 0b00 << 6), 0b100_100);
    assert_eq!(of(pan, epan, 0, uxn), 0b000_111);
    assert_eq!(of(0, epan, 0, 0b00 << 6), 0b100_111);
}

#[test]
fn permission_faults() {
    let memory = three_levels();
    let cd = [LOWER & !0x3f | 25, 0x3_0000, 0, 0];
    // Read only for the privileged.
    memory.put(0x3_2000, 0x7_0483);
    let walk = |access, privilege| {
        let lookup = Lookup { privilege, ..Lookup::new(0, access) };
        walk_as(&memory, &FULL, StreamWorld::NsEl1, cd, &lookup)
    };
    let (user, system) = (Privilege::Unprivileged, Privilege::Privileged);
    assert!(walk(Access::Read, system).is_ok());
    assert!(walk(Access::Execute, user).is_ok());
    for (access, privilege) in [(Access::Write, system), (Access::Atomic, system), (Access::Read, user)] {
        assert_eq!(kind(walk(access, privilege)), EventKind::F_PERMISSION);
    }
    let lookup = Lookup { privilege: system, ..Lookup::new(0x123, Access::Execute) };
    memory.put(0x3_2000, 1 << 53 | 0x7_0483);
    let fault = walk(Access::Execute, system).unwrap_err();
    // InD, PnU, RnW, CLASS IN.
    let event = fault.event(crate::arch::smmuv3::layout::StreamId(0), Some(3), &lookup).encode();
    assert_eq!(event, [3 << 12 | 1 << 11 | 0x13, 0x20e << 32, 0x123, 0]);
    // A translation request learns what is permitted.
    let lookup = Lookup { goal: Goal::Translation, ..lookup };
    assert_eq!(walk_as(&memory, &FULL, StreamWorld::NsEl1, cd, &lookup).unwrap().permissions.bits(), 0b100_001);
}

#[test]
fn what_a_leaf_says() {
    let memory = three_levels();
    let cd = [LOWER & !0x3f | 25, 0x3_0000, 0, 0x7766_5544_3322_1100];
    // AttrIndx 5, outer shareable, nG.
    memory.put(0x3_2000, 0x7_0e57);
    let leaf = walk(&memory, cd, 0).unwrap();
    let expected = Leaf {
        output: 0x7_0000,
        bits: 12,
        contiguous_bits: 12,
        level: 3,
        granule: Granule::Size4K,
        permissions: Permissions::from_bits_retain(0b111_011),
        memory: 0x55,
        shareability: Shareability::Outer,
        scope: Scope::Asid,
        retained: Retained::Freely,
    };
    assert_eq!(leaf, expected);
    memory.put(0x3_2000, 0x7_0743);
    let leaf = walk(&memory, cd, 0).unwrap();
    assert_eq!((leaf.scope, leaf.shareability, leaf.memory), (Scope::Global, Shareability::Inner, 0));
    // nT is of blocks, and where BBML is not 0. Bit 16 of a page is of its address.
    memory.put(0x3_0008, 0x4001_0441);
    assert_eq!(walk(&memory, cd, 0x4000_0000).unwrap().retained, Retained::Not);
    memory.put(0x3_2000, 0x1_0443);
    assert_eq!(walk(&memory, cd, 0).unwrap().retained, Retained::Freely);
    let strict = Identification { idr3: FULL.idr3 & !(3 << 11), ..FULL };
    let lookup = Lookup::new(0x4000_0000, Access::Read);
    let leaf = walk_as(&memory, &strict, StreamWorld::NsEl1, cd, &lookup).unwrap();
    assert_eq!(leaf.retained, Retained::Freely);
}

#[test]
fn contiguous_runs() {
    const CONTIGUOUS: u64 = 1 << 52;
    let bits = |tg: u64, size: u64, words: &[(u64, u64)]| {
        let memory = Memory::new(words);
        walk(&memory, [LOWER & !0x3f & !(3 << 6) | size | tg << 6, 0x10_0000, 0, 0], 0).unwrap().contiguous_bits
    };
    let leaf = CONTIGUOUS | 0x441;
    assert_eq!(bits(0, 25, &[(0x10_0000, leaf)]), 34);
    assert_eq!(bits(0, 34, &[(0x10_0000, leaf)]), 25);
    assert_eq!(bits(0, 43, &[(0x10_0000, leaf | 2)]), 16);
    assert_eq!(bits(2, 28, &[(0x10_0000, leaf)]), 30);
    assert_eq!(bits(2, 39, &[(0x10_0000, leaf | 2)]), 21);
    assert_eq!(bits(1, 22, &[(0x10_0000, leaf)]), 34);
    assert_eq!(bits(1, 35, &[(0x10_0000, leaf | 2)]), 21);
    // Nothing at level 1 of 64 KiB; and a run larger than the input is none.
    assert_eq!(bits(1, 12, &[(0x10_0000, leaf)]), 42);
    assert_eq!(bits(0, 32, &[(0x10_0000, leaf)]), 30);
    assert_eq!(bits(2, 36, &[(0x10_0000, 0x20_0003), (0x20_0000, leaf | 2)]), 21);
    assert_eq!(bits(2, 44, &[(0x10_0000, leaf | 2)]), 14);
}

#[test]
fn unreadable_tables() {
    for at in [0x3_0000, 0x3_1000, 0x3_2000] {
        let memory = three_levels();
        memory.remove(at);
        let fault = walk(&memory, [LOWER & !0x3f | 25, 0x3_0000, 0, 0], 0).unwrap_err();
        let expected = Fault::walk_abort(Stage::One, FaultClass::TranslationTable, at);
        assert_eq!(fault, expected);
        let lookup = Lookup::new(0x123, Access::Atomic);
        let event = fault.event(crate::arch::smmuv3::layout::StreamId(1), None, &lookup).encode();
        assert_eq!(event, [1 << 32 | 0x0b, 0x100 << 32, 0x123, at]);
    }
}

#[test]
fn big_endian() {
    let memory = Memory::new(&[(0x3_0000, 0x4000_0441_u64.swap_bytes())]);
    let cd = LOWER & !0x3f | 25;
    assert_eq!(walk(&memory, [cd | 1 << 15, 0x3_0000, 0, 0], 0).unwrap().output, 0x4000_0000);
    assert_eq!(kind(walk(&memory, [cd, 0x3_0000, 0, 0], 0)), EventKind::F_TRANSLATION);
}

#[test]
fn snooping() {
    let memory = Memory::new(&[(0x3_0000, 0x441), (0x4_0ff8, 0x441)]);
    let both = CD | 25 | 25 << 16 | 2 << 22 | 6 << 32;
    for (lower, upper) in [(Snoop::Yes, Snoop::Yes), (Snoop::No, Snoop::Yes), (Snoop::Yes, Snoop::No)] {
        let mut word0 = both;
        if lower == Snoop::No {
            word0 &= !(3 << 8);
        }
        if upper == Snoop::No {
            word0 &= !(3 << 28);
        }
        memory.take_reads();
        walk(&memory, [word0, 0x3_0000, 0x4_0000, 0], 0).unwrap();
        walk(&memory, [word0, 0x3_0000, 0x4_0000, 0], !0).unwrap();
        assert_eq!(memory.take_reads(), [(0x3_0000, lower), (0x4_0ff8, upper)]);
    }
}

/// A cache that remembers all tables.
#[derive(Default)]
struct Everything(Vec<(u64, Structure)>);

impl StructureCache for Everything {
    fn table(&mut self, stage: Stage, address: u64) -> Option<Structure> {
        assert_eq!(stage, Stage::One);
        let of = |(block, structure): &&(u64, Structure)| *block == address >> structure.block_bits;
        self.0.iter().filter(of).map(|entry| entry.1).max_by_key(|structure| structure.level)
    }

    fn keep_table(&mut self, stage: Stage, address: u64, structure: Structure) {
        assert_eq!(stage, Stage::One);
        self.0.push((address >> structure.block_bits, structure));
    }
}

#[test]
fn tables_that_were_kept() {
    let memory = three_levels();
    memory.put(0x3_1000, 1 << 62 | 0x3_2003);
    let ste = Ste { words: [0b1011, 0, 0, 0, 0, 0, 0, 0] };
    let cd = Cd { words: [LOWER & !0x3f | 25, 0x3_0000, 0, 0, 0, 0, 0, 0] };
    let root = Stage1 { ste: &ste, cd: &cd, world: StreamWorld::NsEl1 };
    let mut cache = Everything::default();
    let mut read = |address| stage1(&memory, &FULL, &root, &Lookup::new(address, Access::Read), &mut cache);
    let first = read(0x123).unwrap();
    memory.take_reads();
    // What the tables above leave is kept with them.
    let second = read(0x456).unwrap();
    assert_eq!((first, first.permissions.bits()), (second, 0b101_101));
    assert_eq!(memory.take_reads(), [(0x3_2000, Snoop::Yes)]);
    read(0x3fff_ffff).unwrap();
    assert_eq!(memory.take_reads(), [(0x3_1ff8, Snoop::Yes)]);
    let blocks: Vec<_> = cache.0.iter().map(|(_, kept)| (kept.level, kept.table, kept.block_bits)).collect();
    assert_eq!(blocks, [(2, 0x3_1000, 30), (3, 0x3_2000, 21)]);
}
