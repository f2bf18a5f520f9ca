//! Every allocation fails once.

use iommu::domain::{DirtyBitmap, DirtyRead, DirtyTracking, DomainOptions};
use iommu::ops::{DomainFeatures, MapFlush, Stage, UnitTraits};
use iommu::pgtable::PageSize;
use iommu::{Device, Error, Iova, PhysAddr, PhysRange, Policy, Prot, RegionKind, Result, SourceId};

use crate::fake::first_traits;
use crate::platform::Frames;
use crate::world::{World, group, info, map, pages, range, source, unmap};

/// What a kernel does with a machine, from the devices on.
fn scenario(world: &World) -> Result<()> {
    let first = world.iommu.probe_platform(info(&[source(1), source(2)]))?;
    let second = world.iommu.probe_platform(info(&[source(1), source(3)]))?;
    let far = world.iommu.probe_platform(info(&[SourceId::platform(1, 0xffff_0000)]))?;
    let domain = world.iommu.paging_domain(&[&first, &second, &far])?;
    map(&domain, pages(1, 4), 0x10_0000, Prot::RW)?;
    world.iommu.attach_group(&domain, group(&first))?;
    world.iommu.attach_device(&domain, &far)?;
    assert_eq!(world.write(3, 0x1000), Some(0x10_0000));
    map(&domain, range(0x4000_0000, 0x40ff_ffff), 0x20_0000, Prot::RW)?;
    let list = [(0x30_0000, 0x1000), (0x50_0000, 0x3000), (0x80_0000, 0x20_0000)];
    let list = list.map(|(start, bytes)| PhysRange::from_len(PhysAddr::new(start), bytes).unwrap());
    // SAFETY: no device is real.
    let listed = unsafe { domain.map_sg(Iova::new(0x7f_c000_0000), &list, Prot::READ) }?;
    assert_eq!(world.read(2, 0x7f_c000_1000), Some(0x50_0000));
    let part = range(0x4000_3000, 0x4000_4fff);
    // SAFETY: as above.
    unsafe { domain.cut(part) }?;
    unmap(&domain, part)?;
    assert_eq!(world.write(1, 0x4000_3000), None);
    unmap(&domain, listed)?;
    unmap(&domain, range(0, 0x8_ffff))?;
    unmap(&domain, range(0x4000_0000, 0x7fff_ffff))?;
    assert_eq!(world.write(3, 0x1000), None);
    world.iommu.detach_device(&domain, &far)?;
    migrate(world, &far)?;
    world.iommu.replace(world.iommu.identity_domain(), group(&first))?;
    world.iommu.release_device(&first)?;
    Ok(())
}

/// A domain of the first stage with everything that a domain can have.
fn migrate(world: &World, device: &Device) -> Result<()> {
    let options = DomainOptions { stage: Some(Stage::First), features: DomainFeatures::all() };
    let domain = world.iommu.paging_domain_with(&[device], options)?;
    world.iommu.attach_device(&domain, device)?;
    map(&domain, pages(0, 64), 0x10_0000, Prot::RW)?;
    domain.set_dirty_tracking(DirtyTracking::On)?;
    assert!(world.units[1].dma(device.sources()[0], 0x3000, Prot::WRITE).is_some());
    let mut words = [0];
    let mut bitmap = DirtyBitmap::new(&mut words, Iova::new(0), PageSize::SIZE_4K)?;
    domain.read_and_clear_dirty(pages(0, 64), DirtyRead::Clear, &mut bitmap)?;
    assert_eq!(words, [1 << 3]);
    world.iommu.detach_device(&domain, device)
}

/// What the core says is what the units do, and nothing is attached that the core does not know.
fn check(world: &World) {
    let devices: Vec<Device> = world.iommu.devices().collect();
    for device in &devices {
        let domain = world.iommu.domain_of(group(device));
        for source in device.sources() {
            let unit = &world.units[usize::from(source.segment())];
            match unit.domain_of(*source) {
                Some(attached) => assert!(attached.ptr_eq(&domain)),
                None => assert!(domain.ptr_eq(world.iommu.blocked_domain()), "{source} has lost its domain"),
            }
        }
    }
    for id in 0..8 {
        let known = devices.iter().any(|device| device.sources().contains(&source(id)));
        assert!(known || world.unit().domain_of(source(id)).is_none(), "{id} is attached and unknown");
    }
}

fn prepare(frames: &Frames, map_flush: MapFlush) -> Result<World> {
    let world = World::on(frames.clone(), 3, Policy::default())?;
    for unit in &world.units {
        let mut state = unit.state();
        state.traits.map_flush = map_flush;
        state.first = Some(UnitTraits { features: DomainFeatures::all(), map_flush, ..first_traits() });
    }
    world.reserve(2, 0x9_0000, 0x9_1fff, RegionKind::Direct);
    world.reserve(3, 0x9_8000, 0x9_8fff, RegionKind::DirectRelaxable);
    Ok(world)
}

#[test]
fn every_allocation_may_fail() {
    for map_flush in [MapFlush::Never, MapFlush::Always] {
        let mut failed = 0;
        for nth in 0.. {
            let frames = Frames::new();
            frames.fail_nth(nth);
            let result = prepare(&frames, map_flush).and_then(|world| {
                let result = scenario(&world);
                if frames.fail_never() {
                    assert!(matches!(result, Ok(()) | Err(Error::NoMemory)), "{nth}: {result:?}");
                }
                check(&world);
                if result.is_err() {
                    // With memory, all of it works from where the failure left it.
                    world.iommu.devices().collect::<Vec<_>>().iter().for_each(|device| {
                        world.iommu.release_device(device).unwrap();
                    });
                    scenario(&world).unwrap();
                    check(&world);
                }
                world.iommu.devices().for_each(|device| world.iommu.release_device(&device).unwrap());
                assert_eq!(world.unit().ids().in_use(), 1, "{nth}: a domain id is lost");
                drop(world);
                result
            });
            assert_eq!(frames.in_use(), 0, "{nth}: frames are lost");
            match result {
                Ok(()) if failed > 0 && nth > failed + 20 => break,
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error, Error::NoMemory);
                    failed = nth;
                }
            }
        }
        assert!(failed > 40, "the scenario allocates more than {failed} times");
    }
}
