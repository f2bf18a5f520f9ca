//! Root and context tables of legacy mode: who goes through which domain (VT-d 3.4, 9.1, 9.3).

use super::site;
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::tables::{CONTEXT_ENTRIES, ENTRY_WORDS, ROOT_ENTRIES};
use crate::arch::vtd::layout::{ContextEntry, RootEntry};
use crate::error::{Error, Result};
use crate::hwmem::{Entry, FrameTable, Table};
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::sync::Site;

/// Set in a context entry that is not present, where hardware reads nothing else: it was present, and
/// [`Context::unfence`] makes it so again. Reserved in entries that are present (9.3).
const FENCED: u64 = 1 << 4;
const PRESENT: u64 = 1 << 0;

/// The root table of a unit and the context tables below it, one for each bus with a device.
///
/// Each context entry is changed by one processor at a time: its source belongs to a group, which is
/// claimed meanwhile. Only fences come amid that, and exchange the low word. Root entries are only
/// ever filled.
#[derive(Debug)]
pub(super) struct ContextTables<P: Platform> {
    platform: P,
    coherency: WalkerCoherency,
    root: FrameTable<P>,
}

impl<P: Platform> ContextTables<P> {
    /// Tables in which everything is blocked.
    pub(super) fn new(platform: P, coherency: WalkerCoherency) -> Result<Self> {
        let root = FrameTable::new(platform.clone(), 0, PhysAddr::new(u64::MAX))?;
        let tables = Self { platform, coherency, root };
        tables.clean(site::ROOT_TABLE_CLEAN, tables.root.view(), 0, ENTRY_WORDS * ROOT_ENTRIES);
        Ok(tables)
    }

    /// Where the root table lies.
    pub(super) fn root(&self) -> PhysAddr {
        self.root.phys()
    }

    /// The context entry of a requester, if its bus has a context table.
    pub(super) fn find(&self, requester: u16) -> Option<Context<'_, P>> {
        let table = self.context_table(requester >> 8)?;
        Some(Context { tables: self, table, index: usize::from(requester & 0xff) * ENTRY_WORDS })
    }

    /// The context entry of a requester; its bus gets a context table if it has none.
    pub(super) fn find_or_make(&self, requester: u16) -> Result<Context<'_, P>> {
        if let Some(context) = self.find(requester) {
            return Ok(context);
        }
        let new = FrameTable::new(self.platform.clone(), 0, PhysAddr::new(u64::MAX))?;
        self.clean(site::CONTEXT_TABLE_CLEAN, new.view(), 0, ENTRY_WORDS * CONTEXT_ENTRIES);
        // The zeroed table must be visible before an entry points to it.
        site::CONTEXT_TABLE.publish(&self.platform);
        let (root, index) = (self.root.view(), usize::from(requester >> 8) * ENTRY_WORDS);
        if root.entry(index).compare_exchange(0, RootEntry::new(new.phys()).low).is_ok() {
            new.leak();
        }
        // Also when another processor was faster: it may not have got as far as this.
        self.clean(site::ROOT_ENTRY_CLEAN, root, index, ENTRY_WORDS);
        self.find(requester).ok_or(Error::NoMemory)
    }

    /// Calls `visit` with every context entry of every bus that has a table.
    pub(super) fn each(&self, mut visit: impl FnMut(Context<'_, P>)) {
        for bus in 0..=0xff {
            if let Some(table) = self.context_table(bus) {
                for index in 0..CONTEXT_ENTRIES {
                    visit(Context { tables: self, table, index: index * ENTRY_WORDS });
                }
            }
        }
    }

    fn context_table(&self, bus: u16) -> Option<Table<'_>> {
        let low = self.root.view().entry(usize::from(bus) * ENTRY_WORDS).load();
        let phys = RootEntry { low, high: 0 }.context_table()?;
        // SAFETY: root entries are filled with tables of order 0 only, which live as long as `self`.
        Some(unsafe { Table::from_phys(&self.platform, phys, 0) })
    }

    fn clean(&self, site: Site, table: Table<'_>, first: usize, count: usize) {
        if self.coherency == WalkerCoherency::NeedsClean {
            table.clean(site, &self.platform, first, count);
        }
    }
}

impl<P: Platform> Drop for ContextTables<P> {
    fn drop(&mut self) {
        for bus in 0..ROOT_ENTRIES {
            let low = self.root.view().entry(bus * ENTRY_WORDS).load();
            if let Some(phys) = (RootEntry { low, high: 0 }).context_table() {
                // SAFETY: made by `find_or_make`; the unit has stopped walking.
                unsafe { Table::free(&self.platform, phys, 0) };
            }
        }
    }
}

/// One context entry in memory.
#[derive(Debug)]
pub(super) struct Context<'a, P: Platform> {
    tables: &'a ContextTables<P>,
    table: Table<'a>,
    index: usize,
}

impl<P: Platform> Context<'_, P> {
    /// What it holds, present or not.
    pub(super) fn read(&self) -> ContextEntry {
        ContextEntry { low: self.low().load(), high: self.high().load() }
    }

    /// Fills an entry that is not present; the store that makes it present is the last one.
    pub(super) fn publish(&self, entry: ContextEntry) {
        self.high().store(entry.high);
        site::CONTEXT_HIGH.publish(&self.tables.platform);
        self.low().store(entry.low);
        self.make_visible(site::CONTEXT_PRESENT, site::CONTEXT_PRESENT_CLEAN);
    }

    /// Makes the entry not present and changes nothing else. Gives what it was, if it was present or
    /// a fence has made it not present: then hardware may have it in a cache.
    pub(super) fn withdraw(&self) -> Option<ContextEntry> {
        let low = self.exchange_low(PRESENT | FENCED, |low| low & !(PRESENT | FENCED))?;
        Some(ContextEntry { low: low & !FENCED | PRESENT, high: self.high().load() })
    }

    /// Makes the entry not present until [`unfence`](Self::unfence). Any processor, at any time.
    pub(super) fn fence(&self) {
        self.exchange_low(PRESENT, |low| low & !PRESENT | FENCED);
    }

    /// Undoes [`fence`](Self::fence), unless the entry was withdrawn meanwhile.
    pub(super) fn unfence(&self) {
        self.exchange_low(FENCED, |low| low & !FENCED | PRESENT);
    }

    /// Changes the low word if it has one of `bits`; gives what it was.
    fn exchange_low(&self, bits: u64, change: impl Fn(u64) -> u64) -> Option<u64> {
        let mut low = self.low().load();
        while low & bits != 0 {
            match self.low().compare_exchange(low, change(low)) {
                Ok(()) => {
                    self.make_visible(site::CONTEXT_ABSENT, site::CONTEXT_ABSENT_CLEAN);
                    return Some(low);
                }
                Err(found) => low = found,
            }
        }
        None
    }

    /// Clears an entry that is not present.
    pub(super) fn clear(&self) {
        self.low().store(0);
        self.high().store(0);
        self.make_visible(site::CONTEXT_CLEAR, site::CONTEXT_CLEAR_CLEAN);
    }

    fn make_visible(&self, barrier: Site, clean: Site) {
        barrier.publish(&self.tables.platform);
        self.tables.clean(clean, self.table, self.index, ENTRY_WORDS);
    }

    fn low(&self) -> &Entry {
        self.table.entry(self.index)
    }

    fn high(&self) -> &Entry {
        self.table.entry(self.index.wrapping_add(1))
    }
}
