//! The device half on observed memory.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use iommu::arch::vtd::device::{
    Answer, Blocked, Chooser, DeviceAnswer, DeviceConfig, Fracture, Host, Recorded, Request, RequestAccess, Retention,
    Snoop, Step, Unreachable, VtdDevice,
};
use iommu::arch::vtd::layout::FaultReason;
use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange, Drain};
use iommu::arch::vtd::layout::registers::{FaultStatus, Global, offset};
use iommu::bus::AddressType;
use iommu::ops::Msi;
use iommu::platform::{Hosted, Instant, NoRegisters, Platform, Registers};
use iommu::{PhysAddr, PhysRange, Prot, Result};
use iommu_harness::observed::Reader;
use iommu_harness::{FramePool, GuestRam, ObservedMemory};

use crate::bench::{Setup, lock};

/// Steps that a status write may take.
const STATUS_TURNS: u64 = 16;
const SLOWEST_TURNS: u64 = 512;
/// Frames for the unit's caches.
const CACHE_BYTES: u64 = 1 << 20;

/// A VT-d unit, its memory, and what it did.
pub(crate) struct Unit {
    device: VtdDevice<CacheFrames, Late, Choices>,
    /// GCMD, as written last: what is not in GSTS yet is pending.
    command: Mutex<u32>,
    complaints: Mutex<Vec<String>>,
    turns: AtomicU64,
    /// Whether the unit says which device did not answer: older ones do not.
    names_devices: bool,
}

impl Unit {
    pub(crate) fn new(memory: Arc<ObservedMemory>, setup: &Setup) -> Self {
        let config = DeviceConfig { cap: setup.cap, ecap: setup.ecap, cache_order: 1, ..DeviceConfig::default() };
        let range = PhysRange::from_len(PhysAddr::new(0), CACHE_BYTES).unwrap();
        let frames = CacheFrames(Arc::new(FramePool::new(Arc::new(GuestRam::private(&[range]).unwrap()), range)));
        let host = Late {
            memory,
            posted: Mutex::default(),
            in_flight: Mutex::default(),
            deaf: Mutex::default(),
            ats: Mutex::default(),
            lines: Mutex::default(),
        };
        let choices = Choices { random: Mutex::new(setup.seed), retention: setup.retention };
        let device = VtdDevice::with_chooser(frames, host, config, choices).unwrap();
        Self {
            device,
            command: Mutex::new(0),
            complaints: Mutex::default(),
            turns: AtomicU64::new(0),
            names_devices: setup.seed & 1 == 0,
        }
    }

    pub(crate) fn read(&self, at: usize) -> u32 {
        if at == offset::ICS {
            // 6.5.2.10: the answer pushes status writes ahead of it.
            self.device.host().deliver();
        }
        self.device.read32(at)
    }

    pub(crate) fn read64(&self, at: usize) -> u64 {
        if at == offset::IQERCD && !self.names_devices {
            return 0;
        }
        self.device.read64(at)
    }

    pub(crate) fn write(&self, at: usize, value: u32) {
        if at == offset::GCMD {
            self.judge_command(value);
        }
        self.device.write32(at, value);
    }

    pub(crate) fn write64(&self, at: usize, value: u64) {
        if at == offset::RTADDR && self.is_pending(Global::RTP) {
            self.complain("RTADDR is written while the unit takes over what it was");
        }
        self.device.write64(at, value);
    }

    /// 6.9: a command register belongs to the unit until the command is done.
    fn judge_command(&self, value: u32) {
        let status = self.device.read32(offset::GSTS);
        let levels = (Global::TE | Global::QIE | Global::IRE | Global::CFI).bits();
        let mut command = lock(&self.command);
        if *command & levels != status & levels || self.is_unserved(*command, status) {
            self.complain("a command is given while another is pending");
        }
        if status & Global::QIE.bits() & !value != 0 && self.read(offset::IQH) != self.read(offset::IQT) {
            self.complain("the queue is turned off with work in it");
        }
        *command = value;
    }

    fn is_pending(&self, bit: Global) -> bool {
        let command = *lock(&self.command) & bit.bits();
        command != 0 && self.is_unserved(command, self.device.read32(offset::GSTS))
    }

    fn is_unserved(&self, command: u32, status: u32) -> bool {
        command & !status & Global::RTP.bits() != 0 || command & status & Global::WBF.bits() != 0
    }

    fn complain(&self, what: &str) {
        lock(&self.complaints).push(what.to_owned());
    }

    /// Does one thing; `false` when there is nothing to do.
    pub(crate) fn step(&self) -> bool {
        let acted = !matches!(self.device.step(), Step::Idle | Step::Busy);
        // A status write takes a while, but gets there.
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        // The slowest is one that is overtaken by an error.
        let stands = self.device.read32(offset::FSTS) & FaultStatus::QUEUE.bits() != 0;
        let waits = if stands { SLOWEST_TURNS } else { STATUS_TURNS };
        if (acted || stands) && !turn.is_multiple_of(waits) { acted } else { self.device.host().deliver() || acted }
    }

    /// Where a device's request goes, if it is let through. The access is on its way from then on.
    pub(crate) fn translate(&self, source: u16, address: u64, write: bool) -> Option<u64> {
        let access = if write { RequestAccess::Write } else { RequestAccess::Read };
        let request = Request::new(source, address, access);
        let answer = if lock(&self.device.host().ats).contains(&source) {
            self.translate_by_device(&request)
        } else {
            self.device.translate(&request)
        };
        match answer {
            Ok(answer) => {
                let place = answer.phys.as_u64();
                let mut in_flight = lock(&self.device.host().in_flight);
                if !in_flight.contains(&(source, address, write, place)) {
                    in_flight.push((source, address, write, place));
                }
                Some(place)
            }
            Err(blocked) => {
                // Not present, not permitted, or beyond the width: the rest is about malformed tables.
                if !matches!(blocked.reason.0, 0x1 | 0x2 | 0x4..=0x6 | 0xd | 0x39 | 0x41 | 0x44 | 0x51 | 0x59 | 0x71 | 0x76 | 0x77 | 0x79 | 0x80..=0x86)
                {
                    self.complain(&format!(
                        "a request of {source:#x} to {address:#x} met a malformed entry: {:?}",
                        blocked.reason
                    ));
                }
                None
            }
        }
    }

    /// A device with a TLB asks for the translation first, and keeps it.
    fn translate_by_device(&self, request: &Request) -> std::result::Result<Answer, Blocked> {
        let host = self.device.host();
        let writes = request.access == RequestAccess::Write;
        let inside = |line: &Line| (line.first..=line.last).contains(&request.address) && line.source == request.source;
        let known = lock(&host.lines).iter().find(|line| inside(line) && (line.write || !writes)).copied();
        let line = match known {
            Some(line) => line,
            None => {
                let answer =
                    self.device.translate(&Request { address_type: AddressType::TranslationRequest, ..*request })?;
                let permitted = answer.prot.contains(if writes { Prot::WRITE } else { Prot::READ });
                if !permitted {
                    // What the unit answers without permission.
                    let recorded = Recorded::Suppressed;
                    return Err(Blocked { reason: FaultReason(if writes { 5 } else { 6 }), recorded });
                }
                let offset = (1u64 << answer.page_bits.min(63)) - 1;
                let line = Line {
                    source: request.source,
                    first: request.address & !offset,
                    last: request.address | offset,
                    phys: answer.phys.as_u64() & !offset,
                    write: answer.prot.contains(Prot::WRITE),
                };
                lock(&host.lines).push(line);
                line
            }
        };
        let address = line.phys + (request.address - line.first);
        self.device.translate(&Request { address_type: AddressType::Translated, address, ..*request })
    }

    /// Turns a device's TLB on or off.
    pub(crate) fn set_ats(&self, source: u16, on: bool) {
        let host = self.device.host();
        lock(&host.ats).retain(|other| *other != source);
        if on {
            lock(&host.ats).push(source);
        } else {
            // PCIe 10.5.1: disabled, it forgets.
            lock(&host.lines).retain(|line| line.source != source);
        }
    }

    /// Where accesses of `source` to `address` are still under way to.
    pub(crate) fn in_flight(&self, source: u16, address: u64, write: bool) -> Vec<u64> {
        let all = lock(&self.device.host().in_flight);
        all.iter()
            .filter(|(of, at, writes, _)| (*of, *at, *writes) == (source, address, write))
            .map(|(.., place)| *place)
            .collect()
    }

    /// Accesses under way get through.
    pub(crate) fn land(&self) {
        lock(&self.device.host().in_flight).clear();
    }

    /// What the driver did that it must not.
    pub(crate) fn complaints(&self) -> Vec<String> {
        lock(&self.complaints).clone()
    }

    /// Devices that do not answer from now on.
    pub(crate) fn set_deaf(&self, sources: &[u16]) {
        *lock(&self.device.host().deaf) = sources.to_vec();
    }
}

/// What the unit stands on: status writes and accesses take their time.
struct Late {
    memory: Arc<ObservedMemory>,
    posted: Mutex<Vec<(PhysAddr, u32)>>,
    in_flight: Mutex<Vec<(u16, u64, bool, u64)>>,
    deaf: Mutex<Vec<u16>>,
    /// Devices whose TLB is on, and what is in them.
    ats: Mutex<Vec<u16>>,
    lines: Mutex<Vec<Line>>,
}

/// A translation that a device keeps.
#[derive(Clone, Copy)]
struct Line {
    source: u16,
    first: u64,
    last: u64,
    phys: u64,
    write: bool,
}

impl Late {
    fn deliver(&self) -> bool {
        let posted = std::mem::take(&mut *lock(&self.posted));
        for (address, value) in &posted {
            let _ = self.memory.write32(*address, *value);
        }
        !posted.is_empty()
    }
}

fn reader(snoop: Snoop) -> Reader {
    match snoop {
        Snoop::Yes => Reader::Snoops,
        Snoop::No => Reader::ReadsMemory,
    }
}

impl Host for Late {
    fn read(&self, address: PhysAddr, snoop: Snoop) -> std::result::Result<u64, Unreachable> {
        self.memory.read(address, reader(snoop)).ok_or(Unreachable)
    }

    fn read_pair(&self, address: PhysAddr, snoop: Snoop) -> std::result::Result<[u64; 2], Unreachable> {
        self.memory.read_pair(address, reader(snoop)).ok_or(Unreachable)
    }

    fn write32(&self, address: PhysAddr, value: u32) -> std::result::Result<(), Unreachable> {
        lock(&self.posted).push((address, value));
        Ok(())
    }

    fn write64(&self, address: PhysAddr, value: u64) -> std::result::Result<(), Unreachable> {
        self.memory.write64(address, value).ok_or(Unreachable)
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> std::result::Result<bool, Unreachable> {
        self.memory.compare_exchange(address, current, new).ok_or(Unreachable)
    }

    fn interrupt(&self, _: Msi) {}

    fn invalidate_device_tlb(&self, source: u16, _: Option<DevicePasids>, range: DeviceRange) -> DeviceAnswer {
        if lock(&self.deaf).contains(&source) {
            return DeviceAnswer::None;
        }
        let first = range.address.as_u64();
        let last = 1u64.checked_shl(u32::from(range.order) + 12).map_or(u64::MAX, |bytes| first | (bytes - 1));
        lock(&self.lines).retain(|line| line.source != source || line.last < first || last < line.first);
        // The answer pushes what the device has written before it (PCIe 10.3.3).
        lock(&self.in_flight).retain(|(of, ..)| *of != source);
        DeviceAnswer::Done
    }

    fn flush_write_buffers(&self) {
        self.memory.flush_write_buffers();
    }

    fn drain(&self, _: Drain) {
        // Untranslated requests only (6.5.4).
        let ats = lock(&self.ats).clone();
        lock(&self.in_flight).retain(|(source, ..)| ats.contains(source));
    }
}

/// Any order, by a number.
struct Choices {
    random: Mutex<u64>,
    retention: Retention,
}

impl Choices {
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
struct CacheFrames(Arc<FramePool>);

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
