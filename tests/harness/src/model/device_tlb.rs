//! The device-TLB of an engine.

use std::fmt;
use std::sync::{Mutex, MutexGuard};

use iommu::bus::Translation;
use iommu::{Iova, IovaRange, PhysAddr, Prot};

use crate::devices::Access;

/// The translations that an engine with ATS has asked for, kept until they are invalidated: it forgets
/// nothing by itself.
pub struct DeviceTlb {
    state: Mutex<State>,
}

/// Which requests of a device an invalidation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlbScope {
    /// Those without PASID.
    NoPasid,
    /// Those with this PASID.
    Pasid(u32),
    /// Those with any PASID.
    AllPasids,
}

/// What a device does with invalidations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlbAnswer {
    /// It drops what it is told to drop, and says so.
    Done,
    /// It keeps everything and does not answer.
    None,
}

struct State {
    entries: Vec<Entry>,
    invalidations: Vec<(TlbScope, IovaRange)>,
    answer: TlbAnswer,
}

#[derive(Clone, Copy)]
struct Entry {
    start: u64,
    last: u64,
    phys: u64,
    prot: Prot,
}

/// When a translation was asked for: how many invalidations had come before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(usize);

impl DeviceTlb {
    pub(super) fn new() -> Self {
        let state = State { entries: Vec::new(), invalidations: Vec::new(), answer: TlbAnswer::Done };
        Self { state: Mutex::new(state) }
    }

    /// How many translations it holds.
    pub fn entries(&self) -> usize {
        self.lock().entries.len()
    }

    /// The invalidations that arrived, in their order.
    pub fn invalidations(&self) -> Vec<(TlbScope, IovaRange)> {
        self.lock().invalidations.clone()
    }

    /// How the device answers invalidations from now on.
    pub fn set_answer(&self, answer: TlbAnswer) {
        self.lock().answer = answer;
    }

    pub(super) fn now(&self) -> Moment {
        Moment(self.lock().invalidations.len())
    }

    /// Where `iova` leads, if that is known and `access` is permitted.
    pub(super) fn find(&self, iova: Iova, access: Access) -> Option<PhysAddr> {
        let iova = iova.as_u64();
        let state = self.lock();
        let entry = state.entries.iter().find(|entry| (entry.start..=entry.last).contains(&iova))?;
        permits(entry.prot, access).then(|| PhysAddr::new(entry.phys + (iova - entry.start)))
    }

    /// Keeps what the unit answered for `iova`, unless an invalidation has come since it was asked.
    pub(super) fn insert(&self, asked: Moment, iova: Iova, answer: &Translation) {
        let mut state = self.lock();
        if state.invalidations.len() != asked.0 {
            return;
        }
        let offsets = answer.page_size.bytes() - 1;
        let entry = Entry {
            start: iova.as_u64() & !offsets,
            last: iova.as_u64() | offsets,
            phys: answer.phys.as_u64() & !offsets,
            prot: answer.prot,
        };
        state.entries.retain(|old| old.last < entry.start || entry.last < old.start);
        state.entries.push(entry);
    }

    pub(super) fn invalidate(&self, scope: TlbScope, range: IovaRange) -> TlbAnswer {
        let mut state = self.lock();
        state.invalidations.push((scope, range));
        // The engines send no requests with PASID, so what is for a PASID concerns none of their entries.
        if state.answer == TlbAnswer::Done && scope == TlbScope::NoPasid {
            let (start, last) = (range.start().as_u64(), range.last().as_u64());
            state.entries.retain(|entry| entry.last < start || last < entry.start);
        }
        state.answer
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Whether `prot` permits `access`.
pub(super) fn permits(prot: Prot, access: Access) -> bool {
    prot.contains(match access {
        Access::Read => Prot::READ,
        Access::Write => Prot::WRITE,
    })
}

impl fmt::Debug for DeviceTlb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceTlb({} entries)", self.entries())
    }
}

#[cfg(test)]
mod tests {
    use iommu::bus::Translation;
    use iommu::pgtable::PageSize;
    use iommu::{Iova, IovaRange, PhysAddr, Prot};

    use super::{DeviceTlb, TlbAnswer, TlbScope};
    use crate::devices::Access;

    fn answer(phys: u64, page_size: PageSize) -> Translation {
        Translation { phys: PhysAddr::new(phys), page_size, prot: Prot::READ }
    }

    #[test]
    fn it_keeps_what_was_not_invalidated() {
        let tlb = DeviceTlb::new();
        tlb.insert(tlb.now(), Iova::new(0x1234), &answer(0x9234, PageSize::SIZE_4K));
        tlb.insert(tlb.now(), Iova::new(0x40_1234), &answer(0x80_1234, PageSize::SIZE_2M));
        assert_eq!(tlb.find(Iova::new(0x1008), Access::Read), Some(PhysAddr::new(0x9008)));
        assert_eq!(tlb.find(Iova::new(0x1008), Access::Write), None);
        assert_eq!(tlb.find(Iova::new(0x5f_fff8), Access::Read), Some(PhysAddr::new(0x9f_fff8)));
        let page = IovaRange::from_len(Iova::new(0x41_0000), 0x1000).unwrap();
        assert_eq!(tlb.invalidate(TlbScope::Pasid(1), page), TlbAnswer::Done);
        assert_eq!(tlb.entries(), 2);
        tlb.set_answer(TlbAnswer::None);
        assert_eq!(tlb.invalidate(TlbScope::NoPasid, page), TlbAnswer::None);
        assert_eq!(tlb.entries(), 2);
        tlb.set_answer(TlbAnswer::Done);
        let asked = tlb.now();
        assert_eq!(tlb.invalidate(TlbScope::NoPasid, page), TlbAnswer::Done);
        assert_eq!((tlb.entries(), tlb.invalidations().len()), (1, 3));
        tlb.insert(asked, Iova::new(0x41_0000), &answer(0x81_0000, PageSize::SIZE_4K));
        assert_eq!(tlb.entries(), 1, "what was asked before an invalidation is not kept after it");
        let all = IovaRange::new(Iova::new(0), Iova::new(u64::MAX)).unwrap();
        tlb.invalidate(TlbScope::NoPasid, all);
        assert_eq!(tlb.entries(), 0);
    }
}
