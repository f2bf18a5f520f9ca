//! What units there are, and what is asked of the SMMUv3 driver.

use iommu::arch::smmuv3::device::DeviceConfig;
use iommu::arch::smmuv3::layout::Identification;
use iommu::arch::smmuv3::layout::identification::{Idr0, Idr3};
use iommu::bus::Snoop;
use iommu::ops::{InterruptKind, Msi};
use iommu::{FaultKind, FaultRecord, FaultsLeft, Iova, PhysAddr, SourceId};

use super::{Bench, SmmuUnit, queue, substreams};
use crate::common::bench::{Convicted, SECOND, Verdict};
use crate::common::runner::Scenario;
use crate::common::scenarios::{World, map, probe};
use crate::common::{device_tlbs, lives, scenarios};

/// What a unit can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UnitKind {
    /// Both stages, a stream table of two levels, commands for ranges, EL2; snoops.
    Plain,
    /// The same, but does not snoop.
    NonCoherent,
    /// Few streams, in a linear table; no commands for ranges; blocks are split while they are in use.
    Linear,
    /// The same, but does not snoop.
    LinearNonCoherent,
    /// Stage 1 only, and a command queue of four.
    Stage1,
    /// Stage 2 only, and a command queue of two.
    Stage2,
}

/// IDR3.BBML.
const BBML: u32 = 3 << 11;

impl UnitKind {
    pub(crate) fn snoops(self) -> Snoop {
        if matches!(self, Self::NonCoherent | Self::LinearNonCoherent) { Snoop::No } else { Snoop::Yes }
    }

    pub(crate) fn identification(self) -> Identification {
        let all = DeviceConfig::default().identification;
        let (idr0, idr3) = (all.idr0 | Idr0::HYP.bits(), all.idr3);
        let with = |idr0: u32, idr3: u32, streams: u32, commands: u32| Identification {
            idr0,
            idr1: all.idr1 & !(0x1f << 21 | 0x3f) | commands << 21 | streams,
            idr3,
            ..all
        };
        let snoops = Idr0::COHACC.bits();
        let without_ranges = idr3 & !Idr3::RIL.bits();
        let splits = without_ranges & !BBML | 2 << 11;
        match self {
            Self::Plain => with(idr0, idr3, 16, 8),
            Self::NonCoherent => with(idr0 & !snoops, idr3, 16, 8),
            Self::Linear => with(idr0 & !Idr0::ST_TWO_LEVEL.bits(), splits, 9, 8),
            Self::LinearNonCoherent => with(idr0 & !(Idr0::ST_TWO_LEVEL.bits() | snoops), splits, 9, 8),
            Self::Stage1 => with(idr0 & !(Idr0::S2P | Idr0::HYP).bits(), idr3, 16, 2),
            Self::Stage2 => with(idr0 & !(Idr0::S1P | Idr0::HYP).bits(), without_ranges, 16, 1),
        }
    }
}

const ALL: &[UnitKind] = &[
    UnitKind::Plain,
    UnitKind::NonCoherent,
    UnitKind::Linear,
    UnitKind::LinearNonCoherent,
    UnitKind::Stage1,
    UnitKind::Stage2,
];

const TWO: &[UnitKind] = &[UnitKind::Plain, UnitKind::NonCoherent];

const BOTH_STAGES: &[UnitKind] =
    &[UnitKind::Plain, UnitKind::NonCoherent, UnitKind::Linear, UnitKind::LinearNonCoherent];

pub(crate) const SCENARIOS: &[Scenario<SmmuUnit>] = &[
    Scenario { name: "bring-up", units: ALL, run: scenarios::bring_up },
    Scenario { name: "attach, replace, detach", units: ALL, run: scenarios::attach },
    Scenario { name: "attach to a new bus", units: ALL, run: scenarios::new_bus },
    Scenario { name: "map, use, unmap, reuse", units: ALL, run: scenarios::reuse },
    Scenario { name: "large pages and tables", units: ALL, run: scenarios::tables },
    Scenario { name: "protect", units: ALL, run: scenarios::protect },
    Scenario { name: "cut", units: &[UnitKind::Linear, UnitKind::LinearNonCoherent], run: scenarios::cut },
    Scenario { name: "identity", units: ALL, run: scenarios::identity },
    Scenario { name: "stages", units: BOTH_STAGES, run: scenarios::stages },
    Scenario { name: "second kernel", units: ALL, run: lives::second_kernel },
    Scenario { name: "second kernel without devices", units: ALL, run: lives::second_kernel_without_devices },
    Scenario { name: "device TLB", units: ALL, run: device_tlbs::device_tlb },
    Scenario { name: "a device TLB that does not answer", units: ALL, run: device_tlbs::device_tlb_deaf },
    Scenario { name: "shutdown and enable", units: ALL, run: lives::shutdown },
    Scenario { name: "suspend and resume", units: ALL, run: lives::suspend },
    Scenario { name: "teardown", units: ALL, run: lives::teardown },
    Scenario { name: "events", units: ALL, run: events },
    Scenario { name: "interrupts", units: &[UnitKind::Plain], run: interrupts },
    Scenario { name: "a refused command", units: TWO, run: queue::refused },
    Scenario { name: "a device that does not answer", units: &[UnitKind::Plain], run: queue::deaf },
    Scenario { name: "nobody waits", units: &[UnitKind::Plain], run: queue::dropped },
    Scenario { name: "substreams in one table", units: TWO, run: substreams::linear },
    Scenario { name: "substreams in small tables", units: TWO, run: substreams::small_tables },
    Scenario { name: "substreams in large tables", units: TWO, run: substreams::large_tables },
    Scenario { name: "registers alone", units: &[UnitKind::Plain], run: queue::stream_table },
    Scenario { name: "a predecessor's queue", units: &[UnitKind::Plain], run: queue::taken_over },
];

/// Messages are set again while the unit sends some.
fn interrupts(bench: &Bench) -> Verdict {
    let world = World::boot(bench)?;
    for data in 1..4 {
        world.iommu.set_fault_interrupt(Msi { address: PhysAddr::new(0x5000_0000), data })?;
    }
    drop(world);
    bench.verdict()
}

/// What was refused is told as it was.
fn events(bench: &Bench) -> Verdict {
    let world = World::boot(bench)?;
    let second = probe(&world.iommu, bench, SECOND)?;
    let domain = world.iommu.paging_domain(&[&second])?;
    map(&domain, 0x10_0000, 0x1000_0000, 0x1000)?;
    world.iommu.attach_device(&domain, &second)?;
    while world.iommu.handle_interrupt(InterruptKind::Fault) == FaultsLeft::Some {}
    while world.iommu.next_fault().is_some() {}
    for page in 1..6u64 {
        let address = 0x10_0000 + page * 0x1000;
        bench.once(SECOND, address, false, None)?;
        bench.watch_nothing();
        world.iommu.handle_interrupt(InterruptKind::Fault);
        let mut faults = std::iter::from_fn(|| world.iommu.next_fault()).peekable();
        if faults.peek().is_none() {
            return Err(Convicted("a refused request is not told".into()));
        }
        let is_right = |fault: &FaultRecord| {
            fault.source == SourceId::pci(0, SECOND)
                && fault.iova == Some(Iova::new(address))
                && fault.kind == FaultKind::Translation
        };
        if let Some(wrong) = faults.find(|fault| !is_right(fault)) {
            return Err(Convicted(format!("a refused request is told as {wrong}")));
        }
    }
    world.iommu.detach_device(&domain, &second)?;
    drop((domain, second, world));
    bench.verdict()
}
