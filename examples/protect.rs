//! A PCI device does DMA through an IOMMU that this crate programs: what is mapped works, what is
//! not is blocked and explained.
//!
//! ```sh
//! cargo run --example protect
//! ```
//!
//! makes a PC with a VT-d unit and a device called `edu`, all of it in this process, and programs the
//! unit as a kernel would. With `-- --arch smmuv3` it is an Arm machine. With `--qemu` either is in QEMU,
//! programmed from here as a kernel would from inside: the story is the same. The exit status is not
//! zero if anything is not as told.

use std::error::Error;
use std::process::ExitCode;

use iommu::arch::{smmuv3, vtd};
use iommu::device::Trust;
use iommu::ops::InterruptKind;
use iommu::{Iommu, Iova, IovaRange, Policy, Prot};
use iommu_harness::{
    Access, ArmOptions, DmaOutcome, Machine, ModelArm, ModelX86, QemuArm, QemuX86, SmmuOptions, VtdOptions, X86Options,
};

const USAGE: &str = "usage: protect [--arch vtd|smmuv3] [--qemu]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match machine(&arguments).and_then(|machine| story(&*machine)) {
        Ok(()) => {
            println!("\nEverything was as told.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nNOT as told: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The machine that the arguments name.
fn machine(arguments: &[String]) -> Result<Box<dyn Machine>, Box<dyn Error>> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let x86 = X86Options::new().vtd(VtdOptions::default()).edu("edu");
    let arm = ArmOptions::new().smmu(SmmuOptions::default()).edu("edu");
    Ok(match words[..] {
        [] | ["--arch", "vtd"] => Box::new(ModelX86::start(&x86)?),
        ["--qemu"] | ["--arch", "vtd", "--qemu"] => Box::new(QemuX86::start(&x86)?),
        ["--arch", "smmuv3"] => Box::new(ModelArm::start(&arm)?),
        ["--arch", "smmuv3", "--qemu"] => Box::new(QemuArm::start(&arm)?),
        _ => return Err(USAGE.into()),
    })
}

fn story(machine: &dyn Machine) -> Result<(), Box<dyn Error>> {
    chapter("A machine");
    let edu = machine.device("edu");
    println!("{}, with the device edu at {}.", machine.description(), edu.address());

    chapter("Boot: firmware tables, units, devices, enable");
    let iommu = Iommu::new(machine.platform().clone(), Policy::default())?;
    match machine.acpi_table(b"DMAR") {
        Ok(dmar) => vtd::init(&iommu, &dmar)?,
        Err(_) => smmuv3::init(&iommu, &machine.acpi_table(b"IORT")?).map(drop)?,
    }
    for unit in iommu.units() {
        println!("The firmware names a {unit:?}.");
    }
    for function in machine.functions() {
        match iommu.probe_pci(machine.config(), function.address, Trust::Trusted) {
            Ok(device) => println!("{device:?} is behind it, in {:?}.", device.group()?),
            Err(error) => println!("{}: {error}.", function.address),
        }
    }
    iommu.enable()?;

    chapter("A domain for edu, with one buffer that it may only read and one that it may write");
    let device = iommu.find(edu.requester()).ok_or("edu was not probed")?;
    let domain = iommu.paging_domain(&[&device])?;
    let (source, target) = (machine.buffer(0x2000)?, machine.buffer(0x20_0000)?);
    let (from, to) = (Iova::new(0x10_0000), Iova::new(0x4000_0000));
    // SAFETY: the buffers outlive the machine's use of them: this function unmaps them, or ends with
    // the machine.
    unsafe {
        domain.map(IovaRange::from_len(from, source.bytes())?, source.phys(), Prot::READ)?;
        domain.map(IovaRange::from_len(to, target.bytes())?, target.phys(), Prot::RW)?;
    }
    iommu.attach_device(&domain, &device)?;
    println!("{domain:?}");

    chapter("DMA inside the mappings");
    source.write(0, b"carried by edu through the IOMMU");
    expect(edu.copy(from, to, 32)? == DmaOutcome::Done, "edu does the copy")?;
    let carried = target.read(0, 32);
    println!("edu copied 32 bytes from {from} to {to}: {:?}", String::from_utf8_lossy(&carried));
    expect(carried == b"carried by edu through the IOMMU", "the bytes arrive")?;
    expect(faults(&iommu).is_empty(), "nothing faults")?;

    chapter("DMA outside of them");
    // The second page: hardware may drop a write silently where it has a read-only page cached.
    let (read_only, outside) = (Iova::new(0x10_1000), Iova::new(0x5000_0000));
    let tries =
        [(read_only, Access::Write, "the read-only buffer"), (outside, Access::Write, "an address without mapping")];
    for (iova, access, what) in tries {
        let _ = edu.poke(iova, access)?;
        let told = faults(&iommu);
        println!("edu tried to write {what}:");
        told.iter().for_each(|fault| println!("  {fault}"));
        expect(told.len() == 1, "exactly one fault is told")?;
        expect(told[0].source == edu.requester() && told[0].iova == Some(iova), "it names edu and the address")?;
    }
    expect(source.read(0x1000, 4) == [0; 4], "the read-only buffer is unchanged")?;

    chapter("The target is taken back while the IOTLB still knows it");
    let mut gather = domain.gather();
    // SAFETY: nobody else works on this domain.
    unsafe { domain.unmap(IovaRange::from_len(to, target.bytes())?, &mut gather)? };
    gather.sync().map_err(iommu::Error::from)?;
    target.fill(0);
    let _ = edu.poke(to, Access::Write)?;
    faults(&iommu).iter().for_each(|fault| println!("  {fault}"));
    expect(target.is_filled(0), "the memory is ours again")?;
    println!("{domain:?}");

    chapter("The end");
    iommu.detach_device(&domain, &device)?;
    iommu.shutdown()?;
    drop((domain, device, iommu));
    let frames = machine.platform().frames_in_use();
    println!("Frames still in use: {frames}.");
    expect(frames == 0, "every frame is given back")
}

fn faults(iommu: &Iommu<iommu_harness::MachinePlatform>) -> Vec<iommu::FaultRecord> {
    iommu.handle_interrupt(InterruptKind::Fault);
    std::iter::from_fn(|| iommu.next_fault()).collect()
}

fn expect(truth: bool, claim: &str) -> Result<(), Box<dyn Error>> {
    if truth { Ok(()) } else { Err(claim.into()) }
}

fn chapter(title: &str) {
    println!("\n== {title}");
}
