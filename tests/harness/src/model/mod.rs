//! The *model*: a machine in this process.
//!
//! Guest RAM, configuration space, engines that do what QEMU's engines of the same names do, and one of
//! the crate's own device halves as its IOMMU: VT-d, or on Arm an SMMUv3. It is deterministic as long as one thread drives it: the unit
//! makes its steps while the driver accesses registers or turns in a wait, how many a seed decides.
//!
//! It is stricter than QEMU's machine. Where ECAP.C and, for page tables of scalable mode, PWSNP, or on Arm
//! COHACC say that the unit does not snoop, it sees what the driver has cleaned and nothing else; its caches keep what they
//! may; with caching mode also what is not present.
//!
//! | file | what it holds |
//! |---|---|
//! | `options` | what the unit is able to do |
//! | `system` | processor, devices and memory put together |
//! | `unit` | what a unit is to the machine, and the machine to a unit |
//! | `vtd`, `smmu` | the VT-d unit, the SMMUv3 |
//! | `memory` | RAM, and what lies behind the processor's caches |
//! | `engine` | what does DMA |
//! | `device_tlb` | the translations that an engine keeps |
//! | `config_space` | PCI functions |
//! | `dmar`, `iort`, `device_tree` | what firmware tells |
//! | `arm`, `arm_options` | the Arm machine, and what its unit is able to do |

mod arm;
mod arm_options;
mod config_space;
mod device_tlb;
mod device_tree;
mod dmar;
mod engine;
mod iort;
mod memory;
mod options;
mod smmu;
mod system;
mod unit;
mod vtd;

use std::ops::Range;
use std::sync::Arc;

use iommu::PhysAddr;
use iommu::arch::vtd::layout::{Cap, Ecap};
use iommu::ops::Msi;

pub use self::arm::ModelArm;
pub use self::arm_options::ArmModelOptions;
use self::config_space::ConfigSpace;
pub use self::device_tlb::{DeviceTlb, TlbAnswer, TlbScope};
use self::engine::{ModelEdu, ModelLsi, Port};
use self::memory::{Memory, WriteBuffers};
pub use self::options::ModelOptions;
use self::system::{Interrupts, System};
use self::unit::{Placed, Surroundings};
use self::vtd::VtdUnit;
use crate::devices::{DmaDevice, PciEngine};
use crate::error::{Error, Result};
use crate::frames::FramePool;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::options::{Engine, X86Options};
use crate::quirks::QemuQuirks;
use crate::ram::GuestRam;
use crate::topology::Located;
use crate::x86::{self, VTD_BASE};

/// Device and vendor id of the host bridge.
const HOST_BRIDGE: u32 = 0x29c0_8086;
/// Addresses at which a write of 4 bytes is an interrupt (VT-d 3.15).
const INTERRUPTS: Range<u64> = 0xfee0_0000..0xfef0_0000;
/// Registers of the unit: as many as a unit of this model has at most.
const VTD_REGISTERS: Range<u64> = VTD_BASE.as_u64()..VTD_BASE.as_u64() + (1 << 16);

/// A machine in software. It is the same that [`QemuX86`](crate::QemuX86) makes of the same options,
/// as far as a driver of the IOMMU can tell; what holds a part of it keeps that part alive.
///
/// ```
/// use iommu_harness::{Machine, ModelX86, X86Options};
/// let machine = ModelX86::start(&X86Options::new().edu("edu"))?;
/// let (from, to) = (machine.buffer(4096)?, machine.buffer(4096)?);
/// from.fill(0x5a);
/// machine.device("edu").copy(from.iova(), to.iova(), 4096)?;
/// assert!(to.is_filled(0x5a));
/// # Ok::<(), iommu_harness::Error>(())
/// ```
pub struct ModelX86 {
    guest: Guest,
    system: Arc<System>,
    dmar: Option<Vec<u8>>,
}

impl ModelX86 {
    /// Starts a machine whose unit is able to do what QEMU's is.
    ///
    /// # Errors
    /// Those of [`with`](Self::with).
    pub fn start(options: &X86Options) -> Result<Self> {
        Self::with(options, &ModelOptions::new())
    }

    /// Starts a machine.
    ///
    /// # Errors
    /// [`Error::OutOfRam`] for a size that is not possible, [`Error::Pci`] for more bridges than there
    /// are buses, [`Error::Unit`] for a unit that cannot be.
    pub fn with(options: &X86Options, model: &ModelOptions) -> Result<Self> {
        let layout = x86::layout(options.ram_bytes)?;
        let ram = Arc::new(GuestRam::private(&layout.ram)?);
        let unit = options.board.vtd.as_ref().map(|vtd| model.config(vtd));
        let memory = match &unit {
            // ECAP.C does not speak for page tables of scalable mode (11.4.3).
            Some(unit) if !unit.ecap.contains(Ecap::C) || unit.ecap.contains(Ecap::SMTS) => {
                let buffers = if unit.cap.contains(Cap::RWBF) { WriteBuffers::Keep } else { WriteBuffers::None };
                Memory::cached(ram.clone(), buffers)?
            }
            _ => Memory::coherent(ram.clone()),
        };
        let surroundings = Surroundings::new(memory);
        let dmar = unit.map(|unit| dmar::dmar(&unit, VTD_BASE));
        let unit = unit.map(|config| VtdUnit::new(config, model.seed_value(), surroundings.clone())).transpose()?;
        let unit = unit.map(|unit| Placed::new(Box::new(unit), VTD_REGISTERS, model.seed_value()));
        let config = ConfigSpace::new(HOST_BRIDGE, &options.topology);
        let system = Arc::new(System::new(config, surroundings, unit, Interrupts::Untranslated(INTERRUPTS)));
        let guest = Guest::new(system.clone(), ram, &layout, &options.topology, &|engine, found, pool| {
            start_engine(&system, engine, found, pool)
        })?;
        Ok(Self { guest, system, dmar })
    }

    /// Takes the interrupts that devices and the unit have sent.
    pub fn take_interrupts(&self) -> Vec<Msi> {
        std::mem::take(&mut *self.system.surroundings().messages())
    }
}

fn start_engine(
    system: &Arc<System>,
    engine: Engine,
    found: &Located<'_>,
    pool: Arc<FramePool>,
) -> Result<Arc<dyn DmaDevice>> {
    let (tlb, source) = (found.node.ats.map(|_| Arc::new(DeviceTlb::new())), found.requester.id() as u16);
    if let Some(tlb) = &tlb {
        system.surroundings().connect(source, tlb.clone());
    }
    let (name, address, requester) = (&found.node.name, found.function.address, found.requester);
    let port = Port { system: system.clone(), address, source, tlb };
    Ok(match engine {
        Engine::Edu => Arc::new(PciEngine::new(name, address, requester, pool, |_, _| Ok(ModelEdu::new(port)))?),
        Engine::Lsi => Arc::new(PciEngine::new(name, address, requester, pool, |_, _| Ok(ModelLsi::new(port)))?),
    })
}

impl Machine for ModelX86 {
    fn description(&self) -> String {
        "a model of a q35".to_owned()
    }

    fn guest(&self) -> &Guest {
        &self.guest
    }

    fn iommu_base(&self) -> Option<PhysAddr> {
        self.dmar.as_ref().map(|_| VTD_BASE)
    }

    fn acpi_table(&self, signature: &[u8; 4]) -> Result<Vec<u8>> {
        let dmar = self.dmar.clone().filter(|_| signature == b"DMAR");
        dmar.ok_or(Error::Firmware("there is no such table"))
    }

    fn quirks(&self) -> Option<&QemuQuirks> {
        None
    }
}
