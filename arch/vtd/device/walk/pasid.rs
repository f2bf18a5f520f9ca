//! The PASID directory and the PASID table (VT-d 9.5 and 9.6).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::context::{beyond_domains, has_width, permission_bits, snoop_of_tables};
use super::entry::{beyond_host, low_bits};
use super::{FirstStageRoot, Mode, SecondStageRoot, blocked, qualified};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::{Blocked, DeviceConfig, Host, Recorded, Snoop};
use crate::arch::vtd::layout::scalable::{
    FirstStageLevels, PASID_INDEX_BITS, PASID_WORDS, PasidDirectoryEntry, PasidEntry, PasidTranslation,
    ScalableContextEntry,
};
use crate::arch::vtd::layout::{AddressWidth, Cap, DomainId, Ecap};

/// What requests of a PASID go through.
///
/// ```
/// use iommu::arch::vtd::device::walk::Stages;
/// assert_ne!(format!("{:?}", Stages::PassThrough), "");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stages {
    /// The first stage.
    First(FirstStageRoot),
    /// The second stage.
    Second(SecondStageRoot),
    /// The first stage, whose addresses go through the second.
    Nested(FirstStageRoot, SecondStageRoot),
    /// Nothing.
    PassThrough,
}

/// What the tables say of a PASID: what the PASID cache holds (VT-d 6.2.4).
///
/// ```
/// use iommu::arch::vtd::device::walk::{PasidInfo, Stages};
/// use iommu::arch::vtd::device::Recorded;
/// use iommu::arch::vtd::layout::scalable::PasidEntry;
/// use iommu::arch::vtd::layout::{AddressWidth, DomainId};
/// let entry = PasidEntry::pass_through(AddressWidth::Bits48, DomainId::new(7));
/// let info = PasidInfo { entry, stages: Stages::PassThrough, recorded: Recorded::Yes };
/// assert_eq!(info.domain(), DomainId::new(7));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidInfo {
    /// The entry, which is present and valid.
    pub entry: PasidEntry,
    /// What requests go through, from the entry.
    pub stages: Stages,
    /// How qualified faults are recorded, by all entries on the way: context, directory, table.
    pub recorded: Recorded,
}

impl PasidInfo {
    /// DID.
    pub const fn domain(&self) -> DomainId {
        self.entry.domain_id()
    }
}

/// Finds the entry of a PASID. `root` is RTADDR as SRTP took it over, `context` an entry that
/// [`context`](super::context()) found.
///
/// Reads at most five times: one quadword, four pairs.
///
/// # Errors
/// SCT.7, SPD and SPT.1 to SPT.4 of Table 30 (7.1.3).
pub fn pasid<H: Host + ?Sized>(
    host: &H,
    config: &DeviceConfig,
    root: u64,
    context: &ScalableContextEntry,
    pasid: u32,
) -> Result<PasidInfo, Blocked> {
    let snoop = snoop_of_tables(config);
    let recorded = qualified(Recorded::Yes, context.suppresses_faults());
    let unqualified = |reason| blocked(reason, Recorded::Yes);

    let index = pasid.wrapping_shr(PASID_INDEX_BITS);
    if index >= context.directory_entries() {
        return Err(blocked(0x46, recorded)); // SCT.7
    }
    // A directory is larger than the 4096 bytes that it is aligned to.
    let slot = PhysAddr::new(context.directory().as_u64().wrapping_add(u64::from(index) << 3));
    let word = host.read(slot, snoop).map_err(|_| unqualified(0x50))?; // SPD.1
    let directory = PasidDirectoryEntry { word };
    let recorded = qualified(recorded, directory.suppresses_faults());
    let table = directory.table().ok_or(blocked(0x51, recorded))?; // SPD.2
    if directory.has_reserved_bits() || word & beyond_host(config) != 0 {
        return Err(blocked(0x52, recorded)); // SPD.3
    }

    let slot = table.as_u64() | u64::from(pasid & low_bits(PASID_INDEX_BITS) as u32) << 6;
    let pair = |offset: u64| {
        host.read_pair(PhysAddr::new(slot | offset), snoop).map_err(|_| unqualified(0x58)) // SPT.1
    };
    let [[w0, w1], [w2, w3], [w4, w5], [w6, w7]] = [pair(0)?, pair(16)?, pair(32)?, pair(48)?];
    let entry = PasidEntry { words: [w0, w1, w2, w3, w4, w5, w6, w7] };
    let recorded = qualified(recorded, entry.suppresses_faults());
    if !entry.is_present() {
        return Err(blocked(0x59, recorded)); // SPT.2
    }
    if entry.has_reserved_bits() || has_reserved_fields(config, &entry.words) {
        return Err(blocked(0x5a, recorded)); // SPT.3
    }
    let stages = stages(config, root, &entry, recorded).ok_or(blocked(0x5b, recorded))?; // SPT.4
    Ok(PasidInfo { entry, stages, recorded })
}

/// What the entry says requests go through; `None` when it says nothing that the unit can do (SPT.4).
fn stages(config: &DeviceConfig, root: u64, entry: &PasidEntry, recorded: Recorded) -> Option<Stages> {
    let (cap, ecap) = (config.cap, config.ecap);
    let snoop = if entry.snoops_page_walks() { Snoop::Yes } else { Snoop::No };
    // FSPM is not ignored for any kind of entry (9.6), SPT.4.3.
    let levels = entry.first_stage_levels()?;
    if levels == FirstStageLevels::Five && !cap.contains(Cap::FS5LP) {
        return None;
    }
    let first = FirstStageRoot {
        table: entry.first_stage_table(),
        levels,
        snoop,
        protects_writes: entry.protects_writes(),
        keeps_extended_accessed: entry.keeps_extended_accessed(),
        recorded,
    };
    // SPT.4.1. AW counts only where the second stage is walked.
    let second = |width: AddressWidth| SecondStageRoot {
        mode: Mode::Scalable,
        table: entry.second_stage_table(),
        width,
        snoop,
        permissions: permission_bits(config, root),
        keeps_dirty: entry.keeps_second_stage_dirty(),
        recorded,
    };
    let second = entry.width().filter(|width| has_width(cap, *width)).map(second);
    // SPT.4.2.
    match entry.translation()? {
        PasidTranslation::FirstStage if ecap.contains(Ecap::FSTS) => Some(Stages::First(first)),
        PasidTranslation::SecondStage if ecap.contains(Ecap::SSTS) => second.map(Stages::Second),
        PasidTranslation::Nested if ecap.contains(Ecap::NEST) => {
            // SPT.4.4: the top first-stage table is in the guest.
            second
                .filter(|second| first.table.as_u64() <= second.last(config))
                .map(|second| Stages::Nested(first, second))
        }
        PasidTranslation::PassThrough if ecap.contains(Ecap::PT) => Some(Stages::PassThrough),
        _ => None,
    }
}

/// Whether a field is set that is reserved on units without its capability (VT-d 9.6), or names a table
/// beyond the host. Host permission tables are not here on any unit.
fn has_reserved_fields(config: &DeviceConfig, words: &[u64; PASID_WORDS]) -> bool {
    const AW: u64 = 7 << 2;
    const SSADE: u64 = 1 << 9;
    const TABLE: u64 = !0xfff;
    const PWSNP: u64 = 1 << 23;
    const PGSNP: u64 = 1 << 24;
    const CD_EMTE: u64 = 3 << 25;
    const PAT: u64 = 0xffff_ffff << 32;
    const SRE: u64 = 1 << 0;
    const FSPM: u64 = 3 << 2;
    const WPE: u64 = 1 << 4;
    const EAFE: u64 = 1 << 7;
    let [w0, w1, w2, _, w4, w5, ..] = *words;
    let without = |capability: Ecap, field: u64| if config.ecap.contains(capability) { 0 } else { field };
    let beyond = beyond_host(config);
    let reserved0 = beyond | without(Ecap::SSTS, AW | SSADE | TABLE) | without(Ecap::SSADS, SSADE);
    let reserved1 = without(Ecap::SMPWCS, PWSNP) | without(Ecap::SC, PGSNP) | without(Ecap::MTS, CD_EMTE | PAT);
    let reserved2 =
        beyond | without(Ecap::SRS, SRE) | without(Ecap::FSTS, FSPM | WPE | TABLE) | without(Ecap::EAFS, EAFE);
    let domain = DomainId::new(w1 as u16);
    w0 & reserved0 != 0
        || w1 & reserved1 != 0
        || w2 & reserved2 != 0
        || w4 != 0
        || w5 != 0
        || beyond_domains(config, domain)
}
