//! Where the devices of the options are, among the functions of a machine.

use iommu::{PciAddress, SourceId};

use crate::error::{Error, Result};
use crate::options::{Bridge, Node, NodeKind};
use crate::pci::PciFunction;

/// A device of the options and the function that it is.
pub(crate) struct Located<'a> {
    pub(crate) node: &'a Node,
    pub(crate) function: &'a PciFunction,
    /// Who the IOMMU takes its requests to come from.
    pub(crate) requester: SourceId,
}

/// Finds the devices of `topology` among the functions of a machine, each bridge before what is behind it.
pub(crate) fn locate<'a>(topology: &'a [Node], functions: &'a [PciFunction]) -> Result<Vec<Located<'a>>> {
    let mut found = Vec::new();
    below(topology, functions, None, None, &mut found)?;
    Ok(found)
}

/// `parent` is the bridge that the nodes are behind, with its kind; `alias` who their requests seem to come from, when
/// not from themselves.
fn below<'a>(
    nodes: &'a [Node],
    functions: &'a [PciFunction],
    parent: Option<(&PciFunction, Bridge)>,
    alias: Option<u16>,
    into: &mut Vec<Located<'a>>,
) -> Result<()> {
    let bus = parent.and_then(|(function, _)| function.secondary).unwrap_or(0);
    for (node, (device, number)) in nodes.iter().zip(place(nodes, parent.map(|(_, bridge)| bridge))) {
        let address = PciAddress::new(0, bus, device, number);
        let function = functions.iter().find(|function| Some(function.address) == address);
        let function = function.ok_or_else(|| Error::Pci(format!("{} is not at {address:?}", node.name)))?;
        let requester = SourceId::pci(0, alias.unwrap_or(function.address.requester_id()));
        into.push(Located { node, function, requester });
        if let NodeKind::Bridge(bridge, children) = &node.kind {
            // The bridge nearest to the root that aliases at all decides.
            let own = match bridge {
                Bridge::RootPort => None,
                Bridge::PcieToPci => function.secondary.map(|bus| u16::from(bus) << 8),
                Bridge::Conventional => Some(function.address.requester_id()),
            };
            below(children, functions, Some((function, *bridge)), alias.or(own), into)?;
        }
    }
    Ok(())
}

/// Device and function number of each node on a bus: what it asked for, or the next device that is
/// free.
pub(crate) fn place(nodes: &[Node], parent: Option<Bridge>) -> Vec<(u8, u8)> {
    // A root port has one slot; others may keep theirs for a hot-plug controller.
    let mut next = if parent == Some(Bridge::RootPort) { 0 } else { 1 };
    let mut places = Vec::new();
    for node in nodes {
        let place = node.place.unwrap_or_else(|| {
            while nodes.iter().any(|other| other.place.is_some_and(|(device, _)| device == next)) {
                next += 1;
            }
            next += 1;
            (next - 1, 0)
        });
        places.push(place);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::place;
    use crate::options::{Bridge, Node};

    #[test]
    fn devices_get_the_numbers_that_are_free() {
        let nodes = [Node::edu("a"), Node::edu("b").at(1, 0), Node::edu("c").at(1, 2), Node::lsi("d")];
        assert_eq!(place(&nodes, None), [(2, 0), (1, 0), (1, 2), (3, 0)]);
        assert_eq!(place(&nodes[..1], Some(Bridge::RootPort)), [(0, 0)]);
    }
}
