//! Flattened device trees, read by `dtoolkit`.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

use super::DeviceTree;

/// A flattened tree, checked as a whole when the `Fdt` was made.
impl<'a> DeviceTree for Fdt<'a> {
    type Node = FdtNode<'a>;

    fn root(&self) -> FdtNode<'a> {
        Fdt::root(*self)
    }

    fn name(&self, node: FdtNode<'a>) -> &str {
        text(node)
    }

    fn property(&self, node: FdtNode<'a>, name: &str) -> Option<&[u8]> {
        node.properties().find(|property| property.name() == name)?.value_as::<&'a [u8]>().ok()
    }

    fn children(&self, node: FdtNode<'a>) -> impl Iterator<Item = FdtNode<'a>> {
        node.children()
    }

    fn position(&self, node: FdtNode<'a>) -> u32 {
        let offset = text(node).as_ptr().addr().wrapping_sub(self.data().as_ptr().addr());
        u32::try_from(offset).unwrap_or(u32::MAX)
    }
}

/// The name of a node, which lies in the blob.
fn text<'a>(node: FdtNode<'a>) -> &'a str {
    node.name()
}
