//! What a unit reaches: the driver's memory, and device TLBs.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use iommu::PhysAddr;
use iommu::arch::vtd::device::{DeviceAnswer, Host, Snoop, Unreachable};
use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
use iommu::ops::Msi;

use crate::device_tlbs::DeviceTlbs;
use crate::memory::{lent, memory};

#[derive(Default)]
pub struct Bus {
    /// The next descriptor cannot be fetched.
    pub refuses: AtomicBool,
    /// Devices, by the low bits of their requester ids, that do not answer.
    pub deaf_devices: AtomicU16,
    /// Devices that answer wrongly.
    pub broken_devices: AtomicU16,
    /// Where the last wait wrote to.
    pub status: AtomicU64,
    pub device_tlbs: DeviceTlbs,
}

impl Host for Bus {
    fn read(&self, address: PhysAddr, snoop: Snoop) -> Result<u64, Unreachable> {
        let found = memory().load(address.as_u64(), snoop);
        lent(address, found)
    }

    fn read_pair(&self, address: PhysAddr, snoop: Snoop) -> Result<[u64; 2], Unreachable> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Unreachable);
        }
        Ok([self.read(address, snoop)?, self.read(PhysAddr::new(address.as_u64() + 8), snoop)?])
    }

    fn write32(&self, address: PhysAddr, value: u32) -> Result<(), Unreachable> {
        self.status.store(address.as_u64(), Ordering::Relaxed);
        let shift = if address.as_u64() & 4 == 0 { 0 } else { 32 };
        let merged = |word: u64| Some(word & !(0xffff_ffff << shift) | u64::from(value) << shift);
        let found = memory().update(address.as_u64() & !7, merged);
        lent(address, found).map(drop)
    }

    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable> {
        let found = memory().update(address.as_u64(), |_| Some(value));
        lent(address, found).map(drop)
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
        let found = memory().update(address.as_u64(), |word| (word == current).then_some(new));
        lent(address, found)
    }

    fn flush_write_buffers(&self) {
        memory().flush_write_buffers();
    }

    fn interrupt(&self, _: Msi) {}

    fn invalidate_device_tlb(&self, source: u16, pasids: Option<DevicePasids>, range: DeviceRange) -> DeviceAnswer {
        let among = |devices: &AtomicU16| devices.load(Ordering::Relaxed) >> (source & 15) & 1 != 0;
        if among(&self.deaf_devices) {
            return DeviceAnswer::None;
        }
        if pasids.is_none() {
            let first = range.address.as_u64();
            let bytes = 1u64.checked_shl(u32::from(range.order) + 12);
            let last = bytes.map_or(u64::MAX, |bytes| first | (bytes - 1));
            self.device_tlbs.drop_range(source.into(), first, last);
        }
        if among(&self.broken_devices) { DeviceAnswer::Broken } else { DeviceAnswer::Done }
    }
}
