//! What is invalidated, in which order, after which change of an entry: VT-d 6.5.3.3, Table 28.
//!
//! Each order is one batch of the queue. A unit completes context-cache requests before it executes
//! PASID-cache requests behind them, and both before IOTLB requests (6.5.2.12), so that nothing stale
//! in one cache fills the next; one wait at the end stands for all.

use super::invalidation::drain;
use super::site;
use super::translation::{ABSENT_ID, Cached, RID_PASID};
use super::unit::VtdUnit;
use crate::arch::vtd::layout::descriptors::{ContextScope, IotlbScope, PasidIotlbScope, PasidScope, Request};
use crate::arch::vtd::layout::registers::TableMode;
use crate::arch::vtd::layout::scalable::PasidTranslation;
use crate::arch::vtd::layout::{Descriptor, DomainId};
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::sync::Site;

/// Requests in one order.
const MAX_REQUESTS: usize = 4;

impl<P: Platform> VtdUnit<P> {
    /// Legacy mode, a context entry made absent ("Changes to a context-table entry").
    pub(super) fn forget_context(&self, source: u16, cached: Cached) -> Result<()> {
        self.in_order(
            site::WITHDRAW_WAIT,
            &[
                (site::WITHDRAW_CONTEXT, of_device(cached.id, source)),
                (site::WITHDRAW_IOTLB, self.of_domain(cached.id)),
            ],
        )
    }

    /// Legacy mode, a context entry made present, in caching mode: the absent entry may be cached
    /// (6.2.2).
    pub(super) fn forget_absent_context(&self, source: u16, new: Cached) -> Result<()> {
        self.in_order(
            site::ABSENT_WAIT,
            &[(site::ABSENT_CONTEXT, of_device(ABSENT_ID, source)), (site::ABSENT_IOTLB, self.of_domain(new.id))],
        )
    }

    /// Scalable mode, a PASID entry made absent or changed ("Present bit transition from 1 to 0", "Changes
    /// to fields other than SSADE and P").
    pub(super) fn forget_pasid_entry(&self, source: u16, cached: Cached) -> Result<()> {
        let context = (site::PASID_ENTRY_CONTEXT, of_device(cached.id, source));
        let pasid = (site::PASID_ENTRY_CACHE, of_pasid(cached.id));
        let iotlb = (site::PASID_ENTRY_IOTLB, self.translations_of(cached));
        match cached.by {
            // Emulations let a device pass until its context is invalidated.
            PasidTranslation::PassThrough => self.in_order(site::PASID_ENTRY_WAIT, &[context, pasid, iotlb]),
            _ => self.in_order(site::PASID_ENTRY_WAIT, &[pasid, iotlb]),
        }
    }

    /// Scalable mode, single bits of PASID entries changed ("SSADE transition from 0 to 1", "Changes to
    /// fields other than SSADE and P"), whoever has the entries.
    pub(super) fn forget_features(&self, cached: Cached) -> Result<()> {
        self.in_order(
            site::FEATURES_WAIT,
            &[(site::FEATURES_CACHE, of_pasid(cached.id)), (site::FEATURES_IOTLB, self.translations_of(cached))],
        )
    }

    /// Scalable mode, a PASID entry made present, in caching mode: the absent entry, and the absent
    /// context entry before it, may be cached with domain id 0 (6.2.2, 6.2.3). Emulations look for the
    /// id of the new entry instead.
    pub(super) fn forget_absent_pasid_entry(&self, source: u16, new: Cached) -> Result<()> {
        self.in_order(
            site::ABSENT_PASID_WAIT,
            &[
                (site::ABSENT_PASID_CONTEXT, of_device(ABSENT_ID, source)),
                (site::ABSENT_PASID_CACHE, of_pasid(ABSENT_ID)),
                (site::ABSENT_PASID_CACHE_NEW, of_pasid(new.id)),
                (site::ABSENT_PASID_IOTLB, translations_of_pasid(new.id)),
            ],
        )
    }

    /// What a context entry leads to, of a device whose entry was made absent as a whole ("Changes to a
    /// scalable-mode context-table entry"); nothing is cached by domain if nothing was present in it.
    pub(super) fn forget_device(&self, source: u16, cached: Option<Cached>) -> Result<()> {
        let id = cached.map_or(ABSENT_ID, |cached| cached.id);
        let context = (site::DEVICE_CONTEXT, of_device(id, source));
        let pasid = (site::DEVICE_PASID, Request::PasidCache(PasidScope::Domain(id)).encode());
        let iotlb = (site::DEVICE_IOTLB, self.of_domain(id));
        match (cached, self.mode()) {
            (None, _) => self.in_order(site::DEVICE_WAIT, &[context]),
            (_, TableMode::Scalable) => self.in_order(site::DEVICE_WAIT, &[context, pasid, iotlb]),
            _ => self.in_order(site::DEVICE_WAIT, &[context, iotlb]),
        }
    }

    /// Scalable mode, a context entry made present again, in caching mode.
    pub(super) fn forget_absent_device(&self, source: u16) -> Result<()> {
        self.in_order(site::DEVICE_WAIT, &[(site::DEVICE_ABSENT, of_device(ABSENT_ID, source))])
    }

    /// Scalable mode, a context entry of a previous kernel made absent, with PASID entries that this one
    /// has not read ("Changes to a scalable-mode context-table entry").
    pub(super) fn forget_copied_context(&self, source: u16) -> Result<()> {
        self.in_order(
            site::COPIED_WAIT,
            &[
                (site::COPIED_CONTEXT, of_device(ABSENT_ID, source)),
                (site::COPIED_PASID, Request::PasidCache(PasidScope::Global).encode()),
                (site::COPIED_IOTLB, self.all_translations()),
            ],
        )
    }

    /// Everything, under a new root table (6.6).
    pub(super) fn forget_everything(&self) -> Result<()> {
        let context = (site::TABLES_CONTEXT, Request::Context(ContextScope::Global).encode());
        let pasid = (site::TABLES_PASID, Request::PasidCache(PasidScope::Global).encode());
        let iotlb = (site::TABLES_IOTLB, self.all_translations());
        // PASID-cache requests are refused outside scalable mode (Table 26).
        match self.mode() {
            TableMode::Scalable => self.run(site::TABLES_WAIT, &[context, pasid, iotlb]),
            _ => self.run(site::TABLES_WAIT, &[context, iotlb]),
        }
    }

    /// What an entry that was present leads to: by domain for the second stage, whose walks are cached
    /// so; else by PASID (Tables 23 and 24).
    fn translations_of(&self, cached: Cached) -> Descriptor {
        match cached.by {
            PasidTranslation::SecondStage | PasidTranslation::Nested => self.of_domain(cached.id),
            PasidTranslation::FirstStage | PasidTranslation::PassThrough => translations_of_pasid(cached.id),
        }
    }

    fn of_domain(&self, id: DomainId) -> Descriptor {
        Request::Iotlb(IotlbScope::Domain(id), drain(self.capabilities())).encode()
    }

    fn all_translations(&self) -> Descriptor {
        Request::Iotlb(IotlbScope::Global, drain(self.capabilities())).encode()
    }

    /// Runs an order, unless the unit was not given the tables, or is off: then nothing is cached.
    #[inline(never)]
    pub(super) fn in_order(&self, wait: Site, requests: &[(Site, Descriptor)]) -> Result<()> {
        if !self.may_cache() {
            return Ok(());
        }
        match self.run(wait, requests) {
            Err(Error::Fenced) if self.is_off() => Ok(()),
            result => result,
        }
    }

    /// Makes requests and waits for all of them; if that fails, every device is blocked.
    fn run(&self, wait: Site, requests: &[(Site, Descriptor)]) -> Result<()> {
        let mut made: heapless::Vec<Descriptor, MAX_REQUESTS> = heapless::Vec::new();
        for (_, request) in requests.iter().filter(|(site, _)| !site.is_skipped()) {
            // No order is longer.
            let _ = made.push(*request);
        }
        let done = self
            .queue
            .submit(&self.registers, &made)
            .and_then(|ticket| if wait.is_skipped() { Ok(()) } else { self.queue.wait(&self.registers, ticket) });
        self.fence_with_queue(done)
    }
}

fn of_device(domain: DomainId, source: u16) -> Descriptor {
    Request::Context(ContextScope::Device { domain, source, function_mask: 0 }).encode()
}

fn of_pasid(domain: DomainId) -> Descriptor {
    Request::PasidCache(PasidScope::Pasid { domain, pasid: RID_PASID.as_u32() }).encode()
}

fn translations_of_pasid(domain: DomainId) -> Descriptor {
    Request::PasidIotlb(PasidIotlbScope::Pasid { domain, pasid: RID_PASID.as_u32() }).encode()
}
