//! A machine whose IOMMU is up, as a kernel has it after boot.

use std::sync::Arc;

use iommu::arch::vtd;
use iommu::device::Trust;
use iommu::ops::{InterruptKind, Stage};
use iommu::platform::{Platform, Registers};
use iommu::{
    Access, Device, Domain, Error, FaultKind, FaultRecord, Group, Iommu, Iova, IovaRange, PhysAddr, Policy, Prot,
};
use iommu_harness::runner::TestError;
use iommu_harness::{Buffer, DmaDevice, Machine, MachinePlatform};

/// Where workspaces of devices are mapped: away from what the cases use.
const WORKSPACE: Iova = Iova::new(0x7000_0000);

/// A machine with its IOMMU enabled and every function probed.
pub(crate) struct Rig<'m> {
    pub(crate) machine: &'m dyn Machine,
    pub(crate) iommu: Iommu<MachinePlatform>,
}

impl<'m> Rig<'m> {
    /// Boot with the default policy.
    pub(crate) fn new(machine: &'m dyn Machine) -> Result<Self, TestError> {
        Self::with_policy(machine, Policy::default())
    }

    /// Boot with another policy.
    pub(crate) fn with_policy(machine: &'m dyn Machine, policy: Policy) -> Result<Self, TestError> {
        Self::boot(machine, policy, &machine.acpi_table(b"DMAR")?, |_| true)
    }

    /// Boot with another firmware table, probing only what `wanted` says.
    pub(crate) fn boot(
        machine: &'m dyn Machine,
        policy: Policy,
        dmar: &[u8],
        wanted: impl Fn(iommu::PciAddress) -> bool,
    ) -> Result<Self, TestError> {
        let iommu = Iommu::new(machine.platform().clone(), policy)?;
        vtd::init(&iommu, dmar)?;
        for function in machine.functions().iter().filter(|function| wanted(function.address)) {
            match iommu.probe_pci(machine.config(), function.address, Trust::Trusted) {
                Ok(_) | Err(Error::NoDevice) => {}
                Err(error) => return Err(TestError::failed(format!("{}: {error}", function.address))),
            }
        }
        iommu.enable()?;
        Ok(Self { machine, iommu })
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
        let page = iova.align_down(4096);
        let fault = faults.iter().find(|fault| fault.iova == Some(page) && fault.access == wanted);
        let fault = fault.unwrap_or_else(|| panic!("no {wanted} fault at {page} in {faults:?}"));
        assert_eq!(fault.source, engine.requester());
        *fault
    }

    /// The reason that is recorded for such a refusal in `domain` (VT-d 7.1.3), or that this machine
    /// records instead.
    pub(crate) fn reason(&self, domain: &Domain, access: iommu_harness::Access, refusal: Refusal) -> u32 {
        let base = self.machine.iommu_base().expect("there is a unit");
        let registers = self.machine.platform().map_registers(base, 4096).expect("registers can be mapped");
        // RTADDR.TTM.
        let scalable = registers.read64(0x20) & 0xc00 == 0x400;
        let write = access == iommu_harness::Access::Write;
        let stage = domain.ops().stage().expect("a paging domain has a stage");
        let reason = match (refusal, stage) {
            (Refusal::Absent, Stage::First) => 0x71,
            (Refusal::Absent, Stage::Second) if scalable => 0x79,
            (Refusal::Beyond, Stage::First) => 0x80,
            (Refusal::Beyond, Stage::Second) => {
                if scalable {
                    0x84
                } else {
                    4
                }
            }
            (Refusal::Forbidden, _) if scalable => {
                if write {
                    0x85
                } else {
                    0x86
                }
            }
            (Refusal::Absent | Refusal::Forbidden, _) => {
                if write {
                    5
                } else {
                    6
                }
            }
        };
        self.machine.quirks().map_or(reason, |quirks| quirks.vtd_reason(stage, access, reason))
    }

    /// Asserts that a record says that the device has no domain.
    #[track_caller]
    pub(crate) fn assert_no_domain(&self, fault: &FaultRecord) {
        let quirk = self.machine.quirks().is_some_and(|quirks| fault.reason == quirks.vtd_absent_pasid_reason);
        assert!(fault.kind == FaultKind::Blocked || quirk, "{fault}");
    }

    /// Asserts that `name` can write a buffer at `iova` and read it back: the data arrives in both
    /// directions, and nothing faults.
    #[track_caller]
    pub(crate) fn assert_reaches(&self, name: &str, iova: Iova, buffer: &Buffer, offset: u64, bytes: usize) {
        let engine = self.engine(name);
        let data: Vec<u8> = (0..bytes).map(|index| (index * 7 + 3) as u8).collect();
        let _ = engine.dma_write(iova, &data).expect("the device can express it");
        assert_eq!(buffer.read(offset, bytes), data, "{name} wrote at {iova}: {:?}", self.faults());
        let other: Vec<u8> = data.iter().map(|byte| !byte).collect();
        buffer.write(offset, &other);
        assert_eq!(engine.dma_read(iova, bytes).expect("the device can express it"), other, "{name} read at {iova}");
        assert_eq!(self.faults(), []);
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nothing is mapped.
    Absent,
    /// What is mapped does not permit it.
    Forbidden,
    /// The address is too wide.
    Beyond,
}

/// Whether the domain's table is in the format of the processor's own.
pub(crate) fn is_first_stage(domain: &Domain) -> bool {
    domain.ops().stage() == Some(Stage::First)
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
