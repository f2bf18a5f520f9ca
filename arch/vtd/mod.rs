//! Intel VT-d ("Intel Virtualization Technology for Directed I/O, Architecture Specification").

pub mod dmar;
pub mod driver;
pub mod layout;
