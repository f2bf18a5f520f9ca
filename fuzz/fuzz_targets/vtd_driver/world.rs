//! The kernel and the hardware below the driver: memory, clock, interrupt flag, units.
//!
//! There is one world, so that the platform is a type without content: what the driver leaks on
//! purpose holds nothing of ours.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use iommu::platform::{Hosted, Instant, InterruptState, Platform, Registers};
use iommu::{Error, PhysAddr, PhysRange, Result};

use crate::unit::{Template, Unit};

pub const FRAME: u64 = 4096;
/// RAM as an identity domain sees it.
pub const RAM: (u64, u64) = (0, 0x7fff_ffff);
/// Units beyond these cannot be mapped.
const MAX_UNITS: usize = 4;
/// Register accesses and looks at the clock in one operation of the driver. Every wait is bounded, so
/// more would be a loop without end.
const MAX_STEPS: u64 = 3_000_000;

static WORLD: Mutex<Option<World>> = Mutex::new(None);

pub struct World {
    pub memory: Memory,
    pub units: Vec<Unit>,
    pub template: Template,
    /// Nothing has gone wrong on purpose so far.
    pub pristine: bool,
    /// Units may have failed, but never said or did what is not so.
    pub truthful: bool,
    pub clock_step: u64,
    clock: u64,
    /// How many locks are held: interrupts are saved as often.
    locks: u32,
    steps: u64,
}

/// The frames lent to the driver. Blocks that come back go to the system's allocator, where the
/// sanitizer finds whoever uses them afterwards.
pub struct Memory {
    live: BTreeMap<u64, Block>,
    next: u64,
    /// Frames that may still be handed out.
    pub left: u64,
    /// Allocations until one fails.
    pub fail_after: Option<u32>,
}

struct Block {
    at: NonNull<u8>,
    order: u8,
}

// SAFETY: the pointer is used under the world's lock, or by the driver, which owns the block.
unsafe impl Send for Block {}

/// Ends the world of the run before and begins another one.
pub fn begin(base: u64, frames: u64, clock_step: u64, template: Template) {
    let memory = Memory { live: BTreeMap::new(), next: base, left: frames, fail_after: None };
    *WORLD.lock().unwrap() = Some(World {
        memory,
        units: Vec::new(),
        template,
        pristine: true,
        truthful: true,
        clock_step,
        clock: 0,
        locks: 0,
        steps: 0,
    });
}

pub fn with<T>(look: impl FnOnce(&mut World) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<World>> = WORLD.lock().unwrap();
    look(guard.as_mut().expect("begun"))
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

    /// Lets every unit work, while a processor waits.
    fn let_units_work(&mut self) {
        let Self { units, memory, truthful, .. } = self;
        units.iter_mut().for_each(|unit| unit.run_in_background(memory, *truthful));
    }
}

impl Memory {
    pub fn frames_in_use(&self) -> u64 {
        self.live.values().map(|block| 1 << block.order).sum()
    }

    /// The word at `phys`, if it lies in a block that the driver has.
    pub fn word(&self, phys: u64) -> Option<&AtomicU64> {
        let (first, block) = self.live.range(..=phys).next_back()?;
        let offset = phys & !7;
        let offset = offset - first;
        if offset >= FRAME << block.order {
            return None;
        }
        // SAFETY: inside a live block, aligned to 8 bytes; the driver shares these words as atomics.
        Some(unsafe { block.at.add(offset as usize).cast().as_ref() })
    }

    pub fn load(&self, phys: u64) -> Option<u64> {
        self.word(phys).map(|word| word.load(Ordering::Acquire))
    }

    pub fn is_lent(&self, phys: u64) -> bool {
        self.word(phys).is_some()
    }

    /// Stores a doubleword, as status writes do.
    pub fn store32(&self, phys: u64, value: u32) -> Option<()> {
        let word = self.word(phys)?;
        let shift = if phys & 4 == 0 { 0 } else { 32 };
        let merged = word.load(Ordering::Relaxed) & !(0xffff_ffff << shift) | u64::from(value) << shift;
        word.store(merged, Ordering::Release);
        Some(())
    }

    fn alloc(&mut self, order: u8, last: u64) -> Option<u64> {
        let bytes = FRAME.checked_shl(u32::from(order))?;
        if let Some(count) = &mut self.fail_after {
            *count = count.checked_sub(1)?;
        }
        self.left = self.left.checked_sub(bytes / FRAME)?;
        // Every address is used once, so that what is freed is never mistaken for what came after.
        let phys = self.next.next_multiple_of(bytes);
        if phys + bytes - 1 > last {
            return None;
        }
        self.next = phys + bytes;
        // SAFETY: the layout has a size.
        let at = NonNull::new(unsafe { alloc_zeroed(layout(order)) })?;
        self.live.insert(phys, Block { at, order });
        Some(phys)
    }

    fn free(&mut self, phys: u64, order: u8) {
        let block = self.live.remove(&phys).unwrap_or_else(|| panic!("{phys:#x} is freed and not in use"));
        assert_eq!(block.order, order, "{phys:#x} is freed with another order");
        self.left += 1 << order;
        // SAFETY: allocated with this layout, and the driver has given it up.
        unsafe { dealloc(block.at.as_ptr(), layout(order)) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for block in self.live.values() {
            // SAFETY: what the driver has leaked it does not use any more: the run is over.
            unsafe { dealloc(block.at.as_ptr(), layout(block.order)) };
        }
    }
}

fn layout(order: u8) -> Layout {
    let bytes = (FRAME as usize) << order;
    Layout::from_size_align(bytes, bytes).expect("a power of two")
}

/// The platform of the one world.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

// SAFETY: blocks are given out once and live until they come back; the pointer is theirs. There is
// one processor.
unsafe impl Platform for Kernel {
    type Registers = Access;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        with(|world| {
            assert_eq!(world.locks, 0, "frames are asked for under a lock");
            world.memory.alloc(order, last.as_u64()).map(PhysAddr::new)
        })
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        with(|world| {
            assert_eq!(world.locks, 0, "frames are freed under a lock");
            if world.truthful {
                for unit in &world.units {
                    unit.convict_freeing(&world.memory, first.as_u64(), FRAME << order);
                }
            }
            world.memory.free(first.as_u64(), order);
        });
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        with(|world| {
            let word = world.memory.word(phys.as_u64());
            NonNull::from(word.unwrap_or_else(|| panic!("{phys} is used and not allocated"))).cast()
        })
    }

    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Result<Access> {
        with(|world| {
            assert_eq!(world.locks, 0, "registers are mapped under a lock");
            let base = base.as_u64();
            if let Some(unit) = world.units.iter().position(|unit| unit.base == base) {
                if bytes == FRAME as usize {
                    // Firmware names a unit twice: two drivers for one queue.
                    world.pristine = false;
                    world.truthful = false;
                }
                return Ok(Access { unit, bytes });
            }
            if world.units.len() >= MAX_UNITS {
                return Err(Error::NoMemory);
            }
            let unit = world.template.unit(world.units.len(), base);
            world.units.push(unit);
            Ok(Access { unit: world.units.len() - 1, bytes })
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
}

/// The registers of one unit.
#[derive(Debug)]
pub struct Access {
    unit: usize,
    bytes: usize,
}

impl Access {
    fn unit<T>(&self, offset: usize, bytes: usize, access: impl FnOnce(&mut Unit, &Memory, bool) -> T) -> Option<T> {
        with(|world| {
            world.step();
            let World { units, memory, truthful, .. } = world;
            let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
            inside.then(|| access(&mut units[self.unit], memory, *truthful))
        })
    }
}

impl Registers for Access {
    fn read32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4), "read at {offset:#x}");
        self.unit(offset, 4, |unit, memory, _| unit.read32(memory, offset)).unwrap_or(u32::MAX)
    }

    fn write32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4), "write at {offset:#x}");
        self.unit(offset, 4, |unit, memory, truthful| unit.write32(memory, truthful, offset, value));
    }
}
