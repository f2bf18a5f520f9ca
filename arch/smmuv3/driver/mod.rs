//! The driver half: programs SMMUv3 units.
//!
//! | file | what it holds |
//! |---|---|
//! | `capabilities` | what a unit can do |
//! | `invalidation` | which commands drop a set of ranges |
//! | `queue` | the command queue, for many producers |
//! | `registers` | commands to the unit, each with its wait |
//! | `site` | every barrier, clean, command and wait by name |
//! | `table_site` | the same for what stands in tables |
//! | `stream_table`, `cd_table` | the stream table of a unit, the context descriptors of a stream |
//! | `entries` | tables of either, in one level or two |
//! | `slot` | one entry of them, never seen torn |
//! | `model` | for loom models outside of the crate |
//! | `update` | the stores that turn one STE or CD into another |

pub mod capabilities;
mod cd_table;
mod entries;
#[allow(dead_code, reason = "the unit calls it")]
mod invalidation;
#[cfg(loom)]
mod model;
pub mod queue;
pub mod registers;
mod site;
mod slot;
mod stream_table;
mod table_site;
mod update;

pub use capabilities::Capabilities;
#[cfg(loom)]
pub use model::OneStream;
pub use queue::{CommandQueue, QueueConfig, Ticket};
pub use registers::{RegisterPages, SmmuRegisters, Untranslated};
#[cfg(order_mutants)]
pub use site::SITES;
pub use slot::EntrySync;
pub use stream_table::MAX_STREAM_ID_BITS;
#[cfg(order_mutants)]
pub use table_site::SITES as TABLE_SITES;
pub use update::Passage;
