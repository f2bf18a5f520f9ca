//! The event queue: what a unit refused, and which requests wait (SMMU 3.5, 7.2 to 7.4). Global errors.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::registers::COMMAND_LIMIT;
use super::{SmmuRegisters, table_site as site};
use crate::addr::{Iova, PhysAddr};
use crate::arch::smmuv3::layout::events::{EVENT_WORDS, EventKind, EventRecord};
use crate::arch::smmuv3::layout::registers::{Gerror, OVERFLOW_FLAG, QueueBase, QueueIndex};
use crate::error::{Error, InvalidReason, Result, WaitReason};
use crate::fault::{Access, FaultKind, FaultRecord, StallTag};
use crate::hwmem::{ENTRIES_PER_FRAME_LOG2, FrameTable, Visibility};
use crate::id::{Pasid, SourceId};
use crate::platform::Platform;
use crate::sync::atomic::{AtomicU32, Ordering, fence};
use crate::sync::wait_until;

/// Events that are read before the unit is told that there is room again.
pub const EVENTS_PER_ROUND: u32 = 64;
/// Rounds of one call of [`EventQueue::drain`]: a device that faults as fast as events are read must not
/// keep a processor for ever.
pub const MAX_ROUNDS: usize = 16;
/// Binary logarithm of the most events that a queue can hold (SMMU 3.5.1).
pub const MAX_LOG2_EVENTS: u8 = 19;

/// The unit does not write the queue, nor is it read.
const OFF: u32 = 0;
/// Nobody reads.
const IDLE: u32 = 1;
/// Somebody does.
const READING: u32 = 2;

/// Binary logarithm of the quadwords of an event.
const WORDS_LOG2: u8 = EVENT_WORDS.ilog2() as u8;

/// What [`EventQueue::drain`] did.
///
/// ```
/// use iommu::arch::smmuv3::driver::DrainedEvents;
/// let nothing = DrainedEvents::default();
/// assert_eq!((nothing.events, nothing.lost, nothing.pending), (0, false, false));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DrainedEvents {
    /// Events visited.
    pub events: usize,
    /// The unit had no room for an event: an unknown number was lost. None of a request that waits is.
    pub lost: bool,
    /// Events are left: the bound was reached. The unit may give no further interrupt for them.
    pub pending: bool,
}

/// The event queue of one unit, which only this reads.
///
/// All methods are to be called with the registers of the same unit. Dropping it frees its memory: the
/// unit's queue must be off (CR0.EVENTQEN).
///
/// ```
/// use iommu::arch::smmuv3::driver::{EventQueue, SmmuRegisters};
/// use iommu::platform::Platform;
///
/// fn handle_interrupt<P: Platform>(unit: &SmmuRegisters<P>, events: &EventQueue<P>) -> usize {
///     events.drain(unit, &mut |_event| { /* copy it somewhere */ }).events
/// }
/// ```
#[derive(Debug)]
pub struct EventQueue<P: Platform> {
    visibility: Visibility<P>,
    ring: FrameTable<P>,
    log2_entries: u8,
    /// [`OFF`], [`IDLE`] or [`READING`].
    turn: AtomicU32,
    /// EVENTQ_CONS as it was written last, by who reads.
    cons: AtomicU32,
}

impl<P: Platform> EventQueue<P> {
    /// A queue of `1 << log2_entries` events, at most what the unit says (IDR1.EVENTQS), in memory at or
    /// below `last`. Whether the unit snoops is told by `visibility`. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`InvalidReason::Configuration`] beyond [`MAX_LOG2_EVENTS`].
    pub fn new(visibility: Visibility<P>, log2_entries: u8, last: PhysAddr) -> Result<Self> {
        if log2_entries > MAX_LOG2_EVENTS {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        let order = log2_entries.saturating_add(WORDS_LOG2).saturating_sub(ENTRIES_PER_FRAME_LOG2);
        let ring = FrameTable::new(visibility.platform.clone(), order, last)?;
        Ok(Self { visibility, ring, log2_entries, turn: AtomicU32::new(OFF), cons: AtomicU32::new(0) })
    }

    /// Where it is, for EVENTQ_BASE.
    pub fn base(&self) -> QueueBase {
        QueueBase::new(self.ring.phys(), self.log2_entries)
    }

    /// Nobody reads the queue when this returns, nor before it is [started](Self::start): the unit can be
    /// turned off, and what it had recorded is forgotten. Task only, and not from within a visitor.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when a reader does not end.
    pub fn halt(&self) -> Result<()> {
        wait_until(&self.visibility.platform, COMMAND_LIMIT, WaitReason::Claim, || {
            let halted = self.turn.compare_exchange(IDLE, OFF, Ordering::Acquire, Ordering::Acquire);
            (halted != Err(READING)).then_some(())
        })
    }

    /// Tells the unit of the queue, which is empty then. It was [halted](Self::halt), and the unit's is off;
    /// it is to be turned on afterwards. Task only.
    pub fn start(&self, unit: &SmmuRegisters<P>) {
        // The cache must not hold what is older than the first event.
        self.visibility.invalidate(site::EVENT_INVALIDATE, self.ring.view(), 0, usize::MAX);
        unit.set_event_queue(self.base());
        self.cons.store(0, Ordering::Relaxed);
        self.turn.store(IDLE, Ordering::Release);
    }

    /// Takes the events that are there, each read once and copied, and gives them to `visit`. *Any
    /// context.*
    ///
    /// When another processor is at it already, this one returns at once: the other looks again before it
    /// ends. So it does while the queue is off.
    pub fn drain(&self, unit: &SmmuRegisters<P>, visit: &mut dyn FnMut(EventRecord)) -> DrainedEvents {
        let mut drained = DrainedEvents::default();
        if self.turn.load(Ordering::Relaxed) == OFF {
            return drained;
        }
        let mut prod = unit.event_prod();
        for _round in 0..MAX_ROUNDS {
            let taken = || self.turn.compare_exchange(IDLE, READING, Ordering::Acquire, Ordering::Relaxed);
            if !self.has_news(prod) || taken().is_err() {
                return drained;
            }
            self.round(unit, &mut drained, visit);
            self.turn.store(IDLE, Ordering::Release);
            // Read after the turn was given up: whoever found it taken counts on this look.
            fence(Ordering::SeqCst);
            prod = unit.event_prod();
        }
        drained.pending = self.has_news(prod);
        drained
    }

    /// Whether EVENTQ_PROD tells of an event, or of a loss, that was not seen yet.
    fn has_news(&self, prod: u32) -> bool {
        // A unit that is gone reads as all ones.
        prod != u32::MAX && prod != self.cons.load(Ordering::Relaxed)
    }

    /// Reads some events, with the turn.
    fn round(&self, unit: &SmmuRegisters<P>, drained: &mut DrainedEvents, visit: &mut dyn FnMut(EventRecord)) {
        // Read with the turn: another processor may have read events meanwhile.
        let (prod, seen) = (unit.event_prod(), self.cons.load(Ordering::Relaxed));
        if !self.has_news(prod) {
            return;
        }
        // Events are read after the register that tells of them.
        fence(Ordering::Acquire);
        let mut cons = QueueIndex::new(seen);
        // No more than fit, whatever a register says.
        let there = QueueIndex::used(QueueIndex::new(prod), cons, self.log2_entries).min(1 << self.log2_entries);
        for _event in 0..there.min(EVENTS_PER_ROUND) {
            let words = self.read(cons.slot(self.log2_entries));
            cons = cons.plus(1, self.log2_entries);
            drained.events = drained.events.saturating_add(1);
            visit(EventRecord::decode(words));
        }
        // OVFLG is acknowledged along with the room (3.5.1, 7.4).
        drained.lost |= (prod ^ seen) & OVERFLOW_FLAG != 0;
        let read = cons.0 | prod & OVERFLOW_FLAG;
        self.cons.store(read, Ordering::Relaxed);
        // Behind the loads of the events, each of which acquires.
        unit.set_event_cons(read);
    }

    fn read(&self, slot: usize) -> [u64; EVENT_WORDS] {
        let (ring, first) = (self.ring.view(), slot << WORDS_LOG2);
        self.visibility.invalidate(site::EVENT_INVALIDATE, ring, first, EVENT_WORDS);
        core::array::from_fn(|word| ring.entry(first.wrapping_add(word)).load())
    }
}

/// An event in the core's words. `source` is who has its StreamID; `stalled` is set if its request waits
/// for an answer of the kernel's.
///
/// ```
/// use iommu::arch::smmuv3::driver::events::fault_record;
/// use iommu::arch::smmuv3::layout::events::{EventKind, EventRecord};
/// use iommu::{Access, FaultKind, PhysAddr, SourceId};
/// let event = EventRecord { kind: EventKind::F_PERMISSION, address: 0x7123, ..EventRecord::default() };
/// let fault = fault_record(&event, PhysAddr::new(0x905_0000), SourceId::platform(0, 3), None);
/// assert_eq!((fault.kind, fault.access, fault.reason), (FaultKind::Translation, Access::Write, 0x13));
/// ```
pub fn fault_record(event: &EventRecord, unit: PhysAddr, source: SourceId, stalled: Option<StallTag>) -> FaultRecord {
    let has_address = event.kind.has_address();
    FaultRecord {
        unit,
        source,
        pasid: event.substream.and_then(Pasid::new),
        iova: has_address.then_some(Iova::new(event.address)),
        access: match event {
            _ if !has_address => Access::Unknown,
            EventRecord { read: false, .. } => Access::Write,
            EventRecord { instruction: true, .. } => Access::Execute,
            _ => Access::Read,
        },
        kind: kind_of(event.kind),
        reason: u32::from(event.kind.0),
        text: event.kind.text(),
        stalled,
    }
}

fn kind_of(kind: EventKind) -> FaultKind {
    match kind {
        // Entries that are not valid: streams and substreams without a domain.
        EventKind::C_BAD_STREAMID
        | EventKind::C_BAD_STE
        | EventKind::F_STREAM_DISABLED
        | EventKind::C_BAD_SUBSTREAMID
        | EventKind::C_BAD_CD => FaultKind::Blocked,
        EventKind::F_TRANSLATION | EventKind::F_ACCESS | EventKind::F_PERMISSION => FaultKind::Translation,
        EventKind::F_ADDR_SIZE => FaultKind::AddressSize,
        EventKind::F_STE_FETCH
        | EventKind::F_CD_FETCH
        | EventKind::F_VMS_FETCH
        | EventKind::F_WALK_EABT
        | EventKind::F_TLB_CONFLICT
        | EventKind::F_CFG_CONFLICT => FaultKind::Configuration,
        EventKind::F_UUT | EventKind::F_BAD_ATS_TREQ | EventKind::F_TRANSL_FORBIDDEN => FaultKind::Request,
        _ => FaultKind::Other,
    }
}

/// Acknowledges the global errors that are active, but for those of the command queue, which sees to them
/// itself; gives them. *Any context.*
///
/// [`Gerror::EVENTQ_ABT_ERR`] says that events were lost, [`Gerror::SFM_ERR`] that the unit does nothing
/// any more until it is reset.
pub fn take_global_errors<P: Platform>(unit: &SmmuRegisters<P>) -> Gerror {
    let errors = unit.global_errors().difference(Gerror::CMDQ_ERR);
    if !errors.is_empty() {
        unit.acknowledge(errors);
    }
    errors
}

/// What a global error means (SMMU 6.3.19): the first of `errors`, if there are several.
///
/// ```
/// use iommu::arch::smmuv3::driver::events::global_error_text;
/// use iommu::arch::smmuv3::layout::registers::Gerror;
/// let errors = Gerror::EVENTQ_ABT_ERR | Gerror::MSI_CMDQ_ABT_ERR;
/// let words: Vec<_> = errors.iter().map(global_error_text).collect();
/// assert_eq!(words, ["event queue could not be written", "message of a CMD_SYNC was aborted"]);
/// ```
pub fn global_error_text(errors: Gerror) -> &'static str {
    const TEXTS: [(Gerror, &str); 8] = [
        (Gerror::CMDQ_ERR, "a command could not be executed"),
        (Gerror::EVENTQ_ABT_ERR, "event queue could not be written"),
        (Gerror::PRIQ_ABT_ERR, "page request queue could not be written"),
        (Gerror::MSI_CMDQ_ABT_ERR, "message of a CMD_SYNC was aborted"),
        (Gerror::MSI_EVENTQ_ABT_ERR, "message for events was aborted"),
        (Gerror::MSI_PRIQ_ABT_ERR, "message for page requests was aborted"),
        (Gerror::MSI_GERROR_ABT_ERR, "message for global errors was aborted"),
        (Gerror::SFM_ERR, "unit has entered service failure mode"),
    ];
    TEXTS.iter().find(|(error, _)| errors.intersects(*error)).map_or("no global error", |(_, text)| text)
}

#[cfg(all(test, not(loom)))]
#[path = "events_tests.rs"]
mod tests;
