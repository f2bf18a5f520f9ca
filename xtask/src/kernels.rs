//! `cargo xtask kernels`: the example kernels, built and run in QEMU.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cargo::{cargo, root, target_dir};
use crate::qemu::{Run, boot_x86_64};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A run takes less than a second; a busy machine may take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// How a kernel says how it went: QEMU's exit status (the kernel writes to its `isa-debug-exit`
/// device), and its last line.
struct Verdict {
    status: i32,
    line: &'static str,
}

const PASS: Verdict = Verdict { status: 33, line: "RESULT PASS" };
const FAIL: Verdict = Verdict { status: 35, line: "RESULT FAIL" };

/// A machine, and what the kernel must say on it.
struct Case {
    name: &'static str,
    devices: &'static [&'static str],
    expected: Verdict,
}

const CASES: [Case; 6] = [
    Case { name: "default", devices: &["intel-iommu"], expected: PASS },
    Case { name: "caching mode, 48 bits", devices: &["intel-iommu,caching-mode=on,aw-bits=48"], expected: PASS },
    Case { name: "39 bits", devices: &["intel-iommu,aw-bits=39"], expected: PASS },
    Case { name: "device IOTLBs", devices: &["intel-iommu,device-iotlb=on"], expected: PASS },
    Case { name: "scalable mode offered", devices: &["intel-iommu,x-scalable-mode=on"], expected: PASS },
    // A check that cannot fail is none: without the IOMMU the kernel must complain.
    Case { name: "no IOMMU", devices: &[], expected: FAIL },
];

/// Builds the kernels and runs each case.
pub(crate) fn run() -> Result<(), String> {
    cargo(&folder(), &["build", "--release", "--locked", "--target", TARGET])?;
    let kernel = target_dir().join(TARGET).join("release/kernel");
    let mut failed = Vec::new();
    for case in &CASES {
        let start = Instant::now();
        let run = boot_x86_64(&kernel, case.devices, LIMIT)?;
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
    if run.serial.lines().last() != Some(expected.line) {
        return Err(format!("the last line is not \"{}\"", expected.line));
    }
    Ok(())
}
