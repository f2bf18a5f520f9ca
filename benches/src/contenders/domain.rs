//! `Domain`, as a kernel calls it: one dynamic call, windows, publishing, the gather.
//!
//! No unit is attached, so that no invalidation is measured. What is unmapped goes into one gather,
//! which is synced outside of the measured time.

use iommu::domain::PagingDomain;
use iommu::frames::{Ref, Slab};
use iommu::iotlb::Gather;
use iommu::ops::{DomainFeatures, DomainOps, DomainSpec, MapFlush, Stage, UnitTraits};
use iommu::pgtable::{Config, PageSizes, PageTable, SecondStage, WalkerCoherency};
use iommu::{Domain, DomainKind, Iova, IovaRange, PhysAddr, Prot, Window, Windows};

use super::Contender;
use crate::pool::Frames;

pub(crate) struct Kernel {
    /// Before the domain, which it borrows.
    gather: Option<Gather<'static>>,
    domain: &'static Domain,
    lookup: Lookup,
}

/// How `iova_to_phys` is called.
#[derive(Clone, Copy)]
pub(crate) enum Lookup {
    /// As anybody may: it registers as a reader each time.
    Safe,
    /// As somebody who knows that nobody unmaps.
    Unregistered,
}

impl Kernel {
    pub(crate) fn new(lookup: Lookup) -> Self {
        let page_sizes = PageSizes::from_bits(1 << 12 | 1 << 21 | 1 << 30);
        // As VT-d's: everything that 48 bits reach, but for the interrupts.
        let all = IovaRange::new(Iova::new(0), Iova::new((1 << 48) - 1)).expect("a range");
        let mut windows = Windows::new(Window { range: all, page_sizes });
        let interrupts = IovaRange::from_len(Iova::new(0xfee0_0000), 1 << 20).expect("a range");
        windows.exclude(interrupts).expect("two windows");
        let traits = UnitTraits {
            driver: "none",
            coherency: WalkerCoherency::Snoops,
            page_sizes,
            widths: 1 << 48,
            map_flush: MapFlush::Never,
            features: DomainFeatures::empty(),
        };
        let spec = DomainSpec { stage: Stage::Second, traits, windows };
        let table = PageTable::new(Frames, SecondStage::default(), Config::new::<SecondStage>(4)).expect("a frame");
        let slab = Slab::new(Frames).expect("frames");
        let slot = slab.insert(PagingDomain::new(Frames, DomainKind::Paging, &spec, table)).ok().expect("a slot");
        // Never dropped: the pool takes its frames back at the next reset.
        let domain = Box::leak(Box::new(Domain::new(Ref::map(slot, |domain| domain as &dyn DomainOps))));
        std::mem::forget(slab);
        Self { gather: Some(domain.gather()), domain, lookup }
    }
}

impl Contender for Kernel {
    fn map(&mut self, iova: u64, phys: u64, bytes: u64, page: u64) {
        let range = IovaRange::from_len(Iova::new(iova), bytes).expect("a range");
        // SAFETY: no device uses the domain, and this is the only thread.
        unsafe { self.domain.map_with(range, PhysAddr::new(phys), Prot::RW, PageSizes::from_bits(page)) }
            .expect("not mapped yet");
    }

    fn unmap(&mut self, iova: u64, bytes: u64, _page: u64) {
        let range = IovaRange::from_len(Iova::new(iova), bytes).expect("a range");
        let gather = self.gather.as_mut().expect("a gather");
        // SAFETY: as above.
        unsafe { self.domain.unmap(range, gather) }.expect("whole pages");
    }

    fn settle(&mut self) {
        self.gather.as_mut().expect("a gather").sync_in_place().expect("nothing is attached");
    }

    fn iova_to_phys(&mut self, iova: u64) -> Option<u64> {
        let phys = match self.lookup {
            Lookup::Safe => self.domain.iova_to_phys(Iova::new(iova)),
            // SAFETY: this is the only thread.
            Lookup::Unregistered => unsafe { self.domain.iova_to_phys_unregistered(Iova::new(iova)) },
        };
        phys.map(PhysAddr::as_u64)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // The pool is reset behind the domain's back: nothing of it may be touched afterwards.
        std::mem::forget(self.gather.take());
    }
}
