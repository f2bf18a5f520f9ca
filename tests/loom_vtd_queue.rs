//! Two producers on the invalidation queue, under loom: with a unit that works whenever one of them
//! polls, with one that works at once and stops at a refused request, and with two units that cache one
//! domain.
#![cfg(all(feature = "vtd", loom))]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use iommu::arch::vtd::driver::{self, Queue, QueueConfig, UnitRegisters};
use iommu::arch::vtd::layout::descriptors::{Drain, IotlbScope, Request};
use iommu::arch::vtd::layout::registers::{FaultStatus, Global, offset};
use iommu::arch::vtd::layout::{Descriptor, DomainId};
use iommu::device::DeviceInfo;
use iommu::domain::{Domain, DomainKind, PagingDomain};
use iommu::frames::{IdBitmap, Ref, Slab};
use iommu::hwmem::Table;
use iommu::iotlb::{Flush, Invalidation, Ticket};
use iommu::ops::{
    Capability, Coverage, DomainFeatures, DomainOps, DomainSpec, IommuOps, MapFlush, Requester, Stage, Unit, UnitTraits,
};
use iommu::pci::PciConfig;
use iommu::pgtable::{Config, PageSizes, PageTable, WalkerCoherency};
use iommu::platform::{Hosted, Instant, Platform, Registers};
use iommu::{
    DrainedFaults, Error, FaultRecord, InvalidationReason, Iova, IovaRange, NoSpaceReason, PhysAddr, ReservedRegions,
    Result, Window, Windows,
};
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;

#[path = "loom/tiny.rs"]
mod tiny;
use tiny::Tiny;

const ORDER: u8 = 2;
const BAD: u16 = 3;

#[derive(Clone)]
struct Machine(Arc<Inner>);

struct Inner {
    /// Written by producers, read by the unit: nothing orders descriptors but the driver's barrier.
    tail: AtomicU32,
    /// FSTS. The unit goes on when it sees it cleared, and sees then what was written before.
    faults: AtomicU32,
    /// Set while the unit works: it is one agent, on whichever thread it works.
    working: AtomicBool,
    executed: [AtomicBool; 4],
    registers: Mutex<State>,
    blocks: Mutex<Vec<(usize, Layout)>>,
    /// Whether the unit works inside the write of the tail.
    inline: bool,
}

#[derive(Default)]
struct State {
    status: u32,
    head: u32,
    queue: u64,
}

struct Access(Machine);

impl Machine {
    fn new(inline: bool) -> Self {
        Self(Arc::new(Inner {
            tail: AtomicU32::new(0),
            faults: AtomicU32::new(0),
            working: AtomicBool::new(false),
            executed: std::array::from_fn(|_| AtomicBool::new(false)),
            registers: Mutex::default(),
            blocks: Mutex::default(),
            inline,
        }))
    }

    fn queue(&self) -> (UnitRegisters<Self>, Queue<Self>) {
        let unit = UnitRegisters::map(self.clone(), PhysAddr::new(0)).unwrap();
        let queue = Queue::new(self.clone(), QueueConfig { order: ORDER, ..QueueConfig::default() }).unwrap();
        queue.start(&unit).unwrap();
        (unit, queue)
    }

    fn table(&self, address: u64, order: u8) -> Table<'_> {
        // SAFETY: blocks live as long as the machine.
        unsafe { Table::from_phys(self, PhysAddr::new(address & !0xfff), order) }
    }

    /// Fetches and executes up to the tail, or to what it refuses.
    fn run(&self, tail: u32) {
        let (queue, mut head) = {
            let state = self.0.registers.lock().unwrap();
            (state.queue, state.head)
        };
        if head == tail {
            return;
        }
        let ring = self.table(queue, ORDER);
        while head != tail {
            if self.0.faults.load(Ordering::Relaxed) != 0 {
                break;
            }
            fence(Ordering::Acquire);
            let words = [0, 1].map(|word| ring.entry(head as usize * 2 + word).load_relaxed());
            let request = Descriptor { words: [words[0], words[1], 0, 0] }.decode();
            match request.expect("the unit sees what was written before the tail") {
                Request::Iotlb(IotlbScope::Domain(domain), _) if domain.as_u16() == BAD => {
                    self.0.faults.fetch_or(FaultStatus::IQE.bits(), Ordering::Relaxed);
                    break;
                }
                Request::Iotlb(IotlbScope::Domain(domain), _) => {
                    self.0.executed[usize::from(domain.as_u16())].store(true, Ordering::Relaxed);
                }
                Request::Wait { address, data, .. } => {
                    let word = (address.as_u64() & 0xfff) as usize / 8;
                    self.table(address.as_u64(), 0).entry(word).store(u64::from(data));
                }
                other => panic!("{other:?}"),
            }
            head = (head + 1) % (ring.len() as u32 / 2);
            self.0.registers.lock().unwrap().head = head;
        }
    }

    /// What a unit does by itself: looks at the tail and works.
    fn work(&self) {
        if self.0.working.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            let tail = self.0.tail.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            self.run(tail);
            self.0.working.store(false, Ordering::Release);
        }
    }

    fn was_executed(&self, domain: u16) -> bool {
        self.0.executed[usize::from(domain)].load(Ordering::Relaxed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (block, layout) in self.blocks.get_mut().unwrap().drain(..) {
            // SAFETY: allocated with this layout, and nobody is left to use it.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(block), layout) };
        }
    }
}

// SAFETY: blocks are handed out once, and live as long as the machine.
unsafe impl Platform for Machine {
    type Registers = Access;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, _last: PhysAddr) -> Option<PhysAddr> {
        let bytes = 4096usize << order;
        let layout = Layout::from_size_align(bytes, bytes).ok()?;
        // SAFETY: the layout has a size.
        let block = NonNull::new(unsafe { alloc_zeroed(layout) })?.as_ptr().expose_provenance();
        self.0.blocks.lock().unwrap().push((block, layout));
        Some(PhysAddr::new(block as u64))
    }

    unsafe fn free_frames(&self, _first: PhysAddr, _order: u8) {}

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(phys.as_u64() as usize)).unwrap()
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<Access> {
        Ok(Access(self.clone()))
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(0) // No bound passes in a model.
    }
}

impl Registers for Access {
    fn read32(&self, offset: usize) -> u32 {
        if offset == offset::FSTS && !self.0.0.inline {
            self.0.work();
        }
        if offset == offset::FSTS {
            // A register has one value: the newest.
            return self.0.0.faults.fetch_or(0, Ordering::Relaxed);
        }
        let state = self.0.0.registers.lock().unwrap();
        match offset {
            offset::VER => 0x10,
            offset::GSTS => state.status,
            offset::IQH => state.head << 4,
            offset::CAP | offset::ECAP => 0x206,
            _ => 0,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        match offset {
            offset::GCMD => self.0.0.registers.lock().unwrap().status = value & Global::QIE.bits(),
            offset::FSTS => drop(self.0.0.faults.fetch_and(!value, Ordering::Relaxed)),
            offset::IQT if self.0.0.inline => self.0.run(value >> 4),
            offset::IQT => self.0.0.tail.store(value >> 4, Ordering::Relaxed),
            _ => {}
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        if offset == offset::IQA {
            self.0.0.registers.lock().unwrap().queue = value;
        }
    }
}

fn domain(id: u16) -> Descriptor {
    Request::Iotlb(IotlbScope::Domain(DomainId::new(id)), Drain::empty()).encode()
}

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 5_000;
    builder.check(model);
}

#[test]
fn a_batch_is_done_when_its_wait_returns() {
    explore(|| {
        let machine = Machine::new(false);
        let shared = Arc::new(machine.queue());
        let producer = {
            let (machine, shared) = (machine.clone(), shared.clone());
            thread::spawn(move || {
                shared.1.run(&shared.0, &[domain(1)]).unwrap();
                assert!(machine.was_executed(1));
            })
        };
        shared.1.run(&shared.0, &[domain(2)]).unwrap();
        assert!(machine.was_executed(2));
        producer.join().unwrap();
    });
}

fn refused_beside_accepted(inline: bool) {
    explore(move || {
        let machine = Machine::new(inline);
        let shared = Arc::new(machine.queue());
        let producer = {
            let shared = shared.clone();
            thread::spawn(move || {
                let reason = InvalidationReason::Refused;
                let request = domain(BAD).words[0];
                assert_eq!(shared.1.run(&shared.0, &[domain(BAD)]), Err(Error::Invalidation { reason, request }));
            })
        };
        shared.1.run(&shared.0, &[domain(2)]).unwrap();
        assert!(machine.was_executed(2));
        producer.join().unwrap();
    });
}

#[test]
fn a_request_that_is_refused_at_once_fails_the_right_batch() {
    refused_beside_accepted(true);
}

#[test]
fn a_request_that_is_refused_late_fails_the_right_batch() {
    refused_beside_accepted(false);
}

/// A unit that can do nothing but invalidate.
struct Invalidator {
    machine: Machine,
    registers: UnitRegisters<Machine>,
    queue: Queue<Machine>,
    tickets: Mutex<Vec<Option<driver::Ticket>>>,
}

impl Invalidator {
    fn new() -> Self {
        let machine = Machine::new(false);
        let (registers, queue) = machine.queue();
        Self { machine, registers, queue, tickets: Mutex::default() }
    }
}

impl IommuOps for Invalidator {
    fn invalidate(&self, invalidation: &Invalidation<'_>) -> Result<Ticket> {
        // The page tells the requests apart.
        let page = invalidation.ranges[0].start().as_u64() >> 12;
        let ticket = self.queue.submit(&self.registers, &[domain(page as u16)])?;
        let mut tickets = self.tickets.lock().unwrap();
        tickets.push(Some(ticket));
        Ok(Ticket(tickets.len() as u64 - 1))
    }

    fn wait(&self, ticket: Ticket) -> Result<()> {
        let ticket = self.tickets.lock().unwrap()[ticket.0 as usize].take().unwrap();
        self.queue.wait(&self.registers, ticket)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
    fn name(&self) -> &'static str {
        "invalidator"
    }
    fn base(&self) -> PhysAddr {
        PhysAddr::new(0)
    }
    fn coverage(&self, _: &DeviceInfo, _: &dyn PciConfig) -> Coverage {
        Coverage::Rest
    }
    fn traits(&self, _: Stage) -> Option<UnitTraits> {
        Some(spec().traits)
    }
    fn windows(&self, _: Stage) -> Windows {
        spec().windows
    }
    fn default_stage(&self) -> Stage {
        Stage::Second
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

fn spec() -> DomainSpec {
    let page_sizes = PageSizes::from_bits(1 << 12);
    let traits = UnitTraits {
        driver: "invalidator",
        coherency: WalkerCoherency::Snoops,
        page_sizes,
        widths: 1 << 14,
        map_flush: MapFlush::Never,
        features: DomainFeatures::empty(),
    };
    let range = IovaRange::from_len(Iova::new(0), 0x4000).unwrap();
    DomainSpec { stage: Stage::Second, traits, windows: Windows::new(Window { range, page_sizes }) }
}

/// A domain that two units cache.
struct Shared {
    units: [Ref<Invalidator>; 2],
    paging: PagingDomain<Tiny, Machine>,
    _ids: IdBitmap<Machine>,
}

impl Shared {
    fn new() -> Arc<Self> {
        let heap = Machine::new(false);
        let slab = Slab::new(heap.clone()).unwrap();
        let units = [(); 2].map(|()| slab.insert(Invalidator::new()).map_err(|(error, _)| error).unwrap());
        let table = PageTable::new(heap.clone(), Tiny, Config::new::<Tiny>(1)).unwrap();
        let paging = PagingDomain::new(heap.clone(), DomainKind::Paging, &spec(), table);
        let ids = IdBitmap::new(heap, 3, NoSpaceReason::DomainIds).unwrap();
        for unit in &units {
            let unit = Unit::new(Ref::map(unit.clone(), |unit| unit as &dyn IommuOps));
            paging.tags().acquire(&unit, None, &ids).unwrap();
        }
        Arc::new(Self { units, paging, _ids: ids })
    }

    /// What a gather does after an unmap: every unit has executed it when this returns.
    fn sync(&self, page: u16) {
        let mut flush = Flush::new();
        flush.add(IovaRange::from_len(Iova::new(u64::from(page) << 12), 0x1000).unwrap());
        self.paging.sync(&mut flush).unwrap();
        for unit in &self.units {
            assert!(unit.machine.was_executed(page), "a unit was not waited for");
        }
    }
}

#[test]
fn a_sync_waits_for_all_units_whoever_else_waits() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 10_000;
    builder.check(|| {
        let shared = Shared::new();
        let other = {
            let shared = shared.clone();
            thread::spawn(move || shared.sync(1))
        };
        shared.sync(2);
        other.join().unwrap();
    });
}
