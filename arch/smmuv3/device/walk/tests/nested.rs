//! Both stages (SMMU 3.4, 7.3.22, 13.4), and none.

extern crate std;
use std::vec::Vec;

use super::memory::Memory;
use super::{Access, FULL, Fault, Lookup, NoStructureCache, TABLE, request, translate};
use crate::arch::smmuv3::device::walk::attributes::{Cacheability, Device, MemoryType};
use crate::arch::smmuv3::device::walk::{
    Attributes, Context, Goal, Leaf, Permissions, Response, Retained, Shareability, Stage, StreamWorld, Structure,
    StructureCache, Verdict,
};
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};
use crate::arch::smmuv3::layout::{Cd, Ste, StreamId};

/// V, AA64, A, R, EPD1, 4 KiB, 39 bits of input, 52 of output; MAIR 0 is write-back.
const CD: [u64; 4] =
    [25 | 1 << 30 | 1 << 31 | 6 << 32 | 1 << 41 | 1 << 45 | 1 << 46, 0x3_0000, 0, 0x0000_0000_0000_44ff];
/// Config nested; level 1 of 4 KiB, 39 bits of input, 52 of output, S2AA64, S2R.
const STE: [u64; 4] = [0x2_0000 | 0b1111, 0, (25 | 1 << 6 | 6 << 16 | 1 << 19 | 1 << 26) << 32, 0x9_0000];

/// Stage 2 at 0x9_0000 maps 4 KiB at a time: 0x2_0000 (the CD) to 0x1002_0000, 0x3_0000 to 0x3_2000 (tables of
/// stage 1) to 0x1003_0000 and so on, 0x7_0000 (data) to 0x1007_0000; 2 MiB at 0x20_0000 to 0x2000_0000.
/// Stage 1 maps 0x1000 to 0x7_0000, and 2 MiB at 0x20_0000 to 0x20_0000.
fn memory() -> Memory {
    let memory = Memory::new(&[
        (0x9_0000, 0x9_1003),
        (0x9_1000, 0x9_2003),
        (0x9_1008, 0x2000_07fd),
        (0x9_2100, 0x1002_07ff),
        (0x9_2180, 0x1003_07ff),
        (0x9_2188, 0x1003_17ff),
        (0x9_2190, 0x1003_27ff),
        (0x9_2380, 0x1007_07ff),
        (0x1003_0000, 0x3_1003),
        (0x1003_1000, 0x3_2003),
        (0x1003_1008, 0x20_0741),
        (0x1003_2008, 0x7_0743),
    ]);
    memory.put_all(0x1002_0000, &CD);
    memory.put_all(TABLE.base.as_u64(), &STE);
    memory
}

fn at(memory: &Memory, address: u64, access: Access) -> Result<u64, Fault> {
    let translation = request(memory, &FULL, 0, None, &Lookup::new(address, access))?.expect("not aborted");
    Ok(translation.translate(address).as_u64())
}

#[test]
fn both_stages() {
    let memory = memory();
    assert_eq!(at(&memory, 0x1234, Access::Write), Ok(0x1007_0234));
    assert_eq!(at(&memory, 0x3f_fff8, Access::Read), Ok(0x201f_fff8));
    let lookup = Lookup::new(0x1234, Access::Read);
    let translation = request(&memory, &FULL, 0, None, &lookup).unwrap().unwrap();
    let (first, second) = (translation.stage1.unwrap(), translation.stage2.unwrap());
    assert_eq!((first.output, second.output), (0x7_0000, 0x1007_0000));
    assert_eq!((translation.output.as_u64(), translation.block_bits), (0x1007_0000, 12));
}

/// A block of one stage over pages of the other: the smaller of both.
#[test]
fn sizes() {
    const CONTIGUOUS: u64 = 1 << 52;
    let memory = memory();
    let of = |address| {
        let lookup = Lookup::new(address, Access::Read);
        let found = request(&memory, &FULL, 0, None, &lookup).unwrap().unwrap();
        (found.output.as_u64(), found.block_bits, found.contiguous_bits)
    };
    assert_eq!(of(0x20_5678), (0x2000_0000, 21, 21));
    memory.put(0x1003_1008, CONTIGUOUS | 0x20_0741);
    memory.put(0x9_1008, CONTIGUOUS | 0x2000_07fd);
    assert_eq!(of(0x20_5678), (0x2000_0000, 21, 25));
    memory.put(0x9_1008, 0x9_3003);
    memory.put(0x9_3028, CONTIGUOUS | 0x2000_57ff);
    assert_eq!(of(0x20_5678), (0x2000_5000, 12, 16));
    memory.put(0x1003_1008, 0x3_2003);
    memory.put(0x1003_2028, 0x20_5743);
    assert_eq!(of(0x20_5678), (0x2000_5000, 12, 12));
    memory.put(0x9_1008, 0x2000_07fd);
    assert_eq!(of(0x20_5678), (0x2000_5000, 12, 12));
}

#[test]
fn permissions_are_of_both() {
    let memory = memory();
    let of = || {
        let lookup = Lookup { goal: Goal::Translation, ..Lookup::new(0x1000, Access::Write) };
        request(&memory, &FULL, 0, None, &lookup).unwrap().unwrap().permissions
    };
    // Stage 1: everybody reads and writes, and the unprivileged execute.
    assert_eq!(of().bits(), 0b111_011);
    memory.put(0x9_2380, 1 << 54 | 0x1007_077f);
    assert_eq!(of(), Permissions::PRIVILEGED_READ | Permissions::UNPRIVILEGED_READ);
    // Stage 1 is asked first.
    let fault = at(&memory, 0x1000, Access::Write).unwrap_err();
    assert_eq!(fault, Fault::stage2(EventKind::F_PERMISSION, FaultClass::Input, 0x7_0000));
    memory.put(0x1003_2008, 0x7_07c3);
    let fault = at(&memory, 0x1000, Access::Write).unwrap_err();
    assert_eq!(fault, Fault::stage1(EventKind::F_PERMISSION));
}

#[test]
fn types_of_memory() {
    let memory = memory();
    let of = || {
        let lookup = Lookup::new(0x1000, Access::Read);
        request(&memory, &FULL, 0, None, &lookup).unwrap().unwrap().attributes
    };
    let wb = Cacheability::WriteBack;
    let normal = MemoryType::Normal { inner: wb, outer: wb };
    assert_eq!(of(), Attributes { memory: normal, shareability: Shareability::Inner });
    // AttrIndx 1 is non-cacheable; MemAttr 1 a device.
    memory.put(0x1003_2008, 0x7_0747);
    assert_eq!(of(), Attributes::from_mair(0x44, Shareability::Inner));
    memory.put(0x9_2380, 0x1007_07c7);
    assert_eq!(of().memory, MemoryType::Device(Device::NgNrE));
    // S2PTW is not for requests.
    memory.put(TABLE.base.as_u64() + 16, STE[2] | 1 << 54);
    assert_eq!(of().memory, MemoryType::Device(Device::NgNrE));
    // S2FWB: MemAttr 6.
    memory.put(0x9_2380, 0x1007_07db);
    assert_eq!(of().memory, Attributes::from_mair(0x44, Shareability::Inner).memory);
    memory.put(TABLE.base.as_u64() + 8, 1 << 25);
    assert_eq!(of().memory, normal);
}

/// In the order of 7.3.22, with the addresses and classes of 7.3.
#[test]
fn faults_of_tables() {
    let table = |kind, ipa| Fault::stage2(kind, FaultClass::TranslationTable, ipa);
    // For each table: where stage 2 has it, and the descriptor in it.
    for (slot, ipa) in [(0x9_2180, 0x3_0000), (0x9_2188, 0x3_1000), (0x9_2190, 0x3_2008)] {
        let fault = |word| {
            let memory = memory();
            memory.put(slot, word);
            at(&memory, 0x1234, Access::Write).unwrap_err()
        };
        assert_eq!(fault(0), table(EventKind::F_TRANSLATION, ipa));
        assert_eq!(fault(0x1003_03ff), table(EventKind::F_ACCESS, ipa));
        // Read, whatever the request does.
        let unreadable = fault(0x1003_07bf);
        assert_eq!(unreadable, table(EventKind::F_PERMISSION, ipa));
        let event = unreadable.event(StreamId(0), None, &Lookup::new(0x1234, Access::Write));
        // TTRnW, CLASS TT, S2.
        assert_eq!(event.encode(), [0x13, (1 << 12 | 0x180) << 32, 0x1234, ipa & !0xfff]);
        let memory = memory();
        memory.remove(slot);
        let aborted = at(&memory, 0x1234, Access::Write).unwrap_err();
        assert_eq!(aborted, Fault::walk_abort(Stage::Two, FaultClass::TranslationTable, slot));
        let event = aborted.event(StreamId(0), None, &Lookup::new(0x1234, Access::Write));
        assert_eq!(event.encode(), [0x0b, 0x180 << 32, 0x1234, slot]);
        // The table itself, behind stage 2: an abort of stage 1.
        memory.put(slot, 0);
        let memory = self::memory();
        let physical = ipa | 0x1000_0000;
        memory.remove(physical);
        let aborted = at(&memory, 0x1234, Access::Write).unwrap_err();
        assert_eq!(aborted, Fault::walk_abort(Stage::One, FaultClass::TranslationTable, physical));
        // S2PTW: not in a device.
        let memory = self::memory();
        memory.put(slot, (ipa & !0xfff) | 0x1000_0000 | 0x7c7);
        assert!(at(&memory, 0x1234, Access::Write).is_ok());
        memory.put(TABLE.base.as_u64() + 16, STE[2] | 1 << 54);
        assert_eq!(at(&memory, 0x1234, Access::Write).unwrap_err(), table(EventKind::F_PERMISSION, ipa));
    }
}

#[test]
fn faults_of_the_page() {
    let memory = memory();
    let input = |kind| Fault::stage2(kind, FaultClass::Input, 0x7_0234);
    for (word, kind) in
        [(0, EventKind::F_TRANSLATION), (0x1007_03ff, EventKind::F_ACCESS), (0x1007_073f, EventKind::F_PERMISSION)]
    {
        memory.put(0x9_2380, word);
        assert_eq!(at(&memory, 0x1234, Access::Read), Err(input(kind)));
    }
    memory.remove(0x9_2380);
    let aborted = at(&memory, 0x1234, Access::Read).unwrap_err();
    assert_eq!(aborted, Fault::walk_abort(Stage::Two, FaultClass::Input, 0x9_2380));
    // What stage 1 puts out can be more than stage 2 takes.
    memory.put(0x1003_2008, 0x80_0000_0743);
    let fault = Fault::stage2(EventKind::F_TRANSLATION, FaultClass::Input, 0x80_0000_0234);
    assert_eq!(at(&memory, 0x1234, Access::Read), Err(fault));
}

#[test]
fn bypass() {
    let memory = Memory::new(&[(TABLE.base.as_u64(), 0b1001)]);
    assert_eq!(at(&memory, 0xf_ffff_ffff_ffff, Access::Read), Ok(0xf_ffff_ffff_ffff));
    let beyond = Err(Fault::stage1(EventKind::F_ADDR_SIZE));
    assert_eq!(at(&memory, 1 << 52, Access::Read), beyond);
    memory.put(TABLE.base.as_u64(), 0b0001);
    assert_eq!(request(&memory, &FULL, 0, None, &Lookup::new(0, Access::Read)), Ok(None));
    // S1DSS 1: past stage 1 as if it was not there, with a CD that is not valid.
    let memory = self::memory();
    memory.put(TABLE.base.as_u64(), STE[0] | 4 << 59);
    memory.put(TABLE.base.as_u64() + 8, 1);
    memory.put(0x1002_0000, 0);
    assert_eq!(at(&memory, 0x7_0123, Access::Write), Ok(0x1007_0123));
    assert_eq!(at(&memory, 1 << 52, Access::Read), beyond);
    memory.put(TABLE.base.as_u64(), 0x2_0000 | 0b1011 | 4 << 59);
    assert_eq!(at(&memory, 0x7_0123, Access::Write), Ok(0x7_0123));
    assert_eq!(at(&memory, 1 << 52, Access::Read), beyond);
}

#[test]
fn what_becomes_of_faults() {
    let ste =
        |s2r: u64, s2s: u64| Ste { words: [STE[0], 0, STE[2] & !(1 << 58) | s2r << 58 | s2s << 57, 0, 0, 0, 0, 0] };
    let cd = |a: u64, r: u64, s: u64| Cd { words: [1 << 31 | a << 46 | r << 45 | s << 44, 0, 0, 0, 0, 0, 0, 0] };
    let verdict = |response, recorded| Verdict { response, recorded };
    let first = Fault::stage1(EventKind::F_PERMISSION);
    let second = Fault::stage2(EventKind::F_PERMISSION, FaultClass::Input, 0);
    // A, R, S of stage 1; S2R, S2S do not count there, nor the other way round (5.5).
    for (a, r, s, expected) in [
        (0, 0, 0, verdict(Response::Ignore, false)),
        (0, 1, 0, verdict(Response::Ignore, true)),
        (1, 0, 0, verdict(Response::Abort, false)),
        (1, 1, 0, verdict(Response::Abort, true)),
        (1, 0, 1, verdict(Response::Stall, true)),
        (0, 1, 1, verdict(Response::Stall, true)),
    ] {
        for other in [ste(0, 0), ste(1, 1)] {
            assert_eq!(first.verdict(&other, Some(&cd(a, r, s)), Goal::Access), expected);
        }
    }
    for (r, s, expected) in [
        (0, 0, verdict(Response::Abort, false)),
        (1, 0, verdict(Response::Abort, true)),
        (0, 1, verdict(Response::Stall, true)),
    ] {
        for other in [None, Some(cd(0, 0, 0)), Some(cd(1, 1, 1))] {
            assert_eq!(second.verdict(&ste(r, s), other.as_ref(), Goal::Access), expected);
        }
    }
    // Other faults, stage 1 that is bypassed, and translation requests.
    let aborted = verdict(Response::Abort, true);
    let walk = Fault::walk_abort(Stage::One, FaultClass::TranslationTable, 0);
    assert_eq!(walk.verdict(&ste(0, 1), Some(&cd(0, 0, 1)), Goal::Access), aborted);
    assert_eq!(first.verdict(&ste(0, 1), None, Goal::Access), aborted);
    assert_eq!(first.verdict(&ste(0, 0), Some(&cd(0, 1, 1)), Goal::Translation), verdict(Response::Abort, false));
}

/// Remembers pages and tables of both stages.
#[derive(Default)]
struct Everything {
    tables: Vec<(Stage, u64, Structure)>,
    pages: Vec<(u64, Leaf)>,
}

impl StructureCache for Everything {
    fn table(&mut self, stage: Stage, address: u64) -> Option<Structure> {
        let of = |(other, block, structure): &&(Stage, u64, Structure)| {
            *other == stage && *block == address >> structure.block_bits
        };
        self.tables.iter().filter(of).map(|entry| entry.2).max_by_key(|structure| structure.level)
    }

    fn keep_table(&mut self, stage: Stage, address: u64, structure: Structure) {
        self.tables.push((stage, address >> structure.block_bits, structure));
    }

    fn page(&mut self, ipa: u64) -> Option<Leaf> {
        self.pages.iter().find(|(page, leaf)| *page == ipa >> leaf.bits).map(|entry| entry.1)
    }

    fn keep_page(&mut self, ipa: u64, leaf: Leaf) {
        self.pages.push((ipa >> leaf.bits, leaf));
    }
}

/// Tables of stage 1 are kept as intermediate addresses: stage 2 is asked for each of them.
#[test]
fn with_caches() {
    let memory = memory();
    let mut words = [0; 8];
    words[..4].copy_from_slice(&STE);
    let mut cd = [0; 8];
    cd[..4].copy_from_slice(&CD);
    let context = Context { ste: Ste { words }, cd: Some(Cd { words: cd }), world: StreamWorld::NsEl1 };
    let mut cache = Everything::default();
    let lookup = Lookup::new(0x1234, Access::Read);
    let cold = translate(&memory, &FULL, &context, &lookup, &mut NoStructureCache).unwrap();
    // Three tables of stage 1 and the page, each behind three of stage 2.
    assert_eq!(memory.take_reads().len(), 3 * (3 + 1) + 3);
    assert_eq!(translate(&memory, &FULL, &context, &lookup, &mut cache), Ok(cold));
    memory.take_reads();
    assert_eq!(translate(&memory, &FULL, &context, &lookup, &mut cache), Ok(cold));
    // Only the last descriptor of stage 1.
    assert_eq!(memory.take_reads().len(), 1);
    let kept: Vec<_> = cache.tables.iter().filter(|entry| entry.0 == Stage::One).map(|entry| entry.2.table).collect();
    assert_eq!(kept, [0x3_1000, 0x3_2000]);
    assert_eq!(cold.retained(), Retained::Freely);
}
