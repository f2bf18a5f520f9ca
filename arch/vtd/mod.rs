//! Intel VT-d ("Intel Virtualization Technology for Directed I/O, Architecture Specification").
//!
//! Section numbers in this folder are those of that document, revision 5.10.

#[cfg(feature = "device")]
pub mod device;
pub mod dmar;
pub mod driver;
pub mod layout;

pub use driver::{ModeWish, PreviousTables, VtdOptions, init, init_with};
