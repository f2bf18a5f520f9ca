//! An SMMUv3: the crate's device half, with what is wrong with it in between.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

pub use iommu::arch::smmuv3::device::Access;
use iommu::arch::smmuv3::device::{Blocked, DeviceConfig, Outcome, Request, SmmuDevice, Step};
use iommu::arch::smmuv3::driver::Capabilities;
use iommu::arch::smmuv3::layout::commands::{COMMAND_BYTES, Command};
use iommu::arch::smmuv3::layout::events::EventKind;
use iommu::arch::smmuv3::layout::registers::{Cr0, QueueBase, QueueIndex, StreamTableFormat, StrtabBaseCfg, offset};
use iommu::arch::smmuv3::layout::{Identification, L1Std};
use iommu::bus::AddressType;
use iommu::platform::{Arena, Frame, Registers};
use iommu::{DomainKind, PciAddress, SourceId};

use crate::choices::Choices;
use crate::device_tlbs::permission;
use crate::firmware::Streams;
use crate::host::{Bus, Refusal};
use crate::identification::Claims;
use crate::input::Input;
use crate::memory::memory;
use crate::trouble::{self, Trouble};

/// What is behind the caches where nothing was cleaned: a block or a page for everybody, of either stage.
pub const STALE: u64 = 0x7fc0_0000_07c5;
/// Where the driver tells of new commands.
pub const DOORBELL: usize = offset::CMDQ_PROD;
/// Bytes of a register page.
const PAGE: usize = 0x1_0000;
/// Where firmware's stream table and queues are.
const LEFT: u64 = 0x8_0000;

/// Every mapping of a unit's registers is another driver's.
pub fn is_first_look(_: usize) -> bool {
    true
}

/// Everything is translated.
pub fn is_special(_: u64) -> bool {
    false
}

/// What units are like when they are first mapped.
pub struct Template {
    pub identification: [Claims; 2],
    /// What firmware or a previous kernel has left on, and whether with an error of the command queue.
    pub left_on: Cr0,
    pub left_error: bool,
    /// In which order units do what they may; none for the order in which it was asked for, and caches
    /// that nothing leaves by itself.
    pub seed: Option<u64>,
    pub trouble: Trouble,
    /// Units are wrong from the start.
    pub troubled: bool,
    pub streams: Streams,
}

impl Template {
    pub fn has_write_buffers(&self) -> bool {
        false
    }

    pub fn claims(&self, index: usize) -> Claims {
        self.identification[index % 2]
    }

    /// One more thing is wrong with units from the start. Tells whether that is a lie.
    pub fn trouble(&mut self, input: &mut Input<'_>) -> bool {
        self.troubled = true;
        trouble::choose(&mut self.trouble, None, input)
    }

    /// A new unit, and whether its registers tell the truth.
    pub fn unit(&self, index: usize, base: u64) -> (Unit, bool) {
        let Claims { identification, are_true } = self.claims(index);
        let config = DeviceConfig { identification, cache_order: 1 };
        let (device, is_possible) = match new_device(config, self.seed) {
            Some(device) => (device, true),
            // No unit is like that.
            None => (new_device(DeviceConfig { cache_order: 1, ..DeviceConfig::default() }, self.seed).unwrap(), false),
        };
        let truthful = are_true && is_possible;
        let mut unit = Unit {
            base,
            device,
            claims: (!truthful).then_some(identification),
            left: (self.left_on, self.left_error),
            prod: 0,
            stream_table: 0,
            trouble: self.trouble.clone(),
            was_troubled: self.troubled,
            has_refused: Cell::new(false),
        };
        unit.leave();
        (unit, truthful)
    }
}

type Device = SmmuDevice<&'static Arena, Bus, Choices>;

fn new_device(config: DeviceConfig, seed: Option<u64>) -> Option<Device> {
    static ARENA: OnceLock<&'static Arena> = OnceLock::new();
    let frames = || Arena::new(Box::leak(vec![Frame::ZERO; 128].into_boxed_slice())).expect("large enough");
    let choices = Choices::of(seed);
    SmmuDevice::with_chooser(*ARENA.get_or_init(frames), Bus::default(), config, choices).ok()
}

pub struct Unit {
    pub base: u64,
    pub device: Device,
    /// What it says that it can do, if that is not so.
    claims: Option<Identification>,
    left: (Cr0, bool),
    /// CMDQ_PROD as it was written: a unit that stalls does not look.
    prod: u32,
    /// Where its stream table was when it was turned on.
    stream_table: u64,
    pub trouble: Trouble,
    /// Something is wrong, or was.
    was_troubled: bool,
    /// It has told the driver of something that is not mapped.
    has_refused: Cell<bool>,
}

/// Where a device gets to.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    pub phys: u64,
    /// Whether the processor's caches are snooped whatever the device wants: nobody asks for that here.
    pub snoops: Option<bool>,
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit at {:#x}, {:?}: ", self.base, self.enabled())?;
        match Capabilities::new(self.device.config().identification) {
            Ok(capabilities) => fmt::Display::fmt(&capabilities, f),
            Err(_) => f.write_str("none"),
        }
    }
}

impl Unit {
    /// As firmware leaves it.
    fn leave(&mut self) {
        let (on, error) = self.left;
        let Self { device, .. } = self;
        device.write64(offset::STRTAB_BASE, LEFT);
        device.write32(offset::STRTAB_BASE_CFG, StrtabBaseCfg::new(StreamTableFormat::Linear, 4).0);
        for (at, start) in [(offset::CMDQ_BASE, LEFT), (offset::EVENTQ_BASE, LEFT), (offset::PRIQ_BASE, LEFT)] {
            device.write64(at, start | 1);
        }
        for at in [offset::EVENTQ_PROD, offset::EVENTQ_CONS, offset::PRIQ_PROD, offset::PRIQ_CONS] {
            device.write32(at, 0);
        }
        device.write32(offset::CMDQ_CONS, 0);
        device.write32(offset::CMDQ_PROD, u32::from(error));
        device.write32(offset::CR0, on.bits());
        device.run();
        (self.prod, self.stream_table) = (u32::from(error), LEFT);
    }

    /// It loses power, and has it again.
    pub fn lose_power(&mut self) {
        self.device.reset();
        (self.prod, self.stream_table) = (self.device.read32(offset::CMDQ_PROD), 0);
    }

    /// What is in force.
    fn enabled(&self) -> Cr0 {
        Cr0::from_bits_truncate(self.device.read32(offset::CR0ACK))
    }

    /// Whether it translates by tables of ours, not of firmware's.
    pub fn is_translating(&self) -> bool {
        self.enabled().contains(Cr0::SMMUEN) && self.stream_table >= memory().owned
    }

    fn queue_at(&self, at: usize, entry_bytes: u64) -> (u64, u64) {
        let base = QueueBase(self.device.read64(at));
        (base.address().as_u64(), entry_bytes << base.log2_size().min(19))
    }

    /// The command queue.
    pub fn queue(&self) -> u64 {
        self.queue_at(offset::CMDQ_BASE, COMMAND_BYTES).0
    }

    /// The event queue, and how many entries it has.
    pub fn events(&self) -> (u64, u64) {
        let (start, bytes) = self.queue_at(offset::EVENTQ_BASE, 32);
        (start, bytes / 32)
    }

    pub fn event_prod(&self) -> u32 {
        self.device.read32(offset::EVENTQ_PROD)
    }

    pub fn command_cons(&self) -> u32 {
        self.device.read32(offset::CMDQ_CONS)
    }

    /// Whether it uses queues of ours.
    pub fn has_queue(&self) -> bool {
        let base = memory().owned;
        self.enabled().contains(Cr0::CMDQEN) && self.queue() >= base
            || self.enabled().contains(Cr0::EVENTQEN) && self.events().0 >= base
    }

    pub fn address_bits(&self, kind: DomainKind) -> u32 {
        match kind {
            DomainKind::Identity => self.device.config().identification.output_bits().unwrap_or(32).into(),
            _ => 64,
        }
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
        let at = place(at);
        let lie = self.trouble.lies.iter_mut().find(|(of, _, left)| *of == at && *left > 0);
        if let Some((_, value, left)) = lie {
            *left -= 1;
            return *value;
        }
        let truth = self.device.read32(at);
        match (at, self.claims) {
            (offset::CMDQ_PROD, _) => self.prod,
            (offset::GERROR, _) => truth ^ self.trouble.errors,
            (offset::IDR0, Some(claims)) => claims.idr0,
            (offset::IDR1, Some(claims)) => claims.idr1,
            (offset::IDR3, Some(claims)) => claims.idr3,
            (offset::IDR5, Some(claims)) => claims.idr5,
            (offset::AIDR, Some(claims)) => claims.aidr,
            _ => truth,
        }
    }

    pub fn write32(&mut self, truthful: bool, at: usize, value: u32) {
        if self.is_gone() {
            return;
        }
        match place(at) {
            offset::CR0 => {
                let deaf = self.trouble.deaf;
                self.device.write32(offset::CR0, value & !deaf | self.enabled().bits() & deaf);
            }
            offset::GBPA | offset::IRQ_CTRL if self.trouble.deaf_besides => {}
            offset::CMDQ_PROD => self.prod = value,
            offset::GERRORN => {
                // What is acknowledged of those that only show is gone.
                let shown = self.trouble.errors;
                let active = self.device.read32(offset::GERROR) ^ shown ^ value;
                self.trouble.errors = shown & active;
                self.device.write32(offset::GERRORN, value ^ shown & !active);
            }
            at => self.device.write32(at, value),
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
        self.device.host().deaf_devices.store(trouble.deaf_devices, Ordering::Relaxed);
        self.trouble = trouble;
        self.was_troubled = true;
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

    /// Works until there is nothing to do, for so many steps at most.
    fn run(&mut self, truthful: bool, turns: usize) {
        self.show_commands();
        for _ in 0..turns {
            let refusal = match self.trouble.refuse_after {
                Some((0, refusal)) => refusal,
                _ => Refusal::None,
            };
            self.device.host().refuse(refusal, self.queue_at(offset::CMDQ_BASE, COMMAND_BYTES));
            match self.device.step() {
                Step::Idle => break,
                Step::Control(Cr0::SMMUEN) => {
                    self.stream_table = self.device.read64(offset::STRTAB_BASE) & ((1 << 52) - (1 << 6));
                }
                // The unit looks again at a CMD_SYNC that waits.
                Step::Fetched(Command::Sync { .. }) => {}
                Step::Fetched(_) => {
                    if let Some((left, _)) = &mut self.trouble.refuse_after {
                        *left = left.saturating_sub(1);
                    }
                }
                Step::CommandError(error) => {
                    let is_ours = self.queue() >= memory().base;
                    let may_be = refusal != Refusal::None || !is_ours || format!("{error:?}").contains("Atc");
                    assert!(!truthful || may_be, "a command is refused: {error:?}");
                    self.trouble.refuse_after = None;
                }
                _ => {}
            }
        }
        self.device.host().refuse(Refusal::None, (0, 0));
        assert!(!truthful || self.was_troubled || self.device.misuse().is_empty(), "{:?}", self.device.misuse());
    }

    /// Lets it know of commands.
    fn show_commands(&mut self) {
        let log2 = QueueBase(self.device.read64(offset::CMDQ_BASE)).log2_size();
        let most = self.device.config().identification.command_queue_log2();
        let is_on = self.enabled().contains(Cr0::CMDQEN);
        let mut prod =
            if is_on { QueueIndex::new(self.device.read32(offset::CMDQ_PROD)) } else { QueueIndex(self.prod) };
        while prod.0 != self.prod {
            match &mut self.trouble.stall_after {
                Some(0) => break,
                Some(left) => {
                    *left -= 1;
                    let next = prod.plus(1, log2.min(most));
                    if next == prod || self.prod >> (log2.min(most) + 1) != 0 {
                        break;
                    }
                    prod = next;
                }
                None => prod = QueueIndex(self.prod),
            }
        }
        if prod.0 != self.device.read32(offset::CMDQ_PROD) {
            self.device.write32(offset::CMDQ_PROD, prod.0);
        }
    }

    /// A function turns its device TLB off.
    pub fn forget_device(&self, template: &Template, function: PciAddress) {
        if let Some(stream) = template.streams.of(function.source_id(), self.base) {
            self.device.host().device_tlbs.forget(stream.0);
        }
    }

    /// Where an access of a device ends, which has a device TLB or has not. `None` when it is blocked or
    /// waits, or when it is none that tables of ours decide on.
    pub fn reach(
        &self,
        template: &Template,
        source: SourceId,
        iova: u64,
        access: Access,
        device_tlb: bool,
    ) -> Option<Reached> {
        let stream = template.streams.of(source, self.base).filter(|_| self.is_translating())?;
        let request = Request::new(stream, iova, access);
        if !device_tlb {
            return self.send(&request);
        }
        let tlbs = &self.device.host().device_tlbs;
        let learnt = tlbs.learnt(stream.0, iova, access).or_else(|| {
            let asked = Request { address_type: AddressType::TranslationRequest, ..request };
            let answer = self
                .device
                .translate(&asked)
                .inspect_err(|e| crate::kernel::trace(format_args!("ATS {asked:?}: {e:?}")))
                .ok()?;
            tlbs.learn(stream.0, iova, (answer.phys.as_u64(), answer.page_bits), answer.prot);
            answer.prot.contains(permission(access)).then_some(answer.phys.as_u64())
        });
        self.send(&Request { address_type: AddressType::Translated, address: learnt?, ..request })
    }

    fn send(&self, request: &Request) -> Option<Reached> {
        let sent = self.device.translate(request);
        if let Err(blocked) = &sent {
            crate::kernel::trace(format_args!("{request:?}: {blocked:?}"));
            let is_told = matches!(blocked.reason, Some(EventKind::F_TRANSLATION | EventKind::F_PERMISSION));
            let is_read = self.enabled().contains(Cr0::EVENTQEN) && self.events().0 >= memory().owned;
            if is_told && is_read {
                self.has_refused.set(true);
            }
        }
        match sent {
            Ok(answer) => Some(Reached { phys: answer.phys.as_u64(), snoops: None }),
            Err(Blocked { outcome: Outcome::Stalled(tag), .. }) => {
                assert!(self.device.host().waiting().insert(tag), "{tag} waits twice");
                None
            }
            Err(_) => None,
        }
    }

    /// Whether it has told the driver of a fault since this was asked last.
    pub fn take_refused(&self) -> bool {
        self.has_refused.take()
    }

    /// The driver gives back frames: this unit must not be able to reach them.
    pub fn convict_freeing(&self, first: u64, bytes: u64) {
        let inside = |phys: u64| phys.wrapping_sub(first) < bytes;
        for (control, queue) in [(Cr0::CMDQEN, self.queue()), (Cr0::EVENTQEN, self.events().0)] {
            assert!(!self.enabled().contains(control) || !inside(queue), "a running queue is freed");
        }
        if self.is_translating() {
            let config = StrtabBaseCfg(self.device.read32(offset::STRTAB_BASE_CFG));
            assert!(!inside(self.stream_table), "the stream table in use is freed");
            if let StreamTableFormat::TwoLevel { split } = config.format() {
                let entries = 1 << config.log2_size().saturating_sub(split).min(20);
                let leads = memory().leads_to(self.stream_table, entries, second_table, (first, bytes));
                assert!(!leads, "a second stream table in use is freed");
            }
        }
    }

    /// The driver is gone, and nothing was ever wrong.
    pub fn check_end(&self) {
        // What firmware left on stays on if the driver has not taken the unit over.
        assert!(!self.is_translating(), "a unit still translates");
        assert!(!self.has_queue(), "a queue is still on");
        assert!(self.device.host().waiting().is_empty(), "a request waits for ever");
    }
}

/// Where the first register page shows those of the second, for units that have but one.
fn place(at: usize) -> usize {
    match at {
        0xa8 | 0xac | 0xc8 | 0xcc => at + PAGE,
        _ => at,
    }
}

/// Where a level-1 descriptor leads.
fn second_table(descriptor: u64) -> Option<u64> {
    let descriptor = L1Std(descriptor);
    descriptor.entries_log2().map(|_| descriptor.table().as_u64())
}
