//! The second-stage format of x86 I/O: guest-physical, or legacy DMA, to physical addresses.
//!
//! Bits: Intel VT-d specification 4.1, section 9.8 "Second-Stage Paging Entries".

use super::AccessedDirty;
use crate::error::{Error, InvalidReason, Result};
use crate::pgtable::{Format, LiveSplit};
use crate::prot::Prot;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// Checked only where the unit supports execute requests; never set here.
const EXECUTE: u64 = 1 << 2;
/// A leaf above level 0.
const PAGE_SIZE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// Ignored by hardware in every entry.
const SOFTWARE: u64 = 1 << 10;
/// Every request snoops. Reserved in units without snoop control.
const SNOOP: u64 = 1 << 11;
const ADDRESS: u64 = (1 << 52) - (1 << 12);

/// x86 I/O second stage: 3, 4 or 5 levels of 512 entries; pages of 4 KiB, 2 MiB and 1 GiB.
///
/// There is no execute permission (never granted), so [`Prot::NOEXEC`] asks for nothing.
/// [`Prot::CACHE`] and [`Prot::MMIO`] have no bit either: memory types come from elsewhere.
///
/// ```
/// use iommu::Prot;
/// use iommu::pgtable::{Format, SecondStage};
/// let format = SecondStage::default();
/// let attributes = format.attributes(Prot::RW)?;
/// assert_eq!(format.leaf(1, 0, 0x20_0000, attributes), 0x20_0000 | 1 << 7 | 0b11);
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SecondStage {
    /// Whether accessed and dirty bits are tracked (second-stage A/D enabled in the PASID entry).
    pub accessed_dirty: AccessedDirty,
}

impl Format for SecondStage {
    const NAME: &'static str = "x86 second stage";
    const GRANULE_LOG2: u8 = 12;
    const INDEX_BITS: u8 = 9;
    const MIN_LEVELS: u8 = 3;
    const MAX_LEVELS: u8 = 5;
    const ITEMS: &'static [u16] = &[1, 1, 1];
    const OUTPUT_BITS: u8 = 52;
    const LINEAR: bool = true;
    const PRESENT: u64 = READ | WRITE | EXECUTE;
    const VISIBLE: u64 = SOFTWARE;
    const ACCESSED_DIRTY: u64 = ACCESSED | DIRTY;
    const DIRTY: u64 = DIRTY;
    const SNOOP: u64 = SNOOP;

    #[inline]
    fn max_input_bits(levels: u8) -> u8 {
        12 + 9 * levels
    }

    #[inline]
    fn live_split(&self) -> LiveSplit {
        LiveSplit::Allowed
    }

    #[inline]
    fn attributes(&self, prot: Prot) -> Result<u64> {
        // READ and WRITE have the numbers of their bits in the entry.
        let permission = u64::from(prot.bits()) & (READ | WRITE);
        if permission == 0 {
            return Err(Error::Invalid(InvalidReason::NoPermission));
        }
        if prot.contains(Prot::PRIV) {
            return Err(Error::Invalid(InvalidReason::Permission));
        }
        Ok(permission)
    }

    #[inline]
    fn leaf(&self, level: u8, _item: u8, phys: u64, attributes: u64) -> u64 {
        phys | attributes | if level == 0 { 0 } else { PAGE_SIZE }
    }

    #[inline]
    fn table(&self, phys: u64) -> u64 {
        phys | READ | WRITE
    }

    #[inline]
    fn is_leaf(&self, level: u8, entry: u64) -> bool {
        level == 0 || entry & PAGE_SIZE != 0
    }

    #[inline]
    fn table_phys(&self, entry: u64) -> u64 {
        entry & ADDRESS
    }

    #[inline]
    fn leaf_phys(&self, _level: u8, entry: u64) -> u64 {
        entry & ADDRESS
    }

    #[inline]
    fn prot(&self, entry: u64) -> Prot {
        Prot::from_bits_truncate((entry & (READ | WRITE)) as u32)
    }

    #[inline]
    fn accessed_dirty(&self) -> AccessedDirty {
        self.accessed_dirty
    }
}

const _: () = assert!(Prot::READ.bits() as u64 == READ && Prot::WRITE.bits() as u64 == WRITE);
