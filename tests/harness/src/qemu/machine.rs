//! A machine in QEMU, whatever its board.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iommu::{PciAddress, PhysAddr};

use super::board::{Board, UnitAccess};
use super::command::arguments;
use super::process::{Binary, Process, TempDir};
use super::qtest::Qtest;
use crate::bus::{Bus, Width};
use crate::devices::{DmaDevice, Edu, Lsi, PciEngine, edu, lsi};
use crate::error::{Error, Result};
use crate::firmware::AcpiTables;
use crate::frames::FramePool;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::options::{Arm, Engine, MachineOptions, X86};
use crate::quirks::{QemuQuirks, QemuVersion};
use crate::ram::GuestRam;
use crate::topology::Located;

/// How long a cold start may take: usual are 50 ms, but a machine may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running QEMU. It is killed when dropped; what else holds a part of the machine (a platform, a
/// configuration space) then sees a machine that is gone.
pub struct Qemu<B> {
    // Before the process, so that devices are dropped first.
    guest: Guest,
    bus: Arc<QtestBus>,
    process: Process,
    version: QemuVersion,
    quirks: QemuQuirks,
    board: B,
}

/// QEMU with a q35 machine.
pub type QemuX86 = Qemu<X86>;

/// QEMU with an Arm `virt` machine.
pub type QemuArm = Qemu<Arm>;

impl<B: Board> Qemu<B> {
    /// Starts a machine.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no QEMU for this processor here, or one that is too old for
    /// the options; anything else is a failure.
    pub fn start(options: &MachineOptions<B>) -> Result<Self> {
        if let Some(name) = options.any_ats() {
            return Err(Error::Pci(format!("{name}: no engine of QEMU has ATS")));
        }
        let binary = Binary::find(B::TARGET)?;
        let (board, version, quirks) = (options.board.clone(), binary.version(), QemuQuirks::of(binary.version()));
        let unavailable = |what| {
            let what = format!("QEMU {version} has no {what}");
            Error::Unavailable { what, remedy: "QEMU 10" }
        };
        board.lacks(&quirks).map_or(Ok(()), |what| Err(unavailable(what)))?;
        let layout = board.layout(options.ram_bytes)?;
        // QEMU has opened everything in here once it answers, so the directory goes when this returns.
        let directory = TempDir::new()?;
        let ram = Arc::new(GuestRam::shared(&ram_file(&directory, layout.ram_bytes())?, &layout.ram)?);
        // Real firmware would program devices behind the test's back.
        fs::write(directory.path().join("stub"), B::rom()).map_err(Error::io("writing the stub ROM"))?;
        let listener =
            UnixListener::bind(directory.path().join("qtest")).map_err(Error::io("binding the qtest socket"))?;
        let mut process = Process::start(&binary, &arguments(options, &quirks, directory.path()), &directory)?;
        let stream = accept(&listener, &mut process)?;
        let qtest = Qtest::new(stream, process.output())?;
        let bus = Arc::new(QtestBus { qtest, ecam: board.ecam(), unit: board.unit_access(&quirks) });
        board.power_on(&*bus, &bus.qtest)?;
        let guest = Guest::new(bus.clone(), ram, &layout, &options.topology, &|engine, found, pool| {
            start_engine(bus.clone(), &quirks, engine, found, pool)
        })?;
        bus.qtest.announce_loss();
        Ok(Self { guest, bus, process, version, quirks, board })
    }

    /// The quirks of the QEMU that would be started.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is none.
    pub fn installed() -> Result<QemuQuirks> {
        Ok(QemuQuirks::of(Binary::find(B::TARGET)?.version()))
    }
}

impl<B> Qemu<B> {
    /// Version of this QEMU.
    pub fn version(&self) -> QemuVersion {
        self.version
    }

    /// The connection to it.
    pub fn qtest(&self) -> &Qtest {
        &self.bus.qtest
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        self.process.output().read()
    }
}

impl<B: Board> Machine for Qemu<B> {
    fn description(&self) -> String {
        format!("QEMU {} {}", self.version, B::NAME)
    }

    fn guest(&self) -> &Guest {
        &self.guest
    }

    fn iommu_base(&self) -> Option<PhysAddr> {
        self.board.iommu_base()
    }

    fn acpi_table(&self, signature: &[u8; 4]) -> Result<Vec<u8>> {
        AcpiTables::load(&self.bus.qtest, self.ram(), &B::CONFIGURATION)?.table(signature)
    }

    fn device_tree(&self) -> Result<Vec<u8>> {
        B::device_tree(self.ram())
    }

    fn quirks(&self) -> Option<&QemuQuirks> {
        Some(&self.quirks)
    }
}

impl<B> Drop for Qemu<B> {
    fn drop(&mut self) {
        self.bus.qtest.expect_loss();
    }
}

/// The processor's side: memory over the socket, configuration space through memory.
#[derive(Debug)]
struct QtestBus {
    qtest: Qtest,
    ecam: Range<u64>,
    unit: UnitAccess,
}

impl QtestBus {
    fn is_narrow(&self, address: PhysAddr, width: Width) -> bool {
        width == Width::Quad && self.unit.narrow.contains(&address.as_u64())
    }

    fn ecam(&self, function: PciAddress, offset: u16) -> Option<u64> {
        let inside = function.segment() == 0 && offset < 4096 && offset.is_multiple_of(4);
        let address = self.ecam.start + (u64::from(function.requester_id()) << 12) + u64::from(offset);
        (inside && self.ecam.contains(&address)).then_some(address)
    }
}

impl Bus for QtestBus {
    fn read(&self, address: PhysAddr, width: Width) -> Result<u64> {
        if self.is_narrow(address, width) {
            let high = PhysAddr::new(address.as_u64() + 4);
            return Ok(self.read(address, Width::Long)? | self.read(high, Width::Long)? << 32);
        }
        let hidden = self.unit.hidden.iter().find(|(register, _)| *register == address && width == Width::Long);
        let hidden = hidden.map_or(0, |(_, bits)| u64::from(*bits));
        Ok(self.qtest.read(address.as_u64(), width)? & !hidden)
    }

    fn write(&self, address: PhysAddr, width: Width, value: u64) -> Result<()> {
        if self.is_narrow(address, width) {
            self.qtest.write(address.as_u64(), Width::Long, value & 0xffff_ffff)?;
            return self.qtest.write(address.as_u64() + 4, Width::Long, value >> 32);
        }
        self.qtest.write(address.as_u64(), width, value)
    }

    fn config_read32(&self, function: PciAddress, offset: u16) -> Result<u32> {
        let Some(address) = self.ecam(function, offset) else { return Ok(u32::MAX) };
        Ok(self.qtest.read(address, Width::Long)? as u32)
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) -> Result<()> {
        let Some(address) = self.ecam(function, offset) else { return Ok(()) };
        self.qtest.write(address, Width::Long, u64::from(value))
    }
}

fn start_engine(
    bus: Arc<dyn Bus>,
    quirks: &QemuQuirks,
    engine: Engine,
    found: &Located<'_>,
    pool: Arc<FramePool>,
) -> Result<Arc<dyn DmaDevice>> {
    let (name, function, requester) = (&found.node.name, found.function, found.requester);
    let (id, bar) = match engine {
        Engine::Edu => (edu::ID, function.memory[0]),
        Engine::Lsi => (lsi::ID, function.memory[1]),
    };
    let bar = bar.filter(|_| id == (function.vendor, function.device));
    let bar = bar.ok_or_else(|| Error::Pci(format!("{name} is not what was asked for")))?;
    Ok(match engine {
        Engine::Edu => Arc::new(PciEngine::new(name, function.address, requester, pool, |ram, workspace| {
            Edu::new(bus, bar, quirks, ram, workspace)
        })?),
        Engine::Lsi => {
            Arc::new(PciEngine::new(name, function.address, requester, pool, |_, _| Ok(Lsi::new(bus, bar)))?)
        }
    })
}

fn ram_file(directory: &TempDir, bytes: u64) -> Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(directory.path().join("ram"));
    let file = file.map_err(Error::io("creating the file of guest RAM"))?;
    file.set_len(bytes).map_err(Error::io("sizing the file of guest RAM"))?;
    Ok(file)
}

/// Waits until QEMU connects, or ends.
fn accept(listener: &UnixListener, process: &mut Process) -> Result<UnixStream> {
    listener.set_nonblocking(true).map_err(Error::io("waiting for QEMU"))?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(Error::io("waiting for QEMU"))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(source) => return Err(Error::Io { doing: "waiting for QEMU", source }),
        }
        if !process.is_running() {
            return Err(Error::Exited { output: process.output().read() });
        }
        if start.elapsed() > START_TIMEOUT {
            return Err(Error::TimedOut { doing: "QEMU to start" });
        }
        thread::sleep(Duration::from_millis(1));
    }
}
