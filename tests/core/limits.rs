//! What happens beyond each capacity.

use iommu::device::{DeviceInfo, MAX_SOURCES, Trust};
use iommu::pgtable::PageSizes;
use iommu::{
    Error, IovaRange, MAX_RESERVED_REGIONS, MAX_WINDOWS, Prot, RegionKind, ReservedRegion, ReservedRegions, Window,
    Windows,
};

use crate::world::{World, info, range, source};

#[test]
fn a_device_with_too_many_sources_is_refused() {
    let sources: Vec<_> = (0..=MAX_SOURCES as u32).map(source).collect();
    assert_eq!(DeviceInfo::platform(&sources, Trust::Trusted).err(), Some(Error::Capacity("MAX_SOURCES")));
    assert_eq!(DeviceInfo::platform(&[], Trust::Trusted).err(), Some(Error::NoDevice));
    let world = World::new(1);
    let device = world.iommu.probe_platform(info(&sources[1..])).unwrap();
    assert_eq!(device.sources().len(), MAX_SOURCES);
    assert!(sources[1..].iter().all(|source| world.unit().domain_of(*source).is_some()));
}

#[test]
fn a_device_with_too_many_reserved_regions_stays_blocked() {
    let world = World::new(1);
    let frames = world.frames.in_use();
    let add = |id: u32, count: usize| {
        for index in 0..count as u64 {
            world.reserve(id, (index * 2 + 1) << 20, ((index * 2 + 1) << 20) + 0xfff, RegionKind::Reserved);
        }
        world.iommu.probe_platform(info(&[source(id)])).map(|_| ())
    };
    assert_eq!(add(1, MAX_RESERVED_REGIONS + 1), Err(Error::Capacity("MAX_RESERVED_REGIONS")));
    // One hole makes two windows.
    assert_eq!(add(2, MAX_WINDOWS), Err(Error::Capacity("MAX_WINDOWS")));
    assert_eq!(world.frames.in_use(), frames);
    assert_eq!(world.iommu.devices().count(), 0);
    assert!(world.unit().domain_of(source(1)).is_none() && world.unit().domain_of(source(2)).is_none());
    assert_eq!(add(3, MAX_WINDOWS - 1), Ok(()));
    let device = world.iommu.find(source(3)).unwrap();
    assert_eq!(device.windows().unwrap().iter().count(), MAX_WINDOWS);
}

#[test]
fn a_region_too_many_changes_nothing() {
    let mut regions = ReservedRegions::default();
    let region = |index: u64| ReservedRegion {
        range: range(index << 16, (index << 16) + 0xfff),
        kind: RegionKind::Reserved,
        prot: Prot::RW,
    };
    for index in (0..MAX_RESERVED_REGIONS as u64).rev() {
        regions.add(region(index)).unwrap();
    }
    assert_eq!(regions.add(region(99)), Err(Error::Capacity("MAX_RESERVED_REGIONS")));
    assert_eq!(regions.iter().count(), MAX_RESERVED_REGIONS);
    assert!(regions.iter().map(|region| region.range.start()).is_sorted());
    // One that joins two makes room.
    regions.add(ReservedRegion { range: range(0x1000, 0xffff), ..region(0) }).unwrap();
    assert_eq!(regions.iter().count(), MAX_RESERVED_REGIONS - 1);
    assert_eq!(regions.iter().next().unwrap().range, range(0, 0x1_0fff));
    regions.add(region(99)).unwrap();
    // Another kind or permission stays apart.
    let mut regions = ReservedRegions::default();
    for (kind, prot) in [(RegionKind::Direct, Prot::RW), (RegionKind::Direct, Prot::READ), (RegionKind::Msi, Prot::RW)]
    {
        regions.add(ReservedRegion { kind, prot, ..region(0) }).unwrap();
    }
    assert_eq!(regions.iter().count(), 3);
    assert!(regions.require_direct());
}

#[test]
fn windows_of_two_devices_may_be_too_many_together() {
    let whole = Window { range: IovaRange::full(), page_sizes: PageSizes::from_bits(1 << 12 | 1 << 21) };
    let with_holes = |first: u64| {
        let mut windows = Windows::new(whole);
        for index in 0..MAX_WINDOWS as u64 / 2 {
            let start = (first + index * 2) << 20;
            windows.exclude(range(start, start + 0xf_ffff)).unwrap();
        }
        windows
    };
    let (mut odd, even) = (with_holes(1), with_holes(2));
    let before = odd.clone();
    let expected = Err(Error::Capacity("MAX_WINDOWS"));
    // Adjacent holes leave one window between each two.
    let mut far = with_holes(1001);
    assert_eq!(far.intersect(&even), expected);
    assert_eq!(far, with_holes(1001));
    odd.intersect(&even).unwrap();
    assert!(before.covers(&odd) && even.covers(&odd) && !odd.covers(&before));
    // Page sizes are what both have; a window without any is none.
    let mut small = Windows::new(Window { page_sizes: PageSizes::from_bits(1 << 12), ..whole });
    small.intersect(&Windows::new(whole)).unwrap();
    assert_eq!(small.iter().next().unwrap().page_sizes, PageSizes::from_bits(1 << 12));
    small.intersect(&Windows::new(Window { page_sizes: PageSizes::from_bits(1 << 16), ..whole })).unwrap();
    assert_eq!(small, Windows::none());
    assert_eq!((small.geometry(), small.iter().count()), (None, 0));
}

#[test]
fn the_nearest_window_is_the_one_with_the_fewest_bytes_between() {
    let mut windows = Windows::new(Window { range: range(0x1000, 0xffff), page_sizes: PageSizes::from_bits(1 << 12) });
    windows.exclude(range(0x4000, 0x7fff)).unwrap();
    let (low, high) = (range(0x1000, 0x3fff), range(0x8000, 0xffff));
    for (wanted, nearest) in [
        (range(0, 0xfff), low),
        (range(0x4000, 0x4fff), low),
        (range(0x7000, 0x7fff), high),
        (range(0x6000, 0x6fff), high),
        (range(0x1_0000, u64::MAX), high),
        (range(0xf000, 0x1_0fff), high),
        (IovaRange::full(), low),
    ] {
        assert_eq!(windows.check(wanted), Err(Error::OutsideWindow { nearest }), "{wanted}");
    }
    windows.exclude(IovaRange::full()).unwrap();
    assert_eq!(windows, Windows::none());
}

#[test]
fn types_stay_small() {
    // Handles travel by value, gathers live on a kernel's stack.
    assert!(size_of::<iommu::Domain>() <= 32);
    assert!(size_of::<iommu::Device>() <= 16);
    assert!(size_of::<iommu::Group>() <= 16);
    assert!(size_of::<iommu::iotlb::Gather<'_>>() <= 256);
    assert!(size_of::<iommu::iotlb::CacheTag>() <= 48);
    assert!(size_of::<Windows>() <= 1024);
}
