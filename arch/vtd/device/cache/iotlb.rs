//! The IOTLB (VT-d 6.2.4).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::overlap;
use crate::arch::vtd::device::walk::Leaf;
use crate::arch::vtd::device::{Blocked, Privilege, Recorded};
use crate::arch::vtd::layout::DomainId;
use crate::bus::Retention;
use crate::bus::cache::Lines;
use crate::error::Result;
use crate::platform::Platform;

/// What a translation comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::arch::vtd::device) enum Mapping {
    /// The second stage, of either mode.
    Second,
    /// Nothing: scalable mode's pass-through.
    PassThrough,
    /// The first stage.
    First,
    /// Both.
    Nested,
}

impl Mapping {
    /// Whether the second stage's rules of invalidation hold (the first column of Tables 23 and 24).
    pub(super) const fn is_second_stage(self) -> bool {
        matches!(self, Self::Second | Self::PassThrough)
    }
}

/// By what a translation is found, its address apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::arch::vtd::device) struct IotlbKey {
    /// The requester.
    pub(in crate::arch::vtd::device) source: u16,
    /// The PASID of the request that filled the line, if it had one.
    pub(in crate::arch::vtd::device) pasid: Option<u32>,
    /// Its privilege. Requests without PASID have none of their own: always `User`.
    pub(in crate::arch::vtd::device) privilege: Privilege,
}

/// A translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::arch::vtd::device) struct IotlbLine {
    pub(in crate::arch::vtd::device) key: IotlbKey,
    /// The domain that it belongs to.
    pub(in crate::arch::vtd::device) domain: DomainId,
    /// The PASID, also that of requests without one (RID_PASID).
    pub(in crate::arch::vtd::device) pasid: u32,
    pub(in crate::arch::vtd::device) mapping: Mapping,
    /// The block of addresses, aligned to its size.
    pub(in crate::arch::vtd::device) base: u64,
    /// log2 of its bytes.
    pub(in crate::arch::vtd::device) block_bits: u8,
    /// The page, or in caching mode why there is none.
    pub(in crate::arch::vtd::device) found: Result<Leaf, Blocked>,
    /// How faults are recorded that a permission of the page causes.
    pub(in crate::arch::vtd::device) recorded: Recorded,
}

impl IotlbLine {
    /// Whether the line says that nothing is translated in a block larger than the `1 << mask` pages that
    /// changed: what did change there is a table, then, and not a leaf.
    pub(super) fn lacks_table(&self, mask: u8) -> bool {
        self.found.is_err() && self.block_bits > mask.saturating_add(12)
    }

    pub(super) fn overlaps(&self, address: u64, mask: u8, counted: u64) -> bool {
        overlap(self.base, self.block_bits, address, mask, counted)
    }
}

pub(super) struct Iotlb<P: Platform> {
    lines: Lines<IotlbLine, P>,
    /// Bit n is set when there may be blocks of `1 << n` bytes.
    sizes: u64,
    /// Which bits of a second-stage address count (MGAW).
    guest_addresses: u64,
}

impl<P: Platform> Iotlb<P> {
    pub(super) fn new(platform: P, order: u8, guest_bits: u32) -> Result<Self> {
        let guest_addresses = u64::MAX.checked_shr(64_u32.saturating_sub(guest_bits)).unwrap_or(0);
        Ok(Self { lines: Lines::new(platform, order)?, sizes: 0, guest_addresses })
    }

    pub(super) const fn guest_addresses(&self) -> u64 {
        self.guest_addresses
    }

    /// Looks for blocks of every size; the smallest one counts.
    pub(super) fn find(&mut self, key: &IotlbKey, address: u64, retention: Retention) -> Option<IotlbLine> {
        let mut sizes = self.sizes;
        while sizes != 0 {
            let bits = sizes.trailing_zeros() as u8;
            sizes &= sizes.wrapping_sub(1);
            let hash = hash(key, address, bits);
            let is = |line: &IotlbLine| {
                line.block_bits == bits && line.key == *key && (line.base ^ address) >> (bits & 63) == 0
            };
            if retention == Retention::Evict {
                self.lines.evict(hash, is);
            }
            if let Some(line) = self.lines.find(hash, is) {
                return Some(line);
            }
        }
        None
    }

    pub(super) fn insert(&mut self, line: IotlbLine) {
        self.sizes |= 1_u64.wrapping_shl(u32::from(line.block_bits));
        let is = |old: &IotlbLine| old.key == line.key && old.base == line.base && old.block_bits == line.block_bits;
        self.lines.insert(hash(&line.key, line.base, line.block_bits), line, is);
    }

    pub(super) fn remove(&mut self, goes: impl Fn(&IotlbLine) -> bool) {
        self.lines.remove(goes);
    }

    pub(super) fn clear(&mut self) {
        self.lines.remove(|_| true);
        self.sizes = 0;
    }
}

fn hash(key: &IotlbKey, address: u64, bits: u8) -> u64 {
    let pasid = key.pasid.map_or(0, |pasid| u64::from(pasid) << 1 | 1);
    let who = (u64::from(key.source) << 21 | pasid).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (address >> (bits & 63)) ^ who ^ who >> 29 ^ u64::from(bits)
}
