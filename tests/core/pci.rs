//! A configuration space of endpoints on bus 0, which notes when device TLBs are turned on and off.

use std::collections::BTreeMap;
use std::sync::Mutex;

use iommu::pci::PciConfig;
use iommu::{DomainKind, PciAddress, SourceId};

const ATS: usize = 0x104 / 4;
const ENABLE: u32 = 1 << 31;

/// What happens to a function, in the order in which it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Its device TLB.
    On(u16),
    Off(u16),
    /// Its entry in the unit, and whether that lets the device TLB be used.
    Attach(u16, DomainKind, Tlb),
    Block(u16, Tlb),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tlb {
    Used,
    Unused,
}

#[derive(Debug, Default)]
pub(crate) struct Space {
    functions: Mutex<BTreeMap<u16, Box<[u32; 1024]>>>,
    steps: Mutex<Vec<Step>>,
    broken: Mutex<Vec<PciAddress>>,
}

impl Space {
    /// Function 0 of a device, with a device TLB that takes five invalidations at a time.
    pub(crate) fn add(&self, device: u8) -> PciAddress {
        let address = PciAddress::new(0, 0, device, 0).unwrap();
        let mut words = Box::new([0; 1024]);
        (words[0], words[1], words[0x34 / 4]) = (0x0001_1234, 0x0010_0000, 0x40);
        (words[0x40 / 4], words[0x100 / 4], words[ATS]) = (0x0002_0010, 0x0001_000f, 0x25);
        self.functions.lock().unwrap().insert(address.requester_id(), words);
        address
    }

    pub(crate) fn unplug(&self, function: PciAddress) {
        self.functions.lock().unwrap().remove(&function.requester_id());
    }

    pub(crate) fn leave_on(&self, function: PciAddress) {
        self.functions.lock().unwrap().get_mut(&function.requester_id()).unwrap()[ATS] |= ENABLE;
    }

    pub(crate) fn is_on(&self, function: PciAddress) -> bool {
        let functions = self.functions.lock().unwrap();
        functions.get(&function.requester_id()).is_some_and(|words| words[ATS] & ENABLE != 0)
    }

    pub(crate) fn break_ats(&self, function: PciAddress) {
        self.broken.lock().unwrap().push(function);
    }

    pub(crate) fn note(&self, source: SourceId, step: impl Fn(u16) -> Step) {
        if source.is_pci() {
            self.steps.lock().unwrap().push(step(source.id() as u16));
        }
    }

    pub(crate) fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.steps.lock().unwrap())
    }
}

impl PciConfig for Space {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        let functions = self.functions.lock().unwrap();
        functions.get(&function.requester_id()).map_or(u32::MAX, |words| words[usize::from(offset) / 4])
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        let mut functions = self.functions.lock().unwrap();
        let Some(words) = functions.get_mut(&function.requester_id()) else { return };
        words[usize::from(offset) / 4] = value;
        if usize::from(offset) / 4 == ATS {
            assert_eq!(value & !ENABLE, 0x25, "translation units of 4096 bytes");
            let step = if value & ENABLE != 0 { Step::On } else { Step::Off };
            drop(functions);
            self.note(function.source_id(), step);
        }
    }

    fn quirk_ats_broken(&self, function: PciAddress) -> bool {
        self.broken.lock().unwrap().contains(&function)
    }
}
