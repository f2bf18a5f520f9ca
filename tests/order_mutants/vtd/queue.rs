//! The queue and the registers without the rest of the driver.

use iommu::PhysAddr;
use iommu::arch::vtd::driver::{Queue, QueueConfig, UnitRegisters};
use iommu::arch::vtd::layout::descriptors::{ContextScope, DeviceRange, Drain, IotlbScope, Request};
use iommu::arch::vtd::layout::registers::TableMode;
use iommu::arch::vtd::layout::{Descriptor, DomainId};
use iommu::hwmem::FrameTable;

use super::Bench;
use crate::common::bench::{BASE, Convicted, Unit, Verdict};

fn global() -> Descriptor {
    Request::Context(ContextScope::Global).encode()
}

fn whole_domain(id: u16) -> Descriptor {
    Request::Iotlb(IotlbScope::Domain(DomainId::new(id)), Drain::READS | Drain::WRITES).encode()
}

fn queue(bench: &Bench) -> Verdict<(UnitRegisters<Bench>, Queue<Bench>)> {
    let unit = UnitRegisters::map(bench.clone(), PhysAddr::new(BASE))?;
    let queue = Queue::new(bench.clone(), QueueConfig::default())?;
    queue.start(&unit)?;
    Ok((unit, queue))
}

pub(crate) fn refused(bench: &Bench) -> Verdict {
    let (unit, queue) = queue(bench)?;
    let nonsense = Descriptor { words: [0xf, 0, 0, 0] };
    for _round in 0..3 {
        let before = queue.submit(&unit, &[whole_domain(7)])?;
        let bad = queue.submit(&unit, &[global(), nonsense, global()])?;
        let after = queue.submit(&unit, &[whole_domain(8)])?;
        queue.wait(&unit, before)?;
        if queue.wait(&unit, bad).is_ok() {
            return Err(Convicted("a request that the unit refused is taken for done".into()));
        }
        queue.wait(&unit, after)?;
        queue.run(&unit, &[global()])?;
    }
    queue.stop(&unit)?;
    drop((queue, unit));
    bench.verdict()
}

pub(crate) fn deaf(bench: &Bench) -> Verdict {
    const DEAF: u16 = 0x40;
    const GOOD: u16 = 0x48;
    let (unit, queue) = queue(bench)?;
    bench.unit().devices().set_deaf(&[DEAF]);
    let device =
        |source| Request::DeviceTlb { source, physical_function: 0, max_pending: 0, range: DeviceRange::ALL }.encode();
    for _round in 0..3 {
        // Done by then, even if its status is still under way.
        let before = queue.submit(&unit, &[device(GOOD)])?;
        let bad = queue.submit(&unit, &[device(DEAF)])?;
        let after = queue.submit(&unit, &[whole_domain(8)])?;
        queue.wait(&unit, before)?;
        if queue.wait(&unit, bad).is_ok() {
            return Err(Convicted("a device that did not answer is taken for invalidated".into()));
        }
        queue.wait(&unit, after)?;
        queue.run(&unit, &[global()])?;
    }
    queue.stop(&unit)?;
    drop((queue, unit));
    bench.verdict()
}

pub(crate) fn taken_over(bench: &Bench) -> Verdict {
    let (before, old) = queue(bench)?;
    // Much under way.
    for _batch in 0..20 {
        let _ = old.submit(&before, &[global(), whole_domain(3)])?;
    }
    std::mem::forget((before, old));
    let (unit, queue) = queue(bench)?;
    queue.run(&unit, &[global()])?;
    // Given up with work in it, and started again.
    let _ = queue.submit(&unit, &[global(), Descriptor { words: [0xf, 0, 0, 0] }])?;
    queue.fence();
    queue.reset(&unit)?;
    queue.run(&unit, &[global()])?;
    queue.stop(&unit)?;
    drop((queue, unit));
    bench.verdict()
}

/// Nobody waits, and the memory is given back at once.
pub(crate) fn dropped(bench: &Bench) -> Verdict {
    let (unit, queue) = queue(bench)?;
    for id in 0..5 {
        let _ = queue.submit(&unit, &[whole_domain(id), global()])?;
    }
    queue.stop(&unit)?;
    drop((queue, unit));
    while bench.unit().step() {}
    bench.verdict()
}

/// What was written before the root table is told is seen when it is in force.
pub(crate) fn root_table(bench: &Bench) -> Verdict {
    let unit = UnitRegisters::map(bench.clone(), PhysAddr::new(BASE))?;
    let table = |entries: &[(usize, u64)]| -> Verdict<FrameTable<Bench>> {
        let table = FrameTable::new(bench.clone(), 0, PhysAddr::new(u64::MAX))?;
        for (index, value) in entries {
            table.view().entry(*index).store(*value);
        }
        Ok(table)
    };
    // 00:04.0 passes (VT-d 9.1, 9.3): pass-through, 48 bits.
    let context = table(&[(0x40, 1 | 2 << 2), (0x41, 2 | 1 << 8)])?;
    let root = table(&[(0, context.phys().as_u64() | 1)])?;
    unit.set_root_table(root.phys(), TableMode::Legacy)?;
    unit.enable_translation()?;
    bench.settled(0x20, 0x5000, Some(0x5000))?;
    bench.settled(0x28, 0x5000, None)?;
    bench.watch_nothing();
    unit.disable_translation()?;
    drop((root, context));
    bench.settled(0x20, 0x5000, Some(0x5000))
}
