//! QEMU as a machine: started, spoken to over its qtest socket, and killed whatever happens.

mod command;
mod process;
mod q35;
mod qtest;

pub use process::{Binary, Output, Process, Target, TempDir};
pub use q35::QemuX86;
pub use qtest::{IrqEvent, Qtest};
