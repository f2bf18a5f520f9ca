//! The DMAR table kept for as long as units live.

use core::slice;

use crate::addr::PhysAddr;
use crate::arch::vtd::dmar::Dmar;
use crate::error::{Error, Result};
use crate::id::PciAddress;
use crate::pci::{PciConfig, PciFunction};
use crate::platform::{FRAME_BYTES, Platform};

/// A copy of the DMAR table in frames: devices are matched against it whenever one is probed, and
/// the kernel may reuse the memory of the original.
#[derive(Debug)]
pub(super) struct Firmware<P: Platform> {
    platform: P,
    first: PhysAddr,
    order: u8,
    bytes: usize,
}

impl<P: Platform> Firmware<P> {
    /// A copy of a table that was parsed successfully.
    pub(super) fn new(platform: P, table: &[u8]) -> Result<Self> {
        let frames = (table.len() as u64).div_ceil(FRAME_BYTES).max(1);
        let order = u8::try_from(frames.next_power_of_two().trailing_zeros()).unwrap_or(u8::MAX);
        let first = platform.alloc_frames(order, PhysAddr::new(u64::MAX)).ok_or(Error::NoMemory)?;
        let copy = platform.phys_to_virt(first).as_ptr();
        // SAFETY: the block was just allocated and holds at least that many bytes.
        unsafe { copy.copy_from_nonoverlapping(table.as_ptr(), table.len()) };
        Ok(Self { platform, first, order, bytes: table.len() })
    }

    /// The table.
    pub(super) fn dmar(&self) -> Result<Dmar<'_>> {
        // SAFETY: written by `new`, owned by `self`, never changed.
        let bytes = unsafe { slice::from_raw_parts(self.platform.phys_to_virt(self.first).as_ptr(), self.bytes) };
        Dmar::parse(bytes).map_err(Error::from)
    }
}

impl<P: Platform> Drop for Firmware<P> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, and `dmar` borrows `self`.
        unsafe { self.platform.free_frames(self.first, self.order) };
    }
}

/// Reads secondary bus numbers for the paths of device scopes.
pub(super) fn secondary_bus(pci: &dyn PciConfig) -> impl FnMut(PciAddress) -> Option<u8> + '_ {
    |bridge| PciFunction::read(pci, bridge)?.buses.map(|buses| buses.secondary)
}
