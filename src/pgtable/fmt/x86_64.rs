//! The first-stage format of x86 I/O: the processor's own 64-bit page tables.
//!
//! Bits: Intel VT-d specification 4.1, section 9.7 "First-Stage Paging Entries".

use super::AccessedDirty;
use crate::error::{Error, InvalidReason, Result};
use crate::pgtable::{Format, LiveSplit};
use crate::prot::Prot;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// Requests without PASID count as user requests, so this is always set.
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// A leaf above level 0.
const PAGE_SIZE: u64 = 1 << 7;
/// Ignored by hardware in every entry.
const SOFTWARE: u64 = 1 << 9;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = (1 << 52) - (1 << 12);

/// x86-64 first stage: 4 or 5 levels of 512 entries; pages of 4 KiB, 2 MiB and 1 GiB; the lower
/// canonical half of the address space.
///
/// What is present is readable, so a mapping that may only be written is refused.
///
/// ```
/// use iommu::Prot;
/// use iommu::pgtable::{Format, X86_64};
/// let format = X86_64::default();
/// let attributes = format.attributes(Prot::READ | Prot::NOEXEC)?;
/// assert_eq!(format.leaf(0, 0, 0x1000, attributes), 1 << 63 | 0x1000 | 1 << 5 | 0b101);
/// assert!(format.attributes(Prot::WRITE).is_err());
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct X86_64 {
    /// Whether accessed and dirty bits are tracked. Hardware always maintains them; when nobody
    /// reads them they are set from the start.
    pub accessed_dirty: AccessedDirty,
}

impl Format for X86_64 {
    const NAME: &'static str = "x86-64 first stage";
    const GRANULE_LOG2: u8 = 12;
    const INDEX_BITS: u8 = 9;
    const MIN_LEVELS: u8 = 4;
    const MAX_LEVELS: u8 = 5;
    const ITEMS: &'static [u16] = &[1, 1, 1];
    const OUTPUT_BITS: u8 = 52;
    const LINEAR: bool = true;
    const PRESENT: u64 = PRESENT;
    const VISIBLE: u64 = SOFTWARE;
    const ACCESSED_DIRTY: u64 = ACCESSED | DIRTY;
    const DIRTY: u64 = DIRTY;

    /// Half of what the levels span: addresses are canonical.
    #[inline]
    fn max_input_bits(levels: u8) -> u8 {
        12 + 9 * levels - 1
    }

    #[inline]
    fn live_split(&self) -> LiveSplit {
        LiveSplit::Allowed
    }

    #[inline]
    fn attributes(&self, prot: Prot) -> Result<u64> {
        if !prot.intersects(Prot::RW) {
            return Err(Error::Invalid(InvalidReason::NoPermission));
        }
        if !prot.contains(Prot::READ) || prot.contains(Prot::PRIV) {
            return Err(Error::Invalid(InvalidReason::Permission));
        }
        let mut attributes = PRESENT | USER;
        if prot.contains(Prot::WRITE) {
            attributes |= WRITE;
        }
        if prot.contains(Prot::NOEXEC) {
            attributes |= NO_EXECUTE;
        }
        if self.accessed_dirty == AccessedDirty::Unused {
            attributes |= if prot.contains(Prot::WRITE) { ACCESSED | DIRTY } else { ACCESSED };
        }
        Ok(attributes)
    }

    #[inline]
    fn leaf(&self, level: u8, _item: u8, phys: u64, attributes: u64) -> u64 {
        phys | attributes | if level == 0 { 0 } else { PAGE_SIZE }
    }

    #[inline]
    fn table(&self, phys: u64) -> u64 {
        phys | PRESENT | WRITE | USER | ACCESSED
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

    fn prot(&self, entry: u64) -> Prot {
        let mut prot = Prot::READ;
        prot.set(Prot::WRITE, entry & WRITE != 0);
        prot.set(Prot::NOEXEC, entry & NO_EXECUTE != 0);
        prot
    }

    #[inline]
    fn accessed_dirty(&self) -> AccessedDirty {
        self.accessed_dirty
    }
}
