//! The LSI 53C895A SCSI controller as a copy engine: a script processor that runs at once, without a
//! clock.

use std::sync::Arc;

use iommu::{Iova, PhysAddr};

use super::{Access, CopyEngine, DmaOutcome, POKE, Workspace};
use crate::bus::{Bus, Width};
use crate::error::Result;
use crate::ram::GuestRam;

/// Vendor and device id.
pub(crate) const ID: (u16, u16) = (0x1000, 0x0012);

/// Registers, by their offset in BAR 1.
const DSTAT: u64 = 0x0c;
const ISTAT: u64 = 0x14;
const DSP: u64 = 0x2c;
const SCRATCH_A: u64 = 0x34;

/// DSTAT: the script reached an interrupt instruction.
const SCRIPT_INTERRUPT: u64 = 1 << 2;
/// ISTAT: reset the chip.
const SOFT_RESET: u64 = 1 << 6;

/// Instruction: move the number of bytes in the low 24 bits from the first operand to the second.
pub(crate) const MEMORY_MOVE: u32 = 0xc000_0000;
/// Instruction: store 4 bytes of SCRATCH A at the operand.
pub(crate) const STORE_SCRATCH: u32 = 0xe000_0004 | (SCRATCH_A as u32) << 16;
/// Instruction: load 4 bytes at the operand into SCRATCH A.
pub(crate) const LOAD_SCRATCH: u32 = 0xe100_0004 | (SCRATCH_A as u32) << 16;
/// Instruction, with one operand: interrupt, which ends the script.
pub(crate) const INTERRUPT: u32 = 0x9808_0000;

/// The LSI 53C895A. It fetches a script from its workspace and does what it says before the register
/// write that started it returns.
pub struct Lsi {
    bus: Arc<dyn Bus>,
    registers: PhysAddr,
}

impl Lsi {
    /// The device whose BAR 1 lies at `registers`.
    pub fn new(bus: Arc<dyn Bus>, registers: PhysAddr) -> Self {
        Self { bus, registers }
    }

    fn run(&self, ram: &GuestRam, workspace: &Workspace, script: &[u32]) -> Result<DmaOutcome> {
        let bytes: Vec<u8> = script.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.write(workspace.phys, &bytes);
        self.bus.write(self.at(DSP), Width::Long, workspace.iova.as_u64())?;
        if self.bus.read(self.at(DSTAT), Width::Byte)? & SCRIPT_INTERRUPT != 0 {
            return Ok(DmaOutcome::Done);
        }
        // Whatever it took for a script has left it in some state.
        self.bus.write(self.at(ISTAT), Width::Byte, SOFT_RESET)?;
        self.bus.write(self.at(ISTAT), Width::Byte, 0)?;
        Ok(DmaOutcome::NoScript)
    }

    fn at(&self, register: u64) -> PhysAddr {
        PhysAddr::new(self.registers.as_u64() + register)
    }
}

impl CopyEngine for Lsi {
    const KIND: &'static str = "lsi";
    const LAST_IOVA: Iova = Iova::new(u32::MAX as u64);
    const MAX_BYTES: usize = (1 << 24) - 1;

    fn copy(
        &mut self,
        ram: &GuestRam,
        workspace: &Workspace,
        from: Iova,
        to: Iova,
        bytes: usize,
    ) -> Result<DmaOutcome> {
        let [from, to] = [from, to].map(|iova| iova.as_u64() as u32);
        self.run(ram, workspace, &[MEMORY_MOVE | bytes as u32, from, to, INTERRUPT, 0])
    }

    fn poke(&mut self, ram: &GuestRam, workspace: &Workspace, iova: Iova, access: Access) -> Result<DmaOutcome> {
        let instruction = match access {
            Access::Read => LOAD_SCRATCH,
            Access::Write => {
                self.bus.write(self.at(SCRATCH_A), Width::Long, u64::from(u32::from_le_bytes(POKE)))?;
                STORE_SCRATCH
            }
        };
        self.run(ram, workspace, &[instruction, iova.as_u64() as u32, INTERRUPT, 0])
    }
}
