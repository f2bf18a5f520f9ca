//! Translations, and tables on the way to them (SMMU 3.17, 4.4).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::queue::is_aligned;
use crate::arch::smmuv3::device::walk::{Leaf, Scope, Stage, StreamWorld, Structure, Tags};
use crate::arch::smmuv3::layout::commands::{Command, Leaf as Levels, TlbRange};
use crate::arch::smmuv3::layout::{Asid, Granule, Vmid};
use crate::bus::Retention;
use crate::bus::cache::Lines;
use crate::platform::Platform;

/// log2 of the bytes that a translation can be for: pages, blocks, and runs of them, of all granules.
const SIZES: [u8; 13] = [12, 14, 16, 21, 25, 29, 30, 34, 36, 39, 42, 47, 55];

/// Levels of tables below a top one.
const LEVELS: [i8; 4] = [3, 2, 1, 0];

/// What a VA is translated to: by stage 1, and by stage 2 if it was in use.
#[derive(Clone, Copy)]
pub(in crate::arch::smmuv3::device) struct VaLine {
    pub(in crate::arch::smmuv3::device) tags: Tags,
    pub(in crate::arch::smmuv3::device) first: Leaf,
    pub(in crate::arch::smmuv3::device) second: Option<Leaf>,
    /// E0PD when it was walked for: unprivileged requests fault.
    pub(in crate::arch::smmuv3::device) privileged_only: bool,
    base: u64,
    bits: u8,
}

impl VaLine {
    /// What is kept of the translation of the `1 << bits` bytes around an address.
    pub(in crate::arch::smmuv3::device) fn new(
        tags: Tags,
        address: u64,
        bits: u8,
        first: Leaf,
        second: Option<Leaf>,
    ) -> Self {
        Self { tags, first, second, privileged_only: false, base: block(address, bits), bits }
    }

    /// Whether a request with these tags has this line (3.17.1): a global one for its ASET, another one
    /// for its ASID.
    fn serves(&self, tags: &Tags) -> bool {
        let for_asid = match self.first.scope {
            Scope::Global => self.tags.private == tags.private,
            Scope::Asid => self.tags.asid == tags.asid,
        };
        self.tags.world == tags.world && self.tags.vmid == tags.vmid && for_asid
    }

    fn is_of(&self, vmid: Vmid) -> bool {
        self.tags.world == StreamWorld::NsEl1 && self.tags.vmid == vmid
    }

    fn has(&self, asid: Asid) -> bool {
        self.first.scope == Scope::Asid && self.tags.asid == Some(asid)
    }

    fn is_at(&self, range: TlbRange) -> bool {
        is_leaf_at(self.base, self.bits, &self.first, range)
    }
}

/// What an IPA is translated to.
#[derive(Clone, Copy)]
struct IpaLine {
    vmid: Vmid,
    leaf: Leaf,
    base: u64,
    bits: u8,
}

/// A table, and the block of addresses that go through it.
#[derive(Clone, Copy)]
struct TableLine {
    stage: Stage,
    tags: Tags,
    base: u64,
    structure: Structure,
    /// Where it is in memory; unknown where stage 2 is to say.
    at: Option<PhysAddr>,
}

impl TableLine {
    fn is_of(&self, stage: Stage, vmid: Vmid) -> bool {
        self.stage == stage && self.tags.world == StreamWorld::NsEl1 && self.tags.vmid == vmid
    }

    /// Whether the descriptor of this table is one that an invalidation of all levels names: those above
    /// the level of TTL (4.4.1.1).
    fn is_at(&self, range: TlbRange) -> bool {
        let above = match range.ttl {
            0 => true,
            ttl => i16::from(self.structure.level) <= i16::from(ttl),
        };
        above && is_at(self.base, self.structure.block_bits, granule(&self.structure), range)
    }
}

/// Two translations of one address are kept, of pages or blocks of different sizes: one was replaced by the
/// other without break-before-make (3.20.1, 3.21.1.1).
pub(in crate::arch::smmuv3::device) struct Conflict;

pub(in crate::arch::smmuv3::device) struct Tlb<P: Platform> {
    addresses: Lines<VaLine, P>,
    intermediates: Lines<IpaLine, P>,
    tables: Lines<TableLine, P>,
}

impl<P: Platform> Tlb<P> {
    pub(super) fn new(platform: &P, order: u8) -> crate::error::Result<Self> {
        Ok(Self {
            addresses: Lines::new(platform.clone(), order)?,
            intermediates: Lines::new(platform.clone(), order)?,
            tables: Lines::new(platform.clone(), order)?,
        })
    }

    /// What a VA is translated to.
    ///
    /// # Errors
    /// [`Conflict`].
    pub(in crate::arch::smmuv3::device) fn address(
        &mut self,
        tags: &Tags,
        address: u64,
        retention: Retention,
    ) -> Result<Option<VaLine>, Conflict> {
        let mut lines = SIZES.iter().filter_map(|&bits| {
            let base = block(address, bits);
            let is = |line: &VaLine| line.base == base && line.bits == bits && line.serves(tags);
            let hash = hash(tags.vmid, base, bits);
            if retention == Retention::Evict {
                self.addresses.evict(hash, is);
            }
            self.addresses.find(hash, is)
        });
        let first = lines.next();
        match first.is_some_and(|first| lines.any(|line| line.first.level != first.first.level)) {
            true => Err(Conflict),
            false => Ok(first),
        }
    }

    pub(in crate::arch::smmuv3::device) fn keep_address(&mut self, line: VaLine) {
        let is = |old: &VaLine| {
            old.base == line.base
                && old.bits == line.bits
                && old.first.scope == line.first.scope
                && old.tags.world == line.tags.world
                && old.serves(&line.tags)
        };
        self.addresses.insert(hash(line.tags.vmid, line.base, line.bits), line, is);
    }

    /// What an IPA is translated to.
    pub(in crate::arch::smmuv3::device) fn intermediate(
        &mut self,
        vmid: Vmid,
        address: u64,
        retention: Retention,
    ) -> Option<Leaf> {
        SIZES.iter().find_map(|&bits| {
            let base = block(address, bits);
            let is = |line: &IpaLine| line.base == base && line.bits == bits && line.vmid == vmid;
            let hash = hash(vmid, base, bits);
            if retention == Retention::Evict {
                self.intermediates.evict(hash, is);
            }
            self.intermediates.find(hash, is).map(|line| line.leaf)
        })
    }

    pub(in crate::arch::smmuv3::device) fn keep_intermediate(
        &mut self,
        vmid: Vmid,
        address: u64,
        bits: u8,
        leaf: Leaf,
    ) {
        let base = block(address, bits);
        let line = IpaLine { vmid, leaf, base, bits };
        let is = |old: &IpaLine| old.base == base && old.bits == bits && old.vmid == vmid;
        self.intermediates.insert(hash(vmid, base, bits), line, is);
    }

    /// The lowest table for an address.
    pub(in crate::arch::smmuv3::device) fn table(
        &mut self,
        stage: Stage,
        tags: &Tags,
        address: u64,
        retention: Retention,
    ) -> Option<Structure> {
        let tags = of_stage(stage, tags);
        LEVELS.iter().flat_map(|&level| Granule::ALL.map(|granule| (level, granule))).find_map(|(level, granule)| {
            let bits = table_bits(level, granule);
            let base = block(address, bits);
            let is = |line: &TableLine| {
                line.structure.level == level
                    && line.structure.block_bits == bits
                    && line.base == base
                    && line.stage == stage
                    && line.tags == tags
            };
            let hash = hash(tags.vmid, base, bits);
            if retention == Retention::Evict {
                self.tables.evict(hash, is);
            }
            self.tables.find(hash, is).map(|line| line.structure)
        })
    }

    /// The table is in memory `at` this address, if that is known.
    pub(in crate::arch::smmuv3::device) fn keep_table(
        &mut self,
        stage: Stage,
        tags: &Tags,
        address: u64,
        structure: Structure,
        at: Option<PhysAddr>,
    ) {
        let tags = of_stage(stage, tags);
        let base = block(address, structure.block_bits);
        let line = TableLine { stage, tags, base, structure, at };
        let is = |old: &TableLine| {
            old.structure.level == structure.level
                && old.structure.block_bits == structure.block_bits
                && old.base == base
                && old.stage == stage
                && old.tags == tags
        };
        self.tables.insert(hash(tags.vmid, base, structure.block_bits), line, is);
    }

    /// Where the tables are that are kept.
    pub(in crate::arch::smmuv3::device) fn physical_tables(&self) -> impl Iterator<Item = PhysAddr> {
        self.tables.iter().filter_map(|line| line.at)
    }

    /// CMD_TLBI_*. `hypervisor` is the stream world of hypervisors by CR2.E2H.
    pub(super) fn invalidate(&mut self, command: Command, hypervisor: StreamWorld) {
        // Without E2H there are no ASIDs (4.4.2.8).
        let matches = |tags: &Tags, asid| hypervisor == StreamWorld::NsEl2 || tags.asid == Some(asid);
        let el1 = |tags: &Tags| tags.world == StreamWorld::NsEl1;
        match command {
            Command::TlbNhAll { vmid } => {
                self.addresses.remove(|line| line.is_of(vmid));
                self.tables.remove(|line| line.is_of(Stage::One, vmid));
            }
            Command::TlbNhAsid { vmid, asid } => {
                self.addresses.remove(|line| line.is_of(vmid) && line.has(asid));
                self.tables.remove(|line| line.is_of(Stage::One, vmid) && line.tags.asid == Some(asid));
            }
            Command::TlbNhVa { vmid, asid, range, leaf } => {
                self.addresses.remove(|line| {
                    let named = line.has(asid) || line.first.scope == Scope::Global;
                    line.is_of(vmid) && named && line.is_at(range)
                });
                if leaf == Levels::AllLevels {
                    self.tables.remove(|line| {
                        line.is_of(Stage::One, vmid) && line.tags.asid == Some(asid) && line.is_at(range)
                    });
                }
            }
            Command::TlbNhVaa { vmid, range, leaf } => {
                self.addresses.remove(|line| line.is_of(vmid) && line.is_at(range));
                if leaf == Levels::AllLevels {
                    self.tables.remove(|line| line.is_of(Stage::One, vmid) && line.is_at(range));
                }
            }
            Command::TlbS2Ipa { vmid, range, leaf } => {
                self.intermediates
                    .remove(|line| line.vmid == vmid && is_leaf_at(line.base, line.bits, &line.leaf, range));
                if leaf == Levels::AllLevels {
                    self.tables.remove(|line| line.is_of(Stage::Two, vmid) && line.is_at(range));
                }
            }
            Command::TlbS12Vmall { vmid } => {
                self.addresses.remove(|line| line.is_of(vmid));
                self.intermediates.remove(|line| line.vmid == vmid);
                self.tables.remove(|line| el1(&line.tags) && line.tags.vmid == vmid);
            }
            Command::TlbEl2All => {
                self.addresses.remove(|line| !el1(&line.tags));
                self.tables.remove(|line| !el1(&line.tags));
            }
            Command::TlbEl2Va { asid, range, leaf } => {
                self.addresses.remove(|line| {
                    let named = matches(&line.tags, asid) || line.first.scope == Scope::Global;
                    line.tags.world == hypervisor && named && line.is_at(range)
                });
                if leaf == Levels::AllLevels {
                    self.tables
                        .remove(|line| line.tags.world == hypervisor && matches(&line.tags, asid) && line.is_at(range));
                }
            }
            Command::TlbEl2Vaa { range, leaf } => {
                self.addresses.remove(|line| line.tags.world == hypervisor && line.is_at(range));
                if leaf == Levels::AllLevels {
                    self.tables.remove(|line| line.tags.world == hypervisor && line.is_at(range));
                }
            }
            Command::TlbEl2Asid { asid } => {
                let world = StreamWorld::NsEl2E2h;
                self.addresses.remove(|line| line.tags.world == world && line.has(asid));
                self.tables.remove(|line| line.tags.world == world && line.tags.asid == Some(asid));
            }
            Command::TlbNsnhAll => {
                self.addresses.remove(|line| el1(&line.tags));
                self.intermediates.remove(|_| true);
                self.tables.remove(|line| el1(&line.tags));
            }
            _ => {}
        }
    }

    pub(super) fn clear(&mut self) {
        self.addresses.remove(|_| true);
        self.intermediates.remove(|_| true);
        self.tables.remove(|_| true);
    }
}

/// Whether a translation is one that an invalidation by address names. What is kept of a block in pieces goes
/// as a whole, as with VAE1 (4.4.2.4): the descriptor is what maps the address.
fn is_leaf_at(base: u64, bits: u8, leaf: &Leaf, range: TlbRange) -> bool {
    let level = match range.ttl {
        0 => true,
        ttl => i16::from(leaf.level) == i16::from(ttl),
    };
    let bits = bits.max(leaf.bits);
    level && is_at(block(base, bits), bits, Some(leaf.granule), range)
}

/// Whether a block is one that an invalidation by address names: of the granule of TG, and with a byte of
/// the range. What begins at an address that is not aligned to its level may name nothing (4.4.1.1).
fn is_at(base: u64, bits: u8, granule: Option<Granule>, range: TlbRange) -> bool {
    match range.bytes() {
        None => block(range.address, bits) == base,
        Some(bytes) => {
            let last = range.address.saturating_add(bytes.saturating_sub(1));
            let end = base | u64::MAX.checked_shr(64_u32.saturating_sub(u32::from(bits))).unwrap_or(0);
            granule == range.granule && is_aligned(range) && range.address <= end && base <= last
        }
    }
}

/// What tables are tagged with: those of stage 2 with the VMID only.
fn of_stage(stage: Stage, tags: &Tags) -> Tags {
    match stage {
        Stage::One => *tags,
        Stage::Two => Tags { world: StreamWorld::NsEl1, vmid: tags.vmid, asid: None, private: false },
    }
}

/// log2 of the bytes that go through a table of this level.
fn table_bits(level: i8, granule: Granule) -> u8 {
    let index = granule.log2().wrapping_sub(3);
    let below = 4_i8.saturating_sub(level).unsigned_abs();
    granule.log2().wrapping_add(index.wrapping_mul(below)).min(64)
}

/// The granule of a table.
fn granule(structure: &Structure) -> Option<Granule> {
    Granule::ALL.into_iter().find(|granule| table_bits(structure.level, *granule) == structure.block_bits)
}

/// The first byte of the block of `1 << bits` bytes around an address.
fn block(address: u64, bits: u8) -> u64 {
    address & u64::MAX.checked_shl(u32::from(bits)).unwrap_or(0)
}

fn hash(vmid: Vmid, base: u64, bits: u8) -> u64 {
    (base >> 12) ^ u64::from(vmid.0).wrapping_mul(0xff51_afd7_ed55_8ccd) ^ u64::from(bits) << 56
}
