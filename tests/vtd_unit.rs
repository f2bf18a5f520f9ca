//! A VT-d unit against hardware in software: what is invalidated when, and what happens when the
//! hardware stops answering.
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
use iommu::arch::vtd;
use iommu::arch::vtd::dmar::DmarFlags;
use iommu::arch::vtd::layout::descriptors::{Changed, ContextScope, IotlbScope, Request};
use iommu::arch::vtd::layout::registers::{Global, PMEN_EPM, PMEN_PRS, TableMode};
use iommu::arch::vtd::layout::{Cap, ContextEntry, DomainId, Ecap};
use iommu::device::Trust;
use iommu::ops::{Capability, Msi};
use iommu::pci::PciConfig;
use iommu::{
    BootPolicy, Device, Domain, DomainKind, Error, InvalidationReason, Iommu, Iova, IovaRange, PciAddress, PhysAddr,
    PhysRange, Policy, Prot, RegionKind,
};
use tables::{dmar, load};

/// 00:04.0, alone.
const FUNCTION: PciAddress = PciAddress::from_requester_id(0, 0x20);
const SPACE: Functions = Functions(&[FUNCTION]);

struct World {
    machine: Machine,
    iommu: Iommu<Machine>,
    device: Device,
}

impl World {
    fn new(cap: u64) -> Self {
        let machine = Machine::new();
        machine.hardware().cap = cap;
        Self::on(machine, &dmar(0, &[]))
    }

    fn on(machine: Machine, table: &[u8]) -> Self {
        let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
        vtd::init(&iommu, table).unwrap();
        let device = iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted).unwrap();
        iommu.enable().unwrap();
        machine.hardware().executed.clear();
        Self { machine, iommu, device }
    }

    fn domain(&self) -> Domain {
        self.iommu.paging_domain(&[&self.device]).unwrap()
    }

    /// What the unit has executed since it was asked last.
    fn executed(&self) -> Vec<Request> {
        let executed = std::mem::take(&mut self.machine.hardware().executed);
        executed.into_iter().map(|descriptor| descriptor.decode().unwrap()).collect()
    }

    /// The unit goes on with what it was told meanwhile.
    fn thaw(&self) {
        let mut hardware = self.machine.hardware();
        hardware.frozen = false;
        hardware.run();
    }

    /// The context entry that the unit would fetch for the function.
    fn context(&self) -> ContextEntry {
        let root = self.machine.hardware().root & !0xfff;
        let context = load(root) & !0xfff;
        let at = context + u64::from(FUNCTION.devfn()) * 16;
        ContextEntry { low: load(at), high: load(at + 8) }
    }
}

fn map(domain: &Domain, at: u64, bytes: u64) -> Result<IovaRange, Error> {
    let range = IovaRange::from_len(Iova::new(at), bytes)?;
    // SAFETY: no device is real.
    unsafe { domain.map(range, PhysAddr::new(at), Prot::RW) }?;
    Ok(range)
}

fn unmap(domain: &Domain, range: IovaRange) -> Result<(), Error> {
    // SAFETY: one thread.
    unsafe { domain.unmap_sync(range) }
}

/// Context cache by device under `cached`, then the IOTLB of `domain` (6.5.3.3).
fn is_context_flush(requests: &[Request], cached: DomainId, domain: DomainId) -> bool {
    let device = ContextScope::Device { domain: cached, source: FUNCTION.requester_id(), function_mask: 0 };
    matches!(requests, [Request::Context(context), Request::Iotlb(IotlbScope::Domain(iotlb), _)]
        if *context == device && *iotlb == domain)
}

#[test]
fn a_change_of_domain_invalidates_what_was_under_the_old_number() {
    let world = World::new(CAP);
    let before = world.context();
    assert!(before.is_present());
    let domain = world.domain();
    world.iommu.attach_device(&domain, &world.device).unwrap();
    let after = world.context();
    assert!(after.is_present() && after.domain_id() != before.domain_id() && after.table() != before.table());
    assert!(is_context_flush(&world.executed(), before.domain_id(), before.domain_id()));
    world.iommu.detach_device(&domain, &world.device).unwrap();
    assert!(is_context_flush(&world.executed(), after.domain_id(), after.domain_id()));
    // To identity: pass-through has a number that no domain has.
    world.iommu.attach_device(&world.iommu.identity_domain().clone(), &world.device).unwrap();
    assert_eq!(world.context().domain_id(), DomainId::new(1));
    assert_eq!(world.iommu.domain_of(world.device.group().unwrap()).kind(), DomainKind::Identity);
}

#[test]
fn the_iotlb_follows_the_context_cache_in_whatever_order_a_unit_executes() {
    let machine = Machine::new();
    (machine.hardware().cap, machine.hardware().lazy) = (CAP | Cap::CM.bits(), true);
    let world = World::on(machine, &dmar(0, &[]));
    let (domain, before) = (world.domain(), world.context().domain_id());
    world.iommu.attach_device(&domain, &world.device).unwrap();
    let executed = world.executed();
    let (old, new) = executed.split_at(2);
    assert!(is_context_flush(old, before, before));
    assert!(is_context_flush(new, DomainId::new(0), world.context().domain_id()));
}

#[test]
fn unmap_names_the_pages_and_whether_tables_went() {
    let world = World::new(CAP);
    let domain = world.domain();
    world.iommu.attach_device(&domain, &world.device).unwrap();
    let id = world.context().domain_id();
    world.executed();
    let page = map(&domain, 0x5000, 0x1000).unwrap();
    let large = map(&domain, 0x4000_0000, 0x40_0000).unwrap();
    let small: Vec<_> = (0..512).map(|page| map(&domain, 0x8000_0000 + page * 0x1000, 0x1000).unwrap()).collect();
    assert_eq!(world.executed(), [], "without caching mode a map invalidates nothing");
    unmap(&domain, page).unwrap();
    let scope = |address, mask, changed| IotlbScope::Pages { domain: id, address: Iova::new(address), mask, changed };
    let scopes = |requests: Vec<Request>| -> Vec<IotlbScope> {
        requests
            .into_iter()
            .map(|request| match request {
                Request::Iotlb(scope, _) => scope,
                _ => panic!(),
            })
            .collect()
    };
    assert_eq!(scopes(world.executed()), [scope(0x5000, 0, Changed::Leaves)]);
    unmap(&domain, large).unwrap();
    assert_eq!(scopes(world.executed()), [scope(0x4000_0000, 10, Changed::Leaves)]);
    let all = IovaRange::new(small[0].start(), small[511].last()).unwrap();
    unmap(&domain, all).unwrap();
    assert_eq!(scopes(world.executed()), [scope(0x8000_0000, 9, Changed::Tables)]);
    unmap(&domain, IovaRange::new(Iova::new(0x1000), Iova::new(0xfedf_ffff)).unwrap()).unwrap();
    assert_eq!(scopes(world.executed()), [IotlbScope::Domain(id)], "too large for page-selective requests");
}

#[test]
fn in_caching_mode_absent_entries_are_invalidated_too() {
    let world = World::new(CAP | Cap::CM.bits());
    let domain = world.domain();
    let before = world.context().domain_id();
    world.iommu.attach_device(&domain, &world.device).unwrap();
    let id = world.context().domain_id();
    let executed = world.executed();
    let (old, new) = executed.split_at(2);
    assert!(is_context_flush(old, before, before));
    assert!(is_context_flush(new, DomainId::new(0), id), "absent entries are cached under number 0");
    map(&domain, 0x5000, 0x1000).unwrap();
    let pages = IotlbScope::Pages { domain: id, address: Iova::new(0x5000), mask: 0, changed: Changed::Tables };
    assert!(matches!(world.executed().as_slice(), [Request::Iotlb(scope, _)] if *scope == pages));
}

#[test]
fn a_unit_that_stops_answering_is_fenced_and_comes_back() {
    let world = World::new(CAP);
    let (domain, other) = (world.domain(), world.domain());
    world.iommu.attach_device(&domain, &world.device).unwrap();
    let mapped = map(&domain, 0x20_0000, 0x20_0000).unwrap();
    for page in 0..512 {
        map(&domain, 0x4000_0000 + page * 0x1000, 0x1000).unwrap();
    }
    let entry = world.context();
    world.machine.hardware().frozen = true;
    let frames = world.machine.frames_in_use();
    let tables = IovaRange::from_len(Iova::new(0x4000_0000), 0x20_0000).unwrap();
    let failed = unmap(&domain, tables);
    assert!(matches!(failed, Err(Error::Invalidation { reason: InvalidationReason::TimedOut, .. })), "{failed:?}");
    assert_eq!(world.machine.frames_in_use(), frames, "the detached table is kept");
    assert!(!world.context().is_present(), "the device is blocked at once");
    assert_eq!(unmap(&domain, mapped), Err(Error::Fenced));
    let group = world.device.group().unwrap();
    assert_eq!(world.iommu.replace(&other, group), Err(Error::Fenced));
    assert!(!world.context().is_present());

    world.thaw();
    world.iommu.resume().unwrap();
    assert_eq!(world.context(), entry);
    assert!(world.machine.hardware().status & Global::TE.bits() != 0);
    domain.flush_deferred().unwrap();
    assert_eq!(world.machine.frames_in_use(), frames - 1, "now the table is free");
    world.iommu.replace(&other, group).unwrap();
}

#[test]
fn what_leaves_a_fenced_unit_is_kept_until_it_is_reset() {
    let world = World::new(CAP);
    let domain = world.domain();
    world.iommu.attach_device(&domain, &world.device).unwrap();
    let mapped = map(&domain, 0x5000, 0x1000).unwrap();
    world.machine.hardware().frozen = true;
    unmap(&domain, mapped).unwrap_err();
    let frames = world.machine.frames_in_use();
    world.iommu.release_device(&world.device).unwrap();
    assert_eq!(world.context().low, 0, "it stays blocked after a reset");
    let World { machine, iommu, device } = world;
    drop((domain, device));
    // The default domain, which was attached nowhere, went with its empty table.
    let kept = frames - 1;
    assert_eq!(machine.frames_in_use(), kept, "the unit may still have the domain cached");
    machine.hardware().frozen = false;
    machine.hardware().run();
    iommu.resume().unwrap();
    assert!(machine.frames_in_use() < kept);
    drop(iommu);
    assert_eq!(machine.frames_in_use(), 0);
}

#[test]
fn whatever_stops_the_queue_blocks_the_devices() {
    let world = World::new(CAP | Cap::CM.bits());
    let domain = world.domain();
    world.iommu.attach_device(&domain, &world.device).unwrap();
    let mapped = map(&domain, 0x5000, 0x1000).unwrap();
    let entry = world.context();
    // First it refuses the invalidation, then the wait that takes its place.
    world.machine.hardware().refuses_all = true;
    unmap(&domain, mapped).unwrap_err();
    assert_eq!(domain.flush_deferred(), Err(Error::Fenced));
    assert!(!world.context().is_present(), "what is unmapped may stay cached");
    world.machine.hardware().refuses_all = false;
    world.machine.hardware().faults = 0;
    world.thaw();
    world.executed();
    world.iommu.resume().unwrap();
    assert_eq!(world.context(), entry);
    // Absent entries may be cached: all go after the device was let through again.
    assert!(world.executed().contains(&Request::Context(ContextScope::Global)));
    domain.flush_deferred().unwrap();
    map(&domain, 0x5000, 0x1000).unwrap();
}

#[test]
fn an_identity_table_holds_ram_and_reserved_memory_that_share_pages() {
    let machine = Machine::new();
    machine.hardware().ecap = ECAP & !Ecap::PT.bits();
    let ram = [(0x1000, 0x9_fbff), (0x9_fc00, 0x9_ffff), (0x10_0000, 0x7f_f3ff)];
    machine.hardware().ram =
        ram.map(|(start, last)| PhysRange::new(PhysAddr::new(start), PhysAddr::new(last)).unwrap()).to_vec();
    // For 00:04.0, from the last page of RAM on (VT-d 8.4).
    let mut reserved = vec![1, 0, 32, 0, 0, 0, 0, 0];
    reserved.extend(0x7f_f000u64.to_le_bytes());
    reserved.extend(0x80_0fffu64.to_le_bytes());
    reserved.extend([1, 8, 0, 0, 0, 0, 4, 0]);
    let world = World::on(machine, &dmar(0, &reserved));
    world.iommu.attach_device(world.iommu.identity_domain(), &world.device).unwrap();
    for inside in [0x1000, 0x9_f000, 0x10_0000, 0x7f_f000, 0x80_0000] {
        assert_eq!(translate(world.context(), inside), Some(inside));
    }
    for outside in [0, 0xa_0000, 0x80_1000] {
        assert_eq!(translate(world.context(), outside), None);
    }
}

/// Where the second stage of an entry leads (VT-d 9.8).
fn translate(entry: ContextEntry, address: u64) -> Option<u64> {
    let mut table = entry.table().as_u64();
    for level in (0..entry.width()?.levels()).rev() {
        let shift = 12 + 9 * level;
        let found = load(table + (address >> shift & 511) * 8);
        if found & 3 == 0 {
            return None;
        }
        table = found & ((1 << 52) - (1 << 12));
        if level == 0 || found & 1 << 7 != 0 {
            return Some(table | address & ((1 << shift) - 1));
        }
    }
    None
}

#[test]
fn protected_memory_ends_with_translation_and_without_it() {
    for boot in [BootPolicy::Blocked, BootPolicy::Off] {
        let machine = Machine::new();
        machine.hardware().cap = CAP | Cap::PLMR.bits();
        machine.hardware().protected = PMEN_EPM | PMEN_PRS;
        let iommu = Iommu::new(machine.clone(), Policy { boot, ..Policy::default() }).unwrap();
        vtd::init(&iommu, &dmar(0, &[])).unwrap();
        assert_eq!(machine.hardware().protected, PMEN_EPM | PMEN_PRS, "until something else decides");
        iommu.enable().unwrap();
        assert_eq!(machine.hardware().protected, 0);
    }
}

#[test]
fn firmware_that_blocked_dma_before_says_so() {
    for (flags, expected) in [(0, false), (DmarFlags::DMA_CTRL_PLATFORM_OPT_IN_FLAG.bits(), true)] {
        let world = World::on(Machine::new(), &dmar(flags, &[]));
        assert_eq!(world.iommu.capable(&world.device, Capability::PreBootProtection), expected);
    }
}

#[test]
fn a_unit_is_taken_over_from_a_kernel_that_used_all_of_it() {
    let machine = Machine::new();
    machine.hardware().status = (Global::TE | Global::IRE).bits();
    machine.hardware().root = TableMode::Scalable.root_table_address(PhysAddr::new(0xdead_0000));
    let world = World::on(machine, &dmar(0, &[]));
    let status = Global::from_bits_retain(world.machine.hardware().status);
    assert!(status.contains(Global::TE | Global::QIE) && !status.contains(Global::IRE));
    assert!(world.context().is_present());
}

#[test]
fn a_unit_that_was_shut_down_can_be_enabled_again() {
    let world = World::new(CAP);
    let on = Global::TE | Global::QIE;
    let is_on = || Global::from_bits_retain(world.machine.hardware().status).contains(on);
    assert!(is_on());
    world.iommu.shutdown().unwrap();
    assert!(!is_on());
    world.executed();
    world.iommu.enable().unwrap();
    assert!(is_on(), "with its queue");
    // Nobody knows what happened to its caches meanwhile.
    let executed = world.executed();
    assert!(
        matches!(executed[..], [Request::Context(ContextScope::Global), Request::Iotlb(IotlbScope::Global, _)]),
        "{executed:?}"
    );
}

#[test]
fn faults_interrupt_whenever_a_unit_translates() {
    let world = World::new(CAP);
    world.iommu.set_fault_interrupt(Msi { address: PhysAddr::new(0xfee0_0000), data: 0x31 }).unwrap();
    let fault_event = || world.machine.hardware().fault_event;
    let let_through = 0x31 << 32;
    assert_eq!(fault_event(), let_through);
    world.iommu.shutdown().unwrap();
    assert_ne!(fault_event() & 1 << 31, 0, "masked");
    world.iommu.enable().unwrap();
    assert_eq!(fault_event(), let_through);
    world.iommu.suspend().unwrap();
    // Power is lost.
    world.machine.hardware().fault_event = 1 << 31;
    world.iommu.resume().unwrap();
    assert_eq!(fault_event(), let_through);
}

#[test]
fn a_fenced_unit_that_is_shut_down_keeps_nothing() {
    let world = World::new(CAP);
    let domain = world.domain();
    world.iommu.attach_device(&domain, &world.device).unwrap();
    let mapped = map(&domain, 0x5000, 0x1000).unwrap();
    world.machine.hardware().frozen = true;
    unmap(&domain, mapped).unwrap_err();
    world.iommu.detach_device(&domain, &world.device).unwrap();
    world.thaw();
    world.iommu.shutdown().unwrap();
    let World { machine, iommu, device } = world;
    drop((domain, device, iommu));
    assert_eq!(machine.frames_in_use(), 0);
}

#[test]
fn a_unit_that_firmware_switched_off_is_passed_over() {
    let machine = Machine::new();
    machine.hardware().gone = Some(u64::MAX);
    let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
    assert_eq!(vtd::init(&iommu, &dmar(0, &[])), Err(Error::NoDevice), "and there is no other");
    assert_eq!(iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted).unwrap_err(), Error::NoDevice);
    assert_eq!(iommu.uncovered().count(), 1);
}

/// 00:04.0 of this class, alone (PCI 3.0, 6.2.1).
struct OfClass(u32);

impl PciConfig for OfClass {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        match offset {
            8 if function == FUNCTION => self.0 << 8,
            _ => SPACE.read32(function, offset),
        }
    }

    fn write32(&self, _: PciAddress, _: u16, _: u32) {}
}

#[test]
fn what_firmware_does_with_usb_and_displays_ends_with_a_driver() {
    // Type 1, 32 bytes, segment 0: 0x7000_0000 to 0x7000_0fff, the endpoint 00:04.0 (VT-d 8.4).
    let mut rmrr = vec![1, 0, 32, 0, 0, 0, 0, 0];
    rmrr.extend(0x7000_0000u64.to_le_bytes());
    rmrr.extend(0x7000_0fffu64.to_le_bytes());
    rmrr.extend([1, 8, 0, 0, 0, 0, 4, 0]);
    let cases = [
        (0x0c_0330, RegionKind::DirectRelaxable),
        (0x03_0000, RegionKind::DirectRelaxable),
        (0x0c_0500, RegionKind::Direct),
        (0x02_0000, RegionKind::Direct),
    ];
    for (class, kind) in cases {
        let machine = Machine::new();
        let iommu = Iommu::new(machine, Policy::default()).unwrap();
        vtd::init(&iommu, &dmar(0, &rmrr)).unwrap();
        let device = iommu.probe_pci(&OfClass(class), FUNCTION, Trust::Trusted).unwrap();
        let regions = device.reserved_regions().unwrap();
        let direct = regions.iter().find(|region| region.range.start() == Iova::new(0x7000_0000)).unwrap();
        assert_eq!(direct.kind, kind, "class {class:#x}");
    }
}
