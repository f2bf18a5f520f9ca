//! Strict unmap: what the invalidation costs on top of the unmap, with a VT-d unit that completes at
//! once, so that only software is measured.

use std::alloc::{Layout, alloc_zeroed};
use std::hint::black_box;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant as Clock;

use iommu::arch::vtd;
use iommu::arch::vtd::driver::{Queue, QueueConfig, UnitRegisters};
use iommu::arch::vtd::layout::descriptors::{Changed, Drain, IotlbScope, Request};
use iommu::arch::vtd::layout::registers::{Global, offset};
use iommu::arch::vtd::layout::{Descriptor, DomainId};
use iommu::device::Trust;
use iommu::pci::PciConfig;
use iommu::pgtable::PageSizes;
use iommu::platform::{FRAME_BYTES, Hosted, Instant, Platform, Registers};
use iommu::{Domain, Iommu, Iova, IovaRange, PciAddress, PhysAddr, Policy, Prot, Result};

use crate::pool::{self, Frames};
use crate::sample::{Quiet, Samples};

const NAME: &str = "strict";
const ROUNDS: usize = 2000;
const PAGES: u64 = 511;
const FUNCTION: PciAddress = PciAddress::from_requester_id(0, 0x20);
const FIGURES: [&str; 5] = [
    "queue, 1 descriptor and its wait",
    "queue, 16 descriptors and their wait",
    "4K unmap into a gather",
    "4K unmap with its invalidation",
    "8 x 4K apart, one gather, sync",
];

/// Measures, unless other cases are wanted.
pub(crate) fn run(quiet: &Quiet, wanted: &[String]) {
    if !wanted.is_empty() && wanted.iter().all(|name| name != NAME) {
        return;
    }
    pool::reset();
    let world = World::new();
    let samples = Samples::measure(quiet, ROUNDS, || world.sample());
    let note = samples.print(NAME, &FIGURES, ROUNDS);
    println!(
        "{:<48}{:>17.2} ns{note}",
        format!("{NAME}: the invalidation alone"),
        samples.median(3) - samples.median(2)
    );
}

/// A unit with one device, whose domain is measured; and a queue of another unit. Never dropped: the
/// pool takes all frames back.
struct World {
    domain: Domain,
    _iommu: &'static Iommu<Machine>,
    queue: &'static (UnitRegisters<Machine>, Queue<Machine>),
}

impl World {
    fn new() -> Self {
        let iommu = Box::leak(Box::new(Iommu::new(Machine, Policy::default()).expect("frames")));
        vtd::init(iommu, &dmar()).expect("a unit");
        let device = iommu.probe_pci(&OneFunction, FUNCTION, Trust::Trusted).expect("a device");
        iommu.enable().expect("translation");
        let domain = iommu.paging_domain(&[&device]).expect("a domain");
        iommu.attach_device(&domain, &device).expect("attached");
        let registers = UnitRegisters::map(Machine, PhysAddr::new(0)).expect("registers");
        let queue = Queue::new(Machine, QueueConfig::default()).expect("frames");
        queue.start(&registers).expect("a queue");
        Self { domain, _iommu: iommu, queue: Box::leak(Box::new((registers, queue))) }
    }

    fn sample(&self) -> Vec<f64> {
        let one = [page_request(0)];
        let sixteen: [Descriptor; 16] = std::array::from_fn(|page| page_request(page as u64));
        vec![
            self.batches(&one),
            self.batches(&sixteen),
            self.unmaps(Self::unmap_all),
            self.unmaps(Self::unmap_each),
            self.unmap_apart(),
        ]
    }

    fn batches(&self, requests: &[Descriptor]) -> f64 {
        let (registers, queue) = self.queue;
        time(1000, || (0..1000).for_each(|_| queue.run(registers, black_box(requests)).expect("done")))
    }

    /// One call a page, in one leaf table. A page before them keeps it.
    fn unmaps(&self, unmap: fn(&Self)) -> f64 {
        let all = self.map_all();
        let time = time(PAGES, || unmap(self));
        // SAFETY: as in `map_all`.
        unsafe { self.domain.unmap_sync(all) }.expect("whole pages");
        time
    }

    fn map_all(&self) -> IovaRange {
        let all = range(0, PAGES + 1);
        let small = PageSizes::from_bits(1 << 12);
        // SAFETY: the device does nothing, and this is the only thread; so for all below.
        unsafe { self.domain.map_with(all, PhysAddr::new(1 << 40), Prot::RW, small) }.expect("not mapped yet");
        all
    }

    fn unmap_all(&self) {
        let mut gather = self.domain.gather();
        for page in 1..=PAGES {
            // SAFETY: as in `map_all`.
            unsafe { self.domain.unmap(range(page, 1), &mut gather) }.expect("a page");
        }
    }

    fn unmap_each(&self) {
        for page in 1..=PAGES {
            // SAFETY: as above.
            unsafe { self.domain.unmap_sync(range(page, 1)) }.expect("a page");
        }
    }

    fn unmap_apart(&self) -> f64 {
        let all = self.map_all();
        let mut pages = (1..PAGES).step_by(2);
        let time = time(31, || {
            for _ in 0..31 {
                let mut gather = self.domain.gather();
                for page in pages.by_ref().take(8) {
                    // SAFETY: as above.
                    unsafe { self.domain.unmap(range(page, 1), &mut gather) }.expect("a page");
                }
                gather.sync_in_place().expect("done");
            }
        });
        // SAFETY: as above.
        unsafe { self.domain.unmap_sync(all) }.expect("whole pages");
        time
    }
}

fn time(calls: u64, run: impl FnOnce()) -> f64 {
    let start = Clock::now();
    run();
    start.elapsed().as_nanos() as f64 / calls as f64
}

fn range(page: u64, pages: u64) -> IovaRange {
    IovaRange::from_len(Iova::new((1 << 32) + (page << 12)), pages << 12).expect("a range")
}

fn page_request(page: u64) -> Descriptor {
    let scope = IotlbScope::Pages {
        domain: DomainId::new(7),
        address: Iova::new(page << 12),
        mask: 0,
        changed: Changed::Leaves,
    };
    Request::Iotlb(scope, Drain::READS | Drain::WRITES).encode()
}

/// One unit, for all of segment 0 (VT-d 8.1, 8.3).
fn dmar() -> Vec<u8> {
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"DMAR");
    (table[8], table[36]) = (1, 38);
    table.extend([0, 0, 16, 0, 1, 0, 0, 0]);
    table.extend(0xfed9_0000u64.to_le_bytes());
    table[4] = table.len() as u8;
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    table
}

struct OneFunction;

impl PciConfig for OneFunction {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        match (function == FUNCTION, offset) {
            (true, 0) => 0x1234_8086,
            (true, _) => 0,
            (false, _) => u32::MAX,
        }
    }

    fn write32(&self, _: PciAddress, _: u16, _: u32) {}
}

/// The pool, with units that do at once what they are told.
#[derive(Clone, Copy)]
pub(crate) struct Machine;

// SAFETY: as the pool's own platform.
unsafe impl Platform for Machine {
    type Registers = AtOnce;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        if order == 0 {
            return Frames.alloc_frames(order, last);
        }
        let bytes = (FRAME_BYTES << order) as usize;
        let layout = Layout::from_size_align(bytes, bytes).ok()?;
        // SAFETY: the size is not zero. It is never given back.
        NonNull::new(unsafe { alloc_zeroed(layout) }).map(|block| PhysAddr::new(block.as_ptr() as u64))
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        if order == 0 {
            // SAFETY: passed on from the caller.
            unsafe { Frames.free_frames(first, order) }
        }
    }

    #[inline]
    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        Frames.phys_to_virt(phys)
    }

    #[inline]
    fn publish(&self) {
        Frames.publish();
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<AtOnce> {
        Ok(AtOnce::default())
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }
}

/// The registers of a unit: a write of the tail completes the batch, whatever it asks for.
#[derive(Default)]
pub(crate) struct AtOnce {
    status: AtomicU32,
    tail: AtomicU32,
    queue: AtomicU64,
}

/// 48 bits, page-selective invalidation, queue, pass-through.
const CAP: u64 = 0x00d2_008c_222f_0606;
const ECAP: u64 = 0x00f0_0f4a;

impl Registers for AtOnce {
    fn read32(&self, offset: usize) -> u32 {
        match offset {
            offset::VER => 0x10,
            offset::CAP => CAP as u32,
            offset if offset == offset::CAP + 4 => (CAP >> 32) as u32,
            offset::ECAP => ECAP as u32,
            offset::GSTS => self.status.load(Ordering::Relaxed),
            offset::IQH => self.tail.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    #[inline]
    fn write32(&self, offset: usize, value: u32) {
        match offset {
            offset::IQT if value != self.tail.load(Ordering::Relaxed) => {
                self.tail.store(value, Ordering::Relaxed);
                let queue = self.queue.load(Ordering::Relaxed) & !0xfff;
                let last = queue + u64::from(value.wrapping_sub(16) & 0xff0);
                let [low, address] = [last, last + 8].map(|word| {
                    // SAFETY: the driver's ring, which is a frame of the pool and written with atomics.
                    unsafe { &*ptr::with_exposed_provenance::<AtomicU64>(word as usize) }.load(Ordering::Relaxed)
                });
                // SAFETY: the last descriptor of every batch is a wait for the driver's status word, whose
                // upper half stays zero: a processor that has just stored the lower half alone would
                // wait for its own store.
                let status = unsafe { &*ptr::with_exposed_provenance::<AtomicU64>(address as usize) };
                status.store(low >> 32, Ordering::Release);
            }
            offset::GCMD => {
                let once = value & (Global::RTP | Global::TE | Global::QIE).bits();
                let kept = self.status.load(Ordering::Relaxed) & Global::RTP.bits();
                self.status.store(once | kept, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        if offset == offset::IQA {
            self.queue.store(value, Ordering::Relaxed);
        }
    }
}
