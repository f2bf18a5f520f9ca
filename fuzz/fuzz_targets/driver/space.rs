//! A domain beside what should be mapped in it.

use std::collections::BTreeSet;

use iommu::domain::{DirtyBitmap, DirtyRead, DirtyTracking};
use iommu::iotlb::Gather;
use iommu::pgtable::PageSize;
use iommu::pgtable::PageSizes;
use iommu::{Domain, DomainKind, Error, Iova, IovaRange, PhysAddr, PhysRange, Prot};

use crate::input::Input;
use crate::world;

/// Physical addresses are given out once, so that a translation tells which mapping it is of.
pub const LENT: u64 = 1 << 40;
const STRIDE: u64 = 1 << 36;
/// More than there are operations, and all of them within 44 bits.
const STRIDES: u64 = 0xf0;
/// Bytes that one mapping has at most when it cannot have large pages.
const MAX_SMALL: u64 = 8 << 20;

pub struct Space {
    pub domain: Domain,
    mappings: Vec<Mapping>,
    /// Memory that was unmapped, and of which no sync has succeeded.
    pub lent: Vec<(u64, u64)>,
    /// Every access snoops.
    pub is_coherent: bool,
    is_tracked: bool,
    /// Pages that devices have written while that is recorded, where they lie in memory.
    written: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    start: u64,
    last: u64,
    phys: u64,
}

impl Mapping {
    /// The parts below and above a range, and the memory in it.
    fn without(self, start: u64, last: u64) -> ([Option<Self>; 2], Option<(u64, u64)>) {
        if self.last < start || last < self.start {
            return ([Some(self), None], None);
        }
        let (from, to) = (self.start.max(start), self.last.min(last));
        let below = (self.start < from).then(|| Self { last: from - 1, ..self });
        let above = (to < self.last).then(|| Self { start: to + 1, phys: self.phys + (to + 1 - self.start), ..self });
        ([below, above], Some((self.phys + (from - self.start), to - from + 1)))
    }
}

pub fn range(input: &mut Input<'_>) -> Option<IovaRange> {
    const STARTS: [u64; 14] = [
        0,
        0x1000,
        0x20_0000,
        0x3f_f000,
        0x4000_0000,
        0x7afe_0000,
        0xfedf_f000,
        0xfef0_0000,
        0x1_0000_0000,
        (1 << 39) - 0x20_0000,
        (1 << 39) - 0x1000,
        (1 << 48) - 0x1000,
        (1 << 57) - 0x1000,
        u64::MAX - 0xfff,
    ];
    const SIZES: [u64; 10] =
        [0x1000, 0x2000, 0x1_0000, 0x20_0000, 0x20_1000, 0x1f_f000, 0x40_0000, 0x4000_0000, 0x800, 0x8000_0000];
    let kind = input.u8();
    let start = if kind < 0xf0 { input.pick(&STARTS)?.wrapping_add(u64::from(kind & 15) << 12) } else { input.u64() };
    let bytes = *input.pick(&SIZES)?;
    let start = if kind & 0x20 == 0 { start } else { start & !(bytes.next_power_of_two() - 1) };
    IovaRange::from_len(Iova::new(start), bytes).ok()
}

fn prot(input: &mut Input<'_>) -> Prot {
    [Prot::RW, Prot::READ, Prot::WRITE, Prot::empty(), Prot::RW | Prot::NOEXEC, Prot::RW | Prot::PRIV][input.below(6)]
}

impl Space {
    pub fn new(domain: Domain) -> Self {
        let (mappings, lent, written) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { domain, mappings, lent, is_coherent: false, is_tracked: false, written }
    }

    fn is_free(&self, range: IovaRange) -> bool {
        let (start, last) = (range.start().as_u64(), range.last().as_u64());
        self.mappings.iter().all(|mapping| mapping.last < start || last < mapping.start)
    }

    pub fn map(&mut self, input: &mut Input<'_>, next_phys: &mut u64) {
        let Some(range) = range(input) else { return };
        let prot = prot(input);
        let kind = input.u8();
        let start = range.start().as_u64();
        let mut phys = LENT + *next_phys % STRIDES * STRIDE + (start & 0x3fff_ffff);
        let mut sizes = PageSizes::ALL;
        if kind & 3 == 1 {
            phys += 0x1000;
        } else if kind & 3 == 2 {
            sizes = PageSizes::from_bits(input.u64());
        }
        let bytes = range.bytes().unwrap_or(0);
        let is_large = kind & 3 == 0 && start & 0x1f_ffff == 0 && bytes & 0x1f_ffff == 0;
        if bytes > MAX_SMALL && !is_large {
            return;
        }
        *next_phys += 1;
        let list = [0, 1].map(|half| {
            let half_bytes = (bytes / 2).max(1);
            PhysRange::from_len(PhysAddr::new(phys + half * half_bytes), half_bytes).unwrap()
        });
        // SAFETY: no memory is behind these addresses.
        let result = unsafe {
            match kind & 0x0c {
                4 => self.domain.map_sg(range.start(), &list, prot).map(|mapped| assert_eq!(mapped, range)),
                _ => self.domain.map_with(range, PhysAddr::new(phys), prot, sizes),
            }
        };
        match result {
            Ok(()) => {
                assert!(self.is_free(range), "{range} was mapped already");
                self.mappings.push(Mapping { start, last: range.last().as_u64(), phys });
            }
            Err(Error::Exists { iova }) => assert!(range.contains(iova)),
            // What it had mapped is lent until it was invalidated.
            Err(_) => self.lent.push((phys, bytes)),
        }
    }

    fn take_out(&mut self, start: u64, last: u64) -> Vec<(u64, u64)> {
        let mut taken = Vec::new();
        let old = std::mem::take(&mut self.mappings);
        for mapping in old {
            let (rest, memory) = mapping.without(start, last);
            self.mappings.extend(rest.into_iter().flatten());
            taken.extend(memory);
        }
        taken
    }

    /// Unmaps one range or more, and syncs in one of the ways there are.
    pub fn unmap(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let domain = self.domain.clone();
        let mut gather = domain.gather();
        let mut taken = Vec::new();
        for _ in 0..1 + kind % 12 {
            let known = input.pick(&self.mappings).filter(|_| kind & 0x40 == 0);
            let known = known.map(|mapping| IovaRange::new(Iova::new(mapping.start), Iova::new(mapping.last)).unwrap());
            let Some(range) = known.or_else(|| range(input)) else { continue };
            if kind & 0x20 != 0 {
                // SAFETY: no memory is behind these addresses.
                let _ = unsafe { domain.cut(range) };
            }
            // SAFETY: as above.
            match unsafe { domain.unmap(range, &mut gather) } {
                Ok(()) => taken.extend(self.take_out(range.start().as_u64(), range.last().as_u64())),
                Err(Error::PartialPage { page, .. }) if page > range.start() => {
                    taken.extend(self.take_out(range.start().as_u64(), page.as_u64() - 1));
                }
                Err(_) => {}
            }
        }
        self.finish(gather, taken, kind >> 6);
    }

    fn finish(&mut self, mut gather: Gather<'_>, mut taken: Vec<(u64, u64)>, how: u8) {
        let synced = match how {
            0 | 1 => match gather.sync() {
                Ok(()) => true,
                Err(failed) => {
                    let _ = failed.to_string();
                    let _ = Error::from(failed);
                    false
                }
            },
            2 => {
                let synced = gather.sync_in_place().is_ok();
                assert!(!synced || gather.is_empty());
                synced
            }
            _ => {
                gather.defer();
                false
            }
        };
        if synced {
            world::with(|world| world.give_back(&taken));
        } else {
            self.lent.append(&mut taken);
        }
    }

    pub fn flush_deferred(&mut self) {
        if self.domain.flush_deferred().is_ok() {
            world::with(|world| world.give_back(&std::mem::take(&mut self.lent)));
        }
    }

    pub fn protect(&mut self, input: &mut Input<'_>) {
        if let Some(range) = range(input) {
            // SAFETY: no memory is behind these addresses.
            let _ = unsafe { self.domain.protect(range, prot(input)) };
        }
    }

    pub fn cut(&mut self, input: &mut Input<'_>) {
        if let Some(range) = range(input) {
            // SAFETY: no memory is behind these addresses.
            let _ = unsafe { self.domain.cut(range) };
        }
    }

    /// Unmaps one range and waits.
    pub fn unmap_sync(&mut self, input: &mut Input<'_>) {
        let known = input.pick(&self.mappings);
        let known = known.map(|mapping| IovaRange::new(Iova::new(mapping.start), Iova::new(mapping.last)).unwrap());
        let Some(range) = known else { return };
        let (start, last) = (range.start().as_u64(), range.last().as_u64());
        // SAFETY: no memory is behind these addresses.
        match unsafe { self.domain.unmap_sync(range) } {
            Ok(()) => {
                let taken = self.take_out(start, last);
                world::with(|world| world.give_back(&taken));
            }
            Err(_) if self.domain.iova_to_phys(range.start()).is_none() => {
                let mut taken = self.take_out(start, last);
                self.lent.append(&mut taken);
            }
            Err(_) => {}
        }
    }

    pub fn enforce_coherency(&mut self) {
        self.is_coherent |= self.domain.enforce_cache_coherency().is_ok();
    }

    /// Notes where devices have written to.
    pub fn note_written(&mut self, pages: &[u64]) {
        if self.is_tracked {
            let is_ours = |page: &&u64| self.iova_of(**page).is_some();
            let pages: Vec<u64> = pages.iter().filter(is_ours).copied().collect();
            self.written.extend(pages);
        }
    }

    fn iova_of(&self, phys: u64) -> Option<u64> {
        let find = |mapping: &Mapping| {
            let offset = phys.wrapping_sub(mapping.phys);
            (offset <= mapping.last - mapping.start).then(|| mapping.start + offset)
        };
        self.mappings.iter().find_map(find)
    }

    pub fn track_dirty(&mut self, input: &mut Input<'_>) {
        let tracking = if input.u8() & 3 == 0 { DirtyTracking::Off } else { DirtyTracking::On };
        let was_tracked = self.is_tracked;
        if self.domain.set_dirty_tracking(tracking).is_ok() {
            self.is_tracked = tracking == DirtyTracking::On;
        } else {
            self.is_tracked = false;
        }
        if !was_tracked || !self.is_tracked {
            self.written.clear();
        }
    }

    /// Every page that was written is reported. `drain` tells what was written since it was asked last.
    pub fn read_dirty(&mut self, input: &mut Input<'_>, drain: impl Fn() -> Vec<u64>) {
        let Some(&mapping) = input.pick(&self.mappings) else { return };
        let read = if input.u8() & 1 == 0 { DirtyRead::Clear } else { DirtyRead::Keep };
        let last = mapping.last.min(mapping.start + (MAX_SMALL - 1));
        let range = IovaRange::new(Iova::new(mapping.start), Iova::new(last)).unwrap();
        let mut words = vec![0; (MAX_SMALL >> 18) as usize];
        let Ok(mut bitmap) = DirtyBitmap::new(&mut words, range.start(), PageSize::SIZE_4K) else { return };
        let before = self.written.clone();
        let result = self.domain.read_and_clear_dirty(range, read, &mut bitmap);
        self.note_written(&drain());
        if result.is_err() {
            return;
        }
        let reported = |space: &Self, page: u64| {
            let iova = space.iova_of(page).map(Iova::new).filter(|iova| range.contains(*iova));
            iova.map(|iova| bitmap.is_set(iova))
        };
        for &page in &before {
            let is_lost = reported(self, page) == Some(false);
            assert!(!is_lost || !world::is_truthful(), "a device wrote {page:#x}, and nobody knows");
        }
        if read == DirtyRead::Clear {
            let kept = self.written.iter().copied().filter(|page| reported(self, *page) != Some(true)).collect();
            self.written = kept;
        }
    }

    /// Addresses worth a look: the ends of what is mapped, what is next to them, and what lies in other
    /// lines of the same tables.
    pub fn landmarks(&self) -> impl Iterator<Item = u64> + '_ {
        let ends = self.mappings.iter().rev().take(4);
        let ends = ends.flat_map(|mapping| {
            [mapping.start, mapping.last, mapping.last.wrapping_add(1), mapping.start.wrapping_sub(1)]
        });
        let newest = self.mappings.last().into_iter();
        ends.chain(newest.flat_map(|mapping| [15, 25, 34].map(|bit| mapping.start ^ 1 << bit)))
    }

    /// The domain says what was mapped.
    pub fn check(&self) {
        if self.domain.kind() != DomainKind::Paging {
            return;
        }
        for iova in self.landmarks() {
            let mapping = self.mappings.iter().find(|mapping| mapping.start <= iova && iova <= mapping.last);
            let expected = mapping.map(|mapping| mapping.phys + (iova - mapping.start));
            let found = self.domain.iova_to_phys(Iova::new(iova)).map(PhysAddr::as_u64);
            // What lies below are the direct regions of devices.
            assert_eq!(found.filter(|phys| *phys >= LENT), expected, "at {iova:#x}");
        }
    }
}
