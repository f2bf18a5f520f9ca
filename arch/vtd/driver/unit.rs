//! One VT-d unit: who goes through which domain.
//!
//! What is common to both modes of the tables; `legacy` and `scalable` hold what they do otherwise,
//! `orders` what is invalidated when.

use core::fmt;
use core::mem::ManuallyDrop;

use super::capabilities::Capabilities;
use super::context::{Context, ContextTables};
use super::domains::{Domains, tags_of};
use super::faults::FaultLog;
use super::firmware::Firmware;
use super::pasid::PasidDirectory;
use super::queue::{Queue, QueueConfig};
use super::registers::UnitRegisters;
use super::scalable::Directories;
use super::takeover::{Takeover, take_over};
use super::translation::{ABSENT_ID, Cached, PASS_THROUGH_ID, RID_PASID, Translation};
use super::{ModeWish, VtdOptions};
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::registers::{DescriptorWidth, Global, TableMode};
use crate::arch::vtd::layout::scalable::PasidEntry;
use crate::arch::vtd::layout::{ContextEntry, Ecap};
use crate::domain::{Domain, DomainKind};
use crate::error::{Error, NoSpaceReason, Result, UnsupportedReason};
use crate::frames::{IdBitmap, Ref};
use crate::iotlb::{CacheTag, FencedDevices, Last};
use crate::ops::{Ats, Msi, Requester, Unit};
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::sync::atomic::{AtomicBool, Ordering, fence};
use crate::sync::{Lock, Site};

/// Attachments of a fenced unit whose domains could not be let go. Beyond it domains are leaked.
const QUARANTINED_DOMAINS: usize = 32;

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
    /// Of scalable mode; dropped as `tables` are.
    pub(super) directories: ManuallyDrop<Option<Directories<P>>>,
    /// Whether the unit was given the tables, and may have cached something of them.
    pub(super) shown: AtomicBool,
    /// What the tables follow when they are shown first.
    pub(super) takeover: Takeover,
    pub(super) ids: IdBitmap<P>,
    pub(super) domains: Domains<P>,
    /// What hardware may still use after an invalidation failed: released when the unit is reset.
    quarantine: Lock<heapless::Vec<(Unit, Domain, CacheTag), QUARANTINED_DOMAINS>>,
    pub(super) fenced_devices: FencedDevices<u16, Ats>,
    /// The fault interrupt, to be restored when the unit starts again.
    pub(super) fault_interrupt: Lock<Option<Msi>>,
}

/// The entry that translates a requester's requests without PASID.
enum Found<'a, P: Platform> {
    Legacy(Context<'a, P>),
    Scalable(Ref<PasidDirectory<P>>),
}

/// What became of an entry.
pub(super) struct Changed {
    /// What it said before, if it was present.
    pub(super) before: Option<Cached>,
    /// Whether nothing of that is cached any more.
    pub(super) gone: Result<()>,
    /// Whether it says what it should, and hardware knows; `None` when hardware has not seen that.
    pub(super) shown: Option<Result<()>>,
}

impl<P: Platform> VtdUnit<P> {
    /// Takes over the unit at `base`: its capabilities are read, its invalidation queue is started,
    /// old faults are cleared. What translation firmware left on stays until
    /// [`enable`](Self::enable); interrupt remapping is turned off.
    pub(super) fn new(
        platform: P,
        base: PhysAddr,
        segment: u16,
        firmware: Ref<Firmware<P>>,
        options: VtdOptions<'_>,
    ) -> Result<Self> {
        let registers = UnitRegisters::map(platform.clone(), base)?;
        let capabilities = *registers.capabilities();
        if !capabilities.ecap.contains(Ecap::QI) {
            return Err(Error::Unsupported(UnsupportedReason::QueuedInvalidation));
        }
        let mode = match options.mode {
            ModeWish::Best if capabilities.has_scalable_mode() => TableMode::Scalable,
            _ if capabilities.widest().is_some() => TableMode::Legacy,
            _ => return Err(Error::Unsupported(UnsupportedReason::Translation)),
        };
        let last_id = capabilities.domain_ids().saturating_sub(1);
        let ids = IdBitmap::new(platform.clone(), last_id, NoSpaceReason::DomainIds)?;
        for reserved in [ABSENT_ID, PASS_THROUGH_ID] {
            ids.reserve(u32::from(reserved.as_u16()))?;
        }
        // Requests for PASIDs take 256 bits, and scalable mode takes no others (6.5.2, Table 26): not ours,
        // nor that of a previous kernel, which stays until the unit is given our tables.
        let width = match mode {
            TableMode::Legacy if registers.is_in_mode(TableMode::Legacy) => DescriptorWidth::Bits128,
            _ => DescriptorWidth::Bits256,
        };
        let queue = Queue::new(platform.clone(), QueueConfig { width, ..QueueConfig::default() })?;
        let coherency = coherency(&capabilities);
        let tables = ContextTables::new(platform.clone(), coherency, mode)?;
        let directories = match mode {
            TableMode::Scalable => Some(Directories::new(&platform, coherency)?),
            _ => None,
        };
        let domains = Domains::new(&platform)?;
        let takeover = take_over(&registers, options.previous, &tables, &ids)?;
        let faults = FaultLog::new();
        // The table belongs to whoever left it on, and its memory may be in use for something else.
        registers.disable_interrupt_remapping()?;
        // Last, for nothing may fail afterwards: the hardware uses the queue from now on.
        queue.start(&registers)?;
        faults.clear(&registers);
        Ok(Self {
            tables: ManuallyDrop::new(tables),
            directories: ManuallyDrop::new(directories),
            shown: AtomicBool::new(false),
            takeover,
            domains,
            platform,
            base,
            segment,
            firmware,
            registers,
            queue,
            faults,
            ids,
            quarantine: Lock::new(heapless::Vec::new()),
            fenced_devices: FencedDevices::default(),
            fault_interrupt: Lock::new(None),
        })
    }

    /// What the unit can do.
    pub(super) fn capabilities(&self) -> &Capabilities {
        self.registers.capabilities()
    }

    /// Which tables it is given.
    pub(super) fn mode(&self) -> TableMode {
        self.tables.mode()
    }

    /// See [`IommuOps::attach`](crate::ops::IommuOps::attach).
    pub(super) fn set_domain(&self, unit: &Unit, requester: &Requester, domain: &Domain, old: &Domain) -> Result<()> {
        if domain.kind() == DomainKind::Blocked {
            return self.set_blocked(unit, requester, old);
        }
        let source = requester.source.id() as u16;
        self.refuse_if_fenced()?;
        self.refuse_fenced_device(source)?;
        let mut new = self.translation(unit, domain)?;
        let tag = new.cached().tag();
        let tlb = match self.acquire_device_tlb(unit, requester, domain, tag) {
            Ok(tlb) => tlb,
            Err(error) => {
                self.release(unit, domain, tag);
                return Err(error);
            }
        };
        new.serves_device_tlb = tlb.is_some();
        let give_back = || {
            self.release(unit, domain, tlb);
            self.release(unit, domain, tag);
        };
        let found = match self.find_or_make(requester) {
            Ok(found) => found,
            Err(error) => {
                give_back();
                return Err(error);
            }
        };
        if self.says(&found, new) {
            // An alias that another device of the group has brought here.
            give_back();
            return Ok(());
        }
        let old_tlb = self.device_tlb(unit, requester, old);
        let changed = self.change(&found, source, Some(new));
        // Looked at again afterwards: a fence may have passed the entry before it was written, and who
        // throws a switch of the domain looks for entries first.
        fence(Ordering::SeqCst);
        let shown = changed.shown.map(|shown| {
            shown?;
            self.refuse_if_fenced()?;
            match tag {
                Some(tag) if domain.ops().features() != new.features => self.refresh_entries(tag, domain),
                _ => Ok(()),
            }
        });
        let left = self.leave(unit, requester, old, &changed, old_tlb);
        let shown = shown.map(|shown| shown.and(left).and_then(|()| self.refuse_fenced_device(source)));
        match shown {
            Some(Ok(())) => {}
            // No hardware has seen the new entry.
            None => give_back(),
            Some(Err(_)) => {
                // What is cached of it is told to go, and kept if that fails.
                let removed = self.change(&found, source, None);
                if removed.before.is_some() {
                    let _ = self.leave(unit, requester, domain, &removed, tlb);
                } else {
                    self.release(unit, domain, tlb);
                    self.quarantine(unit, domain, tag);
                }
            }
        }
        left.and(shown.unwrap_or(Ok(())))
    }

    /// Blocks a requester that went through `old`.
    pub(super) fn set_blocked(&self, unit: &Unit, requester: &Requester, old: &Domain) -> Result<()> {
        let source = requester.source.id() as u16;
        self.drop_copied(source)?;
        // Without an entry it was never let through.
        let Some(found) = self.find(source) else { return Ok(()) };
        let old_tlb = self.device_tlb(unit, requester, old);
        let changed = self.change(&found, source, None);
        let left = self.leave(unit, requester, old, &changed, old_tlb);
        if requester.ats.is_none() {
            self.forget_gone_device(source);
        }
        left
    }

    fn find(&self, requester: u16) -> Option<Found<'_, P>> {
        match &*self.directories {
            Some(directories) => directories.find(requester).map(Found::Scalable),
            None => self.tables.find(requester).map(Found::Legacy),
        }
    }

    fn find_or_make(&self, requester: &Requester) -> Result<Found<'_, P>> {
        let Some(directories) = &*self.directories else {
            return self.tables.find_or_make(requester.source.id() as u16).map(Found::Legacy);
        };
        self.drop_copied(requester.source.id() as u16)?;
        let found = Found::Scalable(directories.find_or_make(requester, &self.tables)?);
        self.permit_device_tlb(requester, self.cached(&found))?;
        Ok(found)
    }

    /// What hardware may have cached of an entry that is present.
    fn cached(&self, found: &Found<'_, P>) -> Option<Cached> {
        match found {
            Found::Legacy(context) => {
                let entry = Some(context.read::<ContextEntry>()).filter(|entry| entry.is_present());
                entry.map(Cached::of_context_entry)
            }
            Found::Scalable(directory) => {
                let entry = directory.find(RID_PASID).map(|slot| slot.read::<PasidEntry>());
                entry.filter(|entry| entry.is_present()).map(Cached::of_pasid_entry)
            }
        }
    }

    /// The context entry of a device is made absent, until [`unfence`](Self::unfence).
    pub(super) fn fence_entry(&self, source: u16) -> Result<()> {
        let Some(found) = self.find(source) else { return Ok(()) };
        let cached = self.cached(&found);
        if let Some(context) = self.tables.find(source) {
            context.fence();
        }
        self.forget_device(source, cached)
    }

    fn says(&self, found: &Found<'_, P>, translation: Translation) -> bool {
        match found {
            Found::Legacy(context) => context.read::<ContextEntry>() == self.context_entry(translation),
            Found::Scalable(directory) => {
                directory.find(RID_PASID).is_some_and(|slot| slot.read::<PasidEntry>() == self.pasid_entry(translation))
            }
        }
    }

    fn change(&self, found: &Found<'_, P>, requester: u16, new: Option<Translation>) -> Changed {
        const UNCHANGED: Changed = Changed { before: None, gone: Ok(()), shown: None };
        match found {
            Found::Legacy(context) => self.change_context(context, requester, new),
            Found::Scalable(directory) => {
                directory.find(RID_PASID).map_or(UNCHANGED, |slot| self.change_pasid_entry(&slot, requester, new))
            }
        }
    }

    /// Lets `old` go, after its entry was changed. A device TLB is the last to be told (VT-d 6.5.3.3).
    fn leave(
        &self,
        unit: &Unit,
        requester: &Requester,
        old: &Domain,
        changed: &Changed,
        tlb: Option<CacheTag>,
    ) -> Result<()> {
        let gone = changed.gone.and_then(|()| tlb.map_or(Ok(()), |_| self.empty_device_tlb(requester)));
        self.release(unit, old, tlb);
        let tag = changed.before.and_then(Cached::tag);
        match gone {
            Ok(()) => self.release(unit, old, tag),
            Err(_) => self.quarantine(unit, old, tag),
        }
        gone
    }

    /// Blocks every device at once, because the unit does not do what it is told, until
    /// [`unfence`](Self::unfence).
    #[cold]
    #[inline(never)]
    pub(super) fn fence(&self) {
        self.tables.each(&mut |context| context.fence());
    }

    /// What a fenced unit has cached is not known, so nothing may be let through.
    fn refuse_if_fenced(&self) -> Result<()> {
        if self.queue.is_running() || self.is_off() { Ok(()) } else { Err(Error::Fenced) }
    }

    /// After a reset: lets devices through again that [`fence`](Self::fence) has blocked. The caller
    /// owes a global invalidation: absent entries may be cached as well.
    #[cold]
    #[inline(never)]
    pub(super) fn unfence(&self) {
        self.tables.each(&mut |context| {
            if !self.is_of_fenced_device(&context) {
                context.unfence();
            }
        });
    }

    /// After a global invalidation, or when the unit is off: lets go what was quarantined.
    pub(super) fn release_quarantined(&self) {
        let held = core::mem::take(&mut *self.quarantine.lock(&self.platform));
        for (unit, domain, tag) in held {
            self.release(&unit, &domain, Some(tag));
        }
    }

    /// Whether hardware may still use something that was let go.
    pub(super) fn has_quarantined(&self) -> bool {
        !self.quarantine.lock(&self.platform).is_empty()
    }

    /// Flushes the write buffer, if the unit has one that needs it.
    #[inline(never)]
    pub(super) fn flush_write_buffer(&self, site: Site) -> Result<()> {
        if site.is_skipped() { Ok(()) } else { self.registers.flush_write_buffer() }
    }

    /// Whether the unit may have cached something of the tables as they were before the call. Until it
    /// was given them it takes no request that is for their mode only (VT-d 6.5.2, Table 26).
    pub(super) fn may_cache(&self) -> bool {
        self.shown.load(Ordering::Relaxed) || {
            // The change before: whoever shows the tables meanwhile shows it with them.
            fence(Ordering::SeqCst);
            self.shown.load(Ordering::Relaxed)
        }
    }

    /// Whether translation and queue are off, after [`stop`](Self::stop). Nothing needs to be
    /// invalidated then: [`enable`](crate::ops::IommuOps::enable) invalidates everything first. A
    /// change that found the queue off under its lock is visible to whoever starts it.
    pub(super) fn is_off(&self) -> bool {
        self.registers.status().is_ok_and(|status| !status.intersects(Global::TE | Global::QIE))
    }

    /// Blocks the devices for which an error leaves in caches what was to be invalidated.
    pub(super) fn fence_with_queue<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.contain(*error);
        }
        result
    }

    pub(super) fn release(&self, unit: &Unit, domain: &Domain, tag: Option<CacheTag>) {
        let Some(tag) = tag else { return };
        let Ok(domain) = self.translated(domain) else { return };
        let Some(tags) = tags_of::<P>(&domain) else { return };
        match tags.release(unit, tag) {
            Ok(Last::Yes) if tag.device.is_none() => self.ids.free(tag.id),
            // An unmap has not let go of it in its time.
            Err(Error::TimedOut(_)) => self.quarantine(unit, &domain, Some(tag)),
            _ => {}
        }
    }

    /// Keeps a domain, and the number it is cached under, until the unit was reset.
    #[inline(never)]
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
            unsafe {
                ManuallyDrop::drop(&mut self.tables);
                ManuallyDrop::drop(&mut self.directories);
            }
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
