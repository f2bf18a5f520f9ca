//! A VT-d unit in scalable mode, against hardware in software: what entries say, and what is invalidated
//! in which order (VT-d 6.5.3.3, 6.6). Requests and entries are the words that the specification gives.
#![cfg(all(feature = "vtd", not(loom)))]

#[path = "support/functions.rs"]
mod functions;
#[allow(dead_code)]
#[path = "support/vtd_hardware.rs"]
mod hardware;
#[path = "support/vtd_tables.rs"]
mod tables;

use functions::Functions;
use hardware::{CAP, ECAP, Machine};
use iommu::arch::vtd::layout::registers::{Global, TableMode};
use iommu::arch::vtd::layout::{Cap, Ecap};
use iommu::arch::vtd::{self, ModeWish, VtdOptions};
use iommu::device::Trust;
use iommu::domain::{DirtyTracking, DomainOptions};
use iommu::ops::{DomainFeatures, Stage};
use iommu::{Device, Domain, Error, InvalidationReason, Iommu, Iova, IovaRange, PciAddress, PhysAddr, Policy, Prot};
use tables::{dmar, load};

/// 00:14.0, alone: its entry is in the upper context table.
const FUNCTION: PciAddress = PciAddress::from_requester_id(0, 0xa0);
const SPACE: Functions = Functions(&[FUNCTION]);

/// Both stages, 256-bit requests, no device TLB.
const SCALABLE: u64 = ECAP & !Ecap::DT.bits() | Ecap::SMTS.union(Ecap::SSTS).union(Ecap::FSTS).bits();

struct World {
    machine: Machine,
    iommu: Iommu<Machine>,
    device: Device,
}

impl World {
    fn new(cap: u64, ecap: u64) -> Self {
        let machine = Machine::new();
        (machine.hardware().cap, machine.hardware().ecap) = (cap, ecap);
        Self::on(machine)
    }

    /// The default domain has number 2, the next one 3.
    fn on(machine: Machine) -> Self {
        let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
        vtd::init(&iommu, &dmar(0, &[])).unwrap();
        let device = iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted).unwrap();
        iommu.enable().unwrap();
        machine.hardware().executed.clear();
        machine.hardware().commands.clear();
        Self { machine, iommu, device }
    }

    fn domain(&self, stage: Stage, features: DomainFeatures) -> Domain {
        let options = DomainOptions { stage: Some(stage), features };
        self.iommu.paging_domain_with(&[&self.device], options).unwrap()
    }

    fn replace(&self, domain: &Domain) -> Result<(), Error> {
        self.iommu.replace(domain, self.device.group().unwrap())
    }

    /// What the unit has executed since it was asked last: the lower quadwords.
    fn executed(&self) -> Vec<u64> {
        std::mem::take(&mut self.machine.hardware().executed).iter().map(|request| request.words[0]).collect()
    }

    /// The PASID entry that the unit would fetch for requests of the function without PASID.
    fn entry(&self) -> [u64; 8] {
        let root = self.machine.hardware().root & !0xfff;
        // The upper half of the root entry, for functions from 10.0 on.
        let context = (load(root + 8) & !0xfff) + (u64::from(FUNCTION.devfn()) & 0x7f) * 32;
        assert_eq!((load(context) & 0xfff, load(context + 8)), (1, 0), "P, PDTS 0, RID_PASID 0");
        let table = load(load(context) & !0xfff) & !0xfff;
        std::array::from_fn(|index| load(table + index as u64 * 8))
    }

    fn is_blocked(&self) -> bool {
        self.entry()[0] & 1 == 0
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

const fn pasid_cache(id: u64) -> u64 {
    0x17 | id << 16
}

/// With both drains.
const fn iotlb(id: u64) -> u64 {
    0xe2 | id << 16
}

const fn pasid_iotlb(id: u64) -> u64 {
    0x26 | id << 16
}

const fn context(id: u64) -> u64 {
    0xa0_0000_0031 | id << 16
}

/// All but the table.
fn kind(entry: [u64; 8]) -> [u64; 8] {
    [entry[0] & 0xfff, entry[1], entry[2] & 0xfff, entry[3], entry[4], entry[5], entry[6], entry[7]]
}

#[test]
fn a_root_table_is_followed_by_three_global_requests() {
    for (cap, expected) in [(CAP, vec![0x11, 0x37, 0xd2]), (CAP | Cap::ESRTPS.bits(), vec![])] {
        let world = World::new(cap, SCALABLE);
        world.iommu.shutdown().unwrap();
        world.executed();
        world.iommu.enable().unwrap();
        assert_eq!(world.executed(), expected, "context, PASID cache, IOTLB, unless SRTP does it (6.6)");
        let hardware = world.machine.hardware();
        assert_eq!(TableMode::of_root_table_address(hardware.root), Some(TableMode::Scalable));
        assert_eq!(hardware.queue_address & 1 << 11, 1 << 11, "256-bit requests");
    }
}

#[test]
fn entries_of_every_kind_and_the_way_from_each_to_each() {
    let world = World::new(CAP, SCALABLE);
    assert_eq!(kind(world.entry()), [0x89, 2, 0, 0, 0, 0, 0, 0], "second stage, 48 bits, domain 2");
    let second = world.domain(Stage::Second, DomainFeatures::empty());
    world.replace(&second).unwrap();
    assert_eq!(kind(world.entry()), [0x89, 3, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.executed(), [pasid_cache(2), iotlb(2)], "of the old number");
    let first = world.domain(Stage::First, DomainFeatures::empty());
    world.replace(&first).unwrap();
    let entry = world.entry();
    assert_eq!((entry[0] & 0xfff, entry[1], entry[2] & 0xfff), (0x49, 4, 0), "first stage, 4 levels");
    assert_ne!(entry[2], 0);
    // First the field that the old entry ignores, in another piece of 128 bits; then the entry.
    assert_eq!(world.executed(), [pasid_cache(3), iotlb(3), pasid_cache(3), iotlb(3)]);
    world.replace(world.iommu.identity_domain()).unwrap();
    let entry = world.entry();
    assert_eq!((entry[0] & 0xfff, entry[1]), (0x109, 1), "pass-through, whose number no domain has");
    assert_eq!(world.executed(), [pasid_cache(4), pasid_iotlb(4)], "the first stage is cached by PASID");
    world.replace(&second).unwrap();
    assert_eq!(world.executed(), [context(1), pasid_cache(1), pasid_iotlb(1)]);
    let id = world.entry()[1];
    world.replace(world.iommu.blocked_domain()).unwrap();
    assert_eq!(world.entry(), [0; 8]);
    assert_eq!(world.executed(), [pasid_cache(id), iotlb(id)]);
    world.replace(&first).unwrap();
    assert_eq!(world.executed(), [], "nothing that is absent is cached");
}

#[test]
fn a_replacement_within_the_second_stage_is_never_absent() {
    let world = World::new(CAP, SCALABLE);
    let domains = [(); 2].map(|()| world.domain(Stage::Second, DomainFeatures::empty()));
    world.replace(&domains[0]).unwrap();
    world.executed();
    // The queue stands: the entry is what it is before anything is invalidated.
    world.machine.hardware().frozen = true;
    std::thread::scope(|scope| {
        let replacing = scope.spawn(|| world.replace(&domains[1]));
        let tail = world.machine.hardware().head;
        while world.machine.hardware().tail == tail {
            assert!(!world.is_blocked());
        }
        assert_eq!(kind(world.entry()), [0x89, 4, 0, 0, 0, 0, 0, 0], "the new one");
        let mut hardware = world.machine.hardware();
        hardware.frozen = false;
        hardware.run();
        drop(hardware);
        replacing.join().unwrap().unwrap();
    });
    assert_eq!(world.executed(), [pasid_cache(3), iotlb(3)]);
}

#[test]
fn caching_mode_forgets_what_was_absent() {
    let world = World::new(CAP | Cap::CM.bits(), SCALABLE);
    let (second, first) =
        (world.domain(Stage::Second, DomainFeatures::empty()), world.domain(Stage::First, DomainFeatures::empty()));
    world.replace(world.iommu.blocked_domain()).unwrap();
    world.executed();
    world.replace(&second).unwrap();
    let id = world.entry()[1];
    let executed = world.executed();
    // 6.2.2, 6.2.3: absent entries have number 0. Emulations look for the new one.
    assert_eq!(executed, [context(0), pasid_cache(0), pasid_cache(id), pasid_iotlb(id)]);
    map(&second, 0x5000, 0x1000);
    assert_eq!(world.executed().len(), 1, "a map of the second stage");
    world.replace(world.iommu.blocked_domain()).unwrap();
    world.replace(&first).unwrap();
    world.executed();
    map(&first, 0x5000, 0x1000);
    assert_eq!(world.executed(), [], "absent entries of the first stage are not cached (6.2.4.1)");
}

#[test]
fn write_buffers_are_flushed_where_nothing_is_invalidated() {
    let world = World::new(CAP | Cap::RWBF.bits(), SCALABLE);
    let domain = world.domain(Stage::Second, DomainFeatures::empty());
    let flushes = || {
        let commands = std::mem::take(&mut world.machine.hardware().commands);
        commands.iter().filter(|command| **command & Global::WBF.bits() != 0).count()
    };
    world.replace(&domain).unwrap();
    assert_eq!(flushes(), 0, "the invalidation flushes them (6.8)");
    world.replace(world.iommu.blocked_domain()).unwrap();
    world.replace(&domain).unwrap();
    assert_eq!(flushes(), 1);
}

#[test]
fn first_stage_unmaps_name_the_pasid() {
    let world = World::new(CAP, SCALABLE);
    let domain = world.domain(Stage::First, DomainFeatures::empty());
    assert_eq!(domain.geometry().unwrap().last(), Iova::new((1 << 47) - 1), "the lower half");
    world.replace(&domain).unwrap();
    let id = world.entry()[1];
    let (page, large) = (map(&domain, 0x5000, 0x1000), map(&domain, 0x4000_0000, 0x20_0000));
    let words = || -> Vec<[u64; 2]> {
        let executed = std::mem::take(&mut world.machine.hardware().executed);
        executed.iter().map(|request| [request.words[0], request.words[1]]).collect()
    };
    words();
    unmap(&domain, page).unwrap();
    // G 3, IH for leaves only (6.5.2.4).
    assert_eq!(words(), [[0x36 | id << 16, 0x5040]]);
    unmap(&domain, large).unwrap();
    assert_eq!(words(), [[0x36 | id << 16, 0x4000_0049]]);
    map(&domain, 0x1000, 0x1000);
    unmap(&domain, IovaRange::new(Iova::new(0x1000), Iova::new(0xfedf_ffff)).unwrap()).unwrap();
    assert_eq!(words(), [[pasid_iotlb(id), 0]], "too large for the unit: all of the PASID");
}

#[test]
fn features_are_switched_in_entries_that_stay() {
    let ecap = SCALABLE | Ecap::SC.union(Ecap::SSADS).union(Ecap::SMPWCS).bits();
    let world = World::new(CAP, ecap);
    let second = world.domain(Stage::Second, DomainFeatures::DIRTY_TRACKING);
    world.replace(&second).unwrap();
    let id = world.entry()[1] & 0xffff;
    assert_eq!((world.entry()[0] & 0xfff, world.entry()[1] >> 16), (0x89, 0x80), "PWSNP with SMPWCS");
    world.executed();
    second.set_dirty_tracking(DirtyTracking::On).unwrap();
    assert_eq!(world.entry()[0] & 0xfff, 0x289, "SSADE");
    let executed = world.executed();
    assert_eq!(executed[executed.len() - 2..], [pasid_cache(id), iotlb(id)]);
    // Whoever attaches later finds it on.
    world.replace(world.iommu.blocked_domain()).unwrap();
    world.replace(&second).unwrap();
    assert_eq!(world.entry()[0] & 0xfff, 0x289);
    second.set_dirty_tracking(DirtyTracking::Off).unwrap();
    assert_eq!(world.entry()[0] & 0xfff, 0x89);
    let first = world.domain(Stage::First, DomainFeatures::empty());
    world.replace(&first).unwrap();
    let id = world.entry()[1] & 0xffff;
    world.executed();
    first.enforce_cache_coherency().unwrap();
    assert_eq!(world.entry()[1] >> 16, 0x180, "PGSNP and PWSNP");
    assert_eq!(world.executed(), [pasid_cache(id), pasid_iotlb(id)]);
}

#[test]
fn a_refusal_in_any_step_blocks_the_device_and_keeps_what_may_be_cached() {
    for cap in [CAP, CAP | Cap::CM.bits()] {
        for refused in [2, 3] {
            let world = World::new(cap, SCALABLE);
            let domain = world.domain(Stage::Second, DomainFeatures::empty());
            // Of the old domain's IOTLB, or of the new one's when it is taken back.
            world.machine.hardware().refused = Some(refused);
            let replaced = world.replace(&domain);
            match refused {
                2 => {
                    let reason = InvalidationReason::Refused;
                    assert!(matches!(replaced, Err(Error::Invalidation { reason: r, .. }) if r == reason));
                    assert!(world.is_blocked());
                }
                _ => assert_eq!(replaced, Ok(()), "a hitless replacement asks nothing of the new number"),
            }
            world.machine.hardware().refused = None;
            world.iommu.resume().unwrap();
            world.replace(&domain).unwrap();
            assert!(!world.is_blocked());
            let World { machine, iommu, device } = world;
            drop((domain, device, iommu));
            assert_eq!(machine.frames_in_use(), 0);
        }
    }
}

#[test]
fn a_unit_that_stops_answering_blocks_its_devices_until_it_is_reset() {
    let world = World::new(CAP, SCALABLE);
    let domain = world.domain(Stage::First, DomainFeatures::empty());
    world.replace(&domain).unwrap();
    let (page, entry) = (map(&domain, 0x5000, 0x1000), world.entry());
    world.machine.hardware().frozen = true;
    unmap(&domain, page).unwrap_err();
    let root = world.machine.hardware().root & !0xfff;
    let context = (load(root + 8) & !0xfff) + 0x20 * 32;
    assert_eq!(load(context) & 1, 0, "the context entry is absent");
    assert_eq!(world.replace(world.iommu.identity_domain()), Err(Error::Fenced));
    world.machine.hardware().frozen = false;
    world.machine.hardware().run();
    world.executed();
    world.iommu.resume().unwrap();
    assert_eq!(world.entry(), entry);
    assert_eq!(world.executed(), [0x11, 0x37, 0xd2]);
    domain.flush_deferred().unwrap();
}

#[test]
fn every_allocation_may_fail() {
    let mut succeeded = false;
    for left in 0..64 {
        let machine = Machine::new();
        machine.hardware().ecap = SCALABLE;
        let result = {
            let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
            machine.limit_allocations(Some(left));
            vtd::init(&iommu, &dmar(0, &[])).and_then(|()| {
                let device = iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted)?;
                iommu.enable()?;
                let options = DomainOptions { stage: Some(Stage::First), ..DomainOptions::default() };
                let domain = iommu.paging_domain_with(&[&device], options)?;
                iommu.replace(&domain, device.group()?)?;
                iommu.release_device(&device)
            })
        };
        machine.limit_allocations(None);
        assert!(matches!(result, Ok(()) | Err(Error::NoMemory)), "{left}: {result:?}");
        succeeded |= result.is_ok();
        assert_eq!(machine.frames_in_use(), 0, "allocation {left}");
    }
    assert!(succeeded);
}

#[test]
fn a_cautious_kernel_gets_legacy_mode() {
    let machine = Machine::new();
    machine.hardware().ecap = SCALABLE;
    let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
    vtd::init_with(&iommu, &dmar(0, &[]), VtdOptions { mode: ModeWish::Legacy, ..VtdOptions::default() }).unwrap();
    let device = iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted).unwrap();
    iommu.enable().unwrap();
    assert_eq!(TableMode::of_root_table_address(machine.hardware().root), Some(TableMode::Legacy));
    assert_eq!(machine.hardware().queue_address & 1 << 11, 0);
    let options = DomainOptions { stage: Some(Stage::First), ..DomainOptions::default() };
    assert!(iommu.paging_domain_with(&[&device], options).is_err());
}
