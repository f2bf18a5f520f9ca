//! The unit.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::cache::Caches;
use super::faults::Faults;
use super::queue::Pending;
use super::registers::{Places, Registers as RegisterFile};
use super::{DeviceConfig, Host};
use crate::bus::{Chooser, InOrder};
use crate::error::{Error, InvalidReason, Result};
use crate::platform::{Platform, Registers};
use crate::sync::Lock;
use crate::sync::atomic::AtomicBool;

/// A VT-d unit in software.
///
/// Software reaches it through [`Registers`], devices through [`translate`](Self::translate) and
/// [`page_request`](Self::page_request). Writing a register only records what is asked for: the unit acts
/// in [`step`](Self::step). Every method may be called on several threads at once.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::device::{
///     DeviceAnswer, DeviceConfig, Host, Request, RequestAccess, Snoop, Step, Unreachable, VtdDevice,
/// };
/// use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
/// use iommu::arch::vtd::layout::registers::{Global, offset};
/// use iommu::ops::Msi;
/// use iommu::platform::{Arena, Frame, Registers};
///
/// /// A machine without memory.
/// struct Nothing;
/// impl Host for Nothing {
///     fn read(&self, _: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
///         Err(Unreachable)
///     }
///     fn write32(&self, _: PhysAddr, _: u32) -> Result<(), Unreachable> {
///         Err(Unreachable)
///     }
///     fn write64(&self, _: PhysAddr, _: u64) -> Result<(), Unreachable> {
///         Err(Unreachable)
///     }
///     fn compare_exchange(&self, _: PhysAddr, _: u64, _: u64) -> Result<bool, Unreachable> {
///         Err(Unreachable)
///     }
///     fn interrupt(&self, _: Msi) {}
///     fn invalidate_device_tlb(&self, _: u16, _: Option<DevicePasids>, _: DeviceRange) -> DeviceAnswer {
///         DeviceAnswer::None
///     }
/// }
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 64].into_boxed_slice()))?;
/// let unit = VtdDevice::new(arena, Nothing, DeviceConfig::default())?;
/// let write = Request::new(0x10, 0x5000, RequestAccess::Write);
/// assert_eq!(unit.translate(&write).unwrap().phys, PhysAddr::new(0x5000)); // translation is off
///
/// unit.write32(offset::GCMD, Global::TE.bits());
/// assert_eq!(unit.read32(offset::GSTS), 0); // not yet
/// assert_eq!(unit.step(), Step::Command(Global::TE));
/// assert_eq!(unit.read32(offset::GSTS), Global::TE.bits());
/// assert_eq!(unit.translate(&write).unwrap_err().reason.0, 8); // no root table
/// # Ok::<(), iommu::Error>(())
/// ```
pub struct VtdDevice<P: Platform, H: Host, C: Chooser = InOrder> {
    pub(super) platform: P,
    pub(super) host: H,
    pub(super) chooser: C,
    pub(super) config: DeviceConfig,
    /// Guards registers and caches. Held for one access, one lookup, or one sweep of the caches; never
    /// while the host or the chooser is called.
    pub(super) state: Lock<State<P>>,
    /// Whether somebody is in `step`: descriptors are fetched and executed one at a time.
    pub(super) stepping: AtomicBool,
}

/// What the lock guards.
pub(super) struct State<P: Platform> {
    pub(super) registers: RegisterFile,
    pub(super) faults: Faults<P>,
    pub(super) pending: Pending,
    pub(super) caches: Caches<P>,
    /// Counts invalidations: what was read from tables before one is not cached after it.
    pub(super) epoch: u64,
    /// Page requests that have a place in the queue and are being written.
    pub(super) page_writers: u32,
    /// The place of the next one, where PQT will be when all are written.
    pub(super) page_next: u32,
}

impl<P: Platform, H: Host> VtdDevice<P, H> {
    /// A unit after a reset, which does everything in order. `platform` lends the frames of its caches.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::Configuration`] when registers overlap, when MGAW, the width
    /// of host addresses or the size of the caches is out of range.
    pub fn new(platform: P, host: H, config: DeviceConfig) -> Result<Self> {
        Self::with_chooser(platform, host, config, InOrder)
    }
}

impl<P: Platform, H: Host, C: Chooser> VtdDevice<P, H, C> {
    /// A unit after a reset, whose `chooser` decides what the specification leaves open.
    ///
    /// # Errors
    /// As for [`new`](VtdDevice::new).
    pub fn with_chooser(platform: P, host: H, config: DeviceConfig, chooser: C) -> Result<Self> {
        let widths = 12..=64;
        if config.cache_order > DeviceConfig::MAX_CACHE_ORDER
            || !widths.contains(&config.cap.guest_address_bits())
            || !widths.contains(&u32::from(config.host_address_bits))
        {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        let places = Places::new(&config)?;
        let state = State {
            registers: RegisterFile::new(config, places),
            faults: Faults::new(platform.clone(), config.cap.fault_records())?,
            pending: Pending::new(),
            caches: Caches::new(&platform, config.cache_order, config.cap.guest_address_bits())?,
            epoch: 0,
            page_writers: 0,
            page_next: 0,
        };
        Ok(Self { platform, host, chooser, config, state: Lock::new(state), stepping: AtomicBool::new(false) })
    }

    /// Brings the unit back to the state in which it was made, as the reset of its machine does: nothing is
    /// translated, queued, cached or recorded, and registers have their defaults (VT-d 11.4).
    ///
    /// A device whose TLB holds something must be reset too.
    pub fn reset(&mut self) {
        let state = self.state.get_mut();
        state.registers = RegisterFile::new(self.config, state.registers.places);
        state.faults.reset();
        state.pending.clear();
        state.caches.clear();
        state.epoch = state.epoch.wrapping_add(1);
        state.page_writers = 0;
        state.page_next = 0;
    }

    /// How the unit was made.
    pub const fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// What it stands on.
    pub const fn host(&self) -> &H {
        &self.host
    }

    /// Bytes of its registers: whole pages.
    pub fn register_bytes(&self) -> usize {
        self.state.lock(&self.platform).registers.places.bytes
    }
}

/// The registers, for any offset: what is not aligned to 4 bytes, or beyond
/// [`register_bytes`](VtdDevice::register_bytes), reads as all ones and ignores writes. An access of 64
/// bits is one access; the low half is written first. Any context.
impl<P: Platform, H: Host + 'static, C: Chooser + 'static> Registers for VtdDevice<P, H, C> {
    fn read32(&self, offset: usize) -> u32 {
        self.state.lock(&self.platform).read(offset)
    }

    fn read64(&self, offset: usize) -> u64 {
        let state = self.state.lock(&self.platform);
        u64::from(state.read(offset)) | u64::from(state.read(offset.wrapping_add(4))) << 32
    }

    fn write32(&self, offset: usize, value: u32) {
        self.state.lock(&self.platform).write(offset, value);
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state.lock(&self.platform);
        state.write(offset, value as u32);
        state.write(offset.wrapping_add(4), (value >> 32) as u32);
    }
}

impl<P: Platform> State<P> {
    fn is_register(&self, offset: usize) -> bool {
        offset & 3 == 0 && offset < self.registers.places.bytes
    }

    fn read(&self, offset: usize) -> u32 {
        if self.is_register(offset) { self.registers.read(offset, &self.faults) } else { u32::MAX }
    }

    fn write(&mut self, offset: usize, value: u32) {
        if self.is_register(offset) {
            self.registers.write(offset, value, &mut self.faults);
        }
    }
}
