//! The x86 machine: q35 with a VT-d unit.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iommu::{PciAddress, PhysAddr, SourceId};

use super::command::arguments;
use super::process::{Binary, Process, Target, TempDir};
use super::qtest::Qtest;
use crate::bus::{Bus, Width};
use crate::devices::{DmaDevice, Edu, Lsi, PciEngine, edu, lsi};
use crate::error::{Error, Result};
use crate::firmware::AcpiTables;
use crate::frames::FramePool;
use crate::machine::Machine;
use crate::options::{Engine, NodeKind, X86Options};
use crate::pci::{self, PciConfigSpace, PciFunction};
use crate::platform::MachinePlatform;
use crate::quirks::{QemuQuirks, QemuVersion};
use crate::ram::GuestRam;
use crate::x86::{BAR_ADDRESSES, VTD_BASE, locate, ram_ranges, split};

/// Configuration space of all buses in memory.
const ECAM_BASE: u64 = 0xb000_0000;
/// How long a cold start may take: usual are 50 ms, but a machine may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running QEMU with a q35 machine. It is killed when dropped; what else holds a part of it (a
/// platform, a configuration space) then sees a machine that is gone.
pub struct QemuX86 {
    // Before the process, so that devices are dropped first.
    devices: Vec<Arc<dyn DmaDevice>>,
    names: Vec<(String, PciAddress)>,
    functions: Vec<PciFunction>,
    config: PciConfigSpace,
    platform: MachinePlatform,
    buffers: Arc<FramePool>,
    bus: Arc<Q35Bus>,
    process: Process,
    version: QemuVersion,
    quirks: QemuQuirks,
    has_vtd: bool,
}

impl QemuX86 {
    /// Starts a machine.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no QEMU for x86 here; anything else is a failure.
    pub fn start(options: &X86Options) -> Result<Self> {
        if let Some(name) = options.any_ats() {
            return Err(Error::Pci(format!("{name}: no engine of QEMU has ATS")));
        }
        let binary = Binary::find(Target::X86_64)?;
        let quirks = QemuQuirks::of(binary.version());
        if options.vtd.is_some_and(|vtd| vtd.first_stage) && !quirks.vtd_has_first_stage {
            let what = format!("QEMU {} has no first stage", binary.version());
            return Err(Error::Unavailable { what, remedy: "QEMU 10" });
        }
        let ranges = ram_ranges(options.ram_bytes)?;
        // QEMU has opened everything in here once it answers, so the directory goes when this returns.
        let directory = TempDir::new()?;
        let ram = Arc::new(GuestRam::shared(&ram_file(&directory, options.ram_bytes)?, &ranges)?);
        write_stub(&directory.path().join("stub"))?;
        let listener =
            UnixListener::bind(directory.path().join("qtest")).map_err(Error::io("binding the qtest socket"))?;
        let mut process = Process::start(&binary, &arguments(options, directory.path()), &directory)?;
        let stream = accept(&listener, &mut process)?;
        let bus = Arc::new(Q35Bus { qtest: Qtest::new(stream, process.output())? });
        bus.enable_ecam()?;

        let shared: Arc<dyn Bus> = bus.clone();
        let config = PciConfigSpace::new(shared.clone());
        let functions = pci::assign(&config, BAR_ADDRESSES)?;
        let (for_tests, for_driver) = split(ranges[0])?;
        let buffers = Arc::new(FramePool::new(ram.clone(), for_tests));
        let platform = MachinePlatform::new(shared.clone(), FramePool::new(ram, for_driver));
        let builder = Builder { bus: shared, config: &config, buffers: &buffers, quirks };
        let (mut devices, mut names) = (Vec::new(), Vec::new());
        for found in locate(&options.topology, &functions)? {
            names.push((found.node.name.clone(), found.function.address));
            if let NodeKind::Engine(engine) = found.node.kind {
                devices.push(builder.engine(engine, &found.node.name, found.function, found.requester)?);
            }
        }
        bus.qtest.announce_loss();
        let (version, has_vtd) = (binary.version(), options.vtd.is_some());
        Ok(Self { devices, names, functions, config, platform, buffers, bus, process, version, quirks, has_vtd })
    }

    /// The quirks of the QEMU that would be started.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is none.
    pub fn installed() -> Result<QemuQuirks> {
        Ok(QemuQuirks::of(Binary::find(Target::X86_64)?.version()))
    }

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

impl Machine for QemuX86 {
    fn description(&self) -> String {
        format!("QEMU {} q35", self.version)
    }

    fn platform(&self) -> &MachinePlatform {
        &self.platform
    }

    fn config(&self) -> &PciConfigSpace {
        &self.config
    }

    fn functions(&self) -> &[PciFunction] {
        &self.functions
    }

    fn devices(&self) -> &[Arc<dyn DmaDevice>] {
        &self.devices
    }

    fn buffers(&self) -> &Arc<FramePool> {
        &self.buffers
    }

    fn iommu_base(&self) -> Option<PhysAddr> {
        self.has_vtd.then_some(VTD_BASE)
    }

    fn acpi_table(&self, signature: &[u8; 4]) -> Result<Vec<u8>> {
        AcpiTables::load(&self.bus.qtest, self.ram())?.table(signature)
    }

    fn quirks(&self) -> Option<&QemuQuirks> {
        Some(&self.quirks)
    }

    fn address_of(&self, name: &str) -> PciAddress {
        match self.names.iter().find(|(known, _)| known == name) {
            Some((_, address)) => *address,
            None => panic!("no function is called {name}"),
        }
    }
}

impl Drop for QemuX86 {
    fn drop(&mut self) {
        self.bus.qtest.expect_loss();
    }
}

/// The processor's side of q35: memory over the socket, configuration space through memory.
#[derive(Debug)]
struct Q35Bus {
    qtest: Qtest,
}

impl Q35Bus {
    /// Sets PCIEXBAR of the host bridge, as firmware does, through the configuration ports.
    fn enable_ecam(&self) -> Result<()> {
        for (register, value) in [(0x64, 0), (0x60, ECAM_BASE as u32 | 1)] {
            self.qtest.port_out(0xcf8, Width::Long, 1 << 31 | register)?;
            self.qtest.port_out(0xcfc, Width::Long, value)?;
        }
        Ok(())
    }

    fn ecam(function: PciAddress, offset: u16) -> Option<u64> {
        let inside = function.segment() == 0 && offset < 4096 && offset.is_multiple_of(4);
        inside.then_some(ECAM_BASE + (u64::from(function.requester_id()) << 12) + u64::from(offset))
    }
}

impl Bus for Q35Bus {
    fn read(&self, address: PhysAddr, width: Width) -> Result<u64> {
        self.qtest.read(address.as_u64(), width)
    }

    fn write(&self, address: PhysAddr, width: Width, value: u64) -> Result<()> {
        self.qtest.write(address.as_u64(), width, value)
    }

    fn config_read32(&self, function: PciAddress, offset: u16) -> Result<u32> {
        let Some(address) = Self::ecam(function, offset) else { return Ok(u32::MAX) };
        Ok(self.qtest.read(address, Width::Long)? as u32)
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) -> Result<()> {
        let Some(address) = Self::ecam(function, offset) else { return Ok(()) };
        self.qtest.write(address, Width::Long, u64::from(value))
    }
}

/// Makes the engines of the options.
struct Builder<'a> {
    bus: Arc<dyn Bus>,
    config: &'a PciConfigSpace,
    buffers: &'a Arc<FramePool>,
    quirks: QemuQuirks,
}

impl Builder<'_> {
    fn engine(
        &self,
        engine: Engine,
        name: &str,
        function: &PciFunction,
        requester: SourceId,
    ) -> Result<Arc<dyn DmaDevice>> {
        pci::enable(self.config, function.address);
        let (id, bar) = match engine {
            Engine::Edu => (edu::ID, function.memory[0]),
            Engine::Lsi => (lsi::ID, function.memory[1]),
        };
        let bar = bar.filter(|_| id == (function.vendor, function.device));
        let bar = bar.ok_or_else(|| Error::Pci(format!("{name} is not what was asked for")))?;
        let (bus, pool) = (self.bus.clone(), self.buffers.clone());
        Ok(match engine {
            Engine::Edu => Arc::new(PciEngine::new(name, function.address, requester, pool, |ram, workspace| {
                Edu::new(bus, bar, &self.quirks, ram, workspace)
            })?),
            Engine::Lsi => {
                Arc::new(PciEngine::new(name, function.address, requester, pool, |_, _| Ok(Lsi::new(bus, bar)))?)
            }
        })
    }
}

fn ram_file(directory: &TempDir, bytes: u64) -> Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(directory.path().join("ram"));
    let file = file.map_err(Error::io("creating the file of guest RAM"))?;
    file.set_len(bytes).map_err(Error::io("sizing the file of guest RAM"))?;
    Ok(file)
}

/// A ROM of 64 KiB whose reset vector waits for ever: `cli; hlt; jmp` back. Real firmware would
/// program devices behind the test's back.
fn write_stub(path: &Path) -> Result<()> {
    let mut rom = vec![0; 64 << 10];
    rom[0xfff0..0xfff4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    fs::write(path, rom).map_err(Error::io("writing the stub ROM"))
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
