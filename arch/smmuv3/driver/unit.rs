//! One SMMUv3: which stream goes through which domain.

use core::fmt;
use core::mem::ManuallyDrop;

use super::SmmuOptions;
use super::capabilities::Capabilities;
use super::cd_table::{CdTable, Failed, Replaced, replace_default};
use super::domains::{SmmuDomain, tags_of};
use super::events::EventQueue;
use super::invalidation::Tagged;
use super::queue::{CommandQueue, QueueConfig};
use super::registers::{RegisterPages, SmmuRegisters, Untranslated};
use super::reserved::AllReserved;
use super::stalls::HeldStalls;
use super::stream_table::{Levels, StreamTable};
use super::streams::{Attached, Stream, Streams};
use super::translation::{Path, Translation};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::firmware::{Coherency, Firmware, Quirks};
use crate::arch::smmuv3::layout::identification::Idr0;
use crate::arch::smmuv3::layout::registers::Cr0;
use crate::arch::smmuv3::layout::{Granule, Ste, StreamId};
use crate::domain::{Domain, DomainKind};
use crate::error::{Error, NoSpaceReason, Result, UnsupportedReason};
use crate::frames::{IdBitmap, Ref, Slab};
use crate::hwmem::Visibility;
use crate::id::SourceId;
use crate::iotlb::{CacheTag, FencedDevices, Last};
use crate::ops::{Msi, Requester, Stage, Unit};
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::sync::Lock;
use crate::sync::atomic::{AtomicBool, Ordering, fence};

/// Binary logarithm of the events that are kept until they are read: one frame.
const EVENTS_LOG2: u8 = 7;
/// Attachments of a fenced unit that could not be let go. Beyond it they are leaked.
const QUARANTINED: usize = 32;

/// One SMMUv3. Made by [`init`](super::init); kernels reach it through [`Unit`].
pub struct SmmuUnit<P: Platform> {
    pub(super) platform: P,
    pub(super) base: PhysAddr,
    pub(super) firmware: Ref<Firmware<P>>,
    /// Which of its units this is.
    pub(super) index: usize,
    pub(super) registers: SmmuRegisters<P>,
    pub(super) queue: CommandQueue<P>,
    /// Dropped only after hardware has stopped writing it.
    pub(super) events: ManuallyDrop<EventQueue<P>>,
    /// Requests that wait for an answer.
    pub(super) stalls: HeldStalls,
    /// Dropped only after hardware has stopped walking it.
    pub(super) tables: ManuallyDrop<StreamTable<P>>,
    pub(super) streams: ManuallyDrop<Streams<P>>,
    pub(super) reserved: ManuallyDrop<AllReserved<P>>,
    /// Whether the unit was given the tables, and may have cached something of them.
    pub(super) shown: AtomicBool,
    /// Whether the unit's own accesses snoop: what firmware says.
    pub(super) coherency: WalkerCoherency,
    /// The granule of all its domains.
    pub(super) granule: Granule,
    asids: IdBitmap<P>,
    vmids: IdBitmap<P>,
    pub(super) domains: Slab<SmmuDomain<P>, P>,
    /// What hardware may still use after an invalidation failed: released when the unit is reset.
    quarantine: Lock<heapless::Vec<Quarantined<P>, QUARANTINED>>,
    pub(super) fenced_devices: FencedDevices<StreamId, ()>,
    /// The fault interrupt, to be restored when the unit starts again.
    pub(super) fault_interrupt: Lock<Option<Msi>>,
}

/// What came of a change of a stream.
enum Changed {
    /// Nothing has changed.
    Not(Result<()>),
    /// It says what it should, or it does not but hardware may have seen that.
    To(Result<()>),
}

/// What a stream went through: a use of a domain's tag in a unit, and descriptors.
struct Quarantined<P: Platform> {
    unit: Unit,
    domain: Domain,
    attached: Attached<P>,
}

impl<P: Platform> SmmuUnit<P> {
    /// The unit with this index in `firmware`: its capabilities are read, and its tables and queues are
    /// made. Hardware stays as firmware or a previous kernel left it until
    /// [`enable`](crate::ops::IommuOps::enable).
    pub(super) fn new(platform: P, firmware: Ref<Firmware<P>>, index: usize, options: SmmuOptions) -> Result<Self> {
        let node = *firmware.units().get(index).ok_or(Error::NoDevice)?;
        let pages = match node.quirks.contains(Quirks::PAGE0_REGISTERS_ONLY) {
            true => RegisterPages::One,
            false => RegisterPages::Two,
        };
        let registers = SmmuRegisters::map(platform.clone(), node.base, pages)?;
        let capabilities = *registers.capabilities();
        let granule = options.granule.unwrap_or(capabilities.usual_granule());
        if !capabilities.has_granule(granule) {
            return Err(Error::Unsupported(UnsupportedReason::Format));
        }
        // Firmware knows whether the wires between are coherent, too.
        let coherency = match node.coherency {
            Some(Coherency::Coherent) => WalkerCoherency::Snoops,
            None if capabilities.idr0().contains(Idr0::COHACC) => WalkerCoherency::Snoops,
            _ => WalkerCoherency::NeedsClean,
        };
        let levels = if capabilities.idr0().contains(Idr0::ST_TWO_LEVEL) { Levels::OneOrTwo } else { Levels::One };
        let usual = QueueConfig::default();
        let queue = QueueConfig {
            log2_entries: usual.log2_entries.min(capabilities.command_queue_log2()),
            coherency,
            limit: options.batch_limit.unwrap_or(usual.limit),
            last: PhysAddr::new((1 << capabilities.output_bits()) - 1),
        };
        let visibility = Visibility { platform: platform.clone(), coherency, last: queue.last };
        let events = EVENTS_LOG2.min(capabilities.event_queue_log2());
        let events = EventQueue::new(visibility.clone(), events, queue.last)?;
        let tables = StreamTable::new(visibility, capabilities.stream_id_bits(), levels)?;
        let ids = |bits: u8| {
            let ids = IdBitmap::new(platform.clone(), (1 << bits) - 1, NoSpaceReason::DomainIds)?;
            // VMID 0 is that of stage 1; ASID 0 is what an entry of zeros has.
            ids.reserve(0)?;
            Ok::<_, Error>(ids)
        };
        // Before the literal: what fails in it drops nothing of what is to be dropped by hand.
        let (asids, vmids) = (ids(capabilities.asid_bits())?, ids(capabilities.vmid_bits())?);
        let (queue, streams) = (CommandQueue::new(platform.clone(), queue)?, Streams::new(&platform)?);
        let (reserved, domains) = (AllReserved::new(platform.clone())?, Slab::new(platform.clone())?);
        let unit = Self {
            queue,
            events: ManuallyDrop::new(events),
            stalls: HeldStalls::default(),
            tables: ManuallyDrop::new(tables),
            streams: ManuallyDrop::new(streams),
            reserved: ManuallyDrop::new(reserved),
            shown: AtomicBool::new(false),
            asids,
            vmids,
            domains,
            quarantine: Lock::new(heapless::Vec::new()),
            fenced_devices: FencedDevices::default(),
            fault_interrupt: Lock::new(None),
            base: node.base,
            platform,
            firmware,
            index,
            registers,
            coherency,
            granule,
        };
        unit.let_reserved_through()?;
        Ok(unit)
    }

    /// What the unit can do.
    pub(super) fn capabilities(&self) -> &Capabilities {
        self.registers.capabilities()
    }

    /// The numbers under which translations of a stage are cached.
    pub(super) fn ids(&self, stage: Stage) -> &IdBitmap<P> {
        match stage {
            Stage::First => &self.asids,
            Stage::Second => &self.vmids,
        }
    }

    /// The stream under which requests of `source` arrive here.
    pub(super) fn stream_of(&self, source: SourceId) -> Option<StreamId> {
        let (unit, stream) = self.firmware.stream_of(source)?;
        (unit == self.index).then_some(stream)
    }

    /// See [`IommuOps::attach`](crate::ops::IommuOps::attach).
    pub(super) fn set_domain(&self, unit: &Unit, requester: &Requester, domain: &Domain, old: &Domain) -> Result<()> {
        if domain.kind() == DomainKind::Blocked {
            return self.set_blocked(unit, requester, old);
        }
        let id = self.stream_of(requester.source).ok_or(Error::NoDevice)?;
        self.refuse_if_fenced()?;
        self.refuse_fenced_device(id)?;
        let mut new = self.translation(unit, domain, requester.fault_model)?;
        let stream = self.acquire_device_tlb(unit, requester, domain, new.tag).and_then(|tlb| {
            new.device_tlb = tlb;
            self.streams.find_or_make(id)
        });
        let changed = match stream {
            // An alias that another device of the group has brought here.
            Ok(stream) if stream.says(&self.platform, &new) => Changed::Not(Ok(())),
            Ok(stream) => self.change(unit, requester, &stream, &new, old),
            Err(error) => Changed::Not(Err(error)),
        };
        let let_through = match changed {
            Changed::Not(result) => {
                self.release(unit, domain, new.device_tlb);
                self.release(unit, domain, new.tag);
                return result;
            }
            Changed::To(result) => result,
        };
        // Looked at again afterwards: a fence may have passed the entry before it was written.
        fence(Ordering::SeqCst);
        let let_through =
            let_through.and_then(|()| self.refuse_if_fenced()).and_then(|()| self.refuse_fenced_device(id));
        let_through.inspect_err(|_| {
            // If that is not confirmed, everything is quarantined.
            let _ = self.set_blocked(unit, requester, domain);
        })
    }

    /// Blocks a requester that went through `old`.
    pub(super) fn set_blocked(&self, unit: &Unit, requester: &Requester, old: &Domain) -> Result<()> {
        let Some(id) = self.stream_of(requester.source) else { return Ok(()) };
        let blocked = match self.streams.find(id) {
            Some(stream) => match self.change(unit, requester, &stream, &Translation::BLOCKED, old) {
                Changed::Not(result) | Changed::To(result) => result,
            },
            // Never attached, but firmware may have had it let through.
            None => self.block_entry(id),
        };
        if requester.ats.is_none() {
            self.forget_gone_device(id);
        }
        blocked
    }

    /// Makes a stream go through `new`, and lets `old` go.
    fn change(
        &self,
        unit: &Unit,
        requester: &Requester,
        stream: &Stream<P>,
        new: &Translation,
        old: &Domain,
    ) -> Changed {
        let old_tlb = self.device_tlb(unit, requester, old);
        let tagged = new.tag.map(Tagged::of);
        let (path, served, fault_model) = (new.path, new.served(), new.fault_model);
        let mut now = Attached { path, served, fault_model, tagged, cds: None };
        let mut before = stream.replace(&self.platform, Attached::BLOCKED);
        let written = self.write(stream.id, &mut before, &mut now);
        if written == Err(Error::NoMemory) {
            stream.replace(&self.platform, before);
            return Changed::Not(written);
        }
        // None that comes from here on waits under what was before.
        let written = written.and_then(|()| self.terminate_stalls(stream.id));
        // The translations come after the entry, which could bring them back (SMMU 4.3.6); a device TLB is
        // the last to be told (3.9.1).
        let gone = written
            .and_then(|()| before.tagged.map_or(Ok(()), |tagged| self.forget_translations(tagged)))
            .and_then(|()| old_tlb.map_or(Ok(()), |_| self.empty_device_tlb(requester, stream.id)));
        self.release(unit, old, old_tlb);
        match gone {
            Ok(()) => self.let_go(unit, old, before),
            Err(_) => self.quarantine(unit, old, before),
        }
        stream.replace(&self.platform, now);
        Changed::To(gone)
    }

    /// Writes the entry of a stream, and the descriptors that go with it.
    ///
    /// # Errors
    /// [`Error::NoMemory`] with nothing changed; after others hardware may use both what was before and
    /// what is now.
    fn write(&self, id: StreamId, before: &mut Attached<P>, now: &mut Attached<P>) -> Result<()> {
        if let (Path::Stage1(cd), Some(current)) = (now.path, &before.cds)
            && before.served == now.served
        {
            return match replace_default(&self.tables, id, current, cd, self) {
                Ok(Replaced::InPlace) => {
                    now.cds = before.cds.take();
                    Ok(())
                }
                Ok(Replaced::Moved(next)) => {
                    now.cds = Some(next);
                    Ok(())
                }
                Err(Failed { error, kept }) => {
                    now.cds = kept;
                    Err(error)
                }
            };
        }
        match now.path {
            Path::Blocked => return self.block_entry(id),
            Path::Stage1(cd) => {
                let cds = CdTable::new(self.visibility(), 0, Levels::One)?;
                cds.write(None, 0, cd, self)?;
                now.cds = Some(cds);
            }
            Path::Bypass | Path::Stage2(_) => {}
        }
        self.tables.replace(id, now.path.entry(now.served, now.cds.as_ref()), self).map(drop)
    }

    /// Makes the entry of a stream abort, if there is one. A fenced one need not be fenced any more.
    fn block_entry(&self, id: StreamId) -> Result<()> {
        let Some(entry) = self.tables.find(id) else { return Ok(()) };
        entry.drop_fence();
        self.tables.replace(id, Ste::abort(), self).map(drop)
    }

    /// How the unit sees what is written for it.
    pub(super) fn visibility(&self) -> Visibility<P> {
        self.tables.visibility().clone()
    }

    /// Lets go of what hardware does not use any more.
    fn let_go(&self, unit: &Unit, domain: &Domain, attached: Attached<P>) {
        self.release(unit, domain, attached.tagged.map(Tagged::tag));
    }

    /// Blocks every device at once, because the unit does not do what it is told: translation goes off, and
    /// what is not translated is aborted. *Any context.*
    #[cold]
    #[inline(never)]
    pub(super) fn fence(&self) {
        if !self.registers.is_translating().unwrap_or(false) {
            return;
        }
        // Were translation off without this, requests would pass.
        let aborts = self.registers.set_untranslated(Untranslated::Abort);
        if aborts.and_then(|()| self.registers.turn_off(Cr0::SMMUEN)).is_err() {
            #[cfg(feature = "log")]
            log::error!("{self:?}: cannot be fenced");
        }
    }

    /// What a fenced unit has cached is not known, so nothing may be let through.
    fn refuse_if_fenced(&self) -> Result<()> {
        if self.queue.is_fenced() { Err(Error::Fenced) } else { Ok(()) }
    }

    /// After everything was invalidated, or when the unit is off: lets go what was quarantined.
    pub(super) fn release_quarantined(&self) {
        let held = core::mem::take(&mut *self.quarantine.lock(&self.platform));
        for Quarantined { unit, domain, attached } in held {
            self.let_go(&unit, &domain, attached);
        }
    }

    /// Whether the unit may have cached something of the tables as they were before the call.
    pub(super) fn may_cache(&self) -> bool {
        self.shown.load(Ordering::Relaxed) || {
            // The change before: whoever shows the tables meanwhile shows it with them.
            fence(Ordering::SeqCst);
            self.shown.load(Ordering::Relaxed)
        }
    }

    pub(super) fn release(&self, unit: &Unit, domain: &Domain, tag: Option<CacheTag>) {
        let Some((tag, tags)) = tag.zip(tags_of::<P>(domain)) else { return };
        match tags.release(unit, tag) {
            Ok(Last::Yes) if tag.device.is_none() => self.ids(Tagged::of(tag).stage()).free(tag.id),
            // An unmap has not let go of it in its time.
            Err(Error::TimedOut(_)) if tag.device.is_none() => {
                let attached = Attached { tagged: Some(Tagged::of(tag)), ..Attached::BLOCKED };
                self.quarantine(unit, domain, attached);
            }
            _ => {}
        }
    }

    /// Keeps a domain, the number it is cached under, and descriptors, until the unit was reset.
    #[inline(never)]
    fn quarantine(&self, unit: &Unit, domain: &Domain, attached: Attached<P>) {
        if attached.tagged.is_none() {
            return;
        }
        let held = Quarantined { unit: unit.clone(), domain: domain.clone(), attached };
        if let Err(too_many) = self.quarantine.lock(&self.platform).push(held) {
            core::mem::forget(too_many);
        }
    }
}

impl<P: Platform> Drop for SmmuUnit<P> {
    fn drop(&mut self) {
        if !self.may_cache() || self.stop(Untranslated::Abort).is_ok() {
            // SAFETY: dropped once, here, and hardware uses them no more. Otherwise they are leaked.
            unsafe {
                ManuallyDrop::drop(&mut self.events);
                ManuallyDrop::drop(&mut self.tables);
                ManuallyDrop::drop(&mut self.streams);
                ManuallyDrop::drop(&mut self.reserved);
            }
        } else {
            core::mem::forget(core::mem::take(self.quarantine.get_mut()));
        }
    }
}

impl<P: Platform> fmt::Debug for SmmuUnit<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SMMUv3 at {}: {}", self.base, self.capabilities())
    }
}
