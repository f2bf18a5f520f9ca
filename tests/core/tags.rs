//! Cache tags: who is asked, and when a number comes again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iommu::frames::{IdBitmap, Ref, Slab};
use iommu::iotlb::{CacheTag, DeviceTlb, Last, Tags};
use iommu::ops::{Ats, IommuOps, Unit};
use iommu::{Error, InvalidReason, NoSpaceReason, Pasid, Prot, WaitReason};

use crate::fake::FakeUnit;
use crate::platform::Frames;
use crate::world::{World, map, pages, source};

struct Stage {
    tags: Tags<Frames>,
    ids: IdBitmap<Frames>,
    units: Vec<Unit>,
    frames: Frames,
}

fn stage(last_id: u32) -> Stage {
    let frames = Frames::new();
    let slab = Slab::new(frames.clone()).unwrap();
    let units = (0..3)
        .map(|number| {
            let unit = FakeUnit::new(frames.clone(), number, 1).unwrap();
            let unit = slab.insert(unit).map_err(|(error, _)| error).unwrap();
            Unit::new(Ref::map(unit, |unit| unit as &dyn IommuOps))
        })
        .collect();
    let ids = IdBitmap::new(frames.clone(), last_id, NoSpaceReason::DomainIds).unwrap();
    Stage { tags: Tags::new(frames.clone()), ids, units, frames }
}

impl Stage {
    fn acquire(&self, unit: usize, pasid: Option<Pasid>) -> iommu::Result<CacheTag> {
        self.tags.acquire(&self.units[unit], pasid, &self.ids)
    }

    fn release(&self, unit: usize, tag: CacheTag) -> iommu::Result<Last> {
        self.tags.release(&self.units[unit], tag)
    }

    fn all(&self) -> Vec<u32> {
        let mut ids: Vec<_> = self.tags.read().iter().map(|(_, tag)| tag.id).collect();
        ids.sort_unstable();
        ids
    }

    fn end(self) -> usize {
        let Self { tags, ids, units, frames } = self;
        drop((tags, ids, units));
        frames.in_use()
    }
}

#[test]
fn a_tag_is_shared_by_those_whose_translations_are_cached_together() {
    let stage = stage(255);
    assert!(stage.tags.is_empty());
    let tag = stage.acquire(0, None).unwrap();
    assert_eq!(stage.acquire(0, None), Ok(tag));
    let other_unit = stage.acquire(1, None).unwrap();
    let pasid = stage.acquire(0, Pasid::new(1)).unwrap();
    assert_eq!(stage.all(), [tag.id, other_unit.id, pasid.id]);
    assert!(stage.tags.read().iter().any(|(unit, tag)| unit.ptr_eq(&stage.units[1]) && tag == other_unit));
    assert_eq!(stage.release(0, tag), Ok(Last::No));
    assert_eq!(stage.all().len(), 3);
    assert_eq!(stage.release(0, tag), Ok(Last::Yes));
    assert_eq!(stage.release(0, tag), Err(Error::Invalid(InvalidReason::WrongDomain)));
    assert_eq!(stage.release(1, pasid), Err(Error::Invalid(InvalidReason::WrongDomain)), "another unit's");
    assert_eq!(stage.all().len(), 2);
    assert!(!stage.tags.is_empty());
    assert_eq!(stage.end(), 0);
}

#[test]
fn a_device_tlb_goes_with_the_cache_that_fills_it() {
    let stage = stage(255);
    let (tag, elsewhere) = (stage.acquire(0, None).unwrap(), stage.acquire(1, None).unwrap());
    let pasid = stage.acquire(0, Pasid::new(1)).unwrap();
    let ats = Ats { physical_function: 0, max_pending: 32 };
    let tlbs = [1, 2].map(|id| DeviceTlb { source: source(id), pasid: None, ats });
    let devices = tlbs.map(|tlb| stage.tags.acquire_device(&stage.units[0], tag, tlb).unwrap());
    assert_eq!(stage.tags.acquire_device(&stage.units[0], tag, tlbs[0]), Ok(devices[0]));
    assert_eq!(devices[0].id, tag.id, "it has no number of its own");
    assert_eq!(stage.ids.in_use(), 3);
    let of = |unit: usize, tag| -> Vec<_> { stage.tags.read().device_tlbs(&stage.units[unit], tag).collect() };
    assert_eq!(of(0, tag), tlbs);
    assert_eq!((of(0, pasid), of(1, elsewhere)), (vec![], vec![]));
    assert_eq!(stage.all().len(), 3, "units are told of device TLBs with their own");
    assert_eq!(stage.release(0, devices[0]), Ok(Last::No));
    assert_eq!(stage.release(0, devices[0]), Ok(Last::Yes));
    assert_eq!(of(0, tag), tlbs[1..]);
    assert_eq!(stage.end(), 0);
}

#[test]
fn more_tags_than_fit_take_frames_which_are_used_again() {
    let stage = stage(1000);
    let before = stage.frames.in_use();
    let first: Vec<_> = (0..2).map(|id| stage.acquire(0, Pasid::new(id)).unwrap()).collect();
    assert_eq!(stage.frames.in_use(), before + 1, "a frame of ids, none of tags");
    let more: Vec<_> = (2..150).map(|id| stage.acquire(0, Pasid::new(id)).unwrap()).collect();
    let with_chunks = stage.frames.in_use();
    assert!(with_chunks > before + 2, "at least two chunks");
    assert_eq!(stage.all(), (0..150).collect::<Vec<_>>());
    for tag in first.iter().chain(&more) {
        assert_eq!(stage.release(0, *tag), Ok(Last::Yes));
    }
    assert!(stage.tags.is_empty());
    for id in 0..150 {
        stage.acquire(1, Pasid::new(id)).unwrap();
    }
    assert_eq!(stage.frames.in_use(), with_chunks);
    assert_eq!(stage.all().len(), 150);
    assert_eq!(stage.end(), 0);
}

#[test]
fn want_of_numbers_or_frames_changes_nothing() {
    let stage = stage(2);
    stage.acquire(0, None).unwrap();
    stage.acquire(1, None).unwrap();
    let (ids, frames) = (stage.ids.in_use(), stage.frames.in_use());
    stage.frames.fail_nth(0);
    assert_eq!(stage.acquire(2, None), Err(Error::NoMemory));
    assert!(stage.frames.fail_never());
    assert_eq!((stage.ids.in_use(), stage.frames.in_use()), (ids, frames));
    stage.acquire(2, None).unwrap();
    assert_eq!(stage.acquire(2, Pasid::new(1)), Err(Error::NoSpace(NoSpaceReason::DomainIds)));
    assert_eq!(stage.all(), [0, 1, 2]);
    // Sharing needs neither.
    stage.acquire(2, None).unwrap();
    assert_eq!(stage.end(), 0);
}

#[test]
fn a_number_is_not_given_back_while_a_reader_may_use_it() {
    let stage = stage(255);
    let tag = stage.acquire(0, None).unwrap();
    let snapshot = stage.tags.read();
    let (unit, read) = snapshot.iter().next().unwrap();
    assert_eq!(stage.release(0, tag), Err(Error::TimedOut(WaitReason::Readers)));
    // The reader may go on: nothing it looks at is gone.
    assert_eq!((read, unit.name()), (tag, "fake unit"));
    assert!(!stage.tags.is_empty(), "quarantined");
    drop(snapshot);
    assert_eq!(stage.all(), []);
    let next = stage.acquire(0, None).unwrap();
    assert_ne!(next.id, tag.id);
    // Taken up again, it succeeds, once.
    assert_eq!(stage.release(0, tag), Ok(Last::Yes));
    assert_eq!(stage.release(0, tag), Err(Error::Invalid(InvalidReason::WrongDomain)));
    assert_eq!(stage.all(), [next.id]);
    assert_eq!(stage.release(0, next), Ok(Last::Yes));
    assert!(stage.tags.is_empty());
    assert_eq!(stage.end(), 0);
}

struct Finally<F: Fn()>(F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        self.0();
    }
}

#[test]
fn releases_wait_for_readers_of_either_counter() {
    // Readers come and go on other threads, so that both counters are in use.
    let stage = stage(1000);
    let (done, tags) = (AtomicBool::new(false), &stage.tags);
    std::thread::scope(|scope| {
        // Also when a release fails: the readers must not go on for ever.
        let _end = Finally(|| done.store(true, Ordering::Relaxed));
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for (unit, _) in tags.read().iter() {
                        assert_eq!(unit.name(), "fake unit");
                    }
                }
            });
        }
        let releasing: Vec<_> = (0..2u32)
            .map(|thread| {
                let stage = &stage;
                scope.spawn(move || {
                    for round in 0..200 {
                        let tag = stage.acquire(thread as usize, Pasid::new(round)).unwrap();
                        assert_eq!(stage.release(thread as usize, tag), Ok(Last::Yes));
                        stage.ids.free(tag.id);
                    }
                })
            })
            .collect();
        releasing.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert!(stage.tags.is_empty());
    assert_eq!(stage.ids.in_use(), 0);
    assert_eq!(stage.end(), 0);
}

#[test]
fn a_detach_beside_a_reader_that_stays_keeps_the_number() {
    let world = World::new(1);
    let device = world.device(1);
    let domain = world.domain(&device);
    world.iommu.attach_device(&domain, &device).unwrap();
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    let paging: &crate::fake::Paging = domain.ops().as_any().downcast_ref().unwrap();
    let reader = paging.tags().read();
    world.iommu.detach_device(&domain, &device).unwrap();
    assert_eq!(world.write(1, 0x1000), None, "the device has left all the same");
    assert_eq!(world.unit().ids().quarantined(), 1);
    drop(reader);
    world.frames.advance(Duration::from_secs(1));
    world.iommu.attach_device(&domain, &device).unwrap();
    assert_eq!(world.write(1, 0x1000), Some(0x8000));
}

#[test]
fn without_a_free_number_a_device_stays_where_it_is() {
    let world = World::new(1);
    let devices: Vec<_> = (0..255).map(|id| world.device(id)).collect();
    let full = Error::NoSpace(NoSpaceReason::DomainIds);
    assert_eq!(full.errno(), 28, "ENOSPC, as in Linux");
    let domain = world.domain(&devices[0]);
    assert_eq!(world.iommu.attach_device(&domain, &devices[0]), Err(full));
    assert_eq!(world.iommu.probe_platform(crate::world::info(&[source(999)])), Err(full));
    assert!(world.iommu.find(source(999)).is_none());
    world.iommu.release_device(&devices[7]).unwrap();
    world.iommu.attach_device(&domain, &devices[0]).unwrap();
    drop((devices, domain));
    assert_eq!(world.end(), 0);
}
