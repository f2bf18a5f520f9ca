//! One STE or CD in memory: written so that hardware never sees it torn.

use core::marker::PhantomData;

use super::table_site::EntrySites;
use super::update::{Passage, Plan, Step, Structure, WORDS};
use crate::arch::smmuv3::layout::commands::Leaf;
use crate::arch::smmuv3::layout::{Cd, Ste, StreamId};
use crate::error::{Error, Result};
use crate::hwmem::{Entry, Table, Visibility};
use crate::platform::Platform;

/// Has a unit forget what it fetched of an entry, and waits until it has (SMMU 3.21.3).
///
/// The implementor owes a barrier first: what was stored before the call must be visible to the unit
/// before its command is. Without a queue to tell, as before a unit is enabled for the first time, it
/// may do nothing.
pub trait EntrySync {
    /// CMD_CFGI_STE and CMD_SYNC. With [`Leaf::AllLevels`] the level-1 descriptor is forgotten, too.
    ///
    /// # Errors
    /// Those of the command queue: the unit may go on with what it fetched.
    fn ste(&self, stream: StreamId, leaf: Leaf) -> Result<()>;

    /// CMD_CFGI_CD and CMD_SYNC. With [`Leaf::AllLevels`] the level-1 descriptor is forgotten, too.
    ///
    /// # Errors
    /// As for [`ste`](Self::ste).
    fn cd(&self, stream: StreamId, substream: u32, leaf: Leaf) -> Result<()>;
}

/// What a slot holds.
pub(super) trait Held: Structure {
    /// Set in quadword 0 of an entry that is not valid, where hardware reads nothing but V: it was
    /// valid, and [`unfence`](Slot::unfence) makes it so again. A bit that is reserved in valid entries;
    /// 0 for entries that are not fenced.
    const FENCED: u64;
}

impl Held for Ste {
    /// Bits 58:56 are reserved (5.2).
    const FENCED: u64 = 1 << 56;
}

impl Held for Cd {
    /// There is none to spare in 5.4. A stream is fenced, not an address space.
    const FENCED: u64 = 0;
}

/// One entry.
///
/// It is changed by one processor at a time: its stream belongs to a group, which is claimed meanwhile.
/// Only fences come amid that, and exchange the lowest quadword.
#[derive(Debug)]
pub(super) struct Slot<'a, S: Held, P: Platform> {
    visibility: &'a Visibility<P>,
    table: Table<'a>,
    /// Index of the lowest quadword.
    first: usize,
    sites: &'static EntrySites,
    held: PhantomData<S>,
}

impl<'a, S: Held, P: Platform> Slot<'a, S, P> {
    /// The entry whose lowest quadword is at `first`.
    pub(super) fn new(
        visibility: &'a Visibility<P>,
        table: Table<'a>,
        first: usize,
        sites: &'static EntrySites,
    ) -> Self {
        Self { visibility, table, first, sites, held: PhantomData }
    }

    /// What it holds, valid or not.
    pub(super) fn read(&self) -> S {
        core::array::from_fn(|index| self.word(index).load()).into()
    }

    /// Turns the entry into `new`, hitlessly where the hardware allows it (see [`Plan`]). `sync` has the
    /// unit forget what it fetched, and waits until it has. Task only.
    ///
    /// # Errors
    /// Those of `sync`: the entry is not valid then, but may be cached. [`Error::Fenced`] when it is
    /// fenced, or a fence came amid this: it is not valid then, either, and stays so.
    pub(super) fn replace(&self, new: S, sync: &mut dyn FnMut() -> Result<()>) -> Result<Passage> {
        let old = self.read();
        let words: [u64; WORDS] = old.into();
        let mut low = words[0];
        if low & S::V == 0 && low & S::FENCED != 0 {
            return Err(Error::Fenced);
        }
        let plan = Plan::new(old, new);
        let done = plan.each(&mut |step| match step {
            Step::Store(0, value) => {
                // A fence must not be undone.
                self.word(0).compare_exchange(low, value).map_err(|_| Error::Fenced)?;
                low = value;
                Ok(())
            }
            Step::Store(index, value) => {
                self.word(index).store(value);
                Ok(())
            }
            Step::Sync => {
                self.visibility.clean(self.sites.clean, self.table, self.first, WORDS);
                if self.sites.sync.is_skipped() { Ok(()) } else { sync() }
            }
        });
        if done.is_err() {
            self.exchange_low(S::V | S::FENCED, |low| low & !(S::V | S::FENCED));
        }
        done.map(|()| plan.passage())
    }

    /// Writes an entry that no walker can reach, and makes it visible to hardware before anything that is
    /// written later. Task only.
    pub(super) fn fill(&self, entry: S) {
        write(self.table, self.first, entry);
        self.visibility.clean(self.sites.fill_clean, self.table, self.first, WORDS);
        self.sites.fill.publish(&self.visibility.platform);
    }

    /// Changes the lowest quadword if it has one of `bits`; whether it had.
    fn exchange_low(&self, bits: u64, change: impl Fn(u64) -> u64) -> bool {
        let mut low = self.word(0).load();
        while low & bits != 0 {
            match self.word(0).compare_exchange(low, change(low)) {
                Ok(()) => {
                    // Commands that follow are behind a barrier of the queue's own.
                    self.visibility.clean(self.sites.fence_clean, self.table, self.first, WORDS);
                    return true;
                }
                Err(found) => low = found,
            }
        }
        false
    }

    /// The quadword `index`, below `WORDS`.
    fn word(&self, index: usize) -> &Entry {
        self.table.entry(self.first.wrapping_add(index))
    }
}

impl<P: Platform> Slot<'_, Ste, P> {
    /// Makes the entry not valid until [`unfence`](Self::unfence); whether it was. What the unit has
    /// fetched of it stays in force until it is told to forget that. Any context, at any time.
    pub(super) fn fence(&self) -> bool {
        self.exchange_low(Ste::V, |low| low & !Ste::V | Ste::FENCED)
    }

    /// Undoes [`fence`](Self::fence), unless the entry was replaced meanwhile. Any context.
    pub(super) fn unfence(&self) {
        self.exchange_low(Ste::FENCED, |low| low & !Ste::FENCED | Ste::V);
    }

    /// Forgets that the entry was fenced: it stays not valid, and may be replaced again. Task only.
    pub(super) fn drop_fence(&self) {
        self.exchange_low(Ste::FENCED, |low| low & !Ste::FENCED);
    }
}

/// Stores all quadwords of the entry at `first`, which no walker can reach.
pub(super) fn write<S: Structure>(table: Table<'_>, first: usize, entry: S) {
    let words: [u64; WORDS] = entry.into();
    for (word, value) in table.entries(first, WORDS).iter().zip(words) {
        word.store(value);
    }
}
