//! The page table against the oracle of its test suite: any operations in any order, in several
//! formats, with allocations that fail.
#![no_main]
#![allow(dead_code)] // the suite's helpers offer more than is used here

#[path = "../../tests/pgtable/formats.rs"]
mod formats;
#[path = "../../tests/pgtable/model.rs"]
mod model;
#[path = "../../tests/pgtable/platform.rs"]
mod platform;
#[path = "../../tests/pgtable/setup.rs"]
mod setup;

use arbitrary::Arbitrary;
use iommu::pgtable::LpaeStage::{self, One, Two};
use iommu::pgtable::{Format, LiveSplit, Lpae, MapError, PageSizes, SecondStage, TableList, WalkerCoherency, X86_64};
use iommu::{Error, IovaRange, PhysAddr, Prot};
use libfuzzer_sys::fuzz_target;

use formats::{Identical, Middle, Upper};
use setup::{BREAK, Setup, Shape, range};

#[derive(Arbitrary, Debug)]
struct Input {
    format: u8,
    walker_snoops: bool,
    operations: Vec<Operation>,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    /// To an address with the same alignment, or `Some` pages beyond it.
    Map {
        at: Place,
        writable: bool,
        beyond: Option<u16>,
    },
    /// The same with so many allocations that succeed.
    MapWithLittleMemory {
        at: Place,
        budget: u8,
    },
    Unmap {
        at: Place,
    },
    Protect {
        at: Place,
        writable: bool,
    },
    Cut {
        at: Place,
    },
    UnmapAll,
}

/// A few pages of one size around one of four anchors, and some of the smallest more or less.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Place {
    anchor: u8,
    size: u8,
    pages: u8,
    skip: u8,
    extra: u8,
}

/// More pages than that are not split or mapped one by one.
const MOST_PAGES: u64 = 1500;
/// Operations of one run.
const MOST_OPERATIONS: usize = 60;

fuzz_target!(|input: Input| {
    let walker = if input.walker_snoops { WalkerCoherency::Snoops } else { WalkerCoherency::NeedsClean };
    match input.format % 12 {
        0 => run(SecondStage::default(), 3, walker, &input.operations),
        1 => run(SecondStage::default(), 4, walker, &input.operations),
        2 => run(X86_64::default(), 4, walker, &input.operations),
        3 => run(Upper, 4, walker, &input.operations),
        4 => run(Middle, 2, walker, &input.operations),
        5 => lpae::<12>(Lpae::new(One), 48, walker, &input.operations),
        6 => lpae::<12>(Lpae::new(Two), 40, walker, &input.operations),
        7 => lpae::<14>(Lpae::new(One), 47, walker, &input.operations),
        8 => lpae::<14>(freely(Two), 48, walker, &input.operations),
        9 => lpae::<16>(freely(One), 52, walker, &input.operations),
        10 => lpae::<16>(Lpae::new(Two), 46, walker, &input.operations),
        _ => run(Identical, 3, walker, &input.operations),
    }
});

/// A format that may change the size of pages in use.
fn freely<const G: u8>(stage: LpaeStage) -> Lpae<G> {
    Lpae { live_split: LiveSplit::Allowed, ..Lpae::new(stage) }
}

fn lpae<const G: u8>(format: Lpae<G>, input_bits: u8, walker: WalkerCoherency, operations: &[Operation]) {
    run(format, format.config(input_bits, if input_bits == 52 { 52 } else { 48 }), walker, operations);
}

fn run<F: Format>(format: F, shape: impl Shape, walker: WalkerCoherency, operations: &[Operation]) {
    let mut setup = Setup::new(format, shape.config(&format), walker);
    for operation in operations.iter().take(MOST_OPERATIONS) {
        apply(&mut setup, operation);
    }
    setup.finish();
}

fn apply<F: Format>(setup: &mut Setup<F>, operation: &Operation) {
    let prot = |writable| if writable { Prot::RW } else { Prot::READ };
    match *operation {
        Operation::Map { at, writable, beyond } => {
            let at = place(setup, at);
            let few = at.bytes().is_some_and(|bytes| bytes / setup.granule() <= MOST_PAGES);
            let beyond = if few { beyond.map_or(0, u64::from) * setup.granule() } else { 0 };
            let _ = setup.map(at, same(at) + beyond, prot(writable));
        }
        Operation::MapWithLittleMemory { at, budget } => {
            let at = place(setup, at);
            setup.platform.set_budget(Some(budget.into()));
            let mut stray = TableList::new();
            // SAFETY: no device uses the table, and this is the only thread.
            let result = unsafe { setup.table.map(at, PhysAddr::new(same(at)), Prot::RW, PageSizes::ALL, &mut stray) };
            setup.platform.set_budget(None);
            // SAFETY: as above.
            unsafe { setup.table.free(stray) };
            if result == Err(MapError::from(Error::NoMemory)) || result == Err(BREAK) {
                setup.check();
            } else {
                let expected = setup.model.map(at, same(at), Prot::RW, setup.table.page_sizes());
                assert_eq!(result.map_err(|failed| failed.error), expected);
            }
        }
        Operation::Unmap { at } => drop_result(setup.unmap(place(setup, at))),
        Operation::Protect { at, writable } => drop_result(setup.protect(place(setup, at), prot(writable))),
        Operation::Cut { at } => {
            if setup.table.format().live_split() == LiveSplit::Allowed && (setup.model.pages.len() as u64) < MOST_PAGES
            {
                setup.cut(place(setup, at));
            }
        }
        Operation::UnmapAll => drop_result(setup.unmap(setup.table.range())),
    }
    if let Operation::Map { at, .. } | Operation::Unmap { at } | Operation::Cut { at } = *operation {
        let at = place(setup, at);
        setup.probe(at.start().as_u64());
        setup.probe(at.last().as_u64());
    }
}

fn drop_result(result: Result<(), Error>) {
    // Table and oracle agreed; both outcomes are fine.
    let _ = result;
}

/// An address as well aligned as the IOVA, that every format can express.
fn same(at: IovaRange) -> u64 {
    at.start().as_u64() & ((1 << 40) - 1)
}

fn place<F: Format>(setup: &Setup<F>, place: Place) -> IovaRange {
    let (start, last, granule) = (setup.start(), setup.last(), setup.granule());
    let sizes: Vec<u64> = setup.table.page_sizes().iter().map(|size| size.bytes()).collect();
    let size = sizes[usize::from(place.size) % sizes.len()];
    let pages = 1 + u64::from(place.pages % 4);
    let anchor = match place.anchor % 4 {
        0 => start,
        1 => start + (last - start) / 2 + 1,
        2 => start + (last - start) / 8 + 1,
        _ => last - (pages * size - 1),
    };
    let first = anchor.saturating_add(u64::from(place.skip % 8) * granule).min(last - (granule - 1));
    let bytes = match place.extra % 4 {
        0 => pages * size + granule,
        1 => (pages * size - granule).max(granule),
        _ => pages * size,
    };
    range(first, bytes.min(last - first + 1))
}
