//! Tables that were detached from the tree and are not freed yet, and what else was removed with them.

use super::PageSizes;
use crate::addr::PhysAddr;
use crate::hwmem::Table;
use crate::platform::Platform;

/// Marks a link, so that the end of a list (zero) differs from a link to the frame at zero.
pub(super) const LINK: u64 = 1 << 3;
const LEVEL_SHIFT: u32 = 4;
const LEVEL_MASK: u64 = 15;

/// The bits below the address that a link may have set: none may make an entry present.
pub(super) const LINK_BITS: u64 = LINK | LEVEL_MASK << LEVEL_SHIFT;

/// Detached tables of one [`PageTable`](super::PageTable), in no particular number.
///
/// Hardware may still walk them, so they are kept as they were but for their first entry, which
/// holds the link to the next table and reads as absent in every format. Give the list to
/// [`PageTable::free`](super::PageTable::free) once the invalidation of everything detached has
/// completed. Dropping it instead leaks the frames, which is safe.
///
/// It also says of which sizes the leaves were that were removed or changed meanwhile, for hardware that
/// invalidates one size sooner than any.
///
/// ```
/// use iommu::pgtable::TableList;
/// let stray = TableList::new();
/// assert!(stray.is_empty());
/// ```
#[derive(Debug, Default)]
#[must_use = "the frames leak unless the list is freed after the invalidation"]
pub struct TableList {
    /// Link to the first table, or zero.
    head: u64,
    /// The last table; meaningless while the list is empty.
    tail: PhysAddr,
    leaves: PageSizes,
}

impl TableList {
    /// A list of no tables.
    #[inline]
    pub const fn new() -> Self {
        Self { head: 0, tail: PhysAddr::new(0), leaves: PageSizes::NONE }
    }

    /// Whether no table is in the list.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.head == 0
    }

    /// The sizes of the leaf entries that were removed or changed: of a page of several entries, the size
    /// of each. What lies in the tables of the list is not known.
    #[inline]
    pub fn leaves(&self) -> PageSizes {
        self.leaves
    }

    /// Notes that leaf entries of these sizes were removed or changed.
    #[inline]
    pub fn note(&mut self, leaves: PageSizes) {
        self.leaves = self.leaves.union(leaves);
    }

    /// Adds all that `other` holds, a list of the same page table, in constant time.
    pub fn append<P: Platform>(&mut self, platform: &P, other: Self) {
        self.note(other.leaves);
        if other.is_empty() {
            return;
        }
        // SAFETY: the list holds its tables, so they are not freed yet; a table is at least a frame.
        let tail = unsafe { Table::from_phys(platform, other.tail, 0) };
        tail.entry(0).store(self.head);
        if self.is_empty() {
            self.tail = other.tail;
        }
        self.head = other.head;
    }

    /// Adds the table of `level` at `phys`, overwriting its first entry.
    ///
    /// # Safety
    /// The table was detached from a tree on this platform and is in no list.
    pub(super) unsafe fn push<P: Platform>(&mut self, platform: &P, phys: PhysAddr, level: u8) {
        // SAFETY: passed on from the caller.
        unsafe { Table::from_phys(platform, phys, 0) }.entry(0).store(self.head);
        if self.is_empty() {
            self.tail = phys;
        }
        self.head = phys.as_u64() | u64::from(level) << LEVEL_SHIFT | LINK;
    }

    /// Takes a table and its level out of the list. Its first entry still holds the link.
    pub(super) fn pop<P: Platform>(&mut self, platform: &P) -> Option<(PhysAddr, u8)> {
        let (phys, level) = decode(self.head)?;
        // SAFETY: a table in the list is not freed yet.
        self.head = unsafe { Table::from_phys(platform, phys, 0) }.entry(0).load();
        Some((phys, level))
    }

    /// The whole list as one word and its last table, for a list of lists.
    pub(super) fn into_parts(self) -> (u64, PhysAddr) {
        (self.head, self.tail)
    }

    /// The list that begins with this link; walks it to find its end.
    pub(super) fn from_head<P: Platform>(platform: &P, head: u64) -> Self {
        let mut list = Self { head, ..Self::new() };
        let mut link = head;
        while let Some((phys, _)) = decode(link) {
            list.tail = phys;
            // SAFETY: a table in the list is not freed yet.
            link = unsafe { Table::from_phys(platform, phys, 0) }.entry(0).load();
        }
        list
    }
}

fn decode(link: u64) -> Option<(PhysAddr, u8)> {
    let level = (link >> LEVEL_SHIFT & LEVEL_MASK) as u8;
    (link & LINK != 0).then(|| (PhysAddr::new(link & !0xfff), level))
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec;
    use std::vec::Vec;

    use super::TableList;
    use crate::addr::PhysAddr;
    use crate::hwmem::Table;
    use crate::pgtable::PageSizes;
    use crate::platform::{Arena, Frame};

    #[test]
    fn a_list_gives_back_every_table_with_its_level() {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 8].into_boxed_slice())).unwrap();
        let frames: Vec<_> = (0..5).map(|_| Table::alloc(&arena, 0, PhysAddr::new(u64::MAX)).unwrap()).collect();
        let (mut list, mut other) = (TableList::new(), TableList::new());
        for (level, frame) in frames.iter().enumerate() {
            let target = if level < 2 { &mut list } else { &mut other };
            // SAFETY: allocated above and in no list.
            unsafe { target.push(&arena, *frame, level as u8) };
        }
        other.note(PageSizes::from_bits(1 << 12));
        list.note(PageSizes::from_bits(1 << 21));
        list.append(&arena, TableList::new());
        list.append(&arena, other);
        assert_eq!(list.leaves(), PageSizes::from_bits(1 << 12 | 1 << 21));
        let mut found = vec![];
        while let Some((phys, level)) = list.pop(&arena) {
            assert_eq!(frames[usize::from(level)], phys);
            found.push(level);
        }
        assert_eq!(found, [4, 3, 2, 1, 0]);
        assert!(list.is_empty());
    }
}
