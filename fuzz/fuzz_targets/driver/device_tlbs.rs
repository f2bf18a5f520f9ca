//! What devices have asked for (ATS) and not dropped.

use std::sync::{Mutex, MutexGuard};

use iommu::Prot;

use crate::unit::Access;

#[derive(Default)]
pub struct DeviceTlbs(Mutex<Vec<Kept>>);

#[derive(Clone, Copy)]
struct Kept {
    source: u32,
    first: u64,
    last: u64,
    phys: u64,
    prot: Prot,
}

impl DeviceTlbs {
    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.0.lock().unwrap()
    }

    /// Where a device has learnt that `iova` leads.
    pub fn learnt(&self, source: u32, iova: u64, access: Access) -> Option<u64> {
        let wanted = permission(access);
        let fits = |kept: &&Kept| kept.source == source && kept.first <= iova && iova <= kept.last;
        let phys = |kept: &Kept| kept.phys + (iova - kept.first);
        self.kept().iter().find(|kept| fits(kept) && kept.prot.contains(wanted)).map(phys)
    }

    /// The device keeps an answer, if it permits anything.
    pub fn learn(&self, source: u32, iova: u64, (phys, page_bits): (u64, u8), prot: Prot) {
        let mask = (1 << page_bits.min(63)) - 1;
        let (first, last, phys) = (iova & !mask, iova | mask, phys & !mask);
        let mut kept = self.kept();
        kept.retain(|old| old.source != source || old.last < first || last < old.first);
        kept.push(Kept { source, first, last, phys, prot });
    }

    /// The device is told to drop a range.
    pub fn drop_range(&self, source: u32, first: u64, last: u64) {
        self.kept().retain(|kept| kept.source != source || kept.last < first || last < kept.first);
    }

    /// The device TLB was turned off.
    pub fn forget(&self, source: u32) {
        self.kept().retain(|kept| kept.source != source);
    }
}

/// What an access needs.
pub fn permission(access: Access) -> Prot {
    if access == Access::Write { Prot::WRITE } else { Prot::READ }
}
