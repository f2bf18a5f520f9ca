//! A hardware unit in a few pages: source table, IOTLB, walk cache, invalidation queue.
//!
//! Writes are recorded in leaves of the second stage where the entry says so, and of the first stage
//! always; what is cached as recorded is not recorded again.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use iommu::device::DeviceInfo;
use iommu::domain::{Domain, DomainKind, PagingDomain};
use iommu::frames::{IdBitmap, Ref, Slab};
use iommu::iotlb::{CacheTag, Depth, DeviceTlb, Invalidation, Last, Tags, Ticket};
use iommu::ops::{
    Ats, Capability, Coverage, DomainFeatures, DomainOps, DomainSpec, FaultModel, InterruptKind, IommuOps, MapFlush,
    Msi, Requester, Stage, Unit, UnitTraits,
};
use iommu::pci::PciConfig;
use iommu::pgtable::{Config, Format, PageSizes, PageTable, SecondStage, WalkerCoherency, X86_64};
use iommu::{
    DrainedFaults, Error, FaultRecord, FaultsLeft, IncompatibleReason, InvalidReason, InvalidationReason, Iova,
    IovaRange, NoSpaceReason, PhysAddr, Prot, ReservedRegion, ReservedRegions, Result, SourceId, StallAnswer, StallTag,
    Window, Windows,
};

use crate::pci::{Step, Tlb};
use crate::platform::Frames;

/// A domain of the second stage.
pub(crate) type Paging = PagingDomain<SecondStage, Frames>;
/// A domain of the first stage.
pub(crate) type FirstPaging = PagingDomain<X86_64, Frames>;

pub(crate) const TIMED_OUT: Error = Error::Invalidation { reason: InvalidationReason::TimedOut, request: 0 };

/// What the tests look at and turn.
pub(crate) struct State {
    pub(crate) traits: UnitTraits,
    /// Of the first stage, if there is one.
    pub(crate) first: Option<UnitTraits>,
    /// Whether there is a second stage.
    pub(crate) second: bool,
    pub(crate) windows: Windows,
    /// Reserved regions by the first source of a device.
    pub(crate) regions: BTreeMap<SourceId, Vec<ReservedRegion>>,
    pub(crate) demanded: Option<DomainKind>,
    pub(crate) supports_ats: bool,
    /// How platform devices of this unit's number are covered.
    pub(crate) coverage: Coverage,
    /// Sources whose devices firmware names for this unit, whatever their number says.
    pub(crate) named: Vec<SourceId>,
    /// Attach calls until one fails with this error.
    pub(crate) fail_attach: Option<(usize, Error)>,
    /// Submits until one fails, and waits until one fails.
    pub(crate) fail_invalidate: Option<(usize, Error)>,
    pub(crate) fail_wait: Option<(usize, Error)>,
    pub(crate) fail_refresh: Option<(usize, Error)>,
    pub(crate) fail_shutdown: bool,
    /// Does not answer any more.
    pub(crate) dead: bool,
    pub(crate) log: Vec<Event>,
    pub(crate) faults: Vec<FaultRecord>,
    pub(crate) supports_stalls: bool,
    /// Requests that wait, and what they were answered.
    pub(crate) waiting: Vec<StallTag>,
    pub(crate) answers: Vec<(StallTag, StallAnswer)>,
    /// What became of faults of a source when it was attached last.
    pub(crate) fault_models: BTreeMap<SourceId, FaultModel>,
    /// Faults that there was no room for.
    pub(crate) overflows: u64,
    pub(crate) enabled: bool,
    pub(crate) interrupt: Option<(InterruptKind, Msi)>,
    /// Runs inside the next attach.
    pub(crate) during_attach: Option<Box<dyn FnOnce() + Send>>,
    /// Runs inside the next wait.
    pub(crate) during_wait: Option<Box<dyn FnOnce() + Send>>,
    /// The sizes of leaves that each invalidation named.
    pub(crate) leaves: Vec<PageSizes>,
    sources: BTreeMap<SourceId, Entry>,
    /// Page by page: where it leads, or `None` for an absent entry that is cached.
    iotlb: BTreeMap<(u32, u64), Option<Cached>>,
    /// Tables of level 0, by domain id and the bits of the IOVA above them.
    walks: BTreeMap<(u32, u64), u64>,
    /// Page by page: what devices have asked for. They ask for no page twice.
    device_tlbs: BTreeMap<(SourceId, u64), u64>,
    queue: Vec<(Ticket, Told)>,
    tickets: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Event {
    Attach(SourceId, DomainKind),
    Block(SourceId),
    /// With the number of ranges.
    Invalidate(u32, usize, Depth),
    Wait,
    /// With the domain id.
    Refresh(u32),
}

/// A translation of a page.
#[derive(Clone, Copy)]
struct Cached {
    phys: u64,
    prot: Prot,
    /// A write need not be recorded: it was, or nobody asked for it.
    recorded: bool,
    snoops: bool,
}

impl Event {
    pub(crate) fn is_invalidation(&self) -> bool {
        matches!(self, Self::Invalidate(..))
    }
}

/// An invalidation in the queue.
struct Told {
    tag: CacheTag,
    devices: Vec<DeviceTlb>,
    ranges: Vec<IovaRange>,
    depth: Depth,
}

/// The unit's entry for a source; none is a block.
#[derive(Clone)]
struct Entry {
    domain: Domain,
    /// For a paging domain: its tag, the root of its table and its levels.
    paging: Option<(CacheTag, PhysAddr, u8)>,
    /// The tag of the device TLB that it lets be used.
    device: Option<CacheTag>,
    settings: Settings,
}

/// What an entry says of a domain besides its table.
#[derive(Clone, Copy, PartialEq, Default)]
struct Settings {
    /// The bit that is set in the leaf of a page that is written; zero for none.
    dirty: u64,
    /// Every request snoops.
    snoop: bool,
}

impl Settings {
    fn of(domain: &Domain) -> Self {
        let on = domain.features();
        match domain.ops().stage() {
            Some(Stage::First) => Self { dirty: X86_64::DIRTY, snoop: on.contains(DomainFeatures::CACHE_COHERENCY) },
            Some(Stage::Second) => {
                let record = on.contains(DomainFeatures::DIRTY_TRACKING);
                Self { dirty: if record { SecondStage::DIRTY } else { 0 }, snoop: false }
            }
            None => Self::default(),
        }
    }
}

/// What a unit needs of a domain of either stage.
struct Table<'a> {
    root: PhysAddr,
    levels: u8,
    width: u8,
    traits: UnitTraits,
    tags: &'a Tags<Frames>,
}

impl<'a> Table<'a> {
    fn of(domain: &'a Domain) -> Option<Self> {
        fn new<F: Format>(domain: &PagingDomain<F, Frames>) -> Table<'_> {
            let levels = domain.table().levels();
            let (root, width) = (domain.table().root(), F::max_input_bits(levels));
            Table { root, levels, width, traits: domain.traits(), tags: domain.tags() }
        }
        let any = domain.ops().as_any();
        any.downcast_ref::<Paging>().map(new).or_else(|| any.downcast_ref::<FirstPaging>().map(new))
    }
}

pub(crate) struct FakeUnit {
    platform: Frames,
    number: u16,
    ids: IdBitmap<Frames>,
    domains: Slab<Paging, Frames>,
    first_domains: Slab<FirstPaging, Frames>,
    state: Mutex<State>,
}

pub(crate) fn traits() -> UnitTraits {
    UnitTraits {
        driver: "fake second stage",
        coherency: WalkerCoherency::Snoops,
        page_sizes: PageSizes::from_bits(1 << 12 | 1 << 21 | 1 << 30),
        widths: 1 << 39 | 1 << 48,
        map_flush: MapFlush::Never,
        features: DomainFeatures::empty(),
    }
}

pub(crate) fn first_traits() -> UnitTraits {
    UnitTraits { driver: "fake first stage", widths: 1 << 47, ..traits() }
}

pub(crate) fn full_windows() -> Windows {
    let range = IovaRange::from_len(Iova::new(0), 1 << 48).unwrap();
    Windows::new(Window { range, page_sizes: traits().page_sizes })
}

/// Counts down; the error when it is this call's turn.
fn fails(plan: &mut Option<(usize, Error)>) -> Result<()> {
    match plan {
        Some((0, error)) => {
            let error = *error;
            *plan = None;
            Err(error)
        }
        Some((left, _)) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl FakeUnit {
    /// Unit `number`, with domain ids from 1 to `last_id`.
    pub(crate) fn new(platform: Frames, number: u16, last_id: u32) -> Result<Self> {
        let ids = IdBitmap::new(platform.clone(), last_id, NoSpaceReason::DomainIds)?;
        ids.reserve(0)?;
        Ok(Self {
            number,
            ids,
            domains: Slab::new(platform.clone())?,
            first_domains: Slab::new(platform.clone())?,
            platform,
            state: Mutex::new(State {
                traits: traits(),
                first: None,
                second: true,
                windows: full_windows(),
                regions: BTreeMap::new(),
                demanded: None,
                supports_ats: false,
                coverage: Coverage::Named,
                named: vec![],
                fail_attach: None,
                fail_invalidate: None,
                fail_wait: None,
                fail_refresh: None,
                fail_shutdown: false,
                dead: false,
                log: vec![],
                supports_stalls: false,
                waiting: vec![],
                answers: vec![],
                fault_models: BTreeMap::new(),
                faults: vec![],
                overflows: 0,
                enabled: false,
                interrupt: None,
                during_attach: None,
                during_wait: None,
                leaves: Vec::new(),
                sources: BTreeMap::new(),
                iotlb: BTreeMap::new(),
                walks: BTreeMap::new(),
                device_tlbs: BTreeMap::new(),
                queue: vec![],
                tickets: 0,
            }),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn ids(&self) -> &IdBitmap<Frames> {
        &self.ids
    }

    /// Empties the log.
    pub(crate) fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().log)
    }

    /// The domain that a source goes through by the unit's own tables.
    pub(crate) fn domain_of(&self, source: SourceId) -> Option<Domain> {
        self.state().sources.get(&source).map(|entry| entry.domain.clone())
    }

    /// A DMA: where it arrives, or `None` for a fault.
    pub(crate) fn dma(&self, source: SourceId, iova: u64, wanted: Prot) -> Option<u64> {
        self.translate(&mut self.state(), source, iova, wanted).map(|found| found.phys | iova & 0xfff)
    }

    /// A write, which is over before an invalidation that is waited for: the memory changes in `write`.
    pub(crate) fn dma_write(&self, source: SourceId, iova: u64, write: impl FnOnce(u64)) -> Option<()> {
        let mut state = self.state();
        self.translate(&mut state, source, iova, Prot::WRITE).map(|found| write(found.phys))
    }

    /// Whether a DMA that asks not to snoop does it all the same; `None` for a fault.
    pub(crate) fn snoops(&self, source: SourceId, iova: u64) -> Option<bool> {
        self.translate(&mut self.state(), source, iova, Prot::READ).map(|found| found.snoops)
    }

    fn translate(&self, state: &mut State, source: SourceId, iova: u64, wanted: Prot) -> Option<Cached> {
        let entry = state.sources.get(&source)?.clone();
        let Some((tag, ..)) = entry.paging else {
            return Some(Cached { phys: iova & !0xfff, prot: Prot::RW, recorded: true, snoops: false });
        };
        let page = (tag.id, iova >> 12);
        let writes = wanted.contains(Prot::WRITE);
        let found = match state.iotlb.get(&page).copied() {
            Some(Some(cached)) if writes && !cached.recorded => self.walk(state, &entry, iova, wanted),
            Some(cached) => return cached.filter(|cached| cached.prot.contains(wanted)),
            None => self.walk(state, &entry, iova, wanted),
        };
        if found.is_some() || state.traits.map_flush == MapFlush::Always {
            state.iotlb.insert(page, found);
        }
        found.filter(|found| found.prot.contains(wanted))
    }

    /// Walks the table, and records a write in the leaf.
    fn walk(&self, state: &mut State, entry: &Entry, iova: u64, wanted: Prot) -> Option<Cached> {
        const ADDRESS: u64 = (1 << 52) - (1 << 12);
        let (CacheTag { id, .. }, root, levels) = entry.paging?;
        let Settings { dirty, snoop } = entry.settings;
        if iova >> (12 + 9 * u32::from(levels)) != 0 {
            return None;
        }
        let (mut table, mut level) = match state.walks.get(&(id, iova >> 21)) {
            Some(table) => (*table, 0),
            None => (root.as_u64(), levels - 1),
        };
        loop {
            let shift = 12 + 9 * u32::from(level);
            let address = table + (iova >> shift & 511) * 8;
            let entry = self.platform.read(address);
            if entry & 3 == 0 {
                return None;
            }
            if level == 0 || entry & 1 << 7 != 0 {
                // Present and write permission are where the second stage has read and write.
                let prot = Prot::from_bits_truncate(entry as u32 & 3);
                let writes = prot.contains(wanted) && wanted.contains(Prot::WRITE);
                if writes && entry & dirty == 0 && dirty != 0 && !self.platform.set_bits(address, entry, dirty) {
                    // Changed meanwhile.
                    continue;
                }
                let phys = entry & ADDRESS | iova & ((1 << shift) - 1) & !0xfff;
                let recorded = writes || entry & dirty == dirty;
                return Some(Cached { phys, prot, recorded, snoops: snoop || entry & SecondStage::SNOOP != 0 });
            }
            table = entry & ADDRESS;
            level -= 1;
            if level == 0 {
                state.walks.insert((id, iova >> 21), table);
            }
        }
    }

    /// A DMA by a device that looks into its device TLB first: where it arrives.
    pub(crate) fn translated(&self, source: SourceId, iova: u64) -> Option<u64> {
        self.state().sources.get(&source)?.device?;
        let page = (source, iova >> 12);
        let cached = self.state().device_tlbs.get(&page).copied();
        let found = cached.or_else(|| self.dma(source, iova & !0xfff, Prot::READ))?;
        self.state().device_tlbs.insert(page, found);
        Some(found | iova & 0xfff)
    }

    /// The device TLBs that this unit fills from a domain: ids of the devices, and how they are told.
    pub(crate) fn device_tlbs(&self, domain: &Domain) -> Vec<(u32, Ats)> {
        let snapshot = tags(domain).unwrap().read();
        let mut found: Vec<_> = snapshot
            .iter()
            .flat_map(|(unit, tag)| snapshot.device_tlbs(unit, tag).map(|tlb| (tlb.source.id(), tlb.ats)))
            .collect();
        found.sort_by_key(|(id, _)| *id);
        found
    }

    /// First the unit's own cache; a device that asks in between gets what that still holds.
    fn execute(state: &mut State, told: &Told) {
        let Told { tag, devices, ranges, depth } = told;
        let hit = |first: u64, last: u64| {
            ranges.is_empty() || ranges.iter().any(|r| r.start().as_u64() <= last && first <= r.last().as_u64())
        };
        let covers = |index: u64, shift: u32| hit(index << shift, (index << shift) + ((1 << shift) - 1));
        state.iotlb.retain(|(id, page), _| *id != tag.id || !covers(*page, 12));
        if *depth == Depth::Tables || ranges.is_empty() {
            state.walks.retain(|(id, walk), _| *id != tag.id || !covers(*walk, 21));
        }
        let told = |source: &SourceId| devices.iter().any(|device| device.source == *source);
        state.device_tlbs.retain(|(source, page), _| !told(source) || !covers(*page, 12));
    }

    /// Takes a source from what it went through: everything under its tag is invalidated, then the
    /// tag given back. If the unit does not answer the tag is kept.
    fn leave(&self, unit: &Unit, entry: Entry) {
        let (Some((tag, ..)), Some(table)) = (entry.paging, Table::of(&entry.domain)) else { return };
        let devices: Vec<_> = entry.device.and_then(|tag| tag.device).into_iter().collect();
        let everything =
            Invalidation { tag, devices: &devices, ranges: &[], depth: Depth::Tables, leaves: PageSizes::NONE };
        let invalidated = self.invalidate(&everything).and_then(|ticket| self.wait(ticket));
        if invalidated.is_err() {
            self.ids.quarantine(tag.id);
            return;
        }
        if let Some(device) = entry.device {
            // The number is the unit's, and judged below.
            let _ = table.tags.release(unit, device);
        }
        match table.tags.release(unit, tag) {
            Ok(Last::Yes) => self.ids.free(tag.id),
            Ok(Last::No) => {}
            Err(_) => self.ids.quarantine(tag.id),
        }
    }

    /// What the core says a source went through must be what it went through, or a block that the
    /// unit made itself.
    fn check_old(state: &State, source: SourceId, old: &Domain) {
        match state.sources.get(&source) {
            Some(entry) => assert!(entry.domain.ptr_eq(old), "{source} did not go through {old:?}"),
            None => {
                let own = state.log.contains(&Event::Block(source));
                assert!(old.kind() == DomainKind::Blocked || own, "{source} went through nothing, not {old:?}");
            }
        }
    }
}

/// The cache tags of a paging domain.
pub(crate) fn tags(domain: &Domain) -> Option<&Tags<Frames>> {
    Table::of(domain).map(|table| table.tags)
}

fn tlb(requester: &Requester) -> Tlb {
    if requester.ats.is_some() { Tlb::Used } else { Tlb::Unused }
}

impl IommuOps for FakeUnit {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &'static str {
        "fake unit"
    }

    fn base(&self) -> PhysAddr {
        PhysAddr::new(0xfed9_0000 + (u64::from(self.number) << 12))
    }

    fn coverage(&self, device: &DeviceInfo, _pci: &dyn PciConfig) -> Coverage {
        let first = device.sources.first().unwrap();
        if self.state().named.contains(first) {
            return Coverage::Named;
        }
        if first.segment() == self.number { self.state().coverage } else { Coverage::No }
    }

    fn traits(&self, stage: Stage) -> Option<UnitTraits> {
        let state = self.state();
        match stage {
            Stage::First => state.first,
            Stage::Second => state.second.then_some(state.traits),
        }
    }

    fn windows(&self, stage: Stage) -> Windows {
        let state = self.state();
        let mut windows = state.windows.clone();
        if stage == Stage::First {
            let half = IovaRange::from_len(Iova::new(0), 1 << 47).unwrap();
            windows.intersect(&Windows::new(Window { range: half, page_sizes: traits().page_sizes })).unwrap();
        }
        windows
    }

    fn default_stage(&self) -> Stage {
        if self.state().second { Stage::Second } else { Stage::First }
    }

    fn reserved_regions(&self, device: &DeviceInfo, _: &dyn PciConfig, regions: &mut ReservedRegions) -> Result<()> {
        let state = self.state();
        let own = device.sources.last().and_then(|source| state.regions.get(source));
        own.into_iter().flatten().try_for_each(|region| regions.add(*region))
    }

    fn demanded_domain(&self, _device: &DeviceInfo) -> Option<DomainKind> {
        self.state().demanded
    }

    fn supports_ats(&self, _device: &DeviceInfo, _pci: &dyn PciConfig) -> bool {
        self.state().supports_ats
    }

    fn supports_stalls(&self, _device: &DeviceInfo) -> bool {
        self.state().supports_stalls
    }

    fn answer_stall(&self, tag: StallTag, answer: StallAnswer) -> Result<()> {
        let mut state = self.state();
        let waiting = state.waiting.iter().position(|waiting| *waiting == tag);
        state.waiting.remove(waiting.ok_or(Error::Invalid(InvalidReason::NotWaiting))?);
        state.answers.push((tag, answer));
        Ok(())
    }

    fn capable(&self, capability: Capability) -> bool {
        capability == Capability::CacheCoherency
    }

    fn domain_alloc_paging(&self, spec: &DomainSpec) -> Result<Domain> {
        let levels = if spec.traits.widths & 1 << 48 != 0 { 4 } else { 3 };
        let config = Config {
            page_sizes: spec.traits.page_sizes,
            walker: spec.traits.coherency,
            ..Config::new::<SecondStage>(levels)
        };
        let accessed_dirty = spec.accessed_dirty();
        if spec.stage == Stage::First {
            let config = Config { levels: 4, input_bits: 47, ..config };
            let domain = self.first_domains.insert_with(|_| {
                let table = PageTable::new(self.platform.clone(), X86_64 { accessed_dirty }, config)?;
                Ok(FirstPaging::new(self.platform.clone(), DomainKind::Paging, spec, table))
            })?;
            return Ok(Domain::new(Ref::map(domain, |domain| domain as &dyn DomainOps)));
        }
        let domain = self.domains.insert_with(|_| {
            let table = PageTable::new(self.platform.clone(), SecondStage { accessed_dirty }, config)?;
            Ok(Paging::new(self.platform.clone(), DomainKind::Paging, spec, table))
        })?;
        Ok(Domain::new(Ref::map(domain, |domain| domain as &dyn DomainOps)))
    }

    fn attach(&self, unit: &Unit, requester: &Requester, domain: &Domain, old: &Domain) -> Result<()> {
        let source = requester.source;
        let meanwhile = self.state().during_attach.take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        Self::check_old(&self.state(), source, old);
        self.state().fault_models.insert(source, requester.fault_model);
        fails(&mut self.state().fail_attach)?;
        if self.state().dead {
            self.block(unit, requester, old);
            return Err(Error::Fenced);
        }
        let mut new = Entry { domain: domain.clone(), paging: None, device: None, settings: Settings::default() };
        if domain.kind() == DomainKind::Paging {
            let table = Table::of(domain).ok_or(Error::Incompatible(IncompatibleReason::Driver))?;
            let traits = domain.ops().stage().and_then(|stage| self.traits(stage));
            let traits = traits.ok_or(Error::Incompatible(IncompatibleReason::Stage))?;
            table.traits.check_attach(table.width, traits)?;
            // The tag is known to every unmap before the entry lets anything be cached under it.
            let tag = table.tags.acquire(unit, None, &self.ids)?;
            new.paging = Some((tag, table.root, table.levels));
            if let Some(ats) = requester.ats {
                let device = DeviceTlb { source, pasid: None, ats };
                new.device = Some(table.tags.acquire_device(unit, tag, device)?);
            }
        }
        let old = {
            let mut state = self.state();
            state.log.push(Event::Attach(source, domain.kind()));
            self.platform.space().note(source, |id| Step::Attach(id, domain.kind(), tlb(requester)));
            // Under the lock that a refresh takes.
            new.settings = Settings::of(domain);
            match domain.kind() {
                DomainKind::Blocked => state.sources.remove(&source),
                _ => state.sources.insert(source, new),
            }
        };
        if let Some(old) = old {
            self.leave(unit, old);
        }
        Ok(())
    }

    fn block(&self, unit: &Unit, requester: &Requester, old: &Domain) {
        let source = requester.source;
        let entry = {
            let mut state = self.state();
            Self::check_old(&state, source, old);
            state.log.push(Event::Block(source));
            self.platform.space().note(source, |id| Step::Block(id, tlb(requester)));
            state.sources.remove(&source)
        };
        if let Some(entry) = entry {
            self.leave(unit, entry);
        }
    }

    fn refresh(&self, _unit: &Unit, tag: CacheTag, domain: &Domain) -> Result<()> {
        let changed = {
            let mut state = self.state();
            state.log.push(Event::Refresh(tag.id));
            fails(&mut state.fail_refresh)?;
            let settings = Settings::of(domain);
            let mut changed = false;
            for entry in state.sources.values_mut().filter(|entry| entry.domain.ptr_eq(domain)) {
                changed |= entry.settings != settings;
                entry.settings = settings;
            }
            changed
        };
        if changed {
            let everything =
                Invalidation { tag, devices: &[], ranges: &[], depth: Depth::Leaves, leaves: PageSizes::NONE };
            self.wait(self.invalidate(&everything)?)?;
        }
        Ok(())
    }

    fn invalidate(&self, invalidation: &Invalidation<'_>) -> Result<Ticket> {
        let mut state = self.state();
        fails(&mut state.fail_invalidate)?;
        if state.dead {
            return Err(Error::Fenced);
        }
        state.tickets += 1;
        let ticket = Ticket(state.tickets);
        let Invalidation { tag, devices, ranges, depth, leaves } = *invalidation;
        state.leaves.push(leaves);
        state.log.push(Event::Invalidate(tag.id, ranges.len(), depth));
        state.queue.push((ticket, Told { tag, devices: devices.to_vec(), ranges: ranges.to_vec(), depth }));
        Ok(ticket)
    }

    /// Nothing happens before it is waited for: the latest that hardware may do it.
    fn wait(&self, ticket: Ticket) -> Result<()> {
        let meanwhile = self.state().during_wait.take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        let mut state = self.state();
        state.log.push(Event::Wait);
        fails(&mut state.fail_wait)?;
        if state.dead {
            return Err(TIMED_OUT);
        }
        let position = state.queue.iter().position(|(queued, ..)| *queued == ticket);
        let (_, told) = state.queue.remove(position.expect("a ticket is redeemed once"));
        Self::execute(&mut state, &told);
        Ok(())
    }

    fn enable(&self) -> Result<()> {
        self.state().enabled = true;
        Ok(())
    }

    fn shutdown(&self) -> Result<()> {
        let mut state = self.state();
        if state.fail_shutdown {
            return Err(Error::TimedOut(iommu::WaitReason::Register));
        }
        state.enabled = false;
        Ok(())
    }

    fn suspend(&self) -> Result<()> {
        self.shutdown()
    }

    fn resume(&self) -> Result<()> {
        let mut state = self.state();
        (state.enabled, state.dead) = (true, false);
        state.iotlb.clear();
        state.walks.clear();
        state.queue.clear();
        Ok(())
    }

    fn drain_faults(&self, visit: &mut dyn FnMut(FaultRecord)) -> DrainedFaults {
        let (faults, overflows) = {
            let mut state = self.state();
            (std::mem::take(&mut state.faults), std::mem::take(&mut state.overflows))
        };
        // A storm: it has recorded more meanwhile.
        let left = if overflows > 0 { FaultsLeft::Some } else { FaultsLeft::None };
        faults.into_iter().for_each(visit);
        DrainedFaults { left, overflows }
    }

    fn set_interrupt(&self, kind: InterruptKind, msi: Msi) -> Result<()> {
        self.state().interrupt = Some((kind, msi));
        Ok(())
    }
}
