//! What a unit does with a request of a device, and what it keeps of it: it caches all that it may,
//! and forgets nothing that it was not told to.

use iommu::arch::vtd::layout::descriptors::{Changed, ContextScope, IotlbScope, Request};
use iommu::arch::vtd::layout::tables::TranslationType;
use iommu::arch::vtd::layout::{Cap, ContextEntry, RootEntry};

use crate::unit::Unit;
use crate::world::Memory;

/// More entries of one kind push out the oldest.
const MAX_CACHED: usize = 256;

#[derive(Default)]
pub struct Caches {
    contexts: Vec<CachedContext>,
    tables: Vec<CachedTable>,
    pages: Vec<CachedPage>,
}

struct CachedContext {
    source: u16,
    /// `None`: it was absent.
    entry: Option<ContextEntry>,
}

struct CachedTable {
    domain: u16,
    level: u32,
    first: u64,
    last: u64,
    phys: u64,
}

struct CachedPage {
    domain: u16,
    first: u64,
    last: u64,
    /// `None`: nothing was mapped.
    phys: Option<u64>,
}

fn keep<T>(list: &mut Vec<T>, new: T) {
    if list.len() >= MAX_CACHED {
        list.remove(0);
    }
    list.push(new);
}

impl Caches {
    pub fn invalidate(&mut self, request: &Request, cap: Cap) {
        match *request {
            Request::Context(scope) => self.contexts.retain(|context| {
                let tag = context.entry.map_or(0, |entry| entry.domain_id().as_u16());
                !match scope {
                    ContextScope::Global => true,
                    ContextScope::Domain(domain) => tag == domain.as_u16(),
                    ContextScope::Device { domain, source, function_mask } => {
                        let ignored = [0, 4, 6, 7][usize::from(function_mask & 3)];
                        tag == domain.as_u16() && context.source | ignored == source | ignored
                    }
                }
            }),
            Request::Iotlb(IotlbScope::Global, _) => {
                self.tables.clear();
                self.pages.clear();
            }
            Request::Iotlb(IotlbScope::Domain(domain), _) => {
                self.tables.retain(|table| table.domain != domain.as_u16());
                self.pages.retain(|page| page.domain != domain.as_u16());
            }
            Request::Iotlb(IotlbScope::Pages { domain, address, mask, changed }, _) => {
                assert!(cap.contains(Cap::PSI) && mask <= cap.max_address_mask(), "a unit without such a block");
                let first = address.as_u64();
                let last = first.saturating_add((4096_u128 << mask).saturating_sub(1).min(u64::MAX.into()) as u64);
                assert!(address.is_aligned(4096_u64.checked_shl(mask.into()).unwrap_or(0)), "a block out of line");
                let hit = |of: u16, from: u64, to: u64| of == domain.as_u16() && from <= last && first <= to;
                self.pages.retain(|page| !hit(page.domain, page.first, page.last));
                if changed == Changed::Tables {
                    self.tables.retain(|table| !hit(table.domain, table.first, table.last));
                }
            }
            _ => {}
        }
    }

    /// Whether a translation to one of these bytes is cached.
    pub fn leads_to(&self, phys: u64, bytes: u64) -> bool {
        self.pages
            .iter()
            .any(|page| page.phys.is_some_and(|start| start < phys + bytes && phys <= start + (page.last - page.first)))
    }

    pub fn assert_live(&self, memory: &Memory) {
        for table in &self.tables {
            assert!(memory.is_lent(table.phys), "translation is turned on and a table in its caches is gone");
        }
    }

    fn holds(&self, first: u64, bytes: u64) -> bool {
        let inside = |phys: u64| phys >= first && phys - first < bytes;
        self.tables.iter().any(|table| inside(table.phys))
            || self.contexts.iter().any(|context| context.entry.is_some_and(|entry| inside(table_of(entry))))
    }
}

fn table_of(entry: ContextEntry) -> u64 {
    if entry.translation_type() == Some(TranslationType::PassThrough) { u64::MAX } else { entry.table().as_u64() }
}

impl Unit {
    /// The driver gives back frames: this unit must not be able to reach them.
    pub fn convict_freeing(&self, memory: &Memory, first: u64, bytes: u64) {
        let inside = |phys: u64| phys >= first && phys - first < bytes;
        assert!(!self.is_queueing() || !self.queue.is_some_and(inside), "a running queue is freed");
        let Some(root) = self.root.filter(|_| self.is_translating()) else { return };
        assert!(!inside(root), "the root table in use is freed");
        assert!(!self.caches.holds(first, bytes), "{first:#x} is freed and the unit has it in a cache");
        for bus in 0..256 {
            let low = memory.load(root + bus * 16).unwrap_or(0);
            let table = RootEntry { low, high: 0 }.context_table();
            assert!(!table.is_some_and(|table| inside(table.as_u64())), "a context table in use is freed");
        }
    }

    /// Where a read by `source` at `iova` goes; `None` when it is blocked.
    pub fn translate(&mut self, memory: &Memory, source: u16, iova: u64) -> Option<u64> {
        if !self.is_translating() {
            return Some(iova);
        }
        let entry = self.context(memory, source)?;
        match entry.translation_type().expect("a reserved type") {
            TranslationType::PassThrough => return Some(iova),
            TranslationType::Untranslated => {}
            TranslationType::DeviceTlb => panic!("nobody has asked for ATS"),
        }
        let width = entry.width().expect("a reserved width");
        let bits = width.bits().min(self.cap.guest_address_bits());
        if iova >> bits != 0 {
            return None;
        }
        let domain = entry.domain_id().as_u16();
        let cached = |page: &&CachedPage| page.domain == domain && page.first <= iova && iova <= page.last;
        if let Some(page) = self.caches.pages.iter().find(cached) {
            return page.phys.map(|phys| phys + (iova - page.first));
        }
        self.walk(memory, domain, entry.table().as_u64(), width.levels(), iova)
    }

    fn context(&mut self, memory: &Memory, source: u16) -> Option<ContextEntry> {
        if let Some(cached) = self.caches.contexts.iter().find(|cached| cached.source == source) {
            return cached.entry;
        }
        let load = |phys: u64| memory.load(phys).expect("a table that the unit reads is not lent to it");
        let low = load(self.root? + u64::from(source >> 8) * 16);
        let high = load(self.root? + u64::from(source >> 8) * 16 + 8);
        assert!(low & 1 == 0 || !RootEntry { low, high }.has_reserved_bits());
        let entry = RootEntry { low, high }.context_table().map(|table| {
            let at = table.as_u64() + u64::from(source & 0xff) * 16;
            ContextEntry { low: load(at), high: load(at + 8) }
        });
        let entry = entry.filter(|entry| entry.is_present());
        assert!(!entry.is_some_and(|entry| entry.has_reserved_bits()), "reserved bits: {entry:x?}");
        if entry.is_some() || self.cap.contains(Cap::CM) {
            keep(&mut self.caches.contexts, CachedContext { source, entry });
        }
        entry
    }

    fn walk(&mut self, memory: &Memory, domain: u16, top: u64, levels: u32, iova: u64) -> Option<u64> {
        let mut level = levels - 1;
        let mut table = top;
        let cached = |table: &&CachedTable| table.domain == domain && table.first <= iova && iova <= table.last;
        if let Some(lowest) = self.caches.tables.iter().filter(cached).min_by_key(|table| table.level) {
            (level, table) = (lowest.level, lowest.phys);
        }
        loop {
            let shift = 12 + 9 * level;
            let (first, last) = (iova >> shift << shift, iova | ((1 << shift) - 1));
            let entry = memory.load(table + (iova >> shift & 511) * 8);
            let entry = entry.expect("a table that the unit reads is not lent to it");
            let phys = entry & ((1 << 52) - 1) & !0xfff;
            if entry & 3 == 0 {
                if self.cap.contains(Cap::CM) {
                    keep(&mut self.caches.pages, CachedPage { domain, first, last, phys: None });
                }
                return None;
            }
            if level == 0 || entry & 1 << 7 != 0 {
                assert!(level < 3 && phys & ((1 << shift) - 1) == 0, "a malformed leaf: {entry:#x}");
                let large = [None, Some(Cap::LARGE_2M), Some(Cap::LARGE_1G)][level as usize];
                assert!(large.is_none_or(|large| self.cap.contains(large)), "a page size that the unit lacks");
                keep(&mut self.caches.pages, CachedPage { domain, first, last, phys: Some(phys) });
                return Some(phys + (iova - first));
            }
            level -= 1;
            table = phys;
            keep(&mut self.caches.tables, CachedTable { domain, level, first, last, phys });
        }
    }
}
