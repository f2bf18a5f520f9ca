//! What an entry says of a stream's requests, and under which numbers the unit caches what follows.

use super::cd_table::CdTable;
use super::invalidation::Tagged;
use crate::arch::smmuv3::layout::commands::Command;
use crate::arch::smmuv3::layout::stream_table::{Eats, Stage2};
use crate::arch::smmuv3::layout::{Asid, Cd, Ste, Vmid};
use crate::id::Pasid;
use crate::iotlb::CacheTag;
use crate::ops::{FaultModel, Stage};
use crate::platform::Platform;

/// The VMID of stage-1 translations, which no stage 2 has (SMMU 3.17).
pub(super) const STAGE_1_VMID: Vmid = Vmid(0);

/// How requests are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// They are aborted.
    Blocked,
    /// Not at all.
    Bypass,
    /// By stage 1, as this descriptor says.
    Stage1(Cd),
    /// By stage 2.
    Stage2(Stage2),
}

/// Whether a device TLB is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Served {
    /// It is.
    Yes,
    /// It is not.
    No,
}

impl Path {
    /// The stream table entry; with stage 1 its descriptors are `cds`.
    pub(super) fn entry<P: Platform>(self, served: Served, cds: Option<&CdTable<P>>) -> Ste {
        let entry = match (self, cds) {
            (Self::Bypass, _) => return Ste::bypass(),
            (Self::Stage2(stage2), _) => Ste::stage2(stage2),
            (Self::Stage1(_), Some(cds)) => cds.stream_entry().with_vmid(STAGE_1_VMID),
            (Self::Blocked, _) | (Self::Stage1(_), None) => return Ste::abort(),
        };
        match served {
            Served::Yes => entry.with_eats(Eats::Full),
            Served::No => entry,
        }
    }
}

/// What the entry of a stream is to say, with uses of the domain's tags taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Translation {
    pub(super) path: Path,
    /// Under which number it is cached; bypass has none.
    pub(super) tag: Option<CacheTag>,
    /// The device TLB that is served.
    pub(super) device_tlb: Option<CacheTag>,
    /// What becomes of requests that fault.
    pub(super) fault_model: FaultModel,
}

impl Translation {
    pub(super) const BLOCKED: Self = Self::untagged(Path::Blocked);

    /// Of what is not cached under any number, and does not fault.
    pub(super) const fn untagged(path: Path) -> Self {
        Self { path, tag: None, device_tlb: None, fault_model: FaultModel::Terminate }
    }

    pub(super) const fn served(&self) -> Served {
        if self.device_tlb.is_some() { Served::Yes } else { Served::No }
    }
}

impl Tagged {
    pub(super) const fn new(stage: Stage, id: u32) -> Self {
        match stage {
            Stage::First => Self::Stage1(Asid(id as u16)),
            Stage::Second => Self::Stage2(Vmid(id as u16)),
        }
    }

    /// What a tag of this backend stands for: translations of stage 1 are tagged by PASID, and the number is
    /// an ASID; those of stage 2 are not, and it is a VMID.
    pub(super) const fn of(tag: CacheTag) -> Self {
        Self::new(if tag.pasid.is_some() { Stage::First } else { Stage::Second }, tag.id)
    }

    /// The tag.
    pub(super) const fn tag(self) -> CacheTag {
        let (id, pasid) = match self {
            Self::Stage1(Asid(id)) => (id as u32, Some(Pasid::ZERO)),
            Self::Stage2(Vmid(id)) => (id as u32, None),
        };
        CacheTag { id, pasid, device: None }
    }

    /// The stage, of whose numbers this is one.
    pub(super) const fn stage(self) -> Stage {
        match self {
            Self::Stage1(_) => Stage::First,
            Self::Stage2(_) => Stage::Second,
        }
    }

    /// The command that drops everything under it.
    pub(super) const fn everything(self) -> Command {
        match self {
            Self::Stage1(asid) => Command::TlbNhAsid { vmid: STAGE_1_VMID, asid },
            Self::Stage2(vmid) => Command::TlbS12Vmall { vmid },
        }
    }
}
