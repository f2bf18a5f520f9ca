//! What a driver is asked to do, and what devices may reach meanwhile and afterwards.

use iommu::arch::vtd;
use iommu::arch::vtd::driver::{PreviousTables, VtdOptions};
use iommu::arch::vtd::layout::registers::{Global, PMEN_EPM, PMEN_PRS, offset};
use iommu::arch::vtd::layout::{Cap, Ecap};
use iommu::device::Trust;
use iommu::domain::{DirtyBitmap, DirtyRead, DirtyTracking, DomainOptions};
use iommu::ops::{DomainFeatures, Stage};
use iommu::pgtable::{AccessedDirty, Config, PageSize, PageSizes, PageTable, SecondStage, TableList, WalkerCoherency};
use iommu::{
    AtsPolicy, BootPolicy, Device, Domain, DomainKind, Iommu, Iova, IovaRange, PciAddress, PhysAddr, Policy, Prot,
};

use iommu_harness::observed::Reader;

use crate::bench::{ATS, BASE, Bench, Convicted, FIRST, SECOND, Verdict, WideStores};
use crate::queue;

/// A way of using the driver, and the units that it is for.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) units: &'static [UnitKind],
    pub(crate) run: fn(&Bench) -> Verdict,
}

/// What a unit can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UnitKind {
    /// Snoops, caches nothing that is absent.
    Plain,
    /// Does not snoop.
    NonCoherent,
    /// Caches what is absent.
    CachingMode,
    /// Has write buffers to be flushed, and does not snoop.
    WriteBuffers,
    /// Scalable mode, first and second stage, and a processor that stores 16 bytes at once.
    Scalable,
    /// The same without such stores.
    ScalableNarrow,
    /// Scalable mode that does not snoop.
    ScalableNonCoherent,
    /// Scalable mode that caches what is absent.
    ScalableCachingMode,
    /// Scalable mode with write buffers.
    ScalableWriteBuffers,
}

impl UnitKind {
    pub(crate) fn registers(self) -> (Cap, Ecap) {
        let cap = Cap::from_bits_retain(0x00d2_008c_222f_0606) | Cap::PLMR;
        let ecap = Ecap::from_bits_retain(0x00f0_0f00) | Ecap::C | Ecap::QI | Ecap::PT | Ecap::IR | Ecap::DT;
        let scalable = Ecap::SMTS | Ecap::SSTS | Ecap::FSTS | Ecap::SSADS | Ecap::PASID | Ecap::SC;
        match self {
            Self::Plain => (cap, ecap),
            Self::NonCoherent => (cap, ecap - Ecap::C),
            Self::CachingMode => (cap | Cap::CM, ecap),
            Self::WriteBuffers => (cap | Cap::RWBF, ecap - Ecap::C),
            Self::Scalable | Self::ScalableNarrow => (cap, ecap | scalable | Ecap::SMPWCS),
            Self::ScalableNonCoherent => (cap, (ecap | scalable) - Ecap::C),
            Self::ScalableCachingMode => (cap | Cap::CM, ecap | scalable | Ecap::SMPWCS),
            Self::ScalableWriteBuffers => (cap | Cap::RWBF, (ecap | scalable) - Ecap::C),
        }
    }

    pub(crate) fn wide_stores(self) -> WideStores {
        if self == Self::ScalableNarrow { WideStores::None } else { WideStores::Some }
    }
}

const ALL: &[UnitKind] = &[
    UnitKind::Plain,
    UnitKind::NonCoherent,
    UnitKind::CachingMode,
    UnitKind::WriteBuffers,
    UnitKind::Scalable,
    UnitKind::ScalableNarrow,
    UnitKind::ScalableNonCoherent,
    UnitKind::ScalableCachingMode,
    UnitKind::ScalableWriteBuffers,
];

const SCALABLE: &[UnitKind] = &[
    UnitKind::Scalable,
    UnitKind::ScalableNarrow,
    UnitKind::ScalableNonCoherent,
    UnitKind::ScalableCachingMode,
    UnitKind::ScalableWriteBuffers,
];

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "bring-up", units: ALL, run: bring_up },
    Scenario { name: "bring-up with protected memory", units: &[UnitKind::Plain], run: protected_memory },
    Scenario { name: "attach, replace, detach", units: ALL, run: attach },
    Scenario { name: "attach to a new bus", units: ALL, run: new_bus },
    Scenario { name: "map, use, unmap, reuse", units: ALL, run: reuse },
    Scenario { name: "large pages and tables", units: ALL, run: tables },
    Scenario { name: "protect", units: ALL, run: protect },
    Scenario { name: "cut", units: ALL, run: cut },
    Scenario { name: "identity", units: ALL, run: identity },
    Scenario { name: "second kernel", units: ALL, run: second_kernel },
    Scenario { name: "second kernel that copies", units: ALL, run: second_kernel_that_copies },
    Scenario { name: "second kernel without devices", units: ALL, run: second_kernel_without_devices },
    Scenario { name: "stages", units: SCALABLE, run: stages },
    Scenario { name: "dirty tracking", units: &[UnitKind::Scalable, UnitKind::ScalableNarrow], run: dirty },
    Scenario { name: "dirty pages of a table alone", units: &[UnitKind::NonCoherent], run: dirty_table },
    Scenario { name: "device TLB", units: ALL, run: device_tlb },
    Scenario { name: "device TLB, dirty pages", units: &[UnitKind::Scalable], run: device_tlb_dirty },
    Scenario { name: "a device TLB that does not answer", units: ALL, run: device_tlb_deaf },
    Scenario { name: "shutdown and enable", units: ALL, run: shutdown },
    Scenario { name: "suspend and resume", units: ALL, run: suspend },
    Scenario { name: "teardown", units: ALL, run: teardown },
    Scenario { name: "a refused request", units: &[UnitKind::Plain], run: queue::refused },
    Scenario { name: "a device that does not answer", units: &[UnitKind::Plain], run: queue::deaf },
    Scenario { name: "nobody waits", units: &[UnitKind::Plain], run: queue::dropped },
    Scenario { name: "registers alone", units: &[UnitKind::Plain], run: queue::root_table },
    Scenario { name: "a predecessor's queue", units: &[UnitKind::Plain], run: queue::taken_over },
];

const FAR: u16 = 0x8008;

/// Reserved by firmware for the first function.
const RESERVED: u64 = 0x7000_0000;
/// Device TLBs too.
const POLICY: Policy =
    Policy { ats: AtsPolicy::Trusted, boot: BootPolicy::Blocked, default_domain: DomainKind::Paging };

/// Where nothing is ever mapped.
const NOWHERE: u64 = 0x6666_0000;

/// One unit at `BASE` for all of segment 0, and a reserved page (VT-d 8.1, 8.3, 8.4).
fn dmar() -> Vec<u8> {
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"DMAR");
    (table[8], table[36]) = (1, 38);
    table.extend([0, 0, 16, 0, 1, 0, 0, 0]);
    table.extend(BASE.to_le_bytes());
    table.extend([1, 0, 32, 0, 0, 0, 0, 0]);
    table.extend(RESERVED.to_le_bytes());
    table.extend((RESERVED + 0xfff).to_le_bytes());
    table.extend([1, 8, 0, 0, 0, 0, 4, 0]);
    table[4] = table.len() as u8;
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    table
}

struct World {
    iommu: Iommu<Bench>,
    device: Device,
}

impl World {
    /// Up to before translation is enabled.
    fn prepare(bench: &Bench) -> Verdict<Self> {
        let iommu = Iommu::new(bench.clone(), POLICY)?;
        vtd::init(&iommu, &dmar())?;
        let device = probe(&iommu, bench, FIRST)?;
        Ok(Self { iommu, device })
    }

    fn boot(bench: &Bench) -> Verdict<Self> {
        let world = Self::prepare(bench)?;
        world.iommu.enable()?;
        // Firmware's page is reached whatever happens, and the rest is blocked.
        bench.settled(FIRST, RESERVED, Some(RESERVED))?;
        bench.settled(FIRST, NOWHERE, None)?;
        bench.watch_nothing();
        Ok(world)
    }

    fn domain(&self) -> Verdict<Domain> {
        Ok(self.iommu.paging_domain(&[&self.device])?)
    }
}

fn probe(iommu: &Iommu<Bench>, bench: &Bench, requester: u16) -> Verdict<Device> {
    Ok(iommu.probe_pci(bench, PciAddress::from_requester_id(0, requester), Trust::Trusted)?)
}

fn range(at: u64, bytes: u64) -> IovaRange {
    IovaRange::from_len(Iova::new(at), bytes).unwrap()
}

fn map(domain: &Domain, at: u64, phys: u64, bytes: u64) -> Verdict {
    // SAFETY: the memory is no real one.
    unsafe { domain.map(range(at, bytes), PhysAddr::new(phys), Prot::RW) }?;
    Ok(())
}

fn unmap(domain: &Domain, at: u64, bytes: u64) -> Verdict {
    // SAFETY: one thread.
    unsafe { domain.unmap_sync(range(at, bytes)) }?;
    Ok(())
}

fn bring_up(bench: &Bench) -> Verdict {
    bench.settled(FIRST, NOWHERE, Some(NOWHERE))?;
    bench.settled(FIRST, RESERVED, Some(RESERVED))?;
    bench.watch(FIRST, NOWHERE, &[Some(NOWHERE), None]);
    let world = World::prepare(bench)?;
    world.iommu.enable()?;
    bench.settled(FIRST, NOWHERE, None)?;
    bench.settled(FIRST, RESERVED, Some(RESERVED))?;
    bench.settled(SECOND, NOWHERE, None)?;
    // On a bus that nobody has heard of.
    bench.settled(FAR, NOWHERE, None)?;
    bench.watch_nothing();
    drop(world);
    bench.verdict()
}

fn protected_memory(bench: &Bench) -> Verdict {
    bench.unit().write(offset::PMEN, PMEN_EPM);
    while bench.unit().step() {}
    let world = World::prepare(bench)?;
    world.iommu.enable()?;
    let status = bench.unit().read(offset::PMEN);
    if status & PMEN_PRS != 0 {
        return Err(Convicted("memory is still protected after enable returned".into()));
    }
    drop(world);
    bench.verdict()
}

fn attach(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let (one, two) = (world.domain()?, world.domain()?);
    map(&one, AT, 0x1000_0000, 0x2000)?;
    map(&two, AT, 0x2000_0000, 0x2000)?;
    let group = world.device.group().unwrap();
    bench.settled(FIRST, AT, None)?;
    bench.watch(FIRST, AT, &[None, Some(0x1000_0000)]);
    world.iommu.attach_device(&one, &world.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    for _round in 0..2 {
        bench.watch(FIRST, AT, &[None, Some(0x1000_0000), Some(0x2000_0000)]);
        world.iommu.replace(&two, group)?;
        bench.settled(FIRST, AT, Some(0x2000_0000))?;
        bench.watch(FIRST, AT, &[None, Some(0x1000_0000), Some(0x2000_0000)]);
        world.iommu.replace(&one, group)?;
        bench.settled(FIRST, AT, Some(0x1000_0000))?;
    }
    bench.watch(FIRST, AT, &[None, Some(0x1000_0000)]);
    world.iommu.detach_device(&one, &world.device)?;
    bench.settled(FIRST, AT, None)?;
    bench.settled(FIRST, RESERVED, Some(RESERVED))?;
    bench.watch(FIRST, RESERVED, &[None, Some(RESERVED)]);
    bench.watch(FIRST, AT, &[None]);
    // The number of one domain goes to another.
    drop((one, two));
    let three = world.domain()?;
    map(&three, AT + 0x1000, 0x3000_0000, 0x1000)?;
    world.iommu.attach_device(&three, &world.device)?;
    bench.settled(FIRST, AT + 0x1000, Some(0x3000_0000))?;
    bench.settled(FIRST, AT, None)?;
    bench.watch(FIRST, AT + 0x1000, &[None, Some(0x3000_0000)]);
    world.iommu.detach_device(&three, &world.device)?;
    bench.settled(FIRST, AT + 0x1000, None)?;
    // Blocked for good.
    bench.watch(FIRST, RESERVED, &[None, Some(RESERVED)]);
    world.iommu.release_device(&world.device)?;
    bench.settled(FIRST, RESERVED, None)?;
    bench.watch_nothing();
    drop((three, world));
    bench.verdict()
}

fn new_bus(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    bench.settled(SECOND, AT, None)?;
    bench.watch(SECOND, AT, &[None]);
    let second = probe(&world.iommu, bench, SECOND)?;
    let domain = world.iommu.paging_domain(&[&second])?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    bench.settled(SECOND, AT, None)?;
    bench.watch(SECOND, AT, &[None, Some(0x1000_0000)]);
    world.iommu.attach_device(&domain, &second)?;
    bench.settled(SECOND, AT, Some(0x1000_0000))?;
    bench.watch_nothing();
    world.iommu.detach_device(&domain, &second)?;
    drop((domain, second, world));
    bench.verdict()
}

fn reuse(bench: &Bench) -> Verdict {
    // In the widest window, where maps take the short way.
    const AT: u64 = 0x10_0020_0000;
    let world = World::boot(bench)?;
    let domain = world.domain()?;
    world.iommu.attach_device(&domain, &world.device)?;
    for bytes in [0x1000, 0x3000, 0x1_0000] {
        for round in 0..3u64 {
            let phys = 0x1000_0000 * (round + 1);
            let last = bytes - 0x1000;
            for offset in [0, last] {
                bench.settled(FIRST, AT + offset, None)?;
                bench.watch(FIRST, AT + offset, &[None, Some(phys + offset)]);
            }
            map(&domain, AT, phys, bytes)?;
            for offset in [0, last] {
                bench.settled(FIRST, AT + offset, Some(phys + offset))?;
                bench.watch(FIRST, AT + offset, &[None, Some(phys + offset)]);
            }
            unmap(&domain, AT, bytes)?;
        }
        bench.settled(FIRST, AT, None)?;
        bench.watch_nothing();
    }
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

fn tables(bench: &Bench) -> Verdict {
    const LARGE: u64 = 0x4000_0000;
    const SIZE: u64 = 0x20_0000;
    let world = World::boot(bench)?;
    let domain = world.domain()?;
    world.iommu.attach_device(&domain, &world.device)?;
    // A large page alone, then two together.
    for bytes in [SIZE, 2 * SIZE] {
        let phys = 0x1_0000_0000;
        bench.settled(FIRST, LARGE + 0x5000, None)?;
        bench.watch(FIRST, LARGE + 0x5000, &[None, Some(phys + 0x5000)]);
        map(&domain, LARGE, phys, bytes)?;
        bench.settled(FIRST, LARGE + 0x5000, Some(phys + 0x5000))?;
        bench.watch(FIRST, LARGE + 0x5000, &[None, Some(phys + 0x5000)]);
        unmap(&domain, LARGE, bytes)?;
        bench.settled(FIRST, LARGE + 0x5000, None)?;
        bench.watch_nothing();
    }
    // A table full of small pages, which goes with them; prepared where there was none.
    let small =
        [(LARGE, 0x1_0000_1000, SIZE), (LARGE + 4 * SIZE, 0x1_4000_1000, 3 * SIZE), (LARGE, 0x1_8000_1000, SIZE)];
    for (at, phys, bytes) in small {
        bench.settled(FIRST, at, None)?;
        bench.watch(FIRST, at, &[None, Some(phys)]);
        map(&domain, at, phys, bytes)?;
        bench.settled(FIRST, at, Some(phys))?;
        bench.watch(FIRST, at, &[None, Some(phys)]);
        unmap(&domain, at, bytes)?;
        bench.settled(FIRST, at, None)?;
        bench.watch_nothing();
    }
    // Small pages, then a large one in the place of their table.
    for page in 0..3 {
        map(&domain, LARGE + page * 0x1000, 0x2_0000_1000, 0x1000)?;
        bench.settled(FIRST, LARGE + page * 0x1000, Some(0x2_0000_1000))?;
    }
    for page in 0..3 {
        bench.watch(FIRST, LARGE + page * 0x1000, &[None, Some(0x2_0000_1000)]);
        unmap(&domain, LARGE + page * 0x1000, 0x1000)?;
        bench.settled(FIRST, LARGE + page * 0x1000, None)?;
    }
    bench.watch(FIRST, LARGE, &[None, Some(0x2_4000_0000)]);
    bench.watch(FIRST, LARGE + 0x1000, &[None, Some(0x2_4000_1000)]);
    bench.watch(FIRST, LARGE + 0x2000, &[None, Some(0x2_4000_2000)]);
    map(&domain, LARGE, 0x2_4000_0000, SIZE)?;
    bench.settled(FIRST, LARGE, Some(0x2_4000_0000))?;
    bench.settled(FIRST, LARGE + 0x2000, Some(0x2_4000_2000))?;
    // Where something is in the way nothing is left of what was mapped before it.
    bench.watch(FIRST, LARGE - 0x1000, &[None, Some(0x3_0000_0000)]);
    if map(&domain, LARGE - 0x1000, 0x3_0000_0000, 0x2000).is_ok() {
        return Err(Convicted("mapped over a page".into()));
    }
    bench.settled(FIRST, LARGE - 0x1000, None)?;
    bench.watch_nothing();
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

fn protect(bench: &Bench) -> Verdict {
    const AT: u64 = 0x30_0000;
    let world = World::boot(bench)?;
    let domain = world.domain()?;
    map(&domain, AT, 0x1000_0000, 0x4000)?;
    world.iommu.attach_device(&domain, &world.device)?;
    for page in [AT, AT + 0x3000] {
        let phys = page - AT + 0x1000_0000;
        bench.settled_access(FIRST, page, true, Some(phys))?;
        bench.settled(FIRST, page, Some(phys))?;
        bench.watch_access(FIRST, page, true, &[None, Some(phys)]);
    }
    // SAFETY: one thread.
    unsafe { domain.protect(range(AT, 0x4000), Prot::READ) }?;
    bench.settled_access(FIRST, AT, true, None)?;
    bench.settled_access(FIRST, AT + 0x3000, true, None)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    bench.watch_access(FIRST, AT, true, &[None, Some(0x1000_0000)]);
    bench.watch_access(FIRST, AT + 0x3000, true, &[None, Some(0x1000_3000)]);
    // SAFETY: as above.
    unsafe { domain.protect(range(AT, 0x4000), Prot::RW) }?;
    bench.settled_access(FIRST, AT, true, Some(0x1000_0000))?;
    bench.watch_nothing();
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

fn cut(bench: &Bench) -> Verdict {
    const AT: u64 = 0x8000_0000;
    const HALF: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let domain = world.domain()?;
    for bytes in [0x20_0000, 0x4000_0000] {
        map(&domain, AT, 0x4_0000_0000, bytes)?;
        world.iommu.attach_device(&domain, &world.device)?;
        for offset in [0, HALF, 0x1f_f000] {
            // Never anything else, while the page is split.
            bench.settled(FIRST, AT + offset, Some(0x4_0000_0000 + offset))?;
        }
        // SAFETY: one thread.
        unsafe { domain.cut(range(AT, HALF)) }?;
        for offset in [0, HALF, 0x1f_f000] {
            bench.settled(FIRST, AT + offset, Some(0x4_0000_0000 + offset))?;
        }
        bench.watch(FIRST, AT, &[None, Some(0x4_0000_0000)]);
        unmap(&domain, AT, HALF)?;
        bench.settled(FIRST, AT, None)?;
        bench.settled(FIRST, AT + HALF, Some(0x4_0000_0000 + HALF))?;
        bench.watch_nothing();
        unmap(&domain, AT, bytes)?;
        bench.settled(FIRST, AT + HALF, None)?;
        bench.watch_nothing();
        world.iommu.detach_device(&domain, &world.device)?;
    }
    drop((domain, world));
    bench.verdict()
}

fn identity(bench: &Bench) -> Verdict {
    let world = World::boot(bench)?;
    let group = world.device.group().unwrap();
    let domain = world.domain()?;
    map(&domain, 0x10_0000, 0x1000_0000, 0x1000)?;
    for _round in 0..2 {
        bench.watch(FIRST, 0x10_0000, &[None, Some(0x10_0000), Some(0x1000_0000)]);
        world.iommu.replace(world.iommu.identity_domain(), group)?;
        bench.settled(FIRST, 0x10_0000, Some(0x10_0000))?;
        bench.watch(FIRST, 0x10_0000, &[None, Some(0x10_0000), Some(0x1000_0000)]);
        world.iommu.replace(&domain, group)?;
        bench.settled(FIRST, 0x10_0000, Some(0x1000_0000))?;
    }
    bench.watch_nothing();
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

fn second_kernel(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let before = World::boot(bench)?;
    let domain = before.domain()?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    before.iommu.attach_device(&domain, &before.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    bench.settled(SECOND, AT, None)?;
    // It dies amid its work.
    std::mem::forget((before, domain));
    bench.unit().write(offset::GCMD, (Global::TE | Global::QIE | Global::IRE).bits());
    while bench.unit().step() {}
    bench.watch(FIRST, AT, &[None, Some(0x1000_0000)]);
    bench.watch(FIRST, RESERVED, &[Some(RESERVED), None]);
    let world = World::prepare(bench)?;
    let status = Global::from_bits_retain(bench.unit().read(offset::GSTS));
    if status.contains(Global::IRE) {
        return Err(Convicted("interrupts are still remapped".into()));
    }
    world.iommu.enable()?;
    bench.settled(FIRST, AT, None)?;
    bench.settled(FIRST, RESERVED, Some(RESERVED))?;
    bench.watch(FIRST, RESERVED, &[None, Some(RESERVED)]);
    // With the number that the other kernel's domain had.
    let domain = world.domain()?;
    map(&domain, AT + 0x1000, 0x2000_0000, 0x1000)?;
    world.iommu.attach_device(&domain, &world.device)?;
    bench.settled(FIRST, AT, None)?;
    bench.settled(FIRST, AT + 0x1000, Some(0x2000_0000))?;
    bench.watch_nothing();
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

fn shutdown(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let domain = world.domain()?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    world.iommu.attach_device(&domain, &world.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    bench.watch(FIRST, AT, &[Some(AT), Some(0x1000_0000)]);
    world.iommu.shutdown()?;
    // Nothing drains what was translated before.
    bench.unit().land();
    bench.settled(FIRST, AT, Some(AT))?;
    // Nothing is invalidated while the unit is off.
    bench.watch_nothing();
    bench.unit().land();
    unmap(&domain, AT, 0x1000)?;
    map(&domain, AT, 0x2000_0000, 0x1000)?;
    bench.watch(FIRST, AT, &[Some(AT), Some(0x2000_0000)]);
    world.iommu.enable()?;
    bench.settled(FIRST, AT, Some(0x2000_0000))?;
    bench.watch_nothing();
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

fn suspend(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let domain = world.domain()?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    world.iommu.attach_device(&domain, &world.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    bench.watch(FIRST, AT, &[Some(AT), Some(0x1000_0000)]);
    world.iommu.suspend()?;
    bench.unit().land();
    bench.settled(FIRST, AT, Some(AT))?;
    bench.watch(FIRST, AT, &[Some(AT), Some(0x1000_0000)]);
    world.iommu.resume()?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    bench.watch_nothing();
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

fn teardown(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let domain = world.domain()?;
    map(&domain, AT, 0x1000_0000, 0x20_0000)?;
    world.iommu.attach_device(&domain, &world.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    bench.watch(FIRST, AT, &[None, Some(0x1000_0000)]);
    let World { iommu, device } = world;
    iommu.detach_device(&domain, &device)?;
    drop((domain, device));
    bench.settled(FIRST, AT, None)?;
    // Without translation, and without any table.
    bench.watch(FIRST, AT, &[None, Some(AT)]);
    drop(iommu);
    bench.settled(FIRST, AT, Some(AT))?;
    if bench.frames_in_use() != 0 {
        return Err(Convicted(format!("{} frames are lost", bench.frames_in_use())));
    }
    bench.watch_nothing();
    bench.verdict()
}

fn second_kernel_that_copies(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let before = World::boot(bench)?;
    let domain = before.domain()?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    before.iommu.attach_device(&domain, &before.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    std::mem::forget((before, domain));
    bench.watch(FIRST, AT, &[None, Some(0x1000_0000)]);
    let read = |phys: PhysAddr| bench.quadword(phys);
    let options = VtdOptions { previous: PreviousTables::CopyUntilClaimed(&read), ..VtdOptions::default() };
    let iommu = Iommu::new(bench.clone(), POLICY)?;
    vtd::driver::init_with(&iommu, &dmar(), options)?;
    iommu.enable()?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    // Until the device is somebody's.
    bench.watch(FIRST, AT, &[None, Some(0x1000_0000)]);
    let device = probe(&iommu, bench, FIRST)?;
    bench.settled(FIRST, AT, None)?;
    bench.settled(FIRST, RESERVED, Some(RESERVED))?;
    bench.watch_nothing();
    iommu.release_device(&device)?;
    drop((device, iommu));
    bench.verdict()
}

fn second_kernel_without_devices(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let before = World::boot(bench)?;
    let domain = before.domain()?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    before.iommu.attach_device(&domain, &before.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    std::mem::forget((before, domain));
    bench.watch(FIRST, AT, &[None, Some(0x1000_0000)]);
    bench.watch(FAR, AT, &[None]);
    let iommu = Iommu::new(bench.clone(), POLICY)?;
    vtd::init(&iommu, &dmar())?;
    iommu.enable()?;
    bench.settled(FIRST, AT, None)?;
    bench.settled(FAR, AT, None)?;
    bench.watch_nothing();
    drop(iommu);
    bench.verdict()
}

/// Between domains of both stages and identity, of which the old one goes at once.
fn stages(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let group = world.device.group().unwrap();
    let mut old = None;
    let mut before = None;
    // Each kind after each.
    let kinds = [
        Some(Stage::First),
        Some(Stage::Second),
        None,
        Some(Stage::First),
        Some(Stage::First),
        None,
        Some(Stage::Second),
        Some(Stage::Second),
        Some(Stage::First),
    ];
    for (index, stage) in kinds.into_iter().enumerate() {
        let phys = 0x1000_0000 * (index as u64 + 1);
        let (domain, place) = match stage {
            Some(stage) => {
                let options = DomainOptions { stage: Some(stage), ..DomainOptions::default() };
                let domain = world.iommu.paging_domain_with(&[&world.device], options)?;
                map(&domain, AT, phys, 0x2000)?;
                (domain, phys)
            }
            None => (world.iommu.identity_domain().clone(), AT),
        };
        bench.watch(FIRST, AT, &[None, before, Some(place)]);
        world.iommu.replace(&domain, group)?;
        bench.settled(FIRST, AT, Some(place))?;
        drop(old.take());
        bench.settled(FIRST, AT, Some(place))?;
        if stage.is_some() {
            bench.settled(FIRST, AT + 0x1000, Some(place + 0x1000))?;
            bench.watch(FIRST, AT + 0x1000, &[None, Some(place + 0x1000)]);
            unmap(&domain, AT + 0x1000, 0x1000)?;
            bench.settled(FIRST, AT + 0x1000, None)?;
        }
        (before, old) = (Some(place), Some(domain));
        bench.watch_nothing();
    }
    bench.watch_nothing();
    world.iommu.release_device(&world.device)?;
    drop((old, world));
    bench.verdict()
}

fn dirty(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let features = DomainFeatures::DIRTY_TRACKING;
    let domain =
        world.iommu.paging_domain_with(&[&world.device], DomainOptions { features, ..DomainOptions::default() })?;
    map(&domain, AT, 0x1000_0000, 0x4000)?;
    world.iommu.attach_device(&domain, &world.device)?;
    let write = |page: u64| bench.settled_access(FIRST, AT + page, true, Some(0x1000_0000 + page));
    let read = |expected: u64, what: &str| {
        let mut words = [0];
        let mut bitmap = DirtyBitmap::new(&mut words, Iova::new(AT), PageSize::SIZE_4K)?;
        domain.read_and_clear_dirty(range(AT, 0x4000), DirtyRead::Clear, &mut bitmap)?;
        if words[0] != expected {
            return Err(Convicted(format!("{what}: pages {:#b} are said to be dirty, not {expected:#b}", words[0])));
        }
        Ok(())
    };
    // Cached without a record, also while it is turned on.
    write(0)?;
    domain.set_dirty_tracking(DirtyTracking::On)?;
    bench.once(FIRST, AT, true, Some(0x1000_0000))?;
    bench.watch_nothing();
    read(0b1, "at once after the record was turned on")?;
    write(0)?;
    write(0x2000)?;
    bench.watch_nothing();
    read(0b101, "after the record was turned on")?;
    // Cached as recorded.
    write(0x2000)?;
    bench.watch_nothing();
    read(0b100, "after the record was cleared")?;
    read(0, "after it was cleared, and nothing was written")?;
    domain.set_dirty_tracking(DirtyTracking::Off)?;
    write(0)?;
    bench.watch_nothing();
    domain.set_dirty_tracking(DirtyTracking::On)?;
    read(0, "after it was turned on again")?;
    write(0)?;
    bench.watch_nothing();
    read(1, "after a write")?;
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

fn device_tlb(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let device = probe(&world.iommu, bench, ATS)?;
    let group = device.group().unwrap();
    let (one, two) = (world.iommu.paging_domain(&[&device])?, world.iommu.paging_domain(&[&device])?);
    map(&one, AT, 0x1000_0000, 0x3000)?;
    map(&two, AT, 0x2000_0000, 0x3000)?;
    world.iommu.attach_device(&one, &device)?;
    bench.settled(ATS, AT, Some(0x1000_0000))?;
    // Both caches have it.
    bench.settled(ATS, AT + 0x2000, Some(0x1000_2000))?;
    bench.watch(ATS, AT + 0x2000, &[None, Some(0x1000_2000)]);
    unmap(&one, AT + 0x2000, 0x1000)?;
    bench.settled(ATS, AT + 0x2000, None)?;
    bench.watch_nothing();
    let identity = world.iommu.identity_domain();
    let places = [(&two, 0x2000_0000), (identity, AT), (&one, 0x1000_0000), (&two, 0x2000_0000), (identity, AT)];
    let mut before = 0x1000_0000;
    for (domain, place) in places {
        bench.settled(ATS, AT, Some(before))?;
        bench.watch(ATS, AT, &[None, Some(before), Some(place)]);
        world.iommu.replace(domain, group)?;
        bench.settled(ATS, AT, Some(place))?;
        before = place;
    }
    bench.watch(ATS, AT, &[None, Some(before)]);
    world.iommu.detach_group(identity, group)?;
    bench.settled(ATS, AT, None)?;
    bench.watch_nothing();
    world.iommu.release_device(&device)?;
    drop((one, two, device, world));
    bench.verdict()
}

fn device_tlb_dirty(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let device = probe(&world.iommu, bench, ATS)?;
    let features = DomainFeatures::DIRTY_TRACKING;
    let domain = world.iommu.paging_domain_with(&[&device], DomainOptions { features, ..DomainOptions::default() })?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    world.iommu.attach_device(&domain, &device)?;
    bench.settled_access(ATS, AT, true, Some(0x1000_0000))?;
    domain.set_dirty_tracking(DirtyTracking::On)?;
    for _round in 0..2 {
        bench.once(ATS, AT, true, Some(0x1000_0000))?;
        bench.watch_nothing();
        let mut words = [0];
        let mut bitmap = DirtyBitmap::new(&mut words, Iova::new(AT), PageSize::SIZE_4K)?;
        domain.read_and_clear_dirty(range(AT, 0x1000), DirtyRead::Clear, &mut bitmap)?;
        if words != [1] {
            return Err(Convicted("a write of a device with a TLB was not recorded".into()));
        }
    }
    world.iommu.detach_device(&domain, &device)?;
    drop((domain, device, world));
    bench.verdict()
}

fn device_tlb_deaf(bench: &Bench) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let device = probe(&world.iommu, bench, ATS)?;
    let (domain, other) = (world.iommu.paging_domain(&[&device])?, world.domain()?);
    map(&domain, AT, 0x1000_0000, 0x2000)?;
    map(&other, AT, 0x2000_0000, 0x2000)?;
    world.iommu.attach_device(&domain, &device)?;
    world.iommu.attach_device(&other, &world.device)?;
    bench.settled(ATS, AT, Some(0x1000_0000))?;
    bench.settled(FIRST, AT, Some(0x2000_0000))?;
    bench.settled(FIRST, AT + 0x1000, Some(0x2000_1000))?;
    bench.watch(ATS, AT, &[None, Some(0x1000_0000)]);
    bench.watch(FIRST, AT + 0x1000, &[None, Some(0x2000_1000)]);
    bench.unit().set_deaf(&[ATS]);
    if unmap(&domain, AT, 0x1000).is_ok() {
        return Err(Convicted("a device that did not answer is taken for invalidated".into()));
    }
    // Blocked, whatever its TLB holds; others go on.
    bench.unit().land();
    bench.settled(ATS, AT, None)?;
    bench.settled(FIRST, AT, Some(0x2000_0000))?;
    unmap(&other, AT + 0x1000, 0x1000)?;
    bench.settled(FIRST, AT + 0x1000, None)?;
    bench.watch_nothing();
    world.iommu.detach_device(&other, &world.device)?;
    drop((domain, other, device, world));
    bench.verdict()
}

/// Hardware that sets dirty bits without snooping: what it finds cleared it sets again.
fn dirty_table(bench: &Bench) -> Verdict {
    const DIRTY: u64 = 1 << 9;
    let config = Config { walker: WalkerCoherency::NeedsClean, ..Config::new::<SecondStage>(3) };
    let table = PageTable::new(bench.clone(), SecondStage { accessed_dirty: AccessedDirty::Hardware }, config)?;
    let page = range(0x5000, 0x1000);
    let mut stray = TableList::new();
    // SAFETY: one thread, and no device but what follows.
    unsafe { table.map(page, PhysAddr::new(0x1000_0000), Prot::RW, PageSizes::ALL, &mut stray) }
        .map_err(|failed| failed.error)?;
    let read = |at| bench.memory().read(PhysAddr::new(at), Reader::ReadsMemory).unwrap();
    let address = |entry: u64| entry & 0x000f_ffff_ffff_f000;
    let leaf = address(read(address(read(table.root().as_u64())))) + 5 * 8;
    for _round in 0..2 {
        let clean = read(leaf);
        if clean & DIRTY != 0 {
            return Err(Convicted("a page that was read is dirty still: hardware would not record a write".into()));
        }
        if bench.memory().compare_exchange(PhysAddr::new(leaf), clean, clean | DIRTY) != Some(true) {
            return Err(Convicted("memory and caches differ".into()));
        }
        let mut dirty = 0;
        table.read_dirty(page, DirtyRead::Clear, &mut |_| dirty += 1)?;
        if dirty != 1 {
            return Err(Convicted("a write is lost".into()));
        }
    }
    drop(table);
    bench.verdict()
}
