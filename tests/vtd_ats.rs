//! A VT-d unit and device TLBs, against hardware in software: who is asked to drop what, in which order,
//! and what becomes of a device that does not answer.
#![cfg(all(feature = "vtd", not(loom)))]

#[path = "support/express_functions.rs"]
mod functions;
#[allow(dead_code)]
#[path = "support/vtd_hardware.rs"]
mod hardware;
#[path = "support/vtd_tables.rs"]
mod tables;

use std::sync::Arc;

use functions::{A, B, BELOW, Space};
use hardware::{CAP, ECAP, Machine};
use iommu::arch::vtd;
use iommu::arch::vtd::layout::scalable::ScalableContextEntry;
use iommu::arch::vtd::layout::tables::TranslationType;
use iommu::arch::vtd::layout::{Cap, ContextEntry, Ecap};
use iommu::device::Trust;
use iommu::domain::{DirtyTracking, DomainOptions};
use iommu::iotlb::CacheTag;
use iommu::ops::DomainFeatures;
use iommu::{
    AtsPolicy, Device, Domain, Error, InvalidationReason, Iommu, Iova, IovaRange, PciAddress, PhysAddr, Policy, Prot,
};
use tables::{dmar, load};

/// Every root port (VT-d 8.5).
const ALL_PORTS: &[u8] = &[2, 0, 8, 0, 1, 0, 0, 0];
/// The root port 00:01.0.
const ONE_PORT: &[u8] = &[2, 0, 16, 0, 0, 0, 0, 0, 2, 8, 0, 0, 0, 0, 1, 0];
/// The integrated device 00:04.0 (VT-d 8.8).
const ONE_DEVICE: &[u8] = &[5, 0, 16, 0, 0, 0, 0, 0, 1, 8, 0, 0, 0, 0, 4, 0];

/// A page of A, and everything of A (6.5.2.5): five invalidations at a time.
const PAGE_OF_A: [u64; 2] = [0x20_0005_0003, 0x5000];
const ALL_OF_A: [u64; 2] = [0x20_0005_0003, 0x7fff_ffff_ffff_f001];

struct World {
    machine: Machine,
    space: Arc<Space>,
    iommu: Iommu<Machine>,
}

impl World {
    fn new() -> Self {
        Self::with(ECAP, 0x25, &[])
    }

    fn with(ecap: u64, ats: u32, more: &[u8]) -> Self {
        Self::on(CAP, ecap, ats, more)
    }

    fn on(cap: u64, ecap: u64, ats: u32, more: &[u8]) -> Self {
        let (mut machine, space) = (Machine::new(), Arc::new(Space::new(ats)));
        (machine.hardware().cap, machine.hardware().ecap) = (cap, ecap);
        machine.space = Some(space.clone());
        let policy = Policy { ats: AtsPolicy::Trusted, ..Policy::default() };
        let iommu = Iommu::new(machine.clone(), policy).unwrap();
        vtd::init(&iommu, &dmar(0, more)).unwrap();
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
        world.executed();
        (world, devices, domain)
    }

    /// What the unit has executed since it was asked last.
    fn executed(&self) -> Vec<[u64; 2]> {
        let executed = std::mem::take(&mut self.machine.hardware().executed);
        executed.into_iter().map(|descriptor| [descriptor.words[0], descriptor.words[1]]).collect()
    }

    /// The context entry that the unit would fetch.
    fn context(&self, function: PciAddress) -> ContextEntry {
        let root = self.machine.hardware().root & !0xfff;
        let table = load(root + u64::from(function.bus()) * 16) & !0xfff;
        let at = table + u64::from(function.devfn()) * 16;
        ContextEntry { low: load(at), high: load(at + 8) }
    }

    /// Device-selective context cache, then domain-selective IOTLB, with this domain (Figures 6-1, 6-3).
    fn flush_of(&self, function: PciAddress, entry: ContextEntry) -> [[u64; 2]; 2] {
        let id = u64::from(entry.domain_id().as_u16()) << 16;
        [[0x31 | id | u64::from(function.requester_id()) << 32, 0], [0xe2 | id, 0]]
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

/// The IOTLB request for one page at 0x5000 (6.5.2.3, IH set).
fn page_of(entry: ContextEntry) -> [u64; 2] {
    [0xf2 | u64::from(entry.domain_id().as_u16()) << 16, 0x5040]
}

#[test]
fn an_unmap_tells_the_iotlb_and_then_the_device() {
    for lazy in [false, true] {
        let world = World::new();
        let device = world.probe(A);
        world.iommu.enable().unwrap();
        assert!(device.ats_enabled());
        world.machine.hardware().lazy = lazy;
        let domain = world.iommu.paging_domain(&[&device]).unwrap();
        world.iommu.attach_device(&domain, &device).unwrap();
        let entry = world.context(A);
        assert_eq!(entry.translation_type(), Some(TranslationType::DeviceTlb));
        let (page, large) = (map(&domain, 0x5000, 0x1000), map(&domain, 0x4000_0000, 0x40_0000));
        world.executed();
        let tail = world.machine.hardware().tail;
        unmap(&domain, page).unwrap();
        assert_eq!(world.executed(), [page_of(entry), PAGE_OF_A]);
        assert_eq!(world.machine.hardware().tail - tail, 3, "one batch, so that a recovery keeps the order");
        unmap(&domain, large).unwrap();
        // 1024 pages: S, and bits 20:12 of the address all ones.
        assert_eq!(world.executed()[1..], [[0x20_0005_0003, 0x401f_f001]]);
    }
}

#[test]
fn who_leaves_a_domain_drops_everything() {
    let world = World::new();
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    let domain = world.iommu.paging_domain(&[&device]).unwrap();
    let before = world.context(A);
    world.executed();
    world.iommu.attach_device(&domain, &device).unwrap();
    let flush = world.flush_of(A, before);
    assert_eq!(world.executed(), [flush[0], flush[1], ALL_OF_A]);
    let (group, flush) = (device.group().unwrap(), world.flush_of(A, world.context(A)));
    world.iommu.replace(world.iommu.identity_domain(), group).unwrap();
    assert_eq!(world.executed(), [flush[0], flush[1], ALL_OF_A]);
    assert_eq!(world.context(A).translation_type(), Some(TranslationType::PassThrough));
    // It has none now.
    world.iommu.replace(&domain, group).unwrap();
    assert_eq!(world.executed().len(), 2);
    world.iommu.release_device(&device).unwrap();
    assert_eq!(world.executed().last(), Some(&ALL_OF_A));
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    assert_eq!(world.executed(), [[0; 2]; 0], "nobody is left");
    let World { machine, iommu, space: _ } = world;
    drop((domain, device, iommu));
    assert_eq!(machine.frames_in_use(), 0);
}

#[test]
fn devices_are_asked_nothing_while_nothing_is_translated() {
    let world = World::new();
    let device = world.probe(A);
    let domain = world.iommu.paging_domain(&[&device]).unwrap();
    world.iommu.attach_device(&domain, &device).unwrap();
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    assert_eq!(world.executed(), [[0; 2]; 0]);
    assert!(!device.ats_enabled());
    world.iommu.enable().unwrap();
    assert!(device.ats_enabled());
}

#[test]
fn a_device_that_is_gone_is_asked_nothing() {
    let world = World::new();
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    let flush = world.flush_of(A, world.context(A));
    world.executed();
    world.space.0.lock().unwrap().remove(&A.requester_id());
    world.iommu.release_device(&device).unwrap();
    assert_eq!(world.executed(), flush);
}

#[test]
fn a_unit_that_throttles_is_told_the_physical_function() {
    let world = World::with(ECAP | Ecap::DIT.bits(), 0x20, &[]);
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    world.executed();
    world.iommu.release_device(&device).unwrap();
    // PFSID 0x0020 in 63:52 and 15:12; 32 invalidations are told as none.
    assert_eq!(world.executed().last(), Some(&[0x0020_0020_0000_0003, ALL_OF_A[1]]));
}

#[test]
fn who_may_use_a_device_tlb() {
    let uses = |ecap: u64, ats: u32, more: &[u8], function: PciAddress| {
        let world = World::with(ecap, ats, more);
        world.probe(function);
        world.iommu.enable().unwrap();
        world.context(function).translation_type() == Some(TranslationType::DeviceTlb)
    };
    let aligned = 0x20;
    assert!(uses(ECAP, aligned, &[], A), "integrated, and a table of before SATC");
    assert!(!uses(ECAP & !Ecap::DT.bits(), aligned, &[], A), "not by this unit");
    assert!(!uses(ECAP, 0, &[], A), "requests inside of pages");
    assert!(uses(ECAP, aligned, ONE_DEVICE, A) && !uses(ECAP, aligned, ONE_DEVICE, B));
    assert!(!uses(ECAP, aligned, &[], BELOW), "no port is named");
    assert!(uses(ECAP, aligned, ALL_PORTS, BELOW) && uses(ECAP, aligned, ONE_PORT, BELOW));
    let other_port = [&ONE_PORT[..14], &[2, 0]].concat();
    assert!(!uses(ECAP, aligned, &other_port, BELOW));
}

#[test]
fn a_device_that_does_not_answer_is_fenced_and_others_go_on() {
    let (world, devices, domain) = World::two();
    let own = world.iommu.paging_domain(&[&devices[1]]).unwrap();
    for page in 0..512 {
        map(&domain, 0x4000_0000 + page * 0x1000, 0x1000);
    }
    let (entry, other) = (world.context(A), world.context(B));
    let frames = world.machine.frames_in_use();
    world.machine.hardware().deaf = vec![A.requester_id()];
    let tables = IovaRange::from_len(Iova::new(0x4000_0000), 0x20_0000).unwrap();
    let error = Error::Invalidation { reason: InvalidationReason::DeviceTimeOut, request: 0x20_0005_0003 };
    assert_eq!(unmap(&domain, tables), Err(error));
    // At once it is blocked, and what the unit has of its entry goes.
    assert_eq!(world.context(A).low, entry.low & !1 | 1 << 7);
    assert_eq!(world.executed()[1..], world.flush_of(A, entry));
    assert_eq!(world.context(B), other);
    // It is asked no more; the other is, but nothing is given back.
    assert_eq!(domain.flush_deferred(), Err(Error::Fenced));
    let executed = world.executed();
    assert!(matches!(executed[..], [[iotlb, _], [0x28_0005_0003, 0x400f_f001]] if iotlb & 0xf == 2), "{executed:x?}");
    assert_eq!(world.machine.frames_in_use(), frames, "the detached table is kept");
    // The other is free to go elsewhere, and to work there.
    world.iommu.replace(&own, devices[1].group().unwrap()).unwrap();
    unmap(&own, map(&own, 0x5000, 0x1000)).unwrap();

    world.machine.hardware().deaf.clear();
    world.executed();
    world.iommu.resume().unwrap();
    assert_eq!(world.executed()[0], ALL_OF_A, "before it is let through");
    assert_eq!(world.context(A), entry);
    assert!(devices[0].ats_enabled());
    let frames = world.machine.frames_in_use();
    domain.flush_deferred().unwrap();
    assert_eq!(world.machine.frames_in_use(), frames - 1, "now the table is free");
}

#[test]
fn a_fenced_device_stays_blocked_wherever_it_is_moved() {
    let (world, devices, domain) = World::two();
    let group = devices[0].group().unwrap();
    let elsewhere = world.iommu.paging_domain(&[&devices[0]]).unwrap();
    world.machine.hardware().deaf = vec![A.requester_id()];
    // It leaves: what it may have cached is kept.
    let timed_out = Error::Invalidation { reason: InvalidationReason::DeviceTimeOut, request: 0x20_0005_0003 };
    assert_eq!(world.iommu.replace(&elsewhere, group), Err(timed_out));
    assert!(!world.context(A).is_present() && !devices[0].ats_enabled());
    assert_eq!(world.iommu.replace(&elsewhere, group), Err(Error::Fenced));
    // As long as it does not answer a reset does not help it, and harms nobody.
    world.iommu.resume().unwrap();
    assert_eq!(world.iommu.replace(&elsewhere, group), Err(Error::Fenced));
    assert!(!world.context(A).is_present() && world.context(B).is_present());
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    world.machine.hardware().deaf.clear();
    world.iommu.resume().unwrap();
    world.iommu.replace(&elsewhere, group).unwrap();
    assert_eq!(world.context(A).translation_type(), Some(TranslationType::DeviceTlb));
    assert!(devices[0].ats_enabled());
    let World { machine, iommu, space: _ } = world;
    drop((iommu, devices, domain, elsewhere));
    assert_eq!(machine.frames_in_use(), 0);
}

#[test]
fn a_domain_that_a_device_could_not_leave_can_be_attached_again() {
    let (world, devices, domain) = World::two();
    let group = devices[0].group().unwrap();
    let (entry, default) = (world.context(A), world.iommu.default_domain_of(group));
    let elsewhere = world.iommu.paging_domain(&[&devices[0]]).unwrap();
    let fail = |from: &Domain| {
        world.machine.hardware().deaf = vec![A.requester_id()];
        world.iommu.replace(&elsewhere, group).unwrap_err();
        assert!(world.iommu.domain_of(group).ptr_eq(from) && !world.context(A).is_present());
        world.machine.hardware().deaf.clear();
        world.iommu.resume().unwrap();
        assert!(!world.context(A).is_present());
    };
    fail(&domain);
    world.iommu.attach_device(&domain, &devices[0]).unwrap();
    assert_eq!(world.context(A), entry);
    world.executed();
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    assert!(world.executed().contains(&PAGE_OF_A));
    world.iommu.detach_device(&domain, &devices[0]).unwrap();
    fail(&default);
    world.iommu.use_default_domain(&devices[0]).unwrap();
    assert!(world.context(A).is_present() && devices[0].ats_enabled());
    let World { machine, iommu, space: _ } = world;
    drop((iommu, devices, domain, default, elsewhere));
    assert_eq!(machine.frames_in_use(), 0);
}

#[test]
fn a_fenced_device_that_is_replaced_begins_anew() {
    let (world, devices, domain) = World::two();
    world.machine.hardware().deaf = vec![A.requester_id()];
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap_err();
    let plugged = world.space.0.lock().unwrap().remove(&A.requester_id()).unwrap();
    world.iommu.release_device(&devices[0]).unwrap();
    assert_eq!(world.context(A).low, 0);
    domain.flush_deferred().unwrap();
    world.machine.hardware().deaf.clear();
    world.space.0.lock().unwrap().insert(A.requester_id(), plugged);
    let device = world.probe(A);
    assert!(world.context(A).is_present() && device.ats_enabled());
}

#[test]
fn too_many_that_do_not_answer_fence_the_unit() {
    let world = World::new();
    let functions: Vec<_> = (0..17).map(|number| PciAddress::new(0, 0, 8 + number, 0).unwrap()).collect();
    functions.iter().for_each(|function| world.space.add(*function, 9, 0x25));
    let devices: Vec<_> = functions.iter().map(|function| world.probe(*function)).collect();
    let bystander = world.probe(A);
    world.iommu.enable().unwrap();
    world.machine.hardware().deaf = functions.iter().map(|function| function.requester_id()).collect();
    for (count, device) in devices.iter().enumerate() {
        assert!(world.context(A).is_present(), "{count} do not answer");
        let domain = world.iommu.paging_domain(&[device]).unwrap();
        world.iommu.attach_device(&domain, device).unwrap_err();
    }
    assert!(!world.context(A).is_present());
    world.machine.hardware().deaf.clear();
    world.iommu.resume().unwrap();
    assert!(world.context(A).is_present() && bystander.ats_enabled());
}

/// Scalable mode, with the second stage and its dirty bits.
const SCALABLE: u64 = ECAP | Ecap::SMTS.bits() | Ecap::SSTS.bits() | Ecap::SSADS.bits() | Ecap::SMPWCS.bits();

/// Scalable mode, with the first stage.
const FIRST_STAGE: u64 = ECAP | Ecap::SMTS.bits() | Ecap::FSTS.bits() | Ecap::SMPWCS.bits();

impl World {
    /// The scalable-mode context entry that the unit would fetch (9.2, 9.4).
    fn scalable_context(&self, function: PciAddress) -> ScalableContextEntry {
        let root = self.machine.hardware().root & !0xfff;
        let half = u64::from(function.devfn() >> 7);
        let table = load(root + u64::from(function.bus()) * 16 + half * 8) & !0xfff;
        let at = table + u64::from(function.devfn() & 0x7f) * 32;
        ScalableContextEntry::from([load(at), load(at + 8)])
    }

    /// The number under which requests without PASID are cached (9.5, 9.6).
    fn scalable_id(&self, function: PciAddress) -> u64 {
        let directory = self.scalable_context(function).directory().as_u64();
        let table = load(directory) & !0xfff;
        load(table + 8) & 0xffff
    }
}

#[test]
fn scalable_mode_tells_devices_after_the_caches_by_pasid() {
    let world = World::with(SCALABLE, 0x25, &[]);
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    assert!(device.ats_enabled() && world.scalable_context(A).permits_device_tlb());
    let wish = DomainOptions { features: DomainFeatures::DIRTY_TRACKING, ..DomainOptions::default() };
    let domain = world.iommu.paging_domain_with(&[&device], wish).unwrap();
    let old = world.scalable_id(A) << 16;
    world.executed();
    world.iommu.attach_device(&domain, &device).unwrap();
    let left = world.executed();
    let (pasid, iotlb) = ([0x17 | old, 0], [0xe2 | old, 0]);
    assert_eq!(left, [pasid, iotlb, ALL_OF_A]);
    let id = world.scalable_id(A) << 16;
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    assert_eq!(world.executed(), [[0xf2 | id, 0x5040], PAGE_OF_A]);
    // What it has cached it would write without a trace.
    domain.set_dirty_tracking(DirtyTracking::On).unwrap();
    let executed = world.executed();
    // After the invalidation of what was dirty before.
    assert_eq!(executed[executed.len() - 3..], [[0x17 | id, 0], [0xe2 | id, 0], ALL_OF_A]);
    world.iommu.release_device(&device).unwrap();
    assert_eq!(world.executed(), [[0x17 | id, 0], [0xe2 | id, 0], ALL_OF_A]);
}

#[test]
fn behind_a_first_stage_devices_are_told_after_a_request_by_domain() {
    // 6.5.2.12 lets them overtake what is invalidated by PASID.
    let world = World::with(FIRST_STAGE, 0x25, &[]);
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    let domain = world.iommu.paging_domain(&[&device]).unwrap();
    world.iommu.attach_device(&domain, &device).unwrap();
    world.executed();
    let id = world.scalable_id(A) << 16;
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap();
    assert_eq!(world.executed(), [[0xf2 | id, 0x5040], PAGE_OF_A]);
}

#[test]
fn in_scalable_mode_the_context_entry_is_fenced() {
    let world = World::with(SCALABLE, 0x25, &[]);
    let devices = [A, B].map(|function| world.probe(function));
    world.iommu.enable().unwrap();
    let domain = world.iommu.paging_domain(&[&devices[0]]).unwrap();
    world.iommu.attach_device(&domain, &devices[0]).unwrap();
    let (entry, id) = (world.scalable_context(A), world.scalable_id(A) << 16);
    let page = map(&domain, 0x5000, 0x1000);
    world.executed();
    world.machine.hardware().deaf = vec![A.requester_id()];
    unmap(&domain, page).unwrap_err();
    assert_eq!(world.scalable_context(A).words[0], entry.words[0] & !1 | 1 << 7);
    let fenced = [[0x31 | id | 0x20 << 32, 0], [0x07 | id, 0], [0xe2 | id, 0]];
    assert_eq!(world.executed()[1..], fenced);
    assert!(world.scalable_context(B).is_present());
    assert_eq!(domain.flush_deferred(), Err(Error::Fenced));
    // Still deaf: the reset goes on without it.
    world.iommu.resume().unwrap();
    assert!(!world.scalable_context(A).is_present() && world.scalable_context(B).is_present());
    world.machine.hardware().deaf.clear();
    world.iommu.resume().unwrap();
    assert_eq!(world.scalable_context(A), entry);
    domain.flush_deferred().unwrap();
}

/// A was released, and something untrusted is in its place.
fn replaced(cap: u64) -> World {
    let world = World::on(cap, SCALABLE, 0x25, &[]);
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    world.iommu.release_device(&device).unwrap();
    assert!(world.scalable_context(A).permits_device_tlb());
    world.executed();
    world
}

#[test]
fn what_comes_in_the_place_of_a_device_has_no_right_to_its_device_tlb() {
    let world = replaced(CAP);
    let device = world.iommu.probe_pci(&*world.space, A, Trust::Untrusted).unwrap();
    let entry = world.scalable_context(A);
    assert!(entry.is_present() && !entry.permits_device_tlb() && !device.ats_enabled());
    assert_eq!(world.executed(), [[0x31 | 0x20 << 32, 0]], "nothing was present below");
}

#[test]
fn a_right_that_is_taken_away_leaves_nothing_cached() {
    let world = World::on(CAP | Cap::CM.bits(), SCALABLE, 0x25, &[]);
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    let (domain, id) = (world.iommu.paging_domain(&[&device]).unwrap(), world.scalable_id(A) << 16);
    world.executed();
    world.space.0.lock().unwrap().remove(&A.requester_id());
    world.iommu.attach_device(&domain, &device).unwrap();
    assert!(!world.scalable_context(A).permits_device_tlb());
    let entry = [[0x31 | id | 0x20 << 32, 0], [0x07 | id, 0], [0xe2 | id, 0]];
    let executed = world.executed();
    assert_eq!(executed[..3], entry);
    assert_eq!(executed[3], [0x31 | 0x20 << 32, 0], "the absent entry, of domain 0");
}

#[test]
fn a_right_that_may_still_be_cached_is_not_taken_for_gone() {
    let world = replaced(CAP);
    world.machine.hardware().frozen = true;
    world.iommu.probe_pci(&*world.space, A, Trust::Untrusted).unwrap_err();
    assert!(!world.scalable_context(A).is_present());
    world.machine.hardware().frozen = false;
    world.machine.hardware().run();
    world.iommu.resume().unwrap();
    world.iommu.probe_pci(&*world.space, A, Trust::Untrusted).unwrap();
    assert!(!world.scalable_context(A).permits_device_tlb());
}

#[test]
fn dirty_pages_are_not_recorded_while_a_device_may_write_without_a_trace() {
    let world = World::with(SCALABLE, 0x25, &[]);
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    let wish = DomainOptions { features: DomainFeatures::DIRTY_TRACKING, ..DomainOptions::default() };
    let domain = world.iommu.paging_domain_with(&[&device], wish).unwrap();
    world.iommu.attach_device(&domain, &device).unwrap();
    domain.set_dirty_tracking(DirtyTracking::On).unwrap();
    world.machine.hardware().deaf = vec![A.requester_id()];
    let (unit, id) = (device.unit().unwrap(), world.scalable_id(A) as u32);
    let refreshed = unit.refresh(unit, CacheTag { id, pasid: None, device: None }, &domain);
    assert!(matches!(refreshed, Err(Error::Invalidation { .. })), "{refreshed:?}");
    assert!(!world.scalable_context(A).is_present());
}

#[test]
fn in_scalable_mode_too_a_fenced_device_that_is_replaced_begins_anew() {
    let world = World::with(SCALABLE, 0x25, &[]);
    let devices = [A, B].map(|function| world.probe(function));
    world.iommu.enable().unwrap();
    let domain = world.iommu.paging_domain(&[&devices[0], &devices[1]]).unwrap();
    devices.iter().for_each(|device| world.iommu.attach_device(&domain, device).unwrap());
    world.machine.hardware().deaf = vec![A.requester_id()];
    unmap(&domain, map(&domain, 0x5000, 0x1000)).unwrap_err();
    let plugged = world.space.0.lock().unwrap().remove(&A.requester_id()).unwrap();
    world.iommu.release_device(&devices[0]).unwrap();
    domain.flush_deferred().unwrap();
    world.machine.hardware().deaf.clear();
    world.space.0.lock().unwrap().insert(A.requester_id(), plugged);
    let device = world.probe(A);
    assert!(world.scalable_context(A).is_present() && device.ats_enabled());
}

#[test]
fn a_device_that_was_fenced_as_it_left_a_domain_can_be_replaced() {
    for ecap in [ECAP, SCALABLE] {
        let world = World::with(ecap, 0x25, &[]);
        let device = world.probe(A);
        world.iommu.enable().unwrap();
        let domain = world.iommu.paging_domain(&[&device]).unwrap();
        world.machine.hardware().deaf = vec![A.requester_id()];
        world.iommu.attach_device(&domain, &device).unwrap_err();
        let plugged = world.space.0.lock().unwrap().remove(&A.requester_id()).unwrap();
        world.iommu.release_device(&device).unwrap();
        world.machine.hardware().deaf.clear();
        world.space.0.lock().unwrap().insert(A.requester_id(), plugged);
        let device = world.probe(A);
        world.iommu.attach_device(&domain, &device).unwrap();
        let is_present = match ecap {
            SCALABLE => world.scalable_context(A).is_present(),
            _ => world.context(A).is_present(),
        };
        assert!(is_present && device.ats_enabled());
    }
}

#[test]
fn a_number_that_another_domain_has_by_now_changes_none_of_its_entries() {
    // Sixteen domain ids.
    let world = World::on(CAP & !7, SCALABLE, 0x25, &[]);
    let device = world.probe(A);
    world.iommu.enable().unwrap();
    let wish = DomainOptions { features: DomainFeatures::DIRTY_TRACKING, ..DomainOptions::default() };
    let new = || {
        let domain = world.iommu.paging_domain_with(&[&device], wish).unwrap();
        world.iommu.replace(&domain, device.group().unwrap()).unwrap();
        (domain, world.scalable_id(A))
    };
    let (left, id) = new();
    let heir = (0..16).map(|_| new()).find(|(_, of)| *of == id).unwrap().0;
    heir.set_dirty_tracking(DirtyTracking::On).unwrap();
    let (unit, tag) = (device.unit().unwrap(), CacheTag { id: id as u32, pasid: None, device: None });
    // Whoever changes the features of a domain may have read its tags before it left.
    unit.refresh(unit, tag, &left).unwrap();
    let entry = load(load(world.scalable_context(A).directory().as_u64()) & !0xfff);
    assert_ne!(entry & 1 << 9, 0, "SSADE");
}
