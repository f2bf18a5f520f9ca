//! `cargo xtask kernels`: the example kernels, built and run in QEMU.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cargo::{cargo, root, target_dir};
use crate::qemu::{Run, boot_x86_64};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A run takes less than a second; a busy machine may take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// How a kernel says how it went: QEMU's exit status (the kernel writes to its `isa-debug-exit`
/// device), its last line, and the line before that, which says why.
struct Verdict {
    status: i32,
    line: &'static str,
    reason: &'static str,
}

const PASS: Verdict = Verdict { status: 33, line: "RESULT PASS", reason: "every frame came back" };
const fn fail(reason: &'static str) -> Verdict {
    Verdict { status: 35, line: "RESULT FAIL", reason }
}

/// A machine, and what the kernel must say on it.
struct Case {
    name: &'static str,
    machine: &'static str,
    devices: &'static [&'static str],
    expected: Verdict,
}

const fn with_iommu(name: &'static str, devices: &'static [&'static str; 1]) -> Case {
    Case { name, machine: "q35", devices, expected: PASS }
}

const CASES: [Case; 7] = [
    with_iommu("default", &["intel-iommu"]),
    with_iommu("caching mode, 48 bits", &["intel-iommu,caching-mode=on,aw-bits=48"]),
    with_iommu("39 bits", &["intel-iommu,aw-bits=39"]),
    with_iommu("device IOTLBs", &["intel-iommu,device-iotlb=on"]),
    with_iommu("scalable mode offered", &["intel-iommu,x-scalable-mode=on"]),
    // A check that cannot fail is none: without protection the kernel must complain.
    Case {
        name: "no IOMMU",
        machine: "q35",
        devices: &[],
        expected: fail("FAILED: this machine lacks a DMAR table: no VT-d"),
    },
    Case {
        name: "an IOMMU, but not for this device",
        machine: "q35,default-bus-bypass-iommu=on",
        devices: &["intel-iommu"],
        expected: fail("FAILED: this machine lacks an IOMMU for the device"),
    },
];

/// Builds the kernels and runs each case.
pub(crate) fn run() -> Result<(), String> {
    let kernel = build()?;
    let mut failed = Vec::new();
    for case in &CASES {
        let start = Instant::now();
        let run = boot_x86_64(&kernel, case.machine, case.devices, LIMIT)?;
        println!("x86_64, {} ({:.1} s):", case.name, start.elapsed().as_secs_f32());
        run.serial.lines().for_each(|line| println!("    {line}"));
        if let Err(reason) = judge(&run, &case.expected) {
            println!("  {reason}");
            run.messages.lines().for_each(|line| println!("    qemu: {line}"));
            failed.push(case.name);
        }
    }
    if failed.is_empty() {
        println!("all {} runs went as they should", CASES.len());
        Ok(())
    } else {
        Err(format!("{} of {} runs did not go as they should: {}", failed.len(), CASES.len(), failed.join("; ")))
    }
}

/// Builds the kernels and gives the one for x86-64.
pub(crate) fn build() -> Result<PathBuf, String> {
    cargo(&folder(), &["build", "--release", "--locked", "--target", TARGET])?;
    Ok(target_dir().join(TARGET).join("release/kernel"))
}

/// Checks the kernels' format and runs clippy on them.
pub(crate) fn lint() -> Result<(), String> {
    cargo(&folder(), &["fmt", "--check"])?;
    cargo(&folder(), &["clippy", "--release", "--locked", "--target", TARGET, "--", "-D", "warnings"])
}

fn folder() -> PathBuf {
    root().join("tests/kernels/x86_64")
}

fn judge(run: &Run, expected: &Verdict) -> Result<(), String> {
    let Some(status) = run.status else {
        return Err(format!("it did not end within {} s", LIMIT.as_secs()));
    };
    if status.code() != Some(expected.status) {
        return Err(format!("{status}, expected exit status {}", expected.status));
    }
    let mut lines = run.serial.lines().rev();
    if lines.next() != Some(expected.line) {
        return Err(format!("the last line is not \"{}\"", expected.line));
    }
    if lines.next() != Some(expected.reason) {
        return Err(format!("the line before the last is not \"{}\"", expected.reason));
    }
    Ok(())
}
