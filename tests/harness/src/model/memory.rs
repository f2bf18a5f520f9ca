//! Guest RAM as the processor, devices and the unit see it.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use iommu::PhysAddr;
use iommu::bus::Snoop;

use crate::error::Result;
use crate::observed::{ObservedMemory, Reader};
use crate::ram::GuestRam;

/// Bytes of a line of the processor's caches.
const LINE: u64 = 64;

/// What is on the way from the processor's caches to memory, as long as nobody flushes it (CAP.RWBF,
/// VT-d 6.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WriteBuffers {
    /// Nothing: what is cleaned is there.
    None,
    /// What was cleaned since the last flush.
    Keep,
}

/// RAM and what lies behind the processor's caches.
///
/// Stores of the processor are in `ram` at once. Whoever does not snoop its caches sees `behind`
/// instead, which follows when a line is cleaned. What was never cleaned reads as all ones there: no
/// table survives that.
pub(super) struct Memory {
    ram: Arc<GuestRam>,
    behind: Option<Behind>,
    /// What the unit sees instead of either.
    observed: Option<Arc<ObservedMemory>>,
}

struct Behind {
    /// The complement of each byte, so that fresh memory reads as ones.
    image: GuestRam,
    buffers: WriteBuffers,
    /// Lines in write buffers, the oldest first.
    kept: Mutex<Vec<(PhysAddr, [u8; LINE as usize])>>,
}

impl Memory {
    /// RAM that everybody sees as it is.
    pub(super) fn coherent(ram: Arc<GuestRam>) -> Self {
        Self { ram, behind: None, observed: None }
    }

    /// RAM of which the unit sees nothing sooner than the driver makes it.
    pub(super) fn observed(memory: Arc<ObservedMemory>) -> Self {
        Self { ram: memory.ram().clone(), behind: None, observed: Some(memory) }
    }

    /// RAM behind caches that not everybody snoops.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when there is not enough address space.
    pub(super) fn cached(ram: Arc<GuestRam>, buffers: WriteBuffers) -> Result<Self> {
        let ranges: Vec<_> = ram.ranges().collect();
        let behind = Behind { image: GuestRam::private(&ranges)?, buffers, kept: Mutex::default() };
        Ok(Self { ram, behind: Some(behind), observed: None })
    }

    /// A device is told to do something: what the driver has made visible before, it may count on.
    pub(super) fn told(&self) {
        if let Some(observed) = &self.observed {
            observed.told();
        }
    }

    /// A device reads; zeros where there is no RAM. Devices snoop.
    pub(super) fn read(&self, phys: PhysAddr, into: &mut [u8]) {
        match self.holds(phys, into.len()) {
            true => self.ram.read(phys, into),
            false => into.fill(0),
        }
    }

    /// A device writes; lost where there is no RAM.
    pub(super) fn write(&self, phys: PhysAddr, bytes: &[u8]) {
        if self.holds(phys, bytes.len()) {
            self.ram.write(phys, bytes);
            self.write_behind(phys, bytes);
        }
    }

    /// The processor writes the lines of these bytes back.
    pub(super) fn clean(&self, start: PhysAddr, bytes: usize) {
        let Some(behind) = &self.behind else { return };
        let first = start.as_u64() & !(LINE - 1);
        let end = (start.as_u64() + bytes as u64).next_multiple_of(LINE);
        for line in (first..end).step_by(LINE as usize).map(PhysAddr::new) {
            if self.holds(line, LINE as usize) {
                let mut now = [0; LINE as usize];
                self.ram.read(line, &mut now);
                match behind.buffers {
                    WriteBuffers::None => behind.write(line, &now),
                    WriteBuffers::Keep => behind.kept().push((line, now)),
                }
            }
        }
    }

    /// What is in write buffers gets to memory.
    pub(super) fn flush_write_buffers(&self) {
        if let Some(behind) = &self.behind {
            let kept = std::mem::take(&mut *behind.kept());
            kept.iter().for_each(|(line, bytes)| behind.write(*line, bytes));
        }
    }

    /// The unit reads an aligned quadword.
    pub(super) fn load(&self, phys: PhysAddr, snoop: Snoop) -> Option<u64> {
        if let Some(observed) = &self.observed {
            let reader = if snoop == Snoop::Yes { Reader::Snoops } else { Reader::ReadsMemory };
            return observed.read(phys, reader);
        }
        match (&self.behind, snoop) {
            (Some(behind), Snoop::No) => Some(!quadword(&behind.image, phys)?.load(Ordering::SeqCst)),
            _ => Some(quadword(&self.ram, phys)?.load(Ordering::SeqCst)),
        }
    }

    /// The unit writes an aligned doubleword.
    pub(super) fn store32(&self, phys: PhysAddr, value: u32) -> Option<()> {
        if let Some(observed) = &self.observed {
            return observed.write32(phys, value);
        }
        let pointer = aligned(&self.ram, phys, 4)?;
        // SAFETY: aligned, and mapped as long as the RAM is borrowed.
        unsafe { AtomicU32::from_ptr(pointer.cast().as_ptr()) }.store(value, Ordering::SeqCst);
        self.write_behind(phys, &value.to_le_bytes());
        Some(())
    }

    /// The unit writes an aligned quadword.
    pub(super) fn store64(&self, phys: PhysAddr, value: u64) -> Option<()> {
        if let Some(observed) = &self.observed {
            return observed.write64(phys, value);
        }
        quadword(&self.ram, phys)?.store(value, Ordering::SeqCst);
        self.write_behind(phys, &value.to_le_bytes());
        Some(())
    }

    /// The unit exchanges an aligned quadword if it is as expected.
    pub(super) fn compare_exchange(&self, phys: PhysAddr, current: u64, new: u64) -> Option<bool> {
        if let Some(observed) = &self.observed {
            return observed.compare_exchange(phys, current, new);
        }
        let word = quadword(&self.ram, phys)?;
        let done = word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if done {
            self.write_behind(phys, &new.to_le_bytes());
        }
        Some(done)
    }

    fn write_behind(&self, phys: PhysAddr, bytes: &[u8]) {
        if let Some(behind) = &self.behind {
            behind.write(phys, bytes);
        }
    }

    fn holds(&self, phys: PhysAddr, bytes: usize) -> bool {
        let last = phys.checked_add((bytes as u64).saturating_sub(1));
        // Nothing here passes a page, and RAM is made of whole pages.
        self.ram.pointer(phys).is_some() && last.is_some_and(|last| self.ram.pointer(last).is_some())
    }
}

impl Behind {
    fn write(&self, phys: PhysAddr, bytes: &[u8]) {
        let complement: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        self.image.write(phys, &complement);
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(PhysAddr, [u8; LINE as usize])>> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn aligned(ram: &GuestRam, phys: PhysAddr, bytes: u64) -> Option<NonNull<u8>> {
    ram.pointer(phys).filter(|_| phys.is_aligned(bytes))
}

fn quadword(ram: &GuestRam, phys: PhysAddr) -> Option<&AtomicU64> {
    let pointer = aligned(ram, phys, 8)?;
    // SAFETY: aligned, and mapped as long as the RAM is borrowed; its pages are whole.
    Some(unsafe { AtomicU64::from_ptr(pointer.cast().as_ptr()) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use iommu::bus::Snoop;
    use iommu::{PhysAddr, PhysRange};

    use super::{Memory, WriteBuffers};
    use crate::ram::GuestRam;

    fn memory(buffers: WriteBuffers) -> (Arc<GuestRam>, Memory) {
        let range = PhysRange::from_len(PhysAddr::new(0), 0x2000).unwrap();
        let ram = Arc::new(GuestRam::private(&[range]).unwrap());
        (ram.clone(), Memory::cached(ram, buffers).unwrap())
    }

    const WORD: PhysAddr = PhysAddr::new(0x48);
    const OTHER: PhysAddr = PhysAddr::new(0x80);

    #[test]
    fn what_is_not_cleaned_is_not_seen_without_snooping() {
        let (ram, memory) = memory(WriteBuffers::None);
        let (word, other) = (WORD, OTHER);
        ram.write(word, &7u64.to_le_bytes());
        ram.write(other, &8u64.to_le_bytes());
        assert_eq!((memory.load(word, Snoop::Yes), memory.load(word, Snoop::No)), (Some(7), Some(u64::MAX)));
        memory.clean(PhysAddr::new(0x78), 8);
        assert_eq!((memory.load(word, Snoop::No), memory.load(other, Snoop::No)), (Some(7), Some(u64::MAX)));
        assert_eq!(memory.compare_exchange(word, 6, 9), Some(false));
        assert_eq!(memory.compare_exchange(word, 7, 9), Some(true));
        assert_eq!(memory.load(word, Snoop::No), Some(9));
        assert_eq!(memory.load(PhysAddr::new(0x2000), Snoop::Yes), None);
        assert_eq!(memory.load(PhysAddr::new(0x44), Snoop::Yes), None, "not aligned");
    }

    #[test]
    fn write_buffers_keep_what_was_cleaned() {
        let (ram, memory) = memory(WriteBuffers::Keep);
        ram.write(WORD, &7u64.to_le_bytes());
        memory.clean(WORD, 8);
        assert_eq!(memory.load(WORD, Snoop::No), Some(u64::MAX));
        memory.flush_write_buffers();
        assert_eq!(memory.load(WORD, Snoop::No), Some(7));
        memory.write(WORD, &8u64.to_le_bytes());
        assert_eq!(memory.load(WORD, Snoop::No), Some(8), "a device's write does not pass them");
    }
}
