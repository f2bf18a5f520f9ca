//! The event queue beside a unit that writes it.

extern crate std;
use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec;
use std::vec::Vec;

use super::{
    DrainedEvents, EVENTS_PER_ROUND, EventQueue, MAX_LOG2_EVENTS, MAX_ROUNDS, fault_record, global_error_text,
    take_global_errors,
};
use crate::addr::{Iova, PhysAddr};
use crate::arch::smmuv3::driver::{RegisterPages, SmmuRegisters};
use crate::arch::smmuv3::layout::StreamId;
use crate::arch::smmuv3::layout::events::{EventKind, EventRecord};
use crate::arch::smmuv3::layout::registers::{Gerror, OVERFLOW_FLAG, QueueBase, QueueIndex, offset};
use crate::error::{Error, InvalidReason, Result, WaitReason};
use crate::fault::{Access, FaultKind, StallTag};
use crate::hwmem::Visibility;
use crate::id::{Pasid, SourceId};
use crate::pgtable::WalkerCoherency;
use crate::platform::{Arena, Frame, Hosted, Instant, Platform, Registers};

/// A unit that records events, and the memory that it records them in.
#[derive(Clone)]
struct Unit {
    arena: &'static Arena,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    base: u64,
    prod: u32,
    cons: u32,
    gerror: u32,
    gerrorn: u32,
    gone: bool,
    /// Written, but not seen through the cache yet, by address.
    behind_the_cache: HashMap<usize, u64>,
    is_snooped: bool,
    /// Records another event whenever it is told of room.
    storm: bool,
    /// Written to EVENTQ_CONS.
    told: Vec<u32>,
}

impl State {
    fn log2(&self) -> u8 {
        QueueBase(self.base).log2_size()
    }

    /// Records an event; without room it is lost (7.2, 7.4).
    fn record(&mut self, event: EventRecord) {
        let (prod, cons, log2) = (QueueIndex::new(self.prod), QueueIndex::new(self.cons), self.log2());
        if QueueIndex::is_full(prod, cons, log2) {
            let acknowledged = (self.prod ^ self.cons) & OVERFLOW_FLAG == 0;
            self.prod ^= if acknowledged { OVERFLOW_FLAG } else { 0 };
            return;
        }
        let first = QueueBase(self.base).address().as_u64() as usize + prod.slot(log2) * 32;
        for (index, word) in event.encode().into_iter().enumerate() {
            let address = first + index * 8;
            if self.is_snooped {
                // SAFETY: in the queue, which lives in an arena; these tests have one thread.
                unsafe { std::ptr::with_exposed_provenance_mut::<u64>(address).write(word) };
            } else {
                self.behind_the_cache.insert(address, word);
            }
        }
        self.prod = prod.plus(1, log2).0 | self.prod & OVERFLOW_FLAG;
    }
}

impl Unit {
    fn new(is_snooped: bool) -> Self {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 64].into_boxed_slice())).unwrap();
        Self { arena, state: Arc::new(Mutex::new(State { is_snooped, ..State::default() })) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Whether a loss was not acknowledged yet.
    fn tells_of_a_loss(&self) -> bool {
        let state = self.state();
        (state.prod ^ state.cons) & OVERFLOW_FLAG != 0
    }

    fn queue(&self, log2: u8) -> (SmmuRegisters<Self>, EventQueue<Self>) {
        let coherency = if self.state().is_snooped { WalkerCoherency::Snoops } else { WalkerCoherency::NeedsClean };
        let visibility = Visibility { platform: self.clone(), coherency, last: PhysAddr::new(u64::MAX) };
        let registers = SmmuRegisters::map(self.clone(), PhysAddr::new(0x905_0000), RegisterPages::Two).unwrap();
        let queue = EventQueue::new(visibility, log2, PhysAddr::new(u64::MAX)).unwrap();
        queue.start(&registers);
        (registers, queue)
    }
}

impl Registers for Unit {
    fn read32(&self, at: usize) -> u32 {
        let state = self.state();
        match at {
            _ if state.gone => u32::MAX,
            // Stage 1, AArch64 tables; 4 KiB, 44 bits.
            offset::IDR0 => 0x0d44_101a,
            offset::IDR1 => 0x0273_0010,
            offset::IDR5 => 0x14,
            offset::GERROR => state.gerror,
            offset::GERRORN => state.gerrorn,
            offset::EVENTQ_PROD => state.prod,
            offset::EVENTQ_CONS => state.cons,
            _ => 0,
        }
    }

    fn write32(&self, at: usize, value: u32) {
        let mut state = self.state();
        match at {
            offset::EVENTQ_BASE => state.base = state.base & !0xffff_ffff | u64::from(value),
            at if at == offset::EVENTQ_BASE + 4 => state.base = state.base & 0xffff_ffff | u64::from(value) << 32,
            offset::EVENTQ_PROD => state.prod = value,
            offset::EVENTQ_CONS => {
                state.cons = value;
                state.told.push(value);
                if state.storm {
                    state.record(event(0xffff));
                }
            }
            offset::GERRORN => state.gerrorn = value,
            _ => panic!("nobody writes {at:#x}"),
        }
    }
}

// SAFETY: everything is the arena's.
unsafe impl Platform for Unit {
    type Registers = Self;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        self.arena.alloc_frames(order, last)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        // SAFETY: passed on from the caller.
        unsafe { self.arena.free_frames(first, order) }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.arena.phys_to_virt(phys)
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<Self> {
        Ok(self.clone())
    }

    fn now(&self) -> Instant {
        self.arena.now()
    }

    fn invalidate(&self, start: NonNull<u8>, bytes: usize) {
        let mut state = self.state();
        assert!(!state.is_snooped);
        let start = start.as_ptr() as usize & !63;
        for address in (start..start + bytes.next_multiple_of(64)).step_by(8) {
            if let Some(word) = state.behind_the_cache.remove(&address) {
                // SAFETY: as above.
                unsafe { std::ptr::with_exposed_provenance_mut::<u64>(address).write(word) };
            }
        }
    }
}

fn event(stream: u32) -> EventRecord {
    EventRecord {
        kind: EventKind::F_TRANSLATION,
        stream: StreamId(stream),
        substream: Some(stream & 0xff),
        read: true,
        address: u64::from(stream) << 12 | 0xf00,
        second_address: u64::from(stream) << 4,
        ..EventRecord::default()
    }
}

fn drain(registers: &SmmuRegisters<Unit>, queue: &EventQueue<Unit>) -> (Vec<u32>, DrainedEvents) {
    let mut seen = vec![];
    let drained = queue.drain(registers, &mut |record| {
        assert_eq!(record, event(record.stream.0));
        seen.push(record.stream.0);
    });
    assert_eq!(drained.events, seen.len());
    (seen, drained)
}

#[test]
fn events_come_in_their_order_around_queues_of_all_sizes() {
    for is_snooped in [true, false] {
        for log2 in 0..=9 {
            let unit = Unit::new(is_snooped);
            let (registers, queue) = unit.queue(log2);
            assert_eq!(queue.base().log2_size(), log2);
            let (mut recorded, mut read) = (0, 0);
            for round in 0..120 {
                for _ in 0..(round % 13).min(1 << log2) {
                    unit.state().record(event(recorded));
                    recorded += 1;
                }
                let (seen, drained) = drain(&registers, &queue);
                assert_eq!(seen, (read..recorded).collect::<Vec<_>>());
                read = recorded;
                assert!(!drained.lost && !drained.pending);
            }
            assert!(recorded > 0);
        }
    }
}

#[test]
fn a_full_queue_is_read_whole_and_what_was_lost_is_noticed_once() {
    let unit = Unit::new(true);
    let (registers, queue) = unit.queue(3);
    for again in 0..3 {
        (0..20).for_each(|stream| unit.state().record(event(stream)));
        assert!(unit.tells_of_a_loss());
        let (seen, drained) = drain(&registers, &queue);
        assert_eq!(seen, (0..8).collect::<Vec<_>>(), "{again}");
        assert!(drained.lost && !drained.pending);
        // Acknowledged: so the next loss is told as well.
        assert!(!unit.tells_of_a_loss());
        assert_eq!(drain(&registers, &queue), (vec![], DrainedEvents::default()));
    }
}

#[test]
fn a_storm_does_not_keep_the_reader() {
    let unit = Unit::new(true);
    let (registers, queue) = unit.queue(4);
    unit.state().storm = true;
    unit.state().record(event(0xffff));
    let (seen, drained) = drain(&registers, &queue);
    assert!(drained.pending);
    assert_eq!(seen.len(), MAX_ROUNDS);
}

#[test]
fn the_unit_is_told_of_room_now_and_then() {
    let unit = Unit::new(true);
    let (registers, queue) = unit.queue(9);
    (0..512).for_each(|stream| unit.state().record(event(stream)));
    unit.state().told.clear();
    assert_eq!(drain(&registers, &queue).0.len(), 512);
    let expected: Vec<_> = (1..=8).map(|round| round * EVENTS_PER_ROUND).collect();
    assert_eq!(unit.state().told, expected);
}

#[test]
fn a_register_cannot_make_it_read_more_than_there_is() {
    let unit = Unit::new(true);
    let (registers, queue) = unit.queue(2);
    for prod in [0xf_ffff, 5, 7, 0x7000_0000, u32::MAX - 1] {
        unit.state().prod = prod;
        let mut seen = 0;
        queue.drain(&registers, &mut |_event| seen += 1);
        assert!(seen <= 4 * MAX_ROUNDS, "{prod:#x}: {seen}");
    }
    unit.state().gone = true;
    assert_eq!(drain(&registers, &queue), (vec![], DrainedEvents::default()));
}

#[test]
fn who_comes_second_leaves_it_to_the_first() {
    let unit = Unit::new(true);
    let (registers, queue) = unit.queue(2);
    unit.state().record(event(1));
    let mut seen = vec![];
    queue.drain(&registers, &mut |record| {
        if seen.is_empty() {
            // Amid this, another processor has an interrupt for one more.
            unit.state().record(event(2));
            assert_eq!(drain(&registers, &queue), (vec![], DrainedEvents::default()));
        }
        seen.push(record.stream.0);
    });
    assert_eq!(seen, [1, 2]);
}

#[test]
fn nothing_is_read_of_a_queue_that_is_off() {
    let unit = Unit::new(true);
    let (registers, queue) = unit.queue(2);
    unit.state().record(event(1));
    queue.drain(&registers, &mut |_event| {
        let late = queue.halt();
        assert_eq!(late, Err(Error::TimedOut(WaitReason::Claim)), "not while it is read");
    });
    unit.state().record(event(2));
    assert_eq!(queue.halt(), Ok(()));
    assert_eq!(queue.halt(), Ok(()));
    assert_eq!(drain(&registers, &queue), (vec![], DrainedEvents::default()));
    // What another kernel left is not read, either.
    queue.start(&registers);
    assert_eq!(drain(&registers, &queue), (vec![], DrainedEvents::default()));
    unit.state().record(event(3));
    assert_eq!(drain(&registers, &queue).0, [3]);
}

#[test]
fn sizes_and_memory_have_limits() {
    let unit = Unit::new(true);
    let make = |log2| {
        let visibility =
            Visibility { platform: unit.clone(), coherency: WalkerCoherency::Snoops, last: PhysAddr::new(u64::MAX) };
        EventQueue::new(visibility, log2, PhysAddr::new(u64::MAX)).map(drop)
    };
    assert_eq!(make(9), Ok(()));
    assert_eq!(make(MAX_LOG2_EVENTS), Err(Error::NoMemory));
    assert_eq!(make(MAX_LOG2_EVENTS + 1), Err(Error::Invalid(InvalidReason::Configuration)));
}

#[test]
fn every_kind_of_event_has_its_words() {
    use FaultKind::{AddressSize, Blocked, Configuration, Other, Request, Translation};
    let unit = PhysAddr::new(0x905_0000);
    for (number, kind, has_address) in [
        (0x01, Request, true),
        (0x02, Blocked, false),
        (0x03, Configuration, false),
        (0x04, Blocked, false),
        (0x05, Request, true),
        (0x06, Blocked, false),
        (0x07, Request, true),
        (0x08, Blocked, false),
        (0x09, Configuration, false),
        (0x0a, Blocked, false),
        (0x0b, Configuration, true),
        (0x10, Translation, true),
        (0x11, AddressSize, true),
        (0x12, Translation, true),
        (0x13, Translation, true),
        (0x20, Configuration, true),
        (0x21, Configuration, false),
        (0x24, Other, true),
        (0x25, Configuration, false),
        (0xe0, Other, false),
    ] {
        let event = EventRecord { kind: EventKind(number), ..event(0x77) };
        let event = EventRecord::decode(event.encode());
        let fault = fault_record(&event, unit, SourceId::platform(1, 9), Some(StallTag(4)));
        assert_eq!((fault.kind, fault.reason), (kind, u32::from(number)));
        assert_eq!((fault.unit, fault.source, fault.pasid), (unit, SourceId::platform(1, 9), Pasid::new(0x77)));
        // Those of translation requests name pages (7.3.6).
        let address = if number == 0x05 { 0x7_7000 } else { 0x7_7f00 };
        assert_eq!(fault.iova, has_address.then_some(Iova::new(address)), "{number:#x}");
        assert_eq!(fault.access, if has_address { Access::Read } else { Access::Unknown });
        assert_eq!(fault.stalled, Some(StallTag(4)));
        assert_eq!(fault.text == "unknown event", number == 0xe0);
    }
    let fault = |event: EventRecord| fault_record(&event, unit, SourceId::platform(1, 9), None).access;
    assert_eq!(fault(EventRecord { instruction: true, ..event(1) }), Access::Execute);
    assert_eq!(fault(EventRecord { read: false, ..event(1) }), Access::Write);
}

#[test]
fn global_errors_are_acknowledged_but_not_the_command_queues() {
    let unit = Unit::new(true);
    let (registers, _queue) = unit.queue(2);
    assert_eq!(take_global_errors(&registers), Gerror::empty());
    // Active is what differs; one was acknowledged before.
    unit.state().gerrorn = Gerror::MSI_PRIQ_ABT_ERR.bits();
    let errors = Gerror::CMDQ_ERR | Gerror::EVENTQ_ABT_ERR | Gerror::MSI_PRIQ_ABT_ERR;
    unit.state().gerror = errors.bits();
    assert_eq!(take_global_errors(&registers), Gerror::EVENTQ_ABT_ERR);
    assert_eq!(registers.global_errors(), Gerror::CMDQ_ERR);
    assert_eq!(take_global_errors(&registers), Gerror::empty());
    let texts: Vec<_> = Gerror::all().iter().map(global_error_text).collect();
    assert_eq!(texts.len(), 8);
    assert!(texts.iter().enumerate().all(|(index, text)| !texts[..index].contains(text)));
    assert_eq!(global_error_text(Gerror::empty()), "no global error");
}
