//! What QEMU's Arm machine says of its SMMUv3, once in an IORT and once in a device tree.

use iommu::PciAddress;
use iommu::arch::smmuv3::firmware::iort::{Iort, NodeKind};
use iommu::arch::smmuv3::firmware::{Coherency, Firmware, Interrupt};
use iommu::arch::smmuv3::layout::StreamId;
use iommu::device_tree::Fdt;
use iommu::platform::{Arena, Frame};
use iommu_harness::{ArmOptions, Machine, QemuArm, SmmuOptions, Suite, TestResult};

fn main() {
    let mut suite = Suite::from_arguments();
    suite.test("both_sources_tell_the_same", both_sources_tell_the_same);
    suite.test("msis_arrive_at_the_translation_service", msis_arrive_at_the_translation_service);
    suite.test("a_machine_without_smmu_tells_of_none", a_machine_without_smmu_tells_of_none);
    suite.run()
}

fn arena() -> &'static Arena {
    Arena::new(Box::leak(vec![Frame::ZERO; 64].into_boxed_slice())).unwrap()
}

fn smmu() -> ArmOptions {
    ArmOptions::new().smmu(SmmuOptions::default())
}

fn both_sources_tell_the_same() -> TestResult {
    let machine = QemuArm::start(&smmu())?;
    let blob = machine.device_tree()?;
    let tree = Fdt::new(&blob).unwrap();
    let from_table = Firmware::from_iort(arena(), &machine.acpi_table(b"IORT")?).unwrap();
    let from_tree = Firmware::from_device_tree(arena(), &tree).unwrap();
    for firmware in [&from_table, &from_tree] {
        let [unit] = firmware.units() else { panic!("{firmware:?}") };
        assert_eq!(Some(unit.base), machine.iommu_base());
        assert_eq!(unit.coherency, Some(Coherency::Coherent));
        // The table tells of buses that are there, the tree of all.
        for id in [0, 0x20, 0xff] {
            let source = PciAddress::from_requester_id(0, id).source_id();
            let stream = StreamId(u32::from(id));
            assert_eq!(firmware.stream_of(source), Some((0, stream)));
            assert_eq!(firmware.source_of(0, stream), Some(source));
            assert_eq!(firmware.regions(0, stream).count(), 0);
        }
        assert_eq!(firmware.stream_of(PciAddress::from_requester_id(1, 0).source_id()), None);
        assert_eq!(firmware.source_of(0, StreamId(0x1_0000)), None);
        assert_eq!(firmware.platform_streams().count(), 0);
    }
    // SPIs 74 to 77, which are GSIVs 106 to 109: event, PRI, sync, gerror; as a device tree has them,
    // rising edge.
    let [table, tree] = [&from_table, &from_tree].map(|firmware| firmware.units()[0].interrupts);
    let pairs =
        [(table.event, tree.event), (table.pri, tree.pri), (table.sync, tree.sync), (table.gerror, tree.gerror)];
    for ((gsiv, cells), number) in pairs.into_iter().zip(74..) {
        assert_eq!(gsiv, Some(Interrupt::Gsiv(number + 32)));
        let Some(Interrupt::Cells(cells)) = cells else { panic!("{tree:?}") };
        assert_eq!(cells.cells(), [0, number, 1]);
    }
    Ok(())
}

fn msis_arrive_at_the_translation_service() -> TestResult {
    let table = QemuArm::start(&smmu())?.acpi_table(b"IORT")?;
    let iort = Iort::parse(&table).unwrap();
    let host = iort.root_complexes(0).next().unwrap();
    let (services, id) = iort.device_id_of(&host, 0x20).unwrap();
    assert_eq!((services.identifiers().collect::<Vec<_>>(), id), (vec![0], 0x20));
    assert!(iort.to_string().contains("SMMUv3 Generic registers 0x9050000, COHACC_OVERRIDE"), "{iort}");
    Ok(())
}

fn a_machine_without_smmu_tells_of_none() -> TestResult {
    let machine = QemuArm::start(&ArmOptions::new())?;
    let table = machine.acpi_table(b"IORT")?;
    let iort = Iort::parse(&table).unwrap();
    assert!(iort.nodes().any(|node| matches!(node.kind, NodeKind::RootComplex(_))));
    let blob = machine.device_tree()?;
    let from_tree = Firmware::from_device_tree(arena(), &Fdt::new(&blob).unwrap()).unwrap();
    for firmware in [Firmware::from_iort(arena(), &table).unwrap(), from_tree] {
        assert!(firmware.units().is_empty());
        assert_eq!(firmware.stream_of(PciAddress::from_requester_id(0, 0x20).source_id()), None);
    }
    Ok(())
}
