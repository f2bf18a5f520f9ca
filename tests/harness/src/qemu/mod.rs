//! QEMU as a machine: started, spoken to over its qtest socket, and killed whatever happens.

mod board;
mod command;
mod machine;
mod process;
mod q35;
mod qtest;
mod virt;

pub use board::{Board, UnitAccess};
pub use machine::{Qemu, QemuArm, QemuX86};
pub use process::{Binary, Output, Process, Target, TempDir};
pub use qtest::{IrqEvent, Qtest};
