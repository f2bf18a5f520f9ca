//! A unit in legacy mode that is as late as the seed says: stand-in for the device half.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use iommu::PhysAddr;
use iommu::arch::vtd::layout::descriptors::{Changed, ContextScope, IotlbScope, Request, WaitFlags};
use iommu::arch::vtd::layout::registers::{FaultStatus, Global, PMEN_EPM, offset};
use iommu::arch::vtd::layout::{Cap, ContextEntry, Descriptor, Ecap, RootEntry};
use iommu_harness::ObservedMemory;
use iommu_harness::observed::Reader;

use crate::bench::{Retention, Setup, Unit};

pub(crate) struct StandIn {
    memory: Arc<ObservedMemory>,
    cap: Cap,
    ecap: Ecap,
    retention: Retention,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    random: u64,
    status: u32,
    command: Option<u32>,
    root_register: u64,
    root: u64,
    queue: u64,
    head: u32,
    tail: u32,
    faults: u32,
    protected: u32,
    protect_command: Option<u32>,
    /// Fetched, and not executed.
    group: Vec<Request>,
    /// Status writes under way.
    posted: Vec<(u64, u32)>,
    contexts: HashMap<u16, (u16, Option<ContextEntry>)>,
    leaves: Vec<Leaf>,
    tables: Vec<Cached>,
    complaints: Vec<String>,
    deaf: Vec<u16>,
}

#[derive(Clone, Copy)]
struct Leaf {
    domain: u16,
    first: u64,
    bytes: u64,
    phys: Option<u64>,
    write: bool,
}

#[derive(Clone, Copy)]
struct Cached {
    domain: u16,
    level: u32,
    first: u64,
    bytes: u64,
    table: u64,
    write: bool,
}

impl StandIn {
    pub(crate) fn new(memory: Arc<ObservedMemory>, setup: &Setup) -> Self {
        let state = State { random: setup.seed, ..State::default() };
        Self { memory, cap: setup.cap, ecap: setup.ecap, retention: setup.retention, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn word(&self, address: u64) -> Option<u64> {
        let reader = if self.ecap.contains(Ecap::C) { Reader::Snoops } else { Reader::ReadsMemory };
        self.memory.read(PhysAddr::new(address), reader)
    }

    fn pair(&self, address: u64) -> Option<[u64; 2]> {
        let reader = if self.ecap.contains(Ecap::C) { Reader::Snoops } else { Reader::ReadsMemory };
        self.memory.read_pair(PhysAddr::new(address), reader)
    }

    fn context(&self, state: &mut State, source: u16) -> Option<ContextEntry> {
        if self.retention == Retention::Evict {
            state.contexts.clear();
            state.leaves.clear();
            state.tables.clear();
        }
        if let Some((_, entry)) = state.contexts.get(&source) {
            return *entry;
        }
        let entry = (|| {
            let [low, high] = self.pair((state.root & !0xfff) + u64::from(source >> 8) * 16)?;
            let table = RootEntry { low, high }.context_table()?.as_u64();
            let [low, high] = self.pair(table + u64::from(source & 0xff) * 16)?;
            let entry = ContextEntry { low, high };
            let valid = entry.is_present() && !entry.has_reserved_bits() && entry.width().is_some();
            valid.then_some(entry)
        })();
        match entry {
            Some(entry) => {
                state.contexts.insert(source, (entry.domain_id().as_u16(), Some(entry)));
            }
            None if self.cap.contains(Cap::CM) => {
                state.contexts.insert(source, (0, None));
            }
            None => {}
        }
        entry
    }

    fn walk(&self, state: &mut State, entry: ContextEntry, address: u64, write: bool) -> Option<u64> {
        let domain = entry.domain_id().as_u16();
        let inside = |first: u64, bytes: u64| address >= first && address - first < bytes;
        let cached = state.leaves.iter().find(|leaf| leaf.domain == domain && inside(leaf.first, leaf.bytes)).copied();
        if let Some(leaf) = cached {
            return leaf.phys.filter(|_| leaf.write || !write).map(|phys| phys + (address - leaf.first));
        }
        let levels = entry.width()?.levels();
        let (mut level, mut table, mut may_write) = (levels - 1, entry.table().as_u64(), true);
        let deepest =
            state.tables.iter().filter(|cached| cached.domain == domain && inside(cached.first, cached.bytes));
        if let Some(found) = deepest.min_by_key(|cached| cached.level) {
            (level, table, may_write) = (found.level, found.table, found.write);
        }
        loop {
            let shift = 12 + 9 * level;
            let found = self.word(table + (address >> shift & 511) * 8)?;
            let (bytes, next) = (1u64 << shift, found & 0x000f_ffff_ffff_f000);
            let first = address & !(bytes - 1);
            if found & 3 == 0 {
                if self.cap.contains(Cap::CM) {
                    state.leaves.push(Leaf {
                        domain,
                        first: address & !0xfff,
                        bytes: 0x1000,
                        phys: None,
                        write: false,
                    });
                }
                return None;
            }
            may_write &= found & 2 != 0;
            if level == 0 || found & 1 << 7 != 0 {
                let leaf = Leaf { domain, first, bytes, phys: Some(next & !(bytes - 1)), write: may_write };
                state.leaves.push(leaf);
                return leaf.phys.filter(|_| may_write || !write).map(|phys| phys + (address - first));
            }
            level -= 1;
            table = next;
            state.tables.push(Cached { domain, level, first, bytes, table, write: may_write });
        }
    }

    fn entries(state: &State) -> u32 {
        256 << (state.queue & 7)
    }

    fn act_on_command(&self, state: &mut State, command: u32) {
        let sticky = Global::STICKY.bits() & 0xff80_0000;
        let mut status = state.status & !sticky | command & sticky;
        if command & Global::RTP.bits() != 0 {
            state.root = state.root_register;
            status |= Global::RTP.bits();
        }
        if command & Global::WBF.bits() != 0 {
            self.memory.flush_write_buffers();
        }
        let queue = Global::QIE.bits();
        if state.status & queue != 0 && status & queue == 0 {
            if state.head != state.tail || !state.group.is_empty() {
                state.complaints.push("the queue is turned off while it is not quiet".into());
            }
            state.head = 0;
        }
        state.status = status;
    }

    fn fetch(&self, state: &mut State) -> bool {
        let stands = FaultStatus::IQE.bits() | FaultStatus::ITE.bits();
        if state.status & Global::QIE.bits() == 0 || state.faults & stands != 0 || state.head == state.tail {
            return false;
        }
        let address = (state.queue & !0xfff) + u64::from(state.head) * 16;
        let words = self.memory.read_pair(PhysAddr::new(address), Reader::Snoops);
        let request = words.and_then(|[low, high]| Descriptor { words: [low, high, 0, 0] }.decode());
        let Some(request) = request else {
            state.faults |= FaultStatus::IQE.bits();
            return true;
        };
        state.head = (state.head + 1) % Self::entries(state);
        match request {
            Request::Wait { flags, address, data } => {
                assert!(flags.contains(WaitFlags::FENCE));
                let mut group = std::mem::take(&mut state.group);
                if random(state) & 1 == 0 {
                    group.reverse();
                }
                if group
                    .iter()
                    .any(|request| matches!(request, Request::DeviceTlb { source, .. } if state.deaf.contains(source)))
                {
                    state.faults |= FaultStatus::ITE.bits();
                    return true;
                }
                for request in group {
                    self.execute(state, request);
                }
                state.posted.push((address.as_u64(), data));
            }
            request => state.group.push(request),
        }
        true
    }

    fn execute(&self, state: &mut State, request: Request) {
        self.memory.flush_write_buffers();
        match request {
            Request::Context(ContextScope::Global) => state.contexts.clear(),
            Request::Context(ContextScope::Domain(domain)) => {
                state.contexts.retain(|_, (did, _)| *did != domain.as_u16())
            }
            Request::Context(ContextScope::Device { domain, source, .. }) => {
                if state.contexts.get(&source).is_some_and(|(did, _)| *did == domain.as_u16()) {
                    state.contexts.remove(&source);
                }
            }
            Request::Iotlb(IotlbScope::Global, _) => {
                state.leaves.clear();
                state.tables.clear();
            }
            Request::Iotlb(IotlbScope::Domain(domain), _) => {
                state.leaves.retain(|leaf| leaf.domain != domain.as_u16());
                state.tables.retain(|table| table.domain != domain.as_u16());
            }
            Request::Iotlb(IotlbScope::Pages { domain, address, mask, changed }, _) => {
                let (first, bytes) = (address.as_u64(), 0x1000u64 << mask);
                let meets =
                    |of: u16, at: u64, length: u64| of == domain.as_u16() && at < first + bytes && first < at + length;
                state.leaves.retain(|leaf| !meets(leaf.domain, leaf.first, leaf.bytes));
                if changed == Changed::Tables {
                    state.tables.retain(|table| !meets(table.domain, table.first, table.bytes));
                }
            }
            _ => {}
        }
    }
}

impl Unit for StandIn {
    fn read(&self, at: usize) -> u64 {
        let mut state = self.lock();
        match at {
            offset::VER => 0x10,
            offset::CAP => self.cap.bits(),
            offset::ECAP => self.ecap.bits(),
            offset::GSTS => {
                u64::from(state.status) | u64::from(state.command.map_or(0, |command| command & Global::WBF.bits()))
            }
            offset::RTADDR => state.root_register,
            offset::FSTS => u64::from(state.faults),
            offset::PMEN => u64::from(state.protected),
            offset::IQH => u64::from(state.head << 4),
            offset::IQT => u64::from(state.tail << 4),
            offset::IQA => state.queue,
            offset::ICS => {
                self.post(&mut state);
                0
            }
            _ => 0,
        }
    }

    fn write(&self, at: usize, value: u64) {
        let mut state = self.lock();
        match at {
            offset::GCMD => {
                if state.command.is_some() {
                    state.complaints.push("a command is given while another is pending".into());
                }
                if let Some(before) = state.command.take() {
                    self.act_on_command(&mut state, before);
                }
                state.status &= if value as u32 & Global::RTP.bits() != 0 { !Global::RTP.bits() } else { !0 };
                state.command = Some(value as u32);
            }
            offset::RTADDR => state.root_register = value,
            offset::FSTS => state.faults &= !(value as u32 & 0x71),
            offset::PMEN => state.protect_command = Some(value as u32),
            offset::IQT => state.tail = value as u32 >> 4,
            offset::IQA => {
                state.queue = value;
                state.head = 0;
            }
            _ => {}
        }
    }

    fn step(&self) -> bool {
        let mut state = self.lock();
        let first = random(&mut state) % 4;
        for turn in 0..4 {
            let acted = match (first + turn) % 4 {
                0 => match state.command.take() {
                    Some(command) => {
                        self.act_on_command(&mut state, command);
                        true
                    }
                    None => false,
                },
                1 => self.fetch(&mut state),
                2 => self.post(&mut state),
                _ => match state.protect_command.take() {
                    Some(value) => {
                        state.protected = value & PMEN_EPM | value >> 31;
                        true
                    }
                    None => false,
                },
            };
            if acted {
                return true;
            }
        }
        false
    }

    fn translate(&self, source: u16, address: u64, write: bool) -> Option<u64> {
        let mut state = self.lock();
        if state.status & Global::TE.bits() == 0 {
            return if state.protected != 0 { None } else { Some(address) };
        }
        let entry = self.context(&mut state, source)?;
        if entry.translation_type() == Some(iommu::arch::vtd::layout::tables::TranslationType::PassThrough) {
            return Some(address);
        }
        self.walk(&mut state, entry, address, write)
    }

    fn complaints(&self) -> Vec<String> {
        self.lock().complaints.clone()
    }

    fn set_deaf(&self, sources: &[u16]) {
        self.lock().deaf = sources.to_vec();
    }
}

impl StandIn {
    fn post(&self, state: &mut State) -> bool {
        let posted = std::mem::take(&mut state.posted);
        for (address, data) in &posted {
            let _ = self.memory.write32(PhysAddr::new(*address), *data);
        }
        !posted.is_empty()
    }
}

fn random(state: &mut State) -> u64 {
    state.random = state.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    state.random >> 33
}
