//! What the unit does, one action at a time.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use heapless::Vec;

use super::queue::{FETCH_FAILED, PENDING, Position, QueueErrorCode, domain_bits};
use super::unit::State;
use super::{DeviceAnswer, DeviceConfig, Host, Snoop, VtdDevice};
use crate::addr::{Iova, PhysAddr};
use crate::arch::vtd::layout::descriptors::{
    Changed, ContextScope, Descriptor, Drain, IotlbScope, PasidScope, Request, WaitFlags,
};
use crate::arch::vtd::layout::registers::{DescriptorWidth, FaultStatus, Global, ICS_IWC, TableMode};
use crate::arch::vtd::layout::{Cap, DomainId, Ecap};
use crate::bus::{Chooser, Precision};
use crate::ops::InterruptKind;
use crate::platform::Platform;
use crate::sync::atomic::Ordering;
use crate::sync::relax;

/// What a step did.
///
/// ```
/// use iommu::arch::vtd::device::Step;
/// assert_ne!(Step::Idle, Step::Busy);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing: there is nothing to do, or nothing that may be done yet.
    Idle,
    /// Nothing: another thread is at it.
    Busy,
    /// Took over this bit of GCMD, or served its one shot.
    Command(Global),
    /// Switched protected memory on or off (PMEN).
    Protection,
    /// Served an invalidation through CCMD or the IOTLB register; `None` if it was ignored as incorrect.
    RegisterInvalidation(Option<Request>),
    /// Fetched a descriptor.
    Fetched(Request),
    /// Stopped at a descriptor (IQE), for this reason (IQEI).
    QueueError(u8),
    /// Executed a request.
    Executed(Request),
    /// Gave up waiting for a device (ITE).
    TimedOut(Request),
    /// Completed a wait.
    Completed(Request),
    /// Sent an interrupt.
    Interrupted(InterruptKind),
}

/// Something that may be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Command(Global),
    Protection,
    ContextCommand,
    IotlbCommand,
    Execute(usize),
    Fetch,
    Interrupt(InterruptKind),
}

/// Seven commands, protected memory, two registers, the queue, three interrupts.
const ACTIONS: usize = 7 + 1 + 2 + PENDING + 1 + 3;

/// Bits of GCMD in the order in which a unit serves them when several are asked for at once, which
/// software must not do (11.4.4.1).
const COMMANDS: [Global; 7] =
    [Global::RTP, Global::IRTP, Global::WBF, Global::TE, Global::QIE, Global::IRE, Global::CFI];

const BOTH: Drain = Drain::READS.union(Drain::WRITES);

impl<P: Platform, H: Host, C: Chooser> VtdDevice<P, H, C> {
    /// The most steps of one [`run`](Self::run): enough for the longest queue.
    pub const RUN_STEPS: usize = 1 << 17;

    /// Does one thing that the specification permits to be done next; the chooser says which. Task only.
    pub fn step(&self) -> Step {
        if self.stepping.swap(true, Ordering::Acquire) {
            return Step::Busy;
        }
        let step = self.act();
        self.stepping.store(false, Ordering::Release);
        step
    }

    /// Steps until there is nothing to do, but [`RUN_STEPS`](Self::RUN_STEPS) times at the most. Returns how
    /// many steps there were: fewer than that when nothing is left. Task only.
    pub fn run(&self) -> usize {
        for steps in 0..Self::RUN_STEPS {
            match self.step() {
                Step::Idle => return steps,
                Step::Busy => relax(&self.platform),
                _ => {}
            }
        }
        Self::RUN_STEPS
    }

    fn act(&self) -> Step {
        let actions = self.state.lock(&self.platform).actions(&self.config);
        let choice = match actions.len() {
            0 => return Step::Idle,
            1 => 0,
            choices => self.chooser.choose(choices).checked_rem(choices).unwrap_or(0),
        };
        match actions.get(choice) {
            None => Step::Idle,
            Some(Action::Command(command)) => self.command(*command),
            Some(Action::Protection) => {
                // In-flight requests are through before PRS tells (11.4.8.1).
                self.host.drain(BOTH);
                self.state.lock(&self.platform).registers.follow_protection();
                Step::Protection
            }
            Some(Action::ContextCommand) => self.context_command(),
            Some(Action::IotlbCommand) => self.iotlb_command(),
            Some(Action::Execute(index)) => self.execute(*index),
            Some(Action::Fetch) => self.fetch(),
            Some(Action::Interrupt(kind)) => self.interrupt(*kind),
        }
    }

    /// Serves a bit of GCMD (11.4.4.1).
    fn command(&self, command: Global) -> Step {
        let enables = self.state.lock(&self.platform).registers.commands.levels.contains(command);
        match command {
            Global::WBF => self.host.flush_write_buffers(),
            Global::TE if enables => self.host.drain(BOTH),
            _ => {}
        }
        self.state.lock(&self.platform).take_over(&self.config, command);
        Step::Command(command)
    }

    /// Drops from the caches what a request names, and drains.
    fn invalidate(&self, request: Request) {
        // 6.8: write buffers are flushed first.
        if self.config.cap.contains(Cap::RWBF) {
            self.host.flush_write_buffers();
        }
        let precision = self.chooser.precision();
        self.state.lock(&self.platform).invalidate(request, precision);
        let drain = match request {
            Request::Iotlb(_, drain) => self.drained(drain),
            Request::PasidIotlb(_) => BOTH,
            _ => return,
        };
        // 6.5.4: through before the next wait is completed, or IVT clears.
        if !drain.is_empty() {
            self.host.drain(drain);
        }
    }

    /// What is drained when software asked for `drain` (6.5.2.3).
    fn drained(&self, drain: Drain) -> Drain {
        if self.config.version >> 4 & 0xf >= 2 {
            return BOTH;
        }
        let mut can = Drain::empty();
        can.set(Drain::READS, self.config.cap.contains(Cap::DRD));
        can.set(Drain::WRITES, self.config.cap.contains(Cap::DWD));
        drain & can
    }

    /// CCMD (11.4.6.1).
    fn context_command(&self) -> Step {
        let request = {
            let state = self.state.lock(&self.platform);
            let command = state.registers.context_command;
            let domain = domain_bits(self.config.cap, DomainId::new(command as u16));
            let scope = match command >> 61 & 3 {
                1 => Some(ContextScope::Global),
                2 => Some(ContextScope::Domain(domain)),
                3 => {
                    let function_mask = (command >> 32 & 3) as u8;
                    Some(ContextScope::Device { domain, source: (command >> 16) as u16, function_mask })
                }
                _ => None,
            };
            scope.filter(|_| state.takes_register_invalidations(&self.config)).map(Request::Context)
        };
        if let Some(request) = request {
            self.invalidate(request);
        }
        let granularity = match request {
            Some(Request::Context(ContextScope::Global)) => 1,
            Some(Request::Context(ContextScope::Domain(_))) => 2,
            Some(Request::Context(ContextScope::Device { .. })) => 3,
            _ => 0,
        };
        self.state.lock(&self.platform).registers.finish_context(granularity);
        Step::RegisterInvalidation(request)
    }

    /// The IOTLB register (11.4.6.3).
    fn iotlb_command(&self) -> Step {
        let request = {
            let state = self.state.lock(&self.platform);
            let (command, address) = (state.registers.iotlb_command, state.registers.invalidate_address);
            let cap = self.config.cap;
            let domain = domain_bits(cap, DomainId::new((command >> 32) as u16));
            let mask = (address & 0x3f) as u8;
            let scope = match command >> 60 & 3 {
                1 => Some(IotlbScope::Global),
                2 => Some(IotlbScope::Domain(domain)),
                // A unit that cannot do it serves the whole domain.
                3 if !cap.contains(Cap::PSI) => Some(IotlbScope::Domain(domain)),
                3 if mask <= cap.max_address_mask() => {
                    let changed = if address & 1 << 6 == 0 { Changed::Tables } else { Changed::Leaves };
                    Some(IotlbScope::Pages { domain, address: Iova::new(address & !0xfff), mask, changed })
                }
                _ => None,
            };
            // DR 49, DW 48, which are bits 7 and 6 of a descriptor.
            let mut drain = Drain::empty();
            drain.set(Drain::READS, command & 1 << 49 != 0);
            drain.set(Drain::WRITES, command & 1 << 48 != 0);
            scope.filter(|_| state.takes_register_invalidations(&self.config)).map(|scope| Request::Iotlb(scope, drain))
        };
        if let Some(request) = request {
            self.invalidate(request);
        }
        let granularity = match request {
            Some(Request::Iotlb(IotlbScope::Global, _)) => 1,
            Some(Request::Iotlb(IotlbScope::Domain(_), _)) => 2,
            Some(Request::Iotlb(IotlbScope::Pages { .. }, _)) => 3,
            _ => 0,
        };
        self.state.lock(&self.platform).registers.finish_iotlb(granularity);
        Step::RegisterInvalidation(request)
    }

    /// Fetches the descriptor at the head.
    fn fetch(&self) -> Step {
        let position = {
            let state = self.state.lock(&self.platform);
            let registers = &state.registers;
            let (address, head, tail) = (registers.queue_address, registers.queue_head, registers.queue_tail);
            Position::new(&self.config, registers.mode(), address, head, tail)
        };
        let fetched = position.and_then(|position| {
            let descriptor = self.descriptor(&position).ok_or(FETCH_FAILED)?;
            Ok((position.next(), position.judge(&self.config, descriptor)?))
        });
        let mut state = self.state.lock(&self.platform);
        match fetched {
            Ok((next, request)) => {
                state.registers.queue_head = next;
                state.pending.push(request);
                Step::Fetched(request)
            }
            Err(code) => {
                state.queue_error(code);
                Step::QueueError(code as u8)
            }
        }
    }

    /// Reads a descriptor, 16 bytes at a time: the queue is always snooped (11.4.3, C).
    fn descriptor(&self, position: &Position) -> Option<Descriptor> {
        let address = position.address();
        let [first, second] = self.host.read_pair(self.host_address(address)?, Snoop::Yes).ok()?;
        let [third, fourth] = match position.width {
            DescriptorWidth::Bits128 => [0; 2],
            DescriptorWidth::Bits256 => {
                let upper = self.host_address(address.checked_add(16)?)?;
                self.host.read_pair(upper, Snoop::Yes).ok()?
            }
        };
        Some(Descriptor { words: [first, second, third, fourth] })
    }

    /// The address, if the unit has as many bits.
    pub(super) fn host_address(&self, address: PhysAddr) -> Option<PhysAddr> {
        let beyond = address.as_u64().checked_shr(u32::from(self.config.host_address_bits)).unwrap_or(0);
        (beyond == 0).then_some(address)
    }

    /// Executes a request that was fetched, or completes a wait.
    fn execute(&self, index: usize) -> Step {
        let Some(request) = self.state.lock(&self.platform).pending.get(index) else { return Step::Idle };
        let answer = match request {
            Request::Wait { flags, address, data } => return self.complete(index, request, flags, address, data),
            Request::DeviceTlb { source, range, .. } => {
                Some((source, self.host.invalidate_device_tlb(source, None, range)))
            }
            Request::PasidDeviceTlb { source, pasids, range, .. } => {
                Some((source, self.host.invalidate_device_tlb(source, Some(pasids), range)))
            }
            Request::PageGroupResponse { source, pasid, group, code } => {
                self.host.respond(source, pasid, group, code);
                None
            }
            _ => {
                self.invalidate(request);
                None
            }
        };
        let mut state = self.state.lock(&self.platform);
        match answer {
            Some((source, DeviceAnswer::None)) => {
                state.pending.abort(index);
                state.device_error(FaultStatus::ITE, source);
                return Step::TimedOut(request);
            }
            Some((source, DeviceAnswer::Broken)) => state.device_error(FaultStatus::ICE, source),
            Some((_, DeviceAnswer::Done)) | None => {}
        }
        state.pending.finish(index);
        Step::Executed(request)
    }

    /// Completes a wait (6.5.2.9).
    fn complete(&self, index: usize, request: Request, flags: WaitFlags, address: PhysAddr, data: u32) -> Step {
        if flags.contains(WaitFlags::STATUS_WRITE) {
            let bits = u64::MAX.checked_shr(64_u32.saturating_sub(u32::from(self.config.host_address_bits)));
            let address = PhysAddr::new(address.as_u64() & bits.unwrap_or(0));
            // What happens to a write that goes nowhere is not defined: nothing.
            let _ = self.host.write32(address, data);
        }
        let mut state = self.state.lock(&self.platform);
        state.pending.finish(index);
        // 6.5.2.10: nobody is told again while software has yet to look.
        if flags.contains(WaitFlags::INTERRUPT) && state.registers.completion & ICS_IWC == 0 {
            state.registers.completion = ICS_IWC;
            state.registers.completion_event.raise();
        }
        Step::Completed(request)
    }

    /// Sends an interrupt.
    fn interrupt(&self, kind: InterruptKind) -> Step {
        let message = {
            let mut state = self.state.lock(&self.platform);
            match kind {
                InterruptKind::Fault => state.faults.event.take(),
                InterruptKind::InvalidationDone => state.registers.completion_event.take(),
                InterruptKind::PageRequest => state.registers.page_event.take(),
            }
        };
        // Software may have masked it in between.
        match message {
            Some(message) => {
                self.host.interrupt(message);
                Step::Interrupted(kind)
            }
            None => Step::Idle,
        }
    }
}

impl<P: Platform> State<P> {
    /// All that may be done now.
    fn actions(&self, config: &DeviceConfig) -> Vec<Action, ACTIONS> {
        let mut actions = Vec::new();
        let registers = &self.registers;
        let mut add = |action, when: bool| {
            if when {
                // There is room for all that there are.
                let _ = actions.push(action);
            }
        };
        for command in COMMANDS {
            add(Action::Command(command), self.may_take_over(command));
        }
        add(Action::Protection, registers.protection_asked());
        add(Action::ContextCommand, registers.context_asked());
        add(Action::IotlbCommand, registers.iotlb_asked());
        for index in 0..self.pending.len() {
            let drains = matches!(
                self.pending.get(index),
                Some(Request::Wait { flags, .. }) if flags.contains(WaitFlags::DRAIN_PAGE_REQUESTS)
            );
            let blocked = drains && config.ecap.contains(Ecap::PRS) && self.page_writers != 0;
            add(Action::Execute(index), !blocked && self.pending.is_legal(index));
        }
        let fetches = registers.status.contains(Global::QIE)
            && registers.queue_head != registers.queue_tail
            && !self.faults.stops_queue()
            && self.pending.has_room();
        add(Action::Fetch, fetches);
        add(Action::Interrupt(InterruptKind::InvalidationDone), registers.completion_event.is_due());
        add(Action::Interrupt(InterruptKind::PageRequest), registers.page_event.is_due());
        add(Action::Interrupt(InterruptKind::Fault), self.faults.event.is_due());
        actions
    }

    /// Whether this bit of GCMD asks for something that may be done now.
    fn may_take_over(&self, command: Global) -> bool {
        let (commands, status) = (self.registers.commands, self.registers.status);
        match command {
            Global::RTP | Global::IRTP | Global::WBF => commands.once.contains(command),
            // 6.5.2: the queue is disabled when it is quiet.
            Global::QIE if status.contains(Global::QIE) && !commands.levels.contains(Global::QIE) => {
                self.registers.queue_head == self.registers.queue_tail && self.pending.is_quiet()
            }
            _ => commands.levels.contains(command) != status.contains(command),
        }
    }

    /// Does what this bit of GCMD asks for.
    fn take_over(&mut self, config: &DeviceConfig, command: Global) {
        let registers = &mut self.registers;
        match command {
            Global::RTP => {
                registers.latch_root();
                registers.commands.once.remove(command);
                registers.status.insert(command);
                // 6.6.
                if config.cap.contains(Cap::ESRTPS) {
                    self.clear_caches();
                }
                return;
            }
            Global::IRTP => {
                registers.latch_interrupt_table();
                registers.commands.once.remove(command);
                registers.status.insert(command);
                return;
            }
            Global::WBF => {
                registers.commands.once.remove(command);
                registers.status.remove(command);
                return;
            }
            _ => {}
        }
        let enable = registers.commands.levels.contains(command);
        registers.status.set(command, enable);
        match command {
            Global::TE if !enable && config.ecap.contains(Ecap::SMTS) => self.clear_caches(),
            Global::QIE => {
                registers.queue_head = 0;
                self.pending.clear();
            }
            _ => {}
        }
        if !self.registers.status.intersects(Global::TE | Global::IRE) {
            self.faults.restart();
        }
    }

    fn clear_caches(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.caches.clear();
    }

    /// Whether CCMD and the IOTLB register are served: in legacy mode, without the queue, by units below
    /// version 6 (6.5.1).
    fn takes_register_invalidations(&self, config: &DeviceConfig) -> bool {
        self.registers.mode() == Some(TableMode::Legacy)
            && !self.registers.status.contains(Global::QIE)
            && config.version >> 4 & 0xf < 6
    }

    /// Drops from the caches what a request names, or all that its kind reaches.
    pub(super) fn invalidate(&mut self, request: Request, precision: Precision) {
        self.epoch = self.epoch.wrapping_add(1);
        let caches = &mut self.caches;
        match (request, precision) {
            (Request::Context(_), Precision::Coarse) => caches.invalidate_contexts(ContextScope::Global),
            (Request::Context(scope), Precision::Exact) => caches.invalidate_contexts(scope),
            (Request::PasidCache(_), Precision::Coarse) => caches.invalidate_pasids(PasidScope::Global),
            (Request::PasidCache(scope), Precision::Exact) => caches.invalidate_pasids(scope),
            (Request::Iotlb(..) | Request::PasidIotlb(_), Precision::Coarse) => {
                caches.invalidate_iotlb(IotlbScope::Global)
            }
            (Request::Iotlb(scope, _), Precision::Exact) => caches.invalidate_iotlb(scope),
            (Request::PasidIotlb(scope), Precision::Exact) => caches.invalidate_pasid_iotlb(scope),
            // Interrupts are not remapped: there is no cache of their entries.
            _ => {}
        }
    }

    /// Stops the queue at the head (IQE).
    fn queue_error(&mut self, code: QueueErrorCode) {
        self.registers.queue_error = self.registers.queue_error & !0xf | code;
        self.faults.report(FaultStatus::IQE);
    }

    /// A device did not answer (ITE) or answered wrongly (ICE). The record names the first one (11.4.9.9).
    fn device_error(&mut self, status: FaultStatus, source: u16) {
        if !self.faults.is_set(status) {
            let shift = if status == FaultStatus::ITE { 32 } else { 48 };
            let record = self.registers.queue_error & !(0xffff << shift);
            self.registers.queue_error = record | u64::from(source) << shift;
        }
        self.faults.report(status);
    }
}
