//! A machine whose IOMMU is up, as a kernel has it after boot.

use std::sync::Arc;

use iommu::device::Trust;
use iommu::ops::{InterruptKind, Stage};
use iommu::pgtable::PageSize;
use iommu::{
    Access, Device, Domain, Error, FaultKind, FaultRecord, Group, Iommu, Iova, IovaRange, PhysAddr, Policy, Prot,
};
use iommu_harness::runner::TestError;
use iommu_harness::{Buffer, DmaDevice, Machine, MachinePlatform};

use crate::firmware::{Firmware, Refusal};

/// Where workspaces of devices are mapped: away from what the cases use.
const WORKSPACE: Iova = Iova::new(0x7000_0000);

/// A machine with its IOMMU enabled and every function probed.
pub(crate) struct Rig<'m> {
    pub(crate) machine: &'m dyn Machine,
    pub(crate) iommu: Iommu<MachinePlatform>,
    firmware: Firmware,
}

impl<'m> Rig<'m> {
    /// Boot with the default policy.
    pub(crate) fn new(machine: &'m dyn Machine) -> Result<Self, TestError> {
        Self::with_policy(machine, Policy::default())
    }

    /// Boot with another policy.
    pub(crate) fn with_policy(machine: &'m dyn Machine, policy: Policy) -> Result<Self, TestError> {
        Self::boot(machine, policy, Firmware::of(machine)?, |_| true)
    }

    /// Boot with other firmware, probing only what `wanted` says.
    pub(crate) fn boot(
        machine: &'m dyn Machine,
        policy: Policy,
        firmware: Firmware,
        wanted: impl Fn(iommu::PciAddress) -> bool,
    ) -> Result<Self, TestError> {
        let iommu = Iommu::new(machine.platform().clone(), policy)?;
        firmware.bring_up(&iommu)?;
        for function in machine.functions().iter().filter(|function| wanted(function.address)) {
            match iommu.probe_pci(machine.config(), function.address, Trust::Trusted) {
                Ok(_) | Err(Error::NoDevice) => {}
                Err(error) => return Err(TestError::failed(format!("{}: {error}", function.address))),
            }
        }
        iommu.enable()?;
        Ok(Self { machine, iommu, firmware })
    }

    /// The bytes of the smallest page that a domain has.
    pub(crate) fn page(&self) -> u64 {
        let domain = self.iommu.devices().find_map(|device| Some(self.iommu.default_domain_of(device.group().ok()?)));
        let smallest = domain.and_then(|domain| domain.page_sizes().smallest());
        smallest.unwrap_or(PageSize::SIZE_4K).bytes()
    }

    /// A zeroed buffer of so many of the smallest pages; a power of two.
    pub(crate) fn pages(&self, count: u64) -> Result<Buffer, TestError> {
        Ok(self.machine.buffer(count * self.page())?)
    }

    /// The engine called `name`.
    pub(crate) fn engine(&self, name: &str) -> &Arc<dyn DmaDevice> {
        self.machine.device(name)
    }

    /// The device called `name`, as the core knows it.
    pub(crate) fn device(&self, name: &str) -> Device {
        let address = self.machine.device(name).address();
        let found = self.iommu.devices().find(|device| device.sources().contains(&address.source_id()));
        found.unwrap_or_else(|| panic!("{address} was not probed"))
    }

    /// The group of the device called `name`.
    pub(crate) fn group(&self, name: &str) -> Group {
        self.device(name).group().expect("the device is covered").clone()
    }

    /// A new domain for the device called `name`, with its workspace mapped, not attached.
    pub(crate) fn domain(&self, name: &str) -> Result<Domain, TestError> {
        let domain = self.iommu.paging_domain(&[&self.device(name)])?;
        self.map_workspace(&domain, name)?;
        Ok(domain)
    }

    /// A new domain for the device called `name`, attached.
    pub(crate) fn attached(&self, name: &str) -> Result<Domain, TestError> {
        let domain = self.domain(name)?;
        self.iommu.attach_group(&domain, &self.group(name))?;
        Ok(domain)
    }

    /// Maps the workspace of a device in a domain.
    pub(crate) fn map_workspace(&self, domain: &Domain, name: &str) -> Result<(), TestError> {
        let workspace = self.engine(name).workspace();
        let offset = self.machine.devices().iter().position(|device| device.name() == name).unwrap_or(0) as u64;
        let iova = WORKSPACE.checked_add(offset << 24).expect("few devices");
        let range = IovaRange::from_len(iova, workspace.bytes)?;
        // SAFETY: the harness keeps the workspace for the device.
        unsafe { domain.map(range, workspace.phys, Prot::RW) }?;
        self.engine(name).place_workspace(iova);
        Ok(())
    }

    /// The last address that this machine translates in `domain` as it should.
    pub(crate) fn last(&self, domain: &Domain) -> Iova {
        let last = domain.geometry().expect("a paging domain has windows").last();
        let quirk = self.machine.quirks().is_some_and(|quirks| quirks.smmu_finds_only_the_first_of_concatenated_tables);
        // With 64 KiB, a table of the level with which stage 2 begins is for 42 bits.
        let is_concatenated = !is_first_stage(domain) && self.page() == 0x1_0000;
        if quirk && is_concatenated { last.min(Iova::new((1 << 42) - 1)) } else { last }
    }

    /// Takes every fault that the unit has recorded.
    pub(crate) fn faults(&self) -> Vec<FaultRecord> {
        self.iommu.handle_interrupt(InterruptKind::Fault);
        std::iter::from_fn(|| self.iommu.next_fault()).collect()
    }

    /// Asserts that `name` cannot do `access` at `iova`, and that this is told. Gives the record.
    #[track_caller]
    pub(crate) fn assert_blocked(&self, name: &str, iova: Iova, access: iommu_harness::Access) -> FaultRecord {
        let _ = self.faults();
        let engine = self.engine(name);
        let _ = engine.poke(iova, access).expect("the device can express it");
        let faults = self.faults();
        let wanted = match access {
            iommu_harness::Access::Read => Access::Read,
            iommu_harness::Access::Write => Access::Write,
        };
        // Not every unit tells the exact address.
        let page = Some(iova.align_down(4096));
        let told =
            |fault: &&FaultRecord| fault.iova.map(|iova| iova.align_down(4096)) == page && fault.access == wanted;
        let fault = faults.iter().find(told);
        let fault = fault.unwrap_or_else(|| panic!("no {wanted} fault at {iova} in {faults:?}"));
        assert_eq!(fault.source, engine.requester());
        *fault
    }

    /// Kind and number of the record of such a refusal in `domain`, on this machine.
    pub(crate) fn refusal(
        &self,
        domain: &Domain,
        access: iommu_harness::Access,
        refusal: Refusal,
    ) -> Result<(FaultKind, u32), TestError> {
        let stage = domain.ops().stage().expect("a paging domain has a stage");
        self.firmware.refusal(self.machine, stage, access, refusal)
    }

    /// Whether each access that is refused is told of, also when the same was told before.
    pub(crate) fn tells_of_each_access(&self) -> bool {
        self.firmware.tells_of_each_access()
    }

    /// What is left of an aligned address beyond the width of a domain in the record of its fault.
    pub(crate) fn recorded(&self, beyond: Iova) -> Iova {
        self.firmware.recorded(self.machine, beyond)
    }

    /// Asserts that `name` has no domain: it cannot do `access` at `iova`, nor reach memory without
    /// translation, and what is told says so.
    #[track_caller]
    pub(crate) fn assert_no_domain(&self, name: &str, iova: Iova, access: iommu_harness::Access) {
        if self.firmware.tells_of_blocked() {
            let fault = self.assert_blocked(name, iova, access);
            let quirk = self.machine.quirks().is_some_and(|quirks| fault.reason == quirks.vtd_absent_pasid_reason);
            assert!(fault.kind == FaultKind::Blocked || quirk, "{fault}");
        } else {
            let _ = self.faults();
            let _ = self.engine(name).poke(iova, access).expect("the device can express it");
            let faults = self.faults();
            assert!(faults.iter().all(|fault| fault.kind == FaultKind::Blocked), "{faults:?}");
        }
        let buffer = self.machine.buffer(4096).expect("a page is left");
        let _ = self.engine(name).poke(buffer.iova(), iommu_harness::Access::Write).expect("the device can express it");
        assert!(buffer.is_filled(0), "{name} is not translated");
        let _ = self.faults();
    }

    /// Asserts that `name` can write a buffer at `iova` and read it back: the data arrives in both
    /// directions, and nothing faults.
    #[track_caller]
    pub(crate) fn assert_reaches(&self, name: &str, iova: Iova, buffer: &Buffer, offset: u64, bytes: usize) {
        let engine = self.engine(name);
        let data: Vec<u8> = (0..bytes).map(|index| (index * 7 + 3) as u8).collect();
        let _ = engine.dma_write(iova, &data).expect("the device can express it");
        let there = buffer.read(offset, bytes);
        // Not all of it in a message.
        let differs = (0..bytes).find(|&at| there[at] != data[at]);
        assert_eq!(differs, None, "{name} wrote at {iova}, this is the first that differs: {:?}", self.faults());
        let other: Vec<u8> = data.iter().map(|byte| !byte).collect();
        buffer.write(offset, &other);
        let read = engine.dma_read(iova, bytes).expect("the device can express it");
        let differs = (0..bytes).find(|&at| read[at] != other[at]);
        assert_eq!(differs, None, "{name} read at {iova}, this is the first that differs: {:?}", self.faults());
        assert_eq!(self.faults(), []);
    }
}

/// Whether the domain's table is in the format of the processor's own, in which what is present can be read.
pub(crate) fn is_first_stage(domain: &Domain) -> bool {
    domain.ops().stage() == Some(Stage::First)
}

/// The largest size of a page that `domain` has, up to `size`.
pub(crate) fn at_most(domain: &Domain, size: PageSize) -> PageSize {
    let sizes = domain.page_sizes().iter().filter(|known| *known <= size);
    sizes.last().expect("every domain has a size of pages")
}

/// Maps a whole buffer at `iova`.
pub(crate) fn map(domain: &Domain, iova: u64, buffer: &Buffer, prot: Prot) -> Result<IovaRange, Error> {
    let range = IovaRange::from_len(Iova::new(iova), buffer.bytes())?;
    // SAFETY: the buffer is the test's, and the test outlives what the device does.
    unsafe { domain.map(range, buffer.phys(), prot) }?;
    Ok(range)
}

/// Unmaps and waits.
pub(crate) fn unmap(domain: &Domain, range: IovaRange) -> Result<(), Error> {
    // SAFETY: one thread.
    unsafe { domain.unmap_sync(range) }
}

/// A range of `bytes` bytes from `start` on.
pub(crate) fn range(start: u64, bytes: u64) -> IovaRange {
    IovaRange::from_len(Iova::new(start), bytes).expect("a range")
}

/// The physical address `offset` bytes into a buffer.
pub(crate) fn phys(buffer: &Buffer, offset: u64) -> PhysAddr {
    PhysAddr::new(buffer.phys().as_u64() + offset)
}
