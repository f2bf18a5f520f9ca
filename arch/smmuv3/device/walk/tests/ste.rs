//! Every rule of SteIllegal (SMMU 5.2.2) that is of Non-secure streams, on both sides of it.

use super::{FULL, QEMU, check_ste};
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::{Identification, Ste};

fn is_legal(unit: &Identification, words: [u64; 8]) -> bool {
    match check_ste(unit, &Ste { words }) {
        Ok(()) => true,
        Err(fault) => {
            assert_eq!(fault.kind, EventKind::C_BAD_STE);
            false
        }
    }
}

const ABORT: u64 = 1;
const BYPASS: u64 = 0b100 << 1 | 1;
const STAGE1: u64 = 0b101 << 1 | 1;
const STAGE2: u64 = 0b110 << 1 | 1;
const NESTED: u64 = 0b111 << 1 | 1;

/// S2T0SZ, S2SL0, S2TG, S2PS, S2AA64.
const fn word2(t0sz: u64, sl0: u64, tg: u64, ps: u64) -> u64 {
    (t0sz | sl0 << 6 | tg << 14 | ps << 16 | 1 << 19) << 32
}

/// 4 KiB, 40 bits of input from level 1, 52 of output.
const TABLES: u64 = word2(24, 1, 0, 6);

fn stage1(word0: u64, word1: u64) -> [u64; 8] {
    [STAGE1 | 0x2_0000 | word0, word1, 0, 0, 0, 0, 0, 0]
}

fn stage2(word2: u64, word3: u64) -> [u64; 8] {
    [STAGE2, 0, word2, 0x3_0000 | word3, 0, 0, 0, 0]
}

fn with(unit: Identification, change: impl FnOnce(&mut Identification)) -> Identification {
    let mut unit = unit;
    change(&mut unit);
    unit
}

#[test]
fn validity_and_stages() {
    for unit in [FULL, QEMU] {
        assert!(!is_legal(&unit, [0; 8]));
        // With Config 0b0xx nothing else counts; neither does it with bypass.
        assert!(is_legal(&unit, [ABORT | 0b011 << 1, !0, !0, !0, !0, !0, !0, !0]));
        assert!(is_legal(&unit, [BYPASS | !0 << 4, !0, !0, !0, !0, !0, !0, !0]));
        assert!(is_legal(&unit, stage1(0, 0)));
        assert!(is_legal(&unit, stage2(word2(24, 1, 0, 4), 0)));
    }
    let without1 = with(FULL, |unit| unit.idr0 &= !2);
    assert!(!is_legal(&without1, stage1(0, 0)));
    assert!(!is_legal(&without1, [NESTED, 0, TABLES, 0x3_0000, 0, 0, 0, 0]));
    assert!(is_legal(&without1, stage2(TABLES, 0)));
    let without2 = with(FULL, |unit| unit.idr0 &= !1);
    assert!(!is_legal(&without2, stage2(TABLES, 0)));
    assert!(!is_legal(&without2, [NESTED, 0, TABLES, 0x3_0000, 0, 0, 0, 0]));
    assert!(is_legal(&without2, stage1(0, 0)));
}

#[test]
fn ats() {
    const SPLIT: u64 = 2 << 28;
    const FULL_ATS: u64 = 1 << 28;
    const S2S: u64 = 1 << 57;
    let nested = |word1, word2| [NESTED, word1, TABLES | word2, 0x3_0000, 0, 0, 0, 0];
    assert!(is_legal(&FULL, nested(SPLIT, 0)));
    assert!(!is_legal(&FULL, nested(SPLIT, S2S)));
    assert!(!is_legal(&FULL, stage1(0, SPLIT)));
    assert!(!is_legal(&FULL, [STAGE2, SPLIT, TABLES, 0x3_0000, 0, 0, 0, 0]));
    assert!(!is_legal(&with(FULL, |unit| unit.idr0 |= 1 << 11), nested(SPLIT, 0)));
    assert!(is_legal(&FULL, nested(FULL_ATS, 0)));
    assert!(!is_legal(&FULL, nested(FULL_ATS, S2S)));
    let mut only1 = stage1(0, FULL_ATS);
    only1[2] = S2S;
    assert!(is_legal(&FULL, only1));
    // Without ATS the field is ignored.
    assert!(is_legal(&with(FULL, |unit| unit.idr0 &= !(1 << 10)), stage1(0, SPLIT)));
}

#[test]
fn stream_worlds() {
    for (strw, legal) in [(0, true), (1, false), (2, true), (3, false)] {
        assert_eq!(is_legal(&FULL, stage1(0, strw << 30)), legal, "{strw}");
        // Where it is ignored: without Hyp, and with stage 2.
        assert!(is_legal(&with(FULL, |unit| unit.idr0 &= !(1 << 9)), stage1(0, strw << 30)));
        assert!(is_legal(&FULL, [NESTED, strw << 30, TABLES, 0x3_0000, 0, 0, 0, 0]));
    }
}

#[test]
fn stage1_fields() {
    const S1STALLD: u64 = 1 << 27;
    assert!(is_legal(&FULL, stage1(0, S1STALLD)));
    for model in [1, 2] {
        let unit = with(FULL, |unit| unit.idr0 |= model << 24);
        assert!(!is_legal(&unit, stage1(0, S1STALLD)));
        assert!(is_legal(&unit, stage1(0, 0)));
    }
    // S1CDMax, up to SSIDSIZE; ignored without substreams.
    assert!(is_legal(&FULL, stage1(20 << 59, 0)));
    assert!(!is_legal(&FULL, stage1(21 << 59, 0)));
    assert!(is_legal(&QEMU, stage1(21 << 59, 0)));
    // S1Fmt, of which 3 is 0.
    let linear = with(FULL, |unit| unit.idr0 &= !(1 << 19));
    for (format, legal) in [(0, true), (1, false), (2, false), (3, true)] {
        assert!(is_legal(&FULL, stage1(4 << 59 | format << 4, 0)));
        assert_eq!(is_legal(&linear, stage1(4 << 59 | format << 4, 0)), legal, "{format}");
        assert!(is_legal(&linear, stage1(format << 4, 0)));
    }
    // S1ContextPtr.
    assert!(is_legal(&QEMU, stage1(1 << 43, 0)));
    assert!(!is_legal(&QEMU, stage1(1 << 44, 0)));
    assert!(!is_legal(&FULL, stage1(1 << 52, 0)));
    assert!(!is_legal(&QEMU, [NESTED | 1 << 44, 0, word2(24, 1, 0, 4), 0x3_0000, 0, 0, 0, 0]));
}

#[test]
fn stage2_fields() {
    const S2S: u64 = 1 << 57;
    let terminates = with(FULL, |unit| unit.idr0 |= 1 << 24);
    let stalls = with(FULL, |unit| unit.idr0 |= 2 << 24);
    assert!(is_legal(&FULL, stage2(TABLES | S2S, 0)));
    assert!(!is_legal(&terminates, stage2(TABLES | S2S, 0)));
    assert!(!is_legal(&stalls, stage2(TABLES, 0)));
    assert!(is_legal(&stalls, stage2(TABLES | S2S, 0)));
    // S2AA64.
    assert!(!is_legal(&FULL, stage2(TABLES & !(1 << 51), 0)));
    assert!(!is_legal(&with(FULL, |unit| unit.idr0 &= !8), stage2(TABLES, 0)));
    // S2HA, S2HD.
    assert!(!is_legal(&FULL, stage2(TABLES | 1 << 56, 0)));
    assert!(!is_legal(&FULL, stage2(TABLES | 1 << 55, 0)));
    // S2ENDI: mixed, little, big.
    for (ttendian, little, big) in [(0, true, true), (2, true, false), (3, false, true)] {
        let unit = with(FULL, |unit| unit.idr0 |= ttendian << 21);
        assert_eq!(is_legal(&unit, stage2(TABLES, 0)), little);
        assert_eq!(is_legal(&unit, stage2(TABLES | 1 << 52, 0)), big);
    }
    // S2TG.
    assert!(!is_legal(&FULL, stage2(word2(24, 1, 3, 6), 0)));
    assert!(!is_legal(&with(FULL, |unit| unit.idr5 &= !(1 << 4)), stage2(TABLES, 0)));
    // S2TTB in S2PS, and in 48 bits with 4 KiB without S2DS.
    assert!(is_legal(&FULL, stage2(word2(24, 1, 0, 2), 1 << 39)));
    assert!(!is_legal(&FULL, stage2(word2(24, 1, 0, 2), 1 << 40)));
    assert!(is_legal(&FULL, stage2(TABLES, 1 << 47)));
    assert!(!is_legal(&FULL, stage2(TABLES, 1 << 48)));
    assert!(is_legal(&FULL, stage2(TABLES, 1 << 48 | 1 << 3)));
    // S2PS is at most OAS, and in SMMUv3.0 48 bits.
    assert!(!is_legal(&QEMU, stage2(word2(24, 1, 0, 6), 1 << 44)));
    let first = with(FULL, |unit| unit.aidr = 0);
    assert!(!is_legal(&first, stage2(word2(24, 1, 1, 6), 1 << 48)));
    assert!(is_legal(&FULL, stage2(word2(24, 1, 1, 6), 1 << 48)));
    // S2VMID of 8 bits, unless ignored.
    let narrow = with(FULL, |unit| unit.idr0 &= !(1 << 18));
    assert!(is_legal(&narrow, stage2(TABLES | 0xff, 0)));
    assert!(!is_legal(&narrow, stage2(TABLES | 0x100, 0)));
    let mut tagged = stage1(0, 0);
    tagged[2] = 0x100;
    assert!(!is_legal(&narrow, tagged));
    tagged[1] = 2 << 30;
    assert!(is_legal(&narrow, tagged));
    let without2 = with(narrow, |unit| unit.idr0 &= !1);
    tagged[1] = 0;
    assert!(is_legal(&without2, tagged));
}

/// S2T0SZ alone: what the start level permits is wider (Arm ARM D8.2.6).
#[test]
fn stage2_sizes() {
    let t0sz = |unit: &Identification, range: core::ops::RangeInclusive<u64>, sl0: u64, tg: u64, ds: u64| {
        for t0sz in 0..64 {
            let legal = is_legal(unit, stage2(word2(t0sz, sl0 & 3, tg, 6), ds << 3 | (sl0 >> 2) << 2));
            assert_eq!(legal, range.contains(&t0sz), "{t0sz} {sl0} {tg} {ds}");
        }
    };
    // 4 KiB from level 0: 40 to 48 bits, with DS to 52; level 1: 31 to 43; level 2: 22 to 34; level 3: 16 to
    // 25; level -1: 49 to 52.
    t0sz(&FULL, 16..=24, 2, 0, 0);
    t0sz(&FULL, 12..=24, 2, 0, 1);
    t0sz(&FULL, 21..=33, 1, 0, 0);
    t0sz(&FULL, 30..=42, 0, 0, 0);
    t0sz(&FULL, 39..=48, 3, 0, 0);
    t0sz(&FULL, 12..=15, 4, 0, 1);
    t0sz(&FULL, 30..=42, 4, 0, 0); // S2SL0_2 does not count.
    // 16 KiB from level 1: 37 to 51, level 2: 26 to 40, level 3: 16 to 29, level 0: 48 to 52.
    t0sz(&FULL, 16..=27, 2, 2, 0);
    t0sz(&FULL, 13..=27, 2, 2, 1);
    t0sz(&FULL, 24..=38, 1, 2, 0);
    t0sz(&FULL, 35..=48, 0, 2, 0);
    t0sz(&FULL, 12..=16, 3, 2, 1);
    // 64 KiB from level 1: 43 to 52, level 2: 30 to 46, level 3: 17 to 33.
    t0sz(&FULL, 12..=21, 2, 1, 0);
    t0sz(&FULL, 18..=34, 1, 1, 0);
    t0sz(&FULL, 31..=47, 0, 1, 0);
    // No more than 39 without small tables, and no more input than OAS.
    t0sz(&QEMU, 20..=24, 2, 0, 0);
    t0sz(&QEMU, 30..=39, 0, 0, 0);
    t0sz(&QEMU, 20..=21, 2, 1, 0);
    t0sz(&QEMU, 31..=39, 0, 1, 0);
    let narrow = with(QEMU, |unit| unit.idr5 = 0x72);
    // Level 0 wants 44 bits of physical address, level 1 of 16 KiB 42 and of 64 KiB 44.
    for (sl0, tg) in [(2, 0), (2, 2), (2, 1)] {
        for size in 0..64 {
            assert!(!is_legal(&narrow, stage2(word2(size, sl0, tg, 2), 0)), "{size}");
        }
    }
    for (sl0, tg) in [(3, 2), (3, 1)] {
        for size in 0..64 {
            assert!(!is_legal(&FULL, stage2(word2(size, sl0, tg, 2), 0)), "{size}");
        }
    }
    for start in 5..8 {
        for size in 0..64 {
            let words = stage2(word2(size, start & 3, 0, 6), 1 << 3 | 1 << 2);
            assert!(!is_legal(&FULL, words), "{size}");
        }
    }
}
