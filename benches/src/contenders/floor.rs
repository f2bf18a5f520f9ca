//! The floor: a four-level walk with plain stores, no check and no undo. Stores are volatile, since
//! hardware must see each entry whole; that keeps the compiler from merging them.

use super::Contender;
use crate::pool;

const ADDRESS: u64 = (1 << 52) - (1 << 12);
const RW: u64 = 3;
const LARGE: u64 = 1 << 7;

pub(crate) struct Floor {
    root: u64,
}

impl Floor {
    pub(crate) fn new() -> Self {
        Self { root: pool::alloc().expect("a frame") }
    }

    /// Address of the entry of `level` for `iova`; tables on the way are installed.
    #[inline(always)]
    fn entry_or_new(&mut self, iova: u64, level: u32) -> *mut u64 {
        let mut table = self.root;
        let mut at = 3;
        while at > level {
            let entry = index(table, iova, at);
            // SAFETY: an entry of a table of this tree.
            let mut found = unsafe { entry.read() };
            if found & 1 == 0 {
                found = new_table(entry);
            }
            table = found & ADDRESS;
            at -= 1;
        }
        index(table, iova, level)
    }

    #[inline(always)]
    fn entry(&self, iova: u64, level: u32) -> Option<*mut u64> {
        let mut table = self.root;
        let mut at = 3;
        while at > level {
            // SAFETY: an entry of a table of this tree.
            let found = unsafe { index(table, iova, at).read() };
            if found & 1 == 0 {
                return None;
            }
            table = found & ADDRESS;
            at -= 1;
        }
        Some(index(table, iova, level))
    }
}

#[cold]
fn new_table(entry: *mut u64) -> u64 {
    let link = pool::alloc().expect("a frame") | RW;
    // SAFETY: an entry of a table of this tree.
    unsafe { entry.write_volatile(link) };
    link
}

#[inline(always)]
fn index(table: u64, iova: u64, level: u32) -> *mut u64 {
    (table as *mut u64).wrapping_add((iova >> (12 + 9 * level) & 511) as usize)
}

#[inline(always)]
fn level_of(page: u64) -> u32 {
    (page.trailing_zeros() - 12) / 9
}

/// Entries of the table that holds the one for `iova` from there on, at most `left`.
#[inline(always)]
fn in_one_table(iova: u64, level: u32, left: u64) -> u64 {
    left.min(512 - (iova >> (12 + 9 * level) & 511))
}

impl Contender for Floor {
    fn map(&mut self, iova: u64, phys: u64, bytes: u64, page: u64) {
        let level = level_of(page);
        let (mut iova, mut value, mut left) = (iova, phys | RW | if level > 0 { LARGE } else { 0 }, bytes / page);
        while left > 0 {
            let first = self.entry_or_new(iova, level);
            let count = in_one_table(iova, level, left);
            for entry in 0..count {
                // SAFETY: inside the table, see `in_one_table`.
                unsafe { first.add(entry as usize).write_volatile(value) };
                value += page;
            }
            iova += count * page;
            left -= count;
        }
    }

    fn unmap(&mut self, iova: u64, bytes: u64, page: u64) {
        let level = level_of(page);
        let (mut iova, mut left) = (iova, bytes / page);
        while left > 0 {
            let count = in_one_table(iova, level, left);
            if count == 512
                && let Some(parent) = self.entry(iova, level + 1)
            {
                // SAFETY: an entry of a table of this tree; the table below is used no more.
                unsafe {
                    pool::free(parent.read() & ADDRESS);
                    parent.write_volatile(0);
                }
            } else if let Some(first) = self.entry(iova, level) {
                for entry in 0..count {
                    // SAFETY: inside the table, see `in_one_table`.
                    unsafe { first.add(entry as usize).write_volatile(0) };
                }
            }
            iova += count * page;
            left -= count;
        }
    }

    fn iova_to_phys(&mut self, iova: u64) -> Option<u64> {
        let mut table = self.root;
        let mut level = 3;
        loop {
            // SAFETY: an entry of a table of this tree.
            let found = unsafe { index(table, iova, level).read() };
            if found & 1 == 0 {
                return None;
            }
            if level == 0 || found & LARGE != 0 {
                let mask = (1 << (12 + 9 * level)) - 1;
                return Some(found & ADDRESS & !mask | iova & mask);
            }
            table = found & ADDRESS;
            level -= 1;
        }
    }
}
