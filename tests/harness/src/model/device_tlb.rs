//! The device-TLB of an engine.

use std::fmt;
use std::sync::{Mutex, MutexGuard};

use iommu::arch::vtd::device::{Answer, DeviceAnswer};
use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
use iommu::{Iova, PhysAddr, Prot};

use crate::devices::Access;

/// The translations that an engine with ATS has asked for, kept until they are invalidated: it forgets
/// nothing by itself.
pub struct DeviceTlb {
    state: Mutex<State>,
}

struct State {
    entries: Vec<Entry>,
    invalidations: Vec<(Option<DevicePasids>, DeviceRange)>,
    answer: DeviceAnswer,
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
        let state = State { entries: Vec::new(), invalidations: Vec::new(), answer: DeviceAnswer::Done };
        Self { state: Mutex::new(state) }
    }

    /// How many translations it holds.
    pub fn entries(&self) -> usize {
        self.lock().entries.len()
    }

    /// The invalidations that arrived, in their order, with the PASIDs that each was for.
    pub fn invalidations(&self) -> Vec<(Option<DevicePasids>, DeviceRange)> {
        self.lock().invalidations.clone()
    }

    /// How the device answers invalidations from now on. Only with [`DeviceAnswer::Done`] it drops
    /// anything.
    pub fn set_answer(&self, answer: DeviceAnswer) {
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
    pub(super) fn insert(&self, asked: Moment, iova: Iova, answer: &Answer) {
        let mut state = self.lock();
        if state.invalidations.len() != asked.0 {
            return;
        }
        let offsets = (1u64 << answer.page_bits.min(63)) - 1;
        let entry = Entry {
            start: iova.as_u64() & !offsets,
            last: iova.as_u64() | offsets,
            phys: answer.phys.as_u64() & !offsets,
            prot: answer.prot,
        };
        state.entries.retain(|old| old.last < entry.start || entry.last < old.start);
        state.entries.push(entry);
    }

    pub(super) fn invalidate(&self, pasids: Option<DevicePasids>, range: DeviceRange) -> DeviceAnswer {
        let mut state = self.lock();
        state.invalidations.push((pasids, range));
        // The engines send no requests with PASID, so what is for a PASID concerns none of their entries.
        if state.answer == DeviceAnswer::Done && pasids.is_none() {
            let start = range.address.as_u64();
            let last = start | 0xfff | 1u64.checked_shl(u32::from(range.order) + 12).map_or(u64::MAX, |size| size - 1);
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
    use iommu::arch::vtd::device::{Answer, DeviceAnswer};
    use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
    use iommu::{Iova, PhysAddr, Prot};

    use super::DeviceTlb;
    use crate::devices::Access;

    fn answer(phys: u64, page_bits: u8) -> Answer {
        Answer { phys: PhysAddr::new(phys), page_bits, prot: Prot::READ, enforces_snooping: false }
    }

    #[test]
    fn it_keeps_what_was_not_invalidated() {
        let tlb = DeviceTlb::new();
        tlb.insert(tlb.now(), Iova::new(0x1234), &answer(0x9234, 12));
        tlb.insert(tlb.now(), Iova::new(0x40_1234), &answer(0x80_1234, 21));
        assert_eq!(tlb.find(Iova::new(0x1008), Access::Read), Some(PhysAddr::new(0x9008)));
        assert_eq!(tlb.find(Iova::new(0x1008), Access::Write), None);
        assert_eq!(tlb.find(Iova::new(0x5f_fff8), Access::Read), Some(PhysAddr::new(0x9f_fff8)));
        let page = DeviceRange { address: Iova::new(0x41_0000), order: 0 };
        assert_eq!(tlb.invalidate(Some(DevicePasids::One(1)), page), DeviceAnswer::Done);
        assert_eq!(tlb.entries(), 2);
        tlb.set_answer(DeviceAnswer::None);
        assert_eq!(tlb.invalidate(None, page), DeviceAnswer::None);
        assert_eq!(tlb.entries(), 2);
        tlb.set_answer(DeviceAnswer::Done);
        let asked = tlb.now();
        assert_eq!(tlb.invalidate(None, page), DeviceAnswer::Done);
        assert_eq!((tlb.entries(), tlb.invalidations().len()), (1, 3));
        tlb.insert(asked, Iova::new(0x41_0000), &answer(0x81_0000, 12));
        assert_eq!(tlb.entries(), 1, "what was asked before an invalidation is not kept after it");
        tlb.invalidate(None, DeviceRange::ALL);
        assert_eq!(tlb.entries(), 0);
    }
}
