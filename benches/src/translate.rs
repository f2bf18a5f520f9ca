//! Device-side translation: what a request costs in the VT-d unit in software, with the translation in its
//! IOTLB and without.

use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant as Clock;

use iommu::arch::vtd::device::{
    DeviceAnswer, DeviceConfig, Host, Request, RequestAccess, Snoop, Unreachable, VtdDevice,
};
use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
use iommu::arch::vtd::layout::registers::{Global, TableMode, offset};
use iommu::arch::vtd::layout::tables::TranslationType;
use iommu::arch::vtd::layout::{AddressWidth, ContextEntry, DomainId, RootEntry};
use iommu::ops::Msi;
use iommu::pgtable::{Config, PageSizes, PageTable, SecondStage, TableList};
use iommu::platform::Registers;
use iommu::{Iova, IovaRange, PhysAddr, Prot};

use crate::pool::{self, Frames};
use crate::sample::{Quiet, Samples};
use crate::strict::Machine;

const NAME: &str = "translate";
const ROUNDS: usize = 200;
const SOURCE: u16 = 0x20;
/// Pages that are mapped, 2 MiB apart: each has a leaf table of its own.
const PAGES: u64 = 4096;
const CALLS: usize = 4096;
const FIGURES: [&str; 4] = [
    "hot, one page again and again",
    "hot, 16 pages at random",
    "hot, 256 pages at random",
    "cold, 4,096 pages, nothing cached",
];

/// Measures, unless other cases are wanted.
pub(crate) fn run(quiet: &Quiet, wanted: &[String]) {
    if !wanted.is_empty() && wanted.iter().all(|name| name != NAME) {
        return;
    }
    pool::reset();
    let world = World::new();
    Samples::measure(quiet, ROUNDS, || world.sample()).print(NAME, &FIGURES, ROUNDS);
}

/// A unit with one device and its tables. Never dropped: the pool takes all frames back.
struct World {
    unit: &'static VtdDevice<Machine, Pool>,
    /// Numbers of pages in no order.
    order: Vec<u64>,
}

impl World {
    fn new() -> Self {
        let table = PageTable::new(Frames, SecondStage::default(), Config::new::<SecondStage>(4)).expect("frames");
        let table = Box::leak(Box::new(table));
        for page in 0..PAGES {
            let range = IovaRange::from_len(iova(page), 0x1000).expect("a range");
            let mut stray = TableList::new();
            // SAFETY: the memory is never accessed.
            let mapped = unsafe { table.map(range, phys(page), Prot::RW, PageSizes::ALL, &mut stray) };
            assert!(mapped.is_ok() && stray.is_empty(), "the page is not mapped yet");
        }
        let (root, context) = (pool::alloc().expect("a frame"), pool::alloc().expect("a frame"));
        word(root).store(RootEntry::new(PhysAddr::new(context)).low, Ordering::Relaxed);
        let kind = TranslationType::Untranslated;
        let entry = ContextEntry::new(kind, table.root(), AddressWidth::Bits48, DomainId::new(7));
        let place = context + u64::from(SOURCE & 0xff) * 16;
        word(place).store(entry.low, Ordering::Relaxed);
        word(place + 8).store(entry.high, Ordering::Relaxed);
        let unit = VtdDevice::new(Machine, Pool, DeviceConfig::default()).expect("frames");
        let unit = Box::leak(Box::new(unit));
        unit.write64(offset::RTADDR, TableMode::Legacy.root_table_address(PhysAddr::new(root)));
        let world = Self { unit, order: shuffled() };
        world.forget();
        unit.write32(offset::GCMD, Global::TE.bits());
        unit.run();
        assert_eq!(unit.translate(&request(5)).expect("it is mapped").phys, phys(5));
        world
    }

    /// Drops what is cached: taking over the root table does (CAP.ESRTPS).
    fn forget(&self) {
        let status = Global::from_bits_retain(self.unit.read32(offset::GSTS)) & Global::STICKY;
        self.unit.write32(offset::GCMD, (status | Global::RTP).bits());
        self.unit.run();
    }

    fn sample(&self) -> Vec<f64> {
        let hot = |pages: usize| {
            let few = self.order.get(..pages).expect("fewer than there are");
            self.translate(few.iter());
            self.translate(few.iter().cycle().take(CALLS))
        };
        let mut figures = vec![hot(1), hot(16), hot(256)];
        self.forget();
        figures.push(self.translate(self.order.iter()));
        figures
    }

    /// Nanoseconds a request.
    fn translate<'a>(&self, pages: impl Iterator<Item = &'a u64>) -> f64 {
        let start = Clock::now();
        let mut requests = 0;
        for page in pages {
            black_box(self.unit.translate(&request(*page)).expect("it is mapped"));
            requests += 1;
        }
        start.elapsed().as_nanos() as f64 / f64::from(requests)
    }
}

fn iova(page: u64) -> Iova {
    Iova::new(1 << 40 | page << 21)
}

fn phys(page: u64) -> PhysAddr {
    PhysAddr::new(1 << 40 | page << 12)
}

fn request(page: u64) -> Request {
    Request::new(SOURCE, iova(page).as_u64(), RequestAccess::Read)
}

/// All pages, in an order that is the same each time.
fn shuffled() -> Vec<u64> {
    let mut order: Vec<u64> = (0..PAGES).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for index in (1..order.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        order.swap(index, (random % (index as u64 + 1)) as usize);
    }
    order
}

fn word(address: u64) -> &'static AtomicU64 {
    // SAFETY: an aligned word of a frame of the pool, which is never unmapped.
    unsafe { &*ptr::with_exposed_provenance(address as usize) }
}

/// The pool's frames as memory.
struct Pool;

impl Host for Pool {
    fn read(&self, address: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
        Ok(word(address.as_u64()).load(Ordering::Acquire))
    }

    fn write32(&self, _: PhysAddr, _: u32) -> Result<(), Unreachable> {
        Err(Unreachable)
    }

    fn write64(&self, _: PhysAddr, _: u64) -> Result<(), Unreachable> {
        Err(Unreachable)
    }

    fn compare_exchange(&self, _: PhysAddr, _: u64, _: u64) -> Result<bool, Unreachable> {
        Err(Unreachable)
    }

    fn interrupt(&self, _: Msi) {}

    fn invalidate_device_tlb(&self, _: u16, _: Option<DevicePasids>, _: DeviceRange) -> DeviceAnswer {
        DeviceAnswer::None
    }
}
