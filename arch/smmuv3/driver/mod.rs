//! The driver half: programs SMMUv3 units.
//!
//! | file | what it holds |
//! |---|---|
//! | `capabilities` | what a unit can do |
//! | `invalidation` | which commands drop a set of ranges |
//! | `queue` | the command queue, for many producers |
//! | `registers` | commands to the unit, each with its wait |
//! | `site` | every barrier, clean, command and wait by name |
//! | `update` | the stores that turn one STE or CD into another |

pub mod capabilities;
#[allow(dead_code, reason = "the unit calls it")]
mod invalidation;
pub mod queue;
pub mod registers;
mod site;
mod update;

pub use capabilities::Capabilities;
pub use queue::{CommandQueue, QueueConfig, Ticket};
pub use registers::{RegisterPages, SmmuRegisters, Untranslated};
#[cfg(order_mutants)]
pub use site::SITES;
pub use update::Passage;
