//! Tables of context descriptors (SMMU 5.2 S1Fmt, 5.3), also through stage 2.

extern crate std;
use std::vec::Vec;

use super::memory::Memory;
use super::{FULL, Fault, NoStructureCache, context};
use crate::arch::smmuv3::device::walk::{Access, Context, Lookup, Stage, StreamWorld, StructureCache, Tags};
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};
use crate::arch::smmuv3::layout::{Asid, EventRecord, Identification, L1Cd, Ste, StreamId, Vmid};
use crate::bus::Snoop;

/// S1CIR, S1COR, S1CSH: write-back, inner shareable.
const SHARED: u64 = 1 << 2 | 1 << 4 | 3 << 6;

/// Stage 1 with `1 << max` CDs at 0x2_0000.
const fn ste(max: u64, format: u64) -> Ste {
    Ste { words: [0x2_0000 | max << 59 | format << 4 | 0b1011, SHARED, 0, 0, 0, 0, 0, 0] }
}

fn find(memory: &Memory, ste: &Ste, index: u32) -> Result<u64, Fault> {
    context(memory, &FULL, ste, index, &mut NoStructureCache).map(|cd| cd.words[0])
}

#[test]
fn linear() {
    let memory = Memory::new(&[(0x2_0000, 1), (0x2_0008, 2), (0x2_0038, 3), (0x2_03c0, 4)]);
    assert_eq!(find(&memory, &ste(0, 0), 0), Ok(1));
    assert_eq!(find(&memory, &ste(4, 0), 15), Ok(4));
    // Without substreams the format does not count; its fourth value is the first.
    assert_eq!(find(&memory, &ste(0, 1), 0), Ok(1));
    assert_eq!(find(&memory, &ste(4, 3), 15), Ok(4));
    let cd = context(&memory, &FULL, &ste(0, 0), 0, &mut NoStructureCache).unwrap();
    assert_eq!(cd.words, [1, 2, 0, 0, 0, 0, 0, 3]);
    // Bits within the size of the table are taken for 0.
    let mut unaligned = ste(4, 0);
    unaligned.words[0] |= 0x3c0;
    assert_eq!(find(&memory, &unaligned, 0), Ok(1));
    // A single CD is where it is.
    let mut single = ste(0, 0);
    single.words[0] |= 0x3c0;
    assert_eq!(find(&memory, &single, 0), Ok(4));
}

#[test]
fn attributes() {
    let memory = Memory::new(&[]);
    for (bits, snoop) in [(SHARED, Snoop::Yes), (0, Snoop::No), (SHARED & !0x30, Snoop::No)] {
        let mut entry = ste(8, 1);
        entry.words[1] = bits;
        memory.put(0x2_0000, 0x3_0001);
        memory.take_reads();
        find(&memory, &entry, 0).unwrap();
        let reads = memory.take_reads();
        assert_eq!(reads.len(), 9);
        assert!(reads.iter().all(|read| read.1 == snoop));
    }
}

#[test]
fn two_levels() {
    // 64 in each second table, at 4 KiB; index 0x105 is 4, 5.
    let memory = Memory::new(&[(0x2_0000, 0x3_0fff), (0x2_0020, 0x4_0001), (0x3_0000, 1), (0x4_0140, 2)]);
    assert_eq!(find(&memory, &ste(10, 1), 0), Ok(1));
    assert_eq!(find(&memory, &ste(10, 1), 0x105), Ok(2));
    // Fewer than fill one second table.
    assert_eq!(find(&memory, &ste(3, 1), 0), Ok(1));
    // 1024, at 64 KiB; 0x1005 is 4, 5.
    memory.put(0x2_0020, 0x4_f001);
    assert_eq!(find(&memory, &ste(14, 2), 0x1005), Ok(2));
    // The first table is aligned to its size (here 128 bytes), and at least to 64.
    let mut unaligned = ste(10, 1);
    unaligned.words[0] |= 0x40;
    assert_eq!(find(&memory, &unaligned, 0), Ok(1));
    let bad = |ste: &Ste, index| {
        let fault = find(&memory, ste, index).unwrap_err();
        assert_eq!(fault.kind, EventKind::C_BAD_SUBSTREAMID);
        fault
    };
    // V of L1CD; L2Ptr beyond the output size (3.4.3).
    bad(&ste(10, 1), 0x40);
    memory.put(0x2_0008, 1 << 52 | 1);
    bad(&ste(10, 1), 0x40);
    // Its record has a SubstreamID in any case (7.3.9).
    let lookup = Lookup::new(0, Access::Read);
    let event = bad(&ste(10, 1), 0x40).event(StreamId(9), None, &lookup);
    let expected = EventRecord {
        kind: EventKind::C_BAD_SUBSTREAMID,
        stream: StreamId(9),
        substream: Some(0),
        ..EventRecord::default()
    };
    assert_eq!(event, expected);
}

#[test]
fn unreadable() {
    let memory = Memory::new(&[(0x2_0000, 0x3_0001)]);
    memory.remove(0x3_0068);
    memory.remove(0x2_0008);
    let lookup = Lookup::new(0x1234, Access::Write);
    for (index, address) in [(1, 0x3_0040), (0x40, 0x2_0008)] {
        let fault = find(&memory, &ste(10, 1), index).unwrap_err();
        let expected = EventRecord {
            kind: EventKind::F_CD_FETCH,
            stream: StreamId(9),
            substream: Some(index),
            second_address: address,
            ..EventRecord::default()
        };
        assert_eq!(fault.event(StreamId(9), Some(index), &lookup), expected);
    }
}

/// Stage 2 of 4 KiB from level 1 at 0x6_0000: 0x2_xxxx to 0x7_2xxx, 0x3_xxxx to 0x7_3xxx (first page of each);
/// S2PTW, S2R.
fn nested(word0: u64) -> (Memory, Ste) {
    let word2 = 5 | (25 | 1 << 6 | 6 << 16 | 1 << 19 | 1 << 22 | 1 << 26) << 32;
    let ste = Ste { words: [0x2_0000 | 0b1111 | word0, SHARED, word2, 0x6_0000, 0, 0, 0, 0] };
    let memory = Memory::new(&[(0x6_0000, 0x6_1003), (0x6_1000, 0x6_2003), (0x6_2100, 0x7_27ff), (0x6_2180, 0x7_37ff)]);
    (memory, ste)
}

#[test]
fn through_stage2() {
    let (memory, ste) = nested(10 << 59 | 1 << 4);
    memory.put(0x7_2008, 0x3_0001);
    memory.put(0x7_3040, 7);
    assert_eq!(find(&memory, &ste, 0x41), Ok(7));
    // The address of the structure that is fetched, whatever else stage 2 says.
    let ipa = |index| {
        let fault = find(&memory, &ste, index).unwrap_err();
        assert_eq!((fault.stage, fault.class), (Stage::Two, FaultClass::Cd));
        (fault.kind, fault.second_address)
    };
    memory.put(0x7_2008, 0x5_0001);
    assert_eq!(ipa(0x41), (EventKind::F_TRANSLATION, 0x5_0040));
    memory.put(0x6_2280, 0x7_33ff);
    assert_eq!(ipa(0x41), (EventKind::F_ACCESS, 0x5_0040));
    // Write only; then a device (MemAttr 1).
    memory.put(0x6_2280, 0x7_37bf);
    assert_eq!(ipa(0x41), (EventKind::F_PERMISSION, 0x5_0040));
    memory.put(0x6_2280, 0x7_37c7);
    assert_eq!(ipa(0x41), (EventKind::F_PERMISSION, 0x5_0040));
    let mut unprotected = ste;
    unprotected.words[2] &= !(1 << 54);
    assert_eq!(find(&memory, &unprotected, 0x41), Ok(7));
    memory.put(0x6_2280, 1 << 52);
    memory.remove(0x6_2280);
    assert_eq!(ipa(0x41), (EventKind::F_WALK_EABT, 0x6_2280));
    memory.put(0x6_2100, 0);
    assert_eq!(ipa(0x41), (EventKind::F_TRANSLATION, 0x2_0008));
    // What stage 2 reaches and nobody answers.
    memory.put(0x6_2100, 0x7_27ff);
    memory.put(0x7_2008, 0x3_0001);
    memory.remove(0x7_3048);
    let fault = find(&memory, &ste, 0x41).unwrap_err();
    assert_eq!(fault, Fault::fetch(EventKind::F_CD_FETCH, 0x7_3040));
    let lookup = Lookup::new(0x1234, Access::Write);
    memory.put(0x7_2008, 0x5_0001);
    let event = Fault::stage2(EventKind::F_PERMISSION, FaultClass::Cd, 0x5_0040).event(StreamId(0), None, &lookup);
    assert_eq!(event.encode(), [0x13, 0x80 << 32, 0x1234, 0x5_0000]);
}

#[test]
fn snooping_is_of_both_stages() {
    let (memory, ste) = nested(0);
    for (leaf, snoop) in [(0x7_27ff_u64, Snoop::Yes), (0x7_24ff, Snoop::Yes), (0x7_27d7, Snoop::No)] {
        memory.put(0x6_2100, leaf);
        memory.take_reads();
        find(&memory, &ste, 0).unwrap();
        let reads = memory.take_reads();
        // S2IR0, S2OR0 and S2SH0 are 0: stage 2 itself does not snoop.
        let expected: Vec<Snoop> = [[Snoop::No; 3].as_slice(), &[snoop; 8]].concat();
        assert_eq!(reads.into_iter().map(|read| read.1).collect::<Vec<_>>(), expected, "{leaf:#x}");
    }
}

/// Remembers the last descriptor, and is not asked for another.
#[derive(Default)]
struct One(Option<L1Cd>);

impl StructureCache for One {
    fn context_descriptor(&mut self, _: u32) -> Option<L1Cd> {
        self.0
    }

    fn keep_context_descriptor(&mut self, _: u32, descriptor: L1Cd) {
        assert_eq!(self.0.replace(descriptor), None);
    }
}

#[test]
fn descriptors_are_kept_in_any_state() {
    let memory = Memory::new(&[(0x3_0000, 1)]);
    let mut cache = One::default();
    for word in [0x3_0001, 0] {
        memory.put(0x2_0000, word);
        assert_eq!(context(&memory, &FULL, &ste(10, 1), 0, &mut cache).unwrap().words[0], 1);
    }
    let mut cache = One::default();
    for word in [0, 0x3_0001] {
        memory.put(0x2_0000, word);
        let fault = context(&memory, &FULL, &ste(10, 1), 0, &mut cache).unwrap_err();
        assert_eq!(fault.kind, EventKind::C_BAD_SUBSTREAMID);
    }
}

#[test]
fn tags() {
    let mut context = Context {
        ste: Ste { words: [0b1011, 0, 5, 0, 0, 0, 0, 0] },
        cd: Some(crate::arch::smmuv3::layout::Cd { words: [7 << 48 | 1 << 47, 0, 0, 0, 0, 0, 0, 0] }),
        world: StreamWorld::NsEl1,
    };
    let only1 = Identification { idr0: FULL.idr0 & !1, ..FULL };
    let of = |world, vmid, asid| Tags { world, vmid: Vmid(vmid), asid, private: true };
    assert_eq!(context.tags(&FULL), of(StreamWorld::NsEl1, 5, Some(Asid(7))));
    assert_eq!(context.tags(&only1), of(StreamWorld::NsEl1, 0, Some(Asid(7))));
    context.world = StreamWorld::NsEl2E2h;
    assert_eq!(context.tags(&FULL), of(StreamWorld::NsEl2E2h, 0, Some(Asid(7))));
    context.world = StreamWorld::NsEl2;
    assert_eq!(context.tags(&FULL), of(StreamWorld::NsEl2, 0, None));
    context.world = StreamWorld::NsEl1;
    context.cd = None;
    assert_eq!(context.tags(&FULL), Tags { private: false, ..of(StreamWorld::NsEl1, 5, None) });
}
