//! What the unit does, one action at a time.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use heapless::Vec;

use super::interrupts::Source;
use super::queue::{self, PENDING};
use super::unit::State;
use super::walk::StreamWorld;
use super::{DeviceAnswer, Host, Interrupt, Line, SmmuDevice};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::commands::{COMMAND_BYTES, Command, Completion};
use crate::arch::smmuv3::layout::identification::Idr0;
use crate::arch::smmuv3::layout::registers::{CommandError, Cr0, Cr2, Gerror, IrqCtrl};
use crate::bus::{Chooser, Snoop, Unreachable};
use crate::ops::Msi;
use crate::platform::Platform;
use crate::sync::atomic::Ordering;
use crate::sync::relax;

/// What a step did.
///
/// ```
/// use iommu::arch::smmuv3::device::Step;
/// assert_ne!(Step::Idle, Step::Busy);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing: there is nothing to do, or the unit leaves for later what it may.
    Idle,
    /// Nothing: another thread is at it.
    Busy,
    /// Took over this bit of CR0.
    Control(Cr0),
    /// Took over GBPA.
    Bypass,
    /// Took over this bit of IRQ_CTRL.
    InterruptControl(IrqCtrl),
    /// Fetched a command: consumed it, but for CMD_SYNC.
    Fetched(Command),
    /// Stopped at a command.
    CommandError(CommandError),
    /// Executed a command that was consumed.
    Executed(Command),
    /// Gave up waiting for a device.
    TimedOut(Command),
    /// Consumed a CMD_SYNC.
    Completed(Completion),
    /// Had requests tried again for which there was no room in the event queue.
    Retried,
    /// Sent an interrupt.
    Interrupted(Line),
}

/// Something that may be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Control(Cr0),
    Bypass,
    InterruptControl(IrqCtrl),
    Execute(usize),
    Complete,
    Fetch,
    Retry,
    Interrupt(Source),
    /// To leave what was consumed for later: no CMD_SYNC asks for it.
    Leave,
}

/// Bits of CR0 and IRQ_CTRL, GBPA, commands, CMD_SYNC, fetching, stalls, interrupts, nothing.
const ACTIONS: usize = CONTROLS.len() + 3 + 1 + PENDING + 1 + 1 + 1 + 3 + 1;

/// Bits of CR0, each of which comes into force for itself.
const CONTROLS: [Cr0; 5] = [Cr0::SMMUEN, Cr0::PRIQEN, Cr0::EVENTQEN, Cr0::CMDQEN, Cr0::ATSCHK];

impl<P: Platform, H: Host, C: Chooser> SmmuDevice<P, H, C> {
    /// The most steps of one [`run`](Self::run): enough for the longest queue.
    pub const RUN_STEPS: usize = 1 << 21;

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
        let actions = self.state.lock(&self.platform).actions();
        let choice = match actions.len() {
            0 => return Step::Idle,
            1 => 0,
            choices => self.chooser.choose(choices).checked_rem(choices).unwrap_or(0),
        };
        match actions.get(choice) {
            None | Some(Action::Leave) => Step::Idle,
            Some(Action::Control(bit)) => self.control(*bit),
            Some(Action::Bypass) => {
                self.state.lock(&self.platform).registers.follow_gbpa();
                Step::Bypass
            }
            Some(Action::InterruptControl(bit)) => {
                self.state.lock(&self.platform).registers.follow_irq(*bit);
                Step::InterruptControl(*bit)
            }
            Some(Action::Execute(index)) => self.execute(*index),
            Some(Action::Complete) => self.complete(),
            Some(Action::Fetch) => self.fetch(),
            Some(Action::Retry) => {
                self.retry_untold();
                Step::Retried
            }
            Some(Action::Interrupt(source)) => self.send(*source),
        }
    }

    /// Takes over a bit of CR0 (6.3.9).
    fn control(&self, bit: Cr0) -> Step {
        let mut state = self.state.lock(&self.platform);
        state.registers.follow(bit);
        let off = bit == Cr0::SMMUEN && !state.registers.enabled.contains(bit);
        drop(state);
        if off {
            self.terminate_all();
        }
        Step::Control(bit)
    }

    /// Reads the command at CMDQ_CONS.
    fn fetch(&self) -> Step {
        let (address, snoop) = {
            let state = self.state.lock(&self.platform);
            let queue = &state.registers.commands;
            let address = queue.address(queue.cons(), COMMAND_BYTES.trailing_zeros() as u8);
            (self.output_address(address), state.registers.queue_snoop())
        };
        let command = match self.read_pair(address, snoop) {
            Ok(words) => queue::judge(&self.config.identification, words).map_err(|_| CommandError::Illegal),
            Err(Unreachable) => Err(CommandError::Abort),
        };
        // These are done when they are consumed (4.8).
        match command {
            Ok(Command::Resume { stream, tag, action }) => self.resume(stream, tag, action),
            Ok(Command::StallTerminate { stream }) => self.terminate(stream),
            _ => {}
        }
        let mut state = self.state.lock(&self.platform);
        match command {
            Ok(command) => {
                state.registers.misuse |= queue::misuse(&self.config.identification, command);
                match command {
                    Command::Sync { completion } => state.pending.sync = Some(completion),
                    Command::Resume { .. } | Command::StallTerminate { .. } => state.consume(),
                    _ => {
                        state.pending.push(command);
                        state.consume();
                    }
                }
                Step::Fetched(command)
            }
            Err(error) => {
                state.command_error(error);
                Step::CommandError(error)
            }
        }
    }

    fn read_pair(&self, address: PhysAddr, snoop: Snoop) -> Result<[u64; 2], Unreachable> {
        let high = PhysAddr::new(address.as_u64().wrapping_add(8));
        Ok([self.host.read(address, snoop)?, self.host.read(high, snoop)?])
    }

    /// An address of a queue or a message as the unit puts it out: higher bits than OAS are cut off (3.4.3).
    pub(super) fn output_address(&self, address: PhysAddr) -> PhysAddr {
        let bits = u32::from(self.config.identification.output_bits().unwrap_or(52));
        PhysAddr::new(address.as_u64() & u64::MAX >> 64_u32.saturating_sub(bits).min(63))
    }

    /// Executes a command that was consumed.
    fn execute(&self, index: usize) -> Step {
        let (command, enabled) = {
            let state = self.state.lock(&self.platform);
            let Some(command) = state.pending.get(index) else { return Step::Idle };
            (command, state.registers.enabled.contains(Cr0::SMMUEN))
        };
        let mut answer = DeviceAnswer::Done;
        match command {
            // 4.5.1, 4.5.2: ignored while SMMUEN is 0.
            Command::AtcInvalidate { stream, substream, address, size_log2 } if enabled => {
                let aligned = match 1_u64.checked_shl(u32::from(size_log2)) {
                    Some(bytes) => address & !bytes.wrapping_sub(1),
                    None => 0,
                };
                answer = self.host.invalidate_atc(stream, substream, aligned, size_log2);
            }
            Command::PriResponse { stream, substream, group, response } if enabled => {
                self.host.respond(stream, substream, group, response);
            }
            _ => self.invalidate(command),
        }
        let mut state = self.state.lock(&self.platform);
        state.pending.finish(index);
        if answer == DeviceAnswer::None {
            state.pending.timed_out = true;
            return Step::TimedOut(command);
        }
        Step::Executed(command)
    }

    /// Drops from the caches what a command names.
    fn invalidate(&self, command: Command) {
        let precision = self.chooser.precision();
        let mut state = self.state.lock(&self.platform);
        let e2h = Cr2::from_bits_truncate(state.registers.cr2).contains(Cr2::E2H);
        let hypervisor = if e2h { StreamWorld::NsEl2E2h } else { StreamWorld::NsEl2 };
        if state.caches.invalidate(command, precision, hypervisor) {
            state.epoch = state.epoch.wrapping_add(1);
        }
    }

    /// Completes the CMD_SYNC that waits: all before it is executed (4.7.3).
    fn complete(&self) -> Step {
        // What was translated before is through.
        self.host.drain();
        let completion = {
            let mut state = self.state.lock(&self.platform);
            let Some(completion) = state.pending.sync.take() else { return Step::Idle };
            if core::mem::take(&mut state.pending.timed_out) {
                state.command_error(CommandError::AtcInvSync);
                return Step::CommandError(CommandError::AtcInvSync);
            }
            state.consume();
            completion
        };
        if let Completion::Interrupt { address, data, .. } = completion {
            let messages = self.config.identification.idr0().contains(Idr0::MSI);
            let interrupt = match address.as_u64() {
                0 => Interrupt::Wired(Line::CommandSync),
                _ if !messages => Interrupt::Wired(Line::CommandSync),
                _ => Interrupt::Message(Msi { address: self.output_address(address), data }),
            };
            if self.host.interrupt(interrupt).is_err() {
                self.state.lock(&self.platform).registers.report(Gerror::MSI_CMDQ_ABT_ERR);
            }
        }
        Step::Completed(completion)
    }

    /// Sends an interrupt.
    fn send(&self, source: Source) -> Step {
        let messages = self.config.identification.idr0().contains(Idr0::MSI);
        let interrupt = self.state.lock(&self.platform).registers.interrupts.take(source, messages);
        let Some(interrupt) = interrupt else { return Step::Idle };
        let interrupt = match interrupt {
            Interrupt::Message(Msi { address, data }) => {
                Interrupt::Message(Msi { address: self.output_address(address), data })
            }
            wired => wired,
        };
        if self.host.interrupt(interrupt).is_err() {
            let error = match source {
                Source::GlobalErrors => Gerror::MSI_GERROR_ABT_ERR,
                Source::Events => Gerror::MSI_EVENTQ_ABT_ERR,
                Source::PageRequests => Gerror::MSI_PRIQ_ABT_ERR,
            };
            self.state.lock(&self.platform).registers.report(error);
        }
        Step::Interrupted(source.line())
    }
}

impl<P: Platform> State<P> {
    /// All that may be done now.
    fn actions(&self) -> Vec<Action, ACTIONS> {
        let mut actions = Vec::new();
        let registers = &self.registers;
        let mut add = |action, when: bool| {
            if when {
                // There is room for all that there are.
                let _ = actions.push(action);
            }
        };
        for bit in CONTROLS {
            add(Action::Control(bit), registers.changing().contains(bit) && self.may_change(bit));
        }
        add(Action::Bypass, registers.gbpa_changes());
        for source in Source::ALL {
            // 6.3.16: what is due is sent before.
            let change = registers.irq_changing().contains(source.enable()) && !registers.interrupts.is_due(source);
            add(Action::InterruptControl(source.enable()), change);
        }
        for index in 0..self.pending.len() {
            add(Action::Execute(index), self.pending.is_legal(index));
        }
        let waits = self.pending.sync.is_some();
        add(Action::Complete, waits && self.pending.is_empty() && self.events.writers.is_quiet());
        let fetches = registers.fetches_commands() && self.pending.has_room();
        add(Action::Fetch, fetches);
        add(Action::Retry, self.stalls.has_untold() && self.check_writable().is_ok());
        for source in Source::ALL {
            add(Action::Interrupt(source), registers.interrupts.is_due(source));
        }
        let due = actions.iter().any(|action| !matches!(action, Action::Execute(_)));
        if !due && !waits && !actions.is_empty() && !self.pending.is_full() {
            let _ = actions.push(Action::Leave);
        }
        actions
    }

    /// Whether a bit of CR0 may come into force now.
    fn may_change(&self, bit: Cr0) -> bool {
        match bit {
            // 6.3.9.3: what is in progress is consumed in its entirety.
            Cr0::CMDQEN => self.pending.sync.is_none(),
            // 6.3.9.4: what is being written becomes visible.
            Cr0::EVENTQEN => self.events.writers.is_quiet(),
            // 6.3.9.5, and of SMMUEN as well, without which there are none.
            Cr0::PRIQEN | Cr0::SMMUEN => self.page_writers.is_quiet(),
            _ => true,
        }
    }

    /// The command at CMDQ_CONS is consumed.
    fn consume(&mut self) {
        let queue = &mut self.registers.commands;
        let next = queue.cons().plus(1, queue.log2_size());
        queue.cons = CommandError::None.with_cons(next);
    }

    /// Stops the queue at the command at CMDQ_CONS (7.1).
    fn command_error(&mut self, error: CommandError) {
        let queue = &mut self.registers.commands;
        queue.cons = error.with_cons(queue.cons());
        self.registers.report(Gerror::CMDQ_ERR);
    }
}
