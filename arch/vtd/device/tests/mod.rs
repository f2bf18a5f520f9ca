//! Tests of the unit as software and devices see it, on a machine made of words.

extern crate std;
use std::boxed::Box;
use std::collections::HashMap;
use std::sync::Mutex;
use std::vec;
use std::vec::Vec;

use super::{
    Chooser, DeviceAnswer, DeviceConfig, Host, InOrder, Request, RequestAccess, Snoop, Unreachable, VtdDevice,
};
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange, Drain, ResponseCode};
use crate::arch::vtd::layout::registers::{Global, offset};
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::ops::Msi;
use crate::platform::{Arena, Frame, Registers};

mod ats;
mod commands;
mod hostile;
mod invalidation;
mod legacy;
mod page_requests;
mod queue;
mod races;
mod registers;
mod scalable;

/// What happens while a word is being read.
type Trap = Box<dyn FnOnce() + Send>;

/// Words at physical addresses, and a log of what the unit did to the rest of the machine.
#[derive(Default)]
pub(super) struct Machine {
    /// Called once, when the word at this address is read or written by the unit.
    trap: Mutex<Option<(u64, Trap)>>,
    words: Mutex<HashMap<u64, u64>>,
    log: Mutex<Vec<Event>>,
    /// Whether entries cannot be updated.
    pub(super) frozen: std::sync::atomic::AtomicBool,
    /// What devices answer; `Done` unless told otherwise.
    answers: Mutex<HashMap<u16, DeviceAnswer>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    Interrupt(Msi),
    DeviceTlb(u16, Option<DevicePasids>, DeviceRange),
    Response(u16, Option<u32>, u16, ResponseCode),
    Flush,
    Drain(Drain),
    Status(u64, u32),
}

impl Machine {
    pub(super) fn poke(&self, address: u64, value: u64) {
        self.words.lock().unwrap().insert(address, value);
    }

    pub(super) fn peek(&self, address: u64) -> u64 {
        self.words.lock().unwrap().get(&address).copied().unwrap_or(0)
    }

    pub(super) fn log(&self) -> Vec<Event> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    pub(super) fn answer(&self, source: u16, answer: DeviceAnswer) {
        self.answers.lock().unwrap().insert(source, answer);
    }

    fn spring(&self, address: PhysAddr) {
        let trap = self.trap.lock().unwrap().take_if(|trap| trap.0 == address.as_u64());
        if let Some((_, trap)) = trap {
            trap();
        }
    }

    /// Calls `trap` when the word at `address` was read, before its value is used, or was written.
    pub(super) fn trap(&self, address: u64, trap: impl FnOnce() + Send + 'static) {
        *self.trap.lock().unwrap() = Some((address, Box::new(trap)));
    }

    fn note(&self, event: Event) {
        self.log.lock().unwrap().push(event);
    }
}

/// Memory ends here; what nobody wrote below is zero.
const END: u64 = 1 << 32;

fn check(address: PhysAddr) -> Result<u64, Unreachable> {
    if address.as_u64() < END { Ok(address.as_u64()) } else { Err(Unreachable) }
}

impl Host for Machine {
    fn read(&self, address: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
        assert!(address.is_aligned(8));
        let value = self.peek(check(address)?);
        self.spring(address);
        Ok(value)
    }

    fn write32(&self, address: PhysAddr, value: u32) -> Result<(), Unreachable> {
        assert!(address.is_aligned(4));
        self.note(Event::Status(check(address)?, value));
        Ok(())
    }

    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable> {
        assert!(address.is_aligned(8));
        self.poke(check(address)?, value);
        self.spring(address);
        Ok(())
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
        if self.frozen.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Unreachable);
        }
        let same = self.peek(check(address)?) == current;
        if same {
            self.poke(address.as_u64(), new);
        }
        Ok(same)
    }

    fn interrupt(&self, message: Msi) {
        self.note(Event::Interrupt(message));
    }

    fn invalidate_device_tlb(&self, source: u16, pasids: Option<DevicePasids>, range: DeviceRange) -> DeviceAnswer {
        self.note(Event::DeviceTlb(source, pasids, range));
        self.answers.lock().unwrap().get(&source).copied().unwrap_or(DeviceAnswer::Done)
    }

    fn respond(&self, source: u16, pasid: Option<u32>, group: u16, code: ResponseCode) {
        self.note(Event::Response(source, pasid, group, code));
    }

    fn flush_write_buffers(&self) {
        self.note(Event::Flush);
    }

    fn drain(&self, what: Drain) {
        self.note(Event::Drain(what));
    }
}

pub(super) type Unit<C = InOrder> = VtdDevice<&'static Arena, Machine, C>;

pub(super) fn arena() -> &'static Arena {
    Arena::new(Box::leak(vec![Frame::ZERO; 64].into_boxed_slice())).unwrap()
}

pub(super) fn unit(config: DeviceConfig) -> Unit {
    VtdDevice::new(arena(), Machine::default(), config).unwrap()
}

pub(super) fn with(cap: Cap, ecap: Ecap) -> DeviceConfig {
    let config = DeviceConfig::default();
    DeviceConfig { cap: config.cap | cap, ecap: config.ecap | ecap, ..config }
}

/// Where things are in these machines.
pub(super) const ROOT: u64 = 0x1000;
const CONTEXTS: u64 = 0x2000;
const QUEUE: u64 = 0x8_0000;
/// Tables of page table `n` begin here.
const fn tables(n: u64) -> u64 {
    0x10_0000 + n * 0x10_0000
}

/// The top table of page table `n`.
pub(super) const fn top(n: u64) -> u64 {
    tables(n) + 0x3000
}

/// 00:02.0, and what it asks.
pub(super) const DEVICE: u16 = 0x10;

pub(super) fn read(address: u64) -> Request {
    Request::new(DEVICE, address, RequestAccess::Read)
}

pub(super) fn write(address: u64) -> Request {
    Request::new(DEVICE, address, RequestAccess::Write)
}

impl<C: Chooser + 'static> Unit<C> {
    /// Sets a bit of GCMD, the others as they are, and lets the unit run.
    pub(super) fn set(&self, bit: Global) {
        self.write32(offset::GCMD, (self.status() & Global::STICKY | bit).bits());
        self.run();
    }

    /// Clears a bit of GCMD.
    pub(super) fn unset(&self, bit: Global) {
        self.write32(offset::GCMD, ((self.status() & Global::STICKY) - bit).bits());
        self.run();
    }

    pub(super) fn status(&self) -> Global {
        Global::from_bits_retain(self.read32(offset::GSTS))
    }

    /// Takes over a root table in a mode (RTADDR bits 11:10).
    pub(super) fn set_root(&self, address: u64) {
        self.write64(offset::RTADDR, address);
        self.set(Global::RTP);
    }

    /// A legacy context entry (9.3): low and high quadword.
    pub(super) fn legacy_context(&self, source: u16, low: u64, high: u64) {
        self.host().poke(ROOT + u64::from(source >> 8) * 16, CONTEXTS | 1);
        self.host().poke(CONTEXTS + u64::from(source & 0xff) * 16, low);
        self.host().poke(CONTEXTS + u64::from(source & 0xff) * 16 + 8, high);
    }

    /// Writes the entry for `address` at `level` (0: 4 KiB) into page table `n` of 4 levels, linking tables by
    /// `link`, the low bits of entries that name tables. The table of one level is shared by all addresses.
    pub(super) fn map(&self, n: u64, link: u64, address: u64, level: u64, entry: u64) {
        let index = |level: u64| (address >> (12 + 9 * level) & 0x1ff) * 8;
        for upper in level + 1..4 {
            let table = tables(n) + upper * 0x1000;
            self.host().poke(table + index(upper), (tables(n) + (upper - 1) * 0x1000) | link);
        }
        self.host().poke(tables(n) + level * 0x1000 + index(level), entry);
    }

    /// Legacy mode, translation on: the device has domain 7 and 48 bits (AW 2) in page table 0.
    pub(super) fn start_legacy(&self) {
        self.legacy_context(DEVICE, top(0) | 1, 0x702);
        self.set_root(ROOT);
        self.set(Global::TE);
    }

    /// The queue, of 128-bit descriptors or of 256-bit ones.
    pub(super) fn start_queue(&self) {
        let wide = self.config().ecap.intersects(Ecap::SMTS | Ecap::ADMS);
        self.write64(offset::IQA, QUEUE | u64::from(wide) << 11);
        self.write64(offset::IQT, 0);
        self.set(Global::QIE);
    }

    /// Writes descriptors behind the tail, without telling.
    pub(super) fn write_descriptors(&self, descriptors: &[[u64; 2]]) -> u64 {
        let wide = self.read64(offset::IQA) >> 11 & 1 == 1;
        let bytes = if wide { 32 } else { 16 };
        let mut tail = self.read64(offset::IQT);
        for [low, high] in descriptors {
            for (index, word) in [*low, *high, 0, 0].into_iter().take(bytes / 8).enumerate() {
                self.host().poke(QUEUE + tail + 8 * index as u64, word);
            }
            tail = (tail + bytes as u64) % 0x1000;
        }
        tail
    }

    /// Writes descriptors behind the tail, and the tail.
    pub(super) fn submit(&self, descriptors: &[[u64; 2]]) {
        let tail = self.write_descriptors(descriptors);
        self.write64(offset::IQT, tail);
    }

    /// Submits, and lets the unit run.
    pub(super) fn process(&self, descriptors: &[[u64; 2]]) {
        self.submit(descriptors);
        self.run();
    }

    /// Where a request goes.
    pub(super) fn goes(&self, request: Request) -> Result<u64, u8> {
        self.translate(&request).map(|answer| answer.phys.as_u64()).map_err(|blocked| blocked.reason.0)
    }
}

/// A wait that writes 1 to 0x9_0000 (6.5.2.9).
pub(super) const WAIT: [u64; 2] = [1 << 32 | 0x25, 0x9_0000];
