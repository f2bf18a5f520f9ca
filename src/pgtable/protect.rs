//! Changing permissions.

use super::fmt::AccessedDirty;
use super::geometry::{entry_last, entry_size, shift};
use super::table::Kind;
use super::{Format, PageTable, TableList, site};
use crate::addr::IovaRange;
use crate::error::{Error, Result, UnsupportedReason};
use crate::hwmem::{Entry, Table};
use crate::platform::Platform;
use crate::prot::Prot;

impl<F: Format, P: Platform> PageTable<F, P> {
    /// Gives every page in `range` the permissions `prot`; accessed and dirty bits that hardware sets
    /// are kept. `changed` notes the sizes of the leaves. Any context.
    ///
    /// The caller owes an invalidation of the range before it relies on the change.
    ///
    /// # Errors
    /// On the first three, everything in the range below the page in question is changed.
    /// - [`Error::NotMapped`] at the first hole.
    /// - [`Error::PartialPage`] at a large page of which `range` covers only a part.
    /// - [`UnsupportedReason::MemoryType`] at a page whose kind of memory would change, in a format in
    ///   which that takes break-before-make: unmap it instead.
    /// - As [`map`](Self::map) for a permission or a range that cannot be; nothing is changed.
    ///
    /// # Safety
    /// - No other call that changes the table works on an overlapping range at the same time.
    /// - As for [`map`](Self::map), devices may use the memory in the new way.
    pub unsafe fn protect(&self, range: IovaRange, prot: Prot, changed: &mut TableList) -> Result<()> {
        let attributes = self.attributes(prot)?;
        let (at, last) = self.offsets(range, 0, self.sizes)?;
        self.rewrite(self.root_table(), self.top, at, last, attributes, changed)
    }

    /// Rewrites the leaves of `start..=end` in a table of `level` and below.
    fn rewrite(
        &self,
        table: Table<'_>,
        level: u8,
        start: u64,
        end: u64,
        attributes: u64,
        changed: &mut TableList,
    ) -> Result<()> {
        let first = self.index(level, start);
        let entries = table.entries(first, self.index(level, end) - first + 1);
        let mut at = start;
        let mut written = 0..0;
        let mut result = Ok(());
        for (index, entry) in (first..).zip(entries) {
            let last = entry_last::<F>(level, at).min(end);
            let found = entry.load();
            match self.kind(level, found) {
                Kind::Absent => result = Err(Error::NotMapped { iova: self.iova(at) }),
                Kind::Table(child) => {
                    // SAFETY: linked in this tree, on the way to a range that belongs to this call.
                    result = self.rewrite(unsafe { self.table(child) }, level - 1, at, last, attributes, changed);
                }
                Kind::Leaf => {
                    result = self.page_within(level, found, at, start, end);
                    if (found ^ attributes) & F::FIXED != 0 && result.is_ok() {
                        result = Err(Error::Unsupported(UnsupportedReason::MemoryType));
                    }
                    if result.is_ok() {
                        changed.note(entry_size::<F>(level));
                        self.rewrite_leaf(entry, level, found, at, attributes);
                        written = if written.is_empty() { index..index + 1 } else { written.start..index + 1 };
                    }
                }
            }
            if result.is_err() || last >= end {
                break;
            }
            at = last + 1;
        }
        self.clean(site::PROTECT_CLEAN, table, written.start, written.len());
        result
    }

    fn rewrite_leaf(&self, entry: &Entry, level: u8, found: u64, at: u64, attributes: u64) {
        let log2 = self.page_log2(level, found);
        let item = (log2 - shift::<F>(level)) as u8;
        let phys = self.output(level, found, at);
        let leaf = self.format.leaf(level, item, phys, attributes);
        match self.format.accessed_dirty() {
            AccessedDirty::Unused => entry.store(leaf),
            AccessedDirty::Hardware => {
                // Hardware may set a bit at any moment; it does so a bounded number of times.
                let mut found = found;
                while let Err(changed) = entry.compare_exchange(found, leaf | found & F::ACCESSED_DIRTY) {
                    found = changed;
                }
            }
        }
    }
}
