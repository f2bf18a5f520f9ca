//! Coherency that is enforced: every request snoops, whatever the device asks for.

use iommu::domain::{Domain, DomainOptions};
use iommu::iotlb::DeviceTlb;
use iommu::ops::{Ats, DomainFeatures, Stage, UnitTraits};
use iommu::{BusyReason, Device, Error, IncompatibleReason, InvalidReason, Prot};

use crate::fake::{Event, FirstPaging, TIMED_OUT, first_traits, traits};
use crate::world::{World, map, pages, range, source, unmap};

const COHERENT: DomainFeatures = DomainFeatures::CACHE_COHERENCY;

/// Units 0 and 1 can enforce coherency, unit 2 cannot.
fn world() -> (World, [Device; 3]) {
    let world = World::new(3);
    for unit in [0, 1] {
        world.units[unit].state().traits.features = COHERENT;
        world.units[unit].state().first = Some(UnitTraits { features: COHERENT, ..first_traits() });
    }
    world.units[2].state().first = Some(first_traits());
    let devices = [0, 1, 2].map(|unit| world.device_of(unit, 1));
    (world, devices)
}

fn domain(world: &World, device: &Device, stage: Stage) -> Domain {
    let options = DomainOptions { stage: Some(stage), ..DomainOptions::default() };
    let domain = world.iommu.paging_domain_with(&[device], options).unwrap();
    world.iommu.attach_device(&domain, device).unwrap();
    domain
}

fn refused() -> Error {
    Error::Incompatible(IncompatibleReason::Features)
}

#[test]
fn a_second_stage_says_it_in_each_leaf() {
    let (world, [device, ..]) = world();
    let domain = domain(&world, &device, Stage::Second);
    map(&domain, pages(0, 1), 0x5000, Prot::RW).unwrap();
    assert_eq!(world.unit().snoops(source(1), 0), Some(false));
    assert_eq!(domain.enforce_cache_coherency(), Err(Error::Busy(BusyReason::InUse)));
    assert_eq!(domain.features(), DomainFeatures::empty());
    map(&domain, pages(1, 1), 0x6000, Prot::RW).unwrap();
    assert_eq!(world.unit().snoops(source(1), 0x1000), Some(false));
    unmap(&domain, pages(0, 2)).unwrap();
    domain.enforce_cache_coherency().unwrap();
    assert_eq!(domain.features(), COHERENT);
    // The short way, a run, a large page and what is made of it.
    map(&domain, pages(0, 1), 0x5000, Prot::RW).unwrap();
    map(&domain, pages(1, 5), 0x20_0000, Prot::READ).unwrap();
    map(&domain, range(0x20_0000, 0x3f_ffff), 0x20_0000, Prot::RW).unwrap();
    // SAFETY: no device is real.
    unsafe {
        domain.protect(pages(0x200, 0x200), Prot::READ).unwrap();
        domain.cut(pages(0x203, 1)).unwrap();
    }
    for iova in [0, 0x1000, 0x5000, 0x20_3000, 0x20_4000] {
        assert_eq!(world.unit().snoops(source(1), iova), Some(true), "{iova:#x}");
    }
    // Again is no action, although something is mapped.
    domain.enforce_cache_coherency().unwrap();
}

#[test]
fn a_first_stage_is_told_to_the_units() {
    let (world, [device, other, _]) = world();
    let domain = domain(&world, &device, Stage::First);
    map(&domain, pages(0, 1), 0x5000, Prot::RW).unwrap();
    assert_eq!(world.unit().snoops(source(1), 0), Some(false));
    domain.enforce_cache_coherency().unwrap();
    assert_eq!(world.unit().snoops(source(1), 0), Some(true));
    // Who comes later reads it from the domain.
    world.iommu.attach_device(&domain, &other).unwrap();
    assert_eq!(world.units[1].snoops(other.sources()[0], 0), Some(true));
}

#[test]
fn every_unit_must_be_able_to() {
    for stage in [Stage::First, Stage::Second] {
        let (world, [device, other, unable]) = world();
        let domain = domain(&world, &device, stage);
        world.iommu.attach_device(&domain, &other).unwrap();
        world.iommu.attach_device(&domain, &unable).unwrap();
        assert_eq!(domain.enforce_cache_coherency(), Err(refused()));
        assert_eq!(domain.features(), DomainFeatures::empty());
        // As if nobody had asked: the unit can be attached again.
        world.iommu.detach_device(&domain, &unable).unwrap();
        world.iommu.attach_device(&domain, &unable).unwrap();
        world.iommu.detach_device(&domain, &unable).unwrap();
        domain.enforce_cache_coherency().unwrap();
        assert_eq!(world.iommu.attach_device(&domain, &unable), Err(refused()));
        map(&domain, pages(0, 1), 0x5000, Prot::RW).unwrap();
        for unit in [0, 1] {
            let source = iommu::SourceId::platform(unit, 1);
            assert_eq!(world.units[usize::from(unit)].snoops(source, 0), Some(true));
        }
    }
}

#[test]
fn a_unit_that_fails_leaves_it_off() {
    let (world, [device, other, _]) = world();
    let domain = domain(&world, &device, Stage::First);
    world.iommu.attach_device(&domain, &other).unwrap();
    map(&domain, pages(0, 1), 0x5000, Prot::RW).unwrap();
    world.units[1].state().fail_refresh = Some((0, TIMED_OUT));
    assert_eq!(domain.enforce_cache_coherency(), Err(TIMED_OUT));
    assert_eq!(domain.features(), DomainFeatures::empty());
    assert_eq!(world.unit().snoops(source(1), 0), Some(false), "the other unit was told to turn it off again");
    domain.enforce_cache_coherency().unwrap();
}

#[test]
fn a_domain_can_be_made_with_it() {
    for stage in [Stage::First, Stage::Second] {
        let (world, [device, _, unable]) = world();
        let options = DomainOptions { stage: Some(stage), features: COHERENT };
        let domain = world.iommu.paging_domain_with(&[&device], options).unwrap();
        assert_eq!(domain.features(), COHERENT);
        map(&domain, pages(0, 1), 0x5000, Prot::RW).unwrap();
        world.iommu.attach_device(&domain, &device).unwrap();
        assert_eq!(world.unit().snoops(source(1), 0), Some(true));
        assert_eq!(world.iommu.attach_device(&domain, &unable), Err(refused()));
        world.unit().take_log();
        domain.enforce_cache_coherency().unwrap();
        assert_eq!(world.unit().take_log(), []);
    }
}

#[test]
fn a_unit_of_several_sources_is_told_once() {
    let (world, [device, ..]) = world();
    let domain = domain(&world, &device, Stage::First);
    let second = world.device_of(0, 2);
    world.iommu.attach_device(&domain, &second).unwrap();
    // Nor once more for the tag of a device's own cache.
    let paging: &FirstPaging = domain.ops().as_any().downcast_ref().unwrap();
    let unit = second.unit().unwrap();
    let tag = paging.tags().acquire(unit, None, world.unit().ids()).unwrap();
    let ats = Ats { physical_function: 0, max_pending: 1 };
    let tlb = paging.tags().acquire_device(unit, tag, DeviceTlb { source: source(2), pasid: None, ats }).unwrap();
    world.unit().take_log();
    domain.enforce_cache_coherency().unwrap();
    let told = world.unit().take_log().iter().filter(|event| matches!(event, Event::Refresh(_))).count();
    assert_eq!(told, 1);
    for tag in [tlb, tag] {
        paging.tags().release(unit, tag).unwrap();
    }
}

#[test]
fn other_domains_have_nothing_to_enforce() {
    let (world, _) = world();
    for domain in [world.iommu.blocked_domain(), world.iommu.identity_domain()] {
        assert_eq!(domain.enforce_cache_coherency(), Err(Error::Invalid(InvalidReason::NotPaging)));
        assert_eq!((domain.features(), domain.ops().stage()), (DomainFeatures::empty(), None));
    }
    assert_eq!(traits().features, DomainFeatures::empty());
}
