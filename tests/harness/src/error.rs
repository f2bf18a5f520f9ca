//! What can go wrong between a test and its machine.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// `Result` with the harness's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the harness could not do something. What the driver under test does wrong is not among these.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The machine cannot be had here. The runner turns this into *ignored*, with the reason.
    Unavailable {
        /// What is missing.
        what: String,
        /// The line that helps.
        remedy: &'static str,
    },
    /// The binary did not start.
    Spawn {
        /// Which one.
        binary: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The operating system refused something else.
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// QEMU ended, or closed its socket.
    Exited {
        /// What it had printed.
        output: String,
    },
    /// QEMU or a device did not answer in time.
    TimedOut {
        /// What was waited for.
        doing: &'static str,
    },
    /// QEMU answered, but not with what this command is answered with.
    Refused {
        /// The command.
        command: String,
        /// The answer.
        reply: String,
    },
    /// An earlier failure left the connection out of step.
    Disconnected,
    /// No room is left in that part of guest RAM, or the request makes no sense.
    OutOfRam {
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// The machine's firmware tables are not what was expected.
    Firmware(&'static str),
    /// The model's unit cannot be made like that.
    Unit(iommu::Error),
    /// A PCI function is missing or does not fit.
    Pci(String),
    /// The device cannot express this transfer.
    Transfer {
        /// Name of the device.
        device: String,
        /// Why not.
        why: &'static str,
    },
}

impl Error {
    /// Makes the error of a failed system call.
    pub(crate) fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable { what, remedy } => write!(f, "{what}; try: {remedy}"),
            Self::Spawn { binary, source } => write!(f, "{} does not start: {source}", binary.display()),
            Self::Io { doing, source } => write!(f, "{doing}: {source}"),
            Self::Exited { output } => write!(f, "QEMU has ended; it printed:\n{output}"),
            Self::TimedOut { doing } => write!(f, "timed out: {doing}"),
            Self::Refused { command, reply } => write!(f, "`{command}` was answered by `{reply}`"),
            Self::Disconnected => f.write_str("the connection to QEMU was lost earlier"),
            Self::OutOfRam { bytes } => write!(f, "no block of {bytes} bytes left in guest RAM"),
            Self::Firmware(what) => write!(f, "firmware tables: {what}"),
            Self::Unit(error) => write!(f, "the model's unit: {error}"),
            Self::Pci(what) => write!(f, "PCI: {what}"),
            Self::Transfer { device, why } => write!(f, "{device} cannot do this transfer: {why}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spawn { source, .. } | Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
