//! Which pages devices wrote: the switch, and the bitmap that the answer goes into.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use crate::addr::{Iova, IovaRange};
use crate::error::{Error, InvalidReason, Result};
use crate::pgtable::{PageSize, PageSizes};

/// Whether hardware records which pages devices write.
///
/// ```
/// use iommu::domain::DirtyTracking;
/// assert_eq!(DirtyTracking::default(), DirtyTracking::Off);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DirtyTracking {
    /// It does not, or nobody may rely on it.
    #[default]
    Off,
    /// It does.
    On,
}

/// One bit for each page from a first IOVA on, in the caller's words: bit `n % 64` of word `n / 64`
/// stands for page `n`. Bits are set and never cleared, so that one bitmap can collect several reads.
///
/// ```
/// use iommu::domain::DirtyBitmap;
/// use iommu::pgtable::PageSize;
/// use iommu::{Iova, IovaRange};
///
/// let mut words = [0; 2];
/// let mut bitmap = DirtyBitmap::new(&mut words, Iova::new(0x10_0000), PageSize::SIZE_4K)?;
/// bitmap.set(IovaRange::from_len(Iova::new(0x10_1000), 0x3000)?);
/// assert!(bitmap.is_set(Iova::new(0x10_3fff)));
/// assert_eq!(words, [0b1110, 0]);
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Debug)]
pub struct DirtyBitmap<'a> {
    words: &'a mut [u64],
    range: IovaRange,
    page_size: PageSize,
}

impl<'a> DirtyBitmap<'a> {
    /// A bitmap over `words` for pages of `page_size` from `base` on; what lies beyond the top of the
    /// 64-bit space has no bit. The words are kept as they are.
    ///
    /// # Errors
    /// [`InvalidReason::Misaligned`] when `base` is not a multiple of the page size,
    /// [`InvalidReason::EmptyRange`] without a word.
    pub fn new(words: &'a mut [u64], base: Iova, page_size: PageSize) -> Result<Self> {
        if !base.is_aligned(page_size.bytes()) {
            return Err(Error::Invalid(InvalidReason::Misaligned));
        }
        let pages = (words.len() as u64).saturating_mul(u64::from(u64::BITS));
        let after = pages.checked_sub(1).ok_or(Error::Invalid(InvalidReason::EmptyRange))?;
        let last = after
            .checked_mul(page_size.bytes())
            .and_then(|bytes| base.as_u64().checked_add(bytes))
            .map_or(u64::MAX, |page| page | page_size.bytes().wrapping_sub(1));
        Ok(Self { words, range: IovaRange::new(base, Iova::new(last))?, page_size })
    }

    /// The IOVAs that have a bit.
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// What one bit stands for.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Sets the bit of every page that `range` touches; what lies outside of the bitmap is left out.
    pub fn set(&mut self, range: IovaRange) {
        let Some(range) = self.range.intersection(&range) else { return };
        let (Some(first), Some(last)) = (self.page(range.start()), self.page(range.last())) else { return };
        for word in first / 64..=last / 64 {
            let from = if word == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
            let to = if word == last / 64 { u64::MAX >> (63 & !last) } else { u64::MAX };
            if let Some(word) = self.words.get_mut(word as usize) {
                *word |= from & to;
            }
        }
    }

    /// Whether the bit of the page around `iova` is set; `false` for a page that has none.
    pub fn is_set(&self, iova: Iova) -> bool {
        let Some(page) = self.page(iova) else { return false };
        self.words.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// Whether the bitmap can tell what is dirty in `range`, of a domain with these page sizes.
    pub(super) fn check(&self, range: IovaRange, sizes: PageSizes) -> Result<()> {
        let bytes = self.page_size.bytes();
        let end = Iova::new(range.last().as_u64().wrapping_add(1));
        Err(Error::Invalid(if sizes.smallest().is_none_or(|smallest| self.page_size < smallest) {
            InvalidReason::NoPageSize
        } else if !range.start().is_aligned(bytes) || !end.is_aligned(bytes) {
            InvalidReason::Misaligned
        } else if !self.range.covers(&range) {
            InvalidReason::Bitmap
        } else {
            return Ok(());
        }))
    }

    /// The number of the page around `iova`.
    fn page(&self, iova: Iova) -> Option<u64> {
        let offset = iova.as_u64().checked_sub(self.range.start().as_u64())?;
        (iova <= self.range.last()).then(|| offset >> self.page_size.bytes().trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use super::DirtyBitmap;
    use crate::addr::{Iova, IovaRange};
    use crate::error::{Error, InvalidReason};
    use crate::pgtable::PageSize;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), Iova::new(last)).unwrap()
    }

    #[test]
    fn bits_across_words_and_both_ends() {
        let mut words = [0u64; 3];
        let mut bitmap = DirtyBitmap::new(&mut words, Iova::new(0x1000), PageSize::SIZE_4K).unwrap();
        assert_eq!(bitmap.range(), range(0x1000, 0xc_0fff));
        bitmap.set(range(0, 0x1000));
        bitmap.set(range(0x4_0fff, 0x8_1000));
        bitmap.set(range(0xc_0000, u64::MAX));
        bitmap.set(range(0xc_1000, u64::MAX));
        assert_eq!(
            [0x1000, 0x2000, 0x4_0000, 0x8_1fff, 0x8_2000, 0xc_0fff, 0xc_1000, 0]
                .map(|iova| bitmap.is_set(Iova::new(iova))),
            [true, false, true, true, false, true, false, false]
        );
        assert_eq!(words, [1 | 1 << 63, u64::MAX, 1 | 1 << 63]);
    }

    #[test]
    fn what_is_no_bitmap() {
        let refused = |words: &mut [u64], base| DirtyBitmap::new(words, Iova::new(base), PageSize::SIZE_2M).err();
        assert_eq!(refused(&mut [0], 0x1000), Some(Error::Invalid(InvalidReason::Misaligned)));
        assert_eq!(refused(&mut [], 0), Some(Error::Invalid(InvalidReason::EmptyRange)));
    }

    #[test]
    fn the_top_of_the_space_ends_a_bitmap() {
        let mut words = [0u64; 2];
        let base = 0u64.wrapping_sub(3 << 30);
        let mut bitmap = DirtyBitmap::new(&mut words, Iova::new(base), PageSize::SIZE_1G).unwrap();
        assert_eq!(bitmap.range(), range(base, u64::MAX));
        bitmap.set(range(0, u64::MAX));
        assert!(bitmap.is_set(Iova::new(u64::MAX)));
        assert_eq!(words, [0b111, 0]);
    }
}
