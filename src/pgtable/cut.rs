//! Splitting large pages at the edges of a range.

use super::geometry::{low_mask, shift};
use super::table::Kind;
use super::{Format, LiveSplit, PageTable};
use crate::addr::{IovaRange, PhysAddr};
use crate::error::{Error, Result, UnsupportedReason};
use crate::hwmem::Table;
use crate::platform::Platform;

impl<F: Format, P: Platform> PageTable<F, P> {
    /// Splits the large pages that reach into `range` from outside, so that
    /// [`unmap`](Self::unmap) and [`protect`](Self::protect) work on exactly this range. Every address
    /// stays mapped as it was, at every moment. Any context.
    ///
    /// Until the caller has invalidated it, hardware may go on using the large page, so it does so
    /// before it changes only one part of it.
    ///
    /// # Errors
    /// Pages may be split, but no translation is changed.
    /// - [`UnsupportedReason::Split`] when the format forbids it on a live table, or no smaller page
    ///   size is in use.
    /// - [`Error::NoMemory`] for a table.
    /// - As [`unmap`](Self::unmap) for a range that cannot be.
    ///
    /// # Safety
    /// No other call that changes the table works on the range, or on a page that reaches into it, at
    /// the same time.
    pub unsafe fn cut(&self, range: IovaRange) -> Result<()> {
        let (at, last) = self.offsets(range, 0, self.sizes)?;
        self.cut_at(at)?;
        match last.checked_add(1) {
            Some(end) if self.offset(self.iova(end)).is_some() => self.cut_at(end),
            _ => Ok(()),
        }
    }

    /// Makes sure that no page lies across `edge`.
    fn cut_at(&self, edge: u64) -> Result<()> {
        let mut level = self.top;
        let mut table = self.root_table();
        // Each turn goes a level down or makes the page smaller.
        loop {
            let found = table.entry(self.index(level, edge)).load();
            match self.kind(level, found) {
                Kind::Absent => return Ok(()),
                Kind::Table(child) => {
                    // SAFETY: linked in this tree, on the way to a page that belongs to this call.
                    table = unsafe { self.table(child) };
                    level -= 1;
                }
                Kind::Leaf => {
                    let log2 = self.page_log2(level, found);
                    if edge & low_mask(log2) == 0 {
                        return Ok(());
                    }
                    self.split(table, level, edge & !low_mask(log2), log2)?;
                }
            }
        }
    }

    /// Splits the page of `1 << log2` bytes at `page` into pages of the next smaller size in use.
    fn split(&self, table: Table<'_>, level: u8, page: u64, log2: u32) -> Result<()> {
        let smaller = self.sizes & low_mask(log2);
        if F::LIVE_SPLIT == LiveSplit::Forbidden || smaller == 0 {
            return Err(Error::Unsupported(UnsupportedReason::Split));
        }
        let first = self.index(level, page);
        let count = 1usize << (log2 - shift::<F>(level));
        for index in first..first + count {
            let at = page + (((index - first) as u64) << shift::<F>(level));
            match smaller.ilog2().checked_sub(shift::<F>(level)) {
                Some(item) => self.shrink(table, level, index, at, item as u8)?,
                None => self.split_entry(table, level, index, at)?,
            }
        }
        self.clean(table, first, count);
        Ok(())
    }

    /// Makes a leaf part of a page of fewer entries.
    fn shrink(&self, table: Table<'_>, level: u8, index: usize, at: u64, item: u8) -> Result<()> {
        let entry = table.entry(index);
        let mut found = entry.load();
        loop {
            let leaf = self.format.leaf(level, item, self.output(level, found, at), self.attributes_of(found)?);
            match entry.compare_exchange(found, leaf) {
                Ok(()) => return Ok(()),
                Err(changed) => found = changed,
            }
        }
    }

    /// Replaces a leaf by a table that translates the same.
    fn split_entry(&self, table: Table<'_>, level: u8, index: usize, at: u64) -> Result<()> {
        let entry = table.entry(index);
        let mut found = entry.load();
        loop {
            let child = self.same_in_small(level - 1, self.output(level, found, at), self.attributes_of(found)?)?;
            // The range belongs to this call, so nobody can find the table before it is cleaned.
            let link = self.format.table(child.as_u64()) | F::VISIBLE;
            // One exchange: hardware sees the page or the table. It fails if hardware has set a bit
            // meanwhile, which the table must have too; that happens at most once a bit.
            match entry.compare_exchange(found, link) {
                Ok(()) => return Ok(()),
                Err(changed) => {
                    // SAFETY: built above and never linked.
                    unsafe { self.free_tree(child, level - 1) };
                    found = changed;
                }
            }
        }
    }

    /// A table of `level`, cleaned but not linked, for the memory from `phys` on, in the largest pages
    /// that a table of this level can hold.
    fn same_in_small(&self, level: u8, phys: u64, attributes: u64) -> Result<PhysAddr> {
        let sizes = self.sizes & low_mask(shift::<F>(level + 1));
        let item = (sizes | 1).ilog2().checked_sub(shift::<F>(level));
        let child = self.alloc_table()?;
        // SAFETY: just allocated, and nobody else knows of it.
        let table = unsafe { self.table(child.as_u64()) };
        let mut phys = phys;
        for entry in table.entries(0, 1 << F::INDEX_BITS) {
            entry.store(match item {
                Some(item) => self.format.leaf(level, item as u8, phys, attributes),
                None => match self.same_in_small(level - 1, phys, attributes) {
                    Ok(below) => self.format.table(below.as_u64()) | F::VISIBLE,
                    Err(error) => {
                        // SAFETY: never linked.
                        unsafe { self.free_tree(child, level) };
                        return Err(error);
                    }
                },
            });
            phys = phys.wrapping_add(1 << shift::<F>(level));
        }
        self.clean(table, 0, table.len());
        Ok(child)
    }

    /// The attributes of a leaf, with the bits that hardware has set in it.
    fn attributes_of(&self, found: u64) -> Result<u64> {
        Ok(self.format.attributes(self.format.prot(found))? | found & F::ACCESSED_DIRTY)
    }
}
