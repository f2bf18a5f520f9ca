//! What goes wrong, as the event record of SMMU 7.3 says it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::{Access, Goal, Lookup, Privilege};
use crate::arch::smmuv3::layout::events::{EventKind, EventRecord, FaultClass};
use crate::arch::smmuv3::layout::{Cd, Ste, StreamId};

/// A stage of translation.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::Stage;
/// assert_ne!(Stage::One, Stage::Two);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Stage 1.
    One,
    /// Stage 2.
    Two,
}

/// Why a request does not reach memory: what the tables have to do with it.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{Access, Fault, Lookup};
/// use iommu::arch::smmuv3::layout::StreamId;
/// use iommu::arch::smmuv3::layout::events::EventKind;
/// let fault = Fault::stage1(EventKind::F_TRANSLATION);
/// let event = fault.event(StreamId(8), None, &Lookup::new(0x1234, Access::Read));
/// assert_eq!(event.encode(), [8 << 32 | 0x10, (0x200 | 1 << 3) << 32, 0x1234, 0]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What it is.
    pub kind: EventKind,
    /// The stage that refuses (S2), of translation faults and F_WALK_EABT.
    pub stage: Stage,
    /// What met it (CLASS), of the same.
    pub class: FaultClass,
    /// The intermediate address of a stage-2 fault, or what could not be read (IPA, FetchAddr); in full.
    pub second_address: u64,
    /// F_PERMISSION for an atomic operation that may write there and not read (SMMU 13.1.1).
    pub lacks_read_only: bool,
}

impl Fault {
    /// A fault without addresses: configuration errors.
    pub const fn configuration(kind: EventKind) -> Self {
        Self { kind, stage: Stage::One, class: FaultClass::Input, second_address: 0, lacks_read_only: false }
    }

    /// F_STE_FETCH or F_CD_FETCH.
    pub const fn fetch(kind: EventKind, address: u64) -> Self {
        Self { second_address: address, ..Self::configuration(kind) }
    }

    /// A translation fault of stage 1: its CLASS is always IN (SMMU 7.3.13).
    pub const fn stage1(kind: EventKind) -> Self {
        Self::configuration(kind)
    }

    /// A translation fault of stage 2 for the intermediate address `ipa`.
    pub const fn stage2(kind: EventKind, class: FaultClass, ipa: u64) -> Self {
        Self { stage: Stage::Two, class, second_address: ipa, ..Self::configuration(kind) }
    }

    /// The descriptor at this physical address cannot be read. `class` is TT in stage 1 (SMMU 7.3.12).
    pub const fn walk_abort(stage: Stage, class: FaultClass, address: u64) -> Self {
        Self { stage, class, second_address: address, ..Self::configuration(EventKind::F_WALK_EABT) }
    }

    /// The event, which does not stall. `lookup` is what the STE has made of the request.
    pub fn event(&self, stream: StreamId, substream: Option<u32>, lookup: &Lookup) -> EventRecord {
        // Bits 55:12 and 55:3 (7.3.4, 7.3.10, 7.3.12, 7.3.15).
        const IPA: u64 = (1 << 56) - (1 << 12);
        const FETCH: u64 = (1 << 56) - (1 << 3);
        let record = EventRecord { kind: self.kind, stream, substream, ..EventRecord::default() };
        let is_abort = self.kind == EventKind::F_WALK_EABT;
        match self.kind {
            // 7.3.9: the SubstreamID is always there; a request without one asked for 0.
            EventKind::C_BAD_SUBSTREAMID => EventRecord { substream: Some(substream.unwrap_or(0)), ..record },
            EventKind::F_STE_FETCH | EventKind::F_CD_FETCH => {
                EventRecord { second_address: self.second_address & FETCH, ..record }
            }
            kind if kind.is_translation_fault() || is_abort => EventRecord {
                privileged: lookup.privilege == Privilege::Privileged,
                instruction: lookup.access == Access::Execute,
                read: lookup.access.is_read() || self.lacks_read_only,
                stage2: self.stage == Stage::Two,
                class: self.class,
                // Nothing but reads of stage-1 tables goes through stage 2.
                table_read: kind == EventKind::F_PERMISSION && self.class == FaultClass::TranslationTable,
                address: lookup.address,
                second_address: match self.stage {
                    _ if is_abort => self.second_address & FETCH,
                    Stage::One => 0,
                    Stage::Two => self.second_address & IPA,
                },
                ..record
            },
            _ => record,
        }
    }

    /// What becomes of the request, by S2R and S2S, or A, R and S of the CD (SMMU 5.5). Without CD stage 1
    /// bypasses, and its only fault is an abort that is recorded (3.4).
    pub fn verdict(&self, ste: &Ste, cd: Option<&Cd>, goal: Goal) -> Verdict {
        let aborted = Verdict { response: Response::Abort, recorded: true };
        if !self.kind.is_translation_fault() {
            return aborted;
        }
        let (stalls, records, aborts) = match (self.stage, cd) {
            (Stage::Two, _) => {
                let fields = ste.stage2_fields();
                (fields.stall, fields.record, true)
            }
            (Stage::One, Some(cd)) => (cd.stalls(), cd.records(), cd.aborts()),
            (Stage::One, None) => return aborted,
        };
        match goal {
            Goal::Access if stalls => Verdict { response: Response::Stall, recorded: true },
            Goal::Access if !aborts => Verdict { response: Response::Ignore, recorded: records },
            Goal::Access => Verdict { response: Response::Abort, recorded: records },
            // 3.9.1.2: it is answered that nothing is permitted.
            Goal::Translation => Verdict { response: Response::Abort, recorded: false },
        }
    }
}

/// What becomes of a request that faults.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::Response;
/// assert_ne!(Response::Stall, Response::Abort);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Response {
    /// It waits.
    Stall,
    /// Its device is told that it failed.
    Abort,
    /// Reads give zeroes, writes do nothing (RAZ/WI).
    Ignore,
}

/// What becomes of a request, and whether software is told.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{Fault, Goal, Response};
/// use iommu::arch::smmuv3::layout::{Cd, Ste};
/// use iommu::arch::smmuv3::layout::events::EventKind;
/// let fault = Fault::stage1(EventKind::F_ACCESS);
/// let quiet = fault.verdict(&Ste::default(), Some(&Cd { words: [Cd::V, 0, 0, 0, 0, 0, 0, 0] }), Goal::Access);
/// assert_eq!((quiet.response, quiet.recorded), (Response::Ignore, false));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// What becomes of it.
    pub response: Response,
    /// Whether an event is recorded.
    pub recorded: bool,
}
