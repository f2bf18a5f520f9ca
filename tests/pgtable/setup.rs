//! A page table with its oracle, and what a walker sees.

use std::sync::atomic::{AtomicU64, Ordering};

use iommu::pgtable::{Config, Format, MapError, PageSizes, PageTable, Run, TableList, WalkerCoherency};
use iommu::{Error, Iova, IovaRange, PhysAddr, Prot};

use crate::model::Model;
use crate::platform::TestPlatform;

pub(crate) struct Setup<F: Format> {
    pub(crate) platform: TestPlatform,
    pub(crate) table: PageTable<F, TestPlatform>,
    pub(crate) model: Model,
}

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
        let mut stray = TableList::new();
        // SAFETY: no device uses the table, and this is the only thread.
        let result = unsafe { self.table.map(at, PhysAddr::new(phys), prot, PageSizes::ALL, &mut stray) };
        if self.table.walker() == WalkerCoherency::NeedsClean {
            self.check_walker();
        }
        // SAFETY: as above, so there is nothing to invalidate.
        unsafe { self.table.free(stray) };
        if let Err(MapError { undone: Some(undone), error }) = result {
            assert!(at.covers(&undone) && undone.start() == at.start() && undone.last() < at.last(), "{error}");
        }
        let expected = self.model.map(at, phys, prot, self.table.page_sizes());
        assert_eq!(result.map_err(|failed| failed.error), expected, "map {at}");
        result
    }

    /// Unmaps in table and oracle, which must agree.
    #[track_caller]
    pub(crate) fn unmap(&mut self, at: IovaRange) -> Result<(), Error> {
        let mut stray = TableList::new();
        // SAFETY: no device uses the table, and this is the only thread.
        let result = unsafe { self.table.unmap(at, &mut stray) };
        if self.table.walker() == WalkerCoherency::NeedsClean {
            self.check_walker();
        }
        // SAFETY: as above, so there is nothing to invalidate.
        unsafe { self.table.free(stray) };
        assert_eq!(result, self.model.unmap(at), "unmap {at}");
        result
    }

    /// Changes permissions in table and oracle, which must agree.
    #[track_caller]
    pub(crate) fn protect(&mut self, at: IovaRange, prot: Prot) -> Result<(), Error> {
        // SAFETY: no device uses the table, and this is the only thread.
        let result = unsafe { self.table.protect(at, prot) };
        assert_eq!(result, self.model.protect(at, prot), "protect {at}");
        result
    }

    /// Splits pages in table and oracle.
    #[track_caller]
    pub(crate) fn cut(&mut self, at: IovaRange) {
        // SAFETY: no device uses the table, and this is the only thread.
        unsafe { self.table.cut(at) }.unwrap();
        self.model.cut(at, self.table.page_sizes());
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
        let range = self.table.range();
        let bits = 64 - (range.last().as_u64() - range.start().as_u64()).leading_zeros();
        let top = self.table.levels() - 1;
        let shift = u32::from(F::GRANULE_LOG2) + u32::from(top) * u32::from(F::INDEX_BITS);
        self.check_table(self.table.root().as_u64(), top, 1 << bits.saturating_sub(shift));
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
