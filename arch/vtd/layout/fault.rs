//! Fault records and what their reasons mean (VT-d 7.1.3, 5.1.4.1 and 11.4.7.6).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use core::fmt;

use bitflags::bitflags;

use super::field;
use crate::id::Pasid;

/// Why a request was blocked (VT-d 11.4.7.6, FR).
///
/// ```
/// use iommu::arch::vtd::layout::FaultReason;
/// assert_eq!(FaultReason(5).to_string(), "no write permission (0x5)");
/// assert!(FaultReason(0x22).is_interrupt());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FaultReason(pub u8);

impl FaultReason {
    /// Whether an interrupt was blocked, not an access to memory (VT-d 5.1.4.1).
    pub const fn is_interrupt(self) -> bool {
        self.0 >> 4 == 2
    }

    /// The condition in words, and its code in Table 30 (DMA) for who wants to read on.
    pub fn text(self) -> &'static str {
        TEXTS.iter().find(|(reason, _)| *reason == self.0).map_or("unknown reason", |(_, text)| *text)
    }
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x})", self.text(), self.0)
    }
}

/// What a request wanted (VT-d 11.4.7.6, T1 and T2).
///
/// ```
/// use iommu::arch::vtd::layout::fault::Access;
/// assert_eq!(Access::Read.to_string(), "read");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// To write.
    Write,
    /// To have a page made present.
    PageRequest,
    /// To read.
    Read,
    /// To read and write at once.
    Atomic,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "write",
            Self::PageRequest => "page request",
            Self::Read => "read",
            Self::Atomic => "atomic",
        })
    }
}

/// Whether a request had been through a device-TLB (VT-d 11.4.7.6, AT).
///
/// ```
/// use iommu::arch::vtd::layout::fault::AddressType;
/// assert_ne!(AddressType::Untranslated, AddressType::Translated);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressType {
    /// An ordinary request.
    Untranslated,
    /// A request for a translation (ATS).
    TranslationRequest,
    /// A request with an address that the device had translated before (ATS).
    Translated,
    /// The encoding that is reserved.
    Reserved,
}

bitflags! {
    /// What a request with PASID asked for besides (VT-d 11.4.7.6).
    ///
    /// ```
    /// use iommu::arch::vtd::layout::fault::Privileges;
    /// assert!(Privileges::all().contains(Privileges::EXECUTE));
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Privileges: u8 {
        /// EXE: to execute.
        const EXECUTE = 1 << 0;
        /// PRIV: supervisor privilege.
        const SUPERVISOR = 1 << 1;
    }
}

/// A fault as a unit recorded it (VT-d 11.4.7.6).
///
/// ```
/// use iommu::arch::vtd::layout::FaultRecord;
/// // A write by 00:02.0 to 0x1000 through an entry that forbids it.
/// let record = FaultRecord::decode(0x1000, 0x8000_0005_0000_0010).unwrap();
/// assert_eq!(record.to_string(), "write at 0x1000: no write permission (0x5)");
/// assert_eq!((record.source, record.pasid), (0x10, None));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRecord {
    /// Requester id of the request.
    pub source: u16,
    /// Why it was blocked.
    pub reason: FaultReason,
    /// The page it went to (a multiple of 4096), or what [`interrupt_index`](Self::interrupt_index)
    /// reads.
    pub address: u64,
    /// What it wanted. Means nothing when an interrupt was blocked.
    pub access: Access,
    /// Whether it had been translated by the device.
    pub address_type: AddressType,
    /// The PASID it carried, if any.
    pub pasid: Option<Pasid>,
    /// What it asked for besides; empty without a PASID.
    pub privileges: Privileges,
}

impl FaultRecord {
    /// F, in the high quadword: the record is valid. Written with 1 to clear.
    pub const F: u64 = 1 << 63;

    /// Reads a record from its two quadwords; `None` when it is not valid.
    ///
    /// PASID and privileges are believed only where PP says that there was a PASID: some models leave
    /// garbage there.
    pub const fn decode(low: u64, high: u64) -> Option<Self> {
        if high & Self::F == 0 {
            return None;
        }
        // T1 is bit 126, T2 bit 92.
        let access = match (high >> 62 & 1, high >> 28 & 1) {
            (0, 0) => Access::Write,
            (0, _) => Access::PageRequest,
            (_, 0) => Access::Read,
            (_, _) => Access::Atomic,
        };
        let address_type = match field(high, 61, 60) {
            0 => AddressType::Untranslated,
            1 => AddressType::TranslationRequest,
            2 => AddressType::Translated,
            _ => AddressType::Reserved,
        };
        // PP is bit 95, EXE bit 94, PRIV bit 93.
        let (pasid, privileges) = if high >> 31 & 1 == 1 {
            let execute = (high >> 30 & 1) as u8;
            let supervisor = (high >> 29 & 1) as u8;
            (Pasid::new(field(high, 59, 40) as u32), Privileges::from_bits_truncate(execute | supervisor << 1))
        } else {
            (None, Privileges::empty())
        };
        Some(Self {
            source: field(high, 15, 0) as u16,
            reason: FaultReason(field(high, 39, 32) as u8),
            address: low & !0xfff,
            access,
            address_type,
            pasid,
            privileges,
        })
    }

    /// The two quadwords of this record, F set.
    pub const fn encode(&self) -> [u64; 2] {
        let access: u64 = match self.access {
            Access::Write => 0,
            Access::PageRequest => 1 << 28,
            Access::Read => 1 << 62,
            Access::Atomic => 1 << 62 | 1 << 28,
        };
        let address_type = match self.address_type {
            AddressType::Untranslated => 0,
            AddressType::TranslationRequest => 1,
            AddressType::Translated => 2,
            AddressType::Reserved => 3,
        };
        let privileges = self.privileges.bits() as u64;
        let pasid = match self.pasid {
            Some(pasid) => {
                (pasid.as_u32() as u64) << 40 | 1 << 31 | (privileges & 1) << 30 | (privileges >> 1 & 1) << 29
            }
            None => 0,
        };
        let high = access | address_type << 60 | pasid | (self.reason.0 as u64) << 32 | self.source as u64;
        [self.address & !0xfff, Self::F | high]
    }

    /// Index of the interrupt that was blocked, where the reason says that it is known.
    pub const fn interrupt_index(&self) -> Option<u16> {
        match self.reason.0 {
            0x20 | 0x25 | 0x29..=0x2f => None,
            _ if self.reason.is_interrupt() => Some(field(self.address, 63, 48) as u16),
            _ => None,
        }
    }
}

impl fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason.is_interrupt() {
            return match self.interrupt_index() {
                Some(index) => write!(f, "interrupt {index}: {}", self.reason),
                None => write!(f, "interrupt: {}", self.reason),
            };
        }
        write!(f, "{} at {:#x}", self.access, self.address)?;
        if let Some(pasid) = self.pasid {
            write!(f, " with PASID {:#x}", pasid.as_u32())?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// See [`FaultReason::text`].
const TEXTS: &[(u8, &str)] = &[
    // Table 30, legacy mode.
    (0x01, "root entry not present"),
    (0x02, "context entry not present"),
    (0x03, "invalid context entry"),
    (0x04, "address beyond the width of the domain or the unit"),
    (0x05, "no write permission"),
    (0x06, "no read permission"),
    (0x07, "second-stage entry could not be read"),
    (0x08, "root table could not be read"),
    (0x09, "context table could not be read"),
    (0x0a, "reserved field in a root entry"),
    (0x0b, "reserved field in a context entry"),
    (0x0c, "reserved field in a second-stage entry"),
    (0x0d, "the context entry blocks translated and translation requests"),
    (0x0e, "translates to the interrupt address range"),
    // Table 15, interrupt remapping.
    (0x20, "reserved field in an interrupt request"),
    (0x21, "interrupt index beyond the table"),
    (0x22, "interrupt remapping entry not present"),
    (0x23, "interrupt remapping table could not be read"),
    (0x24, "reserved field in an interrupt remapping entry"),
    (0x25, "interrupt in compatibility format"),
    (0x26, "interrupt from the wrong source"),
    (0x27, "posted interrupt descriptor could not be accessed"),
    (0x28, "reserved field in a posted interrupt descriptor"),
    (0x29, "malformed write to the interrupt address range"),
    (0x2a, "extended interrupt mode is required and off"),
    (0x2b, "interrupt remapping is required and off"),
    // Table 30, root table address.
    (0x30, "invalid root table address register"),
    (0x31, "request with PASID in legacy mode"),
    (0x32, "page request in legacy mode"),
    (0x33, "abort-dma mode"),
    (0x34, "execute request"),
    // Table 30, scalable mode: root, context, PASID directory, PASID table.
    (0x38, "scalable-mode root table could not be read"),
    (0x39, "scalable-mode root entry not present"),
    (0x3a, "reserved field in a scalable-mode root entry"),
    (0x40, "scalable-mode context table could not be read"),
    (0x41, "scalable-mode context entry not present"),
    (0x42, "reserved field in a scalable-mode context entry"),
    (0x43, "invalid scalable-mode context entry"),
    (0x44, "the context entry does not enable the device-TLB"),
    (0x45, "the context entry does not enable PASIDs"),
    (0x46, "PASID beyond the context entry's limit"),
    (0x47, "the context entry does not enable page requests"),
    (0x48, "the PASID is the one of requests without PASID"),
    (0x49, "the context entry does not enable PASIDs in translated requests"),
    (0x50, "PASID directory could not be read"),
    (0x51, "PASID directory entry not present"),
    (0x52, "reserved field in a PASID directory entry"),
    (0x58, "PASID table could not be read"),
    (0x59, "PASID table entry not present"),
    (0x5a, "reserved field in a PASID table entry"),
    (0x5b, "invalid PASID table entry"),
    (0x5c, "execute request, which the unit does not support"),
    (0x5d, "supervisor request, which the PASID table entry does not enable"),
    (0x60, "translated address beyond the host permission table"),
    // Table 30, first stage.
    (0x70, "first-stage entry could not be read"),
    (0x71, "first-stage entry not present"),
    (0x72, "reserved field in a first-stage entry"),
    (0x73, "top first-stage table could not be read"),
    (0x74, "first-stage entry points beyond the second stage"),
    (0x75, "second stage forbids reading the top first-stage table"),
    (0x76, "second stage forbids reading a first-stage entry"),
    (0x77, "second stage forbids updating a first-stage entry"),
    // Table 30, second stage in scalable mode.
    (0x78, "second-stage entry could not be read"),
    (0x79, "second stage permits nothing"),
    (0x7a, "reserved field in a second-stage entry"),
    (0x7b, "top second-stage table could not be read"),
    (0x7c, "second-stage accessed or dirty bit needs an update, which cannot snoop"),
    (0x7d, "second-stage accessed or dirty bit could not be updated"),
    // Table 30, general, in scalable mode.
    (0x80, "address not canonical"),
    (0x81, "user request to a supervisor page"),
    // Revisions before 4.0.
    (0x82, "no execute permission"),
    (0x83, "host address beyond the width of the host"),
    (0x84, "address beyond the width of the domain or the unit"),
    (0x85, "no write permission"),
    (0x86, "no read permission"),
    (0x87, "translates to the interrupt address range"),
    (0x89, "PASID beyond what the unit supports"),
    (0x90, "first-stage accessed or dirty bit needs an update, which cannot snoop"),
    (0x91, "first-stage accessed or dirty bit could not be updated"),
    // Table 30, host permission tables.
    (0xa0, "host permission entry could not be read"),
    (0xa1, "reserved field in a host permission entry"),
    (0xa2, "top host permission table could not be read"),
    (0xa3, "host permission table has no entry"),
    (0xa4, "host permission table forbids writing"),
    (0xa5, "host permission table forbids reading"),
];

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::{Access, AddressType, FaultReason, FaultRecord, Privileges};
    use crate::id::Pasid;

    #[test]
    fn records_that_qemu_writes() {
        // QEMU 7.2 in legacy mode leaves 0xffff in PV; PP is clear, so there is no PASID.
        let record = FaultRecord::decode(0x4000_0000, 0x80ff_ff05_0000_0008).unwrap();
        assert_eq!((record.source, record.pasid, record.access), (8, None, Access::Write));
        // Scalable mode: PP is set.
        let record = FaultRecord::decode(0x4000_0000, 0x8000_0005_8000_0008).unwrap();
        assert_eq!(record.pasid, Some(Pasid::ZERO));
        let record = FaultRecord::decode(0x1000, 0xc000_0006_0000_0020).unwrap();
        assert_eq!(record.to_string(), "read at 0x1000: no read permission (0x6)");
        assert_eq!(record.encode(), [0x1000, 0xc000_0006_0000_0020]);
    }

    #[test]
    fn every_field() {
        // 11.4.7.6: F 127, T1 126, AT 125:124, PV 123:104, FR 103:96, PP 95, EXE 94, PRIV 93, T2 92.
        let record = FaultRecord::decode(0xffff_ffff_ffff_ffff, 0xe123_4571_f000_abcd).unwrap();
        assert_eq!(record.source, 0xabcd);
        assert_eq!(record.reason, FaultReason(0x71));
        assert_eq!(record.address, 0xffff_ffff_ffff_f000);
        assert_eq!((record.access, record.address_type), (Access::Atomic, AddressType::Translated));
        assert_eq!(record.pasid, Pasid::new(0x12345));
        assert_eq!(record.privileges, Privileges::EXECUTE | Privileges::SUPERVISOR);
        assert_eq!(record.encode(), [0xffff_ffff_ffff_f000, 0xe123_4571_f000_abcd]);
        assert_eq!(FaultRecord::decode(0, !FaultRecord::F), None);
    }

    #[test]
    fn interrupt_faults_show_their_index() {
        let record = FaultRecord::decode(0x1234 << 48, 0x8000_0022_0000_0008).unwrap();
        assert_eq!(record.interrupt_index(), Some(0x1234));
        assert_eq!(record.to_string(), "interrupt 4660: interrupt remapping entry not present (0x22)");
        let record = FaultRecord::decode(0x1234 << 48, 0x8000_0025_0000_0008).unwrap();
        assert_eq!(record.interrupt_index(), None);
        let record = FaultRecord::decode(0x1234 << 48, 0x8000_0005_0000_0008).unwrap();
        assert_eq!(record.interrupt_index(), None);
    }

    #[test]
    fn known_reasons_have_words() {
        let tables = [0x01..=0x0e_u8, 0x20..=0x2b, 0x30..=0x34, 0x38..=0x3a, 0x40..=0x49, 0x50..=0x52, 0x58..=0x5d]
            .into_iter()
            .chain([0x60..=0x60, 0x70..=0x7d, 0x80..=0x87, 0x89..=0x89, 0x90..=0x91, 0xa0..=0xa5]);
        let mut known = [false; 256];
        for reason in tables.flatten() {
            known[usize::from(reason)] = true;
        }
        for reason in 0..=u8::MAX {
            let text = FaultReason(reason).text();
            assert_eq!(text != "unknown reason", known[usize::from(reason)], "{reason:#x}: {text}");
        }
    }
}
