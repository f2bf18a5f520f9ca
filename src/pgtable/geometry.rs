//! Pure address arithmetic: which bits of an offset select what, and which page fits.

use super::{Format, PageSizes};
use crate::hwmem::ENTRIES_PER_FRAME_LOG2;

/// Whether the format has pages that take more than one entry.
pub(super) const fn has_items<F: Format>() -> bool {
    let mut level = 0;
    while level < F::ITEMS.len() {
        #[allow(clippy::indexing_slicing, reason = "bounded by the loop, evaluated at compile time")]
        if F::ITEMS[level] > 1 {
            return true;
        }
        level += 1;
    }
    false
}

/// Whether pages of `bytes` bytes, a page size of the format, take one entry each.
#[inline(always)]
pub(super) const fn is_one_entry<F: Format>(bytes: u64) -> bool {
    !has_items::<F>() || bytes & const { one_entry_sizes::<F>() } != 0
}

/// The sizes of pages that take one entry each, as bits.
const fn one_entry_sizes<F: Format>() -> u64 {
    let (mut bits, mut level) = (0, 0);
    while level < F::ITEMS.len() {
        #[allow(clippy::indexing_slicing, reason = "bounded by the loop, evaluated at compile time")]
        if F::ITEMS[level] & 1 != 0 {
            // A shift beyond the word would be a page that no address can hold.
            bits |= match 1u64.checked_shl(F::GRANULE_LOG2 as u32 + level as u32 * F::INDEX_BITS as u32) {
                Some(size) => size,
                None => 0,
            };
        }
        level += 1;
    }
    bits
}

/// Binary logarithm of the bytes that one entry of `level` stands for.
#[inline(always)]
pub(super) fn shift<F: Format>(level: u8) -> u32 {
    u32::from(F::GRANULE_LOG2) + u32::from(level) * u32::from(F::INDEX_BITS)
}

/// The size of an entry of `level`.
#[inline(always)]
pub(super) fn entry_size<F: Format>(level: u8) -> PageSizes {
    PageSizes::from_bits(1 << shift::<F>(level))
}

/// The highest offset that the entry of `level` around `at` translates.
#[inline(always)]
pub(super) fn entry_last<F: Format>(level: u8, at: u64) -> u64 {
    at | low_mask(shift::<F>(level))
}

/// Order of the block of frames that holds a table of `1 << bits` entries.
#[inline(always)]
pub(super) const fn table_order(bits: u8) -> u8 {
    bits.saturating_sub(ENTRIES_PER_FRAME_LOG2)
}

/// A number with the low `bits` bits set.
#[inline(always)]
pub(super) const fn low_mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// A number with bit `last` and all below it set.
#[inline(always)]
const fn through(last: u32) -> u64 {
    u64::MAX >> (63 - last)
}

/// The page sizes of a format in a table of `levels` levels.
pub(super) fn page_sizes<F: Format>(levels: u8) -> PageSizes {
    let bits = F::ITEMS.iter().take(usize::from(levels)).zip(0u8..).fold(0, |bits, (&items, level)| {
        // A shift beyond the word would be a page that no address can hold.
        bits | u64::from(items).checked_shl(shift::<F>(level)).unwrap_or(0)
    });
    PageSizes::from_bits(bits)
}

/// Binary logarithm of the largest size in `sizes` to which `at` is aligned and that fits into
/// `at..=last`. `sizes` holds one that does.
#[inline(always)]
pub(super) fn pick(sizes: u64, at: u64, last: u64) -> u32 {
    let length = (last - at).wrapping_add(1);
    // The whole 64-bit space wraps to zero: any page fits.
    let fits = if length == 0 { 63 } else { length.ilog2() };
    let aligned = (at | 1 << 63).trailing_zeros();
    (sizes & through(fits.min(aligned)) | 1).ilog2()
}

/// The sizes to whose multiples `at` and `phys` have the same distance: in a mapping from `at` to
/// `phys` no other size can occur.
#[inline(always)]
pub(super) fn congruent(sizes: u64, at: u64, phys: u64) -> u64 {
    let common = (at ^ phys | 1 << 63).trailing_zeros();
    sizes & through(common)
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::{congruent, entry_last, page_sizes, pick};
    use crate::pgtable::{PageSizes, SecondStage};

    #[test]
    fn sizes_follow_the_levels() {
        assert_eq!(page_sizes::<SecondStage>(3), PageSizes::from_bits(1 << 12 | 1 << 21 | 1 << 30));
        assert_eq!(page_sizes::<SecondStage>(2), PageSizes::from_bits(1 << 12 | 1 << 21));
        assert_eq!(entry_last::<SecondStage>(1, 0x40_1000), 0x5f_ffff);
        assert_eq!(pick(1 << 12, 0, u64::MAX), 12);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The choice is the one that trying every size would make.
        #[test]
        fn the_largest_page_is_picked(start in any::<u64>(), pages in 1u64.., extra in any::<u64>(), phys in any::<u64>()) {
            let (start, phys) = (start & !0xfff, phys & !0xfff);
            let last = start.saturating_add(pages.saturating_mul(4096) - 1) | 0xfff;
            let sizes = extra & !0xfff | 1 << 12;
            let usable = congruent(sizes, start, phys);
            let picked = pick(usable, start, last);
            let fits = |log2: u32| {
                let bytes = 1u64 << log2;
                sizes & bytes != 0 && (start | phys) & (bytes - 1) == 0 && bytes - 1 <= last - start
            };
            prop_assert!(fits(picked));
            prop_assert_eq!((picked + 1..64).find(|&log2| fits(log2)), None);
        }

        /// Stepping by picked pages ends exactly at the end of the range.
        #[test]
        fn steps_meet_the_end(start in 0u64..1 << 30, pages in 1u64..1 << 14, phys in 0u64..1 << 30) {
            let (start, phys) = (start << 12, phys << 12);
            let last = start + (pages << 12) - 1;
            let usable = congruent(page_sizes::<SecondStage>(4).bits(), start, phys);
            let mut at = start;
            loop {
                let end = at + (1u64 << pick(usable, at, last)) - 1;
                prop_assert!(end <= last);
                if end == last {
                    break;
                }
                at = end + 1;
            }
        }
    }
}
