//! What a unit is to the machine, and the machine to a unit.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use iommu::bus::{AddressType, Translation};
use iommu::ops::Msi;
use iommu::platform::Registers;
use iommu::{IovaRange, PciAddress, PhysAddr, PhysRange};

use super::device_tlb::{DeviceTlb, TlbAnswer, TlbScope};
use super::memory::Memory;
use crate::bus::{Bus, Width};
use crate::devices::Access;
use crate::error::{Error, Result};
use crate::frames::FramePool;
use crate::platform::MachinePlatform;
use crate::ram::GuestRam;

/// Room for the caches of a unit. Only what is touched costs memory.
const OWN_BYTES: u64 = 64 << 20;
/// The most steps that a unit makes while the driver accesses a register, or turns once in a loop.
const MOST_STEPS: u64 = 3;

/// One request of a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceRequest {
    /// The id under which it arrives at the root.
    pub(super) source: u16,
    pub(super) address: u64,
    pub(super) access: Access,
    pub(super) address_type: AddressType,
}

/// A unit in software.
pub(super) trait Unit: Send + Sync {
    /// Where a request goes; `None` when it is refused.
    fn translate(&self, request: &DeviceRequest) -> Option<Translation>;

    /// Its registers. Accesses to them only record.
    fn registers(&self) -> &dyn Registers;

    /// It does one thing that there is to do.
    fn step(&self);
}

/// A unit at its place. It gets on with its work whenever the driver looks at it, or waits: how far, a
/// seed decides.
pub(super) struct Placed {
    unit: Box<dyn Unit>,
    registers: Range<u64>,
    pace: AtomicU64,
}

impl Placed {
    /// `registers` are its addresses.
    pub(super) fn new(unit: Box<dyn Unit>, registers: Range<u64>, seed: u64) -> Self {
        Self { unit, registers, pace: AtomicU64::new(seed) }
    }

    pub(super) fn translate(&self, request: &DeviceRequest) -> Option<Translation> {
        self.unit.translate(request)
    }

    /// How far from the first register `address` is.
    pub(super) fn offset(&self, address: PhysAddr) -> Option<usize> {
        let inside = self.registers.contains(&address.as_u64());
        inside.then(|| (address.as_u64() - self.registers.start) as usize)
    }

    pub(super) fn read(&self, offset: usize, width: Width) -> u64 {
        self.run();
        match width {
            Width::Quad => self.unit.registers().read64(offset),
            Width::Long => u64::from(self.unit.registers().read32(offset)),
            // Units are accessed in words of 32 and of 64 bits only (VT-d 11.2, SMMU 6.2).
            Width::Byte | Width::Word => width.ones(),
        }
    }

    pub(super) fn write(&self, offset: usize, width: Width, value: u64) {
        match width {
            Width::Quad => self.unit.registers().write64(offset, value),
            Width::Long => self.unit.registers().write32(offset, value as u32),
            Width::Byte | Width::Word => {}
        }
        self.run();
    }

    /// Lets it do something, or nothing.
    pub(super) fn run(&self) {
        let before = self.pace.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let steps = (before ^ before >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33;
        for _ in 0..steps % (MOST_STEPS + 1) {
            self.unit.step();
        }
    }
}

/// What a unit reaches.
pub(super) struct Surroundings {
    pub(super) memory: Memory,
    messages: Mutex<Vec<Msi>>,
    tlbs: Mutex<Vec<(u16, Arc<DeviceTlb>)>>,
}

impl Surroundings {
    pub(super) fn new(memory: Memory) -> Arc<Self> {
        Arc::new(Self { memory, messages: Mutex::default(), tlbs: Mutex::default() })
    }

    /// The interrupts so far.
    pub(super) fn messages(&self) -> MutexGuard<'_, Vec<Msi>> {
        self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Invalidations for `source` go to `tlb`.
    pub(super) fn connect(&self, source: u16, tlb: Arc<DeviceTlb>) {
        self.tlbs().push((source, tlb));
    }

    /// Sends an invalidation to a device. Nobody answers for one that is not there.
    pub(super) fn invalidate_device_tlb(&self, source: u16, scope: TlbScope, range: IovaRange) -> TlbAnswer {
        let tlb = self.tlbs().iter().find(|(known, _)| *known == source).map(|(_, tlb)| tlb.clone());
        tlb.map_or(TlbAnswer::None, |tlb| tlb.invalidate(scope, range))
    }

    fn tlbs(&self) -> MutexGuard<'_, Vec<(u16, Arc<DeviceTlb>)>> {
        self.tlbs.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A platform for a unit's own memory.
///
/// # Errors
/// That there is not enough address space.
pub(super) fn own_platform() -> Result<MachinePlatform> {
    let refused = |_| Error::OutOfRam { bytes: OWN_BYTES };
    let own = PhysRange::from_len(PhysAddr::new(0), OWN_BYTES).map_err(refused)?;
    let pool = FramePool::new(Arc::new(GuestRam::private(&[own])?), own);
    Ok(MachinePlatform::new(Arc::new(NoBus), pool))
}

/// The unit's own processor has no bus.
struct NoBus;

impl Bus for NoBus {
    fn read(&self, _: PhysAddr, width: Width) -> Result<u64> {
        Ok(width.ones())
    }

    fn write(&self, _: PhysAddr, _: Width, _: u64) -> Result<()> {
        Ok(())
    }

    fn config_read32(&self, _: PciAddress, _: u16) -> Result<u32> {
        Ok(u32::MAX)
    }

    fn config_write32(&self, _: PciAddress, _: u16, _: u32) -> Result<()> {
        Ok(())
    }
}
