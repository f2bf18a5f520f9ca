//! The walks alone: on memory that does not change, they find what the naive walker finds.

use iommu::Prot;
use iommu::arch::vtd::device::walk::{
    self, ContextInfo, Goal, Leaf, Lookup, Mode, NoStructureCache, Stage, Stages, Structure, StructureCache,
};
use iommu::arch::vtd::device::{Blocked, DeviceConfig, Privilege, Recorded, RequestAccess};
use iommu::arch::vtd::layout::tables::TranslationType;

use crate::guest::Guest;
use crate::input::Input;
use crate::naive::{Answers, Asked, Naive, Page, Wants};
use crate::tables::{self, LEGACY, SCALABLE, SOURCES};

/// Words that a walk reads at the most while nobody changes them: two entries of four and two words, a
/// PASID in nine, and five levels, each through five.
const READS: usize = 6 + 9 + 6 * 5 + 5;
/// The same when each update is tried as often as it may be.
const TRIES: usize = 4;

pub fn run(input: &mut Input<'_>) {
    let config = tables::config(input);
    let guest = Guest::new(config.host_address_bits);
    tables::build(&guest, input);
    let root = match input.u8() {
        0..96 => LEGACY,
        96..224 => SCALABLE,
        224..232 => SCALABLE | 0x80,
        _ => input.u64() & 0x1_ffff,
    };
    let mut cache = Everything::default();
    while !input.is_empty() {
        let mut asked = asked(input);
        if root >> 10 & 3 == 0 {
            asked.pasid = None;
        }
        compare(&guest, &config, root, &asked, &mut NoStructureCache);
        // What was found a moment ago holds while nothing changes.
        cache.0.clear();
        compare(&guest, &config, root, &asked, &mut cache);
        let found = cache.0.len();
        compare(&guest, &config, root, &asked, &mut cache);
        assert!(cache.0.len() <= found, "a walk that began further down inserted more");
        // It holds for others as well.
        let other = Asked { supervisor: !asked.supervisor, wants: Wants::Learn(true), ..asked };
        compare(&guest, &config, root, &other, &mut cache);
        if input.u8() & 3 == 0 {
            guest.change(input);
            guest.lock().accesses = 0;
            let _ = walk(&guest, &config, root, &asked, &mut NoStructureCache);
            let accesses = guest.lock().accesses;
            assert!(accesses <= 2 * TRIES * TRIES * READS, "{accesses} accesses");
            guest.settle();
        }
        tables::spoil(&guest, input);
    }
}

pub fn asked(input: &mut Input<'_>) -> Asked {
    let kind = input.u8();
    let source = match kind & 7 {
        7 => input.u16(),
        kind => SOURCES[usize::from(kind % 3)],
    };
    let pasid = match kind >> 3 & 7 {
        0..4 => None,
        4 => Some(0),
        5 => Some(1),
        6 => Some(u32::from(input.u8() & 7)),
        _ => Some(input.u32() & 0xf_ffff),
    };
    let address = match kind >> 6 {
        0 | 1 => u64::from(input.u8()) << 12 | 0xabc,
        2 => u64::from(input.u16() & 0x3ff) << 12,
        _ => input.u64(),
    };
    let wants = match input.u8() % 6 {
        0 => Wants::Read,
        1 => Wants::Flush,
        2 => Wants::Write,
        3 => Wants::Atomic,
        4 => Wants::Learn(false),
        _ => Wants::Learn(true),
    };
    Asked { source, pasid, supervisor: input.u8() & 3 == 0, address, wants }
}

fn compare<C: StructureCache>(guest: &Guest, config: &DeviceConfig, root: u64, asked: &Asked, cache: &mut C) {
    let wanted = {
        let mut state = guest.lock();
        state.accesses = 0;
        Naive::new(&state, config, true).answers(root, asked)
    };
    let found = walk(guest, config, root, asked, cache);
    let page = |leaf: Leaf| Page {
        phys: leaf.phys.as_u64(),
        bits: u32::from(leaf.page_bits),
        read: leaf.prot.contains(Prot::READ),
        write: leaf.prot.contains(Prot::WRITE),
        snoops: leaf.enforces_snooping,
    };
    let fault = |fault: Blocked| (fault.reason.0, fault.recorded == Recorded::Suppressed);
    assert_eq!(Answers::from([found.map(page).map_err(fault)]), wanted, "{asked:x?} in {config:x?}");
    let accesses = guest.lock().accesses;
    // Each entry may be updated once.
    assert!(accesses <= 2 * READS, "{accesses} accesses");
}

/// What the unit makes of a request, without its caches and without what it checks before.
fn walk<C: StructureCache>(
    guest: &Guest,
    config: &DeviceConfig,
    root: u64,
    asked: &Asked,
    cache: &mut C,
) -> Result<Leaf, Blocked> {
    let goal = match asked.wants {
        Wants::Read => Goal::Access(RequestAccess::Read),
        Wants::Flush => Goal::Access(RequestAccess::ZeroLengthRead),
        Wants::Write => Goal::Access(RequestAccess::Write),
        Wants::Atomic => Goal::Access(RequestAccess::Atomic),
        Wants::Learn(false) => Goal::Translation(RequestAccess::Read),
        Wants::Learn(true) => Goal::Translation(RequestAccess::Write),
    };
    let found = walk::context(guest, config, root, asked.source)?;
    let recorded = found.recorded();
    let entry = match found {
        ContextInfo::Legacy { translation: TranslationType::PassThrough, .. } => {
            return walk::host_address(config, Mode::Legacy, recorded, asked.address);
        }
        ContextInfo::Legacy { root, .. } => {
            let lookup = Lookup { address: asked.address, goal, privilege: Privilege::User };
            return walk::second_stage(guest, config, &root, &lookup, cache);
        }
        ContextInfo::Scalable { entry } => entry,
    };
    let (pasid, supervisor) = match asked.pasid {
        Some(pasid) => (pasid, asked.supervisor),
        None => (entry.rid_pasid(), entry.words[1] >> 20 & 1 == 1),
    };
    let privilege = if supervisor { Privilege::Supervisor } else { Privilege::User };
    let lookup = Lookup { address: asked.address, goal, privilege };
    let found = walk::pasid(guest, config, root, &entry, pasid)?;
    match found.stages {
        Stages::First(first) => walk::first_stage(guest, config, &first, None, &lookup, cache),
        Stages::Second(second) => walk::second_stage(guest, config, &second, &lookup, cache),
        Stages::Nested(first, second) => walk::first_stage(guest, config, &first, Some(&second), &lookup, cache),
        Stages::PassThrough => walk::host_address(config, Mode::Scalable, found.recorded, asked.address),
    }
}

/// A paging-structure cache without end.
#[derive(Default)]
struct Everything(Vec<(Stage, u64, Structure)>);

impl StructureCache for Everything {
    fn lookup(&mut self, stage: Stage, address: u64) -> Option<Structure> {
        let of = |(kind, block, structure): &&(Stage, u64, Structure)| {
            *kind == stage && *block == address >> structure.block_bits()
        };
        self.0.iter().filter(of).map(|(_, _, structure)| *structure).min_by_key(|structure| structure.level)
    }

    fn insert(&mut self, stage: Stage, address: u64, structure: Structure) {
        assert!(structure.level < 4 && structure.table.is_aligned(4096));
        let line = (stage, address >> structure.block_bits(), structure);
        if !self.0.contains(&line) {
            self.0.push(line);
        }
    }
}
