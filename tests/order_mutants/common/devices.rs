//! The devices of the machine: what they keep in their TLBs, and what of theirs is still under way. And what
//! units in software stand on besides.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use iommu::bus::{Chooser, Fracture, Retention, Snoop};
use iommu::platform::{Hosted, Instant, NoRegisters, Platform};
use iommu::{PhysAddr, PhysRange, Result};
use iommu_harness::observed::Reader;
use iommu_harness::{FramePool, GuestRam};

use super::bench::{Source, lock};

/// Frames for a unit's caches.
const CACHE_BYTES: u64 = 1 << 20;

/// An access of a device: who, where, whether it writes, and where it goes.
pub(crate) type Access = (Source, u64, bool, u64);

#[derive(Default)]
pub(crate) struct Devices {
    in_flight: Mutex<Vec<Access>>,
    deaf: Mutex<Vec<u16>>,
    /// Devices whose TLB is on, and what is in them.
    ats: Mutex<Vec<u16>>,
    lines: Mutex<Vec<Line>>,
}

/// A translation that a device keeps.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    pub(crate) source: Source,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) phys: u64,
    pub(crate) write: bool,
}

impl Devices {
    /// Turns a device's TLB on or off.
    pub(crate) fn set_ats(&self, source: u16, on: bool) {
        lock(&self.ats).retain(|other| *other != source);
        if on {
            lock(&self.ats).push(source);
        } else {
            // PCIe 10.5.1: disabled, it forgets.
            lock(&self.lines).retain(|line| line.source.requester != source);
        }
    }

    pub(crate) fn has_ats(&self, source: u16) -> bool {
        lock(&self.ats).contains(&source)
    }

    /// What a device's TLB has for an access.
    pub(crate) fn find(&self, source: Source, address: u64, write: bool) -> Option<Line> {
        let inside = |line: &&Line| (line.first..=line.last).contains(&address) && line.source == source;
        lock(&self.lines).iter().filter(inside).find(|line| line.write || !write).copied()
    }

    pub(crate) fn keep(&self, line: Line) {
        lock(&self.lines).push(line);
    }

    /// An access is on its way.
    pub(crate) fn begin(&self, access: Access) {
        let mut in_flight = lock(&self.in_flight);
        if !in_flight.contains(&access) {
            in_flight.push(access);
        }
    }

    /// Where accesses of `source` to `address` are still under way to.
    pub(crate) fn in_flight(&self, source: Source, address: u64, write: bool) -> Vec<u64> {
        let all = lock(&self.in_flight);
        let is = |(of, at, writes, _): &&Access| (*of, *at, *writes) == (source, address, write);
        all.iter().filter(is).map(|(.., place)| *place).collect()
    }

    /// Accesses under way get through.
    pub(crate) fn land(&self) {
        lock(&self.in_flight).clear();
    }

    /// Those get through that are not of devices with a TLB, which translated them themselves.
    pub(crate) fn land_untranslated(&self) {
        let ats = lock(&self.ats).clone();
        lock(&self.in_flight).retain(|(source, ..)| ats.contains(&source.requester));
    }

    /// Devices that do not answer from now on.
    pub(crate) fn set_deaf(&self, sources: &[u16]) {
        *lock(&self.deaf) = sources.to_vec();
    }

    /// A device is asked to forget the bytes `first` to `last`. Whether it answers.
    pub(crate) fn invalidate(&self, source: u16, first: u64, last: u64) -> bool {
        if lock(&self.deaf).contains(&source) {
            return false;
        }
        lock(&self.lines).retain(|line| line.source.requester != source || line.last < first || last < line.first);
        // The answer pushes what the device has written before it (PCIe 10.3.3).
        lock(&self.in_flight).retain(|(of, ..)| of.requester != source);
        true
    }
}

pub(crate) fn reader(snoop: Snoop) -> Reader {
    match snoop {
        Snoop::Yes => Reader::Snoops,
        Snoop::No => Reader::ReadsMemory,
    }
}

/// Any order, by a number.
pub(crate) struct Choices {
    random: Mutex<u64>,
    retention: Retention,
}

impl Choices {
    pub(crate) fn new(seed: u64, retention: Retention) -> Self {
        Self { random: Mutex::new(seed), retention }
    }

    fn next(&self) -> u64 {
        let mut random = lock(&self.random);
        *random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *random >> 33
    }
}

impl Chooser for Choices {
    fn choose(&self, choices: usize) -> usize {
        self.next() as usize % choices
    }

    fn retention(&self) -> Retention {
        self.retention
    }

    fn fracture(&self) -> Fracture {
        if self.next() & 1 == 0 { Fracture::Whole } else { Fracture::Pieces }
    }
}

/// What the unit's caches are made of: nobody observes it.
#[derive(Clone)]
pub(crate) struct CacheFrames(Arc<FramePool>);

impl CacheFrames {
    pub(crate) fn new() -> Self {
        let range = PhysRange::from_len(PhysAddr::new(0), CACHE_BYTES).unwrap();
        Self(Arc::new(FramePool::new(Arc::new(GuestRam::private(&[range]).unwrap()), range)))
    }
}

// SAFETY: the pool gives each frame to one holder, out of RAM that stays mapped while a clone lives.
unsafe impl Platform for CacheFrames {
    type Registers = NoRegisters;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, last: PhysAddr) -> Option<PhysAddr> {
        self.0.alloc(order, last)
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        self.0.free(first, order);
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.0.ram().pointer(phys).unwrap()
    }

    fn map_registers(&self, _: PhysAddr, _: usize) -> Result<NoRegisters> {
        Ok(NoRegisters)
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }
}
