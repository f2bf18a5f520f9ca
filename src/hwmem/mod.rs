//! Memory that hardware reads or writes: tables and queues, word by word.
//!
//! This module is the only way to such memory. Each word is an [`Entry`], an atomic of 64 bits, so
//! that neither compiler nor processor tears it. Three builds share the interface: the plain one;
//! loom's (`--cfg loom`), in which each entry is a loom atomic constructed in place; and the
//! observed one (`--cfg observed`), in which a hook makes every change.
//!
//! What a store alone does not do is make itself visible to a device: that takes
//! [`Table::clean`] for walkers that do not snoop, and `Platform::publish`.

mod entry;
#[cfg(observed)]
pub mod observe;
mod table;
#[cfg(all(test, not(loom)))]
pub(crate) mod testing;
mod two_level;
mod visibility;

pub use entry::Entry;
pub use table::{ENTRIES_PER_FRAME_LOG2, FrameTable, Table};
pub use two_level::{Leaves, TableSites, TwoLevel};
pub use visibility::Visibility;
