//! Translation caches: what must be invalidated, where, and when memory is free again.
//!
//! [`Gather`] collects what was unmapped; [`Tags`] tells which caches may hold it; a unit executes
//! an [`Invalidation`] and says through a [`Ticket`] when it is done.

mod fenced;
mod flush;
mod gather;
mod tags;

pub use fenced::{FencedDevices, MAX_FENCED_DEVICES};
pub use flush::{Flush, GATHER_RANGES};
pub use gather::{Gather, SyncError};
pub use tags::{CacheTag, DeviceTlb, Last, Snapshot, Tags};

use crate::addr::IovaRange;
use crate::pgtable::PageSizes;

/// A promise of a unit that an invalidation was submitted; `IommuOps::wait` redeems it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an invalidation is over only when it was waited for"]
pub struct Ticket(pub u64);

/// Whether only leaves changed, or tables left as well: walk caches must go then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Leaves only; caches of upper levels may stay (VT-d's invalidation hint, Arm's leaf bit).
    Leaves,
    /// Tables were detached or replaced, or put in where walk caches may know that there was none.
    Tables,
}

/// Device TLBs that one [`Invalidation`] names at the most.
pub const MAX_DEVICE_TLBS: usize = 4;

/// What a unit shall drop from its caches, and then have device TLBs drop.
///
/// The two belong together because a device TLB is filled from what the unit caches: it is told after
/// the unit has dropped its own, or it could fetch what is stale once more.
#[derive(Clone, Copy, Debug)]
pub struct Invalidation<'a> {
    /// In which cache of the unit, under which number.
    pub tag: CacheTag,
    /// The device TLBs filled from there, at most [`MAX_DEVICE_TLBS`]; the same ranges go.
    pub devices: &'a [DeviceTlb],
    /// Ranges of IOVAs; empty for everything under the tag.
    pub ranges: &'a [IovaRange],
    /// Whether tables are concerned.
    pub depth: Depth,
    /// The sizes of the leaf entries that were removed or changed there; of a page of several entries,
    /// the size of each. Empty when that is not known, so that they may be of any size.
    pub leaves: PageSizes,
}
