//! The same random operations on the model and on QEMU, or on two models that differ in what must not
//! matter: the same data, the same results, the same faults. Where QEMU does otherwise than the
//! specification, the quirk has a name.

use std::time::Duration;

use iommu::ops::Stage;
use iommu::{Access as FaultAccess, Domain, FaultRecord, Iova, IovaRange, Prot};
use iommu_harness::{Access, Buffer, Machine, Node, QemuQuirks, TestResult};

use crate::rig::{Rig, phys, range};

/// Operations of one run.
const OPERATIONS: usize = 250;
/// IOVAs that are used: small pages here, a few large ones there.
const SMALL: u64 = 0x10_0000;
const SMALL_PAGES: u64 = 24;
const LARGE: u64 = 0x4000_0000;
const LARGE_BYTES: u64 = 4 << 20;
/// A size of pages that every granule has.
const LARGE_PAGE: u64 = 2 << 20;
/// What no request of a device passes.
const PIECE: u64 = 4096;

const DOMAINS: u64 = 3;
const DEVICES: [&str; 2] = ["edu", "other"];

/// One thing that a driver or a device does.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Map { domain: usize, at: IovaRange, buffer: usize, offset: u64, prot: Prot },
    Unmap { domain: usize, at: IovaRange },
    Protect { domain: usize, at: IovaRange, prot: Prot },
    Cut { domain: usize, at: IovaRange },
    Attach { device: usize, target: Target },
    Write { device: usize, iova: Iova, bytes: usize, value: u8 },
    Read { device: usize, iova: Iova, bytes: usize },
    Copy { device: usize, from: Iova, to: Iova, bytes: usize },
    Poke { device: usize, iova: Iova, access: Access },
}

/// Where a device is attached to.
#[derive(Clone, Copy, Debug)]
enum Target {
    Paging(usize),
    Blocked,
    /// The default domain.
    None,
}

/// What came of an operation, as far as driver and device can tell.
#[derive(Debug)]
struct Outcome {
    result: String,
    read: Vec<u8>,
    told: Told,
}

/// What was told of faults.
#[derive(Debug)]
struct Told {
    faults: Vec<Fault>,
    completeness: Completeness,
}

/// Whether all of it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Completeness {
    All,
    /// There was no room for the last ones.
    First,
}

/// What a fault record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fault {
    source: u32,
    iova: Option<Iova>,
    access: FaultAccess,
    reason: u32,
    pasid: Option<u32>,
}

impl From<FaultRecord> for Fault {
    fn from(record: FaultRecord) -> Self {
        let pasid = record.pasid.map(|pasid| pasid.as_u32());
        let FaultRecord { iova, access, reason, .. } = record;
        Self { source: record.source.id(), iova, access, reason, pasid }
    }
}

/// One of the two machines.
struct Side<'m> {
    rig: Rig<'m>,
    domains: Vec<Domain>,
    /// Three of four pages each, and one of 4 MiB.
    buffers: Vec<Buffer>,
}

impl<'m> Side<'m> {
    fn new(machine: &'m dyn Machine) -> TestResult<Self> {
        let rig = Rig::new(machine)?;
        let small = 4 * rig.page();
        let buffers = [small, small, small, LARGE_BYTES].map(|bytes| machine.buffer(bytes));
        let buffers = buffers.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut domains = Vec::new();
        for _ in 0..DOMAINS {
            let domain = rig.iommu.paging_domain(&[&rig.device(DEVICES[0]), &rig.device(DEVICES[1])])?;
            DEVICES.iter().try_for_each(|name| rig.map_workspace(&domain, name))?;
            domains.push(domain);
        }
        Ok(Self { rig, domains, buffers })
    }

    fn perform(&self, operation: Operation) -> TestResult<Outcome> {
        // Faults of one source are muted when they come fast.
        self.rig.machine.platform().advance(Duration::from_secs(2));
        let before = self.rig.iommu.lost_faults();
        let mut read = Vec::new();
        let engine = |device: usize| self.rig.engine(DEVICES[device]);
        let result = match operation {
            Operation::Map { domain, at, buffer, offset, prot } => {
                // SAFETY: the buffers live as long as the machine is used.
                let mapped = unsafe { self.domains[domain].map(at, phys(&self.buffers[buffer], offset), prot) };
                format!("{mapped:?}")
            }
            // SAFETY: one thread works on these domains.
            Operation::Unmap { domain, at } => format!("{:?}", unsafe { self.domains[domain].unmap_sync(at) }),
            Operation::Protect { domain, at, prot } => {
                // SAFETY: as above.
                format!("{:?}", unsafe { self.domains[domain].protect(at, prot) })
            }
            // SAFETY: as above.
            Operation::Cut { domain, at } => format!("{:?}", unsafe { self.domains[domain].cut(at) }),
            Operation::Attach { device, target } => format!("{:?}", self.attach(device, target)),
            Operation::Write { device, iova, bytes, value } => {
                let data: Vec<u8> = (0..bytes).map(|index| value.wrapping_add(index as u8)).collect();
                format!("{:?}", engine(device).dma_write(iova, &data)?)
            }
            Operation::Read { device, iova, bytes } => {
                read = engine(device).dma_read(iova, bytes)?;
                String::new()
            }
            Operation::Copy { device, from, to, bytes } => format!("{:?}", engine(device).copy(from, to, bytes)?),
            Operation::Poke { device, iova, access } => format!("{:?}", engine(device).poke(iova, access)?),
        };
        let faults = self.rig.faults().into_iter().map(Fault::from).collect();
        let all = self.rig.iommu.lost_faults() == before;
        let completeness = if all { Completeness::All } else { Completeness::First };
        Ok(Outcome { result, read, told: Told { faults, completeness } })
    }

    fn attach(&self, device: usize, target: Target) -> Result<(), iommu::Error> {
        let group = self.rig.group(DEVICES[device]);
        match target {
            Target::Paging(domain) => self.rig.iommu.replace(&self.domains[domain], &group),
            Target::Blocked => self.rig.iommu.replace(&self.rig.iommu.blocked_domain().clone(), &group),
            Target::None => {
                let domain = self.rig.iommu.domain_of(&group);
                self.rig.iommu.detach_group(&domain, &group)
            }
        }
    }

    /// Whether something is mapped in the device's domain at a page.
    fn is_mapped(&self, source: u32, iova: Iova) -> bool {
        let device = DEVICES.iter().find(|name| self.rig.engine(name).requester().id() == source);
        let domain = device.map(|name| self.rig.iommu.domain_of(&self.rig.group(name)));
        domain.is_some_and(|domain| domain.walk(range(iova.as_u64(), 1)).next().is_some())
    }
}

/// Random operations.
struct Dice {
    state: u64,
    /// Bytes of the smallest page.
    page: u64,
}

impl Dice {
    /// A number below `end` (splitmix64).
    fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }

    fn one_in(&mut self, end: u64) -> bool {
        self.below(end) == 0
    }

    fn prot(&mut self) -> Prot {
        [Prot::RW, Prot::RW, Prot::READ, Prot::WRITE][self.below(4) as usize]
    }

    fn iova(&mut self) -> Iova {
        let (page, in_large) = (self.page, self.one_in(4));
        let start = if in_large {
            LARGE + self.below(LARGE_BYTES / page) * page
        } else {
            SMALL + self.below(SMALL_PAGES) * page
        };
        Iova::new(start + self.below(page))
    }

    /// A range of pages, and a place of the same size in a buffer.
    fn mapping(&mut self) -> (IovaRange, usize, u64) {
        let page = self.page;
        if self.one_in(4) {
            // Aligned so that large pages are possible.
            let (half, whole) = (self.below(2) * LARGE_PAGE, self.below(4) < 3);
            let offset = self.below(2) * LARGE_PAGE;
            return (range(LARGE + half, if whole { LARGE_PAGE } else { 16 * page }), 3, offset);
        }
        let pages = 1 + self.below(4);
        let start = self.below(SMALL_PAGES - pages);
        (range(SMALL + start * page, pages * page), self.below(3) as usize, self.below(5 - pages) * page)
    }

    fn operation(&mut self) -> Operation {
        let (domain, device) = (self.below(DOMAINS) as usize, self.below(DEVICES.len() as u64) as usize);
        let (at, buffer, offset) = self.mapping();
        let most = if self.one_in(4) { 6000 } else { 64 };
        let bytes = 1 + self.below(most) as usize;
        match self.below(20) {
            0..=4 => Operation::Map { domain, at, buffer, offset, prot: self.prot() },
            5..=6 => Operation::Unmap { domain, at },
            7 => Operation::Protect { domain, at, prot: self.prot() },
            8 => {
                let start = LARGE + self.below(LARGE_BYTES / self.page) * self.page;
                Operation::Cut { domain, at: range(start, self.page) }
            }
            9..=10 => {
                let target = match self.below(6) {
                    0 => Target::Blocked,
                    1 => Target::None,
                    _ => Target::Paging(domain),
                };
                Operation::Attach { device, target }
            }
            11..=12 => Operation::Write { device, iova: self.iova(), bytes, value: self.below(256) as u8 },
            13..=14 => Operation::Read { device, iova: self.iova(), bytes },
            15 => Operation::Copy { device, from: self.iova(), to: self.iova(), bytes },
            _ => {
                let iova = self.iova().align_down(4);
                let access = if self.one_in(2) { Access::Read } else { Access::Write };
                Operation::Poke { device, iova, access }
            }
        }
    }
}

/// The devices of a run.
pub(crate) fn devices() -> Vec<Node> {
    DEVICES.iter().map(|name| Node::edu(name)).collect()
}

/// One run: the operations of a seed on a model and on another machine with the same kind of domains.
pub(crate) fn run(ours: &dyn Machine, theirs: &dyn Machine, seed: u64) -> TestResult {
    let quirks = theirs.quirks();
    let (model, other_side) = (Side::new(ours)?, Side::new(theirs)?);
    for (mine, other) in model.buffers.iter().zip(&other_side.buffers) {
        assert_eq!(mine.phys(), other.phys(), "the two machines have the same memory");
    }
    let mut dice = Dice { state: seed, page: model.rig.page() };
    let mut faults = 0;
    for number in 0..OPERATIONS {
        let operation = dice.operation();
        let (mine, other) = (model.perform(operation)?, other_side.perform(operation)?);
        let what = format!("operation {number}, {operation:x?}");
        assert_eq!(mine.result, other.result, "{what}");
        assert!(mine.read == other.read, "{what}: {:x?} on the model, {:x?} on the other", mine.read, other.read);
        compare_faults(&what, &model, quirks, &mine.told, &other.told);
        faults += mine.told.faults.len();
        for (index, (mine, other)) in model.buffers.iter().zip(&other_side.buffers).enumerate() {
            assert!(same(mine, other), "{what}: buffer {index} differs");
        }
    }
    assert!(faults > 10, "only {faults} faults: this compares little");
    Ok(())
}

/// Whether two buffers hold the same bytes.
fn same(one: &Buffer, other: &Buffer) -> bool {
    // Pieces that an allocator has at hand.
    const CHUNK: usize = 64 << 10;
    let offsets = (0..one.bytes()).step_by(CHUNK);
    offsets.into_iter().all(|offset| {
        let bytes = CHUNK.min((one.bytes() - offset) as usize);
        one.read(offset, bytes) == other.read(offset, bytes)
    })
}

/// The model's faults and those of the other machine are the same, but for what its quirks explain.
fn compare_faults(what: &str, model: &Side<'_>, quirks: Option<&QemuQuirks>, mine: &Told, theirs: &Told) {
    let Some(quirks) = quirks else {
        return assert_same(what, mine, theirs);
    };
    // A page that is mapped faults for its permissions, so a translation of it may be cached.
    let may_be_cached = |fault: &Fault| fault.iova.is_some_and(|iova| model.is_mapped(fault.source, iova));
    // All domains of a run are alike.
    let stage = model.domains[0].ops().stage().expect("a paging domain has a stage");
    if model.rig.tells_of_each_access() {
        let (mut mine, theirs) = (by_page(mine), by_page(theirs));
        let quirk = quirks.smmu_drops_what_a_cached_entry_of_stage_2_forbids && stage == Stage::Second;
        mine.faults.retain(|fault| !quirk || !may_be_cached(fault) || theirs.faults.contains(fault));
        return assert_same(what, &mine, &theirs);
    }
    let (mine, theirs) = (&mine.faults, &theirs.faults);
    let dropped =
        |fault: &Fault| quirks.vtd_drops_what_a_cached_entry_forbids && may_be_cached(fault) && !theirs.contains(fault);
    let as_theirs = |fault: &Fault| {
        let access = if fault.access == FaultAccess::Write { Access::Write } else { Access::Read };
        Fault { reason: quirks.vtd_reason(stage, access, fault.reason), ..*fault }
    };
    let mine: Vec<_> = mine.iter().map(as_theirs).filter(|fault| !dropped(fault)).collect();
    assert_eq!(mine, *theirs, "{what}: faults of the model, and of QEMU");
}

/// The same faults; where some were lost, the same as far as they were told.
fn assert_same(what: &str, mine: &Told, theirs: &Told) {
    let told = |told: &Told, by: &Told| match by.completeness {
        Completeness::First => told.faults[..told.faults.len().min(by.faults.len())].to_vec(),
        Completeness::All => told.faults.clone(),
    };
    assert_eq!(told(mine, theirs), told(theirs, mine), "{what}: faults of the model, and of the other");
}

/// The first fault of each kind in each page: an access that fails may be told of piece by piece.
fn by_page(told: &Told) -> Told {
    let mut faults: Vec<Fault> = Vec::new();
    for fault in &told.faults {
        let fault = Fault { iova: fault.iova.map(|iova| iova.align_down(PIECE)), ..*fault };
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    Told { faults, ..*told }
}
