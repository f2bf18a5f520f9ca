//! The command line of a q35 machine.

use std::path::Path;

use crate::options::{Bridge, Engine, Node, NodeKind, X86Options};
use crate::x86::place;

/// QEMU's arguments for `options`, with the files in `directory`.
pub(super) fn arguments(options: &X86Options, directory: &Path) -> Vec<String> {
    let file = |name: &str| directory.join(name).display().to_string();
    let bytes = options.ram_bytes;
    let mut line = Line(Vec::new());
    line.pair("-machine", "q35,accel=tcg,memory-backend=ram0");
    line.pair("-m", &format!("{}M", bytes >> 20));
    line.pair("-object", &format!("memory-backend-file,id=ram0,size={bytes},mem-path={},share=on", file("ram")));
    line.pair("-display", "none");
    line.pair("-monitor", "none");
    line.pair("-serial", "none");
    line.0.push("-nodefaults".to_owned());
    line.pair("-bios", &file("stub"));
    if options.needs_clock() {
        // An idle processor makes the clock jump to the next timer, which keeps a core busy.
        line.pair("-icount", "shift=0,sleep=off");
    } else {
        line.0.push("-S".to_owned());
    }
    // Before the devices that it translates for.
    if let Some(vtd) = &options.vtd {
        line.pair("-device", &vtd.to_string());
    }
    line.devices(&options.topology, "pcie.0", None);
    line.pair("-qtest", &format!("unix:{}", file("qtest")));
    line.pair("-qtest-log", "/dev/null");
    line.0.extend(options.extra.iter().cloned());
    line.0
}

struct Line(Vec<String>);

impl Line {
    fn pair(&mut self, option: &str, value: &str) {
        self.0.extend([option.to_owned(), value.to_owned()]);
    }

    fn devices(&mut self, nodes: &[Node], bus: &str, parent: Option<Bridge>) {
        let places = place(nodes, parent);
        for (node, (device, function)) in nodes.iter().zip(&places) {
            // QEMU also names properties by ids: a prefix keeps them from meeting others.
            let id = format!("node-{}", node.name);
            let kind = match &node.kind {
                NodeKind::Engine(Engine::Edu) => "edu,dma_mask=0xffffffffffffffff".to_owned(),
                NodeKind::Engine(Engine::Lsi) => "lsi53c895a".to_owned(),
                // No two root ports may share chassis and slot. The line grows, so this does not repeat.
                NodeKind::Bridge(Bridge::RootPort, _) => format!("pcie-root-port,chassis={}", self.0.len()),
                NodeKind::Bridge(Bridge::PcieToPci, _) => "pcie-pci-bridge".to_owned(),
                NodeKind::Bridge(Bridge::Conventional, _) => "i82801b11-bridge".to_owned(),
            };
            let shares = places.iter().filter(|(other, _)| other == device).count() > 1;
            let many = if shares && *function == 0 { ",multifunction=on" } else { "" };
            self.pair("-device", &format!("{kind},id={id},bus={bus},addr={device:#x}.{function}{many}"));
            if let NodeKind::Bridge(bridge, children) = &node.kind {
                self.devices(children, &id, Some(*bridge));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::arguments;
    use crate::options::{Bridge, Node, VtdOptions, X86Options};

    #[test]
    fn the_unit_comes_before_what_it_translates_for() {
        let nodes = Node::bridge(Bridge::PcieToPci, "bridge", [Node::lsi("lsi")]);
        let options = X86Options::new().vtd(VtdOptions { pass_through: false, ..VtdOptions::default() }).node(nodes);
        let line = arguments(&options, "/d".as_ref()).join(" ");
        let devices: Vec<_> = line.split(" -").filter(|option| option.starts_with("device ")).collect();
        assert_eq!(
            devices,
            [
                "device intel-iommu,pt=off",
                "device pcie-pci-bridge,id=node-bridge,bus=pcie.0,addr=0x1.0",
                "device lsi53c895a,id=node-lsi,bus=node-bridge,addr=0x1.0"
            ]
        );
        assert!(line.contains(" -S ") && !line.contains("icount"));
    }
}
