//! Loom models of cache tags: attach and detach beside unmap, with the real domain and tags, and
//! hardware that walks and caches. `RUSTFLAGS="--cfg loom" cargo test --release --test loom_iotlb`.
#![cfg(loom)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu::device::DeviceInfo;
use iommu::domain::{Domain, DomainKind, PagingDomain};
use iommu::frames::{IdBitmap, Ref, Slab};
use iommu::iotlb::{CacheTag, Depth, Flush, Invalidation, Last, Tags, Ticket};
use iommu::ops::{
    self, Capability, Coverage, DomainFeatures, DomainOps, DomainSpec, IommuOps, MapFlush, Requester, Unit, UnitTraits,
};
use iommu::pci::PciConfig;
use iommu::pgtable::{Config, PageSizes, PageTable, WalkerCoherency};
use iommu::platform::{Hosted, Instant, NoRegisters, Platform};
use iommu::{
    DrainedFaults, Error, FaultRecord, Iova, IovaRange, NoSpaceReason, Pasid, PhysAddr, Prot, ReservedRegions, Result,
    UnsupportedReason, Window, Windows,
};
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread;

#[path = "loom/tiny.rs"]
mod tiny;
use tiny::Tiny;

/// Frames from the heap, and a clock.
#[derive(Clone, Debug)]
struct Heap {
    /// Seconds that each look at the clock takes.
    step: u64,
}

/// The clock, outside of loom's sight; models depend on differences only.
static SECONDS: AtomicU64 = AtomicU64::new(0);

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
        Instant::from_nanos(SECONDS.fetch_add(self.step, Ordering::SeqCst) * 1_000_000_000)
    }
}

type Paging = PagingDomain<Tiny, Heap>;

/// Numbers that the models use.
const IDS: usize = 3;

/// Hardware: per number, whether a translation is cached, and who is using the number.
struct Hardware {
    cached: [Mutex<bool>; IDS],
    /// Read by whoever invalidates under the number, written by whoever gives it to another domain.
    meaning: [UnsafeCell<u32>; IDS],
    /// Held from the fetch of an entry until what was found through it is cached.
    walking: Mutex<()>,
}

// SAFETY: `meaning` is what the models are about; loom checks every access.
unsafe impl Sync for Hardware {}

impl Hardware {
    /// What hardware does once its entry points to the domain: walk, and cache what it finds.
    fn walk(&self, id: u32, paging: &Paging) {
        let mut cached = self.cached[id as usize].lock().unwrap();
        // SAFETY: the only table is the root, which is not freed.
        *cached |= unsafe { paging.table().iova_to_phys_unregistered(Iova::new(0)) }.is_some();
    }

    /// What is under way ends before an invalidation is over.
    fn drain(&self) {
        drop(self.walking.lock().unwrap());
    }

    fn has_cached(&self, id: u32) -> bool {
        *self.cached[id as usize].lock().unwrap()
    }

    fn reuse(&self, id: u32) {
        // SAFETY: loom checks that nobody uses the number under its old meaning.
        self.meaning[id as usize].with_mut(|meaning| unsafe { *meaning += 1 });
    }
}

impl IommuOps for Hardware {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn name(&self) -> &'static str {
        "hardware"
    }
    fn base(&self) -> PhysAddr {
        PhysAddr::new(0)
    }
    fn coverage(&self, _: &DeviceInfo, _: &dyn PciConfig) -> Coverage {
        Coverage::Rest
    }
    fn traits(&self, stage: ops::Stage) -> Option<UnitTraits> {
        (stage == ops::Stage::Second).then(|| spec().traits)
    }
    fn windows(&self, _: ops::Stage) -> Windows {
        spec().windows
    }
    fn default_stage(&self) -> ops::Stage {
        ops::Stage::Second
    }
    fn reserved_regions(&self, _: &DeviceInfo, _: &dyn PciConfig, _: &mut ReservedRegions) -> Result<()> {
        Ok(())
    }
    fn capable(&self, _: Capability) -> bool {
        false
    }
    fn domain_alloc_paging(&self, _: &DomainSpec) -> Result<Domain> {
        Err(Error::NoMemory)
    }
    fn attach(&self, _: &Unit, _: &Requester, _: &Domain, _: &Domain) -> Result<()> {
        Ok(())
    }
    fn block(&self, _: &Unit, _: &Requester, _: &Domain) {}

    fn invalidate(&self, invalidation: &Invalidation<'_>) -> Result<Ticket> {
        let id = invalidation.tag.id as usize;
        // SAFETY: loom checks that the number is not given away meanwhile.
        self.meaning[id].with(|meaning| assert!(unsafe { *meaning } < 2));
        self.drain();
        *self.cached[id].lock().unwrap() = false;
        Ok(Ticket(0))
    }

    fn wait(&self, _: Ticket) -> Result<()> {
        Ok(())
    }
    fn enable(&self) -> Result<()> {
        Ok(())
    }
    fn shutdown(&self) -> Result<()> {
        Ok(())
    }
    fn suspend(&self) -> Result<()> {
        Ok(())
    }
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    fn drain_faults(&self, _: &mut dyn FnMut(FaultRecord)) -> DrainedFaults {
        DrainedFaults::default()
    }
}

/// A unit in scalable mode: hardware fetches the PASID entry by itself, at any time.
#[cfg(feature = "vtd")]
mod vtd {
    use std::ops::Deref;

    use iommu::PhysAddr;
    use iommu::arch::vtd::driver::OnePasid;
    use iommu::arch::vtd::layout::scalable::{PasidDirectoryEntry, PasidEntry};
    use iommu::arch::vtd::layout::{AddressWidth, DomainId};
    use iommu::hwmem::Table;
    use iommu::iotlb::{CacheTag, Depth, Invalidation};
    use iommu::ops::IommuOps;
    use iommu::pgtable::PageSizes;
    use loom::sync::Arc;
    use loom::thread;

    use super::{Heap, Stage};

    struct Scalable {
        stage: Arc<Stage>,
        pasid: OnePasid<Heap>,
    }

    impl Deref for Scalable {
        type Target = Stage;

        fn deref(&self) -> &Stage {
            &self.stage
        }
    }

    fn entry(id: u32) -> PasidEntry {
        let domain = DomainId::new(id as u16 + 1);
        PasidEntry::second_stage(PhysAddr::new(0x5000), AddressWidth::Bits48, domain).with_page_snoop()
    }

    impl Scalable {
        fn new() -> Arc<Self> {
            let heap = Heap { step: 0 };
            Arc::new(Self { stage: Stage::new(), pasid: OnePasid::new(heap).unwrap() })
        }

        /// Hardware: fetches the entry and, if it is present, walks through it.
        fn request(&self) {
            let _walking = self.hardware.walking.lock().unwrap();
            let heap = Heap { step: 0 };
            // SAFETY: the tables live as long as `self`; a PASID table has two of a model's frames.
            let directory = unsafe { Table::from_phys(&heap, self.pasid.directory(), 0) };
            let table = PasidDirectoryEntry { word: directory.entry(0).load() }.table().unwrap();
            // SAFETY: as above.
            let table = unsafe { Table::from_phys(&heap, table, 1) };
            let fetched = PasidEntry { words: std::array::from_fn(|word| table.entry(word).load()) };
            if fetched.is_present() {
                let id = u32::from(fetched.domain_id().as_u16()).wrapping_sub(1);
                assert_eq!(fetched, entry(id), "an entry is seen before it is whole");
                self.hardware.walk(id, &self.paging);
            }
        }

        fn attach_entry(&self) -> CacheTag {
            let tag = self.acquire(None);
            self.pasid.publish(entry(tag.id));
            tag
        }

        fn detach_entry(&self, tag: CacheTag) {
            assert_eq!(self.pasid.withdraw(), Some(entry(tag.id)));
            let all = Invalidation { tag, devices: &[], ranges: &[], depth: Depth::Tables, leaves: PageSizes::NONE };
            let _ = self.hardware.invalidate(&all).unwrap();
            self.pasid.clear();
            self.stage.withdraw(tag);
        }
    }

    fn beside<T: 'static>(
        scalable: &Arc<Scalable>,
        work: impl FnOnce(&Scalable) -> T + 'static,
    ) -> thread::JoinHandle<T> {
        let scalable = scalable.clone();
        thread::spawn(move || work(&scalable))
    }

    fn explore(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(model);
    }

    #[test]
    fn a_pasid_entry_is_attached_beside_unmap() {
        explore(|| {
            let scalable = Scalable::new();
            let attaching = beside(&scalable, Scalable::attach_entry);
            let device = beside(&scalable, Scalable::request);
            scalable.unmap();
            device.join().unwrap();
            let tag = attaching.join().unwrap();
            assert!(!scalable.hardware.has_cached(tag.id), "a translation outlives its invalidation");
        });
    }

    #[test]
    fn a_pasid_entry_is_detached_beside_unmap() {
        explore(|| {
            let scalable = Scalable::new();
            let tag = scalable.attach_entry();
            let detaching = beside(&scalable, move |scalable| scalable.detach_entry(tag));
            let device = beside(&scalable, Scalable::request);
            scalable.unmap();
            device.join().unwrap();
            detaching.join().unwrap();
            assert!(!scalable.hardware.has_cached(tag.id), "a translation outlives its domain id");
            assert_eq!(scalable.ids.in_use(), 0);
        });
    }
}

fn page() -> IovaRange {
    IovaRange::from_len(Iova::new(0), 0x1000).unwrap()
}

fn spec() -> DomainSpec {
    let page_sizes = PageSizes::from_bits(1 << 12);
    let traits = UnitTraits {
        driver: "one table",
        coherency: WalkerCoherency::Snoops,
        page_sizes,
        widths: 1 << 14,
        map_flush: MapFlush::Never,
        features: DomainFeatures::empty(),
    };
    let range = IovaRange::from_len(Iova::new(0), 0x4000).unwrap();
    DomainSpec { stage: ops::Stage::Second, traits, windows: Windows::new(Window { range, page_sizes }) }
}

/// A unit, a domain in which one page is mapped, and numbers.
struct Stage {
    hardware: Ref<Hardware>,
    unit: Unit,
    paging: Paging,
    ids: IdBitmap<Heap>,
}

impl Stage {
    fn new() -> Arc<Self> {
        Self::with_clock(0)
    }

    fn with_clock(step: u64) -> Arc<Self> {
        let heap = Heap { step };
        let hardware = Hardware {
            cached: std::array::from_fn(|_| Mutex::new(false)),
            meaning: std::array::from_fn(|_| UnsafeCell::new(0)),
            walking: Mutex::new(()),
        };
        let hardware = Slab::new(heap.clone()).unwrap().insert(hardware).map_err(|(error, _)| error).unwrap();
        let unit = Unit::new(Ref::map(hardware.clone(), |hardware| hardware as &dyn IommuOps));
        let table = PageTable::new(heap.clone(), Tiny, Config::new::<Tiny>(1)).unwrap();
        let paging = Paging::new(heap.clone(), DomainKind::Paging, &spec(), table);
        // SAFETY: no device is real.
        unsafe { paging.map(page(), PhysAddr::new(0x8000), Prot::RW, PageSizes::ALL) }.unwrap();
        let ids = IdBitmap::new(heap, IDS as u32 - 1, NoSpaceReason::DomainIds).unwrap();
        Arc::new(Self { hardware, unit, paging, ids })
    }

    fn acquire(&self, pasid: Option<Pasid>) -> CacheTag {
        self.paging.tags().acquire(&self.unit, pasid, &self.ids).unwrap()
    }

    /// Attach: publish the tag, then let hardware walk.
    fn attach(&self) -> CacheTag {
        let tag = self.acquire(None);
        self.hardware.walk(tag.id, &self.paging);
        tag
    }

    /// Detach: stop walking, invalidate all, give the number to somebody else.
    fn detach(&self, tag: CacheTag) {
        let all = Invalidation { tag, devices: &[], ranges: &[], depth: Depth::Tables, leaves: PageSizes::NONE };
        let _ = self.hardware.invalidate(&all).unwrap();
        self.withdraw(tag);
    }

    fn withdraw(&self, tag: CacheTag) {
        match self.paging.tags().release(&self.unit, tag) {
            Ok(Last::Yes) => {
                self.hardware.reuse(tag.id);
                self.ids.free(tag.id);
            }
            Ok(Last::No) => {}
            Err(_) => self.ids.quarantine(tag.id),
        }
    }

    fn unmap(&self) {
        let mut flush = Flush::new();
        // SAFETY: one thread of each model unmaps.
        unsafe { self.paging.unmap(page(), &mut flush) }.unwrap();
        self.paging.sync(&mut flush).unwrap();
    }
}

fn beside<T: 'static>(stage: &Arc<Stage>, work: impl FnOnce(&Stage) -> T + 'static) -> thread::JoinHandle<T> {
    let stage = stage.clone();
    thread::spawn(move || work(&stage))
}

#[test]
fn attach_beside_unmap() {
    loom::model(|| {
        let stage = Stage::new();
        let attaching = beside(&stage, Stage::attach);
        stage.unmap();
        // Unmap has seen the tag, or hardware has seen the cleared leaf.
        let tag = attaching.join().unwrap();
        assert!(!stage.hardware.has_cached(tag.id), "a translation outlives its invalidation");
    });
}

#[test]
fn two_attaches_that_share_a_tag_beside_unmap() {
    loom::model(|| {
        let stage = Stage::new();
        let attaching = [beside(&stage, Stage::attach), beside(&stage, Stage::attach)];
        stage.unmap();
        for attaching in attaching {
            let tag = attaching.join().unwrap();
            assert!(!stage.hardware.has_cached(tag.id), "a translation outlives its invalidation");
        }
    });
}

#[test]
fn detach_beside_unmap() {
    loom::model(|| {
        let stage = Stage::new();
        let tag = stage.attach();
        let detaching = beside(&stage, move |stage| stage.detach(tag));
        stage.unmap();
        detaching.join().unwrap();
        assert!(!stage.hardware.has_cached(tag.id));
        assert!(stage.paging.tags().is_empty());
        assert_eq!(stage.ids.in_use(), 0);
    });
}

#[test]
fn one_attaches_while_the_other_detaches() {
    loom::model(|| {
        let stage = Stage::new();
        let tag = stage.attach();
        let detaching = beside(&stage, move |stage| stage.detach(tag));
        let next = stage.acquire(None);
        detaching.join().unwrap();
        // The number that is in use now was not given away, or it is another one.
        assert_eq!(stage.ids.in_use(), 1);
        assert!(stage.ids.is_taken(next.id));
        stage.withdraw(next);
        assert!(stage.paging.tags().is_empty());
        assert_eq!(stage.ids.in_use(), 0);
    });
}

#[test]
fn two_releases_beside_a_reader() {
    loom::model(|| {
        // Waits end early: two threads that spin for a third would spin for ever under loom.
        let stage = Stage::with_clock(1);
        let tags = [1, 2].map(|id| stage.acquire(Pasid::new(id)));
        let releasing = tags.map(|tag| beside(&stage, move |stage| stage.withdraw(tag)));
        let all: &Tags<Heap> = stage.paging.tags();
        for (unit, tag) in all.read().iter() {
            let _ = unit
                .invalidate(&Invalidation {
                    tag,
                    devices: &[],
                    ranges: &[],
                    depth: Depth::Leaves,
                    leaves: PageSizes::NONE,
                })
                .unwrap();
        }
        releasing.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(all.is_empty(), stage.ids.quarantined() == 0);
    });
}
