//! Both formats of x86 I/O in one type, so that a driver of both has the code of page tables once.

use super::{AccessedDirty, SecondStage, X86_64};
use crate::error::Result;
use crate::pgtable::{Format, LiveSplit};
use crate::prot::Prot;

/// x86 I/O, the stage known when a table is made. Entries of the two stages differ in few bits; what they
/// have in common is what this says of both:
/// - an entry of the first stage has bit 0 set if it has any of [`PRESENT`](Format::PRESENT);
/// - bits 10 and 11 are ignored in the first stage (unless extended accessed flags are on);
/// - accessed and dirty bits of the first stage are always set from the start, and need not be kept.
///
/// ```
/// use iommu::Prot;
/// use iommu::pgtable::{Format, SecondStage, X86_64, X86Io};
/// let (first, second) = (X86Io::FirstStage, X86Io::SecondStage(SecondStage::default()));
/// assert_eq!(first.attributes(Prot::READ)?, X86_64::default().attributes(Prot::READ)?);
/// assert_eq!(second.table(0x1000), SecondStage::default().table(0x1000));
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum X86Io {
    /// As [`X86_64`] without tracking: four or five levels, of which the lower half is translated.
    FirstStage,
    /// As [`SecondStage`].
    SecondStage(SecondStage),
}

/// The first stage, where it says something of its own.
const FIRST: X86_64 = X86_64 { accessed_dirty: AccessedDirty::Unused };
/// The second stage, where its choices do not matter.
const SECOND: SecondStage = SecondStage { accessed_dirty: AccessedDirty::Unused };

impl Format for X86Io {
    const NAME: &'static str = "x86 I/O";
    const GRANULE_LOG2: u8 = 12;
    const INDEX_BITS: u8 = 9;
    const MIN_LEVELS: u8 = SecondStage::MIN_LEVELS;
    const MAX_LEVELS: u8 = SecondStage::MAX_LEVELS;
    const ITEMS: &'static [u16] = SecondStage::ITEMS;
    const OUTPUT_BITS: u8 = SecondStage::OUTPUT_BITS;
    const LINEAR: bool = true;
    const PRESENT: u64 = SecondStage::PRESENT;
    const VISIBLE: u64 = SecondStage::VISIBLE;
    const ACCESSED_DIRTY: u64 = SecondStage::ACCESSED_DIRTY;
    const DIRTY: u64 = SecondStage::DIRTY;
    const SNOOP: u64 = SecondStage::SNOOP;

    #[inline]
    fn max_input_bits(levels: u8) -> u8 {
        SecondStage::max_input_bits(levels)
    }

    #[inline]
    fn live_split(&self) -> LiveSplit {
        LiveSplit::Allowed
    }

    #[inline]
    fn attributes(&self, prot: Prot) -> Result<u64> {
        match self {
            Self::FirstStage => FIRST.attributes(prot),
            Self::SecondStage(format) => format.attributes(prot),
        }
    }

    #[inline]
    fn leaf(&self, level: u8, item: u8, phys: u64, attributes: u64) -> u64 {
        SECOND.leaf(level, item, phys, attributes)
    }

    #[inline]
    fn table(&self, phys: u64) -> u64 {
        match self {
            Self::FirstStage => FIRST.table(phys),
            Self::SecondStage(format) => format.table(phys),
        }
    }

    #[inline]
    fn is_leaf(&self, level: u8, entry: u64) -> bool {
        SECOND.is_leaf(level, entry)
    }

    #[inline]
    fn table_phys(&self, entry: u64) -> u64 {
        SECOND.table_phys(entry)
    }

    #[inline]
    fn leaf_phys(&self, level: u8, entry: u64) -> u64 {
        SECOND.leaf_phys(level, entry)
    }

    #[inline]
    fn prot(&self, entry: u64) -> Prot {
        match self {
            Self::FirstStage => FIRST.prot(entry),
            Self::SecondStage(format) => format.prot(entry),
        }
    }

    #[inline]
    fn accessed_dirty(&self) -> AccessedDirty {
        match self {
            Self::FirstStage => AccessedDirty::Unused,
            Self::SecondStage(format) => format.accessed_dirty,
        }
    }
}

/// Where one stage speaks for both.
const _: () = assert!(
    X86_64::PRESENT & SecondStage::PRESENT != 0
        && X86_64::GRANULE_LOG2 == X86Io::GRANULE_LOG2
        && X86_64::INDEX_BITS == X86Io::INDEX_BITS
        && X86_64::OUTPUT_BITS == X86Io::OUTPUT_BITS
        && X86_64::MAX_LEVELS == X86Io::MAX_LEVELS
        && X86_64::ITEMS.len() == X86Io::ITEMS.len()
);

#[cfg(test)]
mod tests {
    use super::X86Io;
    use crate::pgtable::{Format, SecondStage, X86_64};
    use crate::prot::Prot;

    #[test]
    fn one_stage_speaks_for_both() {
        let (first, io) = (X86_64::default(), X86Io::FirstStage);
        for level in 0..3 {
            let attributes = first.attributes(Prot::RW).unwrap();
            let leaf = first.leaf(level, 0, 0x4000_0000, attributes);
            assert_eq!(io.leaf(level, 0, 0x4000_0000, io.attributes(Prot::RW).unwrap()), leaf);
            assert_eq!((io.is_leaf(level, leaf), io.leaf_phys(level, leaf)), (true, first.leaf_phys(level, leaf)));
            let table = first.table(0x7000);
            assert_eq!(io.is_leaf(level, table), first.is_leaf(level, table));
            assert_eq!(io.table_phys(table), first.table_phys(table));
        }
        assert_eq!(SecondStage::MAX_LEVELS, X86_64::MAX_LEVELS);
    }
}
