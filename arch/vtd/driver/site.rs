//! Where the driver orders what a unit sees: each barrier, clean, request and wait by name.
//!
//! Cleans are for units that do not snoop, write-buffer flushes for those with CAP.RWBF.

use crate::hwmem::TableSites;
use crate::sync::Site;
use crate::sync::site::sites;

/// The sites of an entry: its upper quadwords before it is present, and whatever it becomes.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotSites {
    pub(super) upper: Site,
    pub(super) present: Site,
    pub(super) present_clean: Site,
    pub(super) absent_clean: Site,
}

/// Root and context tables.
pub(super) const CONTEXT_TABLES: TableSites = TableSites {
    top_clean: ROOT_TABLE_CLEAN,
    new_clean: CONTEXT_TABLE_CLEAN,
    new: CONTEXT_TABLE,
    entry_clean: ROOT_ENTRY_CLEAN,
};

/// PASID directories and tables.
pub(super) const PASID_TABLES: TableSites = TableSites {
    top_clean: PASID_DIRECTORY_CLEAN,
    new_clean: PASID_TABLE_CLEAN,
    new: PASID_TABLE,
    entry_clean: PASID_DIRECTORY_ENTRY_CLEAN,
};

/// Context entries.
pub(super) const CONTEXT: SlotSites = SlotSites {
    upper: CONTEXT_HIGH,
    present: CONTEXT_PRESENT,
    present_clean: CONTEXT_PRESENT_CLEAN,
    absent_clean: CONTEXT_ABSENT_CLEAN,
};

/// PASID entries.
pub(super) const PASID: SlotSites = SlotSites {
    upper: PASID_UPPER,
    present: PASID_PRESENT,
    present_clean: PASID_PRESENT_CLEAN,
    absent_clean: PASID_ABSENT_CLEAN,
};

sites! {
    // Tables.
    ROOT_TABLE_CLEAN = "VT-d: clean of a new root table";
    CONTEXT_TABLE_CLEAN = "VT-d: clean of a new context table, before the root entry";
    CONTEXT_TABLE = "VT-d: zeros of a new context table, before the root entry";
    ROOT_ENTRY_CLEAN = "VT-d: clean of a root entry";
    CONTEXT_HIGH = "VT-d: high half of a context entry, before the half that makes it present";
    CONTEXT_PRESENT = "VT-d: a context entry made present, before what follows";
    CONTEXT_PRESENT_CLEAN = "VT-d: clean of a context entry made present";
    CONTEXT_ABSENT_CLEAN = "VT-d: clean of a context entry made absent, before the invalidation";
    PASID_DIRECTORY_CLEAN = "VT-d: clean of a new PASID directory";
    PASID_TABLE_CLEAN = "VT-d: clean of a new PASID table, before the directory entry";
    PASID_TABLE = "VT-d: zeros of a new PASID table, before the directory entry";
    PASID_DIRECTORY_ENTRY_CLEAN = "VT-d: clean of a PASID directory entry";
    PASID_UPPER = "VT-d: upper quadwords of a PASID entry, before the one that makes it present";
    PASID_PRESENT = "VT-d: a PASID entry made present, before what follows";
    PASID_PRESENT_CLEAN = "VT-d: clean of a PASID entry made present";
    PASID_ABSENT_CLEAN = "VT-d: clean of a PASID entry made absent, before the invalidation";
    PASID_STEP = "VT-d: a store to a PASID entry that changes, before the next";
    PASID_STEP_CLEAN = "VT-d: clean of a PASID entry that changes, before the next store";

    // Invalidations.
    WITHDRAW_CONTEXT = "VT-d: context cache, of a context entry made absent";
    WITHDRAW_IOTLB = "VT-d: IOTLB, of a context entry made absent";
    WITHDRAW_WAIT = "VT-d: wait for the caches, of a context entry made absent";
    ABSENT_CONTEXT = "VT-d: context cache, of a context entry made present";
    ABSENT_IOTLB = "VT-d: IOTLB, of a context entry made present";
    ABSENT_WAIT = "VT-d: wait for the caches, of a context entry made present";
    PASID_ENTRY_CONTEXT = "VT-d: context cache, of a PASID entry that was pass-through";
    PASID_ENTRY_CACHE = "VT-d: PASID cache, of a PASID entry changed or made absent";
    PASID_ENTRY_IOTLB = "VT-d: IOTLB, of a PASID entry changed or made absent";
    PASID_ENTRY_WAIT = "VT-d: wait for the caches, of a PASID entry changed or made absent";
    FEATURES_CACHE = "VT-d: PASID cache, of bits of a PASID entry";
    FEATURES_IOTLB = "VT-d: IOTLB, of bits of a PASID entry";
    FEATURES_WAIT = "VT-d: wait for the caches, of bits of a PASID entry";
    ABSENT_PASID_CONTEXT = "VT-d: context cache, of a PASID entry made present";
    ABSENT_PASID_CACHE = "VT-d: PASID cache, as absent, of a PASID entry made present";
    ABSENT_PASID_CACHE_NEW = "VT-d: PASID cache, as it is now, of a PASID entry made present";
    ABSENT_PASID_IOTLB = "VT-d: IOTLB, of a PASID entry made present";
    ABSENT_PASID_WAIT = "VT-d: wait for the caches, of a PASID entry made present";
    WITHDRAW_DEVICE = "VT-d: device TLB, of an entry that was changed";
    WITHDRAW_DEVICE_WAIT = "VT-d: wait for the device TLB, of an entry that was changed";
    REFRESH_DEVICE = "VT-d: device TLBs, of bits of a PASID entry";
    REFRESH_DEVICE_WAIT = "VT-d: wait for the device TLBs, of bits of a PASID entry";
    DEVICE_TLBS = "VT-d: device TLBs, of what was unmapped";
    DEVICE_CONTEXT = "VT-d: context cache, of a device that is fenced or may use its TLB otherwise";
    DEVICE_PASID = "VT-d: PASID cache, of a device that is fenced or may use its TLB otherwise";
    DEVICE_IOTLB = "VT-d: IOTLB, of a device that is fenced or may use its TLB otherwise";
    DEVICE_WAIT = "VT-d: wait for the caches, of a device that is fenced or may use its TLB otherwise";
    DEVICE_ABSENT = "VT-d: context cache, of a device that may use its TLB otherwise";
    COPIED_CONTEXT = "VT-d: context cache, of a previous kernel's context entry";
    COPIED_PASID = "VT-d: PASID cache, of a previous kernel's context entry";
    COPIED_IOTLB = "VT-d: IOTLB, of a previous kernel's context entry";
    COPIED_WAIT = "VT-d: wait for the caches, of a previous kernel's context entry";
    TABLES_CONTEXT = "VT-d: context cache, all of it, under a new root table";
    TABLES_PASID = "VT-d: PASID cache, all of it, under a new root table";
    TABLES_IOTLB = "VT-d: IOTLB, all of it, under a new root table";
    TABLES_WAIT = "VT-d: wait for the caches under a new root table";

    // Write buffers.
    DEVICE_WRITE_BUFFER = "VT-d: write-buffer flush of a device that may use its TLB otherwise";
    PRESENT_WRITE_BUFFER = "VT-d: write-buffer flush of an entry made present";
    UNFENCED_WRITE_BUFFER = "VT-d: write-buffer flush of entries made present under a new root table";
    ROOT_TABLE_WRITE_BUFFER = "VT-d: write-buffer flush of everything, before the root table is told";

    // Commands.
    UNFENCED = "VT-d: entries made present under a new root table, before enable returns";
    ROOT_TABLE = "VT-d: all tables, before the root table is told";
    ROOT_TABLE_WAIT = "VT-d: wait for the root table to be taken";
    ENABLE_WAIT = "VT-d: wait for translation to be on";
    DISABLE_WAIT = "VT-d: wait for translation to be off";
    DISABLE_REMAPPING_WAIT = "VT-d: wait for interrupt remapping to be off";
    WRITE_BUFFER_WAIT = "VT-d: wait for the write buffer to be flushed";
    PROTECTED_MEMORY_WAIT = "VT-d: wait for protected memory to be off";
    ENABLE_QUEUE_WAIT = "VT-d: wait for the queue to be on";
    DISABLE_QUEUE_WAIT = "VT-d: wait for the queue to be off";

    // The queue.
    REQUESTS = "VT-d: requests, before the tail";
    RECOVERY = "VT-d: a repaired queue, before the error is cleared";
    STATUS_WRITES = "VT-d: status writes under way, before the status word is believed";
    STOP_REQUEST = "VT-d: the last wait, before the queue is off";
    DRY_WAIT = "VT-d: wait for the queue to run dry, before it is off";
    GIVEN_UP = "VT-d: a repaired queue that is given up, before the error is cleared";
}
