//! The QEMU process: found, started, heard, and killed whatever happens.

use std::collections::HashMap;
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use crate::error::{Error, Result};
use crate::quirks::QemuVersion;

/// A processor architecture that QEMU emulates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// `qemu-system-x86_64`, or what `QEMU_X86_64` names.
    X86_64,
    /// `qemu-system-aarch64`, or what `QEMU_AARCH64` names.
    Aarch64,
    /// `qemu-system-ppc64`, or what `QEMU_PPC64` names.
    Ppc64,
}

/// A QEMU binary on this machine.
#[derive(Clone, Debug)]
pub struct Binary {
    path: PathBuf,
    version: QemuVersion,
}

impl Target {
    /// Environment variable, name of the binary, and how to come by it.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::X86_64 => ("QEMU_X86_64", "qemu-system-x86_64", "apt-get install qemu-system-x86"),
            Self::Aarch64 => ("QEMU_AARCH64", "qemu-system-aarch64", "apt-get install qemu-system-arm"),
            Self::Ppc64 => ("QEMU_PPC64", "qemu-system-ppc64", "apt-get install qemu-system-ppc"),
        }
    }
}

impl Binary {
    /// The QEMU for `target`: what the environment names, else the first in `PATH`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is none; [`Error::Spawn`] when it does not run, also when
    /// the environment names one that is not there: that is a mistake, and no reason to skip.
    pub fn find(target: Target) -> Result<Self> {
        static KNOWN: Mutex<Option<HashMap<PathBuf, QemuVersion>>> = Mutex::new(None);
        let (variable, name, remedy) = target.names();
        let path = match env::var_os(variable).filter(|value| !value.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => {
                search_path(name).ok_or_else(|| Error::Unavailable { what: format!("no {name} in PATH"), remedy })?
            }
        };
        let mut known = KNOWN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let known = known.get_or_insert_default();
        let version = match known.get(&path) {
            Some(version) => *version,
            None => *known.entry(path.clone()).or_insert(ask_version(&path)?),
        };
        Ok(Self { path, version })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `--version` says.
    pub fn version(&self) -> QemuVersion {
        self.version
    }
}

/// What a process prints on both of its outputs. It may be read at any time, also when the process
/// is gone.
#[derive(Clone, Debug)]
pub struct Output(Option<Arc<File>>);

impl Output {
    /// Of a process that prints nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Everything so far, apart from lines that say nothing.
    pub fn read(&self) -> String {
        let Some(file) = &self.0 else { return String::new() };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let got = file.read_at(&mut bytes, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..got]).into_owned();
        text.lines().filter(|line| !line.contains("icount sleep disabled")).map(|line| format!("{line}\n")).collect()
    }
}

/// A running QEMU. Dropping it kills the process and waits for its end; when this program dies
/// instead, the operating system kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: Output,
}

impl Process {
    /// Starts `binary`; what it prints goes to a file in `directory`.
    ///
    /// # Errors
    /// [`Error::Spawn`] when it does not start, [`Error::Io`] when there is no room for its output.
    pub fn start(binary: &Binary, arguments: &[String], directory: &TempDir) -> Result<Self> {
        let file = File::options().read(true).append(true).create(true).open(directory.path().join("output"));
        let file = file.map_err(Error::io("creating a file for QEMU's output"))?;
        let copy = |file: &File| file.try_clone().map_err(Error::io("creating a file for QEMU's output"));
        let mut command = Command::new(&binary.path);
        command.args(arguments).stdin(Stdio::null()).stdout(copy(&file)?).stderr(copy(&file)?);
        let spawned = spawn(command);
        let child = spawned.map_err(|source| Error::Spawn { binary: binary.path.clone(), source })?;
        Ok(Self { child, output: Output(Some(Arc::new(file))) })
    }

    /// What it has printed.
    pub fn output(&self) -> Output {
        self.output.clone()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory of our own, in memory where that is possible; removed when dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one.
    ///
    /// # Errors
    /// [`Error::Io`] when that is not possible.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("iommu-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let in_memory = Path::new("/dev/shm").join(&name);
        let path = if fs::create_dir(&in_memory).is_ok() { in_memory } else { env::temp_dir().join(&name) };
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self(path)),
        }
        .map_err(Error::io("making a temporary directory"))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn search_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}

fn ask_version(path: &Path) -> Result<QemuVersion> {
    let failed = |source| Error::Spawn { binary: path.to_owned(), source };
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    QemuVersion::parse(&text).ok_or(Error::Refused { command: format!("{} --version", path.display()), reply: text })
}

/// Starts `command` such that it dies with this program.
///
/// The parent-death signal follows the thread that forked, so all processes are forked by one
/// thread, which lives as long as the program.
fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                die_with_parent(&mut command);
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(requests)
    });
    let (answer, result) = mpsc::channel();
    let gone = |_| io::Error::other("the spawner thread is gone");
    spawner.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).send((command, answer)).map_err(|_| gone(()))?;
    result.recv().map_err(|_| gone(()))?
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        // SAFETY: both are plain system calls, safe between fork and exec.
        let (result, now) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the signal was asked for.
        if now as u32 == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(before_exec) };
}

/// Elsewhere only dropping the process ends it.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}
