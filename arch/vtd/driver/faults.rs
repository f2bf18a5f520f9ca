//! Primary fault recording: what a unit blocked (VT-d 7.2.1, 11.4.7).
#![deny(clippy::arithmetic_side_effects)]

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
