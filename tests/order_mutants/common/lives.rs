//! How a kernel takes a unit over, and how it leaves it.

use iommu::Iommu;

use super::bench::{Bench, Convicted, FIRST, SECOND, Unit, Verdict};
use super::scenarios::{FAR, POLICY, RESERVED, World, map, unmap};

pub(crate) fn second_kernel<U: Unit>(bench: &Bench<U>) -> Verdict {
    const AT: u64 = 0x10_0000;
    let before = World::boot(bench)?;
    let domain = before.domain()?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    before.iommu.attach_device(&domain, &before.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    bench.settled(SECOND, AT, None)?;
    // It dies amid its work.
    std::mem::forget((before, domain));
    bench.unit().abandon();
    bench.watch(FIRST, AT, &[None, Some(0x1000_0000)]);
    bench.watch(FIRST, RESERVED, &[Some(RESERVED), None]);
    let world = World::prepare(bench)?;
    bench.unit().found()?;
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

pub(crate) fn second_kernel_without_devices<U: Unit>(bench: &Bench<U>) -> Verdict {
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
    U::init(&iommu)?;
    iommu.enable()?;
    bench.settled(FIRST, AT, None)?;
    bench.settled(FAR, AT, None)?;
    bench.watch_nothing();
    drop(iommu);
    bench.verdict()
}

pub(crate) fn shutdown<U: Unit>(bench: &Bench<U>) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let domain = world.domain()?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    world.iommu.attach_device(&domain, &world.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    bench.watch(FIRST, AT, &[Some(AT), Some(0x1000_0000)]);
    world.iommu.shutdown()?;
    // Nothing drains what was translated before.
    bench.unit().devices().land();
    bench.settled(FIRST, AT, Some(AT))?;
    // Nothing is invalidated while the unit is off.
    bench.watch_nothing();
    bench.unit().devices().land();
    unmap(&domain, AT, 0x1000)?;
    map(&domain, AT, 0x2000_0000, 0x1000)?;
    bench.watch(FIRST, AT, &[Some(AT), Some(0x2000_0000)]);
    world.iommu.enable()?;
    bench.unit().switched();
    bench.settled(FIRST, AT, Some(0x2000_0000))?;
    bench.watch_nothing();
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

pub(crate) fn suspend<U: Unit>(bench: &Bench<U>) -> Verdict {
    const AT: u64 = 0x10_0000;
    let world = World::boot(bench)?;
    let domain = world.domain()?;
    map(&domain, AT, 0x1000_0000, 0x1000)?;
    world.iommu.attach_device(&domain, &world.device)?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    let suspended = U::SUSPENDED.place(AT);
    bench.watch(FIRST, AT, &[suspended, Some(0x1000_0000)]);
    world.iommu.suspend()?;
    bench.unit().devices().land();
    bench.settled(FIRST, AT, suspended)?;
    bench.watch(FIRST, AT, &[suspended, Some(0x1000_0000)]);
    world.iommu.resume()?;
    bench.settled(FIRST, AT, Some(0x1000_0000))?;
    bench.watch_nothing();
    world.iommu.detach_device(&domain, &world.device)?;
    drop((domain, world));
    bench.verdict()
}

pub(crate) fn teardown<U: Unit>(bench: &Bench<U>) -> Verdict {
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
    bench.unit().switched();
    bench.settled(FIRST, AT, Some(AT))?;
    if bench.frames_in_use() != 0 {
        return Err(Convicted(format!("{} frames are lost", bench.frames_in_use())));
    }
    bench.watch_nothing();
    bench.verdict()
}
