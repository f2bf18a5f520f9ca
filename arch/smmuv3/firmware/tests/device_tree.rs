//! Tests of the device tree as a source.

extern crate std;

use std::format;
use std::string::ToString;
use std::vec::Vec;

use super::tree::{TestTree, Value::*};
use super::{MAIN, SMALL, arena};
use crate::arch::smmuv3::firmware::{Coherency, Firmware, Interrupt, InterruptCells, MsiController, MsiTarget, Quirks};
use crate::arch::smmuv3::layout::StreamId;
use crate::device::Trust;
use crate::device_tree::{DeviceTree, MAX_DEPTH};
use crate::error::{Error, ParseError, ParseErrorKind, Result};
use crate::id::SourceId;
use crate::platform::Arena;
use crate::region::RegionKind;

/// Where the nodes of [`board`] are.
const SOC: usize = 1;
const SMMU: usize = 2;
const OTHER: usize = 4;
const DMA: usize = 5;
const PCI: usize = 6;
const FRAMEBUFFER: usize = 9;

/// A board with two SMMUv3s, one of them behind a bus that moves addresses, and an IOMMU of another
/// kind.
fn board() -> TestTree {
    let mut tree = TestTree::new(&[("#address-cells", Cells(&[2])), ("#size-cells", Cells(&[2]))]);
    let soc = tree.add(
        0,
        "soc",
        &[
            ("compatible", Text("simple-bus")),
            ("#address-cells", Cells(&[1])),
            ("#size-cells", Cells(&[1])),
            ("ranges", Cells(&[0x1000_0000, 0, 0x4000_0000, 0x100_0000, 0, 0, 0x905_0000, 0x100_0000])),
        ],
    );
    assert_eq!(soc, SOC);
    let smmu = tree.add(
        soc,
        "iommu@0",
        &[
            ("compatible", Text("vendor,mmu\0arm,smmu-v3")),
            ("reg", Cells(&[0, 0x2_0000])),
            ("#iommu-cells", Cells(&[1])),
            ("phandle", Cells(&[8])),
            ("dma-coherent", Flag),
            ("interrupt-names", Text("eventq\0priq\0cmdq-sync\0gerror")),
            ("interrupts", Cells(&[0, 74, 1, 0, 75, 1, 0, 76, 1, 0, 77, 1])),
            ("msi-parent", Cells(&[3, 0x99])),
            ("numa-node-id", Cells(&[1])),
        ],
    );
    assert_eq!(smmu, SMMU);
    tree.add(
        0,
        "iommu@2b400000",
        &[
            ("compatible", Text("arm,smmu-v3")),
            ("reg", Cells(&[0, 0x2b40_0000, 0, 0x2_0000])),
            ("#iommu-cells", Cells(&[1])),
            ("phandle", Cells(&[9])),
            ("hisilicon,broken-prefetch-cmd", Flag),
            ("interrupt-names", Text("combined")),
            ("interrupts", Cells(&[0, 80, 4, 0])),
        ],
    );
    let other = tree.add(
        0,
        "iommu@1",
        &[("compatible", Text("arm,mmu-500")), ("#iommu-cells", Cells(&[2])), ("phandle", Cells(&[10]))],
    );
    assert_eq!(other, OTHER);
    let dma = tree.add(
        soc,
        "dma@10000100",
        &[
            ("iommus", Cells(&[8, 0x40, 10, 1, 2, 9, 5])),
            ("pasid-num-bits", Cells(&[6])),
            ("dma-can-stall", Flag),
            ("phandle", Cells(&[20])),
        ],
    );
    assert_eq!(dma, DMA);
    let pci = tree.add(
        0,
        "pcie@10000000",
        &[
            ("device_type", Text("pci")),
            ("linux,pci-domain", Cells(&[2])),
            ("ats-supported", Flag),
            ("iommu-map", Cells(&[0, 8, 0x1_0000, 0x100, 0x100, 9, 0, 0xff00, 0x200, 10, 0, 1])),
        ],
    );
    assert_eq!(pci, PCI);
    tree.add(
        0,
        "pcie@20000000",
        &[
            ("device_type", Text("pci")),
            ("linux,pci-domain", Cells(&[3])),
            ("iommu-map-mask", Cells(&[0xfff8])),
            ("iommu-map", Cells(&[0, 8, 0x2_0000, 0x1_0000])),
        ],
    );
    let memory = tree.add(
        0,
        "reserved-memory",
        &[("#address-cells", Cells(&[2])), ("#size-cells", Cells(&[2])), ("ranges", Flag)],
    );
    let framebuffer = tree.add(
        memory,
        "framebuffer@80000000",
        &[
            ("reg", Cells(&[0, 0x8000_0000, 0, 0x10_0000])),
            ("iommu-addresses", Cells(&[20, 0x8000_0000, 0x10_0000, 20, 0x9000_0000, 0x1000])),
        ],
    );
    assert_eq!(framebuffer, FRAMEBUFFER);
    tree
}

fn read(tree: &impl DeviceTree) -> Result<Firmware<&'static Arena>> {
    Firmware::from_device_tree(arena(64), tree)
}

fn error_of(tree: &TestTree) -> (u32, ParseErrorKind) {
    match read(tree) {
        Err(Error::Firmware(ParseError { offset, kind })) => (offset, kind),
        other => panic!("{other:?}"),
    }
}

fn cells(cells: &[u32]) -> Option<Interrupt> {
    InterruptCells::new(cells).map(Interrupt::Cells)
}

fn check_board(firmware: &Firmware<&'static Arena>) {
    let [main, small] = firmware.units() else { panic!() };
    assert_eq!((main.base.as_u64(), small.base.as_u64()), (0x905_0000, 0x2b40_0000));
    assert_eq!((main.coherency, small.coherency), (Some(Coherency::Coherent), Some(Coherency::NonCoherent)));
    assert_eq!((main.httu, main.proximity_domain, small.proximity_domain), (None, Some(1), None));
    assert_eq!((main.quirks, small.quirks), (Quirks::empty(), Quirks::BROKEN_PREFETCH));
    let wired = main.interrupts;
    assert_eq!((wired.event, wired.pri), (cells(&[0, 74, 1]), cells(&[0, 75, 1])));
    assert_eq!((wired.sync, wired.gerror, wired.combined), (cells(&[0, 76, 1]), cells(&[0, 77, 1]), None));
    assert_eq!(small.interrupts.combined, cells(&[0, 80, 4, 0]));
    assert_eq!(main.msi, Some(MsiTarget { controller: MsiController::Phandle(3), device_id: 0x99 }));

    let stream = |segment, id| firmware.stream_of(SourceId::pci(segment, id)).map(|(unit, stream)| (unit, stream.0));
    assert_eq!((stream(2, 0xff), stream(2, 0x100)), (Some((MAIN, 0x1_00ff)), Some((SMALL, 0))));
    assert_eq!((stream(2, 0xffff), stream(0, 0)), (Some((SMALL, 0xfeff)), None));
    // The mask puts the functions of a device together.
    assert_eq!((stream(3, 0x10), stream(3, 0x17)), (Some((MAIN, 0x2_0010)), Some((MAIN, 0x2_0010))));
    assert_eq!(firmware.source_of(MAIN, StreamId(0x2_0010)), Some(SourceId::pci(3, 0x10)));
    assert_eq!(firmware.source_of(MAIN, StreamId(0x2_0011)), None);
    assert!(firmware.ats_supported(SourceId::pci(2, 0)) && !firmware.ats_supported(SourceId::pci(3, 0)));
    assert_eq!(firmware.pasid_bits(SourceId::pci(2, 0)), None);

    let device = firmware.platform_device("/soc/dma@10000100", Trust::Trusted).unwrap();
    assert_eq!(device.sources, [SourceId::platform(0, 0x40), SourceId::platform(1, 5)]);
    let stream = firmware.platform_stream(SourceId::platform(1, 5)).unwrap();
    assert!(stream.stall && stream.pasid_bits == 6);
    let regions: Vec<_> = firmware.regions(MAIN, StreamId(0x40)).map(|region| (region.range, region.kind)).collect();
    let shown: Vec<_> = regions.iter().map(|(range, kind)| (range.to_string(), *kind)).collect();
    assert_eq!(
        shown,
        [
            ("0x80000000..=0x800fffff".to_string(), RegionKind::Direct),
            ("0x90000000..=0x90000fff".to_string(), RegionKind::Reserved),
        ]
    );
    assert_eq!(firmware.regions(SMALL, StreamId(5)).count(), 2);
    assert_eq!(firmware.regions(SMALL, StreamId(0x40)).count(), 0);
}

#[test]
fn a_board_is_understood() {
    check_board(&read(&board()).unwrap());
}

#[cfg(feature = "fdt")]
#[test]
fn a_board_is_understood_from_a_blob() {
    use crate::device_tree::Fdt;
    let tree = board();
    let blob = tree.flatten();
    let fdt = Fdt::new(&blob).unwrap();
    check_board(&read(&fdt).unwrap());
    // An error says where in the blob the node is: its name lies there.
    let mut tree = tree;
    tree.set(PCI, "iommu-map", &Cells(&[0, 8, 0]));
    let blob = tree.flatten();
    let Err(Error::Firmware(error)) = read(&Fdt::new(&blob).unwrap()) else { panic!() };
    assert_eq!(error.kind, ParseErrorKind::Length);
    assert!(blob[error.offset as usize..].starts_with(b"pcie@10000000\0"));
}

#[test]
fn what_is_disabled_is_passed_over() {
    let mut tree = board();
    tree.set(SMMU, "status", &Text("disabled"));
    let firmware = read(&tree).unwrap();
    assert_eq!(firmware.units().len(), 1);
    assert_eq!(firmware.stream_of(SourceId::pci(2, 0)), None);
    assert_eq!(firmware.stream_of(SourceId::pci(2, 0x100)), Some((0, StreamId(0))));
    // The device's other StreamID still counts, and is found behind those of other IOMMUs.
    assert_eq!(firmware.platform_device("/soc/dma@10000100", Trust::Trusted).unwrap().sources.len(), 1);
    tree.set(DMA, "status", &Text("disabled"));
    assert_eq!(read(&tree).unwrap().platform_streams().count(), 0);
    tree.set(DMA, "status", &Text("okay"));
    assert_eq!(read(&tree).unwrap().platform_streams().count(), 1);
}

#[test]
fn malformed_nodes_are_named_by_their_place() {
    use ParseErrorKind::{Length, Reference, Value};
    let cases: &[(usize, &str, &[u32], ParseErrorKind)] = &[
        (SMMU, "reg", &[0x8000, 0x2_0000], Value),
        (SMMU, "reg", &[0], Value),
        (SMMU, "reg", &[0x500_0000, 0x2_0000], Value),
        (SMMU, "interrupts", &[0, 74, 1, 0, 75], Length),
        (SMMU, "interrupts", &[], Length),
        (SMMU, "interrupts", &[0; 20], Length),
        (DMA, "iommus", &[8], Length),
        (DMA, "iommus", &[77, 1], Reference),
        (DMA, "iommus", &[20, 1], Reference),
        (DMA, "iommus", &[10, 1], Length),
        (DMA, "pasid-num-bits", &[21], Value),
        (PCI, "iommu-map", &[0, 8, 0], Length),
        (PCI, "iommu-map", &[0x1_0000, 8, 0, 1], Value),
        (PCI, "iommu-map", &[0, 8, 2, u32::MAX], Value),
        (PCI, "linux,pci-domain", &[0x1_0000], Value),
        (PCI, "iommu-map-mask", &[0xff], Value),
        (FRAMEBUFFER, "iommu-addresses", &[77, 0, 1], Reference),
        (FRAMEBUFFER, "iommu-addresses", &[20, 0], Length),
        (FRAMEBUFFER, "iommu-addresses", &[20, 0, 0], Value),
    ];
    for (node, name, value, kind) in cases {
        let mut tree = board();
        if *name == "iommu-map-mask" {
            tree.set(*node, "iommu-map", &Cells(&[0x100, 8, 0, 1]));
        }
        tree.set(*node, name, &Cells(value));
        let place = match *name {
            // Regions belong to devices whose `iommus` are named.
            _ if *node == DMA => DMA,
            _ => *node,
        };
        assert_eq!(error_of(&tree), (place as u32, *kind), "{name} = {value:x?}");
    }
    let mut tree = board();
    tree.remove(OTHER, "#iommu-cells");
    assert_eq!(error_of(&tree), (DMA as u32, Reference));
    tree.remove(SOC, "ranges");
    assert_eq!(error_of(&tree), (SMMU as u32, Value), "no way to the bus");
}

#[test]
fn buses_that_lead_nowhere_end() {
    let mut tree = board();
    for (address, size) in [(0, 1), (1, 0), (0, 0)] {
        tree.set(SOC, "#address-cells", &Cells(&[address]));
        tree.set(SOC, "#size-cells", &Cells(&[size]));
        tree.set(SMMU, "reg", &Cells(&[0, 0, 0, 0]));
        assert_eq!(error_of(&tree), (SMMU as u32, ParseErrorKind::Value));
    }
    tree.set(SOC, "#address-cells", &Cells(&[u32::MAX]));
    assert_eq!(error_of(&tree), (SMMU as u32, ParseErrorKind::Value));
}

#[test]
fn maps_of_no_id_and_of_too_many() {
    let mut tree = board();
    tree.set(PCI, "iommu-map", &Cells(&[0, 8, 0, 0, 0xff00, 9, 0x10, 0x1000]));
    let firmware = read(&tree).unwrap();
    let stream = |id| firmware.stream_of(SourceId::pci(2, id)).map(|(unit, stream)| (unit, stream.0));
    assert_eq!((stream(0), stream(0xffff)), (None, Some((SMALL, 0x10f))));
    assert_eq!(firmware.source_of(SMALL, StreamId(0x110)), None);
}

#[test]
fn trees_that_are_too_deep_are_refused() {
    let mut tree = TestTree::new(&[]);
    let mut node = 0;
    for level in 1..MAX_DEPTH {
        node = tree.add(node, &format!("bus{level}"), &[]);
    }
    assert!(read(&tree).unwrap().units().is_empty());
    tree.add(node, "one-more", &[("phandle", Cells(&[5]))]);
    assert_eq!(read(&tree).err(), Some(Error::Capacity("MAX_DEPTH")));
}
