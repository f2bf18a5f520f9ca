//! Memory that a device sees as late as hardware permits.
//!
//! With `--cfg observed` every store to hardware memory, every barrier and every clean is logged, and
//! a device that reads through [`ObservedMemory`] sees any of the values that the log allows: each word
//! in order, and words in the order of the barriers, but nothing sooner than a barrier forces it. A
//! walker that does not snoop sees what was cleaned. Which of the allowed values it is, an
//! [`Adversary`] decides. Frames that were freed are poison, and reading them is a violation.
//!
//! A register write is no barrier: what the driver stored after its last one may still be on the way.

mod adversary;
#[cfg(observed)]
mod hook;
#[cfg(test)]
mod tests;
mod view;

use std::cell::Cell;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::thread;

use iommu::PhysAddr;

pub use self::adversary::Adversary;
use self::view::{STALE, View};
use crate::ram::GuestRam;

/// Whether a read of the device sees the processors' caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reader {
    /// It does.
    Snoops,
    /// It sees what is in memory.
    ReadsMemory,
}

/// A thread of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Writer(u64);

impl Writer {
    fn this_thread() -> Self {
        let mut hasher = DefaultHasher::new();
        thread::current().id().hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Something that the driver did, on its way to hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// It stored to a table or a queue.
    Store,
    /// It issued a barrier.
    Publish,
    /// It cleaned cache lines.
    Clean,
    /// It is about to write a register.
    Register,
    /// It gave frames back.
    Free,
}

type Probe = Arc<dyn Fn(Event) + Send + Sync>;

/// Guest RAM as a device sees it.
pub struct ObservedMemory {
    ram: Arc<GuestRam>,
    view: Mutex<View>,
    probe: RwLock<Option<Probe>>,
}

impl ObservedMemory {
    /// Observes the frames of `ram` that drivers allocate from now on.
    ///
    /// Without `--cfg observed` no store is seen, so that tables read as zeros: it is for tests of
    /// itself then.
    pub fn new(ram: Arc<GuestRam>, adversary: Adversary) -> Arc<Self> {
        let view = Mutex::new(View::new(adversary));
        let memory = Arc::new(Self { ram, view, probe: RwLock::new(None) });
        #[cfg(observed)]
        hook::register(&memory);
        memory
    }

    /// Lets another one choose from now on.
    pub fn set_adversary(&self, adversary: Adversary) {
        self.view().set_adversary(adversary);
    }

    /// Calls `probe` after each event on the driver's side, on the driver's thread, so that the device
    /// can act in between: locks of the driver may be held. Events of the probe itself do not count.
    pub fn set_probe(&self, probe: Option<Probe>) {
        *self.probe.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = probe;
    }

    /// Reads of the device that led it to memory that was freed, or not yet written: mistakes of the
    /// driver, whatever came of them.
    pub fn violations(&self) -> Vec<String> {
        self.view().violations().to_vec()
    }

    /// The RAM behind it.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    // The driver's side, called by its platform.

    /// The driver was given `1 << order` zeroed frames.
    pub fn allocated(&self, first: PhysAddr, order: u8) {
        self.view().allocated(Writer::this_thread(), first.as_u64(), 1 << order);
    }

    /// The driver gave frames back.
    pub fn freed(&self, first: PhysAddr, order: u8) {
        self.view().freed(first.as_u64(), 1 << order);
        self.happened(Event::Free);
    }

    /// `change` changes the word at `phys`, in RAM, and gives its new value, or `None` when it did not.
    pub fn store(&self, phys: PhysAddr, change: &mut dyn FnMut() -> Option<u64>) {
        {
            let mut view = self.view();
            if let Some(value) = change() {
                view.stored(Writer::this_thread(), phys.as_u64(), value);
            }
        }
        self.happened(Event::Store);
    }

    /// As [`store`](Self::store), for the 16 bytes at `phys`, low quadword first.
    pub fn store_pair(&self, phys: PhysAddr, values: [u64; 2], change: &mut dyn FnMut()) {
        {
            let mut view = self.view();
            change();
            view.stored_pair(Writer::this_thread(), phys.as_u64(), values);
        }
        self.happened(Event::Store);
    }

    /// The driver's barrier: its stores so far, before those that follow.
    pub fn publish(&self) {
        self.view().published(Writer::this_thread());
        self.happened(Event::Publish);
    }

    /// The lines of the `bytes` bytes at `phys` were written back.
    pub fn clean(&self, phys: PhysAddr, bytes: u64) {
        self.view().cleaned(phys.as_u64(), bytes);
        self.happened(Event::Clean);
    }

    /// The device is told something: by a register write, or because a test says that it starts now.
    /// All that barriers have ordered before is there.
    pub fn told(&self) {
        self.view().told();
        self.happened(Event::Register);
    }

    /// From now on what the driver cleans stays in write buffers, and readers that do not snoop do not
    /// see it before [`flush_write_buffers`](Self::flush_write_buffers).
    pub fn hold_write_buffers(&self) {
        self.view().hold_write_buffers();
    }

    // The device's side.

    /// Flushes the write buffers between cleaned lines and memory.
    pub fn flush_write_buffers(&self) {
        self.view().flushed_write_buffers();
    }

    /// Reads the quadword at `phys`; `None` where there is no RAM.
    pub fn read(&self, phys: PhysAddr, reader: Reader) -> Option<u64> {
        let word = self.word(phys)?;
        let mut view = self.view();
        Some(view.read(phys.as_u64(), reader).unwrap_or_else(|| word.load(Ordering::SeqCst)))
    }

    /// Reads 16 bytes, low quadword first, as one access: a store of 16 bytes is seen whole.
    pub fn read_pair(&self, phys: PhysAddr, reader: Reader) -> Option<[u64; 2]> {
        let words = [self.word(phys)?, self.word(PhysAddr::new(phys.as_u64() + 8))?];
        let mut view = self.view();
        let seen = view.read_pair(phys.as_u64(), reader);
        Some(seen.unwrap_or_else(|| words.map(|word| word.load(Ordering::SeqCst))))
    }

    /// Writes the doubleword at `phys`; `None` where there is no RAM.
    pub fn write32(&self, phys: PhysAddr, value: u32) -> Option<()> {
        let whole = PhysAddr::new(phys.as_u64() & !7);
        let word = self.word(whole)?;
        let pointer = self.ram.pointer(phys)?.cast::<AtomicU32>();
        let mut view = self.view();
        // SAFETY: RAM that stays mapped as long as `self`, aligned, and shared by atomics only.
        unsafe { pointer.as_ref() }.store(value, Ordering::SeqCst);
        view.device_wrote(whole.as_u64(), word.load(Ordering::SeqCst));
        Some(())
    }

    /// Writes the quadword at `phys`; `None` where there is no RAM.
    pub fn write64(&self, phys: PhysAddr, value: u64) -> Option<()> {
        let word = self.word(phys)?;
        let mut view = self.view();
        word.store(value, Ordering::SeqCst);
        view.device_wrote(phys.as_u64(), value);
        Some(())
    }

    /// Writes `new` to the quadword at `phys` if it is `current`; whether it was.
    pub fn compare_exchange(&self, phys: PhysAddr, current: u64, new: u64) -> Option<bool> {
        let word = self.word(phys)?;
        let mut view = self.view();
        let changed = word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if changed {
            view.device_wrote(phys.as_u64(), new);
        } else {
            view.device_locked(phys.as_u64());
        }
        Some(changed)
    }

    fn word(&self, phys: PhysAddr) -> Option<&AtomicU64> {
        if !phys.is_aligned(8) {
            return None;
        }
        // SAFETY: RAM that stays mapped as long as `self`, aligned, and shared by atomics only.
        Some(unsafe { self.ram.pointer(phys)?.cast::<AtomicU64>().as_ref() })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        // A test that panicked meanwhile leaves it whole.
        self.view.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn happened(&self, event: Event) {
        thread_local!(static PROBING: Cell<bool> = const { Cell::new(false) });
        let probe = self.probe.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if let Some(probe) = probe
            && !PROBING.replace(true)
        {
            struct Done;
            impl Drop for Done {
                fn drop(&mut self) {
                    PROBING.set(false);
                }
            }
            let _done = Done;
            probe(event);
        }
    }
}

impl fmt::Debug for ObservedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedMemory").field("violations", &self.violations().len()).finish_non_exhaustive()
    }
}

/// What a reader finds in frames that are nobody's.
pub const FREED: u64 = STALE;
