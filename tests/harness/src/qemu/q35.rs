//! The x86 machine: q35 with a VT-d unit.

use std::ops::Range;

use iommu::PhysAddr;

use super::board::{Board, UnitAccess};
use super::process::Target;
use super::qtest::Qtest;
use crate::bus::{Bus, Width};
use crate::error::Result;
use crate::firmware::{ConfigDevice, ConfigRegister};
use crate::guest::Layout;
use crate::options::X86;
use crate::quirks::QemuQuirks;
use crate::x86::{VTD_BASE, layout};

/// Configuration space of all buses in memory.
const ECAM: Range<u64> = 0xb000_0000..0xc000_0000;

impl Board for X86 {
    const TARGET: Target = Target::X86_64;
    const NAME: &'static str = "q35";
    const CONFIGURATION: ConfigDevice =
        ConfigDevice { register: ConfigRegister::Ports(0x514), scratch: PhysAddr::new(0) };

    /// 64 KiB with `cli; hlt; jmp` back at the reset vector.
    fn rom() -> Vec<u8> {
        let mut rom = vec![0; 64 << 10];
        rom[0xfff0..0xfff4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
        rom
    }

    fn lacks(&self, quirks: &QemuQuirks) -> Option<&'static str> {
        let lacks = self.vtd.is_some_and(|vtd| vtd.first_stage) && !quirks.vtd_has_first_stage;
        lacks.then_some("first stage")
    }

    fn layout(&self, ram_bytes: u64) -> Result<Layout> {
        layout(ram_bytes)
    }

    fn machine(&self, _quirks: &QemuQuirks) -> String {
        Self::NAME.to_owned()
    }

    /// The unit, which must be there before what it translates for.
    fn arguments(&self, _quirks: &QemuQuirks) -> Vec<(&'static str, String)> {
        self.vtd.iter().map(|vtd| ("-device", vtd.to_string())).collect()
    }

    fn ecam(&self) -> Range<u64> {
        ECAM
    }

    fn unit_access(&self, _quirks: &QemuQuirks) -> UnitAccess {
        UnitAccess::default()
    }

    /// Sets PCIEXBAR of the host bridge, through the configuration ports.
    fn power_on(&self, _bus: &dyn Bus, qtest: &Qtest) -> Result<()> {
        for (register, value) in [(0x64, 0), (0x60, ECAM.start as u32 | 1)] {
            qtest.port_out(0xcf8, Width::Long, 1 << 31 | register)?;
            qtest.port_out(0xcfc, Width::Long, value)?;
        }
        Ok(())
    }

    fn iommu_base(&self) -> Option<PhysAddr> {
        self.vtd.map(|_| VTD_BASE)
    }
}
