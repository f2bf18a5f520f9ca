//! What every Arm machine of the harness shares: its memory map, which is that of QEMU's `virt`.

use std::ops::Range;

use iommu::PhysAddr;

use crate::error::{Error, Result};
use crate::guest::{Layout, ram};
use crate::options::PciPlace;

/// Where the SMMUv3 of this machine always is, and the bytes that its two pages take.
pub(crate) const SMMU: Range<u64> = 0x0905_0000..0x0907_0000;
/// Where RAM begins, and with it the device tree.
pub(crate) const RAM_BASE: PhysAddr = PhysAddr::new(0x4000_0000);
/// At the start of RAM, left alone: the device tree has one half of it at most.
pub(crate) const FIRMWARE_BYTES: u64 = 2 << 20;
/// Addresses for BARs of 32 bits.
const BAR_ADDRESSES: Range<u64> = 0x1000_0000..0x3efe_ffff;

/// Configuration space.
pub(crate) fn ecam(place: PciPlace) -> Range<u64> {
    match place {
        PciPlace::High => 0x40_1000_0000..0x40_2000_0000,
        PciPlace::Low => 0x3f00_0000..0x4000_0000,
    }
}

/// Where things lie with this much RAM.
pub(crate) fn layout(bytes: u64, pci: PciPlace) -> Result<Layout> {
    if pci == PciPlace::Low && bytes > 3 << 30 {
        return Err(Error::OutOfRam { bytes });
    }
    Layout::new(ram(&[(RAM_BASE.as_u64(), bytes)])?, FIRMWARE_BYTES, BAR_ADDRESSES)
}
