//! Two producers on the invalidation queue, under loom: with a unit that works whenever one of them
//! polls, and with one that works at once and stops at a refused request.
#![cfg(all(feature = "vtd", loom))]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use iommu::arch::vtd::driver::{Queue, QueueConfig, UnitRegisters};
use iommu::arch::vtd::layout::descriptors::{Drain, IotlbScope, Request};
use iommu::arch::vtd::layout::registers::{FaultStatus, Global, offset};
use iommu::arch::vtd::layout::{Descriptor, DomainId};
use iommu::hwmem::Table;
use iommu::platform::{Hosted, Instant, Platform, Registers};
use iommu::{Error, InvalidationReason, PhysAddr, Result};
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;

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
