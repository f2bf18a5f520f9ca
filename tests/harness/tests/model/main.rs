//! The harness itself on the model.

#[path = "../common/mod.rs"]
mod common;

use iommu_harness::{ModelX86, Suite};

fn main() {
    let mut suite = Suite::from_arguments();
    common::add(&mut suite, |options| Ok(Box::new(ModelX86::start(options)?)));
    suite.run()
}
