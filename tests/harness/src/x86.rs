//! What every x86 machine of the harness shares: its memory map.

use std::ops::Range;

use iommu::PhysAddr;

use crate::error::Result;
use crate::guest::{Layout, ram};

/// Where the VT-d unit of this machine always is.
pub(crate) const VTD_BASE: PhysAddr = PhysAddr::new(0xfed9_0000);
/// Addresses for BARs: from above ECAM to below the IOAPIC.
const BAR_ADDRESSES: Range<u64> = 0xc000_0000..0xfe80_0000;
/// Memory below is left alone: firmware's, and at 0xa0000 the VGA hole.
const RAM_START: u64 = 1 << 20;
/// With this much RAM or more, what is above 2 GiB is moved to 4 GiB.
const RAM_SPLIT: u64 = 0xb000_0000;

/// Where things lie with this much RAM.
pub(crate) fn layout(bytes: u64) -> Result<Layout> {
    let low = if bytes >= RAM_SPLIT { 2 << 30 } else { bytes };
    Layout::new(ram(&[(0, low), (4 << 30, bytes - low)])?, RAM_START, BAR_ADDRESSES)
}
