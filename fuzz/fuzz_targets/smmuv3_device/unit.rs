//! The whole unit: registers, queues, caches, requests.

use std::sync::OnceLock;

use iommu::PhysAddr;
use iommu::arch::smmuv3::device::walk::{
    self, Context, E2h, Fault, Goal, Lookup, NoStructureCache, Route, StreamTable, check_cd, check_ste,
};
use iommu::arch::smmuv3::device::{
    Access, DeviceAnswer, DeviceConfig, Outcome, Privilege, Request, SmmuDevice, Snoop, Step,
};
use iommu::arch::smmuv3::layout::events::EventKind;
use iommu::arch::smmuv3::layout::registers::offset;
use iommu::arch::smmuv3::layout::{Identification, StreamId};
use iommu::bus::AddressType;
use iommu::platform::{Arena, Frame, Registers};

use crate::choices::Choices;
use crate::guest::{BYTES, Guest};
use crate::input::Input;

const COMMANDS: u64 = 0x8000;
const EVENTS: u64 = 0x9000;
const PAGES: u64 = 0xa000;
const STREAMS: u64 = 0x1_0000;
const CDS: u64 = 0x1_2000;
const STAGE1: u64 = 0x2_0000;
const STAGE2: u64 = 0x3_0000;
/// log2 of the entries of each queue.
const QUEUE: u64 = 4;
const INDEX: u32 = (2 << QUEUE) - 1;

/// The most accesses of a step: a command and what it writes, or every request that waits tried again.
const STEP: usize = 20_000;
/// The most accesses of a request: nine words of the STE, nine of the CD behind ten of stage 2, two walks (of
/// which one is a retry when something was invalidated meanwhile), and an event.
const REQUEST: usize = 400;

struct Machine {
    unit: SmmuDevice<&'static Arena, Guest, Choices>,
    /// Registers are not what a driver wrote.
    wild: bool,
}

pub fn run(input: &mut Input<'_>) {
    static ARENA: OnceLock<&'static Arena> = OnceLock::new();
    let frames = || Arena::new(Box::leak(vec![Frame::ZERO; 64].into_boxed_slice())).unwrap();
    let arena = *ARENA.get_or_init(frames);
    let default = DeviceConfig::default();
    // STALL_MODEL, TERM_MODEL, and the features of IDR3 one by one.
    let kind = input.u8();
    let idr0 = default.identification.idr0 & !(3 << 24) | u32::from(kind % 3) << 24 | u32::from(kind >> 2 & 1) << 26;
    let idr3 = default.identification.idr3 ^ 1 << (input.u8() & 31);
    let config =
        DeviceConfig { identification: Identification { idr0, idr3, ..default.identification }, cache_order: 0 };
    let guest = Guest::new(48);
    build(&guest);
    let count = usize::from(input.u8());
    let choices = Choices::new(input.bytes(count));
    let unit = SmmuDevice::with_chooser(arena, guest, config, choices).expect("a unit that can be");
    let mut machine = Machine { unit, wild: false };
    machine.start();
    while !input.is_empty() {
        machine.act(input);
    }
    drop(machine);
    assert_eq!(arena.frames_in_use(), 0);
}

/// Streams: abort, bypass, stage 1, stage 2, both; stage 1 with substreams in two levels; and both so. Pages of
/// 4 KiB, 39 bits: stage 1 maps the first two MiB to the guest's memory, stage 2 is the identity.
fn build(guest: &Guest) {
    let word2 = |vmid: u64| vmid | (25 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | 5 << 16 | 1 << 19 | 1 << 26) << 32;
    let shared = 1 << 2 | 1 << 4 | 3 << 6;
    let streams = [
        [1, 0, 0, 0],
        [0b1001, 0, 0, 0],
        [CDS | 0b1011, shared, 3, 0],
        [0b1101, 0, word2(4), STAGE2],
        [CDS | 0b1111, shared, word2(5), STAGE2],
        [CDS | 0x800 | 0b1011 | 1 << 4 | 7 << 59, shared | 2, 3, 0],
        [CDS | 0x800 | 0b1111 | 1 << 4 | 7 << 59, shared | 1, word2(5), STAGE2],
    ];
    for (stream, words) in (0..).zip(streams) {
        for (at, word) in (0..).zip(words) {
            guest.put(STREAMS + stream * 64 + at * 8, word);
        }
    }
    let cd = |asid: u64| {
        25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | asid << 48
    };
    for (index, at) in [CDS, 0x1_3000, 0x1_3040, 0x1_4000].into_iter().enumerate() {
        guest.put(at, cd(index as u64 + 1));
        guest.put(at + 8, STAGE1);
        guest.put(at + 24, 0x44ff);
    }
    guest.put(CDS | 0x800, 0x1_3001);
    guest.put(CDS | 0x808, 0x1_4001);
    for (table, leaf) in [(STAGE1, 0x743), (STAGE2, 0x7ff)] {
        guest.put(table, (table + 0x1000) | 3);
        guest.put(table + 8, 0x4000_0000 | leaf & !2);
        guest.put(table + 0x1000, (table + 0x2000) | 3);
        guest.put(table + 0x1008, 0x20_0000 | leaf & !2);
        for page in 0..BYTES >> 12 {
            guest.put(table + 0x2000 + page * 8, page << 12 | leaf);
        }
    }
}

impl Machine {
    /// What a driver does first.
    fn start(&mut self) {
        for (at, value) in [
            (offset::STRTAB_BASE, STREAMS),
            (offset::CMDQ_BASE, COMMANDS | QUEUE),
            (offset::EVENTQ_BASE, EVENTS | QUEUE),
            (offset::PRIQ_BASE, PAGES | QUEUE),
        ] {
            self.unit.write64(at, value);
        }
        for (at, value) in [
            (offset::CR1, 3 << 10 | 1 << 8 | 1 << 6 | 3 << 4 | 1 << 2 | 1),
            (offset::CR2, 1 << 1),
            (offset::STRTAB_BASE_CFG, 4),
            (offset::CMDQ_PROD, 0),
            (offset::CMDQ_CONS, 0),
            (offset::EVENTQ_PROD, 0),
            (offset::EVENTQ_CONS, 0),
            (offset::PRIQ_PROD, 0),
            (offset::PRIQ_CONS, 0),
            (offset::IRQ_CTRL, 0),
            (offset::CR0, 0x1f),
        ] {
            self.unit.write32(at, value);
        }
        self.finish();
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() {
            0..8 => self.write(input),
            8..16 => self.read(input),
            16..48 => self.steps(1 + input.below(16)),
            48..88 => self.unit.host().spoil(input),
            88..160 => {
                let request = request(input);
                let _ = self.request(&request);
            }
            160..168 => self.unit.host().change(input),
            168..172 => {
                let answers = [DeviceAnswer::Done, DeviceAnswer::None];
                self.unit.host().set_answer(answers[input.below(2)]);
            }
            172..212 => self.command(input),
            212..220 => self.consume(),
            _ => self.check(input),
        }
    }

    fn write(&mut self, input: &mut Input<'_>) {
        self.wild = true;
        let at = register(input);
        let value = match input.u8() {
            0..64 => self.unit.read64(at & !7) ^ 1 << (input.u8() & 63),
            64..96 => 0x1f,
            96..128 => u64::from(input.u8() & 31),
            128..144 => COMMANDS | u64::from(input.u16()),
            _ => input.u64(),
        };
        let wide = input.u8() & 1 == 1;
        self.untouched(|unit| if wide { unit.write64(at, value) } else { unit.write32(at, value as u32) });
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let at = register(input);
        self.untouched(|unit| {
            let _ = (unit.read32(at), unit.read64(at));
        });
    }

    /// Registers only record: no memory is touched.
    fn untouched(&self, access: impl FnOnce(&SmmuDevice<&'static Arena, Guest, Choices>)) {
        let before = self.unit.host().lock().accesses;
        access(&self.unit);
        assert_eq!(self.unit.host().lock().accesses, before);
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.unit.host().lock().accesses = 0;
            let step = self.unit.step();
            let accesses = self.unit.host().lock().accesses;
            assert!(accesses <= STEP, "{accesses} accesses in {step:?}");
            match step {
                Step::Busy => panic!("nobody else is there"),
                Step::Idle => break,
                _ => {}
            }
        }
    }

    /// Steps until nothing is left, whatever the chooser says.
    fn finish(&mut self) {
        for _ in 0..32 {
            self.steps(64);
        }
    }

    fn request(&self, request: &Request) -> Result<PhysAddr, (Outcome, Option<EventKind>)> {
        self.unit.host().lock().accesses = 0;
        let answer = self.unit.translate(request);
        let accesses = self.unit.host().lock().accesses;
        assert!(accesses <= REQUEST, "{accesses} accesses in {request:?}");
        answer.map(|answer| answer.phys).map_err(|blocked| (blocked.outcome, blocked.reason))
    }

    /// Puts a command in the queue.
    fn submit(&self, words: [u64; 2]) {
        let prod = self.unit.read32(offset::CMDQ_PROD);
        let slot = COMMANDS + u64::from(prod & INDEX >> 1) * 16;
        self.unit.host().put(slot, words[0]);
        self.unit.host().put(slot + 8, words[1]);
        self.unit.write32(offset::CMDQ_PROD, prod.wrapping_add(1) & INDEX);
    }

    fn command(&mut self, input: &mut Input<'_>) {
        const OPCODES: [u8; 20] = [
            0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x20, 0x28, 0x2a, 0x30, 0x40, 0x41, 0x44, 0x45,
            0x46, 0x46,
        ];
        let opcode = match input.u8() {
            255 => input.u8(),
            kind => OPCODES[usize::from(kind) % OPCODES.len()],
        };
        let fields = match input.u8() {
            // A StreamID, or a VMID and an ASID, of those there are.
            0..128 => u64::from(input.u8() & 7) << 32 | u64::from(input.u8() & 3) << 48,
            128..192 => u64::from(input.u8()) << 32 | u64::from(input.u32()),
            _ => input.u64(),
        };
        let second = match input.u8() {
            0..128 => u64::from(input.u8() & 0x3f) << 12 | u64::from(input.u8() & 1),
            _ => input.u64(),
        };
        self.submit([fields & !0xff | u64::from(opcode), second]);
    }

    /// Reads all events and page requests away, and acknowledges errors.
    fn consume(&self) {
        for (prod, cons) in [(offset::EVENTQ_PROD, offset::EVENTQ_CONS), (offset::PRIQ_PROD, offset::PRIQ_CONS)] {
            self.unit.write32(cons, self.unit.read32(prod));
        }
        self.unit.write32(offset::GERRORN, self.unit.read32(offset::GERROR));
    }

    /// Invalidates everything, and asks for what the walks find.
    fn check(&mut self, input: &mut Input<'_>) {
        self.unit.host().settle();
        self.consume();
        if self.wild {
            return;
        }
        // What is in the queue may be wrong, or wait for what never comes: it is made anew.
        self.unit.write32(offset::CR0, 0x17);
        self.finish();
        self.unit.write32(offset::CMDQ_PROD, 0);
        self.unit.write32(offset::CMDQ_CONS, 0);
        self.unit.write32(offset::CR0, 0x1f);
        self.finish();
        self.consume();
        for words in [[0x04, 31], [0x30, 0], [0x46, 0]] {
            self.submit(words);
        }
        self.finish();
        // An invalidation that a device did not answer is told with the next CMD_SYNC, which then is tried again.
        self.consume();
        self.finish();
        assert_eq!(self.unit.read32(offset::CMDQ_CONS) & INDEX, 3, "not all is executed");
        let request = Request { address_type: AddressType::Untranslated, ..request(input) };
        let expected = self.expected(&request);
        for _ in 0..2 {
            let answer = self.request(&request).map_err(|(_, reason)| reason);
            assert_eq!(answer, expected, "{request:x?}");
        }
    }

    /// What the walks find, without caches.
    fn expected(&self, request: &Request) -> Result<PhysAddr, Option<EventKind>> {
        let (memory, unit) = (self.unit.host(), &self.unit.config().identification);
        let kind = |fault: Fault| Some(fault.kind);
        let none = &mut NoStructureCache;
        let table = StreamTable { base: PhysAddr::new(STREAMS), log2: 4, split: None, snoop: Snoop::Yes };
        let ste = walk::stream(memory, unit, &table, request.stream, none).map_err(kind)?;
        check_ste(unit, &ste).map_err(kind)?;
        let world = walk::world(unit, &ste, E2h::Off);
        let cd = match walk::route(unit, &ste, request.substream).map_err(kind)? {
            Route::Abort => return Err(None),
            Route::Onward { cd: None } => None,
            Route::Onward { cd: Some(index) } => {
                let cd = walk::context(memory, unit, &ste, index, none).map_err(kind)?;
                check_cd(unit, &ste, world, &cd).map_err(kind)?;
                Some(cd)
            }
        };
        let (address, access, privilege) = (request.address, request.access, request.privilege);
        let lookup = Lookup { address, access, privilege, goal: Goal::Access };
        let lookup = walk::overridden(unit, &ste, &lookup);
        let found = walk::translate(memory, unit, &Context { ste, cd, world }, &lookup, none).map_err(kind)?;
        Ok(found.translate(address))
    }
}

fn request(input: &mut Input<'_>) -> Request {
    let kind = input.u8();
    let stream = if kind & 15 == 15 { input.u32() } else { u64::from(kind & 15) as u32 % 7 };
    let substream = match kind >> 4 & 3 {
        0 | 1 => None,
        2 => Some(u32::from(input.u8() & 127)),
        _ => Some(u32::from(input.u8() & 3)),
    };
    let address = match kind >> 6 {
        0..3 => u64::from(input.u16() & 0x3ff) << 12 | 0xabc,
        _ => input.u64(),
    };
    let kind = input.u8();
    Request {
        stream: StreamId(stream),
        substream,
        address,
        access: [Access::Read, Access::Write, Access::Execute, Access::Atomic][usize::from(kind & 3)],
        privilege: if kind & 4 == 0 { Privilege::Unprivileged } else { Privilege::Privileged },
        address_type: match kind >> 3 & 7 {
            0..6 => AddressType::Untranslated,
            6 => AddressType::TranslationRequest,
            _ => AddressType::Translated,
        },
    }
}

fn register(input: &mut Input<'_>) -> usize {
    const PAGE1: [usize; 4] = [offset::EVENTQ_PROD, offset::EVENTQ_CONS, offset::PRIQ_PROD, offset::PRIQ_CONS];
    match input.u8() {
        0..192 => usize::from(input.u8()) & !3,
        192..240 => PAGE1[input.below(4)],
        _ => input.u32() as usize,
    }
}
