//! What a unit is told to forget, in which order, after which change (SMMU 3.21.3, 4.3, 4.4).
//!
//! Each order is one batch of the queue, which ends with a CMD_SYNC. Commands of one batch may be executed
//! side by side: what must be forgotten before something else has a CMD_SYNC of its own.

use super::invalidation::Tagged;
use super::site;
use super::slot::EntrySync;
use super::unit::SmmuUnit;
use crate::arch::smmuv3::layout::StreamId;
use crate::arch::smmuv3::layout::commands::{Command, Completion, Leaf};
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::sync::Site;

/// Commands of one order.
const MAX_COMMANDS: usize = 4;

/// The CMD_SYNC between two commands of an order.
pub(super) const SYNC: Command = Command::Sync { completion: Completion::None };

impl<P: Platform> EntrySync for SmmuUnit<P> {
    fn ste(&self, stream: StreamId, leaf: Leaf) -> Result<()> {
        self.in_order(site::STE_WAIT, &[(site::STE, Command::ConfigSte { stream, leaf })])
    }

    fn cd(&self, stream: StreamId, substream: u32, leaf: Leaf) -> Result<()> {
        self.in_order(site::CD_WAIT, &[(site::CD, Command::ConfigCd { stream, substream, leaf })])
    }
}

impl<P: Platform> SmmuUnit<P> {
    /// Everything that is cached under a number, before another domain has it (SMMU 3.17).
    pub(super) fn forget_translations(&self, tagged: Tagged) -> Result<()> {
        self.in_order(site::TRANSLATIONS_WAIT, &[(site::TRANSLATIONS, tagged.everything())])
    }

    /// Everything that could be of use to a stream of ours, of whatever the unit did before: not what a
    /// hypervisor's streams had, for that is never used for others (SMMU 3.17, 3.20.1). In any order: while
    /// the unit is off, nothing comes back (3.21.1, 3.21.3).
    pub(super) fn forget_everything(&self) -> Result<()> {
        let entries = (site::ALL_ENTRIES, Command::ConfigAll);
        let translations = (site::ALL_TRANSLATIONS, Command::TlbNsnhAll);
        self.run(site::ALL_WAIT, &[entries, translations])
    }

    /// Runs an order, unless the unit was not given the tables: then nothing is cached.
    #[inline(never)]
    pub(super) fn in_order(&self, wait: Site, commands: &[(Site, Command)]) -> Result<()> {
        if !self.may_cache() {
            return Ok(());
        }
        match self.run(wait, commands) {
            Err(Error::Fenced) if !self.may_cache() => Ok(()),
            result => result,
        }
    }

    /// Submits commands and waits for all of them; if that fails, whoever is concerned is blocked.
    fn run(&self, wait: Site, commands: &[(Site, Command)]) -> Result<()> {
        let mut made: heapless::Vec<Command, MAX_COMMANDS> = heapless::Vec::new();
        for (_, command) in commands.iter().filter(|(site, _)| !site.is_skipped()) {
            // No order is longer.
            let _ = made.push(*command);
        }
        let done = self
            .queue
            .submit(&self.registers, &made)
            .and_then(|ticket| if wait.is_skipped() { Ok(()) } else { self.queue.wait(&self.registers, ticket) });
        done.inspect_err(|error| self.contain(*error))
    }
}
