//! QEMU's `edu`: moves bytes between memory and a buffer of its own.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iommu::{Iova, PhysAddr};

use super::{Access, CopyEngine, DmaOutcome, POKE, Workspace};
use crate::bus::{Bus, Width};
use crate::error::{Error, Result};
use crate::quirks::QemuQuirks;
use crate::ram::GuestRam;

/// Vendor and device id.
pub(crate) const ID: (u16, u16) = (0x1234, 0x11e8);

/// Registers, by their offset in BAR 0.
const SOURCE: u64 = 0x80;
const TARGET: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;

/// Command: transfer now. Reads as one until the transfer is done.
const RUN: u64 = 1 << 0;
/// Command: from the buffer to memory.
const TO_MEMORY: u64 = 1 << 1;

/// Where the buffer lies among the device's own addresses.
const BUFFER: u64 = 0x4_0000;

// How this harness divides the buffer: data, what a poke writes, what a poke reads.
const DATA: u64 = BUFFER;
const DATA_BYTES: u64 = 2048;
const POKE_FROM: u64 = DATA + DATA_BYTES;
const POKE_TO: u64 = POKE_FROM + 8;
const USED_BYTES: u64 = POKE_TO + 8 - BUFFER;

/// The longest that a transfer may take: 100 ms of the machine's time, and less than one of ours
/// where its clock jumps.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The `edu` device. A transfer takes 100 ms of the machine's clock.
pub struct Edu {
    bus: Arc<dyn Bus>,
    registers: PhysAddr,
}

impl Edu {
    /// The device whose BAR 0 lies at `registers`. Translation must still be off: what
    /// [`poke`](super::DmaDevice::poke) writes is loaded into the device here.
    ///
    /// # Errors
    /// What a lost machine gives; [`Error::TimedOut`] when the machine's clock stands still.
    pub fn new(
        bus: Arc<dyn Bus>,
        registers: PhysAddr,
        quirks: &QemuQuirks,
        ram: &GuestRam,
        workspace: &Workspace,
    ) -> Result<Self> {
        if USED_BYTES > quirks.edu_buffer_end {
            return Err(Error::Pci("edu's buffer is too small".to_owned()));
        }
        let edu = Self { bus, registers };
        ram.write(workspace.phys, &POKE);
        edu.transfer(workspace.phys.as_u64(), POKE_FROM, POKE.len() as u64, RUN)?;
        Ok(edu)
    }

    fn transfer(&self, source: u64, target: u64, bytes: u64, command: u64) -> Result<()> {
        self.write(SOURCE, source)?;
        self.write(TARGET, target)?;
        self.write(COUNT, bytes)?;
        self.write(COMMAND, command)?;
        let start = Instant::now();
        while self.bus.read(self.at(COMMAND), Width::Quad)? & RUN != 0 {
            if start.elapsed() > TIMEOUT {
                return Err(Error::TimedOut { doing: "a transfer of edu" });
            }
            thread::yield_now();
        }
        Ok(())
    }

    fn write(&self, register: u64, value: u64) -> Result<()> {
        self.bus.write(self.at(register), Width::Quad, value)
    }

    fn at(&self, register: u64) -> PhysAddr {
        PhysAddr::new(self.registers.as_u64() + register)
    }
}

impl CopyEngine for Edu {
    const KIND: &'static str = "edu";
    const LAST_IOVA: Iova = Iova::new(u64::MAX);
    const MAX_BYTES: usize = DATA_BYTES as usize;

    fn copy(
        &mut self,
        _ram: &GuestRam,
        _workspace: &Workspace,
        from: Iova,
        to: Iova,
        bytes: usize,
    ) -> Result<DmaOutcome> {
        self.transfer(from.as_u64(), DATA, bytes as u64, RUN)?;
        self.transfer(DATA, to.as_u64(), bytes as u64, RUN | TO_MEMORY)?;
        Ok(DmaOutcome::Done)
    }

    fn poke(&mut self, _ram: &GuestRam, _workspace: &Workspace, iova: Iova, access: Access) -> Result<DmaOutcome> {
        match access {
            Access::Read => self.transfer(iova.as_u64(), POKE_TO, 4, RUN)?,
            Access::Write => self.transfer(POKE_FROM, iova.as_u64(), 4, RUN | TO_MEMORY)?,
        }
        Ok(DmaOutcome::Done)
    }
}
