//! Loom models of the containers: `RUSTFLAGS="--cfg loom" cargo test --release --test loom_frames`.
#![cfg(loom)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc as StdArc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu::frames::{IdBitmap, RadixMap, Ref, Slab};
use iommu::platform::{Hosted, Instant, InterruptState, NoRegisters, Platform};
use iommu::{Error, InvalidReason, NoSpaceReason, PhysAddr, Result, UnsupportedReason};
use loom::sync::Arc;
use loom::thread;

/// Frames from the heap, counted outside of loom's sight.
#[derive(Clone, Default)]
struct Heap {
    in_use: StdArc<AtomicUsize>,
    /// Read whenever a lock is released, written when a frame is freed, if a model wants loom to
    /// check that these are ordered.
    tracked: Option<StdArc<Tracked>>,
}

struct Tracked(loom::cell::UnsafeCell<()>);

// SAFETY: there is nothing in it; loom checks the order of what reads and writes it.
unsafe impl Send for Tracked {}
// SAFETY: as above.
unsafe impl Sync for Tracked {}

impl Heap {
    fn tracking() -> Self {
        Self { tracked: Some(StdArc::new(Tracked(loom::cell::UnsafeCell::new(())))), ..Self::default() }
    }

    fn in_use(&self) -> usize {
        self.in_use.load(Ordering::SeqCst)
    }
}

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
        self.in_use.fetch_add(1 << order, Ordering::SeqCst);
        Some(PhysAddr::new(block.expose_provenance() as u64))
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        self.in_use.fetch_sub(1 << order, Ordering::SeqCst);
        if let Some(tracked) = &self.tracked {
            tracked.0.with_mut(|_| ());
        }
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

    fn restore_interrupts(&self, _state: InterruptState) {
        if let Some(tracked) = &self.tracked {
            tracked.0.with(|_| ());
        }
    }
}

/// How many values have ended, counted outside of loom's sight.
type Drops = StdArc<AtomicUsize>;

/// A value that notices when it is used after its end, and counts its ends.
struct Value {
    alive: loom::sync::atomic::AtomicBool,
    number: loom::cell::UnsafeCell<u32>,
    drops: Drops,
}

// SAFETY: the number is written before the value is shared, and read only afterwards; loom checks.
unsafe impl Sync for Value {}

impl Value {
    fn new(number: u32, drops: &Drops) -> Self {
        Self {
            alive: loom::sync::atomic::AtomicBool::new(true),
            number: loom::cell::UnsafeCell::new(number),
            drops: drops.clone(),
        }
    }

    fn number(&self) -> u32 {
        assert!(self.alive.load(loom::sync::atomic::Ordering::Relaxed), "used after its end");
        // SAFETY: nobody writes a shared value; loom checks that its construction comes before.
        self.number.with(|number| unsafe { *number })
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        assert!(self.alive.load(loom::sync::atomic::Ordering::Relaxed), "ended twice");
        self.alive.store(false, loom::sync::atomic::Ordering::Relaxed);
        // SAFETY: the last handle is gone; loom checks that no reader is concurrent.
        self.number.with_mut(|number| unsafe { *number = u32::MAX });
        self.drops.fetch_add(1, Ordering::SeqCst);
    }
}

fn insert(slab: &Slab<Value, Heap>, value: Value) -> Ref<Value> {
    slab.insert(value).map_err(|(error, _)| error).unwrap()
}

fn take<T>(shared: Arc<T>) -> T {
    Arc::try_unwrap(shared).ok().expect("all threads are joined")
}

#[test]
fn the_last_handle_is_dropped_beside_a_lookup() {
    loom::model(|| {
        let (heap, drops) = (Heap::default(), Drops::default());
        let slab = Arc::new(Slab::new(heap.clone()).unwrap());
        let handle = insert(&slab, Value::new(7, &drops));
        let index = Ref::index(&handle);
        let looking = {
            let slab = slab.clone();
            thread::spawn(move || slab.get(index).map(|found| found.number()))
        };
        drop(handle);
        let found = looking.join().unwrap();
        assert!(found.is_none() || found == Some(7));
        assert_eq!(drops.load(Ordering::SeqCst), 1);
        assert!(slab.get(index).is_none() && slab.is_empty());
        drop(take(slab));
        assert_eq!(heap.in_use(), 0);
    });
}

#[test]
fn a_slot_is_reused_beside_a_lookup() {
    loom::model(|| {
        let (heap, drops) = (Heap::default(), Drops::default());
        let slab = Arc::new(Slab::new(heap.clone()).unwrap());
        let handle = insert(&slab, Value::new(7, &drops));
        let index = Ref::index(&handle);
        let looking = {
            let slab = slab.clone();
            thread::spawn(move || slab.get(index).map(|found| found.number()))
        };
        drop(handle);
        let next = insert(&slab, Value::new(8, &drops));
        let found = looking.join().unwrap();
        assert!(matches!(found, None | Some(7 | 8)));
        // The slot is free again, unless the lookup held it.
        assert!(Ref::index(&next) == index || found == Some(7));
        drop(next);
        drop(take(slab));
        assert_eq!((drops.load(Ordering::SeqCst), heap.in_use()), (2, 0));
    });
}

#[test]
fn two_inserts_race_for_slots() {
    loom::model(|| {
        let (heap, drops) = (Heap::default(), Drops::default());
        let slab = Arc::new(Slab::new(heap.clone()).unwrap());
        let other = {
            let (slab, drops) = (slab.clone(), drops.clone());
            thread::spawn(move || insert(&slab, Value::new(1, &drops)))
        };
        let mine = insert(&slab, Value::new(0, &drops));
        let other = other.join().unwrap();
        assert!(!Ref::ptr_eq(&mine, &other) && Ref::index(&mine) != Ref::index(&other));
        assert_eq!((mine.number(), other.number(), slab.len()), (0, 1, 2));
        assert_eq!(slab.get(Ref::index(&other)).map(|found| found.number()), Some(1));
        drop((mine, other));
        drop(take(slab));
        assert_eq!((drops.load(Ordering::SeqCst), heap.in_use()), (2, 0));
    });
}

#[test]
fn the_slab_ends_beside_its_last_handles() {
    loom::model(|| {
        let (heap, drops) = (Heap::tracking(), Drops::default());
        let slab = Slab::new(heap.clone()).unwrap();
        let first = insert(&slab, Value::new(0, &drops));
        let second = first.clone();
        let other = thread::spawn(move || {
            let number = second.number();
            drop(second);
            number
        });
        drop(first);
        drop(slab);
        assert_eq!(other.join().unwrap(), 0);
        assert_eq!((drops.load(Ordering::SeqCst), heap.in_use()), (1, 0));
    });
}

#[test]
fn a_key_is_inserted_beside_lookups() {
    loom::model(|| {
        let heap = Heap::default();
        let map = Arc::new(RadixMap::<u32, _>::new(heap.clone()));
        map.insert(1, 10).unwrap();
        let inserting = {
            let map = map.clone();
            // Puts a level on top, and a node below it.
            thread::spawn(move || map.insert(7, 70).unwrap())
        };
        assert_eq!(map.get(1), Some(10), "what is there stays reachable");
        assert!(matches!(map.get(7), None | Some(70)));
        assert!(matches!(map.next_from(2), None | Some((7, 70))));
        inserting.join().unwrap();
        assert_eq!((map.get(1), map.get(7)), (Some(10), Some(70)));
        drop(take(map));
        assert_eq!(heap.in_use(), 0);
    });
}

#[test]
fn two_keys_race_for_the_same_nodes() {
    loom::model(|| {
        let heap = Heap::default();
        let map = Arc::new(RadixMap::<u32, _>::new(heap.clone()));
        let other = {
            let map = map.clone();
            thread::spawn(move || map.insert(5, 50))
        };
        map.insert(2, 20).unwrap();
        other.join().unwrap().unwrap();
        assert_eq!((map.get(2), map.get(5)), (Some(20), Some(50)));
        drop(take(map));
        assert_eq!(heap.in_use(), 0);
    });
}

#[test]
fn one_key_is_inserted_once_and_removed_once() {
    loom::model(|| {
        let map = Arc::new(RadixMap::<u32, _>::new(Heap::default()));
        let other = {
            let map = map.clone();
            thread::spawn(move || (map.insert(2, 1), map.remove(2)))
        };
        let mine = (map.insert(2, 0), map.remove(2));
        let other = other.join().unwrap();
        let duplicate = Err(Error::Invalid(InvalidReason::Duplicate));
        let inserted = [mine.0, other.0].iter().filter(|result| result.is_ok()).count();
        let removed = [mine.1, other.1].iter().filter(|found| found.is_some()).count();
        assert!([mine.0, other.0].iter().all(|result| result.is_ok() || *result == duplicate));
        assert!(inserted >= 1 && removed == inserted);
        assert_eq!(map.get(2), None);
    });
}

#[test]
fn numbers_are_taken_and_freed_at_once() {
    loom::model(|| {
        let heap = Heap::default();
        let ids = Arc::new(IdBitmap::new(heap.clone(), 1, NoSpaceReason::DomainIds).unwrap());
        // Orders the two holders of a number, as whoever frees one relies on.
        let holders = Arc::new([loom::cell::UnsafeCell::new(0u32), loom::cell::UnsafeCell::new(0)]);
        let hold = |ids: &IdBitmap<Heap>, holders: &[loom::cell::UnsafeCell<u32>; 2], mark: u32| {
            let id = ids.alloc().unwrap();
            // SAFETY: the number is this thread's alone; loom checks that.
            holders[id as usize].with_mut(|holder| unsafe { *holder = mark });
            ids.free(id);
        };
        let other = {
            let (ids, holders) = (ids.clone(), holders.clone());
            thread::spawn(move || hold(&ids, &holders, 1))
        };
        hold(&ids, &holders, 2);
        other.join().unwrap();
        assert_eq!(ids.in_use(), 0);
        drop(take(ids));
        assert_eq!(heap.in_use(), 0);
    });
}
