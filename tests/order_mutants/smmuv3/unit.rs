//! The device half on observed memory.

use std::sync::{Arc, Mutex};

use iommu::arch::smmuv3::device::{
    Access, Answer, Blocked, DeviceAnswer, DeviceConfig, Host, Interrupt, Misuse, Outcome, Request, SmmuDevice, Snoop,
    Step, Unreachable,
};
use iommu::arch::smmuv3::layout::StreamId;
use iommu::arch::smmuv3::layout::events::EventKind;
use iommu::arch::smmuv3::layout::registers::{Gbpa, offset};
use iommu::bus::AddressType;
use iommu::platform::Registers;
use iommu::{Iommu, PhysAddr, Prot, Result};
use iommu_harness::ObservedMemory;

use super::firmware::iort;
use super::scenarios::UnitKind;
use crate::common::bench::{Bench, Off, Setup, Source, Unit, lock};
use crate::common::devices::{CacheFrames, Choices, Devices, Line, reader};

/// Walks that go on beside each step.
const WALKS: usize = 3;

/// An SMMUv3, its memory, and what it did.
pub(crate) struct SmmuUnit {
    device: SmmuDevice<CacheFrames, Late, Choices>,
    complaints: Mutex<Vec<String>>,
}

impl Unit for SmmuUnit {
    type Kind = UnitKind;
    const SUSPENDED: Off = Off::Aborts;

    fn new(memory: Arc<ObservedMemory>, setup: &Setup<UnitKind>) -> Self {
        let config = DeviceConfig { identification: setup.kind.identification(), cache_order: 1 };
        let host =
            Late { memory, devices: Devices::default(), snoops: setup.kind.snoops(), uncached: Mutex::default() };
        let choices = Choices::new(setup.seed, setup.retention);
        let device = SmmuDevice::with_chooser(CacheFrames::new(), host, config, choices).unwrap();
        Self { device, complaints: Mutex::default() }
    }

    fn read(&self, at: usize) -> u32 {
        self.device.read32(at)
    }

    fn read64(&self, at: usize) -> u64 {
        self.device.read64(at)
    }

    fn write(&self, at: usize, value: u32) {
        self.device.write32(at, value);
    }

    fn write64(&self, at: usize, value: u64) {
        self.device.write64(at, value);
    }

    fn step(&self) -> bool {
        // Walks under way are not told of what was given back.
        for _walk in 0..WALKS {
            self.device.speculate();
        }
        !matches!(self.device.step(), Step::Idle | Step::Busy)
    }

    fn translate(&self, source: Source, address: u64, write: bool) -> Option<u64> {
        let access = if write { Access::Write } else { Access::Read };
        let stream = StreamId(source.requester.into());
        let request = Request { substream: source.pasid, ..Request::new(stream, address, access) };
        let answer = match self.devices().has_ats(source.requester) {
            true => self.translate_by_device(source, &request),
            false => self.device.translate(&request),
        };
        match answer {
            Ok(answer) => {
                let place = answer.phys.as_u64();
                self.devices().begin((source, address, write, place));
                Some(place)
            }
            Err(Blocked { reason, .. }) => {
                // Nothing is there, or nothing is permitted; or an entry is not valid. The rest is about
                // malformed tables.
                let expected = [
                    EventKind::F_TRANSLATION,
                    EventKind::F_PERMISSION,
                    EventKind::F_TRANSL_FORBIDDEN,
                    EventKind::F_BAD_ATS_TREQ,
                    EventKind::C_BAD_STREAMID,
                    EventKind::C_BAD_STE,
                    EventKind::C_BAD_CD,
                    EventKind::C_BAD_SUBSTREAMID,
                ];
                if reason.is_some_and(|reason| !expected.contains(&reason)) {
                    let what = format!("a request of {source:x?} to {address:#x} met a malformed entry: {reason:?}");
                    lock(&self.complaints).push(what);
                }
                None
            }
        }
    }

    fn devices(&self) -> &Devices {
        &self.device.host().devices
    }

    fn complaints(&self) -> Vec<String> {
        let mut complaints = lock(&self.complaints).clone();
        let misuse = self.device.misuse();
        if misuse != Misuse::empty() {
            complaints.push(format!("the driver did what it must not: {misuse:?}"));
        }
        complaints
    }

    fn init(iommu: &Iommu<Bench<Self>>) -> Result<()> {
        iommu::arch::smmuv3::init(iommu, &iort(iommu.platform().kind().snoops()))
    }

    fn dropped_from_cache(&self, first: PhysAddr, bytes: u64) {
        let host = self.device.host();
        let inside = |address: PhysAddr| address.as_u64().wrapping_sub(first.as_u64()) < bytes;
        let (seen, unseen): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *lock(&host.uncached)).into_iter().partition(|(address, _)| inside(*address));
        *lock(&host.uncached) = unseen;
        for (address, value) in seen {
            let _ = host.memory.write64(address, value);
        }
    }

    /// Only new ones are dealt with as the new state has it (6.3.9.6).
    fn switched(&self) {
        self.devices().land();
    }

    /// Amid a change of what becomes of requests.
    fn abandon(&self) {
        self.write(offset::GBPA, Gbpa::UPDATE);
    }
}

impl SmmuUnit {
    /// A device with a TLB asks for the translation first, and keeps it.
    fn translate_by_device(&self, source: Source, request: &Request) -> std::result::Result<Answer, Blocked> {
        let writes = request.access == Access::Write;
        let line = match self.devices().find(source, request.address, writes) {
            Some(line) => line,
            None => {
                let answer =
                    self.device.translate(&Request { address_type: AddressType::TranslationRequest, ..*request })?;
                if !answer.prot.contains(if writes { Prot::WRITE } else { Prot::READ }) {
                    // What the unit answers without permission.
                    return Err(Blocked { outcome: Outcome::Abort, reason: None });
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

/// What the unit stands on: accesses take their time.
struct Late {
    memory: Arc<ObservedMemory>,
    devices: Devices,
    /// Whether what it writes gets into the processor's cache.
    snoops: Snoop,
    /// What it has written beside the cache, which still has what was there before.
    uncached: Mutex<Vec<(PhysAddr, u64)>>,
}

impl Host for Late {
    fn read(&self, address: PhysAddr, snoop: Snoop) -> std::result::Result<u64, Unreachable> {
        self.memory.read(address, reader(snoop)).ok_or(Unreachable)
    }

    fn write64(&self, address: PhysAddr, value: u64) -> std::result::Result<(), Unreachable> {
        if self.snoops == Snoop::No {
            lock(&self.uncached).push((address, value));
            return Ok(());
        }
        self.memory.write64(address, value).ok_or(Unreachable)
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> std::result::Result<bool, Unreachable> {
        self.memory.compare_exchange(address, current, new).ok_or(Unreachable)
    }

    fn interrupt(&self, _: Interrupt) -> std::result::Result<(), Unreachable> {
        Ok(())
    }

    fn invalidate_atc(&self, stream: StreamId, _: Option<u32>, address: u64, size_log2: u8) -> DeviceAnswer {
        let last = 1u64.checked_shl(size_log2.into()).map_or(u64::MAX, |bytes| address | (bytes - 1));
        match self.devices.invalidate(stream.0 as u16, address, last) {
            true => DeviceAnswer::Done,
            false => DeviceAnswer::None,
        }
    }

    fn drain(&self) {
        // What devices translated themselves is theirs to wait for (3.9.1).
        self.devices.land_untranslated();
    }
}
