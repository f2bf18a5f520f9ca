//! The hook for paging-structure caches (VT-d 6.2.5).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use bitflags::bitflags;

use crate::addr::PhysAddr;
use crate::arch::vtd::device::Blocked;

bitflags! {
    /// What all entries down to a table permit (VT-d 6.2.5: the logical AND of their flags).
    ///
    /// ```
    /// use iommu::arch::vtd::device::walk::Rights;
    /// assert!(Rights::all().contains(Rights::READ | Rights::USER));
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Rights: u8 {
        /// R of the second stage; always set in the first.
        const READ = 1 << 0;
        /// W, or R/W of the first stage.
        const WRITE = 1 << 1;
        /// U/S of the first stage; always set in the second.
        const USER = 1 << 2;
        /// Nested: the second stage permits that accessed and dirty bits of this table are set. Always
        /// set where nothing is nested.
        const UPDATE = 1 << 3;
    }
}

/// Which tables an address is looked up in.
///
/// ```
/// use iommu::arch::vtd::device::walk::Stage;
/// assert_ne!(Stage::First, Stage::Second);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// First-stage tables, nested or not: the address is the one of the request.
    First,
    /// Second-stage tables: the address is the one of the request, or guest-physical when nested.
    Second,
}

/// Where a walk may go on instead of at the top.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::device::walk::{Rights, Structure};
/// let structure = Structure { level: 0, table: PhysAddr::new(0x5000), rights: Rights::all() };
/// assert_eq!(structure.block_bits(), 21); // what the specification calls a PDE-cache entry
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Structure {
    /// Level of the table: 0 for the one whose entries map 4 KiB, up to 3.
    pub level: u8,
    /// The table, host-physical also when nested.
    pub table: PhysAddr,
    /// What the entries above it permit.
    pub rights: Rights,
}

impl Structure {
    /// log2 of the bytes of the naturally aligned block of addresses that go through the table.
    pub const fn block_bits(&self) -> u8 {
        super::entry::page_bits(self.level.saturating_add(1))
    }
}

/// A paging-structure cache of the domain (and PASID, in the first stage) that is walked.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::device::walk::{Rights, Stage, Structure, StructureCache};
///
/// /// Remembers one table.
/// struct One(Option<(Stage, u64, Structure)>);
/// impl StructureCache for One {
///     fn lookup(&mut self, stage: Stage, address: u64) -> Option<Structure> {
///         let (of, block, structure) = self.0?;
///         (of == stage && block == address >> structure.block_bits()).then_some(structure)
///     }
///     fn insert(&mut self, stage: Stage, address: u64, structure: Structure) {
///         self.0 = Some((stage, address >> structure.block_bits(), structure));
///     }
/// }
///
/// let mut cache = One(None);
/// let structure = Structure { level: 0, table: PhysAddr::new(0x5000), rights: Rights::all() };
/// cache.insert(Stage::Second, 0x20_1000, structure);
/// assert_eq!(cache.lookup(Stage::Second, 0x3f_ffff), Some(structure));
/// assert_eq!(cache.lookup(Stage::Second, 0x40_0000), None);
/// ```
pub trait StructureCache {
    /// A table for `address`. The lowest saves most, but any that was inserted, and was not
    /// invalidated, will do.
    fn lookup(&mut self, stage: Stage, address: u64) -> Option<Structure>;

    /// The walk for `address` found this table. Only what may be cached is inserted (6.2.5.1 to
    /// 6.2.5.4): every entry above it is valid, and its accessed bits are set.
    fn insert(&mut self, stage: Stage, address: u64, structure: Structure);

    /// The walk for `address` ended at a second-stage entry that controls the naturally aligned block
    /// of `1 << block_bits` bytes and translates none of them, for any request. A unit in caching mode
    /// may keep that (6.2.5.5). In legacy mode the reason depends on the request: LGN.2 or LGN.3.
    fn missing(&mut self, address: u64, block_bits: u8, blocked: Blocked) {
        let _ = (address, block_bits, blocked);
    }
}

/// No cache: each walk begins at the top.
///
/// ```
/// use iommu::arch::vtd::device::walk::{NoStructureCache, Stage, StructureCache};
/// assert_eq!(NoStructureCache.lookup(Stage::First, 0), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoStructureCache;

impl StructureCache for NoStructureCache {
    fn lookup(&mut self, _: Stage, _: u64) -> Option<Structure> {
        None
    }

    fn insert(&mut self, _: Stage, _: u64, _: Structure) {}
}
