//! The AArch64 long-descriptor formats (VMSAv8-64), stage 1 and stage 2, of every granule.
//!
//! Bits: Arm Architecture Reference Manual (DDI 0487), D8.3 "Translation table descriptor formats";
//! widths, start levels and concatenated roots: D8.2 "Translation process".
//!
//! Arm counts levels from the top: level 0 of the engine is Arm's level 3.

mod bits;
mod walk;

use core::ops::RangeInclusive;

use crate::addr::PhysAddr;
use crate::error::{Error, InvalidReason, Result};
use crate::pgtable::{Config, Format, LiveSplit, PageSizes};
use crate::prot::Prot;

use bits::{AF, CONTIGUOUS, NEXT, SOFTWARE, VALID};

pub use bits::LPAE_MAIR;
pub use walk::LpaeWalk;

/// Pages of 4 KiB and 16 of them, 2 MiB and 16 of them, 1 GiB and 16 of them; up to 48 bits of input
/// and output.
pub type Lpae4K = Lpae<12>;
/// Pages of 16 KiB and 128 of them, 32 MiB and 32 of them; up to 48 bits of input and output.
pub type Lpae16K = Lpae<14>;
/// Pages of 64 KiB and 32 of them, 512 MiB and 32 of them, 4 TiB; up to 52 bits of input and output.
pub type Lpae64K = Lpae<16>;

/// Which stage of translation a table is for.
///
/// ```
/// use iommu::pgtable::{Format, Lpae4K, LpaeStage};
/// let (one, two) = (Lpae4K::new(LpaeStage::One), Lpae4K::new(LpaeStage::Two));
/// assert!(one.attributes(iommu::Prot::WRITE).is_err() && two.attributes(iommu::Prot::WRITE).is_ok());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LpaeStage {
    /// Virtual to intermediate physical addresses (IPA), tagged with an ASID.
    One,
    /// Intermediate physical to physical addresses, tagged with a VMID.
    Two,
}

/// AArch64 long descriptors with a granule of `1 << G` bytes: 12, 14 or 16.
///
/// - [`Prot::CACHE`] gives normal write-back memory, [`Prot::MMIO`] device memory (nGnRE), neither normal
///   non-cacheable memory. Stage 1 selects them by index: [`LPAE_MAIR`] goes with the table. Of a page in
///   use they cannot be changed.
/// - Stage 1 pages belong to an ASID (nG), and unprivileged requests may use them unless [`Prot::PRIV`]
///   is asked for. What is present is readable: a mapping that may only be written is refused.
/// - Stage 2 does not know privilege: [`Prot::PRIV`] is refused.
/// - The access flag is set from the start.
/// - Pages of 52-bit addresses and of 4 TiB are for units whose output size is 52 bits: see
///   [`config`](Self::config). 52-bit addresses with the smaller granules (LPA2) are not made.
///
/// ```
/// use iommu::Prot;
/// use iommu::pgtable::{Format, Lpae4K, LpaeStage};
/// let format = Lpae4K::new(LpaeStage::One);
/// let attributes = format.attributes(Prot::RW | Prot::CACHE)?;
/// assert_eq!(format.leaf(0, 0, 0x1000, attributes), 0x1000 | 0xf43);
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lpae<const G: u8> {
    /// The stage.
    pub stage: LpaeStage,
    /// Whether the size of pages in use may change. That it may is said by the unit: SMMUv3's
    /// `IDR3.BBML` of 2 (IHI 0070, 3.21.1.3). With less, every change goes through an invalid entry.
    pub live_split: LiveSplit,
}

/// Log2 of how many tables a stage 2 root may consist of (DDI 0487 D8.2, "concatenated translation
/// tables").
const CONCATENATED_LOG2: u8 = 4;
/// The narrowest input: T0SZ is 39 at the most where small tables are not implemented.
const NARROWEST: u8 = 64 - 39;

impl<const G: u8> Lpae<G> {
    /// The widest input and output address in bits.
    const WIDEST: u8 = if G == 16 { 52 } else { 48 };

    /// The format for `stage`, for units that demand break-before-make.
    pub const fn new(stage: LpaeStage) -> Self {
        Self { stage, live_split: LiveSplit::Forbidden }
    }

    /// What a table is to be like that translates `input_bits` bits for a unit whose output addresses
    /// have `output_bits` bits (`IDR5.OAS`), with as few levels as can be; for walkers that snoop.
    /// Widths that cannot be are refused when the table is made.
    ///
    /// ```
    /// use iommu::pgtable::{Lpae4K, LpaeStage};
    /// // Stage 1 needs a fourth level beyond 39 bits; stage 2 puts up to 16 tables side by side.
    /// assert_eq!(Lpae4K::new(LpaeStage::One).config(40, 48).levels, 4);
    /// assert_eq!(Lpae4K::new(LpaeStage::Two).config(40, 48).levels, 3);
    /// ```
    pub fn config(&self, input_bits: u8, output_bits: u8) -> Config {
        let concatenated = if self.stage == LpaeStage::Two { CONCATENATED_LOG2 } else { 0 };
        let below_root = input_bits.saturating_sub(G + concatenated).div_ceil(Self::INDEX_BITS);
        let levels = below_root.clamp(Self::MIN_LEVELS, Self::MAX_LEVELS);
        let output_bits = output_bits.min(Self::OUTPUT_BITS);
        let output_last = PhysAddr::new(u64::MAX >> 64u32.saturating_sub(output_bits.into()).min(63));
        Config {
            input_bits,
            page_sizes: Self::page_sizes(output_bits),
            table_last: output_last,
            output_last,
            ..Config::new::<Self>(levels)
        }
    }

    /// The page sizes for a unit whose output addresses have `output_bits` bits: 4 TiB is one only if
    /// these are 52.
    pub const fn page_sizes(output_bits: u8) -> PageSizes {
        if output_bits < 52 { PageSizes::from_bits(!(1 << 42)) } else { PageSizes::ALL }
    }

    /// Bits that one level of tables and all below it translate.
    const fn reach(levels: u8) -> u8 {
        levels.saturating_mul(G - 3).saturating_add(G)
    }
}

impl<const G: u8> Format for Lpae<G> {
    const NAME: &'static str = match G {
        12 => "AArch64, 4 KiB granule",
        14 => "AArch64, 16 KiB granule",
        _ => "AArch64, 64 KiB granule",
    };
    const GRANULE_LOG2: u8 = G;
    const INDEX_BITS: u8 = {
        assert!(G == 12 || G == 14 || G == 16);
        G - 3
    };
    const MIN_LEVELS: u8 = 2;
    const MAX_LEVELS: u8 = if G == 16 { 3 } else { 4 };
    const MAX_CONCATENATED_LOG2: u8 = CONCATENATED_LOG2;
    const ITEMS: &'static [u16] = match G {
        12 => &[1 | 1 << 4, 1 | 1 << 4, 1 | 1 << 4],
        14 => &[1 | 1 << 7, 1 | 1 << 5],
        _ => &[1 | 1 << 5, 1 | 1 << 5, 1],
    };
    const OUTPUT_BITS: u8 = Self::WIDEST;
    const LINEAR: bool = G != 16;
    const PRESENT: u64 = VALID;
    const VISIBLE: u64 = SOFTWARE;
    /// Of both stages. A new kind of memory takes break-before-make, as does another size (DDI 0487 D8,
    /// "Using break-before-make when updating translation table entries").
    const FIXED: u64 = bits::MEMORY;
    /// The flag is set from the start, and dirty state is not recorded.
    const ACCESSED_DIRTY: u64 = 0;

    #[inline]
    fn max_input_bits(levels: u8) -> u8 {
        Self::reach(levels).min(Self::WIDEST)
    }

    /// The root has two entries at least, for the start level follows from the width at stage 1, and
    /// must be consistent with it at stage 2.
    fn input_widths(&self, levels: u8) -> RangeInclusive<u8> {
        let least = NARROWEST.max(Self::reach(levels.saturating_sub(1)).saturating_add(1));
        match self.stage {
            LpaeStage::One => least..=Self::max_input_bits(levels),
            // No start level 0 without LPA2.
            LpaeStage::Two if G == 14 && levels == 4 => RangeInclusive::new(1, 0),
            LpaeStage::Two => least..=Self::reach(levels).saturating_add(CONCATENATED_LOG2).min(Self::WIDEST),
        }
    }

    #[inline]
    fn live_split(&self) -> LiveSplit {
        self.live_split
    }

    #[inline]
    fn attributes(&self, prot: Prot) -> Result<u64> {
        if !prot.intersects(Prot::RW) {
            return Err(Error::Invalid(InvalidReason::NoPermission));
        }
        let attributes = match self.stage {
            LpaeStage::One => bits::stage1(prot),
            LpaeStage::Two => bits::stage2(prot),
        };
        Ok(attributes.ok_or(Error::Invalid(InvalidReason::Permission))? | AF | VALID)
    }

    #[inline]
    fn leaf(&self, level: u8, item: u8, phys: u64, attributes: u64) -> u64 {
        let page = if level == 0 { NEXT } else { 0 };
        let contiguous = if item == 0 { 0 } else { CONTIGUOUS };
        bits::address::<G>(phys) | attributes | page | contiguous
    }

    #[inline]
    fn table(&self, phys: u64) -> u64 {
        bits::address::<G>(phys) | NEXT | VALID
    }

    #[inline]
    fn is_leaf(&self, level: u8, entry: u64) -> bool {
        level == 0 || entry & NEXT == 0
    }

    #[inline]
    fn item(&self, level: u8, entry: u64) -> u8 {
        if entry & CONTIGUOUS == 0 {
            return 0;
        }
        match (G, level) {
            (12, _) => 4,
            (14, 0) => 7,
            _ => 5,
        }
    }

    #[inline]
    fn table_phys(&self, entry: u64) -> u64 {
        bits::phys::<G>(entry)
    }

    #[inline]
    fn leaf_phys(&self, _level: u8, entry: u64) -> u64 {
        bits::phys::<G>(entry)
    }

    #[inline]
    fn prot(&self, entry: u64) -> Prot {
        match self.stage {
            LpaeStage::One => bits::stage1_prot(entry),
            LpaeStage::Two => bits::stage2_prot(entry),
        }
    }
}

#[cfg(test)]
mod tests;
