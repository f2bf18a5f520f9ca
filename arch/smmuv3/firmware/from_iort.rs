//! An IORT as a source.

use super::iort::{
    Ascii, AtsFlags, Iort, Mapping, Model, Node, NodeKind, Rmr, RmrAttributes, RmrFlags, RootComplex, SmmuV3,
    SmmuV3Flags,
};
use super::store::{Emit, Item, Source, unit_with};
use super::types::{Coherency, Httu, Interrupt, Interrupts, MsiController, MsiTarget, PciStreams, Quirks, UnitNode};
use crate::addr::{Iova, IovaRange};
use crate::arch::smmuv3::layout::StreamId;
use crate::error::Result;
use crate::prot::Prot;
use crate::region::{RegionKind, ReservedRegion};

impl Source for Iort<'_> {
    fn units(&self, emit: &mut dyn FnMut(UnitNode) -> Result<()>) -> Result<()> {
        self.nodes().try_for_each(|node| match node.kind {
            NodeKind::SmmuV3(smmu) => emit(unit(self, &node, &smmu)),
            _ => Ok(()),
        })
    }

    fn items(&self, units: &[UnitNode], emit: &mut Emit<'_>) -> Result<()> {
        self.nodes().try_for_each(|node| match node.kind {
            NodeKind::RootComplex(host) => root_complex(&node, &host, units, emit),
            NodeKind::NamedComponent(device) => {
                let own = node.mappings.filter(|mapping| mapping.single);
                at_units(own, units).try_for_each(|(mapping, unit)| {
                    emit(Item::Platform {
                        name: &Ascii(device.name),
                        unit,
                        stream: StreamId(mapping.output),
                        pasid_bits: device.pasid_bits,
                        stall: device.stall_supported,
                    })
                })
            }
            NodeKind::Rmr(rmr) => reserved(&node, &rmr, units, emit),
            _ => Ok(()),
        })
    }
}

/// The mappings that lead to an SMMUv3.
fn at_units(mappings: impl Iterator<Item = Mapping>, units: &[UnitNode]) -> impl Iterator<Item = (Mapping, u16)> {
    mappings.filter_map(|mapping| Some((mapping, unit_with(units, mapping.target)?)))
}

fn unit(iort: &Iort<'_>, node: &Node<'_>, smmu: &SmmuV3) -> UnitNode {
    let wired = |gsiv: u32| (gsiv != 0).then_some(Interrupt::Gsiv(gsiv));
    let coherent = smmu.flags.contains(SmmuV3Flags::COHACC_OVERRIDE);
    let msi = iort.own_device_id(node).and_then(|(group, device_id)| {
        // The services of a group are equals.
        Some(MsiTarget { controller: MsiController::Its(group.identifiers().next()?), device_id })
    });
    UnitNode {
        base: smmu.base,
        coherency: Some(if coherent { Coherency::Coherent } else { Coherency::NonCoherent }),
        httu: Some(match smmu.httu {
            0 => Httu::None,
            1 => Httu::Access,
            _ => Httu::AccessAndDirty,
        }),
        interrupts: Interrupts {
            event: wired(smmu.event),
            pri: wired(smmu.pri),
            gerror: wired(smmu.gerror),
            sync: wired(smmu.sync),
            combined: None,
        },
        msi,
        quirks: match smmu.model {
            Model::HisiliconHi161x => Quirks::BROKEN_PREFETCH,
            Model::CaviumCn99xx => Quirks::PAGE0_REGISTERS_ONLY,
            Model::Generic | Model::Unknown(_) => Quirks::empty(),
        },
        proximity_domain: smmu.proximity_domain,
        handle: Some(node.offset),
    }
}

fn root_complex(node: &Node<'_>, host: &RootComplex, units: &[UnitNode], emit: &mut Emit<'_>) -> Result<()> {
    at_units(node.mappings, units).try_for_each(|(mapping, unit)| {
        let mapping = node.mappings.without_shared_id(mapping);
        let (first, last, mask) = if mapping.single { (0, 0, 0) } else { (mapping.input, mapping.last, u16::MAX) };
        // What is no requester id never comes.
        let Ok(first) = u16::try_from(first) else { return Ok(()) };
        let count = last.min(0xffff).saturating_sub(u32::from(first)).saturating_add(1);
        emit(Item::Pci(PciStreams {
            segment: host.segment,
            first,
            count,
            mask,
            unit,
            stream: StreamId(mapping.output),
            ats: host.ats.contains(AtsFlags::ATS),
            pasid_bits: host.pasid_bits,
        }))
    })
}

fn reserved(node: &Node<'_>, rmr: &Rmr<'_>, units: &[UnitNode], emit: &mut Emit<'_>) -> Result<()> {
    let movable = rmr.flags.contains(RmrFlags::REMAPPING_PERMITTED);
    let mut prot = Prot::RW;
    prot.set(Prot::PRIV, rmr.flags.contains(RmrFlags::PRIVILEGED));
    prot.set(Prot::MMIO, rmr.attributes.is_device());
    prot.set(Prot::CACHE, rmr.attributes == RmrAttributes::NormalWriteBack);
    let mut regions = 0_usize;
    for range in rmr.ranges() {
        let range = IovaRange::new(Iova::new(range.start().as_u64()), Iova::new(range.last().as_u64()))?;
        let kind = if movable { RegionKind::DirectRelaxable } else { RegionKind::Direct };
        emit(Item::Region(ReservedRegion { range, kind, prot }))?;
        regions = regions.saturating_add(1);
    }
    at_units(node.mappings, units).try_for_each(|(mapping, unit)| {
        let more = if mapping.single { 0 } else { mapping.last.saturating_sub(mapping.input) };
        let last = StreamId(mapping.output.saturating_add(more));
        emit(Item::Holder { unit, first: StreamId(mapping.output), last, regions })
    })
}
