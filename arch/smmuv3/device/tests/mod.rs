//! The unit against values from the specification.

extern crate std;

mod ats;
mod commands;
mod configuration;
mod events;
mod hostile;
mod invalidation;
mod page_requests;
mod races;
mod registers;
mod stalls;

use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec;
use std::vec::Vec;

use super::{
    Access, Answer, Blocked, Chooser, DeviceAnswer, DeviceConfig, Host, InOrder, Interrupt, Outcome, Request,
    SmmuDevice, Snoop, Unreachable,
};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::commands::{Command, Completion, PageResponse, Resume};
use crate::arch::smmuv3::layout::events::{EventKind, EventRecord};
use crate::arch::smmuv3::layout::registers::{Cr0, Cr1, IrqCtrl, QueueBase, StreamTableFormat, StrtabBaseCfg, offset};
use crate::arch::smmuv3::layout::stream_table::{CdTableFormat, Stage2};
use crate::arch::smmuv3::layout::{Asid, Cd, Granule, Ste, StreamId, Vmid};
use crate::platform::{Arena, Frame, Registers};

/// Where things are.
const COMMANDS: u64 = 0x10_0000;
const EVENTS: u64 = 0x11_0000;
const STREAMS: u64 = 0x20_0000;
/// Nothing is there.
const HOLE: u64 = 0x7000_0000;

/// StreamID, SubstreamID, address and log2 of the size of what was sent to an ATC.
type Invalidation = (StreamId, Option<u32>, u64, u8);

/// StreamID, SubstreamID, group and answer.
type Response = (StreamId, Option<u32>, u16, PageResponse);

/// What happens while a word is being read.
type Trap = Box<dyn FnOnce() + Send>;

/// Memory of 64-bit words, all 0 at first, and what else the unit reaches.
#[derive(Default)]
struct Machine {
    trap: Mutex<Option<(u64, Trap)>>,
    memory: Mutex<BTreeMap<u64, u64>>,
    interrupts: Mutex<Vec<Interrupt>>,
    /// What was sent to ATCs, and how the next are answered.
    invalidations: Mutex<Vec<Invalidation>>,
    deaf: Mutex<bool>,
    responses: Mutex<Vec<Response>>,
    resumed: Mutex<Vec<(u16, Resume)>>,
    drains: Mutex<usize>,
}

impl Machine {
    fn put(&self, address: u64, word: u64) {
        self.memory.lock().unwrap().insert(address, word);
    }

    fn get(&self, address: u64) -> u64 {
        self.memory.lock().unwrap().get(&address).copied().unwrap_or(0)
    }

    /// Calls `trap` once, when the word at `address` was read, before its value is used, or before it is
    /// written.
    fn trap(&self, address: u64, trap: impl FnOnce() + Send + 'static) {
        *self.trap.lock().unwrap() = Some((address, Box::new(trap)));
    }

    fn spring(&self, address: PhysAddr) {
        let trap = self.trap.lock().unwrap().take_if(|trap| trap.0 == address.as_u64());
        if let Some((_, trap)) = trap {
            trap();
        }
    }

    fn interrupts(&self) -> Vec<Interrupt> {
        core::mem::take(&mut self.interrupts.lock().unwrap())
    }
}

impl Host for Machine {
    fn read(&self, address: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
        assert_eq!(address.as_u64() % 8, 0);
        if address.as_u64() >= HOLE {
            return Err(Unreachable);
        }
        let word = self.get(address.as_u64());
        self.spring(address);
        Ok(word)
    }

    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable> {
        assert_eq!(address.as_u64() % 8, 0);
        if address.as_u64() >= HOLE {
            return Err(Unreachable);
        }
        self.spring(address);
        self.put(address.as_u64(), value);
        Ok(())
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
        let mut memory = self.memory.lock().unwrap();
        let word = memory.entry(address.as_u64()).or_insert(0);
        let same = *word == current;
        if same {
            *word = new;
        }
        Ok(same)
    }

    fn interrupt(&self, interrupt: Interrupt) -> Result<(), Unreachable> {
        if matches!(interrupt, Interrupt::Message(msi) if msi.address.as_u64() >= HOLE) {
            return Err(Unreachable);
        }
        self.interrupts.lock().unwrap().push(interrupt);
        Ok(())
    }

    fn invalidate_atc(&self, stream: StreamId, substream: Option<u32>, address: u64, size_log2: u8) -> DeviceAnswer {
        self.invalidations.lock().unwrap().push((stream, substream, address, size_log2));
        if *self.deaf.lock().unwrap() { DeviceAnswer::None } else { DeviceAnswer::Done }
    }

    fn respond(&self, stream: StreamId, substream: Option<u32>, group: u16, response: PageResponse) {
        self.responses.lock().unwrap().push((stream, substream, group, response));
    }

    fn drain(&self) {
        *self.drains.lock().unwrap() += 1;
    }

    fn resume(&self, tag: u16, action: Resume) {
        self.resumed.lock().unwrap().push((tag, action));
    }
}

type Unit<C = InOrder> = SmmuDevice<&'static Arena, Machine, C>;

fn unit_with<C: Chooser>(config: DeviceConfig, chooser: C) -> Unit<C> {
    let arena = Arena::new(Box::leak(vec![Frame::ZERO; 128].into_boxed_slice())).unwrap();
    SmmuDevice::with_chooser(arena, Machine::default(), config, chooser).unwrap()
}

/// A unit with queues of 8 entries and a linear stream table of 16, all of it on.
fn running<C: Chooser + 'static>(config: DeviceConfig, chooser: C) -> Unit<C> {
    let unit = unit_with(config, chooser);
    unit.write32(offset::CR1, Cr1::SNOOPING.0);
    unit.write32(offset::CR2, 1 << 1);
    unit.write64(offset::STRTAB_BASE, STREAMS);
    unit.write32(offset::STRTAB_BASE_CFG, StrtabBaseCfg::new(StreamTableFormat::Linear, 4).0);
    unit.write64(offset::CMDQ_BASE, QueueBase::new(PhysAddr::new(COMMANDS), 3).0);
    unit.write64(offset::EVENTQ_BASE, QueueBase::new(PhysAddr::new(EVENTS), 3).0);
    for index in [offset::CMDQ_PROD, offset::CMDQ_CONS, offset::EVENTQ_PROD, offset::EVENTQ_CONS] {
        unit.write32(index, 0);
    }
    for (address, data) in
        [(offset::GERROR_IRQ_CFG0, offset::GERROR_IRQ_CFG1), (offset::EVENTQ_IRQ_CFG0, offset::EVENTQ_IRQ_CFG1)]
    {
        unit.write64(address, 0);
        unit.write32(data, 0);
    }
    unit.write32(offset::IRQ_CTRL, (IrqCtrl::GERROR | IrqCtrl::EVENTQ).bits());
    unit.write32(offset::CR0, (Cr0::SMMUEN | Cr0::EVENTQEN | Cr0::CMDQEN).bits());
    settle(&unit);
    assert_eq!(unit.read32(offset::CR0ACK), 0b1101);
    unit
}

/// Steps until nothing is left, whatever the chooser says.
fn settle<C: Chooser>(unit: &Unit<C>) {
    for _ in 0..64 {
        unit.run();
    }
}

/// Writes a command, and makes it the unit's.
fn submit<C: Chooser + 'static>(unit: &Unit<C>, words: [u64; 2]) {
    let prod = unit.read32(offset::CMDQ_PROD);
    let slot = COMMANDS + u64::from(prod & 7) * 16;
    unit.host().put(slot, words[0]);
    unit.host().put(slot + 8, words[1]);
    unit.write32(offset::CMDQ_PROD, (prod + 1) & 0xf);
}

fn sync() -> [u64; 2] {
    Command::Sync { completion: Completion::None }.encode()
}

/// Has a command executed: it, and a CMD_SYNC.
fn execute<C: Chooser + 'static>(unit: &Unit<C>, command: Command) {
    submit(unit, command.encode());
    submit(unit, sync());
    settle(unit);
    assert_eq!(unit.read32(offset::CMDQ_CONS) & 0xf, unit.read32(offset::CMDQ_PROD));
}

/// The stream of the tests.
const STREAM: StreamId = StreamId(3);
const CDS: u64 = 0x21_0000;
/// Tables of 39 bits with pages of 4 KiB, from level 1 on, for stage 1 and stage 2.
const STAGE1: u64 = 0x30_0000;
const STAGE2: u64 = 0x31_0000;
/// A page that both tables map.
const PAGE: u64 = 0x80_5000;
/// Valid page for everybody, access flag, not global.
const S1_PAGE: u64 = 0xc43;
/// Valid page, readable and writable, access flag, write-back.
const S2_PAGE: u64 = 0x4ff;

fn put_all(unit: &Unit<impl Chooser>, at: u64, words: &[u64]) {
    for (word, offset) in words.iter().zip(0_u64..) {
        unit.host().put(at + offset * 8, *word);
    }
}

fn put_ste<C: Chooser>(unit: &Unit<C>, stream: StreamId, ste: Ste) {
    put_all(unit, STREAMS + u64::from(stream.0) * 64, &ste.words);
}

fn put_cd<C: Chooser>(unit: &Unit<C>, index: u64, cd: Cd) {
    put_all(unit, CDS + index * 64, &cd.words);
}

/// ASID 7.
fn cd() -> Cd {
    Cd::new(Asid(7), PhysAddr::new(STAGE1), Granule::Size4K, 39, 48).recording().with_memory_attributes(0xff)
}

/// One CD, VMID 5.
fn stage1() -> Ste {
    Ste::stage1(PhysAddr::new(CDS), CdTableFormat::Linear, 0).with_vmid(Vmid(5))
}

/// VMID 5.
fn stage2() -> Stage2 {
    Stage2 {
        vmid: Vmid(5),
        table: PhysAddr::new(STAGE2),
        t0sz: 25,
        sl0: 1,
        tg: 0,
        ps: 5,
        cacheability: 1,
        shareability: 3,
        access_flag_fault_disabled: false,
        record: true,
        stall: false,
    }
}

/// Three levels for the pages around [`PAGE`], and what is below 8 MiB as it is in stage 2.
fn put_tables<C: Chooser>(unit: &Unit<C>, root: u64) {
    unit.host().put(root, (root + 0x1000) | 3);
    unit.host().put(root + 0x1000 + 4 * 8, (root + 0x2000) | 3);
    if root == STAGE2 {
        for block in 0..4 {
            unit.host().put(root + 0x1000 + block * 8, block << 21 | S2_PAGE & !2);
        }
    }
}

/// Where the leaf of a page is.
fn leaf(root: u64, address: u64) -> u64 {
    root + 0x2000 + (address >> 12 & 511) * 8
}

/// A unit on which [`STREAM`] has both tables, PAGE is at 0x90_0000 after stage 1 alone, and there stage 2
/// leaves it.
fn translating<C: Chooser + 'static>(ste: Ste, config: DeviceConfig, chooser: C) -> Unit<C> {
    let unit = running(config, chooser);
    put_tables(&unit, STAGE1);
    put_tables(&unit, STAGE2);
    unit.host().put(leaf(STAGE1, PAGE), 0x90_0000 | S1_PAGE);
    // 0x90_0000 is in the block of the same table.
    unit.host().put(leaf(STAGE2, 0x90_0000), 0xa0_0000 | S2_PAGE);
    unit.host().put(leaf(STAGE2, PAGE), 0xb0_0000 | S2_PAGE);
    put_cd(&unit, 0, cd());
    put_ste(&unit, STREAM, ste);
    unit
}

fn read<C: Chooser>(unit: &Unit<C>, address: u64) -> Result<u64, Blocked> {
    unit.translate(&Request::new(STREAM, address, Access::Read)).map(|answer: Answer| answer.phys.as_u64())
}

fn write<C: Chooser>(unit: &Unit<C>, address: u64) -> Result<u64, Blocked> {
    unit.translate(&Request::new(STREAM, address, Access::Write)).map(|answer| answer.phys.as_u64())
}

fn aborted(reason: EventKind) -> Blocked {
    Blocked { outcome: Outcome::Abort, reason: Some(reason) }
}

/// What is in the event queue, all of which is consumed.
fn events<C: Chooser + 'static>(unit: &Unit<C>) -> Vec<EventRecord> {
    let mut found = Vec::new();
    let (prod, mut cons) = (unit.read32(offset::EVENTQ_PROD), unit.read32(offset::EVENTQ_CONS) & 0xf);
    while cons != prod & 0xf {
        let slot = EVENTS + u64::from(cons & 7) * 32;
        found.push(EventRecord::decode([0, 8, 16, 24].map(|at| unit.host().get(slot + at))));
        cons = (cons + 1) & 0xf;
    }
    unit.write32(offset::EVENTQ_CONS, prod & 1 << 31 | cons);
    found
}
