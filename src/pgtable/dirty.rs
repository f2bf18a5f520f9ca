//! What hardware recorded in leaves: which pages were written.
//!
//! Hardware sets the bit in a leaf, atomically, at any moment. Here each leaf is changed with
//! compare-exchange, and only while it is one, so these calls may run beside every other call on the
//! same range, and lose none of its changes nor a bit that hardware sets meanwhile.

use super::fmt::AccessedDirty;
use super::geometry::{entry_last, low_mask};
use super::table::Kind;
use super::{Format, PageTable, site};
use crate::addr::{Iova, IovaRange};
use crate::error::{Error, Result, UnsupportedReason};
use crate::hwmem::{Entry, Table};
use crate::platform::Platform;

/// What becomes of the record of a page that was reported.
///
/// ```
/// use iommu::domain::DirtyRead;
/// assert_ne!(DirtyRead::Clear, DirtyRead::Keep);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirtyRead {
    /// It is cleared: the page is reported again only if a device writes it again.
    Clear,
    /// It stays (Linux's `IOMMU_DIRTY_NO_CLEAR`).
    Keep,
}

/// What is done with each page of a range.
enum Job<'a> {
    /// Reports those that are dirty.
    Read(DirtyRead, &'a mut dyn FnMut(IovaRange)),
    /// Marks those that are asked for as dirty.
    Mark(&'a dyn Fn(IovaRange) -> bool),
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// Calls `visit` with each page in `range` that a device wrote since it was mapped or its record
    /// was cleared, lowest first; a page may be visited more than once. Any context.
    ///
    /// After [`DirtyRead::Clear`] the caller owes an invalidation of the pages visited: until then
    /// hardware may take a page for recorded, and write it unrecorded.
    ///
    /// # Errors
    /// With nothing changed:
    /// - [`UnsupportedReason::Features`] when the table does not keep the record
    ///   ([`AccessedDirty::Hardware`]).
    /// - [`Error::NotMapped`] at the first hole.
    /// - [`Error::PartialPage`] at a large page of which `range` covers only a part.
    /// - As [`unmap`](Self::unmap) for a range that cannot be.
    pub fn read_dirty(&self, range: IovaRange, read: DirtyRead, visit: &mut dyn FnMut(IovaRange)) -> Result<()> {
        self.check_recording()?;
        let (at, last) = self.offsets(range, 0, self.sizes)?;
        let _reader = self.reader();
        self.check_mapped(range)?;
        self.each_page(self.root_table(), self.top, at, last, &mut Job::Read(read, visit));
        Ok(())
    }

    /// Clears the record of every page. Any context.
    ///
    /// The caller owes an invalidation of everything.
    ///
    /// # Errors
    /// As [`read_dirty`](Self::read_dirty), of which only the first can be.
    pub fn clear_dirty(&self) -> Result<()> {
        self.check_recording()?;
        let _reader = self.reader();
        let mut ignore = |_| ();
        let mut job = Job::Read(DirtyRead::Clear, &mut ignore);
        self.each_page(self.root_table(), self.top, 0, self.last_offset(), &mut job);
        Ok(())
    }

    /// Marks each page in `range` as written for which `wanted` says so: takes
    /// [`read_dirty`](Self::read_dirty) back. Holes are left out. Any context.
    ///
    /// # Errors
    /// As [`read_dirty`](Self::read_dirty), but for holes and partial pages.
    pub fn mark_dirty(&self, range: IovaRange, wanted: &dyn Fn(IovaRange) -> bool) -> Result<()> {
        self.check_recording()?;
        let (at, last) = self.offsets(range, 0, self.sizes)?;
        let _reader = self.reader();
        self.each_page(self.root_table(), self.top, at, last, &mut Job::Mark(wanted));
        Ok(())
    }

    fn check_recording(&self) -> Result<()> {
        match self.format.accessed_dirty() {
            AccessedDirty::Hardware if F::DIRTY != 0 => Ok(()),
            _ => Err(Error::Unsupported(UnsupportedReason::Features)),
        }
    }

    /// Checks that `range` consists of whole pages.
    fn check_mapped(&self, range: IovaRange) -> Result<()> {
        let mut next = Some(range.start());
        while let Some(at) = next.filter(|at| *at <= range.last()) {
            let run = self.run_from(at, range.last()).filter(|run| run.range.start() == at);
            let run = run.ok_or(Error::NotMapped { iova: at })?;
            let bytes = run.page_size.bytes();
            for edge in [at, Iova::new(run.range.last().as_u64().wrapping_add(1))] {
                if !edge.is_aligned(bytes) {
                    return Err(Error::PartialPage { page: edge.align_down(bytes), size: run.page_size });
                }
            }
            next = run.range.last().checked_add(1);
        }
        Ok(())
    }

    /// Works on the whole pages of `start..=end`, in a table of `level` and below. For readers.
    fn each_page(&self, table: Table<'_>, level: u8, start: u64, end: u64, job: &mut Job<'_>) {
        let first = self.index(level, start);
        let entries = table.entries(first, self.index(level, end) - first + 1);
        let mut at = start;
        let mut written = 0..0;
        for (index, entry) in (first..).zip(entries) {
            let last = entry_last::<F>(level, at).min(end);
            let found = entry.load();
            match self.kind(level, found) {
                Kind::Absent => {}
                Kind::Table(child) => {
                    // SAFETY: a table entry of this tree, read by a reader.
                    self.each_page(unsafe { self.table(child) }, level - 1, at, last, job);
                }
                Kind::Leaf => {
                    // In part only if another call has changed it since the range was checked.
                    if self.page_within(level, found, at, start, end).is_ok()
                        && self.do_page(entry, level, found, at, job)
                    {
                        written = if written.is_empty() { index..index + 1 } else { written.start..index + 1 };
                    }
                }
            }
            if last >= end {
                break;
            }
            at = last + 1;
        }
        self.clean(site::DIRTY_CLEAN, table, written.start, written.len());
    }

    /// Works on one entry of the page around `at`; whether the entry was written.
    #[inline]
    fn do_page(&self, entry: &Entry, level: u8, found: u64, at: u64, job: &mut Job<'_>) -> bool {
        let rest = low_mask(self.page_log2(level, found));
        let page = || self.range_of(at & !rest, at | rest);
        match job {
            Job::Read(..) if found & F::DIRTY == 0 => false,
            Job::Read(read, visit) => {
                visit(page());
                *read == DirtyRead::Clear && self.set_dirty(entry, level, found, 0)
            }
            Job::Mark(wanted) => wanted(page()) && self.set_dirty(entry, level, found, F::DIRTY),
        }
    }

    /// Gives a leaf this dirty bit; whether it had to be written.
    fn set_dirty(&self, entry: &Entry, level: u8, mut found: u64, dirty: u64) -> bool {
        // Whoever else changes it makes it something else, or sets a bit: a bounded number of times.
        while found & F::DIRTY != dirty && self.kind(level, found) == Kind::Leaf {
            match entry.compare_exchange(found, found & !F::DIRTY | dirty) {
                Ok(()) => return true,
                Err(changed) => found = changed,
            }
        }
        false
    }
}
