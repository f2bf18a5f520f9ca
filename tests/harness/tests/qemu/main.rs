//! The harness itself on QEMU: everything that tests of drivers stand on, without a driver.

mod faults;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use iommu::platform::{Platform, Registers};
use iommu::{Iova, PciAddress, PhysAddr};
use iommu_harness::devices::POKE;
use iommu_harness::options::Bridge;
use iommu_harness::runner::TestError;
use iommu_harness::{
    Access, DmaOutcome, Error, Machine, Node, QemuVersion, QemuX86, Suite, TestResult, VtdOptions, X86Options,
};

/// Set in a copy of this program that starts a machine, tells its process id, and waits to be killed.
const VICTIM: &str = "IOMMU_HARNESS_VICTIM";

fn main() {
    if env::var_os(VICTIM).is_some() {
        victim();
    }
    let mut suite = Suite::from_arguments();
    suite.test("lsi_copies", lsi_copies);
    suite.test("lsi_without_its_script_does_nothing", lsi_without_its_script_does_nothing);
    suite.test("edu_moves_both_ways", || moves_both_ways(X86Options::new().edu("device")));
    suite.test("lsi_moves_both_ways", || moves_both_ways(X86Options::new().lsi("device")));
    suite.test("edu_moves_both_ways_behind_a_unit", || moves_both_ways(vtd().edu("device")));
    suite.test("limits_of_devices_are_errors", limits_of_devices_are_errors);
    suite.test("bridges_are_numbered_and_forward", bridges_are_numbered_and_forward);
    suite.test("functions_of_one_device", functions_of_one_device);
    suite.test("the_dmar_is_whole", the_dmar_is_whole);
    suite.test("vtd_registers_are_as_documented", vtd_registers_are_as_documented);
    suite.test("ram_above_4_gib", ram_above_4_gib);
    suite.test("two_machines_at_once", two_machines_at_once);
    suite.test("a_dropped_machine_is_dead", a_dropped_machine_is_dead);
    suite.test("a_killed_program_takes_its_machine_along", a_killed_program_takes_its_machine_along);
    suite.test("requesters_are_as_told", faults::requesters_are_as_told);
    suite.test("workspaces_move", faults::workspaces_move);
    suite.test("a_qemu_that_refuses_to_start_tells_why", a_qemu_that_refuses_to_start_tells_why);
    suite.run()
}

fn vtd() -> X86Options {
    X86Options::new().vtd(VtdOptions::default())
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index % 251) as u8 + 1).collect()
}

fn done(outcome: DmaOutcome) -> TestResult {
    if outcome == DmaOutcome::Done { Ok(()) } else { Err(TestError::failed(format!("{outcome:?}"))) }
}

fn lsi_copies() -> TestResult {
    let machine = QemuX86::start(&X86Options::new().lsi("lsi0"))?;
    let (from, to) = (machine.buffer(8192)?, machine.buffer(8192)?);
    from.write(0, &pattern(8192));
    let odd = Iova::new(to.iova().as_u64() + 3);
    done(machine.device("lsi0").copy(from.iova(), odd, 5001)?)?;
    assert_eq!(to.read(3, 5001), pattern(8192)[..5001]);
    assert_eq!((to.read(0, 3), to.read(5004, 4)), (vec![0; 3], vec![0; 4]), "nothing but what was asked for");
    Ok(())
}

fn lsi_without_its_script_does_nothing() -> TestResult {
    let machine = QemuX86::start(&X86Options::new().lsi("lsi0"))?;
    let lsi = machine.device("lsi0");
    let buffer = machine.buffer(4096)?;
    let home = lsi.workspace().iova;
    // No memory there: what is read is zeros, or whatever open addresses give.
    lsi.place_workspace(Iova::new(0x9000_0000));
    assert_eq!(lsi.dma_write(buffer.iova(), &[1; 16])?, DmaOutcome::NoScript);
    assert_eq!(lsi.poke(buffer.iova(), Access::Write)?, DmaOutcome::NoScript);
    assert!(buffer.is_filled(0));
    lsi.place_workspace(home);
    done(lsi.dma_write(buffer.iova(), &[1; 16])?)?;
    assert_eq!(buffer.read(0, 16), [1; 16], "it works again afterwards");
    Ok(())
}

fn moves_both_ways(options: X86Options) -> TestResult {
    let machine = QemuX86::start(&options)?;
    let device = machine.device("device");
    let buffer = machine.buffer(16384)?;
    let data = pattern(5000);
    let odd = Iova::new(buffer.iova().as_u64() + 5);
    done(device.dma_write(odd, &data)?)?;
    assert_eq!(buffer.read(5, data.len()), data);
    assert_eq!(device.dma_read(odd, data.len())?, data);
    done(device.copy(odd, Iova::new(buffer.iova().as_u64() + 8192), 4096)?)?;
    assert_eq!(buffer.read(8192, 4096), data[..4096]);
    buffer.fill(0);
    done(device.poke(buffer.iova(), Access::Write)?)?;
    done(device.poke(buffer.iova(), Access::Read)?)?;
    assert_eq!(buffer.read(0, 8), [&POKE[..], &[0; 4]].concat());
    Ok(())
}

fn limits_of_devices_are_errors() -> TestResult {
    let machine = QemuX86::start(&X86Options::new().lsi("lsi0"))?;
    let lsi = machine.device("lsi0");
    let (last, beyond) = (Iova::new(0xffff_fffd), Iova::new(1 << 32));
    for result in [lsi.dma_write(last, &[0; 4]), lsi.poke(beyond, Access::Read), lsi.poke(Iova::new(2), Access::Read)] {
        assert!(matches!(result, Err(Error::Transfer { .. })), "{result:?}");
    }
    Ok(())
}

fn bridges_are_numbered_and_forward() -> TestResult {
    let children = [Node::edu("alias-edu"), Node::lsi("alias-lsi")];
    let machine = QemuX86::start(
        &vtd()
            .node(Node::bridge(Bridge::RootPort, "port", [Node::edu("express")]))
            .node(Node::bridge(Bridge::PcieToPci, "pci", children))
            .node(Node::bridge(Bridge::Conventional, "old", [Node::lsi("conventional")]))
            .node(Node::bridge(
                Bridge::RootPort,
                "outer",
                [Node::bridge(Bridge::PcieToPci, "inner", [Node::lsi("deep")])],
            )),
    )?;
    let at = |bus, device| PciAddress::new(0, bus, device, 0);
    let expected = [
        ("express", at(1, 0), at(1, 0)),
        ("alias-edu", at(2, 1), at(2, 0)),
        ("alias-lsi", at(2, 2), at(2, 0)),
        ("conventional", at(3, 1), at(0, 3)),
        ("deep", at(5, 1), at(5, 0)),
    ];
    for (name, address, requester) in expected {
        let device = machine.device(name);
        assert_eq!((Some(device.address()), device.requester().pci_address()), (address, requester), "{name}");
        let buffer = machine.buffer(4096)?;
        done(device.dma_write(buffer.iova(), &pattern(100))?)?;
        assert_eq!(buffer.read(0, 100), pattern(100), "{name}");
    }
    assert_eq!(Some(machine.address_of("inner")), at(4, 0));
    Ok(())
}

fn functions_of_one_device() -> TestResult {
    let machine = QemuX86::start(&X86Options::new().node(Node::lsi("a").at(4, 0)).node(Node::lsi("b").at(4, 3)))?;
    assert_eq!(machine.device("b").address(), machine.device("a").address().with_function(3));
    let buffer = machine.buffer(64)?;
    done(machine.device("b").dma_write(buffer.iova(), b"function")?)?;
    assert_eq!(buffer.read(0, 8), b"function");
    Ok(())
}

fn the_dmar_is_whole() -> TestResult {
    let machine = QemuX86::start(&vtd().lsi("lsi0"))?;
    let dmar = machine.acpi_table(b"DMAR")?;
    assert_eq!(&dmar[..4], b"DMAR");
    assert_eq!(dmar[4..8], (dmar.len() as u32).to_le_bytes());
    assert_eq!(dmar.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "the checksum is right");
    // The first structure is the unit (type 0); its register base stands at offset 8.
    assert_eq!(dmar[48..50], [0, 0]);
    assert_eq!(Some(dmar[56..64].to_vec()), machine.iommu_base().map(|base| base.as_u64().to_le_bytes().to_vec()));
    assert!(matches!(machine.acpi_table(b"ABCD"), Err(Error::Firmware(_))));
    Ok(())
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

fn ram_above_4_gib() -> TestResult {
    let machine = QemuX86::start(&X86Options::new().ram_bytes(4 << 30).edu("edu0"))?;
    let high = PhysAddr::new((4 << 30) + 0x1234_5000);
    done(machine.device("edu0").dma_write(Iova::new(high.as_u64()), b"high memory")?)?;
    let mut read = [0; 11];
    machine.ram().read(high, &mut read);
    assert_eq!(&read, b"high memory");
    let mut ranges = Vec::new();
    machine.platform().ram(&mut |range| ranges.push((range.start().as_u64(), range.last().as_u64())));
    assert_eq!(ranges, [(0, 0x7fff_ffff), (0x1_0000_0000, 0x1_7fff_ffff)]);
    Ok(())
}

fn two_machines_at_once() -> TestResult {
    let start = || QemuX86::start(&X86Options::new().lsi("lsi0"));
    let (first, second) = (start()?, start()?);
    let buffers = (first.buffer(4096)?, second.buffer(4096)?);
    assert_eq!(buffers.0.phys(), buffers.1.phys(), "the same place in two memories");
    done(first.device("lsi0").dma_write(buffers.0.iova(), &[1; 64])?)?;
    done(second.device("lsi0").dma_write(buffers.1.iova(), &[2; 64])?)?;
    assert_eq!((buffers.0.read(0, 64), buffers.1.read(0, 64)), (vec![1; 64], vec![2; 64]));
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
