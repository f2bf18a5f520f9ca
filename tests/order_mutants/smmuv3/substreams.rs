//! The context descriptors of a stream with substreams, without the rest of the driver.

use std::sync::atomic::{AtomicBool, Ordering};

use iommu::arch::smmuv3::driver::{CommandQueue, EntrySync, OneStream, SmmuRegisters};
use iommu::arch::smmuv3::layout::commands::{Command, Leaf};
use iommu::arch::smmuv3::layout::registers::Cr0;
use iommu::arch::smmuv3::layout::{Asid, Cd, Granule, Ste, StreamId, Vmid};
use iommu::bus::Snoop;
use iommu::pgtable::{Config, LPAE_MAIR, Lpae4K, LpaeStage, PageSizes, PageTable, TableList, WalkerCoherency};
use iommu::{Error, PhysAddr, Prot};

use super::Bench;
use super::queue::queue;
use crate::common::bench::{Convicted, Source, Unit, Verdict};
use crate::common::scenarios::range;

const AT: u64 = 0x10_0000;

/// Substreams whose CDs are side by side, and one that is far from them.
const NEAR: [u32; 2] = [1, 2];

/// A unit with one stream, number 0.
struct World<'a> {
    unit: &'a SmmuRegisters<Bench>,
    queue: &'a CommandQueue<Bench>,
    /// The next command is lost.
    fails: AtomicBool,
}

impl World<'_> {
    fn run(&self, command: Command) -> iommu::Result<()> {
        if self.fails.swap(false, Ordering::Relaxed) {
            return Err(Error::Fenced);
        }
        self.queue.run(self.unit, &[command])
    }
}

impl EntrySync for World<'_> {
    fn ste(&self, stream: StreamId, leaf: Leaf) -> iommu::Result<()> {
        self.run(Command::ConfigSte { stream, leaf })
    }

    fn cd(&self, stream: StreamId, substream: u32, leaf: Leaf) -> iommu::Result<()> {
        self.run(Command::ConfigCd { stream, substream, leaf })
    }
}

/// An address space in which a page is mapped, and the CD for it.
fn space(bench: &Bench, asid: u16, phys: u64) -> Verdict<(PageTable<Lpae4K, Bench>, Cd)> {
    let walker = coherency(bench);
    let format = Lpae4K::new(LpaeStage::One);
    let table = PageTable::new(bench.clone(), format, Config { walker, ..format.config(48, 48) })?;
    let mut stray = TableList::new();
    // SAFETY: one thread, and no device but what follows.
    unsafe { table.map(range(AT, 0x1000), PhysAddr::new(phys), Prot::RW, PageSizes::ALL, &mut stray) }
        .map_err(|failed| failed.error)?;
    let walk = table.lpae_walk();
    let cd = Cd::new(Asid(asid), table.root(), Granule::Size4K, table.input_bits(), 48)
        .with_walk_attributes(walk.cacheability, walk.shareability)
        .with_memory_attributes(LPAE_MAIR);
    Ok((table, cd))
}

fn coherency(bench: &Bench) -> WalkerCoherency {
    match bench.kind().snoops() {
        Snoop::No => WalkerCoherency::NeedsClean,
        Snoop::Yes => WalkerCoherency::Snoops,
    }
}

const fn of(substream: u32) -> Source {
    Source { requester: 0, pasid: Some(substream) }
}

/// In one table.
pub(crate) fn linear(bench: &Bench) -> Verdict {
    substreams(bench, 3, 5)
}

/// In second tables of 64 CDs.
pub(crate) fn small_tables(bench: &Bench) -> Verdict {
    substreams(bench, 12, 4000)
}

/// In second tables of 1024 CDs.
pub(crate) fn large_tables(bench: &Bench) -> Verdict {
    substreams(bench, 16, 60_000)
}

/// CDs come, change and go, the `far` one in a table of its own, if there are several, whose descriptor is in
/// another cache line.
fn substreams(bench: &Bench, bits: u8, far: u32) -> Verdict {
    let (unit, queue) = queue(bench)?;
    let world = World { unit: &unit, queue: &queue, fails: AtomicBool::new(false) };
    let tables = OneStream::with_substreams(bench.clone(), coherency(bench), bits)?;
    let (base, shape) = tables.stream_table();
    unit.set_stream_table(base, shape);
    unit.turn_on(Cr0::SMMUEN)?;
    bench.unit().switched();
    let spaces = [space(bench, 1, 0x1000_0000)?, space(bench, 2, 0x2000_0000)?, space(bench, 3, 0x3000_0000)?];
    let [(_, first), (_, second), (_, third)] = &spaces;
    let [one, two] = NEAR;
    // Nothing leads to it, then everything.
    bench.settled(of(one), AT, None)?;
    tables.fill(one, *first, &world)?;
    bench.watch(of(one), AT, &[None, Some(0x1000_0000)]);
    tables.replace(tables.stage1(), &world)?;
    bench.settled(of(one), AT, Some(0x1000_0000))?;
    for substream in [two, far] {
        // That there is none is cached.
        bench.settled(of(substream), AT, None)?;
        bench.watch(of(substream), AT, &[None, Some(0x2000_0000)]);
        tables.write(substream, *second, &world)?;
        bench.settled(of(substream), AT, Some(0x2000_0000))?;
        bench.watch(of(substream), AT, &[None, Some(0x2000_0000), Some(0x3000_0000)]);
        tables.write(substream, *third, &world)?;
        forget(&world, 2)?;
        bench.settled(of(substream), AT, Some(0x3000_0000))?;
        bench.watch(of(substream), AT, &[None, Some(0x3000_0000)]);
        tables.write(substream, Cd::default(), &world)?;
        forget(&world, 3)?;
        bench.settled(of(substream), AT, None)?;
    }
    // Another table under the same number is one store, of which the unit is not told. It may be seen until
    // somebody tells, and not afterwards.
    let moved = space(bench, 1, 0x2000_0000)?;
    bench.watch(of(one), AT, &[None, Some(0x1000_0000), Some(0x2000_0000)]);
    world.fails.store(true, Ordering::Relaxed);
    if tables.write(one, moved.1, &world) != Err(Error::Fenced) {
        return Err(Convicted("a failed invalidation is taken for done".into()));
    }
    queue.run(&unit, &[Command::ConfigAll])?;
    forget(&world, 1)?;
    bench.settled(of(one), AT, None)?;
    bench.watch_nothing();
    tables.replace(Ste::abort(), &world)?;
    unit.turn_off(Cr0::SMMUEN)?;
    bench.unit().switched();
    queue.stop(&unit)?;
    drop((tables, queue, unit));
    bench.verdict()
}

fn forget(world: &World<'_>, asid: u16) -> Verdict {
    Ok(world.run(Command::TlbNhAsid { vmid: Vmid(0), asid: Asid(asid) })?)
}
