//! How faults are recorded (VT-d 7.2 and 7.3).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::events::Event;
use crate::arch::vtd::layout::FaultRecord;
use crate::arch::vtd::layout::registers::{FAULT_RECORD_BYTES, FaultStatus};
use crate::bus::cache::FrameSlice;
use crate::error::Result;
use crate::platform::Platform;

/// The fault recording registers, the status that sums them up, and the interrupt.
///
/// Faults of the same source are not compressed.
pub(super) struct Faults<P: Platform> {
    /// Quadword pairs.
    records: FrameSlice<[u64; 2], P>,
    /// How many of them there are (NFR).
    count: usize,
    /// The next to be used.
    index: usize,
    /// Where PPF was set (FRI).
    first: usize,
    /// All but PPF and FRI.
    status: FaultStatus,
    pub(super) event: Event,
}

/// What is written with 1 to clear.
const CLEARABLE: FaultStatus = FaultStatus::PFO.union(FaultStatus::QUEUE);

impl<P: Platform> Faults<P> {
    /// `count` registers, 1 to 256, all empty.
    pub(super) fn new(platform: P, count: usize) -> Result<Self> {
        let records = FrameSlice::new(platform, 0, [0; 2])?;
        Ok(Self { records, count, index: 0, first: 0, status: FaultStatus::empty(), event: Event::RESET })
    }

    /// Empties all, and forgets where to go on.
    pub(super) fn reset(&mut self) {
        self.records.values_mut().fill([0; 2]);
        (self.index, self.first) = (0, 0);
        self.status = FaultStatus::empty();
        self.event = Event::RESET;
    }

    fn records(&self) -> &[[u64; 2]] {
        self.records.values().get(..self.count).unwrap_or(&[])
    }

    /// PPF: "the logical OR of the F fields".
    fn pending(&self) -> bool {
        self.records().iter().any(|[_, high]| high & FaultRecord::F != 0)
    }

    /// FSTS.
    pub(super) fn status(&self) -> FaultStatus {
        let pending = if self.pending() { FaultStatus::PPF } else { FaultStatus::empty() };
        self.status | pending | FaultStatus::from_bits_retain((self.first as u32 & 0xff) << 8)
    }

    /// Whether an error of the queue stops fetching (6.5.2: IQE and ITE).
    pub(super) const fn stops_queue(&self) -> bool {
        self.status.intersects(FaultStatus::IQE.union(FaultStatus::ITE))
    }

    /// Whether this status is set.
    pub(super) const fn is_set(&self, status: FaultStatus) -> bool {
        self.status.contains(status)
    }

    /// FSTS is written.
    pub(super) fn write_status(&mut self, value: u32) {
        self.status.remove(FaultStatus::from_bits_truncate(value) & CLEARABLE);
        self.settle();
    }

    /// The interrupt stays pending as long as any condition does.
    fn settle(&mut self) {
        if self.status.is_empty() && !self.pending() {
            self.event.settle();
        }
    }

    /// An error of the queue.
    pub(super) fn report(&mut self, status: FaultStatus) {
        self.raise();
        self.status.insert(status);
    }

    /// Before a condition is set: nobody is told again while software has yet to look (7.3).
    fn raise(&mut self) {
        if self.status.is_empty() && !self.pending() {
            self.event.raise();
        }
    }

    /// Records a fault: the quadwords as they are to be read, with or without F.
    pub(super) fn record(&mut self, low: u64, high: u64) {
        if self.status.contains(FaultStatus::PFO) {
            return;
        }
        let (index, count, pending) = (self.index, self.count, self.pending());
        self.raise();
        let Some(record) = self.records.values_mut().get_mut(index) else { return };
        if record[1] & FaultRecord::F != 0 {
            self.status.insert(FaultStatus::PFO);
            return;
        }
        *record = [low, high | FaultRecord::F];
        if !pending {
            self.first = index;
        }
        self.index = index.wrapping_add(1).checked_rem(count).unwrap_or(0);
    }

    /// Neither addresses nor interrupts are translated any more (7.2.1).
    pub(super) const fn restart(&mut self) {
        self.index = 0;
    }

    /// Bytes of all recording registers.
    pub(super) const fn bytes(&self) -> usize {
        self.count.wrapping_mul(FAULT_RECORD_BYTES)
    }

    /// The doubleword `offset` bytes behind the first recording register.
    pub(super) fn read(&self, offset: usize) -> u32 {
        let record = self.records().get(offset / FAULT_RECORD_BYTES).copied().unwrap_or([0; 2]);
        let quadword = if offset & 8 == 0 { record[0] } else { record[1] };
        super::registers::half(quadword, offset)
    }

    /// Writes that doubleword: F is cleared with 1, all else is read-only.
    pub(super) fn write(&mut self, offset: usize, value: u32) {
        if offset & 0xc != 0xc || value >> 31 == 0 {
            return;
        }
        if let Some(record) = self.records.values_mut().get_mut(offset / FAULT_RECORD_BYTES) {
            record[1] &= !FaultRecord::F;
        }
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec;

    use super::Faults;
    use crate::arch::vtd::device::events::UpperAddress;
    use crate::arch::vtd::layout::registers::FaultStatus;
    use crate::platform::{Arena, Frame};

    fn faults(count: usize) -> Faults<&'static Arena> {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 4].into_boxed_slice())).unwrap();
        let mut faults = Faults::new(arena, count).unwrap();
        faults.event.write(0, 0, UpperAddress::Present);
        faults
    }

    fn clear(faults: &mut Faults<&'static Arena>, index: usize) {
        faults.write(index * 16 + 12, 1 << 31);
    }

    #[test]
    fn records_are_a_ring_and_overflow_loses_all_until_cleared() {
        let mut faults = faults(3);
        faults.record(0x1000, 1);
        assert_eq!(faults.status().bits(), 0x002);
        assert!(faults.event.take().is_some());
        faults.record(0x2000, 2);
        faults.record(0x3000, 3);
        assert_eq!(faults.event.take(), None, "told already");
        faults.record(0x4000, 4);
        assert_eq!(faults.status().bits(), 0x003, "PFO");
        assert_eq!([0, 4, 8, 12].map(|at| faults.read(32 + at)), [0x3000, 0, 3, 0x8000_0000]);
        // Making room is not enough while PFO is set.
        clear(&mut faults, 0);
        faults.record(0x5000, 5);
        assert_eq!(faults.read(12), 0);
        clear(&mut faults, 1);
        clear(&mut faults, 2);
        assert_eq!(faults.status().bits(), 0x001);
        faults.write_status(1);
        assert_eq!(faults.status().bits() & 0xff, 0);
        // It goes on where it was: the ring had come around to 0.
        faults.record(0x6000, 6);
        assert_eq!((faults.status().bits(), faults.read(0), faults.read(8)), (0x002, 0x6000, 6));
        clear(&mut faults, 0);
        faults.record(0x7000, 7);
        assert_eq!(faults.status().bits(), 0x102, "FRI is where PPF was set");
        faults.restart();
        clear(&mut faults, 1);
        faults.record(0x8000, 8);
        assert_eq!(faults.status().bits(), 0x002);
    }

    #[test]
    fn only_f_can_be_cleared_and_only_with_one() {
        let mut faults = faults(1);
        faults.record(0xffff_ffff_f000, 0x55_0000_0010);
        for (offset, value) in [(0, u32::MAX), (4, u32::MAX), (8, u32::MAX), (12, 0x7fff_ffff)] {
            faults.write(offset, value);
        }
        assert_eq!([0, 4, 8, 12].map(|at| faults.read(at)), [0xffff_f000, 0xffff, 0x10, 0x8000_0055]);
        faults.write_status(FaultStatus::PPF.bits());
        assert_eq!(faults.status(), FaultStatus::PPF);
        clear(&mut faults, 0);
        assert_eq!([0, 8, 12].map(|at| faults.read(at)), [0xffff_f000, 0x10, 0x55], "the rest stays");
        assert_eq!(faults.status(), FaultStatus::empty());
        faults.write(16 + 12, u32::MAX);
        assert_eq!(faults.read(16), 0);
    }

    #[test]
    fn one_interrupt_until_all_conditions_are_cleared() {
        let mut faults = faults(2);
        faults.report(FaultStatus::IQE);
        assert!(faults.event.take().is_some());
        faults.record(0, 0);
        faults.report(FaultStatus::ITE);
        assert!(faults.stops_queue() && !faults.event.is_due());
        faults.write_status(0x70);
        faults.report(FaultStatus::ICE);
        assert!(!faults.event.is_due(), "a record is pending still");
        clear(&mut faults, 0);
        faults.write_status(0x70);
        faults.report(FaultStatus::ICE);
        assert!(faults.event.is_due() && !faults.stops_queue());
        faults.write_status(0x70);
        assert!(!faults.event.is_due(), "software was faster");
    }
}
