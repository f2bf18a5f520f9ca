//! Start-up beside a previous kernel's settings, and beside a fence.

extern crate std;
use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec;

use crate::addr::PhysAddr;
use crate::arch::smmuv3::driver::SmmuOptions;
use crate::arch::smmuv3::driver::unit::SmmuUnit;
use crate::arch::smmuv3::firmware::Firmware;
use crate::arch::smmuv3::firmware::iort::samples::{ITS, RMR, SMMU, finish};
use crate::arch::smmuv3::layout::StreamId;
use crate::arch::smmuv3::layout::registers::{Cr0, Gbpa, IrqCtrl, offset};
use crate::error::{Error, Result};
use crate::frames::Slab;
use crate::ops::Msi;
use crate::platform::{Arena, Frame, Hosted, Instant, Platform, Registers};

/// A unit that does at once what registers and queue ask for, and its memory.
#[derive(Clone)]
struct Hardware {
    arena: &'static Arena,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    registers: HashMap<usize, u32>,
    /// IRQ_CTRL is not acknowledged.
    holds_interrupts: bool,
    /// The first commands with translation on are not executed.
    is_deaf: bool,
}

impl Hardware {
    fn new() -> Self {
        Self::with_frames(256)
    }

    fn with_frames(frames: usize) -> Self {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; frames].into_boxed_slice())).unwrap();
        Self { arena, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn unit(&self) -> SmmuUnit<Self> {
        self.try_unit().unwrap()
    }

    fn try_unit(&self) -> Result<SmmuUnit<Self>> {
        let firmware = Firmware::from_iort(self.clone(), &finish(&[ITS, SMMU, RMR]))?;
        let firmware = Slab::new(self.clone())?.insert(firmware).map_err(|(error, _)| error)?;
        SmmuUnit::new(self.clone(), firmware, 0, SmmuOptions::default())
    }

    fn is_on(&self, control: Cr0) -> bool {
        Cr0::from_bits_truncate(self.read32(offset::CR0)).contains(control)
    }

    /// Address and data of both messages.
    fn messages(&self) -> [[u32; 3]; 2] {
        [offset::EVENTQ_IRQ_CFG0, offset::GERROR_IRQ_CFG0].map(|base| [0, 4, 8].map(|at| self.read32(base + at)))
    }
}

impl Registers for Hardware {
    fn read32(&self, at: usize) -> u32 {
        match at {
            // Both stages, messages; 4 KiB, 48 bits.
            offset::IDR0 => 0x0d44_301b,
            offset::IDR1 => 0x0273_0008,
            offset::IDR5 => 0x15,
            at => self.state().registers.get(&at).copied().unwrap_or(0),
        }
    }

    fn write32(&self, at: usize, value: u32) {
        let mut state = self.state();
        let translates = state.registers.get(&offset::CR0).is_some_and(|on| on & Cr0::SMMUEN.bits() != 0);
        let answer = match at {
            offset::CR0 => Some(offset::CR0ACK),
            offset::CMDQ_PROD if translates && core::mem::take(&mut state.is_deaf) => None,
            offset::CMDQ_PROD => Some(offset::CMDQ_CONS),
            offset::IRQ_CTRL if !state.holds_interrupts => Some(offset::IRQ_CTRLACK),
            _ => None,
        };
        let value = if at == offset::GBPA { value & !Gbpa::UPDATE } else { value };
        state.registers.extend([at].into_iter().chain(answer).map(|at| (at, value)));
    }
}

// SAFETY: everything is the arena's.
unsafe impl Platform for Hardware {
    type Registers = Self;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        self.arena.alloc_frames(order, last)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        // SAFETY: passed on from the caller.
        unsafe { self.arena.free_frames(first, order) }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.arena.phys_to_virt(phys)
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<Self> {
        Ok(self.clone())
    }

    fn now(&self) -> Instant {
        self.arena.now()
    }

    fn spin_hint(&self) {
        std::thread::yield_now();
    }
}

#[test]
fn messages_of_a_previous_kernel_do_not_go_on() {
    let hardware = Hardware::new();
    for base in [offset::EVENTQ_IRQ_CFG0, offset::GERROR_IRQ_CFG0] {
        hardware.write64(base, 0x1_dead_0040);
        hardware.write32(base + 8, 77);
    }
    let unit = hardware.unit();
    unit.start().unwrap();
    assert_eq!(hardware.messages(), [[0; 3]; 2], "on its wires");
    *unit.fault_interrupt.lock(&hardware) = Some(Msi { address: PhysAddr::new(0x2_0808_0040), data: 5 });
    unit.start().unwrap();
    assert_eq!(hardware.messages(), [[0x0808_0040, 2, 5]; 2]);
}

#[test]
fn a_fence_amid_the_start_is_not_lost() {
    let hardware = Hardware::new();
    let unit = hardware.unit();
    hardware.state().holds_interrupts = true;
    let started = std::thread::scope(|scope| {
        let start = scope.spawn(|| unit.start());
        while hardware.read32(offset::CR0) & Cr0::CMDQEN.bits() == 0 {
            std::thread::yield_now();
        }
        // Somebody's invalidation has timed out.
        unit.queue.fence();
        unit.fence();
        let mut state = hardware.state();
        state.holds_interrupts = false;
        let interrupts = state.registers.get(&offset::IRQ_CTRL).copied().unwrap_or(0);
        state.registers.insert(offset::IRQ_CTRLACK, interrupts);
        drop(state);
        start.join().unwrap()
    });
    assert_eq!(started, Err(Error::Fenced));
    assert!(!hardware.is_on(Cr0::SMMUEN) && hardware.read32(offset::GBPA) & Gbpa::ABORT != 0);
    unit.start().unwrap();
    assert!(hardware.is_on(Cr0::SMMUEN | Cr0::CMDQEN));
    assert_eq!(hardware.read32(offset::IRQ_CTRL), (IrqCtrl::EVENTQ | IrqCtrl::GERROR).bits());
}

#[test]
fn a_reset_for_a_device_that_is_silent_forgets_what_others_asked_for() {
    let hardware = Hardware::new();
    let unit = hardware.unit();
    unit.fenced_devices.note(&unit.platform, StreamId(3), ()).unwrap();
    hardware.state().is_deaf = true;
    unit.start().unwrap();
    assert!(!hardware.state().is_deaf && hardware.is_on(Cr0::SMMUEN | Cr0::CMDQEN));
    assert_eq!(unit.refuse_fenced_device(StreamId(3)), Err(Error::Fenced), "it has not answered");
    // The queue began anew, with all entries and translations, and a CMD_SYNC.
    assert_eq!(hardware.read32(offset::CMDQ_PROD), 3);
}

#[test]
fn every_failed_allocation_gives_all_frames_back() {
    let mut failures = 0;
    for frames in 2.. {
        let hardware = Hardware::with_frames(frames);
        match hardware.try_unit() {
            Ok(unit) => {
                drop(unit);
                assert_eq!(hardware.arena.frames_in_use(), 0);
                break;
            }
            Err(error) => assert_eq!((error, hardware.arena.frames_in_use()), (Error::NoMemory, 0), "{frames} frames"),
        }
        failures += 1;
    }
    assert!(failures > 20);
}
