//! Flattened device trees of any bytes, and what the SMMUv3 driver makes of those that are whole.
#![no_main]

use std::sync::OnceLock;

use iommu::arch::smmuv3::firmware::Firmware;
use iommu::arch::smmuv3::layout::StreamId;
use iommu::device_tree::{DeviceTree, Fdt, walk};
use iommu::platform::{Arena, Frame};
use iommu::{Error, SourceId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tree) = Fdt::new(bytes) else { return };
    look_at_every_node(&tree, bytes);
    match Firmware::from_device_tree(arena(), &tree) {
        Ok(firmware) => ask(&firmware),
        Err(Error::Firmware(error)) => assert!((error.offset as usize) < bytes.len(), "{error}"),
        Err(error) => assert!(matches!(error, Error::NoMemory | Error::Capacity(_)), "{error}"),
    }
    assert_eq!(arena().frames_in_use(), 0);
});

fn arena() -> &'static Arena {
    static ARENA: OnceLock<&'static Arena> = OnceLock::new();
    ARENA.get_or_init(|| Arena::new(Box::leak(vec![Frame::ZERO; 256].into_boxed_slice())).unwrap())
}

fn look_at_every_node(tree: &Fdt<'_>, bytes: &[u8]) {
    let mut nodes = 0;
    let walked = walk(tree, &mut |path| {
        nodes += 1;
        // A node begins with a token and a name, and ends with a token.
        assert!(nodes <= bytes.len() / 12 && (tree.position(path.node) as usize) < bytes.len());
        assert!(path.to_string().starts_with('/'));
        let _ = (path.register_block(0), path.register_block(1), path.translate(0), tree.is_available(path.node));
        if let Some(phandle) = tree.cell(path.node, "phandle") {
            assert!(tree.find_phandle(phandle).is_some());
        }
        Ok(())
    });
    assert!(walked.is_ok() || matches!(walked, Err(Error::Capacity("MAX_DEPTH"))));
}

fn ask(firmware: &Firmware<&'static Arena>) {
    for unit in 0..firmware.units().len() {
        for stream in [0, 7, 0x40, 0x1_0000].map(StreamId) {
            if let Some(source) = firmware.source_of(unit, stream) {
                assert_eq!(firmware.stream_of(source), Some((unit, stream)));
            }
            let _ = firmware.regions(unit, stream).count();
        }
    }
    for segment in 0..4 {
        for id in [0, 0x10, 0x100, 0xffff] {
            let source = SourceId::pci(segment, id);
            let streams =
                firmware.pci_streams(source).map(|streams| (usize::from(streams.unit), streams.stream_of(id)));
            assert_eq!(streams, firmware.stream_of(source).map(|(unit, stream)| (unit, Some(stream))));
        }
    }
    for stream in firmware.platform_streams().take(64) {
        assert!(stream.name.starts_with('/'));
        assert!(firmware.source_of(usize::from(stream.unit), stream.stream).is_some());
    }
}
