//! The domains of a unit: what they can be, and what they say to a stream.

use core::any::Any;

use super::capabilities::Capabilities;
use super::translation::{Path, Translation};
use super::unit::SmmuUnit;
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::arch::smmuv3::layout::identification::output_code;
use crate::arch::smmuv3::layout::stream_table::Stage2;
use crate::arch::smmuv3::layout::{Asid, Cd, Granule, Vmid};
use crate::domain::{Domain, DomainKind, PagingDomain};
use crate::error::{Error, IncompatibleReason, Result, UnsupportedReason};
use crate::frames::Ref;
use crate::id::Pasid;
use crate::iotlb::Tags;
use crate::ops::{DomainFeatures, DomainOps, DomainSpec, FaultModel, MapFlush, Stage, Unit, UnitTraits};
use crate::pgtable::{LPAE_MAIR, LiveSplit, Lpae, Lpae4K, Lpae16K, Lpae64K, LpaeStage, LpaeWalk, PageSizes, PageTable};
use crate::platform::Platform;
use crate::window::{Window, Windows};

/// The narrowest input of a table that is made. Narrower ones would save nothing.
const NARROWEST: u8 = 32;

/// A domain that a unit has made: its granule is the unit's.
pub(super) enum SmmuDomain<P: Platform> {
    Size4K(PagingDomain<Lpae4K, P>),
    Size16K(PagingDomain<Lpae16K, P>),
    Size64K(PagingDomain<Lpae64K, P>),
}

impl<P: Platform> SmmuDomain<P> {
    fn ops(&self) -> &dyn DomainOps {
        match self {
            Self::Size4K(domain) => domain,
            Self::Size16K(domain) => domain,
            Self::Size64K(domain) => domain,
        }
    }
}

/// What a stream must know of a domain of this backend, whatever its granule.
struct Content<'a, P: Platform> {
    tags: &'a Tags<P>,
    traits: UnitTraits,
    stage: Stage,
    root: PhysAddr,
    input_bits: u8,
    walk: LpaeWalk,
}

fn content<P: Platform>(domain: &Domain) -> Option<Content<'_, P>> {
    let ops = domain.ops().as_any();
    of::<12, P>(ops).or_else(|| of::<14, P>(ops)).or_else(|| of::<16, P>(ops))
}

fn of<const G: u8, P: Platform>(ops: &dyn Any) -> Option<Content<'_, P>> {
    let domain: &PagingDomain<Lpae<G>, P> = ops.downcast_ref()?;
    let table = domain.table();
    Some(Content {
        tags: domain.tags(),
        traits: domain.traits(),
        stage: domain.stage()?,
        root: table.root(),
        input_bits: table.input_bits(),
        walk: table.lpae_walk(),
    })
}

/// The tags of a domain of this backend.
pub(super) fn tags_of<P: Platform>(domain: &Domain) -> Option<&Tags<P>> {
    content(domain).map(|content| content.tags)
}

/// As what translations of a stage are tagged in [`CacheTag`](crate::iotlb::CacheTag): those of stage 1
/// under an ASID, by PASID; those of stage 2 under a VMID.
fn pasid_of(stage: Stage) -> Option<Pasid> {
    (stage == Stage::First).then_some(Pasid::ZERO)
}

/// The page sizes of a granule, blocks and contiguous runs included.
fn page_sizes(granule: Granule, output_bits: u8) -> PageSizes {
    let bits = match granule {
        Granule::Size4K => 1 << 12 | 1 << 16 | 1 << 21 | 1 << 25 | 1 << 30 | 1 << 34,
        Granule::Size16K => 1 << 14 | 1 << 21 | 1 << 25 | 1 << 30,
        Granule::Size64K => 1 << 16 | 1 << 21 | 1 << 29 | 1 << 34 | 1 << 42,
    };
    let possible = match granule {
        Granule::Size64K => Lpae64K::page_sizes(output_bits),
        _ => PageSizes::ALL,
    };
    PageSizes::from_bits(bits).intersection(possible)
}

/// The widths of input that tables of a stage can have, as bits.
fn widths(capabilities: &Capabilities, stage: Stage, granule: Granule) -> u64 {
    (NARROWEST..=capabilities.input_bits(stage, granule)).fold(0, |bits, width| bits | 1 << width)
}

/// Backend and format in words.
fn driver(stage: Stage, granule: Granule) -> &'static str {
    match (stage, granule) {
        (Stage::First, Granule::Size4K) => "SMMUv3 stage 1, 4 KiB",
        (Stage::First, Granule::Size16K) => "SMMUv3 stage 1, 16 KiB",
        (Stage::First, Granule::Size64K) => "SMMUv3 stage 1, 64 KiB",
        (Stage::Second, Granule::Size4K) => "SMMUv3 stage 2, 4 KiB",
        (Stage::Second, Granule::Size16K) => "SMMUv3 stage 2, 16 KiB",
        (Stage::Second, Granule::Size64K) => "SMMUv3 stage 2, 64 KiB",
    }
}

impl<P: Platform> SmmuUnit<P> {
    /// See [`IommuOps::traits`](crate::ops::IommuOps::traits).
    pub(super) fn stage_traits(&self, stage: Stage) -> Option<UnitTraits> {
        let (capabilities, granule) = (self.capabilities(), self.granule);
        capabilities.has_stage(stage).then(|| UnitTraits {
            driver: driver(stage, granule),
            coherency: self.coherency,
            page_sizes: page_sizes(granule, capabilities.reachable_bits(granule)),
            widths: widths(capabilities, stage, granule),
            // What faults is not cached (SMMU 3.21.1).
            map_flush: MapFlush::Never,
            features: DomainFeatures::empty(),
        })
    }

    /// One window: what the stage translates at the most. Of stage 1 that is the lower half of the
    /// addresses, which TTB0 is for.
    pub(super) fn stage_windows(&self, stage: Stage) -> Windows {
        let Some(traits) = self.stage_traits(stage) else { return Windows::none() };
        // The highest bit of `widths` is the widest.
        let widest = 63u32.saturating_sub(traits.widths.leading_zeros());
        let last = (1u64 << widest).wrapping_sub(1);
        match IovaRange::new(Iova::new(0), Iova::new(last)) {
            Ok(range) => Windows::new(Window { range, page_sizes: traits.page_sizes }),
            Err(_) => Windows::none(),
        }
    }

    /// Stage 1 where there is one: it can have substreams.
    pub(super) fn usual_stage(&self) -> Stage {
        if self.capabilities().has_stage(Stage::First) { Stage::First } else { Stage::Second }
    }

    /// A domain with an empty table.
    pub(super) fn new_domain(&self, kind: DomainKind, spec: &DomainSpec) -> Result<Domain> {
        let domain = match self.granule {
            Granule::Size4K => SmmuDomain::Size4K(self.paging(kind, spec)?),
            Granule::Size16K => SmmuDomain::Size16K(self.paging(kind, spec)?),
            Granule::Size64K => SmmuDomain::Size64K(self.paging(kind, spec)?),
        };
        let slot = self.domains.insert(domain).map_err(|(error, _)| error)?;
        Ok(Domain::new(Ref::map(slot, SmmuDomain::ops)))
    }

    fn paging<const G: u8>(&self, kind: DomainKind, spec: &DomainSpec) -> Result<PagingDomain<Lpae<G>, P>> {
        let last = spec.windows.geometry().map_or(0, |range| range.last().as_u64());
        let fits = |width: &u8| spec.traits.widths >> width & 1 != 0;
        let possible = || (0..64u8).filter(fits);
        let input_bits = possible()
            .find(|width| last >> width == 0)
            .or_else(|| possible().next_back())
            .ok_or(Error::Unsupported(UnsupportedReason::AddressWidth))?;
        let stage = match spec.stage {
            Stage::First => LpaeStage::One,
            Stage::Second => LpaeStage::Two,
        };
        let format = Lpae::<G> { live_split: self.live_split(), ..Lpae::new(stage) };
        let config = format.config(input_bits, self.capabilities().reachable_bits(self.granule));
        let config =
            crate::pgtable::Config { walker: spec.traits.coherency, page_sizes: spec.traits.page_sizes, ..config };
        let table = PageTable::new(self.platform.clone(), format, config)?;
        Ok(PagingDomain::new(self.platform.clone(), kind, spec, table))
    }

    fn live_split(&self) -> LiveSplit {
        use crate::arch::smmuv3::layout::identification::BreakBeforeMake;
        match self.capabilities().break_before_make() {
            BreakBeforeMake::Unneeded => LiveSplit::Allowed,
            _ => LiveSplit::Forbidden,
        }
    }

    /// What the entry of a stream is to say, with a use of the domain's tag taken if it has one.
    pub(super) fn translation(&self, unit: &Unit, domain: &Domain, fault_model: FaultModel) -> Result<Translation> {
        if domain.kind() == DomainKind::Identity {
            return Ok(Translation::untagged(Path::Bypass));
        }
        let content = content::<P>(domain).ok_or(Error::Incompatible(IncompatibleReason::Driver))?;
        let traits = self.stage_traits(content.stage).ok_or(Error::Incompatible(IncompatibleReason::Stage))?;
        let tag = content.tags.acquire(unit, pasid_of(content.stage), self.ids(content.stage))?;
        // Looked at with the tag taken: what is demanded can grow.
        match content.traits.check_attach(content.input_bits, traits) {
            Ok(()) => {
                let path = self.path(&content, tag.id, fault_model);
                Ok(Translation { path, tag: Some(tag), device_tlb: None, fault_model })
            }
            Err(error) => {
                self.release(unit, domain, Some(tag));
                Err(error)
            }
        }
    }

    /// What a stream is told of a domain that nobody unmaps from, under a number of its own for good.
    pub(super) fn untagged(&self, domain: &Domain) -> Result<Path> {
        let content = content::<P>(domain).ok_or(Error::Incompatible(IncompatibleReason::Driver))?;
        Ok(self.path(&content, self.ids(content.stage).alloc()?, FaultModel::Terminate))
    }

    fn path(&self, content: &Content<'_, P>, id: u32, fault_model: FaultModel) -> Path {
        let (walk, output_bits) = (content.walk, self.capabilities().reachable_bits(self.granule));
        // A unit that cannot do otherwise takes no other entry (5.4, S): what shall not wait is terminated
        // when its event is read.
        let stalls = fault_model == FaultModel::Stall || self.capabilities().stalls_always();
        match content.stage {
            Stage::First => {
                let cd = Cd::new(Asid(id as u16), content.root, self.granule, content.input_bits, output_bits)
                    .with_walk_attributes(walk.cacheability, walk.shareability)
                    .with_memory_attributes(LPAE_MAIR)
                    .recording();
                Path::Stage1(if stalls { cd.stalling() } else { cd })
            }
            Stage::Second => Path::Stage2(Stage2 {
                vmid: Vmid(id as u16),
                table: content.root,
                t0sz: walk.t0sz,
                sl0: walk.sl0,
                tg: walk.granule,
                ps: output_code(output_bits) as u8,
                cacheability: walk.cacheability,
                shareability: walk.shareability,
                access_flag_fault_disabled: false,
                record: true,
                stall: stalls,
            }),
        }
    }
}
