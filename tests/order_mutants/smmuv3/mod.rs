//! Arm SMMUv3.

mod firmware;
mod queue;
mod scenarios;
mod unit;

use iommu::arch::smmuv3::driver;
use iommu::sync::Site;

use crate::common::bench;
use crate::common::runner::{Suite, every_order_is_needed};
use scenarios::SCENARIOS;
use unit::SmmuUnit;

type Bench = bench::Bench<SmmuUnit>;

/// What no scenario can miss, and why it is there all the same.
const EXPLAINED: &[(&str, &str)] = &[];

fn sites() -> Vec<Site> {
    [driver::SITES, driver::TABLE_SITES, driver::queue::SITES].concat()
}

/// The same whatever the unit: VT-d's scenarios miss them.
fn foreign() -> Vec<Site> {
    [iommu::domain::SITES, iommu::pgtable::SITES].concat()
}

#[test]
fn every_order_of_smmuv3_is_needed() {
    every_order_is_needed(&Suite { scenarios: SCENARIOS, sites: sites(), foreign: foreign(), explained: EXPLAINED });
}
