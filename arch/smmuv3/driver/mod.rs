//! The driver half: programs SMMUv3 units.
//!
//! | file | what it holds |
//! |---|---|
//! | `capabilities` | what a unit can do |
//! | `registers` | commands to the unit, each with its wait |
//! | `site` | every barrier, clean, command and wait by name |
//! | `update` | the stores that turn one STE or CD into another |

pub mod capabilities;
pub mod registers;
mod site;
mod update;

pub use capabilities::Capabilities;
pub use registers::{RegisterPages, SmmuRegisters, Untranslated};
#[cfg(order_mutants)]
pub use site::SITES;
pub use update::Passage;
