//! A format whose tables fit a loom model's frames.

use iommu::pgtable::{Format, LiveSplit};
use iommu::{Prot, Result};

/// One table of four pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiny;

impl Format for Tiny {
    const NAME: &'static str = "one table";
    const GRANULE_LOG2: u8 = 12;
    const INDEX_BITS: u8 = 2;
    const MIN_LEVELS: u8 = 1;
    const MAX_LEVELS: u8 = 1;
    const ITEMS: &'static [u16] = &[1];
    const OUTPUT_BITS: u8 = 40;
    const PRESENT: u64 = 1;
    const VISIBLE: u64 = 1 << 10;
    const ACCESSED_DIRTY: u64 = 0;

    fn live_split(&self) -> LiveSplit {
        LiveSplit::Allowed
    }
    fn max_input_bits(levels: u8) -> u8 {
        12 + 2 * levels
    }

    fn attributes(&self, _prot: Prot) -> Result<u64> {
        Ok(1)
    }

    fn leaf(&self, _level: u8, _item: u8, phys: u64, attributes: u64) -> u64 {
        phys | attributes
    }

    fn table(&self, phys: u64) -> u64 {
        phys | 1
    }

    fn is_leaf(&self, _level: u8, _entry: u64) -> bool {
        true
    }

    fn table_phys(&self, entry: u64) -> u64 {
        entry & !0xfff
    }

    fn leaf_phys(&self, _level: u8, entry: u64) -> u64 {
        entry & !0xfff
    }

    fn prot(&self, _entry: u64) -> Prot {
        Prot::RW
    }
}
