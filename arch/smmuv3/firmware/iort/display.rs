//! Nodes in words, as for a boot log.

use core::fmt;

use super::node::{Ascii, Node, NodeKind};

/// One line for the node, then one for each of its mappings.
impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.offset)?;
        match &self.kind {
            NodeKind::ItsGroup(group) => {
                f.write_str("ITS group")?;
                group.identifiers().try_for_each(|identifier| write!(f, " {identifier}"))?;
            }
            NodeKind::NamedComponent(device) => {
                write!(f, "device {}, {} bits of PASID", Ascii(device.name), device.pasid_bits)?;
                f.write_str(if device.stall_supported { ", stalls" } else { "" })?;
            }
            NodeKind::RootComplex(host) => {
                write!(f, "PCI segment {}", host.segment)?;
                host.ats.iter_names().try_for_each(|(name, _)| write!(f, ", {name}"))?;
            }
            NodeKind::Smmu(smmu) => write!(f, "SMMU model {} registers {}", smmu.model, smmu.registers)?,
            NodeKind::SmmuV3(smmu) => {
                write!(f, "SMMUv3 {:?} registers {}", smmu.model, smmu.base)?;
                smmu.flags.iter_names().try_for_each(|(name, _)| write!(f, ", {name}"))?;
            }
            NodeKind::Pmcg(counters) => write!(f, "PMCG registers {} of {}", counters.base, counters.reference)?,
            NodeKind::Rmr(reserved) => {
                write!(f, "RMR {:?}", reserved.attributes)?;
                reserved.flags.iter_names().try_for_each(|(name, _)| write!(f, ", {name}"))?;
                reserved.ranges().try_for_each(|range| write!(f, ", {range}"))?;
            }
            NodeKind::Unknown { kind, body } => write!(f, "unknown type {kind}, {} bytes", body.len())?,
        }
        self.mappings.into_iter().try_for_each(|mapping| write!(f, "\n    {mapping}"))
    }
}
