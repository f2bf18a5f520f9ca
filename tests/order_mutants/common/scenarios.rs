//! What a driver is asked to do, and what devices may reach meanwhile and afterwards.

use iommu::device::Trust;
use iommu::domain::DomainOptions;
use iommu::ops::Stage;
use iommu::{
    AtsPolicy, BootPolicy, Device, Domain, DomainKind, Iommu, Iova, IovaRange, PciAddress, PhysAddr, Policy, Prot,
    StallPolicy,
};

use super::bench::{Bench, Convicted, FIRST, SECOND, Unit, Verdict};

pub(crate) const FAR: u16 = 0x8008;

/// Reserved by firmware for the first function.
pub(crate) const RESERVED: u64 = 0x7000_0000;
/// Device TLBs too.
pub(crate) const POLICY: Policy = Policy {
    ats: AtsPolicy::Trusted,
    boot: BootPolicy::Blocked,
    default_domain: DomainKind::Paging,
    stalls: StallPolicy::Off,
};

/// Where nothing is ever mapped.
pub(crate) const NOWHERE: u64 = 0x6666_0000;

pub(crate) struct World<U: Unit> {
    pub(crate) iommu: Iommu<Bench<U>>,
    pub(crate) device: Device,
}

impl<U: Unit> World<U> {
    /// Up to before translation is enabled.
    pub(crate) fn prepare(bench: &Bench<U>) -> Verdict<Self> {
        let iommu = Iommu::new(bench.clone(), POLICY)?;
        U::init(&iommu)?;
        let device = probe(&iommu, bench, FIRST)?;
        Ok(Self { iommu, device })
    }

    pub(crate) fn boot(bench: &Bench<U>) -> Verdict<Self> {
        let world = Self::prepare(bench)?;
        world.iommu.enable()?;
        // Firmware's page is reached whatever happens, and the rest is blocked.
        bench.settled(FIRST, RESERVED, Some(RESERVED))?;
        bench.settled(FIRST, NOWHERE, None)?;
        bench.watch_nothing();
        Ok(world)
    }

    pub(crate) fn domain(&self) -> Verdict<Domain> {
        Ok(self.iommu.paging_domain(&[&self.device])?)
    }
}

pub(crate) fn probe<U: Unit>(iommu: &Iommu<Bench<U>>, bench: &Bench<U>, requester: u16) -> Verdict<Device> {
    Ok(iommu.probe_pci(bench, PciAddress::from_requester_id(0, requester), Trust::Trusted)?)
}

pub(crate) fn range(at: u64, bytes: u64) -> IovaRange {
    IovaRange::from_len(Iova::new(at), bytes).unwrap()
}

pub(crate) fn map(domain: &Domain, at: u64, phys: u64, bytes: u64) -> Verdict {
    // SAFETY: the memory is no real one.
    unsafe { domain.map(range(at, bytes), PhysAddr::new(phys), Prot::RW) }?;
    Ok(())
}

pub(crate) fn unmap(domain: &Domain, at: u64, bytes: u64) -> Verdict {
    // SAFETY: one thread.
    unsafe { domain.unmap_sync(range(at, bytes)) }?;
    Ok(())
}

pub(crate) fn bring_up<U: Unit>(bench: &Bench<U>) -> Verdict {
    bench.settled(FIRST, NOWHERE, Some(NOWHERE))?;
    bench.settled(FIRST, RESERVED, Some(RESERVED))?;
    bench.watch(FIRST, NOWHERE, &[Some(NOWHERE), None]);
    let world = World::prepare(bench)?;
    world.iommu.enable()?;
    bench.unit().switched();
    bench.settled(FIRST, NOWHERE, None)?;
    bench.settled(FIRST, RESERVED, Some(RESERVED))?;
    bench.settled(SECOND, NOWHERE, None)?;
    // On a bus that nobody has heard of.
    bench.settled(FAR, NOWHERE, None)?;
    bench.watch_nothing();
    drop(world);
    bench.verdict()
}

pub(crate) fn attach<U: Unit>(bench: &Bench<U>) -> Verdict {
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

pub(crate) fn new_bus<U: Unit>(bench: &Bench<U>) -> Verdict {
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

pub(crate) fn reuse<U: Unit>(bench: &Bench<U>) -> Verdict {
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

pub(crate) fn tables<U: Unit>(bench: &Bench<U>) -> Verdict {
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

pub(crate) fn protect<U: Unit>(bench: &Bench<U>) -> Verdict {
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

pub(crate) fn cut<U: Unit>(bench: &Bench<U>) -> Verdict {
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

pub(crate) fn identity<U: Unit>(bench: &Bench<U>) -> Verdict {
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

/// Between domains of both stages and identity, of which the old one goes at once.
pub(crate) fn stages<U: Unit>(bench: &Bench<U>) -> Verdict {
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
