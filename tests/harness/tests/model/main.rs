//! The harness itself on the model.

mod arm;
#[path = "../common/mod.rs"]
mod common;

use iommu::arch::vtd::layout::{Cap, Ecap};
use iommu::pci::{PciConfig, PciFunction, PciKind};
use iommu::platform::{Platform, Registers};
use iommu::{Iova, PhysAddr};
use iommu_harness::devices::POKE;
use iommu_harness::options::{Bridge, MachineOptions};
use iommu_harness::runner::TestError;
use iommu_harness::{
    Access, Error, Machine, ModelOptions, ModelX86, Node, QemuX86, Suite, TestResult, VtdOptions, X86Options,
};

use self::common::{done, pattern, vtd};

fn main() {
    let mut suite = Suite::from_arguments();
    common::add(&mut suite, "", common::x86(|options| Ok(Box::new(ModelX86::start(options)?))));
    // These write tables and clean nothing.
    common::add_translated(&mut suite, |options| {
        Ok(Box::new(ModelX86::with(options, &ModelOptions::new().with_ecap(Ecap::C))?))
    });
    suite.test("who_is_no_master_reaches_nothing", who_is_no_master_reaches_nothing);
    suite.test("functions_are_what_they_are_on_qemu", functions_are_what_they_are_on_qemu);
    suite.test("ats_is_a_capability", ats_is_a_capability);
    suite.test("writes_to_interrupt_addresses_are_messages", writes_to_interrupt_addresses_are_messages);
    suite.test("registers_say_what_the_options_do", registers_say_what_the_options_do);
    suite.test("parts_outlive_the_machine", parts_outlive_the_machine);
    arm::add(&mut suite);
    suite.run()
}

/// Bus mastering of the function, and of every bridge above.
fn who_is_no_master_reaches_nothing() -> TestResult {
    let inner = Node::bridge(Bridge::PcieToPci, "inner", [Node::lsi("device")]);
    let machine = ModelX86::start(&X86Options::new().node(Node::bridge(Bridge::RootPort, "outer", [inner])))?;
    let (device, buffer) = (machine.device("device"), machine.buffer(4096)?);
    for name in ["device", "inner", "outer"] {
        let function = machine.address_of(name);
        let command = machine.config().read32(function, 4);
        machine.config().write32(function, 4, command & !4);
        buffer.fill(0);
        let _ = device.dma_write(buffer.iova(), &pattern(100))?;
        assert!(buffer.is_filled(0), "{name}");
        machine.config().write32(function, 4, command);
        done(device.dma_write(buffer.iova(), &pattern(100))?)?;
        assert_eq!(buffer.read(0, 100), pattern(100), "{name}");
    }
    Ok(())
}

fn functions_are_what_they_are_on_qemu() -> TestResult {
    let options = functions(X86Options::new());
    compare_functions(&ModelX86::start(&options)?, &QemuX86::start(&options)?)
}

/// Engines and bridges of every kind.
pub(crate) fn functions<B>(options: MachineOptions<B>) -> MachineOptions<B> {
    options
        .edu("edu")
        .node(Node::lsi("lsi").at(5, 0))
        .node(Node::edu("second").at(5, 2))
        .node(Node::bridge(Bridge::RootPort, "port", [Node::edu("express")]))
        .node(Node::bridge(Bridge::PcieToPci, "pci", [Node::edu("behind")]))
        .node(Node::bridge(Bridge::Conventional, "old", [Node::lsi("conventional")]))
}

/// Ids, kinds and isolation of what the options name.
pub(crate) fn compare_functions(model: &dyn Machine, qemu: &dyn Machine) -> TestResult {
    for name in ["edu", "lsi", "second", "port", "express", "pci", "behind", "old", "conventional"] {
        let read = |machine: &dyn Machine| {
            let function = PciFunction::read(machine.config(), machine.address_of(name));
            function.map(|f| (f.address, f.vendor, f.device, f.class, f.kind, f.layout, f.multifunction, f.buses))
        };
        assert!(read(model).is_some());
        assert_eq!(read(model), read(qemu), "{name}");
        let acs = |machine: &dyn Machine| {
            PciFunction::read(machine.config(), machine.address_of(name)).and_then(|f| f.acs).map(|acs| acs.capable)
        };
        assert_eq!(acs(model), acs(qemu), "{name}: access control");
    }
    Ok(())
}

fn ats_is_a_capability() -> TestResult {
    let options = || vtd().node(Node::edu("edu").ats(32)).edu("plain");
    let machine = ModelX86::start(&options())?;
    let function = PciFunction::read(machine.config(), machine.address_of("edu"));
    let function = function.ok_or(TestError::failed("no function"))?;
    let ats = function.ats.ok_or(TestError::failed("no ATS"))?;
    assert_eq!((function.kind, ats.queue_depth, ats.page_aligned), (PciKind::RootComplexEndpoint, 32, true));
    machine.config().write16(machine.address_of("edu"), ats.control(), 1 << 15 | 3);
    assert_eq!(machine.config().read16(machine.address_of("edu"), ats.control()), 1 << 15 | 3);
    assert!(machine.device("edu").device_tlb().is_some() && machine.device("plain").device_tlb().is_none());
    assert!(matches!(QemuX86::start(&options()), Err(Error::Pci(why)) if why.starts_with("edu")));
    Ok(())
}

fn writes_to_interrupt_addresses_are_messages() -> TestResult {
    let machine = ModelX86::start(&X86Options::new().edu("edu"))?;
    done(machine.device("edu").poke(Iova::new(0xfee0_1004), Access::Write)?)?;
    let sent: Vec<_> = machine.take_interrupts().iter().map(|msi| (msi.address, msi.data)).collect();
    assert_eq!(sent, [(PhysAddr::new(0xfee0_1004), u32::from_le_bytes(POKE))]);
    done(machine.device("edu").poke(Iova::new(0xfee0_1004), Access::Read)?)?;
    assert!(machine.take_interrupts().is_empty());
    Ok(())
}

fn registers_say_what_the_options_do() -> TestResult {
    let model = ModelOptions::new().with_cap(Cap::RWBF).with_ecap(Ecap::C).fault_records(8);
    let vtd = VtdOptions { address_bits: Some(57), ..VtdOptions::default() };
    let machine = ModelX86::with(&X86Options::new().vtd(vtd), &model)?;
    let base = machine.iommu_base().ok_or(TestError::failed("no unit"))?;
    let registers = machine.platform().map_registers(base, 0x1000)?;
    let config = model.config(&vtd);
    assert_eq!((registers.read64(8), registers.read64(16)), (config.cap.bits(), config.ecap.bits()));
    assert_eq!(registers.read32(0), 0x10, "version");
    assert!(ModelX86::start(&X86Options::new())?.iommu_base().is_none());
    Ok(())
}

fn parts_outlive_the_machine() -> TestResult {
    let machine = ModelX86::start(&vtd())?;
    let (platform, base) = (machine.platform().clone(), machine.iommu_base());
    drop(machine);
    let registers = platform.map_registers(base.ok_or(TestError::failed("no unit"))?, 0x1000)?;
    assert_eq!(registers.read32(0), 0x10);
    Ok(())
}
