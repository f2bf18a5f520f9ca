//! Unmapping: clear entries, detach tables that are covered whole.

use super::fmt::AccessedDirty;
use super::geometry::{entry_last, entry_size, has_items, is_one_entry, low_mask, shift};
use super::list::TableList;
use super::table::{Kind, Place};
use super::{Format, PageSize, PageSizes, PageTable, site};
use crate::addr::{IovaRange, PhysAddr};
use crate::error::{Error, Result};
use crate::hwmem::{Entry, Table};
use crate::platform::Platform;

impl<F: Format, P: Platform> PageTable<F, P> {
    /// Unmaps `range`; holes in it are no error. Tables that it covers whole are detached with one
    /// store, unread, and go to `stray`, which also notes the sizes of other leaves. Any context.
    ///
    /// The caller owes an invalidation of the range, and of the walk caches if `stray` is not empty,
    /// before the memory or the tables are used for anything else.
    ///
    /// # Errors
    /// - [`Error::PartialPage`] at a large page of which `range` covers only a part: everything in the
    ///   range below that page is unmapped. [`cut`](Self::cut) splits the page.
    /// - [`Error::OutOfRange`], or [`Misaligned`](crate::InvalidReason::Misaligned) to the smallest page
    ///   size; nothing is unmapped.
    ///
    /// # Safety
    /// No other call that changes the table works on an overlapping range at the same time.
    #[inline(always)]
    pub unsafe fn unmap(&self, range: IovaRange, stray: &mut TableList) -> Result<()> {
        let (at, last) = self.offsets(range, 0, self.sizes)?;
        self.clear(at, last, stray)
    }

    #[inline(always)]
    fn clear(&self, at: u64, last: u64, stray: &mut TableList) -> Result<()> {
        let low = at ^ last;
        if last - at < low_mask(shift::<F>(1)) {
            if low >> shift::<F>(1) == 0
                && let Some(Place { table, index, .. }) = self.descend(at, shift::<F>(0))
            {
                stray.note(entry_size::<F>(0));
                return self.clear_leaves(table, index, at, last);
            }
        } else if at & low == 0
            && low & low.wrapping_add(1) == 0
            && self.sizes & low.wrapping_add(1) != 0
            && is_one_entry::<F>(low.wrapping_add(1))
            && let Some(Place { table, level, index }) =
                self.descend_from(self.top, at, low.wrapping_add(1).trailing_zeros())
        {
            // An aligned power of two: one large page?
            let entry = table.entry(index);
            if self.is_one_page(level, entry.load()) {
                stray.note(PageSizes::from_bits(low.wrapping_add(1)));
                self.clear_leaf(entry);
                self.clean(site::UNMAP_LARGE_CLEAN, table, index, 1);
                return Ok(());
            }
        }
        self.clear_tables(self.root_table(), self.top, at, last, stray)
    }

    /// Clears `start..=end` in a table of `level` and below.
    #[inline(never)]
    pub(super) fn clear_tables(
        &self,
        table: Table<'_>,
        level: u8,
        start: u64,
        end: u64,
        stray: &mut TableList,
    ) -> Result<()> {
        if level == 0 {
            stray.note(entry_size::<F>(0));
            return self.clear_leaves(table, self.index(0, start), start, end);
        }
        let first = self.index(level, start);
        let entries = table.entries(first, self.index(level, end) - first + 1);
        let mut at = start;
        // Entries that were cleared, to be cleaned together.
        let mut cleared = first..first;
        let mut result = Ok(());
        for (index, entry) in (first..).zip(entries) {
            let last = entry_last::<F>(level, at).min(end);
            let found = entry.load();
            match self.kind(level, found) {
                Kind::Absent => {}
                Kind::Table(child) if last - at == low_mask(shift::<F>(level)) => {
                    entry.store(0);
                    cleared = if cleared.is_empty() { index..index + 1 } else { cleared.start..index + 1 };
                    // SAFETY: just detached, in a range that belongs to this call.
                    unsafe { self.push(child, level - 1, stray) };
                }
                Kind::Table(child) => {
                    // SAFETY: linked in this tree, on the way to a range that belongs to this call.
                    let child = unsafe { self.table(child) };
                    result = self.clear_tables(child, level - 1, at, last, stray);
                }
                Kind::Leaf => {
                    result = self.page_within(level, found, at, start, end);
                    if result.is_ok() {
                        stray.note(entry_size::<F>(level));
                        self.clear_leaf(entry);
                        cleared = if cleared.is_empty() { index..index + 1 } else { cleared.start..index + 1 };
                    }
                }
            }
            if result.is_err() || last >= end {
                break;
            }
            at = last + 1;
        }
        self.clean(site::UNMAP_TABLES_CLEAN, table, cleared.start, cleared.len());
        result
    }

    /// Clears the entries of `start..=end`, from index `first` on, in a table of level 0.
    #[inline(always)]
    fn clear_leaves(&self, table: Table<'_>, first: usize, start: u64, end: u64) -> Result<()> {
        let mut count = ((end - start) >> shift::<F>(0)) as usize + 1;
        let mut result = Ok(());
        if has_items::<F>() {
            // Only the first and the last page can reach beyond the range.
            let page_within = |at| {
                let found = table.entry(self.index(0, at)).load();
                if self.kind(0, found) == Kind::Leaf { self.page_within(0, found, at, start, end) } else { Ok(()) }
            };
            page_within(start)?;
            if count > 1 {
                result = page_within(end);
            }
            if let Err(Error::PartialPage { page, .. }) = result
                && let Some(page) = self.offset(page)
            {
                count = (page.saturating_sub(start) >> shift::<F>(0)) as usize;
            }
        }
        let entries = table.entries(first, count);
        if self.format.accessed_dirty() == AccessedDirty::Hardware {
            self.clear_tracked(table, first, count);
            return result;
        }
        let (chunks, rest) = entries.as_chunks::<8>();
        for chunk in chunks {
            for entry in chunk {
                entry.store(0);
            }
        }
        for entry in rest {
            entry.store(0);
        }
        self.clean(site::UNMAP_CLEAN, table, first, count);
        result
    }

    /// Clears entries in which hardware sets bits.
    #[cold]
    #[inline(never)]
    fn clear_tracked(&self, table: Table<'_>, first: usize, count: usize) {
        table.entries(first, count).iter().for_each(|entry| self.clear_leaf(entry));
        self.clean(site::UNMAP_CLEAN, table, first, count);
    }

    /// Clears a leaf. Where hardware sets bits in it, and readers of them clear bits, in one exchange:
    /// each of theirs comes before it or fails.
    #[inline(always)]
    pub(super) fn clear_leaf(&self, entry: &Entry) {
        match self.format.accessed_dirty() {
            AccessedDirty::Unused => entry.store(0),
            AccessedDirty::Hardware => {
                entry.swap(0);
            }
        }
    }

    /// Fails unless the page of the leaf `found`, the entry of `level` for `at`, lies in `start..=end`.
    #[inline(always)]
    pub(super) fn page_within(&self, level: u8, found: u64, at: u64, start: u64, end: u64) -> Result<()> {
        let log2 = self.page_log2(level, found);
        let (page, last) = (at & !low_mask(log2), at | low_mask(log2));
        if start <= page && last <= end {
            return Ok(());
        }
        Err(Error::PartialPage { page: self.iova(page), size: PageSize::from_log2(log2 as u8) })
    }

    /// Binary logarithm of the bytes in the page of the leaf `found`, an entry of `level`.
    #[inline(always)]
    pub(super) fn page_log2(&self, level: u8, found: u64) -> u32 {
        let item = if has_items::<F>() { self.format.item(level, found) } else { 0 };
        shift::<F>(level) + u32::from(item)
    }

    /// Puts a detached table of `level` into a list; first the one that its first entry, which the
    /// link overwrites, points to. Recursion ends at level 0.
    ///
    /// # Safety
    /// The table was detached from this tree by this call, and is in no list.
    pub(super) unsafe fn push(&self, phys: u64, level: u8, stray: &mut TableList) {
        if level > 0 {
            // SAFETY: detached, but not freed.
            let first = unsafe { self.table(phys) }.entry(0).load();
            if let Kind::Table(child) = self.kind(level, first) {
                // SAFETY: the link that is overwritten below was the only one to it.
                unsafe { self.push(child, level - 1, stray) };
            }
        }
        // SAFETY: passed on from the caller.
        unsafe { stray.push(&self.platform, PhysAddr::new(phys), level) };
    }
}
