//! Mapping: install tables, then write leaves.

use super::geometry::{congruent, entry_last, has_items, is_one_entry, low_mask, pick, shift};
use super::list::{self, TableList};
use super::table::{Kind, Place};
use super::{Format, LiveSplit, PageSizes, PageTable, WalkerCoherency, site};
use crate::addr::{IovaRange, PhysAddr};
use crate::error::{BusyReason, Error, InvalidReason, Result};
use crate::hwmem::{Entry, Table};
use crate::platform::Platform;
use crate::prot::Prot;

/// Why a mapping failed, and what a device may have seen of it.
///
/// ```
/// use iommu::Error;
/// use iommu::pgtable::MapError;
/// assert_eq!(MapError::from(Error::NoMemory).undone, None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapError {
    /// The reason.
    pub error: Error,
    /// What the call had mapped and has unmapped again. A device may have cached it, so the caller
    /// invalidates this range before it reports the error.
    pub undone: Option<IovaRange>,
}

impl From<Error> for MapError {
    #[inline]
    fn from(error: Error) -> Self {
        Self { error, undone: None }
    }
}

/// Marks an entry that is absent to everybody else, but holds the address of a table that is to be
/// linked there. Its range belongs to one call, so nobody else looks for it.
const PREPARED: u64 = list::LINK;

/// What does not change during one call. All addresses are offsets.
struct Job {
    last: u64,
    /// Output address of offset zero (wrapping).
    base: u64,
    attributes: u64,
    /// Page sizes that may be used, as bits.
    sizes: u64,
}

impl Job {
    /// The same with only those page sizes that IOVA and address can both be aligned to.
    #[inline(always)]
    fn congruent(&self) -> Self {
        Self { sizes: congruent(self.sizes, 0, self.base), ..*self }
    }

    #[inline(always)]
    fn phys(&self, at: u64) -> u64 {
        self.base.wrapping_add(at)
    }

    /// Whether the entry of `level` for `at` is a leaf.
    fn is_leaf<F: Format>(&self, level: u8, at: u64, end: u64) -> bool {
        self.leaves::<F>(level, at, end).0 > 0
    }

    /// How many entries of `level` from `at` on, up to `end`, are leaves of one kind, and binary
    /// logarithm of the entries in each page. No entry: a table must be there.
    #[inline(always)]
    fn leaves<F: Format>(&self, level: u8, at: u64, end: u64) -> (usize, u8) {
        let shift = shift::<F>(level);
        let items = low_mask(shift + u32::from(F::INDEX_BITS)) & !low_mask(shift + 1);
        if has_items::<F>() && self.sizes & items != 0 {
            return match pick(self.sizes, at, end).checked_sub(shift) {
                Some(item) => (1 << item, item as u8),
                None => (0, 0),
            };
        }
        if self.sizes >> shift & 1 == 0 || at & low_mask(shift) != 0 {
            return (0, 0);
        }
        // Counted so that a range up to the top of 64 bits does not overflow.
        let whole = (end - at) >> shift;
        let last_is_whole = end & low_mask(shift) == low_mask(shift);
        ((whole + u64::from(last_is_whole)) as usize, 0)
    }
}

/// What the fast path has done.
enum Written {
    All,
    /// Everything below this offset.
    Up(u64),
}

/// A mapping that cannot go on at the offset `at`.
struct Stop {
    at: u64,
    error: Error,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// Maps `range` to the physical addresses from `phys` on, with the largest pages among `sizes`
    /// that IOVA, address and length allow. Any context.
    ///
    /// A large page may take the place of a table that is left over empty; that table goes to
    /// `stray`. Whoever adds to `stray` owes the same as after [`unmap`](Self::unmap), before a device
    /// uses the range.
    ///
    /// # Errors
    /// All or nothing: what was written is undone, though tables may stay.
    /// - [`Error::Exists`] with the first IOVA that is taken.
    /// - [`Error::OutOfRange`] with the first IOVA that the table cannot translate, or whose physical
    ///   address is too high.
    /// - [`Error::Invalid`] for no permission or one that the format lacks, when the table has none of
    ///   `sizes`, or when an address or the length is not a multiple of the smallest of them.
    /// - [`Error::NoMemory`] for a table.
    /// - [`BusyReason::BreakBeforeMake`] where the format demands that ([`Format::live_split`]), and empty
    ///   tables were in the way of large pages. They are in `stray` now: once `range` is invalidated, the
    ///   same call finds them gone.
    ///
    /// # Safety
    /// - No other call that changes the table works on an overlapping range at the same time.
    /// - Devices may read or write the memory until the range is unmapped and invalidated.
    #[inline(always)]
    pub unsafe fn map(
        &self,
        range: IovaRange,
        phys: PhysAddr,
        prot: Prot,
        sizes: PageSizes,
        stray: &mut TableList,
    ) -> Result<(), MapError> {
        let (at, job) = self.job(range, phys, prot, sizes)?;
        // One table that is there may hold all pages: then no memory is needed, and one way down.
        let written = if job.last - at < low_mask(shift::<F>(1)) {
            self.write_small(at, &job)
        } else {
            self.write_large(at, &job)
        };
        // What is needed only beyond this point is computed again there, to keep this path short.
        match written {
            Written::All => Ok(()),
            Written::Up(to) => self.map_rest(range, phys, prot, sizes, to, stray),
        }
    }

    /// Checks the arguments and computes what a call needs once.
    #[inline(always)]
    fn job(&self, range: IovaRange, phys: PhysAddr, prot: Prot, sizes: PageSizes) -> Result<(u64, Job)> {
        let attributes = self.attributes(prot)?;
        let sizes = self.sizes & sizes.bits();
        if sizes == 0 {
            return Err(Error::Invalid(InvalidReason::NoPageSize));
        }
        let phys = phys.as_u64();
        let (at, last) = self.offsets(range, phys, sizes)?;
        if phys > self.output_last || last - at > self.output_last - phys {
            return Err(self.output_too_high(at, phys));
        }
        Ok((at, Job { last, base: phys.wrapping_sub(at), attributes, sizes }))
    }

    /// Writes pages of level 0 into one table that is there.
    #[inline(always)]
    fn write_small(&self, at: u64, job: &Job) -> Written {
        if (at ^ job.last) >> shift::<F>(1) != 0 {
            return Written::Up(at);
        }
        let Some(place) = self.descend(at, shift::<F>(0)) else { return Written::Up(at) };
        // A single page is none of several entries.
        if has_items::<F>() && job.last - at != low_mask(shift::<F>(0)) {
            return self.write_items(place, at, job);
        }
        let count = ((job.last - at) >> shift::<F>(0)) as usize + 1;
        let written = self.write(place.table, 0, 0, place.index, count, job.phys(at), job);
        if written == count { Written::All } else { Written::Up(at + ((written as u64) << shift::<F>(0))) }
    }

    /// The same for formats in which one page may take several entries.
    fn write_items(&self, place: Place<'_>, at: u64, job: &Job) -> Written {
        let job = &job.congruent();
        let (mut at, mut index) = (at, place.index);
        loop {
            let (count, item) = job.leaves::<F>(0, at, job.last);
            let written = self.write(place.table, 0, item, index, count, job.phys(at), job);
            let last = at.wrapping_add((written as u64) << shift::<F>(0)).wrapping_sub(1);
            if written == count && last == job.last {
                return Written::All;
            }
            at = last.wrapping_add(1);
            index += written;
            if written < count {
                return Written::Up(at);
            }
        }
    }

    /// Writes one large page into a table that is there.
    #[inline(always)]
    fn write_large(&self, at: u64, job: &Job) -> Written {
        let low = at ^ job.last;
        // An aligned power of two that is a page size.
        if (at | job.phys(at)) & low == 0
            && low & low.wrapping_add(1) == 0
            && job.sizes & low.wrapping_add(1) != 0
            && is_one_entry::<F>(low.wrapping_add(1))
            && let Some(Place { table, level, index }) =
                self.descend_from(self.top, at, low.wrapping_add(1).trailing_zeros())
            && self.write(table, level, 0, index, 1, job.phys(at), job) == 1
        {
            Written::All
        } else {
            Written::Up(at)
        }
    }

    #[cold]
    fn output_too_high(&self, at: u64, phys: u64) -> Error {
        let expressible = self.output_last.wrapping_add(1).saturating_sub(phys);
        Error::OutOfRange { iova: self.iova(at.wrapping_add(expressible)) }
    }

    /// Writes up to `count` leaves from index `first` on into one table, until an entry is taken; gives
    /// how many were written. An item is written whole or not at all.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "it is inlined, and a struct would only be taken apart")]
    fn write(&self, table: Table<'_>, level: u8, item: u8, first: usize, count: usize, phys: u64, job: &Job) -> usize {
        let written = if count == 1 {
            let entry = table.entry(first);
            if entry.load_relaxed() != 0 {
                return 0;
            }
            entry.store(self.format.leaf(level, item, phys, job.attributes));
            1
        } else {
            let entries = table.entries(first, count);
            if has_items::<F>() && item > 0 && entries.iter().any(|entry| entry.load_relaxed() != 0) {
                return 0;
            }
            self.write_run(entries, level, item, phys, job)
        };
        self.clean(site::MAP_CLEAN, table, first, written);
        written
    }

    /// Gives the leaves for the memory from `phys` on, one after the other.
    #[inline(always)]
    fn leaves_from(&self, level: u8, item: u8, phys: u64, job: &Job) -> impl FnMut() -> u64 {
        let step = 1u64 << shift::<F>(level);
        let (format, attributes) = (self.format, job.attributes);
        let (mut phys, mut next) = (phys, format.leaf(level, item, phys, attributes));
        move || {
            let leaf = next;
            phys = phys.wrapping_add(step);
            next = if F::LINEAR { leaf.wrapping_add(step) } else { format.leaf(level, item, phys, attributes) };
            leaf
        }
    }

    /// Writes leaves until an entry is taken; gives how many were written.
    #[inline(always)]
    fn write_run(&self, entries: &[Entry], level: u8, item: u8, phys: u64, job: &Job) -> usize {
        if level == 0 && !has_items::<F>() {
            // The common case, with the level known at compile time.
            return write_free(entries, self.leaves_from(0, 0, phys, job));
        }
        write_free(entries, self.leaves_from(level, item, phys, job))
    }

    /// The general case: tables are missing, pages lie in several tables, or entries are taken. All up
    /// to `next` is written already.
    #[inline(never)]
    fn map_rest(
        &self,
        range: IovaRange,
        phys: PhysAddr,
        prot: Prot,
        sizes: PageSizes,
        next: u64,
        stray: &mut TableList,
    ) -> Result<(), MapError> {
        let (start, job) = self.job(range, phys, prot, sizes)?;
        let job = &job.congruent();
        // One way down as long as a single table holds it all.
        let mut level = self.top;
        let mut table = self.root_table();
        while level > 0 && (start ^ job.last) >> shift::<F>(level) == 0 && !job.is_leaf::<F>(level, start, job.last) {
            table = self.child(table, level, start).map_err(|error| self.refuse(error, start, job))?;
            level -= 1;
        }
        // Before anything is written: with a page above level 0 in the range, nothing is so far.
        if self.format.live_split() == LiveSplit::Forbidden {
            let broken = self.break_tables(table, level, next, job.last, job, stray);
            if broken.map_err(|error| self.refuse(error, start, job))? > 0 {
                return Err(MapError::from(Error::Busy(BusyReason::BreakBeforeMake)));
            }
        }
        // First all that needs memory, then all that a device can see.
        if let Err(error) = self.install(table, level, next, job.last, job) {
            self.discard(table, level, next, job.last);
            return Err(self.refuse(error, start, job));
        }
        self.fill(table, level, next, job.last, job, stray).map_err(|stop| {
            self.discard(table, level, stop.at, job.last);
            self.undo(start, stop, stray)
        })
    }

    /// What to report when no leaf was written since the tables could not be installed.
    #[cold]
    fn refuse(&self, error: Error, start: u64, job: &Job) -> MapError {
        // A large page is in the way; something smaller may be so before it.
        match (error, self.first_run(self.root_table(), self.top, start, job.last)) {
            (Error::Exists { .. }, Some(run)) => MapError::from(Error::Exists { iova: run.range.start() }),
            _ => MapError::from(error),
        }
    }

    /// Detaches the empty tables where pages of `at..=end` are to be, in a table of `level` and below;
    /// gives how many.
    #[cold]
    fn break_tables(
        &self,
        table: Table<'_>,
        level: u8,
        mut at: u64,
        end: u64,
        job: &Job,
        stray: &mut TableList,
    ) -> Result<usize> {
        let mut broken = 0;
        if level == 0 {
            return Ok(broken);
        }
        loop {
            let (leaves, _) = job.leaves::<F>(level, at, end);
            let first = self.index(level, at);
            for (index, entry) in (first..).zip(table.entries(first, leaves.max(1))) {
                let last = entry_last::<F>(level, at).min(end);
                if let Kind::Table(child) = self.kind(level, entry.load()) {
                    // SAFETY: linked in this tree, on the way to a range that belongs to this call.
                    let below = unsafe { self.table(child) };
                    if leaves == 0 {
                        broken += self.break_tables(below, level - 1, at, last, job, stray)?;
                    } else if let Some(run) = self.first_run(below, level - 1, at, last) {
                        return Err(Error::Exists { iova: run.range.start() });
                    } else {
                        entry.store(0);
                        self.clean(site::UNMAP_TABLES_CLEAN, table, index, 1);
                        // SAFETY: just detached, in a range that belongs to this call.
                        unsafe { self.push(child, level - 1, stray) };
                        broken += 1;
                    }
                }
                if last >= end {
                    return Ok(broken);
                }
                at = last + 1;
            }
        }
    }

    /// Makes sure that all tables for `at..=end` are there, in a table of `level` and below. Where
    /// there is none yet and the range fills it, the table is prepared but not linked.
    fn install(&self, table: Table<'_>, level: u8, mut at: u64, end: u64, job: &Job) -> Result<()> {
        if level == 0 {
            return Ok(());
        }
        loop {
            let (leaves, _) = job.leaves::<F>(level, at, end);
            let last = if leaves > 0 {
                entry_last::<F>(level, at + ((leaves as u64 - 1) << shift::<F>(level)))
            } else {
                let last = entry_last::<F>(level, at).min(end);
                let entry = table.entry(self.index(level, at));
                if entry.load_relaxed() == 0 && last - at == low_mask(shift::<F>(level)) {
                    entry.store(self.prepare(level - 1, at, last, job)?.as_u64() | PREPARED);
                } else {
                    let child = self.child(table, level, at)?;
                    self.install(child, level - 1, at, last, job)?;
                }
                last
            };
            if last >= end {
                return Ok(());
            }
            at = last + 1;
        }
    }

    /// A table of `level` with all leaves of `at..=end`, cleaned but not linked.
    fn prepare(&self, level: u8, mut at: u64, end: u64, job: &Job) -> Result<PhysAddr> {
        let phys = self.alloc_table()?;
        // SAFETY: just allocated, and nobody else knows of it.
        let table = unsafe { self.table(phys.as_u64()) };
        let mut index = 0;
        loop {
            let (leaves, item) = job.leaves::<F>(level, at, end);
            let last = if leaves > 0 {
                let entries = table.entries(index, leaves);
                if level == 0 && !has_items::<F>() {
                    write_new(entries, self.leaves_from(0, 0, job.phys(at), job));
                } else {
                    write_new(entries, self.leaves_from(level, item, job.phys(at), job));
                }
                index += leaves;
                entry_last::<F>(level, at + ((leaves as u64 - 1) << shift::<F>(level)))
            } else {
                let last = entry_last::<F>(level, at);
                match self.prepare(level - 1, at, last, job) {
                    Ok(child) => table.entry(index).store(self.format.table(child.as_u64()) | F::VISIBLE),
                    Err(error) => {
                        // SAFETY: never linked.
                        unsafe { self.free_tree(phys, level) };
                        return Err(error);
                    }
                }
                index += 1;
                last
            };
            if last >= end {
                self.clean(site::PREPARED_CLEAN, table, 0, table.len());
                return Ok(phys);
            }
            at = last + 1;
        }
    }

    /// Frees the tables that were prepared for `at..=end` and are not linked.
    #[cold]
    fn discard(&self, table: Table<'_>, level: u8, mut at: u64, end: u64) {
        for entry in table.entries(self.index(level, at), self.index(level, end) - self.index(level, at) + 1) {
            let last = entry_last::<F>(level, at).min(end);
            let found = entry.load();
            if level > 0 && found & (F::PRESENT | PREPARED) == PREPARED {
                entry.store(0);
                // SAFETY: never linked.
                unsafe { self.free_tree(PhysAddr::new(found & !PREPARED), level - 1) };
            } else if level > 1
                && let Kind::Table(child) = self.kind(level, found)
            {
                // SAFETY: linked in this tree, on the way to a range that belongs to this call.
                self.discard(unsafe { self.table(child) }, level - 1, at, last);
            }
            if last >= end {
                break;
            }
            at = last + 1;
        }
    }

    /// Writes the leaves of `at..=end`, in a table of `level` and below. All tables are there.
    fn fill(
        &self,
        table: Table<'_>,
        level: u8,
        mut at: u64,
        end: u64,
        job: &Job,
        stray: &mut TableList,
    ) -> Result<(), Stop> {
        loop {
            let (leaves, item) = job.leaves::<F>(level, at, end);
            let last = if leaves > 0 {
                let mut written = 0;
                loop {
                    let next = at + ((written as u64) << shift::<F>(level));
                    let first = self.index(level, next);
                    written += self.write(table, level, item, first, leaves - written, job.phys(next), job);
                    if written == leaves {
                        break;
                    }
                    let next = at + ((written as u64) << shift::<F>(level));
                    self.make_room(table, level, next, 1 << item, stray)?;
                }
                entry_last::<F>(level, at + ((leaves as u64 - 1) << shift::<F>(level)))
            } else if let first = self.index(level, at)
                && table.entry(first).load_relaxed() & (F::PRESENT | PREPARED) == PREPARED
            {
                // All of the tables before the links to them.
                site::PREPARED.publish(&self.platform);
                let linked = self.link_prepared(table.entries(first, usize::MAX), (end - at) >> shift::<F>(level));
                self.clean(site::PREPARED_LINK_CLEAN, table, first, linked);
                entry_last::<F>(level, at + ((linked as u64 - 1) << shift::<F>(level)))
            } else {
                let last = entry_last::<F>(level, at).min(end);
                let child = self.child(table, level, at).map_err(|error| Stop { at, error })?;
                self.fill(child, level - 1, at, last, job, stray)?;
                last
            };
            if last >= end {
                return Ok(());
            }
            at = last + 1;
        }
    }

    /// Links tables that were prepared, in the first entry and in up to `more` that follow; gives how
    /// many. One store shows a walker all pages of a table.
    fn link_prepared(&self, entries: &[Entry], more: u64) -> usize {
        let mut linked = 0;
        for entry in entries.iter().take(more as usize + 1) {
            let found = entry.load_relaxed();
            if found & (F::PRESENT | PREPARED) != PREPARED {
                break;
            }
            // The range belongs to this call, so nobody relies on the mark before it has cleaned.
            entry.store(self.format.table(found & !PREPARED) | F::VISIBLE);
            linked += 1;
        }
        linked
    }

    /// Detaches the tables in `count` entries from `at` on, if no page is mapped in any of them.
    #[cold]
    fn make_room(&self, table: Table<'_>, level: u8, at: u64, count: usize, stray: &mut TableList) -> Result<(), Stop> {
        let bytes = (count as u64) << shift::<F>(level);
        if let Some(run) = self.first_run(table, level, at, at + (bytes - 1)) {
            return Err(Stop { at, error: Error::Exists { iova: run.range.start() } });
        }
        for entry in table.entries(self.index(level, at), count) {
            if let Kind::Table(child) = self.kind(level, entry.load()) {
                entry.store(0);
                // SAFETY: just detached, in a range that belongs to this call.
                unsafe { self.push(child, level - 1, stray) };
            }
        }
        Ok(())
    }

    /// The table below the entry of `level` that translates `at`; installed if it is missing, and
    /// visible to the walker when this returns.
    #[inline(always)]
    fn child<'a>(&'a self, table: Table<'a>, level: u8, at: u64) -> Result<Table<'a>> {
        let index = self.index(level, at);
        let entry = table.entry(index).load();
        let phys = if entry & F::VISIBLE != 0 {
            self.format.table_phys(entry)
        } else {
            self.install_child(table, level, index, at)?
        };
        // SAFETY: linked in this tree, on the way to a range that belongs to this call.
        Ok(unsafe { self.table(phys) })
    }

    #[inline(never)]
    fn install_child(&self, table: Table<'_>, level: u8, index: usize, at: u64) -> Result<u64> {
        let entry = table.entry(index);
        let mut found = entry.load();
        if found & F::PRESENT == 0 {
            // Zeroed and cleaned before it is linked: a walker never sees what was there before.
            let child = self.alloc_table()?;
            // SAFETY: just allocated, and nobody else knows of it.
            let zeros = unsafe { self.table(child.as_u64()) };
            self.clean(site::TABLE_CLEAN, zeros, 0, zeros.len());
            site::TABLE.publish(&self.platform);
            let link = self.format.table(child.as_u64());
            let link = match self.walker {
                WalkerCoherency::Snoops => link | F::VISIBLE,
                WalkerCoherency::NeedsClean => link,
            };
            found = match entry.compare_exchange(found, link) {
                Ok(()) => link,
                Err(winner) => {
                    // SAFETY: never linked, so nobody knows of it.
                    unsafe { self.free_table(child) };
                    winner
                }
            };
        }
        let Kind::Table(child) = self.kind(level, found) else {
            return Err(Error::Exists { iova: self.iova(at) });
        };
        if found & F::VISIBLE == 0 {
            // Linked just now, or by a processor that may not have cleaned it yet: this call must not
            // return before the walker can reach the table. If the exchange fails, another processor
            // has marked it, or the next one will clean it again.
            table.clean(site::LINK_CLEAN, &self.platform, index, 1);
            let _ = entry.compare_exchange(found, found | F::VISIBLE);
        }
        Ok(child)
    }

    /// Unmaps what a call that began at `start` has mapped before it stopped.
    #[cold]
    fn undo(&self, start: u64, stop: Stop, stray: &mut TableList) -> MapError {
        let Stop { at, error } = stop;
        if at == start {
            return MapError::from(error);
        }
        // Every page below `at` was written by this call, so none is covered in part.
        let _ = self.clear_tables(self.root_table(), self.top, start, at - 1, stray);
        MapError { error, undone: Some(self.range_of(start, at - 1)) }
    }
}

/// Writes leaves until an entry is taken; gives how many were written.
#[inline(always)]
fn write_free(entries: &[Entry], mut leaf: impl FnMut() -> u64) -> usize {
    let mut written = 0;
    // Eight at a time: one branch for eight checks.
    let (chunks, _) = entries.as_chunks::<8>();
    for chunk in chunks {
        if chunk.iter().fold(0, |taken, entry| taken | entry.load_relaxed()) != 0 {
            break;
        }
        for entry in chunk {
            entry.store(leaf());
        }
        written += chunk.len();
    }
    for entry in entries.get(written..).unwrap_or_default() {
        if entry.load_relaxed() != 0 {
            break;
        }
        entry.store(leaf());
        written += 1;
    }
    written
}

/// Writes leaves into entries that nobody else can see.
#[inline(always)]
fn write_new(entries: &[Entry], mut leaf: impl FnMut() -> u64) {
    let (chunks, rest) = entries.as_chunks::<8>();
    for chunk in chunks {
        for entry in chunk {
            entry.store(leaf());
        }
    }
    for entry in rest {
        entry.store(leaf());
    }
}
