//! Configuration space, and what firmware does to it before a kernel starts: bus numbers, BARs,
//! bridge windows.

use std::fmt;
use std::sync::Arc;

use iommu::pci::PciConfig;
use iommu::{PciAddress, PhysAddr};

use crate::bus::Bus;
use crate::error::{Error, Result};

/// A machine's configuration space. Clones stand for the same.
///
/// Reads are all ones where there is no function or the machine is gone; writes are lost there.
#[derive(Clone)]
pub struct PciConfigSpace {
    bus: Arc<dyn Bus>,
}

impl PciConfigSpace {
    /// The configuration space that `bus` reaches.
    pub fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus }
    }

    /// Reads 32 bits at `offset`, a multiple of 4 below 4096.
    pub fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.bus.config_read32(function, offset).unwrap_or(u32::MAX)
    }

    /// Writes 32 bits at `offset`, a multiple of 4 below 4096.
    pub fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        // The bus has told it.
        let _ = self.bus.config_write32(function, offset, value);
    }
}

impl PciConfig for PciConfigSpace {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        Self::read32(self, function, offset)
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        Self::write32(self, function, offset, value);
    }
}

impl fmt::Debug for PciConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PciConfigSpace")
    }
}

/// A function that [`assign`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// The bridge that it lies behind, unless it is on the root bus.
    pub parent: Option<PciAddress>,
    /// Number of the bus behind it, when it is a bridge.
    pub secondary: Option<u8>,
    /// Base addresses of its memory BARs, by the number of their (first) register.
    pub memory: [Option<PhysAddr>; 6],
}

/// Registers of configuration space, by their offset (PCI 3.0, 6.1 and PCI-to-PCI bridge 1.2, 3.2).
mod register {
    pub(super) const ID: u16 = 0x00;
    pub(super) const COMMAND: u16 = 0x04;
    pub(super) const HEADER_TYPE: u16 = 0x0c;
    pub(super) const BAR0: u16 = 0x10;
    pub(super) const BUS_NUMBERS: u16 = 0x18;
    pub(super) const MEMORY_WINDOW: u16 = 0x20;
    pub(super) const PREFETCHABLE_WINDOW: u16 = 0x24;
}

/// Memory decoding and bus mastering in the command register.
const MEMORY_AND_MASTER: u32 = 0b110;

/// What bridge windows are multiples of.
const WINDOW_BYTES: u64 = 1 << 20;

/// Gives every bridge its bus numbers and window and every memory BAR its address, from `memory` up,
/// and lists all functions of segment 0, each bridge before what is behind it. Bridges decode memory
/// and forward DMA afterwards; other functions stay off until [`enable`].
///
/// # Errors
/// [`Error::Pci`] when buses or addresses run out.
pub fn assign(config: &PciConfigSpace, memory: std::ops::Range<u64>) -> Result<Vec<PciFunction>> {
    let mut scan = Scan { config, next_bus: 0, next_address: memory.start, end: memory.end, found: Vec::new() };
    scan.bus(0, None)?;
    Ok(scan.found)
}

/// Lets `function` decode memory and be bus master.
pub fn enable(config: &PciConfigSpace, function: PciAddress) {
    // The upper half is status, whose bits are cleared by writing ones.
    let command = config.read32(function, register::COMMAND) & 0xffff;
    config.write32(function, register::COMMAND, command | MEMORY_AND_MASTER);
}

struct Scan<'a> {
    config: &'a PciConfigSpace,
    next_bus: u8,
    next_address: u64,
    end: u64,
    found: Vec<PciFunction>,
}

impl Scan<'_> {
    fn bus(&mut self, bus: u8, parent: Option<PciAddress>) -> Result<()> {
        for device in 0..32 {
            let mut functions = 1;
            for function in 0..8 {
                let Some(address) = PciAddress::new(0, bus, device, function).filter(|_| function < functions) else {
                    break;
                };
                let id = self.config.read32(address, register::ID);
                if id == u32::MAX {
                    continue;
                }
                let header = (self.config.read32(address, register::HEADER_TYPE) >> 16) as u8;
                if header & 0x80 != 0 {
                    functions = 8;
                }
                self.function(address, id, header & 0x7f, parent)?;
            }
        }
        Ok(())
    }

    fn function(&mut self, address: PciAddress, id: u32, header: u8, parent: Option<PciAddress>) -> Result<()> {
        let bars = match header {
            0 => 6,
            1 => 2,
            _ => 0,
        };
        let memory = self.bars(address, bars)?;
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        let index = self.found.len();
        self.found.push(PciFunction { address, vendor, device, parent, secondary: None, memory });
        if header == 1 {
            self.found[index].secondary = Some(self.bridge(address)?);
        }
        Ok(())
    }

    fn bridge(&mut self, address: PciAddress) -> Result<u8> {
        let out_of_buses = || Error::Pci("out of bus numbers".to_owned());
        let secondary = self.next_bus.checked_add(1).ok_or_else(out_of_buses)?;
        self.next_bus = secondary;
        let numbers = |last: u8| u32::from(address.bus()) | u32::from(secondary) << 8 | u32::from(last) << 16;
        self.config.write32(address, register::BUS_NUMBERS, numbers(u8::MAX));
        let first = self.reserve(0, WINDOW_BYTES)?;
        self.bus(secondary, Some(address))?;
        let end = self.reserve(0, WINDOW_BYTES)?;
        self.config.write32(address, register::BUS_NUMBERS, numbers(self.next_bus));
        // A window whose limit is below its base is closed.
        let last = end.wrapping_sub(1);
        let window = if end > first { last & 0xfff0_0000 | first >> 16 & 0xfff0 } else { 0xfff0 };
        self.config.write32(address, register::MEMORY_WINDOW, window as u32);
        self.config.write32(address, register::PREFETCHABLE_WINDOW, 0xfff0);
        enable(self.config, address);
        Ok(secondary)
    }

    fn bars(&mut self, address: PciAddress, count: u16) -> Result<[Option<PhysAddr>; 6]> {
        let mut memory = [None; 6];
        let mut index = 0;
        while index < count {
            let offset = register::BAR0 + 4 * index;
            self.config.write32(address, offset, u32::MAX);
            let sized = self.config.read32(address, offset);
            let is_memory = sized != 0 && sized & 1 == 0;
            let is_wide = is_memory && sized & 0b110 == 0b100;
            let base = if is_memory {
                // All BARs lie below 4 GiB, so the low half tells the size.
                let bytes = u64::from((!(sized & !0xf)).wrapping_add(1));
                self.reserve(bytes, bytes)?
            } else {
                0
            };
            self.config.write32(address, offset, base as u32);
            if is_wide {
                self.config.write32(address, offset + 4, 0);
            }
            memory[usize::from(index)] = is_memory.then_some(PhysAddr::new(base));
            index += if is_wide { 2 } else { 1 };
        }
        Ok(memory)
    }

    fn reserve(&mut self, bytes: u64, alignment: u64) -> Result<u64> {
        let base = self.next_address.next_multiple_of(alignment.max(1));
        if base + bytes > self.end {
            return Err(Error::Pci("out of addresses for BARs".to_owned()));
        }
        self.next_address = base + bytes;
        Ok(base)
    }
}
