//! A VT-d unit, and what it stands on.

use std::sync::Arc;

use iommu::arch::vtd::device::{
    DeviceAnswer, DeviceConfig, Host, Request, RequestAccess, Seeded, Snoop, Unreachable, VtdDevice,
};
use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
use iommu::bus::Translation;
use iommu::ops::Msi;
use iommu::pgtable::PageSize;
use iommu::platform::Registers;
use iommu::{Iova, IovaRange, PhysAddr};

use super::device_tlb::{TlbAnswer, TlbScope};
use super::unit::{DeviceRequest, Surroundings, Unit, own_platform};
use crate::devices::Access;
use crate::error::{Error, Result};
use crate::platform::MachinePlatform;

/// The device half of the crate as a unit of the machine.
pub(super) struct VtdUnit(VtdDevice<MachinePlatform, VtdHost, Seeded>);

impl VtdUnit {
    /// # Errors
    /// [`Error::Unit`] for a configuration that makes no sense.
    pub(super) fn new(config: DeviceConfig, seed: u64, surroundings: Arc<Surroundings>) -> Result<Self> {
        let (platform, host) = (own_platform()?, VtdHost(surroundings));
        VtdDevice::with_chooser(platform, host, config, Seeded::new(seed)).map(Self).map_err(Error::Unit)
    }
}

impl Unit for VtdUnit {
    fn translate(&self, request: &DeviceRequest) -> Option<Translation> {
        let access = match request.access {
            Access::Read => RequestAccess::Read,
            Access::Write => RequestAccess::Write,
        };
        let asked = Request::new(request.source, request.address, access);
        let answer = self.0.translate(&Request { address_type: request.address_type, ..asked }).ok()?;
        Some(Translation { phys: answer.phys, page_size: PageSize::from_log2(answer.page_bits), prot: answer.prot })
    }

    fn registers(&self) -> &dyn Registers {
        &self.0
    }

    fn step(&self) {
        self.0.step();
    }
}

struct VtdHost(Arc<Surroundings>);

impl Host for VtdHost {
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
        let scope = match pasids {
            None => TlbScope::NoPasid,
            Some(DevicePasids::One(pasid)) => TlbScope::Pasid(pasid),
            Some(DevicePasids::All) => TlbScope::AllPasids,
        };
        let start = range.address.as_u64();
        let last = start | 1u64.checked_shl(u32::from(range.order) + 12).map_or(u64::MAX, |size| size - 1);
        // Nobody answers for a device that is not there.
        let answer = IovaRange::new(Iova::new(start), Iova::new(last))
            .map_or(TlbAnswer::None, |range| self.0.invalidate_device_tlb(source, scope, range));
        match answer {
            TlbAnswer::Done => DeviceAnswer::Done,
            TlbAnswer::None => DeviceAnswer::None,
        }
    }
}
