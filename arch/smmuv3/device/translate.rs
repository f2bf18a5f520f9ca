//! How a request of a device is translated: caches first, then tables (SMMU 3.3, 3.9, chapter 15).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::cache::{Conflict, VaLine};
use super::events::Merging;
use super::walk::{
    self, Attributes, Context, E2h, Fault, Goal, Leaf, Lookup, Privilege, Response, Retained, Route, Stage,
    StreamTable, StreamWorld, Structure, StructureCache, Tags, Translation,
};
use super::{Access, Answer, Blocked, Host, Outcome, Request, SmmuDevice};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::context::Half;
use crate::arch::smmuv3::layout::events::{EventKind, EventRecord, FaultClass};
use crate::arch::smmuv3::layout::identification::{BreakBeforeMake, Idr0, Idr3};
use crate::arch::smmuv3::layout::registers::{Cr0, Cr2, Gbpa, StreamTableFormat, StrtabBase, StrtabBaseCfg};
use crate::arch::smmuv3::layout::stream_table::{Config, Eats};
use crate::arch::smmuv3::layout::{Cd, L1Cd, L1Std, Ste, StreamId};
use crate::bus::{AddressType, Chooser, Fracture, Retention};
use crate::platform::Platform;
use crate::prot::Prot;

/// What registers said when a request came.
#[derive(Clone, Copy)]
pub(super) struct View {
    table: StreamTable,
    /// ATSCHK.
    checks: bool,
    pub(super) cr2: Cr2,
    /// Invalidations so far: what is found is cached if there was none meanwhile.
    epoch: u64,
    /// Asked of the chooser.
    retention: Retention,
}

/// Whether the unit translates.
enum Mode {
    On(View),
    /// SMMUEN is 0.
    Off {
        aborts: bool,
    },
}

/// A fault, and what was known when it happened.
struct Failure {
    fault: Fault,
    /// The STE, once there is a valid one.
    ste: Option<Ste>,
    cd: Option<Cd>,
}

impl Failure {
    const fn early(fault: Fault) -> Self {
        Self { fault, ste: None, cd: None }
    }
}

const ABORT: Blocked = Blocked { outcome: Outcome::Abort, reason: None };

impl<P: Platform, H: Host, C: Chooser> SmmuDevice<P, H, C> {
    /// Translates a request, or says what becomes of it instead; software learns of that by an event if it
    /// is to.
    ///
    /// A translation request (ATS) that is answered with success and without permission gets an answer with
    /// neither READ nor WRITE.
    ///
    /// Task only: the host is asked for memory.
    ///
    /// # Errors
    /// [`Blocked`].
    pub fn translate(&self, request: &Request) -> Result<Answer, Blocked> {
        let mode = self.mode();
        let has_ats = self.config.identification.idr0().contains(Idr0::ATS);
        match (request.address_type, mode) {
            (AddressType::Untranslated, Mode::Off { aborts: true }) => Err(ABORT),
            (AddressType::Untranslated, Mode::Off { aborts: false }) => Ok(identity(request.address, 63)),
            (AddressType::Untranslated, Mode::On(view)) => self.untranslated(&view, request),
            (AddressType::TranslationRequest, _) if !has_ats => {
                Err(Blocked { outcome: Outcome::Unsupported, reason: None })
            }
            (AddressType::TranslationRequest, Mode::Off { .. }) => Err(self.refuse_translation(request, None)),
            (AddressType::TranslationRequest, Mode::On(view)) => self.translation_request(&view, request),
            (AddressType::Translated, _) if !has_ats => Err(ABORT),
            (AddressType::Translated, Mode::Off { .. }) => Err(self.forbid_translated(request, None)),
            (AddressType::Translated, Mode::On(view)) => self.translated(&view, request),
        }
    }

    fn mode(&self) -> Mode {
        match self.view() {
            Ok(view) => Mode::On(view),
            Err(gbpa) => Mode::Off { aborts: gbpa & Gbpa::ABORT != 0 },
        }
    }

    /// What registers say; GBPA while SMMUEN is 0.
    pub(super) fn view(&self) -> Result<View, u32> {
        let retention = self.chooser.retention();
        let state = self.state.lock(&self.platform);
        let registers = &state.registers;
        if !registers.enabled.contains(Cr0::SMMUEN) {
            return Err(registers.gbpa);
        }
        let shape = StrtabBaseCfg(registers.strtab_cfg);
        let table = StreamTable {
            base: StrtabBase(registers.strtab_base).address(),
            log2: shape.log2_size(),
            split: match shape.format() {
                StreamTableFormat::Linear => None,
                StreamTableFormat::TwoLevel { split } => Some(split),
            },
            snoop: registers.table_snoop(),
        };
        Ok(View {
            table,
            checks: registers.enabled.contains(Cr0::ATSCHK),
            cr2: Cr2::from_bits_truncate(registers.cr2),
            epoch: state.epoch,
            retention,
        })
    }

    /// An ordinary request.
    fn untranslated(&self, view: &View, request: &Request) -> Result<Answer, Blocked> {
        let lookup = Lookup {
            address: request.address,
            access: request.access,
            privilege: request.privilege,
            goal: Goal::Access,
        };
        let failure = match self.resolve(view, request, &lookup) {
            Ok(Some((translation, _))) => return Ok(self.answer(&translation, request.address, &lookup)),
            Ok(None) => return Err(ABORT),
            Err(failure) => failure,
        };
        Err(self.fail(view, request, &lookup, &failure))
    }

    /// What becomes of a request that faults.
    fn fail(&self, view: &View, request: &Request, lookup: &Lookup, failure: &Failure) -> Blocked {
        let Failure { fault, ste, cd } = failure;
        let id = &self.config.identification;
        let lookup = ste.as_ref().map_or(*lookup, |ste| walk::overridden(id, ste, lookup));
        let event = match fault.kind {
            // 7.3.17: it has an address too.
            EventKind::F_TLB_CONFLICT => EventRecord {
                read: request.access.is_read(),
                instruction: request.access == Access::Execute,
                ..self.plain_event(fault.kind, request)
            },
            _ => fault.event(request.stream, request.substream, &lookup),
        };
        let reason = Some(fault.kind);
        let unseen = fault.kind == EventKind::C_BAD_STREAMID && !view.cr2.contains(Cr2::RECINVSID);
        let Some(ste) = ste else {
            if !unseen {
                self.record(event, Merging::Inhibited);
            }
            return Blocked { outcome: Outcome::Abort, reason };
        };
        let verdict = fault.verdict(ste, cd.as_ref(), Goal::Access);
        if verdict.response == Response::Stall {
            return match self.stall(event) {
                Some(tag) => Blocked { outcome: Outcome::Stalled(tag), reason },
                None => Blocked { outcome: Outcome::Busy, reason },
            };
        }
        if verdict.recorded {
            self.record(event, merging(ste));
        }
        let raz = verdict.response == Response::Ignore && !id.idr0().contains(Idr0::TERM_MODEL);
        Blocked { outcome: if raz { Outcome::Ignored } else { Outcome::Abort }, reason }
    }

    /// A translation request (3.9.1.2).
    fn translation_request(&self, view: &View, request: &Request) -> Result<Answer, Blocked> {
        let lookup = Lookup {
            address: request.address,
            access: request.access,
            privilege: request.privilege,
            goal: Goal::Translation,
        };
        let aborted = |fault: &Fault, merging| {
            let unseen = fault.kind == EventKind::C_BAD_STREAMID && !view.cr2.contains(Cr2::RECINVSID);
            if view.cr2.contains(Cr2::REC_CFG_ATS) && !unseen {
                self.record(fault.event(request.stream, request.substream, &lookup), merging);
            }
            Blocked { outcome: Outcome::Abort, reason: Some(fault.kind) }
        };
        let ste = self.entry(view, request.stream).map_err(|fault| aborted(&fault, Merging::Inhibited))?;
        if ste.config() == Config::Abort {
            return Err(Blocked { outcome: Outcome::Unsupported, reason: None });
        }
        let eats = effective_eats(view, &ste);
        if eats == Eats::Off {
            return Err(self.refuse_translation(request, Some(&ste)));
        }
        let denied = Answer { prot: Prot::empty(), ..identity(request.address, 12) };
        match self.resolve(view, request, &lookup) {
            Ok(Some((translation, lookup))) => {
                let mut answer = self.answer(&translation, request.address, &lookup);
                // With the no-write flag W is 0.
                if matches!(request.access, Access::Read | Access::Execute) {
                    answer.prot.remove(Prot::WRITE);
                }
                // 13.6.3: the device gets what stage 1 gives.
                if eats == Eats::Split {
                    let ipa = translation.stage1.map_or(request.address, |leaf| leaf.translate(request.address));
                    answer.phys = PhysAddr::new(ipa);
                }
                Ok(answer)
            }
            Ok(None) => Err(Blocked { outcome: Outcome::Unsupported, reason: None }),
            Err(failure) if failure.fault.kind.is_translation_fault() => Ok(denied),
            Err(failure) => Err(aborted(&failure.fault, merging(&ste))),
        }
    }

    /// F_BAD_ATS_TREQ.
    fn refuse_translation(&self, request: &Request, ste: Option<&Ste>) -> Blocked {
        let kind = EventKind::F_BAD_ATS_TREQ;
        let event = EventRecord {
            read: !matches!(request.access, Access::Write | Access::Atomic),
            instruction: request.access == Access::Execute,
            ..self.plain_event(kind, request)
        };
        self.record(event, ste.map_or(Merging::Inhibited, merging));
        Blocked { outcome: Outcome::Unsupported, reason: Some(kind) }
    }

    /// F_TRANSL_FORBIDDEN.
    fn forbid_translated(&self, request: &Request, ste: Option<&Ste>) -> Blocked {
        let kind = EventKind::F_TRANSL_FORBIDDEN;
        let event = EventRecord {
            read: request.access.is_read(),
            instruction: request.access == Access::Execute,
            ..self.plain_event(kind, request)
        };
        self.record(event, ste.map_or(Merging::Inhibited, merging));
        Blocked { outcome: Outcome::Abort, reason: Some(kind) }
    }

    fn plain_event(&self, kind: EventKind, request: &Request) -> EventRecord {
        EventRecord {
            kind,
            stream: request.stream,
            substream: request.substream,
            privileged: request.privilege == Privilege::Privileged,
            address: request.address,
            ..EventRecord::default()
        }
    }

    /// A request that its device had translated before (3.9.1.3).
    fn translated(&self, view: &View, request: &Request) -> Result<Answer, Blocked> {
        // 3.9.1.1: the rest of the address would be cut off.
        let size = self.output_size();
        if request.address.checked_shr(u32::from(size)).unwrap_or(0) != 0 {
            return Err(ABORT);
        }
        if !view.checks {
            return Ok(identity(request.address, size));
        }
        let ste = match self.entry(view, request.stream) {
            Ok(ste) => ste,
            Err(fault) => {
                if view.cr2.contains(Cr2::REC_CFG_ATS) {
                    let lookup = Lookup::new(request.address, request.access);
                    self.record(fault.event(request.stream, request.substream, &lookup), Merging::Inhibited);
                }
                return Err(Blocked { outcome: Outcome::Abort, reason: Some(fault.kind) });
            }
        };
        match effective_eats(view, &ste) {
            _ if ste.config() == Config::Abort => Err(ABORT),
            Eats::Full => Ok(identity(request.address, size)),
            Eats::Split => {
                // Through stage 2, as what passed stage 1.
                let lookup =
                    walk::overridden(&self.config.identification, &ste, &Lookup::new(request.address, request.access));
                let context = self.context_of(view, ste, None);
                match self.translate_in(view, request.stream, &context, &lookup) {
                    Ok(translation) => Ok(self.answer(&translation, request.address, &lookup)),
                    Err(fault) => {
                        let plain = Request { substream: None, ..*request };
                        Err(self.fail(view, &plain, &lookup, &Failure { fault, ste: Some(ste), cd: None }))
                    }
                }
            }
            Eats::Off | Eats::Dpt => Err(self.forbid_translated(request, Some(&ste))),
        }
    }

    fn output_size(&self) -> u8 {
        self.config.identification.output_bits().unwrap_or(52)
    }

    /// From the StreamID to the page; with what the STE made of the request. `None` where the STE aborts.
    #[allow(clippy::result_large_err)] // It holds what was read, and there is no heap.
    fn resolve(
        &self,
        view: &View,
        request: &Request,
        lookup: &Lookup,
    ) -> Result<Option<(Translation, Lookup)>, Failure> {
        let id = &self.config.identification;
        let ste = self.entry(view, request.stream).map_err(Failure::early)?;
        let with_ste = |fault| Failure { fault, ste: Some(ste), cd: None };
        let index = match walk::route(id, &ste, request.substream).map_err(with_ste)? {
            Route::Abort => return Ok(None),
            Route::Onward { cd } => cd,
        };
        let lookup = walk::overridden(id, &ste, lookup);
        let cd = match index {
            Some(index) => Some(self.descriptor(view, request.stream, &ste, index).map_err(with_ste)?),
            None => None,
        };
        let context = self.context_of(view, ste, cd);
        match self.translate_in(view, request.stream, &context, &lookup) {
            Ok(translation) => {
                // 13.4.1.
                let privilege = match context.world {
                    StreamWorld::NsEl2 => Privilege::Privileged,
                    StreamWorld::NsEl1 | StreamWorld::NsEl2E2h => lookup.privilege,
                };
                Ok(Some((translation, Lookup { privilege, ..lookup })))
            }
            Err(fault) => Err(Failure { fault, ste: Some(ste), cd }),
        }
    }

    fn context_of(&self, view: &View, ste: Ste, cd: Option<Cd>) -> Context {
        Context { ste, cd, world: self.world(view, &ste) }
    }

    fn world(&self, view: &View, ste: &Ste) -> StreamWorld {
        let e2h = if view.cr2.contains(Cr2::E2H) { E2h::On } else { E2h::Off };
        walk::world(&self.config.identification, ste, e2h)
    }

    /// A valid STE of a stream.
    pub(super) fn entry(&self, view: &View, stream: StreamId) -> Result<Ste, Fault> {
        let id = &self.config.identification;
        // 5.2.1: a StreamID beyond the table is so whatever is cached.
        let kept = match stream.0.checked_shr(u32::from(view.table.log2.min(id.stream_id_bits()))).unwrap_or(0) {
            0 => self.state.lock(&self.platform).caches.configuration.entry(stream, view.retention),
            _ => None,
        };
        let ste = match kept {
            Some(ste) => ste,
            None => {
                let mut structures = Structures::new(self, view, stream, None);
                let ste = walk::stream(&self.host, id, &view.table, stream, &mut structures)?;
                self.keep(view, |caches| caches.configuration.keep_entry(stream, ste));
                self.prefetch_entry(view, StreamId(stream.0 ^ 1));
                ste
            }
        };
        walk::check_ste(id, &ste)?;
        Ok(ste)
    }

    /// Reads the STE beside one that was asked for: "more data than the required structures" (3.21.3). So
    /// software must invalidate also one that no request has met.
    fn prefetch_entry(&self, view: &View, stream: StreamId) {
        let kept = self.state.lock(&self.platform).caches.configuration.entry(stream, Retention::Keep);
        if kept.is_none() {
            let mut structures = Structures::new(self, view, stream, None);
            let found = walk::stream(&self.host, &self.config.identification, &view.table, stream, &mut structures);
            if let Ok(ste) = found {
                self.keep(view, |caches| caches.configuration.keep_entry(stream, ste));
            }
        }
    }

    /// Reads the CD beside one that was asked for, if the table of this valid STE has it (3.21.3).
    fn prefetch_descriptor(&self, view: &View, stream: StreamId, ste: &Ste, index: u32) {
        let id = &self.config.identification;
        let most = if id.substream_id_bits() == 0 { 0 } else { ste.cd_max() };
        let beyond = index.checked_shr(u32::from(most)).unwrap_or(0) != 0;
        let kept = self.state.lock(&self.platform).caches.configuration.context(stream, index, Retention::Keep);
        if beyond || kept.is_some() {
            return;
        }
        let tags = self.context_of(view, *ste, None).tags(id);
        let split = ste.cd_format().split();
        let mut structures = Structures { split, ..Structures::new(self, view, stream, Some(tags)) };
        if let Ok(cd) = walk::context(&self.host, id, ste, index, &mut structures) {
            self.keep(view, |caches| caches.configuration.keep_context(stream, index, cd));
        }
    }

    /// A valid CD.
    fn descriptor(&self, view: &View, stream: StreamId, ste: &Ste, index: u32) -> Result<Cd, Fault> {
        let id = &self.config.identification;
        let kept = self.state.lock(&self.platform).caches.configuration.context(stream, index, view.retention);
        let cd = match kept {
            Some(cd) => cd,
            None => {
                let tags = self.context_of(view, *ste, None).tags(id);
                let split = ste.cd_format().split();
                let mut structures = Structures { split, ..Structures::new(self, view, stream, Some(tags)) };
                let cd = walk::context(&self.host, id, ste, index, &mut structures)?;
                self.keep(view, |caches| caches.configuration.keep_context(stream, index, cd));
                self.prefetch_descriptor(view, stream, ste, index ^ 1);
                cd
            }
        };
        walk::check_cd(id, ste, self.world(view, ste), &cd)?;
        Ok(cd)
    }

    /// Keeps what was found, if nothing was invalidated since the request came.
    fn keep(&self, view: &View, keep: impl FnOnce(&mut super::cache::Caches<P>)) {
        let mut state = self.state.lock(&self.platform);
        if state.epoch == view.epoch {
            keep(&mut state.caches);
        }
    }

    /// Translates an address by the TLB, or by tables.
    fn translate_in(
        &self,
        view: &View,
        stream: StreamId,
        context: &Context,
        lookup: &Lookup,
    ) -> Result<Translation, Fault> {
        let id = &self.config.identification;
        let tags = context.tags(id);
        let address = context.cd.map_or(lookup.address, |cd| without_tag(&cd, lookup.address));
        if context.cd.is_some() {
            let line = self.state.lock(&self.platform).caches.tlb.address(&tags, address, view.retention);
            match line {
                Ok(Some(line)) => return self.judge(context, &line, lookup),
                Ok(None) => {}
                Err(Conflict) if id.break_before_make() != BreakBeforeMake::Unneeded => {
                    return Err(Fault::configuration(EventKind::F_TLB_CONFLICT));
                }
                // 3.21.1.3: the unit resolves it by itself.
                Err(Conflict) => {}
            }
        }
        let mut structures =
            Structures { nested: context.ste.config().has_stage2(), ..Structures::new(self, view, stream, Some(tags)) };
        let translation = walk::translate(&self.host, id, context, lookup, &mut structures)?;
        if let (Some(first), Retained::Freely) = (translation.stage1, translation.retained()) {
            let has = id.idr3().contains(Idr3::E0PD) && context.world != StreamWorld::NsEl2;
            let privileged_only = has && context.cd.is_some_and(|cd| cd.denies_unprivileged(half(address)));
            let mut line = self.line(tags, address, first, translation.stage2);
            line.privileged_only = privileged_only;
            self.keep(view, |caches| caches.tlb.keep_address(line));
        }
        Ok(translation)
    }

    /// What the TLB keeps of the translation of a VA: as much as it may.
    fn line(&self, tags: Tags, address: u64, first: Leaf, second: Option<Leaf>) -> VaLine {
        let (first, second) = match self.chooser.fracture() {
            Fracture::Pieces => return VaLine::new(tags, address, 12, first, second),
            Fracture::Whole => {
                let first = run(&first, address);
                let ipa = first.translate(address);
                (first, second.map(|leaf| run(&leaf, ipa)))
            }
        };
        let bits = second.map_or(first.bits, |leaf| leaf.bits.min(first.bits));
        VaLine::new(tags, address, bits, first, second)
    }

    /// What a line of the TLB says to a request.
    fn judge(&self, context: &Context, line: &VaLine, lookup: &Lookup) -> Result<Translation, Fault> {
        let id = &self.config.identification;
        if line.privileged_only && lookup.privilege == Privilege::Unprivileged {
            return Err(Fault::stage1(EventKind::F_TRANSLATION));
        }
        walk::stage1::check(&line.first, context.world, lookup)?;
        if let Some(second) = &line.second
            && lookup.goal == Goal::Access
            && !second.permissions.permit(lookup.access, lookup.privilege)
        {
            let ipa = line.first.translate(lookup.address);
            return Err(Fault {
                lacks_read_only: second.permissions.lack_read_only(lookup.access, lookup.privilege),
                ..Fault::stage2(EventKind::F_PERMISSION, FaultClass::Input, ipa)
            });
        }
        let incoming = Attributes::incoming(id, &context.ste);
        Ok(walk::nested::compose(id, context, incoming, (Some(line.first), line.second), lookup))
    }

    /// The answer to a request whose translation is known.
    fn answer(&self, translation: &Translation, address: u64, lookup: &Lookup) -> Answer {
        let permitted = |access| translation.permissions.permit(access, lookup.privilege);
        let mut prot = Prot::empty();
        prot.set(Prot::READ, permitted(Access::Read));
        prot.set(Prot::WRITE, permitted(Access::Write));
        let phys = match translation.block_bits {
            64.. => PhysAddr::new(address),
            _ => translation.translate(address),
        };
        Answer {
            phys,
            page_bits: translation.block_bits.min(self.output_size()),
            prot,
            attributes: translation.attributes,
        }
    }
}

/// A leaf as the run that it says it is a part of, if its output is where that of the run would have it.
fn run(leaf: &Leaf, address: u64) -> Leaf {
    let within = |bits: u8| u64::MAX.checked_shl(u32::from(bits)).map_or(u64::MAX, |above| !above);
    let offset = within(leaf.contiguous_bits) & !within(leaf.bits);
    match (leaf.output ^ address) & offset {
        0 => Leaf { output: leaf.output & !within(leaf.contiguous_bits), bits: leaf.contiguous_bits, ..*leaf },
        _ => *leaf,
    }
}

fn half(address: u64) -> Half {
    if address >> 55 & 1 == 0 { Half::Lower } else { Half::Upper }
}

/// The address that a TLB has: without the top byte, if the CD says that it is not looked at (TBI).
fn without_tag(cd: &Cd, address: u64) -> u64 {
    let half = half(address);
    match (cd.ignores_top_byte(half), half) {
        (false, _) => address,
        (true, Half::Lower) => address & !(0xff << 56),
        (true, Half::Upper) => address | 0xff << 56,
    }
}

/// EATS as it counts (5.2): split-stage ATS needs ATSCHK.
fn effective_eats(view: &View, ste: &Ste) -> Eats {
    match ste.eats() {
        _ if matches!(ste.config(), Config::Bypass | Config::Abort) => Eats::Off,
        Eats::Full => Eats::Full,
        Eats::Split if view.checks => Eats::Split,
        _ => Eats::Off,
    }
}

fn merging(ste: &Ste) -> Merging {
    if ste.merges_events() { Merging::Permitted } else { Merging::Inhibited }
}

/// The answer where nothing is translated.
fn identity(address: u64, page_bits: u8) -> Answer {
    Answer { phys: PhysAddr::new(address), page_bits, prot: Prot::RW, attributes: Attributes::INCOMING }
}

/// What is kept within the walk of one request.
struct Structures<'a, P: Platform, H: Host, C: Chooser> {
    device: &'a SmmuDevice<P, H, C>,
    view: &'a View,
    stream: StreamId,
    /// Known when tables are walked.
    tags: Option<Tags>,
    /// Where the CD table is split.
    split: Option<u8>,
    /// Whether stage 2 says where tables of stage 1 are.
    nested: bool,
}

impl<'a, P: Platform, H: Host, C: Chooser> Structures<'a, P, H, C> {
    const fn new(device: &'a SmmuDevice<P, H, C>, view: &'a View, stream: StreamId, tags: Option<Tags>) -> Self {
        Self { device, view, stream, tags, split: None, nested: true }
    }
}

impl<P: Platform, H: Host, C: Chooser> Structures<'_, P, H, C> {
    fn find<T>(&self, find: impl FnOnce(&mut super::cache::Caches<P>, Retention) -> Option<T>) -> Option<T> {
        let mut state = self.device.state.lock(&self.device.platform);
        find(&mut state.caches, self.view.retention)
    }
}

impl<P: Platform, H: Host, C: Chooser> StructureCache for Structures<'_, P, H, C> {
    fn table(&mut self, stage: Stage, address: u64) -> Option<Structure> {
        let tags = self.tags?;
        self.find(|caches, retention| caches.tlb.table(stage, &tags, address, retention))
    }

    fn keep_table(&mut self, stage: Stage, address: u64, structure: Structure) {
        if let Some(tags) = self.tags {
            let at = (stage == Stage::Two || !self.nested).then_some(PhysAddr::new(structure.table));
            self.device.keep(self.view, |caches| caches.tlb.keep_table(stage, &tags, address, structure, at));
        }
    }

    fn page(&mut self, ipa: u64) -> Option<Leaf> {
        let tags = self.tags?;
        self.find(|caches, retention| caches.tlb.intermediate(tags.vmid, ipa, retention))
    }

    fn keep_page(&mut self, ipa: u64, leaf: Leaf) {
        let Some(tags) = self.tags else { return };
        let (leaf, bits) = match self.device.chooser.fracture() {
            Fracture::Pieces => (leaf, 12),
            Fracture::Whole => {
                let leaf = run(&leaf, ipa);
                (leaf, leaf.bits)
            }
        };
        self.device.keep(self.view, |caches| caches.tlb.keep_intermediate(tags.vmid, ipa, bits, leaf));
    }

    fn stream_descriptor(&mut self, stream: StreamId) -> Option<L1Std> {
        let split = self.view.table.split?;
        self.find(|caches, retention| caches.configuration.stream_descriptor(stream, split, retention))
    }

    fn keep_stream_descriptor(&mut self, stream: StreamId, descriptor: L1Std) {
        if let Some(split) = self.view.table.split {
            self.device
                .keep(self.view, |caches| caches.configuration.keep_stream_descriptor(stream, split, descriptor));
        }
    }

    fn context_descriptor(&mut self, index: u32) -> Option<L1Cd> {
        let (stream, split) = (self.stream, self.split?);
        self.find(|caches, retention| caches.configuration.context_descriptor(stream, index, split, retention))
    }

    fn keep_context_descriptor(&mut self, index: u32, descriptor: L1Cd) {
        if let Some(split) = self.split {
            let stream = self.stream;
            self.device.keep(self.view, |caches| {
                caches.configuration.keep_context_descriptor(stream, index, split, descriptor);
            });
        }
    }
}
