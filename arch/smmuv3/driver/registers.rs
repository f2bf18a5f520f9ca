//! The registers of one unit: commands, each waited for with a bound.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use core::time::Duration;

use super::{Capabilities, site};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::registers::{
    Cr0, Cr1, Cr2, Gbpa, Gerror, IrqCtrl, MSI_DEVICE_NGNRE, QueueBase, REGISTER_BYTES, StrtabBase, StrtabBaseCfg,
    offset,
};
use crate::error::{Error, Result, WaitReason};
use crate::platform::{Platform, Registers};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Lock, Site, wait_until};

/// How long a unit may take over a command. Completing what is in flight is the longest part.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(1);

/// Bytes from a register of page 1 to the same one of page 0.
const PAGE_1: usize = 0x1_0000;

/// Where the registers of page 1 are (SMMU 6.1).
///
/// ```
/// use iommu::arch::smmuv3::driver::RegisterPages;
/// assert_eq!(RegisterPages::default(), RegisterPages::Two);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RegisterPages {
    /// In page 1, as the specification has it.
    #[default]
    Two,
    /// In page 0, at the same offsets: Cavium ThunderX2 has no page 1.
    One,
}

/// What becomes of requests while the unit does not translate (GBPA, SMMU 6.3.14).
///
/// ```
/// use iommu::arch::smmuv3::driver::Untranslated;
/// assert_ne!(Untranslated::Abort, Untranslated::Pass);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Untranslated {
    /// They are aborted.
    Abort,
    /// They reach all memory, as their devices send them.
    Pass,
}

/// A message-signalled interrupt of the unit's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// Of the event queue (6.3.30).
    Events,
    /// Of global errors (6.3.21).
    GlobalErrors,
}

/// The registers of one unit, with the platform they were mapped by.
///
/// A field of a control register must not be written again before the unit has acknowledged it (SMMU
/// 6.3.9): who finds another's command in progress waits for it, with a bound. Commands are *task only*,
/// except where a method says otherwise.
///
/// ```
/// use iommu::arch::smmuv3::driver::{RegisterPages, SmmuRegisters};
/// use iommu::platform::{Arena, Frame};
/// use iommu::{Error, PhysAddr};
///
/// // An arena has no registers to map.
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 2].into_boxed_slice()))?;
/// assert!(SmmuRegisters::map(arena, PhysAddr::new(0x0905_0000), RegisterPages::Two).is_err());
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct SmmuRegisters<P: Platform> {
    platform: P,
    registers: P::Registers,
    pages: RegisterPages,
    capabilities: Capabilities,
    /// Set while a command is in progress.
    commanding: AtomicBool,
    /// Guards GERRORN, of which each who acknowledges writes all bits. Innermost.
    acknowledging: Lock<()>,
}

impl<P: Platform> SmmuRegisters<P> {
    /// Maps the registers of the unit at `base`.
    ///
    /// # Errors
    /// What [`Platform::map_registers`] gives, and [`Error::NoDevice`] when no unit is there.
    pub fn map(platform: P, base: PhysAddr, pages: RegisterPages) -> Result<Self> {
        let bytes = match pages {
            RegisterPages::Two => REGISTER_BYTES,
            RegisterPages::One => PAGE_1,
        };
        let registers = platform.map_registers(base, bytes)?;
        let capabilities = Capabilities::read(&registers)?;
        Ok(Self {
            platform,
            registers,
            pages,
            capabilities,
            commanding: AtomicBool::new(false),
            acknowledging: Lock::new(()),
        })
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

    /// CR0ACK: what is on. *Any context.*
    ///
    /// # Errors
    /// [`Error::NoDevice`] when the unit is gone: its registers read as all ones.
    pub fn status(&self) -> Result<Cr0> {
        match self.registers.read32(offset::CR0ACK) {
            u32::MAX => Err(Error::NoDevice),
            status => Ok(Cr0::from_bits_truncate(status)),
        }
    }

    /// Whether requests are translated now. *Any context.*
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn is_translating(&self) -> Result<bool> {
        Ok(self.status()?.contains(Cr0::SMMUEN))
    }

    /// Says what becomes of requests while the unit does not translate (SMMU 6.3.14). *Any context*, but
    /// an interrupt handler that comes amid a command on its own processor gets the time-out.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; [`Error::NoDevice`], also for a unit that does not do it.
    pub fn set_untranslated(&self, requests: Untranslated) -> Result<()> {
        let _turn = self.take_turn()?;
        // An update must not be asked for while one is under way.
        self.wait_for_update(site::UPDATE_IDLE_WAIT)?;
        let attributes = self.registers.read32(offset::GBPA) & !(Gbpa::ABORT | Gbpa::UPDATE);
        let abort = if requests == Untranslated::Abort { Gbpa::ABORT } else { 0 };
        self.registers.write32(offset::GBPA, attributes | abort | Gbpa::UPDATE);
        self.wait_for_update(site::UPDATE_WAIT)?;
        let now = self.registers.read32(offset::GBPA);
        if now == u32::MAX || now & Gbpa::ABORT != abort { Err(Error::NoDevice) } else { Ok(()) }
    }

    /// Turns what `control` names on (SMMU 6.3.9). Everything written to memory before is visible to
    /// the unit.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::NoDevice`].
    pub fn turn_on(&self, control: Cr0) -> Result<()> {
        let _turn = self.take_turn()?;
        site::TURN_ON.publish(&self.platform);
        self.command(site::TURN_ON_WAIT, control, Cr0::empty())
    }

    /// Turns what `control` names off. When this returns, the unit has completed what it had begun because
    /// of it (SMMU 6.3.9.6). *Any context*, as [`set_untranslated`](Self::set_untranslated).
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::NoDevice`].
    pub fn turn_off(&self, control: Cr0) -> Result<()> {
        let _turn = self.take_turn()?;
        self.command(site::TURN_OFF_WAIT, Cr0::empty(), control)
    }

    /// Says how the unit accesses tables and queues, and what it records (CR1, CR2). Everything must be
    /// off (SMMU 6.3.11, 6.3.12).
    pub fn set_attributes(&self, accesses: Cr1, records: Cr2) {
        self.registers.write32(offset::CR1, accesses.0);
        self.registers.write32(offset::CR2, records.bits());
    }

    /// Says where the stream table is. Translation must be off (SMMU 6.3.24).
    pub fn set_stream_table(&self, base: StrtabBase, shape: StrtabBaseCfg) {
        self.registers.write64(offset::STRTAB_BASE, base.0);
        self.registers.write32(offset::STRTAB_BASE_CFG, shape.0);
    }

    /// Says where the command queue is, which is empty. It must be off (SMMU 6.3.26).
    pub fn set_command_queue(&self, base: QueueBase) {
        self.registers.write64(offset::CMDQ_BASE, base.0);
        self.registers.write32(offset::CMDQ_PROD, 0);
        self.registers.write32(offset::CMDQ_CONS, 0);
    }

    /// Says where the event queue is, which is empty. It must be off (SMMU 6.3.29).
    pub fn set_event_queue(&self, base: QueueBase) {
        self.registers.write64(offset::EVENTQ_BASE, base.0);
        self.registers.write32(self.place(offset::EVENTQ_PROD), 0);
        self.registers.write32(self.place(offset::EVENTQ_CONS), 0);
    }

    /// Tells the unit that commands before `prod` are there. The caller has made them visible.
    #[inline]
    pub(super) fn set_command_prod(&self, prod: u32) {
        self.registers.write32(offset::CMDQ_PROD, prod);
    }

    /// CMDQ_CONS: the command to be executed next, and the error there.
    #[inline]
    pub(super) fn command_cons(&self) -> u32 {
        self.registers.read32(offset::CMDQ_CONS)
    }

    /// EVENTQ_PROD: where the unit writes next, and whether it has lost events.
    pub(super) fn event_prod(&self) -> u32 {
        self.registers.read32(self.place(offset::EVENTQ_PROD))
    }

    /// Tells the unit that events before `cons` were read.
    pub(super) fn set_event_cons(&self, cons: u32) {
        self.registers.write32(self.place(offset::EVENTQ_CONS), cons);
    }

    /// The global errors that are active; none when the unit is gone (SMMU 6.3.19).
    pub(super) fn global_errors(&self) -> Gerror {
        match self.registers.read32(offset::GERROR) {
            u32::MAX => Gerror::empty(),
            errors => Gerror::from_bits_truncate(errors ^ self.registers.read32(offset::GERRORN)),
        }
    }

    /// Acknowledges those of `errors` that are active, and only these. *Any context.*
    pub(super) fn acknowledge(&self, errors: Gerror) {
        let _alone = self.acknowledging.lock(&self.platform);
        let active = self.global_errors() & errors;
        if !active.is_empty() {
            let acknowledged = self.registers.read32(offset::GERRORN);
            self.registers.write32(offset::GERRORN, acknowledged ^ active.bits());
        }
    }

    /// Which interrupts are on (SMMU 6.3.16).
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::NoDevice`].
    pub(super) fn set_interrupts(&self, interrupts: IrqCtrl) -> Result<()> {
        let _turn = self.take_turn()?;
        self.registers.write32(offset::IRQ_CTRL, interrupts.bits());
        self.wait(site::INTERRUPTS_WAIT, || match self.registers.read32(offset::IRQ_CTRLACK) {
            u32::MAX => Some(Err(Error::NoDevice)),
            now => (now & IrqCtrl::all().bits() == interrupts.bits()).then_some(Ok(())),
        })
    }

    /// Sends an interrupt as the message `data` to `address`; on its wire for address 0 (SMMU 6.3.21). The
    /// interrupt must be off.
    pub(super) fn set_message(&self, message: Message, address: PhysAddr, data: u32) {
        let (base, payload, attributes) = match message {
            Message::Events => (offset::EVENTQ_IRQ_CFG0, offset::EVENTQ_IRQ_CFG1, offset::EVENTQ_IRQ_CFG2),
            Message::GlobalErrors => (offset::GERROR_IRQ_CFG0, offset::GERROR_IRQ_CFG1, offset::GERROR_IRQ_CFG2),
        };
        self.registers.write64(base, address.as_u64());
        self.registers.write32(payload, data);
        self.registers.write32(attributes, MSI_DEVICE_NGNRE);
    }

    /// Where a register is that the specification has in page 1.
    fn place(&self, of_page_1: usize) -> usize {
        match self.pages {
            RegisterPages::Two => of_page_1,
            RegisterPages::One => of_page_1.wrapping_sub(PAGE_1),
        }
    }

    /// Changes CR0 and waits until the change is in force. The caller has the turn.
    #[inline(never)]
    fn command(&self, wait: Site, set: Cr0, clear: Cr0) -> Result<()> {
        // What is in force, as each command is waited for; reserved bits are zero.
        let command = self.status()? & !clear | set;
        self.registers.write32(offset::CR0, command.bits());
        self.wait(wait, || match self.status() {
            Ok(status) if status & (set | clear) == set => Some(Ok(())),
            Ok(_) => None,
            Err(gone) => Some(Err(gone)),
        })
    }

    fn wait_for_update(&self, wait: Site) -> Result<()> {
        self.wait(wait, || (self.registers.read32(offset::GBPA) & Gbpa::UPDATE == 0).then_some(Ok(())))
    }

    fn wait(&self, site: Site, poll: impl FnMut() -> Option<Result<()>>) -> Result<()> {
        if site.is_skipped() { Ok(()) } else { wait_until(&self.platform, COMMAND_LIMIT, WaitReason::Register, poll)? }
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
