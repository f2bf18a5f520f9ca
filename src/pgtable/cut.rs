//! Splitting large pages at the edges of a range.

use super::geometry::{entry_size, low_mask, shift};
use super::table::Kind;
use super::{Format, LiveSplit, PageTable, TableList, site};
use crate::addr::{IovaRange, PhysAddr};
use crate::error::{Error, Result, UnsupportedReason};
use crate::hwmem::{Entry, Table};
use crate::platform::Platform;

impl<F: Format, P: Platform> PageTable<F, P> {
    /// Splits the large pages that reach into `range` from outside, so that
    /// [`unmap`](Self::unmap) and [`protect`](Self::protect) work on exactly this range. Every address
    /// stays mapped as it was, at every moment. `changed` notes the sizes of what is split. Any context.
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
    pub unsafe fn cut(&self, range: IovaRange, changed: &mut TableList) -> Result<()> {
        let (at, last) = self.offsets(range, 0, self.sizes)?;
        self.cut_at(at, changed)?;
        match last.checked_add(1) {
            Some(end) if self.offset(self.iova(end)).is_some() => self.cut_at(end, changed),
            _ => Ok(()),
        }
    }

    /// Makes sure that no page lies across `edge`.
    fn cut_at(&self, edge: u64, changed: &mut TableList) -> Result<()> {
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
                    // Also in between: hardware may have cached each size.
                    changed.note(entry_size::<F>(level));
                    self.split(table, level, edge & !low_mask(log2), log2)?;
                }
            }
        }
    }

    /// Splits the page of `1 << log2` bytes at `page` into pages of the next smaller size in use.
    fn split(&self, table: Table<'_>, level: u8, page: u64, log2: u32) -> Result<()> {
        let smaller = self.sizes & low_mask(log2);
        if self.format.live_split() == LiveSplit::Forbidden || smaller == 0 {
            return Err(Error::Unsupported(UnsupportedReason::Split));
        }
        let first = self.index(level, page);
        let entries = table.entries(first, 1 << (log2 - shift::<F>(level)));
        match smaller.ilog2().checked_sub(shift::<F>(level)) {
            Some(item) => {
                for (at, entry) in (page..).step_by(1 << shift::<F>(level)).zip(entries) {
                    self.shrink(entry, level, at, item as u8)?;
                }
            }
            None => self.split_to_tables(entries, level, page)?,
        }
        self.clean(site::SPLIT_CLEAN, table, first, entries.len());
        Ok(())
    }

    /// Replaces the leaves of a page that begins at `page`, each by a table that translates the same.
    fn split_to_tables(&self, entries: &[Entry], level: u8, page: u64) -> Result<()> {
        if let [entry] = entries {
            let child = self.table_for(entry, level, page)?;
            self.publish_split(entry, level, child);
            return Ok(());
        }
        // All tables first, for no page may be left split in half; another one remembers them.
        let scratch = self.alloc_table()?;
        // SAFETY: just allocated, and nobody else knows of it.
        let table = unsafe { self.table(scratch.as_u64()) };
        let mut result = Ok(());
        for (index, (at, entry)) in (page..).step_by(1 << shift::<F>(level)).zip(entries).enumerate() {
            match self.table_for(entry, level, at) {
                Ok(child) => table.entry(index).store(self.link(child)),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if result.is_ok() {
            for (entry, child) in entries.iter().zip(table.entries(0, entries.len())) {
                self.publish_split(entry, level, PhysAddr::new(self.format.table_phys(child.load())));
                child.store(0);
            }
        }
        // SAFETY: never linked; it holds no table, or tables that were never linked.
        unsafe { self.free_tree(scratch, level) };
        result
    }

    /// A table that translates as the leaf in `entry`, which begins at `at`.
    fn table_for(&self, entry: &Entry, level: u8, at: u64) -> Result<PhysAddr> {
        let found = entry.load();
        self.same_in_small(level - 1, self.output(level, found, at), self.attributes_of(found)?)
    }

    /// The entry that points to a table. The range belongs to one call, so nobody can come across the
    /// table before that call has cleaned the entry.
    fn link(&self, table: PhysAddr) -> u64 {
        self.format.table(table.as_u64()) | F::VISIBLE
    }

    /// Replaces a leaf by a table in one exchange: hardware sees one or the other.
    fn publish_split(&self, entry: &Entry, level: u8, child: PhysAddr) {
        let mut found = entry.load();
        loop {
            // What hardware has set in the large page counts for the small ones.
            self.add_bits(child, level - 1, found & F::ACCESSED_DIRTY);
            // All of the table before the link to it.
            site::SPLIT_TABLE.publish(&self.platform);
            match entry.compare_exchange(found, self.link(child)) {
                Ok(()) => return,
                Err(changed) => found = changed,
            }
        }
    }

    /// Sets bits in all leaves of a table that is not linked. A walker that does not see them sets them
    /// again.
    fn add_bits(&self, table: PhysAddr, level: u8, bits: u64) {
        // SAFETY: built by this call and not linked.
        let table = unsafe { self.table(table.as_u64()) };
        if bits == 0 {
            return;
        }
        for entry in table.entries(0, 1 << F::INDEX_BITS) {
            let found = entry.load();
            match self.kind(level, found) {
                Kind::Absent => {}
                // All leaves were built alike.
                Kind::Leaf if found & bits == bits => return,
                Kind::Leaf => entry.store(found | bits),
                Kind::Table(child) => self.add_bits(PhysAddr::new(child), level - 1, bits),
            }
        }
    }

    /// Makes a leaf part of a page of fewer entries.
    fn shrink(&self, entry: &Entry, level: u8, at: u64, item: u8) -> Result<()> {
        let mut found = entry.load();
        loop {
            let leaf = self.format.leaf(level, item, self.output(level, found, at), self.attributes_of(found)?);
            match entry.compare_exchange(found, leaf) {
                Ok(()) => return Ok(()),
                Err(changed) => found = changed,
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
                    Ok(below) => self.link(below),
                    Err(error) => {
                        // SAFETY: never linked.
                        unsafe { self.free_tree(child, level) };
                        return Err(error);
                    }
                },
            });
            phys = phys.wrapping_add(1 << shift::<F>(level));
        }
        self.clean(site::SPLIT_TABLE_CLEAN, table, 0, table.len());
        Ok(child)
    }

    /// The attributes of a leaf, with the bits that hardware has set in it.
    fn attributes_of(&self, found: u64) -> Result<u64> {
        Ok(self.attributes(self.format.prot(found))? | found & F::ACCESSED_DIRTY)
    }
}
