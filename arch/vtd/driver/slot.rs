//! An entry of a table that hardware walks, whatever the table: written so that it is never seen torn.

use super::site::SlotSites;
use crate::hwmem::{Entry, Leaves, Table, TableSites, Visibility};
use crate::platform::Platform;
use crate::sync::Site;

/// P, in the lowest quadword of every entry.
const PRESENT: u64 = 1 << 0;

/// What distinguishes entries of one kind.
#[derive(Debug)]
pub(super) struct SlotKind {
    /// Set in the lowest quadword of an entry that is not present, where hardware reads nothing but P
    /// and FPD: it was present, and [`unfence`](Slot::unfence) makes it so again. A bit that is
    /// reserved in entries of this kind that are present.
    pub(super) fenced: u64,
    pub(super) sites: SlotSites,
}

/// Tables of tables: P in an entry that points to one, in root entries of both modes as in PASID
/// directory entries (VT-d 9.1, 9.2, 9.5). They have one frame, unless it is loom's, which holds no PASID
/// entry.
pub(super) const fn leaves(sites: &'static TableSites) -> Leaves {
    Leaves { order: if cfg!(loom) { 1 } else { 0 }, link: PRESENT, sites }
}

/// One entry of `N` quadwords. Those above, if the entry has more, are reserved and stay zero.
///
/// It is changed by one processor at a time: its source belongs to a group, which is claimed
/// meanwhile. Only fences come amid that, and exchange the lowest quadword; whoever makes an entry
/// present looks afterwards whether the unit was fenced meanwhile.
#[derive(Debug)]
pub(super) struct Slot<'a, P: Platform, const N: usize> {
    /// ECAP.C says whether the walker snoops (VT-d 11.4.3).
    pub(super) visibility: &'a Visibility<P>,
    pub(super) table: Table<'a>,
    /// Index of the lowest quadword.
    pub(super) first: usize,
    pub(super) kind: &'static SlotKind,
}

impl<P: Platform, const N: usize> Slot<'_, P, N> {
    /// What it holds, present or not.
    pub(super) fn read<E: From<[u64; N]>>(&self) -> E {
        self.words().into()
    }

    /// Fills an entry that is not present; the store that makes it present is the last one.
    #[inline(never)]
    pub(super) fn publish(&self, entry: impl Into<[u64; N]>) {
        let words: [u64; N] = entry.into();
        for (index, word) in words.into_iter().enumerate().skip(1) {
            self.word(index).store(word);
        }
        let sites = &self.kind.sites;
        sites.upper.publish(&self.visibility.platform);
        if let Some(&low) = words.first() {
            self.word(0).store(low);
        }
        self.show(sites.present, sites.present_clean);
    }

    /// Makes the entry not present and changes nothing else. Gives what it was, if it was present or
    /// a fence has made it not present: then hardware may have it in a cache.
    pub(super) fn withdraw<E: From<[u64; N]>>(&self) -> Option<E> {
        let fenced = self.kind.fenced;
        let before = self.exchange_low(PRESENT | fenced, |low| low & !(PRESENT | fenced))?;
        let mut words = self.words();
        if let Some(low) = words.first_mut() {
            *low = before & !fenced | PRESENT;
        }
        Some(words.into())
    }

    /// Makes the entry not present until [`unfence`](Self::unfence). Any processor, at any time.
    pub(super) fn fence(&self) {
        self.exchange_low(PRESENT, |low| low & !PRESENT | self.kind.fenced);
    }

    /// Undoes [`fence`](Self::fence), unless the entry was withdrawn meanwhile.
    pub(super) fn unfence(&self) {
        self.exchange_low(self.kind.fenced, |low| low & !self.kind.fenced | PRESENT);
    }

    /// Clears an entry that is not present. Hardware need not see that: it reads nothing else there, and
    /// [`publish`](Self::publish) orders and cleans all of the entry.
    pub(super) fn clear(&self) {
        for index in 0..N {
            self.word(index).store(0);
        }
    }

    /// Makes what was written visible to hardware before anything that is written later.
    #[inline(never)]
    pub(super) fn show(&self, barrier: Site, clean: Site) {
        barrier.publish(&self.visibility.platform);
        self.visibility.clean(clean, self.table, self.first, N);
    }

    /// The quadword `index`, below `N`.
    pub(super) fn word(&self, index: usize) -> &Entry {
        self.table.entry(self.first.wrapping_add(index))
    }

    fn words(&self) -> [u64; N] {
        core::array::from_fn(|index| self.word(index).load())
    }

    /// Changes the lowest quadword if it has one of `bits`; gives what it was.
    fn exchange_low(&self, bits: u64, change: impl Fn(u64) -> u64) -> Option<u64> {
        let mut low = self.word(0).load();
        while low & bits != 0 {
            match self.word(0).compare_exchange(low, change(low)) {
                Ok(()) => {
                    // Requests that follow are behind a barrier of the queue's own.
                    self.visibility.clean(self.kind.sites.absent_clean, self.table, self.first, N);
                    return Some(low);
                }
                Err(found) => low = found,
            }
        }
        None
    }
}
