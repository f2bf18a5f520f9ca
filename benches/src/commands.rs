//! The command queue of an SMMUv3 unit that completes at once, with one producer and with two, so that
//! only software is measured.

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Instant as Clock;

use iommu::arch::smmuv3::driver::{CommandQueue, QueueConfig, RegisterPages, SmmuRegisters};
use iommu::arch::smmuv3::layout::commands::{Command, Leaf, TlbRange};
use iommu::arch::smmuv3::layout::registers::offset;
use iommu::arch::smmuv3::layout::{Asid, Vmid};
use iommu::platform::{Hosted, Instant, Platform, Registers};
use iommu::{PhysAddr, Result};

use crate::pool::{self, Frames};
use crate::sample::{Quiet, Samples};

const NAME: &str = "commands";
const ROUNDS: usize = 100;
const CALLS: u64 = 1000;
/// Calls between two looks at how far the other producer has come.
const STRETCH: u64 = 64;
/// Stretches in which both producers were at it that make a figure, and how many are tried.
const WANTED: usize = 64;
const TRIED: usize = 2_000;
const FIGURES: [&str; 5] = [
    "1 command and its sync",
    "16 commands and their sync",
    "64 commands and their sync",
    "1 command and its sync, two producers",
    "16 commands and their sync, two producers",
];
/// What Linux 6.12 takes for the first and the fourth, with the same kind of unit.
const LINUX: [(usize, f64); 2] = [(0, 106.0), (3, 296.0)];

/// Measures, unless other cases are wanted.
pub(crate) fn run(quiet: &Quiet, wanted: &[String]) {
    if !wanted.is_empty() && wanted.iter().all(|name| name != NAME) {
        return;
    }
    pool::reset();
    let unit = SmmuRegisters::map(Machine, PhysAddr::new(0), RegisterPages::Two).expect("registers");
    let queue = CommandQueue::new(Machine, QueueConfig::default()).expect("frames");
    queue.start(&unit).expect("a queue");
    let sample = || {
        let [one, sixteen, all] = [1, 16, 64].map(|pages| (0..pages).map(page).collect::<Vec<_>>());
        let alone = |commands: &[Command]| batches(&unit, &queue, commands);
        let beside = |commands: &[Command]| two_producers(&unit, &queue, commands);
        vec![alone(&one), alone(&sixteen), alone(&all), beside(&one), beside(&sixteen)]
    };
    let samples = Samples::measure(quiet, ROUNDS, sample);
    samples.print(NAME, &FIGURES, ROUNDS);
    for (figure, linux) in LINUX {
        let ratio = samples.median(figure) / linux;
        println!("{:<48}{ratio:>17.2}", format!("{NAME}: {}, to Linux", FIGURES[figure]));
    }
}

/// Nanoseconds of a call.
fn batches(unit: &SmmuRegisters<Machine>, queue: &CommandQueue<Machine>, commands: &[Command]) -> f64 {
    time(CALLS, || queue.run(unit, black_box(commands)).expect("done"))
}

/// Nanoseconds of a call, while another processor calls as often.
fn two_producers(unit: &SmmuRegisters<Machine>, queue: &CommandQueue<Machine>, commands: &[Command]) -> f64 {
    let (calls, over) = (Line(AtomicU64::new(0)), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                queue.run(unit, black_box(commands)).expect("done");
                calls.0.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut stretches = Vec::new();
        for _ in 0..TRIED {
            let before = calls.0.load(Ordering::Relaxed);
            let time = time(STRETCH, || queue.run(unit, black_box(commands)).expect("done"));
            let others = calls.0.load(Ordering::Relaxed) - before;
            // Else one of the two had no processor for a while.
            if (STRETCH / 2..=STRETCH * 2).contains(&others) {
                stretches.push(time);
            }
            if stretches.len() == WANTED {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        stretches.sort_by(f64::total_cmp);
        stretches.get(stretches.len() / 2).copied().unwrap_or(f64::INFINITY)
    })
}

fn time(calls: u64, call: impl Fn()) -> f64 {
    let start = Clock::now();
    (0..calls).for_each(|_| call());
    start.elapsed().as_nanos() as f64 / calls as f64
}

/// What shares its cache line with nothing.
#[repr(align(128))]
struct Line(AtomicU64);

fn page(number: u64) -> Command {
    let range = TlbRange::page(number << 12);
    Command::TlbNhVa { vmid: Vmid(0), asid: Asid(1), range, leaf: Leaf::Only }
}

/// The pool, with a unit that does at once what it is told.
#[derive(Clone, Copy)]
struct Machine;

// SAFETY: as the pool's own platform.
unsafe impl Platform for Machine {
    type Registers = AtOnce;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        Frames.alloc_frames(order, last)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        // SAFETY: passed on from the caller.
        unsafe { Frames.free_frames(first, order) }
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

/// The registers of a unit: a write of CMDQ_PROD completes the batch, whatever it asks for.
#[derive(Default)]
#[repr(align(128))]
struct AtOnce {
    control: AtomicU32,
    cons: AtomicU32,
}

impl Registers for AtOnce {
    #[inline]
    fn read32(&self, offset: usize) -> u32 {
        match offset {
            offset::CMDQ_CONS => self.cons.load(Ordering::Relaxed),
            // As QEMU's.
            offset::IDR0 => 0x0d44_101b,
            offset::IDR1 => 0x0273_0010,
            offset::IDR5 => 0x74,
            offset::CR0ACK => self.control.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    #[inline]
    fn write32(&self, offset: usize, value: u32) {
        match offset {
            offset::CMDQ_PROD | offset::CMDQ_CONS => self.cons.store(value, Ordering::Relaxed),
            offset::CR0 => self.control.store(value, Ordering::Relaxed),
            _ => {}
        }
    }
}
