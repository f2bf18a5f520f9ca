//! The IORT parser on any bytes, every question that can be asked of a table that it accepts, and what
//! the driver makes of it.
//!
//! The input is a table. It is tried as it is, and again with the header put right and with references
//! that lead to nodes, so that the fuzzer need not guess them.
#![no_main]

use std::fmt::Write;
use std::sync::OnceLock;

use iommu::arch::smmuv3::firmware::iort::{Iort, Node, NodeKind};
use iommu::arch::smmuv3::firmware::{Firmware, PciStreams};
use iommu::arch::smmuv3::layout::StreamId;
use iommu::device::Trust;
use iommu::platform::{Arena, Frame};
use iommu::{Error, SourceId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    examine(bytes);
    if let Some(table) = put_right(bytes) {
        examine(&table);
    }
});

/// Bytes of a node's header, and of a mapping.
const HEADER: usize = 16;
const MAPPING: usize = 20;

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

fn put_right(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut table = bytes.to_vec();
    let length = u32::try_from(table.len()).ok()?;
    table.get_mut(..48)?;
    table[..4].copy_from_slice(b"IORT");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[40..44].copy_from_slice(&48_u32.to_le_bytes());
    let mut nodes = Vec::new();
    let mut at = 48;
    while let Some(header) = table.get(at..at + HEADER) {
        let length = usize::from(u16::from_le_bytes([header[1], header[2]]));
        if length < HEADER || table.len() - at < length {
            break;
        }
        nodes.push((at, length));
        at += length;
    }
    table[36..40].copy_from_slice(&(nodes.len() as u32).to_le_bytes());
    for &(at, length) in &nodes {
        let (count, first) = (number(&table, at + 8)?, number(&table, at + 12)?);
        for index in 0..count.min(length / MAPPING) {
            let place = at + first.min(length) + index * MAPPING + 12;
            let Some(reference) = number(&table, place).filter(|_| place + 8 <= at + length) else { break };
            if !nodes.iter().any(|(start, _)| *start == reference) {
                let (start, _) = nodes[reference % nodes.len()];
                table[place..place + 4].copy_from_slice(&(start as u32).to_le_bytes());
            }
        }
    }
    table[9] = 0;
    table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    Some(table)
}

fn examine(bytes: &[u8]) {
    let iort = match Iort::parse(bytes) {
        Ok(iort) => iort,
        Err(error) => {
            assert!(error.offset as usize <= bytes.len(), "{error} in {} bytes", bytes.len());
            let made = Firmware::from_iort(arena(), bytes).err();
            assert_eq!(made, Some(Error::Firmware(error)));
            return;
        }
    };
    assert!(iort.nodes().count() <= bytes.len() / HEADER);
    let mut text = String::new();
    write!(text, "{iort} {iort:?}").unwrap();

    match Firmware::from_iort(arena(), bytes) {
        Ok(firmware) => {
            for node in iort.nodes() {
                ask_about(&iort, &node, &firmware);
            }
        }
        Err(error) => assert_eq!(error, Error::NoMemory),
    }
    assert_eq!(arena().frames_in_use(), 0);
}

fn arena() -> &'static Arena {
    static ARENA: OnceLock<&'static Arena> = OnceLock::new();
    ARENA.get_or_init(|| Arena::new(Box::leak(vec![Frame::ZERO; 256].into_boxed_slice())).unwrap())
}

/// Where the table itself says that an id of a node arrives.
fn arrives(iort: &Iort<'_>, node: &Node<'_>, id: u32) -> Option<(u64, StreamId)> {
    iort.stream_of(node, id).map(|(smmu, stream)| (smmu.base.as_u64(), stream))
}

fn ask_about(iort: &Iort<'_>, node: &Node<'_>, firmware: &Firmware<&'static Arena>) {
    let base = |unit: usize| firmware.units()[unit].base.as_u64();
    assert_eq!(iort.node_at(node.offset).map(|found| found.mappings.count()), Some(node.mappings.count()));
    let _ = iort.own_device_id(node);
    for mapping in node.mappings.take(64) {
        let target = iort.node_at(mapping.target).expect("a mapping leads to a node");
        for id in [mapping.input, mapping.last, mapping.input.wrapping_sub(1), mapping.last.wrapping_add(1)] {
            let arrived = arrives(iort, node, id);
            assert_eq!(arrived, arrives(iort, node, id));
            // Who has a StreamID may have a DeviceID behind it: that of the SMMU.
            if let (Some((_, stream)), NodeKind::SmmuV3(_)) = (arrived, target.kind)
                && node.mappings.find(id).is_some_and(|(found, _)| found == mapping)
            {
                let direct = iort.device_id_of(&target, stream.0).map(|(_, id)| id);
                assert_eq!(iort.device_id_of(node, id).map(|(_, id)| id), direct);
            }
            if let (NodeKind::RootComplex(host), Ok(requester)) = (node.kind, u16::try_from(id)) {
                let source = SourceId::pci(host.segment, requester);
                let by_table = iort.root_complexes(host.segment).find_map(|host| arrives(iort, &host, id));
                let known = firmware.stream_of(source);
                assert_eq!(known.map(|(unit, stream)| (base(unit), stream)), by_table, "{source}");
                if let Some((unit, stream)) = known {
                    // Hosts that share a segment may contradict each other.
                    if iort.root_complexes(host.segment).nth(1).is_none() {
                        check_source(firmware, unit, stream);
                    }
                    assert!(firmware.pci_streams(source).is_some_and(|streams: &PciStreams| {
                        streams.stream_of(requester) == Some(stream) && firmware.ats_supported(source) == streams.ats
                    }));
                }
            }
        }
        if let NodeKind::Rmr(rmr) = node.kind
            && let Some(unit) = firmware.units().iter().position(|unit| match target.kind {
                NodeKind::SmmuV3(smmu) => smmu.base == unit.base,
                _ => false,
            })
        {
            // Units may claim the same registers; then this is the first, and not all of its regions.
            let holders = || firmware.streams_with_regions().filter(|(_, first, _)| first.0 == mapping.output);
            assert!(holders().any(|(holder, _, _)| base(holder) == base(unit)));
            for (holder, first, last) in holders().take(4) {
                assert!(first <= last && firmware.regions(holder, last).count() >= rmr.ranges().count().min(1));
            }
        }
    }
    if let NodeKind::NamedComponent(_) = node.kind {
        for (smmu, stream) in iort.streams(node).take(16) {
            let found = firmware
                .platform_streams()
                .find(|known| known.stream == stream && firmware.units()[usize::from(known.unit)].base == smmu.base);
            let known = found.expect("a StreamID of a device is kept");
            let source = SourceId::platform(known.unit, stream.0);
            assert_eq!(firmware.stream_of(source), Some((usize::from(known.unit), stream)));
            check_source(firmware, usize::from(known.unit), stream);
            match firmware.platform_device(known.name, Trust::Untrusted) {
                Ok(device) => assert!(device.sources.contains(&source)),
                Err(error) => assert!(matches!(error, Error::Capacity(_))),
            }
        }
    }
}

/// Whoever is said to send with a StreamID does.
fn check_source(firmware: &Firmware<&'static Arena>, unit: usize, stream: StreamId) {
    let source = firmware.source_of(unit, stream).expect("somebody has this StreamID");
    assert_eq!(firmware.stream_of(source), Some((unit, stream)), "{source}");
    let _ = firmware.pasid_bits(source);
    let _ = firmware.regions(unit, stream).count();
}
