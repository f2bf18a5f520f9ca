//! How a request of a device is translated: caches first, then tables (VT-d 3.4 to 3.8, 4.2, 6.2.7).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::cache::{IotlbKey, IotlbLine, Mapping};
use super::registers::PROTECTED_GRANULE;
use super::walk::{
    self, ContextInfo, Dirty, Goal, Leaf, Lookup, Mode, PasidInfo, Stage, Stages, Structure, StructureCache,
};
use super::{Answer, Blocked, Host, Privilege, Recorded, Request, RequestAccess, VtdDevice};
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::fault::{Access, AddressType as FaultAddressType, Privileges};
use crate::arch::vtd::layout::registers::{Global, PMEN_PRS, TableMode};
use crate::arch::vtd::layout::scalable::{PASID_INDEX_BITS, ScalableContextEntry};
use crate::arch::vtd::layout::tables::TranslationType;
use crate::arch::vtd::layout::{Cap, DomainId, Ecap, FaultReason, FaultRecord};
use crate::bus::AddressType;
use crate::bus::{Absence, Chooser, Fracture, Retention};
use crate::id::Pasid;
use crate::platform::Platform;
use crate::prot::Prot;

/// Blocked without a fault: what PCIe calls an unsupported request.
pub(super) const UNSUPPORTED: Blocked = Blocked { reason: FaultReason(0), recorded: Recorded::Suppressed };

/// Writes of requests without PASID there are interrupts (VT-d 3.15).
const INTERRUPTS: core::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// What registers said when a request came.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// RTADDR as taken over.
    pub(super) root: u64,
    /// Invalidations so far: what is found is cached if there was none meanwhile.
    pub(super) epoch: u64,
    /// Asked of the chooser.
    pub(super) retention: Retention,
}

/// What is known of a request before tables are asked.
struct Look {
    view: View,
    /// TES.
    enabled: bool,
    mode: Option<TableMode>,
    /// PRS of protected memory.
    protection: Protection,
    /// The line of the IOTLB for it, and whose codes its faults have.
    line: Option<(IotlbLine, Mode)>,
}

/// Whether there is protected memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protection {
    Off,
    On,
}

/// Whose tables are walked, and how what is found is tagged.
struct Space {
    key: IotlbKey,
    domain: DomainId,
    pasid: u32,
    stages: Stages,
    mode: Mode,
    recorded: Recorded,
    /// PGSNP.
    enforces_snooping: bool,
}

impl<P: Platform, H: Host, C: Chooser> VtdDevice<P, H, C> {
    /// Translates a request, or says why it is blocked; that is recorded as a fault if it is to be.
    ///
    /// A translation request (ATS) that the specification answers with success and without permission gets
    /// an answer with neither READ nor WRITE. A request that is blocked without a fault, such as one to
    /// protected memory, has reason 0.
    ///
    /// Task only: the host is asked for memory.
    ///
    /// # Errors
    /// [`Blocked`].
    pub fn translate(&self, request: &Request) -> Result<Answer, Blocked> {
        let blocked = match self.resolve(request) {
            Ok(answer) => return Ok(answer),
            Err(blocked) => blocked,
        };
        let silent = request.address_type == AddressType::TranslationRequest && is_recoverable(blocked.reason);
        // SFS.10 is recorded as well.
        if !silent || blocked.reason == FaultReason(0x91) {
            let access = match (request.address_type, request.access) {
                (AddressType::TranslationRequest, _) => Access::Read,
                (_, RequestAccess::Read | RequestAccess::ZeroLengthRead) => Access::Read,
                (_, RequestAccess::Write) => Access::Write,
                (_, RequestAccess::Atomic) => Access::Atomic,
            };
            self.record(request, access, blocked);
        }
        match silent {
            true => Ok(Answer {
                phys: PhysAddr::new(request.address),
                page_bits: 12,
                prot: Prot::empty(),
                enforces_snooping: false,
            }),
            false => Err(blocked),
        }
    }

    /// Records a fault of a request (11.4.7.6).
    pub(super) fn record(&self, request: &Request, access: Access, blocked: Blocked) {
        if blocked.recorded == Recorded::Suppressed {
            return;
        }
        let (cap, ecap) = (self.config.cap, self.config.ecap);
        // "Bits 63:N are 0, where N is the largest AGAW"; a first stage of 5 levels has 57 bits, of 4 48.
        let five = cap.intersects(Cap::SAGAW_57 | Cap::FS5LP);
        let four = cap.contains(Cap::SAGAW_48) || ecap.contains(Ecap::FSTS);
        let unused: u32 = match (five, four) {
            (true, _) => 64 - 57,
            (false, true) => 64 - 48,
            (false, false) => 64 - 39,
        };
        let pasid = request.pasid.filter(|_| ecap.contains(Ecap::PASID)).and_then(Pasid::new);
        let supervisor = pasid.is_some() && request.privilege == Privilege::Supervisor;
        let address_type = match request.address_type {
            _ if !ecap.contains(Ecap::DT) => FaultAddressType::Untranslated,
            AddressType::Untranslated => FaultAddressType::Untranslated,
            AddressType::TranslationRequest => FaultAddressType::TranslationRequest,
            AddressType::Translated => FaultAddressType::Translated,
        };
        let record = FaultRecord {
            source: request.source,
            reason: blocked.reason,
            address: request.address & u64::MAX >> unused,
            access,
            address_type,
            pasid,
            privileges: if supervisor { Privileges::SUPERVISOR } else { Privileges::empty() },
        };
        let [low, high] = record.encode();
        self.state.lock(&self.platform).faults.record(low, high);
    }

    fn resolve(&self, request: &Request) -> Result<Answer, Blocked> {
        let look = self.look(request);
        let in_interrupt_range = request.pasid.is_none() && INTERRUPTS.contains(&request.address);
        let answer = if !look.enabled {
            // 4.2.1: without remapping there is no ATS.
            match request.address_type {
                AddressType::Untranslated => identity(request.address),
                _ => return Err(UNSUPPORTED),
            }
        } else if in_interrupt_range && !is_translated(request) {
            return self.interrupt_range(request);
        } else {
            let hit = look.line.and_then(|(line, mode)| self.judge(&line, mode, &Lookup::from(request)));
            match hit {
                Some(leaf) => answer(&leaf?, request.address),
                None => self.through_tables(&look.view, look.mode, request)?,
            }
        };
        // 11.4.8.1: blocked without a fault. What is only asked for is not accessed.
        if look.protection == Protection::On
            && request.address_type != AddressType::TranslationRequest
            && self.state.lock(&self.platform).registers.protects(answer.phys.as_u64())
        {
            return Err(UNSUPPORTED);
        }
        Ok(Answer { page_bits: self.alike_bits(&look, request, &answer), ..answer })
    }

    /// log2 of the bytes around a request that are answered alike: what tables say, less what is not up
    /// to them.
    fn alike_bits(&self, look: &Look, request: &Request, answer: &Answer) -> u8 {
        // The largest block around an address that has none of the interrupt range, or is in it.
        let beside = |address: u64| (address ^ INTERRUPTS.start()).checked_ilog2().unwrap_or(0).max(20) as u8;
        let mut bits = answer.page_bits;
        if look.enabled {
            bits = bits.min(self.config.host_address_bits).min(beside(answer.phys.as_u64()));
            if request.pasid.is_none() {
                bits = bits.min(beside(request.address));
            }
        }
        match look.protection {
            Protection::On => bits.min(PROTECTED_GRANULE.trailing_ones() as u8),
            Protection::Off => bits,
        }
    }

    /// What registers say, and what the IOTLB has for an untranslated request: all at one moment.
    fn look(&self, request: &Request) -> Look {
        let retention = self.chooser.retention();
        let mut state = self.state.lock(&self.platform);
        let registers = &state.registers;
        let view = View { root: registers.latched_root, epoch: state.epoch, retention };
        let (enabled, mode) = (registers.status.contains(Global::TE), registers.mode());
        let protection = if registers.protected & PMEN_PRS == 0 { Protection::Off } else { Protection::On };
        let of_tables = match mode {
            Some(TableMode::Legacy) if request.pasid.is_none() => Some(Mode::Legacy),
            Some(TableMode::Scalable) => Some(Mode::Scalable),
            _ => None,
        };
        let line = match of_tables {
            Some(of_tables) if enabled && request.address_type == AddressType::Untranslated => {
                let line = state.caches.translation(&key(request), request.address, retention);
                line.map(|line| (line, of_tables))
            }
            _ => None,
        };
        Look { view, enabled, mode, protection, line }
    }

    /// A request without PASID to the interrupt address range.
    fn interrupt_range(&self, request: &Request) -> Result<Answer, Blocked> {
        let prot = match (request.address_type, request.access) {
            // S.1 and S.2 of Table 30: not a fault.
            (AddressType::TranslationRequest, _) if self.wants_write(request) => Prot::WRITE,
            (AddressType::TranslationRequest, _) => Prot::empty(),
            // An interrupt: not for this unit's page tables.
            (_, RequestAccess::Write) => Prot::WRITE,
            _ => return Err(UNSUPPORTED),
        };
        Ok(Answer { phys: PhysAddr::new(request.address), page_bits: 12, prot, enforces_snooping: false })
    }

    /// Whether a translation request asks for writing: units without ECAP.NWFS ignore its no-write flag.
    fn wants_write(&self, request: &Request) -> bool {
        matches!(request.access, RequestAccess::Write | RequestAccess::Atomic) || !self.config.ecap.contains(Ecap::NWFS)
    }

    fn through_tables(&self, view: &View, mode: Option<TableMode>, request: &Request) -> Result<Answer, Blocked> {
        let fault = |reason, recorded| Blocked { reason: FaultReason(reason), recorded };
        match mode {
            None => return Err(fault(0x30, Recorded::Yes)), // RTA.1
            Some(TableMode::AbortDma) => return Err(fault(0x33, Recorded::Yes)), // RTA.4
            Some(TableMode::Legacy) if request.pasid.is_some() => return Err(fault(0x31, Recorded::Yes)), // RTA.2
            Some(_) => {}
        }
        let context = self.context(view, request.source)?;
        let recorded = context.recorded();
        let ats = request.address_type != AddressType::Untranslated;
        let space = match context {
            ContextInfo::Legacy { domain, translation, root } => {
                if ats && translation != TranslationType::DeviceTlb {
                    return Err(fault(0x0d, recorded)); // LCT.5
                }
                if is_translated(request) || translation == TranslationType::PassThrough {
                    let leaf = walk::host_address(&self.config, Mode::Legacy, recorded, request.address)?;
                    return Ok(answer(&leaf, request.address));
                }
                let stages = Stages::Second(root);
                let (key, mode) = (key(request), Mode::Legacy);
                Space { key, domain, pasid: 0, stages, mode, recorded, enforces_snooping: false }
            }
            ContextInfo::Scalable { entry } => {
                if ats && !entry.permits_device_tlb() {
                    return Err(fault(0x44, recorded)); // SCT.5
                }
                let pasid = self.pasid_of(&entry, request, recorded)?;
                if is_translated(request) {
                    let leaf = walk::host_address(&self.config, Mode::Scalable, recorded, request.address)?;
                    return Ok(answer(&leaf, request.address));
                }
                let info = self.pasid(view, request.source, &entry, pasid)?;
                let recorded = info.recorded;
                if privilege(&entry, request) == Privilege::Supervisor && !info.entry.permits_supervisor() {
                    return Err(fault(0x5d, recorded)); // SPT.6
                }
                let enforces_snooping = info.entry.enforces_snooping();
                let (key, domain, stages, mode) = (key(request), info.domain(), info.stages, Mode::Scalable);
                let lookup = Lookup { privilege: privilege(&entry, request), ..self.lookup(request) };
                let space = Space { key, domain, pasid, stages, mode, recorded, enforces_snooping };
                return self.translate_in(view, &space, &lookup);
            }
        };
        self.translate_in(view, &space, &self.lookup(request))
    }

    /// What page tables are asked for.
    fn lookup(&self, request: &Request) -> Lookup {
        let goal = match request.address_type {
            AddressType::TranslationRequest if self.wants_write(request) => Goal::Translation(RequestAccess::Write),
            AddressType::TranslationRequest => Goal::Translation(RequestAccess::Read),
            _ => Goal::Access(request.access),
        };
        Lookup { goal, ..Lookup::from(request) }
    }

    /// The PASID that selects the PASID table entry of a request (SCT.6, SCT.7, SCT.9, SCT.10, SGN.10).
    fn pasid_of(&self, entry: &ScalableContextEntry, request: &Request, recorded: Recorded) -> Result<u32, Blocked> {
        /// EPTR.
        const PASIDS_IN_TRANSLATED: u64 = 1 << 6;
        let fault = |reason| Err(Blocked { reason: FaultReason(reason), recorded });
        let Some(pasid) = request.pasid else { return Ok(entry.rid_pasid()) };
        let [low, ..] = entry.words;
        let permitted = match request.address_type {
            AddressType::Translated if low & PASIDS_IN_TRANSLATED == 0 => return fault(0x49), // SCT.10
            // Nobody walks for them, who would find out (4.2.5).
            AddressType::Translated if pasid >> PASID_INDEX_BITS >= entry.directory_entries() => {
                return fault(0x46); // SCT.7
            }
            AddressType::Translated => true,
            _ => entry.permits_pasids(),
        };
        if !permitted {
            return fault(0x45); // SCT.6
        }
        if pasid.checked_shr(self.config.ecap.pasid_bits()).unwrap_or(0) != 0 {
            return fault(0x89); // SGN.10
        }
        if pasid == entry.rid_pasid() {
            return fault(0x48); // SCT.9
        }
        Ok(pasid)
    }

    /// The context entry of a source.
    pub(super) fn context(&self, view: &View, source: u16) -> Result<ContextInfo, Blocked> {
        if let Some(found) = self.state.lock(&self.platform).caches.context(source, view.retention) {
            return found;
        }
        let found = walk::context(&self.host, &self.config, view.root, source);
        // RTA faults are none of an entry.
        let cacheable = match found {
            Ok(_) => true,
            Err(blocked) => self.caches_faults() && blocked.reason.0 >> 3 != 0x30 >> 3,
        };
        let mode = match TableMode::of_root_table_address(view.root) {
            Some(TableMode::Legacy) => Mode::Legacy,
            _ => Mode::Scalable,
        };
        let mut state = self.state.lock(&self.platform);
        if cacheable && state.epoch == view.epoch {
            state.caches.insert_context(source, mode, found);
        }
        found
    }

    /// CM: what faulted may be cached too.
    fn caches_faults(&self) -> bool {
        self.config.cap.contains(Cap::CM) && self.chooser.absence() == Absence::Cached
    }

    /// The PASID table entry of a source.
    pub(super) fn pasid(
        &self,
        view: &View,
        source: u16,
        entry: &ScalableContextEntry,
        pasid: u32,
    ) -> Result<PasidInfo, Blocked> {
        if let Some(found) = self.state.lock(&self.platform).caches.pasid(source, pasid, view.retention) {
            return found;
        }
        let found = walk::pasid(&self.host, &self.config, view.root, entry, pasid);
        let (cacheable, domain) = match found {
            Ok(info) => (true, Some(info.domain())),
            // SCT.7 is none of an entry of a PASID table or directory.
            Err(blocked) => (self.caches_faults() && blocked.reason != FaultReason(0x46), None),
        };
        let mut state = self.state.lock(&self.platform);
        if cacheable && state.epoch == view.epoch {
            state.caches.insert_pasid(source, pasid, domain, found);
        }
        found
    }

    /// Translates an address by the IOTLB or by page tables.
    fn translate_in(&self, view: &View, space: &Space, lookup: &Lookup) -> Result<Answer, Blocked> {
        let line = self.state.lock(&self.platform).caches.translation(&space.key, lookup.address, view.retention);
        if let Some(line) = line
            && let Some(leaf) = self.judge(&line, space.mode, lookup)
        {
            return leaf.map(|leaf| self.completion(&leaf, lookup));
        }
        let mut tables = Tables { device: self, view, space, missing: None };
        let (config, host) = (&self.config, &self.host);
        let (mapping, found) = match &space.stages {
            Stages::Second(root) => (Mapping::Second, walk::second_stage(host, config, root, lookup, &mut tables)),
            Stages::First(root) => (Mapping::First, walk::first_stage(host, config, root, None, lookup, &mut tables)),
            Stages::Nested(root, parent) => {
                (Mapping::Nested, walk::first_stage(host, config, root, Some(parent), lookup, &mut tables))
            }
            Stages::PassThrough => {
                let passes = walk::host_address(config, space.mode, space.recorded, lookup.address);
                let page = Leaf { phys: PhysAddr::new(lookup.address & !0xfff), page_bits: 12, ..passes? };
                (Mapping::PassThrough, Ok(page))
            }
        };
        let missing = tables.missing;
        let found =
            found.map(|leaf| Leaf { enforces_snooping: leaf.enforces_snooping || space.enforces_snooping, ..leaf });
        let line = match found {
            Ok(leaf) => Some(self.line(space, mapping, lookup.address, leaf)),
            Err(blocked) if self.caches_faults() => self.line_of_fault(space, lookup, missing, blocked),
            Err(_) => None,
        };
        if let Some(line) = line {
            let mut state = self.state.lock(&self.platform);
            if state.epoch == view.epoch {
                state.caches.insert_translation(line);
            }
        }
        found.map(|leaf| self.completion(&leaf, lookup))
    }

    /// What the IOTLB keeps of a page.
    fn line(&self, space: &Space, mapping: Mapping, address: u64, leaf: Leaf) -> IotlbLine {
        let leaf = match self.chooser.fracture() {
            Fracture::Pieces => {
                Leaf { phys: PhysAddr::new(leaf.output(address).as_u64() & !0xfff), page_bits: 12, ..leaf }
            }
            Fracture::Whole => leaf,
        };
        let (key, domain, pasid, recorded) = (space.key, space.domain, space.pasid, space.recorded);
        let (base, block_bits) = (block(address, leaf.page_bits), leaf.page_bits);
        IotlbLine { key, domain, pasid, mapping, base, block_bits, found: Ok(leaf), recorded }
    }

    /// What the IOTLB keeps of a fault of the second stage in caching mode (6.2.4.1).
    fn line_of_fault(
        &self,
        space: &Space,
        lookup: &Lookup,
        missing: Option<(u64, u8, Blocked)>,
        blocked: Blocked,
    ) -> Option<IotlbLine> {
        let (key, domain, pasid, recorded) = (space.key, space.domain, space.pasid, space.recorded);
        if let Some((base, block_bits, missing)) = missing {
            // Nested, the block is one of the guest: only of the page that was asked for is it known.
            let (mapping, base, block_bits) = match space.stages {
                Stages::Nested(..) => (Mapping::Nested, block(lookup.address, 12), 12),
                _ => (Mapping::Second, base, block_bits),
            };
            let found = Err(missing);
            return Some(IotlbLine { key, domain, pasid, mapping, base, block_bits, found, recorded });
        }
        // There is a page, but this was not permitted: keep what is.
        let Stages::Second(root) = &space.stages else { return None };
        if !matches!(blocked.reason.0, 0x05 | 0x06 | 0x85 | 0x86) {
            return None;
        }
        let lookup = Lookup { goal: Goal::Translation(RequestAccess::Read), ..*lookup };
        let cache = &mut walk::NoStructureCache;
        let leaf = walk::second_stage(&self.host, &self.config, root, &lookup, cache).ok()?;
        Some(self.line(space, Mapping::Second, lookup.address, leaf))
    }

    /// What a line of the IOTLB says to a request; `None` when tables have to be walked to set a dirty bit.
    fn judge(&self, line: &IotlbLine, mode: Mode, lookup: &Lookup) -> Option<Result<Leaf, Blocked>> {
        let recorded = line.recorded;
        let fault = |reason| Some(Err(Blocked { reason: FaultReason(reason), recorded }));
        let (writes, access) = match lookup.goal.access() {
            RequestAccess::Write => (true, RequestAccess::Write),
            RequestAccess::Atomic => (true, RequestAccess::Atomic),
            access => (false, access),
        };
        let (no_write, no_read) = match mode {
            Mode::Legacy => (0x05, 0x06),   // LGN.2, LGN.3
            Mode::Scalable => (0x85, 0x86), // SGN.6, SGN.7
        };
        let leaf = match line.found {
            Ok(leaf) => leaf,
            // What is missing depends on who asks.
            Err(blocked) if matches!(blocked.reason.0, 0x05 | 0x06) => {
                return fault(if writes { no_write } else { no_read });
            }
            Err(blocked) => return Some(Err(blocked)),
        };
        let (read, write) = (leaf.prot.contains(Prot::READ), leaf.prot.contains(Prot::WRITE));
        if let Goal::Access(_) = lookup.goal {
            let zero_length = write && self.config.cap.contains(Cap::ZLR);
            match access {
                RequestAccess::Write | RequestAccess::Atomic if !write => return fault(no_write),
                RequestAccess::Read | RequestAccess::Atomic if !read => return fault(no_read),
                RequestAccess::ZeroLengthRead if !read && !zero_length => return fault(no_read),
                _ => {}
            }
        }
        if writes && write && leaf.dirty == Dirty::WalkToWrite {
            return None;
        }
        Some(walk::check_output(mode, recorded, &leaf, lookup.address, lookup.goal).map(|()| leaf))
    }

    /// The answer to a request whose page is known.
    fn completion(&self, leaf: &Leaf, lookup: &Lookup) -> Answer {
        let mut answer = answer(leaf, lookup.address);
        // 4.2.3: with the no-write flag W is 0.
        if lookup.goal == Goal::Translation(RequestAccess::Read) {
            answer.prot.remove(Prot::WRITE);
        }
        answer
    }
}

/// The paging-structure caches of one space, for the walk of one request.
struct Tables<'a, P: Platform, H: Host, C: Chooser> {
    device: &'a VtdDevice<P, H, C>,
    view: &'a View,
    space: &'a Space,
    /// Block, log2 of its bytes, and fault of the entry that ended a walk of the second stage.
    missing: Option<(u64, u8, Blocked)>,
}

impl<P: Platform, H: Host, C: Chooser> StructureCache for Tables<'_, P, H, C> {
    fn lookup(&mut self, stage: Stage, address: u64) -> Option<Structure> {
        let (domain, pasid, retention) = (self.space.domain, self.space.pasid, self.view.retention);
        self.device.state.lock(&self.device.platform).caches.structure(stage, domain, pasid, address, retention)
    }

    fn insert(&mut self, stage: Stage, address: u64, structure: Structure) {
        let mut state = self.device.state.lock(&self.device.platform);
        if state.epoch == self.view.epoch {
            state.caches.insert_structure(stage, self.space.domain, self.space.pasid, address, structure);
        }
    }

    fn missing(&mut self, address: u64, block_bits: u8, blocked: Blocked) {
        self.missing = Some((block(address, block_bits), block_bits, blocked));
    }
}

/// The privilege of a request: its own, or RID_PRIV of its context entry (9.4, bit 84).
const fn privilege(entry: &ScalableContextEntry, request: &Request) -> Privilege {
    let [_, high, ..] = entry.words;
    match request.pasid {
        Some(_) => request.privilege,
        None if high & 1 << 20 != 0 => Privilege::Supervisor,
        None => Privilege::User,
    }
}

/// By what the IOTLB finds the translations of a request.
fn key(request: &Request) -> IotlbKey {
    let privilege = if request.pasid.is_some() { request.privilege } else { Privilege::User };
    IotlbKey { source: request.source, pasid: request.pasid, privilege }
}

const fn is_translated(request: &Request) -> bool {
    matches!(request.address_type, AddressType::Translated)
}

/// The first byte of the block of `1 << bits` bytes around an address.
const fn block(address: u64, bits: u8) -> u64 {
    address >> (bits & 63) << (bits & 63)
}

const fn answer(leaf: &Leaf, address: u64) -> Answer {
    Answer {
        phys: leaf.output(address),
        page_bits: leaf.page_bits,
        prot: leaf.prot,
        enforces_snooping: leaf.enforces_snooping,
    }
}

/// The answer where nothing is translated.
const fn identity(address: u64) -> Answer {
    Answer { phys: PhysAddr::new(address), page_bits: 63, prot: Prot::RW, enforces_snooping: false }
}

/// Whether a translation request is answered with success, and without permission, for this (Table 30).
const fn is_recoverable(reason: FaultReason) -> bool {
    matches!(
        reason.0,
        0x04..=0x06 // LGN.1.1, LGN.2, LGN.3
            | 0x51 // SPD.2
            | 0x59 // SPT.2
            | 0x5c..=0x5d // SPT.5, SPT.6
            | 0x70..=0x77 // SFS.1 to SFS.8
            | 0x79 // SSS.2
            | 0x80..=0x81 // SGN.1, SGN.2
            | 0x83..=0x86 // SGN.4 to SGN.7
            | 0x90..=0x91 // SFS.9, SFS.10
    )
}
