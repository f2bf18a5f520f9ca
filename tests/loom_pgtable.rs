//! Loom runs the page-table engine itself: every interleaving of two processors on one table.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --test loom_pgtable`

#![cfg(loom)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use iommu::hwmem::{Entry, Table};
use iommu::pgtable::{
    AccessedDirty, Config, DirtyRead, Format, LiveSplit, PageSizes, PageTable, TableList, WalkerCoherency,
};
use iommu::platform::{FRAME_BYTES, Hosted, Instant, NoRegisters, Platform};
use iommu::{Error, Iova, IovaRange, PhysAddr, Prot, UnsupportedReason};
use loom::thread;

const PRESENT: u64 = 1;
const TABLE: u64 = 2;
const VISIBLE: u64 = 1 << 55;
const DIRTY: u64 = 1 << 9;
const ADDRESS: u64 = (1 << 48) - (1 << 12);
/// A table entry to where no table is: what a frame holds after it was freed.
const POISON: u64 = PRESENT | TABLE | VISIBLE | 0x1000;

/// Four entries a table, as many as a frame has under loom.
#[derive(Clone, Copy, Debug)]
struct Tiny;

impl Format for Tiny {
    const NAME: &'static str = "tiny";
    const GRANULE_LOG2: u8 = 12;
    const INDEX_BITS: u8 = 2;
    const MIN_LEVELS: u8 = 2;
    const MAX_LEVELS: u8 = 3;
    const ITEMS: &'static [u16] = &[1, 1];
    const OUTPUT_BITS: u8 = 48;
    const PRESENT: u64 = PRESENT;
    const VISIBLE: u64 = VISIBLE;
    const ACCESSED_DIRTY: u64 = DIRTY;
    const DIRTY: u64 = DIRTY;

    fn live_split(&self) -> LiveSplit {
        LiveSplit::Allowed
    }
    fn max_input_bits(levels: u8) -> u8 {
        12 + 2 * levels
    }
    fn attributes(&self, _prot: Prot) -> Result<u64, Error> {
        Ok(PRESENT)
    }
    fn leaf(&self, _level: u8, _item: u8, phys: u64, attributes: u64) -> u64 {
        phys | attributes
    }
    fn table(&self, phys: u64) -> u64 {
        phys | PRESENT | TABLE
    }
    fn is_leaf(&self, _level: u8, entry: u64) -> bool {
        entry & TABLE == 0
    }
    fn table_phys(&self, entry: u64) -> u64 {
        entry & ADDRESS
    }
    fn leaf_phys(&self, _level: u8, entry: u64) -> u64 {
        entry & ADDRESS
    }
    fn prot(&self, _entry: u64) -> Prot {
        Prot::RW
    }
    fn accessed_dirty(&self) -> AccessedDirty {
        AccessedDirty::Hardware
    }
}

/// Frames that are poisoned when freed and never used again in one model, and what was cleaned.
#[derive(Clone, Default)]
struct Frames(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    used: BTreeSet<u64>,
    freed: Vec<u64>,
    /// What memory holds, by the address of the entry.
    memory: BTreeMap<usize, u64>,
}

fn layout() -> Layout {
    Layout::from_size_align(FRAME_BYTES as usize, FRAME_BYTES as usize).unwrap()
}

impl Drop for State {
    fn drop(&mut self) {
        for frame in self.freed.iter().chain(&self.used) {
            // SAFETY: allocated with this layout, and no thread of the model is left.
            unsafe { dealloc(*frame as *mut u8, layout()) };
        }
    }
}

impl Frames {
    fn in_use(&self) -> usize {
        self.0.lock().unwrap().used.len()
    }

    /// Whether a walker that reads memory only finds the page at `iova` in two levels.
    fn walker_finds(&self, root: PhysAddr, iova: u64) -> bool {
        let memory = |table: u64, index: u64| {
            let address = table as usize + index as usize * size_of::<Entry>();
            self.0.lock().unwrap().memory.get(&address).copied()
        };
        let Some(parent) = memory(root.as_u64(), iova >> 14) else { return false };
        parent & PRESENT != 0 && memory(parent & ADDRESS, iova >> 12 & 3).is_some_and(|leaf| leaf & PRESENT != 0)
    }
}

// SAFETY: frames are handed out once, and virtual addresses serve as physical ones. A frame holds
// four of loom's atomics.
unsafe impl Platform for Frames {
    type Registers = NoRegisters;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, _last: PhysAddr) -> Option<PhysAddr> {
        assert!(order == 0 && size_of::<Entry>() * 4 <= FRAME_BYTES as usize);
        // SAFETY: the size is not zero.
        let frame = unsafe { alloc(layout()) } as u64;
        self.0.lock().unwrap().used.insert(frame);
        Some(PhysAddr::new(frame))
    }

    unsafe fn free_frames(&self, first: PhysAddr, _order: u8) {
        // SAFETY: the frame is still there.
        let table = unsafe { Table::from_phys(self, first, 0) };
        for entry in table.entries(0, table.len()) {
            entry.store(POISON);
        }
        let mut state = self.0.lock().unwrap();
        assert!(state.used.remove(&first.as_u64()), "freed twice");
        state.freed.push(first.as_u64());
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        assert!(self.0.lock().unwrap().used.contains(&phys.as_u64()), "a freed table is used");
        NonNull::new(phys.as_u64() as *mut u8).unwrap()
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<NoRegisters, Error> {
        Err(Error::Unsupported(UnsupportedReason::Operation))
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }

    fn clean(&self, start: NonNull<u8>, bytes: usize) {
        for offset in (0..bytes).step_by(size_of::<Entry>()) {
            // SAFETY: who cleans passes entries of a table in use.
            let entry = unsafe { start.add(offset).cast::<Entry>().as_ref() };
            let value = entry.load_relaxed();
            self.0.lock().unwrap().memory.insert(start.as_ptr() as usize + offset, value);
        }
    }
}

type Tables = PageTable<Tiny, Frames>;

fn new(platform: &Frames, walker: WalkerCoherency) -> Arc<Tables> {
    let config = Config { walker, ..Config::new::<Tiny>(2) };
    Arc::new(PageTable::new(platform.clone(), Tiny, config).unwrap())
}

fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::from_len(Iova::new(first << 12), count << 12).unwrap()
}

/// Where the tests map page `page`.
fn target(page: u64) -> PhysAddr {
    PhysAddr::new((page + 0x100) << 12)
}

fn map(table: &Tables, page: u64) {
    let mut stray = TableList::new();
    // SAFETY: there is no device, and each test's threads work on different pages.
    unsafe { table.map(pages(page, 1), target(page), Prot::RW, PageSizes::ALL, &mut stray) }.unwrap();
    assert!(stray.is_empty());
}

fn unmap(table: &Tables, first: u64, count: u64) {
    let mut stray = TableList::new();
    // SAFETY: as in `map`; so nothing needs to be invalidated before tables are freed.
    unsafe {
        table.unmap(pages(first, count), &mut stray).unwrap();
        table.free(stray);
    }
}

fn lookup(table: &Tables, page: u64) -> Option<PhysAddr> {
    table.iova_to_phys(Iova::new(page << 12))
}

fn two_maps(walker: WalkerCoherency) {
    loom::model(move || {
        let platform = Frames::default();
        let table = new(&platform, walker);
        let work = |page| {
            let (table, platform) = (table.clone(), platform.clone());
            move || {
                map(&table, page);
                // A device may use the page now: the walker must find the way to it.
                if walker == WalkerCoherency::NeedsClean {
                    assert!(platform.walker_finds(table.root(), page << 12));
                }
            }
        };
        let other = thread::spawn(work(1));
        work(2)();
        other.join().unwrap();
        assert_eq!((lookup(&table, 1), lookup(&table, 2)), (Some(target(1)), Some(target(2))));
        assert_eq!(platform.in_use(), 2, "the loser's table is freed");
        drop(table);
        assert_eq!(platform.in_use(), 0);
    });
}

#[test]
fn two_maps_race_for_one_table() {
    two_maps(WalkerCoherency::Snoops);
}

#[test]
fn two_maps_race_for_one_table_that_must_be_cleaned() {
    two_maps(WalkerCoherency::NeedsClean);
}

#[test]
fn map_beside_unmap_of_a_neighbour() {
    loom::model(|| {
        let platform = Frames::default();
        let table = new(&platform, WalkerCoherency::Snoops);
        map(&table, 1);
        let other = {
            let table = table.clone();
            thread::spawn(move || unmap(&table, 1, 1))
        };
        map(&table, 2);
        other.join().unwrap();
        assert_eq!((lookup(&table, 1), lookup(&table, 2)), (None, Some(target(2))));
    });
}

#[test]
fn map_beside_unmap_of_a_neighbouring_table() {
    loom::model(|| {
        let platform = Frames::default();
        let table = new(&platform, WalkerCoherency::Snoops);
        map(&table, 1);
        let other = {
            let table = table.clone();
            thread::spawn(move || unmap(&table, 0, 4))
        };
        map(&table, 5);
        other.join().unwrap();
        assert_eq!((lookup(&table, 1), lookup(&table, 5)), (None, Some(target(5))));
        assert_eq!(platform.in_use(), 2);
    });
}

#[test]
fn a_reader_beside_unmap_and_free() {
    loom::model(|| {
        let platform = Frames::default();
        let table = new(&platform, WalkerCoherency::Snoops);
        map(&table, 1);
        let other = {
            let table = table.clone();
            thread::spawn(move || unmap(&table, 0, 4))
        };
        let found = lookup(&table, 1);
        assert!(found.is_none() || found == Some(target(1)));
        other.join().unwrap();
        assert_eq!(lookup(&table, 1), None);
        assert_eq!(platform.in_use(), 1, "a parked table is freed when the last reader leaves");
    });
}

#[test]
fn two_readers_beside_unmap_and_free() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let platform = Frames::default();
        let table = new(&platform, WalkerCoherency::Snoops);
        map(&table, 1);
        let threads = [0, 1].map(|number| {
            let table = table.clone();
            thread::spawn(move || match number {
                0 => unmap(&table, 0, 4),
                _ => assert!(lookup(&table, 1).is_none_or(|found| found == target(1))),
            })
        });
        assert!(lookup(&table, 1).is_none_or(|found| found == target(1)));
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(platform.in_use(), 1);
    });
}

/// What hardware does when a device writes a page whose table stays: it sets the bit of the leaf, unless
/// it is set. Whether it set it.
fn write(platform: &Frames, table: &Tables, page: u64) -> bool {
    // SAFETY: the root, and a table that another page of the test keeps, are not freed meanwhile.
    let leaves = unsafe {
        let parent = Table::from_phys(platform, table.root(), 0).entry((page >> 2) as usize).load();
        Table::from_phys(platform, PhysAddr::new(parent & ADDRESS), 0)
    };
    let leaf = leaves.entry((page & 3) as usize);
    loop {
        let found = leaf.load();
        if found & PRESENT == 0 || found & DIRTY != 0 {
            return false;
        }
        if leaf.compare_exchange(found, found | DIRTY).is_ok() {
            return true;
        }
    }
}

/// How often page `page` is reported as written; its record is cleared.
fn reported(table: &Tables, page: u64) -> usize {
    let mut reported = 0;
    match table.read_dirty(pages(page, 1), DirtyRead::Clear, &mut |_| reported += 1) {
        Ok(()) | Err(Error::NotMapped { .. }) => reported,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_write_beside_the_read_of_it_is_reported_once() {
    loom::model(|| {
        let platform = Frames::default();
        let table = new(&platform, WalkerCoherency::Snoops);
        map(&table, 1);
        let hardware = {
            let (platform, table) = (platform.clone(), table.clone());
            thread::spawn(move || [(); 2].map(|()| write(&platform, &table, 1)))
        };
        let first = reported(&table, 1);
        let set = hardware.join().unwrap().into_iter().filter(|set| *set).count();
        assert_eq!(first + reported(&table, 1), set);
    });
}

#[test]
fn a_page_that_is_unmapped_beside_the_read_of_it_stays_unmapped() {
    loom::model(|| {
        let platform = Frames::default();
        let table = new(&platform, WalkerCoherency::Snoops);
        map(&table, 1);
        map(&table, 2);
        assert!(write(&platform, &table, 1));
        let other = {
            let table = table.clone();
            thread::spawn(move || unmap(&table, 1, 1))
        };
        let seen = reported(&table, 1);
        other.join().unwrap();
        assert!(seen <= 1);
        assert_eq!((lookup(&table, 1), lookup(&table, 2)), (None, Some(target(2))));
    });
}

#[test]
fn a_table_that_is_freed_beside_the_read_of_it_is_not_touched() {
    loom::model(|| {
        let platform = Frames::default();
        let table = new(&platform, WalkerCoherency::Snoops);
        map(&table, 1);
        assert!(write(&platform, &table, 1));
        let other = {
            let table = table.clone();
            thread::spawn(move || unmap(&table, 0, 4))
        };
        assert!(reported(&table, 1) <= 1);
        other.join().unwrap();
        assert_eq!((lookup(&table, 1), platform.in_use()), (None, 1));
    });
}
