//! Following ids from node to node.

use super::node::{ItsGroup, Node, NodeKind, SmmuV3};
use super::{Iort, node};
use crate::arch::smmuv3::layout::StreamId;
use crate::error::ParseError;

/// The way of an id from a device is at most this long: SMMU, interrupt translation service.
const MAX_STEPS: usize = 2;

impl<'a> Iort<'a> {
    /// The SMMUv3 at which `id` of `node` arrives, and under which StreamID; `None` when it is mapped
    /// to no SMMUv3.
    ///
    /// For a PCI host `id` is the requester id. For a platform device that passes ids of others on it
    /// is such an id; its own are [`streams`](Self::streams).
    pub fn stream_of(&self, node: &Node<'a>, id: u32) -> Option<(SmmuV3, StreamId)> {
        let mut at = (*node, id);
        for _ in 0..MAX_STEPS {
            at = self.step(&at.0, at.1)?;
            if let NodeKind::SmmuV3(smmu) = at.0.kind {
                return Some((smmu, StreamId(at.1)));
            }
        }
        None
    }

    /// Where the ids that a platform device has itself (its single mappings) arrive, if at an SMMUv3.
    pub fn streams(&self, node: &Node<'a>) -> impl Iterator<Item = (SmmuV3, StreamId)> + use<'a> {
        let iort = *self;
        node.mappings.filter(|mapping| mapping.single).filter_map(move |mapping| {
            match iort.node_at(mapping.target)?.kind {
                NodeKind::SmmuV3(smmu) => Some((smmu, StreamId(mapping.output))),
                _ => None,
            }
        })
    }

    /// The interrupt translation services that take MSIs that `node` sends under `id`, and under which
    /// DeviceID; `None` when they are mapped to none. Ids are those of [`stream_of`](Self::stream_of).
    pub fn device_id_of(&self, node: &Node<'a>, id: u32) -> Option<(ItsGroup<'a>, u32)> {
        let mut at = (*node, id);
        for _ in 0..MAX_STEPS {
            at = self.step(&at.0, at.1)?;
            if let NodeKind::ItsGroup(group) = at.0.kind {
                return Some((group, at.1));
            }
        }
        None
    }

    /// The interrupt translation services that take MSIs that an SMMUv3 or a group of performance
    /// counters sends itself, and under which DeviceID.
    pub fn own_device_id(&self, node: &Node<'a>) -> Option<(ItsGroup<'a>, u32)> {
        let index = match node.kind {
            NodeKind::SmmuV3(smmu) => usize::try_from(smmu.device_id_mapping?).ok()?,
            NodeKind::Pmcg(_) => 0,
            _ => return None,
        };
        let mapping = node.mappings.get(index).filter(|mapping| mapping.single)?;
        match self.node_at(mapping.target)?.kind {
            NodeKind::ItsGroup(group) => Some((group, mapping.output)),
            _ => None,
        }
    }

    /// The PCI hosts of a segment, usually one.
    pub fn root_complexes(&self, segment: u16) -> impl Iterator<Item = Node<'a>> + Clone + use<'a> {
        self.nodes().filter(move |node| matches!(node.kind, NodeKind::RootComplex(host) if host.segment == segment))
    }

    /// One step along the mappings.
    fn step(&self, node: &Node<'a>, id: u32) -> Option<(Node<'a>, u32)> {
        let single = match node.kind {
            NodeKind::RootComplex(_) => node.mappings.get(0).filter(|mapping| mapping.single),
            _ => None,
        };
        let (mapping, output) = match single {
            Some(mapping) => (mapping, mapping.output),
            None => node.mappings.find(id)?,
        };
        Some((self.node_at(mapping.target)?, output))
    }

    /// Checks that everything `node` refers to is there and of a kind to which it may refer.
    pub(super) fn check_references(&self, node: &Node<'a>) -> Result<(), ParseError> {
        if let NodeKind::Pmcg(pmcg) = node.kind {
            self.find(pmcg.reference).ok_or_else(|| pmcg.bad_reference(node.offset))?;
        }
        // Mappings in a row mostly refer to one node.
        let mut good = None;
        for (index, mapping) in node.mappings.enumerate() {
            if good == Some(mapping.target) {
                continue;
            }
            let target = self.find(mapping.target).and_then(|part| node::split(part).ok());
            if !target.is_some_and(|(header, _, _)| node.kind.may_refer_to(header.kind)) {
                return Err(node.mappings.bad_reference(index));
            }
            good = Some(mapping.target);
        }
        Ok(())
    }
}
