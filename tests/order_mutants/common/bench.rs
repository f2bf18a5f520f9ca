//! The machine under the driver: memory that a device sees late, a unit that acts when it likes, and
//! requests of devices at the worst moments.

use std::fmt::{self, Debug};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use iommu::bus::Retention;
use iommu::pci::PciConfig;
use iommu::platform::{Hosted, Instant, Platform, Processor, Registers};
use iommu::{Iommu, PciAddress, PhysAddr, PhysRange, Result};
use iommu_harness::observed::{Adversary, Event, ObservedMemory};
use iommu_harness::{FramePool, GuestRam};

use super::devices::Devices;

/// Registers of the unit.
pub(crate) const BASE: u64 = 0xfed9_0000;
/// RAM for the driver's tables.
const TABLES: (u64, u64) = (0x100_0000, 0x200_0000);
/// What polling once costs on the machine's clock.
const TICK: Duration = Duration::from_millis(1);
/// Stores one after the other between which devices ask each time.
const LONG_RUN: u64 = 32;
/// More than a unit does for one request.
const SETTLED: usize = 10_000;

/// Whether the unit acts by itself while the driver works, or only when the driver waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pace {
    Eager,
    Lazy,
}

/// Whether the processor stores 16 bytes at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WideStores {
    Some,
    None,
}

/// What becomes of requests while a unit does not translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Off {
    Passes,
    Aborts,
}

impl Off {
    /// Where a request goes then.
    pub(crate) fn place(self, address: u64) -> Option<u64> {
        (self == Self::Passes).then_some(address)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<K> {
    /// What the unit can do.
    pub(crate) kind: K,
    pub(crate) adversary: Adversary,
    pub(crate) retention: Retention,
    pub(crate) pace: Pace,
    pub(crate) seed: u64,
}

/// A vendor's device half on observed memory, and how its driver half is asked for.
pub(crate) trait Unit: Send + Sync + Sized + 'static {
    /// What units can do.
    type Kind: Copy + Debug + Send + Sync + 'static;
    /// While the driver has suspended it.
    const SUSPENDED: Off;

    fn new(memory: Arc<ObservedMemory>, setup: &Setup<Self::Kind>) -> Self;

    fn read(&self, at: usize) -> u32;
    fn read64(&self, at: usize) -> u64;
    fn write(&self, at: usize, value: u32);
    fn write64(&self, at: usize, value: u64);

    /// Does one thing; `false` when there is nothing to do.
    fn step(&self) -> bool;

    /// Where a device's request goes, if it is let through. The access is on its way from then on.
    fn translate(&self, source: Source, address: u64, write: bool) -> Option<u64>;

    fn devices(&self) -> &Devices;

    /// What the driver did that it must not.
    fn complaints(&self) -> Vec<String>;

    fn wide_stores(_kind: Self::Kind) -> WideStores {
        WideStores::Some
    }

    /// Whether what is cleaned stays in write buffers.
    fn has_write_buffers(_kind: Self::Kind) -> bool {
        false
    }

    /// Has the driver take the unit over.
    fn init(iommu: &Iommu<Bench<Self>>) -> Result<()>;

    /// The processor reads these bytes anew, as the unit has written them.
    fn dropped_from_cache(&self, _first: PhysAddr, _bytes: u64) {}

    /// Translation is on now, or off. Accesses get through for which that does not wait.
    fn switched(&self) {}

    /// A kernel leaves it amid its work.
    fn abandon(&self) {}

    /// The next kernel has found it.
    fn found(&self) -> Verdict {
        Ok(())
    }
}

/// Who sends a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    pub(crate) requester: u16,
    pub(crate) pasid: Option<u32>,
}

impl From<u16> for Source {
    fn from(requester: u16) -> Self {
        Self { requester, pasid: None }
    }
}

/// Why a run is held against the driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Convicted(pub(crate) String);

impl From<iommu::Error> for Convicted {
    fn from(error: iommu::Error) -> Self {
        Self(format!("the driver failed: {error}"))
    }
}

impl fmt::Display for Convicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) type Verdict<T = ()> = std::result::Result<T, Convicted>;

/// A request that devices send again and again, and where it may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Watch {
    source: Source,
    address: u64,
    write: bool,
    allowed: Vec<Option<u64>>,
}

/// A machine. It is the driver's platform too.
pub(crate) struct Bench<U: Unit>(Arc<Inner<U>>);

impl<U: Unit> Clone for Bench<U> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<U: Unit> {
    pool: FramePool,
    memory: Arc<ObservedMemory>,
    unit: Arc<U>,
    clock: AtomicU64,
    ats_control: AtomicU32,
    shared: Arc<Shared>,
    setup: Setup<U::Kind>,
}

#[derive(Default)]
struct Shared {
    watches: Mutex<Vec<Watch>>,
    convictions: Mutex<Vec<Convicted>>,
}

impl<U: Unit> Bench<U> {
    pub(crate) fn new(setup: Setup<U::Kind>) -> Self {
        let range = PhysRange::from_len(PhysAddr::new(TABLES.0), TABLES.1 - TABLES.0).unwrap();
        let ram = Arc::new(GuestRam::private(&[range]).unwrap());
        let memory = ObservedMemory::new(ram.clone(), setup.adversary);
        if U::has_write_buffers(setup.kind) {
            memory.hold_write_buffers();
        }
        let unit = Arc::new(U::new(memory.clone(), &setup));
        let shared = Arc::new(Shared::default());
        let (of_probe, asked) = (shared.clone(), unit.clone());
        let burst = AtomicU64::new(0);
        memory.set_probe(Some(Arc::new(move |event| {
            // Of a long run of stores devices meet some only.
            let stores = if event == Event::Store { burst.fetch_add(1, Ordering::Relaxed) } else { 0 };
            if event != Event::Store {
                burst.store(0, Ordering::Relaxed);
            }
            if stores > LONG_RUN && !stores.is_multiple_of(LONG_RUN) {
                return;
            }
            if setup.pace == Pace::Eager {
                asked.step();
            }
            of_probe.ask(&*asked);
        })));
        let clock = AtomicU64::new(0);
        Self(Arc::new(Inner {
            pool: FramePool::new(ram, range),
            memory,
            unit,
            clock,
            ats_control: AtomicU32::new(0),
            shared,
            setup,
        }))
    }

    pub(crate) fn unit(&self) -> &U {
        &self.0.unit
    }

    pub(crate) fn kind(&self) -> U::Kind {
        self.0.setup.kind
    }

    /// What a processor reads.
    pub(crate) fn quadword(&self, phys: PhysAddr) -> Option<u64> {
        self.0.pool.ram().pointer(phys)?;
        let mut bytes = [0; 8];
        self.0.pool.ram().read(phys, &mut bytes);
        Some(u64::from_le_bytes(bytes))
    }

    pub(crate) fn memory(&self) -> &ObservedMemory {
        &self.0.memory
    }

    pub(crate) fn frames_in_use(&self) -> usize {
        self.0.pool.in_use()
    }

    /// From now on, while the driver works, a request of `source` may go to these places only, `None`
    /// for nowhere.
    pub(crate) fn watch(&self, source: impl Into<Source>, address: u64, allowed: &[Option<u64>]) {
        self.watch_access(source, address, false, allowed);
    }

    pub(crate) fn watch_access(&self, source: impl Into<Source>, address: u64, write: bool, allowed: &[Option<u64>]) {
        let source = source.into();
        let mut watches = lock(&self.0.shared.watches);
        watches.retain(|watch| (watch.source, watch.address, watch.write) != (source, address, write));
        watches.push(Watch { source, address, write, allowed: allowed.to_vec() });
    }

    /// The driver is done: from now on the request goes to `place`, whatever the unit still does.
    pub(crate) fn settled(&self, source: impl Into<Source>, address: u64, place: Option<u64>) -> Verdict {
        self.settled_access(source, address, false, place)
    }

    pub(crate) fn settled_access(
        &self,
        source: impl Into<Source>,
        address: u64,
        write: bool,
        place: Option<u64>,
    ) -> Verdict {
        let source = source.into();
        self.watch_access(source, address, write, &[place]);
        // A device starts: everything that was ordered before is there.
        self.0.memory.told();
        if let Some(other) =
            self.unit().devices().in_flight(source, address, write).into_iter().find(|other| Some(*other) != place)
        {
            return Err(Convicted(format!("an access to {address:#x} is still under way to {other:#x}")));
        }
        self.unit().devices().land();
        self.0.shared.ask(self.unit());
        for _step in 0..SETTLED {
            if !self.unit().step() {
                break;
            }
            self.0.shared.ask(self.unit());
        }
        self.verdict()
    }

    /// One request of a device, before the unit does anything more, goes to `place`.
    pub(crate) fn once(&self, source: impl Into<Source>, address: u64, write: bool, place: Option<u64>) -> Verdict {
        self.watch_access(source, address, write, &[place]);
        self.0.memory.told();
        self.0.shared.ask(self.unit());
        self.verdict()
    }

    /// What is held against the driver so far.
    pub(crate) fn verdict(&self) -> Verdict {
        if let Some(first) = lock(&self.0.shared.convictions).first() {
            return Err(first.clone());
        }
        let complaints = self.unit().complaints().into_iter().chain(self.0.memory.violations());
        complaints.into_iter().next().map_or(Ok(()), |complaint| Err(Convicted(complaint)))
    }

    /// The machine is switched off, and everything in it goes.
    ///
    /// # Safety
    /// No other handle is used, or dropped, afterwards.
    pub(crate) unsafe fn finish(self) {
        self.0.memory.set_probe(None);
        // Kernels that died, and what is quarantined, left handles in the machine's own memory.
        let inner = Arc::into_raw(self.0);
        // SAFETY: `inner` came from an `Arc`, whose other handles are nobody's (the caller). At least this
        // one is left.
        unsafe {
            let inner = Arc::from_raw(inner);
            for _handle in 1..Arc::strong_count(&inner) {
                Arc::decrement_strong_count(Arc::as_ptr(&inner));
            }
        }
    }

    /// Requests stop.
    pub(crate) fn watch_nothing(&self) {
        lock(&self.0.shared.watches).clear();
    }
}

impl Shared {
    fn ask(&self, unit: &impl Unit) {
        let watches = lock(&self.watches).clone();
        for Watch { source, address, write, allowed } in watches {
            let place = unit.translate(source, address, write);
            if !allowed.contains(&place) {
                let what = if write { "write" } else { "read" };
                let text =
                    format!("a {what} of {source:x?} at {address:#x} goes to {place:x?}, not one of {allowed:x?}");
                lock(&self.convictions).push(Convicted(text));
            }
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The unit's registers.
pub(crate) struct Access<U: Unit>(Bench<U>);

impl<U: Unit> Registers for Access<U> {
    fn read32(&self, offset: usize) -> u32 {
        self.0.0.unit.read(offset)
    }

    fn read64(&self, offset: usize) -> u64 {
        self.0.0.unit.read64(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.0.0.memory.told();
        self.0.0.unit.write(offset, value);
    }

    fn write64(&self, offset: usize, value: u64) {
        self.0.0.memory.told();
        self.0.0.unit.write64(offset, value);
    }
}

// SAFETY: the pool gives each frame to one holder, out of RAM that stays mapped while a clone lives.
unsafe impl<U: Unit> Platform for Bench<U> {
    type Registers = Access<U>;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        let first = self.0.pool.alloc(order, last)?;
        self.0.memory.allocated(first, order);
        Some(first)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        self.0.memory.freed(first, order);
        self.0.pool.free(first, order);
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.0.pool.ram().pointer(phys).unwrap()
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<Access<U>> {
        Ok(Access(self.clone()))
    }

    fn now(&self) -> Instant {
        let tick = TICK.as_nanos() as u64;
        Instant::from_nanos(self.0.clock.fetch_add(tick, Ordering::Relaxed))
    }

    fn spin_hint(&self) {
        self.unit().step();
        self.0.shared.ask(self.unit());
    }

    fn publish(&self) {
        Hosted::publish();
        self.0.memory.publish();
    }

    fn clean(&self, start: NonNull<u8>, bytes: usize) {
        if let Some(phys) = self.0.pool.ram().phys_of(start) {
            self.0.memory.clean(phys, bytes as u64);
        }
    }

    fn invalidate(&self, start: NonNull<u8>, bytes: usize) {
        if let Some(phys) = self.0.pool.ram().phys_of(start) {
            self.unit().dropped_from_cache(phys, bytes as u64);
        }
    }

    unsafe fn store_128(&self, target: NonNull<u128>, value: u128) -> Option<()> {
        if U::wide_stores(self.0.setup.kind) == WideStores::None {
            return None;
        }
        let phys = self.0.pool.ram().phys_of(target.cast())?;
        let mut stored = None;
        // SAFETY: passed on from the caller.
        let mut store = || stored = unsafe { Hosted::store_128(target, value) };
        self.0.memory.store_pair(phys, [value as u64, (value >> 64) as u64], &mut store);
        stored
    }

    fn pci(&self) -> Option<&dyn PciConfig> {
        Some(self)
    }

    fn ram(&self, visit: &mut dyn FnMut(PhysRange)) {
        self.0.pool.ram().ranges().for_each(visit);
    }
}

impl<U: Unit> Debug for Bench<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bench({:?})", self.0.setup)
    }
}

/// 00:04.0, one on another bus, and one with a TLB.
pub(crate) const FIRST: u16 = 0x20;
pub(crate) const SECOND: u16 = 0x120;
pub(crate) const ATS: u16 = 0x30;

/// The functions of the machine.
impl<U: Unit> PciConfig for Bench<U> {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        match (function.requester_id(), offset) {
            (FIRST | SECOND | ATS, 0) => 0x1234_8086,
            // It has capabilities: PCI Express, of an integrated endpoint; ATS, page aligned.
            (ATS, 0x4) => 1 << 20,
            (ATS, 0x34) => 0x40,
            (ATS, 0x40) => 9 << 20 | 0x0002_0010,
            (ATS, 0x100) => 1 << 16 | 0xf,
            (ATS, 0x104) => self.0.ats_control.load(Ordering::Relaxed) << 16 | 1 << 5,
            (FIRST | SECOND | ATS, _) => 0,
            _ => u32::MAX,
        }
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        if (function.requester_id(), offset) == (ATS, 0x104) {
            self.0.ats_control.store(value >> 16, Ordering::Relaxed);
            self.unit().devices().set_ats(ATS, value >> 31 != 0);
        }
    }
}
