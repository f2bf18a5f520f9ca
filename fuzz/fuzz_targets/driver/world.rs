//! The kernel and the hardware below the driver: clock, interrupt flag, configuration space, units.
//!
//! There is one world, so that the platform is a type without content: what the driver leaks on
//! purpose holds nothing of ours.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use iommu::pci::PciConfig;
use iommu::platform::{Hosted, Instant, InterruptState, Platform, Processor, Registers};
use iommu::{Error, PhysAddr, PhysRange, Result, SourceId};

use crate::memory::{self, FRAME, memory};
use crate::pci::{ConfigSpace, Pci};
use crate::unit::{self, Access, Reached, Template, Unit};

/// RAM as an identity domain sees it.
pub const RAM: (u64, u64) = (0, 0x7fff_ffff);
/// Units beyond these cannot be mapped.
const MAX_UNITS: usize = 4;
/// Register accesses and looks at the clock in one operation of the driver. Every wait is bounded, so
/// more would be a loop without end.
const MAX_STEPS: u64 = 3_000_000;
/// Addresses at which devices try their luck while the driver works.
const MAX_WATCHED: usize = 64;
/// How many of them at a time.
const TRIES: usize = 6;

static WORLD: Mutex<Option<World>> = Mutex::new(None);
/// Units may have failed, but never said or did what is not so.
static TRUTHFUL: AtomicBool = AtomicBool::new(true);

pub struct World {
    pub units: Vec<Unit>,
    pub template: Template,
    pub pci: Pci,
    /// Nothing has gone wrong on purpose so far.
    pub pristine: bool,
    /// Devices access memory whenever the driver tells a unit to invalidate.
    pub devices_are_busy: bool,
    /// The processor stores 16 bytes at once.
    pub stores_pairs: bool,
    /// Memory that was unmapped and synced: nothing may reach it any more.
    pub returned: Vec<(u64, u64)>,
    /// Where devices have written to.
    pub written: Vec<u64>,
    /// Whose registers the kernel has mapped.
    mapped: Vec<u64>,
    watched: VecDeque<(usize, SourceId, u64)>,
    clock_step: u64,
    clock: u64,
    /// How many locks are held: interrupts are saved as often.
    locks: u32,
    steps: u64,
}

pub fn begin(base: u64, frames: u64, clock_step: u64, template: Template) {
    memory::begin(base, frames);
    if template.has_write_buffers() {
        memory().buffers = Some(Vec::new());
    }
    TRUTHFUL.store(true, Ordering::Relaxed);
    *WORLD.lock().unwrap() = Some(World {
        units: Vec::new(),
        template,
        pci: Pci::default(),
        pristine: true,
        devices_are_busy: false,
        stores_pairs: true,
        returned: Vec::new(),
        written: Vec::new(),
        mapped: Vec::new(),
        watched: VecDeque::new(),
        clock_step,
        clock: 0,
        locks: 0,
        steps: 0,
    });
}

/// Ends it: what the driver has leaked on purpose goes.
pub fn end() {
    *WORLD.lock().unwrap() = None;
    memory::begin(0, 0);
}

pub fn with<T>(look: impl FnOnce(&mut World) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<World>> = WORLD.lock().unwrap();
    look(guard.as_mut().expect("begun"))
}

pub fn is_truthful() -> bool {
    TRUTHFUL.load(Ordering::Relaxed)
}

impl World {
    /// Begins an operation of the driver.
    pub fn begin_operation(&mut self) {
        assert_eq!(self.locks, 0, "a lock is still held");
        self.steps = 0;
    }

    pub fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < MAX_STEPS, "a wait without bound");
    }

    /// Something is wrong from now on, and perhaps nothing can be trusted.
    pub fn spoil(&mut self, lies: bool) {
        self.pristine = false;
        if lies {
            TRUTHFUL.store(false, Ordering::Relaxed);
        }
    }

    /// Whether a unit has told the driver of a fault since this was asked last.
    pub fn take_refused(&self) -> bool {
        self.units.iter().fold(false, |refused, unit| refused | unit.take_refused())
    }

    /// The kernel is gone without a word, and the next one begins.
    pub fn crash(&mut self) {
        self.mapped.clear();
        self.locks = 0;
        memory().leave_behind();
    }

    /// Lets every unit work, while a processor waits.
    fn let_units_work(&mut self) {
        self.units.iter_mut().for_each(|unit| unit.run_in_background(is_truthful()));
    }

    /// A device accesses memory. It never gets to what a sync has given back.
    pub fn reach(&mut self, unit: usize, source: SourceId, iova: u64, access: Access) -> Option<Reached> {
        let entry = (unit, source, iova);
        if !self.watched.contains(&entry) {
            self.watched.truncate(MAX_WATCHED - 1);
            self.watched.push_front(entry);
        }
        let device_tlb = source.is_pci() && self.pci.has_device_tlb(source.id() as u16);
        let reached = self.units[unit].reach(&self.template, source, iova, access, device_tlb)?;
        let Reached { phys, .. } = reached;
        let back = self.returned.iter().any(|(first, bytes)| phys.wrapping_sub(*first) < *bytes);
        assert!(!back || !is_truthful(), "{source} at {iova:#x} reaches {phys:#x}, which was given back");
        if access == Access::Write {
            self.written.push(phys & !0xfff);
        }
        Some(reached)
    }

    /// Devices access some of what they have accessed before.
    pub fn try_luck(&mut self, tries: usize) {
        for _ in 0..tries.min(self.watched.len()) {
            self.watched.rotate_left(1);
            let Some(&(unit, source, iova)) = self.watched.front() else { return };
            let access = [Access::Read, Access::Write][self.watched.len() & 1];
            let _ = self.reach(unit, source, iova, access);
        }
    }

    /// Nothing in any cache leads there.
    pub fn give_back(&mut self, taken: &[(u64, u64)]) {
        self.returned.extend_from_slice(taken);
        if is_truthful() {
            self.try_luck(MAX_WATCHED);
        }
    }
}

/// The platform of the one world.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

// SAFETY: blocks are given out once and live until they come back; the pointer is theirs. There is
// one processor.
unsafe impl Platform for Kernel {
    type Registers = Window;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        assert_eq!(with(|world| world.locks), 0, "frames are asked for under a lock");
        memory().alloc(order, last.as_u64()).map(PhysAddr::new)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        with(|world| {
            assert_eq!(world.locks, 0, "frames are freed under a lock");
            let freed = memory().take(first.as_u64(), order);
            if is_truthful() {
                world.units.iter().for_each(|unit| unit.convict_freeing(first.as_u64(), FRAME << order));
                // Who still has a cached way to it finds nothing.
                world.try_luck(TRIES);
            }
            drop(freed);
        });
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        let memory = memory();
        let word = memory.word(phys.as_u64());
        NonNull::from(word.unwrap_or_else(|| panic!("{phys} is used and not allocated"))).cast()
    }

    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Result<Window> {
        with(|world| {
            assert_eq!(world.locks, 0, "registers are mapped under a lock");
            let base = base.as_u64();
            if let Some(unit) = world.units.iter().position(|unit| unit.base == base) {
                if unit::is_first_look(bytes) && world.mapped.contains(&base) {
                    // Firmware names a unit twice: two drivers for one queue.
                    world.spoil(true);
                }
                world.mapped.push(base);
                return Ok(Window { unit, bytes });
            }
            if world.units.len() >= MAX_UNITS {
                return Err(Error::NoMemory);
            }
            let (unit, truthful) = world.template.unit(world.units.len(), base);
            if !truthful {
                world.spoil(true);
            }
            world.units.push(unit);
            world.mapped.push(base);
            Ok(Window { unit: world.units.len() - 1, bytes })
        })
    }

    fn now(&self) -> Instant {
        with(|world| {
            world.step();
            world.clock = world.clock.saturating_add(world.clock_step);
            Instant::from_nanos(world.clock)
        })
    }

    fn spin_hint(&self) {
        with(World::let_units_work);
    }

    fn clean(&self, start: NonNull<u8>, bytes: usize) {
        memory().clean(start, bytes);
    }

    fn save_interrupts(&self) -> InterruptState {
        with(|world| {
            world.locks += 1;
            InterruptState(world.locks as usize)
        })
    }

    fn restore_interrupts(&self, state: InterruptState) {
        with(|world| {
            assert_eq!(world.locks as usize, state.0, "interrupt states are put back out of order");
            world.locks -= 1;
        });
    }

    fn ram(&self, visit: &mut dyn FnMut(PhysRange)) {
        assert_eq!(with(|world| world.locks), 0, "RAM is asked for under a lock");
        let (first, last) = RAM;
        visit(PhysRange::new(PhysAddr::new(first), PhysAddr::new(last)).unwrap());
    }

    fn pci(&self) -> Option<&dyn PciConfig> {
        Some(&ConfigSpace)
    }

    unsafe fn store_128(&self, target: NonNull<u128>, value: u128) -> Option<()> {
        if !with(|world| world.stores_pairs) {
            return None;
        }
        // SAFETY: passed on from the caller.
        unsafe { Hosted::store_128(target, value) }
    }
}

/// The registers of one unit.
#[derive(Debug)]
pub struct Window {
    unit: usize,
    bytes: usize,
}

impl Window {
    fn unit<T>(&self, offset: usize, access: impl FnOnce(&mut Unit) -> T) -> Option<T> {
        with(|world| {
            world.step();
            let inside = offset.checked_add(4).is_some_and(|end| end <= self.bytes);
            inside.then(|| access(&mut world.units[self.unit]))
        })
    }
}

impl Registers for Window {
    fn read32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4), "read at {offset:#x}");
        self.unit(offset, |unit| unit.read32(offset)).unwrap_or(u32::MAX)
    }

    fn write32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4), "write at {offset:#x}");
        if offset == unit::DOORBELL {
            with(|world| world.devices_are_busy.then(|| world.try_luck(TRIES)));
        }
        self.unit(offset, |unit| unit.write32(is_truthful(), offset, value));
    }
}
