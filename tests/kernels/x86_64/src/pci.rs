//! PCI configuration space through the ports 0xcf8 and 0xcfc (PCI 3.0, 3.2.2.3.2).

use iommu::PciAddress;
use iommu::pci::{BusFunctions, PciConfig};
use iommu::platform::{Processor, X86_64};

use crate::port;

/// Configuration space. These ports reach its first 256 bytes only, which hold aliases and bridges;
/// what lies above (ACS, ATS) reads as absent, which makes groups larger, never too small.
#[derive(Clone, Copy, Debug)]
pub struct ConfigPorts;

impl PciConfig for ConfigPorts {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        select(function, offset, || port::read32(DATA)).unwrap_or(u32::MAX)
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        let _ = select(function, offset, || port::write32(DATA, value));
    }
}

impl ConfigPorts {
    /// Every function of the machine. Firmware has numbered the buses.
    pub fn functions(&self) -> impl Iterator<Item = PciAddress> {
        (0..=u8::MAX).flat_map(|bus| BusFunctions::new(self, 0, bus))
    }

    /// The first function that has this vendor and device number.
    pub fn find(&self, vendor: u16, device: u16) -> Option<PciAddress> {
        let id = u32::from(device) << 16 | u32::from(vendor);
        self.functions().find(|&function| self.read32(function, 0) == id)
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
