//! QEMU's command line.

use std::path::Path;

use super::board::Board;
use crate::options::{Bridge, Engine, MachineOptions, Node, NodeKind};
use crate::quirks::QemuQuirks;
use crate::topology::place;

/// The arguments for `options` of a QEMU with these quirks, with the files in `directory`.
pub(super) fn arguments<B: Board>(options: &MachineOptions<B>, quirks: &QemuQuirks, directory: &Path) -> Vec<String> {
    let file = |name: &str| directory.join(name).display().to_string();
    let bytes = options.ram_bytes;
    let mut line = Line(Vec::new());
    line.pair("-machine", &format!("{},accel=tcg,memory-backend=ram0", options.board.machine(quirks)));
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
    options.board.arguments(quirks).iter().for_each(|(option, value)| line.pair(option, value));
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
    use crate::options::{ArmOptions, Bridge, Node, SmmuOptions, SmmuStages, VtdOptions, X86Options};
    use crate::quirks::{QemuQuirks, QemuVersion};

    #[test]
    fn the_unit_comes_before_what_it_translates_for() {
        let nodes = Node::bridge(Bridge::PcieToPci, "bridge", [Node::lsi("lsi")]);
        let options = X86Options::new().vtd(VtdOptions { pass_through: false, ..VtdOptions::default() }).node(nodes);
        let line = arguments(&options, &QemuQuirks::of(QemuVersion::new(10, 0, 2)), "/d".as_ref()).join(" ");
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

    #[test]
    fn stages_are_chosen_where_they_can_be() {
        let first = ArmOptions::new().smmu(SmmuOptions { stages: Some(SmmuStages::First), ..SmmuOptions::default() });
        let machine = |options: &ArmOptions, major| {
            let line = arguments(options, &QemuQuirks::of(QemuVersion::new(major, 0, 0)), "/d".as_ref()).join(" ");
            let stage = line.split("-global ").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned);
            (line.split(',').next().map(str::to_owned), stage)
        };
        let told = |machine: &str, stage: Option<&str>| (Some(format!("-machine {machine}")), stage.map(str::to_owned));
        assert_eq!(machine(&first, 10), told("virt-9.1", Some("arm-smmuv3.stage=1")));
        assert_eq!(machine(&first, 7), told("virt", None));
        assert_eq!(machine(&ArmOptions::new().smmu(SmmuOptions::default()), 10), told("virt", None));
    }
}
