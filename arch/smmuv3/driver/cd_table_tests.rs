//! CD tables as a walker finds them that does not snoop.

extern crate std;
use std::cell::{Cell, RefCell};
use std::vec::Vec;

use super::{CdTable, Failed, Replaced, replace_default};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::driver::slot::EntrySync;
use crate::arch::smmuv3::driver::stream_table::{Levels, StreamTable};
use crate::arch::smmuv3::driver::update::Passage;
use crate::arch::smmuv3::layout::commands::Leaf;
use crate::arch::smmuv3::layout::stream_table::{CdTableFormat, DefaultSubstream};
use crate::arch::smmuv3::layout::{Asid, Cd, Granule, L1Cd, Ste, StreamId};
use crate::error::{Error, InvalidReason, Result};
use crate::hwmem::Visibility;
use crate::hwmem::testing::{Memory, Pairs};
use crate::pgtable::WalkerCoherency;

const STREAM: StreamId = StreamId(0x21);
const ONE: Cd = Cd::new(Asid(1), PhysAddr::new(0x8_6000), Granule::Size4K, 48, 44);
const TWO: Cd = Cd::new(Asid(2), PhysAddr::new(0x9_6000), Granule::Size4K, 48, 44);

fn visibility(platform: &Memory) -> Visibility<Memory> {
    Visibility { platform: platform.clone(), coherency: WalkerCoherency::NeedsClean, last: PhysAddr::new(u64::MAX) }
}

fn table(platform: &Memory, bits: u8) -> CdTable<Memory> {
    CdTable::new(visibility(platform), bits, Levels::OneOrTwo).unwrap()
}

/// What hardware finds for a substream (3.3.2) through an STE, in what was written back.
fn walk(platform: &Memory, ste: Ste, substream: u32) -> Option<Cd> {
    let (base, index) = (ste.cd_table().as_u64(), u64::from(substream));
    if index >> ste.cd_max() != 0 {
        return None;
    }
    let cd = match ste.cd_format().split().filter(|_| ste.cd_max() > 0) {
        None => base + index * 64,
        Some(split) => {
            let descriptor = L1Cd(platform.written_back(PhysAddr::new(base + (index >> split) * 8)));
            let table = descriptor.table()?.as_u64();
            assert_eq!(table % (64 << split), 0);
            table + (index & ((1 << split) - 1)) * 64
        }
    };
    Some(Cd { words: core::array::from_fn(|word| platform.written_back(PhysAddr::new(cd + word as u64 * 8))) })
}

/// What the unit was told: an STE, or the CD of a substream.
type Told = (Option<u32>, Leaf);

#[derive(Default)]
struct Syncs<'a> {
    told: RefCell<Vec<Told>>,
    also: Option<&'a dyn Fn(Told)>,
    fail: Cell<bool>,
}

impl Syncs<'_> {
    fn tell(&self, stream: StreamId, told: Told) -> Result<()> {
        assert_eq!(stream, STREAM);
        if self.fail.get() {
            return Err(Error::Fenced);
        }
        self.told.borrow_mut().push(told);
        self.also.iter().for_each(|also| also(told));
        Ok(())
    }
}

impl EntrySync for Syncs<'_> {
    fn ste(&self, stream: StreamId, leaf: Leaf) -> Result<()> {
        self.tell(stream, (None, leaf))
    }

    fn cd(&self, stream: StreamId, substream: u32, leaf: Leaf) -> Result<()> {
        self.tell(stream, (Some(substream), leaf))
    }
}

#[test]
fn tables_are_as_large_as_their_substreams_need() {
    use CdTableFormat::{Linear, TwoLevel4K, TwoLevel64K};
    for (bits, levels, format, frames, leaf) in [
        (0, Levels::OneOrTwo, Linear, 1, 0),
        (6, Levels::OneOrTwo, Linear, 1, 0),
        (7, Levels::OneOrTwo, TwoLevel4K, 1, 1),
        (15, Levels::OneOrTwo, TwoLevel4K, 1, 1),
        (16, Levels::OneOrTwo, TwoLevel64K, 1, 16),
        (20, Levels::OneOrTwo, TwoLevel64K, 2, 16),
        (10, Levels::One, Linear, 16, 0),
    ] {
        let platform = Memory::new(Pairs::Refused);
        let (table, syncs) = (CdTable::new(visibility(&platform), bits, levels).unwrap(), Syncs::default());
        let ste = table.stream_entry();
        assert_eq!((ste.cd_format(), ste.cd_max(), platform.in_use()), (format, bits, frames), "{bits} bits");
        let last = (1 << bits) - 1;
        assert_eq!(table.read(last), Cd::default());
        table.write(Some(STREAM), last, ONE, &syncs).unwrap();
        assert_eq!(walk(&platform, ste, last), Some(ONE));
        assert_eq!(platform.in_use(), frames + leaf);
        assert_eq!(table.read(last), ONE);
        assert_eq!(table.read(last + 1), Cd::default());
        let beyond = table.write(Some(STREAM), last + 1, ONE, &syncs);
        assert_eq!(beyond, Err(Error::Invalid(InvalidReason::Pasid)));
        drop(table);
        assert_eq!(platform.in_use(), 0);
    }
    let platform = Memory::new(Pairs::Refused);
    for levels in [Levels::One, Levels::OneOrTwo] {
        let refused = CdTable::new(visibility(&platform), 21, levels);
        assert_eq!(refused.err(), Some(Error::Invalid(InvalidReason::Pasid)));
    }
}

#[test]
fn how_cds_are_read_follows_from_coherency() {
    let platform = Memory::new(Pairs::Refused);
    let snooping =
        Visibility { platform: platform.clone(), coherency: WalkerCoherency::Snoops, last: PhysAddr::new(u64::MAX) };
    let snooping = CdTable::new(snooping, 0, Levels::One).unwrap();
    assert_eq!(snooping.stream_entry().words[1] & 0xfc, 0b11_01_01 << 2);
    assert_eq!(table(&platform, 0).stream_entry().words[1] & 0xfc, 0b10_00_00 << 2);
}

#[test]
fn the_descriptor_of_a_new_table_comes_first() {
    let platform = Memory::new(Pairs::Refused);
    let table = table(&platform, 12);
    let ste = table.stream_entry();
    let also = |(substream, leaf): Told| {
        if leaf == Leaf::AllLevels {
            assert_eq!(walk(&platform, ste, substream.unwrap()), Some(Cd::default()));
        }
    };
    let syncs = Syncs { also: Some(&also), ..Syncs::default() };
    assert_eq!(walk(&platform, ste, 100), None);
    assert_eq!(table.write(Some(STREAM), 100, Cd::default(), &syncs), Ok(Passage::Hitless));
    assert_eq!((syncs.told.take(), platform.in_use()), (Vec::new(), 1), "no table for nothing");
    table.write(Some(STREAM), 100, ONE, &syncs).unwrap();
    let only = (Some(100), Leaf::Only);
    assert_eq!(syncs.told.take(), [(Some(100), Leaf::AllLevels), only, only]);
    table.write(Some(STREAM), 101, ONE, &syncs).unwrap();
    assert_eq!(syncs.told.take(), [(Some(101), Leaf::Only); 2]);
    assert_eq!(table.write(Some(STREAM), 101, TWO, &syncs), Ok(Passage::Blocked));
    assert_eq!(syncs.told.take(), [(Some(101), Leaf::Only); 3]);
    // Nobody need be told of what cannot be reached.
    table.write(None, 102, ONE, &syncs).unwrap();
    assert_eq!((syncs.told.take(), walk(&platform, ste, 102)), (Vec::new(), Some(ONE)));
}

#[test]
fn substreams_are_counted() {
    let platform = Memory::new(Pairs::Refused);
    let (table, syncs) = (table(&platform, 8), Syncs::default());
    let write = |substream, cd| table.write(Some(STREAM), substream, cd, &syncs);
    write(0, ONE).unwrap();
    assert!(!table.has_substreams());
    write(1, ONE).unwrap();
    write(200, ONE).unwrap();
    write(1, TWO).unwrap();
    write(1, TWO.released()).unwrap();
    write(1, Cd::default()).unwrap();
    assert!(table.has_substreams());
    syncs.fail.set(true);
    assert_eq!(write(200, TWO), Err(Error::Fenced));
    assert!(!table.read(200).is_valid());
    assert!(!table.has_substreams());
}

/// A stream with ONE, whose table has this many bits.
fn attached(platform: &Memory, bits: u8) -> (StreamTable<Memory>, CdTable<Memory>) {
    let streams = StreamTable::new(visibility(platform), 6, Levels::One).unwrap();
    let cds = table(platform, bits);
    cds.write(None, 0, ONE, &Syncs::default()).unwrap();
    let ste = cds.stream_entry().with_default_substream(DefaultSubstream::Substream0).with_stalls_disabled();
    streams.replace(STREAM, ste, &Syncs::default()).unwrap();
    (streams, cds)
}

/// What the stream's requests without SubstreamID meet.
fn met(platform: &Memory, streams: &StreamTable<Memory>) -> Cd {
    let entry = streams.base().address().as_u64() + u64::from(STREAM.0) * 64;
    let ste = Ste { words: core::array::from_fn(|word| platform.written_back(PhysAddr::new(entry + word as u64 * 8))) };
    assert!(ste.is_valid() && ste.disables_stalls());
    walk(platform, ste, 0).unwrap()
}

#[test]
fn stage_1_is_replaced_without_a_gap() {
    for bits in [0, 4, 12, 16] {
        let platform = Memory::new(Pairs::Refused);
        let (streams, mut cds) = attached(&platform, bits);
        let frames = platform.in_use();
        for (old, new) in [(ONE, TWO), (TWO, ONE)] {
            let also = |_: Told| assert!([old, new].contains(&met(&platform, &streams)));
            let syncs = Syncs { also: Some(&also), ..Syncs::default() };
            assert_eq!(met(&platform, &streams), old);
            match replace_default(&streams, STREAM, &cds, new, &syncs) {
                Ok(Replaced::Moved(next)) => cds = next,
                other => panic!("{other:?}"),
            }
            assert_eq!((met(&platform, &streams), cds.read(0)), (new, new));
            assert_eq!(syncs.told.take(), [(None, Leaf::Only)]);
            assert_eq!(platform.in_use(), frames);
        }
    }
}

#[test]
fn a_table_in_use_stays() {
    let platform = Memory::new(Pairs::Refused);
    let (streams, cds) = attached(&platform, 8);
    let syncs = Syncs::default();
    cds.write(Some(STREAM), 5, ONE, &syncs).unwrap();
    let blocked = Cell::new(false);
    let also = |_: Told| blocked.set(blocked.get() || !met(&platform, &streams).is_valid());
    let replaced = replace_default(&streams, STREAM, &cds, TWO, &Syncs { also: Some(&also), ..Syncs::default() });
    assert!(matches!(replaced, Ok(Replaced::InPlace)) && blocked.take(), "{replaced:?}");
    // And where one store does, there is no reason for another table.
    cds.write(Some(STREAM), 5, Cd::default(), &syncs).unwrap();
    let replaced =
        replace_default(&streams, STREAM, &cds, TWO.released(), &Syncs { also: Some(&also), ..Syncs::default() });
    assert!(matches!(replaced, Ok(Replaced::InPlace)) && !blocked.get(), "{replaced:?}");
}

#[test]
fn a_replacement_that_fails_leaves_nothing_loose() {
    let platform = Memory::new(Pairs::Refused);
    let (streams, cds) = attached(&platform, 12);
    let frames = platform.in_use();
    for nth in 0..2 {
        platform.fail_nth(nth);
        let failed = replace_default(&streams, STREAM, &cds, TWO, &Syncs::default());
        assert!(matches!(failed, Err(Failed { error: Error::NoMemory, kept: None })), "{failed:?}");
        assert_eq!((met(&platform, &streams), platform.in_use()), (ONE, frames));
    }
    platform.fail_nth(-1);
    let syncs = Syncs { fail: Cell::new(true), ..Syncs::default() };
    let failed = replace_default(&streams, STREAM, &cds, TWO, &syncs);
    assert!(matches!(failed, Err(Failed { error: Error::Fenced, kept: Some(_) })), "{failed:?}");
    assert!(!streams.find(STREAM).unwrap().read().is_valid());
    assert_eq!(platform.in_use(), frames + 2, "the unit may have fetched it");
    drop(failed);
    assert_eq!(platform.in_use(), frames);
}
