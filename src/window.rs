//! Windows: the ranges of IOVAs that a domain can translate.
//!
//! Every backend says explicitly what it can translate; nothing is assumed to begin at zero or to
//! end at a power of two. On VT-d it is one range minus the reserved regions of the devices.

use crate::addr::IovaRange;
use crate::error::{Error, InvalidReason, Result};
use crate::pgtable::PageSizes;

/// The most windows that one domain has.
pub const MAX_WINDOWS: usize = 16;

/// A range of IOVAs that can be translated, with the page sizes usable in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// First and last IOVA.
    pub range: IovaRange,
    /// Page sizes that can be used inside.
    pub page_sizes: PageSizes,
}

/// The windows of a domain or a device: sorted, apart from each other, at most [`MAX_WINDOWS`].
///
/// ```
/// use iommu::pgtable::PageSizes;
/// use iommu::{Error, Iova, IovaRange, Window, Windows};
///
/// let range = |start, last| IovaRange::new(Iova::new(start), Iova::new(last)).unwrap();
/// let mut windows = Windows::new(Window { range: range(0, 0xffff_ffff), page_sizes: PageSizes::from_bits(1 << 12) });
/// windows.exclude(range(0xfee0_0000, 0xfeef_ffff))?;
/// assert_eq!(windows.iter().count(), 2);
/// windows.check(range(0x1000, 0x1fff))?;
/// assert_eq!(
///     windows.check(range(0xfee0_0000, 0xfee0_0fff)),
///     Err(Error::OutsideWindow { nearest: range(0, 0xfedf_ffff) })
/// );
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Windows {
    list: heapless::Vec<Window, MAX_WINDOWS>,
}

impl Windows {
    /// One window.
    pub fn new(window: Window) -> Self {
        let mut list = heapless::Vec::new();
        // One element always fits.
        let _ = list.push(window);
        Self { list }
    }

    /// No window: nothing can be mapped.
    pub const fn none() -> Self {
        Self { list: heapless::Vec::new() }
    }

    /// The windows, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = &Window> {
        self.list.iter()
    }

    /// Takes `hole` out of every window, for instance a reserved region. It grows outward to whole
    /// pages of the window's smallest size: what shares a page with it cannot be mapped either.
    ///
    /// # Errors
    /// [`Error::Capacity`] when a split would make more than [`MAX_WINDOWS`]; nothing is changed.
    #[inline(never)]
    pub fn exclude(&mut self, hole: IovaRange) -> Result<()> {
        let mut list = heapless::Vec::new();
        for window in &self.list {
            let page = window.page_sizes.smallest().map_or(1, |size| size.bytes());
            for range in parts_outside(window.range, hole.align_outward(page)).into_iter().flatten() {
                list.push(Window { range, ..*window }).map_err(|_| Error::Capacity("MAX_WINDOWS"))?;
            }
        }
        self.list = list;
        Ok(())
    }

    /// Keeps what lies in a window of both, with the page sizes that both have.
    ///
    /// # Errors
    /// [`Error::Capacity`] when that takes more than [`MAX_WINDOWS`]; nothing is changed.
    #[inline(never)]
    pub fn intersect(&mut self, other: &Self) -> Result<()> {
        let mut list = heapless::Vec::new();
        for a in &self.list {
            for b in &other.list {
                let page_sizes = a.page_sizes.intersection(b.page_sizes);
                if let (Some(range), Some(_)) = (a.range.intersection(&b.range), page_sizes.smallest()) {
                    list.push(Window { range, page_sizes }).map_err(|_| Error::Capacity("MAX_WINDOWS"))?;
                }
            }
        }
        self.list = list;
        Ok(())
    }

    /// Whether every window of `other` lies inside a window of this.
    #[inline(never)]
    pub fn covers(&self, other: &Self) -> bool {
        other.list.iter().all(|theirs| self.list.iter().any(|ours| ours.range.covers(&theirs.range)))
    }

    /// Checks that `range` lies inside one window.
    ///
    /// # Errors
    /// [`Error::OutsideWindow`] with the window that lies nearest; [`InvalidReason::NoPageSize`]
    /// when there is no window at all.
    #[inline]
    pub fn check(&self, range: IovaRange) -> Result<()> {
        if self.list.iter().any(|window| window.range.covers(&range)) {
            return Ok(());
        }
        Err(self.outside(range))
    }

    /// The smallest range that holds every window (Linux's geometry), or `None` without windows.
    pub fn geometry(&self) -> Option<IovaRange> {
        let first = self.list.first()?.range.start();
        let last = self.list.last()?.range.last();
        IovaRange::new(first, last).ok()
    }

    #[cold]
    fn outside(&self, range: IovaRange) -> Error {
        let nearest = self.list.iter().map(|window| window.range).min_by_key(|window| distance(*window, range));
        match nearest {
            Some(nearest) => Error::OutsideWindow { nearest },
            None => Error::Invalid(InvalidReason::NoPageSize),
        }
    }
}

/// What is left of `range` below and above `hole`.
fn parts_outside(range: IovaRange, hole: IovaRange) -> [Option<IovaRange>; 2] {
    if range.intersection(&hole).is_none() {
        return [Some(range), None];
    }
    let below = hole.start().as_u64().checked_sub(1).and_then(|last| {
        let last = crate::addr::Iova::new(last);
        IovaRange::new(range.start(), last).ok()
    });
    let above = hole.last().checked_add(1).and_then(|start| IovaRange::new(start, range.last()).ok());
    [below, above]
}

/// Bytes between two ranges; zero when they touch or overlap.
fn distance(a: IovaRange, b: IovaRange) -> u64 {
    let above = b.start().as_u64().saturating_sub(a.last().as_u64());
    let below = a.start().as_u64().saturating_sub(b.last().as_u64());
    above.max(below)
}

#[cfg(test)]
mod tests {
    use super::{MAX_WINDOWS, Window, Windows};
    use crate::addr::{Iova, IovaRange};
    use crate::error::Error;
    use crate::pgtable::PageSizes;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), Iova::new(last)).unwrap()
    }

    fn all() -> Windows {
        Windows::new(Window { range: IovaRange::full(), page_sizes: PageSizes::from_bits(1 << 12) })
    }

    #[test]
    fn holes_at_both_ends_and_in_the_middle() {
        let mut windows = all();
        windows.exclude(range(0, 0xfff)).unwrap();
        windows.exclude(range(u64::MAX - 0xfff, u64::MAX)).unwrap();
        windows.exclude(range(0x1_0000, 0x1_ffff)).unwrap();
        let ranges: [IovaRange; 2] = [range(0x1000, 0xffff), range(0x2_0000, u64::MAX - 0x1000)];
        assert!(windows.iter().map(|window| window.range).eq(ranges));
        assert!(all().covers(&windows));
        assert!(!windows.covers(&all()));
        assert_eq!(windows.geometry(), Some(range(0x1000, u64::MAX - 0x1000)));
    }

    #[test]
    fn a_hole_takes_whole_pages() {
        let mut windows = all();
        windows.exclude(range(0x1_0200, 0x1_1000)).unwrap();
        let ranges = [range(0, 0xffff), range(0x1_2000, u64::MAX)];
        assert!(windows.iter().map(|window| window.range).eq(ranges));
    }

    #[test]
    fn one_hole_too_many_changes_nothing() {
        let mut windows = all();
        for hole in 1..MAX_WINDOWS as u64 {
            windows.exclude(range(hole << 20, (hole << 20) + 0xfff)).unwrap();
        }
        let before = windows.clone();
        assert_eq!(windows.exclude(range(1 << 40, (1 << 40) + 1)), Err(Error::Capacity("MAX_WINDOWS")));
        assert_eq!(windows, before);
    }
}
