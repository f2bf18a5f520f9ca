//! An SMMUv3 against hardware in software: how it is started, what is invalidated when, and what happens
//! when the hardware stops answering.
#![cfg(all(feature = "smmuv3", not(loom)))]

#[path = "support/functions.rs"]
mod functions;
#[allow(dead_code)]
#[path = "support/smmuv3_hardware.rs"]
mod hardware;
#[allow(dead_code)]
#[path = "support/smmuv3_iort.rs"]
mod iort;
#[path = "support/smmuv3_tables.rs"]
mod tables;

use std::time::Duration;

use functions::Functions;
use hardware::{Machine, Told};
use iommu::arch::smmuv3;
use iommu::arch::smmuv3::SmmuOptions;
use iommu::arch::smmuv3::firmware::Firmware;
use iommu::arch::smmuv3::layout::commands::{Command, Completion, Leaf, TlbRange};
use iommu::arch::smmuv3::layout::context::Half;
use iommu::arch::smmuv3::layout::registers::{Cr0, Cr1, Gbpa, Gerror, offset};
use iommu::arch::smmuv3::layout::stream_table::Config;
use iommu::arch::smmuv3::layout::{Cd, Granule, Ste, StreamId, Vmid};
use iommu::device::Trust;
use iommu::domain::DomainOptions;
use iommu::ops::{InterruptKind, Msi, Stage};
use iommu::platform::Platform;
use iommu::{
    BootPolicy, Device, Domain, Error, FaultsLeft, InvalidationReason, Iommu, Iova, IovaRange, PciAddress, PhysAddr,
    Policy, Prot, RegionKind, UnsupportedReason,
};
use iort::{Host, iort};
use tables::{descriptor, entry};

/// 00:04.0 and 00:05.0, under StreamIDs 0x1020 and 0x1028.
const FUNCTION: PciAddress = PciAddress::from_requester_id(0, 0x20);
const OTHER: PciAddress = PciAddress::from_requester_id(0, 0x28);
const SPACE: Functions = Functions(&[FUNCTION, OTHER]);
const STREAM: StreamId = StreamId(0x1020);
const OTHER_STREAM: StreamId = StreamId(0x1028);

/// QEMU's IDR0, with messages.
const WITH_MESSAGES: u32 = 0x0d44_301b;

struct World {
    machine: Machine,
    iommu: Iommu<Machine>,
    device: Device,
}

fn table() -> Vec<u8> {
    iort(1, Host::Plain, &[(0, 0x100, 0x1000)], &[])
}

impl World {
    fn new() -> Self {
        Self::on(Machine::new(), &table(), SmmuOptions::default())
    }

    fn on(machine: Machine, table: &[u8], options: SmmuOptions) -> Self {
        let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
        let firmware = Firmware::from_iort(machine.clone(), table).unwrap();
        smmuv3::init_with(&iommu, firmware, options).unwrap();
        let device = iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted).unwrap();
        iommu.enable().unwrap();
        machine.hardware().told.clear();
        Self { machine, iommu, device }
    }

    fn domain(&self) -> Domain {
        self.iommu.paging_domain(&[&self.device]).unwrap()
    }

    fn domain_of(&self, stage: Stage) -> Domain {
        let options = DomainOptions { stage: Some(stage), ..DomainOptions::default() };
        self.iommu.paging_domain_with(&[&self.device], options).unwrap()
    }

    fn attach(&self, domain: &Domain) -> Result<(), Error> {
        self.iommu.replace(domain, self.device.group().unwrap())
    }

    fn translates(&self) -> bool {
        self.machine.hardware().cr0 & Cr0::SMMUEN.bits() != 0
    }

    /// What the unit has executed since it was asked last.
    fn executed(&self) -> Vec<Command> {
        let told = std::mem::take(&mut self.machine.hardware().told);
        let command = |told| match told {
            Told::Command(command) => Some(command),
            Told::Register(..) => None,
        };
        told.into_iter().filter_map(command).collect()
    }

    fn entry(&self) -> Ste {
        entry(&self.machine, STREAM).unwrap()
    }

    fn descriptor(&self) -> Cd {
        descriptor(&self.machine, self.entry())
    }
}

const SYNC: Command = Command::Sync { completion: Completion::None };

const fn of_entry(stream: StreamId) -> Command {
    Command::ConfigSte { stream, leaf: Leaf::Only }
}

fn map(domain: &Domain, at: u64, bytes: u64) -> Result<IovaRange, Error> {
    let range = IovaRange::from_len(Iova::new(at), bytes)?;
    // SAFETY: no device is real.
    unsafe { domain.map(range, PhysAddr::new(at), Prot::RW | Prot::CACHE) }?;
    Ok(range)
}

fn unmap(domain: &Domain, range: IovaRange) -> Result<(), Error> {
    // SAFETY: one thread.
    unsafe { domain.unmap_sync(range) }
}

#[test]
fn a_unit_is_started_in_order_from_whatever_was_on() {
    let machine = Machine::new();
    let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
    smmuv3::init(&iommu, &table()).unwrap();
    iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted).unwrap();
    assert_eq!(machine.hardware().told, [], "firmware's tables stay until the unit is enabled");
    machine.hardware().cr0 = (Cr0::SMMUEN | Cr0::EVENTQEN | Cr0::CMDQEN).bits();
    machine.hardware().gerror = 1 << 2;
    iommu.enable().unwrap();
    let told = std::mem::take(&mut machine.hardware().told);
    let place = |what: &dyn Fn(&Told) -> bool| told.iter().position(what).unwrap_or_else(|| panic!("{told:x?}"));
    let register = |at: usize, value: Option<u64>| {
        place(
            &|told| matches!(told, Told::Register(offset, to) if *offset == at && value.is_none_or(|value| value == *to)),
        )
    };
    let command = |command: Command| place(&|told| *told == Told::Command(command));
    let aborts = u64::from(0x1000 | Gbpa::ABORT | Gbpa::UPDATE);
    let order = [
        register(offset::GBPA, Some(aborts)),
        register(offset::CR0, Some(0)),
        register(offset::CR1, Some(Cr1::SNOOPING.0.into())),
        register(offset::STRTAB_BASE, None),
        register(offset::CMDQ_BASE, None),
        register(offset::CR0, Some(Cr0::CMDQEN.bits().into())),
        command(Command::ConfigAll),
        command(Command::TlbNsnhAll),
        command(SYNC),
        register(offset::GERRORN, Some(1 << 2)),
        register(offset::EVENTQ_BASE, None),
        register(offset::EVENTQ_CONS, Some(0)),
        register(offset::CR0, Some((Cr0::EVENTQEN | Cr0::CMDQEN).bits().into())),
        register(offset::IRQ_CTRL, Some(0b101)),
        register(offset::CR0, Some((Cr0::SMMUEN | Cr0::EVENTQEN | Cr0::CMDQEN).bits().into())),
    ];
    assert!(order.is_sorted(), "{order:?} {told:x?}");
    assert!(machine.hardware().cr0 & Cr0::SMMUEN.bits() != 0);
    assert_eq!(machine.hardware().gbpa, Some(0x1000 | Gbpa::ABORT), "ready to be fenced");
    assert_eq!(entry(&machine, STREAM).unwrap().config(), Config::Stage1);
}

#[test]
fn units_that_cannot_be_used_are_refused() {
    let refused = |idr0, idr1, granule| {
        let machine = Machine::new();
        (machine.hardware().idr0, machine.hardware().idr1) = (idr0, idr1);
        let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
        let firmware = Firmware::from_iort(machine.clone(), &table()).unwrap();
        smmuv3::init_with(&iommu, firmware, SmmuOptions { granule, ..SmmuOptions::default() }).map(drop)
    };
    assert_eq!(refused(None, None, Some(Granule::Size16K)), Ok(()));
    let preset = Some(0x0273_0010 | 1 << 29);
    assert_eq!(refused(None, preset, None), Err(Error::Unsupported(UnsupportedReason::Preset)));
    assert_eq!(refused(Some(0x0d44_1013), None, None), Err(Error::Unsupported(UnsupportedReason::Format)));
    assert_eq!(refused(Some(u32::MAX), None, None), Err(Error::NoDevice));
}

#[test]
fn streams_change_hitlessly_and_what_was_under_the_old_number_goes() {
    let world = World::new();
    let (first, before) = (world.entry(), world.descriptor());
    assert!(first.config() == Config::Stage1 && before.is_valid() && before.is_asid_private());
    let domain = world.domain();
    world.attach(&domain).unwrap();
    let (second, after) = (world.entry(), world.descriptor());
    assert!(after.asid() != before.asid() && second.cd_table() != first.cd_table());
    assert_eq!((after.table(Half::Lower).tsz, after.memory_attributes()), (16, 0x04_44_ff));
    let old = Command::TlbNhAsid { vmid: Vmid(0), asid: before.asid() };
    // One store of one quadword.
    assert_eq!(world.executed(), [of_entry(STREAM), SYNC, old, SYNC]);
    let changed: Vec<usize> = (0..8).filter(|word| first.words[*word] != second.words[*word]).collect();
    assert_eq!(changed, [0]);
    world.attach(&world.iommu.identity_domain().clone()).unwrap();
    assert_eq!(world.entry(), Ste::bypass());
    assert_eq!(world.executed().last_chunk(), Some(&[Command::TlbNhAsid { vmid: Vmid(0), asid: after.asid() }, SYNC]));
    world.attach(&world.iommu.blocked_domain().clone()).unwrap();
    assert_eq!(world.entry(), Ste::abort());
    // Nothing is cached of what passes untranslated.
    assert!(world.executed().iter().all(|command| [of_entry(STREAM), SYNC].contains(command)));
}

#[test]
fn either_stage_translates() {
    let world = World::new();
    let domain = world.domain_of(Stage::Second);
    assert_eq!(domain.ops().stage(), Some(Stage::Second));
    world.attach(&domain).unwrap();
    let stage2 = world.entry().stage2_fields();
    // 44 bits of output, and so of input: four levels.
    assert_eq!((world.entry().config(), stage2.t0sz, stage2.sl0, stage2.ps), (Config::Stage2, 20, 2, 4));
    assert!(stage2.record && !stage2.stall && stage2.vmid != Vmid(0));
    world.executed();
    let range = map(&domain, 0x4000_0000, 0x1000).unwrap();
    unmap(&domain, range).unwrap();
    let page = TlbRange::page(0x4000_0000);
    let drop = Command::TlbS2Ipa { vmid: stage2.vmid, range: page, leaf: Leaf::Only };
    assert_eq!(world.executed().len(), 2, "{drop:?}");
    world.attach(&world.domain_of(Stage::First)).unwrap();
    assert_eq!(world.executed().last_chunk(), Some(&[Command::TlbS12Vmall { vmid: stage2.vmid }, SYNC]));
    let other_unit =
        World::on(Machine::new(), &table(), SmmuOptions { granule: Some(Granule::Size64K), ..SmmuOptions::default() });
    assert_eq!(other_unit.domain().page_sizes().smallest().unwrap().bytes(), 0x1_0000);
    assert_eq!(other_unit.descriptor().table(Half::Lower).granule, Some(Granule::Size64K));
}

#[test]
fn a_unit_that_stops_answering_is_fenced_and_comes_back() {
    // Longer than a second, which it has by default.
    let limit = Duration::from_millis(1200);
    let world = World::on(Machine::new(), &table(), SmmuOptions { batch_limit: Some(limit), ..SmmuOptions::default() });
    let (domain, other) = (world.domain(), world.domain());
    world.attach(&domain).unwrap();
    let mapped = map(&domain, 0x20_0000, 0x20_0000).unwrap();
    // Where no block can be.
    let tables = IovaRange::from_len(Iova::new(0x4000_0000), 0x20_0000).unwrap();
    // SAFETY: no device is real.
    unsafe { domain.map(tables, PhysAddr::new(0x1000), Prot::RW | Prot::CACHE) }.unwrap();
    let (asid, frames) = (world.descriptor().asid(), world.machine.frames_in_use());
    world.machine.freeze();
    let asked = world.machine.now();
    let failed = unmap(&domain, tables);
    assert!(world.machine.now().since(asked) >= limit);
    assert!(matches!(failed, Err(Error::Invalidation { reason: InvalidationReason::TimedOut, .. })), "{failed:?}");
    assert_eq!(world.machine.frames_in_use(), frames, "the detached table is kept");
    let told = |world: &World| {
        let hardware = world.machine.hardware();
        (hardware.cr0 & Cr0::SMMUEN.bits(), hardware.gbpa)
    };
    assert_eq!(told(&world), (0, Some(0x1000 | Gbpa::ABORT)), "everything is blocked at once");
    assert_eq!(unmap(&domain, mapped), Err(Error::Fenced));
    assert_eq!(world.attach(&other), Err(Error::Fenced));
    world.machine.thaw();
    world.iommu.resume().unwrap();
    assert_ne!(told(&world).0, 0);
    world.executed();
    // The group is in doubt, and blocked: it begins anew.
    world.attach(&domain).unwrap();
    assert_ne!(world.descriptor().asid(), asid);
    domain.flush_deferred().unwrap();
    drop((domain, other));
    world.iommu.release_device(&world.device).unwrap();
    let World { machine, iommu, device } = world;
    drop((iommu, device));
    assert_eq!(machine.frames_in_use(), 0);
}

#[test]
fn what_leaves_a_fenced_unit_is_kept_until_it_is_reset() {
    let world = World::new();
    let domain = world.domain();
    world.attach(&domain).unwrap();
    let mapped = map(&domain, 0x5000, 0x1000).unwrap();
    world.machine.hardware().refuses_all = true;
    unmap(&domain, mapped).unwrap_err();
    let frames = world.machine.frames_in_use();
    world.iommu.release_device(&world.device).unwrap();
    let World { machine, iommu, device } = world;
    drop((domain, device));
    // The default domain, which was attached nowhere, went with its empty table.
    let kept = frames - 1;
    assert_eq!(machine.frames_in_use(), kept, "the unit may still have the domain cached");
    assert_eq!(machine.hardware().cr0 & Cr0::SMMUEN.bits(), 0);
    machine.hardware().refuses_all = false;
    iommu.resume().unwrap();
    assert!(!entry(&machine, STREAM).unwrap().is_valid(), "it stays blocked after a reset");
    assert!(machine.frames_in_use() < kept, "tables and descriptors are free again");
    drop(iommu);
    assert_eq!(machine.frames_in_use(), 0);
}

#[test]
fn a_unit_that_refuses_commands_is_fenced() {
    let world = World::new();
    let domain = world.domain();
    world.attach(&domain).unwrap();
    let mapped = map(&domain, 0x5000, 0x1000).unwrap();
    let entry = world.entry();
    world.machine.hardware().refuses_all = true;
    unmap(&domain, mapped).unwrap_err();
    assert_eq!(domain.flush_deferred(), Err(Error::Fenced));
    assert!(!world.translates(), "what is unmapped may stay cached");
    world.machine.hardware().refuses_all = false;
    world.iommu.resume().unwrap();
    assert!(world.translates() && world.entry() == entry);
    domain.flush_deferred().unwrap();
    map(&domain, 0x5000, 0x1000).unwrap();
}

#[test]
fn a_unit_that_fails_is_fenced_by_the_handler_of_its_interrupt() {
    let world = World::new();
    assert_eq!(world.iommu.handle_interrupt(InterruptKind::Fault), FaultsLeft::None);
    assert!(world.translates());
    // Service failure mode (12.3), of which nobody waits for anything.
    world.machine.hardware().gerror ^= Gerror::SFM_ERR.bits();
    world.iommu.handle_interrupt(InterruptKind::Fault);
    assert!(!world.translates());
    assert_eq!(world.machine.hardware().gbpa, Some(0x1000 | Gbpa::ABORT));
    let (errors, acknowledged) = {
        let hardware = world.machine.hardware();
        (hardware.gerror, hardware.gerrorn)
    };
    assert_eq!(errors, acknowledged);
    assert_eq!(world.attach(&world.domain()), Err(Error::Fenced));
    world.iommu.resume().unwrap();
    world.attach(&world.domain()).unwrap();
}

#[test]
fn a_fenced_unit_that_is_shut_down_keeps_nothing() {
    let world = World::new();
    let domain = world.domain();
    world.attach(&domain).unwrap();
    let mapped = map(&domain, 0x5000, 0x1000).unwrap();
    world.machine.freeze();
    unmap(&domain, mapped).unwrap_err();
    world.attach(&world.iommu.blocked_domain().clone()).unwrap_err();
    world.machine.thaw();
    world.iommu.shutdown().unwrap();
    let World { machine, iommu, device } = world;
    drop((domain, device, iommu));
    assert_eq!(machine.frames_in_use(), 0);
}

#[test]
fn a_unit_that_was_shut_down_can_be_enabled_again() {
    let world = World::new();
    world.iommu.shutdown().unwrap();
    assert_eq!(world.machine.hardware().cr0, 0);
    world.executed();
    world.iommu.enable().unwrap();
    assert!(world.translates());
    // Nobody knows what happened to its caches meanwhile.
    assert_eq!(world.executed(), [Command::ConfigAll, Command::TlbNsnhAll, SYNC]);
}

#[test]
fn a_unit_that_firmware_switched_off_is_passed_over() {
    let machine = Machine::new();
    machine.hardware().gone = Some(u32::MAX);
    let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
    assert_eq!(smmuv3::init(&iommu, &table()), Err(Error::NoDevice), "and there is no other");
    assert_eq!(iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted).unwrap_err(), Error::NoDevice);
    assert_eq!(iommu.uncovered().count(), 1);
}

#[test]
fn a_unit_that_cannot_abort_untranslated_requests_starts_all_the_same() {
    // QEMU before 8 has no GBPA.
    let machine = Machine::new();
    machine.hardware().gbpa = None;
    machine.hardware().cr0 = Cr0::SMMUEN.bits();
    assert!(World::on(machine, &table(), SmmuOptions::default()).translates());
}

#[test]
fn reserved_memory_is_reached_by_streams_that_nobody_probes() {
    // The last lies where no table of the unit reaches.
    let beyond = StreamId(OTHER_STREAM.0 + 1);
    let reserved =
        [(0x8_0000_0000, 0x1_0000, STREAM.0), (0x9000_0000, 0x2000, OTHER_STREAM.0), (1 << 50, 0x2000, beyond.0)];
    let table = iort(1, Host::Plain, &[(0, 0x100, 0x1000)], &reserved);
    let world = World::on(Machine::new(), &table, SmmuOptions::default());
    // Probed: in its own domain.
    let regions = world.device.reserved_regions().unwrap();
    let is_there =
        |kind, start| regions.iter().any(|region| region.kind == kind && region.range.start() == Iova::new(start));
    assert!(is_there(RegionKind::Direct, 0x8_0000_0000) && is_there(RegionKind::SoftwareMsi, 0x0800_0000));
    let default = world.iommu.domain_of(world.device.group().unwrap());
    assert_eq!(default.iova_to_phys(Iova::new(0x8_0000_1234)), Some(PhysAddr::new(0x8_0000_1234)));
    // Not probed: in one that nobody sees, and nothing else is there.
    let other = entry(&world.machine, OTHER_STREAM).unwrap();
    assert_eq!(other.config(), Config::Stage1);
    let cd = descriptor(&world.machine, other);
    assert_ne!(cd.asid(), world.descriptor().asid());
    let reached = |address: u64| walk(&world.machine, cd, address);
    assert_eq!([reached(0x9000_0000), reached(0x9000_1fff)], [Some(0x9000_0000), Some(0x9000_1fff)]);
    assert_eq!([reached(0x8fff_ffff), reached(0x9000_2000), reached(0x8_0000_0000)], [None; 3]);
    assert_eq!(entry(&world.machine, beyond), Some(Ste::abort()));
    // Until it is.
    let device = world.iommu.probe_pci(&SPACE, OTHER, Trust::Trusted).unwrap();
    assert_ne!(descriptor(&world.machine, entry(&world.machine, OTHER_STREAM).unwrap()).asid(), cd.asid());
    world.iommu.release_device(&device).unwrap();
    assert_eq!(entry(&world.machine, OTHER_STREAM), Some(Ste::abort()));
}

/// Where an address goes by tables of 4 KiB, four levels.
fn walk(machine: &Machine, cd: Cd, address: u64) -> Option<u64> {
    let mut table = cd.table(Half::Lower).table.as_u64();
    for level in [39, 30, 21, 12] {
        let entry = machine.visible(table + (address >> level & 511) * 8);
        let bits = entry & 0xffff_ffff_f000;
        match entry & 3 {
            3 if level > 12 => table = bits,
            1 | 3 => return Some(bits & !((1 << level) - 1) | address & ((1 << level) - 1)),
            _ => return None,
        }
    }
    None
}

#[test]
fn devices_under_one_stream_share_a_group() {
    // Two ranges of requester ids lead to the same StreamIDs.
    let table = iort(1, Host::Plain, &[(0, 0x28, 0x1000), (0x28, 8, 0x1020)], &[]);
    let world = World::on(Machine::new(), &table, SmmuOptions::default());
    let other = world.iommu.probe_pci(&SPACE, OTHER, Trust::Trusted).unwrap();
    assert_eq!(other.group(), world.device.group());
    let domain = world.domain();
    world.executed();
    world.attach(&domain).unwrap();
    assert_eq!(world.executed().len(), 4, "it is moved once");
    let asid = world.descriptor().asid();
    world.iommu.release_device(&world.device).unwrap();
    assert_eq!((world.entry().config(), world.descriptor().asid()), (Config::Stage1, asid), "the other goes on");
    world.iommu.release_device(&other).unwrap();
    assert_eq!(world.entry(), Ste::abort());
}

#[test]
fn events_and_errors_raise_messages_where_there_are_some() {
    let machine = Machine::new();
    machine.hardware().idr0 = Some(WITH_MESSAGES);
    let world = World::on(machine, &table(), SmmuOptions::default());
    let msi = Msi { address: PhysAddr::new(0x0808_0040), data: 7 };
    world.iommu.set_fault_interrupt(msi).unwrap();
    let messages = |world: &World| {
        let told = std::mem::take(&mut world.machine.hardware().told);
        let at = |offset, value| told.contains(&Told::Register(offset, value));
        at(offset::EVENTQ_IRQ_CFG0, 0x0808_0040)
            && at(offset::EVENTQ_IRQ_CFG1, 7)
            && at(offset::GERROR_IRQ_CFG0, 0x0808_0040)
            && at(offset::GERROR_IRQ_CFG1, 7)
            && world.machine.hardware().irq_ctrl == 0b101
    };
    assert!(messages(&world));
    // They are lost with the power.
    world.iommu.suspend().unwrap();
    world.iommu.resume().unwrap();
    assert!(messages(&world));
    let wired = World::new();
    let unsupported = Err(Error::Unsupported(UnsupportedReason::Operation));
    assert_eq!(wired.iommu.set_fault_interrupt(msi), unsupported);
    assert_eq!(wired.machine.hardware().irq_ctrl, 0b101, "the wires are on");
}

#[test]
fn without_power_nothing_passes_and_after_shutdown_everything_does() {
    let world = World::new();
    let gbpa = || world.machine.hardware().gbpa.unwrap() & Gbpa::ABORT;
    let is_on = || world.machine.hardware().cr0 != 0;
    world.iommu.suspend().unwrap();
    assert!(!is_on() && gbpa() != 0);
    world.executed();
    // What is changed meanwhile is there afterwards.
    let domain = world.domain();
    world.attach(&domain).unwrap();
    let range = map(&domain, 0x5000, 0x1000).unwrap();
    unmap(&domain, range).unwrap();
    assert_eq!(world.executed(), []);
    world.iommu.resume().unwrap();
    assert!(is_on());
    assert_eq!(world.descriptor().table(Half::Lower).table, table_of(&domain));
    world.iommu.shutdown().unwrap();
    assert!(!is_on() && gbpa() == 0);
    let machine = Machine::new();
    machine.hardware().cr0 = Cr0::SMMUEN.bits();
    machine.hardware().gbpa = Some(Gbpa::ABORT);
    let off = Iommu::new(machine.clone(), Policy { boot: BootPolicy::Off, ..Policy::default() }).unwrap();
    smmuv3::init(&off, &table()).unwrap();
    off.enable().unwrap();
    let hardware = machine.hardware();
    assert_eq!((hardware.cr0, hardware.gbpa), (0, Some(0)));
    drop(hardware);
}

/// Where the tables of a domain of stage 1 are.
fn table_of(domain: &Domain) -> PhysAddr {
    use iommu::domain::PagingDomain;
    use iommu::pgtable::Lpae4K;
    let paging: &PagingDomain<Lpae4K, Machine> = domain.ops().as_any().downcast_ref().unwrap();
    paging.table().root()
}

#[test]
fn every_allocation_may_fail_and_nothing_is_lost() {
    for allocations in 0.. {
        let world = World::new();
        let domain = world.domain();
        let frames = world.machine.frames_in_use();
        let before = world.entry();
        world.machine.fail_after(Some(allocations));
        let probed = world.iommu.probe_pci(&SPACE, OTHER, Trust::Trusted);
        let attached = world.attach(&domain);
        world.machine.fail_after(None);
        match attached {
            Ok(()) => assert_ne!(world.entry(), before),
            Err(error) => {
                assert_eq!(error, Error::NoMemory);
                assert_eq!(world.entry(), before, "as before");
                assert!(probed.is_ok() || world.machine.frames_in_use() >= frames);
            }
        }
        let done = probed.is_ok() && attached.is_ok();
        drop((probed, domain));
        let World { machine, iommu, device } = world;
        drop((iommu, device));
        assert_eq!(machine.frames_in_use(), 0, "after {allocations}");
        if done {
            return;
        }
    }
}

#[test]
fn a_unit_that_does_not_snoop_sees_what_it_needs() {
    let table = iort(0, Host::Plain, &[(0, 0x100, 0x1000)], &[]);
    let world = World::on(Machine::with_cleans(true), &table, SmmuOptions::default());
    let domain = world.domain();
    map(&domain, 0x5000, 0x1000).unwrap();
    world.attach(&domain).unwrap();
    assert_eq!(world.entry().config(), Config::Stage1);
    let cd = world.descriptor();
    assert_eq!((cd.table(Half::Lower).cacheability, cd.table(Half::Lower).shareability), (0, 2));
    assert_eq!(walk(&world.machine, cd, 0x5678), Some(0x5678));
}
