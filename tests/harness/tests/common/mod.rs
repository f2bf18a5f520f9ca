//! What must be true of every kind of machine.

mod faults;

use iommu::platform::Platform;
use iommu::{Iova, PciAddress, PhysAddr};
use iommu_harness::devices::POKE;
use iommu_harness::options::{Bridge, MachineOptions, X86};
use iommu_harness::runner::TestError;
use iommu_harness::{Access, DmaOutcome, Error, Machine, Node, Suite, TestResult, VtdOptions, X86Options};

/// Starts a machine of one kind.
pub(crate) type Start<B = X86> = fn(&MachineOptions<B>) -> Result<Box<dyn Machine>, Error>;

/// One kind of machine.
#[derive(Clone, Copy)]
pub(crate) struct Bench<B> {
    pub(crate) start: Start<B>,
    /// Options of a machine with an IOMMU.
    pub(crate) unit: fn() -> MachineOptions<B>,
    /// Where 4 GiB of RAM are: first and last addresses.
    pub(crate) four_gib: &'static [(u64, u64)],
}

type Test<B> = fn(Bench<B>) -> TestResult;

/// Adds the tests, for one kind of machine.
pub(crate) fn add<B: Copy + Default + 'static>(suite: &mut Suite, prefix: &str, bench: Bench<B>) {
    let tests: [(&str, Test<B>); 11] = [
        ("lsi_copies", lsi_copies),
        ("lsi_without_its_script_does_nothing", lsi_without_its_script_does_nothing),
        ("limits_of_devices_are_errors", limits_of_devices_are_errors),
        ("bridges_are_numbered_and_forward", bridges_are_numbered_and_forward),
        ("functions_of_one_device", functions_of_one_device),
        ("there_is_no_other_table", there_is_no_other_table),
        ("ram_above_4_gib", ram_above_4_gib),
        ("two_machines_at_once", two_machines_at_once),
        ("edu_moves_both_ways", |bench| moves_both_ways(bench, MachineOptions::new().edu("device"))),
        ("lsi_moves_both_ways", |bench| moves_both_ways(bench, MachineOptions::new().lsi("device"))),
        ("edu_moves_both_ways_behind_a_unit", |bench| moves_both_ways(bench, (bench.unit)().edu("device"))),
    ];
    for (name, test) in tests {
        suite.test(format!("{prefix}{name}"), move || test(bench));
    }
}

/// Adds the tests in which the VT-d unit translates.
pub(crate) fn add_translated(suite: &mut Suite, start: Start) {
    suite.test("the_dmar_is_whole", move || faults::the_dmar_is_whole(start));
    suite.test("requesters_are_as_told", move || faults::requesters_are_as_told(start));
    suite.test("workspaces_move", move || faults::workspaces_move(start));
}

fn lsi_copies<B: Default>(bench: Bench<B>) -> TestResult {
    let machine = (bench.start)(&MachineOptions::new().lsi("lsi0"))?;
    let (from, to) = (machine.buffer(8192)?, machine.buffer(8192)?);
    from.write(0, &pattern(8192));
    let odd = Iova::new(to.iova().as_u64() + 3);
    done(machine.device("lsi0").copy(from.iova(), odd, 5001)?)?;
    assert_eq!(to.read(3, 5001), pattern(8192)[..5001]);
    assert_eq!((to.read(0, 3), to.read(5004, 4)), (vec![0; 3], vec![0; 4]), "nothing but what was asked for");
    Ok(())
}

fn lsi_without_its_script_does_nothing<B: Default>(bench: Bench<B>) -> TestResult {
    let machine = (bench.start)(&MachineOptions::new().lsi("lsi0"))?;
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

fn moves_both_ways<B>(bench: Bench<B>, options: MachineOptions<B>) -> TestResult {
    let machine = (bench.start)(&options)?;
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

fn limits_of_devices_are_errors<B: Default>(bench: Bench<B>) -> TestResult {
    let machine = (bench.start)(&MachineOptions::new().lsi("lsi0"))?;
    let lsi = machine.device("lsi0");
    let (last, beyond) = (Iova::new(0xffff_fffd), Iova::new(1 << 32));
    for result in [lsi.dma_write(last, &[0; 4]), lsi.poke(beyond, Access::Read), lsi.poke(Iova::new(2), Access::Read)] {
        assert!(matches!(result, Err(Error::Transfer { .. })), "{result:?}");
    }
    Ok(())
}

fn bridges_are_numbered_and_forward<B: Default>(bench: Bench<B>) -> TestResult {
    let children = [Node::edu("alias-edu"), Node::lsi("alias-lsi")];
    let machine = (bench.start)(
        &(bench.unit)()
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

fn functions_of_one_device<B: Default>(bench: Bench<B>) -> TestResult {
    let machine = (bench.start)(&MachineOptions::new().node(Node::lsi("a").at(4, 0)).node(Node::lsi("b").at(4, 3)))?;
    assert_eq!(machine.device("b").address(), machine.device("a").address().with_function(3));
    let buffer = machine.buffer(64)?;
    done(machine.device("b").dma_write(buffer.iova(), b"function")?)?;
    assert_eq!(buffer.read(0, 8), b"function");
    Ok(())
}

fn there_is_no_other_table<B: Default>(bench: Bench<B>) -> TestResult {
    let machine = (bench.start)(&(bench.unit)().lsi("lsi0"))?;
    assert!(matches!(machine.acpi_table(b"ABCD"), Err(Error::Firmware(_))));
    Ok(())
}

/// Every engine, in every place.
pub(crate) fn topology<B>(options: MachineOptions<B>) -> MachineOptions<B> {
    let inner = Node::bridge(Bridge::PcieToPci, "inner", [Node::edu("deep")]);
    options
        .edu("edu")
        .lsi("lsi")
        .node(Node::bridge(Bridge::RootPort, "port", [Node::edu("express")]))
        .node(Node::bridge(Bridge::PcieToPci, "pci", [Node::edu("first"), Node::edu("second")]))
        .node(Node::bridge(Bridge::Conventional, "old", [Node::edu("conventional")]))
        .node(Node::bridge(Bridge::RootPort, "outer", [inner]))
}

/// What is true of every ACPI table.
pub(crate) fn assert_whole(table: &[u8], signature: &[u8; 4]) {
    assert_eq!(&table[..4], signature);
    assert_eq!(table[4..8], (table.len() as u32).to_le_bytes());
    assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "the checksum is right");
}

fn ram_above_4_gib<B: Default>(bench: Bench<B>) -> TestResult {
    let machine = (bench.start)(&MachineOptions::new().ram_bytes(4 << 30).edu("edu0"))?;
    let high = PhysAddr::new((4 << 30) + 0x1234_5000);
    done(machine.device("edu0").dma_write(Iova::new(high.as_u64()), b"high memory")?)?;
    let mut read = [0; 11];
    machine.ram().read(high, &mut read);
    assert_eq!(&read, b"high memory");
    let mut ranges = Vec::new();
    machine.platform().ram(&mut |range| ranges.push((range.start().as_u64(), range.last().as_u64())));
    assert_eq!(ranges, bench.four_gib);
    Ok(())
}

fn two_machines_at_once<B: Default>(bench: Bench<B>) -> TestResult {
    let options = MachineOptions::new().lsi("lsi0");
    let (first, second) = ((bench.start)(&options)?, (bench.start)(&options)?);
    let buffers = (first.buffer(4096)?, second.buffer(4096)?);
    assert_eq!(buffers.0.phys(), buffers.1.phys(), "the same place in two memories");
    done(first.device("lsi0").dma_write(buffers.0.iova(), &[1; 64])?)?;
    done(second.device("lsi0").dma_write(buffers.1.iova(), &[2; 64])?)?;
    assert_eq!((buffers.0.read(0, 64), buffers.1.read(0, 64)), (vec![1; 64], vec![2; 64]));
    Ok(())
}

pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index % 251) as u8 + 1).collect()
}

pub(crate) fn done(outcome: DmaOutcome) -> TestResult {
    if outcome == DmaOutcome::Done { Ok(()) } else { Err(TestError::failed(format!("{outcome:?}"))) }
}

/// The x86 machine of one kind.
pub(crate) fn x86(start: Start) -> Bench<X86> {
    Bench { start, unit: vtd, four_gib: &[(0, 0x7fff_ffff), (0x1_0000_0000, 0x1_7fff_ffff)] }
}

pub(crate) fn vtd() -> X86Options {
    MachineOptions::new().vtd(VtdOptions::default())
}
