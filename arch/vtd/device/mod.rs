//! The device half: a VT-d unit in software, as strict as hardware may be.
//!
//! | file | what it holds |
//! |---|---|
//! | `config` | what the unit is to be able to do |
//! | `host` | what it reaches: memory, interrupts, device-TLBs |
//! | `unit` | the unit and its registers from outside |
//! | `registers`, `events`, `faults` | what registers hold, interrupts, fault records |
//! | `step`, `queue` | what it does, and in which order it may execute the invalidation queue |
//! | `chooser` | who decides what the specification leaves open |
//! | `cache` | context cache, PASID cache, IOTLB, paging-structure caches |
//! | `translate`, `page_requests` | what becomes of what devices ask |
//! | `request` | what devices ask, and what it answers |
//! | `walk` | from the root table to the page |

mod cache;
pub mod chooser;
pub mod config;
mod events;
mod faults;
pub mod host;
pub mod page_requests;
mod queue;
mod registers;
pub mod request;
pub mod step;
#[cfg(test)]
mod tests;
mod translate;
pub mod unit;
pub mod walk;

pub use chooser::{Chooser, Fracture, InOrder, Precision, Retention, Seeded};
pub use config::DeviceConfig;
pub use host::{DeviceAnswer, Host, Snoop, Unreachable};
pub use page_requests::PageRequestOutcome;
pub use request::{Answer, Blocked, Privilege, Recorded, Request, RequestAccess};
pub use step::Step;
pub use unit::VtdDevice;
