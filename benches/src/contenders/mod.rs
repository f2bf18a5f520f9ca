//! Who is measured: one type each behind one trait object.

mod domain;
mod engine;
mod floor;
mod mapped;

use iommu::pgtable::{Lpae4K, LpaeStage, SecondStage};

use self::domain::Lookup;
use crate::pool;

/// The table of functions that every contender is called through.
pub(crate) trait Contender {
    /// Maps `bytes` bytes at `iova` to `phys` in pages of `page` bytes.
    fn map(&mut self, iova: u64, phys: u64, bytes: u64, page: u64);
    /// Unmaps what was mapped so; tables that are covered whole may be freed.
    fn unmap(&mut self, iova: u64, bytes: u64, page: u64);
    /// Ends a series of unmaps, outside of the measured time.
    fn settle(&mut self) {}
    /// Where `iova` leads.
    fn iova_to_phys(&mut self, iova: u64) -> Option<u64>;
}

/// Makes a contender, with an empty table.
pub(crate) type New = fn() -> Box<dyn Contender>;

/// Names and constructors; the first is what the others are compared with. A new contender is one
/// file beside these and one line here.
pub(crate) const CONTENDERS: [(&str, New); 7] = [
    ("floor", || Box::new(floor::Floor::new())),
    ("x86_64 Mapped", || Box::new(mapped::Mapped::new())),
    ("PageTable<SecondStage>", || Box::new(engine::Engine::new(SecondStage::default()))),
    ("PageTable<Lpae4K> stage 1", || Box::new(engine::Engine::new(Lpae4K::new(LpaeStage::One)))),
    ("PageTable<Lpae4K> stage 2", || Box::new(engine::Engine::new(Lpae4K::new(LpaeStage::Two)))),
    ("Domain", || Box::new(domain::Kernel::new(Lookup::Unregistered))),
    ("Domain, safe look-up", || Box::new(domain::Kernel::new(Lookup::Safe))),
];

/// Checks that every contender does the job before any is measured.
pub(crate) fn check() {
    for (name, new) in CONTENDERS {
        for (page, pages) in [(1u64 << 12, 1300), (1 << 21, 700), (1 << 30, 3)] {
            pool::reset();
            let mut contender = new();
            let iova = 3 << 39;
            let phys = 5 << 30;
            let bytes = page * pages;
            contender.map(iova, phys, bytes, page);
            for offset in [0, bytes / 2, bytes - 1] {
                assert_eq!(contender.iova_to_phys(iova + offset), Some(phys + offset), "{name}");
            }
            assert_eq!(contender.iova_to_phys(iova + bytes), None, "{name}");
            contender.unmap(iova, bytes, page);
            assert_eq!(contender.iova_to_phys(iova), None, "{name}");
            assert_eq!(contender.iova_to_phys(iova + bytes - 1), None, "{name}");
        }
    }
    pool::reset();
    drop(engine::Engine::new(SecondStage::default()));
    let before = pool::left();
    let mut engine = engine::Engine::new(SecondStage::default());
    engine.map(1 << 30, 1 << 30, 1 << 30, 1 << 12);
    engine.unmap(1 << 30, 1 << 29, 1 << 12);
    drop(engine);
    assert_eq!(pool::left(), before, "the engine lost a frame");
}
