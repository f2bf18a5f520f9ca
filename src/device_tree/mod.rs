//! Device trees: what this crate asks of one, whatever holds it (Devicetree Specification 0.4).
//!
//! [`DeviceTree`] is implemented by the kernel for its own tree, or by this crate (feature `fdt`) for
//! a flattened one.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

#[cfg(feature = "fdt")]
mod fdt;
mod path;

use crate::error::{ParseError, ParseErrorKind};

/// The reader of flattened device trees that implements [`DeviceTree`] here.
#[cfg(feature = "fdt")]
pub use dtoolkit::fdt::Fdt;
pub use path::{MAX_DEPTH, Path, walk};

/// A device tree.
///
/// ```
/// use iommu::device_tree::DeviceTree;
///
/// /// `/ { bus { compatible = "simple-bus"; }; }`
/// struct Tree;
/// impl DeviceTree for Tree {
///     type Node = usize;
///     fn root(&self) -> usize {
///         0
///     }
///     fn name(&self, node: usize) -> &str {
///         ["", "bus"][node]
///     }
///     fn property(&self, node: usize, name: &str) -> Option<&[u8]> {
///         (node == 1 && name == "compatible").then_some(b"simple-bus\0")
///     }
///     fn children(&self, node: usize) -> impl Iterator<Item = usize> {
///         (node == 0).then_some(1).into_iter()
///     }
/// }
/// assert!(Tree.is_compatible(1, "simple-bus"));
/// ```
pub trait DeviceTree {
    /// A node of this tree.
    type Node: Copy;

    /// The node that all others are below.
    fn root(&self) -> Self::Node;

    /// The name of a node with its unit address; empty for the root.
    fn name(&self, node: Self::Node) -> &str;

    /// The value of a property, if the node has it.
    fn property(&self, node: Self::Node, name: &str) -> Option<&[u8]>;

    /// The nodes right below a node.
    fn children(&self, node: Self::Node) -> impl Iterator<Item = Self::Node>;

    /// The node with this phandle. The default looks at every node, down to [`MAX_DEPTH`].
    fn find_phandle(&self, phandle: u32) -> Option<Self::Node> {
        path::find(self, self.root(), phandle, MAX_DEPTH)
    }

    /// Where a node lies in the blob that the tree comes from, in bytes: for errors. The default is 0.
    fn position(&self, node: Self::Node) -> u32 {
        let _ = node;
        0
    }

    /// The value of a property of one cell.
    fn cell(&self, node: Self::Node, name: &str) -> Option<u32> {
        self.property(node, name)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// Whether `name` is among the node's `compatible` strings.
    fn is_compatible(&self, node: Self::Node, name: &str) -> bool {
        self.property(node, "compatible").is_some_and(|value| strings(value).any(|string| string == name.as_bytes()))
    }

    /// Whether the node is there to be used: it has no `status`, or `okay`.
    fn is_available(&self, node: Self::Node) -> bool {
        self.property(node, "status")
            .is_none_or(|value| strings(value).next().is_some_and(|s| s == b"okay" || s == b"ok"))
    }

    /// An error about a node.
    fn error(&self, node: Self::Node, kind: ParseErrorKind) -> ParseError {
        ParseError { offset: self.position(node), kind }
    }
}

/// The strings of a list, without the NUL that ends each.
///
/// ```
/// use iommu::device_tree::strings;
/// assert!(strings(b"eventq\0gerror\0").eq([&b"eventq"[..], b"gerror"]));
/// ```
pub fn strings(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split_inclusive(|&byte| byte == 0).map(|string| string.strip_suffix(&[0]).unwrap_or(string))
}

/// The cells of a value; what is left over at its end is no cell.
///
/// ```
/// use iommu::device_tree::cells;
/// assert!(cells(&[0, 0, 0, 1, 0, 0, 1, 0, 7]).eq([1, 0x100]));
/// ```
pub fn cells(value: &[u8]) -> impl ExactSizeIterator<Item = u32> + Clone {
    value.as_chunks().0.iter().map(|cell| u32::from_be_bytes(*cell))
}

/// The number that the next `count` cells are; `None` when there are fewer, or it needs more than 64
/// bits.
///
/// ```
/// use iommu::device_tree::{cells, number};
/// let mut value = cells(&[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
/// assert_eq!(number(&mut value, 2), Some(0x1_0000_0002));
/// assert_eq!(number(&mut value, 2), None);
/// ```
pub fn number(cells: &mut impl Iterator<Item = u32>, count: u32) -> Option<u64> {
    let mut number = 0_u64;
    for _ in 0..count {
        if number >> 32 != 0 {
            return None;
        }
        number = number << 32 | u64::from(cells.next()?);
    }
    Some(number)
}
