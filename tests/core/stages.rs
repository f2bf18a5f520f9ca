//! Which stage of translation a domain's table is, and what is asked of units beyond it.

use iommu::domain::DomainOptions;
use iommu::ops::{Capability, DomainFeatures, Stage, UnitTraits};
use iommu::pgtable::{PageSizes, WalkerCoherency};
use iommu::{Device, Error, IncompatibleReason, IovaRange, Prot, RegionKind, Result, UnsupportedReason};

use crate::fake::{first_traits, traits};
use crate::world::{World, map, pages, range};

const ALL: DomainFeatures = DomainFeatures::all();

fn with_stage(stage: Stage) -> DomainOptions {
    DomainOptions { stage: Some(stage), ..DomainOptions::default() }
}

fn with_features(features: DomainFeatures) -> DomainOptions {
    DomainOptions { features, ..DomainOptions::default() }
}

/// What kind of table the core chooses for the devices.
fn chosen(world: &World, devices: &[&Device]) -> Result<Option<Stage>> {
    world.iommu.paging_domain(devices).map(|domain| domain.ops().stage())
}

#[test]
fn the_second_stage_is_chosen_where_all_have_it_else_the_first() {
    let world = World::new(4);
    // Unit 0 has the second stage, unit 1 both, units 2 and 3 the first.
    for unit in 1..4 {
        world.units[unit].state().first = Some(first_traits());
        world.units[unit].state().second = unit == 1;
    }
    let devices: Vec<Device> = (0..4).map(|unit| world.device_of(unit, 1)).collect();
    let (second, both, first, other) = (&devices[0], &devices[1], &devices[2], &devices[3]);
    for one in [second, both] {
        assert_eq!(chosen(&world, &[one]), Ok(Some(Stage::Second)));
        assert_eq!(world.iommu.default_domain_of(one.group().unwrap()).ops().stage(), Some(Stage::Second));
    }
    assert_eq!(chosen(&world, &[both, second]), Ok(Some(Stage::Second)));
    assert_eq!(chosen(&world, &[both, first]), Ok(Some(Stage::First)));
    assert_eq!(chosen(&world, &[first, both, other]), Ok(Some(Stage::First)));
    assert_eq!(world.iommu.default_domain_of(first.group().unwrap()).ops().stage(), Some(Stage::First));
    let none = Err(Error::Incompatible(IncompatibleReason::Stage));
    assert_eq!(chosen(&world, &[second, first]), none);
    assert_eq!(chosen(&world, &[first, both, second]), none);
    // What both stages refuse is told of the one that would have been chosen.
    world.units[0].state().traits.page_sizes = PageSizes::from_bits(1 << 13);
    assert_eq!(chosen(&world, &[second, both]), Err(Error::Incompatible(IncompatibleReason::PageSize)));
}

#[test]
fn a_first_stage_that_is_asked_for_translates_below_its_half() {
    let world = World::new(2);
    world.units[0].state().first = Some(first_traits());
    world.reserve(1, 0x10_0000, 0x1f_ffff, RegionKind::Reserved);
    let device = world.device(1);
    let domain = world.iommu.paging_domain_with(&[&device], with_stage(Stage::First)).unwrap();
    let windows: Vec<IovaRange> = domain.windows().iter().map(|window| window.range).collect();
    assert_eq!(windows, [range(0, 0xf_ffff), range(0x20_0000, (1 << 47) - 1)]);
    world.iommu.attach_device(&domain, &device).unwrap();
    let top = range((1 << 47) - 0x1000, (1 << 47) - 1);
    map(&domain, top, 0x5000, Prot::RW).unwrap();
    assert_eq!(world.write(1, (1 << 47) - 8), Some(0x5ff8));
    let above = IovaRange::from_len(iommu::Iova::new(1 << 47), 0x1000).unwrap();
    assert!(matches!(map(&domain, above, 0x5000, Prot::RW), Err(Error::OutsideWindow { .. })));
    // A unit without that stage takes neither such a domain nor the wish for one.
    let other = world.device_of(1, 1);
    let refused = Err(Error::Incompatible(IncompatibleReason::Stage));
    assert_eq!(world.iommu.attach_device(&domain, &other), refused);
    let wished = world.iommu.paging_domain_with(&[&device, &other], with_stage(Stage::First));
    assert_eq!(wished.err(), Some(Error::Unsupported(UnsupportedReason::Stage)));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_allocated() {
    let world = World::new(2);
    let (here, there) = (world.device(1), world.device_of(1, 1));
    world.units[1].state().traits.features = ALL;
    let frames = world.frames.in_use();
    let refused = |devices: &[&Device], options, reason| {
        // Nor is there anything to allocate.
        world.frames.fail_nth(0);
        let refused = world.iommu.paging_domain_with(devices, options);
        assert_eq!(refused.err(), Some(Error::Unsupported(reason)));
        assert!(!world.frames.fail_never(), "an allocation was tried");
    };
    refused(&[&here], with_features(ALL), UnsupportedReason::Features);
    refused(&[&there, &here], with_features(DomainFeatures::DIRTY_TRACKING), UnsupportedReason::Features);
    refused(&[&here], with_stage(Stage::First), UnsupportedReason::Stage);
    assert_eq!(world.frames.in_use(), frames);
    // A domain has what was asked for, and no more.
    let plain = world.iommu.paging_domain(&[&there]).unwrap();
    let wanted = world.iommu.paging_domain_with(&[&there], with_features(ALL)).unwrap();
    world.units[1].state().traits.features = DomainFeatures::empty();
    assert_eq!(world.iommu.attach_device(&wanted, &there), Err(Error::Incompatible(IncompatibleReason::Features)));
    world.iommu.attach_device(&plain, &there).unwrap();
}

#[test]
fn a_feature_of_the_first_stage_alone_decides_for_it() {
    let world = World::new(1);
    world.unit().state().first = Some(UnitTraits { features: ALL, ..first_traits() });
    let device = world.device(1);
    let domain = world.iommu.paging_domain_with(&[&device], with_features(ALL)).unwrap();
    assert_eq!(domain.ops().stage(), Some(Stage::First));
    // Not against the caller's wish.
    let options = DomainOptions { stage: Some(Stage::Second), features: ALL };
    let refused = world.iommu.paging_domain_with(&[&device], options);
    assert_eq!(refused.err(), Some(Error::Unsupported(UnsupportedReason::Features)));
}

#[test]
fn a_unit_is_capable_of_what_a_stage_of_it_can_have() {
    let world = World::new(1);
    let device = world.device(1);
    let capable =
        || [Capability::DirtyTracking, Capability::EnforceCacheCoherency].map(|it| world.iommu.capable(&device, it));
    assert_eq!(capable(), [false, false]);
    world.unit().state().traits.features = DomainFeatures::DIRTY_TRACKING;
    assert_eq!(capable(), [true, false]);
    world.unit().state().first = Some(UnitTraits { features: DomainFeatures::CACHE_COHERENCY, ..first_traits() });
    assert_eq!(capable(), [true, true]);
}

#[test]
fn traits_hold_what_all_can_have_and_a_domain_only_what_the_unit_has() {
    let with = |features| UnitTraits { features, ..traits() };
    let (dirty, coherent) = (DomainFeatures::DIRTY_TRACKING, DomainFeatures::CACHE_COHERENCY);
    assert_eq!(with(ALL).common(with(dirty)), Ok(with(dirty)));
    assert_eq!(with(coherent).common(with(dirty)), Ok(traits()));
    assert_eq!(with(dirty).check_attach(48, with(ALL)), Ok(()));
    assert_eq!(with(ALL).check_attach(48, with(dirty)), Err(Error::Incompatible(IncompatibleReason::Features)));
    // The first row that is violated decides.
    let worse = UnitTraits { coherency: WalkerCoherency::NeedsClean, ..traits() };
    assert_eq!(with(ALL).check_attach(48, worse), Err(Error::Incompatible(IncompatibleReason::Coherency)));
}

#[test]
fn a_default_domain_is_refitted_in_the_stage_that_all_members_have() {
    let world = World::new(1);
    world.unit().state().first = Some(first_traits());
    world.unit().state().second = false;
    let first = world.behind(7, 1);
    world.reserve(2, 0x10_0000, 0x10_0fff, RegionKind::Reserved);
    let second = world.behind(7, 2);
    assert_eq!(first.group().unwrap(), second.group().unwrap());
    let default = world.iommu.default_domain_of(first.group().unwrap());
    assert_eq!(default.ops().stage(), Some(Stage::First));
    assert!(matches!(map(&default, pages(0x100, 1), 0, Prot::RW), Err(Error::OutsideWindow { .. })));
}
