//! What mapping and unmapping cost, in nanoseconds and as a ratio to a *floor*: a minimal four-level
//! walk with plain stores and nothing else.
//!
//! All contenders are called through one table of functions and take their frames from one pool.
//! Rounds are interleaved, and a sample counts only if a reference pass just before it ran
//! undisturbed, for shared machines slow down by turns. Compare ratios, not figures of two runs.
//!
//! What a strict unmap adds is measured on its own, with a unit that completes at once, and so is the
//! command queue of an SMMUv3, for one producer and for two; and what a request of a device costs in the
//! unit in software.
//!
//! `cargo run --release -p iommu-benches [-- case ...]`

mod cases;
mod commands;
mod contenders;
mod pool;
mod sample;
mod strict;
mod translate;

use cases::CASES;
use contenders::CONTENDERS;
use sample::{PATIENCE, Quiet, Samples};

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    contenders::check();
    let quiet = Quiet::calibrate();
    println!("{:<48}{}", "", CONTENDERS.map(|(name, _)| format!("{name:>26}")).concat());
    for case in CASES.iter().filter(|case| wanted.is_empty() || wanted.iter().any(|name| name == case.name)) {
        let mut samples: Vec<Samples> = CONTENDERS.iter().map(|_| Samples::new()).collect();
        // Until each has enough samples that count, within reason.
        for _ in 0..case.rounds * PATIENCE {
            for ((_, new), samples) in CONTENDERS.iter().zip(&mut samples) {
                pool::reset();
                let mut contender = new();
                samples.take(&quiet, || (case.run)(&mut *contender));
            }
            if samples.iter().all(|samples| samples.counted() >= case.rounds) {
                break;
            }
        }
        let disturbed = samples.iter().any(|samples| samples.counted() < case.rounds);
        for (index, (figure, unit)) in case.figures.iter().enumerate() {
            let values: Vec<f64> = samples.iter().map(|samples| samples.median(index)).collect();
            let columns: String =
                values.iter().map(|value| format!("{value:>17.2} ({:>5.2}x)", value / values[0])).collect();
            let note = if disturbed { " (disturbed)" } else { "" };
            println!("{:<48}{columns}{note}", format!("{}: {figure}, {unit}", case.name));
        }
    }
    strict::run(&quiet, &wanted);
    commands::run(&quiet, &wanted);
    translate::run(&quiet, &wanted);
}
