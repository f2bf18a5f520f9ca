//! Page sizes, one and many.

use core::fmt;

/// A page size: a power of two of bytes.
///
/// ```
/// use iommu::pgtable::PageSize;
/// assert_eq!(PageSize::SIZE_2M.bytes(), 2 << 20);
/// assert_eq!(PageSize::SIZE_2M.to_string(), "2 MiB");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u8);

impl PageSize {
    /// 4 KiB.
    pub const SIZE_4K: Self = Self(12);
    /// 2 MiB.
    pub const SIZE_2M: Self = Self(21);
    /// 1 GiB.
    pub const SIZE_1G: Self = Self(30);

    /// The page size of `1 << log2` bytes; `log2` is capped at 63.
    #[inline]
    pub const fn from_log2(log2: u8) -> Self {
        Self(if log2 < 64 { log2 } else { 63 })
    }

    /// Binary logarithm of the size in bytes.
    #[inline]
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// Size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let unit = UNITS.get(usize::from(self.0 / 10)).copied().unwrap_or("?");
        write!(f, "{} {unit}", 1u32 << (self.0 % 10))
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of page sizes: bit n stands for pages of `1 << n` bytes (Linux's `pgsize_bitmap`).
///
/// ```
/// use iommu::pgtable::{PageSize, PageSizes};
/// let sizes = PageSizes::from_bits(1 << 12 | 1 << 21);
/// assert_eq!(sizes.smallest(), Some(PageSize::SIZE_4K));
/// assert!(sizes.contains(PageSize::SIZE_2M));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageSizes(u64);

impl PageSizes {
    /// Every size there is.
    pub const ALL: Self = Self(u64::MAX);
    /// None.
    pub const NONE: Self = Self(0);

    /// The set with these bits.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The set as bits.
    #[inline]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set of one size.
    #[inline]
    pub const fn only(size: PageSize) -> Self {
        Self(size.bytes())
    }

    /// Whether `size` is in the set.
    #[inline]
    pub const fn contains(self, size: PageSize) -> bool {
        self.0 & size.bytes() != 0
    }

    /// The sizes that both sets hold.
    #[inline]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The sizes of either set.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in the set.
    #[inline]
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// The smallest size.
    #[inline]
    pub const fn smallest(self) -> Option<PageSize> {
        if self.0 == 0 { None } else { Some(PageSize(self.0.trailing_zeros() as u8)) }
    }

    /// The largest size.
    #[inline]
    pub const fn largest(self) -> Option<PageSize> {
        if self.0 == 0 { None } else { Some(PageSize(63 - self.0.leading_zeros() as u8)) }
    }

    /// The sizes, smallest first.
    pub fn iter(self) -> impl Iterator<Item = PageSize> {
        (0..64).map(PageSize).filter(move |&size| self.contains(size))
    }
}

impl fmt::Debug for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
