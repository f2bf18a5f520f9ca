//! The queue and the registers without the rest of the driver.

use iommu::PhysAddr;
use iommu::arch::smmuv3::driver::{CommandQueue, QueueConfig, RegisterPages, SmmuRegisters};
use iommu::arch::smmuv3::layout::commands::{Command, Leaf, TlbRange};
use iommu::arch::smmuv3::layout::registers::{Cr0, Cr1, Cr2, StreamTableFormat, StrtabBase, StrtabBaseCfg};
use iommu::arch::smmuv3::layout::{Granule, Ste, StreamId, Vmid};
use iommu::bus::Snoop;
use iommu::hwmem::FrameTable;
use iommu::pgtable::WalkerCoherency;

use super::Bench;
use crate::common::bench::{BASE, Convicted, Unit, Verdict};

fn whole_domain(id: u16) -> Command {
    Command::TlbNhAll { vmid: Vmid(id) }
}

/// Illegal: a granule without a level or a range is reserved (4.4.1.1).
fn nonsense() -> Command {
    let range = TlbRange { granule: Some(Granule::Size4K), ..TlbRange::page(0x1000) };
    Command::TlbNhVaa { vmid: Vmid(1), range, leaf: Leaf::Only }
}

fn registers(bench: &Bench) -> Verdict<SmmuRegisters<Bench>> {
    Ok(SmmuRegisters::map(bench.clone(), PhysAddr::new(BASE), RegisterPages::Two)?)
}

pub(super) fn queue(bench: &Bench) -> Verdict<(SmmuRegisters<Bench>, CommandQueue<Bench>)> {
    let unit = registers(bench)?;
    let (coherency, attributes) = match bench.kind().snoops() {
        Snoop::No => (WalkerCoherency::NeedsClean, Cr1::NON_CACHEABLE),
        Snoop::Yes => (WalkerCoherency::Snoops, Cr1::SNOOPING),
    };
    unit.turn_off(Cr0::SMMUEN | Cr0::CMDQEN)?;
    unit.set_attributes(attributes, Cr2::RECINVSID);
    let queue = CommandQueue::new(bench.clone(), QueueConfig { log2_entries: 3, coherency, ..QueueConfig::default() })?;
    queue.start(&unit)?;
    Ok((unit, queue))
}

pub(crate) fn refused(bench: &Bench) -> Verdict {
    let (unit, queue) = queue(bench)?;
    for _round in 0..3 {
        let before = queue.submit(&unit, &[whole_domain(7)])?;
        let bad = queue.submit(&unit, &[Command::ConfigAll, nonsense(), Command::ConfigAll])?;
        let after = queue.submit(&unit, &[whole_domain(8)])?;
        queue.wait(&unit, before)?;
        if queue.wait(&unit, bad).is_ok() {
            return Err(Convicted("a command that the unit refused is taken for done".into()));
        }
        queue.wait(&unit, after)?;
        queue.run(&unit, &[Command::ConfigAll])?;
    }
    queue.stop(&unit)?;
    drop((queue, unit));
    bench.verdict()
}

pub(crate) fn deaf(bench: &Bench) -> Verdict {
    const DEAF: u16 = 0x40;
    const GOOD: u16 = 0x48;
    let (unit, queue) = queue(bench)?;
    // Nothing is asked of devices while nothing is translated (4.5.1).
    let table: FrameTable<Bench> = FrameTable::new(bench.clone(), 0, PhysAddr::new(u64::MAX))?;
    unit.set_stream_table(StrtabBase::new(table.phys()), StrtabBaseCfg::new(StreamTableFormat::Linear, 6));
    unit.turn_on(Cr0::SMMUEN)?;
    bench.unit().devices().set_deaf(&[DEAF]);
    let device = |source: u16| Command::AtcInvalidate {
        stream: StreamId(source.into()),
        substream: None,
        address: 0,
        size_log2: 64,
    };
    for _round in 0..3 {
        let before = queue.submit(&unit, &[device(GOOD)])?;
        let bad = queue.submit(&unit, &[device(DEAF)])?;
        let after = queue.submit(&unit, &[whole_domain(8)])?;
        queue.wait(&unit, before)?;
        if queue.wait(&unit, bad).is_ok() {
            return Err(Convicted("a device that did not answer is taken for invalidated".into()));
        }
        if queue.take_silent_devices().into_iter().collect::<Vec<_>>() != [StreamId(DEAF.into())] {
            return Err(Convicted("not the device that did not answer".into()));
        }
        queue.wait(&unit, after)?;
        queue.run(&unit, &[Command::ConfigAll])?;
    }
    unit.turn_off(Cr0::SMMUEN)?;
    queue.stop(&unit)?;
    drop((table, queue, unit));
    bench.verdict()
}

pub(crate) fn taken_over(bench: &Bench) -> Verdict {
    let (before, old) = queue(bench)?;
    // Much under way.
    for _batch in 0..20 {
        let _ = old.submit(&before, &[Command::ConfigAll, whole_domain(3)])?;
    }
    std::mem::forget((before, old));
    let (unit, queue) = queue(bench)?;
    queue.run(&unit, &[Command::ConfigAll])?;
    // Given up with work in it, and started again.
    let lost = queue.submit(&unit, &[Command::ConfigAll, nonsense()])?;
    queue.fence();
    queue.reset(&unit)?;
    queue.run(&unit, &[Command::ConfigAll])?;
    if queue.wait(&unit, lost).is_ok() {
        return Err(Convicted("what was given up is taken for done".into()));
    }
    queue.stop(&unit)?;
    drop((queue, unit));
    bench.verdict()
}

/// Nobody waits before the queue is off, and the memory is given back at once.
pub(crate) fn dropped(bench: &Bench) -> Verdict {
    let (unit, queue) = queue(bench)?;
    let mut last = None;
    for id in 0..5 {
        last = Some(queue.submit(&unit, &[whole_domain(id), Command::ConfigAll])?);
    }
    queue.stop(&unit)?;
    if let Some(last) = last {
        queue.wait(&unit, last)?;
    }
    drop((queue, unit));
    while bench.unit().step() {}
    bench.verdict()
}

/// What was written before translation is on is seen when it is in force.
pub(crate) fn stream_table(bench: &Bench) -> Verdict {
    let unit = registers(bench)?;
    let table: FrameTable<Bench> = FrameTable::new(bench.clone(), 0, PhysAddr::new(u64::MAX))?;
    for (index, word) in Ste::bypass().words.into_iter().enumerate() {
        table.view().entry(0x20 * 8 + index).store(word);
    }
    unit.set_attributes(Cr1::SNOOPING, Cr2::RECINVSID);
    unit.set_stream_table(StrtabBase::new(table.phys()), StrtabBaseCfg::new(StreamTableFormat::Linear, 6));
    unit.turn_on(Cr0::SMMUEN)?;
    bench.settled(0x20, 0x5000, Some(0x5000))?;
    bench.settled(0x28, 0x5000, None)?;
    bench.watch_nothing();
    unit.turn_off(Cr0::SMMUEN)?;
    bench.unit().switched();
    drop(table);
    bench.settled(0x20, 0x5000, Some(0x5000))
}
