//! What is measured.

use std::hint::black_box;
use std::time::Instant;

use crate::contenders::Contender;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// How many undisturbed samples are wanted of each contender.
    pub(crate) rounds: usize,
    /// What is measured and its unit, one for each number that `run` gives.
    pub(crate) figures: &'static [(&'static str, &'static str)],
    pub(crate) run: fn(&mut dyn Contender) -> Vec<f64>,
}

const K4: u64 = 1 << 12;
const M2: u64 = 1 << 21;
const G1: u64 = 1 << 30;
const IOVA: u64 = 5 << 39 | 3 << 30;
const PHYS: u64 = 1 << 40;

pub(crate) const CASES: &[Case] = &[
    Case { name: "a", rounds: 200, figures: &[("4K map + unmap, one IOVA", "ns")], run: one_page },
    Case {
        name: "a2",
        rounds: 200,
        figures: &[("4K a call, one leaf table, map", "ns"), ("unmap", "ns")],
        run: |contender| calls(contender, &sequence(K4, 511), K4, K4, 16),
    },
    Case {
        name: "b",
        rounds: 200,
        figures: &[("64 x 4K a call, 8 leaf tables, map", "ns"), ("unmap", "ns")],
        run: |contender| calls(contender, &sequence(64 * K4, 64), 64 * K4, K4, 16),
    },
    Case {
        name: "c",
        rounds: 200,
        figures: &[("one 2M block, map", "ns"), ("unmap", "ns")],
        run: |contender| calls(contender, &sequence(M2, 511), M2, M2, 16),
    },
    Case {
        name: "d1",
        rounds: 30,
        figures: &[("1 GiB of 4K, 1 MiB a call, map a page", "ns"), ("unmap a page", "ns")],
        run: |contender| {
            calls(contender, &sequence(256 * K4, 1024), 256 * K4, K4, 1).iter().map(|time| time / 256.0).collect()
        },
    },
    Case {
        name: "d2",
        rounds: 30,
        figures: &[("1 GiB of 4K in one call, map a page", "ns"), ("unmap it all, tables freed", "us")],
        run: whole_gigabyte,
    },
    Case {
        name: "e",
        rounds: 200,
        figures: &[("one 1G block, map", "ns"), ("unmap", "ns")],
        run: |contender| calls(contender, &sequence(G1, 256), G1, G1, 16),
    },
    Case {
        name: "f",
        rounds: 12,
        figures: &[("4K at random over 64 GiB, 65,536 pages, map", "ns"), ("unmap", "ns")],
        run: |contender| calls(contender, &random(65_536), K4, K4, 1),
    },
    Case {
        name: "f2",
        rounds: 30,
        figures: &[("the same, 2,048 pages, map", "ns"), ("unmap", "ns")],
        run: |contender| calls(contender, &random(2_048), K4, K4, 8),
    },
    Case {
        name: "g",
        rounds: 12,
        figures: &[("iova_to_phys, hot", "ns"), ("iova_to_phys, random over 64 GiB", "ns")],
        run: translations,
    },
];

/// `count` IOVAs, `bytes` apart. They begin at a table's beginning, as do the physical addresses.
fn sequence(bytes: u64, count: u64) -> Vec<u64> {
    (0..count).map(|index| (if bytes == G1 { 5 << 39 } else { IOVA }) + index * bytes).collect()
}

/// `count` different pages of 64 GiB, always the same ones.
fn random(count: usize) -> Vec<u64> {
    let mut seen = std::collections::HashSet::new();
    let mut state = 88_172_645_463_325_252u64;
    let mut pages = Vec::with_capacity(count);
    while pages.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let page = 6 << 39 | (state >> 20 & ((1 << 24) - 1)) << 12;
        if seen.insert(page) {
            pages.push(page);
        }
    }
    pages
}

fn nanos(start: Instant, calls: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / calls as f64
}

fn one_page(contender: &mut dyn Contender) -> Vec<f64> {
    let calls = 2_000;
    contender.map(IOVA + K4, PHYS, K4, K4); // the tables stay
    let start = Instant::now();
    for call in 0..calls {
        contender.map(IOVA, PHYS + (call as u64) * K4, K4, K4);
        contender.unmap(IOVA, K4, K4);
    }
    let time = nanos(start, calls);
    contender.settle();
    vec![time]
}

/// One call for each IOVA: all maps, then all unmaps, with tables that are there.
fn calls(contender: &mut dyn Contender, iovas: &[u64], bytes: u64, page: u64, repeat: usize) -> Vec<f64> {
    let (mut map, mut unmap) = (0.0, 0.0);
    for turn in 0..=repeat {
        let start = Instant::now();
        for &iova in iovas {
            contender.map(iova, PHYS + (iova & (64 * G1 - 1)), bytes, page);
        }
        let mapped = nanos(start, iovas.len());
        let start = Instant::now();
        for &iova in iovas {
            contender.unmap(iova, bytes, page);
        }
        let unmapped = nanos(start, iovas.len());
        contender.settle();
        if turn > 0 {
            map += mapped;
            unmap += unmapped;
        }
    }
    vec![map / repeat as f64, unmap / repeat as f64]
}

fn whole_gigabyte(contender: &mut dyn Contender) -> Vec<f64> {
    let start = Instant::now();
    contender.map(IOVA, PHYS, G1, K4);
    let map = nanos(start, (G1 / K4) as usize);
    let start = Instant::now();
    contender.unmap(IOVA, G1, K4);
    vec![map, nanos(start, 1000)]
}

fn translations(contender: &mut dyn Contender) -> Vec<f64> {
    contender.map(IOVA, PHYS, M2, K4);
    let hot = translate(contender, &sequence(K4, 512), 64);
    let pages = random(65_536);
    for &iova in &pages {
        contender.map(iova, PHYS + (iova & (64 * G1 - 1)), K4, K4);
    }
    vec![hot, translate(contender, &pages, 1)]
}

fn translate(contender: &mut dyn Contender, iovas: &[u64], repeat: usize) -> f64 {
    let start = Instant::now();
    let mut sum = 0u64;
    for _ in 0..repeat {
        for &iova in iovas {
            sum = sum.wrapping_add(contender.iova_to_phys(iova | 5).expect("mapped"));
        }
    }
    black_box(sum);
    nanos(start, iovas.len() * repeat)
}
