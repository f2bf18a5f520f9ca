//! Where the driver orders what a unit sees of its tables, and what it sees of events: each barrier, clean
//! and sync by name.
//!
//! Cleans are for units that do not snoop (IDR0.COHACC).

use crate::hwmem::TableSites;
use crate::sync::Site;
use crate::sync::site::sites;

/// The sites of an entry that changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntrySites {
    /// Clean of what is stored.
    pub(super) clean: Site,
    /// An entry that no walker can reach yet, before what leads to it.
    pub(super) fill: Site,
    /// Clean of it.
    pub(super) fill_clean: Site,
    /// Clean of an entry that is fenced, or let through again.
    pub(super) fence_clean: Site,
    /// Invalidation of what was fetched, and the wait for it.
    pub(super) sync: Site,
    /// The same for the descriptor of a new second table.
    pub(super) descriptor_sync: Site,
}

/// Stream tables of two levels.
pub(super) static STREAM_TABLES: TableSites = TableSites {
    top_clean: STREAM_L1_CLEAN,
    new_clean: STREAM_L2_CLEAN,
    new: STREAM_L2,
    entry_clean: STREAM_DESCRIPTOR_CLEAN,
};

/// CD tables of two levels.
pub(super) static CD_TABLES: TableSites =
    TableSites { top_clean: CD_L1_CLEAN, new_clean: CD_L2_CLEAN, new: CD_L2, entry_clean: CD_DESCRIPTOR_CLEAN };

/// Stream table entries.
pub(super) static STE: EntrySites = EntrySites {
    clean: STE_CLEAN,
    // Never used: all STEs can be reached.
    fill: STE_SYNC,
    fill_clean: STE_CLEAN,
    fence_clean: STE_FENCE_CLEAN,
    sync: STE_SYNC,
    descriptor_sync: STREAM_DESCRIPTOR_SYNC,
};

/// Context descriptors.
pub(super) static CD: EntrySites = EntrySites {
    clean: CD_CLEAN,
    fill: CD_FILL,
    fill_clean: CD_FILL_CLEAN,
    fence_clean: CD_WITHDRAW_CLEAN,
    sync: CD_SYNC,
    descriptor_sync: CD_DESCRIPTOR_SYNC,
};

sites! {
    EVENT_INVALIDATE = "SMMUv3: an event dropped from the cache, before it is read";
    STREAM_TABLE_CLEAN = "SMMUv3: clean of a new linear stream table";
    STREAM_L1_CLEAN = "SMMUv3: clean of a new level-1 stream table";
    STREAM_L2_CLEAN = "SMMUv3: clean of a new level-2 stream table, before its descriptor";
    STREAM_L2 = "SMMUv3: STEs of a new level-2 stream table, before its descriptor";
    STREAM_DESCRIPTOR_CLEAN = "SMMUv3: clean of a level-1 stream table descriptor";
    STREAM_DESCRIPTOR_SYNC = "SMMUv3: invalidation of a level-1 stream table descriptor, and the wait";
    STE_CLEAN = "SMMUv3: clean of an STE that changes, before the invalidation";
    STE_FENCE_CLEAN = "SMMUv3: clean of an STE that is fenced, before the invalidation";
    STE_SYNC = "SMMUv3: invalidation of an STE that changes, and the wait";
    CD_TABLE_CLEAN = "SMMUv3: clean of a new linear CD table";
    CD_L1_CLEAN = "SMMUv3: clean of a new level-1 CD table";
    CD_L2_CLEAN = "SMMUv3: clean of a new level-2 CD table, before its descriptor";
    CD_L2 = "SMMUv3: CDs of a new level-2 CD table, before its descriptor";
    CD_DESCRIPTOR_CLEAN = "SMMUv3: clean of a level-1 CD descriptor";
    CD_DESCRIPTOR_SYNC = "SMMUv3: invalidation of a level-1 CD descriptor, and the wait";
    CD_FILL = "SMMUv3: a CD of a new table, before the STE that leads to it";
    CD_FILL_CLEAN = "SMMUv3: clean of a CD of a new table";
    CD_CLEAN = "SMMUv3: clean of a CD that changes, before the invalidation";
    CD_WITHDRAW_CLEAN = "SMMUv3: clean of a CD made not valid after an error";
    CD_SYNC = "SMMUv3: invalidation of a CD that changes, and the wait";
}
