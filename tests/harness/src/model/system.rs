//! The parts of the machine between processor, devices and memory.

use std::ops::Range;
use std::sync::Arc;

use iommu::bus::Translation;
use iommu::ops::Msi;
use iommu::pgtable::PageSize;
use iommu::{PciAddress, PhysAddr, Prot};

use super::config_space::ConfigSpace;
use super::engine::Port;
use super::memory::Memory;
use super::unit::{DeviceRequest, Placed, Surroundings};
use crate::bus::{Bus, Width};
use crate::error::Result;

/// What a processor and the devices of the machine reach.
pub(super) struct System {
    config: ConfigSpace,
    surroundings: Arc<Surroundings>,
    unit: Option<Placed>,
    interrupts: Interrupts,
}

/// Addresses at which a device's write of 4 bytes is an interrupt.
#[derive(Clone, Debug)]
pub(super) enum Interrupts {
    /// Whatever the unit does: it does not translate them.
    Untranslated(Range<u64>),
    /// Where the unit leads there.
    Translated(Range<u64>),
}

impl System {
    pub(super) fn new(
        config: ConfigSpace,
        surroundings: Arc<Surroundings>,
        unit: Option<Placed>,
        interrupts: Interrupts,
    ) -> Self {
        Self { config, surroundings, unit, interrupts }
    }

    pub(super) fn config(&self) -> &ConfigSpace {
        &self.config
    }

    pub(super) fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.surroundings.memory
    }

    /// Whether a write of a device is an interrupt, and not for the unit at all.
    pub(super) fn take_message(&self, port: &Port, address: u64, bytes: &[u8]) -> bool {
        let Interrupts::Untranslated(interrupts) = &self.interrupts else { return false };
        let message = message(interrupts, address, bytes);
        if let Some(message) = message.filter(|_| port.is_master()) {
            self.surroundings.messages().push(message);
        }
        message.is_some()
    }

    /// A write of a device arrives behind the unit.
    pub(super) fn deliver(&self, phys: PhysAddr, bytes: &[u8]) {
        let message = match &self.interrupts {
            Interrupts::Translated(interrupts) => message(interrupts, phys.as_u64(), bytes),
            Interrupts::Untranslated(_) => None,
        };
        match message {
            Some(message) => self.surroundings.messages().push(message),
            None => self.memory().write(phys, bytes),
        }
    }

    /// What the unit answers; without one, addresses are physical.
    pub(super) fn translate(&self, request: &DeviceRequest) -> Option<Translation> {
        match &self.unit {
            Some(unit) => unit.translate(request),
            None => {
                let phys = PhysAddr::new(request.address);
                Some(Translation { phys, page_size: PageSize::from_log2(63), prot: Prot::RW })
            }
        }
    }

    /// The unit, and how far from its first register `address` is.
    fn unit_at(&self, address: PhysAddr) -> Option<(&Placed, usize)> {
        let unit = self.unit.as_ref()?;
        Some((unit, unit.offset(address)?))
    }
}

/// The interrupt that a write is.
fn message(interrupts: &Range<u64>, address: u64, bytes: &[u8]) -> Option<Msi> {
    let data = <[u8; 4]>::try_from(bytes).ok();
    let data = data.filter(|_| interrupts.contains(&address) && address.is_multiple_of(4))?;
    Some(Msi { address: PhysAddr::new(address), data: u32::from_le_bytes(data) })
}

impl Bus for System {
    fn read(&self, address: PhysAddr, width: Width) -> Result<u64> {
        Ok(self.unit_at(address).map_or(width.ones(), |(unit, offset)| unit.read(offset, width)))
    }

    fn write(&self, address: PhysAddr, width: Width, value: u64) -> Result<()> {
        if let Some((unit, offset)) = self.unit_at(address) {
            unit.write(offset, width, value);
        }
        Ok(())
    }

    fn config_read32(&self, function: PciAddress, offset: u16) -> Result<u32> {
        Ok(self.config.read(function, offset))
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) -> Result<()> {
        self.config.write(function, offset, value);
        Ok(())
    }

    fn spin(&self) {
        self.unit.iter().for_each(Placed::run);
        std::hint::spin_loop();
    }

    fn clean(&self, start: PhysAddr, bytes: usize) {
        self.memory().clean(start, bytes);
    }
}
