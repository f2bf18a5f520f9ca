//! A table of pointers to tables, which are made when they are first needed: root and context tables,
//! PASID directory and PASID tables (VT-d 9.1, 9.2, 9.5).

use super::site::TableSites;
use super::slot::Visibility;
use crate::addr::PhysAddr;
use crate::error::{Error, Result};
use crate::hwmem::{FrameTable, Table};
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;

/// P and the address of the table below: root entries of both modes and PASID directory entries agree.
const PRESENT: u64 = 1 << 0;
const ADDRESS: u64 = !0xfff;

/// The lower tables have `1 << LEAF_ORDER` frames: one, unless it is loom's, which holds no PASID entry.
const LEAF_ORDER: u8 = if cfg!(loom) { 1 } else { 0 };

/// A top table whose quadwords point to tables of one frame. They are only ever filled.
///
/// Dropping it frees all tables: hardware must have stopped walking them.
#[derive(Debug)]
pub(super) struct TwoLevel<P: Platform> {
    pub(super) visibility: Visibility<P>,
    top: FrameTable<P>,
    sites: &'static TableSites,
}

impl<P: Platform> TwoLevel<P> {
    /// A top table of `1 << order` frames without anything below.
    pub(super) fn new(platform: P, coherency: WalkerCoherency, order: u8, sites: &'static TableSites) -> Result<Self> {
        let top = FrameTable::new(platform.clone(), order, PhysAddr::new(u64::MAX))?;
        let visibility = Visibility { platform, coherency };
        visibility.clean(sites.top_clean, top.view(), 0, usize::MAX);
        Ok(Self { visibility, top, sites })
    }

    /// Where the top table lies.
    pub(super) fn phys(&self) -> PhysAddr {
        self.top.phys()
    }

    /// The table that quadword `index` of the top table points to.
    pub(super) fn find(&self, index: usize) -> Option<Table<'_>> {
        let phys = below(self.top.view().entry(index).load())?;
        // SAFETY: filled by `find_or_make` only, with tables of this order, which live as long as `self`.
        Some(unsafe { Table::from_phys(&self.visibility.platform, phys, LEAF_ORDER) })
    }

    /// The same, a table of zeros being made if there is none. Task only.
    pub(super) fn find_or_make(&self, index: usize) -> Result<Table<'_>> {
        if let Some(table) = self.find(index) {
            return Ok(table);
        }
        let new = FrameTable::new(self.visibility.platform.clone(), LEAF_ORDER, PhysAddr::new(u64::MAX))?;
        self.visibility.clean(self.sites.new_clean, new.view(), 0, usize::MAX);
        // The zeroed table must be visible before an entry points to it.
        self.sites.new.publish(&self.visibility.platform);
        let top = self.top.view();
        if top.entry(index).compare_exchange(0, new.phys().as_u64() & ADDRESS | PRESENT).is_ok() {
            new.leak();
        }
        // Also when another processor was faster: it may not have got as far as this.
        self.visibility.clean(self.sites.entry_clean, top, index, 1);
        self.find(index).ok_or(Error::NoMemory)
    }

    /// Every table below.
    pub(super) fn tables(&self) -> impl Iterator<Item = Table<'_>> {
        (0..self.top.view().len()).filter_map(|index| self.find(index))
    }
}

impl<P: Platform> Drop for TwoLevel<P> {
    fn drop(&mut self) {
        for entry in self.top.view().entries(0, usize::MAX) {
            if let Some(phys) = below(entry.load()) {
                // SAFETY: made by `find_or_make`; hardware has stopped walking.
                unsafe { Table::free(&self.visibility.platform, phys, LEAF_ORDER) };
            }
        }
    }
}

fn below(word: u64) -> Option<PhysAddr> {
    (word & PRESENT != 0).then_some(PhysAddr::new(word & ADDRESS))
}
