//! Intel VT-d.

mod queue;
mod scenarios;
mod unit;

use iommu::sync::Site;

use crate::common::bench;
use crate::common::runner::{Suite, every_order_is_needed};
use scenarios::SCENARIOS;
use unit::VtdUnit;

type Bench = bench::Bench<VtdUnit>;

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
fn every_order_of_vtd_is_needed() {
    every_order_is_needed(&Suite { scenarios: SCENARIOS, sites: sites(), explained: EXPLAINED });
}
