//! A page table with its oracle, and what a walker sees.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu::pgtable::{Config, Format, LiveSplit, MapError, PageSizes, PageTable, Run, TableList, WalkerCoherency};
use iommu::{BusyReason, Error, Iova, IovaRange, PhysAddr, Prot};

use crate::model::Model;
use crate::platform::TestPlatform;

pub(crate) struct Setup<F: Format> {
    pub(crate) platform: TestPlatform,
    pub(crate) table: PageTable<F, TestPlatform>,
    pub(crate) model: Model,
}

/// Tables that hardware reaches, by their addresses: levels and entries.
pub(crate) type Live = HashMap<u64, (u8, Vec<u64>)>;

/// Tables were in the way of a page, and are removed.
pub(crate) const BREAK: MapError = MapError { error: Error::Busy(BusyReason::BreakBeforeMake), undone: None };

/// What a table is to be like: so many levels, as wide as can be, or what a configuration says.
pub(crate) trait Shape {
    fn config<F: Format>(self, format: &F) -> Config;
}

impl Shape for u8 {
    fn config<F: Format>(self, _format: &F) -> Config {
        Config::new::<F>(self)
    }
}

impl Shape for Config {
    fn config<F: Format>(self, _format: &F) -> Config {
        self
    }
}

pub(crate) fn range(start: u64, bytes: u64) -> IovaRange {
    IovaRange::from_len(Iova::new(start), bytes).unwrap()
}

impl<F: Format> Setup<F> {
    pub(crate) fn new(format: F, shape: Config, walker: WalkerCoherency) -> Self {
        let platform = TestPlatform::default();
        let config = Config { walker, ..shape };
        let table = PageTable::new(platform.clone(), format, config).unwrap();
        Self { platform, table, model: Model::default() }
    }

    pub(crate) fn start(&self) -> u64 {
        self.table.range().start().as_u64()
    }

    pub(crate) fn last(&self) -> u64 {
        self.table.range().last().as_u64()
    }

    /// The smallest page.
    pub(crate) fn granule(&self) -> u64 {
        self.table.page_sizes().smallest().unwrap().bytes()
    }

    /// Maps in table and oracle, which must agree.
    #[track_caller]
    pub(crate) fn map(&mut self, at: IovaRange, phys: u64, prot: Prot) -> Result<(), MapError> {
        let mut result = self.map_once(at, phys, prot, PageSizes::ALL).1;
        if result == Err(BREAK) {
            assert_eq!(self.table.format().live_split(), LiveSplit::Forbidden);
            // It was invalidated; no page was touched.
            assert_eq!(self.runs(), self.model.runs());
            result = self.map_once(at, phys, prot, PageSizes::ALL).1;
        }
        if let Err(MapError { undone: Some(undone), error }) = result {
            assert!(at.covers(&undone) && undone.start() == at.start() && undone.last() < at.last(), "{error}");
        }
        let expected = self.model.map(at, phys, prot, self.table.page_sizes());
        assert_eq!(result.map_err(|failed| failed.error), expected, "map {at}");
        result
    }

    /// One call of map, of what may take two; and whether tables were removed, which are freed then.
    #[track_caller]
    pub(crate) fn map_once(
        &mut self,
        at: IovaRange,
        phys: u64,
        prot: Prot,
        sizes: PageSizes,
    ) -> (bool, Result<(), MapError>) {
        let mut stray = TableList::new();
        let before = self.live();
        // SAFETY: no device uses the table, and this is the only thread.
        let result = unsafe { self.table.map(at, PhysAddr::new(phys), prot, sizes, &mut stray) };
        self.check_live(before);
        if self.table.walker() == WalkerCoherency::NeedsClean {
            self.check_walker();
        }
        let removed = !stray.is_empty();
        // SAFETY: as above, so there is nothing to invalidate.
        unsafe { self.table.free(stray) };
        (removed, result)
    }

    /// Unmaps in table and oracle, which must agree.
    #[track_caller]
    pub(crate) fn unmap(&mut self, at: IovaRange) -> Result<(), Error> {
        let mut stray = TableList::new();
        let before = self.live();
        // SAFETY: no device uses the table, and this is the only thread.
        let result = unsafe { self.table.unmap(at, &mut stray) };
        self.check_live(before);
        let pages = self.model.pages_in(at);
        assert_eq!(result, self.model.unmap(at), "unmap {at}");
        if stray.is_empty() {
            let gone = pages.iter().filter(|(start, _)| self.model.page_at(*start).is_none());
            self.check_noted(&stray, gone.map(|(_, page)| page.log2));
        }
        if self.table.walker() == WalkerCoherency::NeedsClean {
            self.check_walker();
        }
        // SAFETY: as above, so there is nothing to invalidate.
        unsafe { self.table.free(stray) };
        result
    }

    /// Changes permissions in table and oracle, which must agree.
    #[track_caller]
    pub(crate) fn protect(&mut self, at: IovaRange, prot: Prot) -> Result<(), Error> {
        let (mut changed, before) = (TableList::new(), self.live());
        // SAFETY: no device uses the table, and this is the only thread.
        let result = unsafe { self.table.protect(at, prot, &mut changed) };
        self.check_live(before);
        let pages = self.model.pages_in(at);
        assert_eq!(result, self.model.protect(at, prot), "protect {at}");
        let below = match result {
            Err(Error::NotMapped { iova } | Error::PartialPage { page: iova, .. }) => iova.as_u64(),
            Err(_) => 0,
            Ok(()) => u64::MAX,
        };
        let whole = pages.iter().filter(|(start, _)| *start < below);
        self.check_noted(&changed, whole.map(|(_, page)| page.log2));
        result
    }

    /// Splits pages in table and oracle.
    #[track_caller]
    pub(crate) fn cut(&mut self, at: IovaRange) {
        let mut changed = TableList::new();
        // SAFETY: no device uses the table, and this is the only thread.
        unsafe { self.table.cut(at, &mut changed) }.unwrap();
        let split = self.model.cut(at, self.table.page_sizes());
        self.check_noted(&changed, split.into_iter());
    }

    /// Checks that exactly the sizes of the entries of these pages were noted. The smallest may be too: its
    /// entries are cleared unread.
    #[track_caller]
    fn check_noted(&self, noted: &TableList, pages: impl Iterator<Item = u8>) {
        let entry = |page: u8| F::GRANULE_LOG2 + (page - F::GRANULE_LOG2) / F::INDEX_BITS * F::INDEX_BITS;
        let expected = pages.fold(0, |sizes, page| sizes | 1u64 << entry(page));
        let (noted, smallest) = (noted.leaves().bits(), 1 << F::GRANULE_LOG2);
        assert_eq!(noted | smallest, expected | smallest);
        assert!(noted & smallest != 0 || expected & smallest == 0);
    }

    pub(crate) fn runs(&self) -> Vec<Run> {
        self.table.reader().runs(self.table.range()).collect()
    }

    /// Compares everything.
    #[track_caller]
    pub(crate) fn check(&self) {
        assert_eq!(self.runs(), self.model.runs());
        if self.table.walker() == WalkerCoherency::NeedsClean {
            self.check_walker();
        }
    }

    /// Compares single translations around `iova`.
    #[track_caller]
    pub(crate) fn probe(&self, iova: u64) {
        let granule = self.granule();
        for iova in [iova, iova.wrapping_sub(1), iova.wrapping_add(granule / 2), iova.wrapping_add(granule)] {
            let found = self.table.iova_to_phys(Iova::new(iova)).map(PhysAddr::as_u64);
            assert_eq!(found, self.model.translate(iova), "{iova:#x}");
        }
    }

    /// Checks that memory holds all that a walker reaches which does not snoop.
    #[track_caller]
    pub(crate) fn check_walker(&self) {
        self.check_table(self.table.root().as_u64(), self.table.levels() - 1, self.root_entries());
    }

    fn root_entries(&self) -> u64 {
        let top = self.table.levels() - 1;
        let shift = F::GRANULE_LOG2 + top * F::INDEX_BITS;
        1 << self.table.input_bits().saturating_sub(shift)
    }

    #[track_caller]
    fn check_table(&self, table: u64, level: u8, entries: u64) {
        let format = self.table.format();
        for (index, (memory, cache)) in self.platform.words(table, entries).into_iter().enumerate() {
            // What is absent to hardware may differ in what hardware ignores.
            let seen = |entry: u64| if entry & F::PRESENT == 0 { 0 } else { entry & !F::VISIBLE };
            assert_eq!(seen(memory), seen(cache), "level {level}, entry {index}");
            if cache & F::PRESENT != 0 && level > 0 && !format.is_leaf(level, cache) {
                assert_ne!(cache & F::VISIBLE, 0, "a table that another processor would not trust");
                self.check_table(format.table_phys(cache), level - 1, 1 << F::INDEX_BITS);
            }
        }
    }

    /// What hardware may have cached, where it matters what becomes of it: in formats that demand
    /// break-before-make.
    pub(crate) fn live(&self) -> Live {
        let mut live = Live::new();
        if self.table.format().live_split() == LiveSplit::Forbidden {
            self.add_live(self.table.root().as_u64(), self.table.levels() - 1, self.root_entries(), &mut live);
        }
        live
    }

    fn add_live(&self, table: u64, level: u8, entries: u64, live: &mut Live) {
        let format = self.table.format();
        let words = self.platform.cached(table, entries);
        for &entry in words.iter().filter(|_| level > 0) {
            if entry & F::PRESENT != 0 && !format.is_leaf(level, entry) {
                self.add_live(format.table_phys(entry), level - 1, 1 << F::INDEX_BITS, live);
            }
        }
        live.insert(table, (level, words));
    }

    /// Checks that no entry went from one thing to another within one call, after which the caller
    /// invalidates: a leaf stays a leaf for the same memory in a page of the same size and kind, a table
    /// stays the same table.
    #[track_caller]
    pub(crate) fn check_live(&self, before: Live) {
        if before.is_empty() {
            return;
        }
        let format = self.table.format();
        let after = self.live();
        for (table, (level, before)) in before {
            let Some((_, after)) = after.get(&table).filter(|(_, after)| *after != before) else { continue };
            for (&was, &is) in before.iter().zip(after).filter(|(was, is)| **was & **is & F::PRESENT != 0) {
                let leaf = format.is_leaf(level, was);
                assert_eq!(format.is_leaf(level, is), leaf, "level {level}: {was:#x} became {is:#x}");
                let kept = |entry| match leaf {
                    true => (format.leaf_phys(level, entry), format.item(level, entry), entry & F::FIXED),
                    false => (format.table_phys(entry), 0, 0),
                };
                assert_eq!(kept(is), kept(was), "level {level}: {was:#x} became {is:#x}");
            }
        }
    }

    /// The entry that translates `iova`, as hardware finds it.
    pub(crate) fn entry(&self, iova: u64) -> &AtomicU64 {
        let (format, mut table) = (self.table.format(), self.table.root().as_u64());
        for level in (0..self.table.levels()).rev() {
            let shift = u32::from(F::GRANULE_LOG2) + u32::from(level) * u32::from(F::INDEX_BITS);
            let index = (iova - self.start()) >> shift & ((1 << F::INDEX_BITS) - 1);
            // SAFETY: a word of a table that is in use; all that touch it use atomics.
            let entry = unsafe { AtomicU64::from_ptr((table + index * 8) as *mut u64) };
            let found = entry.load(Ordering::Acquire);
            if level == 0 || format.is_leaf(level, found) {
                return entry;
            }
            table = format.table_phys(found);
        }
        unreachable!("level 0 holds leaves only")
    }

    /// Drops the table and checks that every frame came back.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.check();
        drop(self.table);
        assert_eq!(self.platform.frames_in_use(), 0);
    }
}
