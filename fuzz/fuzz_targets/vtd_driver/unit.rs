//! A VT-d unit in software: commands, the invalidation queue, fault records, and its lies.

use std::fmt;

use iommu::arch::vtd::driver::Capabilities;
use iommu::arch::vtd::layout::Descriptor;
use iommu::arch::vtd::layout::descriptors::{Request, WaitFlags};
use iommu::arch::vtd::layout::registers::{FaultStatus, Global, PMEN_EPM, PMEN_PRS, offset};
use iommu::arch::vtd::layout::{Cap, Ecap};

use crate::input::Input;
use crate::walk::Caches;
use crate::world::Memory;

/// What units are like when they are first mapped.
pub struct Template {
    /// VER, CAP and ECAP of each unit.
    pub capabilities: [(u32, u64, u64); 2],
    /// GSTS as firmware left it.
    pub status: u32,
    pub trouble: Trouble,
}

impl Template {
    pub fn unit(&self, index: usize, base: u64) -> Unit {
        let (version, cap, ecap) = self.capabilities[index % 2];
        let cap = Cap::from_bits_retain(cap);
        Unit {
            base,
            version,
            cap,
            ecap: Ecap::from_bits_retain(ecap),
            status: self.status,
            root_register: 0,
            root: None,
            queue_register: 0,
            queue: None,
            head: 0,
            tail: 0,
            faults: 0,
            first_fault: 0,
            records: vec![[0; 4]; cap.fault_records()],
            error: 0,
            protected: PMEN_EPM | PMEN_PRS,
            pending: None,
            unanswered: false,
            caches: Caches::default(),
            executed: Vec::new(),
            trouble: self.trouble.clone(),
        }
    }
}

/// What is wrong with a unit, or will be.
#[derive(Clone, Default)]
pub struct Trouble {
    /// Descriptors until it stops fetching.
    pub stall_after: Option<u32>,
    /// Descriptors until it refuses one.
    pub refuse_after: Option<u32>,
    /// Devices, by the low bits of their requester ids, that do not answer.
    pub deaf_devices: u16,
    /// Descriptors that it fetches, and drops, between a wait and the time-out.
    pub prefetch: u8,
    /// Commands it does not take.
    pub deaf: u32,
    /// Reads of GSTS until it takes a command.
    pub late: u8,
    /// It works only while somebody waits, on so many descriptors a turn; 0 for at once.
    pub lazy: u8,
    /// Register accesses until it is gone.
    pub gone_after: Option<u32>,
    /// What registers read instead: offset, value, and how often still.
    pub lies: Vec<(usize, u32, u16)>,
    /// All registers read at random: seed, and how often still.
    pub noise: Option<(u64, u16)>,
}

pub struct Unit {
    pub base: u64,
    version: u32,
    pub cap: Cap,
    pub ecap: Ecap,
    pub status: u32,
    root_register: u64,
    /// The root table, once the driver has set one.
    pub root: Option<u64>,
    queue_register: u64,
    /// The queue, once the driver has turned one on.
    pub queue: Option<u64>,
    head: u32,
    tail: u32,
    faults: u32,
    first_fault: u8,
    records: Vec<[u32; 4]>,
    error: u64,
    protected: u32,
    /// A command that is still to be taken, after so many reads.
    pending: Option<(u32, u8)>,
    /// A device has not answered to something before the next wait.
    unanswered: bool,
    pub caches: Caches,
    /// First quadwords of the requests that were executed, waits apart.
    pub executed: Vec<u64>,
    pub trouble: Trouble,
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit at {:#x}, GSTS {:#x}: ", self.base, self.status)?;
        match Capabilities::new(self.version, self.cap.bits(), self.ecap.bits()) {
            Ok(capabilities) => fmt::Display::fmt(&capabilities, f),
            Err(_) => f.write_str("none"),
        }
    }
}

/// Bits of GCMD that stay.
const STICKY: u32 = Global::TE.bits() | Global::QIE.bits() | Global::IRE.bits() | Global::CFI.bits();

impl Unit {
    pub fn is_translating(&self) -> bool {
        self.status & Global::TE.bits() != 0
    }

    pub fn is_queueing(&self) -> bool {
        self.status & Global::QIE.bits() != 0
    }

    pub fn read32(&mut self, memory: &Memory, at: usize) -> u32 {
        if self.is_gone() {
            return u32::MAX;
        }
        if let Some((seed, left)) = &mut self.trouble.noise {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = (*seed >> 33) as u32;
            *left -= 1;
            if *left == 0 {
                self.trouble.noise = None;
            }
            return value;
        }
        let lie = self.trouble.lies.iter_mut().find(|(of, _, left)| *of == at && *left > 0);
        if let Some((_, value, left)) = lie {
            *left -= 1;
            return *value;
        }
        self.truth(memory, at)
    }

    fn truth(&mut self, memory: &Memory, at: usize) -> u32 {
        let half = |value: u64| if at & 4 == 0 { value as u32 } else { (value >> 32) as u32 };
        match at {
            offset::VER => self.version,
            offset::GSTS => {
                self.take_late_command(memory);
                self.status
            }
            offset::FSTS => self.faults | u32::from(self.first_fault) << 8,
            offset::PMEN => self.protected,
            offset::IQH => self.head << self.shift(),
            offset::IQT => self.tail << self.shift(),
            _ => match at & !7 {
                offset::CAP => half(self.cap.bits()),
                offset::ECAP => half(self.ecap.bits()),
                offset::RTADDR => half(self.root_register),
                offset::IQA => half(self.queue_register),
                offset::IQERCD => half(self.error),
                _ => self.record_at(at).map_or(0, |(record, part)| self.records[record][part]),
            },
        }
    }

    pub fn write32(&mut self, memory: &Memory, truthful: bool, at: usize, value: u32) {
        if self.is_gone() {
            return;
        }
        let set_half = |register: &mut u64| {
            let shift = if at & 4 == 0 { 0 } else { 32 };
            *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
        };
        match at {
            offset::GCMD if self.trouble.late > 0 => {
                if value & Global::WBF.bits() != 0 {
                    self.status |= Global::WBF.bits();
                }
                self.status &= !(value & Global::RTP.bits());
                self.pending = Some((value, self.trouble.late));
            }
            offset::GCMD => self.command(memory, value),
            offset::FSTS => {
                // What is cleared by writing one: not PPF, which follows the records.
                self.faults &= !(value & 0x71);
                self.work(memory, truthful);
            }
            offset::PMEN => self.protected = value & PMEN_EPM | value >> 31,
            offset::IQT => {
                self.tail = (value >> self.shift()) % self.entries();
                self.work(memory, truthful);
            }
            _ => match at & !7 {
                offset::RTADDR => set_half(&mut self.root_register),
                offset::IQA => {
                    assert!(
                        !truthful || !self.is_queueing() || self.pending.is_some(),
                        "the address of the queue changes while it runs"
                    );
                    set_half(&mut self.queue_register);
                }
                _ => self.write_record(at, value),
            },
        }
    }

    /// A fault, recorded if there is a record.
    pub fn record(&mut self, slot: usize, content: [u32; 4]) {
        let count = self.records.len();
        self.records[slot % count] = content;
        self.first_fault = slot as u8;
        self.update_pending_faults();
    }

    pub fn raise(&mut self, bits: u32) {
        self.faults |= bits;
    }

    pub fn set_error(&mut self, error: u64) {
        self.error = error;
    }

    /// Overwrites a word of the driver's queue: a lie in memory instead of one in a register.
    pub fn scribble_on_queue(&self, memory: &Memory, word: u64, value: u64) {
        if let Some(queue) = self.queue
            && let Some(word) = memory.word(queue + word % 512 * 8)
        {
            word.store(value, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Finds where the newest wait writes to and overwrites that.
    pub fn scribble_on_status(&self, memory: &Memory, value: u32) {
        let Some(queue) = self.queue else { return };
        let status =
            (0..self.entries()).rev().find_map(|slot| match self.descriptor(memory, queue, slot)?.decode()? {
                Request::Wait { address, .. } => Some(address.as_u64() & !0xfff),
                _ => None,
            });
        if let Some(status) = status {
            let _ = memory.store32(status, value);
        }
    }

    pub fn run_in_background(&mut self, memory: &Memory, truthful: bool) {
        let turns = if self.trouble.lazy == 0 { u32::MAX } else { u32::from(self.trouble.lazy) };
        self.run(memory, truthful, turns);
    }

    fn work(&mut self, memory: &Memory, truthful: bool) {
        if self.trouble.lazy == 0 {
            self.run(memory, truthful, u32::MAX);
        }
    }

    fn is_gone(&mut self) -> bool {
        match &mut self.trouble.gone_after {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn take_late_command(&mut self, memory: &Memory) {
        match self.pending.take() {
            Some((command, 0)) => self.command(memory, command),
            Some((command, left)) => self.pending = Some((command, left - 1)),
            None => {}
        }
    }

    fn command(&mut self, memory: &Memory, command: u32) {
        let deaf = self.trouble.deaf;
        let before = self.status;
        let taken = STICKY & !deaf;
        self.status = before & !taken | command & taken;
        if command & Global::RTP.bits() & !deaf != 0 {
            self.root = memory.is_lent(self.root_register & !0xfff).then_some(self.root_register & !0xfff);
            self.status |= Global::RTP.bits();
        }
        // The write buffer is flushed at once, or never.
        self.status = self.status & !Global::WBF.bits() | command & deaf & Global::WBF.bits();
        let queue = Global::QIE.bits();
        if before & queue != 0 && self.status & queue == 0 {
            if self.head == self.tail {
                self.head = 0;
                self.queue = None;
            } else {
                self.status |= queue; // It is not quiet: the command is not taken.
            }
        }
        if before & queue == 0 && self.status & queue != 0 {
            self.head = 0;
            self.queue = Some(self.queue_register & !0xfff);
        }
        if before & Global::TE.bits() == 0 && self.is_translating() {
            self.caches.assert_live(memory);
        }
    }

    fn shift(&self) -> u32 {
        4 + (self.queue_register >> 11 & 1) as u32
    }

    fn entries(&self) -> u32 {
        (4096 << (self.queue_register & 7)) >> self.shift()
    }

    fn descriptor(&self, memory: &Memory, queue: u64, slot: u32) -> Option<Descriptor> {
        let mut descriptor = Descriptor::default();
        for (index, word) in descriptor.words.iter_mut().take(2 << (self.shift() - 4)).enumerate() {
            *word = memory.load(queue + (u64::from(slot) << self.shift()) + index as u64 * 8)?;
        }
        Some(descriptor)
    }

    fn advance(&mut self) {
        self.head = (self.head + 1) % self.entries();
    }

    fn may_fetch(&self) -> bool {
        let stopped = FaultStatus::IQE | FaultStatus::ITE;
        self.is_queueing() && self.faults & stopped.bits() == 0 && self.head != self.tail
    }

    /// Works on the queue until it is empty or stands, at most on `turns` descriptors.
    fn run(&mut self, memory: &Memory, truthful: bool, turns: u32) {
        for _ in 0..turns {
            if !self.may_fetch() || count_down(&mut self.trouble.stall_after) {
                return;
            }
            // A queue that firmware left is not in the driver's memory.
            let Some(queue) = self.queue else { return self.advance() };
            let Some(descriptor) = self.descriptor(memory, queue, self.head) else {
                assert!(!truthful, "the queue is not lent to the unit");
                return self.advance();
            };
            let refused = count_down(&mut self.trouble.refuse_after);
            if refused {
                self.trouble.refuse_after = None;
            }
            let Some(request) = descriptor.decode().filter(|_| !refused) else {
                assert!(!truthful || refused, "a malformed descriptor: {descriptor:x?}");
                self.faults |= FaultStatus::IQE.bits();
                return;
            };
            self.advance();
            match request {
                Request::Wait { .. } if self.unanswered => {
                    for _ in 0..self.trouble.prefetch {
                        if self.may_fetch() {
                            self.advance();
                        }
                    }
                    self.unanswered = false;
                    self.faults |= FaultStatus::ITE.bits();
                    return;
                }
                Request::Wait { flags, address, data } => {
                    if flags.contains(WaitFlags::STATUS_WRITE) {
                        let written = memory.store32(address.as_u64(), data);
                        assert!(!truthful || written.is_some(), "the status word is not lent to the unit");
                    }
                }
                Request::DeviceTlb { source, .. } if 1 << (source & 15) & self.trouble.deaf_devices != 0 => {
                    self.unanswered = true;
                    self.error = u64::from(source) << 32;
                }
                _ => {
                    self.caches.invalidate(&request, self.cap);
                    self.executed.push(descriptor.words[0]);
                }
            }
        }
    }

    /// The record and its part that lie at an offset, outside the common registers.
    fn record_at(&self, at: usize) -> Option<(usize, usize)> {
        let inside = at.checked_sub(self.cap.fault_record_offset())?;
        (at >= offset::COMMON_END && inside / 16 < self.records.len()).then_some((inside / 16, inside % 16 / 4))
    }

    fn write_record(&mut self, at: usize, value: u32) {
        // F is cleared by writing one.
        if let Some((record, 3)) = self.record_at(at) {
            self.records[record][3] &= !(value & 1 << 31);
            self.update_pending_faults();
        }
    }

    fn update_pending_faults(&mut self) {
        let pending = self.records.iter().any(|record| record[3] >> 31 != 0);
        self.faults = self.faults & !FaultStatus::PPF.bits() | u32::from(pending) << 1;
    }
}

/// Whether the count has come to its end.
fn count_down(count: &mut Option<u32>) -> bool {
    match count {
        Some(0) => true,
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

/// One more thing that is wrong with a unit. Tells whether it is a lie, rather than a failure that a
/// unit may have.
pub fn trouble(unit: &mut Unit, memory: &Memory, input: &mut Input<'_>) -> bool {
    let Unit { trouble, .. } = unit;
    let kind = input.below(18);
    crate::kernel::trace(format_args!("trouble {kind}"));
    match kind {
        0 => trouble.stall_after = Some(u32::from(input.u8())),
        1 => trouble.refuse_after = Some(u32::from(input.u8())),
        2 => (trouble.deaf_devices, trouble.prefetch) = (input.u16(), input.u8() % 8),
        3 => trouble.deaf = input.u32(),
        4 => trouble.late = input.u8(),
        5 => trouble.lazy = input.u8(),
        6 => trouble.gone_after = Some(u32::from(input.u16())),
        7 => {
            let slot = usize::from(input.u8());
            let content = [input.u32(), input.u32(), input.u32(), input.u32() | 1 << 31];
            unit.record(slot, content);
        }
        8 => unit.raise(FaultStatus::PFO.bits()),
        9 => unit.raise(FaultStatus::ICE.bits()),
        10 => {
            *trouble = Trouble::default();
            unit.run(memory, false, u32::MAX);
        }
        // From here on it lies.
        11 => {
            unit.raise(u32::from(input.u8()));
            return true;
        }
        12 => {
            let registers = [offset::IQH, offset::IQT, offset::FSTS, offset::GSTS, offset::PMEN, offset::IQERCD];
            let at = input.pick(&registers).map_or(0, |at| *at);
            trouble.lies.push((at, input.u32(), input.u16()));
            return true;
        }
        13 => {
            trouble.lies.push((usize::from(input.u16() & 0xffc), input.u32(), input.u16()));
            return true;
        }
        14 => {
            trouble.noise = Some((input.u64(), input.u16() | 1));
            return true;
        }
        15 => {
            unit.scribble_on_status(memory, input.u32());
            return true;
        }
        16 => {
            unit.scribble_on_queue(memory, u64::from(input.u16()), input.u64());
            return true;
        }
        _ => {
            unit.set_error(input.u64());
            return true;
        }
    }
    false
}
