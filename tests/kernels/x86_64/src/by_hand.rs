//! VT-d with registers and tables written out, for one device: what the crate's driver replaces.
//! Source: VT-d specification, 3.4 (tables), 6.5 (invalidation), 11.4 (registers).

use iommu::hwmem::FrameTable;
use iommu::platform::{Mmio, Platform, Registers};
use iommu::{Iova, PciAddress, PhysAddr};

use crate::failure::Failure;
use crate::interrupts::Message;
use crate::platform::Kernel;

const CAPABILITY: usize = 0x08;
const GLOBAL_COMMAND: usize = 0x18;
const ROOT_TABLE: usize = 0x20;
const CONTEXT_COMMAND: usize = 0x28;
const FAULT_STATUS: usize = 0x34;
const FAULT_CONTROL: usize = 0x38;
const FAULT_DATA: usize = 0x3c;
const FAULT_ADDRESS: usize = 0x40;

/// What the unit blocked.
#[derive(Debug)]
pub struct Fault {
    pub source: PciAddress,
    pub iova: Iova,
    pub reason: u8,
}

pub struct Unit {
    kernel: Kernel,
    registers: Mmio,
    root: FrameTable<Kernel>,
    context: FrameTable<Kernel>,
    /// One table a level, the topmost first: enough for IOVAs below 2 MiB.
    tables: [FrameTable<Kernel>; 4],
    levels: usize,
}

impl Unit {
    pub fn new(kernel: Kernel, base: PhysAddr, message: Message) -> Result<Self, Failure> {
        let table = || FrameTable::new(kernel, 0, PhysAddr::new(u64::MAX));
        let registers = kernel.map_registers(base, 0x1000)?;
        let levels = if registers.read64(CAPABILITY) >> 10 & 1 != 0 { 4 } else { 3 };
        registers.write32(FAULT_DATA, message.data);
        registers.write32(FAULT_ADDRESS, message.address as u32);
        registers.write32(FAULT_CONTROL, 0);
        Ok(Self {
            kernel,
            registers,
            root: table()?,
            context: table()?,
            tables: [table()?, table()?, table()?, table()?],
            levels,
        })
    }

    /// Lets `function` (on bus 0) reach `page` at `iova`.
    pub fn map(&self, function: PciAddress, iova: Iova, page: PhysAddr) {
        let tables = self.tables.get(..self.levels).unwrap_or_default();
        for pair in tables.windows(2) {
            if let [parent, child] = pair {
                parent.view().entry(0).store(child.phys().as_u64() | 3);
            }
        }
        if let [top, .., leaf] = tables {
            leaf.view().entry((iova.as_u64() >> 12) as usize).store(page.as_u64() | 3);
            let context = usize::from(function.devfn()) * 2;
            self.context.view().entry(context + 1).store((self.levels as u64 - 2) | (1 << 8));
            self.context.view().entry(context).store(top.phys().as_u64() | 1);
        }
        self.root.view().entry(0).store(self.context.phys().as_u64() | 1);
        self.kernel.publish();
    }

    /// Turns translation on.
    pub fn enable(&self) {
        self.registers.write64(ROOT_TABLE, self.root.phys().as_u64());
        self.registers.write32(GLOBAL_COMMAND, 1 << 30);
        self.registers.write64(CONTEXT_COMMAND, 5 << 61);
        self.registers.write64(0xf8, 9 << 60);
        self.registers.write32(GLOBAL_COMMAND, 1 << 31);
    }

    /// Takes the pending fault.
    pub fn take_fault(&self) -> Option<Fault> {
        if self.registers.read32(FAULT_STATUS) & 2 == 0 {
            return None;
        }
        let (low, high) = (self.registers.read64(0x220), self.registers.read64(0x228));
        self.registers.write32(0x22c, 1 << 31);
        let source = PciAddress::from_requester_id(0, high as u16);
        Some(Fault { source, iova: Iova::new(low & !0xfff), reason: (high >> 32) as u8 })
    }
}
