//! A device tree as a source: the bindings `arm,smmu-v3`, `iommu`, `pci-iommu` and `reserved-memory`.

use super::store::{Emit, Item, Source, unit_with};
use super::types::{
    Coherency, Interrupt, InterruptCells, Interrupts, MsiController, MsiTarget, PciStreams, Quirks, UnitNode,
};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::arch::smmuv3::layout::StreamId;
use crate::device_tree::{DeviceTree, Path, cells, number, strings, walk};
use crate::error::{ParseErrorKind, Result};
use crate::prot::Prot;
use crate::region::{RegionKind, ReservedRegion};

/// A tree that is read for what it says of SMMUv3s.
pub(super) struct Tree<'a, T>(pub(super) &'a T);

impl<T: DeviceTree> Source for Tree<'_, T> {
    fn units(&self, emit: &mut dyn FnMut(UnitNode) -> Result<()>) -> Result<()> {
        walk(self.0, &mut |path| {
            let smmu = self.0.is_compatible(path.node, "arm,smmu-v3") && self.0.is_available(path.node);
            if smmu { emit(unit(path)?) } else { Ok(()) }
        })
    }

    fn items(&self, units: &[UnitNode], emit: &mut Emit<'_>) -> Result<()> {
        let tree = self.0;
        walk(tree, &mut |path| {
            if let Some(memory) = tree.property(path.node, "iommu-addresses") {
                reserved(path, memory, units, emit)?;
            }
            if !tree.is_available(path.node) {
                return Ok(());
            }
            if let Some(map) = tree.property(path.node, "iommu-map")
                && tree.property(path.node, "device_type").is_some_and(|kind| strings(kind).next() == Some(b"pci"))
            {
                host(path, map, units, emit)?;
            }
            device(path, units, emit)
        })
    }
}

fn unit<T: DeviceTree>(path: &Path<'_, T>) -> Result<UnitNode> {
    let (tree, node) = (path.tree, path.node);
    let has = |name| tree.property(node, name).is_some();
    let base = path.register_block(0).map(|(base, _)| PhysAddr::new(base));
    // Two pages of 64 KiB (section 6.1).
    let good =
        |base: &PhysAddr| base.as_u64() != 0 && base.is_aligned(0x1_0000) && base.checked_add(0x1_ffff).is_some();
    let base = base.filter(good).ok_or_else(|| tree.error(node, ParseErrorKind::Value))?;
    let mut quirks = Quirks::empty();
    quirks.set(Quirks::BROKEN_PREFETCH, has("hisilicon,broken-prefetch-cmd"));
    quirks.set(Quirks::PAGE0_REGISTERS_ONLY, has("cavium,cn9900-broken-page1-regspace"));
    let msi = tree.property(node, "msi-parent").and_then(|parent| {
        let mut parent = cells(parent);
        let controller = MsiController::Phandle(parent.next()?);
        Some(MsiTarget { controller, device_id: parent.next().unwrap_or(0) })
    });
    Ok(UnitNode {
        base,
        coherency: Some(if has("dma-coherent") { Coherency::Coherent } else { Coherency::NonCoherent }),
        httu: None,
        interrupts: interrupts(path)?,
        msi,
        quirks,
        proximity_domain: tree.cell(node, "numa-node-id"),
        handle: tree.cell(node, "phandle"),
    })
}

/// The interrupts by their names. Each has the same number of cells, that of their controller.
fn interrupts<T: DeviceTree>(path: &Path<'_, T>) -> Result<Interrupts> {
    let (tree, node) = (path.tree, path.node);
    let mut wired = Interrupts::default();
    let (Some(names), Some(list)) = (tree.property(node, "interrupt-names"), tree.property(node, "interrupts")) else {
        return Ok(wired);
    };
    let bad = || tree.error(node, ParseErrorKind::Length);
    let (mut list, count) = (cells(list), strings(names).count());
    let each = list.len().checked_div(count).unwrap_or(0);
    if each == 0 || Some(list.len()) != each.checked_mul(count) {
        return Err(bad().into());
    }
    for name in strings(names) {
        let mut one = heapless::Vec::<u32, { InterruptCells::MAX }>::new();
        for _ in 0..each {
            one.push(list.next().unwrap_or(0)).map_err(|_| bad())?;
        }
        let interrupt = InterruptCells::new(&one).map(Interrupt::Cells);
        match name {
            b"eventq" => wired.event = interrupt,
            b"priq" => wired.pri = interrupt,
            b"gerror" => wired.gerror = interrupt,
            b"cmdq-sync" => wired.sync = interrupt,
            b"combined" => wired.combined = interrupt,
            _ => {}
        }
    }
    Ok(wired)
}

/// The StreamIDs of a device, from its `iommus`: a phandle and, for an SMMUv3, one cell each.
fn streams<T: DeviceTree>(
    tree: &T,
    node: T::Node,
    units: &[UnitNode],
    mut visit: impl FnMut(u16, StreamId) -> Result<()>,
) -> Result<()> {
    let mut list = cells(tree.property(node, "iommus").unwrap_or_default());
    while let Some(phandle) = list.next() {
        if let Some(unit) = unit_with(units, phandle) {
            let id = list.next().ok_or_else(|| tree.error(node, ParseErrorKind::Length))?;
            visit(unit, StreamId(id))?;
            continue;
        }
        // Another kind of IOMMU, or one that is disabled: what follows is as long as it says.
        let other = tree.find_phandle(phandle).and_then(|other| tree.cell(other, "#iommu-cells"));
        let skipped = other.ok_or_else(|| tree.error(node, ParseErrorKind::Reference))?;
        for _ in 0..skipped {
            list.next().ok_or_else(|| tree.error(node, ParseErrorKind::Length))?;
        }
    }
    Ok(())
}

fn device<T: DeviceTree>(path: &Path<'_, T>, units: &[UnitNode], emit: &mut Emit<'_>) -> Result<()> {
    let (tree, node) = (path.tree, path.node);
    let pasid_bits = match tree.cell(node, "pasid-num-bits").unwrap_or(0) {
        bits @ 0..=20 => bits as u8,
        _ => return Err(tree.error(node, ParseErrorKind::Value).into()),
    };
    let stall = tree.property(node, "dma-can-stall").is_some();
    streams(tree, node, units, |unit, stream| emit(Item::Platform { name: path, unit, stream, pasid_bits, stall }))
}

/// A PCI host: requester id, phandle, StreamID, number of ids; any number of times.
fn host<T: DeviceTree>(path: &Path<'_, T>, map: &[u8], units: &[UnitNode], emit: &mut Emit<'_>) -> Result<()> {
    let (tree, node) = (path.tree, path.node);
    let bad = |kind| tree.error(node, kind);
    if !map.len().is_multiple_of(16) {
        return Err(bad(ParseErrorKind::Length).into());
    }
    let segment = tree.cell(node, "linux,pci-domain").unwrap_or(0);
    let segment = u16::try_from(segment).map_err(|_| bad(ParseErrorKind::Value))?;
    let mask = tree.cell(node, "iommu-map-mask").unwrap_or(u32::MAX) as u16;
    let ats = tree.property(node, "ats-supported").is_some();
    let mut map = cells(map);
    while let (Some(first), Some(phandle), Some(stream), Some(count)) = (map.next(), map.next(), map.next(), map.next())
    {
        let Some(unit) = unit_with(units, phandle) else { continue };
        if count == 0 {
            continue;
        }
        let more = count.saturating_sub(1);
        let first = u16::try_from(first).ok().filter(|first| first & mask == *first);
        let (Some(first), Some(_)) = (first, stream.checked_add(more)) else {
            return Err(bad(ParseErrorKind::Value).into());
        };
        // What is no requester id never comes.
        let count = count.min(0x1_0000_u32.saturating_sub(u32::from(first)));
        emit(Item::Pci(PciStreams {
            segment,
            first,
            count,
            mask,
            unit,
            stream: StreamId(stream),
            ats,
            pasid_bits: None,
        }))?;
    }
    Ok(())
}

/// Reserved memory that concerns devices: phandle, IOVA, length, as wide as on the device's bus; any
/// number of times. Where it is the memory itself it is mapped one to one, as a boot display has it;
/// otherwise it is never to be mapped.
fn reserved<T: DeviceTree>(path: &Path<'_, T>, memory: &[u8], units: &[UnitNode], emit: &mut Emit<'_>) -> Result<()> {
    let (tree, node) = (path.tree, path.node);
    let bad = |kind| tree.error(node, kind);
    let block = path.register_block(0);
    let mut list = cells(memory);
    while let Some(phandle) = list.next() {
        let mut device = None;
        walk(tree, &mut |path| {
            if tree.cell(path.node, "phandle") == Some(phandle) {
                device = Some((path.node, path.address_cells()));
            }
            Ok(())
        })?;
        let (device, (address, size)) = device.ok_or_else(|| bad(ParseErrorKind::Reference))?;
        let range = number(&mut list, address).zip(number(&mut list, size));
        let (start, bytes) = range.ok_or_else(|| bad(ParseErrorKind::Length))?;
        let range = IovaRange::from_len(Iova::new(start), bytes).map_err(|_| bad(ParseErrorKind::Value))?;
        let kind = if block == Some((start, bytes)) { RegionKind::Direct } else { RegionKind::Reserved };
        emit(Item::Region(ReservedRegion { range, kind, prot: Prot::RW }))?;
        streams(tree, device, units, |unit, stream| {
            emit(Item::Holder { unit, first: stream, last: stream, regions: 1 })
        })?;
    }
    Ok(())
}
