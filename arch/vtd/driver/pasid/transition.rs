//! The stores that turn one PASID entry into another (VT-d 9.6, 6.5.3.3).
//!
//! Hardware reads an entry in pieces of 128 bits, each at once (9), at any time and in any order. So
//! what it uses of an entry may change in one piece only. Fields that it ignores may be written before,
//! and those that it no longer uses cleared afterwards; between stores to two pieces, what was fetched
//! in part must be gone: an invalidation with its wait. Only entries that are not present need none
//! (6.5.3.3): of what follows P hardware keeps nothing then.
//!
//! | from | to | hitless with 64-bit stores, if | with 128-bit stores, if |
//! |---|---|---|---|
//! | absent | any | always | always |
//! | any | absent | always | always |
//! | second stage, pass-through | second stage, pass-through | DID and snoop bits stay | always |
//! | second stage, pass-through | first stage, nested | DID and snoop bits stay | always |
//! | first stage, nested | second stage, pass-through | DID and snoop bits stay | always |
//! | first stage, nested | first stage, nested | all stays but one quadword | the first-stage table stays, or only it changes |
//! | any | the same kind | only one of its quadwords changes (SSADE, PGSNP, ...) | as above |
//!
//! Everything else passes through blocked: not present, invalidated, the rest, present.

use crate::arch::vtd::layout::scalable::{PASID_WORDS, PasidEntry};
use crate::error::Result;

/// The largest store that hardware sees whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Store {
    /// A quadword.
    Bits64,
    /// An aligned pair of quadwords.
    Bits128,
}

/// What must be gone from caches, waited for, before the next store or before the old entry's tables
/// are let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::arch::vtd::driver) enum Invalidate {
    /// The entry as it was fetched, of which hardware uses nothing that has changed: PASID cache.
    Entry,
    /// The old entry and all that was translated through it: PASID cache, IOTLB, device TLB.
    Translations,
}

/// What requests meet while an entry changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::arch::vtd::driver) enum Passage {
    /// The old translation, then the new one.
    Hitless,
    /// The old translation, then none, then the new one.
    Blocked,
}

/// One step of a [`Plan`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Store one quadword: which, and its value.
    Word(usize, u64),
    /// Store an aligned pair of quadwords at once: which is the lower one, and their values.
    Pair(usize, [u64; 2]),
    /// Invalidate and wait.
    Invalidate(Invalidate),
}

/// How to get from one entry to another, with the fewest invalidations, then the fewest 128-bit
/// stores, then the fewest stores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    old: PasidEntry,
    new: PasidEntry,
    turn: Turn,
}

/// The store with which the new entry comes into force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// None: what hardware uses stays.
    None,
    /// Of this quadword.
    Word(usize),
    /// Of this quadword and the next.
    Pair(usize),
    /// No store could do it.
    Blocked,
}

type Words = [u64; PASID_WORDS];

impl Plan {
    /// For an entry that is `old` now. Each is one that the unit accepts, or not present.
    pub(super) fn new(old: PasidEntry, new: PasidEntry, store: Store) -> Self {
        let used = combine(old.used_bits(), new.used_bits(), |old, new| old & new);
        let critical = combine(used, combine(old.words, new.words, |old, new| old ^ new), |used, differ| used & differ);
        let turn =
            critical.into_iter().enumerate().filter(|(_, bits)| *bits != 0).fold(Turn::None, |turn, (index, _)| {
                match turn {
                    Turn::None => Turn::Word(index),
                    Turn::Word(low) if store == Store::Bits128 && low & 1 == 0 && index == low | 1 => Turn::Pair(low),
                    _ => Turn::Blocked,
                }
            });
        Self { old, new, turn }
    }

    /// What requests meet meanwhile.
    pub(super) fn passage(&self) -> Passage {
        if self.turn == Turn::Blocked { Passage::Blocked } else { Passage::Hitless }
    }

    /// Calls `visit` with the steps in order, until one fails. After each store the entry must be made
    /// visible to hardware.
    pub(super) fn each(&self, visit: &mut dyn FnMut(Step) -> Result<()>) -> Result<()> {
        if self.turn == Turn::Blocked {
            let absent = self.old.not_present();
            Self { new: absent, turn: Turn::Word(0), ..*self }.each(visit)?;
            return Self { old: absent, turn: Turn::Word(0), ..*self }.each(visit);
        }
        let fetched = self.old.is_present();
        let (old, new) = (self.old.words, self.new.words);
        // What only the new entry uses comes first.
        let early = combine(self.new.used_bits(), self.old.used_bits(), |new, old| new & !old);
        let early = combine(early, combine(old, new, |old, new| old ^ new), |early, differ| early & differ);
        let ready = combine(old, early, |old, change| old ^ change);
        if self.store_others(old, ready, visit)? && fetched {
            visit(Step::Invalidate(Invalidate::Entry))?;
        }
        match self.turn {
            Turn::Word(index) => visit(Step::Word(index, word(new, index)))?,
            Turn::Pair(low) => visit(Step::Pair(low, [word(new, low), word(new, low | 1)]))?,
            Turn::None | Turn::Blocked => {}
        }
        if fetched && self.turn != Turn::None {
            visit(Step::Invalidate(Invalidate::Translations))?;
        }
        // What only the old entry used goes last.
        self.store_others(ready, new, visit).map(drop)
    }

    /// Stores what differs, except where the turn is; whether anything does.
    fn store_others(&self, from: Words, to: Words, visit: &mut dyn FnMut(Step) -> Result<()>) -> Result<bool> {
        let mut any = false;
        for (index, value) in to.into_iter().enumerate() {
            let turn = match self.turn {
                Turn::Word(turn) => index == turn,
                Turn::Pair(low) => index & !1 == low,
                Turn::None | Turn::Blocked => false,
            };
            if !turn && word(from, index) != value {
                visit(Step::Word(index, value))?;
                any = true;
            }
        }
        Ok(any)
    }
}

fn word(words: Words, index: usize) -> u64 {
    words.get(index).copied().unwrap_or(0)
}

fn combine(first: Words, second: Words, operation: impl Fn(u64, u64) -> u64) -> Words {
    core::array::from_fn(|index| operation(word(first, index), word(second, index)))
}

#[cfg(test)]
#[path = "transition_tests.rs"]
mod tests;
