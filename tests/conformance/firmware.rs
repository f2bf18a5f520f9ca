//! What differs between architectures: how the firmware tells of the units, and with what numbers they
//! tell of refusals.

use iommu::arch::vtd;
use iommu::ops::Stage;
use iommu::platform::{Platform, Registers};
use iommu::{FaultKind, Iommu, PciAddress};
use iommu_harness::runner::TestError;
use iommu_harness::{Access, Buffer, Machine, MachinePlatform};

/// What a machine's firmware says of its units.
pub(crate) enum Firmware {
    /// VT-d units, in the ACPI table of this signature.
    Dmar(Vec<u8>),
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

impl Firmware {
    /// What the firmware of `machine` says.
    pub(crate) fn of(machine: &dyn Machine) -> Result<Self, iommu_harness::Error> {
        machine.acpi_table(b"DMAR").map(Self::Dmar)
    }

    /// Brings the units up.
    pub(crate) fn bring_up(&self, iommu: &Iommu<MachinePlatform>) -> iommu::Result<()> {
        match self {
            Self::Dmar(table) => vtd::init(iommu, table),
        }
    }

    /// The same with one more region that is mapped one to one for a device on the root bus: `buffer`.
    pub(crate) fn with_direct_region(self, device: PciAddress, buffer: &Buffer) -> Self {
        assert_eq!(device.bus(), 0);
        match self {
            Self::Dmar(mut table) => {
                // VT-d 8.4: type 1, length 32, segment 0, base, last, then one endpoint scope of 8 bytes.
                table.extend([1, 0, 32, 0, 0, 0, 0, 0]);
                table.extend(buffer.range().start().as_u64().to_le_bytes());
                table.extend(buffer.range().last().as_u64().to_le_bytes());
                table.extend([1, 8, 0, 0, 0, 0, device.device(), device.function()]);
                Self::Dmar(summed(table))
            }
        }
    }

    /// Whether a unit records what it refuses a device that has no domain.
    pub(crate) fn tells_of_blocked(&self) -> bool {
        match self {
            Self::Dmar(_) => true,
        }
    }

    /// Kind and number of the record of such a refusal, in a domain of `stage`, or what this machine records
    /// instead.
    pub(crate) fn refusal(
        &self,
        machine: &dyn Machine,
        stage: Stage,
        access: Access,
        refusal: Refusal,
    ) -> Result<(FaultKind, u32), TestError> {
        match self {
            Self::Dmar(_) => {
                let base = machine.iommu_base().ok_or(TestError::failed("no unit"))?;
                // RTADDR.TTM.
                let scalable = machine.platform().map_registers(base, 4096)?.read64(0x20) & 0xc00 == 0x400;
                let kind = if refusal == Refusal::Beyond { FaultKind::AddressSize } else { FaultKind::Translation };
                let reason = vtd_reason(scalable, stage, access, refusal);
                let recorded = machine.quirks().map_or(reason, |quirks| quirks.vtd_reason(stage, access, reason));
                Ok((kind, recorded))
            }
        }
    }
}

/// A table with its length and checksum set right (ACPI 5.2.6).
fn summed(mut table: Vec<u8>) -> Vec<u8> {
    let bytes = u32::try_from(table.len()).expect("a small table");
    table[4..8].copy_from_slice(&bytes.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    table
}

/// VT-d 7.1.3.
fn vtd_reason(scalable: bool, stage: Stage, access: Access, refusal: Refusal) -> u32 {
    match (refusal, stage, access) {
        (Refusal::Absent, Stage::First, _) => 0x71,
        (Refusal::Absent, Stage::Second, _) if scalable => 0x79,
        (Refusal::Beyond, Stage::First, _) => 0x80,
        (Refusal::Beyond, Stage::Second, _) if scalable => 0x84,
        (Refusal::Beyond, Stage::Second, _) => 4,
        (Refusal::Forbidden, _, Access::Write) if scalable => 0x85,
        (Refusal::Forbidden, _, Access::Read) if scalable => 0x86,
        (Refusal::Absent | Refusal::Forbidden, _, Access::Write) => 5,
        (Refusal::Absent | Refusal::Forbidden, _, Access::Read) => 6,
    }
}
