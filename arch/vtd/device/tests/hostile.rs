//! Guests that write anything anywhere: the unit survives, and every call ends.

extern crate std;
use std::vec::Vec;

use super::{DEVICE, END, Event, Machine, QUEUE, Unit, arena, read, unit, with};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::{
    Chooser, DeviceConfig, Host, Privilege, Request, RequestAccess, Seeded, Snoop, VtdDevice,
};
use crate::arch::vtd::layout::descriptors::{PageRequest, PageRequestFlags};
use crate::arch::vtd::layout::registers::{Global, offset};
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::bus::AddressType;
use crate::platform::Registers;

fn random(source: &Seeded) -> u64 {
    let half = || source.choose(1 << 32) as u64;
    let bits = half() << 32 | half();
    // All values, small ones, and those that look like entries.
    match source.choose(4) {
        0 => bits,
        1 => bits & 0xff,
        2 => bits & 0xffff_f000 | bits >> 60,
        _ => (bits & 0xf) << 12 | bits >> 56,
    }
}

#[test]
fn nothing_that_is_written_harms() {
    for seed in 0..60 {
        let source = Seeded::new(seed);
        let everything = with(
            Cap::CM | Cap::RWBF | Cap::PLMR | Cap::PHMR | Cap::FS1GP | Cap::FS5LP,
            Ecap::from_bits_retain(!(0x3ff << 8)),
        );
        let config = [DeviceConfig::default(), everything][seed as usize & 1];
        let unit = VtdDevice::with_chooser(arena(), Machine::default(), config, Seeded::new(seed)).unwrap();
        for _ in 0..300 {
            let offset = source.choose(0x250);
            match source.choose(5) {
                0 => unit.write32(offset, random(&source) as u32),
                1 => unit.write64(offset & !7, random(&source)),
                2 => unit.host().poke(random(&source) & 0xffff_fff8, random(&source)),
                3 => {
                    let request = Request {
                        source: random(&source) as u16 & 0x3f,
                        pasid: (source.choose(2) == 0).then(|| random(&source) as u32),
                        privilege: [Privilege::User, Privilege::Supervisor][source.choose(2)],
                        address_type: [
                            AddressType::Untranslated,
                            AddressType::TranslationRequest,
                            AddressType::Translated,
                        ][source.choose(3)],
                        address: random(&source),
                        access: [
                            RequestAccess::Read,
                            RequestAccess::ZeroLengthRead,
                            RequestAccess::Write,
                            RequestAccess::Atomic,
                        ][source.choose(4)],
                    };
                    let _ = unit.translate(&request);
                }
                _ => {
                    let flags = PageRequestFlags::from_bits_truncate(random(&source) as u8);
                    let (address, group) = (random(&source), random(&source) as u16);
                    let _ = unit.page_request(&PageRequest { source: DEVICE, pasid: None, address, group, flags });
                }
            }
            for _ in 0..source.choose(4) {
                unit.step();
            }
        }
        assert!(unit.run() < Unit::<Seeded>::RUN_STEPS, "seed {seed}");
        for offset in (0..0x1000).step_by(4) {
            unit.read32(offset);
        }
    }
}

/// Host calls may access registers: no lock is held. This host reads all of them each time it is called.
struct Curious {
    machine: Machine,
    unit: std::sync::OnceLock<std::sync::Weak<VtdDevice<&'static crate::platform::Arena, Self>>>,
}

impl Curious {
    fn look(&self) {
        if let Some(unit) = self.unit.get().and_then(std::sync::Weak::upgrade) {
            for offset in (0..0x240).step_by(4) {
                unit.read32(offset);
            }
        }
    }
}

impl Host for Curious {
    fn read(&self, address: PhysAddr, snoop: Snoop) -> Result<u64, crate::arch::vtd::device::Unreachable> {
        self.look();
        self.machine.read(address, snoop)
    }
    fn write32(&self, address: PhysAddr, value: u32) -> Result<(), crate::arch::vtd::device::Unreachable> {
        self.look();
        self.machine.write32(address, value)
    }
    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), crate::arch::vtd::device::Unreachable> {
        self.look();
        self.machine.write64(address, value)
    }
    fn compare_exchange(
        &self,
        address: PhysAddr,
        current: u64,
        new: u64,
    ) -> Result<bool, crate::arch::vtd::device::Unreachable> {
        self.look();
        self.machine.compare_exchange(address, current, new)
    }
    fn interrupt(&self, message: crate::ops::Msi) {
        self.look();
        self.machine.interrupt(message);
    }
    fn invalidate_device_tlb(
        &self,
        source: u16,
        pasids: Option<crate::arch::vtd::layout::descriptors::DevicePasids>,
        range: crate::arch::vtd::layout::descriptors::DeviceRange,
    ) -> crate::arch::vtd::device::DeviceAnswer {
        self.look();
        self.machine.invalidate_device_tlb(source, pasids, range)
    }
    fn drain(&self, what: crate::arch::vtd::layout::descriptors::Drain) {
        self.look();
        self.machine.drain(what);
    }
}

#[test]
fn the_host_may_access_registers_whenever_it_is_called() {
    let host = Curious { machine: Machine::default(), unit: std::sync::OnceLock::new() };
    let unit = std::sync::Arc::new(VtdDevice::new(arena(), host, with(Cap::empty(), Ecap::DT)).unwrap());
    let _ = unit.host().unit.set(std::sync::Arc::downgrade(&unit));
    let machine = &unit.host().machine;
    machine.poke(0x1000, 0x2001);
    machine.poke(0x2100, 0x3001);
    machine.poke(0x2108, 0x702);
    for (index, words) in [[0x52_u64, 0], [0x10_0000_0003, 0], [1 << 32 | 0x35, 0x9_0000]].into_iter().enumerate() {
        machine.poke(QUEUE + index as u64 * 16, words[0]);
        machine.poke(QUEUE + index as u64 * 16 + 8, words[1]);
    }
    unit.write64(offset::RTADDR, 0x1000);
    unit.write32(offset::GCMD, Global::RTP.bits());
    unit.run();
    unit.write64(offset::IQA, QUEUE);
    unit.write32(offset::GCMD, (Global::QIE | Global::TE).bits());
    unit.write32(offset::IECTL, 0);
    unit.write64(offset::IQT, 0x30);
    unit.run();
    assert_eq!(unit.translate(&read(0x5000)).unwrap_err().reason.0, 6);
    assert!(machine.log().contains(&Event::Status(0x9_0000, 1)));
}

/// Devices translate while software maps, unmaps and waits: after the wait nobody goes to the old page.
#[test]
fn several_threads() {
    let unit = unit(DeviceConfig::default());
    unit.start_legacy();
    unit.start_queue();
    let done = std::sync::atomic::AtomicU64::new(0);
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut seen = Vec::new();
                while done.load(order) < 300 {
                    let before = done.load(order);
                    if let Ok(phys) = unit.goes(read(0x5000)) {
                        assert!(phys >> 12 >= before, "page {:#x} after {before:#x}", phys >> 12);
                        seen.push(phys);
                    }
                }
                assert!(seen.iter().all(|phys| *phys < END));
            });
        }
        for round in 1..=300 {
            unit.map(0, 3, 0x5000, 0, round << 12 | 3);
            unit.process(&[[0x7_0032, 0x5000], super::WAIT]);
            done.store(round, order);
        }
    });
}
