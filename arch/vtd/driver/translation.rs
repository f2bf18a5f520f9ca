//! What an entry says of a requester's requests, whichever mode it is for, and what the unit caches
//! because of it.

use super::capabilities::Capabilities;
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::scalable::{FirstStageLevels, PasidEntry, PasidTranslation};
use crate::arch::vtd::layout::tables::TranslationType;
use crate::arch::vtd::layout::{AddressWidth, Cap, ContextEntry, DomainId, Ecap};
use crate::id::Pasid;
use crate::iotlb::CacheTag;
use crate::ops::DomainFeatures;

/// What cached absent entries are tagged with in caching mode, so no domain has it (VT-d 6.2.2, 6.2.3).
pub(super) const ABSENT_ID: DomainId = DomainId::new(0);

/// The domain id of pass-through entries. Nothing that is translated has it, as 6.2.3.1 demands.
pub(super) const PASS_THROUGH_ID: DomainId = DomainId::new(1);

/// The PASID whose entry translates requests without PASID (RID_PASID, VT-d 3.4.3 and 9.4).
///
/// It is zero on every unit, also where ECAP.RPS would permit another: zero is what units without RPS
/// take, no kernel gives it to a process, and a guest whose own tables are used has its requests
/// without PASID there as well. So one number serves for all.
pub(super) const RID_PASID: Pasid = Pasid::ZERO;

/// How requests are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// Not at all.
    PassThrough,
    /// By a first-stage table.
    FirstStage { table: PhysAddr, levels: FirstStageLevels },
    /// By a second-stage table.
    SecondStage { table: PhysAddr, width: AddressWidth },
}

/// What an entry is to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Translation {
    pub(super) path: Path,
    pub(super) id: DomainId,
    /// What the domain has switched on.
    pub(super) features: DomainFeatures,
    /// Whether requests of device TLBs are served; in scalable mode the context entry says so.
    pub(super) serves_device_tlb: bool,
}

impl Translation {
    /// The context entry of legacy mode (VT-d 9.3). It knows no first stage: such an entry is absent.
    pub(super) fn context_entry(self, capabilities: &Capabilities) -> ContextEntry {
        match (self.path, capabilities.widest()) {
            (Path::SecondStage { table, width }, _) => {
                let kind =
                    if self.serves_device_tlb { TranslationType::DeviceTlb } else { TranslationType::Untranslated };
                ContextEntry::new(kind, table, width, self.id)
            }
            (Path::PassThrough, Some(width)) => {
                ContextEntry::new(TranslationType::PassThrough, PhysAddr::new(0), width, self.id)
            }
            _ => ContextEntry::default(),
        }
    }

    /// The PASID entry (VT-d 9.6).
    pub(super) fn pasid_entry(self, capabilities: &Capabilities) -> PasidEntry {
        // AW is reserved without a second stage, and ignored where none is walked; but units of older
        // revisions, and emulations, then look at it all the same, and say so in SAGAW.
        let widest = capabilities.widest();
        let entry = match self.path {
            Path::PassThrough => return PasidEntry::pass_through(AddressWidth::Bits48, self.id).with_width(widest),
            Path::FirstStage { table, levels } => PasidEntry::first_stage(table, levels, self.id).with_width(widest),
            Path::SecondStage { table, width } => PasidEntry::second_stage(table, width, self.id),
        };
        let entry = if capabilities.snoops_page_walks() { entry.with_page_walk_snoop() } else { entry };
        with_features(entry, self.features)
    }

    /// Under what it is cached.
    pub(super) fn cached(self) -> Cached {
        let by = match self.path {
            Path::PassThrough => PasidTranslation::PassThrough,
            Path::FirstStage { .. } => PasidTranslation::FirstStage,
            Path::SecondStage { .. } => PasidTranslation::SecondStage,
        };
        Cached { id: self.id, by }
    }
}

/// The entry, saying of the features what is on: PGSNP for the first stage (the second enforces snooping
/// page by page), SSADE for the second.
pub(super) fn with_features(entry: PasidEntry, features: DomainFeatures) -> PasidEntry {
    let entry = entry.without_features();
    match entry.translation() {
        Some(PasidTranslation::FirstStage) if features.contains(DomainFeatures::CACHE_COHERENCY) => {
            entry.with_page_snoop()
        }
        Some(PasidTranslation::SecondStage) if features.contains(DomainFeatures::DIRTY_TRACKING) => {
            entry.with_second_stage_dirty()
        }
        _ => entry,
    }
}

/// Under what the unit caches what an entry leads to (VT-d 6.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cached {
    pub(super) id: DomainId,
    pub(super) by: PasidTranslation,
}

impl Cached {
    pub(super) fn of_context_entry(entry: ContextEntry) -> Self {
        let by = match entry.translation_type() {
            Some(TranslationType::PassThrough) => PasidTranslation::PassThrough,
            _ => PasidTranslation::SecondStage,
        };
        Self { id: entry.domain_id(), by }
    }

    pub(super) fn of_pasid_entry(entry: PasidEntry) -> Self {
        // An encoding that is reserved translates nothing.
        let by = entry.translation().unwrap_or(PasidTranslation::SecondStage);
        Self { id: entry.domain_id(), by }
    }

    /// The tag that a domain has for it; pass-through has none.
    pub(super) fn tag(self) -> Option<CacheTag> {
        let pasid = (self.by == PasidTranslation::FirstStage).then_some(RID_PASID);
        let id = u32::from(self.id.as_u16());
        (self.id != PASS_THROUGH_ID && self.id != ABSENT_ID).then_some(CacheTag { id, pasid, device: None })
    }
}

impl Capabilities {
    /// Whether scalable mode is worth using: it is there, and translates (ECAP.SMTS; SSTS or FSTS).
    pub(super) fn has_scalable_mode(&self) -> bool {
        let second = self.ecap.contains(Ecap::SSTS) && self.widest().is_some();
        self.ecap.contains(Ecap::SMTS) && (second || self.ecap.contains(Ecap::FSTS))
    }

    /// Whether walkers of page tables snoop in scalable mode, if the entry says so (PWSNP).
    pub(super) fn snoops_page_walks(&self) -> bool {
        self.ecap.contains(Ecap::SMPWCS)
    }

    /// Whether what is absent may be cached (VT-d 6.1).
    pub(super) fn caches_absent(&self) -> bool {
        self.cap.contains(Cap::CM)
    }
}
