//! The ring's words, and what is written into them.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::CommandQueue;
use crate::arch::smmuv3::layout::Command;
use crate::arch::smmuv3::layout::commands::{COMMAND_WORDS, Completion, opcode};
use crate::arch::smmuv3::layout::registers::QueueBase;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::sync::Site;

/// A command as it is in memory.
pub(super) type Words = [u64; COMMAND_WORDS];

/// A CMD_SYNC that only CMDQ_CONS tells of.
pub(super) const SYNC: Words = Command::Sync { completion: Completion::None }.encode();

/// MSIData of a CMD_SYNC without a message, which units ignore (SMMU 4.7.3): it tells the CMD_SYNC that
/// ends a batch from those within.
const END_OF_BATCH: u64 = 1 << 32;

/// log2 of the words of a command.
const WORDS_SHIFT: u32 = COMMAND_WORDS.ilog2();

pub(super) const fn opcode_of(words: Words) -> u8 {
    let [low, _] = words;
    low as u8
}

pub(super) const fn is_end_of_batch(words: Words) -> bool {
    let [low, _] = words;
    opcode_of(words) == opcode::SYNC && low & END_OF_BATCH != 0
}

impl<P: Platform> CommandQueue<P> {
    /// What CMDQ_BASE says of it.
    pub fn base(&self) -> QueueBase {
        QueueBase::new(self.ring.phys(), self.log2_entries)
    }

    /// Number of slots, a power of two.
    pub(super) fn entries(&self) -> u64 {
        1 << (self.log2_entries & 31)
    }

    /// The bits of CMDQ_PROD and CMDQ_CONS: those of a slot, and one that flips with every round (3.5.1).
    pub(super) fn index_mask(&self) -> u64 {
        (self.entries() << 1).wrapping_sub(1)
    }

    pub(super) fn read(&self, position: u64) -> Words {
        let [low, high] = [0, 1].map(|word| self.ring.view().entry(self.first_word(position) | word).load_relaxed());
        [low, high]
    }

    pub(super) fn write(&self, position: u64, words: Words) {
        let (ring, first) = (self.ring.view(), self.first_word(position));
        let [low, high] = words;
        ring.entry(first).store(low);
        ring.entry(first | 1).store(high);
    }

    /// Writes the CMD_SYNC that ends a batch.
    pub(super) fn write_end(&self, position: u64) {
        let [low, high] = SYNC;
        self.write(position, [low | END_OF_BATCH, high]);
    }

    /// Writes what lies between two positions back from the cache, if the unit does not snoop.
    pub(super) fn clean(&self, site: Site, from: u64, to: u64) {
        if self.coherency == WalkerCoherency::NeedsClean {
            self.clean_lines(site, from, to);
        }
    }

    #[inline(never)]
    fn clean_lines(&self, site: Site, from: u64, to: u64) {
        // At the end of the ring the rest is at its beginning.
        let to_end = self.entries().wrapping_sub(self.slot(from));
        let all = to.wrapping_sub(from).min(self.entries());
        let first = all.min(to_end);
        for (from, commands) in [(from, first), (from.wrapping_add(first), all.wrapping_sub(first))] {
            if commands != 0 {
                self.ring.view().clean(site, &self.platform, self.first_word(from), (commands << WORDS_SHIFT) as usize);
            }
        }
    }

    /// Where the batch of the command at `position` ends.
    pub(super) fn end_of_batch(&self, position: u64, tail: u64) -> Option<u64> {
        let ahead = tail.wrapping_sub(position).min(self.entries());
        let mut positions = (0..ahead).map(|index| position.wrapping_add(index));
        positions.find(|at| is_end_of_batch(self.read(*at))).map(|at| at.wrapping_add(1))
    }

    /// What stands before `position` and behind the CMD_SYNC before it, the newest first; nothing before
    /// `freed`, where others may write.
    pub(super) fn unsynced(&self, position: u64, freed: u64) -> impl Iterator<Item = Words> {
        let behind = position.wrapping_sub(freed).min(self.entries());
        let commands = (1..=behind).map(move |index| self.read(position.wrapping_sub(index)));
        commands.take_while(|words| opcode_of(*words) != opcode::SYNC)
    }

    fn slot(&self, position: u64) -> u64 {
        position & self.entries().wrapping_sub(1)
    }

    fn first_word(&self, position: u64) -> usize {
        (self.slot(position) << WORDS_SHIFT) as usize
    }
}
