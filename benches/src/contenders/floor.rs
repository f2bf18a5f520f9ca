//! The floor: a four-level walk with plain stores, no check and no undo. Stores are volatile, since
//! hardware must see each entry whole; that keeps the compiler from merging them.

use super::Contender;
use crate::pool;

const ADDRESS: u64 = (1 << 52) - (1 << 12);
const RW: u64 = 3;
const LARGE: u64 = 1 << 7;
const K4: u64 = 1 << 12;
const M2: u64 = 1 << 21;

pub(crate) struct Floor {
    root: u64,
}

impl Floor {
    pub(crate) fn new() -> Self {
        Self { root: pool::alloc().expect("a frame") }
    }

    /// Address of the entry of `LEVEL` for `iova`; tables on the way are installed.
    #[inline(always)]
    fn entry_or_new<const LEVEL: u32>(&mut self, iova: u64) -> *mut u64 {
        let mut table = self.root;
        for level in (LEVEL + 1..4).rev() {
            let entry = index(table, iova, level);
            // SAFETY: an entry of a table of this tree.
            let mut found = unsafe { entry.read() };
            if found & 1 == 0 {
                found = new_table(entry);
            }
            table = found & ADDRESS;
        }
        index(table, iova, LEVEL)
    }

    #[inline(always)]
    fn entry(&self, iova: u64, lowest: u32) -> Option<*mut u64> {
        let mut table = self.root;
        for level in (lowest + 1..4).rev() {
            // SAFETY: an entry of a table of this tree.
            let found = unsafe { index(table, iova, level).read() };
            if found & 1 == 0 {
                return None;
            }
            table = found & ADDRESS;
        }
        Some(index(table, iova, lowest))
    }

    #[inline(always)]
    fn map_pages<const LEVEL: u32>(&mut self, iova: u64, phys: u64, bytes: u64) {
        let shift = 12 + 9 * LEVEL;
        let (mut iova, mut value, mut left) = (iova, phys | RW | if LEVEL > 0 { LARGE } else { 0 }, bytes >> shift);
        while left > 0 {
            let mut entry = self.entry_or_new::<LEVEL>(iova);
            let count = in_one_table::<LEVEL>(iova, left);
            for _ in 0..count {
                // SAFETY: inside the table, see `in_one_table`.
                unsafe {
                    entry.write_volatile(value);
                    entry = entry.add(1);
                }
                value += 1 << shift;
            }
            iova += count << shift;
            left -= count;
        }
    }

    #[inline(always)]
    fn unmap_pages<const LEVEL: u32>(&mut self, iova: u64, bytes: u64) {
        let shift = 12 + 9 * LEVEL;
        let (mut iova, mut left) = (iova, bytes >> shift);
        while left > 0 {
            let count = in_one_table::<LEVEL>(iova, left);
            if count == 512
                && let Some(parent) = self.entry(iova, LEVEL + 1)
            {
                // SAFETY: an entry of a table of this tree; the table below is used no more.
                unsafe {
                    pool::free(parent.read() & ADDRESS);
                    parent.write_volatile(0);
                }
            } else if let Some(mut entry) = self.entry(iova, LEVEL) {
                for _ in 0..count {
                    // SAFETY: inside the table, see `in_one_table`.
                    unsafe {
                        entry.write_volatile(0);
                        entry = entry.add(1);
                    }
                }
            }
            iova += count << shift;
            left -= count;
        }
    }
}

#[cold]
#[inline(never)]
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

/// Entries of the table that holds the one for `iova` from there on, at most `left`.
#[inline(always)]
fn in_one_table<const LEVEL: u32>(iova: u64, left: u64) -> u64 {
    left.min(512 - (iova >> (12 + 9 * LEVEL) & 511))
}

impl Contender for Floor {
    fn map(&mut self, iova: u64, phys: u64, bytes: u64, page: u64) {
        match page {
            K4 => self.map_pages::<0>(iova, phys, bytes),
            M2 => self.map_pages::<1>(iova, phys, bytes),
            _ => self.map_pages::<2>(iova, phys, bytes),
        }
    }

    fn unmap(&mut self, iova: u64, bytes: u64, page: u64) {
        match page {
            K4 => self.unmap_pages::<0>(iova, bytes),
            M2 => self.unmap_pages::<1>(iova, bytes),
            _ => self.unmap_pages::<2>(iova, bytes),
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
