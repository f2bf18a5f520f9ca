//! A driver for QEMU's `edu` device: a buffer of 4096 bytes and an engine that copies between it and
//! memory.

use core::time::Duration;

use iommu::pci::PciConfig;
use iommu::platform::{Mmio, Platform, Registers};
use iommu::{Iova, PciAddress, PhysAddr};

use crate::failure::Failure;
use crate::pci::ConfigPorts;
use crate::platform::Kernel;

/// Where the device's buffer lies in its own address space.
const BUFFER: u64 = 0x40000;

const IDENTIFICATION: usize = 0x00;
const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;

const START: u32 = 1 << 0;
/// From the buffer to memory; without it, from memory to the buffer.
const TO_MEMORY: u32 = 1 << 1;

/// Bytes that the device copies at once.
pub const DMA_BYTES: u32 = 64;

/// The device.
pub struct Edu {
    kernel: Kernel,
    function: PciAddress,
    registers: Mmio,
}

impl Edu {
    /// Finds the device and lets it answer and issue requests.
    pub fn find(kernel: Kernel, config: ConfigPorts) -> Result<Self, Failure> {
        let function = config.find(0x1234, 0x11e8).ok_or(Failure::Missing("the edu device"))?;
        const COMMAND: u16 = 0x04;
        const MEMORY_SPACE: u32 = 1 << 1;
        const BUS_MASTER: u32 = 1 << 2;
        // The upper half is the status, in which a written one clears a bit.
        let command = config.read32(function, COMMAND) & 0xffff;
        config.write32(function, COMMAND, command | MEMORY_SPACE | BUS_MASTER);

        const BAR_0: u16 = 0x10;
        let base = config.read32(function, BAR_0) & !0xf;
        let registers = kernel.map_registers(PhysAddr::new(u64::from(base)), 1 << 20)?;
        if registers.read32(IDENTIFICATION) & 0xff != 0xed {
            return Err(Failure::Wrong("the edu device does not answer"));
        }
        Ok(Self { kernel, function, registers })
    }

    /// Who its requests come from.
    pub fn function(&self) -> PciAddress {
        self.function
    }

    /// Copies [`DMA_BYTES`] bytes at `from` into the device.
    pub fn read_memory(&self, from: Iova) -> Result<(), Failure> {
        self.copy(from.as_u64(), BUFFER, START)
    }

    /// Copies [`DMA_BYTES`] bytes out of the device to `to`.
    pub fn write_memory(&self, to: Iova) -> Result<(), Failure> {
        self.copy(BUFFER, to.as_u64(), START | TO_MEMORY)
    }

    /// Lets the engine run and waits until it has stopped. Whether its requests went through, the
    /// device does not tell.
    fn copy(&self, source: u64, destination: u64, command: u32) -> Result<(), Failure> {
        self.registers.write64(DMA_SOURCE, source);
        self.registers.write64(DMA_DESTINATION, destination);
        self.registers.write32(DMA_COUNT, DMA_BYTES);
        self.registers.write32(DMA_COMMAND, command);
        let deadline = self.kernel.now() + Duration::from_secs(5);
        while self.registers.read32(DMA_COMMAND) & START != 0 {
            if self.kernel.now() > deadline {
                return Err(Failure::Wrong("the edu device does not finish"));
            }
            self.kernel.spin_hint();
        }
        Ok(())
    }
}
