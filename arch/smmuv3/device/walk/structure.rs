//! The hook for what a unit may keep within a walk (SMMU 16.2; Arm ARM D8.16: intermediate caching).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::{Leaf, Permissions, Stage};
use crate::arch::smmuv3::layout::{L1Cd, L1Std, StreamId};

/// A table where a walk may go on instead of at its root.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{Permissions, Structure};
/// let structure = Structure { level: 3, table: 0x5000, block_bits: 21, rights: Permissions::all() };
/// assert!(structure.rights.contains(Permissions::PRIVILEGED_EXECUTE));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Structure {
    /// Level of its descriptors, from 0 to 3.
    pub level: i8,
    /// Where it is: in stage 1 an intermediate address if there is a stage 2.
    pub table: u64,
    /// log2 of the bytes of the naturally aligned block of addresses that go through it.
    pub block_bits: u8,
    /// What the descriptors above it leave permitted; in stage 2 everything.
    pub rights: Permissions,
}

/// What a unit has kept of earlier walks for the same stream, VMID and ASID. All of it may be forgotten at
/// any time; what was invalidated must be. An empty implementation keeps nothing.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{Permissions, Stage, Structure, StructureCache};
///
/// /// Remembers one table.
/// struct One(Option<(Stage, u64, Structure)>);
/// impl StructureCache for One {
///     fn table(&mut self, stage: Stage, address: u64) -> Option<Structure> {
///         let (of, block, structure) = self.0?;
///         (of == stage && block == address >> structure.block_bits).then_some(structure)
///     }
///     fn keep_table(&mut self, stage: Stage, address: u64, structure: Structure) {
///         self.0 = Some((stage, address >> structure.block_bits, structure));
///     }
/// }
///
/// let mut cache = One(None);
/// let structure = Structure { level: 3, table: 0x5000, block_bits: 21, rights: Permissions::all() };
/// cache.keep_table(Stage::Two, 0x20_1000, structure);
/// assert_eq!(cache.table(Stage::Two, 0x3f_ffff), Some(structure));
/// assert_eq!(cache.table(Stage::Two, 0x40_0000), None);
/// ```
pub trait StructureCache {
    /// A table for `address`: that of the request in stage 1, an intermediate one in stage 2. The lowest saves
    /// most, but any that was kept will do.
    fn table(&mut self, stage: Stage, address: u64) -> Option<Structure> {
        let _ = (stage, address);
        None
    }

    /// The walk for `address` found this table.
    fn keep_table(&mut self, stage: Stage, address: u64, structure: Structure) {
        let _ = (stage, address, structure);
    }

    /// What stage 2 makes of the page of `ipa`. Asked also for tables and CDs (CLASS TT and CD).
    fn page(&mut self, ipa: u64) -> Option<Leaf> {
        let _ = ipa;
        None
    }

    /// Stage 2 made this of `ipa`: the leaf has its access flag, whether or not it permits this access. It
    /// is not told of one that must [not be kept](super::Retained::Not).
    fn keep_page(&mut self, ipa: u64, leaf: Leaf) {
        let _ = (ipa, leaf);
    }

    /// The level-1 descriptor of the stream table for this StreamID, in whatever state it was read.
    fn stream_descriptor(&mut self, stream: StreamId) -> Option<L1Std> {
        let _ = stream;
        None
    }

    /// It was read so.
    fn keep_stream_descriptor(&mut self, stream: StreamId, descriptor: L1Std) {
        let _ = (stream, descriptor);
    }

    /// The level-1 context descriptor for this index, in whatever state it was read.
    fn context_descriptor(&mut self, index: u32) -> Option<L1Cd> {
        let _ = index;
        None
    }

    /// It was read so.
    fn keep_context_descriptor(&mut self, index: u32, descriptor: L1Cd) {
        let _ = (index, descriptor);
    }
}

/// No cache: each walk begins at the root.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{NoStructureCache, Stage, StructureCache};
/// assert_eq!(NoStructureCache.table(Stage::One, 0), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoStructureCache;

impl StructureCache for NoStructureCache {}
