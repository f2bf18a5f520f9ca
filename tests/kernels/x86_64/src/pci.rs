//! PCI configuration space through the ports 0xcf8 and 0xcfc (PCI 3.0, 3.2.2.3.2).

use iommu::PciAddress;
use iommu::platform::{Processor, X86_64};

use crate::port;

/// Configuration space. These ports reach its first 256 bytes only; the rest reads as all ones.
#[derive(Clone, Copy, Debug)]
pub struct ConfigPorts;

impl ConfigPorts {
    /// Reads the 32 bits at `offset`, a multiple of 4.
    pub fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        select(function, offset, || port::read32(DATA)).unwrap_or(u32::MAX)
    }

    /// Writes the 32 bits at `offset`, a multiple of 4.
    pub fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        let _ = select(function, offset, || port::write32(DATA, value));
    }

    /// The first function that has this vendor and device number.
    pub fn find(&self, vendor: u16, device: u16) -> Option<PciAddress> {
        let id = u32::from(device) << 16 | u32::from(vendor);
        let functions = (0..=u16::MAX).map(|requester_id| PciAddress::from_requester_id(0, requester_id));
        functions.filter(|function| function.function() == 0).find(|&function| self.read32(function, 0) == id)
    }
}

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// Puts the address out and calls `access`, with nobody between the two.
fn select<T>(function: PciAddress, offset: u16, access: impl FnOnce() -> T) -> Option<T> {
    if offset > 0xff || function.segment() != 0 {
        return None;
    }
    let interrupts = X86_64::save_interrupts();
    port::write32(ADDRESS, 1 << 31 | u32::from(function.requester_id()) << 8 | u32::from(offset & 0xfc));
    let result = access();
    X86_64::restore_interrupts(interrupts);
    Some(result)
}
