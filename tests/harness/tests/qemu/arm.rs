//! The Arm machine. Its unit is programmed by hand here, so that the harness is checked without the driver
//! that it is to check.

use iommu::platform::{Platform, Registers};
use iommu::{Iova, PhysAddr};
use iommu_harness::bus::BusRegisters;
use iommu_harness::devices::POKE;
use iommu_harness::options::PciPlace;
use iommu_harness::runner::TestError;
use iommu_harness::{
    Access, ArmOptions, Buffer, DmaOutcome, Error, Machine, QemuArm, SmmuGranule, SmmuOptions, SmmuStages, Suite,
    TestResult,
};

use crate::common::{self, Bench, assert_whole, done, pattern, topology};

/// Registers (IHI 0070 G.b, 6.2); those of the event queue's indices are in page 1.
const IDR0: usize = 0x00;
const IDR1: usize = 0x04;
const IDR5: usize = 0x14;
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
/// Events (7.3): no entry for the stream; an entry that is not valid; no mapping; one that forbids it.
const BAD_STREAM: u32 = 0x02;
const BAD_STE: u32 = 0x04;
const TRANSLATION: u32 = 0x10;
const PERMISSION: u32 = 0x13;

/// Table and page descriptors of stage 1.
const TABLE: u64 = 0x3;
const WRITABLE: u64 = 0x443;
const READ_ONLY: u64 = 0x4c3;
/// Block descriptor of stage 2.
const BLOCK_2: u64 = 0x7fd;

/// STRTAB_BASE_CFG: two levels, 256 entries a table.
const TWO_LEVELS: u32 = 1 << 16 | 8 << 6;

pub(crate) fn add(suite: &mut Suite) {
    let start = |options: &ArmOptions| -> Result<Box<dyn Machine>, Error> { Ok(Box::new(QemuArm::start(options)?)) };
    common::add(suite, "arm::", Bench { start, unit: smmu, four_gib: &[(0x4000_0000, 0x1_3fff_ffff)] });
    suite.test("arm::the_iort_is_whole", the_iort_is_whole);
    suite.test("arm::the_device_tree_is_there", the_device_tree_is_there);
    suite.test("arm::registers_are_as_documented", registers_are_as_documented);
    suite.test("arm::granules_are_as_told", granules_are_as_told);
    suite.test("arm::requesters_are_as_told", requesters_are_as_told);
    suite.test("arm::workspaces_move", workspaces_move);
    suite.test("arm::entries_that_end_qemu", entries_that_end_qemu);
    suite.test("arm::tables_of_two_levels_stay", tables_of_two_levels_stay);
    if QemuArm::installed().is_ok_and(|quirks| quirks.smmu_has_second_stage) {
        suite.test("arm::concatenated_tables", concatenated_tables);
    }
    suite.test("arm::configuration_space_below_ram", configuration_space_below_ram);
}

fn smmu() -> ArmOptions {
    ArmOptions::new().smmu(SmmuOptions::default())
}

fn registers(machine: &dyn Machine) -> Result<BusRegisters, TestError> {
    let base = machine.iommu_base().ok_or(TestError::failed("no unit"))?;
    Ok(machine.platform().map_registers(base, REGISTER_BYTES)?)
}

/// One unit; and as the table is made when it is read, behind it are the buses that have been numbered.
fn the_iort_is_whole() -> TestResult {
    let machine = QemuArm::start(&topology(smmu()))?;
    let iort = machine.acpi_table(b"IORT")?;
    assert_whole(&iort, b"IORT");
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| iort[at + byte])) as usize;
    // Nodes (DEN 0049 E.f, 3): their number and the first one's offset; each has type and length first.
    let (count, mut at) = (number(36), number(40));
    let (mut units, mut behind) = (Vec::new(), Vec::new());
    for _ in 0..count {
        match iort[at] {
            4 => units.push((at, number(at + 16) as u64)),
            // A root complex: number and offset of its mappings; first id, how many more, output, its node.
            2 => behind.extend((0..number(at + 8)).map(|index| at + number(at + 12) + 20 * index)),
            _ => {}
        }
        at += usize::from(u16::from_le_bytes([iort[at + 1], iort[at + 2]]));
    }
    assert_eq!(at, iort.len(), "the nodes fill the table");
    let [(unit, base)] = units[..] else { panic!("one unit, not {units:?}") };
    assert_eq!(Some(PhysAddr::new(base)), machine.iommu_base());
    for device in machine.devices() {
        let id = device.requester().id() as usize;
        let mut mappings = behind.iter().filter(|&&at| number(at + 12) == unit);
        let covers =
            |&at: &usize| (number(at)..=number(at) + number(at + 4)).contains(&id) && number(at) == number(at + 8);
        assert!(mappings.any(covers), "{device:?}");
    }
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
        let machine =
            QemuArm::start(&ArmOptions::new().smmu(SmmuOptions { stages: Some(stages), ..SmmuOptions::default() }))?;
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

/// What a driver must not use, it is not told of.
fn granules_are_as_told() -> TestResult {
    let granules = [
        (None, 0b111),
        (Some(SmmuGranule::Size4K), 0b001),
        (Some(SmmuGranule::Size16K), 0b010),
        (Some(SmmuGranule::Size64K), 0b100),
    ];
    for (granule, flags) in granules {
        let machine = QemuArm::start(&ArmOptions::new().smmu(SmmuOptions { granule, ..SmmuOptions::default() }))?;
        let registers = registers(&machine)?;
        let idr5 = registers.read32(IDR5);
        assert_eq!((idr5 >> 4 & 0b111, registers.read64(IDR5 - 4) >> 32), (flags, u64::from(idr5)), "{granule:?}");
    }
    Ok(())
}

/// A unit that is on, with a linear stream table in which nothing is valid.
struct Unit {
    registers: BusRegisters,
    events: Buffer,
    table: Buffer,
}

/// One event. Not all of them tell access and address.
#[derive(PartialEq, Eq, Debug)]
struct Event {
    number: u32,
    stream: u32,
    access: Access,
    address: u64,
}

impl Unit {
    fn start(machine: &dyn Machine) -> Result<Self, TestError> {
        let registers = registers(machine)?;
        let unit =
            Self { registers, events: machine.buffer(32 << EVENT_BITS)?, table: machine.buffer(64 << STREAM_BITS)? };
        unit.registers.write64(STRTAB_BASE, unit.table.phys().as_u64());
        unit.registers.write32(STRTAB_BASE_CFG, STREAM_BITS);
        unit.registers.write64(EVENTQ_BASE, unit.events.phys().as_u64() | u64::from(EVENT_BITS));
        unit.registers.write32(EVENTQ_PROD, 0);
        unit.registers.write32(EVENTQ_CONS, 0);
        unit.registers.write32(CR0, ENABLED);
        assert_eq!(unit.registers.read32(CR0ACK), ENABLED);
        Ok(unit)
    }

    /// Writes an entry, which the unit must not know yet.
    fn set(&self, stream: u32, words: [u64; 4]) {
        write(&self.table, u64::from(stream) * 8, &words);
    }

    /// Takes all events.
    fn take(&self) -> Vec<Event> {
        let (from, to) = (self.registers.read32(EVENTQ_CONS), self.registers.read32(EVENTQ_PROD));
        // One bit above the index tells how often it went round.
        let count = to.wrapping_sub(from) & ((2 << EVENT_BITS) - 1);
        let events = (0..count).map(|index| {
            let index = from.wrapping_add(index) % (1 << EVENT_BITS);
            let bytes = self.events.read(u64::from(index) * 32, 32);
            let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at * 4 + byte]));
            let access = if word(3) & 1 << 3 != 0 { Access::Read } else { Access::Write };
            let address = u64::from(word(4)) | u64::from(word(5)) << 32;
            Event { number: word(0) & 0xff, stream: word(1), access, address }
        });
        let events = events.collect();
        self.registers.write32(EVENTQ_CONS, to);
        events
    }
}

/// Writes 64-bit words from the given one on.
fn write(buffer: &Buffer, index: u64, words: &[u64]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    buffer.write(index * 8, &bytes);
}

/// Word 0 of an entry for stage 1 with the context descriptor at `context`, and of one for stage 2 (5.2).
fn stage_1(context: PhysAddr) -> u64 {
    1 | 0b101 << 1 | context.as_u64()
}
const STAGE_2: u64 = 1 | 0b110 << 1;

/// A context descriptor (5.4): 39 bits through TTB0 in granules of 4 KiB, 44 bits of output; nothing through
/// TTB1; faults are recorded and abort.
fn context(asid: u64, table: PhysAddr) -> [u64; 2] {
    let flags = 25 | 1 << 30 | 1 << 31 | OUTPUT_44 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47;
    [flags | asid << 48, table.as_u64()]
}
/// IPS.
const OUTPUT_44: u64 = 4 << 32;
const OUTPUT_RESERVED: u64 = 7 << 32;

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
            let expected = (BAD_STE, device.requester().id());
            let same = events.iter().all(|event| (event.number, event.stream) == expected);
            assert!(!events.is_empty() && same, "{device:?}: {events:?}");
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

/// With a workspace that is mapped elsewhere, both engines do what is permitted and no more.
fn workspaces_move() -> TestResult {
    let machine = QemuArm::start(&smmu().edu("edu").lsi("lsi"))?;
    let [contexts, top, middle, leaves, target] = [(); 5].map(|()| machine.buffer(4096));
    let (contexts, top, middle, leaves, target) = (contexts?, top?, middle?, leaves?, target?);
    let (writable, read_only, unmapped) = (Iova::new(0x10_0000), Iova::new(0x10_1000), Iova::new(0x10_2000));
    let table = |buffer: &Buffer| buffer.phys().as_u64() | TABLE;
    write(&top, 0, &[table(&middle)]);
    write(&middle, 0, &[table(&leaves)]);
    write(&leaves, 0x100, &[target.phys().as_u64() | WRITABLE, target.phys().as_u64() | READ_ONLY]);
    let unit = Unit::start(&machine)?;
    for device in machine.devices() {
        let stream = device.requester().id();
        // An ASID of its own, since only the workspaces differ.
        write(&contexts, u64::from(stream) * 8, &context(u64::from(stream), top.phys()));
        let at = PhysAddr::new(contexts.phys().as_u64() + u64::from(stream) * 64);
        unit.set(stream, [stage_1(at), 0, 0, 0]);
    }
    for device in machine.devices() {
        let space = device.workspace();
        for page in 0..space.bytes / 4096 {
            write(&leaves, page, &[(space.phys.as_u64() + page * 4096) | WRITABLE]);
        }
        device.place_workspace(Iova::new(0));
        target.fill(0);
        done(device.dma_write(writable, &pattern(3000))?)?;
        assert!(target.read(0, 3000) == pattern(3000), "{device:?} wrote");
        assert!(device.dma_read(read_only, 3000)? == pattern(3000), "{device:?} read");
        assert_eq!(unit.take(), [], "{device:?}");

        target.fill(0);
        let stream = device.requester().id();
        for (iova, number) in [(unmapped, TRANSLATION), (read_only, PERMISSION)] {
            done(device.poke(iova, Access::Write)?)?;
            let expected = Event { number, stream, access: Access::Write, address: iova.as_u64() };
            assert_eq!(unit.take(), [expected], "{device:?}");
        }
        assert_ne!(device.dma_read(unmapped, 64)?, pattern(64), "{device:?}");
        assert!(unit.take().len() > 1, "every access of 4 bytes is an event of its own");
        assert!(target.is_filled(0));
    }
    Ok(())
}

/// Entries that a driver has no reason to write.
fn entries_that_end_qemu() -> TestResult {
    let quirks = QemuArm::installed()?;
    for (is_second, is_fatal) in
        [(true, quirks.smmu_aarch32_stage_2_is_fatal), (false, quirks.smmu_reserved_output_size_is_fatal)]
    {
        let machine = QemuArm::start(&smmu().lsi("lsi"))?;
        let (unit, contexts) = (Unit::start(&machine)?, machine.buffer(4096)?);
        let [flags, table] = context(1, contexts.phys());
        write(&contexts, 0, &[flags & !OUTPUT_44 | OUTPUT_RESERVED, table]);
        let entry = if is_second { STAGE_2 } else { stage_1(contexts.phys()) };
        let lsi = machine.device("lsi");
        unit.set(lsi.requester().id(), [entry, 0, 0, 0]);
        machine.qtest().expect_loss();
        let outcome = lsi.poke(contexts.iova(), Access::Read);
        assert_eq!(matches!(outcome, Err(Error::Exited { .. })), is_fatal, "stage 2: {is_second}: {outcome:?}");
    }
    Ok(())
}

/// Whether a driver can go back to a linear table without a reset.
fn tables_of_two_levels_stay() -> TestResult {
    let machine = QemuArm::start(&smmu().edu("edu"))?;
    let unit = Unit::start(&machine)?;
    let (edu, target) = (machine.device("edu"), machine.buffer(4096)?);
    let told = |format| -> TestResult<Vec<u32>> {
        unit.registers.write32(CR0, 0);
        unit.registers.write32(STRTAB_BASE_CFG, format | STREAM_BITS);
        unit.registers.write32(CR0, ENABLED);
        done(edu.poke(target.iova(), Access::Write)?)?;
        Ok(unit.take().iter().map(|event| event.number).collect())
    };
    assert_eq!((told(0)?, told(TWO_LEVELS)?), (vec![BAD_STE], vec![BAD_STREAM]));
    let quirk = machine.quirks().is_some_and(|quirks| quirks.smmu_two_levels_stay);
    assert_eq!(told(0)?, [if quirk { BAD_STREAM } else { BAD_STE }]);
    Ok(())
}

/// A stage 2 of 40 bits that begins with two tables side by side: who finds the second one.
fn concatenated_tables() -> TestResult {
    let options = ArmOptions::new().smmu(SmmuOptions { stages: Some(SmmuStages::Second), ..SmmuOptions::default() });
    let machine = QemuArm::start(&options.edu("edu"))?;
    let (unit, edu) = (Unit::start(&machine)?, machine.device("edu"));
    let (tables, target) = (machine.buffer(0x2000)?, machine.buffer(4096)?);
    let around = target.phys().align_down(1 << 30);
    // The first GiB of the first half, the second one of the second half.
    write(&tables, 0, &[around.as_u64() | BLOCK_2]);
    write(&tables, 512 + 1, &[around.as_u64() | BLOCK_2]);
    // VMID 1; 40 bits in granules of 4 KiB from level 1, 44 bits of output; S2AA64, S2R.
    let flags = 1 | 24 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 58;
    unit.set(edu.requester().id(), [STAGE_2, 0, flags, tables.phys().as_u64()]);
    let told_at = |start: u64| -> TestResult<(Vec<u8>, Vec<u32>)> {
        target.fill(0);
        done(edu.poke(Iova::new(start | (target.phys().as_u64() - around.as_u64())), Access::Write)?)?;
        Ok((target.read(0, 4), unit.take().iter().map(|event| event.number).collect()))
    };
    assert_eq!(told_at(0)?, (POKE.to_vec(), vec![]));
    let quirk = machine.quirks().is_some_and(|quirks| quirks.smmu_finds_only_the_first_of_concatenated_tables);
    let expected = if quirk { (vec![0; 4], vec![TRANSLATION]) } else { (POKE.to_vec(), vec![]) };
    assert_eq!(told_at(1 << 39 | 1 << 30)?, expected);
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
