//! Loom models of STEs and CDs that change, beside a unit that reads them word by word, and beside
//! fences. `RUSTFLAGS="--cfg loom" cargo test --release --test loom_smmuv3_ste`.
#![cfg(all(feature = "smmuv3", loom))]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use iommu::arch::smmuv3::driver::{EntrySync, OneStream, Passage};
use iommu::arch::smmuv3::layout::commands::Leaf;
use iommu::arch::smmuv3::layout::stream_table::{CdTableFormat, Stage2};
use iommu::arch::smmuv3::layout::{Asid, Cd, Granule, Ste, StreamId, Vmid};
use iommu::hwmem::Table;
use iommu::platform::{Hosted, Instant, NoRegisters, Platform};
use iommu::{Error, PhysAddr, Result, UnsupportedReason};
use loom::sync::atomic::{Ordering, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// Frames from the heap.
#[derive(Clone, Debug)]
struct Heap;

fn layout(order: u8) -> Layout {
    Layout::from_size_align(4096 << order, 4096 << order).unwrap()
}

// SAFETY: every block is fresh from the heap; physical addresses are virtual ones.
unsafe impl Platform for Heap {
    type Registers = NoRegisters;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, _last: PhysAddr) -> Option<PhysAddr> {
        // SAFETY: the size is not zero.
        let block = unsafe { alloc_zeroed(layout(order)) };
        Some(PhysAddr::new(block.expose_provenance() as u64))
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        // SAFETY: allocated above with this layout.
        unsafe { dealloc(self.phys_to_virt(first).as_ptr(), layout(order)) }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(phys.as_u64() as usize)).unwrap()
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<NoRegisters> {
        Err(Error::Unsupported(UnsupportedReason::Operation))
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }
}

/// A unit that reads entries at any time, each quadword at once, in any order.
struct Unit {
    stream: OneStream<Heap>,
    /// Held during a fetch: a sync ends those under way.
    fetching: Mutex<()>,
}

impl EntrySync for Unit {
    fn ste(&self, _stream: StreamId, _leaf: Leaf) -> Result<()> {
        fence(Ordering::SeqCst);
        drop(self.fetching.lock().unwrap());
        Ok(())
    }

    fn cd(&self, stream: StreamId, _substream: u32, leaf: Leaf) -> Result<()> {
        self.ste(stream, leaf)
    }
}

/// The quadwords of an entry that these models change.
const CHANGED: usize = 4;

impl Unit {
    fn new() -> Arc<Self> {
        Arc::new(Self { stream: OneStream::new(Heap).unwrap(), fetching: Mutex::new(()) })
    }

    /// Fetches an entry, the last quadword first; each as it is now or was any time before.
    fn fetch(&self, entry: PhysAddr) -> [u64; 8] {
        let _fetching = self.fetching.lock().unwrap();
        // SAFETY: the tables live as long as `self`; a table with one entry has two of a model's frames.
        let table = unsafe { Table::from_phys(&Heap, entry, 1) };
        let mut words = [0; 8];
        for index in (0..CHANGED).rev() {
            words[index] = table.entry(index).load_relaxed();
        }
        words
    }

    fn fetch_ste(&self) -> Ste {
        self.fetch(self.stream.ste()).into()
    }
}

/// What hardware looks at of an STE of these models.
fn seen(ste: Ste) -> Option<(u64, u64, Option<Stage2>)> {
    let config = ste.config();
    let [first, second, ..] = ste.words;
    ste.is_valid().then(|| match (config.has_stage1(), config.has_stage2()) {
        (true, _) => (first, second & 0xfc, None),
        (_, true) => (first & 0xf, 0, Some(ste.stage2_fields())),
        _ => (first & 0xf, 0, None),
    })
}

const fn stage1(table: u64) -> Ste {
    Ste::stage1(PhysAddr::new(table), CdTableFormat::Linear, 0)
}

const fn stage2(vmid: u16) -> Ste {
    Ste::stage2(Stage2 {
        vmid: Vmid(vmid),
        table: PhysAddr::new(0x9_0000),
        t0sz: 24,
        sl0: 1,
        tg: 0,
        ps: 5,
        cacheability: 1,
        shareability: 3,
        access_flag_fault_disabled: true,
        record: true,
        stall: false,
    })
}

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

/// A fetch finds the old stream, the new one, or V = 0 where there is no better way.
fn a_stream_changes(old: Ste, new: Ste, passage: Passage) {
    explore(move || {
        let unit = Unit::new();
        unit.stream.replace(old, &*unit).unwrap();
        let walker = thread::spawn({
            let unit = unit.clone();
            move || [unit.fetch_ste(), unit.fetch_ste()]
        });
        assert_eq!(unit.stream.replace(new, &*unit), Ok(passage));
        for fetched in walker.join().unwrap() {
            let known = [seen(old), seen(new)].contains(&seen(fetched));
            assert!(known || passage == Passage::Blocked && !fetched.is_valid(), "{fetched:x?}");
        }
        assert_eq!(unit.fetch_ste(), new);
    });
}

#[test]
fn a_stream_gets_stage_1() {
    a_stream_changes(Ste::abort(), stage1(0x8_0000), Passage::Hitless);
}

#[test]
fn a_stream_changes_its_stage() {
    a_stream_changes(stage1(0x8_0000), stage2(0), Passage::Hitless);
}

#[test]
fn a_stream_changes_its_stage_and_number() {
    a_stream_changes(stage1(0x8_0000), stage2(7), Passage::Blocked);
}

#[test]
fn a_cd_changes() {
    let cd = |asid, table| Cd::new(Asid(asid), PhysAddr::new(table), Granule::Size4K, 48, 44);
    let meaning = |cd: Cd| cd.is_valid().then_some((cd.words[0], cd.words[1]));
    for (new, passage) in [(cd(1, 0xb_0000), Passage::Hitless), (cd(2, 0xb_0000), Passage::Blocked)] {
        explore(move || {
            let (unit, old) = (Unit::new(), cd(1, 0xa_0000));
            unit.stream.write(0, old, &*unit).unwrap();
            let walker = thread::spawn({
                let unit = unit.clone();
                move || Cd::from(unit.fetch(unit.stream.cd()))
            });
            assert_eq!(unit.stream.write(0, new, &*unit), Ok(passage));
            let fetched = meaning(walker.join().unwrap());
            let known = [meaning(old), meaning(new)].contains(&fetched);
            assert!(known || passage == Passage::Blocked && fetched.is_none(), "{fetched:x?}");
        });
    }
}

#[test]
fn two_fences_at_once_are_one() {
    explore(|| {
        let unit = Unit::new();
        unit.stream.replace(stage1(0x8_0000), &*unit).unwrap();
        let other = thread::spawn({
            let unit = unit.clone();
            move || unit.stream.fence()
        });
        let first = unit.stream.fence();
        assert_ne!(first, other.join().unwrap());
        assert!(!unit.fetch_ste().is_valid());
        unit.stream.unfence();
        assert_eq!(unit.fetch_ste(), stage1(0x8_0000));
    });
}

#[test]
fn a_fence_beside_an_update_is_not_undone() {
    for new in [stage1(0x9_0000), stage2(7)] {
        explore(move || {
            let unit = Unit::new();
            let old = stage1(0x8_0000);
            unit.stream.replace(old, &*unit).unwrap();
            let other = thread::spawn({
                let unit = unit.clone();
                move || unit.stream.fence()
            });
            let replaced = unit.stream.replace(new, &*unit);
            let fenced = other.join().unwrap();
            let left = unit.fetch_ste();
            // It found the entry amid the update, when it is not valid anyway: then whoever fences is
            // seen by whoever updates, who looks afterwards.
            assert!(!fenced || !left.is_valid(), "{left:x?}");
            assert!(replaced.is_ok() || fenced);
            unit.stream.unfence();
            match (replaced, unit.fetch_ste()) {
                (Ok(_), after) => assert_eq!(after, new),
                (Err(Error::Fenced), after) => assert!(!after.is_valid() || after == old, "{after:x?}"),
                (other, _) => panic!("{other:?}"),
            }
        });
    }
}
