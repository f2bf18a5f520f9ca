//! What a unit can do.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use core::fmt;
use core::ops::Deref;

use crate::arch::smmuv3::layout::identification::{Idr0, Idr1, Idr3, StallModel};
use crate::arch::smmuv3::layout::registers::offset;
use crate::arch::smmuv3::layout::{Granule, Identification};
use crate::error::{Error, Result, UnsupportedReason};
use crate::ops::Stage;
use crate::platform::Registers;

/// The identification registers of a unit, read once and found usable (SMMU 6.3.1 to 6.3.8).
///
/// Errata of known units change nothing here, because this driver does not use what they break: it
/// waits by CMDQ_CONS and not for events (MMU-600, 1076982), ends every batch of commands with a
/// CMD_SYNC (MMU-700, 2812531), takes no part in broadcast invalidation (CR2.PTM; the same), nests
/// nothing (MMU-600, 1209401; MMU-700, 2268618) and prefetches nothing (HiSilicon Hi161x). What a unit
/// does not tell of itself firmware does, by its model: [`RegisterPages`](super::RegisterPages).
///
/// ```
/// use iommu::arch::smmuv3::driver::Capabilities;
/// use iommu::arch::smmuv3::layout::{Granule, Identification};
/// use iommu::ops::Stage;
///
/// // QEMU 10.
/// let idr = Identification { idr0: 0x0d44_101b, idr1: 0x0273_0010, idr3: 0x1414, idr5: 0x74, ..Default::default() };
/// let unit = Capabilities::new(idr)?;
/// assert!(unit.has_stage(Stage::First) && unit.has_stage(Stage::Second));
/// assert_eq!((unit.asid_bits(), unit.vmid_bits()), (16, 16));
/// assert_eq!(unit.usual_granule(), Granule::Size4K);
/// assert_eq!(
///     unit.to_string(),
///     "version 3.0, 16-bit StreamIDs, stages 1 and 2, 44 bits of output, granules 4K 16K 64K, \
///      16-bit ASIDs, 16-bit VMIDs, COHACC ST_TWO_LEVEL XNX RIL"
/// );
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    identification: Identification,
    output_bits: u8,
}

impl Capabilities {
    /// What the registers say.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when they say that no unit is there: all zeros or all ones.
    /// [`Error::Unsupported`] for a unit that this driver cannot use: with
    /// [`Preset`](UnsupportedReason::Preset) when its tables or queues are at fixed addresses, with
    /// [`Format`](UnsupportedReason::Format) when it has no little-endian AArch64 tables, with
    /// [`Translation`](UnsupportedReason::Translation) without a stage, with
    /// [`AddressWidth`](UnsupportedReason::AddressWidth) without a granule or output size that is defined.
    pub const fn new(identification: Identification) -> Result<Self> {
        let (idr0, idr1) = (identification.idr0(), identification.idr1());
        if identification.idr0 == u32::MAX || identification.idr0 == 0 && identification.idr1 == 0 {
            return Err(Error::NoDevice);
        }
        // With REL the addresses would be those of preset tables and queues, too.
        if idr1.intersects(Idr1::QUEUES_PRESET.union(Idr1::TABLES_PRESET)) {
            return Err(Error::Unsupported(UnsupportedReason::Preset));
        }
        if !idr0.intersects(Idr0::S1P.union(Idr0::S2P)) {
            return Err(Error::Unsupported(UnsupportedReason::Translation));
        }
        if !idr0.contains(Idr0::TTF_AARCH64) || !identification.has_little_endian_tables() {
            return Err(Error::Unsupported(UnsupportedReason::Format));
        }
        let granules = (identification.idr5 >> 4) & 0b111;
        match identification.output_bits() {
            Some(output_bits) if granules != 0 => Ok(Self { identification, output_bits }),
            _ => Err(Error::Unsupported(UnsupportedReason::AddressWidth)),
        }
    }

    /// Reads the registers: 32 bits at a time, as they are.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn read<R: Registers>(registers: &R) -> Result<Self> {
        Self::new(Identification {
            idr0: registers.read32(offset::IDR0),
            idr1: registers.read32(offset::IDR1),
            idr2: registers.read32(offset::IDR2),
            idr3: registers.read32(offset::IDR3),
            idr4: registers.read32(offset::IDR4),
            idr5: registers.read32(offset::IDR5),
            iidr: registers.read32(offset::IIDR),
            aidr: registers.read32(offset::AIDR),
        })
    }

    /// Bits of an output address, and of an intermediate one.
    pub const fn output_bits(&self) -> u8 {
        self.output_bits
    }

    /// Whether requests can be translated in this stage alone.
    pub const fn has_stage(&self, stage: Stage) -> bool {
        self.identification.idr0().contains(match stage {
            Stage::First => Idr0::S1P,
            Stage::Second => Idr0::S2P,
        })
    }

    /// Bits of an ASID.
    pub const fn asid_bits(&self) -> u8 {
        if self.identification.idr0().contains(Idr0::ASID16) { 16 } else { 8 }
    }

    /// Bits of a VMID.
    pub const fn vmid_bits(&self) -> u8 {
        if self.identification.idr0().contains(Idr0::VMID16) { 16 } else { 8 }
    }

    /// The smallest granule that the unit has: 4 KiB, if it has that.
    pub const fn usual_granule(&self) -> Granule {
        if self.identification.has_granule(Granule::Size4K) {
            Granule::Size4K
        } else if self.identification.has_granule(Granule::Size16K) {
            Granule::Size16K
        } else {
            Granule::Size64K
        }
    }

    /// Bits of the widest input address of a stage with this granule. That of stage 2 is an output address
    /// of stage 1 (SMMU 3.4).
    pub const fn input_bits(&self, stage: Stage, granule: Granule) -> u8 {
        match stage {
            Stage::First => self.identification.input_bits(granule),
            // 52 bits take descriptors that only the granule of 64 KiB has without IDR5.DS.
            Stage::Second => self.reachable_bits(granule),
        }
    }

    /// Bits of the widest address that tables of this granule lead to.
    pub const fn reachable_bits(&self, granule: Granule) -> u8 {
        match granule {
            Granule::Size4K | Granule::Size16K if self.output_bits > 48 => 48,
            _ => self.output_bits,
        }
    }

    /// Whether faulting requests can wait for an answer.
    pub const fn can_stall(&self) -> bool {
        matches!(self.identification.stall_model(), StallModel::Configurable | StallModel::StallOnly)
    }

    /// Whether all faulting requests wait for an answer, whatever an STE or CD says.
    pub const fn stalls_always(&self) -> bool {
        matches!(self.identification.stall_model(), StallModel::StallOnly)
    }
}

impl Deref for Capabilities {
    type Target = Identification;

    fn deref(&self) -> &Identification {
        &self.identification
    }
}

/// Single bits worth a word at boot.
const IDR0_NAMES: [(Idr0, &str); 12] = [
    (Idr0::COHACC, "COHACC"),
    (Idr0::BTM, "BTM"),
    (Idr0::HTTU_ACCESS, "HTTU_ACCESS"),
    (Idr0::HTTU_DIRTY, "HTTU_DIRTY"),
    (Idr0::HYP, "HYP"),
    (Idr0::ATS, "ATS"),
    (Idr0::NS1ATS, "NS1ATS"),
    (Idr0::MSI, "MSI"),
    (Idr0::SEV, "SEV"),
    (Idr0::PRI, "PRI"),
    (Idr0::CD2L, "CD2L"),
    (Idr0::ST_TWO_LEVEL, "ST_TWO_LEVEL"),
];

/// As above.
const IDR3_NAMES: [(Idr3, &str); 4] = [(Idr3::XNX, "XNX"), (Idr3::FWB, "FWB"), (Idr3::STT, "STT"), (Idr3::RIL, "RIL")];

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version 3.{}, {}-bit StreamIDs, ", self.minor_revision(), self.stream_id_bits())?;
        f.write_str(match (self.has_stage(Stage::First), self.has_stage(Stage::Second)) {
            (true, true) => "stages 1 and 2",
            (true, false) => "stage 1",
            _ => "stage 2",
        })?;
        write!(f, ", {} bits of output, granules", self.output_bits())?;
        for granule in Granule::ALL.into_iter().filter(|granule| self.has_granule(*granule)) {
            f.write_str(match granule {
                Granule::Size4K => " 4K",
                Granule::Size16K => " 16K",
                Granule::Size64K => " 64K",
            })?;
        }
        if self.has_stage(Stage::First) {
            write!(f, ", {}-bit ASIDs", self.asid_bits())?;
        }
        if self.has_stage(Stage::Second) {
            write!(f, ", {}-bit VMIDs", self.vmid_bits())?;
        }
        match self.substream_id_bits() {
            0 => {}
            bits => write!(f, ", {bits}-bit SubstreamIDs")?,
        }
        f.write_str(match self.stall_model() {
            StallModel::Configurable => ", may stall,",
            StallModel::StallOnly => ", stalls,",
            _ => ",",
        })?;
        for (_, name) in IDR0_NAMES.into_iter().filter(|(flag, _)| self.idr0().contains(*flag)) {
            write!(f, " {name}")?;
        }
        for (_, name) in IDR3_NAMES.into_iter().filter(|(flag, _)| self.idr3().contains(*flag)) {
            write!(f, " {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Capabilities;
    use crate::arch::smmuv3::layout::{Granule, Identification};
    use crate::error::{Error, UnsupportedReason};
    use crate::ops::Stage;

    /// QEMU 10.
    const QEMU: Identification = Identification {
        idr0: 0x0d44_101b,
        idr1: 0x0273_0010,
        idr2: 0,
        idr3: 0x1414,
        idr4: 0,
        idr5: 0x74,
        iidr: 0,
        aidr: 0,
    };

    fn refused(identification: Identification) -> Option<Error> {
        Capabilities::new(identification).err()
    }

    #[test]
    fn absent_units_are_no_units() {
        assert_eq!(refused(Identification::default()), Some(Error::NoDevice));
        assert_eq!(refused(Identification { idr0: u32::MAX, idr1: u32::MAX, ..QEMU }), Some(Error::NoDevice));
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let unsupported = |reason| Some(Error::Unsupported(reason));
        for preset in [1 << 29, 1 << 30] {
            let idr1 = QEMU.idr1 | preset;
            assert_eq!(refused(Identification { idr1, ..QEMU }), unsupported(UnsupportedReason::Preset));
        }
        // AArch32 tables only; big-endian tables only.
        for idr0 in [QEMU.idr0 & !(3 << 2) | 1 << 2, QEMU.idr0 | 3 << 21] {
            assert_eq!(refused(Identification { idr0, ..QEMU }), unsupported(UnsupportedReason::Format));
        }
        let idr0 = QEMU.idr0 & !3;
        assert_eq!(refused(Identification { idr0, ..QEMU }), unsupported(UnsupportedReason::Translation));
        for idr5 in [4, 0x77] {
            assert_eq!(refused(Identification { idr5, ..QEMU }), unsupported(UnsupportedReason::AddressWidth));
        }
    }

    #[test]
    fn widths_and_granules() {
        let unit = Capabilities::new(Identification { idr5: 0x466, ..QEMU }).unwrap();
        assert_eq!(unit.usual_granule(), Granule::Size16K);
        assert_eq!(unit.input_bits(Stage::First, Granule::Size64K), 52);
        assert_eq!(unit.input_bits(Stage::First, Granule::Size16K), 48);
        assert_eq!([Granule::Size16K, Granule::Size64K].map(|g| unit.input_bits(Stage::Second, g)), [48, 52]);
        let qemu = Capabilities::new(QEMU).unwrap();
        assert_eq!(qemu.input_bits(Stage::Second, Granule::Size64K), 44);
    }
}
