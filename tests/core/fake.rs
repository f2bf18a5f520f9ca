//! A hardware unit in a few pages: source table, IOTLB, walk cache, invalidation queue.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use iommu::device::DeviceInfo;
use iommu::domain::{Domain, DomainKind, PagingDomain};
use iommu::frames::{IdBitmap, Ref, Slab};
use iommu::iotlb::{CacheTag, Depth, Invalidation, Last, Ticket};
use iommu::ops::{
    Capability, Coverage, DomainFeatures, DomainOps, DomainSpec, InterruptKind, IommuOps, MapFlush, Msi, Requester,
    Stage, Unit, UnitTraits,
};
use iommu::pci::PciConfig;
use iommu::pgtable::{Config, PageSizes, PageTable, SecondStage, WalkerCoherency};
use iommu::{
    DrainedFaults, Error, FaultRecord, FaultsLeft, IncompatibleReason, InvalidationReason, Iova, IovaRange,
    NoSpaceReason, PhysAddr, Prot, ReservedRegion, ReservedRegions, Result, SourceId, Window, Windows,
};

use crate::platform::Frames;

pub(crate) type Paging = PagingDomain<SecondStage, Frames>;

pub(crate) const TIMED_OUT: Error = Error::Invalidation { reason: InvalidationReason::TimedOut, request: 0 };

/// What the tests look at and turn.
pub(crate) struct State {
    pub(crate) traits: UnitTraits,
    pub(crate) windows: Windows,
    /// Reserved regions by the first source of a device.
    pub(crate) regions: BTreeMap<SourceId, Vec<ReservedRegion>>,
    pub(crate) demanded: Option<DomainKind>,
    /// How platform devices of this unit's number are covered.
    pub(crate) coverage: Coverage,
    /// Sources whose devices firmware names for this unit, whatever their number says.
    pub(crate) named: Vec<SourceId>,
    /// Barriers before the latest invalidation.
    pub(crate) published: u64,
    /// Attach calls until one fails with this error.
    pub(crate) fail_attach: Option<(usize, Error)>,
    /// Submits until one fails, and waits until one fails.
    pub(crate) fail_invalidate: Option<(usize, Error)>,
    pub(crate) fail_wait: Option<(usize, Error)>,
    pub(crate) fail_shutdown: bool,
    /// Does not answer any more.
    pub(crate) dead: bool,
    pub(crate) log: Vec<Event>,
    pub(crate) faults: Vec<FaultRecord>,
    /// Faults that there was no room for.
    pub(crate) overflows: u64,
    pub(crate) enabled: bool,
    pub(crate) interrupt: Option<(InterruptKind, Msi)>,
    /// Runs inside the next attach.
    pub(crate) during_attach: Option<Box<dyn FnOnce() + Send>>,
    /// Runs inside the next wait.
    pub(crate) during_wait: Option<Box<dyn FnOnce() + Send>>,
    sources: BTreeMap<SourceId, Entry>,
    /// Page by page: where it leads, or `None` for an absent entry that is cached.
    iotlb: BTreeMap<(u32, u64), Option<(u64, Prot)>>,
    /// Tables of level 0, by domain id and the bits of the IOVA above them.
    walks: BTreeMap<(u32, u64), u64>,
    queue: Vec<(Ticket, CacheTag, Vec<IovaRange>, Depth)>,
    tickets: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Event {
    Attach(SourceId, DomainKind),
    Block(SourceId),
    /// With the number of ranges.
    Invalidate(u32, usize, Depth),
    Wait,
}

/// The unit's entry for a source; none is a block.
#[derive(Clone)]
struct Entry {
    domain: Domain,
    /// For a paging domain: its tag, the root of its table and its levels.
    paging: Option<(CacheTag, PhysAddr, u8)>,
}

pub(crate) struct FakeUnit {
    platform: Frames,
    number: u16,
    ids: IdBitmap<Frames>,
    domains: Slab<Paging, Frames>,
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
            platform,
            state: Mutex::new(State {
                traits: traits(),
                windows: full_windows(),
                regions: BTreeMap::new(),
                demanded: None,
                coverage: Coverage::Named,
                named: vec![],
                published: 0,
                fail_attach: None,
                fail_invalidate: None,
                fail_wait: None,
                fail_shutdown: false,
                dead: false,
                log: vec![],
                faults: vec![],
                overflows: 0,
                enabled: false,
                interrupt: None,
                during_attach: None,
                during_wait: None,
                sources: BTreeMap::new(),
                iotlb: BTreeMap::new(),
                walks: BTreeMap::new(),
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
        let mut state = self.state();
        let entry = state.sources.get(&source)?.clone();
        let Some((tag, root, levels)) = entry.paging else { return Some(iova) };
        let page = (tag.id, iova >> 12);
        let cached = state.iotlb.get(&page).copied();
        let found = cached.unwrap_or_else(|| {
            let found = self.walk(&mut state, tag.id, root, levels, iova);
            if found.is_some() || state.traits.map_flush == MapFlush::Always {
                state.iotlb.insert(page, found);
            }
            found
        });
        let (phys, prot) = found?;
        prot.contains(wanted).then_some(phys | iova & 0xfff)
    }

    fn walk(&self, state: &mut State, id: u32, root: PhysAddr, levels: u8, iova: u64) -> Option<(u64, Prot)> {
        const ADDRESS: u64 = (1 << 52) - (1 << 12);
        if iova >> (12 + 9 * u32::from(levels)) != 0 {
            return None;
        }
        let (mut table, mut level) = match state.walks.get(&(id, iova >> 21)) {
            Some(table) => (*table, 0),
            None => (root.as_u64(), levels - 1),
        };
        loop {
            let shift = 12 + 9 * u32::from(level);
            let entry = self.platform.read(table + (iova >> shift & 511) * 8);
            if entry & 3 == 0 {
                return None;
            }
            if level == 0 || entry & 1 << 7 != 0 {
                let within = iova & ((1 << shift) - 1) & !0xfff;
                return Some((entry & ADDRESS | within, Prot::from_bits_truncate(entry as u32 & 3)));
            }
            table = entry & ADDRESS;
            level -= 1;
            if level == 0 {
                state.walks.insert((id, iova >> 21), table);
            }
        }
    }

    fn execute(state: &mut State, tag: CacheTag, ranges: &[IovaRange], depth: Depth) {
        let hit = |first: u64, last: u64| {
            ranges.is_empty() || ranges.iter().any(|r| r.start().as_u64() <= last && first <= r.last().as_u64())
        };
        let covers = |index: u64, shift: u32| hit(index << shift, (index << shift) + ((1 << shift) - 1));
        state.iotlb.retain(|(id, page), _| *id != tag.id || !covers(*page, 12));
        if depth == Depth::Tables || ranges.is_empty() {
            state.walks.retain(|(id, walk), _| *id != tag.id || !covers(*walk, 21));
        }
    }

    /// Takes a source from what it went through: everything under its tag is invalidated, then the
    /// tag given back. If the unit does not answer the tag is kept.
    fn leave(&self, unit: &Unit, entry: Entry) {
        let (Some((tag, ..)), Some(paging)) = (entry.paging, paging(&entry.domain)) else { return };
        let everything = Invalidation { tag, devices: &[], ranges: &[], depth: Depth::Tables };
        let invalidated = self.invalidate(&everything).and_then(|ticket| self.wait(ticket));
        if invalidated.is_err() {
            self.ids.quarantine(tag.id);
            return;
        }
        match paging.tags().release(unit, tag) {
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

pub(crate) fn paging(domain: &Domain) -> Option<&Paging> {
    domain.ops().as_any().downcast_ref()
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
        (stage == Stage::Second).then(|| self.state().traits)
    }

    fn windows(&self, _: Stage) -> Windows {
        self.state().windows.clone()
    }

    fn default_stage(&self) -> Stage {
        Stage::Second
    }

    fn reserved_regions(&self, device: &DeviceInfo, _: &dyn PciConfig, regions: &mut ReservedRegions) -> Result<()> {
        let state = self.state();
        let own = device.sources.last().and_then(|source| state.regions.get(source));
        own.into_iter().flatten().try_for_each(|region| regions.add(*region))
    }

    fn demanded_domain(&self, _device: &DeviceInfo) -> Option<DomainKind> {
        self.state().demanded
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
        let domain = self.domains.insert_with(|_| {
            let table = PageTable::new(self.platform.clone(), SecondStage::default(), config)?;
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
        fails(&mut self.state().fail_attach)?;
        if self.state().dead {
            self.block(unit, requester, old);
            return Err(Error::Fenced);
        }
        let mut new = Entry { domain: domain.clone(), paging: None };
        if domain.kind() == DomainKind::Paging {
            let paging = paging(domain).ok_or(Error::Incompatible(IncompatibleReason::Driver))?;
            let levels = paging.table().levels();
            paging.traits().check_attach(12 + 9 * levels, self.state().traits)?;
            // The tag is known to every unmap before the entry lets anything be cached under it.
            let tag = paging.tags().acquire(unit, None, &self.ids)?;
            new.paging = Some((tag, paging.table().root(), levels));
        }
        let old = {
            let mut state = self.state();
            state.log.push(Event::Attach(source, domain.kind()));
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
            state.sources.remove(&source)
        };
        if let Some(entry) = entry {
            self.leave(unit, entry);
        }
    }

    fn invalidate(&self, invalidation: &Invalidation<'_>) -> Result<Ticket> {
        let mut state = self.state();
        fails(&mut state.fail_invalidate)?;
        if state.dead {
            return Err(Error::Fenced);
        }
        state.published = self.platform.published();
        state.tickets += 1;
        let ticket = Ticket(state.tickets);
        let Invalidation { tag, ranges, depth, .. } = *invalidation;
        state.log.push(Event::Invalidate(tag.id, ranges.len(), depth));
        state.queue.push((ticket, tag, ranges.to_vec(), depth));
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
        let (_, tag, ranges, depth) = state.queue.remove(position.expect("a ticket is redeemed once"));
        Self::execute(&mut state, tag, &ranges, depth);
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
