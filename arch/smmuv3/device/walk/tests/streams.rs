//! Stream tables (SMMU 3.3.1, 5.1), and what an STE makes of a request (5.2).

extern crate std;
use std::vec;

use super::memory::Memory;
use super::{Access, FULL, Fault, Lookup, QEMU, Route, StreamTable, TABLE, route, stream};
use crate::PhysAddr;
use crate::arch::smmuv3::device::walk::{
    E2h, NoStructureCache, Privilege, StreamWorld, StructureCache, overridden, world,
};
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::{EventRecord, Identification, L1Std, Ste, StreamId};
use crate::bus::Snoop;

fn word0(memory: &Memory, table: &StreamTable, id: u32) -> Result<u64, Fault> {
    stream(memory, &FULL, table, StreamId(id), &mut NoStructureCache).map(|ste| ste.words[0])
}

fn kind<T: core::fmt::Debug>(result: Result<T, Fault>) -> EventKind {
    result.expect_err("a fault").kind
}

#[test]
fn linear() {
    let memory = Memory::new(&[(0x1_0000, 7), (0x1_0040, 9), (0x1_0fc0, 11), (0x1_0048, 13)]);
    assert_eq!(word0(&memory, &TABLE, 0), Ok(7));
    assert_eq!(word0(&memory, &TABLE, 1), Ok(9));
    assert_eq!(word0(&memory, &TABLE, 63), Ok(11));
    assert_eq!(kind(word0(&memory, &TABLE, 64)), EventKind::C_BAD_STREAMID);
    let whole = stream(&memory, &FULL, &TABLE, StreamId(1), &mut NoStructureCache).unwrap();
    assert_eq!(whole.words, [9, 13, 0, 0, 0, 0, 0, 0]);
    // Aligned to its size; LOG2SIZE is at most what the unit has.
    assert_eq!(word0(&memory, &StreamTable { base: PhysAddr::new(0x1_0fc0), ..TABLE }, 1), Ok(9));
    let large = StreamTable { log2: 32, base: PhysAddr::new(0), ..TABLE };
    assert_eq!(word0(&memory, &large, 0x400), Ok(7));
    assert_eq!(kind(word0(&memory, &large, 0x1_0000)), EventKind::C_BAD_STREAMID);
    // Eight quadwords, read as CR1 says.
    memory.take_reads();
    let unsnooped = StreamTable { snoop: Snoop::No, ..TABLE };
    word0(&memory, &unsnooped, 1).unwrap();
    let reads: vec::Vec<_> = (0..8).map(|at| (0x1_0040 + at * 8, Snoop::No)).collect();
    assert_eq!(memory.take_reads(), reads);
}

/// The example of 3.3.1.2.
#[test]
fn two_levels() {
    let table = StreamTable { log2: 10, split: Some(8), ..TABLE };
    let memory = Memory::new(&[
        (0x1_0000, 0x4000 | 9),
        (0x1_0008, 0x2_f200 | 3),
        (0x1_0018, 0x9000 | 1),
        (0x4000, 1),
        (0x4000 + 255 * 64, 2),
        (0x2_f200, 3),
        (0x2_f200 + 3 * 64, 4),
        (0x9000, 5),
    ]);
    for (id, word) in [(0, 1), (255, 2), (256, 3), (259, 4), (768, 5)] {
        assert_eq!(word0(&memory, &table, id), Ok(word), "{id}");
    }
    // Beyond a span, no span, beyond the table (7.3.3).
    for id in [260, 511, 512, 767, 769, 1024] {
        assert_eq!(kind(word0(&memory, &table, id)), EventKind::C_BAD_STREAMID, "{id}");
    }
    // Beyond SPLIT + 1, reserved.
    for span in [10, 11, 12, 31] {
        memory.put(0x1_0000, 0x4000 | span);
        assert_eq!(kind(word0(&memory, &table, 0)), EventKind::C_BAD_STREAMID, "{span}");
    }
    // L2Ptr is aligned to the span.
    memory.put(0x1_0000, 0x4fc0 | 5);
    memory.put(0x4c00, 6);
    assert_eq!(word0(&memory, &table, 0), Ok(6));
    // A table of fewer StreamIDs than SPLIT has one descriptor.
    let small = StreamTable { log2: 4, ..table };
    memory.put(0x1_0000, 0x4000 | 9);
    assert_eq!(word0(&memory, &small, 0), Ok(1));
    assert_eq!(kind(word0(&memory, &small, 16)), EventKind::C_BAD_STREAMID);
}

#[test]
fn unreadable() {
    let table = StreamTable { log2: 10, split: Some(8), ..TABLE };
    let memory = Memory::new(&[(0x1_0000, 0x4000 | 9), (0x1_0008, 1 << 52 | 9)]);
    let event = |id: u32| {
        let fault = word0(&memory, &table, id).unwrap_err();
        fault.event(StreamId(id), Some(5), &Lookup::new(0x1234, Access::Read))
    };
    memory.remove(0x4058);
    memory.remove(0x1_0010);
    // FetchAddr is of the structure; there is no input address.
    let expected = |id: u32, address| EventRecord {
        kind: EventKind::F_STE_FETCH,
        stream: StreamId(id),
        substream: Some(5),
        second_address: address,
        ..EventRecord::default()
    };
    assert_eq!(event(1), expected(1, 0x4040));
    assert_eq!(event(512), expected(512, 0x1_0010));
    assert_eq!(event(0x105), expected(0x105, 1 << 52 | 5 << 6));
    assert_eq!(event(0x105).encode(), [0x105 << 32 | 5 << 12 | 1 << 11 | 3, 0, 0, 1 << 52 | 5 << 6]);
}

/// Remembers the last descriptor, and is not asked for another.
#[derive(Default)]
struct One(Option<L1Std>);

impl StructureCache for One {
    fn stream_descriptor(&mut self, _: StreamId) -> Option<L1Std> {
        self.0
    }

    fn keep_stream_descriptor(&mut self, _: StreamId, descriptor: L1Std) {
        assert_eq!(self.0.replace(descriptor), None);
    }
}

#[test]
fn descriptors_are_kept_in_any_state() {
    let table = StreamTable { log2: 10, split: Some(8), ..TABLE };
    let memory = Memory::new(&[(0x1_0000, 0x4000 | 9), (0x4000, 1)]);
    let mut cache = One::default();
    for word in [0x4000 | 9, 0x4000, 0] {
        memory.put(0x1_0000, word);
        assert_eq!(stream(&memory, &FULL, &table, StreamId(0), &mut cache).unwrap().words[0], 1);
    }
    let mut cache = One::default();
    for word in [0, 0x4000 | 9] {
        memory.put(0x1_0000, word);
        assert_eq!(kind(stream(&memory, &FULL, &table, StreamId(0), &mut cache)), EventKind::C_BAD_STREAMID);
    }
    // What cannot be read is not.
    memory.remove(0x1_0000);
    let mut cache = One::default();
    assert_eq!(kind(stream(&memory, &FULL, &table, StreamId(0), &mut cache)), EventKind::F_STE_FETCH);
    assert_eq!(cache.0, None);
}

const fn ste(word0: u64, word1: u64) -> Ste {
    Ste { words: [word0, word1, 0, 0, 0, 0, 0, 0] }
}

#[test]
fn routes() {
    let (bypass, stage2, stage1, nested) = (0b1001, 0b1101, 0b1011, 0b1111);
    let to = |index| Ok(Route::Onward { cd: Some(index) });
    let past = Ok(Route::Onward { cd: None });
    let bad = Err(Fault::configuration(EventKind::C_BAD_SUBSTREAMID));
    let off = Err(Fault::configuration(EventKind::F_STREAM_DISABLED));
    let of = |word0: u64, s1dss, substream| route(&FULL, &ste(word0, s1dss), substream);
    assert_eq!(of(0b0001, 0, Some(0)), Ok(Route::Abort));
    assert_eq!(of(0b0111, 0, None), Ok(Route::Abort));
    for word0 in [bypass, stage2] {
        assert_eq!(of(word0 | 4 << 59, 0, None), past);
        assert_eq!(of(word0 | 4 << 59, 0, Some(1)), bad);
    }
    for word0 in [stage1, nested] {
        // Without substreams.
        for s1dss in 0..4 {
            assert_eq!(of(word0, s1dss, None), to(0));
            assert_eq!(of(word0, s1dss, Some(0)), bad);
        }
        // With 16 of them.
        let word0 = word0 | 4 << 59;
        for (s1dss, without, zero) in [(0, off, to(0)), (1, past, to(0)), (2, to(0), off), (3, off, to(0))] {
            assert_eq!(of(word0, s1dss, None), without, "{s1dss}");
            assert_eq!(of(word0, s1dss, Some(0)), zero, "{s1dss}");
            assert_eq!(of(word0, s1dss, Some(15)), to(15));
            assert_eq!(of(word0, s1dss, Some(16)), bad);
        }
        // A unit without substreams ignores S1CDMax.
        assert_eq!(route(&QEMU, &ste(word0, 0), None), to(0));
        assert_eq!(route(&QEMU, &ste(word0, 0), Some(1)), bad);
    }
}

#[test]
fn stream_worlds() {
    let of = |word0, strw: u64, e2h| world(&FULL, &ste(word0, strw << 30), e2h);
    assert_eq!(of(0b1011, 0, E2h::On), StreamWorld::NsEl1);
    assert_eq!(of(0b1011, 2, E2h::Off), StreamWorld::NsEl2);
    assert_eq!(of(0b1011, 2, E2h::On), StreamWorld::NsEl2E2h);
    for word0 in [0b1001, 0b1101, 0b1111] {
        assert_eq!(of(word0, 2, E2h::On), StreamWorld::NsEl1);
    }
    assert_eq!(world(&QEMU, &ste(0b1011, 2 << 30), E2h::Off), StreamWorld::NsEl1);
}

#[test]
fn overrides() {
    let of = |word1, access| {
        let lookup = overridden(&FULL, &ste(0b1011, word1), &Lookup::new(0, access));
        (lookup.access, lookup.privilege)
    };
    let user = Privilege::Unprivileged;
    assert_eq!(of(3 << 48, Access::Read), (Access::Read, Privilege::Privileged));
    assert_eq!(of(2 << 48, Access::Read), (Access::Read, user));
    assert_eq!(of(1 << 48, Access::Read), (Access::Read, user));
    assert_eq!(of(3 << 50, Access::Read), (Access::Execute, user));
    assert_eq!(of(2 << 50, Access::Execute), (Access::Read, user));
    assert_eq!(of(1 << 50, Access::Execute), (Access::Execute, user));
    // Writes stay data.
    assert_eq!(of(3 << 50, Access::Write), (Access::Write, user));
    assert_eq!(of(3 << 50, Access::Atomic), (Access::Atomic, user));
    let fixed = Identification { idr1: FULL.idr1 & !(1 << 26), ..FULL };
    let lookup = Lookup::new(0, Access::Read);
    assert_eq!(overridden(&fixed, &ste(0b1011, 3 << 48 | 3 << 50), &lookup), lookup);
    let privileged = Lookup { privilege: Privilege::Privileged, ..lookup };
    assert_eq!(overridden(&FULL, &ste(0b1011, 2 << 48), &privileged), lookup);
}
