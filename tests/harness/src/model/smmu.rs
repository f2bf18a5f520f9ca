//! An SMMUv3, and what it stands on.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use iommu::arch::smmuv3::device::{
    self, Blocked, Chooser, DeviceAnswer, DeviceConfig, Host, Interrupt, Line, Outcome, Request, SmmuDevice, Snoop,
    Unreachable,
};
use iommu::arch::smmuv3::layout::StreamId;
use iommu::arch::smmuv3::layout::commands::Resume;
use iommu::bus::Translation;
use iommu::ops::Msi;
use iommu::pgtable::PageSize;
use iommu::platform::Registers;
use iommu::{Iova, IovaRange, PhysAddr};

use super::arm_options::Choices;
use super::device_tlb::{TlbAnswer, TlbScope};
use super::unit::{DeviceRequest, Surroundings, Unit, own_platform};
use crate::devices::Access;
use crate::error::{Error, Result};
use crate::platform::MachinePlatform;

/// How often a device sends a request again that the unit has not taken.
const RETRIES: usize = 1000;

/// The device half of the crate as a unit of the machine.
pub(super) struct SmmuUnit<C: Chooser> {
    device: SmmuDevice<MachinePlatform, SmmuHost, C>,
    patience: Duration,
}

impl<C: Chooser> SmmuUnit<C> {
    /// A device whose request waits gives up after `patience`.
    ///
    /// # Errors
    /// [`Error::Unit`] for a configuration that makes no sense.
    pub(super) fn new(config: DeviceConfig, chooser: C, patience: Duration, host: SmmuHost) -> Result<Self> {
        let device = SmmuDevice::with_chooser(own_platform()?, host, config, chooser).map_err(Error::Unit)?;
        Ok(Self { device, patience })
    }

    /// What software decides of the request that waits under `tag`; `None` when the device does not wait any more.
    fn wait(&self, tag: u16) -> Option<Resume> {
        let start = Instant::now();
        loop {
            self.device.step();
            let mut waiting = self.device.host().waiting();
            match waiting.remove(&tag) {
                Some(Waiting::Answered(answer)) => return Some(answer),
                _ if start.elapsed() >= self.patience => {
                    waiting.insert(tag, Waiting::GivenUp);
                    return None;
                }
                _ => {}
            }
            drop(waiting);
            thread::sleep(Duration::from_micros(50));
        }
    }
}

impl<C: Chooser + 'static> Unit for SmmuUnit<C> {
    fn translate(&self, request: &DeviceRequest) -> Option<Translation> {
        let access = match request.access {
            Access::Read => device::Access::Read,
            Access::Write => device::Access::Write,
        };
        let asked = Request::new(StreamId(u32::from(request.source)), request.address, access);
        let asked = Request { address_type: request.address_type, ..asked };
        for _ in 0..RETRIES {
            match self.device.translate(&asked) {
                Ok(answer) => {
                    let page_size = PageSize::from_log2(answer.page_bits);
                    return Some(Translation { phys: answer.phys, page_size, prot: answer.prot });
                }
                Err(Blocked { outcome: Outcome::Stalled(tag), .. }) => match self.wait(tag)? {
                    Resume::Retry => {}
                    Resume::Terminate | Resume::Abort => return None,
                },
                Err(Blocked { outcome: Outcome::Busy, .. }) => drop(self.device.step()),
                Err(_) => return None,
            }
        }
        None
    }

    fn registers(&self) -> &dyn Registers {
        &self.device
    }

    fn step(&self) {
        self.device.step();
    }
}

/// What a request that waits is about to come to.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// Software has decided.
    Answered(Resume),
    /// Whatever software decides, its device does not wait any more.
    GivenUp,
}

/// What the unit reaches.
pub(super) struct SmmuHost {
    surroundings: Arc<Surroundings>,
    /// Where a write is an interrupt.
    doorbells: Range<u64>,
    /// The wires that were raised.
    lines: Arc<Mutex<Vec<Line>>>,
    waiting: Mutex<HashMap<u16, Waiting>>,
}

impl SmmuHost {
    pub(super) fn new(surroundings: Arc<Surroundings>, doorbells: Range<u64>, lines: Arc<Mutex<Vec<Line>>>) -> Self {
        Self { surroundings, doorbells, lines, waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u16, Waiting>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Host for SmmuHost {
    fn read(&self, address: PhysAddr, snoop: Snoop) -> Result<u64, Unreachable> {
        self.surroundings.memory.load(address, snoop).ok_or(Unreachable)
    }

    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable> {
        self.surroundings.memory.store64(address, value).ok_or(Unreachable)
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
        self.surroundings.memory.compare_exchange(address, current, new).ok_or(Unreachable)
    }

    fn interrupt(&self, interrupt: Interrupt) -> Result<(), Unreachable> {
        match interrupt {
            Interrupt::Wired(line) => {
                self.lines.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(line);
                Ok(())
            }
            Interrupt::Message(message) if self.doorbells.contains(&message.address.as_u64()) => {
                self.surroundings.messages().push(message);
                Ok(())
            }
            Interrupt::Message(Msi { address, data }) => {
                self.surroundings.memory.store32(address, data).ok_or(Unreachable)
            }
        }
    }

    fn invalidate_atc(&self, stream: StreamId, substream: Option<u32>, address: u64, size_log2: u8) -> DeviceAnswer {
        let scope = substream.map_or(TlbScope::NoPasid, TlbScope::Pasid);
        let offsets = 1_u64.checked_shl(u32::from(size_log2)).map_or(u64::MAX, |size| size - 1);
        let range = IovaRange::new(Iova::new(address & !offsets), Iova::new(address | offsets)).ok();
        // Nobody answers for a device that is not there.
        let there = u16::try_from(stream.0).ok().zip(range);
        match there.map(|(source, range)| self.surroundings.invalidate_device_tlb(source, scope, range)) {
            Some(TlbAnswer::Done) => DeviceAnswer::Done,
            Some(TlbAnswer::None) | None => DeviceAnswer::None,
        }
    }

    fn resume(&self, tag: u16, action: Resume) {
        let mut waiting = self.waiting();
        if !matches!(waiting.remove(&tag), Some(Waiting::GivenUp)) {
            waiting.insert(tag, Waiting::Answered(action));
        }
    }
}

/// Who decides for the unit.
pub(super) fn unit(
    config: DeviceConfig,
    choices: Choices,
    patience: Duration,
    host: SmmuHost,
) -> Result<Box<dyn Unit>> {
    Ok(match choices {
        Choices::InOrder => Box::new(SmmuUnit::new(config, device::InOrder, patience, host)?),
        Choices::Seeded(seed) => Box::new(SmmuUnit::new(config, device::Seeded::new(seed), patience, host)?),
    })
}
