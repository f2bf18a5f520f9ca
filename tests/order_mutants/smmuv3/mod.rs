//! Arm SMMUv3.

mod firmware;
mod queue;
mod scenarios;
mod substreams;
mod unit;

use iommu::arch::smmuv3::driver;
use iommu::sync::Site;

use crate::common::bench;
use crate::common::runner::{Suite, every_order_is_needed};
use scenarios::SCENARIOS;
use unit::SmmuUnit;

type Bench = bench::Bench<SmmuUnit>;

const NO_PASIDS: &str = "no request has a PASID yet, and the only descriptor of a stream is replaced with its table";

const BETWEEN_PROCESSORS: &str = "it is for a waiter on another processor: loom's model of the queue has one";

const NOT_TRACKED: &str = "this driver tracks no dirty pages; a table alone misses it, among VT-d's scenarios";

/// What no scenario can miss, and why it is there all the same.
const EXPLAINED: &[(&str, &str)] = &[
    ("SMMUv3: what was fetched of a context descriptor", NO_PASIDS),
    ("SMMUv3: wait for what was fetched of a context descriptor", NO_PASIDS),
    ("SMMUv3: batches given up, before the queue begins anew", BETWEEN_PROCESSORS),
    ("page table: clean of leaves whose dirty bit was cleared", NOT_TRACKED),
];

fn sites() -> Vec<Site> {
    let own = [driver::SITES, driver::TABLE_SITES, driver::queue::SITES];
    [own.concat(), iommu::domain::SITES.into(), iommu::pgtable::SITES.into()].concat()
}

#[test]
fn every_order_of_smmuv3_is_needed() {
    every_order_is_needed(&Suite { scenarios: SCENARIOS, sites: sites(), explained: EXPLAINED });
}
