//! Every rule of CdIllegal (SMMU 5.4.2) that is of Non-secure streams, on both sides of it.

use super::{FULL, QEMU, check_cd};
use crate::arch::smmuv3::device::walk::StreamWorld;
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::{Cd, Identification, Ste};

const EPD0: u64 = 1 << 14;
const ENDI: u64 = 1 << 15;
const EPD1: u64 = 1 << 30;
const S: u64 = 1 << 44;
const A: u64 = 1 << 46;
/// 4 KiB and 48 bits in both halves, 48 bits of output; V, AA64, A.
const BOTH: u64 = 16 | 16 << 16 | 2 << 22 | 1 << 31 | 5 << 32 | 1 << 41 | A;
const LOWER: u64 = BOTH | EPD1;

fn is_legal_in(unit: &Identification, world: StreamWorld, words: [u64; 3]) -> bool {
    under(unit, 0, world, words)
}

fn is_legal(unit: &Identification, words: [u64; 3]) -> bool {
    is_legal_in(unit, StreamWorld::NsEl1, words)
}

/// `word1` is of the STE.
fn under(unit: &Identification, word1: u64, world: StreamWorld, [a, b, c]: [u64; 3]) -> bool {
    let ste = Ste { words: [0b101 << 1 | 1, word1, 0, 0, 0, 0, 0, 0] };
    match check_cd(unit, &ste, world, &Cd { words: [a, b, c, 0, 0, 0, 0, 0] }) {
        Ok(()) => true,
        Err(fault) => {
            assert_eq!(fault.kind, EventKind::C_BAD_CD);
            false
        }
    }
}

fn with(unit: Identification, change: impl FnOnce(&mut Identification)) -> Identification {
    let mut unit = unit;
    change(&mut unit);
    unit
}

#[test]
fn validity_and_faults() {
    for unit in [FULL, QEMU] {
        assert!(is_legal(&unit, [BOTH, 0x3_0000, 0x4_0000]));
        assert!(!is_legal(&unit, [BOTH & !(1 << 31), 0x3_0000, 0x4_0000]));
    }
    // S1STALLD and S.
    assert!(is_legal(&FULL, [BOTH | S, 0, 0]));
    assert!(!under(&FULL, 1 << 27, StreamWorld::NsEl1, [BOTH | S, 0, 0]));
    assert!(under(&FULL, 1 << 27, StreamWorld::NsEl1, [BOTH, 0, 0]));
    // TERM_MODEL and A.
    assert!(is_legal(&FULL, [BOTH & !A, 0, 0]));
    assert!(!is_legal(&with(FULL, |unit| unit.idr0 |= 1 << 26), [BOTH & !A, 0, 0]));
    // STALL_MODEL and S.
    let terminates = with(FULL, |unit| unit.idr0 |= 1 << 24);
    let stalls = with(FULL, |unit| unit.idr0 |= 2 << 24);
    assert!(!is_legal(&terminates, [BOTH | S, 0, 0]));
    assert!(!is_legal(&stalls, [BOTH, 0, 0]));
    assert!(is_legal(&stalls, [BOTH | S, 0, 0]));
}

#[test]
fn formats_and_tags() {
    // AA64, HA, HD.
    assert!(!is_legal(&FULL, [BOTH & !(1 << 41), 0, 0]));
    assert!(!is_legal(&with(FULL, |unit| unit.idr0 &= !8), [BOTH, 0, 0]));
    assert!(!is_legal(&FULL, [BOTH | 1 << 43, 0, 0]));
    assert!(!is_legal(&FULL, [BOTH | 1 << 42, 0, 0]));
    // ENDI, unless nothing is walked: mixed, little, big.
    for (ttendian, little, big) in [(0, true, true), (2, true, false), (3, false, true)] {
        let unit = with(FULL, |unit| unit.idr0 |= ttendian << 21);
        for walked in [0, EPD0, EPD1] {
            assert_eq!(is_legal(&unit, [BOTH | walked, 0, 0]), little);
            assert_eq!(is_legal(&unit, [BOTH | walked | ENDI, 0, 0]), big);
        }
        assert!(is_legal(&unit, [BOTH | EPD0 | EPD1, 0, 0]));
        assert!(is_legal(&unit, [BOTH | EPD0 | EPD1 | ENDI, 0, 0]));
    }
    // ASID, which NS-EL2 has not.
    let narrow = with(FULL, |unit| unit.idr0 &= !(1 << 12));
    assert!(is_legal(&narrow, [BOTH | 0xff << 48, 0, 0]));
    assert!(!is_legal(&narrow, [BOTH | 0x100 << 48, 0, 0]));
    assert!(!is_legal_in(&narrow, StreamWorld::NsEl2E2h, [BOTH | 0x100 << 48, 0, 0]));
    assert!(is_legal_in(&narrow, StreamWorld::NsEl2, [BOTH | 0x100 << 48, 0, 0]));
}

#[test]
fn sizes_of_input() {
    let range = |unit: &Identification, tg0: u64, tg1: u64, ds: u64, range: core::ops::RangeInclusive<u64>| {
        for size in 0..64 {
            let legal = range.contains(&size);
            let lower = LOWER & !0x3f | size | tg0 << 6;
            assert_eq!(is_legal(unit, [lower, 0, ds << 58]), legal, "T0SZ {size}");
            let upper = BOTH & !(0xff << 16) | EPD0 | size << 16 | tg1 << 22;
            assert_eq!(is_legal(unit, [upper, 0, ds << 58]), legal, "T1SZ {size}");
            // What is not walked is not looked at.
            assert!(is_legal(unit, [BOTH & !0x3f | size | tg0 << 6 | EPD0, 0, 0]));
            assert!(is_legal(unit, [LOWER & !(0xff << 16) | size << 16 | tg1 << 22, 0, 0]));
        }
    };
    range(&FULL, 0, 2, 0, 16..=48);
    range(&FULL, 2, 1, 0, 16..=48);
    range(&FULL, 1, 3, 0, 12..=47);
    range(&FULL, 0, 2, 1, 12..=48);
    range(&FULL, 2, 1, 1, 12..=48);
    range(&FULL, 1, 3, 1, 12..=47);
    range(&QEMU, 0, 2, 1, 16..=39);
    range(&QEMU, 2, 1, 0, 16..=39);
    range(&QEMU, 1, 3, 0, 16..=39);
}

#[test]
fn granules_and_tables() {
    // TG0 3 and TG1 0 are reserved.
    assert!(!is_legal(&FULL, [LOWER | 3 << 6, 0, 0]));
    assert!(is_legal(&FULL, [BOTH | 3 << 6 | EPD0, 0, 0]));
    assert!(!is_legal(&FULL, [BOTH & !(3 << 22), 0, 0]));
    assert!(is_legal(&FULL, [LOWER & !(3 << 22), 0, 0]));
    let without = with(FULL, |unit| unit.idr5 &= !(1 << 6));
    assert!(!is_legal(&without, [LOWER | 1 << 6, 0, 0]));
    assert!(!is_legal(&without, [BOTH | 3 << 22, 0, 0]));
    // TTB in IPS, and in 48 bits with 4 KiB without DS.
    let with_ips = |ips: u64| BOTH & !(7 << 32) | ips << 32;
    for (word, other) in [(1, 2), (2, 1)] {
        let mut words = [with_ips(2), 0, 0];
        words[word] = 1 << 39;
        assert!(is_legal(&FULL, words));
        words[word] = 1 << 40;
        assert!(!is_legal(&FULL, words));
        words[0] |= if other == 2 { EPD0 } else { EPD1 };
        assert!(is_legal(&FULL, words));
        words[0] = with_ips(6);
        words[word] = 1 << 47;
        assert!(is_legal(&FULL, words));
        words[word] = 1 << 48;
        assert!(!is_legal(&FULL, words));
        words[2] |= 1 << 58;
        assert!(is_legal(&FULL, words));
        // OAS caps IPS.
        words = [with_ips(7), 0, 0];
        words[word] = 1 << 44;
        assert!(!is_legal(&QEMU, words));
        words[word] = 1 << 43;
        assert!(is_legal(&QEMU, words));
    }
    // SMMUv3.0 has 48 bits.
    let wide = [with_ips(6) & !0x3f & !(3 << 6) | 1 << 6 | 22 | EPD1, 1 << 48, 0];
    assert!(is_legal(&FULL, wide));
    assert!(!is_legal(&with(FULL, |unit| unit.aidr = 0), wide));
}

#[test]
fn one_table_for_hypervisors() {
    let el2 = |words| is_legal_in(&FULL, StreamWorld::NsEl2, words);
    // Nothing of the upper half is looked at, and EPD0 is not.
    assert!(el2([BOTH & !(0xff << 16), 0, 1 << 51]));
    assert!(!el2([BOTH & !0x3f | EPD0, 0, 0]));
    assert!(!el2([BOTH | EPD0, 1 << 48, 0]));
    assert!(is_legal_in(&FULL, StreamWorld::NsEl2E2h, [BOTH & !0x3f | EPD0, 0, 0]));
}
