//! Configuration space of a machine in software: functions that answer as the ones of QEMU do, as far
//! as bridges, aliases and isolation go.

use std::sync::{Mutex, MutexGuard};

use iommu::PciAddress;

use crate::devices::{edu, lsi};
use crate::options::{Bridge, Engine, Node, NodeKind};
use crate::topology::place;

/// Registers of the header, in bytes (PCI 3.0, 6.1 and PCI-to-PCI bridge 1.2, 3.2).
mod register {
    pub(super) const ID: u16 = 0x00;
    pub(super) const COMMAND: u16 = 0x04;
    pub(super) const CLASS: u16 = 0x08;
    pub(super) const HEADER_TYPE: u16 = 0x0c;
    pub(super) const BUS_NUMBERS: u16 = 0x18;
    pub(super) const MEMORY_WINDOW: u16 = 0x20;
    pub(super) const PREFETCHABLE_WINDOW: u16 = 0x24;
    pub(super) const CAPABILITIES: u16 = 0x34;
    pub(super) const BRIDGE_CONTROL: u16 = 0x3c;
    /// Where the PCI Express capability is put.
    pub(super) const EXPRESS: u16 = 0x40;
    /// Where the only extended capability is put.
    pub(super) const EXTENDED: u16 = 0x100;
}

/// Command register: memory decoding, bus mastering.
const COMMAND_BITS: u32 = 0b110;
const BUS_MASTER: u32 = 1 << 2;
/// Status register, in the upper half of the same word: there is a list of capabilities.
const HAS_CAPABILITIES: u32 = 1 << 20;
/// Header type, in its word: a bridge; one of several functions.
const BRIDGE_LAYOUT: u32 = 1 << 16;
const MULTIFUNCTION: u32 = 1 << 23;

/// Device/port types of PCI Express (PCIe 7.5.3.2).
const ENDPOINT: u32 = 0;
const ROOT_PORT: u32 = 4;
const PCIE_TO_PCI: u32 = 7;
const ROOT_COMPLEX_ENDPOINT: u32 = 9;

/// Extended capabilities: Access Control Services, Address Translation Services.
const ACS: u32 = 0x0d;
const ATS: u32 = 0x0f;
/// All but egress control: what a root port of QEMU can do.
const ACS_BITS: u32 = 0x5f;
/// ATS control, in the upper half of its word: enable, and the smallest translation unit.
const ATS_ENABLE: u32 = 1 << 31;
const ATS_UNIT: u32 = 0x1f << 16;

/// All functions of segment 0.
pub(super) struct ConfigSpace {
    root: Mutex<Vec<Function>>,
}

struct Function {
    devfn: u8,
    registers: Box<[u32; 1024]>,
    writable: Box<[u32; 1024]>,
    /// What is on the secondary bus of a bridge.
    behind: Option<Vec<Function>>,
}

impl ConfigSpace {
    /// A host bridge with this device and vendor id, and the devices of `topology`, as after reset.
    pub(super) fn new(host_bridge: u32, topology: &[Node]) -> Self {
        let mut root = vec![Function::new(0, host_bridge, 0x0600_0000)];
        root.extend(functions(topology, None));
        Self { root: Mutex::new(root) }
    }

    /// Reads 32 bits at `offset`; all ones where there is nothing.
    pub(super) fn read(&self, function: PciAddress, offset: u16) -> u32 {
        let index = usize::from(offset / 4);
        self.with(function, |found| found.registers.get(index).copied()).flatten().unwrap_or(u32::MAX)
    }

    /// Writes 32 bits at `offset`: those that can be written.
    pub(super) fn write(&self, function: PciAddress, offset: u16, value: u32) {
        let index = usize::from(offset / 4);
        self.with(function, |found| {
            if let (Some(register), Some(mask)) = (found.registers.get_mut(index), found.writable.get(index)) {
                *register = *register & !mask | value & mask;
            }
        });
    }

    /// Whether requests of `function` go up to the root: it is bus master, and so is every bridge above.
    pub(super) fn reaches_root(&self, function: PciAddress) -> bool {
        let mut masters = true;
        let found = walk(&mut self.lock(), 0, function, &mut |passed| {
            masters &= passed.get(register::COMMAND) & BUS_MASTER != 0;
        })
        .is_some();
        found && masters
    }

    /// Whether the ATS capability of `function` is there and enabled.
    pub(super) fn ats_is_enabled(&self, function: PciAddress) -> bool {
        let header = self.read(function, register::EXTENDED);
        header & 0xffff == ATS && self.read(function, register::EXTENDED + 4) & ATS_ENABLE != 0
    }

    fn with<T>(&self, function: PciAddress, act: impl FnOnce(&mut Function) -> T) -> Option<T> {
        walk(&mut self.lock(), 0, function, &mut |_| {}).map(act)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Function>> {
        self.root.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The function at `target`, when its bus is `bus` or behind a bridge on it. Tells every function that
/// is passed on the way, the last one included.
fn walk<'f>(
    functions: &'f mut [Function],
    bus: u8,
    target: PciAddress,
    passed: &mut dyn FnMut(&Function),
) -> Option<&'f mut Function> {
    if target.segment() != 0 {
        return None;
    }
    if target.bus() == bus {
        let found = functions.iter_mut().find(|function| function.devfn == target.devfn())?;
        passed(found);
        return Some(found);
    }
    let leads = |function: &Function| {
        let [_, secondary, subordinate, _] = function.get(register::BUS_NUMBERS).to_le_bytes();
        (function.behind.is_some() && secondary > bus && (secondary..=subordinate).contains(&target.bus()))
            .then_some(secondary)
    };
    let (bridge, secondary) = functions.iter_mut().find_map(|function| leads(function).map(|bus| (function, bus)))?;
    passed(bridge);
    walk(bridge.behind.as_mut()?, secondary, target, passed)
}

fn functions(nodes: &[Node], parent: Option<Bridge>) -> Vec<Function> {
    let places = place(nodes, parent);
    let each = nodes.iter().zip(&places).map(|(node, &(device, number))| {
        let mut function = Function::of(node, device << 3 | number, parent);
        if number == 0 && places.iter().filter(|(other, _)| *other == device).count() > 1 {
            function.set(register::HEADER_TYPE, function.get(register::HEADER_TYPE) | MULTIFUNCTION);
        }
        function
    });
    each.collect()
}

impl Function {
    /// A function without capabilities: its ids, and its class and revision.
    fn new(devfn: u8, id: u32, class: u32) -> Self {
        let mut function = Self { devfn, registers: Box::new([0; 1024]), writable: Box::new([0; 1024]), behind: None };
        function.set(register::ID, id);
        function.set(register::CLASS, class);
        function.allow(register::COMMAND, COMMAND_BITS);
        function
    }

    fn of(node: &Node, devfn: u8, parent: Option<Bridge>) -> Self {
        match &node.kind {
            NodeKind::Engine(engine) => {
                let ((vendor, device), class) = match engine {
                    Engine::Edu => (edu::ID, 0x00ff_0010),
                    Engine::Lsi => (lsi::ID, 0x0100_0000),
                };
                let mut function = Self::new(devfn, u32::from(device) << 16 | u32::from(vendor), class);
                if let Some(depth) = node.ats {
                    let on_root = parent.is_none();
                    function.add_express(if on_root { ROOT_COMPLEX_ENDPOINT } else { ENDPOINT });
                    // PCIe 10.5.1: queue depth (0 is 32), page aligned requests.
                    function.add_extended(ATS, u32::from(depth & 0x1f) | 1 << 5, ATS_ENABLE | ATS_UNIT);
                }
                function
            }
            NodeKind::Bridge(bridge, children) => {
                let id = match bridge {
                    Bridge::RootPort => 0x000c_1b36,
                    Bridge::PcieToPci => 0x000e_1b36,
                    Bridge::Conventional => 0x244e_8086,
                };
                // The conventional one decodes subtractively (class 0604, interface 1).
                let class = if *bridge == Bridge::Conventional { 0x0604_0100 } else { 0x0604_0000 };
                let mut function = Self::new(devfn, id, class);
                function.set(register::HEADER_TYPE, BRIDGE_LAYOUT);
                function.allow(register::BUS_NUMBERS, 0x00ff_ffff);
                function.allow(register::MEMORY_WINDOW, 0xfff0_fff0);
                function.allow(register::PREFETCHABLE_WINDOW, 0xfff0_fff0);
                function.allow(register::BRIDGE_CONTROL, 0xffff_0000);
                match bridge {
                    Bridge::RootPort => {
                        function.add_express(ROOT_PORT);
                        function.add_extended(ACS, ACS_BITS, ACS_BITS << 16);
                    }
                    Bridge::PcieToPci => function.add_express(PCIE_TO_PCI),
                    Bridge::Conventional => {}
                }
                function.behind = Some(functions(children, Some(*bridge)));
                function
            }
        }
    }

    /// Adds a PCI Express capability, version 2.
    fn add_express(&mut self, kind: u32) {
        self.set(register::COMMAND, self.get(register::COMMAND) | HAS_CAPABILITIES);
        self.set(register::CAPABILITIES, u32::from(register::EXPRESS));
        self.set(register::EXPRESS, kind << 20 | 0x0002_0010);
    }

    /// Adds the extended capability `id` with one word behind its header.
    fn add_extended(&mut self, id: u32, word: u32, writable: u32) {
        self.set(register::EXTENDED, 1 << 16 | id);
        self.set(register::EXTENDED + 4, word);
        self.allow(register::EXTENDED + 4, writable);
    }

    fn get(&self, register: u16) -> u32 {
        self.registers[usize::from(register / 4)]
    }

    fn set(&mut self, register: u16, value: u32) {
        self.registers[usize::from(register / 4)] = value;
    }

    fn allow(&mut self, register: u16, mask: u32) {
        self.writable[usize::from(register / 4)] = mask;
    }
}
