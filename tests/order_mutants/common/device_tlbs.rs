//! Devices with TLBs of their own.

use super::bench::{ATS, Bench, Convicted, FIRST, Unit, Verdict};
use super::scenarios::{World, map, probe, unmap};

pub(crate) fn device_tlb<U: Unit>(bench: &Bench<U>) -> Verdict {
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

pub(crate) fn device_tlb_deaf<U: Unit>(bench: &Bench<U>) -> Verdict {
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
    bench.unit().devices().set_deaf(&[ATS]);
    if unmap(&domain, AT, 0x1000).is_ok() {
        return Err(Convicted("a device that did not answer is taken for invalidated".into()));
    }
    // Blocked, whatever its TLB holds; others go on.
    bench.unit().devices().land();
    bench.settled(ATS, AT, None)?;
    bench.settled(FIRST, AT, Some(0x2000_0000))?;
    unmap(&other, AT + 0x1000, 0x1000)?;
    bench.settled(FIRST, AT + 0x1000, None)?;
    bench.watch_nothing();
    world.iommu.detach_device(&other, &world.device)?;
    drop((domain, other, device, world));
    bench.verdict()
}
