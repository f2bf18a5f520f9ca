//! What versions of QEMU do otherwise than the specification, named in one place.
//!
//! Quirks concern the harness and what a test may expect. They never bend the driver under test.

use std::fmt;

use iommu::ops::Stage;

use crate::devices::Access;

/// The version of a QEMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct QemuVersion {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number.
    pub patch: u16,
}

impl QemuVersion {
    /// The version with these numbers.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// Finds the version in what `--version` prints.
    ///
    /// ```
    /// use iommu_harness::QemuVersion;
    /// let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)";
    /// assert_eq!(QemuVersion::parse(text), Some(QemuVersion::new(7, 2, 22)));
    /// ```
    pub fn parse(text: &str) -> Option<Self> {
        let numbers = text.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut numbers = numbers.split('.').map(|number| number.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Self { major, minor, patch: numbers.next().flatten().unwrap_or(0) })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// How the units and the devices of one version behave.
///
/// True of every version known: no unit caches what is not there, so that a missing flush after a first mapping
/// cannot be seen. A DMA that fails is split into accesses of 4 bytes at most, each of which is refused and told
/// anew, so that only an aligned access of 4 bytes ([`DmaDevice::poke`](crate::DmaDevice::poke)) gives exactly one
/// record. VT-d has one fault record, and repeated faults of one source are dropped while it is pending; the SMMUv3
/// tells of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct QemuQuirks {
    /// Offset in edu's buffer that no transfer may reach, or QEMU ends: 4096 itself may not be
    /// touched by old versions, which check one byte too early.
    pub edu_buffer_end: u64,
    /// Address width of the unit when the options do not say.
    pub vtd_default_address_bits: u8,
    /// Offsets of 32-bit registers at which a 64-bit write ends QEMU. (A driver that follows the
    /// specification makes none.)
    pub vtd_fatal_quad_writes: &'static [usize],
    /// Whether a wait descriptor that both writes status and interrupts ends QEMU.
    pub vtd_wait_with_both_is_fatal: bool,
    /// Whether the PASID field of a fault record is garbage in legacy mode, where it has no meaning.
    pub vtd_fault_pasid_is_garbage: bool,
    /// Whether PASID-cache and PASID-based IOTLB invalidations are accepted and ignored. Other versions
    /// do what they say, and refuse them on a unit without scalable mode.
    pub vtd_ignores_pasid_invalidations: bool,
    /// The reason that is recorded where the PASID entry is absent: 0x59, says the specification.
    pub vtd_absent_pasid_reason: u32,
    /// Whether the second stage records legacy mode's reasons in scalable mode too: 4, 5 and 6 instead
    /// of 0x79, 0x84, 0x85 and 0x86.
    pub vtd_second_stage_has_legacy_reasons: bool,
    /// Whether there is a first stage ([`VtdOptions::first_stage`](crate::VtdOptions::first_stage)).
    pub vtd_has_first_stage: bool,
    /// Whether a fault record tells bits of the address beyond the width of the unit, which are reserved
    /// there.
    pub vtd_records_bits_beyond_the_width: bool,
    /// Whether a request is dropped without a record when the IOTLB has a translation that does not
    /// permit it: a write where a read-only page is cached, a read where a write-only one is.
    pub vtd_drops_what_a_cached_entry_forbids: bool,
    /// Whether accesses of 64 bits to registers of 32 read zeros: the bus makes two of each access.
    pub smmu_registers_are_narrow: bool,
    /// Whether there are stage 2 and nesting ([`SmmuOptions::stages`](crate::SmmuOptions::stages)).
    pub smmu_has_second_stage: bool,
    /// The machine on which the stages can be chosen; the newest has all of them, whatever is asked for.
    pub smmu_machine_of_chosen_stages: &'static str,
    /// Whether an event that finds the queue full is an error of the queue (GERROR.EVENTQ_ABT_ERR) instead of an
    /// overflow (EVENTQ_PROD.OVFLG).
    pub smmu_full_event_queue_is_an_abort: bool,
    /// Whether the unit keeps to a stream table of two levels once it had one, until reset.
    pub smmu_two_levels_stay: bool,
    /// Whether a stream table entry with stage 2 and without S2AA64 ends QEMU when it is used.
    pub smmu_aarch32_stage_2_is_fatal: bool,
    /// Whether a context descriptor with the reserved output size IPS = 7 ends QEMU when it is used.
    pub smmu_reserved_output_size_is_fatal: bool,
    /// Whether a stage 2 that begins with several tables side by side is walked through the first of them only.
    pub smmu_finds_only_the_first_of_concatenated_tables: bool,
    /// The stage for which nothing is recorded of an address that is too wide: more than 48 bits for stage 1, more
    /// than an output address has for stage 2. It is refused all the same.
    pub smmu_loses_wide_addresses_of: Option<Stage>,
    /// Whether a request is dropped without a record when the TLB has a translation of stage 2 that does not permit
    /// it: a read where a write-only page is cached, and a write, which is taken for a fault of stage 1.
    pub smmu_drops_what_a_cached_entry_of_stage_2_forbids: bool,
    /// Whether GBPA can make a unit that is off abort what passes it; elsewhere it reads as zero.
    pub smmu_has_global_abort: bool,
}

impl QemuQuirks {
    /// The quirks of `version`. Measured were 7.2.22 and 10.0.2, and in parts a development version,
    /// 10.2.50; what lies between is taken for the older.
    pub fn of(version: QemuVersion) -> Self {
        let before_10 = version < QemuVersion::new(10, 0, 0);
        Self {
            edu_buffer_end: if before_10 { 4095 } else { 4096 },
            vtd_default_address_bits: if before_10 { 39 } else { 48 },
            vtd_fatal_quad_writes: &[0x38, 0xa0, 0xa8],
            vtd_wait_with_both_is_fatal: version < QemuVersion::new(10, 2, 50),
            vtd_fault_pasid_is_garbage: true,
            vtd_ignores_pasid_invalidations: before_10,
            vtd_absent_pasid_reason: match version {
                _ if before_10 => 0x58,
                _ if version < QemuVersion::new(10, 2, 50) => 0x5b,
                _ => 0x59,
            },
            vtd_second_stage_has_legacy_reasons: true,
            vtd_has_first_stage: !before_10,
            vtd_records_bits_beyond_the_width: true,
            vtd_drops_what_a_cached_entry_forbids: true,
            smmu_registers_are_narrow: true,
            smmu_has_second_stage: !before_10,
            smmu_machine_of_chosen_stages: "virt-9.1",
            smmu_full_event_queue_is_an_abort: true,
            smmu_two_levels_stay: true,
            smmu_aarch32_stage_2_is_fatal: !before_10,
            smmu_reserved_output_size_is_fatal: !before_10,
            smmu_finds_only_the_first_of_concatenated_tables: true,
            smmu_loses_wide_addresses_of: Some(if before_10 { Stage::First } else { Stage::Second }),
            smmu_drops_what_a_cached_entry_of_stage_2_forbids: true,
            smmu_has_global_abort: !before_10,
        }
    }

    /// The reason that is recorded where the specification says `reason`, for a request that `stage`
    /// translates (VT-d 7.1.3).
    pub fn vtd_reason(&self, stage: Stage, access: Access, reason: u32) -> u32 {
        let legacy = stage == Stage::Second && self.vtd_second_stage_has_legacy_reasons;
        match (reason, access) {
            (0x59, _) => self.vtd_absent_pasid_reason,
            (0x84, _) if legacy => 4,
            (0x79 | 0x85, Access::Write) if legacy => 5,
            (0x79 | 0x86, Access::Read) if legacy => 6,
            _ => reason,
        }
    }
}
