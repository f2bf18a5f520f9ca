//! A device tree of the tests: nodes in a list, and the same as a blob.

extern crate std;

use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use crate::device_tree::DeviceTree;

/// One value of a property.
pub(super) enum Value<'a> {
    Cells(&'a [u32]),
    Text(&'a str),
    Flag,
}

#[derive(Clone, Default)]
struct Made {
    name: String,
    properties: Vec<(String, Vec<u8>)>,
    children: Vec<usize>,
}

/// Nodes in the order in which they were added; the first is the root.
#[derive(Clone)]
pub(super) struct TestTree {
    nodes: Vec<Made>,
}

impl TestTree {
    pub(super) fn new(properties: &[(&str, Value<'_>)]) -> Self {
        let mut tree = Self { nodes: vec![Made::default()] };
        properties.iter().for_each(|(name, value)| tree.set(0, name, value));
        tree
    }

    pub(super) fn add(&mut self, parent: usize, name: &str, properties: &[(&str, Value<'_>)]) -> usize {
        let node = self.nodes.len();
        self.nodes.push(Made { name: name.to_string(), ..Made::default() });
        self.nodes[parent].children.push(node);
        properties.iter().for_each(|(name, value)| self.set(node, name, value));
        node
    }

    pub(super) fn set(&mut self, node: usize, name: &str, value: &Value<'_>) {
        let bytes = match value {
            Value::Cells(cells) => cells.iter().flat_map(|cell| cell.to_be_bytes()).collect(),
            Value::Text(text) => text.bytes().chain([0]).collect(),
            Value::Flag => Vec::new(),
        };
        self.remove(node, name);
        self.nodes[node].properties.push((name.to_string(), bytes));
    }

    pub(super) fn remove(&mut self, node: usize, name: &str) {
        self.nodes[node].properties.retain(|(known, _)| known != name);
    }

    /// The tree as a flattened one of version 17 (Devicetree Specification, chapter 5).
    #[cfg(feature = "fdt")]
    pub(super) fn flatten(&self) -> Vec<u8> {
        let (mut structure, mut strings) = (Vec::new(), Vec::new());
        self.flatten_node(0, &mut structure, &mut strings);
        structure.extend(9_u32.to_be_bytes());
        let header = 40 + 16;
        let total = header + structure.len() + strings.len();
        let after = header + structure.len();
        let fields = [0xd00d_feed, total, header, after, 40, 17, 16, 0, strings.len(), structure.len()];
        let mut blob: Vec<u8> = fields.iter().flat_map(|field| (*field as u32).to_be_bytes()).collect();
        blob.extend([0; 16]);
        blob.extend(structure);
        blob.extend(strings);
        blob
    }

    #[cfg(feature = "fdt")]
    fn flatten_node(&self, node: usize, structure: &mut Vec<u8>, strings: &mut Vec<u8>) {
        let pad = |structure: &mut Vec<u8>| structure.resize(structure.len().next_multiple_of(4), 0);
        let made = &self.nodes[node];
        structure.extend(1_u32.to_be_bytes());
        structure.extend(made.name.bytes().chain([0]));
        pad(structure);
        for (name, value) in &made.properties {
            let fields = [3, value.len() as u32, strings.len() as u32];
            structure.extend(fields.iter().flat_map(|field| field.to_be_bytes()));
            structure.extend(value);
            pad(structure);
            strings.extend(name.bytes().chain([0]));
        }
        made.children.iter().for_each(|child| self.flatten_node(*child, structure, strings));
        structure.extend(2_u32.to_be_bytes());
    }
}

impl DeviceTree for TestTree {
    type Node = usize;

    fn root(&self) -> usize {
        0
    }

    fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    fn property(&self, node: usize, name: &str) -> Option<&[u8]> {
        self.nodes[node].properties.iter().find(|(known, _)| known == name).map(|(_, value)| &value[..])
    }

    fn children(&self, node: usize) -> impl Iterator<Item = usize> {
        self.nodes[node].children.iter().copied()
    }

    fn position(&self, node: usize) -> u32 {
        node as u32
    }
}
