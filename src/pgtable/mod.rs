//! The page-table engine: one walker over formats that are small files of constants.
//!
//! ## Words
//! - An *entry* is one 64-bit word; a *table* is a power-of-two number of entries.
//! - *Level 0* holds the smallest pages. An entry of level `n + 1` stands for a table of level `n`.
//! - An entry is *absent*, a *table* (it points to one of the level below) or a *leaf* (a page).
//! - An *item* is `1 << n` neighbouring leaves that make up one page together.
//! - *Offset*: an IOVA relative to the first one that the table translates. Zero for most tables;
//!   upper-half tables begin elsewhere.
//! - *Stray* tables were detached from the tree, and hardware may still walk them: [`TableList`].
//!
//! ## Who does what
//! [`PageTable`] writes entries, in an order that shows hardware only whole tables: a table is
//! written before it is linked, and each entry is one 64-bit store. For walkers that do not snoop it
//! also cleans what it wrote. It calls neither
//! [`Platform::publish`](crate::platform::Platform::publish) nor any invalidation: its caller does
//! so before it tells a device, and frees stray tables afterwards.
//!
//! ## How a range is mapped
//! First everything that needs memory: missing tables are installed, and those that the range fills
//! are written whole but kept apart. Then everything that a walker can see, which cannot run out of
//! memory: leaves, and one store for each table that was prepared. A page in the way undoes it all,
//! and [`MapError::undone`] says what a device may have cached meanwhile.
//!
//! A format may demand that hardware never sees one thing take the place of another (break before make:
//! [`Format::live_split`]). Then pages are not split, and empty tables in the way of a large page are
//! taken out first, which takes an invalidation and a second call.
//!
//! ## Concurrency
//! Calls on disjoint ranges of one table may run at once on any processor, in any context: there is
//! no lock and no reference count. Tables are installed with compare-exchange (who loses frees its
//! frame and uses the winner's); a leaf is load, check, store, since its range belongs to one caller.
//! A table leaves the tree only in a call whose range covers all of it. Readers ([`Reader`]) register,
//! so that a stray table is not freed under them.

mod cut;
mod dirty;
mod fmt;
mod format;
mod geometry;
mod list;
mod map;
mod page_size;
mod protect;
mod reader;
mod reclaim;
mod single;
mod site;
mod table;
mod unmap;

pub use dirty::DirtyRead;
pub use fmt::{
    AccessedDirty, LPAE_MAIR, Lpae, Lpae4K, Lpae16K, Lpae64K, LpaeStage, LpaeWalk, SecondStage, X86_64, X86Io,
};
pub use format::{Format, LiveSplit};
pub use list::TableList;
pub use map::MapError;
pub use page_size::{PageSize, PageSizes};
pub use reader::{Reader, Run, Runs};
pub(crate) use single::Short;
#[cfg(order_mutants)]
pub use site::SITES;
pub use table::{Config, PageTable, WalkerCoherency};
