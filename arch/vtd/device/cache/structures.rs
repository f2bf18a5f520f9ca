//! The paging-structure caches (VT-d 6.2.5).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::overlap;
use crate::PhysAddr;
use crate::arch::vtd::device::walk::{Rights, Stage, Structure};
use crate::arch::vtd::layout::DomainId;
use crate::bus::Retention;
use crate::bus::cache::Lines;
use crate::error::Result;
use crate::platform::Platform;

/// The levels of tables below a top one.
const LEVELS: u8 = 4;

/// A table, and the block of addresses that go through it.
#[derive(Clone, Copy)]
pub(super) struct StructureLine {
    pub(super) stage: Stage,
    pub(super) domain: DomainId,
    /// Zero in the second stage, which is not tagged with it.
    pub(super) pasid: u32,
    base: u64,
    structure: Structure,
}

impl StructureLine {
    pub(super) fn overlaps(&self, address: u64, mask: u8, counted: u64) -> bool {
        overlap(self.base, self.structure.block_bits(), address, mask, counted)
    }
}

pub(super) struct Structures<P: Platform> {
    lines: Lines<StructureLine, P>,
}

impl<P: Platform> Structures<P> {
    pub(super) fn new(platform: P, order: u8) -> Result<Self> {
        Ok(Self { lines: Lines::new(platform, order)? })
    }

    pub(super) fn find(
        &mut self,
        stage: Stage,
        domain: DomainId,
        pasid: u32,
        address: u64,
        retention: Retention,
    ) -> Option<Structure> {
        let pasid = tag(stage, pasid);
        (0..LEVELS).find_map(|level| {
            let base = block(level, address);
            let hash = hash(stage, domain, pasid, base, level);
            let is = |line: &StructureLine| {
                line.structure.level == level
                    && line.base == base
                    && line.stage == stage
                    && line.domain == domain
                    && line.pasid == pasid
            };
            if retention == Retention::Evict {
                self.lines.evict(hash, is);
            }
            self.lines.find(hash, is).map(|line| line.structure)
        })
    }

    pub(super) fn insert(&mut self, stage: Stage, domain: DomainId, pasid: u32, address: u64, structure: Structure) {
        let pasid = tag(stage, pasid);
        let base = block(structure.level, address);
        let line = StructureLine { stage, domain, pasid, base, structure };
        let is = |old: &StructureLine| {
            old.structure.level == structure.level
                && old.base == base
                && old.stage == stage
                && old.domain == domain
                && old.pasid == pasid
        };
        self.lines.insert(hash(stage, domain, pasid, base, structure.level), line, is);
    }

    pub(super) fn remove(&mut self, goes: impl Fn(&StructureLine) -> bool) {
        self.lines.remove(goes);
    }

    pub(super) fn clear(&mut self) {
        self.lines.remove(|_| true);
    }
}

const fn tag(stage: Stage, pasid: u32) -> u32 {
    match stage {
        Stage::First => pasid,
        Stage::Second => 0,
    }
}

/// The block of addresses that a table of this level covers.
fn block(level: u8, address: u64) -> u64 {
    let bits = Structure { level, table: PhysAddr::new(0), rights: Rights::empty() }.block_bits();
    address >> (bits & 63) << (bits & 63)
}

fn hash(stage: Stage, domain: DomainId, pasid: u32, base: u64, level: u8) -> u64 {
    let who = (u64::from(domain.as_u16()) << 20 | u64::from(pasid)) << 1 | u64::from(stage == Stage::First);
    (base >> 21) ^ who.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ u64::from(level) << 60
}
