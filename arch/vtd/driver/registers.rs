//! The registers of one unit: commands, each waited for with a bound.

use core::time::Duration;

use super::{Capabilities, site};
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::Cap;
use crate::arch::vtd::layout::registers::{FaultStatus, Global, PMEN_EPM, PMEN_PRS, QueueError, TableMode, offset};
use crate::error::{Error, Result, WaitReason};
use crate::platform::{FRAME_BYTES, Platform, Registers};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Site, wait_until};

/// How long a unit may take over a command. Draining what is in flight is the longest part.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(1);

/// The registers of one unit, with the platform they were mapped by.
///
/// Commands to one unit are given one after the other (VT-d 6.9): who finds another's in progress
/// waits for it, with a bound. They are *task only*, except where a method says otherwise.
///
/// ```
/// use iommu::Error;
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::driver::UnitRegisters;
/// use iommu::platform::{Arena, Frame};
///
/// // An arena has no registers to map.
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 2].into_boxed_slice()))?;
/// assert!(UnitRegisters::map(arena, PhysAddr::new(0xfed9_0000)).is_err());
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct UnitRegisters<P: Platform> {
    platform: P,
    registers: P::Registers,
    capabilities: Capabilities,
    /// Set while a command is in progress.
    commanding: AtomicBool,
}

impl<P: Platform> UnitRegisters<P> {
    /// Maps the registers of the unit at `base`: a page first, then as much as the capabilities ask
    /// for.
    ///
    /// # Errors
    /// What [`Platform::map_registers`] gives, and [`Error::NoDevice`] when no unit is there.
    pub fn map(platform: P, base: PhysAddr) -> Result<Self> {
        let registers = platform.map_registers(base, FRAME_BYTES as usize)?;
        let capabilities = Capabilities::read(&registers)?;
        let bytes = capabilities.register_bytes();
        let registers = if bytes <= FRAME_BYTES as usize {
            registers
        } else {
            drop(registers);
            platform.map_registers(base, bytes)?
        };
        Ok(Self { platform, registers, capabilities, commanding: AtomicBool::new(false) })
    }

    /// The platform.
    #[inline]
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// What the unit can do.
    #[inline]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The bare registers.
    #[inline]
    pub fn raw(&self) -> &P::Registers {
        &self.registers
    }

    /// GSTS. *Any context.*
    ///
    /// # Errors
    /// [`Error::NoDevice`] when the unit is gone: its registers read as all ones.
    pub fn status(&self) -> Result<Global> {
        match self.registers.read32(offset::GSTS) {
            u32::MAX => Err(Error::NoDevice),
            status => Ok(Global::from_bits_retain(status)),
        }
    }

    /// Whether DMA is translated now. *Any context.*
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn is_translating(&self) -> Result<bool> {
        Ok(self.status()?.contains(Global::TE))
    }

    /// Makes the unit use the root table at `root`, aligned to 4096 bytes (VT-d 6.6). Everything
    /// written to the tables before is visible to it.
    ///
    /// Unless the unit has CAP.ESRTPS, the caller owes a global invalidation of the context cache,
    /// then of the IOTLB. While translation is on, the mode must stay, and what is under way is
    /// translated by the old tables or the new ones.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::NoDevice`].
    pub fn set_root_table(&self, root: PhysAddr, mode: TableMode) -> Result<()> {
        let _turn = self.take_turn()?;
        self.registers.write64(offset::RTADDR, mode.root_table_address(root));
        site::ROOT_TABLE.publish(&self.platform);
        self.command(site::ROOT_TABLE_WAIT, Global::RTP, Global::empty(), Global::RTP)
    }

    /// Turns translation on.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::NoDevice`].
    pub fn enable_translation(&self) -> Result<()> {
        let _turn = self.take_turn()?;
        self.command(site::ENABLE_WAIT, Global::TE, Global::empty(), Global::TE)
    }

    /// Turns translation off: from now on DMA reaches all memory.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::NoDevice`].
    pub fn disable_translation(&self) -> Result<()> {
        let _turn = self.take_turn()?;
        self.command(site::DISABLE_WAIT, Global::empty(), Global::TE, Global::empty())
    }

    /// Whether the root table that the unit was told last is in this mode. *Any context.*
    pub fn is_in_mode(&self, mode: TableMode) -> bool {
        TableMode::of_root_table_address(self.registers.read64(offset::RTADDR)) == Some(mode)
    }

    /// Turns interrupt remapping off, if firmware or a previous kernel left it on: from now on devices
    /// raise interrupts as they are (VT-d 5.1).
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::NoDevice`].
    pub fn disable_interrupt_remapping(&self) -> Result<()> {
        if !self.status()?.contains(Global::IRE) {
            return Ok(());
        }
        let _turn = self.take_turn()?;
        self.command(site::DISABLE_REMAPPING_WAIT, Global::empty(), Global::IRE, Global::empty())
    }

    /// Flushes the write buffers of a unit that needs it (CAP.RWBF); nothing on others (VT-d 6.8).
    /// Needed after a change that no invalidation follows. *Any context*, but an interrupt handler
    /// that comes amid a command on its own processor gets the time-out.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::NoDevice`].
    pub fn flush_write_buffer(&self) -> Result<()> {
        if !self.capabilities.cap.contains(Cap::RWBF) {
            return Ok(());
        }
        let _turn = self.take_turn()?;
        self.command(site::WRITE_BUFFER_WAIT, Global::WBF, Global::empty(), Global::empty())
    }

    /// Turns the protected memory regions off (VT-d 11.4.8.1). To be done when translation is on.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub fn disable_protected_memory(&self) -> Result<()> {
        if !self.capabilities.cap.intersects(Cap::PLMR | Cap::PHMR) {
            return Ok(());
        }
        let _turn = self.take_turn()?;
        let enable = self.registers.read32(offset::PMEN);
        if enable & (PMEN_EPM | PMEN_PRS) == 0 {
            return Ok(());
        }
        self.registers.write32(offset::PMEN, enable & !PMEN_EPM);
        if site::PROTECTED_MEMORY_WAIT.is_skipped() {
            return Ok(());
        }
        wait_until(&self.platform, COMMAND_LIMIT, WaitReason::Register, || {
            (self.registers.read32(offset::PMEN) & PMEN_PRS == 0).then_some(())
        })
    }

    /// Turns queued invalidation on, for the queue that IQA describes, from slot 0 on (VT-d 6.5.2).
    pub(super) fn enable_queue(&self, queue_address: u64) -> Result<()> {
        let _turn = self.take_turn()?;
        self.registers.write32(offset::IQT, 0);
        self.registers.write64(offset::IQA, queue_address);
        self.command(site::ENABLE_QUEUE_WAIT, Global::QIE, Global::empty(), Global::QIE)
    }

    /// Turns queued invalidation off; the queue must be quiet (VT-d 6.5.2). IQH becomes zero.
    pub(super) fn disable_queue(&self) -> Result<()> {
        let _turn = self.take_turn()?;
        self.command(site::DISABLE_QUEUE_WAIT, Global::empty(), Global::QIE, Global::empty())
    }

    /// IQH: the byte offset of the descriptor to be fetched next.
    pub(super) fn queue_head(&self) -> u32 {
        self.registers.read32(offset::IQH)
    }

    /// Tells the unit that descriptors below the byte offset `tail` are there. The caller has made them
    /// visible.
    #[inline]
    pub(super) fn set_queue_tail(&self, tail: u32) {
        self.registers.write32(offset::IQT, tail);
    }

    /// FSTS; empty when the unit is gone.
    pub(super) fn fault_status(&self) -> FaultStatus {
        match self.registers.read32(offset::FSTS) {
            u32::MAX => FaultStatus::empty(),
            status => FaultStatus::from_bits_retain(status),
        }
    }

    /// Clears these bits of FSTS, and only these.
    pub(super) fn clear_fault_status(&self, bits: FaultStatus) {
        self.registers.write32(offset::FSTS, bits.bits());
    }

    /// Makes status writes that are under way visible: reading ICS pushes them (VT-d 6.5.2.10).
    pub(super) fn push_status_writes(&self) {
        let _ = self.registers.read32(offset::ICS);
    }

    /// IQERCD: details of an error of the queue.
    pub(super) fn queue_error(&self) -> QueueError {
        QueueError(self.registers.read64(offset::IQERCD))
    }

    /// Gives a command and waits until the status has of its bits those of `done` (VT-d 11.4.4.1). The
    /// caller has the turn.
    #[inline(never)]
    fn command(&self, wait: Site, set: Global, clear: Global, done: Global) -> Result<()> {
        let status = self.status()?;
        let command = status & Global::STICKY & !clear | set;
        self.registers.write32(offset::GCMD, command.bits());
        if wait.is_skipped() {
            return Ok(());
        }
        wait_until(&self.platform, COMMAND_LIMIT, WaitReason::Register, || match self.status() {
            Ok(status) if status & (set | clear) == done => Some(Ok(())),
            Ok(_) => None,
            Err(gone) => Some(Err(gone)),
        })?
    }

    #[inline(never)]
    fn take_turn(&self) -> Result<Turn<'_>> {
        wait_until(&self.platform, COMMAND_LIMIT, WaitReason::Claim, || {
            let free = self.commanding.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
            free.is_ok().then_some(Turn { commanding: &self.commanding })
        })
    }
}

/// The right to give a command.
struct Turn<'a> {
    commanding: &'a AtomicBool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.commanding.store(false, Ordering::Release);
    }
}
