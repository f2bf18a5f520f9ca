//! Stream tables as a walker finds them that does not snoop.

extern crate std;
use std::cell::{Cell, RefCell};
use std::vec::Vec;

use super::{Levels, MAX_STREAM_ID_BITS, StreamTable};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::driver::slot::EntrySync;
use crate::arch::smmuv3::driver::update::Passage;
use crate::arch::smmuv3::layout::commands::Leaf;
use crate::arch::smmuv3::layout::registers::StreamTableFormat;
use crate::arch::smmuv3::layout::stream_table::CdTableFormat;
use crate::arch::smmuv3::layout::{L1Std, Ste, StreamId};
use crate::error::{Error, InvalidReason, Result};
use crate::hwmem::Visibility;
use crate::hwmem::testing::{Memory, Pairs};
use crate::pgtable::WalkerCoherency;

const STAGE1: Ste = Ste::stage1(PhysAddr::new(0x8_5000), CdTableFormat::Linear, 0);

fn visibility(platform: &Memory) -> Visibility<Memory> {
    Visibility { platform: platform.clone(), coherency: WalkerCoherency::NeedsClean, last: PhysAddr::new(u64::MAX) }
}

fn table(platform: &Memory, bits: u8, levels: Levels) -> StreamTable<Memory> {
    StreamTable::new(visibility(platform), bits, levels).unwrap()
}

/// What hardware finds for a stream (3.3.1), in what was written back; `None` if it has no STE.
fn walk(platform: &Memory, table: &StreamTable<Memory>, stream: StreamId) -> Option<Ste> {
    let (base, config) = (table.base().address().as_u64(), table.config());
    if u64::from(stream.0) >> config.log2_size() != 0 {
        return None;
    }
    let index = u64::from(stream.0);
    let entry = match config.format() {
        StreamTableFormat::Linear => base + index * 64,
        StreamTableFormat::TwoLevel { split } => {
            let descriptor = L1Std(platform.written_back(PhysAddr::new(base + (index >> split) * 8)));
            let entries = descriptor.entries_log2()?;
            let entry = index & ((1 << split) - 1);
            assert!(entries <= split);
            assert_eq!(descriptor.table().as_u64() % (64 << entries), 0);
            (entry >> entries == 0).then_some(descriptor.table().as_u64() + entry * 64)?
        }
    };
    Some(Ste { words: core::array::from_fn(|word| platform.written_back(PhysAddr::new(entry + word as u64 * 8))) })
}

/// What was told to the unit, and what it would have found then.
#[derive(Default)]
struct Syncs {
    seen: RefCell<Vec<(Leaf, Option<Ste>)>>,
    fail: Cell<Option<usize>>,
}

struct Watch<'a> {
    platform: &'a Memory,
    table: &'a StreamTable<Memory>,
    syncs: &'a Syncs,
    also: &'a dyn Fn(usize),
}

impl EntrySync for Watch<'_> {
    fn ste(&self, stream: StreamId, leaf: Leaf) -> Result<()> {
        let mut seen = self.syncs.seen.borrow_mut();
        if self.syncs.fail.get() == Some(seen.len()) {
            return Err(Error::Fenced);
        }
        seen.push((leaf, walk(self.platform, self.table, stream)));
        (self.also)(seen.len());
        Ok(())
    }

    fn cd(&self, _stream: StreamId, _substream: u32, _leaf: Leaf) -> Result<()> {
        panic!("no CD was touched");
    }
}

fn watch<'a>(platform: &'a Memory, table: &'a StreamTable<Memory>, syncs: &'a Syncs) -> Watch<'a> {
    Watch { platform, table, syncs, also: &|_| {} }
}

#[test]
fn tables_are_as_large_as_their_streams_need() {
    use StreamTableFormat::{Linear, TwoLevel};
    for (bits, levels, format, frames, leaf) in [
        (0, Levels::OneOrTwo, Linear, 1, 0),
        (6, Levels::OneOrTwo, Linear, 1, 0),
        (7, Levels::OneOrTwo, TwoLevel { split: 6 }, 1, 1),
        (15, Levels::OneOrTwo, TwoLevel { split: 6 }, 1, 1),
        (16, Levels::OneOrTwo, TwoLevel { split: 8 }, 1, 4),
        (17, Levels::OneOrTwo, TwoLevel { split: 8 }, 1, 4),
        (20, Levels::OneOrTwo, TwoLevel { split: 8 }, 8, 4),
        (8, Levels::One, Linear, 4, 0),
        (11, Levels::One, Linear, 32, 0),
    ] {
        let platform = Memory::new(Pairs::Refused);
        let table = table(&platform, bits, levels);
        assert_eq!((table.config().format(), table.config().log2_size()), (format, bits), "{bits} bits");
        assert_eq!(platform.in_use(), frames, "{bits} bits");
        let (last, syncs) = (StreamId((1 << bits) - 1), Syncs::default());
        assert!(table.covers(last) && !table.covers(StreamId(last.0 + 1)));
        table.replace(last, STAGE1, &watch(&platform, &table, &syncs)).unwrap();
        assert_eq!(platform.in_use(), frames + leaf, "{bits} bits");
        assert_eq!(walk(&platform, &table, last), Some(STAGE1));
        let beyond = StreamId(last.0 + 1);
        assert!(table.find(beyond).is_none());
        let refused = table.replace(beyond, STAGE1, &watch(&platform, &table, &syncs));
        assert_eq!(refused, Err(Error::Invalid(InvalidReason::SourceId)));
        drop(table);
        assert_eq!(platform.in_use(), 0);
    }
}

#[test]
fn large_tables_have_large_leaves_and_an_end() {
    use super::split;
    assert_eq!([25, 26, 27].map(|bits| split(bits, Levels::OneOrTwo)), [Some(8), Some(10), Some(10)]);
    // Two levels of 32 bits: 1 MiB of descriptors are asked for, which this platform does not have.
    let platform = Memory::new(Pairs::Refused);
    let refused = StreamTable::new(visibility(&platform), 32, Levels::OneOrTwo);
    assert_eq!(refused.err(), Some(Error::NoMemory));
    assert_eq!(8u64 << (MAX_STREAM_ID_BITS - 10), 1 << 20);
}

#[test]
fn a_second_table_is_whole_before_it_is_found() {
    let platform = Memory::new(Pairs::Refused);
    let (table, syncs) = (table(&platform, 16, Levels::OneOrTwo), Syncs::default());
    let [stream, neighbour, stranger] = [0x123, 0x1ff, 0x223].map(StreamId);
    assert_eq!(walk(&platform, &table, stream), None);
    // Who finds the table before the unit was told of it tells the unit, too.
    let also = |count| {
        let syncs = Syncs::default();
        if count == 1 {
            assert_eq!(walk(&platform, &table, neighbour), Some(Ste::abort()));
            table.replace(neighbour, STAGE1, &watch(&platform, &table, &syncs)).unwrap();
            assert!(syncs.seen.take().iter().all(|(leaf, _)| *leaf == Leaf::AllLevels));
        }
    };
    table.replace(stream, STAGE1, &Watch { also: &also, ..watch(&platform, &table, &syncs) }).unwrap();
    let seen = syncs.seen.take();
    assert!(seen.iter().all(|(leaf, _)| *leaf == Leaf::AllLevels));
    assert_eq!(seen.len(), 2, "what was unused, the turn");
    table.replace(neighbour, STAGE1.with_stalls_disabled(), &watch(&platform, &table, &syncs)).unwrap();
    assert!(syncs.seen.take().iter().all(|(leaf, _)| *leaf == Leaf::Only));
    let met = [stream, neighbour, stranger].map(|of| walk(&platform, &table, of));
    assert_eq!(met, [Some(STAGE1), Some(STAGE1.with_stalls_disabled()), None]);
}

#[test]
fn no_table_lies_beyond_what_the_unit_reaches() {
    let platform = Memory::new(Pairs::Refused);
    let nowhere = || Visibility { last: PhysAddr::new(0xfff), ..visibility(&platform) };
    for levels in [Levels::One, Levels::OneOrTwo] {
        assert_eq!(StreamTable::new(nowhere(), 11, levels).err(), Some(Error::NoMemory));
    }
    // Of two levels, both.
    let reached = Visibility { last: table(&platform, 11, Levels::OneOrTwo).base().address(), ..visibility(&platform) };
    let last = PhysAddr::new(reached.last.as_u64() | 0xfff);
    let table = StreamTable::new(Visibility { last, ..reached }, 11, Levels::OneOrTwo).unwrap();
    assert!(table.base().address() <= last);
    let refused = table.replace(StreamId(1), STAGE1, &watch(&platform, &table, &Syncs::default()));
    assert_eq!(refused, Err(Error::NoMemory));
}

#[test]
fn every_allocation_may_fail() {
    let platform = Memory::new(Pairs::Refused);
    for nth in 0..=2 {
        platform.fail_nth(nth);
        let made = StreamTable::new(visibility(&platform), 16, Levels::OneOrTwo).and_then(|table| {
            let syncs = Syncs::default();
            let done = table.replace(StreamId(7), STAGE1, &watch(&platform, &table, &syncs));
            if done.is_err() {
                assert_eq!(walk(&platform, &table, StreamId(7)), None);
                assert!(syncs.seen.take().is_empty());
            }
            done
        });
        assert_eq!(made, if nth < 2 { Err(Error::NoMemory) } else { Ok(Passage::Hitless) });
        assert_eq!(platform.in_use(), 0);
    }
}

#[test]
fn a_fenced_stream_stays_blocked_until_it_is_let_through() {
    let platform = Memory::new(Pairs::Refused);
    let table = table(&platform, 16, Levels::OneOrTwo);
    let (stream, syncs) = (StreamId(0x88), Syncs::default());
    let watch = watch(&platform, &table, &syncs);
    let seen = || walk(&platform, &table, stream).unwrap();
    table.replace(stream, STAGE1, &watch).unwrap();
    let slot = table.find(stream).unwrap();
    assert!(slot.fence());
    assert!(!slot.fence(), "twice is once");
    assert!(!seen().is_valid());
    assert_eq!(table.replace(stream, Ste::bypass(), &watch), Err(Error::Fenced));
    slot.unfence();
    assert_eq!(seen(), STAGE1);
    slot.unfence();
    assert_eq!(seen(), STAGE1);
    slot.fence();
    slot.drop_fence();
    slot.unfence();
    assert!(!seen().is_valid());
    assert_eq!(table.replace(stream, Ste::abort(), &watch), Ok(Passage::Hitless));
    assert_eq!(seen(), Ste::abort());
}

#[test]
fn a_fence_amid_an_update_wins() {
    // At each sync of an update that takes three, and of one that passes through V = 0.
    let mut blocked = STAGE1;
    blocked.words[0] += 0x1_0000;
    for (new, expected) in [(Ste::bypass(), 2), (blocked.with_stalls_disabled(), 3)] {
        for at in 1..=expected {
            let platform = Memory::new(Pairs::Refused);
            let table = table(&platform, 4, Levels::One);
            let (stream, syncs) = (StreamId(3), Syncs::default());
            table.replace(stream, STAGE1, &watch(&platform, &table, &syncs)).unwrap();
            syncs.seen.take();
            let also = |count| {
                if count == at {
                    table.find(stream).unwrap().fence();
                }
            };
            let result = table.replace(stream, new, &Watch { also: &also, ..watch(&platform, &table, &syncs) });
            let left = walk(&platform, &table, stream).unwrap();
            assert!(result.is_err() || !left.is_valid() || at < expected, "{at} of {expected}");
            if result.is_err() {
                assert_eq!(result, Err(Error::Fenced));
                table.find(stream).unwrap().unfence();
                assert!(!walk(&platform, &table, stream).unwrap().is_valid(), "half an entry is not let through");
            }
        }
    }
}

#[test]
fn a_sync_that_fails_leaves_nothing_valid() {
    for (old, new) in [(STAGE1, Ste::bypass()), (Ste::abort(), STAGE1), (STAGE1, STAGE1.with_stalls_disabled())] {
        for failing in 0..3 {
            let platform = Memory::new(Pairs::Refused);
            let table = table(&platform, 4, Levels::One);
            let (stream, syncs) = (StreamId(3), Syncs::default());
            table.replace(stream, old, &watch(&platform, &table, &syncs)).unwrap();
            syncs.seen.take();
            syncs.fail.set(Some(failing));
            let result = table.replace(stream, new, &watch(&platform, &table, &syncs));
            assert_eq!(result.is_ok(), walk(&platform, &table, stream).unwrap().is_valid());
            let done = syncs.seen.take().len();
            assert!(if result.is_ok() { done <= failing } else { done == failing });
        }
    }
}

#[test]
fn a_walker_that_snoops_needs_no_clean() {
    let platform = Memory::new(Pairs::Refused);
    let visibility =
        Visibility { platform: platform.clone(), coherency: WalkerCoherency::Snoops, last: PhysAddr::new(u64::MAX) };
    let table = StreamTable::new(visibility, 16, Levels::OneOrTwo).unwrap();
    struct Nothing;
    impl EntrySync for Nothing {
        fn ste(&self, _stream: StreamId, _leaf: Leaf) -> Result<()> {
            Ok(())
        }

        fn cd(&self, _stream: StreamId, _substream: u32, _leaf: Leaf) -> Result<()> {
            Ok(())
        }
    }
    table.replace(StreamId(1), STAGE1, &Nothing).unwrap();
    table.find(StreamId(1)).unwrap().fence();
    assert!(!platform.has_cleaned());
}
