//! `cargo xtask bench`: how fast, and how large.

use std::process::Command;

use crate::cargo::{cargo, root};
use crate::kernels;

/// Runs the benches (`cases`, or all), then says how much of the example kernel is this crate.
pub(crate) fn run(cases: &[&str]) -> Result<(), String> {
    let arguments = ["run", "--release", "--quiet", "--package", "iommu-benches", "--"];
    cargo(&root(), &[&arguments, cases].concat())?;
    let kernel = kernels::build()?;
    let size = Command::new(root().join(".ci/size")).arg(kernel).status();
    match size {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("the crate is larger than it promises".to_owned()),
        Err(error) => Err(format!(".ci/size does not start: {error}")),
    }
}
