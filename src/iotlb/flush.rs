//! Ranges and tables that wait for an invalidation.

use crate::addr::IovaRange;
use crate::iotlb::Depth;
use crate::pgtable::TableList;
use crate::platform::Platform;

/// Ranges that a gather keeps apart. When one more would be needed, the new range is joined with
/// the one that lies nearest: too much is invalidated then, never too little.
pub const GATHER_RANGES: usize = 8;

/// What was unmapped and not yet invalidated: ranges and the tables detached with them.
#[derive(Debug, Default)]
pub struct Flush {
    ranges: heapless::Vec<IovaRange, GATHER_RANGES>,
    /// Detached tables, to be freed after the invalidation.
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

    /// Adds a range that was mapped, for units that cache absent entries: a walk cache may hold an absent
    /// entry of any level there, from before this map or one that failed after it had put tables in.
    pub fn add_mapped(&mut self, range: IovaRange) {
        self.installs = true;
        self.add(range);
    }

    /// Adds a range; one that touches or overlaps it is merged.
    #[inline]
    pub fn add(&mut self, range: IovaRange) {
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
            self.add(range);
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
    use super::{Flush, GATHER_RANGES};
    use crate::addr::{Iova, IovaRange};
    use crate::iotlb::Depth;

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
