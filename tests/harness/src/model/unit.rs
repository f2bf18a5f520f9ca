//! The unit, and what it stands on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use iommu::arch::vtd::device::{
    Answer, DeviceAnswer, DeviceConfig, Host, Request, Seeded, Snoop, Unreachable, VtdDevice,
};
use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
use iommu::ops::Msi;
use iommu::platform::Registers;
use iommu::{PciAddress, PhysAddr, PhysRange};

use super::device_tlb::DeviceTlb;
use super::memory::Memory;
use crate::bus::{Bus, Width};
use crate::error::{Error, Result};
use crate::frames::FramePool;
use crate::platform::MachinePlatform;
use crate::ram::GuestRam;

/// Room for the caches of the unit. Only what is touched costs memory.
const OWN_BYTES: u64 = 64 << 20;
/// The most steps that the unit makes while the driver accesses a register, or turns once in a loop.
const MOST_STEPS: u64 = 3;

/// A unit that gets on with its work whenever the driver looks at it, or waits.
pub(super) struct Unit {
    device: VtdDevice<MachinePlatform, UnitHost, Seeded>,
    pace: AtomicU64,
}

/// What the unit reaches.
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

    fn tlbs(&self) -> MutexGuard<'_, Vec<(u16, Arc<DeviceTlb>)>> {
        self.tlbs.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Unit {
    /// # Errors
    /// [`Error::Unit`] for a configuration that makes no sense.
    pub(super) fn new(config: DeviceConfig, seed: u64, surroundings: Arc<Surroundings>) -> Result<Self> {
        let refused = |_| Error::OutOfRam { bytes: OWN_BYTES };
        let own = PhysRange::from_len(PhysAddr::new(0), OWN_BYTES).map_err(refused)?;
        let pool = FramePool::new(Arc::new(GuestRam::private(&[own])?), own);
        let platform = MachinePlatform::new(Arc::new(NoBus), pool);
        let host = UnitHost(surroundings);
        let device = VtdDevice::with_chooser(platform, host, config, Seeded::new(seed)).map_err(Error::Unit)?;
        Ok(Self { device, pace: AtomicU64::new(seed) })
    }

    pub(super) fn translate(&self, request: &Request) -> Option<Answer> {
        self.device.translate(request).ok()
    }

    pub(super) fn read(&self, offset: u64, width: Width) -> u64 {
        self.run();
        let offset = offset as usize;
        match width {
            Width::Quad => self.device.read64(offset),
            Width::Long => u64::from(self.device.read32(offset)),
            // The unit is accessed in doublewords and quadwords only (VT-d 11.2).
            Width::Byte | Width::Word => width.ones(),
        }
    }

    pub(super) fn write(&self, offset: u64, width: Width, value: u64) {
        let offset = offset as usize;
        match width {
            Width::Quad => self.device.write64(offset, value),
            Width::Long => self.device.write32(offset, value as u32),
            Width::Byte | Width::Word => {}
        }
        self.run();
    }

    /// Lets it do something, or nothing.
    pub(super) fn run(&self) {
        let before = self.pace.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let steps = (before ^ before >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33;
        for _ in 0..steps % (MOST_STEPS + 1) {
            self.device.step();
        }
    }
}

struct UnitHost(Arc<Surroundings>);

impl Host for UnitHost {
    fn read(&self, address: PhysAddr, snoop: Snoop) -> Result<u64, Unreachable> {
        self.0.memory.load(address, snoop).ok_or(Unreachable)
    }

    fn write32(&self, address: PhysAddr, value: u32) -> Result<(), Unreachable> {
        self.0.memory.store32(address, value).ok_or(Unreachable)
    }

    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable> {
        self.0.memory.store64(address, value).ok_or(Unreachable)
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
        self.0.memory.compare_exchange(address, current, new).ok_or(Unreachable)
    }

    fn flush_write_buffers(&self) {
        self.0.memory.flush_write_buffers();
    }

    fn interrupt(&self, message: Msi) {
        self.0.messages().push(message);
    }

    fn invalidate_device_tlb(&self, source: u16, pasids: Option<DevicePasids>, range: DeviceRange) -> DeviceAnswer {
        let tlb = self.0.tlbs().iter().find(|(known, _)| *known == source).map(|(_, tlb)| tlb.clone());
        // Nobody answers for a device that is not there.
        tlb.map_or(DeviceAnswer::None, |tlb| tlb.invalidate(pasids, range))
    }
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
