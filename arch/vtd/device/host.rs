//! What the unit reaches: memory, the processor's interrupts, and the device-TLBs of devices.

use crate::addr::PhysAddr;
use crate::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange, Drain, ResponseCode};
use crate::bus::{Snoop, Unreachable};
use crate::ops::Msi;

/// What happens to an invalidation that was sent to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceAnswer {
    /// The device has dropped the entries.
    Done,
    /// It does not answer: after its time the unit reports a time-out (VT-d 6.5.2.11, ITE).
    None,
    /// It answers wrongly (ICE).
    Broken,
}

/// What a unit in software stands on. A hypervisor implements it over the memory of its guest, a test
/// over memory that is as late as hardware allows.
///
/// Addresses are *host-physical* to the unit: what it finds in registers and tables. None of them may
/// be trusted, and what is read may change between two reads.
///
/// No lock is held when these are called: they may access registers of the unit.
pub trait Host: Send + Sync {
    /// Reads the quadword at `address`, aligned to 8 bytes, in one piece.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn read(&self, address: PhysAddr, snoop: Snoop) -> Result<u64, Unreachable>;

    /// Reads the 16 bytes at `address`, aligned to 16 bytes, low quadword first. Hardware reads PASID
    /// table entries and descriptors so; a host that cannot read them at once reads two quadwords.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn read_pair(&self, address: PhysAddr, snoop: Snoop) -> Result<[u64; 2], Unreachable> {
        let high = PhysAddr::new(address.as_u64().wrapping_add(8));
        Ok([self.read(address, snoop)?, self.read(high, snoop)?])
    }

    /// Writes the doubleword at `address`, aligned to 4 bytes: the status of a wait.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn write32(&self, address: PhysAddr, value: u32) -> Result<(), Unreachable>;

    /// Writes the quadword at `address`, aligned to 8 bytes: a part of a page request.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable>;

    /// Writes `new` to the quadword at `address`, aligned to 8 bytes, if it still is `current`: accessed
    /// and dirty bits. `false` when it is not.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable>;

    /// Raises an interrupt of the unit.
    fn interrupt(&self, message: Msi);

    /// Sends an invalidation to the device-TLB of `source` (its requester id). `pasids` is `None` for
    /// requests without PASID.
    fn invalidate_device_tlb(&self, source: u16, pasids: Option<DevicePasids>, range: DeviceRange) -> DeviceAnswer;

    /// Sends the response to a group of page requests to `source` (its requester id).
    fn respond(&self, source: u16, pasid: Option<u32>, group: u16, code: ResponseCode) {
        let _ = (source, pasid, group, code);
    }

    /// Makes visible what the write buffers of a unit with CAP.RWBF hold back (VT-d 6.8). Until then
    /// the unit need not see stores to tables.
    fn flush_write_buffers(&self) {}

    /// Waits until accesses that were translated before are through (VT-d 6.5.4). A wait is completed after
    /// that, and software then uses the memory for something else. So who translates on one thread while
    /// another steps must implement this: it waits for each [`translate`](super::VtdDevice::translate) that
    /// has begun, and for the access that its answer was for. Who does both on one thread needs not.
    fn drain(&self, what: Drain) {
        let _ = what;
    }
}
