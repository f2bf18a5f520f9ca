//! Formats of no hardware in particular: what the engine must have room for.

use iommu::pgtable::{AccessedDirty, Format, LiveSplit};
use iommu::{Error, InvalidReason, Prot, Result};

/// Bit 0 present; bit 1 set in tables, and in leaves of level 0; bits 6 and 7 permit; an address in
/// bits 12 to 47; bit 10 accessed, bit 51 dirty; bit 52 says that entries belong together; bit 55 is
/// software's.
const PRESENT: u64 = 1;
const NEXT: u64 = 2;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 10;
const DIRTY: u64 = 1 << 51;
const TOGETHER: u64 = 1 << 52;
const SOFTWARE: u64 = 1 << 55;
const ADDRESS: u64 = (1 << 48) - (1 << 12);

fn attributes(prot: Prot) -> Result<u64> {
    let mut bits = PRESENT | ACCESSED;
    if !prot.intersects(Prot::RW) {
        return Err(Error::Invalid(InvalidReason::NoPermission));
    }
    if prot.contains(Prot::READ) {
        bits |= READ;
    }
    if prot.contains(Prot::WRITE) {
        bits |= WRITE;
    }
    Ok(bits)
}

fn prot(entry: u64) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, entry & READ != 0);
    prot.set(Prot::WRITE, entry & WRITE != 0);
    prot
}

/// The bit functions that the formats of this file share; `TOGETHER` marks items of one size.
macro_rules! common {
    () => {
        const PRESENT: u64 = PRESENT;
        const VISIBLE: u64 = SOFTWARE;
        const ACCESSED_DIRTY: u64 = ACCESSED | DIRTY;
        const DIRTY: u64 = DIRTY;
        const OUTPUT_BITS: u8 = 48;

        fn attributes(&self, prot: Prot) -> Result<u64> {
            attributes(prot)
        }
        fn table(&self, phys: u64) -> u64 {
            phys | PRESENT | NEXT
        }
        fn is_leaf(&self, level: u8, entry: u64) -> bool {
            level == 0 || entry & NEXT == 0
        }
        fn table_phys(&self, entry: u64) -> u64 {
            entry & ADDRESS
        }
        fn leaf_phys(&self, _level: u8, entry: u64) -> u64 {
            entry & ADDRESS
        }
        fn prot(&self, entry: u64) -> Prot {
            prot(entry)
        }
    };
}

/// Marks items with one bit; every entry holds its own address.
macro_rules! one_item_size {
    () => {
        fn leaf(&self, level: u8, item: u8, phys: u64, attributes: u64) -> u64 {
            phys | attributes | if level == 0 { NEXT } else { 0 } | if item == 0 { 0 } else { TOGETHER }
        }
        fn item(&self, level: u8, entry: u64) -> u8 {
            let sizes = Self::ITEMS[usize::from(level)];
            if entry & TOGETHER == 0 { 0 } else { sizes.ilog2() as u8 }
        }
    };
}

/// 4 KiB granule, upper half, 16 neighbours may form one page; pages are never split live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upper;

impl Format for Upper {
    const NAME: &'static str = "upper half";
    const GRANULE_LOG2: u8 = 12;
    const INDEX_BITS: u8 = 9;
    const MIN_LEVELS: u8 = 3;
    const MAX_LEVELS: u8 = 4;
    const ITEMS: &'static [u16] = &[1 | 1 << 4, 1 | 1 << 4, 1];
    common!();
    one_item_size!();

    fn live_split(&self) -> LiveSplit {
        LiveSplit::Forbidden
    }
    fn max_input_bits(levels: u8) -> u8 {
        12 + 9 * levels
    }
    fn input_start(&self, input_bits: u8) -> u64 {
        u64::MAX << input_bits
    }
}

/// 16 KiB granule, a root of up to 16 tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Middle;

impl Format for Middle {
    const NAME: &'static str = "16 KiB granule";
    const GRANULE_LOG2: u8 = 14;
    const INDEX_BITS: u8 = 11;
    const MIN_LEVELS: u8 = 2;
    const MAX_LEVELS: u8 = 4;
    const MAX_CONCATENATED_LOG2: u8 = 4;
    const ITEMS: &'static [u16] = &[1 | 1 << 7, 1 | 1 << 5];
    common!();
    one_item_size!();

    fn live_split(&self) -> LiveSplit {
        LiveSplit::Allowed
    }
    /// One bit more than the levels translate: two root tables.
    fn max_input_bits(levels: u8) -> u8 {
        14 + 11 * levels + 1
    }
}

/// 64 KiB granule; the root is shorter than a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Large;

impl Format for Large {
    const NAME: &'static str = "64 KiB granule";
    const GRANULE_LOG2: u8 = 16;
    const INDEX_BITS: u8 = 13;
    const MIN_LEVELS: u8 = 2;
    const MAX_LEVELS: u8 = 3;
    const ITEMS: &'static [u16] = &[1 | 1 << 5, 1];
    common!();
    one_item_size!();

    fn accessed_dirty(&self) -> AccessedDirty {
        AccessedDirty::Hardware
    }
    fn live_split(&self) -> LiveSplit {
        LiveSplit::Allowed
    }
    fn max_input_bits(_levels: u8) -> u8 {
        48
    }
}

/// Items of several sizes, whose entries are all the same: bits 56 to 59 hold the item's logarithm
/// and the address is that of the first entry. Only level 1 and items of 4 are pages of level 0's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identical;

impl Format for Identical {
    const NAME: &'static str = "identical items";
    const GRANULE_LOG2: u8 = 12;
    const INDEX_BITS: u8 = 9;
    const MIN_LEVELS: u8 = 3;
    const MAX_LEVELS: u8 = 3;
    const ITEMS: &'static [u16] = &[1 | 1 << 2 | 1 << 3 | 1 << 8, 1 << 1 | 1 << 4, 1];
    common!();

    fn accessed_dirty(&self) -> AccessedDirty {
        AccessedDirty::Hardware
    }
    fn live_split(&self) -> LiveSplit {
        LiveSplit::Allowed
    }
    fn max_input_bits(levels: u8) -> u8 {
        12 + 9 * levels
    }
    fn leaf(&self, level: u8, item: u8, phys: u64, attributes: u64) -> u64 {
        let page = 1u64 << (12 + 9 * level + item);
        phys & !(page - 1) | attributes | if level == 0 { NEXT } else { 0 } | u64::from(item) << 56
    }
    fn item(&self, _level: u8, entry: u64) -> u8 {
        (entry >> 56 & 15) as u8
    }
}
