//! Ranges and tables that wait for an invalidation.

use crate::addr::IovaRange;
use crate::iotlb::Depth;
use crate::pgtable::{PageSizes, TableList};
use crate::platform::Platform;

/// Ranges that a gather keeps apart. When one more would be needed, the new range is joined with
/// the one that lies nearest: too much is invalidated then, never too little.
pub const GATHER_RANGES: usize = 8;

/// What was unmapped and not yet invalidated: ranges and the tables detached with them.
#[derive(Debug, Default)]
pub struct Flush {
    ranges: heapless::Vec<IovaRange, GATHER_RANGES>,
    /// Detached tables, to be freed after the invalidation; and the sizes of other leaves.
    pub tables: TableList,
    /// Whether tables may have been put in where an absent entry can be cached.
    installs: bool,
}

impl Flush {
    /// Nothing to invalidate.
    pub const fn new() -> Self {
        Self::of_tables(TableList::new())
    }

    /// Tables that were detached without a range yet.
    pub const fn of_tables(tables: TableList) -> Self {
        Self { ranges: heapless::Vec::new(), tables, installs: false }
    }

    /// Whether there is nothing to invalidate and nothing to free.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.tables.is_empty()
    }

    /// Empties it, once all of it was invalidated; gives the tables, which can be freed.
    #[inline]
    pub fn finish(&mut self) -> TableList {
        self.ranges.clear();
        core::mem::take(&mut self.tables)
    }

    /// The ranges to invalidate, merged.
    pub fn ranges(&self) -> &[IovaRange] {
        &self.ranges
    }

    /// Whether walk caches must go.
    pub fn depth(&self) -> Depth {
        if self.tables.is_empty() && !self.installs { Depth::Leaves } else { Depth::Tables }
    }

    /// The sizes of the leaf entries that were removed or changed in the ranges. Empty when that is not
    /// known, so that they may be of any size, and whenever tables are concerned.
    pub fn leaves(&self) -> PageSizes {
        let leaves = self.tables.leaves();
        if self.depth() == Depth::Tables || leaves == PageSizes::ALL { PageSizes::NONE } else { leaves }
    }

    /// Adds a range that was mapped, for units that cache absent entries: a walk cache may hold an absent
    /// entry of any level there, from before this map or one that failed after it had put tables in.
    pub fn add_mapped(&mut self, range: IovaRange) {
        self.installs = true;
        self.add_noted(range);
    }

    /// Adds a range in which leaves of any size were removed or changed.
    #[inline]
    pub fn add(&mut self, range: IovaRange) {
        self.tables.note(PageSizes::ALL);
        self.add_noted(range);
    }

    /// Adds a range that was a page of one entry.
    #[inline]
    pub fn add_page(&mut self, range: IovaRange) {
        let bytes = (range.start().as_u64() ^ range.last().as_u64()).wrapping_add(1);
        self.tables.note(PageSizes::from_bits(bytes));
        self.add_noted(range);
    }

    /// Adds a range of which [`tables`](Self::tables) has noted the sizes of leaves, as operations on a
    /// page table do. One that touches or overlaps it is merged.
    #[inline]
    pub fn add_noted(&mut self, range: IovaRange) {
        // Mostly it is the first, or there is one, and this begins inside it or right behind it.
        match self.ranges.as_mut_slice() {
            [] => drop(self.ranges.push(range)),
            [only]
                if only.start() <= range.start() && range.start().as_u64().wrapping_sub(1) <= only.last().as_u64() =>
            {
                *only = join(*only, range);
            }
            _ => self.add_anywhere(range),
        }
    }

    /// Joins what the range touches, or lies nearest to it when there is no room, so that the ranges
    /// stay apart and few.
    #[inline(never)]
    fn add_anywhere(&mut self, mut range: IovaRange) {
        // Once ranges were joined for want of room, most of what follows lies inside.
        if self.ranges.iter().fold(false, |covered, old| covered | old.covers(&range)) {
            return;
        }
        while let Some((index, gap)) = self.nearest(range)
            && (gap <= TOUCHING || self.ranges.is_full())
        {
            range = join(self.ranges.swap_remove(index), range);
        }
        // There is room: the list was not full, or one was taken out.
        let _ = self.ranges.push(range);
    }

    /// The range that lies nearest, and the gap to it.
    #[inline]
    fn nearest(&self, range: IovaRange) -> Option<(usize, u64)> {
        // Selected without a branch, for the branch could not be predicted.
        let mut nearest = None;
        let mut smallest = u64::MAX;
        for (index, old) in self.ranges.iter().enumerate() {
            let gap = gap(*old, range);
            (nearest, smallest) = if gap < smallest { (Some(index), gap) } else { (nearest, smallest) };
        }
        nearest.map(|index| (index, smallest))
    }

    /// Takes over all of `other`, which is of the same domain.
    pub fn append<P: Platform>(&mut self, platform: &P, other: &mut Self) {
        for range in core::mem::take(&mut other.ranges) {
            self.add_noted(range);
        }
        self.tables.append(platform, core::mem::take(&mut other.tables));
        self.installs |= core::mem::take(&mut other.installs);
    }
}

#[inline]
fn join(a: IovaRange, b: IovaRange) -> IovaRange {
    let (start, last) = (a.start().min(b.start()), a.last().max(b.last()));
    IovaRange::new(start, last).unwrap_or(a)
}

/// A gap that is none: the ranges overlap, or one begins right behind the other.
const TOUCHING: u64 = 1;

/// From the last byte of the lower range to the first of the upper one; zero when they overlap.
#[inline]
fn gap(a: IovaRange, b: IovaRange) -> u64 {
    let between = |low: IovaRange, high: IovaRange| high.start().as_u64().saturating_sub(low.last().as_u64());
    between(a, b).max(between(b, a))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec;

    use super::{Flush, GATHER_RANGES};
    use crate::addr::{Iova, IovaRange};
    use crate::iotlb::Depth;
    use crate::pgtable::PageSizes;
    use crate::platform::{Arena, Frame};

    fn pages(first: u64, count: u64) -> IovaRange {
        IovaRange::from_len(Iova::new(first << 12), count << 12).unwrap()
    }

    #[test]
    fn neighbours_merge_whatever_the_order() {
        let mut flush = Flush::new();
        for page in [5, 3, 4, 9, 8, 6, 7, 4] {
            flush.add(pages(page, 1));
        }
        assert_eq!(flush.ranges(), [pages(3, 7)]);
    }

    #[test]
    fn the_top_page_merges_without_wrapping() {
        let mut flush = Flush::new();
        let top = IovaRange::new(Iova::new(u64::MAX - 0xfff), Iova::new(u64::MAX)).unwrap();
        flush.add(top);
        flush.add(pages(0, 1));
        assert_eq!(flush.ranges(), [top, pages(0, 1)]);
    }

    #[test]
    fn what_was_mapped_may_have_got_tables() {
        let mut flush = Flush::new();
        flush.add(pages(1, 1));
        assert_eq!(flush.depth(), Depth::Leaves);
        flush.add_mapped(pages(2, 1));
        assert_eq!((flush.depth(), flush.ranges()), (Depth::Tables, [pages(1, 2)].as_slice()));
    }

    #[test]
    fn sizes_are_known_only_if_all_are() {
        let sizes = PageSizes::from_bits;
        let arena: &'static Arena = Arena::new(Box::leak(vec![Frame::ZERO; 1].into_boxed_slice())).unwrap();
        let (mut flush, mut other) = (Flush::new(), Flush::new());
        assert_eq!(flush.leaves(), PageSizes::NONE);
        flush.add_page(pages(512, 512));
        assert_eq!(flush.leaves(), sizes(1 << 21));
        // Far apart, merged and joined for want of room: it is all the same.
        for page in 0..2 * GATHER_RANGES as u64 {
            flush.add_page(pages(page * 3, 1));
        }
        other.tables.note(sizes(1 << 30));
        other.add_noted(pages(1 << 18, 1 << 18));
        flush.append(&arena, &mut other);
        assert_eq!(flush.leaves(), sizes(1 << 12 | 1 << 21 | 1 << 30));
        assert_eq!(other.leaves(), PageSizes::NONE);
        other.add(pages(1, 1));
        assert_eq!(other.leaves(), PageSizes::NONE);
        flush.append(&arena, &mut other);
        flush.add_page(pages(9, 1));
        assert_eq!(flush.leaves(), PageSizes::NONE);
        assert!(flush.finish().is_empty());
        flush.add_page(pages(9, 1));
        assert_eq!(flush.leaves(), sizes(1 << 12));
        flush.add_mapped(pages(2, 1));
        assert_eq!(flush.leaves(), PageSizes::NONE);
    }

    #[test]
    fn overflow_joins_the_nearest() {
        let mut flush = Flush::new();
        for index in 0..GATHER_RANGES as u64 {
            flush.add(pages(index * 100, 1));
        }
        flush.add(pages(103, 1));
        assert_eq!(flush.ranges().len(), GATHER_RANGES);
        assert!(flush.ranges().contains(&pages(100, 4)));
    }

    #[test]
    fn nearest_is_what_lies_least_far_away_not_what_is_shortest() {
        let mut flush = Flush::new();
        flush.add(pages(0, 1 << 18));
        for index in 0..GATHER_RANGES as u64 - 1 {
            flush.add(pages((1 << 18) + 100 + index * 100, 1));
        }
        flush.add(pages((1 << 18) + 3, 1));
        assert_eq!(flush.ranges().len(), GATHER_RANGES);
        assert!(flush.ranges().contains(&pages(0, (1 << 18) + 4)), "{:?}", flush.ranges());
    }

    #[test]
    fn a_range_that_grows_up_to_another_swallows_it() {
        let mut flush = Flush::new();
        for page in [1, 5, 3, 2, 4] {
            flush.add(pages(page, 1));
        }
        assert_eq!(flush.ranges(), [pages(1, 5)]);
    }
}
