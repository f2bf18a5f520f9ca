//! The unit.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::cache::Caches;
use super::config::identification;
use super::events::Events;
use super::output::Writers;
use super::queue::Pending;
use super::registers::{Misuse, RegisterFile, is_register, is_wide};
use super::stalls::Stalls;
use super::{DeviceConfig, Host};
use crate::bus::{Chooser, InOrder};
use crate::error::{Error, InvalidReason, Result};
use crate::platform::{Platform, Registers};
use crate::sync::Lock;
use crate::sync::atomic::AtomicBool;

/// An SMMUv3 in software.
///
/// Software reaches it through [`Registers`], devices through [`translate`](Self::translate). Writing a
/// register only records what is asked for: the unit acts in [`step`](Self::step). Every method may be
/// called on several threads at once.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::smmuv3::device::{
///     Access, DeviceAnswer, DeviceConfig, Host, Interrupt, Outcome, Request, SmmuDevice, Snoop, Step, Unreachable,
/// };
/// use iommu::arch::smmuv3::layout::StreamId;
/// use iommu::arch::smmuv3::layout::registers::{Cr0, offset};
/// use iommu::platform::{Arena, Frame, Registers};
///
/// /// A machine without memory.
/// struct Nothing;
/// impl Host for Nothing {
///     fn read(&self, _: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
///         Err(Unreachable)
///     }
///     fn write64(&self, _: PhysAddr, _: u64) -> Result<(), Unreachable> {
///         Err(Unreachable)
///     }
///     fn compare_exchange(&self, _: PhysAddr, _: u64, _: u64) -> Result<bool, Unreachable> {
///         Err(Unreachable)
///     }
///     fn interrupt(&self, _: Interrupt) -> Result<(), Unreachable> {
///         Err(Unreachable)
///     }
///     fn invalidate_atc(&self, _: StreamId, _: Option<u32>, _: u64, _: u8) -> DeviceAnswer {
///         DeviceAnswer::None
///     }
/// }
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 128].into_boxed_slice()))?;
/// let unit = SmmuDevice::new(arena, Nothing, DeviceConfig::default())?;
/// let write = Request::new(StreamId(8), 0x5000, Access::Write);
/// assert_eq!(unit.translate(&write).unwrap().phys, PhysAddr::new(0x5000)); // translation is off
///
/// unit.write32(offset::CR0, Cr0::SMMUEN.bits());
/// assert_eq!(unit.read32(offset::CR0ACK), 0); // not yet
/// assert_eq!(unit.step(), Step::Control(Cr0::SMMUEN));
/// assert_eq!(unit.read32(offset::CR0ACK), Cr0::SMMUEN.bits());
/// assert_eq!(unit.translate(&write).unwrap_err().outcome, Outcome::Abort); // no stream table
/// # Ok::<(), iommu::Error>(())
/// ```
pub struct SmmuDevice<P: Platform, H: Host, C: Chooser = InOrder> {
    pub(super) platform: P,
    pub(super) host: H,
    pub(super) chooser: C,
    pub(super) config: DeviceConfig,
    /// Guards registers and caches. Held for one access, one lookup, or one sweep of the caches; never
    /// while the host or the chooser is called.
    pub(super) state: Lock<State<P>>,
    /// Whether somebody is in `step`: commands are fetched and executed one at a time.
    pub(super) stepping: AtomicBool,
}

/// What the lock guards.
pub(super) struct State<P: Platform> {
    pub(super) registers: RegisterFile,
    pub(super) pending: Pending,
    pub(super) events: Events,
    pub(super) stalls: Stalls<P>,
    /// Page requests that have a place in their queue.
    pub(super) page_writers: Writers,
    pub(super) caches: Caches<P>,
    /// Counts invalidations: what was read from tables before one is not cached after it.
    pub(super) epoch: u64,
}

impl<P: Platform, H: Host> SmmuDevice<P, H> {
    /// A unit after a reset, which does everything in order. `platform` lends the frames of its caches.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::Configuration`] when the size of the caches or the output size
    /// is out of range.
    pub fn new(platform: P, host: H, config: DeviceConfig) -> Result<Self> {
        Self::with_chooser(platform, host, config, InOrder)
    }
}

impl<P: Platform, H: Host, C: Chooser> SmmuDevice<P, H, C> {
    /// A unit after a reset, whose `chooser` decides what the specification leaves open.
    ///
    /// # Errors
    /// As for [`new`](SmmuDevice::new).
    pub fn with_chooser(platform: P, host: H, config: DeviceConfig, chooser: C) -> Result<Self> {
        let identification = identification(config.identification);
        if config.cache_order > DeviceConfig::MAX_CACHE_ORDER || identification.output_bits().is_none() {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        let config = DeviceConfig { identification, ..config };
        let state = State {
            registers: RegisterFile::new(config.identification),
            pending: Pending::new(),
            events: Events::default(),
            stalls: Stalls::new(platform.clone(), config.identification.stall_max())?,
            page_writers: Writers::default(),
            caches: Caches::new(&platform, config.cache_order)?,
            epoch: 0,
        };
        Ok(Self { platform, host, chooser, config, state: Lock::new(state), stepping: AtomicBool::new(false) })
    }

    /// Brings the unit back to the state in which it was made, as the reset of its machine does: nothing is
    /// translated, queued or cached, and registers have their reset values, which are wild where the
    /// specification says UNKNOWN.
    ///
    /// A device whose ATC holds something must be reset too.
    pub fn reset(&mut self) {
        let state = self.state.get_mut();
        state.registers = RegisterFile::new(self.config.identification);
        state.pending.clear();
        state.events = Events::default();
        state.stalls.clear();
        state.page_writers = Writers::default();
        state.caches.clear();
        state.epoch = state.epoch.wrapping_add(1);
    }

    /// How the unit was made.
    pub const fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// What it stands on.
    pub const fn host(&self) -> &H {
        &self.host
    }

    /// What software did so far that it must not do.
    pub fn misuse(&self) -> Misuse {
        self.state.lock(&self.platform).registers.misuse
    }
}

/// The registers: two pages of 64 KiB. What is not aligned to 4 bytes, or beyond them, reads as zero and
/// ignores writes. An access of 64 bits is one access; the low half is written first. Any context.
impl<P: Platform, H: Host + 'static, C: Chooser + 'static> Registers for SmmuDevice<P, H, C> {
    fn read32(&self, offset: usize) -> u32 {
        self.state.lock(&self.platform).read(offset)
    }

    fn read64(&self, offset: usize) -> u64 {
        let mut state = self.state.lock(&self.platform);
        state.check_wide(offset);
        u64::from(state.read(offset)) | u64::from(state.read(offset.wrapping_add(4))) << 32
    }

    fn write32(&self, offset: usize, value: u32) {
        self.state.lock(&self.platform).write(offset, value);
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state.lock(&self.platform);
        state.check_wide(offset);
        state.write(offset, value as u32);
        state.write(offset.wrapping_add(4), (value >> 32) as u32);
    }
}

impl<P: Platform> State<P> {
    fn read(&mut self, offset: usize) -> u32 {
        if is_register(offset) {
            return self.registers.read(offset);
        }
        self.registers.misuse |= Misuse::ACCESS;
        0
    }

    fn write(&mut self, offset: usize, value: u32) {
        match is_register(offset) {
            true => self.registers.write(offset, value),
            false => self.registers.misuse |= Misuse::ACCESS,
        }
    }

    fn check_wide(&mut self, offset: usize) {
        if !is_wide(offset) {
            self.registers.misuse |= Misuse::ACCESS;
        }
    }
}
