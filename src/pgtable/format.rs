//! What the engine must know of a page-table format.

use core::fmt::Debug;
use core::ops::RangeInclusive;

use super::AccessedDirty;
use crate::error::Result;
use crate::prot::Prot;

/// Whether a page may be replaced by smaller pages for the same memory, or an empty table by a page,
/// while hardware may have cached what was there.
///
/// ```
/// use iommu::pgtable::{Format, LiveSplit, SecondStage};
/// assert_eq!(SecondStage::default().live_split(), LiveSplit::Allowed);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LiveSplit {
    /// Yes: the same translation in another size does no harm.
    Allowed,
    /// No: what was there must be removed and invalidated first (break before make).
    Forbidden,
}

/// A page-table format: constants and bit functions, no state beyond a few choices in the value.
///
/// Addresses are plain numbers here, aligned to what they point to. The engine asserts at compile
/// time what it can of these rules, and the suite in `tests/pgtable` runs for every format:
/// - an entry of zero is absent, and so is every entry without a bit of [`PRESENT`](Self::PRESENT);
/// - only table entries have [`VISIBLE`](Self::VISIBLE) set, never leaves;
/// - hardware ignores `VISIBLE`, and writes nothing but [`ACCESSED_DIRTY`](Self::ACCESSED_DIRTY).
///
/// ```
/// use iommu::pgtable::{Format, SecondStage};
/// assert_eq!(SecondStage::max_input_bits(4), 48);
/// ```
pub trait Format: Copy + Debug + Send + Sync + 'static {
    /// What the format is called.
    const NAME: &'static str;
    /// Binary logarithm of the bytes in a page of level 0.
    const GRANULE_LOG2: u8;
    /// Binary logarithm of the entries in a table.
    const INDEX_BITS: u8;
    /// The fewest levels.
    const MIN_LEVELS: u8;
    /// The most levels, 15 at the most.
    const MAX_LEVELS: u8;
    /// Binary logarithm of how many tables the root may consist of.
    const MAX_CONCATENATED_LOG2: u8 = 0;
    /// The pages of each level, from level 0 on: where bit `k` is set, `1 << k` neighbouring entries
    /// may form one page. Levels beyond the end hold no leaves.
    const ITEMS: &'static [u16];
    /// Bits of an output address.
    const OUTPUT_BITS: u8;
    /// Whether the leaf for the bytes that follow in a run is the leaf plus the bytes of an entry, in
    /// one addition, so that runs need not be encoded leaf by leaf.
    const LINEAR: bool = false;
    /// An entry with none of these bits is absent, to hardware as well.
    const PRESENT: u64;
    /// A bit that hardware ignores: the table that this entry points to can be reached by the walker.
    const VISIBLE: u64;
    /// The bits that hardware sets in leaves.
    const ACCESSED_DIRTY: u64;
    /// The one of them that says that the page was written; zero where hardware does not say so.
    const DIRTY: u64 = 0;
    /// The bits in a leaf that make every request snoop, whatever the device asks for; zero where
    /// leaves cannot say so.
    const SNOOP: u64 = 0;

    /// The bits in a leaf that must not change while hardware uses the page: what kind of memory it is.
    const FIXED: u64 = 0;

    /// The widest input address of a table of `levels` levels, in bits, with a root as
    /// [`Config::new`](super::Config::new) makes it.
    fn max_input_bits(levels: u8) -> u8;

    /// The widths of input addresses, in bits, that a table of `levels` levels may have with these
    /// choices. Where the root may be several tables that is more than these levels translate.
    #[inline]
    fn input_widths(&self, levels: u8) -> RangeInclusive<u8> {
        Self::GRANULE_LOG2 + 1..=Self::max_input_bits(levels)
    }

    /// Whether pages may be split, and empty tables replaced by pages, while hardware uses them.
    fn live_split(&self) -> LiveSplit;

    /// The first input address of a table that translates `1 << input_bits` addresses.
    #[inline]
    fn input_start(&self, input_bits: u8) -> u64 {
        let _ = input_bits;
        0
    }

    /// The bits that stand for `prot` in a leaf of any level.
    ///
    /// # Errors
    /// [`NoPermission`](crate::InvalidReason::NoPermission) when neither read nor write is permitted,
    /// [`Permission`](crate::InvalidReason::Permission) when the format cannot say it.
    fn attributes(&self, prot: Prot) -> Result<u64>;

    /// A leaf at `level` for the bytes at `phys`, one of the `1 << item` entries of its page. Besides
    /// what [`attributes`](Self::attributes) gave, `attributes` may have `ACCESSED_DIRTY` bits set.
    fn leaf(&self, level: u8, item: u8, phys: u64, attributes: u64) -> u64;

    /// An entry that points to the table at `phys`, without [`VISIBLE`](Self::VISIBLE).
    fn table(&self, phys: u64) -> u64;

    /// Whether an entry of `level` that is present is a leaf.
    fn is_leaf(&self, level: u8, entry: u64) -> bool;

    /// Binary logarithm of how many entries form the page that this leaf belongs to.
    #[inline]
    fn item(&self, level: u8, entry: u64) -> u8 {
        let _ = (level, entry);
        0
    }

    /// Where the table lies that a table entry points to.
    fn table_phys(&self, entry: u64) -> u64;

    /// Where the bytes lie that a leaf points to (for an item: those of this entry, or of its first).
    fn leaf_phys(&self, level: u8, entry: u64) -> u64;

    /// What a leaf permits.
    fn prot(&self, entry: u64) -> Prot;

    /// Whether hardware sets bits in leaves that must not be lost.
    #[inline]
    fn accessed_dirty(&self) -> AccessedDirty {
        AccessedDirty::Unused
    }
}
