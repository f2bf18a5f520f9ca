//! Cargo, run on a package outside the workspace.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// The folder below the workspace's target folder in which packages outside it are built.
pub(crate) fn target_dir() -> PathBuf {
    // A relative CARGO_TARGET_DIR counts from where cargo was called, which is where this runs.
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("kernels")
}

/// Runs cargo with `arguments` in `folder`, showing what it says.
pub(crate) fn cargo(folder: &Path, arguments: &[&str]) -> Result<(), String> {
    let target_dir = std::path::absolute(target_dir()).map_err(|error| error.to_string())?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(arguments)
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", target_dir)
        .status()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed in {}", arguments.join(" "), folder.display())) }
}
