//! The device half: an SMMUv3 in software, as strict as hardware may be.

mod cache;
mod config;
mod events;
mod host;
mod interrupts;
mod output;
mod page_requests;
mod queue;
mod registers;
mod request;
mod stalls;
mod step;
#[cfg(test)]
mod tests;
mod translate;
mod unit;
pub mod walk;

pub use crate::bus::{Chooser, Fracture, InOrder, Precision, Retention, Seeded, Snoop, Unreachable};
pub use config::DeviceConfig;
pub use host::{DeviceAnswer, Host, Interrupt, Line};
pub use page_requests::PageRequestOutcome;
pub use registers::Misuse;
pub use request::{Answer, Blocked, Outcome, Request};
pub use step::Step;
pub use unit::SmmuDevice;
pub use walk::{Access, Privilege};
