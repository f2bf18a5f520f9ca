//! What a unit can do.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use core::fmt;

use crate::arch::vtd::layout::registers::{FAULT_RECORD_BYTES, offset};
use crate::arch::vtd::layout::{AddressWidth, Cap, Ecap};
use crate::error::{Error, Result};
use crate::platform::{FRAME_BYTES, Registers};

/// Version and capabilities of a unit, read once (VT-d 11.4.1 to 11.4.3).
///
/// ```
/// use iommu::arch::vtd::driver::Capabilities;
/// use iommu::arch::vtd::layout::AddressWidth;
///
/// let unit = Capabilities::new(0x10, 0x00d2_008c_222f_0606, 0x00f0_0f4a)?;
/// assert_eq!(unit.widest(), Some(AddressWidth::Bits48));
/// assert_eq!(unit.domain_ids(), 65536);
/// assert_eq!(
///     unit.to_string(),
///     "version 1.0, 65536 domains, 48 bits in 3 or 4 levels, pages 4K 2M 1G, 1 fault record, \
///      page-selective to 2^18 pages, QI IR PT DWD DRD"
/// );
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Major and minor version, four bits each.
    version: u8,
    /// The capability register.
    pub cap: Cap,
    /// The extended capability register.
    pub ecap: Ecap,
}

impl Capabilities {
    /// What the three registers say.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when they say that no unit is there: all zeros or all ones.
    pub const fn new(version: u32, cap: u64, ecap: u64) -> Result<Self> {
        if version == 0 || version == u32::MAX || cap == 0 || cap == u64::MAX {
            return Err(Error::NoDevice);
        }
        Ok(Self { version: version as u8, cap: Cap::from_bits_retain(cap), ecap: Ecap::from_bits_retain(ecap) })
    }

    /// Reads the three registers.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn read<R: Registers>(registers: &R) -> Result<Self> {
        Self::new(registers.read32(offset::VER), registers.read64(offset::CAP), registers.read64(offset::ECAP))
    }

    /// Major version. From 2 on a unit drains by itself, from 6 on only the queue invalidates.
    pub const fn major(&self) -> u8 {
        self.version >> 4
    }

    /// Minor version.
    pub const fn minor(&self) -> u8 {
        self.version & 15
    }

    /// How many domain ids there are, id 0 and other reserved ones included. An encoding that the
    /// specification does not define counts as the smallest.
    pub const fn domain_ids(&self) -> u32 {
        match self.cap.domain_id_bits() {
            Some(bits) => 1u32.wrapping_shl(bits),
            None => 16,
        }
    }

    /// Whether the second stage can have this width.
    pub const fn has_width(&self, width: AddressWidth) -> bool {
        self.cap.contains(match width {
            AddressWidth::Bits39 => Cap::SAGAW_39,
            AddressWidth::Bits48 => Cap::SAGAW_48,
            AddressWidth::Bits57 => Cap::SAGAW_57,
        })
    }

    /// The widest second stage; `None` when the unit does not translate DMA.
    pub const fn widest(&self) -> Option<AddressWidth> {
        if self.has_width(AddressWidth::Bits57) {
            Some(AddressWidth::Bits57)
        } else if self.has_width(AddressWidth::Bits48) {
            Some(AddressWidth::Bits48)
        } else if self.has_width(AddressWidth::Bits39) {
            Some(AddressWidth::Bits39)
        } else {
            None
        }
    }

    /// Whether legacy-mode tables and root, context and remapping tables are snooped. If not, their
    /// cache lines must be written back. Queues and status writes are snooped always (11.4.3, C).
    pub const fn is_coherent(&self) -> bool {
        self.ecap.contains(Ecap::C)
    }

    /// How many bytes of registers there are, a multiple of 4096.
    pub const fn register_bytes(&self) -> usize {
        let records = self.cap.fault_records().wrapping_mul(FAULT_RECORD_BYTES);
        let mut end = self.cap.fault_record_offset().wrapping_add(records);
        let iotlb_end = self.ecap.iotlb_offset().wrapping_add(16);
        if end < iotlb_end {
            end = iotlb_end;
        }
        if end < offset::COMMON_END {
            end = offset::COMMON_END;
        }
        // At most 0x3ff0 + 256 * 16: no sum above wraps.
        end.next_multiple_of(FRAME_BYTES as usize)
    }
}

/// Single bits worth a word at boot, in the order of the registers.
const ECAP_NAMES: [(Ecap, &str); 20] = [
    (Ecap::C, "C"),
    (Ecap::QI, "QI"),
    (Ecap::DT, "DT"),
    (Ecap::IR, "IR"),
    (Ecap::EIM, "EIM"),
    (Ecap::PT, "PT"),
    (Ecap::SC, "SC"),
    (Ecap::NEST, "NEST"),
    (Ecap::PRS, "PRS"),
    (Ecap::SRS, "SRS"),
    (Ecap::DIT, "DIT"),
    (Ecap::PDS, "PDS"),
    (Ecap::SMTS, "SMTS"),
    (Ecap::SSADS, "SSADS"),
    (Ecap::SSTS, "SSTS"),
    (Ecap::FSTS, "FSTS"),
    (Ecap::SMPWCS, "SMPWCS"),
    (Ecap::RPS, "RPS"),
    (Ecap::ADMS, "ADMS"),
    (Ecap::IRREQ, "IRREQ"),
];

/// As above.
const CAP_NAMES: [(Cap, &str); 12] = [
    (Cap::RWBF, "RWBF"),
    (Cap::PLMR, "PLMR"),
    (Cap::PHMR, "PHMR"),
    (Cap::CM, "CM"),
    (Cap::ZLR, "ZLR"),
    (Cap::DWD, "DWD"),
    (Cap::DRD, "DRD"),
    (Cap::FS1GP, "FS1GP"),
    (Cap::PI, "PI"),
    (Cap::FS5LP, "FS5LP"),
    (Cap::ESIRTPS, "ESIRTPS"),
    (Cap::ESRTPS, "ESRTPS"),
];

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {}.{}, {} domains, ", self.major(), self.minor(), self.domain_ids())?;
        let mut or = "";
        for width in [AddressWidth::Bits39, AddressWidth::Bits48, AddressWidth::Bits57] {
            if self.has_width(width) {
                if or.is_empty() {
                    write!(f, "{} bits in ", self.cap.guest_address_bits())?;
                }
                write!(f, "{or}{}", width.levels())?;
                or = " or ";
            }
        }
        f.write_str(if or.is_empty() { "no second stage" } else { " levels" })?;
        f.write_str(", pages 4K")?;
        for (flag, name) in [(Cap::LARGE_2M, " 2M"), (Cap::LARGE_1G, " 1G")] {
            f.write_str(if self.cap.contains(flag) { name } else { "" })?;
        }
        let records = self.cap.fault_records();
        write!(f, ", {records} fault record{}", if records == 1 { "" } else { "s" })?;
        if self.cap.contains(Cap::PSI) {
            write!(f, ", page-selective to 2^{} pages", self.cap.max_address_mask())?;
        }
        if self.ecap.contains(Ecap::PASID) {
            write!(f, ", {}-bit PASIDs", self.ecap.pasid_bits())?;
        }
        f.write_str(",")?;
        for (flag, name) in ECAP_NAMES {
            if self.ecap.contains(flag) {
                write!(f, " {name}")?;
            }
        }
        for (flag, name) in CAP_NAMES {
            if self.cap.contains(flag) {
                write!(f, " {name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::Capabilities;
    use crate::error::Error;

    #[test]
    fn absent_units_are_no_units() {
        assert_eq!(Capabilities::new(0, 0, 0), Err(Error::NoDevice));
        assert_eq!(Capabilities::new(u32::MAX, u64::MAX, u64::MAX), Err(Error::NoDevice));
    }

    #[test]
    fn registers_beyond_the_first_page() {
        let qemu = Capabilities::new(0x10, 0x00d2_008c_222f_0606, 0x00f0_0f4a).unwrap();
        assert_eq!(qemu.register_bytes(), 4096);
        // FRO 0xff * 16 = 0xff0, two records: one byte more than a page.
        let far = Capabilities::new(0x10, 0x0000_0100_ff00_0000, 0).unwrap();
        assert_eq!(far.register_bytes(), 8192);
        // IRO 0x100.
        let iotlb = Capabilities::new(0x10, 1, 0x1_0000).unwrap();
        assert_eq!(iotlb.register_bytes(), 8192);
        let most = Capabilities::new(0x10, u64::MAX - 1, u64::MAX).unwrap();
        assert_eq!(most.register_bytes(), 0x5000);
    }

    #[test]
    fn a_unit_without_second_stage() {
        let unit = Capabilities::new(0x10, 0x00d2_008c_2226_0006, 0x0000_00f0_0f4a).unwrap();
        assert_eq!(unit.widest(), None);
        assert!(unit.to_string().starts_with("version 1.0, 65536 domains, no second stage, pages 4K 2M 1G"));
    }
}
