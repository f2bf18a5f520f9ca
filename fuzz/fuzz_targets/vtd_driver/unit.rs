//! A VT-d unit: the crate's device half, with what is wrong with it in between.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

pub use iommu::arch::vtd::device::RequestAccess as Access;
use iommu::arch::vtd::device::{DeviceConfig, Request, Step, VtdDevice};
use iommu::arch::vtd::driver;
use iommu::arch::vtd::layout::registers::{Global, PMEN_EPM, offset};
use iommu::arch::vtd::layout::{Cap, Ecap};
use iommu::bus::AddressType;
use iommu::platform::{Arena, Frame, Registers};
use iommu::{DomainKind, PciAddress, SourceId};

use crate::capabilities::Capabilities;
use crate::choices::Choices;
use crate::device_tlbs::{DeviceTlbs, permission};
use crate::host::Bus;
use crate::input::Input;
use crate::memory::memory;
use crate::trouble::{self, Trouble};

/// What is behind the caches where nothing was cleaned: in page tables of either stage, a large page.
pub const STALE: u64 = 0x7fc0_0000_0087;
/// Where the driver tells of new requests.
pub const DOORBELL: usize = offset::IQT;

/// The first mapping of a unit's registers has one frame.
pub fn is_first_look(bytes: usize) -> bool {
    bytes == 4096
}

/// What lies there is not translated: interrupts.
pub fn is_special(iova: u64) -> bool {
    iova >> 20 == 0xfee
}

/// Bits of GCMD that stay.
const STICKY: u32 = Global::TE.bits() | Global::QIE.bits() | Global::IRE.bits() | Global::CFI.bits();
/// TTM in RTADDR.
const TABLE_MODE: u64 = 3 << 10;

/// What units are like when they are first mapped.
pub struct Template {
    pub capabilities: [Capabilities; 2],
    /// GSTS as firmware left it, and RTADDR.
    pub status: u32,
    pub root: u64,
    /// In which order units do what they may; none for the order in which it was asked for, and caches
    /// that nothing leaves by itself.
    pub seed: Option<u64>,
    pub trouble: Trouble,
}

impl Template {
    pub fn has_write_buffers(&self) -> bool {
        self.capabilities.iter().all(|unit| unit.cap.contains(Cap::RWBF))
    }

    /// One more thing is wrong with units from the start. Tells whether that is a lie.
    pub fn trouble(&mut self, input: &mut Input<'_>) -> bool {
        trouble::choose(&mut self.trouble, None, input)
    }

    /// A new unit, and whether its registers tell the truth.
    pub fn unit(&self, index: usize, base: u64) -> (Unit, bool) {
        let capabilities = self.capabilities[index % 2];
        let Capabilities { version, cap, ecap } = capabilities;
        let config = DeviceConfig { version, cap, ecap, host_address_bits: 52, cache_order: 1 };
        let (device, claims) = match new_device(config, self.seed) {
            Some(device) => (device, None),
            // No unit is like that.
            None => (new_device(DeviceConfig::default(), self.seed).expect("a plain unit"), Some(capabilities)),
        };
        let unit = Unit {
            base,
            device,
            claims,
            seed: self.seed,
            root: 0,
            tail: 0,
            lost: 0,
            executed: Vec::new(),
            trouble: self.trouble.clone(),
        };
        unit.leave(self.status, if unit.device.config().ecap.contains(Ecap::SMTS) { self.root } else { 0 });
        let truthful = unit.claims.is_none();
        (unit, truthful)
    }
}

type Device = VtdDevice<&'static Arena, Bus, Choices>;

fn new_device(config: DeviceConfig, seed: Option<u64>) -> Option<Device> {
    static ARENA: OnceLock<&'static Arena> = OnceLock::new();
    let frames = || Arena::new(Box::leak(vec![Frame::ZERO; 128].into_boxed_slice())).expect("large enough");
    let choices = Choices::of(seed);
    VtdDevice::with_chooser(*ARENA.get_or_init(frames), Bus::default(), config, choices).ok()
}

/// Where an entry of the root table leads.
fn context_table(entry: u64) -> Option<u64> {
    (entry & 1 != 0).then_some(entry & !0xfff)
}

pub struct Unit {
    pub base: u64,
    pub device: Device,
    /// What it says that it can do, if that is not so.
    claims: Option<Capabilities>,
    seed: Option<u64>,
    /// RTADDR as it was taken over.
    root: u64,
    /// IQT as it was written: a unit that stalls does not look.
    tail: u32,
    /// One shots of GCMD that were not taken.
    lost: u32,
    /// First quadwords of the requests that were executed, waits apart.
    pub executed: Vec<u64>,
    pub trouble: Trouble,
}

/// Where a device gets to.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    pub phys: u64,
    /// Whether the processor's caches are snooped whatever the device wants; `None` when a device TLB
    /// has translated.
    pub snoops: Option<bool>,
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit at {:#x}, GSTS {:#x}: ", self.base, self.status())?;
        let config = self.device.config();
        match driver::Capabilities::new(config.version, config.cap.bits(), config.ecap.bits()) {
            Ok(capabilities) => fmt::Display::fmt(&capabilities, f),
            Err(_) => f.write_str("none"),
        }
    }
}

impl Unit {
    /// As firmware leaves it.
    fn leave(&self, status: u32, root: u64) {
        let Self { device, .. } = self;
        device.write64(offset::RTADDR, root);
        device.write32(offset::GCMD, Global::RTP.bits());
        device.run();
        device.write32(offset::GCMD, status);
        device.write32(offset::PMEN, PMEN_EPM);
        device.run();
    }

    /// It loses power, and has it again.
    pub fn lose_power(&mut self) {
        if let Some(device) = new_device(*self.device.config(), self.seed) {
            self.device = device;
            (self.root, self.tail, self.lost) = (0, 0, 0);
        }
    }

    fn status(&self) -> u32 {
        self.device.read32(offset::GSTS)
    }

    /// Whether it translates by tables of ours, not of firmware's.
    pub fn is_translating(&self) -> bool {
        self.status() & Global::TE.bits() != 0 && self.has_root()
    }

    pub fn has_root(&self) -> bool {
        self.root >= memory().owned
    }

    /// The queue, if the driver has turned one on.
    pub fn queue(&self) -> u64 {
        self.device.read64(offset::IQA) & !0xfff
    }

    pub fn has_queue(&self) -> bool {
        self.status() & Global::QIE.bits() != 0 && self.queue() >= memory().owned
    }

    /// Where the fault recording registers are.
    pub fn fault_records(&self) -> usize {
        self.device.config().cap.fault_record_offset()
    }

    fn device_tlbs(&self) -> &DeviceTlbs {
        &self.device.host().device_tlbs
    }

    /// A function turns its device TLB off.
    pub fn forget_device(&self, _: &Template, function: PciAddress) {
        self.device_tlbs().forget(function.requester_id().into());
    }

    pub fn address_bits(&self, _: DomainKind) -> u32 {
        self.device.config().cap.guest_address_bits()
    }

    pub fn read32(&mut self, at: usize) -> u32 {
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
        let half = |value: u64| if at & 4 == 0 { value as u32 } else { (value >> 32) as u32 };
        let truth = self.device.read32(at);
        match (at, self.claims) {
            (offset::GSTS, _) => truth & !(self.lost & Global::RTP.bits()) | self.lost & Global::WBF.bits(),
            (offset::IQT, _) => self.tail,
            (offset::VER, Some(claims)) => claims.version,
            (_, Some(claims)) if at & !7 == offset::CAP => half(claims.cap.bits()),
            (_, Some(claims)) if at & !7 == offset::ECAP => half(claims.ecap.bits()),
            _ => truth,
        }
    }

    pub fn write32(&mut self, truthful: bool, at: usize, value: u32) {
        if self.is_gone() {
            return;
        }
        match at {
            offset::GCMD => self.command(truthful, value),
            offset::IQT => self.tail = value,
            _ => {
                let moves_queue = at & !7 == offset::IQA && self.status() & Global::QIE.bits() != 0;
                assert!(!truthful || !moves_queue, "the address of the queue changes while it runs");
                self.device.write32(at, value);
            }
        }
        if self.trouble.lazy == 0 {
            self.run(truthful, Device::RUN_STEPS);
        }
    }

    /// Lets it work, while a processor waits.
    pub fn run_in_background(&mut self, truthful: bool) {
        let turns = if self.trouble.lazy == 0 { Device::RUN_STEPS } else { usize::from(self.trouble.lazy) };
        self.run(truthful, turns);
    }

    /// One more thing is wrong with it. Tells whether that is a lie.
    pub fn trouble(&mut self, input: &mut Input<'_>) -> bool {
        let mut trouble = std::mem::take(&mut self.trouble);
        let lies = trouble::choose(&mut trouble, Some(self), input);
        let host = self.device.host();
        host.deaf_devices.store(trouble.deaf_devices, Ordering::Relaxed);
        host.broken_devices.store(trouble.broken_devices, Ordering::Relaxed);
        self.trouble = trouble;
        lies
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

    fn command(&mut self, truthful: bool, command: u32) {
        let (status, mut deaf) = (self.status(), self.trouble.deaf);
        if self.tail != self.device.read32(offset::IQT) {
            // The queue is not quiet.
            deaf |= Global::QIE.bits() & status;
        }
        if command & Global::RTP.bits() != 0 && truthful && status & Global::TE.bits() != 0 {
            let by_itself = self.device.config().cap.contains(Cap::ESRTPS);
            let same = (self.device.read64(offset::RTADDR) ^ self.root) & TABLE_MODE == 0;
            assert!(by_itself || same || !self.has_root(), "the mode of the tables changes while they are in use");
        }
        let taken = command & !deaf | status & deaf & STICKY;
        self.lost = self.lost & !command | command & deaf & !STICKY;
        self.device.write32(offset::GCMD, taken);
    }

    /// Works until there is nothing to do, for so many steps at most.
    fn run(&mut self, truthful: bool, turns: usize) {
        self.show_tail();
        for _ in 0..turns {
            let refuses = self.trouble.refuse_after == Some(0);
            self.device.host().refuses.store(refuses, Ordering::Relaxed);
            match self.device.step() {
                Step::Idle => break,
                Step::Command(Global::RTP) => self.root = self.device.read64(offset::RTADDR),
                Step::Fetched(_) => {
                    if let Some(left) = &mut self.trouble.refuse_after {
                        *left -= 1;
                    }
                }
                Step::QueueError(code) => {
                    assert!(!truthful || refuses, "a descriptor is refused: {code}");
                    self.trouble.refuse_after = None;
                }
                Step::Executed(request) => self.executed.push(request.encode().words[0]),
                _ => {}
            }
        }
        self.device.host().refuses.store(false, Ordering::Relaxed);
    }

    /// Lets it know of descriptors.
    fn show_tail(&mut self) {
        let address = self.device.read64(offset::IQA);
        let (bytes, slot) = (4096 << (address & 7), 16 << (address >> 11 & 1));
        let is_on = self.status() & Global::QIE.bits() != 0;
        let mut tail = if is_on { self.device.read32(offset::IQT) } else { self.tail };
        while tail != self.tail {
            match &mut self.trouble.stall_after {
                Some(0) => break,
                Some(left) => {
                    *left -= 1;
                    tail = (tail + slot) % bytes;
                }
                None => tail = self.tail,
            }
        }
        self.device.write32(offset::IQT, tail);
    }

    /// Where an access of a device ends, which has a device TLB or has not. `None` when it is blocked, or
    /// when it is none that tables of ours decide on.
    pub fn reach(
        &self,
        _: &Template,
        source: SourceId,
        iova: u64,
        access: Access,
        device_tlb: bool,
    ) -> Option<Reached> {
        if !self.is_translating() || is_special(iova) || !source.is_pci() {
            return None;
        }
        let source = source.id() as u16;
        let request = Request::new(source, iova, access);
        if !device_tlb {
            let answer = self.device.translate(&request).ok()?;
            return Some(Reached { phys: answer.phys.as_u64(), snoops: Some(answer.enforces_snooping) });
        }
        let tlbs = self.device_tlbs();
        let learnt = tlbs.learnt(source.into(), iova, access).or_else(|| {
            let asked = Request { address_type: AddressType::TranslationRequest, ..request };
            let answer = self.device.translate(&asked).ok()?;
            tlbs.learn(source.into(), iova, (answer.phys.as_u64(), answer.page_bits), answer.prot);
            answer.prot.contains(permission(access)).then_some(answer.phys.as_u64())
        });
        let translated = Request { address_type: AddressType::Translated, address: learnt?, ..request };
        let answer = self.device.translate(&translated).ok()?;
        Some(Reached { phys: answer.phys.as_u64(), snoops: None })
    }

    /// Whether it has told the driver of a fault since this was asked last: nobody looks.
    pub fn take_refused(&self) -> bool {
        false
    }

    /// The driver gives back frames: this unit must not be able to reach them.
    pub fn convict_freeing(&self, first: u64, bytes: u64) {
        let inside = |phys: u64| phys.wrapping_sub(first) < bytes;
        assert!(!self.has_queue() || !inside(self.queue()), "a running queue is freed");
        if self.is_translating() {
            let root = self.root & !0xfff;
            assert!(!inside(root), "the root table in use is freed");
            assert!(!memory().leads_to(root, 512, context_table, (first, bytes)), "a context table in use is freed");
        }
    }

    /// The driver is gone, and nothing was ever wrong.
    pub fn check_end(&self) {
        // What firmware left on stays on if the driver has not taken the unit over.
        assert!(!self.is_translating(), "a unit still translates");
        assert!(!self.has_queue(), "a queue is still on");
    }
}
