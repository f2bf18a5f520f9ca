//! The device half: a VT-d unit in software, as strict as hardware may be.
//!
//! | file | what it holds |
//! |---|---|
//! | `config` | what the unit is to be able to do |
//! | `host` | what it reaches: memory, interrupts, device-TLBs |
//! | `request` | what devices ask, and what it answers |
//! | `walk` | from the root table to the page |

pub mod config;
pub mod host;
pub mod request;
pub mod walk;

pub use config::DeviceConfig;
pub use host::{DeviceAnswer, Host, Snoop, Unreachable};
pub use request::{Answer, Blocked, Privilege, Recorded, Request, RequestAccess};
