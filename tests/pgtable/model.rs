//! The oracle: pages in a `BTreeMap`, worked on in the plainest way.

use std::collections::BTreeMap;

use iommu::pgtable::{PageSize, PageSizes, Run};
use iommu::{Error, Iova, IovaRange, PhysAddr, Prot};

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Page {
    pub(crate) log2: u8,
    pub(crate) phys: u64,
    pub(crate) prot: Prot,
}

impl Page {
    fn mask(&self) -> u64 {
        (1 << self.log2) - 1
    }
}

/// Which pages are mapped, by their first IOVA.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) pages: BTreeMap<u64, Page>,
}

impl Model {
    /// The page that translates `iova`, with its beginning.
    pub(crate) fn page_at(&self, iova: u64) -> Option<(u64, Page)> {
        let (&start, &page) = self.pages.range(..=iova).next_back()?;
        (iova - start <= page.mask()).then_some((start, page))
    }

    pub(crate) fn translate(&self, iova: u64) -> Option<u64> {
        self.page_at(iova).map(|(start, page)| page.phys + (iova - start))
    }

    /// The first IOVA of the range that is mapped.
    pub(crate) fn first_mapped(&self, range: IovaRange) -> Option<u64> {
        let (start, last) = (range.start().as_u64(), range.last().as_u64());
        if self.page_at(start).is_some() {
            return Some(start);
        }
        self.pages.range(start..=last).next().map(|(&start, _)| start)
    }

    pub(crate) fn map(&mut self, range: IovaRange, phys: u64, prot: Prot, sizes: PageSizes) -> Result<(), Error> {
        if let Some(taken) = self.first_mapped(range) {
            return Err(Error::Exists { iova: Iova::new(taken) });
        }
        let (mut at, mut phys, last) = (range.start().as_u64(), phys, range.last().as_u64());
        loop {
            let fits = |size: &PageSize| (at | phys) & (size.bytes() - 1) == 0 && size.bytes() - 1 <= last - at;
            let size = sizes.iter().filter(fits).last().expect("the smallest fits");
            self.pages.insert(at, Page { log2: size.log2(), phys, prot });
            if last - at == size.bytes() - 1 {
                return Ok(());
            }
            (at, phys) = (at + size.bytes(), phys + size.bytes());
        }
    }

    /// Calls `change` with each page of the range, until one reaches out of it.
    fn each_page(&mut self, range: IovaRange, mut change: impl FnMut(&mut Self, u64, Page)) -> Result<(), Error> {
        let (start, last) = (range.start().as_u64(), range.last().as_u64());
        let first = self.page_at(start).map_or(start, |(page, _)| page);
        let pages: Vec<(u64, Page)> = self.pages.range(first..=last).map(|(&at, &page)| (at, page)).collect();
        for (at, page) in pages {
            if at < start || at + page.mask() > last {
                return Err(Error::PartialPage { page: Iova::new(at), size: PageSize::from_log2(page.log2) });
            }
            change(self, at, page);
        }
        Ok(())
    }

    pub(crate) fn unmap(&mut self, range: IovaRange) -> Result<(), Error> {
        self.each_page(range, |model, at, _| {
            model.pages.remove(&at);
        })
    }

    pub(crate) fn protect(&mut self, range: IovaRange, prot: Prot) -> Result<(), Error> {
        let (mut next, last) = (range.start().as_u64(), range.last().as_u64());
        while next <= last {
            let Some((start, page)) = self.page_at(next) else {
                return Err(Error::NotMapped { iova: Iova::new(next) });
            };
            if start < next || start + page.mask() > last {
                return Err(Error::PartialPage { page: Iova::new(start), size: PageSize::from_log2(page.log2) });
            }
            self.pages.insert(start, Page { prot, ..page });
            match (start + page.mask()).checked_add(1) {
                Some(after) => next = after,
                None => break,
            }
        }
        Ok(())
    }

    /// The pages that begin in the range.
    pub(crate) fn pages_in(&self, range: IovaRange) -> Vec<(u64, Page)> {
        let (start, last) = (range.start().as_u64(), range.last().as_u64());
        self.pages.range(start..=last).map(|(&at, &page)| (at, page)).collect()
    }

    /// Splits pages until none lies across an edge of the range; gives the sizes of those that were.
    pub(crate) fn cut(&mut self, range: IovaRange, sizes: PageSizes) -> Vec<u8> {
        let mut split = Vec::new();
        for edge in [Some(range.start().as_u64()), range.last().as_u64().checked_add(1)].into_iter().flatten() {
            while let Some((start, page)) = self.page_at(edge)
                && start < edge
            {
                let smaller =
                    sizes.iter().filter(|size| size.log2() < page.log2).last().expect("the page is not the smallest");
                split.push(page.log2);
                self.pages.remove(&start);
                for offset in (0..=page.mask()).step_by(smaller.bytes() as usize) {
                    let part = Page { log2: smaller.log2(), phys: page.phys + offset, prot: page.prot };
                    self.pages.insert(start + offset, part);
                }
            }
        }
        split
    }

    /// All pages as runs.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (&at, page) in &self.pages {
            let last = at + page.mask();
            match runs.last_mut() {
                Some(run)
                    if run.range.last().checked_add(1) == Some(Iova::new(at))
                        && run.phys.as_u64() + run.range.bytes().unwrap() == page.phys
                        && run.prot == page.prot
                        && run.page_size.log2() == page.log2 =>
                {
                    run.range = IovaRange::new(run.range.start(), Iova::new(last)).unwrap();
                }
                _ => runs.push(Run {
                    range: IovaRange::new(Iova::new(at), Iova::new(last)).unwrap(),
                    phys: PhysAddr::new(page.phys),
                    prot: page.prot,
                    page_size: PageSize::from_log2(page.log2),
                }),
            }
        }
        runs
    }
}
