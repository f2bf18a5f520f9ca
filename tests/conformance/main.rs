//! What a driver must make of the hardware, seen from the devices: one suite over every machine.
//!
//! Each case starts a machine, brings its IOMMU up as a kernel would, has real devices do DMA and
//! looks at memory and at the fault log. A case knows nothing of the kind of machine.

mod aliases;
mod arm;
mod ats;
mod differential;
mod domains;
mod faults;
mod firmware;
mod regions;
mod rig;
mod translation;

use iommu::arch::smmuv3::layout::identification::StallModel;
use iommu::arch::vtd::layout::{Cap, Ecap};
use iommu_harness::options::Bridge;
use iommu_harness::{
    ArmModelOptions, ArmOptions, Machine, ModelArm, ModelOptions, ModelX86, Node, QemuArm, QemuX86, SmmuGranule,
    SmmuOptions, SmmuStages, Suite, TestResult, VtdOptions, X86Options,
};

/// A case, and the devices that it needs.
struct Case {
    name: &'static str,
    devices: fn() -> Vec<Node>,
    run: fn(&dyn Machine) -> TestResult,
}

/// Cases that every configuration runs.
const CASES: &[Case] = &[
    Case { name: "translation::small_pages", devices: one_edu, run: translation::small_pages },
    Case { name: "translation::odd_offsets", devices: one_edu, run: translation::odd_offsets },
    Case { name: "translation::large_pages", devices: one_edu, run: translation::large_pages },
    Case { name: "translation::huge_pages", devices: one_edu, run: translation::huge_pages },
    Case { name: "translation::long_copy", devices: one_lsi, run: translation::long_copy },
    Case { name: "translation::scattered", devices: one_edu, run: translation::scattered },
    Case { name: "translation::top_of_the_window", devices: one_edu, run: translation::top_of_the_window },
    Case { name: "translation::absent_then_mapped", devices: one_edu, run: translation::absent_then_mapped },
    Case { name: "translation::unmap_after_warm", devices: one_edu, run: translation::unmap_after_warm },
    Case { name: "translation::unmap_many_after_warm", devices: one_edu, run: translation::unmap_many_after_warm },
    Case { name: "translation::remap_is_seen", devices: one_edu, run: translation::remap_is_seen },
    Case { name: "translation::protect_is_seen", devices: one_edu, run: translation::protect_is_seen },
    Case { name: "translation::cut_keeps_the_rest", devices: one_edu, run: translation::cut_keeps_the_rest },
    Case { name: "translation::table_comes_back", devices: one_edu, run: translation::table_comes_back },
    Case { name: "translation::deferred", devices: one_edu, run: translation::deferred },
    Case { name: "faults::unmapped", devices: one_edu, run: faults::unmapped },
    Case { name: "faults::read_only", devices: one_edu, run: faults::read_only },
    Case { name: "faults::write_only", devices: one_edu, run: faults::write_only },
    Case { name: "faults::beyond_the_width", devices: one_edu, run: faults::beyond_the_width },
    Case { name: "faults::across_the_end", devices: one_edu, run: faults::across_the_end },
    Case { name: "faults::each_one_is_told", devices: one_edu, run: faults::each_one_is_told },
    Case { name: "domains::isolated", devices: two_edus, run: domains::isolated },
    Case { name: "domains::shared", devices: two_edus, run: domains::shared },
    Case { name: "domains::moving", devices: one_edu, run: domains::moving },
    Case { name: "domains::identity", devices: one_edu, run: domains::identity },
    Case { name: "domains::blocked", devices: one_edu, run: domains::blocked },
    Case { name: "domains::owner", devices: one_edu, run: domains::owner },
    Case { name: "domains::identity_until_claimed", devices: one_edu, run: domains::identity_until_claimed },
    Case { name: "domains::off", devices: one_edu, run: domains::off },
    Case { name: "domains::never_probed", devices: two_edus, run: domains::never_probed },
    Case { name: "domains::released", devices: one_edu, run: domains::released },
    Case { name: "domains::many", devices: one_edu, run: domains::many },
    Case { name: "domains::power", devices: one_edu, run: domains::power },
    Case { name: "domains::second_kernel", devices: one_edu, run: domains::second_kernel },
    Case { name: "domains::shutdown", devices: one_edu, run: domains::shutdown },
    Case { name: "domains::teardown", devices: two_edus, run: domains::teardown },
    Case { name: "domains::out_of_memory", devices: one_edu, run: domains::out_of_memory },
    Case { name: "regions::direct", devices: one_edu, run: regions::direct },
    Case { name: "regions::direct_refuses_blocked", devices: one_edu, run: regions::direct_refuses_blocked },
];

/// What only x86 has.
const X86_CASES: &[Case] = &[Case { name: "regions::interrupts", devices: one_edu, run: regions::interrupts }];

/// What only Arm has.
const ARM_CASES: &[Case] = &[
    Case { name: "regions::doorbell", devices: one_edu, run: regions::doorbell },
    Case { name: "regions::direct_never_probed", devices: two_edus, run: regions::direct_never_probed },
    Case { name: "faults::overflow", devices: edu_and_lsi, run: faults::overflow },
    Case { name: "domains::device_tree", devices: two_edus, run: domains::device_tree },
];

/// The cases that every variant of QEMU's unit runs; the others run on its main kinds. Each start of a
/// QEMU takes its time.
const BRIEF: &[&str] = &[
    "translation::large_pages",
    "translation::top_of_the_window",
    "translation::unmap_many_after_warm",
    "translation::protect_is_seen",
    "translation::cut_keeps_the_rest",
    "faults::unmapped",
    "faults::beyond_the_width",
    "domains::isolated",
    "domains::moving",
    "domains::identity",
    "domains::second_kernel",
    "regions::direct",
];

/// Cases that are about bridges, not about what the unit can do.
const BRIDGE_CASES: &[Case] = &[
    Case { name: "aliases::root_port", devices: behind_root_port, run: aliases::root_port },
    Case { name: "aliases::pcie_to_pci", devices: behind_pcie_to_pci, run: aliases::shared_alias },
    Case { name: "aliases::conventional", devices: behind_conventional, run: aliases::shared_alias },
    Case { name: "aliases::report", devices: behind_pcie_to_pci, run: aliases::report },
];

/// A machine with a certain unit.
#[derive(Clone)]
struct Configuration {
    name: &'static str,
    kind: Kind,
    extent: Extent,
}

/// Which cases run on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    Brief,
}

/// What the machine is made of.
#[derive(Clone)]
enum Kind {
    Qemu(VtdOptions),
    Model(VtdOptions, ModelOptions),
    QemuArm(SmmuOptions),
    ModelArm(SmmuOptions, ArmModelOptions),
}

impl Configuration {
    const fn qemu(name: &'static str, vtd: VtdOptions) -> Self {
        Self { name, kind: Kind::Qemu(vtd), extent: Extent::All }
    }

    /// A variant of another one.
    const fn brief(name: &'static str, vtd: VtdOptions) -> Self {
        Self { extent: Extent::Brief, ..Self::qemu(name, vtd) }
    }

    const fn arm(name: &'static str, stages: SmmuStages, granule: SmmuGranule) -> Self {
        let options = SmmuOptions { stages: Some(stages), granule: Some(granule) };
        Self { name, kind: Kind::QemuArm(options), extent: Extent::All }
    }

    const fn model(name: &'static str, vtd: VtdOptions, model: ModelOptions) -> Self {
        Self::of(name, Kind::Model(vtd, model))
    }

    const fn of(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, extent: Extent::All }
    }

    fn start(&self, devices: Vec<Node>) -> Result<Box<dyn Machine>, iommu_harness::Error> {
        Ok(match &self.kind {
            Kind::Qemu(vtd) => Box::new(QemuX86::start(&X86Options::new().vtd(*vtd).nodes(devices))?),
            Kind::Model(vtd, model) => Box::new(ModelX86::with(&X86Options::new().vtd(*vtd).nodes(devices), model)?),
            Kind::QemuArm(smmu) => Box::new(QemuArm::start(&ArmOptions::new().smmu(*smmu).nodes(devices))?),
            Kind::ModelArm(smmu, model) => {
                Box::new(ModelArm::with(&ArmOptions::new().smmu(*smmu).nodes(devices), model)?)
            }
        })
    }

    /// The plain model of the same machine.
    fn plain_model(&self, seed: u64) -> Self {
        let kind = match self.kind {
            Kind::Qemu(vtd) | Kind::Model(vtd, _) => Kind::Model(vtd, ModelOptions::new().seed(seed)),
            Kind::QemuArm(smmu) | Kind::ModelArm(smmu, _) => Kind::ModelArm(smmu, ArmModelOptions::new().seed(seed)),
        };
        Self::of("plain", kind)
    }

    /// Whether a case is about what this machine cannot do.
    fn omits(&self, case: &Case) -> bool {
        match &self.kind {
            // Events of requests that wait are not lost (IHI 0070 G.b, 3.5.4).
            Kind::ModelArm(smmu, model) => {
                case.name == "faults::overflow"
                    && model.config(smmu).identification.stall_model() == StallModel::StallOnly
            }
            _ => false,
        }
    }

    /// The cases that only machines of its architecture have.
    fn own_cases(&self) -> &'static [Case] {
        match self.kind {
            Kind::Qemu(_) | Kind::Model(..) => X86_CASES,
            Kind::QemuArm(_) | Kind::ModelArm(..) => ARM_CASES,
        }
    }
}

/// Cases about device TLBs, for units that serve them and a device that has one.
const ATS_CASES: &[Case] = &[
    Case { name: "ats::off", devices: ats_behind_root_port, run: ats::off },
    Case { name: "ats::unmap_reaches_the_device", devices: ats_behind_root_port, run: ats::unmap_reaches_the_device },
    Case { name: "ats::moving", devices: ats_behind_root_port, run: ats::moving },
    Case { name: "ats::no_answer", devices: ats_behind_root_port, run: ats::no_answer },
    Case { name: "ats::power", devices: ats_behind_root_port, run: ats::power },
];

fn main() {
    let mut suite = Suite::from_arguments();
    let configurations = qemu_configurations().into_iter().chain(model_configurations());
    for configuration in configurations {
        let brief = |case: &&Case| {
            let wanted = configuration.extent == Extent::All || BRIEF.contains(&case.name);
            wanted && !configuration.omits(case)
        };
        CASES
            .iter()
            .chain(configuration.own_cases())
            .filter(brief)
            .for_each(|case| add(&mut suite, &configuration, case));
        if ["vtd", "model", "smmu-nested", "model-smmu"].contains(&configuration.name) {
            BRIDGE_CASES.iter().for_each(|case| add(&mut suite, &configuration, case));
        }
    }
    for configuration in ats_configurations() {
        ATS_CASES.iter().for_each(|case| add(&mut suite, &configuration, case));
    }
    for other in qemu_configurations().into_iter().chain(odd_configurations()) {
        for seed in 1..=2 {
            let (plain, other) = (other.plain_model(seed), other.clone());
            suite.test(format!("differential::{}::seed_{seed}", other.name), move || {
                let ours = plain.start(differential::devices())?;
                let theirs = other.start(differential::devices())?;
                differential::run(&*ours, &*theirs, seed)
            });
        }
    }
    suite.run()
}

fn qemu_configurations() -> Vec<Configuration> {
    let normal = VtdOptions::default();
    let mut all = vec![
        Configuration::qemu("vtd", normal),
        Configuration::brief("vtd-39", VtdOptions { address_bits: Some(39), ..normal }),
        Configuration::brief("vtd-caching-mode", VtdOptions { caching_mode: true, ..normal }),
        Configuration::brief("vtd-no-pass-through", VtdOptions { pass_through: false, ..normal }),
        Configuration::brief("vtd-device-tlb", VtdOptions { device_iotlb: true, ..normal }),
        Configuration::qemu("vtd-scalable", VtdOptions { scalable: true, ..normal }),
        Configuration::brief("vtd-scalable-caching-mode", VtdOptions { caching_mode: true, scalable: true, ..normal }),
    ];
    // A QEMU that is not there at all is told of by each test.
    if QemuX86::installed().is_ok_and(|quirks| quirks.vtd_has_first_stage) {
        let first_stage = VtdOptions { first_stage: true, ..normal };
        let no_pass_through = VtdOptions { pass_through: false, ..first_stage };
        all.push(Configuration::qemu("vtd-first-stage", first_stage));
        all.push(Configuration::brief("vtd-first-stage-no-pass-through", no_pass_through));
    }
    all.extend(arm::qemu_configurations());
    all
}

/// What QEMU's unit cannot be: strict about what was written back, forgetful, small.
fn model_configurations() -> Vec<Configuration> {
    let normal = VtdOptions::default();
    let scalable = VtdOptions { scalable: true, ..normal };
    let first_stage = VtdOptions { first_stage: true, ..normal };
    let model = Configuration::model;
    let new = ModelOptions::new;
    let five_levels = VtdOptions { address_bits: Some(57), ..first_stage };
    let everything = new().with_ecap(Ecap::SSTS | Ecap::NEST | Ecap::RPS | Ecap::SMPWCS | Ecap::SSADS);
    let mut all = vec![
        model("model", normal, new()),
        model("model-coherent", normal, new().with_ecap(Ecap::C)),
        model("model-write-buffers", normal, new().with_cap(Cap::RWBF).seed(2)),
        model("model-caching-mode", VtdOptions { caching_mode: true, ..normal }, new().seed(3)),
        model("model-39", VtdOptions { address_bits: Some(39), ..normal }, new().seed(4)),
        model("model-57", VtdOptions { address_bits: Some(57), ..normal }, new().seed(5)),
        model("model-small-pages", normal, new().without_cap(Cap::LARGE_2M.union(Cap::LARGE_1G)).seed(6)),
        model("model-no-page-selective", normal, new().without_cap(Cap::PSI).seed(7)),
        model("model-small", normal, new().max_address_mask(0).domain_id_bits(8).fault_records(4).seed(8)),
        model("model-no-pass-through", VtdOptions { pass_through: false, ..normal }, new().seed(9)),
        model("model-scalable", scalable, new().seed(10)),
        model("model-scalable-coherent", scalable, new().with_ecap(Ecap::C | Ecap::SMPWCS).seed(11)),
        model("model-scalable-page-tables-not-coherent", scalable, new().with_ecap(Ecap::C).seed(19)),
        model("model-scalable-write-buffers", scalable, new().with_cap(Cap::RWBF).seed(12)),
        model("model-scalable-caching-mode", VtdOptions { caching_mode: true, ..scalable }, new().seed(13)),
        model("model-first-stage", first_stage, new().seed(14)),
        model("model-first-stage-page-tables-not-coherent", first_stage, new().with_ecap(Ecap::C).seed(20)),
        model("model-first-stage-caching-mode", VtdOptions { caching_mode: true, ..first_stage }, new().seed(15)),
        model("model-both-stages", scalable, new().with_ecap(Ecap::FSTS).seed(16)),
        model("model-everything", first_stage, everything.pasid_bits(20).seed(17)),
        model("model-five-levels", five_levels, new().with_cap(Cap::FS5LP).with_ecap(Ecap::SMPWCS).seed(18)),
    ];
    all.extend(arm::model_configurations());
    all
}

/// Units that differ from the plain one in what a driver must know and a device must not notice.
fn odd_configurations() -> Vec<Configuration> {
    let normal = VtdOptions::default();
    let new = || ModelOptions::new().seed(30);
    let legacy = [
        ("model-coherent", new().with_ecap(Ecap::C)),
        ("model-write-buffers", new().with_cap(Cap::RWBF)),
        ("model-caching-mode", new().with_cap(Cap::CM)),
        ("model-no-page-selective", new().without_cap(Cap::PSI)),
        ("model-one-page-at-a-time", new().max_address_mask(0)),
    ];
    let scalable = [
        ("model-scalable-coherent", new().with_ecap(Ecap::C | Ecap::SMPWCS)),
        ("model-scalable-caching-mode", new().with_cap(Cap::CM)),
        ("model-scalable-no-page-selective", new().without_cap(Cap::PSI)),
    ];
    let first_stage = [
        ("model-first-stage-coherent", new().with_ecap(Ecap::C | Ecap::SMPWCS)),
        ("model-first-stage-caching-mode", new().with_cap(Cap::CM)),
        ("model-first-stage-no-page-selective", new().without_cap(Cap::PSI)),
    ];
    let of = |vtd: VtdOptions| move |(name, model)| Configuration::model(name, vtd, model);
    let legacy = legacy.into_iter().map(of(normal));
    let scalable = scalable.into_iter().map(of(VtdOptions { scalable: true, ..normal }));
    let first_stage = first_stage.into_iter().map(of(VtdOptions { first_stage: true, ..normal }));
    legacy.chain(scalable).chain(first_stage).chain(arm::odd_configurations()).collect()
}

/// Units that serve device TLBs.
fn ats_configurations() -> Vec<Configuration> {
    let legacy = VtdOptions { device_iotlb: true, ..VtdOptions::default() };
    let scalable = VtdOptions { scalable: true, ..legacy };
    let first_stage = VtdOptions { first_stage: true, ..legacy };
    let mut all = vec![
        Configuration::model("model-device-tlb", legacy, ModelOptions::new().seed(20)),
        Configuration::model("model-device-tlb-throttled", legacy, ModelOptions::new().with_ecap(Ecap::DIT).seed(21)),
        Configuration::model("model-scalable-device-tlb", scalable, ModelOptions::new().seed(22)),
        Configuration::model("model-first-stage-device-tlb", first_stage, ModelOptions::new().seed(23)),
    ];
    all.extend(arm::ats_configurations());
    all
}

fn add(suite: &mut Suite, configuration: &Configuration, case: &'static Case) {
    let configuration = configuration.clone();
    suite.test(format!("{}::{}", configuration.name, case.name), move || {
        let machine = configuration.start((case.devices)())?;
        machine.platform().frames().poison_freed();
        (case.run)(&*machine)?;
        let violations = machine.platform().observed().map(|memory| memory.violations()).unwrap_or_default();
        assert_eq!(violations, [""; 0], "the unit was led to what it must not see");
        assert_eq!(machine.platform().frames_in_use(), 0, "frames were lost");
        assert_eq!(machine.platform().frames().poison_violations(), [], "freed frames were written");
        Ok(())
    });
}

fn one_edu() -> Vec<Node> {
    vec![Node::edu("edu")]
}

fn one_lsi() -> Vec<Node> {
    vec![Node::lsi("lsi")]
}

fn edu_and_lsi() -> Vec<Node> {
    vec![Node::edu("edu"), Node::lsi("lsi")]
}

fn two_edus() -> Vec<Node> {
    vec![Node::edu("edu"), Node::edu("other")]
}

fn behind(bridge: Bridge, children: impl IntoIterator<Item = Node>) -> Vec<Node> {
    vec![Node::bridge(bridge, "bridge", children), Node::edu("alone")]
}

fn behind_root_port() -> Vec<Node> {
    behind(Bridge::RootPort, [Node::edu("edu")])
}

fn ats_behind_root_port() -> Vec<Node> {
    behind(Bridge::RootPort, [Node::edu("edu").ats(4)])
}

fn behind_pcie_to_pci() -> Vec<Node> {
    behind(Bridge::PcieToPci, [Node::edu("edu"), Node::edu("other")])
}

fn behind_conventional() -> Vec<Node> {
    behind(Bridge::Conventional, [Node::edu("edu"), Node::edu("other")])
}
