//! Samples, and which of them count.

use std::hint::black_box;
use std::time::Instant;

/// How many times the wanted number of samples is taken at the most.
pub(crate) const PATIENCE: usize = 12;

/// What the reference pass takes when nothing disturbs it, in nanoseconds.
pub(crate) struct Quiet(f64);

impl Quiet {
    /// Finds it out; takes some tenths of a second.
    pub(crate) fn calibrate() -> Self {
        Self((0..20_000).map(|_| reference_pass()).fold(f64::MAX, f64::min))
    }
}

/// The samples of one contender in one case: several figures each.
pub(crate) struct Samples {
    quiet: Vec<Vec<f64>>,
    disturbed: Vec<Vec<f64>>,
}

impl Samples {
    pub(crate) fn new() -> Self {
        Self { quiet: Vec::new(), disturbed: Vec::new() }
    }

    /// Takes one sample: it counts if the reference passes before and after it were undisturbed.
    pub(crate) fn take(&mut self, quiet: &Quiet, run: impl FnOnce() -> Vec<f64>) {
        let before = reference_pass();
        let figures = run();
        let undisturbed = before.max(reference_pass()) <= quiet.0 * 1.1;
        if undisturbed { self.quiet.push(figures) } else { self.disturbed.push(figures) }
    }

    /// Samples of `run` until `wanted` of them count, within reason.
    pub(crate) fn measure(quiet: &Quiet, wanted: usize, run: impl Fn() -> Vec<f64>) -> Self {
        let mut samples = Self::new();
        for _ in 0..wanted * PATIENCE {
            samples.take(quiet, &run);
            if samples.counted() >= wanted {
                break;
            }
        }
        samples
    }

    /// Prints each figure in nanoseconds; gives what is said of samples that are fewer than `wanted`.
    pub(crate) fn print(&self, name: &str, figures: &[&str], wanted: usize) -> &'static str {
        let note = if self.counted() < wanted { " (disturbed)" } else { "" };
        println!();
        for (index, figure) in figures.iter().enumerate() {
            println!("{:<48}{:>17.2} ns{note}", format!("{name}: {figure}"), self.median(index));
        }
        note
    }

    /// How many samples count.
    pub(crate) fn counted(&self) -> usize {
        self.quiet.len()
    }

    /// The median of a figure; over the disturbed samples too where hardly any was undisturbed.
    pub(crate) fn median(&self, figure: usize) -> f64 {
        let few = self.quiet.len() < 3;
        let samples = self.quiet.iter().chain(self.disturbed.iter().filter(|_| few));
        let mut values: Vec<f64> = samples.map(|figures| figures[figure]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }
}

/// A fixed piece of work that keeps all of a processor's units busy, so that whoever shares the core
/// shows; about six microseconds.
fn reference_pass() -> f64 {
    let mut words = black_box([0x9e37_79b9_7f4a_7c15u64; 32]);
    let start = Instant::now();
    for turn in 0..400u64 {
        for word in &mut words {
            *word = word.rotate_left(7).wrapping_add(turn) ^ (*word >> 3);
        }
        black_box(&mut words);
    }
    start.elapsed().as_nanos() as f64
}
