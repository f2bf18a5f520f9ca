//! The device half on observed memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use iommu::arch::vtd::device::{
    Answer, Blocked, DeviceAnswer, DeviceConfig, Host, Recorded, Request, RequestAccess, Snoop, Step, Unreachable,
    VtdDevice,
};
use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange, Drain};
use iommu::arch::vtd::layout::registers::{FaultStatus, Global, offset};
use iommu::arch::vtd::layout::{Cap, FaultReason};
use iommu::bus::AddressType;
use iommu::ops::Msi;
use iommu::platform::Registers;
use iommu::{Iommu, PhysAddr, Prot, Result};
use iommu_harness::ObservedMemory;

use super::scenarios::{UnitKind, dmar};
use crate::common::bench::{Bench, Convicted, Off, Setup, Source, Unit, Verdict, WideStores, lock};
use crate::common::devices::{CacheFrames, Choices, Devices, Line, reader};

/// Steps that a status write may take.
const STATUS_TURNS: u64 = 16;
const SLOWEST_TURNS: u64 = 512;

/// A VT-d unit, its memory, and what it did.
pub(crate) struct VtdUnit {
    device: VtdDevice<CacheFrames, Late, Choices>,
    /// GCMD, as written last: what is not in GSTS yet is pending.
    command: Mutex<u32>,
    complaints: Mutex<Vec<String>>,
    turns: AtomicU64,
    /// Whether the unit says which device did not answer: older ones do not.
    names_devices: bool,
}

impl Unit for VtdUnit {
    type Kind = UnitKind;
    const SUSPENDED: Off = Off::Passes;

    fn new(memory: Arc<ObservedMemory>, setup: &Setup<UnitKind>) -> Self {
        let (cap, ecap) = setup.kind.registers();
        let config = DeviceConfig { cap, ecap, cache_order: 1, ..DeviceConfig::default() };
        let host = Late { memory, posted: Mutex::default(), devices: Devices::default() };
        let choices = Choices::new(setup.seed, setup.retention);
        let device = VtdDevice::with_chooser(CacheFrames::new(), host, config, choices).unwrap();
        Self {
            device,
            command: Mutex::new(0),
            complaints: Mutex::default(),
            turns: AtomicU64::new(0),
            names_devices: setup.seed & 1 == 0,
        }
    }

    fn read(&self, at: usize) -> u32 {
        if at == offset::ICS {
            // 6.5.2.10: the answer pushes status writes ahead of it.
            self.device.host().deliver();
        }
        self.device.read32(at)
    }

    fn read64(&self, at: usize) -> u64 {
        if at == offset::IQERCD && !self.names_devices {
            return 0;
        }
        self.device.read64(at)
    }

    fn write(&self, at: usize, value: u32) {
        if at == offset::GCMD {
            self.judge_command(value);
        }
        self.device.write32(at, value);
    }

    fn write64(&self, at: usize, value: u64) {
        if at == offset::RTADDR && self.is_pending(Global::RTP) {
            self.complain("RTADDR is written while the unit takes over what it was");
        }
        self.device.write64(at, value);
    }

    fn step(&self) -> bool {
        let acted = !matches!(self.device.step(), Step::Idle | Step::Busy);
        // A status write takes a while, but gets there.
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        // The slowest is one that is overtaken by an error.
        let stands = self.device.read32(offset::FSTS) & FaultStatus::QUEUE.bits() != 0;
        let waits = if stands { SLOWEST_TURNS } else { STATUS_TURNS };
        if (acted || stands) && !turn.is_multiple_of(waits) { acted } else { self.device.host().deliver() || acted }
    }

    fn translate(&self, source: Source, address: u64, write: bool) -> Option<u64> {
        let access = if write { RequestAccess::Write } else { RequestAccess::Read };
        let request = Request::new(source.requester, address, access);
        let answer = if self.devices().has_ats(source.requester) {
            self.translate_by_device(source, &request)
        } else {
            self.device.translate(&request)
        };
        match answer {
            Ok(answer) => {
                let place = answer.phys.as_u64();
                self.devices().begin((source, address, write, place));
                Some(place)
            }
            Err(blocked) => {
                // Not present, not permitted, or beyond the width: the rest is about malformed tables.
                if !matches!(blocked.reason.0, 0x1 | 0x2 | 0x4..=0x6 | 0xd | 0x39 | 0x41 | 0x44 | 0x51 | 0x59 | 0x71 | 0x76 | 0x77 | 0x79 | 0x80..=0x86)
                {
                    self.complain(&format!(
                        "a request of {source:x?} to {address:#x} met a malformed entry: {:?}",
                        blocked.reason
                    ));
                }
                None
            }
        }
    }

    fn devices(&self) -> &Devices {
        &self.device.host().devices
    }

    fn complaints(&self) -> Vec<String> {
        lock(&self.complaints).clone()
    }

    fn wide_stores(kind: UnitKind) -> WideStores {
        kind.wide_stores()
    }

    fn has_write_buffers(kind: UnitKind) -> bool {
        kind.registers().0.contains(Cap::RWBF)
    }

    fn init(iommu: &Iommu<Bench<Self>>) -> Result<()> {
        iommu::arch::vtd::init(iommu, &dmar())
    }

    fn abandon(&self) {
        self.write(offset::GCMD, (Global::TE | Global::QIE | Global::IRE).bits());
        while self.step() {}
    }

    fn found(&self) -> Verdict {
        let status = Global::from_bits_retain(self.read(offset::GSTS));
        if status.contains(Global::IRE) {
            return Err(Convicted("interrupts are still remapped".into()));
        }
        Ok(())
    }
}

impl VtdUnit {
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

    /// A device with a TLB asks for the translation first, and keeps it.
    fn translate_by_device(&self, source: Source, request: &Request) -> std::result::Result<Answer, Blocked> {
        let writes = request.access == RequestAccess::Write;
        let known = self.devices().find(source, request.address, writes);
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
                    source,
                    first: request.address & !offset,
                    last: request.address | offset,
                    phys: answer.phys.as_u64() & !offset,
                    write: answer.prot.contains(Prot::WRITE),
                };
                self.devices().keep(line);
                line
            }
        };
        let address = line.phys + (request.address - line.first);
        self.device.translate(&Request { address_type: AddressType::Translated, address, ..*request })
    }
}

/// What the unit stands on: status writes and accesses take their time.
struct Late {
    memory: Arc<ObservedMemory>,
    posted: Mutex<Vec<(PhysAddr, u32)>>,
    devices: Devices,
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
        let first = range.address.as_u64();
        let last = 1u64.checked_shl(u32::from(range.order) + 12).map_or(u64::MAX, |bytes| first | (bytes - 1));
        if self.devices.invalidate(source, first, last) { DeviceAnswer::Done } else { DeviceAnswer::None }
    }

    fn flush_write_buffers(&self) {
        self.memory.flush_write_buffers();
    }

    fn drain(&self, _: Drain) {
        // Untranslated requests only (6.5.4).
        self.devices.land_untranslated();
    }
}
