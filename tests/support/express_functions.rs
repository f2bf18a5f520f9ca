//! PCI Express functions with device TLBs.

use std::collections::BTreeMap;
use std::sync::Mutex;

use iommu::PciAddress;
use iommu::pci::PciConfig;

/// 00:04.0, integrated.
pub(crate) const A: PciAddress = PciAddress::from_requester_id(0, 0x20);
/// 00:05.0, as well.
pub(crate) const B: PciAddress = PciAddress::from_requester_id(0, 0x28);
/// 00:01.0, a root port.
const PORT: PciAddress = PciAddress::from_requester_id(0, 0x08);
/// 01:00.0, below it.
pub(crate) const BELOW: PciAddress = PciAddress::from_requester_id(0, 0x100);

/// A configuration space of PCI Express functions.
#[derive(Default)]
pub(crate) struct Space(pub(crate) Mutex<BTreeMap<u16, Box<[u32; 1024]>>>);

impl Space {
    pub(crate) fn new(ats: u32) -> Self {
        let space = Self::default();
        space.add(A, 9, ats);
        space.add(B, 9, ats);
        space.add(BELOW, 0, ats);
        space.add(PORT, 4, ats);
        let mut functions = space.0.lock().unwrap();
        let port = functions.get_mut(&PORT.requester_id()).unwrap();
        (port[0x0c / 4], port[0x18 / 4]) = (0x0001_0000, 0x0001_0100);
        drop(functions);
        space
    }

    /// A PCI Express function of this kind (PCIe 7.5.3.2) with this ATS capability register.
    pub(crate) fn add(&self, function: PciAddress, kind: u32, ats: u32) {
        let mut words = Box::new([0; 1024]);
        (words[0], words[1], words[0x34 / 4]) = (0x0001_1234, 0x0010_0000, 0x40);
        (words[0x40 / 4], words[0x100 / 4], words[0x104 / 4]) = (kind << 20 | 0x0002_0010, 0x0001_000f, ats);
        self.0.lock().unwrap().insert(function.requester_id(), words);
    }
}

impl PciConfig for Space {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        let functions = self.0.lock().unwrap();
        functions.get(&function.requester_id()).map_or(u32::MAX, |words| words[usize::from(offset) / 4])
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        if let Some(words) = self.0.lock().unwrap().get_mut(&function.requester_id()) {
            words[usize::from(offset) / 4] = value;
        }
    }
}
