//! One VT-d unit in legacy mode: who goes through which domain.
//!
//! Orders are those of VT-d 6.5.3.3. A context entry that changes is withdrawn, invalidated, and
//! only then written anew: legacy entries hold the table in one half and the domain id in the other,
//! so hardware must not see both halves change.

use core::fmt;
use core::mem::ManuallyDrop;

use super::capabilities::Capabilities;
use super::context::{Context, ContextTables};
use super::faults::FaultLog;
use super::firmware::Firmware;
use super::invalidation::drain;
use super::queue::{Queue, QueueConfig};
use super::registers::UnitRegisters;
use super::site::{self, FlushSites, RequestSite};
use crate::addr::{Iova, IovaRange, PhysAddr, PhysRange};
use crate::arch::vtd::layout::descriptors::{ContextScope, IotlbScope, Request};
use crate::arch::vtd::layout::registers::{Global, TableMode};
use crate::arch::vtd::layout::tables::TranslationType;
use crate::arch::vtd::layout::{AddressWidth, Cap, ContextEntry, DomainId, Ecap};
use crate::domain::{Domain, DomainKind, PagingDomain};
use crate::error::{Error, IncompatibleReason, NoSpaceReason, Result, UnsupportedReason};
use crate::frames::{IdBitmap, Ref, Slab};
use crate::iommu::map_direct_region;
use crate::iotlb::{CacheTag, Last};
use crate::ops::{DomainFeatures, DomainOps, DomainSpec, MapFlush, Msi, Stage, Unit, UnitTraits};
use crate::pgtable::{Config, PageSize, PageSizes, PageTable, SecondStage, WalkerCoherency};
use crate::platform::{FRAME_BYTES, Platform};
use crate::prot::Prot;
use crate::region::{RegionKind, ReservedRegion};
use crate::sync::{Lock, Site};
use crate::window::{Window, Windows};

/// The domains that this backend makes.
pub(super) type VtdDomain<P> = PagingDomain<SecondStage, P>;

/// Attachments of a fenced unit whose domains could not be let go. Beyond it domains are leaked.
const QUARANTINED_DOMAINS: usize = 32;

/// What cached absent entries are tagged with in caching mode, so no domain has it (VT-d 6.1).
const ABSENT_ID: DomainId = DomainId::new(0);

/// The domain id of pass-through entries.
const PASS_THROUGH_ID: DomainId = DomainId::new(1);

/// One VT-d unit. Made by [`init`](super::init); kernels reach it through [`Unit`].
pub struct VtdUnit<P: Platform> {
    pub(super) platform: P,
    pub(super) base: PhysAddr,
    pub(super) segment: u16,
    pub(super) firmware: Ref<Firmware<P>>,
    pub(super) registers: UnitRegisters<P>,
    pub(super) queue: Queue<P>,
    pub(super) faults: FaultLog,
    /// Dropped only after hardware has stopped walking them.
    pub(super) tables: ManuallyDrop<ContextTables<P>>,
    ids: IdBitmap<P>,
    domains: Slab<VtdDomain<P>, P>,
    /// Stands in for pass-through where the unit has none; made when it is first needed.
    identity: Lock<Option<Domain>>,
    /// What hardware may still use after an invalidation failed: released when the unit is reset.
    quarantine: Lock<heapless::Vec<(Unit, Domain, CacheTag), QUARANTINED_DOMAINS>>,
    /// The fault interrupt, to be restored after loss of power.
    pub(super) fault_interrupt: Lock<Option<Msi>>,
}

impl<P: Platform> VtdUnit<P> {
    /// Takes over the unit at `base`: its capabilities are read, its invalidation queue is started,
    /// old faults are cleared. What translation firmware left on stays until
    /// [`enable`](Self::enable); interrupt remapping is turned off.
    pub(super) fn new(platform: P, base: PhysAddr, segment: u16, firmware: Ref<Firmware<P>>) -> Result<Self> {
        let registers = UnitRegisters::map(platform.clone(), base)?;
        let capabilities = *registers.capabilities();
        if !capabilities.ecap.contains(Ecap::QI) {
            return Err(Error::Unsupported(UnsupportedReason::QueuedInvalidation));
        }
        if capabilities.widest().is_none() {
            return Err(Error::Unsupported(UnsupportedReason::Translation));
        }
        let last_id = capabilities.domain_ids().saturating_sub(1);
        let ids = IdBitmap::new(platform.clone(), last_id, NoSpaceReason::DomainIds)?;
        for reserved in [ABSENT_ID, PASS_THROUGH_ID] {
            ids.reserve(u32::from(reserved.as_u16()))?;
        }
        let queue = Queue::new(platform.clone(), QueueConfig::default())?;
        let tables = ContextTables::new(platform.clone(), coherency(&capabilities), TableMode::Legacy)?;
        let domains = Slab::new(platform.clone())?;
        let faults = FaultLog::new();
        // The table belongs to whoever left it on, and its memory may be in use for something else.
        registers.disable_interrupt_remapping()?;
        // Last, for nothing may fail afterwards: the hardware uses the queue from now on.
        queue.start(&registers)?;
        faults.clear(&registers);
        Ok(Self {
            tables: ManuallyDrop::new(tables),
            domains,
            platform,
            base,
            segment,
            firmware,
            registers,
            queue,
            faults,
            ids,
            identity: Lock::new(None),
            quarantine: Lock::new(heapless::Vec::new()),
            fault_interrupt: Lock::new(None),
        })
    }

    /// What the unit can do.
    pub(super) fn capabilities(&self) -> &Capabilities {
        self.registers.capabilities()
    }

    /// The widths that the second stage can have, narrowest first.
    fn widths(&self) -> impl Iterator<Item = AddressWidth> {
        let all = [AddressWidth::Bits39, AddressWidth::Bits48, AddressWidth::Bits57];
        all.into_iter().filter(|width| self.capabilities().has_width(*width))
    }

    /// The pages that the second stage can have.
    fn page_sizes(&self) -> PageSizes {
        let large = [(Cap::LARGE_2M, PageSize::SIZE_2M), (Cap::LARGE_1G, PageSize::SIZE_1G)];
        let large = large.into_iter().filter(|(bit, _)| self.capabilities().cap.contains(*bit));
        large.fold(PageSizes::only(PageSize::SIZE_4K), |sizes, (_, size)| sizes.union(PageSizes::only(size)))
    }

    /// What domains must agree with.
    pub(super) fn unit_traits(&self) -> UnitTraits {
        let flush = self.capabilities().cap.intersects(Cap::CM | Cap::RWBF);
        UnitTraits {
            driver: "VT-d second stage",
            coherency: coherency(self.capabilities()),
            page_sizes: self.page_sizes(),
            widths: self.widths().fold(0, |bits, width| bits | 1 << width.bits()),
            map_flush: if flush { MapFlush::Always } else { MapFlush::Never },
            // Legacy entries have no bit for either.
            features: DomainFeatures::empty(),
        }
    }

    /// One window: what the second stage translates at the most.
    pub(super) fn unit_windows(&self) -> Windows {
        let widest = self.capabilities().widest().map_or(0, AddressWidth::bits);
        let bits = widest.min(self.capabilities().cap.guest_address_bits()).min(63);
        let last = (1u64 << bits).wrapping_sub(1);
        match IovaRange::new(Iova::new(0), Iova::new(last)) {
            Ok(range) => Windows::new(Window { range, page_sizes: self.page_sizes() }),
            Err(_) => Windows::none(),
        }
    }

    /// A domain with an empty second-stage table.
    pub(super) fn new_domain(&self, kind: DomainKind, spec: &DomainSpec) -> Result<Ref<VtdDomain<P>>> {
        let last = spec.windows.geometry().map_or(0, |range| range.last().as_u64());
        let widths = || self.widths().filter(|width| spec.traits.widths >> width.bits() & 1 != 0);
        let width = widths()
            .find(|width| last >> width.bits() == 0)
            .or_else(|| widths().last())
            .ok_or(Error::Unsupported(UnsupportedReason::AddressWidth))?;
        let levels = width.levels() as u8;
        let config = Config {
            walker: spec.traits.coherency,
            page_sizes: spec.traits.page_sizes,
            ..Config::new::<SecondStage>(levels)
        };
        let table = PageTable::new(self.platform.clone(), SecondStage::default(), config)?;
        let domain = PagingDomain::new(self.platform.clone(), kind, spec, table);
        self.domains.insert(domain).map_err(|(error, _)| error)
    }

    /// See [`IommuOps::attach`](crate::ops::IommuOps::attach).
    pub(super) fn set_domain(&self, unit: &Unit, requester: u16, domain: &Domain, old: &Domain) -> Result<()> {
        if domain.kind() == DomainKind::Blocked {
            return self.set_blocked(unit, requester, old);
        }
        self.refuse_if_fenced()?;
        let (entry, tag) = self.entry_for(unit, domain)?;
        let context = match self.tables.find_or_make(requester) {
            Ok(context) => context,
            Err(error) => {
                self.release(unit, domain, tag);
                return Err(error);
            }
        };
        if context.read::<ContextEntry>() == entry {
            // An alias that another device of the group has brought here.
            self.release(unit, domain, tag);
            return Ok(());
        }
        let before = match self.withdraw(&context, unit, requester, old) {
            Ok(before) => before,
            Err(error) => {
                // No hardware has seen the new entry.
                self.release(unit, domain, tag);
                return Err(error);
            }
        };
        context.publish(entry);
        // Looked at again afterwards: a fence may have passed the entry before it was written.
        let shown = self.flush_absent(requester, entry).and_then(|()| self.refuse_if_fenced());
        if shown.is_err() {
            context.withdraw::<ContextEntry>();
            context.clear();
            self.quarantine(unit, domain, tag);
        }
        self.release(unit, old, before);
        shown
    }

    /// Blocks a requester that went through `old`.
    pub(super) fn set_blocked(&self, unit: &Unit, requester: u16, old: &Domain) -> Result<()> {
        // Without a context table it was never let through.
        let Some(context) = self.tables.find(requester) else { return Ok(()) };
        let before = self.withdraw(&context, unit, requester, old)?;
        self.release(unit, old, before);
        Ok(())
    }

    /// Blocks every device at once, because the unit does not do what it is told, until
    /// [`unfence`](Self::unfence).
    pub(super) fn fence(&self) {
        self.tables.each(|context| context.fence());
    }

    /// What a fenced unit has cached is not known, so nothing may be let through.
    fn refuse_if_fenced(&self) -> Result<()> {
        if self.queue.is_running() || self.is_off() { Ok(()) } else { Err(Error::Fenced) }
    }

    /// After a reset: lets devices through again that [`fence`](Self::fence) has blocked. The caller
    /// owes a global invalidation: absent entries may be cached as well.
    pub(super) fn unfence(&self) {
        self.tables.each(|context| context.unfence());
    }

    /// After a global invalidation, or when the unit is off: lets go what was quarantined.
    pub(super) fn release_quarantined(&self) {
        let held = core::mem::take(&mut *self.quarantine.lock(&self.platform));
        for (unit, domain, tag) in held {
            self.release(&unit, &domain, Some(tag));
        }
    }

    /// The entry for a domain, with a use of its tag taken if it has one.
    fn entry_for(&self, unit: &Unit, domain: &Domain) -> Result<(ContextEntry, Option<CacheTag>)> {
        if domain.kind() == DomainKind::Identity && self.capabilities().ecap.contains(Ecap::PT) {
            let width = self.capabilities().widest().ok_or(Error::Unsupported(UnsupportedReason::AddressWidth))?;
            let nowhere = PhysAddr::new(0);
            return Ok((ContextEntry::new(TranslationType::PassThrough, nowhere, width, PASS_THROUGH_ID), None));
        }
        let domain = self.translated(domain)?;
        let paging = downcast::<P>(&domain).ok_or(Error::Incompatible(IncompatibleReason::Driver))?;
        let table = paging.table();
        let width = AddressWidth::from_levels(u32::from(table.levels()))
            .ok_or(Error::Incompatible(IncompatibleReason::Width))?;
        paging.traits().check_attach(width.bits() as u8, self.unit_traits())?;
        let tag = paging.tags().acquire(unit, None, &self.ids)?;
        let id = DomainId::new(tag.id as u16);
        Ok((ContextEntry::new(TranslationType::Untranslated, table.root(), width, id), Some(tag)))
    }

    /// The domain whose table stands for `domain` in this unit.
    fn translated(&self, domain: &Domain) -> Result<Domain> {
        match domain.kind() {
            DomainKind::Identity => self.identity_table(),
            _ => Ok(domain.clone()),
        }
    }

    /// A domain in which RAM, and what firmware reserved, is mapped one to one.
    fn identity_table(&self) -> Result<Domain> {
        if let Some(domain) = self.identity.lock(&self.platform).clone() {
            return Ok(domain);
        }
        let spec = DomainSpec { stage: Stage::Second, traits: self.unit_traits(), windows: self.unit_windows() };
        let new = self.new_domain(DomainKind::Identity, &spec)?;
        let new = Domain::new(Ref::map(new, |domain| domain as &dyn DomainOps));
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
        let mut slot = self.identity.lock(&self.platform);
        Ok(slot.get_or_insert_with(|| new.clone()).clone())
    }

    /// Context entry P to NP (VT-d 6.5.3.3): not present, context cache, IOTLB, wait, clear. Gives the
    /// tag that the entry used, under which nothing is cached for it any more. After an error the
    /// entry is not present all the same, and `old` is quarantined.
    fn withdraw(
        &self,
        context: &Context<'_, P>,
        unit: &Unit,
        requester: u16,
        old: &Domain,
    ) -> Result<Option<CacheTag>> {
        let before: Option<ContextEntry> = context.withdraw();
        let invalidated = match before {
            Some(entry) => {
                self.invalidate_context(&site::WITHDRAW_FLUSH, entry.domain_id(), requester, entry.domain_id())
            }
            None => Ok(()),
        };
        context.clear();
        let tag = before.and_then(entry_tag);
        match invalidated {
            Ok(()) => Ok(tag),
            Err(error) => {
                self.quarantine(unit, old, tag);
                Err(error)
            }
        }
    }

    /// Context entry NP to P (VT-d 6.5.3.3): in caching mode the absent entry may be cached.
    fn flush_absent(&self, requester: u16, entry: ContextEntry) -> Result<()> {
        if self.capabilities().cap.contains(Cap::CM) {
            // Flushes write buffers as well (VT-d 6.8).
            return self.invalidate_context(&site::ABSENT_FLUSH, ABSENT_ID, requester, entry.domain_id());
        }
        self.flush_write_buffer(site::PRESENT_WRITE_BUFFER)
    }

    fn invalidate_context(&self, sites: &FlushSites, cached: DomainId, source: u16, domain: DomainId) -> Result<()> {
        let context = ContextScope::Device { domain: cached, source, function_mask: 0 };
        match self.flush(sites, context, IotlbScope::Domain(domain)) {
            Err(Error::Fenced) if self.is_off() => Ok(()),
            result => result,
        }
    }

    /// Invalidates in the context cache, then in the IOTLB, and waits for each: requests without a wait
    /// between them may be executed in any order, and a stale context entry would fill the IOTLB again.
    pub(super) fn flush(&self, sites: &FlushSites, context: ContextScope, iotlb: IotlbScope) -> Result<()> {
        self.run(sites.context, Request::Context(context))?;
        self.run(sites.iotlb, Request::Iotlb(iotlb, drain(self.capabilities())))
    }

    /// Flushes the write buffer, if the unit has one that needs it.
    pub(super) fn flush_write_buffer(&self, site: Site) -> Result<()> {
        if site.is_skipped() { Ok(()) } else { self.registers.flush_write_buffer() }
    }

    /// Makes one request and waits for it; if that fails, every device is blocked.
    pub(super) fn run(&self, site: RequestSite, request: Request) -> Result<()> {
        if site.request.is_skipped() {
            return Ok(());
        }
        let done = self
            .queue
            .submit(&self.registers, &[request.encode()])
            .and_then(|ticket| if site.wait.is_skipped() { Ok(()) } else { self.queue.wait(&self.registers, ticket) });
        self.fence_with_queue(done)
    }

    /// Whether translation and queue are off, after [`stop`](Self::stop). Nothing needs to be
    /// invalidated then: [`enable`](crate::ops::IommuOps::enable) invalidates everything first. A
    /// change that found the queue off under its lock is visible to whoever starts it.
    pub(super) fn is_off(&self) -> bool {
        self.registers.status().is_ok_and(|status| !status.intersects(Global::TE | Global::QIE))
    }

    /// Blocks every device after an error with which the queue was fenced, whoever fenced it: what was
    /// to be invalidated may stay in caches.
    pub(super) fn fence_with_queue<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() && self.queue.is_fenced() {
            self.fence();
        }
        result
    }

    fn release(&self, unit: &Unit, domain: &Domain, tag: Option<CacheTag>) {
        let Some(tag) = tag else { return };
        let Ok(domain) = self.translated(domain) else { return };
        let Some(paging) = downcast::<P>(&domain) else { return };
        // After an error the number is never used again.
        if paging.tags().release(unit, tag) == Ok(Last::Yes) {
            self.ids.free(tag.id);
        }
    }

    /// Keeps a domain, and the number it is cached under, until the unit was reset.
    fn quarantine(&self, unit: &Unit, domain: &Domain, tag: Option<CacheTag>) {
        let Some(tag) = tag else { return };
        let Ok(domain) = self.translated(domain) else { return };
        let held = (unit.clone(), domain, tag);
        if let Err(too_many) = self.quarantine.lock(&self.platform).push(held) {
            core::mem::forget(too_many);
        }
    }
}

impl<P: Platform> Drop for VtdUnit<P> {
    fn drop(&mut self) {
        if self.stop().is_ok() {
            // SAFETY: dropped once, here, and hardware walks them no more. Otherwise they are leaked.
            unsafe { ManuallyDrop::drop(&mut self.tables) };
        }
    }
}

impl<P: Platform> fmt::Debug for VtdUnit<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VT-d unit at {}: {}", self.base, self.capabilities())
    }
}

fn coherency(capabilities: &Capabilities) -> WalkerCoherency {
    if capabilities.is_coherent() { WalkerCoherency::Snoops } else { WalkerCoherency::NeedsClean }
}

fn downcast<P: Platform>(domain: &Domain) -> Option<&VtdDomain<P>> {
    domain.ops().as_any().downcast_ref()
}

/// The tag under which a translating entry is cached; pass-through has none.
fn entry_tag(entry: ContextEntry) -> Option<CacheTag> {
    let id = entry.domain_id();
    (id != PASS_THROUGH_ID && id != ABSENT_ID).then(|| CacheTag {
        id: u32::from(id.as_u16()),
        pasid: None,
        device: None,
    })
}

/// Maps a physical range one to one, as far as it is not.
fn map_identity(domain: &Domain, range: PhysRange) -> Result<()> {
    let range = range.align_outward(FRAME_BYTES);
    let range = IovaRange::new(Iova::new(range.start().as_u64()), Iova::new(range.last().as_u64()))?;
    map_direct_region(domain, ReservedRegion { range, kind: RegionKind::Direct, prot: Prot::RW })
}
