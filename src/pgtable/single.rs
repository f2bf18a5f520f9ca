//! The commonest calls, kept short: one page of the smallest size where all tables are there.

use super::geometry::{has_items, low_mask, shift};
use super::{Format, PageSizes, PageTable, WalkerCoherency};
use crate::addr::{IovaRange, PhysAddr};
use crate::platform::Platform;
use crate::prot::Prot;

/// Whether a short way did the whole call, or nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Short {
    /// All.
    Done,
    /// Nothing: take the long way, which also finds the error if there is one.
    NotTaken,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// [`map`](Self::map) for one page of the smallest size.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    #[inline(always)]
    pub(crate) unsafe fn map_one(&self, range: IovaRange, phys: PhysAddr, prot: Prot, sizes: PageSizes) -> Short {
        let page = low_mask(shift::<F>(0));
        let Some(at) = self.one_page(range).filter(|_| sizes.bits() & self.sizes & (page + 1) != 0) else {
            return Short::NotTaken;
        };
        let phys = phys.as_u64();
        if phys & page != 0 || phys | page > self.output_last {
            return Short::NotTaken;
        }
        let (Ok(attributes), Some(place)) = (self.format.attributes(prot), self.descend(at, shift::<F>(0))) else {
            return Short::NotTaken;
        };
        let entry = place.table.entry(place.index);
        if entry.load_relaxed() != 0 {
            return Short::NotTaken;
        }
        entry.store(self.format.leaf(0, 0, phys, attributes));
        Short::Done
    }

    /// [`unmap`](Self::unmap) for one page of the smallest size.
    ///
    /// # Safety
    /// As [`unmap`](Self::unmap).
    #[inline(always)]
    pub(crate) unsafe fn unmap_one(&self, range: IovaRange) -> Short {
        match self.one_page(range).and_then(|at| self.descend(at, shift::<F>(0))) {
            Some(place) => {
                place.table.entry(place.index).store(0);
                Short::Done
            }
            None => Short::NotTaken,
        }
    }

    /// The offset of a range that is one page of the smallest size, in a table that needs no cleaning
    /// and whose pages take one entry each.
    #[inline(always)]
    fn one_page(&self, range: IovaRange) -> Option<u64> {
        let page = low_mask(shift::<F>(0));
        let at = self.offset(range.start())?;
        let one = at & page == 0 && range.last().as_u64() == range.start().as_u64() | page;
        (one && !has_items::<F>() && self.walker == WalkerCoherency::Snoops).then_some(at)
    }
}
