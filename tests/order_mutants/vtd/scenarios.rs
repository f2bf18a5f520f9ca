//! What units there are, and what is asked of the VT-d driver.

use iommu::Iommu;
use iommu::Iova;
use iommu::PhysAddr;
use iommu::Prot;
use iommu::arch::vtd;
use iommu::arch::vtd::driver::{PreviousTables, VtdOptions};
use iommu::arch::vtd::layout::registers::{PMEN_EPM, PMEN_PRS, offset};
use iommu::arch::vtd::layout::{Cap, Ecap};
use iommu::domain::{DirtyBitmap, DirtyRead, DirtyTracking, DomainOptions};
use iommu::ops::DomainFeatures;
use iommu::pgtable::{AccessedDirty, Config, PageSize, PageSizes, PageTable, SecondStage, TableList, WalkerCoherency};
use iommu_harness::observed::Reader;

use super::{Bench, VtdUnit, queue};
use crate::common::bench::{ATS, BASE, Convicted, FIRST, Unit, Verdict, WideStores};
use crate::common::runner::Scenario;
use crate::common::scenarios::{POLICY, RESERVED, World, map, probe, range};
use crate::common::{device_tlbs, lives, scenarios};

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

pub(crate) const SCENARIOS: &[Scenario<VtdUnit>] = &[
    Scenario { name: "bring-up", units: ALL, run: scenarios::bring_up },
    Scenario { name: "bring-up with protected memory", units: &[UnitKind::Plain], run: protected_memory },
    Scenario { name: "attach, replace, detach", units: ALL, run: scenarios::attach },
    Scenario { name: "attach to a new bus", units: ALL, run: scenarios::new_bus },
    Scenario { name: "map, use, unmap, reuse", units: ALL, run: scenarios::reuse },
    Scenario { name: "large pages and tables", units: ALL, run: scenarios::tables },
    Scenario { name: "protect", units: ALL, run: scenarios::protect },
    Scenario { name: "cut", units: ALL, run: scenarios::cut },
    Scenario { name: "identity", units: ALL, run: scenarios::identity },
    Scenario { name: "second kernel", units: ALL, run: lives::second_kernel },
    Scenario { name: "second kernel that copies", units: ALL, run: second_kernel_that_copies },
    Scenario { name: "second kernel without devices", units: ALL, run: lives::second_kernel_without_devices },
    Scenario { name: "stages", units: SCALABLE, run: scenarios::stages },
    Scenario { name: "dirty tracking", units: &[UnitKind::Scalable, UnitKind::ScalableNarrow], run: dirty },
    Scenario { name: "dirty pages of a table alone", units: &[UnitKind::NonCoherent], run: dirty_table },
    Scenario { name: "device TLB", units: ALL, run: device_tlbs::device_tlb },
    Scenario { name: "device TLB, dirty pages", units: &[UnitKind::Scalable], run: device_tlb_dirty },
    Scenario { name: "a device TLB that does not answer", units: ALL, run: device_tlbs::device_tlb_deaf },
    Scenario { name: "shutdown and enable", units: ALL, run: lives::shutdown },
    Scenario { name: "suspend and resume", units: ALL, run: lives::suspend },
    Scenario { name: "teardown", units: ALL, run: lives::teardown },
    Scenario { name: "a refused request", units: &[UnitKind::Plain], run: queue::refused },
    Scenario { name: "a device that does not answer", units: &[UnitKind::Plain], run: queue::deaf },
    Scenario { name: "nobody waits", units: &[UnitKind::Plain], run: queue::dropped },
    Scenario { name: "registers alone", units: &[UnitKind::Plain], run: queue::root_table },
    Scenario { name: "a predecessor's queue", units: &[UnitKind::Plain], run: queue::taken_over },
];

/// One unit at `BASE` for all of segment 0, and a reserved page (VT-d 8.1, 8.3, 8.4).
pub(super) fn dmar() -> Vec<u8> {
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
