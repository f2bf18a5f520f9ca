//! Registers other than the identification (SMMU 6.3).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use bitflags::bitflags;

use super::{field, with_field};
use crate::addr::PhysAddr;

/// Bytes of registers: two pages of 64 KiB (SMMU 6.1). VATOS and what follows is not used.
pub const REGISTER_BYTES: usize = 0x2_0000;

/// Where registers are, in bytes from the unit's base (SMMU 6.2).
pub mod offset {
    /// Features 0, 32 bits (6.3.1).
    pub const IDR0: usize = 0x00;
    /// Features 1, 32 bits (6.3.2).
    pub const IDR1: usize = 0x04;
    /// Features 2, 32 bits (6.3.3).
    pub const IDR2: usize = 0x08;
    /// Features 3, 32 bits (6.3.4).
    pub const IDR3: usize = 0x0c;
    /// Features 4, 32 bits, the implementation's own (6.3.5).
    pub const IDR4: usize = 0x10;
    /// Features 5, 32 bits (6.3.6).
    pub const IDR5: usize = 0x14;
    /// Implementer and product, 32 bits (6.3.7).
    pub const IIDR: usize = 0x18;
    /// Revision of the architecture, 32 bits (6.3.8).
    pub const AIDR: usize = 0x1c;
    /// Control 0, 32 bits (6.3.9).
    pub const CR0: usize = 0x20;
    /// What of control 0 is in force, 32 bits (6.3.10).
    pub const CR0ACK: usize = 0x24;
    /// Control 1: attributes of table and queue accesses, 32 bits (6.3.11).
    pub const CR1: usize = 0x28;
    /// Control 2, 32 bits (6.3.12).
    pub const CR2: usize = 0x2c;
    /// Status, 32 bits (6.3.13).
    pub const STATUSR: usize = 0x40;
    /// What becomes of requests while the unit is off, 32 bits (6.3.14).
    pub const GBPA: usize = 0x44;
    /// The implementation's own attributes for them, 32 bits (6.3.15).
    pub const AGBPA: usize = 0x48;
    /// Which interrupts are on, 32 bits (6.3.16).
    pub const IRQ_CTRL: usize = 0x50;
    /// Which of them are in force, 32 bits (6.3.18).
    pub const IRQ_CTRLACK: usize = 0x54;
    /// Global errors, 32 bits (6.3.19).
    pub const GERROR: usize = 0x60;
    /// Global errors acknowledged, 32 bits (6.3.20).
    pub const GERRORN: usize = 0x64;
    /// Address of the message for global errors, 64 bits (6.3.21).
    pub const GERROR_IRQ_CFG0: usize = 0x68;
    /// Its data, 32 bits (6.3.22).
    pub const GERROR_IRQ_CFG1: usize = 0x70;
    /// Its attributes, 32 bits (6.3.23).
    pub const GERROR_IRQ_CFG2: usize = 0x74;
    /// Stream table, 64 bits (6.3.24).
    pub const STRTAB_BASE: usize = 0x80;
    /// Shape of the stream table, 32 bits (6.3.25).
    pub const STRTAB_BASE_CFG: usize = 0x88;
    /// Command queue, 64 bits (6.3.26).
    pub const CMDQ_BASE: usize = 0x90;
    /// Command queue, where software writes next, 32 bits (6.3.27).
    pub const CMDQ_PROD: usize = 0x98;
    /// Command queue, what the unit reads next, and its error, 32 bits (6.3.28).
    pub const CMDQ_CONS: usize = 0x9c;
    /// Event queue, 64 bits (6.3.29).
    pub const EVENTQ_BASE: usize = 0xa0;
    /// Address of the message for events, 64 bits (6.3.30).
    pub const EVENTQ_IRQ_CFG0: usize = 0xb0;
    /// Its data, 32 bits (6.3.31).
    pub const EVENTQ_IRQ_CFG1: usize = 0xb8;
    /// Its attributes, 32 bits (6.3.32).
    pub const EVENTQ_IRQ_CFG2: usize = 0xbc;
    /// Page request queue, 64 bits (6.3.33).
    pub const PRIQ_BASE: usize = 0xc0;
    /// Address of the message for page requests, 64 bits (6.3.34).
    pub const PRIQ_IRQ_CFG0: usize = 0xd0;
    /// Its data, 32 bits (6.3.35).
    pub const PRIQ_IRQ_CFG1: usize = 0xd8;
    /// Its attributes, 32 bits (6.3.36).
    pub const PRIQ_IRQ_CFG2: usize = 0xdc;
    /// Event queue, where the unit writes next, 32 bits; in page 1 (6.2.2).
    pub const EVENTQ_PROD: usize = 0x1_00a8;
    /// Event queue, what software reads next, 32 bits; in page 1.
    pub const EVENTQ_CONS: usize = 0x1_00ac;
    /// Page request queue, where the unit writes next, 32 bits; in page 1.
    pub const PRIQ_PROD: usize = 0x1_00c8;
    /// Page request queue, what software reads next, 32 bits; in page 1.
    pub const PRIQ_CONS: usize = 0x1_00cc;
}

bitflags! {
    /// SMMU_CR0 and SMMU_CR0ACK (6.3.9, 6.3.10).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Cr0: u32 {
        /// Translation is on; off, [`Gbpa`] decides.
        const SMMUEN = 1 << 0;
        /// Page requests are taken.
        const PRIQEN = 1 << 1;
        /// Events are recorded.
        const EVENTQEN = 1 << 2;
        /// Commands are executed.
        const CMDQEN = 1 << 3;
        /// Translated requests are checked against STE.EATS.
        const ATSCHK = 1 << 4;
        // VMW (bits 8:6) stays 0: no VMID wildcards.
        const _ = 0b111 << 6;
    }

    /// SMMU_CR2 (6.3.12).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Cr2: u32 {
        /// EL2 streams have ASIDs.
        const E2H = 1 << 0;
        /// C_BAD_STREAMID is recorded.
        const RECINVSID = 1 << 1;
        /// No part in broadcast TLB maintenance.
        const PTM = 1 << 2;
        /// Configuration errors of ATS translation requests are recorded.
        const REC_CFG_ATS = 1 << 3;
    }

    /// SMMU_IRQ_CTRL and SMMU_IRQ_CTRLACK (6.3.16, 6.3.18).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct IrqCtrl: u32 {
        /// Global errors.
        const GERROR = 1 << 0;
        /// Page requests.
        const PRIQ = 1 << 1;
        /// Events.
        const EVENTQ = 1 << 2;
    }

    /// SMMU_GERROR and SMMU_GERRORN (6.3.19, 6.3.20): an error is active where the two differ.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Gerror: u32 {
        /// A command cannot be executed: CMDQ_CONS.ERR says why. No command is until it is acknowledged.
        const CMDQ_ERR = 1 << 0;
        /// The event queue could not be written; events may be lost.
        const EVENTQ_ABT_ERR = 1 << 2;
        /// The page request queue could not be written; requests may be lost.
        const PRIQ_ABT_ERR = 1 << 3;
        /// The message of a CMD_SYNC was aborted.
        const MSI_CMDQ_ABT_ERR = 1 << 4;
        /// The message for events was aborted.
        const MSI_EVENTQ_ABT_ERR = 1 << 5;
        /// The message for page requests was aborted.
        const MSI_PRIQ_ABT_ERR = 1 << 6;
        /// The message for global errors was aborted.
        const MSI_GERROR_ABT_ERR = 1 << 7;
        /// The unit has entered service failure mode (12.3): it does nothing any more.
        const SFM_ERR = 1 << 8;
    }
}

/// Cacheability of the unit's own accesses (6.3.11): the encoding is the same in STE and CD.
pub mod cacheability {
    /// Not cacheable.
    pub const NC: u64 = 0b00;
    /// Write-back, read and write allocate.
    pub const WB: u64 = 0b01;
    /// Write-through.
    pub const WT: u64 = 0b10;
    /// Write-back, no allocation.
    pub const WB_NO_ALLOC: u64 = 0b11;
}

/// Shareability (6.3.11): the encoding is the same in STE and CD.
pub mod shareability {
    /// Not shareable.
    pub const NSH: u64 = 0b00;
    /// Outer shareable.
    pub const OSH: u64 = 0b10;
    /// Inner shareable.
    pub const ISH: u64 = 0b11;
}

/// SMMU_CR1 (6.3.11): how the unit reads its tables and queues.
///
/// ```
/// use iommu::arch::smmuv3::layout::registers::Cr1;
/// assert_eq!(Cr1::SNOOPING.0, 0xd75);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cr1(pub u32);

impl Cr1 {
    /// Inner shareable, write-back: for a unit that snoops (IDR0.COHACC).
    pub const SNOOPING: Self = Self::new(shareability::ISH, cacheability::WB, shareability::ISH, cacheability::WB);
    /// Not cacheable: for a unit that does not.
    pub const NON_CACHEABLE: Self = Self::new(shareability::OSH, cacheability::NC, shareability::OSH, cacheability::NC);

    const fn new(table_sh: u64, table_c: u64, queue_sh: u64, queue_c: u64) -> Self {
        let table = table_sh << 10 | table_c << 8 | table_c << 6;
        Self((table | queue_sh << 4 | queue_c << 2 | queue_c) as u32)
    }
}

/// SMMU_GBPA (6.3.14): what becomes of requests while SMMUEN is 0. Written with `UPDATE`, which reads
/// as 1 until the new value is in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gbpa(pub u32);

impl Gbpa {
    /// Requests are aborted.
    pub const ABORT: u32 = 1 << 20;
    /// An update is under way, or asked for.
    pub const UPDATE: u32 = 1 << 31;
    /// SHCFG: shareability as the request has it.
    pub const SHCFG_INCOMING: u32 = 0b01 << 12;
}

/// SMMU_STRTAB_BASE (6.3.24): the stream table, aligned to its size (or to 64 bytes).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StrtabBase(pub u64);

impl StrtabBase {
    /// A table at `address`, with the read-allocate hint.
    pub const fn new(address: PhysAddr) -> Self {
        Self(address.as_u64() & ADDRESS_64 | READ_ALLOCATE)
    }

    /// Where the table is said to be; lower bits than those of its size are taken for 0.
    pub const fn address(self) -> PhysAddr {
        PhysAddr::new(self.0 & ADDRESS_64)
    }
}

/// Bits 51:6.
const ADDRESS_64: u64 = (1 << 52) - (1 << 6);
/// Bits 51:5.
const ADDRESS_32: u64 = (1 << 52) - (1 << 5);
/// RA, of table and command queue; WA of the other queues.
const READ_ALLOCATE: u64 = 1 << 62;

/// Shape of a stream table (SMMU 3.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamTableFormat {
    /// One table of STEs.
    Linear,
    /// A table of level-1 descriptors; each points to `1 << split` STEs at the most.
    TwoLevel {
        /// Bits of the StreamID that select an STE in its second table: 6, 8 or 10.
        split: u8,
    },
}

/// SMMU_STRTAB_BASE_CFG (6.3.25).
///
/// ```
/// use iommu::arch::smmuv3::layout::registers::{StreamTableFormat, StrtabBaseCfg};
/// let two_level = StrtabBaseCfg::new(StreamTableFormat::TwoLevel { split: 8 }, 16);
/// assert_eq!(two_level.0, 1 << 16 | 8 << 6 | 16);
/// assert_eq!(two_level.format(), StreamTableFormat::TwoLevel { split: 8 });
/// assert_eq!(StrtabBaseCfg(1 << 16 | 7 << 6).format(), StreamTableFormat::TwoLevel { split: 6 });
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StrtabBaseCfg(pub u32);

impl StrtabBaseCfg {
    /// For `1 << log2_size` StreamIDs.
    pub const fn new(format: StreamTableFormat, log2_size: u8) -> Self {
        match format {
            StreamTableFormat::Linear => Self(log2_size as u32 & 0x3f),
            StreamTableFormat::TwoLevel { split } => {
                Self(1 << 16 | (split as u32 & 0x1f) << 6 | log2_size as u32 & 0x3f)
            }
        }
    }

    /// Binary logarithm of the StreamIDs that the table is for.
    pub const fn log2_size(self) -> u8 {
        field(self.0 as u64, 5, 0) as u8
    }

    /// The shape. Reserved values stand for a linear table, and for a split at bit 6.
    pub const fn format(self) -> StreamTableFormat {
        match (field(self.0 as u64, 17, 16), field(self.0 as u64, 10, 6)) {
            (1, split @ (8 | 10)) => StreamTableFormat::TwoLevel { split: split as u8 },
            (1, _) => StreamTableFormat::TwoLevel { split: 6 },
            _ => StreamTableFormat::Linear,
        }
    }
}

/// SMMU_CMDQ_BASE, SMMU_EVENTQ_BASE, SMMU_PRIQ_BASE (6.3.26): a queue, aligned to its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueBase(pub u64);

impl QueueBase {
    /// A queue of `1 << log2_size` entries at `address`.
    pub const fn new(address: PhysAddr, log2_size: u8) -> Self {
        Self(address.as_u64() & ADDRESS_32 | READ_ALLOCATE | log2_size as u64 & 0x1f)
    }

    /// Where it is said to be; lower bits than those of its size are taken for 0.
    pub const fn address(self) -> PhysAddr {
        PhysAddr::new(self.0 & ADDRESS_32)
    }

    /// Binary logarithm of its entries.
    pub const fn log2_size(self) -> u8 {
        field(self.0, 4, 0) as u8
    }
}

/// A position in a queue of `1 << log2_size` entries, with the bit above it that flips with every round
/// (SMMU 3.5.1).
///
/// ```
/// use iommu::arch::smmuv3::layout::registers::QueueIndex;
/// let last = QueueIndex::new(0b0111);
/// let wrapped = last.plus(1, 3);
/// assert_eq!((wrapped.0, wrapped.slot(3)), (0b1000, 0));
/// assert!(QueueIndex::is_full(wrapped, QueueIndex::new(0), 3));
/// assert_eq!(QueueIndex::used(wrapped, last, 3), 1);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueIndex(pub u32);

impl QueueIndex {
    /// The position in bits 19:0 of a PROD or CONS register.
    pub const fn new(register: u32) -> Self {
        Self(register & 0xf_ffff)
    }

    /// The entry in a queue of `1 << log2_size`.
    pub const fn slot(self, log2_size: u8) -> usize {
        (self.0 & low(log2_size)) as usize
    }

    /// So many entries further on.
    pub const fn plus(self, entries: u32, log2_size: u8) -> Self {
        Self(self.0.wrapping_add(entries) & (low(log2_size) << 1 | 1))
    }

    /// Entries between `cons` and `prod`.
    pub const fn used(prod: Self, cons: Self, log2_size: u8) -> u32 {
        prod.0.wrapping_sub(cons.0) & (low(log2_size) << 1 | 1)
    }

    /// Whether nothing lies between them.
    pub const fn is_empty(prod: Self, cons: Self, log2_size: u8) -> bool {
        Self::used(prod, cons, log2_size) == 0
    }

    /// Whether there is no room.
    pub const fn is_full(prod: Self, cons: Self, log2_size: u8) -> bool {
        Self::used(prod, cons, log2_size) > low(log2_size)
    }
}

/// A number with the low `bits` bits set (at most 31 of them).
const fn low(bits: u8) -> u32 {
    (1u32 << (bits & 31)).wrapping_sub(1)
}

/// Bits of CMDQ_CONS that are always zero (6.3.28).
pub const CONS_RESERVED: u32 = 1 << 31 | 0xf << 20;

/// Why the command at CMDQ_CONS was not executed (SMMU 7.1, CMDQ_CONS.ERR).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandError {
    /// CERROR_NONE.
    None,
    /// CERROR_ILL: the command is not one, or has values that are not allowed.
    Illegal,
    /// CERROR_ABT: the command could not be read.
    Abort,
    /// CERROR_ATC_INV_SYNC: a device did not answer a CMD_ATC_INV before this CMD_SYNC.
    AtcInvSync,
    /// Any other number.
    Reserved(u8),
}

impl CommandError {
    /// The error in CMDQ_CONS (6.3.28).
    pub const fn of_cons(register: u32) -> Self {
        match field(register as u64, 30, 24) {
            0 => Self::None,
            1 => Self::Illegal,
            2 => Self::Abort,
            3 => Self::AtcInvSync,
            other => Self::Reserved(other as u8),
        }
    }

    /// CMDQ_CONS with this error and the position `cons`.
    pub const fn with_cons(self, cons: QueueIndex) -> u32 {
        let code = match self {
            Self::None => 0,
            Self::Illegal => 1,
            Self::Abort => 2,
            Self::AtcInvSync => 3,
            Self::Reserved(other) => other as u64,
        };
        with_field(cons.0 as u64, 30, 24, code) as u32
    }
}

/// Bit 31 of EVENTQ_PROD (OVFLG) and EVENTQ_CONS (OVACKFLG): where they differ, events were lost
/// (SMMU 3.5.1, 7.4).
pub const OVERFLOW_FLAG: u32 = 1 << 31;

/// Attributes of a message (6.3.23, 6.3.32): device-nGnRE memory.
pub const MSI_DEVICE_NGNRE: u32 = 0x1;
