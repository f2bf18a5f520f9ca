//! An SMMUv3 and device TLBs, with the device half as hardware: who is asked to drop what, in which order, and
//! what becomes of a device that does not answer.
#![cfg(all(feature = "smmuv3", feature = "device", not(loom)))]

#[path = "support/express_functions.rs"]
mod functions;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/smmuv3_iort.rs"]
mod iort;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/smmuv3_device.rs"]
mod machine;

use std::sync::Arc;

use functions::{A, B, BELOW, Space};
use iommu::arch::smmuv3;
use iommu::arch::smmuv3::device::{Access, DeviceConfig, Misuse, Request};
use iommu::arch::smmuv3::layout::commands::{Command, Completion, Leaf};
use iommu::arch::smmuv3::layout::identification::Idr0;
use iommu::arch::smmuv3::layout::{Identification, StreamId};
use iommu::bus::AddressType;
use iommu::device::Trust;
use iommu::{
    AtsPolicy, Device, Domain, Error, InvalidationReason, Iommu, Iova, IovaRange, PciAddress, PhysAddr, Policy, Prot,
};
use iort::{Host, iort};
use machine::Machine;

const SYNC: Command = Command::Sync { completion: Completion::None };

const fn stream(function: PciAddress) -> u32 {
    0x1000 + function.requester_id() as u32
}

const fn all_of(function: PciAddress) -> Command {
    Command::AtcInvalidate { stream: StreamId(stream(function)), substream: None, address: 0, size_log2: 64 }
}

const fn page_of(function: PciAddress) -> Command {
    Command::AtcInvalidate { stream: StreamId(stream(function)), substream: None, address: 0x5000, size_log2: 12 }
}

const fn entry_of(function: PciAddress) -> Command {
    Command::ConfigSte { stream: StreamId(stream(function)), leaf: Leaf::Only }
}

fn is_of_a_device(command: &Command) -> bool {
    matches!(command, Command::AtcInvalidate { .. })
}

struct World {
    machine: Machine,
    space: Arc<Space>,
    iommu: Iommu<Machine>,
}

impl World {
    fn new() -> Self {
        Self::on(DeviceConfig::default().identification, 0x25, Host::WithAts)
    }

    fn on(identification: Identification, ats: u32, host: Host) -> Self {
        let space = Arc::new(Space::new(ats));
        let machine = Machine::new(identification).with_functions(space.clone());
        let policy = Policy { ats: AtsPolicy::Trusted, ..Policy::default() };
        let iommu = Iommu::new(machine.clone(), policy).unwrap();
        smmuv3::init(&iommu, &iort(1, host, &[(0, 0x200, 0x1000)], &[])).unwrap();
        Self { machine, space, iommu }
    }

    fn probe(&self, function: PciAddress) -> Device {
        self.iommu.probe_pci(&*self.space, function, Trust::Trusted).unwrap()
    }

    /// A translating unit with A and B, both attached to one domain.
    fn two() -> (Self, [Device; 2], Domain) {
        let world = Self::new();
        let devices = [A, B].map(|function| world.probe(function));
        world.iommu.enable().unwrap();
        let domain = world.iommu.paging_domain(&[&devices[0], &devices[1]]).unwrap();
        devices.iter().for_each(|device| world.iommu.attach_device(&domain, device).unwrap());
        map(&domain, 0x20_0000, 0x1000);
        world.machine.executed();
        (world, devices, domain)
    }

    /// Whether the device reaches what is mapped at `address` by a translation that it asks for.
    fn caches(&self, function: PciAddress, address: u64) -> bool {
        let asked = Request::new(StreamId(stream(function)), address, Access::Write);
        self.machine.ask(&Request { address_type: AddressType::TranslationRequest, ..asked }).is_ok()
    }

    fn reaches(&self, function: PciAddress, address: u64) -> bool {
        self.machine.reach(stream(function), address, Access::Write).is_ok()
    }

    fn set_deaf(&self, deaf: &[PciAddress]) {
        *self.machine.surroundings().deaf.lock().unwrap() = deaf.iter().map(|function| stream(*function)).collect();
    }

    fn drop_all(self, rest: impl Sized) {
        let Self { machine, iommu, space: _ } = self;
        assert_eq!(machine.misuse(), Misuse::empty());
        drop((rest, iommu));
        assert_eq!(machine.frames_in_use(), 0);
    }
}

fn map(domain: &Domain, at: u64, bytes: u64) -> IovaRange {
    let range = IovaRange::from_len(Iova::new(at), bytes).unwrap();
    // SAFETY: no device is real.
    unsafe { domain.map(range, PhysAddr::new(at), Prot::RW) }.unwrap();
    range
}

fn unmap(domain: &Domain, range: IovaRange) -> Result<(), Error> {
    // SAFETY: one thread.
    unsafe { domain.unmap_sync(range) }
}

/// The unit says of a device that did not answer only that there was one: the first that was asked is named.
fn timed_out(result: Result<(), Error>) -> bool {
    matches!(result, Err(Error::Invalidation { reason: InvalidationReason::DeviceTimeOut, .. }))
}

#[test]
fn an_unmap_tells_the_tlb_and_then_each_device() {
    let (world, devices, domain) = World::two();
    assert!(world.caches(A, 0x20_0000) && world.caches(B, 0x20_0000));
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    let executed = world.machine.executed();
    let [Command::TlbNhVa { .. }, SYNC, first, SYNC, second, SYNC] = executed[..] else { panic!("{executed:?}") };
    assert!([page_of(A), page_of(B)].contains(&first) && [page_of(A), page_of(B)].contains(&second));
    assert_ne!(first, second);
    world.drop_all((devices, domain));
}

#[test]
fn who_leaves_a_domain_drops_everything_after_the_unit_did() {
    let (world, devices, domain) = World::two();
    world.iommu.detach_device(&domain, &devices[0]).unwrap();
    let executed = world.machine.executed();
    let place = |what: &dyn Fn(&Command) -> bool| executed.iter().position(what).unwrap();
    let order = [
        place(&|command| *command == entry_of(A)),
        place(&|command| matches!(command, Command::TlbNhAsid { .. })),
        place(&|command| *command == all_of(A)),
    ];
    assert!(order.is_sorted() && executed[order[1]..order[2]].contains(&SYNC), "{executed:?}");
    // B is alone now.
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    let asked: Vec<_> = world.machine.executed().into_iter().filter(is_of_a_device).collect();
    assert_eq!(asked, [page_of(B)]);
    world.iommu.release_device(&devices[1]).unwrap();
    assert!(world.machine.executed().contains(&all_of(B)));
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    assert!(!world.machine.executed().iter().any(is_of_a_device));
    world.drop_all((devices, domain));
}

#[test]
fn devices_are_asked_nothing_while_nothing_is_translated() {
    let world = World::new();
    let device = world.probe(A);
    let domain = world.iommu.paging_domain(&[&device]).unwrap();
    world.iommu.attach_device(&domain, &device).unwrap();
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    assert_eq!(world.machine.executed(), []);
    assert!(!device.ats_enabled());
    world.iommu.enable().unwrap();
    assert!(device.ats_enabled());
    world.drop_all((device, domain));
}

#[test]
fn a_device_that_is_gone_is_asked_nothing() {
    let world = World::new();
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    world.machine.executed();
    world.space.0.lock().unwrap().remove(&A.requester_id());
    world.iommu.release_device(&device).unwrap();
    let executed = world.machine.executed();
    assert!(executed.contains(&entry_of(A)) && !executed.iter().any(is_of_a_device), "{executed:?}");
}

#[test]
fn who_may_use_a_device_tlb() {
    let default = DeviceConfig::default().identification;
    let uses = |identification, ats, host, function| {
        let world = World::on(identification, ats, host);
        let device = world.probe(function);
        world.iommu.enable().unwrap();
        let domain = world.iommu.domain_of(device.group().unwrap());
        map(&domain, 0x5000, 0x1000);
        assert_eq!(world.caches(function, 0x5000), device.ats_enabled());
        device.ats_enabled()
    };
    let aligned = 0x20;
    assert!(uses(default, aligned, Host::WithAts, A) && uses(default, aligned, Host::WithAts, BELOW));
    assert!(!uses(default, aligned, Host::Plain, A), "firmware says no");
    assert!(!uses(default, 0, Host::WithAts, A), "requests inside of pages");
    let without = Identification { idr0: default.idr0 & !Idr0::ATS.bits(), ..default };
    assert!(!uses(without, aligned, Host::WithAts, A), "not by this unit");
}

#[test]
fn a_device_that_does_not_answer_is_fenced_and_others_go_on() {
    let (world, devices, domain) = World::two();
    let own = world.iommu.paging_domain(&[&devices[1]]).unwrap();
    map(&own, 0x20_0000, 0x1000);
    let tables = IovaRange::from_len(Iova::new(0x4000_0000), 0x20_0000).unwrap();
    // SAFETY: no device is real; where no block can be.
    unsafe { domain.map(tables, PhysAddr::new(0x1000), Prot::RW) }.unwrap();
    let frames = world.machine.frames_in_use();
    world.set_deaf(&[A]);
    assert!(timed_out(unmap(&domain, tables)));
    // At once it is blocked, and what the unit has of its entry goes.
    assert!(!world.reaches(A, 0x20_0000) && !world.caches(A, 0x20_0000));
    assert!(world.machine.executed().contains(&entry_of(A)));
    assert!(world.reaches(B, 0x20_0000) && world.caches(B, 0x20_0000));
    // It is asked no more; the other is, but nothing is given back.
    assert_eq!(domain.flush_deferred(), Err(Error::Fenced));
    let asked: Vec<_> = world.machine.executed().into_iter().filter(is_of_a_device).collect();
    assert!(matches!(asked[..], [Command::AtcInvalidate { stream: StreamId(0x1028), .. }]), "{asked:?}");
    assert_eq!(world.machine.frames_in_use(), frames, "the detached table is kept");
    // The other is free to go elsewhere, and to work there.
    world.iommu.replace(&own, devices[1].group().unwrap()).unwrap();
    unmap(&own, map(&own, 0x5000, 0x1000)).unwrap();
    assert!(world.caches(B, 0x20_0000));

    world.set_deaf(&[]);
    world.machine.executed();
    world.iommu.resume().unwrap();
    let asked: Vec<_> = world.machine.executed().into_iter().filter(is_of_a_device).collect();
    assert_eq!(asked[..1], [all_of(A)], "before it is let through");
    assert!(world.caches(A, 0x20_0000) && devices[0].ats_enabled());
    let frames = world.machine.frames_in_use();
    domain.flush_deferred().unwrap();
    assert_eq!(world.machine.frames_in_use(), frames - 1, "now the table is free");
    world.drop_all((devices, domain, own));
}

#[test]
fn a_fenced_device_stays_blocked_wherever_it_is_moved() {
    let (world, devices, domain) = World::two();
    let group = devices[0].group().unwrap();
    let elsewhere = world.iommu.paging_domain(&[&devices[0]]).unwrap();
    map(&elsewhere, 0x20_0000, 0x1000);
    world.set_deaf(&[A]);
    // It leaves: what it may have cached is kept.
    assert!(timed_out(world.iommu.replace(&elsewhere, group)));
    assert!(!world.reaches(A, 0x20_0000) && !devices[0].ats_enabled());
    assert_eq!(world.iommu.replace(&elsewhere, group), Err(Error::Fenced));
    // As long as it does not answer a reset does not help it, and harms nobody.
    world.iommu.resume().unwrap();
    assert_eq!(world.iommu.replace(&elsewhere, group), Err(Error::Fenced));
    assert!(!world.reaches(A, 0x20_0000) && world.caches(B, 0x20_0000));
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    world.set_deaf(&[]);
    world.iommu.resume().unwrap();
    world.iommu.replace(&elsewhere, group).unwrap();
    assert!(world.caches(A, 0x20_0000) && devices[0].ats_enabled());
    world.drop_all((devices, domain, elsewhere));
}

#[test]
fn a_domain_that_a_device_could_not_leave_can_be_attached_again() {
    let (world, devices, domain) = World::two();
    let group = devices[0].group().unwrap();
    let default = world.iommu.default_domain_of(group);
    let elsewhere = world.iommu.paging_domain(&[&devices[0]]).unwrap();
    let fail = |from: &Domain| {
        world.set_deaf(&[A]);
        world.iommu.replace(&elsewhere, group).unwrap_err();
        assert!(world.iommu.domain_of(group).ptr_eq(from) && !world.reaches(A, 0x20_0000));
        world.set_deaf(&[]);
        world.iommu.resume().unwrap();
        assert!(!world.reaches(A, 0x20_0000));
    };
    fail(&domain);
    world.iommu.attach_device(&domain, &devices[0]).unwrap();
    assert!(world.caches(A, 0x20_0000));
    world.machine.executed();
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    assert!(world.machine.executed().contains(&page_of(A)));
    world.iommu.detach_device(&domain, &devices[0]).unwrap();
    fail(&default);
    world.iommu.use_default_domain(&devices[0]).unwrap();
    map(&default, 0x20_0000, 0x1000);
    assert!(world.caches(A, 0x20_0000) && devices[0].ats_enabled());
    world.drop_all((devices, domain, default, elsewhere));
}

#[test]
fn a_fenced_device_that_is_replaced_begins_anew() {
    let (world, devices, domain) = World::two();
    world.set_deaf(&[A]);
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap_err();
    let plugged = world.space.0.lock().unwrap().remove(&A.requester_id()).unwrap();
    world.iommu.release_device(&devices[0]).unwrap();
    assert!(!world.reaches(A, 0x20_0000));
    domain.flush_deferred().unwrap();
    world.set_deaf(&[]);
    world.space.0.lock().unwrap().insert(A.requester_id(), plugged);
    let device = world.probe(A);
    let own = world.iommu.domain_of(device.group().unwrap());
    map(&own, 0x5000, 0x1000);
    assert!(world.caches(A, 0x5000) && device.ats_enabled());
    world.drop_all((devices, device, domain, own));
}

#[test]
fn too_many_that_do_not_answer_fence_the_unit() {
    let world = World::new();
    let functions: Vec<_> = (0..17).map(|number| PciAddress::new(0, 0, 8 + number, 0).unwrap()).collect();
    functions.iter().for_each(|function| world.space.add(*function, 9, 0x25));
    let devices: Vec<_> = functions.iter().map(|function| world.probe(*function)).collect();
    let bystander = world.probe(A);
    world.iommu.enable().unwrap();
    let own = world.iommu.domain_of(bystander.group().unwrap());
    map(&own, 0x5000, 0x1000);
    world.set_deaf(&functions);
    for (count, device) in devices.iter().enumerate() {
        assert!(world.reaches(A, 0x5000), "{count} do not answer");
        let domain = world.iommu.paging_domain(&[device]).unwrap();
        world.iommu.attach_device(&domain, device).unwrap_err();
    }
    assert!(!world.reaches(A, 0x5000));
    world.set_deaf(&[]);
    world.iommu.resume().unwrap();
    assert!(world.caches(A, 0x5000) && bystander.ats_enabled());
}
