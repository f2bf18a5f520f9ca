//! The harness itself on QEMU: everything that tests of drivers stand on, without a driver.

mod arm;
#[path = "../common/mod.rs"]
mod common;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use iommu::PhysAddr;
use iommu::platform::{Platform, Registers};
use iommu_harness::runner::TestError;
use iommu_harness::{Error, Machine, QemuVersion, QemuX86, Suite, TestResult, VtdOptions, X86Options};

use self::common::vtd;

/// Set in a copy of this program that starts a machine, tells its process id, and waits to be killed.
const VICTIM: &str = "IOMMU_HARNESS_VICTIM";

fn main() {
    if env::var_os(VICTIM).is_some() {
        victim();
    }
    let mut suite = Suite::from_arguments();
    common::add(&mut suite, "x86::", common::x86(|options| Ok(Box::new(QemuX86::start(options)?))));
    arm::add(&mut suite);
    common::add_translated(&mut suite, |options| Ok(Box::new(QemuX86::start(options)?)));
    suite.test("vtd_registers_are_as_documented", vtd_registers_are_as_documented);
    suite.test("a_dropped_machine_is_dead", a_dropped_machine_is_dead);
    suite.test("a_killed_program_takes_its_machine_along", a_killed_program_takes_its_machine_along);
    suite.test("a_qemu_that_refuses_to_start_tells_why", a_qemu_that_refuses_to_start_tells_why);
    suite.run()
}

fn vtd_registers_are_as_documented() -> TestResult {
    let normal = VtdOptions::default();
    let wide = VtdOptions { address_bits: Some(48), ..normal };
    // Options, CAP and ECAP of version 7.2. Later ones add CAP.ESRTPS, and default to 48 bits.
    let mut known = vec![
        (VtdOptions { address_bits: Some(39), ..normal }, 0x00d2_008c_2226_0206, 0xf0_0f4a),
        (wide, 0x00d2_008c_222f_0606, 0xf0_0f4a),
        (VtdOptions { caching_mode: true, ..wide }, 0x00d2_008c_222f_0686, 0xf0_0f4a),
        (VtdOptions { scalable: true, ..wide }, 0x00d2_008c_222f_0606, 0x4800_80f0_0f4a),
        (VtdOptions { device_iotlb: true, ..wide }, 0x00d2_008c_222f_0606, 0xf0_0f4e),
        (VtdOptions { snoop_control: true, ..wide }, 0x00d2_008c_222f_0606, 0xf0_0fca),
        (VtdOptions { pass_through: false, ..wide }, 0x00d2_008c_222f_0606, 0xf0_0f0a),
        (VtdOptions { interrupt_remapping: false, ..wide }, 0x00d2_008c_222f_0606, 0xf42),
        (VtdOptions { dma_translation: false, ..wide }, 0x00d2_008c_222f_0006, 0xf0_0f4a),
    ];
    for index in 0.. {
        let Some((options, cap, ecap)) = known.get(index).copied() else { break };
        let machine = QemuX86::start(&X86Options::new().vtd(options))?;
        if index == 0 && machine.version() >= QemuVersion::new(10, 0, 0) {
            let first_stage = VtdOptions { first_stage: true, ..wide };
            known.push((first_stage, 0x01d2_008c_222f_0606, 0x8800_00f0_0f4a));
        }
        let Some(base) = machine.iommu_base() else { return Err(TestError::failed("no unit")) };
        let registers = machine.platform().map_registers(base, 0x230)?;
        assert_eq!(registers.read32(0), 0x10, "version");
        let esrtps = 1 << 63;
        assert_eq!((registers.read64(8) & !esrtps, registers.read64(16)), (cap, ecap), "{options} (CAP, ECAP)");
        assert_eq!(registers.read64(8), u64::from(registers.read32(8)) | u64::from(registers.read32(12)) << 32);
        assert_eq!(registers.read32(0x230), u32::MAX, "beyond the end");
    }
    Ok(())
}

fn a_dropped_machine_is_dead() -> TestResult {
    // Started by a thread that ends, which must not end the machine.
    let started = thread::spawn(|| QemuX86::start(&vtd())).join();
    let machine = started.map_err(|_| TestError::failed("the thread panicked"))??;
    thread::sleep(Duration::from_millis(20));
    let process = PathBuf::from(format!("/proc/{}", machine.process_id()));
    let platform = machine.platform().clone();
    let Some(base) = machine.iommu_base() else { return Err(TestError::failed("no unit")) };
    let registers = platform.map_registers(base, 0x230)?;
    assert_eq!(registers.read32(0), 0x10);
    assert!(!cfg!(target_os = "linux") || process.exists());
    drop(machine);
    assert!(!process.exists());
    registers.write32(0x18, 0);
    assert_eq!(registers.read32(0), u32::MAX, "like a device that is gone");
    let frame = platform.alloc_frames(0, PhysAddr::new(u64::MAX));
    let frame = frame.ok_or(TestError::failed("no frame"))?;
    // SAFETY: the frame was just allocated and stays mapped although the machine is gone.
    assert_eq!(unsafe { platform.phys_to_virt(frame).read() }, 0);
    // SAFETY: allocated above, not used any more.
    unsafe { platform.free_frames(frame, 0) };
    assert_eq!(platform.frames_in_use(), 0);
    Ok(())
}

fn victim() -> ! {
    match QemuX86::start(&vtd()) {
        Ok(machine) => {
            println!("{}", machine.process_id());
            thread::sleep(Duration::from_secs(60));
        }
        Err(error) => eprintln!("{error}"),
    }
    std::process::exit(1)
}

fn a_killed_program_takes_its_machine_along() -> TestResult {
    if !cfg!(target_os = "linux") {
        return Err(TestError::unavailable("only Linux kills the children of what was killed"));
    }
    drop(QemuX86::start(&vtd())?);
    let mut child = Command::new(env::current_exe()?).env(VICTIM, "1").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let heard = child.stdout.take().map(|output| BufReader::new(output).read_line(&mut line));
    child.kill()?;
    child.wait()?;
    heard.transpose()?;
    let process: u32 = line.trim().parse()?;
    let start = Instant::now();
    // Gone, or a zombie that only its new parent can remove.
    while std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(start.elapsed() < Duration::from_secs(5), "QEMU outlives the program that started it");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn a_qemu_that_refuses_to_start_tells_why() -> TestResult {
    match QemuX86::start(&X86Options::new().arguments(["-device", "no-such-device"])) {
        Err(Error::Exited { output }) if output.contains("no-such-device") => Ok(()),
        Err(error @ Error::Unavailable { .. }) => Err(error.into()),
        other => Err(TestError::failed(format!("{:?}", other.map(|machine| machine.description())))),
    }
}
