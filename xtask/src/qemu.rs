//! QEMU with a kernel in it, run to its end within a time.

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a run left behind.
pub(crate) struct Run {
    /// The exit status; `None` when the time was over.
    pub(crate) status: Option<ExitStatus>,
    /// What the machine wrote to its serial line, without control characters.
    pub(crate) serial: String,
    /// What QEMU itself had to say.
    pub(crate) messages: String,
}

/// Boots `kernel` on QEMU's `machine` with the `edu` device and `devices`, for at most `limit`.
pub(crate) fn boot_x86_64(kernel: &Path, machine: &str, devices: &[&str], limit: Duration) -> Result<Run, String> {
    let qemu = std::env::var_os("QEMU_X86_64").unwrap_or_else(|| "qemu-system-x86_64".into());
    let mut command = Command::new(&qemu);
    command.args(["-machine", machine, "-accel", "tcg", "-cpu", "qemu64", "-m", "256"]);
    command.args(["-display", "none", "-nodefaults", "-no-reboot", "-monitor", "none", "-serial", "stdio"]);
    for device in devices {
        command.args(["-device", device]);
    }
    // Without the mask, edu drops the upper bits of its addresses.
    command.args(["-device", "edu,dma_mask=0xffffffffffffffff"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.arg("-kernel").arg(kernel);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!(
            "{} is not there: `apt-get install qemu-system-x86` has it, or name another one in QEMU_X86_64",
            qemu.display()
        ),
        _ => format!("{} does not start: {error}", qemu.display()),
    })?;
    // Both pipes are emptied meanwhile, lest QEMU stops at a full one.
    let serial = child.stdout.take().map(collect);
    let messages = child.stderr.take().map(collect);
    let status = wait(&mut child, limit);
    Ok(Run { status: status?, serial: finish(serial), messages: finish(messages) })
}

/// Waits until `child` ends, and ends it after `limit`.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>, String> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if start.elapsed() < limit => thread::sleep(Duration::from_millis(10)),
            Ok(Some(status)) => return Ok(Some(status)),
            result => {
                // It may have ended by itself meanwhile, and then there is nothing to kill.
                let _ = child.kill();
                let _ = child.wait();
                return result.map_err(|error| format!("QEMU is lost: {error}"));
            }
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error counts.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn finish(collector: Option<JoinHandle<Vec<u8>>>) -> String {
    let bytes = collector.and_then(|thread| thread.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).chars().filter(|&c| c == '\n' || !c.is_control()).collect()
}
