//! Root and context tables: who goes through which domain in legacy mode, who has which PASID directory
//! in scalable mode (VT-d 3.4, 9.1 to 9.4).

use super::site;
use super::slot::{Slot, SlotKind};
use super::two_level::TwoLevel;
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::registers::TableMode;
use crate::arch::vtd::layout::{scalable, tables};
use crate::error::Result;
use crate::hwmem::Table;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;

/// Bit 7 is reserved in legacy entries (9.3) as well as in those of scalable mode (9.4).
const CONTEXT: SlotKind = SlotKind { fenced: 1 << 7, sites: site::CONTEXT };

/// One context entry in memory: the two quadwords that are not reserved, read and written as a
/// [`ContextEntry`](crate::arch::vtd::layout::ContextEntry) or
/// [`ScalableContextEntry`](scalable::ScalableContextEntry).
pub(super) type Context<'a, P> = Slot<'a, P, 2>;

/// The root table of a unit and the context tables below it, made for a bus with a device. In scalable
/// mode a bus has two.
#[derive(Debug)]
pub(super) struct ContextTables<P: Platform> {
    tables: TwoLevel<P>,
    mode: TableMode,
}

impl<P: Platform> ContextTables<P> {
    /// Tables in which everything is blocked.
    pub(super) fn new(platform: P, coherency: WalkerCoherency, mode: TableMode) -> Result<Self> {
        Ok(Self { tables: TwoLevel::new(platform, coherency, 0, &site::CONTEXT_TABLES)?, mode })
    }

    /// Where the root table lies.
    pub(super) fn root(&self) -> PhysAddr {
        self.tables.phys()
    }

    /// For which mode they are.
    pub(super) fn mode(&self) -> TableMode {
        self.mode
    }

    /// The context entry of a requester, if its bus has a context table.
    pub(super) fn find(&self, requester: u16) -> Option<Context<'_, P>> {
        let (word, entry) = self.place(requester);
        self.tables.find(word).map(|table| self.context(table, entry))
    }

    /// The context entry of a requester; its bus gets a context table if it has none. Task only.
    pub(super) fn find_or_make(&self, requester: u16) -> Result<Context<'_, P>> {
        let (word, entry) = self.place(requester);
        self.tables.find_or_make(word).map(|table| self.context(table, entry))
    }

    /// Calls `visit` with every context entry of every bus that has a table.
    pub(super) fn each(&self, mut visit: impl FnMut(Context<'_, P>)) {
        for table in self.tables.tables() {
            for entry in 0..table.len() / self.entry_words() {
                visit(self.context(table, entry));
            }
        }
    }

    /// The word of the root table that leads to a requester's entry, and that entry's number.
    fn place(&self, requester: u16) -> (usize, usize) {
        let (bus, function) = (usize::from(requester >> 8), usize::from(requester & 0xff));
        match self.mode {
            TableMode::Scalable => {
                let half = function / scalable::CONTEXT_ENTRIES;
                (bus * tables::ENTRY_WORDS + half, function % scalable::CONTEXT_ENTRIES)
            }
            _ => (bus * tables::ENTRY_WORDS, function),
        }
    }

    fn context<'a>(&'a self, table: Table<'a>, entry: usize) -> Context<'a, P> {
        Slot { visibility: &self.tables.visibility, table, first: entry * self.entry_words(), kind: &CONTEXT }
    }

    fn entry_words(&self) -> usize {
        match self.mode {
            TableMode::Scalable => scalable::CONTEXT_WORDS,
            _ => tables::ENTRY_WORDS,
        }
    }
}
