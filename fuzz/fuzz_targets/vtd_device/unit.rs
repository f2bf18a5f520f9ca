//! The whole unit: registers, queue, caches, requests.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use iommu::PhysAddr;
use iommu::Prot;
use iommu::arch::vtd::device::{
    Answer, DeviceAnswer, DeviceConfig, Privilege, Request, RequestAccess, Step, VtdDevice,
};
use iommu::arch::vtd::layout::descriptors::{PageRequest, PageRequestFlags};
use iommu::arch::vtd::layout::registers::Global;
use iommu::bus::AddressType;
use iommu::platform::{Arena, Frame, Registers};

use crate::choices::Choices;
use crate::guest::{BYTES, Guest};
use crate::input::Input;
use crate::naive::{Asked, Naive, Wants};
use crate::tables::{self, LEGACY, SCALABLE};
use crate::walks;

const GCMD: usize = 0x18;
const GSTS: usize = 0x1c;
const RTADDR: usize = 0x20;
const CCMD: usize = 0x28;
const FSTS: usize = 0x34;
const IQH: usize = 0x80;
const IQT: usize = 0x88;
const IQA: usize = 0x90;
/// Where ECAP says that the IOTLB register is.
const IOTLB: usize = 0xf8;

const TES: u32 = 1 << 31;
const RTPS: u32 = 1 << 30;
const QIES: u32 = 1 << 26;

/// The queue of a guest that behaves, and where its waits write.
const QUEUE: u64 = 0x1_8000;
const STATUS: u64 = 0x1_f000;

/// The most accesses of a step: a descriptor.
const STEP: usize = 4;
/// The most accesses of a request, all of whose updates are tried again, twice (in caching mode).
const REQUEST: usize = 2000;

struct Machine {
    unit: VtdDevice<&'static Arena, Guest, Choices>,
    config: DeviceConfig,
    /// RTADDR as it was taken over last.
    latched: u64,
    /// All that it was while something may have been cached.
    roots: BTreeSet<u64>,
    /// Whether there may be entries in the PASID cache.
    pasids: bool,
    status: u32,
}

pub fn run(input: &mut Input<'_>) {
    static ARENA: OnceLock<&'static Arena> = OnceLock::new();
    let frames = || Arena::new(Box::leak(vec![Frame::ZERO; 64].into_boxed_slice())).unwrap();
    let arena = *ARENA.get_or_init(frames);
    let config = DeviceConfig { cache_order: 0, ..tables::config(input) };
    let guest = Guest::new(config.host_address_bits);
    tables::build(&guest, input);
    let count = usize::from(input.u8());
    let choices = Choices::new(input.bytes(count));
    let unit = VtdDevice::with_chooser(arena, guest, config, choices).expect("a unit that can be");
    let mut machine = Machine { unit, config, latched: 0, roots: BTreeSet::from([0]), pasids: false, status: 0 };
    machine.start(input);
    while !input.is_empty() {
        machine.act(input);
    }
    drop(machine);
    assert_eq!(arena.frames_in_use(), 0);
}

impl Machine {
    /// What a driver does first, more or less.
    fn start(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        self.write64(RTADDR, if kind & 1 == 0 { LEGACY } else { SCALABLE });
        self.command(RTPS);
        if kind & 2 == 0 {
            let wide = u64::from(kind & 1 | kind >> 2 & 1) << 11;
            self.write64(IQA, QUEUE | wide | u64::from(kind >> 3 & 1));
            self.command(QIES);
        }
        if kind & 0x30 != 0 {
            self.command(TES);
        }
    }

    /// Sets a bit of GCMD and waits.
    fn command(&mut self, bit: u32) {
        let status = self.unit.read32(GSTS) & Global::STICKY.bits();
        self.write32(GCMD, status | bit);
        self.steps(8);
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() {
            0..32 => self.write(input),
            32..40 => self.read(input),
            40..64 => self.steps(1 + input.below(16)),
            64..96 => tables::spoil(self.unit.host(), input),
            96..192 => self.request(input),
            192..208 => self.page_request(input),
            208..216 => self.unit.host().change(input),
            216..220 => {
                let answers = [DeviceAnswer::Done, DeviceAnswer::None, DeviceAnswer::Broken];
                self.unit.host().set_answer(answers[input.below(3)]);
            }
            220..228 => self.descriptor(input),
            _ => self.flush(),
        }
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let offset = offset(input);
        let value = match input.u8() {
            0..32 => LEGACY,
            32..64 => SCALABLE,
            64..96 => u64::from(self.unit.read32(GSTS) & Global::STICKY.bits()) | 1 << (input.u8() & 31),
            96..128 => self.unit.read64(offset & !7) ^ 1 << (input.u8() & 63),
            128..160 => QUEUE | u64::from(input.u16() & 0xfff),
            160..176 => u64::from(input.u16()),
            176..192 => u64::from(input.u8()) << 56,
            192..200 => self.unit.read64(offset & !7),
            _ => input.u64(),
        };
        match input.u8() & 1 {
            0 => self.write32(offset, value as u32),
            _ => self.write64(offset, value),
        }
    }

    fn write32(&mut self, offset: usize, value: u32) {
        self.untouched(|unit| unit.write32(offset, value));
    }

    fn write64(&mut self, offset: usize, value: u64) {
        self.untouched(|unit| unit.write64(offset, value));
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let offset = offset(input);
        self.untouched(|unit| {
            let _ = (unit.read32(offset), unit.read64(offset));
        });
    }

    /// Registers only record: no memory is touched.
    fn untouched(&self, access: impl FnOnce(&VtdDevice<&'static Arena, Guest, Choices>)) {
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
                Step::Idle => break,
                Step::Busy => panic!("nobody else is there"),
                Step::Command(Global::RTP) => {
                    self.latched = self.unit.read64(RTADDR);
                    self.roots.insert(self.latched);
                    self.pasids |= self.latched >> 10 & 3 == 1;
                }
                _ => {}
            }
        }
    }

    /// Any descriptor at the tail.
    fn descriptor(&mut self, input: &mut Input<'_>) {
        let words = [input.u64(), input.u64()];
        let kind = u64::from(input.u8() % 10);
        self.submit(&[[words[0] & !0xf | kind, words[1], 0, 0]]);
        self.steps(4);
    }

    /// Writes descriptors at the tail; `false` when there is no place for them.
    fn submit(&mut self, descriptors: &[[u64; 4]]) -> bool {
        let (queue, head, tail) = (self.unit.read64(IQA), self.unit.read64(IQH), self.unit.read64(IQT));
        let size = 4096_u64 << (queue & 7);
        let base = queue & !0xfff;
        let bytes = 16_u64 << (queue >> 11 & 1);
        let room = (head.wrapping_sub(tail).wrapping_sub(bytes) & (size - 1)) / bytes;
        if base >= BYTES || base + size > BYTES || tail >= size || room < descriptors.len() as u64 {
            return false;
        }
        let mut at = tail & !(bytes - 1);
        for descriptor in descriptors {
            for (word, place) in descriptor[..bytes as usize / 8].iter().zip((base + at..).step_by(8)) {
                self.unit.host().put(place, *word);
            }
            at = (at + bytes) & (size - 1);
        }
        self.write64(IQT, at);
        true
    }

    /// Invalidates everything. If that completes, what tables said before is forgotten.
    fn flush(&mut self) {
        self.unit.host().settle();
        let scalable = self.latched >> 10 & 3 == 1;
        let done = if self.unit.read32(GSTS) & QIES != 0 {
            self.status = self.status.wrapping_add(1);
            let wait = [5 | 1 << 5 | u64::from(self.status) << 32, STATUS, 0, 0];
            let (contexts, pasids, iotlb) = ([0x11, 0, 0, 0], [0x37, 0, 0, 0], [0x12, 0, 0, 0]);
            self.unit.host().put(STATUS, 0);
            let submitted = match scalable {
                true => self.submit(&[contexts, pasids, iotlb, wait]),
                false => self.submit(&[contexts, iotlb, wait]),
            };
            self.steps(1000);
            let status = self.unit.host().lock().get(STATUS);
            submitted && status == Some(u64::from(self.status))
        } else {
            self.flush_by_registers()
        };
        if done && (scalable || !self.pasids) {
            self.unit.host().lock().forget();
            self.roots = BTreeSet::from([self.latched]);
        }
    }

    /// As above, by CCMD and the IOTLB register, which say what they did.
    fn flush_by_registers(&mut self) -> bool {
        self.steps(1000);
        self.write64(CCMD, 1 << 63 | 1 << 61);
        self.steps(1000);
        let contexts = self.unit.read64(CCMD);
        self.write64(IOTLB, 1 << 63 | 1 << 60);
        self.steps(1000);
        let iotlb = self.unit.read64(IOTLB);
        let idle = self.unit.step() == Step::Idle;
        idle && contexts >> 63 == 0 && contexts >> 59 & 3 == 1 && iotlb >> 63 == 0 && iotlb >> 57 & 3 == 1
    }

    fn request(&mut self, input: &mut Input<'_>) {
        let Asked { source, pasid, supervisor, address, wants } = walks::asked(input);
        let (address_type, access) = match wants {
            Wants::Read => (AddressType::Untranslated, RequestAccess::Read),
            Wants::Flush => (AddressType::Untranslated, RequestAccess::ZeroLengthRead),
            Wants::Write => (AddressType::Untranslated, RequestAccess::Write),
            Wants::Atomic => (AddressType::Untranslated, RequestAccess::Atomic),
            Wants::Learn(false) => (AddressType::TranslationRequest, RequestAccess::Read),
            Wants::Learn(true) if input.u8() & 3 == 0 => (AddressType::Translated, RequestAccess::Write),
            Wants::Learn(true) => (AddressType::TranslationRequest, RequestAccess::Write),
        };
        let privilege = if supervisor { Privilege::Supervisor } else { Privilege::User };
        let request = Request { source, pasid, privilege, address_type, address, access };
        let enabled = self.unit.read32(GSTS) & TES != 0;
        self.unit.host().lock().accesses = 0;
        let answer = self.unit.translate(&request);
        let accesses = self.unit.host().lock().accesses;
        assert!(accesses <= REQUEST, "{accesses} accesses");
        let Ok(answer) = answer else { return };
        if !enabled {
            assert_eq!((answer.phys.as_u64(), address_type), (address, AddressType::Untranslated));
            return;
        }
        self.check(&request, &answer);
        // The same again: from a cache, or from tables that have changed.
        if let Ok(answer) = self.unit.translate(&request) {
            self.check(&request, &answer);
        }
    }

    /// That tables permit the answer, or did and it may still be cached.
    fn check(&self, request: &Request, answer: &Answer) {
        let address = request.address;
        let (read, write) = (answer.prot.contains(Prot::READ), answer.prot.contains(Prot::WRITE));
        let interrupts = |address: u64| address >> 20 == 0xfee;
        if request.address_type == AddressType::Translated {
            assert_eq!(answer.phys, PhysAddr::new(address));
            assert!(!interrupts(address));
            return;
        }
        if !read && !write || request.pasid.is_none() && interrupts(address) {
            return;
        }
        if request.address_type == AddressType::Untranslated {
            let permitted = match request.access {
                RequestAccess::Read => read,
                RequestAccess::ZeroLengthRead => true,
                RequestAccess::Write => write,
                RequestAccess::Atomic => read && write,
            };
            assert!(permitted, "{request:x?}: {answer:x?}");
            assert!(!interrupts(answer.phys.as_u64()), "{request:x?}: {answer:x?}");
        }
        let asked = Asked {
            source: request.source,
            pasid: request.pasid,
            supervisor: request.privilege == Privilege::Supervisor,
            address,
            wants: Wants::Learn(true),
        };
        let memory = self.unit.host().lock();
        let naive = Naive::new(&memory, &self.config, false);
        let said = self.roots.iter().any(|root| {
            naive.answers(*root, &asked).into_iter().flatten().any(|page| {
                let same = page.phys + (address & ((1 << page.bits) - 1)) == answer.phys.as_u64();
                let within = u32::from(answer.page_bits) <= page.bits;
                same && within && (!read || page.read) && (!write || page.write)
            })
        });
        assert!(said || naive.gives_up(), "{request:x?} in {:x?}, roots {:x?}: {answer:x?}", self.config, self.roots);
    }

    fn page_request(&mut self, input: &mut Input<'_>) {
        let Asked { source, pasid, address, .. } = walks::asked(input);
        let flags = PageRequestFlags::from_bits_truncate(input.u8());
        let request = PageRequest { source, pasid, address: address & !0xfff, group: u16::from(input.u8()), flags };
        self.unit.host().lock().accesses = 0;
        let _ = self.unit.page_request(&request);
        let accesses = self.unit.host().lock().accesses;
        assert!(accesses <= 6 + 9 + 4, "{accesses} accesses");
    }
}

/// A register, or anything.
fn offset(input: &mut Input<'_>) -> usize {
    let known = [
        GCMD, GSTS, RTADDR, CCMD, FSTS, 0x38, 0x3c, 0x40, 0x44, 0x64, 0x68, 0x6c, 0x70, 0x78, IQH, IQT, IQA, 0x9c,
        0xa0, 0xa4, 0xa8, 0xac, 0xb0, 0xb8, 0xc0, 0xc8, 0xd0, 0xdc, 0xe0, 0xf0, IOTLB, 0x22c,
    ];
    match input.u8() {
        kind @ 0..224 => known[usize::from(kind & 31)],
        224..240 => usize::from(input.u16() & 0xfff),
        _ => input.u64() as usize,
    }
}
