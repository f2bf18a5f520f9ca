//! What a processor of the machine can do: reach registers and configuration space.

use std::fmt;
use std::sync::Arc;

use iommu::platform::Registers;
use iommu::{PciAddress, PhysAddr};

use crate::error::Result;
use crate::observed::ObservedMemory;

/// How many bytes one access moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Long,
    /// 8 bytes.
    Quad,
}

impl Width {
    /// What an access of this width reads where there is nothing.
    pub(crate) fn ones(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Long => 0xffff_ffff,
            Self::Quad => u64::MAX,
        }
    }
}

/// The accesses of a machine's processor. Every kind of machine implements this; the rest of the
/// harness stands on it.
pub trait Bus: Send + Sync + 'static {
    /// Reads device memory at `address`.
    ///
    /// # Errors
    /// That the machine is gone.
    fn read(&self, address: PhysAddr, width: Width) -> Result<u64>;

    /// Writes device memory at `address`.
    ///
    /// # Errors
    /// That the machine is gone.
    fn write(&self, address: PhysAddr, width: Width, value: u64) -> Result<()>;

    /// Reads 32 bits of `function`'s configuration space. `offset` is a multiple of 4 below 4096;
    /// all ones where there is no function.
    ///
    /// # Errors
    /// That the machine is gone.
    fn config_read32(&self, function: PciAddress, offset: u16) -> Result<u32>;

    /// Writes 32 bits of `function`'s configuration space.
    ///
    /// # Errors
    /// That the machine is gone.
    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) -> Result<()>;

    /// The processor waits for something: the machine gets time to do it.
    fn spin(&self) {
        std::hint::spin_loop();
    }

    /// The processor writes the cache lines of the `bytes` bytes at `start` back to memory.
    fn clean(&self, start: PhysAddr, bytes: usize) {
        let _ = (start, bytes);
    }
}

/// Registers of a machine, as a driver's platform maps them.
///
/// Behaves as [`Registers`] asks when the machine is gone: reads are all ones, writes are lost. The
/// bus says so on standard error, once.
#[derive(Clone)]
pub struct BusRegisters {
    bus: Arc<dyn Bus>,
    base: PhysAddr,
    bytes: usize,
    observed: Option<Arc<ObservedMemory>>,
}

impl BusRegisters {
    /// The `bytes` bytes of registers at `base`.
    pub fn new(bus: Arc<dyn Bus>, base: PhysAddr, bytes: usize) -> Self {
        Self { bus, base, bytes, observed: None }
    }

    /// Tells `memory` of every write before it happens.
    pub fn with_observed(self, memory: Option<Arc<ObservedMemory>>) -> Self {
        Self { observed: memory, ..self }
    }

    fn at(&self, offset: usize, width: usize) -> Option<PhysAddr> {
        let inside = offset.checked_add(width).is_some_and(|end| end <= self.bytes) && offset.is_multiple_of(width);
        if inside { self.base.checked_add(offset as u64) } else { None }
    }

    fn read(&self, offset: usize, bytes: usize, width: Width) -> u64 {
        self.at(offset, bytes).and_then(|address| self.bus.read(address, width).ok()).unwrap_or(u64::MAX)
    }

    fn write(&self, offset: usize, bytes: usize, width: Width, value: u64) {
        if let Some(address) = self.at(offset, bytes) {
            if let Some(memory) = &self.observed {
                memory.told();
            }
            // The bus has told it; a driver cannot be told.
            let _ = self.bus.write(address, width, value);
        }
    }
}

impl Registers for BusRegisters {
    fn read32(&self, offset: usize) -> u32 {
        self.read(offset, 4, Width::Long) as u32
    }

    fn read64(&self, offset: usize) -> u64 {
        self.read(offset, 8, Width::Quad)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, 4, Width::Long, u64::from(value));
    }

    fn write64(&self, offset: usize, value: u64) {
        self.write(offset, 8, Width::Quad, value);
    }
}

impl fmt::Debug for BusRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BusRegisters({:#x} bytes at {})", self.bytes, self.base)
    }
}
