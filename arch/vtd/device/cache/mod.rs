//! The caches of a unit, and what invalidates them (VT-d 6.2 and 6.5).
//!
//! | cache | found by | invalidated by |
//! |---|---|---|
//! | context | source | source, domain (legacy mode); source (scalable mode) |
//! | PASID | source, PASID | PASID, domain |
//! | IOTLB | source, PASID if the request had one, address | domain, kind of mapping, PASID, address |
//! | first-stage structures | domain, PASID, address | the same |
//! | second-stage structures | domain, address | the same |
//!
//! That is Table 17. Lines stay until something below removes them, or until there is no room.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod iotlb;
mod structures;

pub(super) use iotlb::{IotlbKey, IotlbLine, Mapping};

use iotlb::Iotlb;
use structures::Structures;

use super::Blocked;
use super::walk::{ContextInfo, Mode, PasidInfo, Stage, Structure};
use crate::arch::vtd::layout::DomainId;
use crate::arch::vtd::layout::descriptors::{Changed, ContextScope, IotlbScope, PasidIotlbScope, PasidScope};
use crate::bus::Retention;
use crate::bus::cache::Lines;
use crate::error::Result;
use crate::platform::Platform;

/// The tag of what faulted and is cached all the same (6.2.2, 6.2.3).
const RESERVED_DOMAIN: DomainId = DomainId::new(0);

/// A context entry. `found` is a fault in caching mode only.
#[derive(Clone, Copy)]
struct ContextLine {
    source: u16,
    mode: Mode,
    domain: DomainId,
    found: Result<ContextInfo, Blocked>,
}

/// A PASID table entry. `found` is a fault in caching mode only.
#[derive(Clone, Copy)]
struct PasidLine {
    source: u16,
    pasid: u32,
    domain: DomainId,
    found: Result<PasidInfo, Blocked>,
}

/// All of them.
pub(super) struct Caches<P: Platform> {
    contexts: Lines<ContextLine, P>,
    pasids: Lines<PasidLine, P>,
    iotlb: Iotlb<P>,
    structures: Structures<P>,
}

impl<P: Platform> Caches<P> {
    /// Empty caches of `1 << order` frames each. Addresses of the second stage have `guest_bits` bits.
    ///
    /// # Errors
    /// [`Error::NoMemory`](crate::Error::NoMemory).
    pub(super) fn new(platform: &P, order: u8, guest_bits: u32) -> Result<Self> {
        Ok(Self {
            contexts: Lines::new(platform.clone(), order)?,
            pasids: Lines::new(platform.clone(), order)?,
            iotlb: Iotlb::new(platform.clone(), order, guest_bits)?,
            structures: Structures::new(platform.clone(), order)?,
        })
    }

    /// The context entry of a source.
    pub(super) fn context(&mut self, source: u16, retention: Retention) -> Option<Result<ContextInfo, Blocked>> {
        let is = |line: &ContextLine| line.source == source;
        if retention == Retention::Evict {
            self.contexts.evict(u64::from(source), is);
        }
        self.contexts.find(u64::from(source), is).map(|line| line.found)
    }

    /// Keeps what was found for a source.
    pub(super) fn insert_context(&mut self, source: u16, mode: Mode, found: Result<ContextInfo, Blocked>) {
        let domain = match found {
            Ok(ContextInfo::Legacy { domain, .. }) => domain,
            _ => RESERVED_DOMAIN,
        };
        let line = ContextLine { source, mode, domain, found };
        self.contexts.insert(u64::from(source), line, |old| old.source == source);
    }

    /// The PASID table entry of a source.
    pub(super) fn pasid(
        &mut self,
        source: u16,
        pasid: u32,
        retention: Retention,
    ) -> Option<Result<PasidInfo, Blocked>> {
        let hash = pasid_hash(source, pasid);
        let is = |line: &PasidLine| line.source == source && line.pasid == pasid;
        if retention == Retention::Evict {
            self.pasids.evict(hash, is);
        }
        self.pasids.find(hash, is).map(|line| line.found)
    }

    /// Keeps what was found for a PASID of a source, tagged with the domain of its entry.
    pub(super) fn insert_pasid(
        &mut self,
        source: u16,
        pasid: u32,
        domain: Option<DomainId>,
        found: Result<PasidInfo, Blocked>,
    ) {
        let line = PasidLine { source, pasid, domain: domain.unwrap_or(RESERVED_DOMAIN), found };
        let is = |old: &PasidLine| old.source == source && old.pasid == pasid;
        self.pasids.insert(pasid_hash(source, pasid), line, is);
    }

    /// The translation of an address.
    pub(super) fn translation(&mut self, key: &IotlbKey, address: u64, retention: Retention) -> Option<IotlbLine> {
        self.iotlb.find(key, address, retention)
    }

    /// Keeps a translation.
    pub(super) fn insert_translation(&mut self, line: IotlbLine) {
        self.iotlb.insert(line);
    }

    /// The lowest table for an address. `pasid` counts in the first stage only.
    pub(super) fn structure(
        &mut self,
        stage: Stage,
        domain: DomainId,
        pasid: u32,
        address: u64,
        retention: Retention,
    ) -> Option<Structure> {
        self.structures.find(stage, domain, pasid, address, retention)
    }

    /// Keeps a table.
    pub(super) fn insert_structure(
        &mut self,
        stage: Stage,
        domain: DomainId,
        pasid: u32,
        address: u64,
        structure: Structure,
    ) {
        self.structures.insert(stage, domain, pasid, address, structure);
    }

    /// Context-cache invalidation (6.5.2.1).
    pub(super) fn invalidate_contexts(&mut self, scope: ContextScope) {
        match scope {
            ContextScope::Global => self.contexts.remove(|_| true),
            // In scalable mode lines have no domain: the request is served as a global one.
            ContextScope::Domain(domain) => {
                self.contexts.remove(|line| line.mode == Mode::Scalable || line.domain == domain);
            }
            ContextScope::Device { domain, source, function_mask } => {
                // Table 21.
                let ignored = match function_mask {
                    0 => 0,
                    1 => 0b100,
                    2 => 0b110,
                    _ => 0b111,
                };
                self.contexts.remove(|line| {
                    (line.source ^ source) & !ignored == 0 && (line.mode == Mode::Scalable || line.domain == domain)
                });
            }
        }
    }

    /// PASID-cache invalidation (6.5.2.2).
    pub(super) fn invalidate_pasids(&mut self, scope: PasidScope) {
        match scope {
            PasidScope::Global => self.pasids.remove(|_| true),
            PasidScope::Domain(domain) => self.pasids.remove(|line| line.domain == domain),
            PasidScope::Pasid { domain, pasid } => {
                self.pasids.remove(|line| line.domain == domain && line.pasid == pasid);
            }
        }
    }

    /// IOTLB invalidation (6.5.2.3, Table 23).
    pub(super) fn invalidate_iotlb(&mut self, scope: IotlbScope) {
        match scope {
            IotlbScope::Global => {
                self.iotlb.clear();
                self.structures.clear();
            }
            IotlbScope::Domain(domain) => {
                self.iotlb.remove(|line| line.domain == domain);
                self.structures.remove(|line| line.domain == domain);
            }
            IotlbScope::Pages { domain, address, mask, changed } => {
                let (address, guest) = (address.as_u64(), self.iotlb.guest_addresses());
                // A fault of a table may be cached where tables are (6.2.5.5), which the hint preserves.
                let preserved = |line: &IotlbLine| changed == Changed::Leaves && line.lacks_table(mask);
                self.iotlb.remove(|line| {
                    line.domain == domain
                        && (!line.mapping.is_second_stage() || line.overlaps(address, mask, guest))
                        && !preserved(line)
                });
                self.structures.remove(|line| {
                    line.domain == domain
                        && match line.stage {
                            Stage::First => true,
                            Stage::Second => changed == Changed::Tables && line.overlaps(address, mask, guest),
                        }
                });
            }
        }
    }

    /// PASID-based IOTLB invalidation (6.5.2.4, Table 24).
    pub(super) fn invalidate_pasid_iotlb(&mut self, scope: PasidIotlbScope) {
        match scope {
            PasidIotlbScope::Pasid { domain, pasid } => {
                self.iotlb.remove(|line| line.domain == domain && line.pasid == pasid);
                self.structures
                    .remove(|line| line.stage == Stage::First && line.domain == domain && line.pasid == pasid);
            }
            PasidIotlbScope::Pages { domain, pasid, address, mask, changed } => {
                let address = address.as_u64();
                self.iotlb.remove(|line| {
                    !line.mapping.is_second_stage()
                        && line.domain == domain
                        && line.pasid == pasid
                        && line.overlaps(address, mask, u64::MAX)
                });
                self.structures.remove(|line| {
                    changed == Changed::Tables
                        && line.stage == Stage::First
                        && line.domain == domain
                        && line.pasid == pasid
                        && line.overlaps(address, mask, u64::MAX)
                });
            }
        }
    }

    /// Drops everything: what SRTP does with CAP.ESRTPS, and TE when it is cleared in a unit that has
    /// scalable mode.
    pub(super) fn clear(&mut self) {
        self.invalidate_contexts(ContextScope::Global);
        self.invalidate_pasids(PasidScope::Global);
        self.invalidate_iotlb(IotlbScope::Global);
    }
}

fn pasid_hash(source: u16, pasid: u32) -> u64 {
    u64::from(source) << 32 | u64::from(pasid)
}

/// Whether the block of `1 << bits` bytes at `base` has a byte in common with the `1 << mask` pages at
/// `address`. Both are aligned to their size; only bits in `counted` count.
const fn overlap(base: u64, bits: u8, address: u64, mask: u8, counted: u64) -> bool {
    let pages = mask.wrapping_add(12);
    let larger = if bits > pages { bits } else { pages };
    match ((base ^ address) & counted).checked_shr(larger as u32) {
        Some(difference) => difference == 0,
        None => true,
    }
}
