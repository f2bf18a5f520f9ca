//! Order mutants: each barrier, clean, request and wait of the driver is left out once, and must be
//! missed. Needs `RUSTFLAGS="--cfg observed --cfg order_mutants"`.
#![cfg(all(observed, order_mutants, feature = "vtd"))]

mod bench;
mod queue;
mod scenarios;
mod unit;

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};

use bench::{Bench, Convicted, Pace, Setup, Verdict};
use iommu::arch::vtd::device::Retention;
use iommu::sync::Site;
use iommu::sync::site::{reached, skip};
use iommu_harness::observed::Adversary;
use scenarios::{SCENARIOS, Scenario, UnitKind};

const SEEDS: u64 = 16;

/// Everything that a seed decides.
fn setup(unit: UnitKind, seed: u64) -> Setup {
    let (cap, ecap) = unit.registers();
    Setup {
        cap,
        ecap,
        retention: if seed & 1 == 0 { Retention::Keep } else { Retention::Evict },
        pace: if seed & 2 == 0 { Pace::Lazy } else { Pace::Eager },
        wide_stores: unit.wide_stores(),
        adversary: match seed >> 2 {
            0 => Adversary::Stalest,
            mixed @ 1 => Adversary::Mixed(mixed),
            random => Adversary::Random(random),
        },
        seed,
    }
}

fn run(scenario: &Scenario, unit: UnitKind, seed: u64) -> Verdict {
    let bench = Bench::new(setup(unit, seed));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (scenario.run)(&bench)));
    // SAFETY: the scenario is over, and what it has not dropped by now it never does.
    unsafe { bench.finish() };
    outcome.unwrap_or_else(|_| Err(Convicted("a panic".into())))
}

fn runs() -> impl Iterator<Item = (&'static Scenario, UnitKind, u64)> {
    SCENARIOS.iter().flat_map(|scenario| {
        scenario.units.iter().flat_map(move |unit| (0..SEEDS).map(move |seed| (scenario, *unit, seed)))
    })
}

const NO_PASIDS: &str = "no request has a PASID yet, and the first entry is ordered by the context entry above it";
const TABLE_28: &str = "6.5.3.3, Table 28 asks for it; this driver leaves nothing cached under the number";
const NO_EXCHANGE: &str = "no scenario puts a device with a TLB in the place of one without";
const EMULATIONS: &str = "emulations need it, the specification does not";

/// What no scenario can miss, and why it is there all the same.
const EXPLAINED: &[(&str, &str)] = &[
    ("VT-d: clean of a new PASID directory", NO_PASIDS),
    ("VT-d: zeros of a new PASID table, before the directory entry", NO_PASIDS),
    ("VT-d: upper quadwords of a PASID entry, before the one that makes it present", NO_PASIDS),
    ("VT-d: a PASID entry made present, before what follows", NO_PASIDS),
    ("VT-d: clean of a PASID entry made present", NO_PASIDS),
    ("VT-d: IOTLB, of a context entry made present", TABLE_28),
    ("VT-d: IOTLB, of a PASID entry made present", TABLE_28),
    ("VT-d: PASID cache, of a device that is fenced or may use its TLB otherwise", TABLE_28),
    ("VT-d: IOTLB, of a device that is fenced or may use its TLB otherwise", TABLE_28),
    ("VT-d: write-buffer flush of a device that may use its TLB otherwise", NO_EXCHANGE),
    ("VT-d: context cache, of a device that may use its TLB otherwise", NO_EXCHANGE),
    ("VT-d: context cache, of a PASID entry that was pass-through", EMULATIONS),
    ("VT-d: PASID cache, as it is now, of a PASID entry made present", EMULATIONS),
];

fn sites() -> Vec<Site> {
    [iommu::domain::SITES, iommu::pgtable::SITES, iommu::arch::vtd::driver::SITES].concat()
}

#[test]
fn every_order_is_needed() {
    // Without a mutant the driver is innocent, and each site is on some way.
    let mut ways: BTreeMap<&str, Vec<(&Scenario, UnitKind, u64)>> = BTreeMap::new();
    let mut failures = Vec::new();
    let _ = reached();
    for (scenario, unit, seed) in runs() {
        if let Err(why) = run(scenario, unit, seed) {
            failures.push(format!("innocent: {} on {unit:?}, seed {seed}: {why}", scenario.name));
        }
        for site in reached() {
            ways.entry(site.name()).or_default().push((scenario, unit, seed));
        }
    }
    for name in ways.keys().filter(|name| !sites().iter().any(|site| site.name() == **name)) {
        failures.push(format!("not in a list: {name}"));
    }
    for failure in &failures {
        println!("{failure}");
    }
    let innocents = failures.len();
    if std::env::var_os("MUTANTS_BASELINE").is_some() {
        assert_eq!(innocents, 0);
        return;
    }
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let only = std::env::var("MUTANTS_ONLY").ok();
    for site in sites().into_iter().filter(|site| only.as_ref().is_none_or(|only| site.name().contains(only.as_str())))
    {
        if let Some((name, why)) = EXPLAINED.iter().find(|(name, _)| *name == site.name()) {
            println!("{name:70} is not missed: {why}");
            continue;
        }
        let Some(ways) = ways.get(site.name()) else {
            failures.push(format!("on no way: {}", site.name()));
            continue;
        };
        skip(Some(site));
        let convicted = ways.iter().find_map(|(scenario, unit, seed)| {
            run(scenario, *unit, *seed).err().map(|why| format!("{} on {unit:?}, seed {seed}: {why}", scenario.name))
        });
        skip(None);
        match convicted {
            Some(by) => println!("{:70} {by}", site.name()),
            None => failures.push(format!("survives {} runs: {}", ways.len(), site.name())),
        }
    }
    panic::set_hook(hook);
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
