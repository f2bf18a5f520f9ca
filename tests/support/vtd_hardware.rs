//! The invalidation queue of a VT-d unit, in software: it fetches descriptors from memory as the
//! registers tell, and misbehaves on demand.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use iommu::arch::vtd::driver::{Queue, QueueConfig, UnitRegisters};
use iommu::arch::vtd::layout::Descriptor;
use iommu::arch::vtd::layout::descriptors::{ContextScope, DeviceRange, Drain, IotlbScope, Request, WaitFlags};
use iommu::arch::vtd::layout::registers::{FaultStatus, Global, PMEN_EPM, TableMode, offset};
use iommu::pci::PciConfig;
use iommu::platform::{Hosted, Instant, Platform, Registers};
use iommu::{PhysAddr, PhysRange, Result};

const FRAME: usize = 4096;
pub(crate) const CAP: u64 = 0x00d2_008c_222f_0606;
pub(crate) const ECAP: u64 = 0x00f0_0f4e;

/// When a device that does not answer makes the unit give up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TimeOut {
    /// As soon as its request was fetched.
    AtOnce,
    /// When the wait behind it was fetched.
    AtWait,
    /// When this many descriptors behind the wait were fetched as well.
    Prefetched(u32),
}

/// The unit.
pub(crate) struct Hardware {
    pub(crate) cap: u64,
    pub(crate) ecap: u64,
    /// PMEN.
    pub(crate) protected: u32,
    /// FECTL and FEDATA.
    pub(crate) fault_event: u64,
    /// What the platform says of RAM.
    pub(crate) ram: Vec<PhysRange>,
    pub(crate) status: u32,
    pub(crate) commands: Vec<u32>,
    pub(crate) root: u64,
    pub(crate) queue_address: u64,
    /// Slots.
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) faults: u32,
    pub(crate) error: u64,
    /// Requests that were executed, waits apart.
    pub(crate) executed: Vec<Descriptor>,
    /// Refuses what names this domain.
    pub(crate) refused: Option<u16>,
    /// Refuses everything, waits as well.
    pub(crate) refuses_all: bool,
    /// Devices that do not answer.
    pub(crate) deaf: Vec<u16>,
    pub(crate) time_out: TimeOut,
    /// Does nothing by itself.
    pub(crate) frozen: bool,
    /// Never acknowledges a command.
    pub(crate) deaf_to_commands: bool,
    /// Does everything as late as it may.
    pub(crate) lazy: bool,
    /// All registers read like this.
    pub(crate) gone: Option<u64>,
    frames: Arc<Mutex<Frames>>,
}

#[derive(Default)]
pub(crate) struct Frames {
    /// Live blocks: address and bytes.
    live: HashMap<usize, usize>,
    /// Allocations that still succeed, if not all do.
    left: Option<usize>,
}

#[derive(Clone)]
pub(crate) struct Machine {
    frames: Arc<Mutex<Frames>>,
    hardware: Arc<Mutex<Hardware>>,
    /// The configuration space that the platform lends.
    pub(crate) space: Option<Arc<dyn PciConfig>>,
    origin: std::time::Instant,
}

pub(crate) struct Access(Arc<Mutex<Hardware>>);

impl Machine {
    pub(crate) fn new() -> Self {
        let frames = Arc::new(Mutex::new(Frames::default()));
        let hardware = Hardware {
            cap: CAP,
            ecap: ECAP,
            protected: 0,
            fault_event: 1 << 31,
            ram: Vec::new(),
            status: 0,
            commands: Vec::new(),
            root: 0,
            queue_address: 0,
            head: 0,
            tail: 0,
            faults: 0,
            error: 0,
            executed: Vec::new(),
            refused: None,
            refuses_all: false,
            deaf: Vec::new(),
            time_out: TimeOut::AtOnce,
            frozen: false,
            deaf_to_commands: false,
            lazy: false,
            gone: None,
            frames: frames.clone(),
        };
        Self { frames, hardware: Arc::new(Mutex::new(hardware)), space: None, origin: std::time::Instant::now() }
    }

    pub(crate) fn hardware(&self) -> MutexGuard<'_, Hardware> {
        self.hardware.lock().unwrap()
    }

    pub(crate) fn frames_in_use(&self) -> usize {
        self.frames.lock().unwrap().live.values().map(|bytes| bytes / FRAME).sum()
    }

    /// Only so many allocations succeed from now on.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn limit_allocations(&self, left: Option<usize>) {
        self.frames.lock().unwrap().left = left;
    }

    /// The unit with a running queue.
    pub(crate) fn queue(&self, config: QueueConfig) -> (UnitRegisters<Self>, Queue<Self>) {
        let unit = UnitRegisters::map(self.clone(), PhysAddr::new(0xfed9_0000)).unwrap();
        let queue = Queue::new(self.clone(), config).unwrap();
        queue.start(&unit).unwrap();
        (unit, queue)
    }
}

// SAFETY: every block is handed out once and never mapped elsewhere; blocks that were freed are
// poisoned and never used again.
unsafe impl Platform for Machine {
    type Registers = Access;
    type Processor = Hosted;

    fn alloc_frames(&self, order: u8, _last: PhysAddr) -> Option<PhysAddr> {
        let bytes = FRAME << order;
        if let Some(left) = &mut self.frames.lock().unwrap().left {
            *left = left.checked_sub(1)?;
        }
        let layout = Layout::from_size_align(bytes, bytes).ok()?;
        // SAFETY: the layout has a size.
        let block = NonNull::new(unsafe { alloc_zeroed(layout) })?.as_ptr().expose_provenance();
        self.frames.lock().unwrap().live.insert(block, bytes);
        Some(PhysAddr::new(block as u64))
    }

    unsafe fn free_frames(&self, first: PhysAddr, order: u8) {
        let bytes = self.frames.lock().unwrap().live.remove(&(first.as_u64() as usize));
        assert_eq!(bytes, Some(FRAME << order), "freed what was not allocated");
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

    fn pci(&self) -> Option<&dyn PciConfig> {
        self.space.as_deref()
    }

    fn spin_hint(&self) {
        std::thread::yield_now();
    }

    fn ram(&self, visit: &mut dyn FnMut(PhysRange)) {
        let ram = self.hardware().ram.clone();
        ram.into_iter().for_each(visit);
    }
}

impl Registers for Access {
    fn read32(&self, offset: usize) -> u32 {
        let value = self.read64(offset & !7);
        if offset & 4 == 0 { value as u32 } else { (value >> 32) as u32 }
    }

    fn read64(&self, offset: usize) -> u64 {
        let hardware = self.0.lock().unwrap();
        if let Some(value) = hardware.gone {
            return value;
        }
        match offset {
            offset::VER => 0x10,
            offset::CAP => hardware.cap,
            offset::ECAP => hardware.ecap,
            offset::GCMD => u64::from(hardware.status) << 32,
            offset::RTADDR => hardware.root,
            offset::FECTL => hardware.fault_event,
            0x60 => u64::from(hardware.protected) << 32,
            0x30 => u64::from(hardware.faults) << 32,
            offset::IQH => u64::from(hardware.head << hardware.slot_shift()),
            offset::IQT => u64::from(hardware.tail << hardware.slot_shift()),
            offset::IQA => hardware.queue_address,
            offset::IQERCD => hardware.error,
            _ => 0,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut hardware = self.0.lock().unwrap();
        match offset {
            offset::GCMD => hardware.command(value),
            // Only what is written with 1 is cleared.
            offset::FSTS => hardware.faults &= !(value & 0x71),
            offset::FECTL => hardware.fault_event = hardware.fault_event & !0xffff_ffff | u64::from(value),
            offset::FEDATA => hardware.fault_event = hardware.fault_event & 0xffff_ffff | u64::from(value) << 32,
            offset::PMEN => hardware.protected = value & PMEN_EPM | value >> 31,
            offset::IQT => {
                hardware.tail = value >> hardware.slot_shift();
                hardware.run();
            }
            _ => {}
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut hardware = self.0.lock().unwrap();
        match offset {
            offset::RTADDR => {
                // Without ESRTPS (6.6).
                let (mode, on) = (0xc00, hardware.status & Global::TE.bits() != 0 && hardware.cap >> 63 == 0);
                assert!(!on || (hardware.root ^ value) & mode == 0, "the table mode changed while translation is on");
                hardware.root = value;
            }
            offset::IQA => {
                let running = hardware.status & Global::QIE.bits() != 0 && hardware.gone.is_none();
                assert!(!running, "IQA was changed under a running queue");
                hardware.queue_address = value;
            }
            _ => panic!("64-bit write at {offset:#x}"),
        }
    }
}

impl Hardware {
    fn command(&mut self, command: u32) {
        self.commands.push(command);
        if self.deaf_to_commands {
            return;
        }
        let sticky = Global::STICKY.bits() & 0xff80_0000;
        let before = self.status;
        self.status = before & !sticky | command & sticky | command & Global::RTP.bits();
        let queue = Global::QIE.bits();
        if before & queue != 0 && command & queue == 0 {
            if self.head != self.tail {
                self.status |= queue; // It is not quiet: the command is not taken.
            } else {
                self.head = 0;
            }
        }
        self.run();
    }

    fn has_wide_descriptors(&self) -> bool {
        self.queue_address & 1 << 11 != 0
    }

    fn slot_shift(&self) -> u32 {
        if self.has_wide_descriptors() { 5 } else { 4 }
    }

    fn entries(&self) -> u32 {
        4096 >> self.slot_shift() << (self.queue_address & 7)
    }

    fn word(&self, address: u64) -> &'static AtomicU64 {
        let frames = self.frames.lock().unwrap();
        let inside = |(&first, &bytes): (&usize, &usize)| (first..first + bytes).contains(&(address as usize));
        assert!(frames.live.iter().any(inside), "the unit accesses {address:#x}, which is not lent to it");
        drop(frames);
        word(address)
    }

    fn descriptor(&self, slot: u32) -> Descriptor {
        let address = (self.queue_address & !0xfff) + (u64::from(slot) << self.slot_shift());
        let words = [0, 8, 16, 24].map(|offset| match offset {
            16.. if !self.has_wide_descriptors() => 0,
            _ => self.word(address + offset).load(Ordering::Acquire),
        });
        Descriptor { words }
    }

    fn may_fetch(&self) -> bool {
        let stopped = FaultStatus::IQE | FaultStatus::ITE;
        self.status & Global::QIE.bits() != 0 && self.faults & stopped.bits() == 0 && self.head != self.tail
    }

    fn advance(&mut self) {
        self.head = (self.head + 1) % self.entries();
    }

    /// Works until it has nothing to do or stands.
    pub(crate) fn run(&mut self) {
        if self.frozen {
            return;
        }
        if self.lazy {
            return self.run_lazily();
        }
        let mut deaf = None;
        while self.may_fetch() {
            let descriptor = self.descriptor(self.head);
            let Some(request) = self.accepts(descriptor) else {
                self.faults |= FaultStatus::IQE.bits();
                return;
            };
            self.advance();
            match request {
                Request::Wait { .. } if deaf.is_some() => {
                    if let TimeOut::Prefetched(count) = self.time_out {
                        for _ in 0..count {
                            if self.may_fetch() {
                                self.advance();
                            }
                        }
                    }
                    return self.time_out(deaf);
                }
                Request::Wait { flags, address, data } => self.complete(flags, address, data),
                Request::DeviceTlb { source, .. } if self.deaf.contains(&source) => {
                    deaf = Some(source);
                    if self.time_out == TimeOut::AtOnce {
                        return self.time_out(deaf);
                    }
                }
                _ => self.executed.push(descriptor),
            }
        }
    }

    fn accepts(&self, descriptor: Descriptor) -> Option<Request> {
        if self.refuses_all {
            return None;
        }
        let request = descriptor.decode()?;
        // Table 26: which requests there are depends on the mode and on the width.
        let scalable = TableMode::of_root_table_address(self.root) == Some(TableMode::Scalable);
        let translating = self.status & Global::TE.bits() != 0;
        match request {
            _ if scalable && translating && !self.has_wide_descriptors() => None,
            Request::PasidCache(_) | Request::PasidIotlb(_) if !self.has_wide_descriptors() => None,
            Request::PasidCache(_) | Request::PasidIotlb(_) if !scalable && translating => None,
            Request::Iotlb(IotlbScope::Domain(domain), _) if Some(domain.as_u16()) == self.refused => None,
            _ => Some(request),
        }
    }

    fn time_out(&mut self, source: Option<u16>) {
        self.faults |= FaultStatus::ITE.bits();
        self.error = u64::from(source.unwrap_or(0)) << 32;
    }

    fn complete(&self, flags: WaitFlags, address: PhysAddr, data: u32) {
        if flags.contains(WaitFlags::STATUS_WRITE) {
            self.word(address.as_u64() & !7); // Is it lent?
            // SAFETY: live, and a doubleword is all that a unit writes.
            let word: &AtomicU32 = unsafe { &*std::ptr::with_exposed_provenance(address.as_u64() as usize) };
            word.store(data, Ordering::Release);
        }
    }

    /// 6.5.2.12: a wait stands only for what is behind the previous wait, and without the fence flag
    /// later descriptors may overtake it; of requests between two waits, context-cache requests are
    /// completed before PASID-cache requests behind them, both before IOTLB requests, and these before
    /// device-TLB requests. Whatever may be late is late.
    fn run_lazily(&mut self) {
        let mut late = Vec::new();
        let mut group = Vec::new();
        while self.may_fetch() {
            let descriptor = self.descriptor(self.head);
            self.advance();
            group.push(descriptor);
            if let Some(Request::Wait { flags, .. }) = descriptor.decode() {
                if flags.contains(WaitFlags::FENCE) {
                    self.execute(&group);
                } else {
                    late.push(group.clone());
                }
                group.clear();
            }
        }
        for group in late.iter().rev() {
            self.execute(group);
        }
    }

    fn execute(&mut self, group: &[Descriptor]) {
        let (requests, wait) = group.split_at(group.len().saturating_sub(1));
        let mut requests: Vec<_> = requests.iter().rev().collect();
        requests.sort_by_key(|descriptor| match descriptor.decode() {
            Some(Request::Context(_)) => 0,
            Some(Request::PasidCache(_)) => 1,
            Some(Request::DeviceTlb { .. } | Request::PasidDeviceTlb { .. }) => 3,
            _ => 2,
        });
        for descriptor in requests.into_iter().chain(wait) {
            match descriptor.decode().unwrap() {
                Request::Wait { flags, address, data } => self.complete(flags, address, data),
                _ => self.executed.push(*descriptor),
            }
        }
    }
}

/// A request that can be told from others.
pub(crate) fn domain(id: u16) -> Descriptor {
    Request::Iotlb(IotlbScope::Domain(iommu::arch::vtd::layout::DomainId::new(id)), Drain::empty()).encode()
}

pub(crate) fn device(source: u16) -> Descriptor {
    Request::DeviceTlb { source, physical_function: 0, max_pending: 0, range: DeviceRange::ALL }.encode()
}

pub(crate) fn global() -> Descriptor {
    Request::Context(ContextScope::Global).encode()
}

pub(crate) fn patient() -> QueueConfig {
    QueueConfig { limit: Duration::from_secs(20), ..QueueConfig::default() }
}

pub(crate) fn hasty() -> QueueConfig {
    QueueConfig { limit: Duration::from_millis(30), ..QueueConfig::default() }
}

/// The word at an address in a frame of a machine.
pub(crate) fn word(address: u64) -> &'static AtomicU64 {
    // SAFETY: frames of a machine are never given back to the system.
    unsafe { &*std::ptr::with_exposed_provenance(address as usize) }
}
