//! What a unit says that it can do (SMMU 6.3.1 to 6.3.8).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use bitflags::bitflags;

use super::{Granule, field};

bitflags! {
    /// Single bits of SMMU_IDR0 (6.3.1); fields have methods of [`Identification`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Idr0: u32 {
        /// Stage 2.
        const S2P = 1 << 0;
        /// Stage 1.
        const S1P = 1 << 1;
        /// AArch64 translation tables (the upper bit of TTF).
        const TTF_AARCH64 = 1 << 3;
        /// The unit's own accesses snoop the processor's caches.
        const COHACC = 1 << 4;
        /// Broadcast TLB maintenance.
        const BTM = 1 << 5;
        /// The lower bit of HTTU: alone, hardware sets access flags.
        const HTTU_ACCESS = 1 << 6;
        /// The upper bit of HTTU: hardware sets access flags and dirty state.
        const HTTU_DIRTY = 1 << 7;
        /// EL2 stage 1.
        const HYP = 1 << 9;
        /// PCIe ATS.
        const ATS = 1 << 10;
        /// Split-stage ATS is *not* there.
        const NS1ATS = 1 << 11;
        /// ASIDs of 16 bits.
        const ASID16 = 1 << 12;
        /// Message-signalled interrupts.
        const MSI = 1 << 13;
        /// Completion by WFE event.
        const SEV = 1 << 14;
        /// Page requests.
        const PRI = 1 << 16;
        /// VMIDs of 16 bits.
        const VMID16 = 1 << 18;
        /// Two-level CD tables.
        const CD2L = 1 << 19;
        /// Terminated requests cannot be answered with zeroes (TERM_MODEL): always an abort.
        const TERM_MODEL = 1 << 26;
        /// Two-level stream tables (the lower bit of ST_LEVEL).
        const ST_TWO_LEVEL = 1 << 27;
    }

    /// Single bits of SMMU_IDR1 (6.3.2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Idr1: u32 {
        /// Memory types of requests can be overridden.
        const ATTR_TYPES_OVR = 1 << 27;
        /// Permissions of requests can be overridden.
        const ATTR_PERMS_OVR = 1 << 26;
        /// Base addresses of queues and tables are relative.
        const REL = 1 << 28;
        /// Base addresses of queues are fixed.
        const QUEUES_PRESET = 1 << 29;
        /// Base addresses of tables are fixed.
        const TABLES_PRESET = 1 << 30;
    }

    /// Single bits of SMMU_IDR3 (6.3.4).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Idr3: u32 {
        /// Hierarchical attributes can be disabled.
        const HAD = 1 << 2;
        /// Responses to page requests that the unit makes itself have their SubstreamID.
        const PPS = 1 << 5;
        /// Execute-never bits of stage 2 tell privileged from unprivileged.
        const XNX = 1 << 4;
        /// Stage 2 can force write-back.
        const FWB = 1 << 8;
        /// Small translation tables.
        const STT = 1 << 9;
        /// Range invalidation, and level hints.
        const RIL = 1 << 10;
        /// E0PD.
        const E0PD = 1 << 13;
        /// Enhanced PAN.
        const EPAN = 1 << 17;
    }
}

/// What a block may be replaced by while it is live (SMMU 3.21.1.3, IDR3.BBML).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BreakBeforeMake {
    /// Level 0: nothing; it must be removed first.
    Required,
    /// Level 1: with nT set in between.
    NoTranslate,
    /// Level 2: anything that translates alike.
    Unneeded,
}

/// Whether a faulting request can wait (SMMU 3.12, IDR0.STALL_MODEL).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StallModel {
    /// It can wait or be terminated, as the CD or STE says.
    Configurable,
    /// It is terminated.
    TerminateOnly,
    /// It waits.
    StallOnly,
    /// The reserved value.
    Reserved,
}

/// The identification registers, as they were read.
///
/// ```
/// use iommu::arch::smmuv3::layout::{Granule, Identification};
/// use iommu::arch::smmuv3::layout::identification::{Idr0, StallModel};
/// // QEMU 10.
/// let idr = Identification { idr0: 0x0d44_101b, idr1: 0x0273_0010, idr3: 0x1414, idr5: 0x74, ..Default::default() };
/// assert!(idr.idr0().contains(Idr0::S1P | Idr0::S2P | Idr0::COHACC));
/// assert_eq!((idr.stream_id_bits(), idr.command_queue_log2(), idr.output_bits()), (16, 19, Some(44)));
/// assert_eq!(idr.stall_model(), StallModel::TerminateOnly);
/// assert!(idr.has_granule(Granule::Size16K));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identification {
    /// SMMU_IDR0.
    pub idr0: u32,
    /// SMMU_IDR1.
    pub idr1: u32,
    /// SMMU_IDR2.
    pub idr2: u32,
    /// SMMU_IDR3.
    pub idr3: u32,
    /// SMMU_IDR4.
    pub idr4: u32,
    /// SMMU_IDR5.
    pub idr5: u32,
    /// SMMU_IIDR.
    pub iidr: u32,
    /// SMMU_AIDR.
    pub aidr: u32,
}

impl Identification {
    /// Flags of SMMU_IDR0.
    pub const fn idr0(&self) -> Idr0 {
        Idr0::from_bits_truncate(self.idr0)
    }

    /// Flags of SMMU_IDR1.
    pub const fn idr1(&self) -> Idr1 {
        Idr1::from_bits_truncate(self.idr1)
    }

    /// Flags of SMMU_IDR3.
    pub const fn idr3(&self) -> Idr3 {
        Idr3::from_bits_truncate(self.idr3)
    }

    /// IDR0.STALL_MODEL.
    pub const fn stall_model(&self) -> StallModel {
        match field(self.idr0 as u64, 25, 24) {
            0 => StallModel::Configurable,
            1 => StallModel::TerminateOnly,
            2 => StallModel::StallOnly,
            _ => StallModel::Reserved,
        }
    }

    /// IDR0.TTENDIAN: whether little-endian translation tables are possible (mixed, or little only).
    pub const fn has_little_endian_tables(&self) -> bool {
        matches!(field(self.idr0 as u64, 22, 21), 0b00 | 0b10)
    }

    /// Bits of a StreamID (IDR1.SIDSIZE), at most 32.
    pub const fn stream_id_bits(&self) -> u8 {
        at_most(field(self.idr1 as u64, 5, 0), 32)
    }

    /// Bits of a SubstreamID (IDR1.SSIDSIZE), at most 20; 0 without substreams.
    pub const fn substream_id_bits(&self) -> u8 {
        at_most(field(self.idr1 as u64, 10, 6), 20)
    }

    /// Binary logarithm of the most page requests in their queue (IDR1.PRIQS), at most 19.
    pub const fn pri_queue_log2(&self) -> u8 {
        at_most(field(self.idr1 as u64, 15, 11), 19)
    }

    /// Binary logarithm of the most events in their queue (IDR1.EVENTQS), at most 19.
    pub const fn event_queue_log2(&self) -> u8 {
        at_most(field(self.idr1 as u64, 20, 16), 19)
    }

    /// Binary logarithm of the most commands in their queue (IDR1.CMDQS), at most 19.
    pub const fn command_queue_log2(&self) -> u8 {
        at_most(field(self.idr1 as u64, 25, 21), 19)
    }

    /// IDR3.BBML.
    pub const fn break_before_make(&self) -> BreakBeforeMake {
        match field(self.idr3 as u64, 12, 11) {
            1 => BreakBeforeMake::NoTranslate,
            2 => BreakBeforeMake::Unneeded,
            _ => BreakBeforeMake::Required,
        }
    }

    /// Whether pages can be of this granule (IDR5.GRAN*).
    pub const fn has_granule(&self, granule: Granule) -> bool {
        let bit = match granule {
            Granule::Size4K => 4,
            Granule::Size16K => 5,
            Granule::Size64K => 6,
        };
        self.idr5 >> bit & 1 != 0
    }

    /// Bits of an output address (IDR5.OAS); `None` for the reserved value.
    pub const fn output_bits(&self) -> Option<u8> {
        output_bits_of(field(self.idr5 as u64, 2, 0))
    }

    /// Whether CD.DS and STE.S2DS are there: addresses of 52 bits also with granules of 4 KiB and 16 KiB
    /// (IDR5.DS).
    pub const fn has_wide_small_granules(&self) -> bool {
        self.idr5 >> 7 & 1 != 0
    }

    /// Bits of an input address of stage 1 without CD.DS: 52 with the granule of 64 KiB if IDR5.VAX says
    /// so, else 48.
    pub const fn input_bits(&self, granule: Granule) -> u8 {
        match granule {
            Granule::Size64K => self.widest_input_bits(),
            _ => 48,
        }
    }

    /// Bits of an input address of stage 1 where the tables can hold it: 52 if IDR5.VAX says so, else 48.
    pub const fn widest_input_bits(&self) -> u8 {
        match field(self.idr5 as u64, 11, 10) {
            1 | 2 => 52,
            _ => 48,
        }
    }

    /// The most requests that can wait (IDR5.STALL_MAX).
    pub const fn stall_max(&self) -> u16 {
        field(self.idr5 as u64, 31, 16) as u16
    }

    /// Minor revision of the architecture: 0 for SMMUv3.0 and so on (AIDR.ArchMinorRev).
    pub const fn minor_revision(&self) -> u8 {
        field(self.aidr as u64, 3, 0) as u8
    }

    /// Implementer, product, variant and revision (6.3.7).
    pub const fn implementation(&self) -> Implementation {
        Implementation {
            implementer: field(self.iidr as u64, 11, 0) as u16,
            revision: field(self.iidr as u64, 15, 12) as u8,
            variant: field(self.iidr as u64, 19, 16) as u8,
            product: field(self.iidr as u64, 31, 20) as u16,
        }
    }
}

/// Who made the unit (SMMU_IIDR, 6.3.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Implementation {
    /// JEP106 code; 0x43b is Arm.
    pub implementer: u16,
    /// Minor revision.
    pub revision: u8,
    /// Major revision.
    pub variant: u8,
    /// Product.
    pub product: u16,
}

/// Bits of an address as OAS, CD.IPS and STE.S2PS say it; `None` for the reserved value.
pub const fn output_bits_of(code: u64) -> Option<u8> {
    match code {
        0 => Some(32),
        1 => Some(36),
        2 => Some(40),
        3 => Some(42),
        4 => Some(44),
        5 => Some(48),
        6 => Some(52),
        _ => None,
    }
}

/// The code in CD.IPS and STE.S2PS for the widest address that has at most `bits` bits (at least 32).
pub const fn output_code(bits: u8) -> u64 {
    match bits {
        0..36 => 0,
        36..40 => 1,
        40..42 => 2,
        42..44 => 3,
        44..48 => 4,
        48..52 => 5,
        _ => 6,
    }
}

const fn at_most(value: u64, most: u8) -> u8 {
    if value > most as u64 { most } else { value as u8 }
}
