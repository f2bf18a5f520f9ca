//! The Arm machine. Its unit is programmed by hand here, so that the harness is checked without the driver
//! that it is to check.

use iommu::platform::{Platform, Registers};
use iommu::{Iova, PhysAddr};
use iommu_harness::bus::BusRegisters;
use iommu_harness::options::PciPlace;
use iommu_harness::runner::TestError;
use iommu_harness::{
    Access, ArmOptions, Buffer, DmaOutcome, Error, Machine, QemuArm, SmmuOptions, SmmuStages, Suite, TestResult,
};

use crate::common::{self, Bench, assert_whole, done, pattern, topology};

/// Registers (IHI 0070 G.b, 6.2); those of the event queue's indices are in page 1.
const IDR0: usize = 0x00;
const IDR1: usize = 0x04;
const CR0: usize = 0x20;
const CR0ACK: usize = 0x24;
const GBPA: usize = 0x44;
const GERROR: usize = 0x60;
const STRTAB_BASE: usize = 0x80;
const STRTAB_BASE_CFG: usize = 0x88;
const EVENTQ_BASE: usize = 0xa0;
const EVENTQ_PROD: usize = 0x1_00a8;
const EVENTQ_CONS: usize = 0x1_00ac;
const REGISTER_BYTES: usize = 0x2_0000;

/// CR0: SMMUEN, EVENTQEN.
const ENABLED: u32 = 1 << 0 | 1 << 2;
/// GERROR: an event could not be written. EVENTQ_PROD: an event was lost.
const EVENTQ_ABORT: u32 = 1 << 2;
const OVERFLOW: u32 = 1 << 31;
/// log2 of the number of StreamIDs, and of events.
const STREAM_BITS: u32 = 16;
const EVENT_BITS: u32 = 7;
/// The event of a stream whose entry has V = 0 (7.3.5).
const BAD_STE: u32 = 0x04;

pub(crate) fn add(suite: &mut Suite) {
    let start = |options: &ArmOptions| -> Result<Box<dyn Machine>, Error> { Ok(Box::new(QemuArm::start(options)?)) };
    common::add(suite, "arm::", Bench { start, unit: smmu, four_gib: &[(0x4000_0000, 0x1_3fff_ffff)] });
    suite.test("arm::the_iort_is_whole", the_iort_is_whole);
    suite.test("arm::the_device_tree_is_there", the_device_tree_is_there);
    suite.test("arm::registers_are_as_documented", registers_are_as_documented);
    suite.test("arm::requesters_are_as_told", requesters_are_as_told);
    suite.test("arm::configuration_space_below_ram", configuration_space_below_ram);
}

fn smmu() -> ArmOptions {
    ArmOptions::new().smmu(SmmuOptions::default())
}

fn registers(machine: &dyn Machine) -> Result<BusRegisters, TestError> {
    let base = machine.iommu_base().ok_or(TestError::failed("no unit"))?;
    Ok(machine.platform().map_registers(base, REGISTER_BYTES)?)
}

fn the_iort_is_whole() -> TestResult {
    let machine = QemuArm::start(&smmu())?;
    let iort = machine.acpi_table(b"IORT")?;
    assert_whole(&iort, b"IORT");
    // Nodes (IORT E.f, 3): their number and the first one's offset; each has type and length first.
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| iort[at + byte])) as usize;
    let (count, mut at) = (number(36), number(40));
    let mut units = Vec::new();
    for _ in 0..count {
        if iort[at] == 4 {
            units.push(u64::from(number(at + 16) as u32) | (number(at + 20) as u64) << 32);
        }
        at += usize::from(u16::from_le_bytes([iort[at + 1], iort[at + 2]]));
    }
    assert_eq!(at, iort.len(), "the nodes fill the table");
    assert_eq!(units, [machine.iommu_base().map_or(0, PhysAddr::as_u64)]);
    Ok(())
}

fn the_device_tree_is_there() -> TestResult {
    let machine = QemuArm::start(&smmu())?;
    let tree = machine.device_tree()?;
    assert!(tree.windows(12).any(|bytes| bytes == b"arm,smmu-v3\0"));
    assert!(!QemuArm::start(&ArmOptions::new())?.device_tree()?.windows(11).any(|bytes| bytes == b"arm,smmu-v3"));
    // Nothing that the harness does writes there.
    let _ = machine.acpi_table(b"IORT")?;
    while machine.buffer(1 << 20).map(std::mem::forget).is_ok() {}
    assert!(machine.device_tree()? == tree);
    Ok(())
}

fn registers_are_as_documented() -> TestResult {
    // S2P and S1P of IDR0; where QEMU has a stage 2, it also has 16-bit VMIDs.
    let kinds = [(SmmuStages::First, 0b10), (SmmuStages::Second, 0b01), (SmmuStages::Nested, 0b11)];
    let quirks = QemuArm::installed()?;
    for (stages, flags) in kinds.into_iter().filter(|(_, flags)| *flags == 0b10 || quirks.smmu_has_second_stage) {
        let machine = QemuArm::start(&ArmOptions::new().smmu(SmmuOptions { stages: Some(stages) }))?;
        let registers = registers(&machine)?;
        let (idr0, idr1) = (registers.read32(IDR0), registers.read32(IDR1));
        assert_eq!((idr0 & 0b11, idr0 >> 2 & 0b11), (flags, 2), "{stages:?}: IDR0 is {idr0:#x}");
        assert_eq!(idr1 & 0x3f, STREAM_BITS, "IDR1 is {idr1:#x}");
        assert_eq!(registers.read64(IDR0), u64::from(idr0) | u64::from(idr1) << 32);
        assert_eq!(registers.read32(GBPA) != 0, quirks.smmu_has_global_abort);
        // Both halves of what has 64 bits, in either way.
        for value in [0x0001_2345_6789_0000, 0x000f_edcb_a987_0000] {
            registers.write64(STRTAB_BASE, value);
            let halves = [0, 4].map(|half| u64::from(registers.read32(STRTAB_BASE + half)));
            assert_eq!((registers.read64(STRTAB_BASE), halves[0] | halves[1] << 32), (value, value));
        }
        assert_eq!(registers.read32(REGISTER_BYTES), u32::MAX, "beyond the end");
    }
    assert!(QemuArm::start(&ArmOptions::new())?.iommu_base().is_none());
    Ok(())
}

/// A unit for which no stream has a valid entry.
struct Unit {
    registers: BusRegisters,
    events: Buffer,
    table: Buffer,
}

/// One event.
#[derive(PartialEq, Eq, Debug)]
struct Event {
    number: u32,
    stream: u32,
}

impl Unit {
    fn start(machine: &dyn Machine) -> Result<Self, TestError> {
        let unit = Self {
            registers: registers(machine)?,
            events: machine.buffer(32 << EVENT_BITS)?,
            table: machine.buffer(64 << STREAM_BITS)?,
        };
        unit.registers.write64(STRTAB_BASE, unit.table.phys().as_u64());
        unit.registers.write32(STRTAB_BASE_CFG, STREAM_BITS);
        unit.registers.write64(EVENTQ_BASE, unit.events.phys().as_u64() | u64::from(EVENT_BITS));
        unit.registers.write32(EVENTQ_PROD, 0);
        unit.registers.write32(EVENTQ_CONS, 0);
        unit.registers.write32(CR0, ENABLED);
        assert_eq!(unit.registers.read32(CR0ACK), ENABLED);
        Ok(unit)
    }

    /// Takes all events.
    fn take(&self) -> Vec<Event> {
        let (from, to) = (self.registers.read32(EVENTQ_CONS), self.registers.read32(EVENTQ_PROD));
        // One bit above the index tells how often it went round.
        let count = to.wrapping_sub(from) & ((2 << EVENT_BITS) - 1);
        let events = (0..count).map(|index| {
            let index = from.wrapping_add(index);
            let bytes = self.events.read(u64::from(index % (1 << EVENT_BITS)) * 32, 32);
            let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at * 4 + byte]));
            Event { number: word(0) & 0xff, stream: word(1) }
        });
        let events = events.collect();
        self.registers.write32(EVENTQ_CONS, to);
        events
    }
}

/// Every device is stopped, and is who the harness says it is, behind every kind of bridge.
fn requesters_are_as_told() -> TestResult {
    let machine = QemuArm::start(&topology(smmu()))?;
    let unit = Unit::start(&machine)?;
    let target = machine.buffer(4096)?;
    for device in machine.devices() {
        for access in [Access::Write, Access::Read] {
            let outcome = device.poke(target.iova(), access)?;
            let events = unit.take();
            // What cannot fetch its script takes nothing for one, and fetches on: this unit tells of each access.
            assert_eq!(events.len() > 1, outcome == DmaOutcome::NoScript, "{device:?}");
            let expected = Event { number: BAD_STE, stream: device.requester().id() };
            assert!(!events.is_empty() && events.iter().all(|event| *event == expected), "{device:?}: {events:?}");
        }
    }
    assert!(target.is_filled(0));
    assert_eq!(machine.device("lsi").dma_write(target.iova(), &[1; 8])?, DmaOutcome::NoScript);
    // That was more than the queue holds.
    let quirk = machine.quirks().is_some_and(|quirks| quirks.smmu_full_event_queue_is_an_abort);
    let (producer, errors) = (unit.registers.read32(EVENTQ_PROD), unit.registers.read32(GERROR));
    assert_eq!((producer & OVERFLOW != 0, errors & EVENTQ_ABORT != 0), (!quirk, quirk));
    Ok(())
}

fn configuration_space_below_ram() -> TestResult {
    let machine = QemuArm::start(&topology(ArmOptions::new().pci(PciPlace::Low)))?;
    for device in machine.devices() {
        let buffer = machine.buffer(4096)?;
        done(device.dma_write(Iova::new(buffer.phys().as_u64()), &pattern(100))?)?;
        assert_eq!(buffer.read(0, 100), pattern(100), "{device:?}");
    }
    Ok(())
}
