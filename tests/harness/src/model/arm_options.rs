//! What the unit of the Arm model is able to do beyond what QEMU's can be told.

use std::time::Duration;

use iommu::PhysRange;
use iommu::arch::smmuv3::device::DeviceConfig;
use iommu::arch::smmuv3::layout::Identification;
use iommu::arch::smmuv3::layout::identification::{BreakBeforeMake, Idr0, Idr3, StallModel, output_code};

use crate::observed::Adversary;
use crate::options::{SmmuGranule, SmmuOptions, SmmuStages};

/// Options that only the model of an Arm machine has. Without any, its unit can do what QEMU's can.
///
/// ```
/// use iommu::arch::smmuv3::layout::identification::Idr0;
/// use iommu_harness::{ArmModelOptions, SmmuOptions};
/// let options = ArmModelOptions::new().without_idr0(Idr0::COHACC).substream_id_bits(20).queues(3, 2).output_bits(40);
/// let identification = options.config(&SmmuOptions::default()).identification;
/// assert!(!identification.idr0().contains(Idr0::COHACC) && identification.idr0().contains(Idr0::S1P));
/// assert_eq!((identification.command_queue_log2(), identification.event_queue_log2()), (3, 2));
/// ```
#[derive(Clone, Debug)]
pub struct ArmModelOptions {
    choices: Choices,
    idr0: (Idr0, Idr0),
    idr3: (Idr3, Idr3),
    break_before_make: BreakBeforeMake,
    stalls: (StallModel, u16),
    stream_id_bits: u8,
    substream_id_bits: u8,
    queues: (u8, u8),
    output_bits: u8,
    wide_input: bool,
    patience: Duration,
    reserved: Option<Reserved>,
    adversary: Option<Adversary>,
}

/// Who decides what the specification leaves open.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choices {
    /// Everything happens in its order, and caches keep all that they may.
    InOrder,
    /// A seed.
    Seeded(u64),
}

/// Memory that firmware has streams use: it is mapped one to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reserved {
    /// The first of the streams, and how many there are.
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) range: PhysRange,
}

impl Default for ArmModelOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ArmModelOptions {
    /// What QEMU 10 has: coherent, two-level stream tables, 16 bits of StreamID, ASID and VMID, no substreams,
    /// 44-bit physical addresses, range invalidation, no break-before-make, queues as long as can be.
    pub const fn new() -> Self {
        Self {
            choices: Choices::Seeded(1),
            idr0: (Idr0::empty(), Idr0::empty()),
            idr3: (Idr3::empty(), Idr3::empty()),
            break_before_make: BreakBeforeMake::Unneeded,
            stalls: (StallModel::TerminateOnly, 0),
            stream_id_bits: 16,
            substream_id_bits: 0,
            queues: (19, 19),
            output_bits: 44,
            wide_input: false,
            patience: Duration::ZERO,
            reserved: None,
            adversary: None,
        }
    }

    /// Decides what the unit does next, how far it gets between two looks of the driver, and what it forgets.
    /// The same seed gives the same run, as long as one thread drives.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.choices = Choices::Seeded(seed);
        self
    }

    /// The unit does everything in order, and forgets nothing by itself.
    pub const fn in_order(mut self) -> Self {
        self.choices = Choices::InOrder;
        self
    }

    /// Sets flags of IDR0: [`Idr0::CD2L`], [`Idr0::ATS`], [`Idr0::MSI`].
    pub const fn with_idr0(mut self, flags: Idr0) -> Self {
        self.idr0.0 = self.idr0.0.union(flags);
        self
    }

    /// Clears flags of IDR0: [`Idr0::COHACC`], [`Idr0::ST_TWO_LEVEL`], [`Idr0::ASID16`], [`Idr0::VMID16`].
    pub const fn without_idr0(mut self, flags: Idr0) -> Self {
        self.idr0.1 = self.idr0.1.union(flags);
        self
    }

    /// Sets flags of IDR3.
    pub const fn with_idr3(mut self, flags: Idr3) -> Self {
        self.idr3.0 = self.idr3.0.union(flags);
        self
    }

    /// Clears flags of IDR3: [`Idr3::RIL`].
    pub const fn without_idr3(mut self, flags: Idr3) -> Self {
        self.idr3.1 = self.idr3.1.union(flags);
        self
    }

    /// How live blocks may be replaced (IDR3.BBML).
    pub const fn break_before_make(mut self, level: BreakBeforeMake) -> Self {
        self.break_before_make = level;
        self
    }

    /// Whether requests that fault can wait, and how many (IDR0.STALL_MODEL, IDR5.STALL_MAX).
    pub const fn stalls(mut self, model: StallModel, most: u16) -> Self {
        self.stalls = (model, most);
        self
    }

    /// How long a device waits for the answer to a request of its that waits, before it gives up. Without, it
    /// waits for nothing: on one thread nobody could answer.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Bits of a StreamID (IDR1.SIDSIZE).
    pub const fn stream_id_bits(mut self, bits: u8) -> Self {
        self.stream_id_bits = bits;
        self
    }

    /// Bits of a SubstreamID (IDR1.SSIDSIZE), at most 20.
    pub const fn substream_id_bits(mut self, bits: u8) -> Self {
        self.substream_id_bits = bits;
        self
    }

    /// Binary logarithms of the most entries of the command queue and of the event queue, at most 19 each.
    pub const fn queues(mut self, commands: u8, events: u8) -> Self {
        self.queues = (commands, events);
        self
    }

    /// Bits of a physical address (IDR5.OAS): 32, 36, 40, 42, 44, 48 or 52.
    pub const fn output_bits(mut self, bits: u8) -> Self {
        self.output_bits = bits;
        self
    }

    /// Addresses of 52 bits in stage 1, where its tables can hold them (IDR5.VAX).
    pub const fn wide_input(mut self) -> Self {
        self.wide_input = true;
        self
    }

    /// `count` streams from `first` on use this memory from before the kernel on (an RMR node of the IORT).
    pub const fn reserved_memory(mut self, first: u32, count: u32, range: PhysRange) -> Self {
        self.reserved = Some(Reserved { first, count, range });
        self
    }

    /// The unit sees of what the driver writes only what barriers, and cleans where it does not snoop, have
    /// made visible: which of what it may see, `adversary` decides. The platform knows of violations
    /// ([`MachinePlatform::observed`](crate::MachinePlatform::observed)). Needs `--cfg observed`.
    pub const fn observed(mut self, adversary: Adversary) -> Self {
        self.adversary = Some(adversary);
        self
    }

    pub(super) const fn adversary(&self) -> Option<Adversary> {
        self.adversary
    }

    pub(super) const fn choices(&self) -> Choices {
        self.choices
    }

    pub(super) const fn waits(&self) -> Duration {
        self.patience
    }

    pub(super) const fn reserved(&self) -> Option<&Reserved> {
        self.reserved.as_ref()
    }

    /// How the unit is made, with the options that QEMU has too.
    pub fn config(&self, smmu: &SmmuOptions) -> DeviceConfig {
        let mut idr0 = Idr0::TTF_AARCH64 | Idr0::COHACC | Idr0::ASID16 | Idr0::TERM_MODEL | Idr0::ST_TWO_LEVEL;
        let stages = smmu.stages.unwrap_or(SmmuStages::Nested);
        if stages != SmmuStages::Second {
            idr0 |= Idr0::S1P;
        }
        if stages != SmmuStages::First {
            idr0 |= Idr0::S2P | Idr0::VMID16;
        }
        let idr0 = (idr0 | self.idr0.0).difference(self.idr0.1);
        let stall_model = match self.stalls.0 {
            StallModel::Configurable => 0,
            StallModel::TerminateOnly => 1,
            StallModel::StallOnly => 2,
            StallModel::Reserved => 3,
        };
        let idr3 = (Idr3::RIL | Idr3::XNX | Idr3::HAD | self.idr3.0).difference(self.idr3.1);
        let bbml = match self.break_before_make {
            BreakBeforeMake::Required => 0,
            BreakBeforeMake::NoTranslate => 1,
            BreakBeforeMake::Unneeded => 2,
        };
        let granules = match smmu.granule {
            None => 0b111,
            Some(SmmuGranule::Size4K) => 0b001,
            Some(SmmuGranule::Size16K) => 0b010,
            Some(SmmuGranule::Size64K) => 0b100,
        };
        let identification = Identification {
            // TTENDIAN: little.
            idr0: idr0.bits() | 2 << 21 | stall_model << 24,
            idr1: u32::from(self.queues.0) << 21
                | u32::from(self.queues.1) << 16
                | u32::from(self.substream_id_bits) << 6
                | u32::from(self.stream_id_bits),
            idr3: idr3.bits() | bbml << 11,
            idr5: u32::from(self.stalls.1) << 16
                | u32::from(self.wide_input) << 10
                | granules << 4
                | output_code(self.output_bits) as u32,
            // SMMUv3.2, which is the first with RIL and BBML.
            aidr: 2,
            ..Identification::default()
        };
        DeviceConfig { identification, ..DeviceConfig::default() }
    }
}

#[cfg(test)]
mod tests {
    use iommu::arch::smmuv3::layout::identification::{Idr0, StallModel};

    use super::ArmModelOptions;
    use crate::options::{SmmuGranule, SmmuOptions, SmmuStages};

    /// The registers that QEMU 10 shows, but for a queue of page requests, which it does not have either.
    #[test]
    fn it_can_do_what_qemu_can() {
        let qemu = |options| {
            let found = ArmModelOptions::new().config(&options).identification;
            (found.idr0, found.idr1, found.idr3, found.idr5)
        };
        assert_eq!(qemu(SmmuOptions::default()), (0x0d44_101b, 0x0273_0010, 0x1414, 0x74));
        let first = SmmuOptions { stages: Some(SmmuStages::First), granule: Some(SmmuGranule::Size16K) };
        assert_eq!(qemu(first), (0x0d40_101a, 0x0273_0010, 0x1414, 0x24));
    }

    #[test]
    fn fields_are_where_they_belong() {
        let options = ArmModelOptions::new().stalls(StallModel::StallOnly, 9).queues(3, 2).substream_id_bits(20);
        let options = options.output_bits(52).wide_input().stream_id_bits(12).with_idr0(Idr0::CD2L);
        let found = options.config(&SmmuOptions::default()).identification;
        assert_eq!((found.stall_model(), found.stall_max()), (StallModel::StallOnly, 9));
        assert_eq!((found.command_queue_log2(), found.event_queue_log2()), (3, 2));
        assert_eq!((found.substream_id_bits(), found.stream_id_bits()), (20, 12));
        assert_eq!((found.output_bits(), found.widest_input_bits()), (Some(52), 52));
        assert!(found.idr0().contains(Idr0::CD2L));
    }
}
