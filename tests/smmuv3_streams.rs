//! Streams of an SMMUv3, with the device half as hardware: what their devices reach, and when.
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
use iommu::arch::smmuv3::device::{Access, DeviceConfig, Misuse, Request, SmmuDevice};
use iommu::arch::smmuv3::layout::commands::{Command, Completion};
use iommu::arch::smmuv3::layout::identification::Idr0;
use iommu::arch::smmuv3::layout::{Identification, StreamId, Vmid};
use iommu::device::Trust;
use iommu::domain::DomainOptions;
use iommu::ops::Stage;
use iommu::{
    BootPolicy, Device, Domain, DomainKind, Error, Iommu, Iova, IovaRange, NoSpaceReason, PciAddress, PhysAddr, Policy,
    Prot,
};
use iort::{Host, Reserved, iort};
use machine::Machine;

/// Devices on root buses, under StreamIDs from 0x1000 on.
const DEVICES: [PciAddress; 256] = {
    let mut functions = [PciAddress::from_requester_id(0, 0); 256];
    let mut slot = 0;
    while slot < 256 {
        functions[slot] = PciAddress::from_requester_id(0, (slot as u16) << 3);
        slot += 1;
    }
    functions
};
const SPACE: Functions = Functions(&DEVICES);
const FUNCTION: PciAddress = DEVICES[4];
const STREAM: u32 = 0x1020;

struct World {
    machine: Machine,
    iommu: Iommu<Machine>,
}

impl World {
    fn new(identification: Identification, policy: Policy) -> Self {
        Self::with(identification, policy, &[])
    }

    fn with(identification: Identification, policy: Policy, reserved: &[Reserved]) -> Self {
        let machine = Machine::new(identification);
        let iommu = Iommu::new(machine.clone(), policy).unwrap();
        smmuv3::init(&iommu, &iort(1, Host::Plain, &[(0, 0x800, 0x1000)], reserved)).unwrap();
        Self { machine, iommu }
    }

    fn probe(&self, function: PciAddress) -> Result<Device, Error> {
        self.iommu.probe_pci(&SPACE, function, Trust::Trusted)
    }

    fn domain(&self, device: &Device, stage: Stage) -> Domain {
        let options = DomainOptions { stage: Some(stage), ..DomainOptions::default() };
        self.iommu.paging_domain_with(&[device], options).unwrap()
    }

    fn reach(&self, stream: u32, address: u64) -> Option<u64> {
        self.machine.reach(stream, address, Access::Write).ok().map(PhysAddr::as_u64)
    }
}

fn default_unit() -> Identification {
    DeviceConfig::default().identification
}

fn map(domain: &Domain, at: u64, phys: u64) {
    let range = IovaRange::from_len(Iova::new(at), 0x1000).unwrap();
    // SAFETY: no device is real.
    unsafe { domain.map(range, PhysAddr::new(phys), Prot::RW) }.unwrap();
}

#[test]
fn a_device_that_moves_sees_the_old_domain_or_the_new_one() {
    for stage in [Stage::First, Stage::Second] {
        let world = World::new(default_unit(), Policy::default());
        let device = world.probe(FUNCTION).unwrap();
        world.iommu.enable().unwrap();
        let domains = [(); 2].map(|()| world.domain(&device, stage));
        for (domain, phys) in domains.iter().zip([0x10_0000, 0x20_0000]) {
            map(domain, 0x5000, phys);
        }
        let group = device.group().unwrap();
        world.iommu.replace(&domains[1], group).unwrap();
        let request = Request::new(StreamId(STREAM), 0x5000, Access::Write);
        let (looks, places) = std::sync::mpsc::channel();
        world.machine.watch(move |unit: &SmmuDevice<_, _, _>| {
            let _ = looks.send(unit.translate(&request).map(|answer| answer.phys.as_u64()).ok());
        });
        for (domain, phys) in [0, 1, 0, 1].map(|next| (&domains[next], [0x10_0000, 0x20_0000][next])) {
            world.iommu.replace(domain, group).unwrap();
            let seen: Vec<_> = places.try_iter().collect();
            let expected = [Some(0x10_0000), Some(0x20_0000)];
            // Stage 2 is more than one quadword: in between, nothing (4.9).
            let hitless = stage == Stage::First;
            let is_expected = |place: &Option<u64>| expected.contains(place) || !hitless && place.is_none();
            assert!(!seen.is_empty() && seen.iter().all(is_expected), "{stage:?}: {seen:x?}");
            assert_eq!(world.reach(STREAM, 0x5000), Some(phys));
        }
        assert_eq!(world.machine.misuse(), Misuse::empty());
    }
}

#[test]
fn numbers_are_used_again_after_what_was_under_them_went() {
    // ASIDs and VMIDs of 8 bits, of which one is nobody's.
    let idr0 = default_unit().idr0 & !(Idr0::ASID16 | Idr0::VMID16).bits();
    let policy = Policy { default_domain: DomainKind::Blocked, ..Policy::default() };
    let world = World::new(Identification { idr0, ..default_unit() }, policy);
    let devices: Vec<_> = DEVICES.iter().map(|function| world.probe(*function).unwrap()).collect();
    world.iommu.enable().unwrap();
    for stage in [Stage::First, Stage::Second] {
        let domains: Vec<_> = devices.iter().map(|device| world.domain(device, stage)).collect();
        let attach = |index: usize| world.iommu.replace(&domains[index], devices[index].group().unwrap());
        let attached = (0..256).take_while(|index| attach(*index).is_ok()).count();
        assert_eq!(attached, 255);
        assert_eq!(attach(attached), Err(Error::NoSpace(NoSpaceReason::DomainIds)));
        map(&domains[7], 0x5000, 0x10_0000);
        map(&domains[attached], 0x5000, 0x20_0000);
        assert_eq!(world.reach(0x1038, 0x5000), Some(0x10_0000));
        // One goes.
        world.machine.executed();
        world.iommu.replace(world.iommu.blocked_domain(), devices[7].group().unwrap()).unwrap();
        let is_of_number = |command: &Command| match command {
            Command::TlbNhAsid { vmid: Vmid(0), .. } => stage == Stage::First,
            Command::TlbS12Vmall { .. } => stage == Stage::Second,
            _ => false,
        };
        let executed = world.machine.executed();
        assert!(executed.iter().any(is_of_number), "{executed:?}");
        assert_eq!(executed.last(), Some(&Command::Sync { completion: Completion::None }));
        attach(attached).unwrap();
        assert_eq!(
            (world.reach(0x1038, 0x5000), world.reach(0x1000 + ((attached as u32) << 3), 0x5000)),
            (None, Some(0x20_0000))
        );
        for device in &devices {
            world.iommu.replace(world.iommu.blocked_domain(), device.group().unwrap()).unwrap();
        }
    }
    assert_eq!(world.machine.misuse(), Misuse::empty());
}

#[test]
fn firmwares_memory_is_reached_before_and_after_a_stream_is_probed() {
    let policy = Policy { boot: BootPolicy::Blocked, ..Policy::default() };
    let world = World::with(default_unit(), policy, &[(0x9000_0000, 0x2000, 0x1028)]);
    world.iommu.enable().unwrap();
    let reached = || [0x9000_0000, 0x9000_1fff, 0x9000_2000, 0x8fff_ffff].map(|address| world.reach(0x1028, address));
    let reserved = [Some(0x9000_0000), Some(0x9000_1fff), None, None];
    assert_eq!(reached(), reserved);
    let device = world.probe(DEVICES[5]).unwrap();
    assert_eq!(reached(), reserved);
    // Wherever it goes.
    for stage in [Stage::First, Stage::Second] {
        world.iommu.replace(&world.domain(&device, stage), device.group().unwrap()).unwrap();
        assert_eq!(reached(), reserved);
    }
    world.iommu.release_device(&device).unwrap();
    assert_eq!(reached(), [None; 4]);
}

#[test]
fn messages_reach_the_doorbell_through_the_window_of_each_domain() {
    let world = World::new(default_unit(), Policy::default());
    let device = world.probe(FUNCTION).unwrap();
    world.iommu.enable().unwrap();
    for stage in [Stage::First, Stage::Second] {
        let domain = world.domain(&device, stage);
        world.iommu.replace(&domain, device.group().unwrap()).unwrap();
        let [first, second] = [0x0809_0040, 0x1_0000_0080].map(|doorbell| {
            let iova = world.iommu.msi_address(&domain, &device, PhysAddr::new(doorbell)).unwrap();
            assert_eq!(world.reach(STREAM, iova.as_u64()), Some(doorbell));
            iova.as_u64()
        });
        assert_eq!([first, second].map(|iova| iova >> 20), [0x80; 2], "in the window");
        let again = world.iommu.msi_address(&domain, &device, PhysAddr::new(0x0809_0044)).unwrap();
        assert_eq!(again.as_u64(), first + 4, "one page for one doorbell");
    }
}
