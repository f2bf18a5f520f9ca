//! The Arm machine of the model. Its unit is programmed by hand here, without the driver.

use std::thread;
use std::time::{Duration, Instant};

use iommu::arch::smmuv3::device::Line;
use iommu::arch::smmuv3::firmware::iort::{Iort, NodeKind};
use iommu::arch::smmuv3::layout::commands::{Command, Resume};
use iommu::arch::smmuv3::layout::events::{EventKind, EventRecord};
use iommu::arch::smmuv3::layout::identification::{Idr0, StallModel};
use iommu::arch::smmuv3::layout::registers::{Cr0, Cr1, IrqCtrl, QueueBase, StreamTableFormat, StrtabBaseCfg, offset};
use iommu::arch::smmuv3::layout::stream_table::Stage2;
use iommu::arch::smmuv3::layout::{Ste, Vmid};
use iommu::ops::Msi;
use iommu::platform::{Platform, Registers};
use iommu::{Iova, PhysAddr, PhysRange};
use iommu_harness::bus::BusRegisters;
use iommu_harness::devices::POKE;
use iommu_harness::runner::TestError;
use iommu_harness::{
    Access, ArmModelOptions, ArmOptions, Buffer, Error, Machine, ModelArm, QemuArm, SmmuGranule, SmmuOptions,
    SmmuStages, Suite, TestResult,
};

use crate::common::{self, Bench, done, topology};
use crate::{compare_functions, functions};

/// log2 of StreamIDs, commands and events.
const STREAM_BITS: u8 = 12;
const QUEUE_BITS: u8 = 7;
/// Block descriptor of stage 2: readable and writable memory.
const BLOCK: u64 = 0x7fd;

pub(crate) fn add(suite: &mut Suite) {
    let start = |options: &ArmOptions| -> Result<Box<dyn Machine>, Error> { Ok(Box::new(ModelArm::start(options)?)) };
    common::add(suite, "arm::", Bench { start, unit: smmu, four_gib: &[(0x4000_0000, 0x1_3fff_ffff)] });
    suite.test("arm::functions_are_what_they_are_on_qemu", || {
        let options = functions(ArmOptions::new());
        compare_functions(&ModelArm::start(&options)?, &QemuArm::start(&options)?)
    });
    suite.test("arm::registers_say_what_the_options_do", registers_say_what_the_options_do);
    suite.test("arm::firmware_says_what_the_options_do", firmware_says_what_the_options_do);
    suite.test("arm::requesters_are_as_told", requesters_are_as_told);
    suite.test("arm::messages_are_translated", messages_are_translated);
    suite.test("arm::requests_wait", requests_wait);
}

fn smmu() -> ArmOptions {
    ArmOptions::new().smmu(SmmuOptions::default())
}

/// A unit with a linear stream table, in which every entry is zero, and queues.
struct Unit {
    registers: BusRegisters,
    streams: Buffer,
    commands: Buffer,
    events: Buffer,
}

impl Unit {
    fn start(machine: &dyn Machine) -> Result<Self, TestError> {
        let base = machine.iommu_base().ok_or(TestError::failed("no unit"))?;
        let registers = machine.platform().map_registers(base, 0x2_0000)?;
        let (streams, commands, events) =
            (machine.buffer(64 << STREAM_BITS)?, machine.buffer(4096)?, machine.buffer(4096)?);
        registers.write32(offset::CR1, Cr1::SNOOPING.0);
        registers.write64(offset::STRTAB_BASE, streams.phys().as_u64());
        registers.write32(offset::STRTAB_BASE_CFG, StrtabBaseCfg::new(StreamTableFormat::Linear, STREAM_BITS).0);
        registers.write64(offset::CMDQ_BASE, QueueBase::new(commands.phys(), QUEUE_BITS).0);
        registers.write64(offset::EVENTQ_BASE, QueueBase::new(events.phys(), QUEUE_BITS).0);
        for index in [offset::CMDQ_PROD, offset::CMDQ_CONS, offset::EVENTQ_PROD, offset::EVENTQ_CONS] {
            registers.write32(index, 0);
        }
        registers.write32(offset::IRQ_CTRL, IrqCtrl::EVENTQ.bits());
        let on = Cr0::SMMUEN | Cr0::EVENTQEN | Cr0::CMDQEN;
        registers.write32(offset::CR0, on.bits());
        wait(|| (registers.read32(offset::CR0ACK) == on.bits()).then_some(()));
        Ok(Self { registers, streams, commands, events })
    }

    /// Writes the entry of a stream that the unit has not used yet.
    fn set(&self, stream: u32, ste: Ste) {
        self.streams.write(u64::from(stream) * 64, &bytes(&ste.words));
    }

    fn submit(&self, command: Command) {
        let prod = self.registers.read32(offset::CMDQ_PROD);
        self.commands.write(u64::from(prod) % 128 * 16, &bytes(&command.encode()));
        self.registers.write32(offset::CMDQ_PROD, prod + 1);
    }

    /// Takes the oldest event.
    fn take(&self) -> Option<EventRecord> {
        let (prod, cons) = (self.registers.read32(offset::EVENTQ_PROD), self.registers.read32(offset::EVENTQ_CONS));
        if prod == cons {
            return None;
        }
        let record = self.events.read(u64::from(cons) % 128 * 32, 32);
        let word = |at: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte| record[at * 8 + byte]));
        self.registers.write32(offset::EVENTQ_CONS, cons + 1);
        Some(EventRecord::decode([0, 1, 2, 3].map(word)))
    }
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// What comes in the end.
#[track_caller]
fn wait<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "nothing comes");
    }
}

fn registers_say_what_the_options_do() -> TestResult {
    let smmu = SmmuOptions { stages: Some(SmmuStages::Second), granule: Some(SmmuGranule::Size64K) };
    let model = ArmModelOptions::new().without_idr0(Idr0::COHACC).queues(3, 2).output_bits(52);
    let machine = ModelArm::with(&ArmOptions::new().smmu(smmu), &model)?;
    let base = machine.iommu_base().ok_or(TestError::failed("no unit"))?;
    let registers = machine.platform().map_registers(base, 0x2_0000)?;
    let told = model.config(&smmu).identification;
    let found = [offset::IDR0, offset::IDR1, offset::IDR3, offset::IDR5].map(|register| registers.read32(register));
    assert_eq!(found, [told.idr0, told.idr1, told.idr3, told.idr5]);
    assert!(ModelArm::start(&ArmOptions::new())?.iommu_base().is_none());
    Ok(())
}

fn firmware_says_what_the_options_do() -> TestResult {
    let range = PhysRange::from_len(PhysAddr::new(0x4800_0000), 0x1_0000)?;
    let model = ArmModelOptions::new().reserved_memory(8, 1, range).with_idr0(Idr0::ATS);
    let table = ModelArm::with(&smmu(), &model)?.acpi_table(b"IORT")?;
    let iort = Iort::parse(&table).map_err(|error| TestError::failed(format!("{error}")))?;
    let reserved: Vec<_> =
        iort.nodes().filter_map(|node| if let NodeKind::Rmr(rmr) = node.kind { Some(rmr) } else { None }).collect();
    assert_eq!(reserved.iter().flat_map(|rmr| rmr.ranges()).collect::<Vec<_>>(), [range]);
    let machine = ModelArm::start(&ArmOptions::new())?;
    assert!(machine.acpi_table(b"IORT").is_err() && machine.device_tree().is_err());
    Ok(())
}

/// Every device is stopped, and is who the harness says it is, behind every kind of bridge. The unit raises its
/// wire.
fn requesters_are_as_told() -> TestResult {
    let machine = ModelArm::start(&topology(smmu()))?;
    let unit = Unit::start(&machine)?;
    let target = machine.buffer(4096)?;
    for device in machine.devices() {
        let _ = device.poke(target.iova(), Access::Write)?;
        let event = wait(|| unit.take());
        assert_eq!((event.kind, event.stream.0), (EventKind::C_BAD_STE, device.requester().id()), "{device:?}");
        let mut lines = Vec::new();
        wait(|| {
            unit.registers.read32(offset::EVENTQ_PROD);
            lines.extend(machine.take_lines());
            (!lines.is_empty()).then_some(())
        });
        assert!(lines.iter().all(|line| *line == Line::Events), "{lines:?}");
    }
    assert!(target.is_filled(0));
    Ok(())
}

/// A device's interrupt is a write like any other, and arrives where the unit leads it.
fn messages_are_translated() -> TestResult {
    let doorbell = Msi { address: PhysAddr::new(0x0809_0040), data: u32::from_le_bytes(POKE) };
    let machine = ModelArm::start(&smmu().edu("edu"))?;
    let edu = machine.device("edu");
    // Nothing is translated yet.
    done(edu.poke(Iova::new(doorbell.address.as_u64()), Access::Write)?)?;
    assert_eq!(machine.take_interrupts(), [doorbell]);
    let unit = Unit::start(&machine)?;
    let table = machine.buffer(4096)?;
    // The second GiB leads to the first.
    table.write(8, &bytes(&[BLOCK]));
    unit.set(edu.requester().id(), Ste::stage2(stage2(&table, Waits::No)));
    done(edu.poke(Iova::new(doorbell.address.as_u64()), Access::Write)?)?;
    assert_eq!(wait(|| unit.take()).kind, EventKind::F_TRANSLATION);
    assert_eq!(machine.take_interrupts(), []);
    done(edu.poke(Iova::new(0x4000_0000 + doorbell.address.as_u64()), Access::Write)?)?;
    assert_eq!(machine.take_interrupts(), [doorbell]);
    Ok(())
}

/// Whether requests that fault wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    Yes,
    No,
}

/// 39 bits of input, from level 1 on.
fn stage2(table: &Buffer, waits: Waits) -> Stage2 {
    Stage2 {
        vmid: Vmid(5),
        table: table.phys(),
        t0sz: 25,
        sl0: 1,
        tg: 0,
        ps: 4,
        cacheability: 1,
        shareability: 3,
        access_flag_fault_disabled: false,
        record: true,
        stall: waits == Waits::Yes,
    }
}

/// A request waits for what software decides: to try again, or that it has failed. A device may give up before.
fn requests_wait() -> TestResult {
    let model = ArmModelOptions::new().stalls(StallModel::Configurable, 4).patience(Duration::from_secs(20));
    let machine = ModelArm::with(&smmu().edu("edu"), &model)?;
    let edu = machine.device("edu");
    let unit = Unit::start(&machine)?;
    let (table, target) = (machine.buffer(4096)?, machine.buffer(4096)?);
    unit.set(edu.requester().id(), Ste::stage2(stage2(&table, Waits::Yes)));
    for (action, entry, filled) in [(Resume::Terminate, 0, false), (Resume::Retry, 0x4000_0000 | BLOCK, true)] {
        thread::scope(|scope| {
            let dma = scope.spawn(|| edu.poke(target.iova(), Access::Write));
            let event = wait(|| unit.take());
            assert_eq!((event.kind, event.read), (EventKind::F_TRANSLATION, false));
            assert!(!dma.is_finished() && target.is_filled(0));
            table.write(8, &bytes(&[entry]));
            let tag = event.stall.expect("it waits");
            unit.submit(Command::Resume { stream: event.stream, tag, action });
            wait(|| {
                unit.registers.read32(offset::CMDQ_CONS);
                dma.is_finished().then_some(())
            });
        });
        assert_eq!(target.read(0, 4) == POKE, filled);
    }
    let machine = ModelArm::with(&smmu().edu("edu"), &model.patience(Duration::ZERO))?;
    let unit = Unit::start(&machine)?;
    let table = machine.buffer(4096)?;
    unit.set(machine.device("edu").requester().id(), Ste::stage2(stage2(&table, Waits::Yes)));
    done(machine.device("edu").poke(Iova::new(0x4000_0000), Access::Write)?)?;
    assert!(wait(|| unit.take()).stall.is_some(), "the unit goes on waiting for an answer");
    Ok(())
}
