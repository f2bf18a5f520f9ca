//! What differs between architectures: how the firmware tells of the units, and with what numbers they
//! tell of refusals.

use iommu::arch::smmuv3;
use iommu::arch::vtd;
use iommu::device_tree::Fdt;
use iommu::ops::Stage;
use iommu::platform::{Platform, Registers};
use iommu::{FaultKind, Iommu, Iova, PciAddress};
use iommu_harness::runner::{TestError, TestResult};
use iommu_harness::{Access, Buffer, Machine, MachinePlatform};

/// What a machine's firmware says of its units.
pub(crate) enum Firmware {
    /// VT-d units, in the ACPI table of this signature.
    Dmar(Vec<u8>),
    /// SMMUv3 units, likewise.
    Iort(Vec<u8>),
    /// SMMUv3 units, in a flattened device tree.
    DeviceTree(Vec<u8>),
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
        machine.acpi_table(b"DMAR").map(Self::Dmar).or_else(|_| machine.acpi_table(b"IORT").map(Self::Iort))
    }

    /// Brings the units up.
    pub(crate) fn bring_up(&self, iommu: &Iommu<MachinePlatform>) -> TestResult {
        match self {
            Self::Dmar(table) => vtd::init(iommu, table)?,
            Self::Iort(table) => smmuv3::init(iommu, table).map(drop)?,
            Self::DeviceTree(blob) => {
                let tree = Fdt::new(blob).map_err(TestError::failed)?;
                smmuv3::init_device_tree(iommu, &tree).map(drop)?;
            }
        }
        Ok(())
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
            Self::Iort(table) => Self::Iort(summed(with_reserved_memory(table, device, buffer))),
            Self::DeviceTree(_) => panic!("tests change tables of ACPI only"),
        }
    }

    /// Whether a unit records what it refuses a device that has no domain.
    pub(crate) fn tells_of_blocked(&self) -> bool {
        match self {
            Self::Dmar(_) => true,
            // Stream table entries that abort do so silently (G.b 5.2, Config).
            Self::Iort(_) | Self::DeviceTree(_) => false,
        }
    }

    /// Whether each access that is refused is told of, also when the same was told before.
    pub(crate) fn tells_of_each_access(&self) -> bool {
        match self {
            Self::Dmar(_) => false,
            Self::Iort(_) | Self::DeviceTree(_) => true,
        }
    }

    /// What is left of an aligned address beyond the width of a domain in the record of its fault.
    pub(crate) fn recorded(&self, machine: &dyn Machine, beyond: Iova) -> Iova {
        let whole = || machine.quirks().is_some_and(|quirks| quirks.vtd_records_bits_beyond_the_width);
        match self {
            // VT-d 11.4.7.6: the record has no room for bits beyond the width.
            Self::Dmar(_) if !whole() => Iova::new(beyond.as_u64() & ((1 << 39) - 1)),
            _ => beyond,
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
            // F_ADDR_SIZE of what stage 1 would not have let through, F_PERMISSION, F_TRANSLATION (G.b 3.4, 7.3).
            Self::Iort(_) | Self::DeviceTree(_) => Ok(match (refusal, stage) {
                (Refusal::Beyond, Stage::Second) => (FaultKind::AddressSize, 0x11),
                (Refusal::Forbidden, _) => (FaultKind::Translation, 0x13),
                _ => (FaultKind::Translation, 0x10),
            }),
        }
    }
}

/// An IORT with one more node: `buffer` is reserved memory of `device` (DEN 0049 E.f, 3.1.1.7).
fn with_reserved_memory(mut table: Vec<u8>, device: PciAddress, buffer: &Buffer) -> Vec<u8> {
    let number = |table: &[u8], at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| table[at + byte]));
    let (count, mut unit) = (number(&table, 36), number(&table, 40) as usize);
    // The SMMUv3 is a node of type 4.
    while table[unit] != 4 {
        unit += usize::from(u16::from_le_bytes([table[unit + 1], table[unit + 2]]));
    }
    table[36..40].copy_from_slice(&(count + 1).to_le_bytes());
    // Type 6, 68 bytes, revision 3; then words: identifier, one mapping at 48, normal write-back memory (attributes
    // 5), one range at 28.
    table.extend([6, 68, 0, 3]);
    table.extend([count, 1, 48, 5 << 2, 1, 28].into_iter().flat_map(u32::to_le_bytes));
    table.extend([buffer.phys().as_u64(), buffer.bytes()].into_iter().flat_map(u64::to_le_bytes));
    // Reserved. The mapping: input base and count, the StreamID, the unit, that it is for one id.
    table.extend([0, 0, 0, device.source_id().id(), unit as u32, 1].into_iter().flat_map(u32::to_le_bytes));
    table
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
