//! Samples, and which of them count.

use std::hint::black_box;
use std::time::Instant;

/// The samples of one contender in one case: several figures each.
pub(crate) struct Samples {
    /// Nanoseconds of the reference pass, and the figures measured right after it.
    taken: Vec<(f64, Vec<f64>)>,
    figures: usize,
}

impl Samples {
    pub(crate) fn new(figures: usize) -> Self {
        Self { taken: Vec::new(), figures }
    }

    /// Takes one sample: the reference pass, then `run`.
    pub(crate) fn take(&mut self, mut run: impl FnMut() -> Vec<f64>) {
        let reference = reference_pass();
        let figures = run();
        assert_eq!(figures.len(), self.figures);
        self.taken.push((reference, figures));
    }

    /// The median of a figure over the undisturbed samples.
    pub(crate) fn median(&self, figure: usize) -> f64 {
        let best = self.taken.iter().map(|(reference, _)| *reference).fold(f64::MAX, f64::min);
        let mut quiet: Vec<f64> = self
            .taken
            .iter()
            .filter(|(reference, _)| *reference <= best * 1.1)
            .map(|(_, figures)| figures[figure])
            .collect();
        quiet.sort_by(f64::total_cmp);
        quiet[quiet.len() / 2]
    }
}

/// A fixed piece of work that touches no memory.
fn reference_pass() -> f64 {
    let start = Instant::now();
    let mut value = black_box(0x9e37_79b9_7f4a_7c15u64);
    for _ in 0..20_000 {
        value = value.wrapping_mul(value | 1).rotate_left(17);
    }
    black_box(value);
    start.elapsed().as_nanos() as f64
}
