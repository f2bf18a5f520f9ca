//! An SMMUv3 and device TLBs, against hardware in software: who is asked to drop what, in which order, and
//! what becomes of a device that does not answer.
#![cfg(all(feature = "smmuv3", not(loom)))]

#[path = "support/functions.rs"]
mod functions;
#[allow(dead_code)]
#[path = "support/smmuv3_hardware.rs"]
mod hardware;
#[allow(dead_code)]
#[path = "support/smmuv3_tables.rs"]
mod tables;

use functions::Functions;
use hardware::{Machine, SYNC, Told};
use iommu::arch::smmuv3;
use iommu::arch::smmuv3::layout::commands::Command;
use iommu::arch::smmuv3::layout::registers::Cr0;
use iommu::arch::smmuv3::layout::stream_table::Eats;
use iommu::arch::smmuv3::layout::{Ste, StreamId};
use iommu::device::Trust;
use iommu::ops::{Ats, Requester, Unit};
use iommu::{
    Device, Domain, Error, InvalidationReason, Iommu, Iova, IovaRange, PciAddress, PhysAddr, Policy, Prot, SourceId,
};
use tables::{Host, entry, iort};

/// 00:04.0, under StreamID 0x1020, which has no TLB.
const FUNCTION: PciAddress = PciAddress::from_requester_id(0, 0x20);
const SPACE: Functions = Functions(&[FUNCTION]);
const PLAIN: StreamId = StreamId(0x1020);
/// One that has.
const STREAM: StreamId = StreamId(0x30);
/// QEMU's IDR0, with ATS.
const WITH_ATS: u32 = 0x0d44_141b;

struct World {
    machine: Machine,
    iommu: Iommu<Machine>,
    plain: Device,
    requester: Requester,
    domain: Domain,
}

impl World {
    fn new() -> Self {
        let machine = Machine::new();
        machine.hardware().idr0 = Some(WITH_ATS);
        let iommu = Iommu::new(machine.clone(), Policy::default()).unwrap();
        smmuv3::init(&iommu, &iort(1, Host::Plain, &[(0, 0x100, 0x1000)], &[])).unwrap();
        let plain = iommu.probe_pci(&SPACE, FUNCTION, Trust::Trusted).unwrap();
        iommu.enable().unwrap();
        let ats = Some(Ats { physical_function: 0, max_pending: 32 });
        let requester = Requester { ats, ..Requester::new(SourceId::platform(0, STREAM.0)) };
        let domain = iommu.paging_domain(&[&plain]).unwrap();
        let world = Self { machine, iommu, plain, requester, domain };
        world.attach().unwrap();
        world.executed();
        world
    }

    fn other_domain(&self) -> Domain {
        self.iommu.paging_domain(&[&self.plain]).unwrap()
    }

    fn unit(&self) -> Unit {
        self.iommu.units().next().unwrap()
    }

    fn attach(&self) -> Result<(), Error> {
        let unit = self.unit();
        unit.attach(&unit, &self.requester, &self.domain, self.iommu.blocked_domain())
    }

    fn entry(&self) -> Ste {
        entry(&self.machine, STREAM).unwrap()
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
}

impl Drop for World {
    fn drop(&mut self) {
        let unit = self.unit();
        unit.block(&unit, &self.requester, &self.domain);
    }
}

fn map(domain: &Domain, at: u64) -> IovaRange {
    let range = IovaRange::from_len(Iova::new(at), 0x1000).unwrap();
    // SAFETY: no device is real.
    unsafe { domain.map(range, PhysAddr::new(at), Prot::RW | Prot::CACHE) }.unwrap();
    range
}

fn unmap(domain: &Domain, range: IovaRange) -> Result<(), Error> {
    // SAFETY: one thread.
    unsafe { domain.unmap_sync(range) }
}

#[test]
fn device_tlbs_are_told_when_the_unit_has_forgotten() {
    let world = World::new();
    assert_eq!(world.entry().eats(), Eats::Full);
    let everything = Command::AtcInvalidate { stream: STREAM, substream: None, address: 0, size_log2: 64 };
    let page = Command::AtcInvalidate { stream: STREAM, substream: None, address: 0x5000, size_log2: 12 };
    let range = map(&world.domain, 0x5000);
    unmap(&world.domain, range).unwrap();
    assert!(matches!(world.executed().as_slice(), [Command::TlbNhVa { .. }, SYNC, told, SYNC] if *told == page));
    // One that goes to another domain which serves it drops everything, last of all.
    let (unit, other) = (world.unit(), world.other_domain());
    unit.attach(&unit, &world.requester, &other, &world.domain).unwrap();
    let executed = world.executed();
    assert!(
        matches!(executed.as_slice(), [.., Command::TlbNhAsid { .. }, SYNC, told, SYNC] if *told == everything),
        "{executed:?}"
    );
    unit.attach(&unit, &world.requester, &world.domain, &other).unwrap();
}

#[test]
fn a_device_that_does_not_answer_is_fenced_alone() {
    let world = World::new();
    let (before, domain) = (world.entry(), &world.domain);
    let range = map(domain, 0x5000);
    world.machine.hardware().silent = vec![STREAM.0];
    let failed = unmap(domain, range);
    let silent = InvalidationReason::DeviceTimeOut;
    assert!(matches!(failed, Err(Error::Invalidation { reason, .. }) if reason == silent), "{failed:?}");
    assert!(!world.entry().is_valid() && entry(&world.machine, PLAIN).unwrap().is_valid());
    assert_ne!(world.machine.hardware().cr0 & Cr0::SMMUEN.bits(), 0, "others go on");
    let other = world.other_domain();
    world.iommu.attach_device(&other, &world.plain).unwrap();
    let range = map(&other, 0x5000);
    unmap(&other, range).unwrap();
    assert_eq!(domain.flush_deferred(), Err(Error::Fenced), "it is asked nothing more");
    assert_eq!(world.attach(), Err(Error::Fenced));
    // It still does not answer.
    world.iommu.resume().unwrap();
    assert!(!world.entry().is_valid());
    world.machine.hardware().silent.clear();
    world.iommu.resume().unwrap();
    assert_eq!(world.entry(), before);
    domain.flush_deferred().unwrap();
}
