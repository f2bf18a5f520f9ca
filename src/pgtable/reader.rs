//! Reading: single translations, and runs of pages.

use core::fmt;
use core::ops::ControlFlow;

use super::geometry::{entry_last, low_mask, shift};
use super::table::Kind;
use super::{Format, PageSize, PageTable};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::hwmem::Table;
use crate::platform::Platform;
use crate::prot::Prot;

/// A stretch of pages of one size and one permission, at neighbouring physical addresses.
///
/// ```
/// use iommu::pgtable::{PageSize, Run};
/// use iommu::{Iova, IovaRange, PhysAddr, Prot};
/// let range = IovaRange::from_len(Iova::new(0x20_0000), 0x40_0000)?;
/// let run = Run { range, phys: PhysAddr::new(0x8000_0000), prot: Prot::READ, page_size: PageSize::SIZE_2M };
/// assert_eq!(run.to_string(), "0x200000..=0x5fffff -> 0x80000000 r- 2 MiB");
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The IOVAs.
    pub range: IovaRange,
    /// Where the first of them leads; the others follow.
    pub phys: PhysAddr,
    /// What is permitted, as far as the format can tell.
    pub prot: Prot,
    /// The size of each page.
    pub page_size: PageSize,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |prot, letter| if self.prot.contains(prot) { letter } else { '-' };
        let (read, write) = (flag(Prot::READ, 'r'), flag(Prot::WRITE, 'w'));
        write!(f, "{} -> {} {read}{write}", self.range, self.phys)?;
        let rest = self.prot.difference(Prot::RW);
        if !rest.is_empty() {
            write!(f, " ")?;
            bitflags::parser::to_writer(&rest, &mut *f)?;
        }
        write!(f, " {}", self.page_size)
    }
}

impl Run {
    /// Takes in `next` if it is more of the same.
    pub(crate) fn extend(&mut self, next: &Self) -> ControlFlow<()> {
        let bytes = self.range.last().as_u64().wrapping_sub(self.range.start().as_u64()).wrapping_add(1);
        let follows = self.range.last().checked_add(1) == Some(next.range.start())
            && self.phys.checked_add(bytes) == Some(next.phys)
            && self.prot == next.prot
            && self.page_size == next.page_size;
        match IovaRange::new(self.range.start(), next.range.last()) {
            Ok(range) if follows => {
                self.range = range;
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(()),
        }
    }
}

/// The right to read a page table while others change it: no table that it may be inside of is freed
/// before it is dropped.
///
/// What it reads while another processor maps or unmaps is the old or the new state of each entry.
/// Do not hold it for long: unmapped tables pile up meanwhile.
///
/// ```
/// use iommu::pgtable::{Config, PageTable, SecondStage};
/// use iommu::platform::{Arena, Frame};
/// use iommu::Iova;
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 4].into_boxed_slice()))?;
/// let table = PageTable::new(arena, SecondStage::default(), Config::new::<SecondStage>(4))?;
/// let reader = table.reader();
/// assert_eq!(reader.iova_to_phys(Iova::new(0x1000)), None);
/// assert_eq!(reader.runs(table.range()).count(), 0);
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Debug)]
pub struct Reader<'a, F: Format, P: Platform> {
    table: &'a PageTable<F, P>,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// Registers a reader. Any context.
    #[inline]
    pub fn reader(&self) -> Reader<'_, F, P> {
        self.enter();
        Reader { table: self }
    }

    /// Where `iova` leads, if it is mapped. Registers a reader for the moment; hold a [`Reader`] for
    /// many lookups. Any context.
    #[inline]
    pub fn iova_to_phys(&self, iova: Iova) -> Option<PhysAddr> {
        self.reader().iova_to_phys(iova)
    }

    /// Where `iova` leads, if it is mapped, without registering. Any context.
    ///
    /// # Safety
    /// No table of this page table is freed during the call: nobody unmaps, or a reader is registered.
    #[inline]
    pub unsafe fn iova_to_phys_unregistered(&self, iova: Iova) -> Option<PhysAddr> {
        self.translate(iova)
    }

    #[inline(always)]
    fn translate(&self, iova: Iova) -> Option<PhysAddr> {
        let at = self.offset(iova)?;
        let mut level = self.top;
        let mut table = self.root_table();
        let mut shift = shift::<F>(level);
        let mut index = at >> shift;
        loop {
            let found = table.entry(index as usize).load();
            // Tables first: on a way of four entries three are. No entry of level 0 has the bit.
            let child = if found & F::VISIBLE != 0 {
                self.format.table_phys(found)
            } else {
                match self.kind(level, found) {
                    Kind::Absent => return None,
                    Kind::Leaf => return Some(PhysAddr::new(self.output(level, found, at))),
                    Kind::Table(child) => child,
                }
            };
            // SAFETY: a table entry of this tree, read by a reader.
            table = unsafe { self.table(child) };
            level = level.wrapping_sub(1);
            shift = shift.wrapping_sub(u32::from(F::INDEX_BITS));
            index = at >> shift & low_mask(u32::from(F::INDEX_BITS));
        }
    }

    /// Where `at` leads, by the leaf `found` of `level`.
    #[inline(always)]
    pub(super) fn output(&self, level: u8, found: u64, at: u64) -> u64 {
        let page = low_mask(self.page_log2(level, found));
        self.format.leaf_phys(level, found) & !page | at & page
    }

    /// See [`Reader::next_run`].
    pub(super) fn run_from(&self, from: Iova, last: Iova) -> Option<Run> {
        let range = IovaRange::new(from, last).ok()?.intersection(&self.range())?;
        self.first_run(self.root_table(), self.top, self.offset(range.start())?, self.offset(range.last())?)
    }

    /// The first run of pages between the offsets `at` and `end`, in a table of `level` and below.
    pub(super) fn first_run(&self, table: Table<'_>, level: u8, at: u64, end: u64) -> Option<Run> {
        let mut run = None;
        let _ = self.scan(table, level, at, end, &mut run);
        run
    }

    /// Collects pages into `run` until one does not belong to it.
    fn scan(&self, table: Table<'_>, level: u8, at: u64, end: u64, run: &mut Option<Run>) -> ControlFlow<()> {
        let mut at = at;
        let first = self.index(level, at);
        for entry in table.entries(first, self.index(level, end) - first + 1) {
            let last = entry_last::<F>(level, at).min(end);
            let found = entry.load();
            match self.kind(level, found) {
                Kind::Absent if run.is_some() => return ControlFlow::Break(()),
                Kind::Absent => {}
                Kind::Table(child) => {
                    // SAFETY: a table entry of this tree, read by a reader or by the owner of the range.
                    self.scan(unsafe { self.table(child) }, level - 1, at, last, run)?;
                }
                Kind::Leaf => {
                    let page = Run {
                        range: self.range_of(at, last),
                        phys: PhysAddr::new(self.output(level, found, at)),
                        prot: self.format.prot(found),
                        page_size: PageSize::from_log2(self.page_log2(level, found) as u8),
                    };
                    match run {
                        Some(run) => run.extend(&page)?,
                        None => *run = Some(page),
                    }
                }
            }
            if last >= end {
                break;
            }
            at = last + 1;
        }
        ControlFlow::Continue(())
    }
}

impl<'a, F: Format, P: Platform> Reader<'a, F, P> {
    /// Where `iova` leads, if it is mapped.
    #[inline]
    pub fn iova_to_phys(&self, iova: Iova) -> Option<PhysAddr> {
        self.table.translate(iova)
    }

    /// The first run of pages at or after `from`, up to `last` (inclusive), cut off at both.
    pub fn next_run(&self, from: Iova, last: Iova) -> Option<Run> {
        self.table.run_from(from, last)
    }

    /// All runs of pages in `range`, in order.
    pub fn runs(self, range: IovaRange) -> Runs<'a, F, P> {
        Runs { reader: self, from: Some(range.start()), last: range.last() }
    }
}

impl<F: Format, P: Platform> Drop for Reader<'_, F, P> {
    fn drop(&mut self) {
        self.table.leave();
    }
}

/// The runs of pages in a range, in order; see [`Reader::runs`].
///
/// ```
/// use iommu::pgtable::{Format, Runs};
/// use iommu::platform::Platform;
/// fn mapped_bytes<F: Format, P: Platform>(runs: Runs<'_, F, P>) -> u64 {
///     runs.filter_map(|run| run.range.bytes()).sum()
/// }
/// ```
#[derive(Debug)]
pub struct Runs<'a, F: Format, P: Platform> {
    reader: Reader<'a, F, P>,
    from: Option<Iova>,
    last: Iova,
}

impl<F: Format, P: Platform> Iterator for Runs<'_, F, P> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let run = self.reader.next_run(self.from?, self.last);
        self.from = run.and_then(|run| run.range.last().checked_add(1));
        run
    }
}
