//! What every machine offers, whatever it is made of.

use std::fmt;
use std::sync::Arc;

use iommu::platform::FRAME_BYTES;
use iommu::{Iova, PciAddress, PhysAddr, PhysRange};

use crate::devices::DmaDevice;
use crate::error::{Error, Result};
use crate::frames::FramePool;
use crate::guest::Guest;
use crate::pci::{PciConfigSpace, PciFunction};
use crate::platform::MachinePlatform;
use crate::quirks::QemuQuirks;
use crate::ram::GuestRam;

/// A machine with an IOMMU, as it is handed over by firmware: buses numbered, BARs assigned,
/// translation off.
pub trait Machine: Send + Sync {
    /// What it is, for messages.
    fn description(&self) -> String;

    /// Its parts.
    fn guest(&self) -> &Guest;

    /// Base of the IOMMU's registers, when there is one at an address that is known without firmware
    /// tables.
    fn iommu_base(&self) -> Option<PhysAddr>;

    /// The firmware table with this signature, as the firmware leaves it in memory.
    ///
    /// # Errors
    /// [`Error::Firmware`] when there is none.
    fn acpi_table(&self, signature: &[u8; 4]) -> Result<Vec<u8>>;

    /// The flattened device tree that the firmware leaves in memory, its free space included.
    ///
    /// # Errors
    /// [`Error::Firmware`] when there is none.
    fn device_tree(&self) -> Result<Vec<u8>> {
        Err(Error::Firmware("there is no device tree"))
    }

    /// What this machine is known to do otherwise than the specification; `None` for nothing.
    fn quirks(&self) -> Option<&QemuQuirks>;

    /// What the driver under test runs on. Its frames come from a part of guest RAM that the harness
    /// leaves alone.
    fn platform(&self) -> &MachinePlatform {
        self.guest().platform()
    }

    /// Configuration space.
    fn config(&self) -> &PciConfigSpace {
        self.guest().config()
    }

    /// All PCI functions, each bridge before what is behind it.
    fn functions(&self) -> &[PciFunction] {
        self.guest().functions()
    }

    /// The functions that do DMA when a test says so, in the order of the options.
    fn devices(&self) -> &[Arc<dyn DmaDevice>] {
        self.guest().devices()
    }

    /// Where buffers of tests and the devices' workspaces come from.
    fn buffers(&self) -> &Arc<FramePool> {
        self.guest().buffers()
    }

    /// The guest's RAM.
    fn ram(&self) -> &GuestRam {
        self.buffers().ram()
    }

    /// The device called `name`.
    ///
    /// # Panics
    /// When the options had none of this name.
    fn device(&self, name: &str) -> &Arc<dyn DmaDevice> {
        match self.devices().iter().find(|device| device.name() == name) {
            Some(device) => device,
            None => panic!("no device is called {name}"),
        }
    }

    /// Address of the function called `name` in the options, bridges included.
    ///
    /// # Panics
    /// When the options had none of this name.
    fn address_of(&self, name: &str) -> PciAddress {
        match self.guest().address_of(name) {
            Some(address) => address,
            None => panic!("no function is called {name}"),
        }
    }

    /// A zeroed buffer of at least `bytes` bytes in guest RAM, rounded up to a power of two of frames
    /// and aligned to its size.
    ///
    /// # Errors
    /// [`Error::OutOfRam`] when no such block is left.
    fn buffer(&self, bytes: u64) -> Result<Buffer> {
        Buffer::new(self.buffers().clone(), bytes)
    }
}

/// A block of guest RAM for a test, given back when dropped.
pub struct Buffer {
    pool: Arc<FramePool>,
    phys: PhysAddr,
    order: u8,
}

impl Buffer {
    /// A zeroed block of at least `bytes` bytes out of `pool`.
    ///
    /// # Errors
    /// [`Error::OutOfRam`] when no such block is left.
    pub fn new(pool: Arc<FramePool>, bytes: u64) -> Result<Self> {
        let frames = bytes.div_ceil(FRAME_BYTES).max(1).checked_next_power_of_two();
        let order = frames.map_or(u8::MAX, |frames| frames.trailing_zeros() as u8);
        let phys = pool.alloc(order, PhysAddr::new(u64::MAX)).ok_or(Error::OutOfRam { bytes })?;
        Ok(Self { pool, phys, order })
    }

    /// Where it begins.
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }

    /// The IOVA with the same number, for machines without translation and identity domains.
    pub fn iova(&self) -> Iova {
        Iova::new(self.phys.as_u64())
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        FRAME_BYTES << self.order
    }

    /// Its range of physical addresses.
    pub fn range(&self) -> PhysRange {
        match PhysRange::from_len(self.phys, self.bytes()) {
            Ok(range) => range,
            Err(error) => panic!("a buffer is a range: {error}"),
        }
    }

    /// Fills all of it.
    pub fn fill(&self, value: u8) {
        self.pool.ram().fill(self.phys, self.bytes() as usize, value);
    }

    /// Whether every byte is `value`.
    pub fn is_filled(&self, value: u8) -> bool {
        self.pool.ram().is_filled(self.phys, self.bytes() as usize, value)
    }

    /// Writes `data` at `offset`.
    ///
    /// # Panics
    /// When it passes the end.
    pub fn write(&self, offset: u64, data: &[u8]) {
        self.pool.ram().write(self.at(offset, data.len()), data);
    }

    /// Reads `bytes` bytes at `offset`.
    ///
    /// # Panics
    /// When it passes the end.
    pub fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.pool.ram().read(self.at(offset, bytes), &mut read);
        read
    }

    /// All of its bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.read(0, self.bytes() as usize)
    }

    #[track_caller]
    fn at(&self, offset: u64, bytes: usize) -> PhysAddr {
        let end = offset.checked_add(bytes as u64);
        assert!(end.is_some_and(|end| end <= self.bytes()), "{bytes} bytes at {offset:#x} pass the end of the buffer");
        PhysAddr::new(self.phys.as_u64() + offset)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.free(self.phys, self.order);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({})", self.range())
    }
}
