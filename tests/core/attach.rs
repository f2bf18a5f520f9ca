//! Attach, detach, replace: Linux's rules.

use iommu::domain::{Domain, FixedDomain};
use iommu::frames::{Ref, Slab};
use iommu::ops::DomainOps;
use iommu::{BusyReason, DomainKind, Error, IncompatibleReason, InvalidReason, Prot};

use crate::fake::Event;
use crate::world::{World, group, map, pages, range, source, unmap};

const ATTACHED: Error = Error::Busy(BusyReason::Attached);

#[test]
fn a_group_leaves_its_default_domain_for_one_other() {
    let world = World::new(1);
    let device = world.device(1);
    let (one, two) = (world.domain(&device), world.domain(&device));
    map(&one, pages(1, 1), 0x8000, Prot::RW).unwrap();
    map(&two, pages(1, 1), 0x9000, Prot::READ).unwrap();
    let group = group(&device);

    world.iommu.attach_group(&one, group).unwrap();
    assert!(world.iommu.domain_of(group).ptr_eq(&one));
    assert_eq!(world.write(1, 0x1234), Some(0x8234));
    // Again: no action.
    world.unit().take_log();
    world.iommu.attach_group(&one, group).unwrap();
    assert!(world.unit().take_log().is_empty());
    // Another one: not without replace; not even the default or the identity domain.
    for domain in [&two, &world.iommu.default_domain_of(group), world.iommu.identity_domain()] {
        assert_eq!(world.iommu.attach_group(domain, group), Err(ATTACHED));
    }
    assert_eq!(world.write(1, 0x1234), Some(0x8234));
    world.iommu.replace(&two, group).unwrap();
    assert_eq!((world.write(1, 0x1234), world.read(1, 0x1234)), (None, Some(0x9234)));
    // Only what is attached can be detached.
    assert_eq!(world.iommu.detach_group(&one, group), Err(Error::Invalid(InvalidReason::WrongDomain)));
    world.iommu.detach_device(&two, &device).unwrap();
    assert!(world.iommu.domain_of(group).ptr_eq(&world.iommu.default_domain_of(group)));
    assert_eq!(world.read(1, 0x1234), None);
    drop((one, two, device));
    assert_eq!(world.end(), 0);
}

#[test]
fn what_was_cached_through_one_domain_is_not_seen_through_the_next() {
    let world = World::new(1);
    let device = world.device(1);
    for turn in 0..300u64 {
        // More turns than there are ids: numbers come again, old translations must not.
        let domain = world.domain(&device);
        map(&domain, pages(turn % 3, 1), 0x10_0000 + (turn << 12), Prot::RW).unwrap();
        world.iommu.attach_device(&domain, &device).unwrap();
        for page in 0..3 {
            let expected = (page == turn % 3).then_some(0x10_0000 + (turn << 12));
            assert_eq!(world.write(1, page << 12), expected);
        }
        world.iommu.detach_device(&domain, &device).unwrap();
    }
    drop(device);
    assert_eq!(world.end(), 0);
}

#[test]
fn identity_and_blocked_domains_attach_like_others() {
    let world = World::new(1);
    let device = world.device(1);
    let (blocked, identity) = (world.iommu.blocked_domain(), world.iommu.identity_domain());
    let domain = world.domain(&device);
    world.iommu.attach_device(identity, &device).unwrap();
    assert_eq!(world.write(1, 0xabc_d000), Some(0xabc_d000));
    assert_eq!(world.iommu.attach_device(&domain, &device), Err(ATTACHED), "identity is a domain like others");
    world.iommu.detach_device(identity, &device).unwrap();
    assert_eq!(world.write(1, 0xabc_d000), None);
    // From blocked one may always go on.
    world.iommu.attach_device(blocked, &device).unwrap();
    assert!(world.unit().domain_of(source(1)).is_none());
    world.iommu.attach_device(&domain, &device).unwrap();
    assert!(world.unit().domain_of(source(1)).unwrap().ptr_eq(&domain));
}

#[test]
fn a_device_that_shares_its_group_is_attached_with_its_group_only() {
    let world = World::new(1);
    let first = world.behind(1, 2);
    let domain = world.domain(&first);
    world.iommu.attach_device(&domain, &first).unwrap();
    let second = world.behind(1, 3);
    let shared = Err(Error::Invalid(InvalidReason::SharedGroup));
    assert_eq!(world.iommu.detach_device(&domain, &first), shared);
    world.iommu.detach_group(&domain, group(&first)).unwrap();
    assert_eq!(world.iommu.attach_device(&domain, &second), shared);
    world.iommu.attach_group(&domain, group(&second)).unwrap();
    world.iommu.release_device(&first).unwrap();
    world.iommu.detach_device(&domain, &second).unwrap();
}

#[test]
fn a_domain_lives_as_long_as_its_attachment() {
    let world = World::new(1);
    let device = world.device(1);
    let before = world.frames.in_use();
    let domain = world.domain(&device);
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    world.iommu.attach_device(&domain, &device).unwrap();
    drop(domain);
    assert_eq!(world.write(1, 0x1000), Some(0x8000));
    let domain = world.iommu.domain_of(group(&device));
    world.iommu.detach_device(&domain, &device).unwrap();
    drop(domain);
    assert_eq!(world.write(1, 0x1000), None);
    assert_eq!(world.frames.in_use(), before);
}

#[test]
fn a_domain_must_lie_inside_the_windows_of_every_device() {
    use iommu::RegionKind::{Msi, Reserved, SoftwareMsi};
    let world = World::new(1);
    world.reserve(2, 0xfee0_0000, 0xfeef_ffff, Msi);
    world.reserve(3, 0x10_0000, 0x1f_ffff, Reserved);
    world.reserve(3, 0x30_0000, 0x3f_ffff, SoftwareMsi);
    let [free, msi, reserved] = [1, 2, 3].map(|id| world.device(id));
    let wide = world.domain(&free);
    let refused = Err(Error::Incompatible(IncompatibleReason::Window));
    assert_eq!(world.iommu.attach_device(&wide, &msi), refused);
    assert_eq!(world.iommu.replace(&wide, group(&reserved)), refused);
    let windows: Vec<_> = reserved.windows().unwrap().iter().map(|window| window.range).collect();
    assert_eq!(windows, [range(0, 0xf_ffff), range(0x20_0000, 0x2f_ffff), range(0x40_0000, (1 << 48) - 1)]);
    assert_eq!(reserved.reserved_regions().unwrap().iter().count(), 2);

    let narrow = world.iommu.paging_domain(&[&free, &msi, &reserved]).unwrap();
    for device in [&free, &msi, &reserved] {
        world.iommu.attach_device(&narrow, device).unwrap();
    }
    // A map across or inside a hole names the window that lies nearest.
    let outside = |nearest| Err(Error::OutsideWindow { nearest });
    assert_eq!(map(&narrow, range(0xfee0_0000, 0xfee0_0fff), 0, Prot::RW), outside(range(0x40_0000, 0xfedf_ffff)));
    assert_eq!(map(&narrow, range(0xfeef_f000, 0xfeef_ffff), 0, Prot::RW), outside(range(0xfef0_0000, (1 << 48) - 1)));
    assert_eq!(map(&narrow, range(0xf_f000, 0x20_0fff), 0, Prot::RW), outside(range(0, 0xf_ffff)));
    assert_eq!(map(&narrow, pages(1 << 36, 1), 0, Prot::RW), outside(range(0xfef0_0000, (1 << 48) - 1)));
    assert_eq!(unmap(&narrow, pages(1 << 36, 1)), outside(range(0xfef0_0000, (1 << 48) - 1)));
    map(&narrow, range(0, 0xf_ffff), 0, Prot::RW).unwrap();
    assert_eq!(narrow.geometry(), Some(range(0, (1 << 48) - 1)));
}

#[test]
fn a_domain_of_another_backend_is_refused_and_nothing_changes() {
    let world = World::new(1);
    let device = world.device(1);
    let slab = Slab::new(world.frames.clone()).unwrap();
    let foreign = slab.insert(FixedDomain::new(DomainKind::Paging)).map_err(|(error, _)| error).unwrap();
    let foreign = Domain::new(Ref::map(foreign, |domain| domain as &dyn DomainOps));
    let default = world.iommu.domain_of(group(&device));
    world.unit().take_log();
    assert_eq!(world.iommu.attach_device(&foreign, &device), Err(Error::Incompatible(IncompatibleReason::Driver)));
    assert!(world.unit().take_log().is_empty());
    assert!(world.iommu.domain_of(group(&device)).ptr_eq(&default));
}

#[test]
fn a_device_that_cannot_go_back_is_blocked() {
    let world = World::new(1);
    let (first, second) = (world.behind(1, 2), world.behind(1, 3));
    let domain = world.domain(&first);
    map(&domain, pages(1, 1), 0x8000, Prot::RW).unwrap();
    world.iommu.attach_group(&domain, group(&first)).unwrap();
    world.unit().take_log();
    world.unit().state().fail_attach = Some((1, Error::NoMemory));
    world.iommu.detach_group(&domain, group(&first)).unwrap();
    assert!(world.iommu.domain_of(group(&first)).ptr_eq(world.iommu.blocked_domain()));
    for id in [1, 2, 3] {
        assert!(world.unit().domain_of(source(id)).is_none());
        assert_eq!(world.read(id, 0x1000), None);
    }
    let log = world.unit().take_log();
    assert_eq!(log.iter().filter(|event| matches!(event, Event::Block(_))).count(), 3);
    // And from there to wherever is wanted, once that is possible again.
    world.iommu.use_default_domain(&second).unwrap();
    assert!(world.iommu.domain_of(group(&first)).ptr_eq(&world.iommu.default_domain_of(group(&first))));
    drop((first, second, domain));
    assert_eq!(world.end(), 0);
}
