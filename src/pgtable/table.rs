//! The page table itself: what it is made of, and what all operations on it share.

use core::fmt;

use super::fmt::AccessedDirty;
use super::reclaim::Reclaim;
use super::{Format, PageSizes, geometry, list, site};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::error::{BusyReason, Error, InvalidReason, Result};
use crate::hwmem::Table;
use crate::platform::Platform;
use crate::prot::Prot;
use crate::sync::Site;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Whether hardware that walks a table sees what is in the processor's caches.
///
/// ```
/// use iommu::pgtable::{Config, SecondStage, WalkerCoherency};
/// assert_eq!(Config::new::<SecondStage>(4).walker, WalkerCoherency::Snoops);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkerCoherency {
    /// It does.
    Snoops,
    /// It reads memory only: each line that was written must be cleaned.
    NeedsClean,
}

/// What a page table is to be like.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::pgtable::{Config, PageSizes, SecondStage};
/// let config = Config {
///     page_sizes: PageSizes::from_bits(1 << 12), // a unit without large pages
///     table_last: PhysAddr::new(0xffff_ffff),    // tables below 4 GiB
///     ..Config::new::<SecondStage>(3)
/// };
/// assert_eq!(config.input_bits, 39);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// How many levels a walk takes.
    pub levels: u8,
    /// Width of an input address in bits; at most what the format's levels (and concatenated root
    /// tables) translate.
    pub input_bits: u8,
    /// Whether the hardware that walks the table snoops.
    pub walker: WalkerCoherency,
    /// Page sizes that may be used; others of the format are not.
    pub page_sizes: PageSizes,
    /// The highest physical address at which a table may lie.
    pub table_last: PhysAddr,
    /// The highest physical address that may be mapped.
    pub output_last: PhysAddr,
}

impl Config {
    /// All that the format `F` can do with `levels` levels, for walkers that snoop.
    pub fn new<F: Format>(levels: u8) -> Self {
        let highest = PhysAddr::new(geometry::low_mask(u32::from(F::OUTPUT_BITS)));
        Self {
            levels,
            input_bits: F::max_input_bits(levels),
            walker: WalkerCoherency::Snoops,
            page_sizes: PageSizes::ALL,
            table_last: highest,
            output_last: highest,
        }
    }
}

/// A page table in the format `F`, in frames of the platform `P`. Dropping it frees every table that
/// is linked or parked; no hardware may use it any more.
///
/// ```
/// use iommu::pgtable::{Config, PageSizes, PageTable, SecondStage, TableList};
/// use iommu::platform::{Arena, Frame};
/// use iommu::{Iova, IovaRange, PhysAddr, Prot};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 16].into_boxed_slice()))?;
/// let table = PageTable::new(arena, SecondStage::default(), Config::new::<SecondStage>(4))?;
/// let range = IovaRange::from_len(Iova::new(0x1000), 0x3000)?;
/// let mut stray = TableList::new();
/// // SAFETY: no device uses the table, and nobody else works on the range.
/// unsafe { table.map(range, PhysAddr::new(0x8000), Prot::RW, PageSizes::ALL, &mut stray).unwrap() };
/// assert_eq!(table.iova_to_phys(Iova::new(0x2345)), Some(PhysAddr::new(0x9345)));
/// assert_eq!(format!("{table:?}"), "x86 second stage, 4 levels\n0x1000..=0x3fff -> 0x8000 rw 4 KiB\n");
/// // SAFETY: as above, and so no invalidation is needed before the tables are freed.
/// unsafe {
///     table.unmap(range, &mut stray)?;
///     table.free(stray);
/// }
/// drop(table);
/// assert_eq!(arena.frames_in_use(), 0);
/// # Ok::<(), iommu::Error>(())
/// ```
pub struct PageTable<F: Format, P: Platform> {
    pub(super) platform: P,
    pub(super) format: F,
    root: PhysAddr,
    /// Order of the root's block of frames.
    root_order: u8,
    /// The root's level.
    pub(super) top: u8,
    pub(super) walker: WalkerCoherency,
    /// A page is unmapped by one store: nothing is to be cleaned, and hardware sets no bits in it.
    pub(super) plain: bool,
    /// Width of an offset.
    input_bits: u8,
    /// The last offset.
    span: u64,
    /// The page sizes in use, as bits.
    pub(super) sizes: u64,
    table_last: PhysAddr,
    pub(super) output_last: u64,
    /// What leaves have besides what the format says: [`Format::SNOOP`], once it is enforced.
    extra: AtomicU64,
    pub(super) reclaim: Reclaim,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// An empty page table: its root is allocated, and cleaned if its walker needs that.
    ///
    /// # Errors
    /// [`InvalidReason::Configuration`] when the format has no such table, [`InvalidReason::NoPageSize`]
    /// when none of its page sizes is allowed, [`Error::NoMemory`].
    pub fn new(platform: P, format: F, config: Config) -> Result<Self> {
        const {
            // Links of stray tables are absent, to hardware and to readers.
            assert!(list::LINK_BITS & (F::PRESENT | F::VISIBLE) == 0);
            assert!(F::PRESENT < 1 << 12 && F::PRESENT & F::VISIBLE == 0 && F::VISIBLE.count_ones() == 1);
            assert!(F::ACCESSED_DIRTY & (F::PRESENT | F::VISIBLE) == 0);
            assert!(
                F::DIRTY & !F::ACCESSED_DIRTY == 0 && F::SNOOP & (F::PRESENT | F::VISIBLE | F::ACCESSED_DIRTY) == 0
            );
            assert!(F::GRANULE_LOG2 >= 12 && F::INDEX_BITS > 0 && F::MAX_LEVELS <= 15 && F::MIN_LEVELS > 0);
        }
        let Config { levels, input_bits, walker, page_sizes, table_last, output_last } = config;
        let wrong = Error::Invalid(InvalidReason::Configuration);
        if !(F::MIN_LEVELS..=F::MAX_LEVELS).contains(&levels) {
            return Err(wrong);
        }
        let widest = geometry::shift::<F>(levels);
        let concatenated = u32::from(input_bits).saturating_sub(widest) as u8;
        if !format.input_widths(levels).contains(&input_bits)
            || input_bits > 64
            || concatenated > F::MAX_CONCATENATED_LOG2
            || output_last.as_u64() > geometry::low_mask(u32::from(F::OUTPUT_BITS))
        {
            return Err(wrong);
        }
        let sizes = geometry::page_sizes::<F>(levels).intersection(page_sizes);
        if sizes == PageSizes::NONE {
            return Err(Error::Invalid(InvalidReason::NoPageSize));
        }
        // Shorter than a table, or several tables one behind the other.
        let root_order = geometry::table_order(input_bits.saturating_sub(geometry::shift::<F>(levels - 1) as u8));
        let root = Table::alloc(&platform, root_order, table_last)?;
        let table = Self {
            platform,
            format,
            root,
            root_order,
            top: levels - 1,
            walker,
            plain: walker == WalkerCoherency::Snoops && format.accessed_dirty() == AccessedDirty::Unused,
            input_bits,
            span: geometry::low_mask(u32::from(input_bits)),
            sizes: sizes.bits(),
            table_last,
            output_last: output_last.as_u64(),
            extra: AtomicU64::new(0),
            reclaim: Reclaim::new(),
        };
        table.clean(site::ROOT_CLEAN, table.root_table(), 0, table.root_table().len());
        Ok(table)
    }

    /// Where the root lies, for the register or entry that points to it.
    #[inline]
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// How many levels a walk takes.
    #[inline]
    pub fn levels(&self) -> u8 {
        self.top + 1
    }

    /// Width of an input address in bits.
    #[inline]
    pub fn input_bits(&self) -> u8 {
        self.input_bits
    }

    /// The page sizes that it uses.
    #[inline]
    pub fn page_sizes(&self) -> PageSizes {
        PageSizes::from_bits(self.sizes)
    }

    /// The IOVAs that it can translate.
    pub fn range(&self) -> IovaRange {
        self.range_of(0, self.span)
    }

    /// The format, with its choices.
    #[inline]
    pub fn format(&self) -> F {
        self.format
    }

    /// The platform whose frames it uses.
    #[inline]
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// Whether it is kept visible to walkers that do not snoop.
    #[inline]
    pub fn walker(&self) -> WalkerCoherency {
        self.walker
    }

    /// Makes every request snoop that goes through a leaf: all leaves from now on have
    /// [`Format::SNOOP`]. In a format without that bit this changes nothing.
    ///
    /// # Errors
    /// [`BusyReason::InUse`] when something is mapped already; nothing is changed. A map that runs at
    /// the same time may be missed, and stays without the bit.
    pub fn enforce_snoop(&self) -> Result<()> {
        let range = self.range();
        if F::SNOOP != self.extra.load(Ordering::Relaxed) {
            if self.reader().next_run(range.start(), range.last()).is_some() {
                return Err(Error::Busy(BusyReason::InUse));
            }
            self.extra.store(F::SNOOP, Ordering::Relaxed);
        }
        Ok(())
    }

    // What the operations share.

    /// The bits that stand for `prot` in a leaf of this table.
    #[inline(always)]
    pub(super) fn attributes(&self, prot: Prot) -> Result<u64> {
        let extra = if F::SNOOP == 0 { 0 } else { self.extra.load(Ordering::Relaxed) };
        Ok(self.format.attributes(prot)? | extra)
    }

    /// The last offset.
    pub(super) fn last_offset(&self) -> u64 {
        self.span
    }

    /// The first IOVA. A constant in most formats, and so not stored.
    #[inline(always)]
    fn start(&self) -> u64 {
        self.format.input_start(self.input_bits)
    }

    /// First and last offset of a range that, like `phys`, consists of whole pages of the smallest
    /// size in `sizes`.
    #[inline(always)]
    pub(super) fn offsets(&self, range: IovaRange, phys: u64, sizes: u64) -> Result<(u64, u64)> {
        let at = range.start().as_u64().wrapping_sub(self.start());
        let last = range.last().as_u64().wrapping_sub(self.start());
        // An IOVA below the start wraps to a large offset.
        if at > last || last > self.span {
            return Err(self.out_of_range(at));
        }
        let smallest = sizes & sizes.wrapping_neg();
        if (at | last.wrapping_add(1) | phys) & smallest.wrapping_sub(1) != 0 {
            return Err(Error::Invalid(InvalidReason::Misaligned));
        }
        Ok((at, last))
    }

    #[cold]
    fn out_of_range(&self, at: u64) -> Error {
        let outside = if at > self.span { at } else { self.span.wrapping_add(1) };
        Error::OutOfRange { iova: self.iova(outside) }
    }

    /// The offset of an IOVA, if it is one of this table's.
    #[inline(always)]
    pub(super) fn offset(&self, iova: Iova) -> Option<u64> {
        let at = iova.as_u64().wrapping_sub(self.start());
        (at <= self.span).then_some(at)
    }

    /// The IOVA at an offset.
    #[inline]
    pub(super) fn iova(&self, at: u64) -> Iova {
        Iova::new(at.wrapping_add(self.start()))
    }

    /// The range between two offsets, of which `last` is not the smaller.
    #[inline]
    pub(super) fn range_of(&self, at: u64, last: u64) -> IovaRange {
        IovaRange::new(self.iova(at), self.iova(last)).unwrap_or(IovaRange::full())
    }

    /// The root, as a table of level `top`.
    #[inline(always)]
    pub(super) fn root_table(&self) -> Table<'_> {
        // Where every root takes one frame the order is known at compile time.
        let order = if F::MAX_CONCATENATED_LOG2 == 0 && Self::ORDER == 0 { 0 } else { self.root_order };
        // SAFETY: allocated by `new` with this order, freed by `drop` only.
        unsafe { Table::from_phys(&self.platform, self.root, order) }
    }

    /// The table at `phys`.
    ///
    /// # Safety
    /// `phys` was read from a table entry of this tree, and the table is not freed during the borrow:
    /// the caller owns the range that it translates, or is registered as a reader.
    #[inline(always)]
    pub(super) unsafe fn table(&self, phys: u64) -> Table<'_> {
        // SAFETY: every table below the root is allocated with this order.
        unsafe { Table::from_phys(&self.platform, PhysAddr::new(phys), Self::ORDER) }
    }

    /// Index of the entry that translates `at` in a table of `level`.
    #[inline(always)]
    pub(super) fn index(&self, level: u8, at: u64) -> usize {
        let index = at >> geometry::shift::<F>(level);
        // The root may be longer than a table, and offsets do not pass its end.
        (if level == self.top { index } else { index & geometry::low_mask(u32::from(F::INDEX_BITS)) }) as usize
    }

    /// The entry that stands for the `1 << to` bytes around `at`, if all tables on the way are there
    /// and visible. `to` is the shift of a level of this table.
    #[inline(always)]
    pub(super) fn descend(&self, at: u64, to: u32) -> Option<Place<'_>> {
        // Four levels are what most units walk: a loop of known length is unrolled.
        if self.top == 3 { self.descend_from(3, at, to) } else { self.descend_from(self.top, at, to) }
    }

    /// The same from the root's level `top` on.
    #[inline(always)]
    pub(super) fn descend_from(&self, top: u8, at: u64, to: u32) -> Option<Place<'_>> {
        let mut level = top;
        let mut table = self.root_table();
        let mut shift = geometry::shift::<F>(level);
        let mut index = at >> shift;
        while shift > to {
            let entry = table.entry(index as usize).load();
            if entry & F::VISIBLE == 0 {
                return None;
            }
            // SAFETY: a table entry of this tree; who descends owns the range.
            table = unsafe { self.table(self.format.table_phys(entry)) };
            shift -= u32::from(F::INDEX_BITS);
            level -= 1;
            index = at >> shift & geometry::low_mask(u32::from(F::INDEX_BITS));
        }
        Some(Place { table, level, index: index as usize })
    }

    /// What an entry of `level` is.
    #[inline(always)]
    pub(super) fn kind(&self, level: u8, entry: u64) -> Kind {
        if entry & F::PRESENT == 0 {
            Kind::Absent
        } else if entry & F::VISIBLE == 0 && (level == 0 || self.format.is_leaf(level, entry)) {
            Kind::Leaf
        } else {
            Kind::Table(self.format.table_phys(entry))
        }
    }

    /// Writes entries back from the cache if the walker needs that.
    #[inline(always)]
    pub(super) fn clean(&self, site: Site, table: Table<'_>, first: usize, count: usize) {
        if self.walker == WalkerCoherency::NeedsClean && count > 0 {
            table.clean(site, &self.platform, first, count);
        }
    }

    /// A new table of zeros, not cleaned.
    pub(super) fn alloc_table(&self) -> Result<PhysAddr> {
        Table::alloc(&self.platform, Self::ORDER, self.table_last)
    }

    /// Frees one table.
    ///
    /// # Safety
    /// It came from [`alloc_table`](Self::alloc_table), and neither hardware nor software uses it.
    pub(super) unsafe fn free_table(&self, phys: PhysAddr) {
        // SAFETY: passed on from the caller.
        unsafe { Table::free(&self.platform, phys, Self::ORDER) }
    }

    /// Order of the block that holds a table, unless it is the root.
    const ORDER: u8 = geometry::table_order(F::INDEX_BITS);
}

/// Where an entry is.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) table: Table<'a>,
    pub(super) level: u8,
    pub(super) index: usize,
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Absent,
    /// With the address of the table.
    Table(u64),
    Leaf,
}

impl<F: Format, P: Platform> fmt::Debug for PageTable<F, P> {
    /// Name, levels, and each run of pages on a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} levels", F::NAME, self.levels())?;
        for run in self.reader().runs(self.range()) {
            writeln!(f, "{run}")?;
        }
        Ok(())
    }
}

impl<F: Format, P: Platform> Drop for PageTable<F, P> {
    fn drop(&mut self) {
        self.free_parked();
        // SAFETY: hardware does not use the table any more (the type's contract), `&mut` excludes
        // readers, and nothing is freed twice: stray tables are not linked.
        unsafe {
            self.free_children(self.root_table(), self.top);
            Table::free(&self.platform, self.root, self.root_order);
        }
    }
}
