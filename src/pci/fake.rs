//! A configuration space in memory, built function by function.

extern crate std;
use core::ops::RangeInclusive;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

use super::{PciConfig, PciKind, extended_id};
use crate::id::PciAddress;

/// Segment 0. Functions that were not added read as all ones.
pub(super) struct Fake {
    spaces: Mutex<BTreeMap<u16, Box<[u32; 1024]>>>,
    quirks: Vec<(PciAddress, u8)>,
}

impl Fake {
    pub(super) fn new() -> Self {
        Self { spaces: Mutex::default(), quirks: Vec::new() }
    }

    pub(super) fn at(bus: u8, device: u8, function: u8) -> PciAddress {
        PciAddress::new(0, bus, device, function).unwrap()
    }

    /// A conventional device.
    pub(super) fn conventional(&mut self, bus: u8, device: u8, function: u8) -> PciAddress {
        let address = Self::at(bus, device, function);
        let mut space = Box::new([0; 1024]);
        space[0] = 0x0001_1234;
        self.spaces.get_mut().unwrap().insert(address.requester_id(), space);
        if function != 0 {
            self.set8(address, 0x0e, 0x80);
            let function_0 = address.with_function(0);
            if self.read32(function_0, 0) != u32::MAX {
                let layout = self.read8(function_0, 0x0e);
                self.set8(function_0, 0x0e, layout | 0x80);
            }
        }
        address
    }

    /// A PCI Express device without bridge registers.
    pub(super) fn express(&mut self, bus: u8, device: u8, function: u8, kind: PciKind) -> PciAddress {
        let address = self.conventional(bus, device, function);
        let number = match kind {
            PciKind::Endpoint => 0,
            PciKind::LegacyEndpoint => 1,
            PciKind::RootPort => 4,
            PciKind::UpstreamPort => 5,
            PciKind::DownstreamPort => 6,
            PciKind::PcieToPciBridge => 7,
            PciKind::PciToPcieBridge => 8,
            PciKind::RootComplexEndpoint => 9,
            PciKind::RootComplexEventCollector => 10,
            other => panic!("{other:?}"),
        };
        self.set16(address, 0x06, 0x10);
        self.set8(address, 0x34, 0x40);
        self.set32(address, 0x40, number << 20 | 0x0002_0010);
        address
    }

    /// A bridge of a PCI Express kind, with the buses below it.
    pub(super) fn port(
        &mut self,
        bus: u8,
        device: u8,
        function: u8,
        kind: PciKind,
        below: RangeInclusive<u8>,
    ) -> PciAddress {
        let address = self.express(bus, device, function, kind);
        self.make_bridge(address, below);
        address
    }

    /// A port with access control services, all enabled.
    pub(super) fn isolating_port(
        &mut self,
        bus: u8,
        device: u8,
        function: u8,
        kind: PciKind,
        below: RangeInclusive<u8>,
    ) -> PciAddress {
        let address = self.port(bus, device, function, kind, below);
        self.add_extended(address, extended_id::ACS, &[0x001d_001d]);
        address
    }

    pub(super) fn conventional_bridge(
        &mut self,
        bus: u8,
        device: u8,
        function: u8,
        below: RangeInclusive<u8>,
    ) -> PciAddress {
        let address = self.conventional(bus, device, function);
        self.make_bridge(address, below);
        address
    }

    /// Requests of `function` also carry `devfn`.
    pub(super) fn add_quirk(&mut self, function: PciAddress, devfn: u8) {
        self.quirks.push((function, devfn));
    }

    /// Puts an extended capability behind the last one; `words` follow its header.
    pub(super) fn add_extended(&mut self, function: PciAddress, id: u16, words: &[u32]) {
        let mut last = 0x100;
        while self.read32(function, last) >> 20 != 0 {
            last += 0x40;
        }
        let offset = if self.read32(function, last) == 0 { last } else { last + 0x40 };
        let header = self.read32(function, last);
        self.set32(function, last, header | u32::from(offset) << 20);
        self.set32(function, offset, 1 << 16 | u32::from(id));
        for (index, &word) in words.iter().enumerate() {
            self.set32(function, offset + 4 * (index as u16 + 1), word);
        }
    }

    pub(super) fn set32(&mut self, function: PciAddress, offset: u16, value: u32) {
        self.write32(function, offset, value);
    }

    pub(super) fn set16(&mut self, function: PciAddress, offset: u16, value: u16) {
        self.write16(function, offset, value);
    }

    pub(super) fn set8(&mut self, function: PciAddress, offset: u16, value: u8) {
        let shift = 8 * (offset & 3);
        let word = self.read32(function, offset & !3) & !(0xff << shift) | u32::from(value) << shift;
        self.write32(function, offset & !3, word);
    }

    fn make_bridge(&mut self, address: PciAddress, below: RangeInclusive<u8>) {
        self.set32(address, 0x08, 0x0604_0000);
        let multifunction = self.read8(address, 0x0e) & 0x80;
        self.set8(address, 0x0e, multifunction | 1);
        self.set32(address, 0x18, u32::from_le_bytes([address.bus(), *below.start(), *below.end(), 0]));
    }
}

impl PciConfig for Fake {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 4096, "{offset:#x}");
        let spaces = self.spaces.lock().unwrap();
        let segment_0 = function.segment() == 0;
        spaces.get(&function.requester_id()).filter(|_| segment_0).map_or(u32::MAX, |space| space[offset as usize / 4])
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        if let Some(space) = self.spaces.lock().unwrap().get_mut(&function.requester_id()) {
            space[offset as usize / 4] = value;
        }
    }

    fn quirk_aliases(&self, function: PciAddress, add: &mut dyn FnMut(u8)) {
        self.quirks.iter().filter(|(broken, _)| *broken == function).for_each(|&(_, devfn)| add(devfn));
    }
}
