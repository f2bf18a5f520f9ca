//! The Arm machine of the model.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use iommu::PhysAddr;
use iommu::arch::smmuv3::device::Line;
use iommu::arch::smmuv3::layout::identification::Idr0;
use iommu::ops::Msi;

use super::arm_options::{ArmModelOptions, Choices};
use super::config_space::ConfigSpace;
use super::device_tree::{Coherency, device_tree};
use super::iort::iort;
use super::memory::{Memory, WriteBuffers};
use super::smmu::{self, SmmuHost};
use super::start_engine;
use super::system::{Interrupts, System};
use super::unit::{Placed, Surroundings};
use crate::arm::{SMMU, layout};
use crate::error::{Error, Result};
use crate::frames::FramePool;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::observed::ObservedMemory;
use crate::options::ArmOptions;
use crate::platform::MachinePlatform;
use crate::quirks::QemuQuirks;
use crate::ram::GuestRam;
use crate::topology::Located;

/// Device and vendor id of the host bridge.
const HOST_BRIDGE: u32 = 0x0008_1b36;
/// Addresses at which a write of 4 bytes is an interrupt: the page of the ITS with GITS_TRANSLATER.
const DOORBELLS: Range<u64> = 0x0809_0000..0x080a_0000;
/// The interrupt of the unit's first wire.
const FIRST_WIRE: u32 = 106;

/// An Arm machine in software. It is the same that [`QemuArm`](crate::QemuArm) makes of the same options,
/// as far as a driver of the IOMMU can tell; what holds a part of it keeps that part alive.
///
/// ```
/// use iommu_harness::{ArmOptions, Machine, ModelArm};
/// let machine = ModelArm::start(&ArmOptions::new().edu("edu"))?;
/// let (from, to) = (machine.buffer(4096)?, machine.buffer(4096)?);
/// from.fill(0x5a);
/// machine.device("edu").copy(from.iova(), to.iova(), 4096)?;
/// assert!(to.is_filled(0x5a));
/// # Ok::<(), iommu_harness::Error>(())
/// ```
pub struct ModelArm {
    guest: Guest,
    system: Arc<System>,
    lines: Arc<Mutex<Vec<Line>>>,
    firmware: Option<Tables>,
}

/// What firmware leaves in memory.
struct Tables {
    iort: Vec<u8>,
    device_tree: Vec<u8>,
}

impl ModelArm {
    /// Starts a machine whose unit is able to do what QEMU's is.
    ///
    /// # Errors
    /// Those of [`with`](Self::with).
    pub fn start(options: &ArmOptions) -> Result<Self> {
        Self::with(options, &ArmModelOptions::new())
    }

    /// Starts a machine.
    ///
    /// # Errors
    /// [`Error::OutOfRam`] for a size that is not possible, [`Error::Pci`] for more bridges than there
    /// are buses, [`Error::Unit`] for a unit that cannot be.
    pub fn with(options: &ArmOptions, model: &ArmModelOptions) -> Result<Self> {
        let layout = layout(options.ram_bytes, options.board.pci)?;
        let ram = Arc::new(GuestRam::private(&layout.ram)?);
        let unit = options.board.smmu.as_ref().map(|smmu| model.config(smmu));
        let coherent = unit.is_none_or(|unit| unit.identification.idr0().contains(Idr0::COHACC));
        let observed = model.adversary().map(|adversary| ObservedMemory::new(ram.clone(), adversary));
        let memory = match &observed {
            Some(observed) => Memory::observed(observed.clone()),
            None if coherent => Memory::coherent(ram.clone()),
            None => Memory::cached(ram.clone(), WriteBuffers::None)?,
        };
        let (surroundings, lines) = (Surroundings::new(memory), Arc::default());
        let base = PhysAddr::new(SMMU.start);
        let firmware = unit.map(|unit| Tables {
            iort: iort(&unit.identification, base, FIRST_WIRE, model.reserved()),
            device_tree: device_tree(base, if coherent { Coherency::Coherent } else { Coherency::NonCoherent }),
        });
        let pace = match model.choices() {
            Choices::InOrder => 0,
            Choices::Seeded(seed) => seed,
        };
        let host = SmmuHost::new(surroundings.clone(), DOORBELLS, Arc::clone(&lines));
        let unit = unit.map(|config| smmu::unit(config, model.choices(), model.waits(), host)).transpose()?;
        let unit = unit.map(|unit| Placed::new(unit, SMMU, pace));
        let config = ConfigSpace::new(HOST_BRIDGE, &options.topology);
        let system = Arc::new(System::new(config, surroundings, unit, Interrupts::Translated(DOORBELLS)));
        let frames = FramePool::new(ram.clone(), layout.driver);
        let platform = match observed {
            Some(observed) => MachinePlatform::with_observed(system.clone(), frames, observed),
            None => MachinePlatform::new(system.clone(), frames),
        };
        let start = |engine, found: &Located<'_>, pool| start_engine(&system, engine, found, pool);
        let guest = Guest::with_platform(system.clone(), ram, &layout, &options.topology, platform, &start)?;
        Ok(Self { guest, system, lines, firmware })
    }

    /// Takes the interrupts that devices and the unit have sent as messages.
    pub fn take_interrupts(&self) -> Vec<Msi> {
        std::mem::take(&mut *self.system.surroundings().messages())
    }

    /// Takes the interrupts that the unit has raised on its wires.
    pub fn take_lines(&self) -> Vec<Line> {
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn firmware(&self) -> Result<&Tables> {
        self.firmware.as_ref().ok_or(Error::Firmware("there is no such table"))
    }
}

impl Machine for ModelArm {
    fn description(&self) -> String {
        "a model of an Arm machine".to_owned()
    }

    fn guest(&self) -> &Guest {
        &self.guest
    }

    fn iommu_base(&self) -> Option<PhysAddr> {
        self.firmware.as_ref().map(|_| PhysAddr::new(SMMU.start))
    }

    fn acpi_table(&self, signature: &[u8; 4]) -> Result<Vec<u8>> {
        match signature {
            b"IORT" => Ok(self.firmware()?.iort.clone()),
            _ => Err(Error::Firmware("there is no such table")),
        }
    }

    fn device_tree(&self) -> Result<Vec<u8>> {
        Ok(self.firmware()?.device_tree.clone())
    }

    fn quirks(&self) -> Option<&QemuQuirks> {
        None
    }
}
