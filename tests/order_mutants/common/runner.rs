//! Leaves out one site after the other, and looks whether anything notices.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;

use iommu::bus::Retention;
use iommu::sync::Site;
use iommu::sync::site::{reached, skip};
use iommu_harness::observed::Adversary;

use super::bench::{Bench, Convicted, Pace, Setup, Unit, Verdict, lock};

/// A way of using a driver, and the units that it is for.
pub(crate) struct Scenario<U: Unit> {
    pub(crate) name: &'static str,
    pub(crate) units: &'static [U::Kind],
    pub(crate) run: fn(&Bench<U>) -> Verdict,
}

/// All that there is for a driver.
pub(crate) struct Suite<U: Unit> {
    pub(crate) scenarios: &'static [Scenario<U>],
    /// What must be missed.
    pub(crate) sites: Vec<Site>,
    /// What no scenario can miss, and why it is there all the same.
    pub(crate) explained: &'static [(&'static str, &'static str)],
}

type Run<U> = (&'static Scenario<U>, <U as Unit>::Kind, u64);

const SEEDS: u64 = 16;

/// Everything that a seed decides.
fn setup<K>(kind: K, seed: u64) -> Setup<K> {
    Setup {
        kind,
        retention: if seed & 1 == 0 { Retention::Keep } else { Retention::Evict },
        pace: if seed & 2 == 0 { Pace::Lazy } else { Pace::Eager },
        adversary: match seed >> 2 {
            0 => Adversary::Stalest,
            mixed @ 1 => Adversary::Mixed(mixed),
            random => Adversary::Random(random),
        },
        seed,
    }
}

fn run<U: Unit>(scenario: &Scenario<U>, unit: U::Kind, seed: u64) -> Verdict {
    let bench = Bench::new(setup(unit, seed));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (scenario.run)(&bench)));
    // SAFETY: the scenario is over, and what it has not dropped by now it never does.
    unsafe { bench.finish() };
    outcome.unwrap_or_else(|_| Err(Convicted("a panic".into())))
}

/// Seed after seed: what misses a site mostly does so with many of them.
fn runs<U: Unit>(suite: &Suite<U>) -> impl Iterator<Item = Run<U>> {
    (0..SEEDS).flat_map(|seed| {
        suite.scenarios.iter().flat_map(move |scenario| scenario.units.iter().map(move |unit| (scenario, *unit, seed)))
    })
}

pub(crate) fn every_order_is_needed<U: Unit>(suite: &Suite<U>) {
    // One site of the program is left out at a time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = lock(&ALONE);
    let is_known = |name: &str| suite.sites.iter().any(|site| site.name() == name);
    // Without a mutant the driver is innocent, and each site is on some way.
    let mut ways: BTreeMap<&str, Vec<Run<U>>> = BTreeMap::new();
    let mut failures = Vec::new();
    let _ = reached();
    for (scenario, unit, seed) in runs(suite) {
        if let Err(why) = run(scenario, unit, seed) {
            failures.push(format!("innocent: {} on {unit:?}, seed {seed}: {why}", scenario.name));
        }
        for site in reached() {
            ways.entry(site.name()).or_default().push((scenario, unit, seed));
        }
    }
    for name in ways.keys().filter(|name| !is_known(name)) {
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
    let wanted = |site: &&Site| only.as_ref().is_none_or(|only| site.name().contains(only.as_str()));
    for site in suite.sites.iter().filter(wanted) {
        if let Some((name, why)) = suite.explained.iter().find(|(name, _)| *name == site.name()) {
            println!("{name:70} is not missed: {why}");
            continue;
        }
        let Some(ways) = ways.get(site.name()) else {
            failures.push(format!("on no way: {}", site.name()));
            continue;
        };
        skip(Some(*site));
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
