//! A domain on several units: what must agree, and what happens when it does not.

use iommu::iotlb::Depth;
use iommu::ops::{MapFlush, UnitTraits};
use iommu::pgtable::{PageSizes, WalkerCoherency};
use iommu::{Error, IncompatibleReason, IovaRange, Prot, SourceId};

use crate::fake::{Event, TIMED_OUT, traits};
use crate::world::{World, map, pages, range, unmap};

const SMALL: PageSizes = PageSizes::from_bits(1 << 12);

fn refused(reason: IncompatibleReason) -> Error {
    Error::Incompatible(reason)
}

/// For each row of the table of `UnitTraits`: a unit that differs in it, and the refusal when a
/// domain for the plain unit is attached to it.
fn rows() -> [(UnitTraits, IncompatibleReason); 5] {
    [
        (UnitTraits { driver: "another", ..traits() }, IncompatibleReason::Driver),
        (UnitTraits { coherency: WalkerCoherency::NeedsClean, ..traits() }, IncompatibleReason::Coherency),
        (UnitTraits { page_sizes: SMALL, ..traits() }, IncompatibleReason::PageSize),
        (UnitTraits { widths: 1 << 39, ..traits() }, IncompatibleReason::Width),
        (UnitTraits { map_flush: MapFlush::Always, ..traits() }, IncompatibleReason::MapFlush),
    ]
}

#[test]
fn each_row_of_the_table_is_checked_at_attach() {
    for (other, reason) in rows() {
        assert_eq!(traits().check_attach(48, other), Err(refused(reason)));
        let world = World::new(2);
        world.units[1].state().traits = other;
        let (here, there) = (world.device_of(0, 1), world.device_of(1, 1));
        let domain = world.domain(&here);
        world.iommu.attach_device(&domain, &here).unwrap();
        world.units[1].take_log();
        assert_eq!(world.iommu.attach_device(&domain, &there), Err(refused(reason)));
        assert!(world.units[1].take_log().is_empty());
        assert_eq!(traits().check_attach(48, traits()), Ok(()));
    }
    assert_eq!(traits().check_attach(64, traits()), Err(refused(IncompatibleReason::Width)), "no panic");
    assert_eq!(traits().check_attach(200, traits()), Err(refused(IncompatibleReason::Width)));
    // What a domain does beyond what the unit needs is no matter.
    let careful = UnitTraits { coherency: WalkerCoherency::NeedsClean, map_flush: MapFlush::Always, ..traits() };
    assert_eq!(UnitTraits { page_sizes: SMALL, ..careful }.check_attach(39, traits()), Ok(()));
}

#[test]
fn a_domain_for_both_has_what_both_can_do() {
    for (other, reason) in rows() {
        let common = traits().common(other);
        assert_eq!(common, other.common(traits()).map(|common| UnitTraits { driver: traits().driver, ..common }));
        if reason == IncompatibleReason::Driver {
            assert_eq!(common, Err(refused(reason)));
            continue;
        }
        assert_eq!(common, Ok(other), "each row differs to the worse");
        let world = World::new(2);
        world.units[1].state().traits = other;
        let (here, there) = (world.device_of(0, 1), world.device_of(1, 1));
        let domain = world.iommu.paging_domain(&[&here, &there]).unwrap();
        world.iommu.attach_device(&domain, &here).unwrap();
        world.iommu.attach_device(&domain, &there).unwrap();
        map(&domain, range(0, 0x1f_ffff), 0x20_0000, Prot::RW).unwrap();
        for unit in [0, 1] {
            let source = SourceId::platform(unit, 1);
            assert_eq!(world.units[usize::from(unit)].dma(source, 0x5000, Prot::RW), Some(0x20_5000));
        }
        drop((here, there, domain));
        assert_eq!(world.end(), 0);
    }
    let nothing = UnitTraits { page_sizes: PageSizes::from_bits(1 << 16), ..traits() };
    assert_eq!(traits().common(nothing), Err(refused(IncompatibleReason::PageSize)));
    let narrow = UnitTraits { widths: 1 << 57, ..traits() };
    assert_eq!(traits().common(narrow), Err(refused(IncompatibleReason::Width)));
}

#[test]
fn every_unit_is_invalidated_however_many_there_are() {
    // More than are under way at once, and more than there are tags without a frame.
    const UNITS: u16 = 19;
    let world = World::new(UNITS);
    let devices: Vec<_> = (0..UNITS).map(|unit| world.device_of(unit, 1)).collect();
    let domain = world.iommu.paging_domain(&devices.iter().collect::<Vec<_>>()).unwrap();
    for device in &devices {
        world.iommu.attach_device(&domain, device).unwrap();
    }
    let reach = |iova| {
        let arrives = |unit: u16| world.units[usize::from(unit)].dma(SourceId::platform(unit, 1), iova, Prot::READ);
        (0..UNITS).filter(|unit| arrives(*unit).is_some()).count()
    };
    for failing in [None, Some(0), Some(3), Some(8), Some(18)] {
        map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
        assert_eq!(reach(0x1000), usize::from(UNITS));
        for unit in &world.units {
            unit.take_log();
        }
        let Some(failing) = failing else {
            unmap(&domain, pages(1, 1)).unwrap();
            for unit in &world.units {
                assert!(matches!(unit.take_log()[..], [Event::Invalidate(_, 1, Depth::Leaves), Event::Wait]));
            }
            assert_eq!(reach(0x1000), 0);
            continue;
        };
        // One that fails does not keep the others from it, and is told.
        for submit in [true, false] {
            let state = || world.units[failing].state();
            match submit {
                true => state().fail_invalidate = Some((0, TIMED_OUT)),
                false => state().fail_wait = Some((0, TIMED_OUT)),
            }
            assert_eq!(unmap(&domain, pages(1, 1)), Err(TIMED_OUT));
            assert_eq!(reach(0x1000), 1, "only the one that failed still has it");
            domain.flush_deferred().unwrap();
            assert_eq!(reach(0x1000), 0);
            map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
            assert_eq!(reach(0x1000), usize::from(UNITS));
        }
        unmap(&domain, pages(1, 1)).unwrap();
    }
    // One that left is not asked any more.
    world.iommu.detach_device(&domain, &devices[4]).unwrap();
    world.units[4].take_log();
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    unmap(&domain, pages(1, 1)).unwrap();
    assert!(world.units[4].take_log().is_empty());
    assert_eq!(domain.walk(IovaRange::full()).count(), 0);
    drop((devices, domain));
    assert_eq!(world.end(), 0);
}

#[test]
fn two_devices_of_one_unit_share_a_tag() {
    let world = World::new(1);
    let (one, two) = (world.device(1), world.device(2));
    let domain = world.iommu.paging_domain(&[&one, &two]).unwrap();
    let ids = world.unit().ids().in_use();
    for device in [&one, &two] {
        world.iommu.attach_device(&domain, device).unwrap();
    }
    assert_eq!(world.unit().ids().in_use(), ids - 2 + 1, "two default domains for one");
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    assert_eq!((world.write(1, 0x1000), world.write(2, 0x1000)), (Some(0x8000), Some(0x8000)));
    world.iommu.detach_device(&domain, &one).unwrap();
    assert_eq!((world.write(1, 0x1000), world.write(2, 0x1000)), (None, Some(0x8000)));
    unmap(&domain, pages(1, 1)).unwrap();
    assert_eq!(world.write(2, 0x1000), None, "the tag is still in use");
}
