//! The invalidation queue: which descriptors are valid, and in which order they may be executed (VT-d
//! 6.5.2).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use heapless::Vec;

use super::DeviceConfig;
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::descriptors::{
    ContextScope, Descriptor, IotlbScope, PasidIotlbScope, PasidScope, Request, WaitFlags, kind,
};
use crate::arch::vtd::layout::registers::{DescriptorWidth, TableMode};
use crate::arch::vtd::layout::{Cap, DomainId, Ecap};

/// Descriptors that a unit holds at once, fetched and not yet executed.
pub(super) const PENDING: usize = 16;

/// What became of a descriptor that cannot be executed (11.4.9.9, IQEI).
pub(super) type QueueErrorCode = u64;

const INVALID_TAIL: QueueErrorCode = 1;
pub(super) const FETCH_FAILED: QueueErrorCode = 2;
const INVALID_TYPE: QueueErrorCode = 3;
const RESERVED_FIELD: QueueErrorCode = 4;
const INVALID_WIDTH: QueueErrorCode = 5;
const MISALIGNED_TAIL: QueueErrorCode = 6;
const INVALID_MODE: QueueErrorCode = 7;

/// Where the queue is, from the registers at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position {
    pub(super) width: DescriptorWidth,
    base: u64,
    bytes: u32,
    head: u32,
    mode: TableMode,
}

impl Position {
    /// Checks what the registers say before a descriptor is fetched.
    pub(super) fn new(
        config: &DeviceConfig,
        mode: Option<TableMode>,
        queue_address: u64,
        head: u32,
        tail: u32,
    ) -> Result<Self, QueueErrorCode> {
        let wide = queue_address & 1 << 11 != 0;
        let width = if wide { DescriptorWidth::Bits256 } else { DescriptorWidth::Bits128 };
        if wide && !config.ecap.intersects(Ecap::SMTS.union(Ecap::ADMS)) {
            return Err(INVALID_WIDTH);
        }
        // Table 26: no descriptor is valid with a TTM that is reserved; 128 bits are for legacy mode.
        let mode = mode.ok_or(INVALID_MODE)?;
        if !wide && mode != TableMode::Legacy {
            return Err(INVALID_WIDTH);
        }
        if wide && tail & 1 << 4 != 0 {
            return Err(MISALIGNED_TAIL);
        }
        let bytes = 4096_u32 << (queue_address & 7);
        if tail >= bytes {
            return Err(INVALID_TAIL);
        }
        // The head can be beyond the end, or between two descriptors, only when IQA was changed under a queue
        // that is enabled. A head that is not aligned would never meet the tail (11.4.9.1: bit 4 is zero).
        let offsets = bytes.wrapping_sub(width.bytes() as u32);
        Ok(Self { width, base: queue_address & !0xfff, bytes, head: head & offsets, mode })
    }

    /// Where the descriptor is.
    pub(super) const fn address(&self) -> PhysAddr {
        PhysAddr::new(self.base.wrapping_add(self.head as u64))
    }

    /// The head behind it.
    pub(super) const fn next(&self) -> u32 {
        self.head.wrapping_add(self.width.bytes() as u32) & self.bytes.wrapping_sub(1)
    }

    /// What a descriptor that was fetched from here asks for.
    pub(super) fn judge(&self, config: &DeviceConfig, descriptor: Descriptor) -> Result<Request, QueueErrorCode> {
        if !self.has_kind(config, descriptor.kind()) {
            return Err(INVALID_TYPE);
        }
        let request = descriptor.decode().ok_or(RESERVED_FIELD)?;
        let (cap, ecap) = (config.cap, config.ecap);
        let fits = |mask: u8| mask <= cap.max_address_mask();
        let throttles = |function: u16| function == 0 || ecap.contains(Ecap::DIT);
        let valid = match request {
            Request::Iotlb(IotlbScope::Pages { mask, .. }, _) => cap.contains(Cap::PSI) && fits(mask),
            Request::PasidIotlb(PasidIotlbScope::Pages { mask, .. }) => fits(mask),
            Request::DeviceTlb { physical_function, .. } | Request::PasidDeviceTlb { physical_function, .. } => {
                throttles(physical_function)
            }
            Request::Interrupt { mask, .. } => mask <= ecap.max_handle_mask(),
            Request::Wait { flags, .. } => !flags.contains(WaitFlags::DRAIN_PAGE_REQUESTS) || ecap.contains(Ecap::PDS),
            _ => true,
        };
        if valid { Ok(with_domain_bits(config, request)) } else { Err(RESERVED_FIELD) }
    }

    /// Whether the unit knows the type, in this mode and width (Table 26 and the types' own sections).
    fn has_kind(&self, config: &DeviceConfig, kind: u8) -> bool {
        let ecap = config.ecap;
        let in_every_mode = match kind {
            kind::CONTEXT | kind::IOTLB | kind::INTERRUPT | kind::WAIT => true,
            kind::DEVICE_TLB => ecap.contains(Ecap::DT),
            _ => false,
        };
        let in_scalable_mode = match kind {
            kind::PASID_IOTLB | kind::PASID_CACHE => true,
            kind::PASID_DEVICE_TLB => ecap.contains(Ecap::DT),
            kind::PAGE_GROUP_RESPONSE => ecap.contains(Ecap::PRS),
            _ => false,
        };
        in_every_mode || in_scalable_mode && self.mode != TableMode::Legacy
    }
}

/// The request with the bits of domain ids ignored that the unit does not have (6.5.2).
fn with_domain_bits(config: &DeviceConfig, request: Request) -> Request {
    let cut = |domain| domain_bits(config.cap, domain);
    match request {
        Request::Context(ContextScope::Domain(domain)) => Request::Context(ContextScope::Domain(cut(domain))),
        Request::Context(ContextScope::Device { domain, source, function_mask }) => {
            Request::Context(ContextScope::Device { domain: cut(domain), source, function_mask })
        }
        Request::Iotlb(IotlbScope::Domain(domain), drain) => Request::Iotlb(IotlbScope::Domain(cut(domain)), drain),
        Request::Iotlb(IotlbScope::Pages { domain, address, mask, changed }, drain) => {
            Request::Iotlb(IotlbScope::Pages { domain: cut(domain), address, mask, changed }, drain)
        }
        Request::PasidCache(PasidScope::Domain(domain)) => Request::PasidCache(PasidScope::Domain(cut(domain))),
        Request::PasidCache(PasidScope::Pasid { domain, pasid }) => {
            Request::PasidCache(PasidScope::Pasid { domain: cut(domain), pasid })
        }
        Request::PasidIotlb(PasidIotlbScope::Pasid { domain, pasid }) => {
            Request::PasidIotlb(PasidIotlbScope::Pasid { domain: cut(domain), pasid })
        }
        Request::PasidIotlb(PasidIotlbScope::Pages { domain, pasid, address, mask, changed }) => {
            Request::PasidIotlb(PasidIotlbScope::Pages { domain: cut(domain), pasid, address, mask, changed })
        }
        _ => request,
    }
}

/// A domain id with the bits that the unit has (CAP.ND).
pub(super) fn domain_bits(cap: Cap, domain: DomainId) -> DomainId {
    let bits = cap.domain_id_bits().unwrap_or(16);
    DomainId::new((u32::from(domain.as_u16()) & 1_u32.wrapping_shl(bits).wrapping_sub(1)) as u16)
}

/// What was completed last: the queue is quiet after a wait only (6.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Last {
    Nothing,
    Wait,
    Request,
}

/// Requests that were fetched and not yet executed, oldest first.
pub(super) struct Pending {
    requests: Vec<Request, PENDING>,
    last: Last,
}

impl Pending {
    pub(super) const fn new() -> Self {
        Self { requests: Vec::new(), last: Last::Nothing }
    }

    /// Whether another one may be fetched.
    pub(super) fn has_room(&self) -> bool {
        !self.requests.is_full()
    }

    /// Whether nothing is pending and the last was a wait, or nothing was ever asked for.
    pub(super) fn is_quiet(&self) -> bool {
        self.requests.is_empty() && self.last != Last::Request
    }

    /// As after a reset.
    pub(super) fn clear(&mut self) {
        self.requests.clear();
        self.last = Last::Nothing;
    }

    /// Takes a request that was fetched.
    pub(super) fn push(&mut self, request: Request) {
        // There was room when it was fetched, and only one at a time is.
        let _ = self.requests.push(request);
    }

    /// The request at `index`.
    pub(super) fn get(&self, index: usize) -> Option<Request> {
        self.requests.get(index).copied()
    }

    /// The request at `index` is done.
    pub(super) fn finish(&mut self, index: usize) {
        if index < self.requests.len() {
            let request = self.requests.remove(index);
            self.last = if matches!(request, Request::Wait { .. }) { Last::Wait } else { Last::Request };
        }
    }

    /// How many are pending.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// A device did not answer the request at `index` (6.5.2.11): waits are aborted, and what is behind
    /// the oldest request for a device-TLB is not executed, for that "is not guaranteed".
    pub(super) fn abort(&mut self, index: usize) {
        self.finish(index);
        let oldest = self.requests.iter().position(is_for_device_tlb).unwrap_or(index).min(index);
        self.requests.truncate(oldest);
        self.requests.retain(|request| !matches!(request, Request::Wait { .. }));
    }

    /// Whether the request at `index` may be executed now (6.5.2.12, 7.8).
    pub(super) fn is_legal(&self, index: usize) -> bool {
        let Some(request) = self.requests.get(index) else { return false };
        let Some(before) = self.requests.get(..index) else { return false };
        if before.iter().any(is_fence) {
            return false;
        }
        match request {
            // It stands for what is between it and the previous wait.
            Request::Wait { .. } => matches!(before.last(), None | Some(Request::Wait { .. })),
            _ => before.iter().all(|earlier| !must_precede(earlier, request)),
        }
    }
}

fn is_fence(request: &Request) -> bool {
    matches!(request, Request::Wait { flags, .. } if flags.contains(WaitFlags::FENCE))
}

fn is_for_device_tlb(request: &Request) -> bool {
    matches!(request, Request::DeviceTlb { .. } | Request::PasidDeviceTlb { .. })
}

/// Whether `earlier` must be completed before `later`, which is no wait, is executed.
///
/// Word by word as in 6.5.2.12: nothing orders a device-TLB invalidation without PASID behind a
/// PASID-based IOTLB invalidation.
fn must_precede(earlier: &Request, later: &Request) -> bool {
    match later {
        Request::Iotlb(..) | Request::PasidIotlb(_) => {
            matches!(earlier, Request::Context(_) | Request::PasidCache(_))
        }
        Request::PasidCache(_) => matches!(earlier, Request::Context(_)),
        Request::DeviceTlb { .. } => match earlier {
            Request::Iotlb(..) | Request::Interrupt { .. } | Request::InterruptAll => true,
            _ => is_posted(earlier),
        },
        Request::PasidDeviceTlb { .. } => match earlier {
            Request::Iotlb(..) | Request::PasidIotlb(_) | Request::Interrupt { .. } | Request::InterruptAll => true,
            _ => is_posted(earlier),
        },
        // 7.8: messages to devices leave in order.
        Request::PageGroupResponse { .. } => is_posted(earlier),
        _ => false,
    }
}

/// Whether the request is a message to a device.
fn is_posted(request: &Request) -> bool {
    is_for_device_tlb(request) || matches!(request, Request::PageGroupResponse { .. })
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
