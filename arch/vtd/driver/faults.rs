//! Primary fault recording: what a unit blocked (VT-d 7.2.1, 11.4.7).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::UnitRegisters;
use crate::arch::vtd::layout::FaultRecord;
use crate::arch::vtd::layout::registers::{EVENT_MASKED, FAULT_RECORD_BYTES, FAULT_RECORD_TOP, FaultStatus, offset};
use crate::platform::{Platform, Registers};
use crate::sync::atomic::{AtomicBool, Ordering};

/// How often one call of [`FaultLog::drain`] goes over the records: a device that faults as fast as
/// they are read must not keep a processor for ever.
pub const MAX_ROUNDS: usize = 4;

/// What [`FaultLog::drain`] did.
///
/// ```
/// use iommu::arch::vtd::driver::Drained;
/// let nothing = Drained::default();
/// assert_eq!((nothing.records, nothing.lost, nothing.pending), (0, false, false));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// Records visited.
    pub records: usize,
    /// The unit had no room for a fault: an unknown number was lost.
    pub lost: bool,
    /// Faults are left: the bound was reached. The unit gives no further interrupt for them.
    pub pending: bool,
    /// The invalidation queue stands at an error. `Queue::recover` sees to it.
    pub queue: bool,
}

/// The reader of one unit's fault records.
///
/// ```
/// use iommu::arch::vtd::driver::{FaultLog, UnitRegisters};
/// use iommu::platform::Platform;
///
/// fn handle_interrupt<P: Platform>(unit: &UnitRegisters<P>, log: &FaultLog) -> usize {
///     log.drain(unit, &mut |_record| { /* copy it somewhere */ }).records
/// }
/// ```
#[derive(Debug)]
pub struct FaultLog {
    /// Set while somebody drains.
    draining: AtomicBool,
}

impl Default for FaultLog {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultLog {
    /// A reader.
    #[must_use]
    #[allow(clippy::missing_const_for_fn, reason = "not const under loom")]
    pub fn new() -> Self {
        Self { draining: AtomicBool::new(false) }
    }

    /// Takes all records, clears them, and gives each to `visit`. *Any context.*
    ///
    /// When another processor is at it already, this one returns at once: the other looks again
    /// before it ends.
    pub fn drain<P: Platform>(&self, unit: &UnitRegisters<P>, visit: &mut dyn FnMut(FaultRecord)) -> Drained {
        let mut drained = Drained::default();
        let mut status = unit.fault_status();
        for _round in 0..MAX_ROUNDS {
            if !status.intersects(FaultStatus::PPF | FaultStatus::PFO) {
                break;
            }
            if self.draining.swap(true, Ordering::Acquire) {
                return drained;
            }
            if status.contains(FaultStatus::PPF) {
                drained.records = drained.records.saturating_add(Self::round(unit, status, visit));
            }
            // While PFO is set nothing new is recorded: cleared only when there is room again.
            if status.contains(FaultStatus::PFO) {
                drained.lost = true;
                unit.clear_fault_status(FaultStatus::PFO);
            }
            self.draining.store(false, Ordering::Release);
            // Read after the turn was given up: whoever found it taken counts on this look.
            status = unit.fault_status();
        }
        drained.pending = status.intersects(FaultStatus::PPF | FaultStatus::PFO);
        drained.queue = status.intersects(FaultStatus::QUEUE);
        drained
    }

    /// Drops all records unread: what happened before this driver came.
    pub fn clear<P: Platform>(&self, unit: &UnitRegisters<P>) {
        let _ = self.drain(unit, &mut |_record| {});
    }

    /// Goes once over the records, from the oldest on.
    fn round<P: Platform>(unit: &UnitRegisters<P>, status: FaultStatus, visit: &mut dyn FnMut(FaultRecord)) -> usize {
        let cap = unit.capabilities().cap;
        let count = cap.fault_records();
        let mut visited = 0usize;
        let oldest = usize::from(status.first_record());
        for index in (oldest..count).chain(0..oldest.min(count)) {
            let record = cap.fault_record_offset().saturating_add(index.saturating_mul(FAULT_RECORD_BYTES));
            if let Some(record) = take(unit.raw(), record) {
                visited = visited.saturating_add(1);
                visit(record);
            }
        }
        visited
    }
}

/// Reads and clears the record at `offset`, if it is valid.
fn take<R: Registers>(registers: &R, offset: usize) -> Option<FaultRecord> {
    // F is written last, so it is read first (11.4.7.6, footnote).
    let top_offset = offset.checked_add(FAULT_RECORD_TOP)?;
    let top = registers.read32(top_offset);
    if top == u32::MAX {
        return None; // The unit is gone.
    }
    let [low, middle, third] = [0, 4, 8].map(|part| u64::from(registers.read32(offset.saturating_add(part))));
    let record = FaultRecord::decode(low | middle << 32, third | u64::from(top) << 32)?;
    registers.write32(top_offset, (FaultRecord::F >> 32) as u32);
    Some(record)
}

impl<P: Platform> UnitRegisters<P> {
    /// Sends fault events as the message `data` to `address`, and lets them through (VT-d 5.1.6).
    ///
    /// The upper half of `address` matters to units in extended interrupt mode only.
    pub fn set_fault_interrupt(&self, address: u64, data: u32) {
        self.mask_fault_interrupt();
        let registers = self.raw();
        registers.write32(offset::FEDATA, data);
        registers.write32(offset::FEADDR, address as u32);
        registers.write32(offset::FEUADDR, (address >> 32) as u32);
        self.unmask_fault_interrupt();
    }

    /// Holds fault events back. *Any context.*
    pub fn mask_fault_interrupt(&self) {
        let control = self.raw().read32(offset::FECTL);
        self.raw().write32(offset::FECTL, control | EVENT_MASKED);
        // Reading back makes sure that none comes afterwards.
        let _ = self.raw().read32(offset::FECTL);
    }

    /// Lets fault events through; one that was held back comes now. *Any context.*
    pub fn unmask_fault_interrupt(&self) {
        let control = self.raw().read32(offset::FECTL);
        self.raw().write32(offset::FECTL, control & !EVENT_MASKED);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use core::ptr::NonNull;
    use core::time::Duration;
    use std::sync::{Arc, Mutex};
    use std::vec;
    use std::vec::Vec;

    use super::{FaultLog, MAX_ROUNDS};
    use crate::addr::PhysAddr;
    use crate::arch::vtd::driver::UnitRegisters;
    use crate::arch::vtd::layout::fault::Access;
    use crate::arch::vtd::layout::registers::offset;
    use crate::error::Result;
    use crate::platform::{Hosted, Instant, Platform, Registers};

    const RECORDS: usize = 4;
    const FIRST: usize = 0x400;

    /// A unit with four records at 0x400, of which the oldest is at `next` when all are taken.
    #[derive(Clone, Default)]
    struct Unit(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        records: [[u32; 4]; RECORDS],
        next: usize,
        overflow: bool,
        /// Faults that come as soon as there is room, again and again.
        storm: bool,
        queue_error: bool,
        events: Vec<(usize, u32)>,
    }

    impl State {
        fn fault(&mut self, source: u16, page: u32) {
            let pending = self.overflow || self.records[self.next][3] >> 31 == 1;
            if pending {
                self.overflow = true;
                return;
            }
            self.records[self.next] = [page << 12, 0, u32::from(source), 0x8000_0005];
            self.next = (self.next + 1) % RECORDS;
        }

        fn first(&self) -> usize {
            (0..RECORDS).map(|index| (self.next + index) % RECORDS).find(|&at| self.valid(at)).unwrap_or(0)
        }

        fn valid(&self, index: usize) -> bool {
            self.records[index][3] >> 31 == 1
        }
    }

    impl Registers for Unit {
        fn read32(&self, offset: usize) -> u32 {
            let state = self.0.lock().unwrap();
            match offset {
                offset::VER => 0x10,
                offset::FSTS => {
                    let pending = u32::from((0..RECORDS).any(|index| state.valid(index)));
                    let first = (state.first() as u32) << 8;
                    first | u32::from(state.queue_error) << 4 | pending << 1 | u32::from(state.overflow)
                }
                offset::FECTL => 0x4000_0000,
                FIRST.. => state.records[(offset - FIRST) / 16][offset / 4 % 4],
                _ => 0,
            }
        }

        fn read64(&self, offset: usize) -> u64 {
            match offset {
                // NFR 3, FRO 0x40, ND 1.
                offset::CAP => 3 << 40 | 0x40 << 24 | 1,
                _ => 0,
            }
        }

        fn write32(&self, offset: usize, value: u32) {
            let mut state = self.0.lock().unwrap();
            match offset {
                offset::FSTS => {
                    assert_eq!(value & !1, 0, "what belongs to the queue stays");
                    state.overflow &= value & 1 == 0;
                }
                FIRST.. => {
                    assert_eq!(offset % 16, 12);
                    assert_eq!(value, 0x8000_0000);
                    let index = (offset - FIRST) / 16;
                    state.records[index][3] &= !value;
                    if state.storm {
                        state.fault(9, 9);
                    }
                }
                _ => state.events.push((offset, value)),
            }
        }
    }

    // SAFETY: hands out no memory.
    unsafe impl Platform for Unit {
        type Registers = Self;
        type Processor = Hosted;

        fn alloc_frames(&self, _order: u8, _last: PhysAddr) -> Option<PhysAddr> {
            None
        }

        unsafe fn free_frames(&self, _first: PhysAddr, _order: u8) {}

        fn phys_to_virt(&self, _phys: PhysAddr) -> NonNull<u8> {
            NonNull::dangling()
        }

        fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<Self> {
            Ok(self.clone())
        }

        fn now(&self) -> Instant {
            Instant::from_nanos(0) + Duration::from_secs(1)
        }
    }

    fn drain(unit: &UnitRegisters<Unit>) -> (Vec<(u16, u64)>, super::Drained) {
        let mut seen = vec![];
        let drained = FaultLog::new().drain(unit, &mut |record| {
            assert_eq!(record.access, Access::Write);
            seen.push((record.source, record.address));
        });
        assert_eq!(drained.records, seen.len());
        (seen, drained)
    }

    fn unit() -> (Unit, UnitRegisters<Unit>) {
        let model = Unit::default();
        let unit = UnitRegisters::map(model.clone(), PhysAddr::new(0)).unwrap();
        (model, unit)
    }

    #[test]
    fn records_come_in_the_order_of_the_faults() {
        let (model, unit) = unit();
        for first in 0..9u16 {
            for index in 0..3 {
                model.0.lock().unwrap().fault(first, u32::from(first) * 8 + index);
            }
            let base = u64::from(first) * 0x8000;
            let (seen, drained) = drain(&unit);
            assert_eq!(seen, [(first, base), (first, base + 0x1000), (first, base + 0x2000)]);
            assert!(!drained.lost && !drained.pending && !drained.queue);
        }
        assert_eq!(drain(&unit).0, []);
    }

    #[test]
    fn lost_faults_are_noticed_and_recording_goes_on() {
        let (model, unit) = unit();
        for page in 0..7 {
            model.0.lock().unwrap().fault(1, page);
        }
        let (seen, drained) = drain(&unit);
        assert_eq!(seen.len(), RECORDS);
        assert!(drained.lost && !drained.pending);
        model.0.lock().unwrap().fault(2, 1);
        assert_eq!(drain(&unit).0, [(2, 0x1000)]);
    }

    #[test]
    fn a_storm_does_not_keep_the_reader() {
        let (model, unit) = unit();
        model.0.lock().unwrap().storm = true;
        model.0.lock().unwrap().fault(9, 9);
        let (seen, drained) = drain(&unit);
        assert!(drained.pending);
        assert!((1..=MAX_ROUNDS * RECORDS).contains(&seen.len()), "{}", seen.len());
    }

    #[test]
    fn errors_of_the_queue_are_left_to_it() {
        let (model, unit) = unit();
        model.0.lock().unwrap().queue_error = true;
        model.0.lock().unwrap().fault(1, 1);
        let (_, drained) = drain(&unit);
        assert!(drained.queue && !drained.pending);
    }

    #[test]
    fn the_event_is_masked_while_it_changes() {
        let (model, unit) = unit();
        unit.set_fault_interrupt(0x1_fee0_1000, 0x31);
        let expected = [
            (offset::FECTL, 0xc000_0000),
            (offset::FEDATA, 0x31),
            (offset::FEADDR, 0xfee0_1000),
            (offset::FEUADDR, 1),
            (offset::FECTL, 0x4000_0000),
        ];
        assert_eq!(model.0.lock().unwrap().events, expected);
    }
}
