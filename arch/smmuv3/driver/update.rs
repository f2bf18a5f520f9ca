//! The stores that turn one stream table entry or context descriptor into another (SMMU 3.21.3).
//!
//! Hardware reads the quadwords of an entry each at once, at any time and in any order, and keeps what
//! it read. So what it uses of an entry may change in one quadword only. Fields that it ignores may be
//! written before, and those that it no longer uses cleared afterwards. Between these steps, and at the
//! end, everything that was fetched meanwhile must be gone: a [`Step::Sync`].
//!
//! Which fields it uses follows from V, STE.Config, S1CDMax and EATS, CD.EPD0 and EPD1 (5.2, 5.2.1, 5.4,
//! 5.4.1.1). V = 0 is a state like another here: that an entry becomes valid is not seen after its other
//! quadwords unless these were synced before (3.21.3.1).
//!
//! | from | to | hitless, if |
//! |---|---|---|
//! | V = 0, abort | any | always |
//! | any | V = 0, abort | always |
//! | bypass | any | always: both have the same attributes |
//! | stage 1 | stage 1 | one quadword: CD table, or one or more of S1DSS and S1STALLD |
//! | stage 1 | stage 2, nested | the same S2VMID |
//! | stage 2 | stage 2 | one quadword: S2TTB, or VMID and shape |
//! | stage 2 | nested | the same stage 2 |
//! | nested | nested | one quadword |
//! | CD with V = 0 | any | always |
//! | CD | CD | one quadword: all but TTB0 (and MAIR), or TTB0 alone |
//! | CD | CD without walks (EPD0) | always |
//! | CD without walks | CD | the same MAIR |
//!
//! Everything else passes through V = 0. MEV may have either value at any time, and so may EATS, off or
//! full: whoever changes that keeps ATS off in the device meanwhile (3.9.2). Neither counts.

use crate::arch::smmuv3::layout::context::Half;
use crate::arch::smmuv3::layout::{Cd, Ste};
use crate::error::Result;

/// Quadwords of a stream table entry and of a context descriptor.
pub(super) const WORDS: usize = 8;

type Words = [u64; WORDS];

/// What has V in its lowest quadword, and eight of them.
pub(super) trait Structure: Copy + From<Words> + Into<Words> {
    /// V, in quadword 0.
    const V: u64;

    /// The bits that hardware looks at, given the others.
    fn used(self) -> Words;
}

/// Bits `low` to `high`, both included.
const fn bits(high: u32, low: u32) -> u64 {
    u64::MAX >> (63 - (high - low)) << low
}

impl Structure for Ste {
    const V: u64 = Self::V;

    fn used(self) -> Words {
        /// Config[2]: without it everything else is ignored but CONT (5.2.1).
        const PASSES: u64 = 1 << 3;
        const CONFIG: u64 = bits(3, 1);
        const S1FMT: u64 = bits(5, 4);
        const S1_CONTEXT_PTR: u64 = bits(55, 6);
        const S1CDMAX: u64 = bits(63, 59);
        const S1DSS: u64 = bits(1, 0);
        const S1_ATTRIBUTES: u64 = bits(7, 2);
        const S2HWU: u64 = bits(11, 8);
        /// DRE, DCP.
        const CACHE_OPERATIONS: u64 = 1 << 12 | 1 << 17;
        const CONT: u64 = bits(16, 13);
        const PPAR: u64 = 1 << 18;
        const S1PIE: u64 = 1 << 24;
        const S2FWB: u64 = 1 << 25;
        const S1MPAM: u64 = 1 << 26;
        const S1STALLD: u64 = 1 << 27;
        /// The lower bit of EATS tells off from full, if the upper one is not set.
        const EATS_FULL: u64 = 1 << 28;
        const EATS_OTHER: u64 = 1 << 29;
        const STRW: u64 = bits(31, 30);
        /// MemAttr, MTCFG, ALLOCCFG, SHCFG, NSCFG, PRIVCFG, INSTCFG; and what the implementation defines.
        const ATTRIBUTES: u64 = bits(63, 32);
        const S2VMID: u64 = bits(15, 0);

        let mut used = [0; WORDS];
        let [first, second, third, fourth, mpam @ .., secure, overlay] = &mut used;
        *first = Self::V;
        if !self.is_valid() {
            return used;
        }
        *first |= PASSES;
        *second = CONT;
        let config = self.config();
        if self.words[0] & PASSES == 0 {
            return used;
        }
        *first |= CONFIG;
        *second |= PPAR | ATTRIBUTES;
        mpam.fill(u64::MAX);
        if config.has_stage1() {
            *first |= S1_CONTEXT_PTR | S1CDMAX;
            *second |= S1_ATTRIBUTES | S1PIE | S1MPAM | S1STALLD | STRW;
            if self.cd_max() != 0 {
                *first |= S1FMT;
                *second |= S1DSS;
            }
        }
        if config.has_stage2() {
            *second |= S2HWU | S2FWB;
            (*third, *fourth) = (u64::MAX, u64::MAX);
            (*secure, *overlay) = (u64::MAX, u64::MAX);
        }
        if config.has_stage1() || config.has_stage2() {
            *second |= CACHE_OPERATIONS | EATS_OTHER;
            if self.words[1] & EATS_OTHER != 0 {
                *second |= EATS_FULL;
            }
            // It tags translations of stage 1, too (3.17).
            *third |= S2VMID;
        }
        used
    }
}

impl Structure for Cd {
    const V: u64 = Self::V;

    fn used(self) -> Words {
        /// T0SZ, TG0, IR0, OR0, SH0; those of the upper half are 16 bits above (5.4.1.1).
        const LOWER: u64 = bits(13, 0);
        const UPPER: u64 = LOWER << 16;
        const ENDI: u64 = 1 << 15;
        /// What only walks of a half use of its base register: NSCFG, HAD, TTB.
        const BASE: u64 = bits(1, 0) | bits(55, 4);

        if !self.is_valid() {
            return [Self::V, 0, 0, 0, 0, 0, 0, 0];
        }
        let mut used = [u64::MAX; WORDS];
        let [first, ttb0, ttb1, ..] = &mut used;
        let [lower, upper] = [Half::Lower, Half::Upper].map(|half| !self.table(half).walk_disabled);
        if !lower {
            *first &= !LOWER;
            *ttb0 &= !BASE;
        }
        if !upper {
            *first &= !UPPER;
            *ttb1 &= !BASE;
        }
        if !lower && !upper {
            *first &= !ENDI;
        }
        used
    }
}

/// What requests meet while an entry changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passage {
    /// The old entry, then the new one.
    Hitless,
    /// The old entry, then V = 0, then the new one.
    Blocked,
}

/// One step of a [`Plan`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Store one quadword: which, and its value.
    Store(usize, u64),
    /// Make the stores visible, invalidate the entry (CMD_CFGI_STE, CMD_CFGI_CD) and wait (CMD_SYNC).
    Sync,
}

/// How to get from one entry to another: hitlessly if possible, with the fewest syncs, then the fewest
/// stores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    old: Used,
    new: Used,
    valid: u64,
    turn: Turn,
}

/// An entry, and the bits of it that hardware looks at.
#[derive(Clone, Copy, Debug)]
struct Used {
    words: Words,
    used: Words,
}

/// The store with which the new entry comes into force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// None: what hardware uses stays.
    None,
    /// Of this quadword.
    Word(usize),
    /// No store could do it.
    Blocked,
}

/// How a quadword changes: which of the bits that change only the old entry uses, only the new one, and
/// both.
#[derive(Clone, Copy)]
struct Change {
    late: u64,
    early: u64,
    critical: u64,
}

impl Plan {
    /// For an entry that is `old` now.
    pub(super) fn new<S: Structure>(old: S, new: S) -> Self {
        let of = |entry: S| Used { words: entry.into(), used: entry.used() };
        Self::of(S::V, of(old), of(new))
    }

    fn of(valid: u64, old: Used, new: Used) -> Self {
        let turn = changes(old, new).into_iter().enumerate().fold(Turn::None, |turn, (index, change)| match turn {
            _ if change.critical == 0 => turn,
            Turn::None => Turn::Word(index),
            _ => Turn::Blocked,
        });
        Self { old, new, valid, turn }
    }

    /// What requests meet meanwhile.
    pub(super) fn passage(&self) -> Passage {
        if self.turn == Turn::Blocked { Passage::Blocked } else { Passage::Hitless }
    }

    /// Calls `visit` with the steps in order, until one fails. There is none if the entries are equal;
    /// else the last is a sync.
    pub(super) fn each(&self, visit: &mut dyn FnMut(Step) -> Result<()>) -> Result<()> {
        let Turn::Word(turn) = self.turn else {
            if self.turn == Turn::None {
                return store(self.old.words, self.new.words, visit);
            }
            let mut absent = Used { words: self.old.words, used: [self.valid, 0, 0, 0, 0, 0, 0, 0] };
            absent.words[0] &= !self.valid;
            Self { new: absent, turn: Turn::Word(0), ..*self }.each(visit)?;
            return Self { old: absent, turn: Turn::Word(0), ..*self }.each(visit);
        };
        // What only the new entry uses comes first, what only the old one used goes last; what neither
        // uses goes with either, or with the turn.
        let (mut prepared, mut turned) = (self.old.words, self.new.words);
        let changes = changes(self.old, self.new);
        for (index, ((prepared, turned), change)) in prepared.iter_mut().zip(&mut turned).zip(changes).enumerate() {
            if index != turn && change.early != 0 {
                *prepared = *turned ^ change.late;
            }
            if index != turn && change.late != 0 {
                *turned = *prepared;
            }
        }
        store(self.old.words, prepared, visit)?;
        store(prepared, turned, visit)?;
        store(turned, self.new.words, visit)
    }
}

fn changes(old: Used, new: Used) -> [Change; WORDS] {
    let mut words = old.words.into_iter().zip(new.words).zip(old.used.into_iter().zip(new.used));
    core::array::from_fn(|_| {
        let ((old, new), (used_old, used_new)) = words.next().unwrap_or_default();
        let differ = old ^ new;
        Change {
            late: differ & used_old & !used_new,
            early: differ & used_new & !used_old,
            critical: differ & used_old & used_new,
        }
    })
}

/// Stores what differs, then syncs if anything does.
fn store(from: Words, to: Words, visit: &mut dyn FnMut(Step) -> Result<()>) -> Result<()> {
    for (index, (from, to)) in from.into_iter().zip(to).enumerate() {
        if from != to {
            visit(Step::Store(index, to))?;
        }
    }
    if from == to { Ok(()) } else { visit(Step::Sync) }
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
