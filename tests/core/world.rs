//! A machine with fake units, and short words for what tests do with it.

use iommu::device::{DeviceId, DeviceInfo, Trust};
use iommu::domain::Domain;
use iommu::frames::{Ref, Slab};
use iommu::ops::IommuOps;
use iommu::{
    Device, Group, Iommu, Iova, IovaRange, PhysAddr, Policy, Prot, RegionKind, ReservedRegion, Result, SourceId,
};

use crate::fake::FakeUnit;
use crate::platform::Frames;

pub(crate) struct World {
    pub(crate) iommu: Iommu<Frames>,
    pub(crate) units: Vec<Ref<FakeUnit>>,
    pub(crate) frames: Frames,
}

impl World {
    pub(crate) fn new(units: u16) -> Self {
        Self::with_policy(units, Policy::default())
    }

    pub(crate) fn with_policy(units: u16, policy: Policy) -> Self {
        Self::on(Frames::new(), units, policy).unwrap()
    }

    pub(crate) fn on(frames: Frames, count: u16, policy: Policy) -> Result<Self> {
        let iommu = Iommu::new(frames.clone(), policy)?;
        let slab = Slab::new(frames.clone())?;
        let mut units = vec![];
        for number in 0..count {
            let unit = slab.insert(FakeUnit::new(frames.clone(), number, 255)?).map_err(|(error, _)| error)?;
            iommu.add_unit(Ref::map(unit.clone(), |unit| unit as &dyn IommuOps))?;
            units.push(unit);
        }
        Ok(Self { iommu, units, frames })
    }

    pub(crate) fn unit(&self) -> &FakeUnit {
        &self.units[0]
    }

    /// A trusted device of unit 0, alone in its group.
    pub(crate) fn device(&self, id: u32) -> Device {
        self.iommu.probe_platform(info(&[source(id)])).unwrap()
    }

    pub(crate) fn device_of(&self, unit: u16, id: u32) -> Device {
        self.iommu.probe_platform(info(&[SourceId::platform(unit, id)])).unwrap()
    }

    /// A device that shares its group with all others behind the same alias: its requests arrive
    /// under the alias and under an id of its own.
    pub(crate) fn behind(&self, alias: u32, id: u32) -> Device {
        self.iommu.probe_platform(info(&[source(alias), source(id)])).unwrap()
    }

    pub(crate) fn domain(&self, device: &Device) -> Domain {
        self.iommu.paging_domain(&[device]).unwrap()
    }

    /// Reserves IOVAs of the device whose own source id is `id`, once it is probed.
    pub(crate) fn reserve(&self, id: u32, start: u64, last: u64, kind: RegionKind) {
        let range = range(start, last);
        let region = ReservedRegion { range, kind, prot: Prot::RW };
        self.unit().state().regions.entry(source(id)).or_default().push(region);
    }

    /// Where a write by source `id` of unit 0 arrives.
    pub(crate) fn write(&self, id: u32, iova: u64) -> Option<u64> {
        self.unit().dma(source(id), iova, Prot::WRITE)
    }

    pub(crate) fn read(&self, id: u32, iova: u64) -> Option<u64> {
        self.unit().dma(source(id), iova, Prot::READ)
    }

    /// Ends the machine, and tells how many frames that did not give back.
    pub(crate) fn end(self) -> usize {
        let Self { iommu, units, frames } = self;
        drop(iommu);
        drop(units);
        frames.in_use()
    }
}

pub(crate) fn source(id: u32) -> SourceId {
    SourceId::platform(0, id)
}

/// A device with these sources, of which the last is its own.
pub(crate) fn info(sources: &[SourceId]) -> DeviceInfo {
    let info = DeviceInfo::platform(sources, Trust::Trusted).unwrap();
    DeviceInfo { id: DeviceId::Platform(*sources.last().unwrap()), ..info }
}

pub(crate) fn untrusted(sources: &[SourceId]) -> DeviceInfo {
    DeviceInfo { trust: Trust::Untrusted, ..info(sources) }
}

pub(crate) fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), Iova::new(last)).unwrap()
}

pub(crate) fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::from_len(Iova::new(first << 12), count << 12).unwrap()
}

pub(crate) fn group(device: &Device) -> &Group {
    device.group().unwrap()
}

/// Maps without a thought for who owns the memory: no device is real.
pub(crate) fn map(domain: &Domain, range: IovaRange, phys: u64, prot: Prot) -> Result<()> {
    // SAFETY: the fake units read no memory but page tables, and each test has its ranges alone.
    unsafe { domain.map(range, PhysAddr::new(phys), prot) }
}

pub(crate) fn unmap(domain: &Domain, range: IovaRange) -> Result<()> {
    // SAFETY: as above.
    unsafe { domain.unmap_sync(range) }
}
