//! Arm machines: QEMU's, and models of what its unit cannot be.

use iommu::arch::smmuv3::layout::identification::{BreakBeforeMake, Idr0, Idr3, StallModel};
use iommu_harness::{Adversary, ArmModelOptions, QemuArm, SmmuGranule, SmmuOptions, SmmuStages};

use crate::{Configuration, Kind};

const FIRST: SmmuStages = SmmuStages::First;
const SECOND: SmmuStages = SmmuStages::Second;
const NESTED: SmmuStages = SmmuStages::Nested;

/// QEMU's SMMUv3: each stage, and each granule of its tables.
pub(crate) fn qemu_configurations() -> Vec<Configuration> {
    let mut all = vec![
        Configuration::arm("smmu-first", FIRST, SmmuGranule::Size4K),
        Configuration::arm("smmu-first-16k", FIRST, SmmuGranule::Size16K),
        Configuration::arm("smmu-first-64k", FIRST, SmmuGranule::Size64K),
    ];
    if QemuArm::installed().is_ok_and(|quirks| quirks.smmu_has_second_stage) {
        all.push(Configuration::arm("smmu-second", SECOND, SmmuGranule::Size4K));
        all.push(Configuration::arm("smmu-second-16k", SECOND, SmmuGranule::Size16K));
        all.push(Configuration::arm("smmu-second-64k", SECOND, SmmuGranule::Size64K));
        all.push(Configuration::arm("smmu-nested", NESTED, SmmuGranule::Size4K));
        all.push(Configuration::arm("smmu-nested-64k", NESTED, SmmuGranule::Size64K));
    }
    all
}

/// Not snooped, forgetful, small, wide, old, and each stage with each granule.
pub(crate) fn model_configurations() -> Vec<Configuration> {
    let new = ArmModelOptions::new;
    let incoherent = || new().without_idr0(Idr0::COHACC);
    let narrow_ids = Idr0::ASID16 | Idr0::VMID16;
    let substreams = |options: ArmModelOptions| options.substream_id_bits(20);
    let (small, large, medium) = (SmmuGranule::Size4K, SmmuGranule::Size64K, SmmuGranule::Size16K);
    let mut all = vec![
        model("model-smmu", NESTED, small, new()),
        model("model-smmu-in-order", NESTED, small, new().in_order()),
        model("model-smmu-16k", NESTED, medium, new().seed(2)),
        model("model-smmu-64k", NESTED, large, new().seed(3)),
        model("model-smmu-first", FIRST, small, new().seed(4)),
        model("model-smmu-first-incoherent", FIRST, small, incoherent().seed(5)),
        model("model-smmu-first-16k-incoherent", FIRST, medium, incoherent().seed(6)),
        model("model-smmu-first-64k-incoherent", FIRST, large, incoherent().seed(7)),
        model("model-smmu-first-substreams", FIRST, small, substreams(incoherent()).seed(8)),
        model("model-smmu-first-cd-levels", FIRST, small, substreams(incoherent()).with_idr0(Idr0::CD2L).seed(9)),
        model("model-smmu-first-52", FIRST, large, new().output_bits(52).wide_input().seed(10)),
        model("model-smmu-second", SECOND, small, new().seed(11)),
        model("model-smmu-second-in-order", SECOND, small, incoherent().in_order()),
        model("model-smmu-second-incoherent", SECOND, small, incoherent().seed(12)),
        model("model-smmu-second-16k-incoherent", SECOND, medium, incoherent().seed(13)),
        model("model-smmu-second-64k-incoherent", SECOND, large, incoherent().seed(14)),
        model("model-smmu-second-40", SECOND, small, new().output_bits(40).seed(15)),
        model("model-smmu-second-48", SECOND, small, new().output_bits(48).seed(16)),
        model("model-smmu-second-52", SECOND, large, new().output_bits(52).seed(17)),
        model("model-smmu-linear", NESTED, small, new().without_idr0(Idr0::ST_TWO_LEVEL).stream_id_bits(12).seed(18)),
        model("model-smmu-no-ranges", NESTED, small, new().without_idr3(Idr3::RIL).seed(19)),
        model("model-smmu-second-no-ranges", SECOND, small, new().without_idr3(Idr3::RIL).seed(20)),
        model("model-smmu-second-64k-no-ranges", SECOND, large, new().without_idr3(Idr3::RIL).seed(21)),
        model("model-smmu-break-first", NESTED, small, new().break_before_make(BreakBeforeMake::Required).seed(22)),
        model("model-smmu-nt", NESTED, small, new().break_before_make(BreakBeforeMake::NoTranslate).seed(31)),
        model("model-smmu-small", NESTED, small, incoherent().without_idr0(narrow_ids).queues(3, 2).seed(23)),
        model("model-smmu-second-small", SECOND, small, incoherent().without_idr0(narrow_ids).queues(3, 2).seed(24)),
        model("model-smmu-tiny-queues", NESTED, small, new().queues(1, 1).seed(25)),
        model("model-smmu-can-stall", NESTED, small, new().stalls(StallModel::Configurable, 16).seed(26)),
        model("model-smmu-always-stalls", NESTED, small, new().stalls(StallModel::StallOnly, 16).seed(27)),
        model("model-smmu-second-always-stalls", SECOND, small, new().stalls(StallModel::StallOnly, 16).seed(28)),
        model("model-smmu-messages", NESTED, small, new().with_idr0(Idr0::MSI).seed(29)),
    ];
    // What the driver has written is seen as late as barriers and cleans permit.
    if cfg!(observed) {
        let (stalest, mixed) = (Adversary::Stalest, Adversary::Mixed(32));
        all.extend([
            model("model-smmu-observed-first", FIRST, small, new().observed(stalest).seed(32)),
            model("model-smmu-observed-first-incoherent", FIRST, small, incoherent().observed(stalest).seed(33)),
            model("model-smmu-observed-second", SECOND, small, new().observed(stalest).seed(34)),
            model("model-smmu-observed-second-incoherent", SECOND, large, incoherent().observed(stalest).seed(35)),
            model("model-smmu-observed-first-mixed", FIRST, medium, incoherent().observed(mixed).seed(36)),
            model("model-smmu-observed-second-mixed", SECOND, small, incoherent().observed(mixed).seed(37)),
        ]);
    }
    all
}

/// Units that differ from the plain one in what a driver must know and a device must not notice.
pub(crate) fn odd_configurations() -> Vec<Configuration> {
    let new = || ArmModelOptions::new().seed(30);
    let incoherent = || new().without_idr0(Idr0::COHACC);
    let mut all = Vec::new();
    for (stages, names) in [
        (FIRST, ["first-incoherent", "first-in-order", "first-no-ranges", "first-small", "first-linear"]),
        (SECOND, ["second-incoherent", "second-in-order", "second-no-ranges", "second-small", "second-linear"]),
    ] {
        let [not_coherent, in_order, no_ranges, small, linear] = names;
        let each = [
            (not_coherent, incoherent()),
            (in_order, new().in_order()),
            (no_ranges, new().without_idr3(Idr3::RIL)),
            (small, incoherent().without_idr0(Idr0::ASID16 | Idr0::VMID16).queues(3, 2)),
            (linear, new().without_idr0(Idr0::ST_TWO_LEVEL).stream_id_bits(12).substream_id_bits(8)),
        ];
        all.extend(each.map(|(name, options)| model(name, stages, SmmuGranule::Size4K, options)));
    }
    let no_ranges = || incoherent().without_idr3(Idr3::RIL);
    all.extend([
        model("first-16k-incoherent", FIRST, SmmuGranule::Size16K, incoherent()),
        model("first-64k-no-ranges", FIRST, SmmuGranule::Size64K, no_ranges()),
        model("second-16k-no-ranges", SECOND, SmmuGranule::Size16K, no_ranges()),
        model("second-64k-small", SECOND, SmmuGranule::Size64K, incoherent().queues(3, 2)),
    ]);
    all
}

/// Units that serve device TLBs.
pub(crate) fn ats_configurations() -> Vec<Configuration> {
    let new = || ArmModelOptions::new().with_idr0(Idr0::ATS | Idr0::NS1ATS);
    let incoherent = || new().without_idr0(Idr0::COHACC);
    vec![
        model("model-smmu-ats", NESTED, SmmuGranule::Size4K, new().seed(40)),
        model("model-smmu-ats-in-order", FIRST, SmmuGranule::Size4K, new().in_order()),
        model("model-smmu-ats-first-64k", FIRST, SmmuGranule::Size64K, incoherent().seed(41)),
        model("model-smmu-ats-second", SECOND, SmmuGranule::Size4K, incoherent().seed(42)),
        model("model-smmu-ats-small", FIRST, SmmuGranule::Size4K, new().queues(3, 2).seed(43)),
    ]
}

fn model(name: &'static str, stages: SmmuStages, granule: SmmuGranule, model: ArmModelOptions) -> Configuration {
    let smmu = SmmuOptions { stages: Some(stages), granule: Some(granule) };
    Configuration::of(name, Kind::ModelArm(smmu, model))
}
