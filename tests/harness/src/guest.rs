//! What every machine is made of, whoever plays its hardware.

use std::ops::Range;
use std::sync::Arc;

use iommu::platform::FRAME_BYTES;
use iommu::{PciAddress, PhysAddr, PhysRange};

use crate::bus::Bus;
use crate::devices::DmaDevice;
use crate::error::{Error, Result};
use crate::frames::FramePool;
use crate::options::{Engine, Node, NodeKind};
use crate::pci::{self, PciConfigSpace, PciFunction};
use crate::platform::MachinePlatform;
use crate::ram::GuestRam;
use crate::topology::{Located, locate};

/// Where things lie in a machine.
#[derive(Clone, Debug)]
pub struct Layout {
    /// RAM, in the order in which the ranges lie behind each other in its file.
    pub ram: Vec<PhysRange>,
    /// The part of it for buffers of tests and workspaces of devices.
    pub tests: PhysRange,
    /// The part of it for the driver.
    pub driver: PhysRange,
    /// Addresses for BARs.
    pub bars: Range<u64>,
}

impl Layout {
    /// Divides the first range of RAM: the first `kept` bytes are firmware's; up to a quarter for tests,
    /// the rest for the driver.
    pub(crate) fn new(ram: Vec<PhysRange>, kept: u64, bars: Range<u64>) -> Result<Self> {
        let none = Error::OutOfRam { bytes: 0 };
        let Some(low) = ram.first() else { return Err(none) };
        let (start, last) = (low.start().as_u64(), low.last().as_u64());
        let middle = PhysAddr::new(start + (last - start) / 4).align_down(2 << 20);
        let before = PhysAddr::new(middle.as_u64() - 1);
        let parts = PhysRange::new(PhysAddr::new(start + kept), before)
            .and_then(|tests| Ok((tests, PhysRange::new(middle, low.last())?)));
        let (tests, driver) = parts.map_err(|_| Error::OutOfRam { bytes: FRAME_BYTES })?;
        Ok(Self { ram, tests, driver, bars })
    }

    /// Bytes of RAM.
    pub(crate) fn ram_bytes(&self) -> u64 {
        self.ram.iter().filter_map(PhysRange::bytes).sum()
    }
}

/// RAM of these starts and lengths; a length of 0 is no range.
pub(crate) fn ram(parts: &[(u64, u64)]) -> Result<Vec<PhysRange>> {
    let bytes = parts.iter().map(|(_, bytes)| bytes).sum();
    let refused = || Error::OutOfRam { bytes };
    if bytes < 64 << 20 || !bytes.is_multiple_of(2 << 20) {
        return Err(refused());
    }
    let range = |&(start, bytes): &(u64, u64)| PhysRange::from_len(PhysAddr::new(start), bytes).map_err(|_| refused());
    parts.iter().filter(|(_, bytes)| *bytes > 0).map(range).collect()
}

/// Makes an engine, whose workspace is taken from the pool.
pub(crate) type StartEngine<'a> = dyn Fn(Engine, &Located<'_>, Arc<FramePool>) -> Result<Arc<dyn DmaDevice>> + 'a;

/// The parts of a machine: RAM, PCI functions, engines, and the platform of a driver. They are kept
/// alive by whatever holds one of them.
#[derive(Debug)]
pub struct Guest {
    devices: Vec<Arc<dyn DmaDevice>>,
    names: Vec<(String, PciAddress)>,
    functions: Vec<PciFunction>,
    config: PciConfigSpace,
    platform: MachinePlatform,
    buffers: Arc<FramePool>,
}

impl Guest {
    /// Does what firmware does to the PCI functions on `bus`, and has `start` make the engines of
    /// `topology`.
    pub(crate) fn new(
        bus: Arc<dyn Bus>,
        ram: Arc<GuestRam>,
        layout: &Layout,
        topology: &[Node],
        start: &StartEngine<'_>,
    ) -> Result<Self> {
        let driver = FramePool::new(ram.clone(), layout.driver);
        let platform = MachinePlatform::new(bus.clone(), driver);
        Self::with_platform(bus, ram, layout, topology, platform, start)
    }

    /// As [`new`](Self::new), with the platform of the driver.
    pub(crate) fn with_platform(
        bus: Arc<dyn Bus>,
        ram: Arc<GuestRam>,
        layout: &Layout,
        topology: &[Node],
        platform: MachinePlatform,
        start: &StartEngine<'_>,
    ) -> Result<Self> {
        let config = PciConfigSpace::new(bus);
        let functions = pci::assign(&config, layout.bars.clone())?;
        let buffers = Arc::new(FramePool::new(ram, layout.tests));
        let (mut devices, mut names) = (Vec::new(), Vec::new());
        for found in locate(topology, &functions)? {
            names.push((found.node.name.clone(), found.function.address));
            if let NodeKind::Engine(engine) = found.node.kind {
                pci::enable(&config, found.function.address);
                devices.push(start(engine, &found, buffers.clone())?);
            }
        }
        Ok(Self { devices, names, functions, config, platform, buffers })
    }

    /// See [`Machine::platform`](crate::Machine::platform).
    pub fn platform(&self) -> &MachinePlatform {
        &self.platform
    }

    /// See [`Machine::config`](crate::Machine::config).
    pub fn config(&self) -> &PciConfigSpace {
        &self.config
    }

    /// See [`Machine::functions`](crate::Machine::functions).
    pub fn functions(&self) -> &[PciFunction] {
        &self.functions
    }

    /// See [`Machine::devices`](crate::Machine::devices).
    pub fn devices(&self) -> &[Arc<dyn DmaDevice>] {
        &self.devices
    }

    /// See [`Machine::buffers`](crate::Machine::buffers).
    pub fn buffers(&self) -> &Arc<FramePool> {
        &self.buffers
    }

    /// Address of the function called `name` in the options.
    pub fn address_of(&self, name: &str) -> Option<PciAddress> {
        self.names.iter().find(|(known, _)| known == name).map(|(_, address)| *address)
    }
}
