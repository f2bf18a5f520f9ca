//! Two producers on the command queue, under loom: with a unit that works whenever one of them looks, in
//! rings that wrap; with one that works at once and stops at a refused command; and beside a reset.
#![cfg(all(feature = "smmuv3", loom))]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use iommu::arch::smmuv3::driver::{CommandQueue, QueueConfig, RegisterPages, SmmuRegisters};
use iommu::arch::smmuv3::layout::commands::{Completion, Leaf, TlbRange};
use iommu::arch::smmuv3::layout::registers::{CommandError, Gerror, QueueBase, QueueIndex, offset};
use iommu::arch::smmuv3::layout::{Asid, Command, Vmid};
use iommu::hwmem::Table;
use iommu::platform::{Hosted, Instant, Platform, Registers};
use iommu::{Error, InvalidationReason, PhysAddr, Result};
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;

const BAD: u64 = 3;

/// When the unit works.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// When CMDQ_PROD is written.
    AtOnce,
    /// When somebody looks at the global errors.
    Late,
}

#[derive(Clone)]
struct Machine(Arc<Inner>);

struct Inner {
    /// Written by producers, read by the unit: nothing orders commands but the driver's barrier.
    prod: AtomicU32,
    /// Written by the unit, with what it did before, and read by all.
    cons: AtomicU32,
    /// GERROR and GERRORN. The unit goes on when it sees them equal, and sees then what was written before.
    errors: [AtomicU32; 2],
    /// Set while the unit works: it is one agent, on whichever thread it works.
    working: AtomicBool,
    executed: [AtomicBool; 4],
    registers: Mutex<State>,
    blocks: Mutex<Vec<(usize, Layout)>>,
    pace: Pace,
}

#[derive(Default)]
struct State {
    control: u32,
    base: u64,
    frozen: bool,
}

struct Access(Machine);

type Shared = (SmmuRegisters<Machine>, CommandQueue<Machine>);

impl Machine {
    fn new(pace: Pace) -> Self {
        Self(Arc::new(Inner {
            prod: AtomicU32::new(0),
            cons: AtomicU32::new(0),
            errors: std::array::from_fn(|_| AtomicU32::new(0)),
            working: AtomicBool::new(false),
            executed: std::array::from_fn(|_| AtomicBool::new(false)),
            registers: Mutex::default(),
            blocks: Mutex::default(),
            pace,
        }))
    }

    fn queue(&self, log2_entries: u8) -> Arc<Shared> {
        let unit = SmmuRegisters::map(self.clone(), PhysAddr::new(0), RegisterPages::Two).unwrap();
        let queue = CommandQueue::new(self.clone(), QueueConfig { log2_entries, ..QueueConfig::default() }).unwrap();
        queue.start(&unit).unwrap();
        Arc::new((unit, queue))
    }

    fn stands(&self) -> bool {
        let [active, acknowledged] = &self.0.errors;
        newest(active) != newest(acknowledged)
    }

    /// Fetches and executes up to CMDQ_PROD, or to what it refuses.
    fn run(&self) {
        let (base, frozen) = {
            let state = self.0.registers.lock().unwrap();
            (QueueBase(state.base), state.frozen)
        };
        let log2 = base.log2_size();
        let prod = QueueIndex(self.0.prod.load(Ordering::Relaxed));
        let mut cons = QueueIndex::new(newest(&self.0.cons));
        if frozen || cons == prod {
            return;
        }
        let order = (log2 + 1).saturating_sub(2);
        // SAFETY: blocks live as long as the machine.
        let ring = unsafe { Table::from_phys(self, base.address(), order) };
        while cons != prod && !self.stands() {
            fence(Ordering::Acquire);
            let words = [0, 1].map(|word| ring.entry(cons.slot(log2) * 2 + word).load_relaxed());
            match Command::decode(words).expect("the unit sees what was written before CMDQ_PROD") {
                Command::TlbNhVa { range, .. } if range.address >> 12 == BAD => {
                    self.0.cons.swap(CommandError::Illegal.with_cons(cons), Ordering::Relaxed);
                    self.0.errors[0].fetch_xor(Gerror::CMDQ_ERR.bits(), Ordering::Release);
                    return;
                }
                Command::TlbNhVa { range, .. } => {
                    self.0.executed[(range.address >> 12) as usize].store(true, Ordering::Relaxed);
                }
                Command::Sync { completion: Completion::None } => {}
                other => panic!("{other:?}"),
            }
            cons = cons.plus(1, log2);
            // What it did is visible before.
            self.0.cons.swap(cons.0, Ordering::Release);
        }
    }

    /// What a unit does by itself.
    fn work(&self) {
        if self.0.working.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            self.run();
            self.0.working.store(false, Ordering::Release);
        }
    }

    fn was_executed(&self, page: u64) -> bool {
        self.0.executed[page as usize].load(Ordering::Relaxed)
    }
}

/// A register has one value, the newest. (To loom that is so only if it is written like this as well.)
fn newest(register: &AtomicU32) -> u32 {
    register.fetch_or(0, Ordering::Relaxed)
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
        let inner = &self.0.0;
        match offset {
            offset::IDR0 => 0x0d44_101b,
            offset::IDR1 => 0x0273_0010,
            offset::IDR5 => 0x74,
            offset::CR0ACK => inner.registers.lock().unwrap().control,
            offset::CMDQ_CONS => newest(&inner.cons),
            offset::GERROR => {
                if inner.pace == Pace::Late {
                    self.0.work();
                }
                newest(&inner.errors[0])
            }
            offset::GERRORN => newest(&inner.errors[1]),
            _ => 0,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let inner = &self.0.0;
        match offset {
            offset::CR0 => inner.registers.lock().unwrap().control = value,
            offset::CMDQ_CONS => drop(inner.cons.swap(value, Ordering::Relaxed)),
            offset::GERRORN => drop(inner.errors[1].swap(value, Ordering::Relaxed)),
            offset::CMDQ_PROD => inner.prod.store(value, Ordering::Relaxed),
            _ => {}
        }
        if inner.pace == Pace::AtOnce && matches!(offset, offset::CMDQ_PROD | offset::GERRORN) {
            self.0.work();
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        assert_eq!(offset, offset::CMDQ_BASE);
        self.0.0.registers.lock().unwrap().base = value;
    }
}

fn page(number: u64) -> Command {
    let range = TlbRange::page(number << 12);
    Command::TlbNhVa { vmid: Vmid(0), asid: Asid(1), range, leaf: Leaf::Only }
}

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 10_000;
    builder.check(model);
}

/// In a ring of four neither has to wait for room; in one of two both have, and it wraps.
fn two_producers(log2_entries: u8) {
    explore(move || {
        let machine = Machine::new(Pace::Late);
        let shared = machine.queue(log2_entries);
        let producer = {
            let (machine, shared) = (machine.clone(), shared.clone());
            thread::spawn(move || {
                shared.1.run(&shared.0, &[page(1)]).unwrap();
                assert!(machine.was_executed(1));
            })
        };
        shared.1.run(&shared.0, &[page(2)]).unwrap();
        assert!(machine.was_executed(2));
        producer.join().unwrap();
    });
}

#[test]
fn a_batch_is_done_when_its_wait_returns() {
    two_producers(2);
}

#[test]
fn a_ring_that_wraps_is_not_overtaken() {
    two_producers(1);
}

/// One of the two reads the register for both.
#[test]
fn waiters_that_learn_from_each_other() {
    explore(|| {
        let machine = Machine::new(Pace::Late);
        let shared = machine.queue(2);
        let tickets = [1, 2].map(|number| shared.1.submit(&shared.0, &[page(number)]).unwrap());
        let [first, second] = tickets;
        let waiter = {
            let (machine, shared) = (machine.clone(), shared.clone());
            thread::spawn(move || {
                shared.1.wait(&shared.0, second).unwrap();
                assert!(machine.was_executed(2));
            })
        };
        shared.1.wait(&shared.0, first).unwrap();
        assert!(machine.was_executed(1));
        waiter.join().unwrap();
    });
}

fn refused_beside_accepted(pace: Pace) {
    explore(move || {
        let machine = Machine::new(pace);
        let shared = machine.queue(2);
        let producer = {
            let shared = shared.clone();
            thread::spawn(move || {
                let (reason, [request, _]) = (InvalidationReason::Refused, page(BAD).encode());
                assert_eq!(shared.1.run(&shared.0, &[page(BAD)]), Err(Error::Invalidation { reason, request }));
            })
        };
        shared.1.run(&shared.0, &[page(2)]).unwrap();
        assert!(machine.was_executed(2));
        producer.join().unwrap();
    });
}

#[test]
fn a_command_that_is_refused_at_once_fails_the_right_batch() {
    refused_beside_accepted(Pace::AtOnce);
}

#[test]
fn a_command_that_is_refused_late_fails_the_right_batch() {
    refused_beside_accepted(Pace::Late);
}

/// CMDQ_CONS begins anew at a place that a waiter could take for the end of its batch.
#[test]
fn a_reset_is_no_completion() {
    explore(|| {
        let machine = Machine::new(Pace::Late);
        let shared = machine.queue(1);
        shared.1.run(&shared.0, &[page(1)]).unwrap();
        machine.0.registers.lock().unwrap().frozen = true;
        let lost = shared.1.submit(&shared.0, &[page(2)]).unwrap();
        let waiter = {
            let shared = shared.clone();
            thread::spawn(move || assert_eq!(shared.1.wait(&shared.0, lost), Err(Error::Fenced)))
        };
        shared.1.reset(&shared.0).unwrap();
        waiter.join().unwrap();
        assert!(!machine.was_executed(2));
    });
}
