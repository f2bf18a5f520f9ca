//! What an SMMUv3 refuses: events, requests that wait for an answer, and global errors, with the device half
//! as hardware.
#![cfg(all(feature = "smmuv3", feature = "device", not(loom)))]

#[path = "support/functions.rs"]
mod functions;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/smmuv3_iort.rs"]
mod iort;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/smmuv3_device.rs"]
mod machine;

use functions::Functions;
use iommu::arch::smmuv3;
use iommu::arch::smmuv3::device::{Access, Blocked, DeviceConfig, Interrupt, Line, Misuse, Outcome, Request};
use iommu::arch::smmuv3::layout::commands::Resume;
use iommu::arch::smmuv3::layout::events::EventKind;
use iommu::arch::smmuv3::layout::identification::Idr0;
use iommu::arch::smmuv3::layout::registers::{Cr0, QueueBase, offset};
use iommu::arch::smmuv3::layout::{Identification, StreamId};
use iommu::arch::smmuv3::{SmmuOptions, firmware::Firmware};
use iommu::device::Trust;
use iommu::domain::DomainOptions;
use iommu::ops::{InterruptKind, Msi, Stage};
use iommu::{
    Device, Domain, Error, FaultKind, FaultRecord, FaultsLeft, InvalidReason, Iommu, Iova, IovaRange, Pasid,
    PciAddress, PhysAddr, Policy, Prot, SourceId, StallAnswer, StallPolicy,
};
use iort::{Component, Host, iort_with};
use machine::Machine;

/// 00:04.0, under StreamID 0x1020.
const FUNCTION: PciAddress = PciAddress::from_requester_id(0, 0x20);
const SPACE: Functions = Functions(&[FUNCTION]);
const STREAM: u32 = 0x1020;
/// Platform devices, of which the first bears that its requests wait.
const ENGINE: u32 = 8;
const OTHER: u32 = 9;

const NOT_WAITING: Error = Error::Invalid(InvalidReason::NotWaiting);
const HOLD: Policy = Policy { stalls: StallPolicy::Hold, boot: iommu::BootPolicy::Blocked, ..POLICY };
const POLICY: Policy = Policy {
    ats: iommu::AtsPolicy::Off,
    boot: iommu::BootPolicy::Blocked,
    default_domain: iommu::DomainKind::Paging,
    stalls: StallPolicy::Off,
};

struct World {
    machine: Machine,
    iommu: Iommu<Machine>,
    function: Device,
    engine: Device,
    /// Lives as long as the others.
    _other: Device,
}

fn default_unit() -> Identification {
    DeviceConfig::default().identification
}

fn always_stalls() -> Identification {
    Identification { idr0: default_unit().idr0 | 2 << 24, ..default_unit() }
}

impl World {
    fn new(policy: Policy) -> Self {
        Self::on(default_unit(), policy)
    }

    fn on(identification: Identification, policy: Policy) -> Self {
        let machine = Machine::new(identification);
        let iommu = Iommu::new(machine.clone(), policy).unwrap();
        let components = [
            Component { name: "\\_SB.DMA0", stream: ENGINE, bears_stalls: true },
            Component { name: "\\_SB.DMA1", stream: OTHER, bears_stalls: false },
        ];
        let table = iort_with(1, Host::Plain, &[(0, 0x100, 0x1000)], &[], &components);
        let firmware = Firmware::from_iort(machine.clone(), &table).unwrap();
        let firmware = smmuv3::init_with(&iommu, firmware, SmmuOptions::default()).unwrap();
        let function = iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted).unwrap();
        let platform = |name| iommu.probe_platform(firmware.platform_device(name, Trust::Trusted).unwrap()).unwrap();
        let [engine, other] = ["\\_SB.DMA0", "\\_SB.DMA1"].map(platform);
        iommu.enable().unwrap();
        Self { machine, iommu, function, engine, _other: other }
    }

    fn attached(&self, device: &Device, stage: Stage) -> Domain {
        let options = DomainOptions { stage: Some(stage), ..DomainOptions::default() };
        let domain = self.iommu.paging_domain_with(&[device], options).unwrap();
        self.attach(&domain, device);
        domain
    }

    fn attach(&self, domain: &Domain, device: &Device) {
        self.iommu.replace(domain, device.group().unwrap()).unwrap();
    }

    /// What the unit has told.
    fn faults(&self) -> Vec<FaultRecord> {
        assert_eq!(self.iommu.handle_interrupt(InterruptKind::Fault), FaultsLeft::None);
        std::iter::from_fn(|| self.iommu.next_fault()).collect()
    }

    fn fault(&self) -> FaultRecord {
        let [fault] = self.faults()[..] else { panic!("one fault") };
        fault
    }

    fn resumed(&self) -> Vec<(u16, Resume)> {
        std::mem::take(&mut self.machine.surroundings().resumed.lock().unwrap())
    }

    /// The engine writes where nothing is mapped.
    fn stalled(&self, address: u64) -> u16 {
        match self.machine.reach(ENGINE, address, Access::Write) {
            Err(Blocked { outcome: Outcome::Stalled(tag), .. }) => tag,
            answer => panic!("{answer:?}"),
        }
    }
}

fn map(domain: &Domain, at: u64, prot: Prot) {
    let range = IovaRange::from_len(Iova::new(at), 0x1000).unwrap();
    // SAFETY: no device is real.
    unsafe { domain.map(range, PhysAddr::new(at + 0x10_0000), prot) }.unwrap();
}

#[test]
fn events_say_who_wanted_what() {
    let world = World::new(POLICY);
    let refused = |stream, address, access| {
        let blocked = world.machine.reach(stream, address, access).unwrap_err();
        assert_eq!(blocked.outcome, Outcome::Abort);
        let fault = world.fault();
        assert_eq!((fault.reason, fault.stalled), (u32::from(blocked.reason.unwrap().0), None));
        (fault.source, fault.kind, fault.iova.map(Iova::as_u64), fault.access)
    };
    let (pci, platform) = (SourceId::pci(0, 0x20), SourceId::platform(0, OTHER));
    for stage in [Stage::First, Stage::Second] {
        let domain = world.attached(&world.function, stage);
        map(&domain, 0x5000, Prot::READ);
        assert_eq!(
            refused(STREAM, 0x7123, Access::Read),
            (pci, FaultKind::Translation, Some(0x7123), iommu::Access::Read)
        );
        assert_eq!(
            refused(STREAM, 0x5fff, Access::Write),
            (pci, FaultKind::Translation, Some(0x5fff), iommu::Access::Write)
        );
        assert!(world.machine.reach(STREAM, 0x5fff, Access::Read).is_ok());
    }
    assert_eq!(
        refused(OTHER, 0x8000, Access::Write),
        (platform, FaultKind::Translation, Some(0x8000), iommu::Access::Write)
    );
    // Nobody has this StreamID.
    let stranger = SourceId::platform(0, 0x5555);
    assert_eq!(refused(0x5555, 0x8000, Access::Read), (stranger, FaultKind::Blocked, None, iommu::Access::Unknown));
    let with_substream = Request { substream: Some(5), ..Request::new(StreamId(STREAM), 0x5000, Access::Read) };
    world.attached(&world.function, Stage::First);
    assert_eq!(world.machine.ask(&with_substream).unwrap_err().reason, Some(EventKind::C_BAD_SUBSTREAMID));
    let fault = world.fault();
    assert_eq!((fault.source, fault.kind, fault.pasid), (pci, FaultKind::Blocked, Pasid::new(5)));
    // Who is blocked is not told of.
    world.attach(&world.iommu.blocked_domain().clone(), &world.function);
    assert!(world.machine.reach(STREAM, 0x5000, Access::Read).is_err());
    assert_eq!(world.faults(), []);
    assert_eq!(world.machine.misuse(), Misuse::empty());
}

#[test]
fn events_interrupt_by_message_or_wire() {
    let interrupt_of = |identification, msi: Option<Msi>| {
        let world = World::on(identification, POLICY);
        msi.into_iter().for_each(|msi| world.iommu.set_fault_interrupt(msi).unwrap());
        world.machine.reach(STREAM, 0x7000, Access::Read).unwrap_err();
        std::mem::take(&mut *world.machine.surroundings().interrupts.lock().unwrap())
    };
    let message = Msi { address: PhysAddr::new(0x0808_0040), data: 7 };
    assert_eq!(interrupt_of(default_unit(), Some(message)), [Interrupt::Message(message)]);
    let wired = Identification { idr0: default_unit().idr0 & !Idr0::MSI.bits(), ..default_unit() };
    assert_eq!(interrupt_of(wired, None), [Interrupt::Wired(Line::Events)]);
}

#[test]
fn a_storm_overflows_and_what_comes_after_it_is_told() {
    let world = World::new(POLICY);
    for _ in 0..2 {
        let before = world.iommu.lost_faults().overflows;
        (0..300).for_each(|_| assert!(world.machine.reach(STREAM, 0x7000, Access::Read).is_err()));
        world.faults();
        assert_eq!(world.iommu.lost_faults().overflows, before + 1);
        // Another is not muted.
        world.machine.reach(OTHER, 0x7000, Access::Read).unwrap_err();
        assert_eq!(world.fault().source, SourceId::platform(0, OTHER));
    }
}

#[test]
fn events_that_cannot_be_written_are_lost_and_said_to_be() {
    let world = World::new(POLICY);
    let base = |at| u64::from(world.machine.register(at));
    let queue = QueueBase(base(offset::EVENTQ_BASE) | base(offset::EVENTQ_BASE + 4) << 32).address().as_u64();
    *world.machine.surroundings().broken.lock().unwrap() = queue..queue + 0x1000;
    world.machine.reach(STREAM, 0x7000, Access::Read).unwrap_err();
    assert_ne!(world.machine.register(offset::GERROR), world.machine.register(offset::GERRORN));
    *world.machine.surroundings().broken.lock().unwrap() = 0..0;
    assert_eq!(world.faults(), []);
    assert_eq!(world.iommu.lost_faults().overflows, 1);
    assert_eq!(world.machine.register(offset::GERROR), world.machine.register(offset::GERRORN));
    world.machine.reach(STREAM, 0x7000, Access::Read).unwrap_err();
    assert_eq!(world.faults().len(), 1);
}

#[test]
fn a_request_waits_until_it_is_answered() {
    for stage in [Stage::First, Stage::Second] {
        let world = World::new(HOLD);
        let domain = world.attached(&world.engine, stage);
        let tag = world.stalled(0x7000);
        assert_eq!(world.resumed(), []);
        let fault = world.fault();
        assert_eq!((fault.source, fault.kind), (SourceId::platform(0, ENGINE), FaultKind::Translation));
        map(&domain, 0x7000, Prot::RW);
        world.iommu.answer_stall(&fault, StallAnswer::Retry).unwrap();
        assert_eq!(world.resumed(), [(tag, Resume::Retry)]);
        assert_eq!(world.machine.reach(ENGINE, 0x7000, Access::Write), Ok(PhysAddr::new(0x10_7000)));
        assert_eq!(world.iommu.answer_stall(&fault, StallAnswer::Retry), Err(NOT_WAITING), "once");
        let tag = world.stalled(0x8000);
        let fault = world.fault();
        world.iommu.answer_stall(&fault, StallAnswer::Terminate).unwrap();
        assert_eq!(world.resumed(), [(tag, Resume::Abort)]);
        assert_eq!(world.machine.misuse(), Misuse::empty());
    }
}

#[test]
fn requests_wait_only_where_policy_and_firmware_have_it() {
    let held = World::new(HOLD);
    let outcome = |world: &World, stream| world.machine.reach(stream, 0x7000, Access::Read).unwrap_err().outcome;
    assert_eq!([OTHER, STREAM].map(|stream| outcome(&held, stream)), [Outcome::Abort; 2]);
    assert!(matches!(outcome(&held, ENGINE), Outcome::Stalled(_)));
    assert_eq!(outcome(&World::new(POLICY), ENGINE), Outcome::Abort);
    let cannot = Identification { idr0: default_unit().idr0 | 1 << 24, ..default_unit() };
    assert_eq!(outcome(&World::on(cannot, HOLD), ENGINE), Outcome::Abort);
}

#[test]
fn what_waits_though_it_may_not_is_terminated_when_it_is_read() {
    for stage in [Stage::First, Stage::Second] {
        let world = World::on(always_stalls(), HOLD);
        world.attached(&world.function, stage);
        world.attached(&world.engine, stage);
        let outcome = world.machine.reach(STREAM, 0x7000, Access::Read).unwrap_err().outcome;
        let Outcome::Stalled(tag) = outcome else { panic!("{outcome:?}") };
        assert_eq!(world.fault().stalled, None);
        assert_eq!(world.resumed(), [(tag, Resume::Abort)]);
        world.stalled(0x7000);
        assert!(world.fault().stalled.is_some());
        assert_eq!(world.resumed(), []);
    }
}

#[test]
fn what_nobody_is_told_of_is_terminated() {
    let world = World::new(HOLD);
    world.attached(&world.engine, Stage::First);
    // The source is muted, sooner or later.
    let (mut waiting, mut ended) = (0, 0);
    for _ in 0..20 {
        world.stalled(0x7000);
        waiting += world.faults().iter().filter(|fault| fault.stalled.is_some()).count();
        ended += world.resumed().len();
        if waiting == 16 {
            break;
        }
    }
    assert_eq!((waiting, ended), (10, 10));
}

#[test]
fn who_moves_or_is_blocked_takes_what_waits_along() {
    let world = World::new(HOLD);
    let moves: [&dyn Fn(); 3] = [
        &|| drop(world.attached(&world.engine, Stage::First)),
        &|| drop(world.attached(&world.engine, Stage::Second)),
        &|| world.attach(&world.iommu.blocked_domain().clone(), &world.engine),
    ];
    for leave in moves {
        world.attached(&world.engine, Stage::First);
        let read = world.stalled(0x7000);
        let fault = world.fault();
        leave();
        assert_eq!(world.resumed(), [(read, Resume::Abort)]);
        assert_eq!(world.iommu.answer_stall(&fault, StallAnswer::Retry), Err(NOT_WAITING));
    }
    // One whose event is read too late.
    world.attached(&world.engine, Stage::First);
    let unread = world.stalled(0x7000);
    world.attach(&world.iommu.blocked_domain().clone(), &world.engine);
    assert_eq!(world.fault().stalled, None);
    assert_eq!(world.resumed(), [(unread, Resume::Abort)]);
    // One that goes.
    world.attached(&world.engine, Stage::First);
    let last = world.stalled(0x7000);
    world.fault();
    world.iommu.release_device(&world.engine).unwrap();
    assert_eq!(world.resumed(), [(last, Resume::Abort)]);
}

#[test]
fn nothing_waits_beyond_translation() {
    let world = World::new(HOLD);
    world.attached(&world.engine, Stage::First);
    let tag = world.stalled(0x7000);
    let fault = world.fault();
    world.iommu.suspend().unwrap();
    assert_eq!(world.resumed(), [(tag, Resume::Abort)], "by the unit");
    assert_eq!(world.iommu.answer_stall(&fault, StallAnswer::Retry), Err(NOT_WAITING));
    world.iommu.resume().unwrap();
    let again = world.stalled(0x7000);
    let fault = world.fault();
    world.iommu.answer_stall(&fault, StallAnswer::Retry).unwrap();
    assert_eq!(world.resumed(), [(again, Resume::Retry)]);
}

#[test]
fn events_of_a_unit_that_was_off_are_not_told() {
    let world = World::new(POLICY);
    world.machine.reach(STREAM, 0x7000, Access::Read).unwrap_err();
    world.iommu.suspend().unwrap();
    assert_eq!(world.faults(), []);
    world.iommu.resume().unwrap();
    assert_eq!(world.faults(), []);
    world.machine.reach(STREAM, 0x7000, Access::Read).unwrap_err();
    assert_eq!(world.faults().len(), 1);
    world.iommu.shutdown().unwrap();
    assert_eq!(world.machine.register(offset::CR0ACK) & Cr0::EVENTQEN.bits(), 0);
}
