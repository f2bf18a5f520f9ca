//! What a unit reaches: the driver's memory, device TLBs, and devices whose requests wait.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use iommu::PhysAddr;
use iommu::arch::smmuv3::device::{DeviceAnswer, Host, Interrupt, Snoop, Unreachable};
use iommu::arch::smmuv3::layout::StreamId;
use iommu::arch::smmuv3::layout::commands::Resume;

use crate::device_tlbs::DeviceTlbs;
use crate::memory::{lent, memory};

/// What becomes of the next command that is fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Refusal {
    #[default]
    None,
    /// It cannot be read.
    Abort,
    /// It is read as something else, which is no command.
    Illegal,
}

#[derive(Default)]
pub struct Bus {
    refusal: Mutex<Refusal>,
    /// Where the command queue is while something is refused there: first address, bytes.
    queue: [AtomicU64; 2],
    /// Devices, by the low bits of their StreamIDs, that do not answer.
    pub deaf_devices: AtomicU16,
    pub device_tlbs: DeviceTlbs,
    /// Tags of requests that wait.
    waiting: Mutex<BTreeSet<u16>>,
}

impl Bus {
    pub fn refuse(&self, refusal: Refusal, (first, bytes): (u64, u64)) {
        *self.refusal.lock().unwrap() = refusal;
        self.queue[0].store(first, Ordering::Relaxed);
        self.queue[1].store(bytes, Ordering::Relaxed);
    }

    pub fn waiting(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.waiting.lock().unwrap()
    }

    fn is_queue(&self, address: u64) -> bool {
        address.wrapping_sub(self.queue[0].load(Ordering::Relaxed)) < self.queue[1].load(Ordering::Relaxed)
    }
}

impl Host for Bus {
    fn read(&self, address: PhysAddr, snoop: Snoop) -> Result<u64, Unreachable> {
        let refusal = *self.refusal.lock().unwrap();
        if refusal != Refusal::None && self.is_queue(address.as_u64()) {
            return if refusal == Refusal::Abort { Err(Unreachable) } else { Ok(u64::MAX) };
        }
        let found = memory().load(address.as_u64(), snoop);
        lent(address, found)
    }

    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable> {
        let found = memory().update(address.as_u64(), |_| Some(value));
        lent(address, found).map(drop)
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
        let found = memory().update(address.as_u64(), |word| (word == current).then_some(new));
        lent(address, found)
    }

    fn interrupt(&self, _: Interrupt) -> Result<(), Unreachable> {
        Ok(())
    }

    fn invalidate_atc(&self, stream: StreamId, substream: Option<u32>, address: u64, size_log2: u8) -> DeviceAnswer {
        if self.deaf_devices.load(Ordering::Relaxed) >> (stream.0 & 15) & 1 != 0 {
            return DeviceAnswer::None;
        }
        if substream.is_none() {
            let offsets = 1_u64.checked_shl(size_log2.into()).map_or(u64::MAX, |size| size - 1);
            self.device_tlbs.drop_range(stream.0, address & !offsets, address | offsets);
        }
        DeviceAnswer::Done
    }

    fn resume(&self, tag: u16, _: Resume) {
        assert!(self.waiting().remove(&tag), "{tag} does not wait");
    }
}
