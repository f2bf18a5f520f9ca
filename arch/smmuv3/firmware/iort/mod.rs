//! The IORT: which SMMUs there are, and which ids arrive at them (Arm DEN 0049, "IO Remapping Table",
//! revisions up to E.f; tables of all revisions are read).
//!
//! [`Iort::parse`] checks the whole table once; what is read from it afterwards cannot fail. Each
//! device, PCI host and SMMU is a [`Node`], with [`Mappings`] that say under which id its requests
//! arrive at another node: [`Iort::stream_of`] follows them to an SMMUv3, [`Iort::device_id_of`] on
//! to an interrupt translation service.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod display;
mod mapping;
mod node;
mod raw;
mod resolve;
mod rmr;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use core::fmt;

use crate::acpi::{self, Part};
use crate::error::{ParseError, ParseErrorKind};
use raw::TableHeader;

pub use mapping::{Mapping, Mappings};
pub(super) use node::Ascii;
pub use node::{
    AtsFlags, ItsGroup, MemoryAccess, MemoryFlags, Model, NamedComponent, Node, NodeKind, Pmcg, RootComplex, Smmu,
    SmmuV3, SmmuV3Flags,
};
pub use rmr::{Rmr, RmrAttributes, RmrFlags};

/// The most nodes of a table that this crate takes: some hundreds describe the largest servers.
///
/// Finding the node that a mapping refers to takes at most as many steps, so the work on a table is
/// bounded by this times its mappings, one for each 20 bytes.
pub const MAX_NODES: u32 = 4096;

/// A checked IORT.
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{Iort, NodeKind};
///
/// // 48 bytes of header, and one node: an ITS group of one service, number 0.
/// let mut table = [0; 72];
/// table[..4].copy_from_slice(b"IORT");
/// (table[4], table[8]) = (72, 3); // length, revision
/// (table[36], table[40]) = (1, 48); // one node, at byte 48
/// (table[49], table[64]) = (24, 1); // the node's length, one service
/// table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
///
/// let iort = Iort::parse(&table)?;
/// assert_eq!(iort.revision(), 3);
/// assert!(matches!(iort.nodes().next().unwrap().kind, NodeKind::ItsGroup(_)));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Iort<'a> {
    header: &'a TableHeader,
    /// The nodes and whatever follows them.
    nodes: Part<'a>,
}

impl<'a> Iort<'a> {
    /// Checks a table as firmware gives it. `bytes` begins at the signature and may be longer than
    /// the table.
    ///
    /// Nodes of unknown types are passed over, by their length; bytes behind the last node are
    /// ignored. Any revision is accepted.
    ///
    /// # Errors
    /// The first thing that is wrong, and where: [`ParseErrorKind::Truncated`] when `bytes` end
    /// before the table does, [`ParseErrorKind::Signature`], [`ParseErrorKind::Checksum`],
    /// [`ParseErrorKind::Capacity`] beyond [`MAX_NODES`], [`ParseErrorKind::Length`] of a table, node
    /// or list that is too short for what it must hold or passes the end of what holds it,
    /// [`ParseErrorKind::Value`] of a field that cannot be used (an SMMUv3's registers at zero or off
    /// a 64 KiB boundary, a PCI segment above 65,535, a PASID of more than 20 bits, an address of more
    /// than 64, an empty range, ids beyond 32 bits, an ITS group with mappings, a list inside what
    /// comes before it), [`ParseErrorKind::Overlap`] of two mappings that share ids or two ranges of
    /// reserved memory in one node, and [`ParseErrorKind::Reference`] to where no node begins, or to
    /// one at which such ids cannot arrive: so loops are not possible.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let table = acpi::table(bytes, b"IORT", size_of::<TableHeader>())?;
        let (header, _) = table.take::<TableHeader>(ParseErrorKind::Truncated)?;
        if header.node_count.get() > MAX_NODES {
            return Err(ParseError { offset: TableHeader::NODE_COUNT, kind: ParseErrorKind::Capacity });
        }
        let start = usize::try_from(header.node_offset.get()).unwrap_or(usize::MAX);
        let bad_offset = ParseError { offset: TableHeader::NODE_OFFSET, kind: ParseErrorKind::Value };
        if header.node_count.get() != 0 && start < size_of::<TableHeader>() {
            return Err(bad_offset);
        }
        let nodes = match header.node_count.get() {
            0 => table.split(0, ParseErrorKind::Length)?.0,
            _ => table.split(start, ParseErrorKind::Value).map_err(|_| bad_offset)?.1,
        };
        let mut rest = nodes;
        for _ in 0..header.node_count.get() {
            let node;
            (node, rest) = Node::read(rest)?;
            node.check()?;
        }
        let iort = Self { header, nodes };
        for node in iort.nodes() {
            iort.check_references(&node)?;
        }
        Ok(iort)
    }

    /// The table's revision: 0 to begin with, 6 for revision E.f of the specification.
    pub fn revision(&self) -> u8 {
        self.header.revision
    }

    /// All nodes in the table's order.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'a>> + Clone + use<'a> {
        let mut rest = self.nodes;
        (0..self.header.node_count.get()).map_while(move |_| next_node(&mut rest))
    }

    /// The node that begins `offset` bytes into the table.
    pub fn node_at(&self, offset: u32) -> Option<Node<'a>> {
        let (node, _) = Node::read(self.find(offset)?).ok()?;
        Some(node)
    }

    /// The bytes from the node that begins at `offset` on.
    fn find(&self, offset: u32) -> Option<Part<'a>> {
        let mut rest = self.nodes;
        for _ in 0..self.header.node_count.get() {
            let place = rest.error(ParseErrorKind::Reference).offset;
            if place >= offset {
                return (place == offset).then_some(rest);
            }
            (_, _, rest) = node::split(rest).ok()?;
        }
        None
    }
}

#[inline(never)]
fn next_node<'a>(rest: &mut Part<'a>) -> Option<Node<'a>> {
    // Everything was checked by `parse`, so an error cannot be met here.
    let (node, after) = Node::read(*rest).ok()?;
    *rest = after;
    Some(node)
}

/// One line for the table, then one for each node, then one for each of its mappings.
impl fmt::Display for Iort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IORT revision {}", self.revision())?;
        for node in self.nodes() {
            write!(f, "\n  {node}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Iort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes()).finish()
    }
}
