//! The capability registers (VT-d 11.4.2 and 11.4.3).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use bitflags::bitflags;

use super::field;

bitflags! {
    /// The capability register (VT-d 11.4.2). Single bits are flags, fields have a method each.
    ///
    /// ```
    /// use iommu::arch::vtd::layout::Cap;
    /// let cap = Cap::from_bits_retain(0x00d2_008c_222f_0606); // QEMU 7.2, aw-bits=48
    /// assert!(cap.contains(Cap::PSI | Cap::LARGE_1G) && !cap.contains(Cap::CM));
    /// assert_eq!((cap.domain_id_bits(), cap.guest_address_bits()), (Some(16), 48));
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cap: u64 {
        /// Write buffers must be flushed by software (6.8).
        const RWBF = 1 << 4;
        /// Protected low memory region.
        const PLMR = 1 << 5;
        /// Protected high memory region.
        const PHMR = 1 << 6;
        /// Caching mode: what is not present may be cached too (6.1).
        const CM = 1 << 7;
        /// SAGAW: second stage of 3 levels, 39 bits.
        const SAGAW_39 = 1 << 9;
        /// SAGAW: second stage of 4 levels, 48 bits.
        const SAGAW_48 = 1 << 10;
        /// SAGAW: second stage of 5 levels, 57 bits.
        const SAGAW_57 = 1 << 11;
        /// Zero-length reads of write-only pages do not fault.
        const ZLR = 1 << 22;
        /// SSLPS: 2 MiB pages in the second stage.
        const LARGE_2M = 1 << 34;
        /// SSLPS: 1 GiB pages in the second stage.
        const LARGE_1G = 1 << 35;
        /// Page-selective invalidation of the IOTLB.
        const PSI = 1 << 39;
        /// Writes can be drained.
        const DWD = 1 << 54;
        /// Reads can be drained.
        const DRD = 1 << 55;
        /// 1 GiB pages in the first stage.
        const FS1GP = 1 << 56;
        /// Posted interrupts.
        const PI = 1 << 59;
        /// First stage of 5 levels.
        const FS5LP = 1 << 60;
        /// Enhanced commands.
        const ECMDS = 1 << 61;
        /// SIRTP invalidates by itself.
        const ESIRTPS = 1 << 62;
        /// SRTP invalidates by itself (6.6).
        const ESRTPS = 1 << 63;
        const _ = !0;
    }
}

impl Cap {
    /// ND: bits of a domain id, 4 to 16; `None` for the encoding that is reserved.
    pub const fn domain_id_bits(self) -> Option<u32> {
        match self.bits() & 7 {
            7 => None,
            nd => Some((nd as u32).wrapping_mul(2).wrapping_add(4)),
        }
    }

    /// MGAW: bits of an address that the second stage translates, 1 to 64.
    pub const fn guest_address_bits(self) -> u32 {
        (field(self.bits(), 21, 16) as u32).wrapping_add(1)
    }

    /// FRO: where the first fault recording register is, in bytes.
    pub const fn fault_record_offset(self) -> usize {
        (field(self.bits(), 33, 24) as usize) << 4
    }

    /// NFR: how many fault recording registers there are, 1 to 256.
    pub const fn fault_records(self) -> usize {
        (field(self.bits(), 47, 40) as usize).wrapping_add(1)
    }

    /// MAMV: the largest address mask, log2 of pages, of a page-selective invalidation. Valid with
    /// [`PSI`](Self::PSI).
    pub const fn max_address_mask(self) -> u8 {
        field(self.bits(), 53, 48) as u8
    }
}

bitflags! {
    /// The extended capability register (VT-d 11.4.3). Single bits are flags, fields have a method
    /// each.
    ///
    /// ```
    /// use iommu::arch::vtd::layout::Ecap;
    /// let ecap = Ecap::from_bits_retain(0x00f0_0f4a); // QEMU 7.2
    /// assert_eq!(ecap, Ecap::QI | Ecap::IR | Ecap::PT | Ecap::from_bits_retain(0xf0_0f00));
    /// assert_eq!(ecap.iotlb_offset(), 0xf0);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Ecap: u64 {
        /// Tables are snooped (in scalable mode, page tables follow [`SMPWCS`](Self::SMPWCS)).
        /// Queues and status writes always are.
        const C = 1 << 0;
        /// Queued invalidation.
        const QI = 1 << 1;
        /// Device-TLBs (ATS).
        const DT = 1 << 2;
        /// Interrupt remapping.
        const IR = 1 << 3;
        /// Extended interrupt mode: 32-bit APIC ids.
        const EIM = 1 << 4;
        /// Pass-through.
        const PT = 1 << 6;
        /// Snoop control.
        const SC = 1 << 7;
        /// Memory types.
        const MTS = 1 << 25;
        /// Nested translation.
        const NEST = 1 << 26;
        /// Page requests.
        const PRS = 1 << 29;
        /// Execute requests (deprecated).
        const ERS = 1 << 30;
        /// Supervisor requests.
        const SRS = 1 << 31;
        /// The no-write flag of translation requests.
        const NWFS = 1 << 33;
        /// Extended accessed flag.
        const EAFS = 1 << 34;
        /// Requests with PASID.
        const PASID = 1 << 40;
        /// Device-TLB invalidations are throttled by physical function.
        const DIT = 1 << 41;
        /// Page requests can be drained.
        const PDS = 1 << 42;
        /// Scalable mode.
        const SMTS = 1 << 43;
        /// Virtual commands.
        const VCS = 1 << 44;
        /// Accessed and dirty bits in the second stage (formerly SLADS).
        const SSADS = 1 << 45;
        /// Second stage in scalable mode (formerly SLTS).
        const SSTS = 1 << 46;
        /// First stage in scalable mode (formerly FLTS).
        const FSTS = 1 << 47;
        /// Page tables may be snooped in scalable mode.
        const SMPWCS = 1 << 48;
        /// The RID_PASID field.
        const RPS = 1 << 49;
        /// TDX Connect.
        const TDXCS = 1 << 50;
        /// Performance monitoring.
        const PMS = 1 << 51;
        /// Abort-dma mode.
        const ADMS = 1 << 52;
        /// The RID_PRIV field.
        const RPRIVS = 1 << 53;
        /// Host permission tables.
        const HPTS = 1 << 55;
        /// PASIDs in translated requests.
        const PTRS = 1 << 56;
        /// I/O read and write bits in the second stage.
        const SSIRWS = 1 << 57;
        /// Stop markers.
        const SMS = 1 << 58;
        /// 1 GiB pages in host permission tables.
        const HPT1GPS = 1 << 59;
        /// RDT configuration.
        const RDTS = 1 << 60;
        /// Extended interrupt mode is the only one.
        const EIMER = 1 << 61;
        /// Interrupts are blocked unless remapped.
        const IRREQ = 1 << 62;
        const _ = !0;
    }
}

impl Ecap {
    /// IRO: where the IOTLB registers are, in bytes: IVA, and 8 bytes further the IOTLB register.
    pub const fn iotlb_offset(self) -> usize {
        (field(self.bits(), 17, 8) as usize) << 4
    }

    /// MHMV: the largest index mask, log2 of entries, of an interrupt entry cache invalidation.
    pub const fn max_handle_mask(self) -> u8 {
        field(self.bits(), 23, 20) as u8
    }

    /// PSS: bits of a PASID, 1 to 20 on real units. Valid with [`PASID`](Self::PASID).
    pub const fn pasid_bits(self) -> u32 {
        (field(self.bits(), 39, 35) as u32).wrapping_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::{Cap, Ecap};

    /// Values that QEMU 10 machines showed: with `x-flts=on`, and with `x-pasid-mode=on`.
    #[test]
    fn fields_of_real_registers() {
        let cap = Cap::from_bits_retain(0x81d2_008c_222f_0606);
        assert_eq!(cap.domain_id_bits(), Some(16));
        assert_eq!(cap.fault_record_offset(), 0x220);
        assert_eq!(cap.fault_records(), 1);
        assert_eq!(cap.max_address_mask(), 18);
        assert!(cap.contains(Cap::ESRTPS | Cap::FS1GP | Cap::SAGAW_39 | Cap::SAGAW_48));
        assert!(!cap.intersects(Cap::RWBF | Cap::PLMR | Cap::PHMR | Cap::CM | Cap::SAGAW_57 | Cap::ZLR));
        let ecap = Ecap::from_bits_retain(0x4938_80f0_0f4a);
        assert_eq!(ecap.pasid_bits(), 8);
        assert_eq!(ecap.max_handle_mask(), 15);
        assert!(ecap.contains(Ecap::QI | Ecap::IR | Ecap::PT | Ecap::SRS | Ecap::PASID | Ecap::SMTS | Ecap::SSTS));
        assert!(!ecap.intersects(Ecap::C | Ecap::DT | Ecap::SC | Ecap::NEST | Ecap::FSTS | Ecap::RPS | Ecap::SMPWCS));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let cap = Cap::from_bits_retain(u64::MAX);
        assert_eq!(cap.domain_id_bits(), None);
        assert_eq!((cap.guest_address_bits(), cap.fault_records()), (64, 256));
        assert_eq!(cap.fault_record_offset(), 0x3ff0);
        assert_eq!(Ecap::from_bits_retain(u64::MAX).iotlb_offset(), 0x3ff0);
        assert_eq!(Ecap::from_bits_retain(u64::MAX).pasid_bits(), 32);
    }
}
