//! The parts of the machine between processor, devices and memory.

use std::sync::{Mutex, MutexGuard};

use iommu::arch::vtd::device::{Answer, Request};
use iommu::ops::Msi;
use iommu::{PciAddress, PhysAddr, Prot};

use super::config_space::ConfigSpace;
use super::engine::Port;
use super::memory::Memory;
use crate::bus::{Bus, Width};
use crate::error::Result;

/// Addresses at which a write of 4 bytes is an interrupt (VT-d 3.14).
const INTERRUPTS: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// What a processor and the devices of the machine reach.
pub(super) struct System {
    config: ConfigSpace,
    memory: Memory,
    messages: Mutex<Vec<Msi>>,
}

impl System {
    pub(super) fn new(config: ConfigSpace, memory: Memory) -> Self {
        Self { config, memory, messages: Mutex::default() }
    }

    pub(super) fn config(&self) -> &ConfigSpace {
        &self.config
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The interrupts so far.
    pub(super) fn messages(&self) -> MutexGuard<'_, Vec<Msi>> {
        self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether a write of a device is an interrupt, and not for memory at all.
    pub(super) fn take_message(&self, port: &Port, address: u64, bytes: &[u8]) -> bool {
        let data =
            <[u8; 4]>::try_from(bytes).ok().filter(|_| INTERRUPTS.contains(&address) && address.is_multiple_of(4));
        if let Some(data) = data.filter(|_| port.is_master()) {
            self.messages().push(Msi { address: PhysAddr::new(address), data: u32::from_le_bytes(data) });
        }
        data.is_some()
    }

    /// What the unit answers; without one, addresses are physical.
    pub(super) fn translate(&self, request: &Request) -> Option<Answer> {
        let phys = PhysAddr::new(request.address);
        Some(Answer { phys, page_bits: 63, prot: Prot::RW, enforces_snooping: false })
    }
}

impl Bus for System {
    fn read(&self, _address: PhysAddr, width: Width) -> Result<u64> {
        Ok(width.ones())
    }

    fn write(&self, _address: PhysAddr, _width: Width, _value: u64) -> Result<()> {
        Ok(())
    }

    fn config_read32(&self, function: PciAddress, offset: u16) -> Result<u32> {
        Ok(self.config.read(function, offset))
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) -> Result<()> {
        self.config.write(function, offset, value);
        Ok(())
    }

    fn clean(&self, start: PhysAddr, bytes: usize) {
        self.memory.clean(start, bytes);
    }
}
