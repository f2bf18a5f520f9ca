//! The driver half: programs SMMUv3 units.
//!
//! | file | what it holds |
//! |---|---|
//! | `update` | the stores that turn one STE or CD into another |

mod update;

pub use update::Passage;
//! | `capabilities` | what a unit can do |
//! | `registers` | commands to the unit, each with its wait |
//! | `site` | every barrier, clean, command and wait by name |

pub mod capabilities;
pub mod registers;
mod site;

pub use capabilities::Capabilities;
pub use registers::{RegisterPages, SmmuRegisters, Untranslated};
#[cfg(order_mutants)]
pub use site::SITES;
