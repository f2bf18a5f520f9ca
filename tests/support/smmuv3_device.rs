//! A machine whose SMMUv3 is the device half: it does at once what it is told.

use std::collections::BTreeSet;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use iommu::arch::smmuv3::device::{
    Access, Answer, Blocked, DeviceAnswer, DeviceConfig, Host, InOrder, Interrupt, Misuse, Request, SmmuDevice, Snoop,
    Step, Unreachable,
};
use iommu::arch::smmuv3::layout::commands::{Command, Resume};
use iommu::arch::smmuv3::layout::{Identification, StreamId};
use iommu::pci::PciConfig;
use iommu::platform::{Arena, Frame, Hosted, Instant, Platform, Registers};
use iommu::{PhysAddr, Result};

/// Frames of the machine, and those that the unit has for itself.
const FRAMES: usize = 16_000;
const OWN_FRAMES: usize = 128;

type Smmu = SmmuDevice<&'static Arena, Surroundings, InOrder>;
/// Looks at the unit.
type Probe = Box<dyn FnMut(&Smmu) + Send>;

/// What the unit reaches, and what it did to it.
#[derive(Default)]
pub(crate) struct Surroundings {
    memory: Range<u64>,
    /// Writes here are aborted.
    pub(crate) broken: Mutex<Range<u64>>,
    pub(crate) interrupts: Mutex<Vec<Interrupt>>,
    /// Requests that waited, and what became of them.
    pub(crate) resumed: Mutex<Vec<(u16, Resume)>>,
    /// Streams whose device TLB does not answer.
    pub(crate) deaf: Mutex<BTreeSet<u32>>,
}

impl Surroundings {
    fn word(&self, address: PhysAddr) -> std::result::Result<&AtomicU64, Unreachable> {
        let there = self.memory.contains(&address.as_u64()) && address.is_aligned(8);
        let word = NonNull::new(std::ptr::with_exposed_provenance_mut::<AtomicU64>(address.as_u64() as usize));
        // SAFETY: in the arena, which lives for good; both sides access it by atomics.
        word.filter(|_| there).map(|word| unsafe { word.as_ref() }).ok_or(Unreachable)
    }
}

impl Host for Surroundings {
    fn read(&self, address: PhysAddr, _: Snoop) -> std::result::Result<u64, Unreachable> {
        Ok(self.word(address)?.load(Ordering::SeqCst))
    }

    fn write64(&self, address: PhysAddr, value: u64) -> std::result::Result<(), Unreachable> {
        if self.broken.lock().unwrap().contains(&address.as_u64()) {
            return Err(Unreachable);
        }
        self.word(address)?.store(value, Ordering::SeqCst);
        Ok(())
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> std::result::Result<bool, Unreachable> {
        Ok(self.word(address)?.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).is_ok())
    }

    fn interrupt(&self, interrupt: Interrupt) -> std::result::Result<(), Unreachable> {
        self.interrupts.lock().unwrap().push(interrupt);
        Ok(())
    }

    fn invalidate_atc(&self, stream: StreamId, _: Option<u32>, _: u64, _: u8) -> DeviceAnswer {
        if self.deaf.lock().unwrap().contains(&stream.0) { DeviceAnswer::None } else { DeviceAnswer::Done }
    }

    fn resume(&self, tag: u16, action: Resume) {
        self.resumed.lock().unwrap().push((tag, action));
    }
}

/// The unit, with what it did.
pub(crate) struct Unit {
    smmu: Smmu,
    done: Mutex<Vec<Step>>,
    /// Called before the unit does anything of what it was told.
    probe: Mutex<Option<Probe>>,
}

impl Unit {
    fn work(&self) {
        if let Some(probe) = &mut *self.probe.lock().unwrap() {
            probe(&self.smmu);
        }
        loop {
            match self.smmu.step() {
                Step::Idle => return,
                step => self.done.lock().unwrap().push(step),
            }
        }
    }
}

/// The machine: a platform.
#[derive(Clone)]
pub(crate) struct Machine {
    arena: &'static Arena,
    unit: Arc<Unit>,
    space: Option<Arc<dyn PciConfig + Send + Sync>>,
}

fn arena(frames: usize) -> (&'static Arena, Range<u64>) {
    let region = Box::leak(vec![Frame::ZERO; frames].into_boxed_slice());
    let bounds = region.as_mut_ptr_range();
    let bounds = bounds.start.expose_provenance() as u64..bounds.end.addr() as u64;
    (Arena::new(region).unwrap(), bounds)
}

impl Machine {
    pub(crate) fn new(identification: Identification) -> Self {
        let (arena_of_driver, memory) = arena(FRAMES);
        let surroundings = Surroundings { memory, ..Surroundings::default() };
        let config = DeviceConfig { identification, cache_order: 1 };
        let smmu = SmmuDevice::new(arena(OWN_FRAMES).0, surroundings, config).unwrap();
        let unit = Arc::new(Unit { smmu, done: Mutex::default(), probe: Mutex::default() });
        Self { arena: arena_of_driver, unit, space: None }
    }

    /// The functions to which the driver itself has access.
    pub(crate) fn with_functions(self, space: Arc<dyn PciConfig + Send + Sync>) -> Self {
        Self { space: Some(space), ..self }
    }

    pub(crate) fn surroundings(&self) -> &Surroundings {
        self.unit.smmu.host()
    }

    pub(crate) fn frames_in_use(&self) -> usize {
        self.arena.frames_in_use()
    }

    /// A register of 32 bits.
    pub(crate) fn register(&self, at: usize) -> u32 {
        self.unit.smmu.read32(at)
    }

    pub(crate) fn ask(&self, request: &Request) -> std::result::Result<Answer, Blocked> {
        let answer = self.unit.smmu.translate(request);
        self.unit.work();
        answer
    }

    /// Where an untranslated request arrives.
    pub(crate) fn reach(&self, stream: u32, address: u64, access: Access) -> std::result::Result<PhysAddr, Blocked> {
        self.ask(&Request::new(StreamId(stream), address, access)).map(|answer| answer.phys)
    }

    /// Commands that were executed since this was asked last, in that order.
    pub(crate) fn executed(&self) -> Vec<Command> {
        let done = std::mem::take(&mut *self.unit.done.lock().unwrap());
        let command = |step| match step {
            Step::Executed(command) => Some(command),
            Step::Completed(completion) => Some(Command::Sync { completion }),
            _ => None,
        };
        done.into_iter().filter_map(command).collect()
    }

    /// Has `probe` look at the unit whenever it is told something, before it does anything.
    pub(crate) fn watch(&self, probe: impl FnMut(&Smmu) + Send + 'static) {
        *self.unit.probe.lock().unwrap() = Some(Box::new(probe));
    }

    /// What the driver did that it must not.
    pub(crate) fn misuse(&self) -> Misuse {
        self.unit.smmu.misuse()
    }
}

/// The registers, as the driver has them mapped.
#[derive(Clone)]
pub(crate) struct Mapped(Arc<Unit>);

impl Registers for Mapped {
    fn read32(&self, offset: usize) -> u32 {
        self.0.smmu.read32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.0.smmu.write32(offset, value);
        self.0.work();
    }

    fn read64(&self, offset: usize) -> u64 {
        self.0.smmu.read64(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.0.smmu.write64(offset, value);
        self.0.work();
    }
}

// SAFETY: frames are the arena's.
unsafe impl Platform for Machine {
    type Registers = Mapped;
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

    fn map_registers(&self, _: PhysAddr, _: usize) -> Result<Mapped> {
        Ok(Mapped(self.unit.clone()))
    }

    fn now(&self) -> Instant {
        self.arena.now()
    }

    fn pci(&self) -> Option<&dyn PciConfig> {
        self.space.as_ref().map(|space| &**space as &dyn PciConfig)
    }
}
