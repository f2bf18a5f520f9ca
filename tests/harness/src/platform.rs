//! The driver's platform: frames in guest RAM, registers of the machine.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{self, Duration};

use iommu::pci::PciConfig;
use iommu::platform::{Hosted, Instant, Platform, Processor};
use iommu::{PhysAddr, PhysRange, Result};

use crate::bus::{Bus, BusRegisters};
use crate::frames::FramePool;
use crate::observed::ObservedMemory;
use crate::pci::PciConfigSpace;
use crate::ram::GuestRam;

/// How many processors the platform tells of. Each live thread that calls into a driver is one; the
/// last is kept for threads that are ending.
pub const PROCESSORS: usize = 32;

/// [`Platform`] over a machine. Clones stand for the same platform.
///
/// The machine may be gone before the last clone is: RAM stays mapped, registers read as all ones.
#[derive(Clone)]
pub struct MachinePlatform {
    shared: Arc<Shared>,
}

struct Shared {
    bus: Arc<dyn Bus>,
    config: PciConfigSpace,
    pool: FramePool,
    observed: Option<Arc<ObservedMemory>>,
    /// Nanoseconds by which its clock is ahead.
    ahead: AtomicU64,
}

impl MachinePlatform {
    /// A platform whose frames come from `pool` and whose registers lie on `bus`.
    pub fn new(bus: Arc<dyn Bus>, pool: FramePool) -> Self {
        Self::over(bus, pool, None)
    }

    /// As [`new`](Self::new), and what the driver does to memory is told to `memory`, whose RAM is the
    /// pool's.
    pub fn with_observed(bus: Arc<dyn Bus>, pool: FramePool, memory: Arc<ObservedMemory>) -> Self {
        Self::over(bus, pool, Some(memory))
    }

    fn over(bus: Arc<dyn Bus>, pool: FramePool, observed: Option<Arc<ObservedMemory>>) -> Self {
        let config = PciConfigSpace::new(bus.clone());
        Self { shared: Arc::new(Shared { bus, config, pool, observed, ahead: AtomicU64::new(0) }) }
    }

    /// Who observes the driver's memory, if anybody does.
    pub fn observed(&self) -> Option<&Arc<ObservedMemory>> {
        self.shared.observed.as_ref()
    }

    /// The allocator of frames: counters, failures on demand, poison.
    pub fn frames(&self) -> &FramePool {
        &self.shared.pool
    }

    /// Frames that the driver holds now.
    pub fn frames_in_use(&self) -> usize {
        self.frames().in_use()
    }

    /// Lets time pass at once, as far as the driver can tell.
    pub fn advance(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.shared.ahead.fetch_add(nanos, Ordering::Relaxed);
    }

    /// The guest's RAM.
    pub fn guest_ram(&self) -> &Arc<GuestRam> {
        self.shared.pool.ram()
    }
}

// SAFETY: the pool gives each frame to one holder, out of RAM that stays mapped while a clone of the
// platform lives. `Hosted` fits devices that are software on this processor. Processor numbers are
// below `PROCESSORS`, and no two live threads share one.
unsafe impl Platform for MachinePlatform {
    type Registers = BusRegisters;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        let first = self.frames().alloc(order, last)?;
        if let Some(memory) = self.observed() {
            memory.allocated(first, order);
        }
        Some(first)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        // Before the next owner can be told of.
        if let Some(memory) = self.observed() {
            memory.freed(first, order);
        }
        self.frames().free(first, order);
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        match self.guest_ram().pointer(phys) {
            Some(pointer) => pointer,
            None => panic!("the driver asked where {phys} is mapped, which is not RAM"),
        }
    }

    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Result<BusRegisters> {
        Ok(BusRegisters::new(self.shared.bus.clone(), base, bytes).with_observed(self.observed().cloned()))
    }

    fn publish(&self) {
        Hosted::publish();
        if let Some(memory) = self.observed() {
            memory.publish();
        }
    }

    fn clean(&self, start: NonNull<u8>, bytes: usize) {
        Hosted::clean(start, bytes);
        let Some(phys) = self.guest_ram().phys_of(start) else { return };
        self.shared.bus.clean(phys, bytes);
        if let Some(memory) = self.observed() {
            memory.clean(phys, bytes as u64);
        }
    }

    unsafe fn store_128(&self, target: NonNull<u128>, value: u128) -> Option<()> {
        // SAFETY: passed on from the caller.
        let store = || unsafe { Hosted::store_128(target, value) };
        let (Some(memory), Some(phys)) = (self.observed(), self.guest_ram().phys_of(target.cast())) else {
            return store();
        };
        let mut stored = None;
        memory.store_pair(phys, [value as u64, (value >> 64) as u64], &mut || stored = store());
        stored
    }

    fn now(&self) -> Instant {
        static START: OnceLock<time::Instant> = OnceLock::new();
        let elapsed = START.get_or_init(time::Instant::now).elapsed();
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        Instant::from_nanos(nanos.saturating_add(self.shared.ahead.load(Ordering::Relaxed)))
    }

    fn spin_hint(&self) {
        self.shared.bus.spin();
    }

    fn processor_id(&self) -> usize {
        processor_of_this_thread()
    }

    fn processor_count(&self) -> usize {
        PROCESSORS
    }

    fn pci(&self) -> Option<&dyn PciConfig> {
        Some(&self.shared.config)
    }

    fn ram(&self, visit: &mut dyn FnMut(PhysRange)) {
        self.guest_ram().ranges().for_each(visit);
    }
}

impl fmt::Debug for MachinePlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MachinePlatform").field(self.frames()).finish()
    }
}

/// A number that no other live thread has.
fn processor_of_this_thread() -> usize {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    struct Processor(usize);
    impl Processor {
        fn take() -> Self {
            let claim = |taken: u64| {
                let free = taken.trailing_ones() as usize;
                (free < PROCESSORS - 1).then_some(taken | 1 << free)
            };
            match TAKEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, claim) {
                Ok(before) => Self(before.trailing_ones() as usize),
                Err(_) => panic!("more than {} threads in drivers at once", PROCESSORS - 1),
            }
        }
    }
    impl Drop for Processor {
        fn drop(&mut self) {
            TAKEN.fetch_and(!(1 << self.0), Ordering::AcqRel);
        }
    }
    thread_local!(static PROCESSOR: Processor = Processor::take());
    // While a thread ends its locals may be gone. The last number is kept for that.
    PROCESSOR.try_with(|processor| processor.0).unwrap_or(PROCESSORS - 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::{PROCESSORS, processor_of_this_thread};

    #[test]
    fn live_threads_have_different_processors() {
        let both = Barrier::new(2);
        let number = || {
            let number = processor_of_this_thread();
            both.wait();
            number
        };
        let (first, second) = thread::scope(|scope| {
            let (first, second) = (scope.spawn(number), scope.spawn(number));
            (first.join().unwrap(), second.join().unwrap())
        });
        assert_ne!(first, second);
        assert!(first < PROCESSORS && second < PROCESSORS);
    }
}
