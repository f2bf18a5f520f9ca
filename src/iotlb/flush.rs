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
}

impl Flush {
    /// Nothing to invalidate.
    pub const fn new() -> Self {
        Self { ranges: heapless::Vec::new(), tables: TableList::new() }
    }

    /// Tables that were detached without a range yet.
    pub const fn of_tables(tables: TableList) -> Self {
        Self { ranges: heapless::Vec::new(), tables }
    }

    /// Whether there is nothing to invalidate and nothing to free.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.tables.is_empty()
    }

    /// The ranges to invalidate, merged.
    pub fn ranges(&self) -> &[IovaRange] {
        &self.ranges
    }

    /// Whether walk caches must go.
    pub fn depth(&self) -> Depth {
        if self.tables.is_empty() { Depth::Leaves } else { Depth::Tables }
    }

    /// Adds a range; one that touches or overlaps it is merged.
    #[inline]
    pub fn add(&mut self, range: IovaRange) {
        // Mostly there is one range, and this one begins inside it or right behind it.
        if let [only] = self.ranges.as_mut_slice()
            && only.start() <= range.start()
            && range.start().as_u64().wrapping_sub(1) <= only.last().as_u64()
        {
            *only = join(*only, range);
        } else {
            self.add_anywhere(range);
        }
    }

    #[inline(never)]
    fn add_anywhere(&mut self, range: IovaRange) {
        if let Some(last) = self.ranges.last_mut()
            && let Some(joined) = join_if_touching(*last, range)
        {
            *last = joined;
            if self.ranges.len() > 1 {
                // It may have grown up to another one.
                self.settle(joined);
            }
            return;
        }
        self.add_apart(range);
    }

    /// Takes over all of `other`, which is of the same domain.
    pub fn append<P: Platform>(&mut self, platform: &P, other: &mut Self) {
        for range in core::mem::take(&mut other.ranges) {
            self.add(range);
        }
        self.tables.append(platform, core::mem::take(&mut other.tables));
    }

    /// Merges the last range, which is `joined`, with what it touches now.
    fn settle(&mut self, joined: IovaRange) {
        let (_, others) = self.ranges.split_last().unwrap_or((&joined, &[]));
        if others.iter().any(|old| join_if_touching(*old, joined).is_some()) {
            let _ = self.ranges.pop();
            self.add_apart(joined);
        }
    }

    fn add_apart(&mut self, mut range: IovaRange) {
        // What the new range touches is swallowed, so that the ranges stay apart.
        while let Some(index) = self.ranges.iter().position(|old| join_if_touching(*old, range).is_some()) {
            range = join(self.ranges.swap_remove(index), range);
        }
        if self.ranges.is_full() {
            let nearest = (0..self.ranges.len())
                .min_by_key(|&index| self.ranges.get(index).map_or(u64::MAX, |old| gap(*old, range)));
            if let Some(nearest) = nearest {
                let joined = join(self.ranges.swap_remove(nearest), range);
                return self.add_apart(joined);
            }
        }
        // There is room: the list was not full, or one was taken out.
        let _ = self.ranges.push(range);
    }
}

#[inline]
fn join(a: IovaRange, b: IovaRange) -> IovaRange {
    let (start, last) = (a.start().min(b.start()), a.last().max(b.last()));
    IovaRange::new(start, last).unwrap_or(a)
}

/// Bytes that lie between two ranges which do not touch: what joining them invalidates in vain.
fn gap(a: IovaRange, b: IovaRange) -> u64 {
    let between = |low: IovaRange, high: IovaRange| high.start().as_u64().saturating_sub(low.last().as_u64());
    between(a, b).max(between(b, a))
}

#[inline]
fn join_if_touching(a: IovaRange, b: IovaRange) -> Option<IovaRange> {
    let apart = |low: IovaRange, high: IovaRange| {
        high.start() > low.last() && high.start().as_u64().wrapping_sub(low.last().as_u64()) > 1
    };
    if apart(a, b) || apart(b, a) { None } else { Some(join(a, b)) }
}

#[cfg(test)]
mod tests {
    use super::{Flush, GATHER_RANGES};
    use crate::addr::{Iova, IovaRange};

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
