//! The device half: an SMMUv3 in software, as strict as hardware may be.

mod config;
mod host;

pub use crate::bus::{Chooser, Fracture, InOrder, Precision, Retention, Seeded, Snoop, Unreachable};
pub use config::DeviceConfig;
pub use host::{DeviceAnswer, Host, Interrupt, Line};
