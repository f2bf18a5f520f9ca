//! What the unit reaches: memory, the processor's interrupts, and the ATCs of devices.

use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::StreamId;
use crate::arch::smmuv3::layout::commands::{PageResponse, Resume};
use crate::bus::{Snoop, Unreachable};
use crate::ops::Msi;

/// A wired interrupt of a unit (SMMU 3.18.2).
///
/// ```
/// use iommu::arch::smmuv3::device::Line;
/// assert_ne!(Line::Events, Line::GlobalErrors);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// The event queue is not empty any more.
    Events,
    /// The page request queue is not empty any more, or a request that is the last of its group was put in.
    PageRequests,
    /// A CMD_SYNC is done.
    CommandSync,
    /// A global error.
    GlobalErrors,
}

/// An interrupt of a unit (SMMU 3.18).
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::smmuv3::device::{Interrupt, Line};
/// use iommu::ops::Msi;
/// let message = Interrupt::Message(Msi { address: PhysAddr::new(0x8090040), data: 3 });
/// assert_ne!(message, Interrupt::Wired(Line::Events));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupt {
    /// An edge on a line.
    Wired(Line),
    /// A message: a write of 32 bits, to an interrupt controller or to memory.
    Message(Msi),
}

/// What happens to an invalidation that was sent to a device.
///
/// ```
/// use iommu::arch::smmuv3::device::DeviceAnswer;
/// assert_ne!(DeviceAnswer::Done, DeviceAnswer::None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceAnswer {
    /// The device has dropped the entries, or refused the request as one that it does not know.
    Done,
    /// It does not answer: after its time the next CMD_SYNC fails (SMMU 3.9.1.4, CERROR_ATC_INV_SYNC).
    None,
}

/// What a unit in software stands on. A hypervisor implements it over the memory of its guest, a test
/// over memory that is as late as hardware allows.
///
/// Addresses are *physical* to the unit: what it finds in registers and tables. None of them may be
/// trusted, and what is read may change between two reads.
///
/// No lock is held when these are called: they may access registers of the unit.
pub trait Host: Send + Sync {
    /// Reads the quadword at `address`, aligned to 8 bytes, in one piece (SMMU 3.21.3).
    ///
    /// # Errors
    /// [`Unreachable`]: an external abort.
    fn read(&self, address: PhysAddr, snoop: Snoop) -> Result<u64, Unreachable>;

    /// Writes the quadword at `address`, aligned to 8 bytes: a part of a record.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable>;

    /// Writes `new` to the quadword at `address`, aligned to 8 bytes, if it still is `current`: access
    /// flags and dirty state. `false` when it is not.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable>;

    /// Raises an interrupt. A message is ordered behind all that the unit wrote before (SMMU 3.18).
    ///
    /// # Errors
    /// [`Unreachable`]: nothing is at the address of a message.
    fn interrupt(&self, interrupt: Interrupt) -> Result<(), Unreachable>;

    /// Sends an invalidation of the `1 << size_log2` bytes (all of them with 64) around `address` to the
    /// ATC of a device. `substream` is `None` for translations of requests without SubstreamID.
    fn invalidate_atc(&self, stream: StreamId, substream: Option<u32>, address: u64, size_log2: u8) -> DeviceAnswer;

    /// Sends the response to a group of page requests to a device.
    fn respond(&self, stream: StreamId, substream: Option<u32>, group: u16, response: PageResponse) {
        let _ = (stream, substream, group, response);
    }

    /// Software has decided what becomes of the request that waits under this tag (SMMU 4.7.1): it is to be
    /// sent again, or it failed, or it succeeds without effect ([`Resume::Terminate`]). The tag is free again.
    fn resume(&self, tag: u16, action: Resume) {
        let _ = (tag, action);
    }

    /// Waits until accesses that were translated before are through (SMMU 3.21.1). A CMD_SYNC behind an
    /// invalidation is completed after that, and software then uses the memory for something else. So who
    /// translates on one thread while another steps must implement this: it waits for each
    /// [`translate`](super::SmmuDevice::translate) that has begun, and for the access that its answer was
    /// for. Who does both on one thread needs not.
    fn drain(&self) {}
}
