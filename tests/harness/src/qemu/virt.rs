//! The Arm machine: `virt` with an SMMUv3.

use std::ops::Range;

use iommu::PhysAddr;

use super::board::{Board, UnitAccess};
use super::process::Target;
use super::qtest::Qtest;
use crate::arm::{FIRMWARE_BYTES, RAM_BASE, SMMU, ecam, layout};
use crate::bus::{Bus, Width};
use crate::error::{Error, Result};
use crate::firmware::{ConfigDevice, ConfigRegister};
use crate::guest::Layout;
use crate::options::{Arm, PciPlace, SmmuGranule, SmmuStages};
use crate::quirks::QemuQuirks;
use crate::ram::GuestRam;

/// IDR0: stage 2, stage 1 (IHI 0070 G.b, 6.3.1).
const S2P: u64 = 1 << 0;
const S1P: u64 = 1 << 1;

/// IDR5, and its bits for the three granules (6.3.6).
const IDR5: u64 = 0x14;
const GRANULES: u32 = 0b111 << 4;

/// First word of a flattened device tree (Devicetree 0.4, 5.2).
const TREE_MAGIC: u32 = 0xd00d_feed;

impl Board for Arm {
    const TARGET: Target = Target::Aarch64;
    const NAME: &'static str = "virt";
    const CONFIGURATION: ConfigDevice = ConfigDevice {
        register: ConfigRegister::Memory(PhysAddr::new(0x0902_0010)),
        scratch: PhysAddr::new(RAM_BASE.as_u64() + FIRMWARE_BYTES / 2),
    };

    /// `wfi`, and back to it.
    fn rom() -> Vec<u8> {
        [0xd503_207f_u32, 0x17ff_ffff].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn lacks(&self, quirks: &QemuQuirks) -> Option<&'static str> {
        let stages = self.smmu.and_then(|smmu| smmu.stages);
        let lacks = stages.is_some_and(|stages| stages != SmmuStages::First) && !quirks.smmu_has_second_stage;
        lacks.then_some("stage 2")
    }

    fn layout(&self, ram_bytes: u64) -> Result<Layout> {
        layout(ram_bytes, self.pci)
    }

    fn machine(&self, quirks: &QemuQuirks) -> String {
        let name = if self.chosen_stages(quirks).is_some() { quirks.smmu_machine_of_chosen_stages } else { Self::NAME };
        let unit = if self.smmu.is_some() { ",iommu=smmuv3" } else { "" };
        let pci = if self.pci == PciPlace::Low { ",highmem=off" } else { "" };
        format!("{name},gic-version=3{unit}{pci}")
    }

    fn arguments(&self, quirks: &QemuQuirks) -> Vec<(&'static str, String)> {
        let stages = self.chosen_stages(quirks).map(|stages| ("-global", format!("arm-smmuv3.stage={}", name(stages))));
        [("-cpu", "cortex-a57".to_owned())].into_iter().chain(stages).collect()
    }

    fn ecam(&self) -> Range<u64> {
        ecam(self.pci)
    }

    fn unit_access(&self, quirks: &QemuQuirks) -> UnitAccess {
        let told = self.smmu.and_then(|smmu| smmu.granule).map(|granule| match granule {
            SmmuGranule::Size4K => 1 << 4,
            SmmuGranule::Size16K => 1 << 5,
            SmmuGranule::Size64K => 1 << 6,
        });
        let idr5 = PhysAddr::new(SMMU.start + IDR5);
        let hidden = told.map(|told| (idr5, GRANULES & !told)).into_iter().collect();
        UnitAccess { narrow: if quirks.smmu_registers_are_narrow { SMMU } else { 0..0 }, hidden }
    }

    /// Firmware has nothing to do here. What the unit has is seen from its registers only.
    fn power_on(&self, bus: &dyn Bus, _qtest: &Qtest) -> Result<()> {
        let Some(wanted) = self.smmu.and_then(|smmu| smmu.stages) else { return Ok(()) };
        let flags = match wanted {
            SmmuStages::First => S1P,
            SmmuStages::Second => S2P,
            SmmuStages::Nested => S1P | S2P,
        };
        if bus.read(PhysAddr::new(SMMU.start), Width::Long)? & (S1P | S2P) != flags {
            let what = format!("this QEMU has no SMMUv3 with arm-smmuv3.stage={}", name(wanted));
            return Err(Error::Unavailable { what, remedy: "QEMU 10" });
        }
        Ok(())
    }

    fn iommu_base(&self) -> Option<PhysAddr> {
        self.smmu.map(|_| PhysAddr::new(SMMU.start))
    }

    fn device_tree(ram: &GuestRam) -> Result<Vec<u8>> {
        let mut header = [0; 8];
        ram.read(RAM_BASE, &mut header);
        let [magic, bytes] = [0, 4].map(|at| u32::from_be_bytes([0, 1, 2, 3].map(|byte| header[at + byte])));
        if magic != TREE_MAGIC || u64::from(bytes) > FIRMWARE_BYTES / 2 {
            return Err(Error::Firmware("no device tree at the start of RAM"));
        }
        let mut tree = vec![0; bytes as usize];
        ram.read(RAM_BASE, &mut tree);
        Ok(tree)
    }
}

impl Arm {
    /// The stages that QEMU must be asked for.
    fn chosen_stages(&self, quirks: &QemuQuirks) -> Option<SmmuStages> {
        self.smmu.and_then(|smmu| smmu.stages).filter(|_| quirks.smmu_has_second_stage)
    }
}

/// What QEMU calls them.
fn name(stages: SmmuStages) -> &'static str {
    match stages {
        SmmuStages::First => "1",
        SmmuStages::Second => "2",
        SmmuStages::Nested => "nested",
    }
}
