//! A VT-d unit that a previous kernel left translating (VT-d 6.6), against hardware in software.
#![cfg(all(feature = "vtd", not(loom)))]

#[path = "support/functions.rs"]
mod functions;
#[allow(dead_code)]
#[path = "support/vtd_hardware.rs"]
mod hardware;
#[path = "support/vtd_tables.rs"]
mod tables;

use std::sync::atomic::Ordering;

use functions::Functions;
use hardware::{CAP, ECAP, Machine, word};
use iommu::arch::vtd::layout::registers::{Global, TableMode};
use iommu::arch::vtd::layout::{Cap, Ecap};
use iommu::arch::vtd::{self, ModeWish, PreviousTables, VtdOptions};
use iommu::device::Trust;
use iommu::platform::Platform;
use iommu::{Device, Iommu, PciAddress, PhysAddr, Policy};
use tables::{dmar, load};

/// 00:04.0 and 00:05.0.
const FUNCTIONS: [PciAddress; 2] = [PciAddress::from_requester_id(0, 0x20), PciAddress::from_requester_id(0, 0x28)];
const SPACE: Functions = Functions(&FUNCTIONS);
const SCALABLE: u64 = ECAP & !Ecap::DT.bits() | Ecap::SMTS.union(Ecap::SSTS).bits();
const LEGACY: u64 = ECAP & !Ecap::DT.bits();

/// The tables of a previous kernel, in which function n goes through a second stage as domain 2 + n.
struct Previous {
    machine: Machine,
    frames: Vec<PhysAddr>,
    entries: [[u64; 2]; 2],
}

impl Previous {
    fn new(cap: u64, ecap: u64, mode: TableMode) -> Self {
        let machine = Machine::new();
        let mut frames = Vec::new();
        let mut frame = || {
            let frame = machine.alloc_frames(0, PhysAddr::new(u64::MAX)).unwrap();
            frames.push(frame);
            frame.as_u64()
        };
        let (root, context) = (frame(), frame());
        word(root).store(context | 1, Ordering::Release);
        let mut entries = [[0; 2]; 2];
        for (index, function) in FUNCTIONS.iter().enumerate() {
            let (devfn, id) = (u64::from(function.devfn()), 2 + index as u64);
            let (at, words) = match mode {
                TableMode::Scalable => {
                    let (directory, table) = (frame(), frame());
                    word(directory).store(table | 1, Ordering::Release);
                    word(table).store(0x7777_0089, Ordering::Release);
                    word(table + 8).store(id, Ordering::Release);
                    (context + devfn * 32, [directory | 1, 0])
                }
                _ => (context + devfn * 16, [0x7777_0001, id << 8 | 2]),
            };
            words
                .iter()
                .enumerate()
                .for_each(|(index, value)| word(at + index as u64 * 8).store(*value, Ordering::Release));
            entries[index] = words;
        }
        let mut hardware = machine.hardware();
        (hardware.cap, hardware.ecap, hardware.status) = (cap, ecap, Global::TE.bits());
        hardware.root = mode.root_table_address(PhysAddr::new(root));
        drop(hardware);
        Self { machine, frames, entries }
    }

    fn read(&self, address: PhysAddr) -> Option<u64> {
        let frame = PhysAddr::new(address.as_u64() & !0xfff);
        self.frames.contains(&frame).then(|| load(address.as_u64()))
    }

    /// This kernel takes over, and probes the first function before it enables the unit.
    fn take_over(&self, previous: PreviousTables<'_>) -> (Iommu<Machine>, Device) {
        let before = self.machine.hardware().root;
        let iommu = Iommu::new(self.machine.clone(), Policy::default()).unwrap();
        vtd::init_with(&iommu, &dmar(0, &[]), VtdOptions { previous, ..VtdOptions::default() }).unwrap();
        let device = iommu.probe_pci(&SPACE, FUNCTIONS[0], Trust::Trusted).unwrap();
        assert_eq!(self.machine.hardware().root, before, "in force until the unit is enabled");
        self.machine.hardware().commands.clear();
        self.machine.hardware().executed.clear();
        iommu.enable().unwrap();
        let commands = self.machine.hardware().commands.clone();
        assert!(commands.iter().all(|command| command & Global::TE.bits() != 0), "translation stays on");
        assert_ne!(self.machine.hardware().root, before);
        (iommu, device)
    }

    /// The context entry of a function that is in force.
    fn context(&self, function: usize) -> [u64; 2] {
        let root = self.machine.hardware().root;
        let bytes = if TableMode::of_root_table_address(root) == Some(TableMode::Scalable) { 32 } else { 16 };
        let at = (load(root & !0xfff) & !0xfff) + u64::from(FUNCTIONS[function].devfn()) * bytes;
        [load(at), load(at + 8)]
    }

    fn executed(&self) -> Vec<u64> {
        let executed = std::mem::take(&mut self.machine.hardware().executed);
        executed.iter().map(|request| request.words[0]).collect()
    }
}

#[test]
fn entries_are_copied_until_their_device_is_attached() {
    for (ecap, mode) in [(LEGACY, TableMode::Legacy), (SCALABLE, TableMode::Scalable)] {
        let previous = Previous::new(CAP, ecap, mode);
        let read = |address| previous.read(address);
        let (iommu, _device) = previous.take_over(PreviousTables::CopyUntilClaimed(&read));
        assert_eq!(previous.context(1), previous.entries[1], "not claimed");
        let claimed = previous.context(0);
        assert!(claimed != previous.entries[0] && claimed[0] & 1 == 1);
        let id = match mode {
            TableMode::Scalable => load((load(claimed[0] & !0xfff) & !0xfff) + 8),
            _ => claimed[1] >> 8,
        };
        assert_eq!(id, 4, "the numbers of the copies are taken");
        previous.executed();
        let second = iommu.probe_pci(&SPACE, FUNCTIONS[1], Trust::Trusted).unwrap();
        let executed = previous.executed();
        match mode {
            // All of it, for what the PASID table held is not known.
            TableMode::Scalable => assert_eq!(executed, [0x28_0000_0031, 0x37, 0xd2]),
            _ => assert_eq!(executed, [0x28_0003_0031, 0x3_00e2]),
        }
        assert!(previous.context(1) != previous.entries[1] && previous.context(1)[0] & 1 == 1);
        drop((second, _device, iommu));
        assert_eq!(previous.machine.frames_in_use(), previous.frames.len(), "only the previous kernel's");
    }
}

#[test]
fn a_device_that_is_blocked_is_claimed_as_well() {
    let previous = Previous::new(CAP, SCALABLE, TableMode::Scalable);
    let read = |address| previous.read(address);
    let (iommu, _device) = previous.take_over(PreviousTables::CopyUntilClaimed(&read));
    let second = iommu.probe_pci(&SPACE, FUNCTIONS[1], Trust::Trusted).unwrap();
    iommu.replace(iommu.blocked_domain(), second.group().unwrap()).unwrap();
    let context = previous.context(1);
    assert_eq!(load(load(context[0] & !0xfff) & !0xfff) & 1, 0, "nothing of the previous kernel's");
}

#[test]
fn numbers_that_may_be_cached_are_forgotten_before_ours_are_present() {
    for (cap, through_blocked) in [(CAP, true), (CAP | Cap::ESRTPS.bits(), false)] {
        let previous = Previous::new(cap, SCALABLE, TableMode::Scalable);
        let iommu = Iommu::new(previous.machine.clone(), Policy::default()).unwrap();
        vtd::init(&iommu, &dmar(0, &[])).unwrap();
        let device = iommu.probe_pci(&SPACE, FUNCTIONS[0], Trust::Trusted).unwrap();
        previous.machine.hardware().frozen = through_blocked;
        let before = previous.machine.hardware().root;
        std::thread::scope(|scope| {
            let enabling = scope.spawn(|| iommu.enable());
            if through_blocked {
                let sent = |hardware: &hardware::Hardware| hardware.root != before && hardware.tail != hardware.head;
                while !sent(&previous.machine.hardware()) {
                    std::thread::yield_now();
                }
                assert_eq!(previous.context(0)[0] & 1, 0, "absent while the unit forgets");
                let mut hardware = previous.machine.hardware();
                hardware.frozen = false;
                hardware.run();
            }
            enabling.join().unwrap().unwrap();
        });
        assert_eq!(previous.context(0)[0] & 1, 1);
        assert_eq!(previous.context(1), [0, 0], "not probed: blocked");
        drop(device);
    }
}

#[test]
fn what_cannot_be_read_or_makes_no_sense_blocks() {
    let mut seed = 1u64;
    for round in 0..200 {
        let (ecap, mode) = if round % 2 == 0 { (LEGACY, TableMode::Legacy) } else { (SCALABLE, TableMode::Scalable) };
        let previous = Previous::new(CAP, ecap, mode);
        let spoiled = std::cell::Cell::new(0u64);
        let chance = seed;
        let read = |address| {
            spoiled.set(spoiled.get().wrapping_add(chance).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ spoiled.get() >> 29);
            match spoiled.get() % 8 {
                0 => None,
                1 => Some(spoiled.get()),
                _ => previous
                    .read(address)
                    .map(|word| word ^ (u64::from(spoiled.get().is_multiple_of(5)) << (spoiled.get() >> 58))),
            }
        };
        seed = seed.wrapping_add(0x1234_5678_9abc_def1);
        let (iommu, device) = previous.take_over(PreviousTables::CopyUntilClaimed(&read));
        assert_eq!(previous.context(0)[0] & 1, 1);
        drop((device, iommu));
        assert_eq!(previous.machine.frames_in_use(), previous.frames.len());
    }
    // Nothing at all can be read.
    let previous = Previous::new(CAP, SCALABLE, TableMode::Scalable);
    let (_iommu, _device) = previous.take_over(PreviousTables::CopyUntilClaimed(&|_| None));
    assert_eq!(previous.context(1), [0, 0]);
}

#[test]
fn another_mode_is_replaced() {
    for (cap, stays_on) in [(CAP, false), (CAP | Cap::ESRTPS.bits(), true)] {
        let previous = Previous::new(cap, SCALABLE, TableMode::Legacy);
        let iommu = Iommu::new(previous.machine.clone(), Policy::default()).unwrap();
        let read = |address| previous.read(address);
        let options = VtdOptions { previous: PreviousTables::CopyUntilClaimed(&read), ..VtdOptions::default() };
        vtd::init_with(&iommu, &dmar(0, &[]), options).unwrap();
        let device = iommu.probe_pci(&SPACE, FUNCTIONS[0], Trust::Trusted).unwrap();
        previous.machine.hardware().commands.clear();
        iommu.enable().unwrap();
        let commands = previous.machine.hardware().commands.clone();
        assert_eq!(
            commands.iter().all(|command| command & Global::TE.bits() != 0),
            stays_on,
            "the hardware asserts why"
        );
        let root = previous.machine.hardware().root;
        assert_eq!(TableMode::of_root_table_address(root), Some(TableMode::Scalable));
        assert_eq!(previous.context(1), [0, 0], "entries of the other mode are not copied");
        drop(device);
    }
}

/// What a previous kernel left in force decides which descriptors are valid (6.5.2, Table 26).
#[test]
fn the_queue_fits_the_mode_that_is_left() {
    for (mode, wide) in [(TableMode::Scalable, true), (TableMode::AbortDma, true), (TableMode::Legacy, false)] {
        let previous = Previous::new(CAP, SCALABLE, mode);
        let iommu = Iommu::new(previous.machine.clone(), Policy::default()).unwrap();
        vtd::init_with(&iommu, &dmar(0, &[]), VtdOptions { mode: ModeWish::Legacy, ..VtdOptions::default() }).unwrap();
        assert_eq!(previous.machine.hardware().queue_address >> 11 & 1 == 1, wide);
        iommu.shutdown().unwrap();
    }
}
