//! Nodes with the way that leads to them.

use core::fmt;

use super::{DeviceTree, cells, number};
use crate::error::{Error, Result};

/// How many levels a tree has at most: a walk takes a stack frame for each.
pub const MAX_DEPTH: u32 = 32;

/// A node of a tree, and those above it. It is displayed as its path: `/soc/ethernet@1000`.
pub struct Path<'a, T: DeviceTree + ?Sized> {
    /// The tree.
    pub tree: &'a T,
    /// The node.
    pub node: T::Node,
    /// The node above; none for the root.
    pub parent: Option<&'a Path<'a, T>>,
}

/// Calls `visit` with every node, each before those below it.
///
/// # Errors
/// What `visit` gives; [`Error::Capacity`] for a tree of more than [`MAX_DEPTH`] levels.
pub fn walk<T: DeviceTree + ?Sized>(tree: &T, visit: &mut dyn FnMut(&Path<'_, T>) -> Result<()>) -> Result<()> {
    descend(&Path { tree, node: tree.root(), parent: None }, MAX_DEPTH, visit)
}

fn descend<T: DeviceTree + ?Sized>(
    path: &Path<'_, T>,
    depth: u32,
    visit: &mut dyn FnMut(&Path<'_, T>) -> Result<()>,
) -> Result<()> {
    visit(path)?;
    for node in path.tree.children(path.node) {
        let depth = depth.checked_sub(1).filter(|&depth| depth != 0).ok_or(Error::Capacity("MAX_DEPTH"))?;
        descend(&Path { tree: path.tree, node, parent: Some(path) }, depth, visit)?;
    }
    Ok(())
}

pub(super) fn find<T: DeviceTree + ?Sized>(tree: &T, node: T::Node, phandle: u32, depth: u32) -> Option<T::Node> {
    if tree.cell(node, "phandle") == Some(phandle) {
        return Some(node);
    }
    let depth = depth.checked_sub(1)?;
    tree.children(node).find_map(|child| find(tree, child, phandle, depth))
}

impl<T: DeviceTree + ?Sized> Path<'_, T> {
    /// How many cells an address and a size have in this node's `reg`.
    pub fn address_cells(&self) -> (u32, u32) {
        let of = |name, default| self.parent.and_then(|parent| parent.tree.cell(parent.node, name)).unwrap_or(default);
        (of("#address-cells", 2), of("#size-cells", 1))
    }

    /// The address and the size of entry `index` of this node's `reg`, as the processor sees it;
    /// `None` without such an entry, or when a bus above does not tell how to get there.
    pub fn register_block(&self, index: usize) -> Option<(u64, u64)> {
        let (address, size) = self.address_cells();
        let each = usize::try_from(address.checked_add(size)?).ok()?;
        let mut reg = cells(self.tree.property(self.node, "reg")?).skip(index.checked_mul(each)?);
        let (start, bytes) = (number(&mut reg, address)?, number(&mut reg, size)?);
        Some((self.translate(start)?, bytes))
    }

    /// An address on the bus of this node as the processor sees it (Devicetree Specification 2.3.8).
    pub fn translate(&self, address: u64) -> Option<u64> {
        let mut address = address;
        let mut bus = self.parent?;
        // The root is where the processor is.
        while bus.parent.is_some() {
            let ranges = bus.tree.property(bus.node, "ranges")?;
            if !ranges.is_empty() {
                let child = bus.tree.cell(bus.node, "#address-cells").unwrap_or(2);
                let size = bus.tree.cell(bus.node, "#size-cells").unwrap_or(1);
                let parent = bus.address_cells().0;
                if child == 0 || parent == 0 || size == 0 {
                    return None;
                }
                let mut ranges = cells(ranges);
                address = loop {
                    let from = number(&mut ranges, child)?;
                    let to = number(&mut ranges, parent)?;
                    let bytes = number(&mut ranges, size)?;
                    if let Some(offset) = address.checked_sub(from).filter(|&offset| offset < bytes) {
                        break to.checked_add(offset)?;
                    }
                };
            }
            bus = bus.parent?;
        }
        Some(address)
    }
}

impl<T: DeviceTree + ?Sized> fmt::Display for Path<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parent {
            None => f.write_str("/"),
            Some(parent) => {
                if parent.parent.is_some() {
                    fmt::Display::fmt(parent, f)?;
                }
                write!(f, "/{}", self.tree.name(self.node))
            }
        }
    }
}

impl<T: DeviceTree + ?Sized> fmt::Debug for Path<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
