//! Paging domains: a page table, and the caches that may hold what is in it.

use core::any::Any;
use core::mem::ManuallyDrop;
use core::time::Duration;

use super::features::Switches;
use super::{DirtyBitmap, DirtyTracking, Domain, DomainKind, site};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::error::{BusyReason, Error, InvalidReason, Result, WaitReason};
use crate::iotlb::{CacheTag, DeviceTlb, Flush, Invalidation, MAX_DEVICE_TLBS, Snapshot, Tags, Ticket};
use crate::ops::{DomainFeatures, DomainOps, DomainSpec, MapFlush, Stage, Unit, UnitTraits};
use crate::pgtable::{DirtyRead, Format, LiveSplit, MapError, PageSizes, PageTable, Run, Short, TableList};
use crate::platform::Platform;
use crate::prot::Prot;
use crate::sync::{Lock, wait_until};
use crate::window::Windows;

/// Invalidations that one sync has under way at once; with more units it waits in between.
const TICKETS_AT_ONCE: usize = 8;

/// How long a flush of what was deferred waits for another processor's.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// A domain with a page table of format `F`, for any number of units of one backend.
///
/// Backends make it and find it again by downcast from [`DomainOps::as_any`].
#[derive(Debug)]
pub struct PagingDomain<F: Format, P: Platform> {
    pub(super) kind: DomainKind,
    pub(super) stage: Stage,
    pub(super) traits: UnitTraits,
    pub(super) switches: Switches,
    pub(super) windows: Windows,
    /// The widest of the windows, in which nearly every range lies: there the short ways are taken.
    /// `None` when there is no short way.
    usual: Option<IovaRange>,
    /// Leaked while a cache may still hold translations, see `drop`.
    pub(super) table: ManuallyDrop<PageTable<F, P>>,
    pub(super) tags: Tags<P>,
    pub(super) platform: P,
    /// What was unmapped and not yet invalidated: deferred on purpose, or because it failed.
    deferred: Lock<Deferred>,
}

#[derive(Debug)]
struct Deferred {
    flush: Flush,
    /// A processor has taken out what was here before, and is not done with it.
    under_way: bool,
}

impl<F: Format, P: Platform> PagingDomain<F, P> {
    /// A domain over `table`, which is empty. `kind` is [`DomainKind::Identity`] when the backend
    /// maps RAM one to one in it, for units without pass-through. A table for
    /// [`DomainFeatures::DIRTY_TRACKING`] keeps what hardware records:
    /// [`DomainSpec::accessed_dirty`]. Where the format enforces coherency in each leaf, this tells it.
    pub fn new(platform: P, kind: DomainKind, spec: &DomainSpec, table: PageTable<F, P>) -> Self {
        if spec.traits.features.contains(DomainFeatures::CACHE_COHERENCY) && Self::enforces_in_leaves(spec.stage) {
            let enforced = table.enforce_snoop();
            debug_assert!(enforced.is_ok(), "the table is empty");
        }
        let widest = spec
            .windows
            .iter()
            .map(|window| window.range)
            .max_by_key(|range| range.last().as_u64() - range.start().as_u64());
        Self {
            kind,
            stage: spec.stage,
            switches: Switches::new(spec.traits.features & DomainFeatures::CACHE_COHERENCY),
            usual: widest.filter(|_| kind == DomainKind::Paging && spec.traits.map_flush == MapFlush::Never),
            traits: spec.traits,
            windows: spec.windows.clone(),
            table: ManuallyDrop::new(table),
            tags: Tags::new(platform.clone()),
            platform,
            deferred: Lock::new(Deferred { flush: Flush::new(), under_way: false }),
        }
    }

    /// The page table.
    pub fn table(&self) -> &PageTable<F, P> {
        &self.table
    }

    /// The caches that may hold translations of the domain.
    pub fn tags(&self) -> &Tags<P> {
        &self.tags
    }

    /// What the domain does for its units, and demands of them. A backend that attaches acquires its
    /// tag first and looks afterwards: what is demanded can grow.
    pub fn traits(&self) -> UnitTraits {
        UnitTraits { features: self.traits.features | self.features(), ..self.traits }
    }

    /// Invalidates in every cache and waits. All units work at the same time.
    pub(super) fn invalidate(&self, flush: &Flush) -> Result<()> {
        let snapshot = self.tags.read();
        match snapshot.only() {
            Some((unit, tag)) if !site::REQUEST.is_skipped() => {
                unit.wait(unit.invalidate(&request(flush, tag, &[]))?)
            }
            _ => self.invalidate_everywhere(&snapshot, flush),
        }
    }

    /// [`invalidate`](Self::invalidate), whatever there are of caches.
    #[inline(never)]
    fn invalidate_everywhere(&self, snapshot: &Snapshot<'_, P>, flush: &Flush) -> Result<()> {
        let mut result = Ok(());
        let mut under_way: heapless::Vec<(&Unit, Ticket), TICKETS_AT_ONCE> = heapless::Vec::new();
        for (unit, tag) in snapshot.iter() {
            let mut submit = |devices: &[DeviceTlb]| {
                if site::REQUEST.is_skipped() {
                    return;
                }
                if under_way.is_full() {
                    keep(&mut result, wait_all(&mut under_way));
                }
                match unit.invalidate(&request(flush, tag, devices)) {
                    // There is room: it was emptied above when it was full.
                    Ok(ticket) => drop(under_way.push((unit, ticket))),
                    Err(error) => keep(&mut result, Err(error)),
                }
            };
            let mut devices: heapless::Vec<DeviceTlb, MAX_DEVICE_TLBS> = heapless::Vec::new();
            for device in snapshot.device_tlbs(unit, tag) {
                if let Err(device) = devices.push(device) {
                    submit(&devices);
                    devices.clear();
                    let _ = devices.push(device);
                }
            }
            // With more device TLBs the unit's own cache is asked again: it goes before each.
            submit(&devices);
        }
        keep(&mut result, wait_all(&mut under_way));
        result
    }

    /// Checks that `range` lies in a window.
    #[inline(always)]
    fn check(&self, range: IovaRange) -> Result<()> {
        if self.is_usual(range) { Ok(()) } else { self.check_all(range) }
    }

    #[inline(never)]
    fn check_all(&self, range: IovaRange) -> Result<()> {
        match self.kind {
            DomainKind::Paging => self.windows.check(range),
            DomainKind::Blocked | DomainKind::Identity => Err(Error::Invalid(InvalidReason::NotPaging)),
        }
    }

    /// Whether `range` lies in the widest window, and a map needs no invalidation.
    #[inline(always)]
    fn is_usual(&self, range: IovaRange) -> bool {
        self.usual.is_some_and(|window| window.covers(&range))
    }

    /// Unmaps where [`is_usual`](Self::is_usual) does not hold. Apart, so that the usual way needs no
    /// room for an error.
    ///
    /// # Safety
    /// As [`Domain::unmap`](super::Domain::unmap).
    #[inline(never)]
    unsafe fn unmap_elsewhere(&self, range: IovaRange, flush: &mut Flush) -> Result<()> {
        self.check_all(range)?;
        // SAFETY: passed on to the caller.
        unsafe { self.unmap_anywhere(range, flush) }
    }

    /// Unmaps, windows or not.
    ///
    /// # Safety
    /// As [`Domain::unmap`](super::Domain::unmap).
    #[inline(never)]
    unsafe fn unmap_anywhere(&self, range: IovaRange, flush: &mut Flush) -> Result<()> {
        // SAFETY: passed on to the caller.
        let result = unsafe { self.table.unmap(range, &mut flush.tables) };
        match result {
            Ok(()) => flush.add_noted(range),
            Err(error) => add_below(range, error, flush),
        }
        result
    }

    /// Maps, windows or not.
    ///
    /// # Safety
    /// As [`Domain::map`](super::Domain::map).
    #[inline(never)]
    unsafe fn map_anywhere(&self, range: IovaRange, phys: PhysAddr, prot: Prot, sizes: PageSizes) -> Result<()> {
        let mut stray = TableList::new();
        // SAFETY: passed on to the caller.
        let mut result = unsafe { self.table.map(range, phys, prot, sizes, &mut stray) };
        if self.table.format().live_split() == LiveSplit::Forbidden
            && result.is_err_and(|failed| failed.error == Error::Busy(BusyReason::BreakBeforeMake))
        {
            // Once: nobody else puts tables into the range.
            self.finish_undo(range, Flush::of_tables(core::mem::take(&mut stray)))?;
            // SAFETY: as above.
            result = unsafe { self.table.map(range, phys, prot, sizes, &mut stray) };
        }
        if result.is_ok() && stray.is_empty() && self.traits.map_flush == MapFlush::Never {
            site::MAPPED.publish(&self.platform);
            return Ok(());
        }
        self.finish_map(range, result, stray)
    }

    /// What is left to do after a map, but in the usual case.
    #[cold]
    #[inline(never)]
    fn finish_map(&self, range: IovaRange, result: Result<(), MapError>, tables: TableList) -> Result<()> {
        let flush = Flush::of_tables(tables);
        match result {
            Ok(()) => self.flush_map(range, flush),
            Err(failed) => {
                if failed.undone.is_some() || !flush.is_empty() {
                    self.finish_undo(failed.undone.unwrap_or(range), flush)?;
                }
                Err(failed.error)
            }
        }
    }

    /// Drops what a map makes stale: cached absent entries and write buffers, see [`MapFlush`], and
    /// walks through empty tables that large pages replaced. If that fails the mapping is taken
    /// back, and what hardware may have seen of it is deferred.
    fn flush_map(&self, range: IovaRange, mut flush: Flush) -> Result<()> {
        flush.add_mapped(range);
        let flushed = self.sync(&mut flush);
        if flushed.is_err() {
            // SAFETY: the caller of `map` keeps others away from the range, and it was just mapped.
            let unmapped = unsafe { self.unmap_anywhere(range, &mut flush) };
            debug_assert!(unmapped.is_ok());
            self.defer(&mut flush);
        }
        flushed
    }

    /// What a failed map leaves to do, where a device may have seen some of it.
    fn finish_undo(&self, range: IovaRange, mut flush: Flush) -> Result<()> {
        flush.add_noted(range);
        let synced = self.sync(&mut flush);
        if synced.is_err() {
            self.defer(&mut flush);
        }
        synced
    }
}

/// What one unit shall drop.
#[inline]
fn request<'a>(flush: &'a Flush, tag: CacheTag, devices: &'a [DeviceTlb]) -> Invalidation<'a> {
    Invalidation { tag, devices, ranges: flush.ranges(), depth: flush.depth(), leaves: flush.leaves() }
}

fn wait_all<const N: usize>(under_way: &mut heapless::Vec<(&Unit, Ticket), N>) -> Result<()> {
    let mut result = Ok(());
    for (unit, ticket) in under_way.iter().filter(|_| !site::WAIT.is_skipped()) {
        keep(&mut result, unit.wait(*ticket));
    }
    under_way.clear();
    result
}

/// Keeps the first error. (`Result::and` copies results where there is none.)
#[inline]
fn keep(result: &mut Result<()>, next: Result<()>) {
    if next.is_err() && result.is_ok() {
        *result = next;
    }
}

impl<F: Format, P: Platform> DomainOps for PagingDomain<F, P> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn kind(&self) -> DomainKind {
        self.kind
    }

    fn windows(&self) -> &Windows {
        &self.windows
    }

    fn page_sizes(&self) -> PageSizes {
        self.table.page_sizes()
    }

    fn stage(&self) -> Option<Stage> {
        Some(self.stage)
    }

    fn features(&self) -> DomainFeatures {
        self.switches.on()
    }

    fn enforce_cache_coherency(&self, domain: &Domain) -> Result<()> {
        self.enforce_coherency(domain)
    }

    fn set_dirty_tracking(&self, domain: &Domain, tracking: DirtyTracking) -> Result<()> {
        self.track_dirty(domain, tracking)
    }

    fn read_and_clear_dirty(&self, range: IovaRange, read: DirtyRead, bitmap: &mut DirtyBitmap<'_>) -> Result<()> {
        self.read_dirty(range, read, bitmap)
    }

    #[inline]
    unsafe fn map(&self, range: IovaRange, phys: PhysAddr, prot: Prot, sizes: PageSizes) -> Result<()> {
        // SAFETY: passed on to the caller.
        if self.is_usual(range) && unsafe { self.table.map_one(range, phys, prot, sizes) } == Short::Done {
            site::MAPPED_ONE.publish(&self.platform);
            return Ok(());
        }
        self.check(range)?;
        // SAFETY: passed on to the caller.
        unsafe { self.map_anywhere(range, phys, prot, sizes) }
    }

    unsafe fn map_reserved(&self, range: IovaRange, phys: PhysAddr, prot: Prot) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.map_anywhere(range, phys, prot, PageSizes::ALL) }
    }

    #[inline]
    unsafe fn unmap(&self, range: IovaRange, flush: &mut Flush) -> Result<()> {
        if !self.is_usual(range) {
            // SAFETY: passed on to the caller.
            return unsafe { self.unmap_elsewhere(range, flush) };
        }
        // SAFETY: passed on to the caller.
        if unsafe { self.table.unmap_one(range) } == Short::Done {
            flush.add_page(range);
            return Ok(());
        }
        // SAFETY: passed on to the caller.
        unsafe { self.unmap_anywhere(range, flush) }
    }

    unsafe fn cut(&self, range: IovaRange, flush: &mut Flush) -> Result<()> {
        self.check(range)?;
        // SAFETY: passed on to the caller.
        let result = unsafe { self.table.cut(range, &mut flush.tables) };
        // Large and small entries for one address may be cached side by side otherwise; walk caches
        // have no entry for what was a leaf.
        flush.add_noted(range);
        result
    }

    unsafe fn protect(&self, range: IovaRange, prot: Prot, flush: &mut Flush) -> Result<()> {
        self.check(range)?;
        // SAFETY: passed on to the caller.
        let result = unsafe { self.table.protect(range, prot, &mut flush.tables) };
        flush.add_noted(range);
        result
    }

    fn sync(&self, flush: &mut Flush) -> Result<()> {
        self.invalidate(flush)?;
        let tables = flush.finish();
        if !tables.is_empty() {
            // SAFETY: what was detached is in no cache any more.
            unsafe { self.table.free(tables) };
        }
        Ok(())
    }

    fn defer(&self, flush: &mut Flush) {
        self.deferred.lock(&self.platform).flush.append(&self.platform, flush);
    }

    fn flush_deferred(&self) -> Result<()> {
        // What the caller deferred may be under way on another processor: it is not invalidated
        // before that one is done.
        let mut flush = wait_until(&self.platform, FLUSH_LIMIT, WaitReason::Claim, || {
            let mut deferred = self.deferred.lock(&self.platform);
            if deferred.under_way {
                return None;
            }
            deferred.under_way = !deferred.flush.is_empty();
            Some(core::mem::take(&mut deferred.flush))
        })?;
        if flush.is_empty() {
            return Ok(());
        }
        let result = self.sync(&mut flush);
        let mut deferred = self.deferred.lock(&self.platform);
        // Empty after success.
        deferred.flush.append(&self.platform, &mut flush);
        deferred.under_way = false;
        result
    }

    fn next_run(&self, from: Iova, last: Iova) -> Option<Run> {
        self.table.reader().next_run(from, last)
    }

    #[inline]
    fn iova_to_phys(&self, iova: Iova) -> Option<PhysAddr> {
        self.table.reader().iova_to_phys(iova)
    }

    #[inline]
    unsafe fn iova_to_phys_unregistered(&self, iova: Iova) -> Option<PhysAddr> {
        // SAFETY: passed on to the caller.
        unsafe { self.table.iova_to_phys_unregistered(iova) }
    }
}

/// Notes what an unmap that stopped early had done.
#[cold]
fn add_below(range: IovaRange, error: Error, flush: &mut Flush) {
    let Error::PartialPage { page, .. } = error else {
        // Refused before anything changed.
        debug_assert!(matches!(error, Error::Invalid(_) | Error::OutOfRange { .. }));
        return;
    };
    let below = page.as_u64().checked_sub(1).and_then(|last| IovaRange::new(range.start(), Iova::new(last)).ok());
    if let Some(done) = below {
        flush.add_noted(done);
    }
}

impl<F: Format, P: Platform> Drop for PagingDomain<F, P> {
    fn drop(&mut self) {
        // A tag that was never given back: its unit may still walk the tables.
        if !self.tags.is_empty() {
            return;
        }
        // No unit uses the domain: the last attachment held a handle. Nothing is cached either, for
        // whoever releases a tag has invalidated everything under its number.
        let flush = core::mem::take(&mut self.deferred.get_mut().flush);
        // SAFETY: as above. The table is not used afterwards.
        unsafe {
            self.table.free(flush.tables);
            ManuallyDrop::drop(&mut self.table);
        }
    }
}
