//! A table of pointers to tables, which are made when they are first needed.

use super::{FrameTable, Table, Visibility};
use crate::addr::PhysAddr;
use crate::error::{Error, Result};
use crate::platform::{FRAME_BYTES, Platform};
use crate::sync::Site;

/// Bits of an entry of the top table that are the address of the table below.
const ADDRESS: u64 = !(FRAME_BYTES - 1);

/// The sites of a table that is made, and of the entry that then leads to it.
#[derive(Clone, Copy, Debug)]
pub struct TableSites {
    /// Clean of the zeros of the top table.
    pub top_clean: Site,
    /// Clean of a new lower table, before the entry.
    pub new_clean: Site,
    /// What a new lower table holds, before the entry.
    pub new: Site,
    /// Clean of the entry.
    pub entry_clean: Site,
}

/// What the lower tables are, and how entries of the top table point to them.
#[derive(Clone, Copy, Debug)]
pub struct Leaves {
    /// Each has `1 << order` frames.
    pub order: u8,
    /// Bits of an entry that points to one, beside its address; not zero, and below 4096.
    pub link: u64,
    /// What is ordered when one is made.
    pub sites: &'static TableSites,
}

/// A top table whose quadwords point to lower tables, all of one size. They are only ever filled.
///
/// Dropping it frees all tables: hardware must have stopped walking them.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::hwmem::{Leaves, TableSites, TwoLevel, Visibility};
/// use iommu::pgtable::WalkerCoherency;
/// use iommu::platform::{Arena, Frame};
/// use iommu::sync::Site;
///
/// const SITE: Site = Site::new("a table, before the entry that points to it");
/// static SITES: TableSites = TableSites { top_clean: SITE, new_clean: SITE, new: SITE, entry_clean: SITE };
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 4].into_boxed_slice()))?;
/// let visibility = Visibility { platform: arena, coherency: WalkerCoherency::Snoops, last: PhysAddr::new(u64::MAX) };
/// let tables = TwoLevel::new(visibility, 0, Leaves { order: 0, link: 1, sites: &SITES })?;
/// assert!(tables.find(7).is_none());
/// tables.find_or_make(7)?.entry(0).store(1);
/// assert_eq!(tables.find(7).map(|table| table.entry(0).load()), Some(1));
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Debug)]
pub struct TwoLevel<P: Platform> {
    visibility: Visibility<P>,
    top: FrameTable<P>,
    leaves: Leaves,
}

impl<P: Platform> TwoLevel<P> {
    /// A top table of `1 << order` frames without anything below. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new(visibility: Visibility<P>, order: u8, leaves: Leaves) -> Result<Self> {
        let top = FrameTable::new(visibility.platform.clone(), order, visibility.last)?;
        visibility.clean(leaves.sites.top_clean, top.view(), 0, usize::MAX);
        Ok(Self { visibility, top, leaves })
    }

    /// How its tables become visible.
    pub fn visibility(&self) -> &Visibility<P> {
        &self.visibility
    }

    /// Where the top table lies.
    pub fn phys(&self) -> PhysAddr {
        self.top.phys()
    }

    /// The table that quadword `index` of the top table points to.
    pub fn find(&self, index: usize) -> Option<Table<'_>> {
        let phys = below(self.top.view().entry(index).load())?;
        // SAFETY: filled by `find_or_make` only, with tables of this order, which live as long as `self`.
        Some(unsafe { Table::from_phys(&self.visibility.platform, phys, self.leaves.order) })
    }

    /// The same, a table of zeros being made if there is none. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn find_or_make(&self, index: usize) -> Result<Table<'_>> {
        self.find_or_fill(index, &|_| {})
    }

    /// The same, but `fill` makes something of the zeros before hardware can find them. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn find_or_fill(&self, index: usize, fill: &dyn Fn(Table<'_>)) -> Result<Table<'_>> {
        if let Some(table) = self.find(index) {
            return Ok(table);
        }
        let Leaves { order, link, sites } = self.leaves;
        let new = FrameTable::new(self.visibility.platform.clone(), order, self.visibility.last)?;
        fill(new.view());
        self.visibility.clean(sites.new_clean, new.view(), 0, usize::MAX);
        // The whole table must be visible before an entry points to it.
        sites.new.publish(&self.visibility.platform);
        let top = self.top.view();
        if top.entry(index).compare_exchange(0, new.phys().as_u64() & ADDRESS | link).is_ok() {
            new.leak();
        }
        // Also when another processor was faster: it may not have got as far as this.
        self.visibility.clean(sites.entry_clean, top, index, 1);
        self.find(index).ok_or(Error::NoMemory)
    }

    /// Every table below.
    pub fn tables(&self) -> impl Iterator<Item = Table<'_>> {
        (0..self.top.view().len()).filter_map(|index| self.find(index))
    }
}

impl<P: Platform> Drop for TwoLevel<P> {
    fn drop(&mut self) {
        for entry in self.top.view().entries(0, usize::MAX) {
            if let Some(phys) = below(entry.load()) {
                // SAFETY: made by `find_or_make`; hardware has stopped walking.
                unsafe { Table::free(&self.visibility.platform, phys, self.leaves.order) };
            }
        }
    }
}

fn below(word: u64) -> Option<PhysAddr> {
    (word & !ADDRESS != 0).then_some(PhysAddr::new(word & ADDRESS))
}
