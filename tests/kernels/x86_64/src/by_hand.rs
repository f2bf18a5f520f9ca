//! VT-d without a driver: an empty root table blocks every request, and a fault raises its message.

use iommu::hwmem::FrameTable;
use iommu::platform::{Mmio, Registers};

use crate::interrupts::Message;
use crate::platform::Kernel;

pub fn block_everything(unit: &Mmio, root: &FrameTable<Kernel>, message: Message) {
    unit.write32(0x3c, message.data);
    unit.write32(0x40, message.address as u32);
    unit.write32(0x38, 0);
    unit.write64(0x20, root.phys().as_u64());
    unit.write32(0x18, 1 << 30);
    unit.write64(0x28, 5 << 61);
    unit.write64(0xf8, 9 << 60);
    unit.write32(0x18, 1 << 31);
}
