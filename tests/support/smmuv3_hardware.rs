//! Registers and command queue of an SMMUv3, in software: it reads commands as the registers tell, and
//! misbehaves on demand. It translates nothing.
//!
//! It sees of the driver's memory what barriers have made visible, or cleans for a unit that does not
//! snoop, and nothing else.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use iommu::arch::smmuv3::driver::{CommandQueue, QueueConfig, RegisterPages, SmmuRegisters};
use iommu::arch::smmuv3::layout::commands::{Completion, TlbRange};
use iommu::arch::smmuv3::layout::registers::{CommandError, Cr0, Gbpa, Gerror, QueueBase, QueueIndex, offset};
use iommu::arch::smmuv3::layout::{Asid, Command, StreamId, Vmid};
use iommu::platform::{Hosted, Instant, Platform, Registers};
use iommu::{PhysAddr, Result};

const FRAME: usize = 4096;

/// What a unit sees of memory, by address.
type Visible = BTreeMap<u64, u64>;

/// The unit.
#[derive(Default)]
pub(crate) struct Hardware {
    pub(crate) cr0: u32,
    pub(crate) gerror: u32,
    pub(crate) gerrorn: u32,
    base: u64,
    /// CMDQ_PROD and CMDQ_CONS without its error.
    pub(crate) prod: u32,
    pub(crate) cons: u32,
    error: u32,
    /// Reads of CMDQ_CONS.
    pub(crate) cons_reads: usize,
    /// Commands that were executed, each CMD_SYNC apart.
    pub(crate) executed: Vec<Command>,
    /// Refuses this command.
    pub(crate) refused: Option<Command>,
    /// Refuses everything, CMD_SYNC as well.
    pub(crate) refuses_all: bool,
    /// Cannot read its queue.
    pub(crate) aborts: bool,
    /// Devices that do not answer.
    pub(crate) silent: Vec<u32>,
    /// Some are waited for.
    waits_for: Vec<u32>,
    /// IDR0, if it is not QEMU's.
    pub(crate) idr0: Option<u32>,
    /// IDR1 likewise.
    pub(crate) idr1: Option<u32>,
    /// GBPA without UPDATE; a unit without it has none.
    pub(crate) gbpa: Option<u32>,
    pub(crate) irq_ctrl: u32,
    /// Where the stream table is, and its shape.
    pub(crate) stream_table: u64,
    pub(crate) stream_table_cfg: u32,
    /// What it was told, in order.
    pub(crate) told: Vec<Told>,
    /// Executes so many commands more.
    pub(crate) steps: Option<u32>,
    /// Never acknowledges a command.
    pub(crate) deaf_to_commands: bool,
    /// All registers read like this.
    pub(crate) gone: Option<u32>,
    /// Reads memory without a snoop.
    pub(crate) needs_cleans: bool,
    frames: Arc<Mutex<Frames>>,
}

/// What a driver tells a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    /// A register was written.
    Register(usize, u64),
    /// A command was executed.
    Command(Command),
}

#[derive(Default)]
struct Frames {
    /// Live blocks: address and bytes.
    live: HashMap<usize, usize>,
    /// Written back from the cache, to be made visible by the next barrier.
    cleaned: Visible,
    visible: Visible,
    fail_after: Option<usize>,
}

#[derive(Clone)]
pub(crate) struct Machine {
    frames: Arc<Mutex<Frames>>,
    hardware: Arc<Mutex<Hardware>>,
    needs_cleans: bool,
    origin: std::time::Instant,
}

pub(crate) struct Access(Arc<Mutex<Hardware>>);

impl Machine {
    pub(crate) fn new() -> Self {
        Self::with_cleans(false)
    }

    /// A unit that does not snoop.
    pub(crate) fn with_cleans(needs_cleans: bool) -> Self {
        let frames = Arc::<Mutex<Frames>>::default();
        let hardware = Hardware { frames: frames.clone(), needs_cleans, gbpa: Some(0x1000), ..Hardware::default() };
        let origin = std::time::Instant::now();
        Self { frames, hardware: Arc::new(Mutex::new(hardware)), needs_cleans, origin }
    }

    pub(crate) fn hardware(&self) -> MutexGuard<'_, Hardware> {
        self.hardware.lock().unwrap()
    }

    /// A word that a unit would read.
    pub(crate) fn visible(&self, address: u64) -> u64 {
        self.frames.lock().unwrap().visible.get(&address).copied().unwrap_or(0)
    }

    /// The allocation after so many more fails.
    pub(crate) fn fail_after(&self, allocations: Option<usize>) {
        self.frames.lock().unwrap().fail_after = allocations;
    }

    pub(crate) fn frames_in_use(&self) -> usize {
        self.frames.lock().unwrap().live.values().map(|bytes| bytes / FRAME).sum()
    }

    /// The unit with a queue that is not started.
    pub(crate) fn stopped_queue(&self, config: QueueConfig) -> (SmmuRegisters<Self>, CommandQueue<Self>) {
        let unit = SmmuRegisters::map(self.clone(), PhysAddr::new(0x0905_0000), RegisterPages::Two).unwrap();
        (unit, CommandQueue::new(self.clone(), config).unwrap())
    }

    /// The unit with a running queue.
    pub(crate) fn queue(&self, config: QueueConfig) -> (SmmuRegisters<Self>, CommandQueue<Self>) {
        let (unit, queue) = self.stopped_queue(config);
        queue.start(&unit).unwrap();
        (unit, queue)
    }

    /// The unit works on nothing from now on.
    pub(crate) fn freeze(&self) {
        self.hardware().steps = Some(0);
    }

    /// It works again.
    pub(crate) fn thaw(&self) {
        let mut hardware = self.hardware();
        hardware.steps = None;
        hardware.run();
    }

    fn visit(&self, start: usize, bytes: usize, mut visit: impl FnMut(u64, u64)) {
        for address in (start..start + bytes).step_by(8) {
            visit(address as u64, word(address as u64).load(Ordering::Relaxed));
        }
    }
}

// SAFETY: every block is handed out once and never mapped elsewhere; blocks that were freed are
// poisoned and never used again.
unsafe impl Platform for Machine {
    type Registers = Access;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, _last: PhysAddr) -> Option<PhysAddr> {
        let mut frames = self.frames.lock().unwrap();
        if let Some(left) = &mut frames.fail_after {
            *left = left.checked_sub(1)?;
        }
        drop(frames);
        let bytes = FRAME << order;
        let layout = Layout::from_size_align(bytes, bytes).ok()?;
        // SAFETY: the layout has a size.
        let block = NonNull::new(unsafe { alloc_zeroed(layout) })?.as_ptr().expose_provenance();
        self.frames.lock().unwrap().live.insert(block, bytes);
        Some(PhysAddr::new(block as u64))
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        let mut frames = self.frames.lock().unwrap();
        let start = first.as_u64() as usize;
        assert_eq!(frames.live.remove(&start), Some(FRAME << order), "freed what was not allocated");
        frames.visible.retain(|address, _| !(start..start + (FRAME << order)).contains(&(*address as usize)));
        drop(frames);
        for index in 0..(FRAME << order) / 8 {
            word(first.as_u64() + index as u64 * 8).store(0xdddd_dddd_dddd_dddd, Ordering::Relaxed);
        }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(phys.as_u64() as usize)).unwrap()
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Result<Access> {
        Ok(Access(self.hardware.clone()))
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.origin.elapsed().as_nanos() as u64)
    }

    fn spin_hint(&self) {
        std::thread::yield_now();
    }

    fn publish(&self) {
        let mut frames = self.frames.lock().unwrap();
        let mut seen = std::mem::take(&mut frames.cleaned);
        if !self.needs_cleans {
            for (&start, &bytes) in &frames.live {
                self.visit(start, bytes, |address, value| {
                    seen.insert(address, value);
                });
            }
        }
        frames.visible.extend(seen);
    }

    fn clean(&self, start: NonNull<u8>, bytes: usize) {
        let mut frames = self.frames.lock().unwrap();
        let start = start.as_ptr().addr();
        self.visit(start, bytes, |address, value| {
            frames.cleaned.insert(address, value);
        });
    }
}

impl Registers for Access {
    fn read32(&self, offset: usize) -> u32 {
        let mut hardware = self.0.lock().unwrap();
        if let Some(value) = hardware.gone {
            return value;
        }
        match offset {
            // QEMU 10, and one that does not snoop.
            offset::IDR0 if hardware.needs_cleans => 0x0d44_100b,
            offset::IDR0 => hardware.idr0.unwrap_or(0x0d44_101b),
            offset::IDR1 => hardware.idr1.unwrap_or(0x0273_0010),
            offset::IDR3 => 0x1414,
            offset::IDR5 => 0x74,
            offset::CR0 | offset::CR0ACK => hardware.cr0,
            offset::GBPA => hardware.gbpa.unwrap_or(0),
            offset::IRQ_CTRL | offset::IRQ_CTRLACK => hardware.irq_ctrl,
            offset::GERROR => hardware.gerror,
            offset::GERRORN => hardware.gerrorn,
            offset::CMDQ_PROD => hardware.prod,
            offset::CMDQ_CONS => {
                hardware.cons_reads += 1;
                hardware.cons | hardware.error
            }
            _ => 0,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut hardware = self.0.lock().unwrap();
        let enabled = hardware.is_enabled();
        hardware.told.push(Told::Register(offset, value.into()));
        match offset {
            offset::CR1 | offset::CR2 | offset::STRTAB_BASE_CFG => {
                assert_eq!(hardware.cr0 & Cr0::SMMUEN.bits(), 0, "{offset:#x} is guarded (6.3.11, 6.3.12, 6.3.25)");
                if offset == offset::STRTAB_BASE_CFG {
                    hardware.stream_table_cfg = value;
                }
            }
            offset::GBPA if value & Gbpa::UPDATE != 0 && hardware.gbpa.is_some() => {
                hardware.gbpa = Some(value & !Gbpa::UPDATE);
            }
            offset::IRQ_CTRL => hardware.irq_ctrl = value,
            offset::CR0 if !hardware.deaf_to_commands => {
                hardware.cr0 = value;
                hardware.run();
            }
            offset::GERRORN => {
                assert_eq!(
                    (value ^ hardware.gerrorn) & !(hardware.gerror ^ hardware.gerrorn),
                    0,
                    "nothing to acknowledge"
                );
                hardware.gerrorn = value;
                hardware.run();
            }
            offset::CMDQ_PROD => {
                let (log2, before) = (hardware.log2_size(), hardware.index(hardware.prod));
                let new = hardware.index(value);
                if enabled && hardware.gone.is_none() {
                    let (used, cons) = (QueueIndex::used(before, hardware.index(hardware.cons), log2), hardware.cons);
                    let added = QueueIndex::used(new, before, log2);
                    assert!(used + added <= 1 << log2, "{added} more than fit: {before:?} {new:?} {cons:#x}");
                }
                hardware.prod = value;
                hardware.run();
            }
            offset::CMDQ_CONS => {
                assert!(!enabled || hardware.gone.is_some(), "CMDQ_CONS is guarded (6.3.28)");
                hardware.cons = value;
            }
            _ => {}
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut hardware = self.0.lock().unwrap();
        hardware.told.push(Told::Register(offset, value));
        let is_on = |control: Cr0| hardware.cr0 & control.bits() != 0 && hardware.gone.is_none();
        match offset {
            offset::CMDQ_BASE => {
                assert!(!is_on(Cr0::CMDQEN), "CMDQ_BASE is guarded (6.3.26)");
                hardware.base = value;
            }
            offset::STRTAB_BASE => {
                assert!(!is_on(Cr0::SMMUEN), "STRTAB_BASE is guarded (6.3.24)");
                hardware.stream_table = value;
            }
            offset::EVENTQ_BASE => assert!(!is_on(Cr0::EVENTQEN), "EVENTQ_BASE is guarded (6.3.29)"),
            offset::EVENTQ_IRQ_CFG0 | offset::GERROR_IRQ_CFG0 => {
                assert_eq!(hardware.irq_ctrl, 0, "{offset:#x} is guarded (6.3.21, 6.3.30)");
            }
            _ => panic!("{offset:#x} has no 64 bits"),
        }
    }
}

impl Hardware {
    pub(crate) fn is_enabled(&self) -> bool {
        self.cr0 & Cr0::CMDQEN.bits() != 0
    }

    pub(crate) fn log2_size(&self) -> u8 {
        QueueBase(self.base).log2_size()
    }

    fn index(&self, register: u32) -> QueueIndex {
        QueueIndex::new(register & ((2 << self.log2_size()) - 1))
    }

    /// The unit has stopped at an error that is not acknowledged.
    pub(crate) fn stands(&self) -> bool {
        (self.gerror ^ self.gerrorn) & Gerror::CMDQ_ERR.bits() != 0
    }

    fn fail(&mut self, error: CommandError) {
        self.error = error.with_cons(QueueIndex(0));
        self.gerror ^= Gerror::CMDQ_ERR.bits();
    }

    /// What the unit reads.
    fn command(&self) -> [u64; 2] {
        let base = QueueBase(self.base);
        let address = base.address().as_u64() + ((self.index(self.cons).slot(base.log2_size()) as u64) << 4);
        let frames = self.frames.lock().unwrap();
        let inside = |(&first, &bytes): (&usize, &usize)| (first..first + bytes).contains(&(address as usize));
        assert!(frames.live.iter().any(inside), "the unit reads {address:#x}, which is not lent to it");
        [0, 8].map(|offset| frames.visible.get(&(address + offset)).copied().unwrap_or(0))
    }

    /// Works until it has nothing to do or stands.
    pub(crate) fn run(&mut self) {
        let log2 = self.log2_size();
        while self.is_enabled() && !self.stands() && self.index(self.cons) != self.index(self.prod) {
            if self.steps == Some(0) {
                return;
            }
            self.steps = self.steps.map(|left| left - 1);
            if self.aborts {
                return self.fail(CommandError::Abort);
            }
            let command = match Command::decode(self.command()) {
                Some(command) if !self.refuses_all && Some(command) != self.refused => command,
                _ => return self.fail(CommandError::Illegal),
            };
            self.told.push(Told::Command(command));
            match command {
                // Executed anew it has nobody to wait for (4.7.3).
                Command::Sync { .. } if !std::mem::take(&mut self.waits_for).is_empty() => {
                    return self.fail(CommandError::AtcInvSync);
                }
                Command::Sync { completion } => assert_eq!(completion, Completion::None),
                Command::AtcInvalidate { stream, .. } if self.silent.contains(&stream.0) => {
                    self.waits_for.push(stream.0);
                }
                _ => self.executed.push(command),
            }
            self.cons = self.index(self.cons).plus(1, log2).0;
        }
    }
}

/// A command that can be told from others.
pub(crate) fn page(number: u64) -> Command {
    let range = TlbRange::page(number << 12);
    let leaf = iommu::arch::smmuv3::layout::commands::Leaf::Only;
    Command::TlbNhVa { vmid: Vmid(0), asid: Asid(1), range, leaf }
}

pub(crate) fn device(stream: u32) -> Command {
    Command::AtcInvalidate { stream: StreamId(stream), substream: None, address: 0, size_log2: 64 }
}

pub(crate) const SYNC: Command = Command::Sync { completion: Completion::None };

pub(crate) fn patient() -> QueueConfig {
    QueueConfig { limit: Duration::from_secs(20), ..QueueConfig::default() }
}

pub(crate) fn hasty() -> QueueConfig {
    QueueConfig { limit: Duration::from_millis(30), ..QueueConfig::default() }
}

/// The word at an address in a frame of a machine.
fn word(address: u64) -> &'static AtomicU64 {
    // SAFETY: frames of a machine are never given back to the system.
    unsafe { &*std::ptr::with_exposed_provenance(address as usize) }
}
