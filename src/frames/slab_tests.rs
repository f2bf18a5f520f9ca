extern crate std;
use core::any::Any;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::string::ToString;
use std::sync::Arc;
use std::vec::Vec;

use super::super::testing::Counted;
use super::{Ref, Slab, Slot};
use crate::error::{Error, InvalidReason};

/// Counts how often it is dropped.
struct Noisy(Arc<AtomicUsize>, u64);

impl Drop for Noisy {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn insert<T: Send + Sync + 'static>(slab: &Slab<T, Counted>, value: T) -> Ref<T> {
    slab.insert(value).map_err(|(error, _)| error).unwrap()
}

#[test]
fn values_are_dropped_once_with_their_last_handle() {
    let frames = Counted::new(64);
    let drops = Arc::new(AtomicUsize::new(0));
    let slab = Slab::new(frames.clone()).unwrap();
    let first = insert(&slab, Noisy(drops.clone(), 1));
    let second = first.clone();
    let index = Ref::index(&first);
    assert_eq!((Ref::count(&first), slab.len()), (2, 1));
    drop(first);
    assert_eq!(drops.load(Ordering::SeqCst), 0);
    assert_eq!(slab.get(index).map(|found| found.1), Some(1));
    drop(second);
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    assert!(slab.get(index).is_none());
    assert!(slab.is_empty());
}

#[test]
fn handles_outlive_the_slab() {
    let frames = Counted::new(64);
    let slab = Slab::new(frames.clone()).unwrap();
    let handles: Vec<_> = (0..500u64).map(|value| insert(&slab, value)).collect();
    drop(slab);
    assert!(handles.iter().enumerate().all(|(index, handle)| **handle == index as u64));
    assert!(frames.in_use() > 2);
    drop(handles);
    assert_eq!(frames.in_use(), 0);
}

#[test]
fn slots_have_stable_numbers_and_are_reused() {
    let frames = Counted::new(64);
    let slab = Slab::new(frames.clone()).unwrap();
    let mut handles: Vec<_> = (0..300u32).map(|value| insert(&slab, value)).collect();
    let grown = frames.in_use();
    assert!(handles.iter().all(|handle| **slab.get(Ref::index(handle)).as_ref().unwrap() == **handle));
    let mut indices: Vec<_> = handles.iter().map(Ref::index).collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..300).collect::<Vec<_>>(), "numbers are dense");
    handles.retain(|handle| **handle % 3 == 0);
    assert_eq!(slab.iter().count(), 100);
    assert!(slab.iter().all(|handle| *handle % 3 == 0));
    handles.extend((0..200).map(|value| insert(&slab, 1000 + value)));
    assert_eq!(frames.in_use(), grown);
    assert_eq!(slab.get(u32::MAX).map(|value| *value), None);
}

#[test]
fn large_and_empty_values() {
    let frames = Counted::new(64);
    let large = Slab::new(frames.clone()).unwrap();
    let handles: Vec<_> = (0..3u8).map(|value| insert(&large, [value; 9000])).collect();
    assert!(handles.iter().enumerate().all(|(index, handle)| handle.iter().all(|&byte| byte as usize == index)));
    assert_eq!(frames.in_use(), 2 + 3 * 4);
    let aligned = Slab::new(frames.clone()).unwrap();
    #[repr(align(2048))]
    struct Aligned(u8);
    let handle = insert(&aligned, Aligned(3));
    assert_eq!(handle.0 as usize + Ref::as_ptr(&handle) as usize % 2048, 3);
    let empty = Slab::new(frames.clone()).unwrap();
    let handles: Vec<_> = (0..200).map(|_| insert(&empty, ())).collect();
    assert_eq!(empty.len(), 200);
    assert!(size_of::<Slot<()>>() <= 64);
    drop((large, handle, aligned, handles, empty));
}

#[test]
fn a_handle_shows_a_trait_object_and_back() {
    trait Ops: Any + Send + Sync {
        fn name(&self) -> &str;
    }
    impl Ops for Noisy {
        fn name(&self) -> &str {
            "noisy"
        }
    }
    let frames = Counted::new(64);
    let drops = Arc::new(AtomicUsize::new(0));
    let slab = Slab::new(frames.clone()).unwrap();
    let typed = insert(&slab, Noisy(drops.clone(), 7));
    let ops: Ref<dyn Ops> = Ref::map(typed.clone(), |noisy| noisy as _);
    assert!(Ref::ptr_eq(&typed, &ops));
    assert_eq!((ops.name(), Ref::count(&ops)), ("noisy", 2));
    drop((slab, typed));
    let ops = Ref::try_map(ops, |ops| (ops as &dyn Any).downcast_ref::<u32>()).unwrap_err();
    let back = Ref::try_map(ops, |ops| (ops as &dyn Any).downcast_ref::<Noisy>()).ok().unwrap();
    let field = Ref::map(back, |noisy| &noisy.1);
    assert_eq!(*field, 7);
    assert_eq!(drops.load(Ordering::SeqCst), 0);
    drop(field);
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    assert_eq!(frames.in_use(), 0);
}

#[test]
fn a_value_may_hold_a_handle_of_its_own_slab() {
    struct Node(Option<Ref<Node>>);
    let frames = Counted::new(64);
    let slab = Slab::new(frames.clone()).unwrap();
    let mut head = insert(&slab, Node(None));
    for _ in 0..100 {
        head = insert(&slab, Node(Some(head)));
    }
    assert!(head.0.as_ref().is_some_and(|next| next.0.is_some()));
    drop(slab);
    drop(head);
    assert_eq!(frames.in_use(), 0);
}

#[test]
fn a_failed_init_frees_the_slot() {
    let frames = Counted::new(64);
    let slab = Slab::<u32, _>::new(frames.clone()).unwrap();
    let error = Error::Invalid(InvalidReason::Configuration);
    assert_eq!(slab.insert_with(|_| Err(error)).unwrap_err(), error);
    assert_eq!(slab.len(), 0);
    let handle = slab.insert_with(|index| Ok(index + 10)).unwrap();
    assert_eq!((*handle, Ref::index(&handle)), (10, 0));
}

#[test]
fn every_failed_allocation_gives_the_value_back() {
    let frames = Counted::new(700);
    let drops = Arc::new(AtomicUsize::new(0));
    frames.fail_nth(0);
    assert_eq!(Slab::<u32, _>::new(frames.clone()).unwrap_err(), Error::NoMemory);
    let mut failures = 0;
    // Filling the second node of the directory takes all kinds of growth.
    let many = 600u64;
    for nth in [0, 1, 2, 100, 513, 514, 515] {
        let slab = Slab::new(frames.clone()).unwrap();
        let mut handles = Vec::new();
        frames.fail_nth(nth);
        for value in 0..many {
            match slab.insert((Noisy(drops.clone(), value), [0u8; 3000])) {
                Ok(handle) => handles.push(handle),
                Err((error, (noisy, _))) => {
                    assert_eq!((error, noisy.1), (Error::NoMemory, value));
                    failures += 1;
                    frames.fail_never();
                    handles.push(insert(&slab, (noisy, [0; 3000])));
                }
            }
        }
        assert!(handles.iter().enumerate().all(|(index, handle)| handle.0.1 == index as u64));
        assert_eq!(slab.iter().count() as u64, many);
        drop(slab);
        drop(handles);
        assert_eq!(frames.in_use(), 0);
    }
    assert_eq!(failures, 7);
    assert_eq!(drops.load(Ordering::SeqCst) as u64, 7 * many);
}

#[test]
fn many_threads_share_a_slab() {
    let frames = Counted::new(256);
    let drops = Arc::new(AtomicUsize::new(0));
    let slab = Slab::new(frames.clone()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (slab, drops) = (&slab, &drops);
            scope.spawn(move || {
                for round in 0..2000u64 {
                    let mine = insert(slab, Noisy(drops.clone(), thread << 32 | round));
                    let seen = slab.get((round % 7) as u32);
                    assert!(seen.is_none_or(|seen| seen.1 & 0xffff_ffff < 2000));
                    assert_eq!(mine.1, thread << 32 | round);
                }
            });
        }
    });
    assert_eq!((drops.load(Ordering::SeqCst), slab.len()), (8000, 0));
    drop(slab);
    assert_eq!(frames.in_use(), 0);
}

#[test]
fn debug_shows_numbers_and_values() {
    let slab = Slab::new(Counted::new(8)).unwrap();
    let _handle = insert(&slab, "value");
    assert_eq!(std::format!("{slab:?}"), "{0: \"value\"}".to_string());
}
