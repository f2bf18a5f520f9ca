//! Registers other than the capabilities (VT-d 11.4).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use bitflags::bitflags;

use super::field;
use crate::addr::PhysAddr;

/// Where registers are, in bytes from the unit's base (VT-d 11.4, "Register Offset").
pub mod offset {
    /// Version, 32 bits (11.4.1).
    pub const VER: usize = 0x00;
    /// Capabilities, 64 bits (11.4.2).
    pub const CAP: usize = 0x08;
    /// Extended capabilities, 64 bits (11.4.3).
    pub const ECAP: usize = 0x10;
    /// Global command, 32 bits, write only (11.4.4.1).
    pub const GCMD: usize = 0x18;
    /// Global status, 32 bits (11.4.4.2).
    pub const GSTS: usize = 0x1c;
    /// Root table address, 64 bits (11.4.5).
    pub const RTADDR: usize = 0x20;
    /// Context command, 64 bits: register-based invalidation (11.4.6.1).
    pub const CCMD: usize = 0x28;
    /// Fault status, 32 bits (11.4.7.1).
    pub const FSTS: usize = 0x34;
    /// Fault event control, 32 bits (11.4.7.2).
    pub const FECTL: usize = 0x38;
    /// Fault event message data, 32 bits (11.4.7.3).
    pub const FEDATA: usize = 0x3c;
    /// Fault event message address, 32 bits (11.4.7.4).
    pub const FEADDR: usize = 0x40;
    /// Fault event message upper address, 32 bits (11.4.7.5).
    pub const FEUADDR: usize = 0x44;
    /// Protected memory enable, 32 bits (11.4.8.1).
    pub const PMEN: usize = 0x64;
    /// Protected low memory base, 32 bits (11.4.8.2).
    pub const PLMBASE: usize = 0x68;
    /// Protected low memory limit, 32 bits (11.4.8.3).
    pub const PLMLIMIT: usize = 0x6c;
    /// Protected high memory base, 64 bits (11.4.8.4).
    pub const PHMBASE: usize = 0x70;
    /// Protected high memory limit, 64 bits (11.4.8.5).
    pub const PHMLIMIT: usize = 0x78;
    /// Invalidation queue head, 64 bits of which the low half counts (11.4.9.1).
    pub const IQH: usize = 0x80;
    /// Invalidation queue tail, 64 bits of which the low half counts (11.4.9.2).
    pub const IQT: usize = 0x88;
    /// Invalidation queue address, 64 bits (11.4.9.3).
    pub const IQA: usize = 0x90;
    /// Invalidation completion status, 32 bits (11.4.9.4).
    pub const ICS: usize = 0x9c;
    /// Invalidation event control, 32 bits (11.4.9.5).
    pub const IECTL: usize = 0xa0;
    /// Invalidation event message data, 32 bits (11.4.9.6).
    pub const IEDATA: usize = 0xa4;
    /// Invalidation event message address, 32 bits (11.4.9.7).
    pub const IEADDR: usize = 0xa8;
    /// Invalidation event message upper address, 32 bits (11.4.9.8).
    pub const IEUADDR: usize = 0xac;
    /// Invalidation queue error record, 64 bits (11.4.9.9).
    pub const IQERCD: usize = 0xb0;
    /// Interrupt remapping table address, 64 bits (11.4.10).
    pub const IRTA: usize = 0xb8;
    /// End of the registers that every unit has.
    pub const COMMON_END: usize = 0xc0;
    /// Page request queue head, 64 bits of which the low half counts (11.4.11.1).
    pub const PQH: usize = 0xc0;
    /// Page request queue tail, 64 bits of which the low half counts (11.4.11.2).
    pub const PQT: usize = 0xc8;
    /// Page request queue address, 64 bits (11.4.11.3).
    pub const PQA: usize = 0xd0;
    /// Page request status, 32 bits (11.4.11.4).
    pub const PRS: usize = 0xdc;
    /// Page request event control, 32 bits (11.4.11.5).
    pub const PECTL: usize = 0xe0;
    /// Page request event message data, 32 bits (11.4.11.6).
    pub const PEDATA: usize = 0xe4;
    /// Page request event message address, 32 bits (11.4.11.7).
    pub const PEADDR: usize = 0xe8;
    /// Page request event message upper address, 32 bits (11.4.11.8).
    pub const PEUADDR: usize = 0xec;
    /// End of the registers of units with page requests, apart from those whose place varies.
    pub const PAGE_REQUEST_END: usize = 0xf0;
}

/// Bytes of one fault recording register (VT-d 11.4.7.6).
pub const FAULT_RECORD_BYTES: usize = 16;

/// Within a fault recording register: the doubleword that holds F, which is to be read first and is
/// written to clear the record (VT-d 11.4.7.6, footnote).
pub const FAULT_RECORD_TOP: usize = 12;

bitflags! {
    /// Bits of the global command and the global status register, which are at the same places
    /// (VT-d 11.4.4.1 and 11.4.4.2).
    ///
    /// ```
    /// use iommu::arch::vtd::layout::registers::Global;
    /// let status = Global::QIE | Global::RTP;
    /// assert_eq!(status & Global::STICKY, Global::QIE); // what a command must repeat
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Global: u32 {
        /// TE, TES: translation is enabled.
        const TE = 1 << 31;
        /// SRTP: take over RTADDR; RTPS: it was taken over. One shot.
        const RTP = 1 << 30;
        /// WBF: flush the write buffers; WBFS: being flushed. One shot, cleared when done.
        const WBF = 1 << 27;
        /// QIE, QIES: queued invalidation is enabled.
        const QIE = 1 << 26;
        /// IRE, IRES: interrupts are remapped.
        const IRE = 1 << 25;
        /// SIRTP: take over IRTA; IRTPS: it was taken over. One shot.
        const IRTP = 1 << 24;
        /// CFI, CFIS: interrupts in compatibility format pass.
        const CFI = 1 << 23;
        /// What a command repeats from the status: all but the one-shot bits (11.4.4.1, step 2).
        const STICKY = 0x96ff_ffff;
    }
}

bitflags! {
    /// Fault status (VT-d 11.4.7.1). The index of the first record is apart:
    /// [`first_record`](Self::first_record).
    ///
    /// ```
    /// use iommu::arch::vtd::layout::registers::FaultStatus;
    /// let status = FaultStatus::from_bits_retain(0x0302);
    /// assert!(status.contains(FaultStatus::PPF));
    /// assert_eq!(status.first_record(), 3);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FaultStatus: u32 {
        /// Primary fault overflow: a fault was lost. Written with 1 to clear.
        const PFO = 1 << 0;
        /// Primary pending fault: a record is valid. Read only.
        const PPF = 1 << 1;
        /// Invalidation queue error. Written with 1 to clear.
        const IQE = 1 << 4;
        /// Invalidation completion error. Written with 1 to clear.
        const ICE = 1 << 5;
        /// Invalidation time-out error. Written with 1 to clear.
        const ITE = 1 << 6;
        /// What concerns the invalidation queue.
        const QUEUE = 0x70;
    }
}

impl FaultStatus {
    /// FRI: index of the record to begin with, valid while PPF is set.
    pub const fn first_record(self) -> u8 {
        (self.bits() >> 8) as u8
    }
}

/// Fault or invalidation event control: the message is masked (VT-d 11.4.7.2, 11.4.9.5).
pub const EVENT_MASKED: u32 = 1 << 31;
/// Fault or invalidation event control: a message is held back (VT-d 11.4.7.2, 11.4.9.5).
pub const EVENT_PENDING: u32 = 1 << 30;

bitflags! {
    /// Page request status (VT-d 11.4.11.4). Both are written with 1 to clear.
    ///
    /// ```
    /// use iommu::arch::vtd::layout::registers::PageRequestStatus;
    /// assert!(PageRequestStatus::from_bits_retain(3).contains(PageRequestStatus::PRO));
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PageRequestStatus: u32 {
        /// A request was added to the queue.
        const PPR = 1 << 0;
        /// Overflow: a request was lost, and all are until this is cleared.
        const PRO = 1 << 1;
    }
}

/// Protected memory: enable (VT-d 11.4.8.1).
pub const PMEN_EPM: u32 = 1 << 31;
/// Protected memory: status (VT-d 11.4.8.1).
pub const PMEN_PRS: u32 = 1 << 0;

/// Completion status: a wait descriptor with the interrupt flag completed; written with 1 to clear
/// (VT-d 11.4.9.4).
pub const ICS_IWC: u32 = 1 << 0;

/// How the root table is read (VT-d 11.4.5, TTM).
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::layout::registers::TableMode;
/// assert_eq!(TableMode::Scalable.root_table_address(PhysAddr::new(0x5000)), 0x5400);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableMode {
    /// Root and context tables.
    Legacy = 0,
    /// Scalable-mode root and context tables, PASID tables.
    Scalable = 1,
    /// No table: all DMA is aborted.
    AbortDma = 3,
}

impl TableMode {
    /// The value of RTADDR for a root table at `root`, aligned to 4096 bytes.
    pub const fn root_table_address(self, root: PhysAddr) -> u64 {
        root.as_u64() & !0xfff | (self as u64) << 10
    }

    /// The mode in a value of RTADDR; `None` for the encoding that is reserved.
    pub const fn of_root_table_address(value: u64) -> Option<Self> {
        match field(value, 11, 10) {
            0 => Some(Self::Legacy),
            1 => Some(Self::Scalable),
            3 => Some(Self::AbortDma),
            _ => None,
        }
    }
}

/// How wide descriptors in the invalidation queue are (VT-d 11.4.9.3, DW).
///
/// ```
/// use iommu::arch::vtd::layout::registers::DescriptorWidth;
/// assert_eq!(DescriptorWidth::Bits256.bytes(), 32);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DescriptorWidth {
    /// 128 bits: legacy mode only (6.5.2.11, Table 26).
    Bits128 = 0,
    /// 256 bits: every mode, on units that have scalable or abort-dma mode.
    Bits256 = 1,
}

impl DescriptorWidth {
    /// Bytes of a descriptor.
    pub const fn bytes(self) -> usize {
        16 << self as usize
    }

    /// Quadwords of a descriptor.
    pub const fn words(self) -> usize {
        2 << self as usize
    }

    /// log2 of the bytes of a descriptor: by how much IQH and IQT are shifted.
    pub const fn shift(self) -> u32 {
        match self {
            Self::Bits128 => 4,
            Self::Bits256 => 5,
        }
    }

    /// The value of IQA for a queue of `1 << order` frames (`order` at most 7) at `base` (11.4.9.3).
    pub const fn queue_address(self, base: PhysAddr, order: u8) -> u64 {
        base.as_u64() & !0xfff | (self as u64) << 11 | order as u64 & 7
    }
}

/// What became wrong with the invalidation queue (VT-d 11.4.9.9).
///
/// ```
/// use iommu::arch::vtd::layout::registers::QueueError;
/// let error = QueueError(0x0020_0000_0004);
/// assert_eq!(error.timed_out_source(), Some(0x20));
/// assert_eq!(error.text(), "reserved field in a descriptor");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueError(pub u64);

impl QueueError {
    /// ITESID: which requester did not answer, where the unit tells it. Valid while ITE is set.
    pub const fn timed_out_source(self) -> Option<u16> {
        match field(self.0, 47, 32) as u16 {
            0 => None,
            source => Some(source),
        }
    }

    /// ICESID: which requester answered wrongly, where the unit tells it. Valid while ICE is set.
    pub const fn broken_source(self) -> Option<u16> {
        match field(self.0, 63, 48) as u16 {
            0 => None,
            source => Some(source),
        }
    }

    /// IQEI in words. Valid while IQE is set.
    pub const fn text(self) -> &'static str {
        match field(self.0, 3, 0) {
            0 => "no details",
            1 => "invalid tail pointer",
            2 => "a descriptor could not be fetched",
            3 => "invalid descriptor type",
            4 => "reserved field in a descriptor",
            5 => "invalid descriptor width",
            6 => "tail not aligned to the descriptor width",
            7 => "invalid translation table mode",
            _ => "unknown error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DescriptorWidth, Global, TableMode};
    use crate::addr::PhysAddr;

    #[test]
    fn commands_repeat_only_what_is_sticky() {
        // 11.4.4.1: "Status = (Tmp & 96FFFFFFh)".
        assert_eq!(Global::STICKY.bits(), 0x96ff_ffff);
        assert!(!Global::STICKY.intersects(Global::RTP | Global::WBF | Global::IRTP));
        assert!(Global::STICKY.contains(Global::TE | Global::QIE | Global::IRE | Global::CFI));
    }

    #[test]
    fn addresses_carry_mode_and_size() {
        let base = PhysAddr::new(0x12_3456_7000);
        assert_eq!(TableMode::Legacy.root_table_address(base), 0x12_3456_7000);
        assert_eq!(TableMode::AbortDma.root_table_address(base), 0x12_3456_7c00);
        assert_eq!(TableMode::of_root_table_address(0x800), None);
        assert_eq!(DescriptorWidth::Bits128.queue_address(base, 3), 0x12_3456_7003);
        assert_eq!(DescriptorWidth::Bits256.queue_address(base, 7), 0x12_3456_7807);
    }
}
