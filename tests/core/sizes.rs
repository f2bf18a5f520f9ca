//! Sizes of pages: what an invalidation says of them, and break-before-make.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu::domain::PagingDomain;
use iommu::frames::{IdBitmap, Ref, Slab};
use iommu::iotlb::CacheTag;
use iommu::ops::{DomainOps, DomainSpec, IommuOps, Stage, Unit};
use iommu::pgtable::{LiveSplit, Lpae4K, LpaeStage, PageSizes, PageTable};
use iommu::{Domain, DomainKind, Error, Iova, NoSpaceReason, Prot};

use crate::fake::{FakeUnit, TIMED_OUT, full_windows, traits};
use crate::platform::Frames;
use crate::world::{map, pages, unmap};

const K4: u64 = 1 << 12;
const M2: u64 = 1 << 21;

/// A domain of a format that demands break-before-make, or not, used by one unit.
struct Scene {
    domain: Domain,
    unit: Ref<FakeUnit>,
    frames: Frames,
    root: u64,
    used: (Unit, CacheTag),
}

impl Scene {
    fn new(live_split: LiveSplit) -> Self {
        let frames = Frames::new();
        let unit = Slab::new(frames.clone()).unwrap().insert(FakeUnit::new(frames.clone(), 0, 255).unwrap());
        let unit = unit.map_err(|(error, _)| error).unwrap();
        let format = Lpae4K { live_split, ..Lpae4K::new(LpaeStage::Two) };
        let table = PageTable::new(frames.clone(), format, format.config(39, 48)).unwrap();
        let root = table.root().as_u64();
        let spec = DomainSpec { stage: Stage::Second, traits: traits(), windows: full_windows() };
        let domain = PagingDomain::new(frames.clone(), DomainKind::Paging, &spec, table);
        let domain = Slab::new(frames.clone()).unwrap().insert(domain).map_err(|(error, _)| error).unwrap();
        let ids = IdBitmap::new(frames.clone(), 9, NoSpaceReason::DomainIds).unwrap();
        let user = Unit::new(Ref::map(unit.clone(), |unit| unit as &dyn IommuOps));
        let used = (user.clone(), domain.tags().acquire(&user, None, &ids).unwrap());
        let domain = Domain::new(Ref::map(domain, |domain| domain as &dyn DomainOps));
        Self { domain, unit, frames, root, used }
    }

    /// The sizes that each invalidation since the last call named.
    fn sizes(&self) -> Vec<u64> {
        std::mem::take(&mut self.unit.state().leaves).into_iter().map(PageSizes::bits).collect()
    }

    /// The entry for the 2 MiB around `iova`, which lies in the first GiB, as hardware reads it.
    fn entry(frames: &Frames, root: u64, iova: u64) -> u64 {
        let table = frames.read(root) & ((1 << 48) - K4);
        frames.read(table + (iova >> 21) * 8)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let paging: &PagingDomain<Lpae4K, Frames> = self.domain.ops().as_any().downcast_ref().unwrap();
        paging.tags().release(&self.used.0, self.used.1).unwrap();
    }
}

#[test]
fn an_invalidation_says_which_sizes_went() {
    let scene = Scene::new(LiveSplit::Allowed);
    let domain = &scene.domain;
    map(domain, pages(0, 1), 0x10_0000, Prot::RW).unwrap();
    map(domain, pages(512, 512), 0x20_0000, Prot::RW).unwrap();
    map(domain, pages(1024, 16), 0x30_0000, Prot::RW).unwrap();
    assert_eq!(scene.sizes(), []);
    // SAFETY: no device is real.
    unsafe { domain.protect(pages(512, 512), Prot::READ) }.unwrap();
    assert_eq!(scene.sizes(), [M2]);
    // SAFETY: as above.
    unsafe { domain.cut(pages(512, 1)) }.unwrap();
    // First into pages of 16 entries, one of them then into single ones: each may be cached.
    assert_eq!(scene.sizes(), [K4 | M2]);
    unmap(domain, pages(512, 1)).unwrap();
    assert_eq!(scene.sizes(), [K4]);
    unmap(domain, pages(1024, 16)).unwrap();
    assert_eq!(scene.sizes(), [K4], "a page of several entries");
    // Together, one of them small and one large.
    map(domain, pages(2048, 512), 0x20_0000, Prot::RW).unwrap();
    let mut gather = domain.gather();
    for range in [pages(0, 1), pages(2048, 512)] {
        // SAFETY: as above.
        unsafe { domain.unmap(range, &mut gather) }.unwrap();
    }
    gather.sync().unwrap();
    assert_eq!(scene.sizes(), [K4 | M2]);
    // A table: nothing is known of what was in it.
    unmap(domain, pages(0, 2048)).unwrap();
    assert_eq!(scene.sizes(), [0]);
}

#[test]
fn what_a_failed_map_takes_back_is_named_too() {
    let scene = Scene::new(LiveSplit::Allowed);
    map(&scene.domain, pages(3, 1), 0x10_0000, Prot::RW).unwrap();
    let taken = Error::Exists { iova: Iova::new(3 * K4) };
    assert_eq!(map(&scene.domain, pages(0, 4), 0x20_1000, Prot::RW), Err(taken));
    assert_eq!(scene.sizes(), [K4]);
}

/// An empty table makes room for a page in two steps, and in between every cache drops the table.
#[test]
fn a_table_is_broken_before_a_page_is_made() {
    let scene = Scene::new(LiveSplit::Forbidden);
    map(&scene.domain, pages(0, 1), 0x10_0000, Prot::RW).unwrap();
    unmap(&scene.domain, pages(0, 1)).unwrap();
    assert_ne!(Scene::entry(&scene.frames, scene.root, 0), 0, "the table stayed");
    let (frames, root, waits) = (scene.frames.clone(), scene.root, Arc::new(AtomicUsize::new(0)));
    let waited = waits.clone();
    scene.sizes();
    scene.unit.state().during_wait = Some(Box::new(move || {
        assert_eq!(Scene::entry(&frames, root, 0), 0);
        waited.fetch_add(1, Ordering::Relaxed);
    }));
    let in_use = scene.frames.in_use();
    map(&scene.domain, pages(0, 512), 0x20_0000, Prot::RW).unwrap();
    assert_eq!((scene.sizes(), waits.load(Ordering::Relaxed)), (vec![0], 1));
    assert_eq!(scene.frames.in_use(), in_use - 1);
    assert_eq!(Scene::entry(&scene.frames, scene.root, 0) & !0xffc, 0x20_0001);
}

/// If the caches do not drop it, nothing takes its place.
#[test]
fn a_table_that_is_still_cached_is_not_replaced() {
    let scene = Scene::new(LiveSplit::Forbidden);
    map(&scene.domain, pages(0, 1), 0x10_0000, Prot::RW).unwrap();
    unmap(&scene.domain, pages(0, 1)).unwrap();
    let in_use = scene.frames.in_use();
    scene.unit.state().fail_wait = Some((0, TIMED_OUT));
    assert_eq!(map(&scene.domain, pages(0, 512), 0x20_0000, Prot::RW), Err(TIMED_OUT));
    assert_eq!(Scene::entry(&scene.frames, scene.root, 0), 0);
    assert_eq!(scene.frames.in_use(), in_use, "hardware may still walk it");
    scene.domain.flush_deferred().unwrap();
    assert_eq!(scene.frames.in_use(), in_use - 1);
    map(&scene.domain, pages(0, 512), 0x20_0000, Prot::RW).unwrap();
}
