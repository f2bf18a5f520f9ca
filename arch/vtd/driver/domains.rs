//! The domains of a unit: what they can be, and what they say to an entry.

use super::capabilities::Capabilities;
use super::translation::{PASS_THROUGH_ID, Path, RID_PASID, Translation};
use super::unit::VtdUnit;
use crate::addr::{Iova, IovaRange, PhysAddr, PhysRange};
use crate::arch::vtd::layout::registers::TableMode;
use crate::arch::vtd::layout::scalable::FirstStageLevels;
use crate::arch::vtd::layout::{AddressWidth, Cap, DomainId, Ecap};
use crate::domain::{Domain, DomainKind, PagingDomain};
use crate::error::{Error, IncompatibleReason, Result, UnsupportedReason};
use crate::frames::{Ref, Slab};
use crate::iommu::map_direct_region;
use crate::iotlb::Tags;
use crate::ops::{DomainFeatures, DomainOps, DomainSpec, MapFlush, Stage, Unit, UnitTraits};
use crate::pgtable::{Config, Format, PageSize, PageSizes, PageTable, SecondStage, WalkerCoherency, X86_64, X86Io};
use crate::platform::{FRAME_BYTES, Platform};
use crate::prot::Prot;
use crate::region::{RegionKind, ReservedRegion};
use crate::sync::Lock;
use crate::window::{Window, Windows};

/// The domains that this backend makes.
type VtdDomain<P> = PagingDomain<X86Io, P>;

/// The domains that a unit has made.
pub(super) struct Domains<P: Platform> {
    domains: Slab<VtdDomain<P>, P>,
    /// Stands in for pass-through where the unit has none; made when it is first needed.
    identity: Lock<Option<Domain>>,
}

impl<P: Platform> Domains<P> {
    pub(super) fn new(platform: &P) -> Result<Self> {
        Ok(Self { domains: Slab::new(platform.clone())?, identity: Lock::new(None) })
    }
}

fn paging<P: Platform>(domain: &Domain) -> Option<&VtdDomain<P>> {
    domain.ops().as_any().downcast_ref()
}

/// The table of a domain, and the width of an address that it translates, in bits.
fn path<P: Platform>(domain: &VtdDomain<P>) -> Option<(Path, u8)> {
    let (stage, table, levels) = (domain.stage()?, domain.table().root(), domain.table().levels());
    let path = match stage {
        Stage::First => Path::FirstStage { table, levels: first_stage_levels(levels)? },
        Stage::Second => Path::SecondStage { table, width: AddressWidth::from_levels(u32::from(levels))? },
    };
    Some((path, width(stage, levels)))
}

/// The top table of a domain of this backend.
pub(super) fn table_of<P: Platform>(domain: &Domain) -> Option<PhysAddr> {
    paging::<P>(domain).map(|domain| domain.table().root())
}

fn first_stage_levels(levels: u8) -> Option<FirstStageLevels> {
    match levels {
        4 => Some(FirstStageLevels::Four),
        5 => Some(FirstStageLevels::Five),
        _ => None,
    }
}

/// The tags of a domain of this backend.
pub(super) fn tags_of<P: Platform>(domain: &Domain) -> Option<&Tags<P>> {
    paging(domain).map(PagingDomain::tags)
}

/// Whether a unit in this mode has the stage.
fn has_stage(capabilities: &Capabilities, mode: TableMode, stage: Stage) -> bool {
    let second = capabilities.widest().is_some();
    match (mode, stage) {
        (TableMode::Scalable, Stage::First) => capabilities.ecap.contains(Ecap::FSTS),
        (TableMode::Scalable, Stage::Second) => second && capabilities.ecap.contains(Ecap::SSTS),
        (_, Stage::First) => false,
        (_, Stage::Second) => second,
    }
}

/// The numbers of levels that tables of a stage can have, fewest first.
fn levels(capabilities: &Capabilities, stage: Stage) -> impl Iterator<Item = u8> {
    (3..=5u8).filter(move |levels| match stage {
        Stage::First => *levels == 4 || *levels == 5 && capabilities.cap.contains(Cap::FS5LP),
        Stage::Second => {
            AddressWidth::from_levels(u32::from(*levels)).is_some_and(|width| capabilities.has_width(width))
        }
    })
}

/// Bits of an address that a table of so many levels translates.
fn width(stage: Stage, levels: u8) -> u8 {
    match stage {
        Stage::First => X86_64::max_input_bits(levels),
        Stage::Second => SecondStage::max_input_bits(levels),
    }
}

fn page_sizes(capabilities: &Capabilities, stage: Stage) -> PageSizes {
    let large = match stage {
        Stage::First => [(Cap::empty(), PageSize::SIZE_2M), (Cap::FS1GP, PageSize::SIZE_1G)],
        Stage::Second => [(Cap::LARGE_2M, PageSize::SIZE_2M), (Cap::LARGE_1G, PageSize::SIZE_1G)],
    };
    let large = large.into_iter().filter(|(bit, _)| capabilities.cap.contains(*bit));
    large.fold(PageSizes::only(PageSize::SIZE_4K), |sizes, (_, size)| sizes.union(PageSizes::only(size)))
}

/// What entries and tables of a stage can be told beside the translation.
fn features(capabilities: &Capabilities, mode: TableMode, stage: Stage) -> DomainFeatures {
    let mut features = DomainFeatures::empty();
    // SNP in each second-stage entry, PGSNP in PASID entries for the first stage (3.10).
    features.set(DomainFeatures::CACHE_COHERENCY, capabilities.ecap.contains(Ecap::SC));
    // Walks that set dirty bits must snoop (SSS.9).
    let dirty = capabilities.ecap.contains(Ecap::SSADS | Ecap::SMPWCS) && mode == TableMode::Scalable;
    features.set(DomainFeatures::DIRTY_TRACKING, dirty && stage == Stage::Second);
    features
}

impl<P: Platform> VtdUnit<P> {
    /// See [`IommuOps::traits`](crate::ops::IommuOps::traits).
    pub(super) fn stage_traits(&self, stage: Stage) -> Option<UnitTraits> {
        let (capabilities, mode) = (self.capabilities(), self.mode());
        // Absent entries of the first stage are not cached, whatever CM says (6.2.4.1).
        let flush = if stage == Stage::First { Cap::RWBF } else { Cap::CM | Cap::RWBF };
        let snoops = match mode {
            TableMode::Scalable => capabilities.snoops_page_walks(),
            _ => capabilities.is_coherent(),
        };
        has_stage(capabilities, mode, stage).then(|| UnitTraits {
            driver: if stage == Stage::First { "VT-d first stage" } else { "VT-d second stage" },
            coherency: if snoops { WalkerCoherency::Snoops } else { WalkerCoherency::NeedsClean },
            page_sizes: page_sizes(capabilities, stage),
            widths: levels(capabilities, stage).fold(0, |bits, levels| bits | 1 << width(stage, levels)),
            map_flush: if capabilities.cap.intersects(flush) { MapFlush::Always } else { MapFlush::Never },
            features: features(capabilities, mode, stage),
        })
    }

    /// One window: what the stage translates at the most. Of the first stage that is the lower half of
    /// the canonical addresses.
    pub(super) fn stage_windows(&self, stage: Stage) -> Windows {
        let Some(traits) = self.stage_traits(stage) else { return Windows::none() };
        let widest = 63u32.saturating_sub(traits.widths.leading_zeros());
        let bits = match stage {
            Stage::First => widest,
            Stage::Second => widest.min(self.capabilities().cap.guest_address_bits()),
        };
        let last = (1u64 << bits.min(63)).wrapping_sub(1);
        match IovaRange::new(Iova::new(0), Iova::new(last)) {
            Ok(range) => Windows::new(Window { range, page_sizes: traits.page_sizes }),
            Err(_) => Windows::none(),
        }
    }

    /// The second stage where there is one: it can forbid reading, and enforce snooping page by page.
    pub(super) fn usual_stage(&self) -> Stage {
        if has_stage(self.capabilities(), self.mode(), Stage::Second) { Stage::Second } else { Stage::First }
    }

    /// A domain with an empty table.
    pub(super) fn new_domain(&self, kind: DomainKind, spec: &DomainSpec) -> Result<Domain> {
        let last = spec.windows.geometry().map_or(0, |range| range.last().as_u64());
        let possible = || {
            let all = levels(self.capabilities(), spec.stage);
            all.filter(|levels| spec.traits.widths >> width(spec.stage, *levels) & 1 != 0)
        };
        let levels = possible()
            .find(|levels| last >> width(spec.stage, *levels) == 0)
            .or_else(|| possible().last())
            .ok_or(Error::Unsupported(UnsupportedReason::AddressWidth))?;
        let format = match spec.stage {
            Stage::First => X86Io::FirstStage,
            Stage::Second => X86Io::SecondStage(SecondStage { accessed_dirty: spec.accessed_dirty() }),
        };
        let config = Config {
            input_bits: width(spec.stage, levels),
            walker: spec.traits.coherency,
            page_sizes: spec.traits.page_sizes,
            ..Config::new::<X86Io>(levels)
        };
        let table = PageTable::new(self.platform.clone(), format, config)?;
        let domain = PagingDomain::new(self.platform.clone(), kind, spec, table);
        let slot = self.domains.domains.insert(domain).map_err(|(error, _)| error)?;
        Ok(Domain::new(Ref::map(slot, |domain| domain as &dyn DomainOps)))
    }

    /// What the entry of a requester is to say, with a use of the domain's tag taken if it has one.
    pub(super) fn translation(&self, unit: &Unit, domain: &Domain) -> Result<Translation> {
        if domain.kind() == DomainKind::Identity && self.capabilities().ecap.contains(Ecap::PT) {
            let features = DomainFeatures::empty();
            return Ok(Translation {
                path: Path::PassThrough,
                id: PASS_THROUGH_ID,
                features,
                serves_device_tlb: false,
            });
        }
        let domain = self.translated(domain)?;
        let paging = paging::<P>(&domain).ok_or(Error::Incompatible(IncompatibleReason::Driver))?;
        let (path, width) = path(paging).ok_or(Error::Incompatible(IncompatibleReason::Width))?;
        let is_first = matches!(path, Path::FirstStage { .. });
        let stage = if is_first { Stage::First } else { Stage::Second };
        let unit_traits = self.stage_traits(stage).ok_or(Error::Incompatible(IncompatibleReason::Stage))?;
        // First-stage tables are cached by PASID, too (6.2.1).
        let pasid = is_first.then_some(RID_PASID);
        let tag = paging.tags().acquire(unit, pasid, &self.ids)?;
        // Looked at with the tag taken: what is demanded can grow.
        match paging.traits().check_attach(width, unit_traits) {
            Ok(()) => Ok(Translation {
                path,
                id: DomainId::new(tag.id as u16),
                features: domain.ops().features(),
                serves_device_tlb: false,
            }),
            Err(error) => {
                self.release(unit, &domain, Some(tag));
                Err(error)
            }
        }
    }

    /// The domain whose table stands for `domain` in this unit.
    pub(super) fn translated(&self, domain: &Domain) -> Result<Domain> {
        match domain.kind() {
            DomainKind::Identity => self.identity_table(),
            _ => Ok(domain.clone()),
        }
    }

    /// A domain in which RAM, and what firmware reserved, is mapped one to one.
    fn identity_table(&self) -> Result<Domain> {
        if let Some(domain) = self.domains.identity.lock(&self.platform).clone() {
            return Ok(domain);
        }
        let stage = self.usual_stage();
        let traits = self.stage_traits(stage).ok_or(Error::Unsupported(UnsupportedReason::Translation))?;
        let traits = UnitTraits { features: DomainFeatures::empty(), ..traits };
        let spec = DomainSpec { stage, traits, windows: self.stage_windows(stage) };
        let new = self.new_domain(DomainKind::Identity, &spec)?;
        let mut result = Err(Error::Unsupported(UnsupportedReason::Identity));
        self.platform.ram(&mut |range| {
            result = match result {
                Ok(()) | Err(Error::Unsupported(_)) => map_identity(&new, range),
                failed => failed,
            };
        });
        result?;
        for region in self.firmware.dmar()?.reserved_regions() {
            map_identity(&new, region.region)?;
        }
        // Another processor may have been faster; then its domain serves, and this one is dropped
        // outside of the lock.
        let mut slot = self.domains.identity.lock(&self.platform);
        Ok(slot.get_or_insert_with(|| new.clone()).clone())
    }
}

/// Maps a physical range one to one, as far as it is not.
fn map_identity(domain: &Domain, range: PhysRange) -> Result<()> {
    let range = range.align_outward(FRAME_BYTES);
    let range = IovaRange::new(Iova::new(range.start().as_u64()), Iova::new(range.last().as_u64()))?;
    map_direct_region(domain, ReservedRegion { range, kind: RegionKind::Direct, prot: Prot::RW })
}
