//! The driver half: programs a VT-d unit.
//!
//! From below: [`registers`] speaks to one unit's registers, [`capabilities`] says what it can do,
//! [`queue`] invalidates its caches and [`faults`] reads what it blocked.

pub mod capabilities;
pub mod faults;
pub mod queue;
mod recovery;
pub mod registers;

pub use capabilities::Capabilities;
pub use faults::{Drained, FaultLog};
pub use queue::{Queue, QueueConfig, Ticket};
pub use registers::UnitRegisters;
