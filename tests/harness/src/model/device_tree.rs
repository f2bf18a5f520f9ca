//! The flattened device tree of the Arm machine (Devicetree Specification 0.4, chapter 5), as far as it concerns
//! the unit.

use iommu::PhysAddr;

/// Tokens of the structure block.
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;

/// By what a PCI host names the unit.
const PHANDLE: u32 = 1;

/// Whether the unit snoops the processor's caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Coherency {
    Coherent,
    NonCoherent,
}

/// The tree of a machine with one unit at `base`, through which a PCI host goes.
pub(super) fn device_tree(base: PhysAddr, coherency: Coherency) -> Vec<u8> {
    let mut tree = Tree::default();
    tree.begin("");
    tree.cells("#address-cells", &[2]);
    tree.cells("#size-cells", &[2]);
    tree.begin(&format!("smmuv3@{:x}", base.as_u64()));
    tree.property("compatible", b"arm,smmu-v3\0");
    tree.cells("reg", &[(base.as_u64() >> 32) as u32, base.as_u64() as u32, 0, 0x2_0000]);
    tree.cells("#iommu-cells", &[1]);
    tree.cells("phandle", &[PHANDLE]);
    if coherency == Coherency::Coherent {
        tree.property("dma-coherent", &[]);
    }
    tree.word(END_NODE);
    tree.begin("pcie");
    tree.property("compatible", b"pci-host-ecam-generic\0");
    tree.property("device_type", b"pci\0");
    tree.cells("#address-cells", &[3]);
    tree.cells("#size-cells", &[2]);
    tree.cells("iommu-map", &[0, PHANDLE, 0, 0x1_0000]);
    tree.word(END_NODE);
    tree.word(END_NODE);
    tree.word(END);
    tree.blob()
}

#[derive(Default)]
struct Tree {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Tree {
    fn word(&mut self, word: u32) {
        self.structure.extend(word.to_be_bytes());
    }

    fn begin(&mut self, name: &str) {
        self.word(BEGIN_NODE);
        self.bytes(&[name.as_bytes(), &[0]].concat());
    }

    fn cells(&mut self, name: &str, cells: &[u32]) {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.property(name, &bytes);
    }

    fn property(&mut self, name: &str, value: &[u8]) {
        [PROPERTY, value.len() as u32, self.strings.len() as u32].into_iter().for_each(|word| self.word(word));
        self.bytes(value);
        self.strings.extend(name.bytes().chain([0]));
    }

    /// Padded to whole words.
    fn bytes(&mut self, bytes: &[u8]) {
        self.structure.extend(bytes);
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    /// Header, an empty list of reserved memory, and the two blocks.
    fn blob(self) -> Vec<u8> {
        let structure = 40 + 16;
        let strings = structure + self.structure.len();
        let total = strings + self.strings.len();
        let header = [0xd00d_feed, total, structure, strings, 40, 17, 16, 0, self.strings.len(), self.structure.len()];
        let header = header.iter().flat_map(|field| (*field as u32).to_be_bytes());
        header.chain([0; 16]).chain(self.structure).chain(self.strings).collect()
    }
}

#[cfg(test)]
mod tests {
    use iommu::PhysAddr;
    use iommu::arch::smmuv3::firmware::{self, Firmware};
    use iommu::device_tree::Fdt;

    use super::{Coherency, device_tree};
    use crate::model::unit::own_platform;

    #[test]
    fn it_parses() {
        let base = PhysAddr::new(0x905_0000);
        for (ours, theirs) in [
            (Coherency::Coherent, firmware::Coherency::Coherent),
            (Coherency::NonCoherent, firmware::Coherency::NonCoherent),
        ] {
            let blob = device_tree(base, ours);
            let tree = Fdt::new(&blob).unwrap();
            let found = Firmware::from_device_tree(own_platform().unwrap(), &tree).unwrap();
            let [unit] = found.units() else { panic!("one unit") };
            assert_eq!((unit.base, unit.coherency), (base, Some(theirs)));
        }
    }
}
