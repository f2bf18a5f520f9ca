//! What a unit reaches: the driver's memory, and device TLBs.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use iommu::arch::vtd::device::{Answer, DeviceAnswer, Host, RequestAccess, Snoop, Unreachable};
use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
use iommu::ops::Msi;
use iommu::{PhysAddr, Prot};

use crate::memory::memory;
use crate::world;

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
    /// What devices have asked for and not dropped.
    kept: Mutex<Vec<Kept>>,
}

#[derive(Clone, Copy)]
struct Kept {
    source: u16,
    first: u64,
    last: u64,
    phys: u64,
    prot: Prot,
}

impl Bus {
    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap()
    }

    /// Where a device has learnt that `iova` leads.
    pub fn learnt(&self, source: u16, iova: u64, access: RequestAccess) -> Option<u64> {
        let wanted = permission(access);
        let fits = |kept: &&Kept| kept.source == source && kept.first <= iova && iova <= kept.last;
        let phys = |kept: &Kept| kept.phys + (iova - kept.first);
        self.kept().iter().find(|kept| fits(kept) && kept.prot.contains(wanted)).map(phys)
    }

    /// The device keeps an answer, if it permits anything.
    pub fn learn(&self, source: u16, iova: u64, answer: &Answer) {
        let mask = (1 << answer.page_bits.min(63)) - 1;
        let (first, last, phys) = (iova & !mask, iova | mask, answer.phys.as_u64() & !mask);
        let mut kept = self.kept();
        kept.retain(|old| old.source != source || old.last < first || last < old.first);
        kept.push(Kept { source, first, last, phys, prot: answer.prot });
    }

    /// The device TLB was turned off.
    pub fn forget(&self, source: u16) {
        self.kept().retain(|kept| kept.source != source);
    }
}

/// What an access needs.
pub fn permission(access: RequestAccess) -> Prot {
    if access == RequestAccess::Write { Prot::WRITE } else { Prot::READ }
}

/// Nothing that is not lent to the unit, unless it is firmware's, is ever accessed.
fn lent<T>(address: PhysAddr, found: Option<T>) -> Result<T, Unreachable> {
    let is_firmware = address.as_u64() < memory().base;
    assert!(found.is_some() || is_firmware || !world::is_truthful(), "{address} is accessed and not lent to the unit");
    found.ok_or(Unreachable)
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
            self.kept().retain(|kept| kept.source != source || kept.last < first || last < kept.first);
        }
        if among(&self.broken_devices) { DeviceAnswer::Broken } else { DeviceAnswer::Done }
    }
}
