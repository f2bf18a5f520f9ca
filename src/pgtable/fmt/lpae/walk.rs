//! What whoever points hardware to a table must say of it.

use super::{Lpae, LpaeStage};
use crate::pgtable::{Format, PageTable, WalkerCoherency};
use crate::platform::Platform;

/// How hardware is to walk a table, in the encodings that all of these have in common: SMMUv3's context
/// descriptor (IHI 0070, 5.4: `CD.T0SZ`, `TG0`, `IR0`, `OR0`, `SH0`), its stream table entry (5.2:
/// `STE.S2T0SZ`, `S2SL0`, `S2TG`, `S2IR0`, `S2OR0`, `S2SH0`), and `TCR_EL1` and `VTCR_EL2` (DDI 0487,
/// D8.2). The root itself is [`PageTable::root`].
///
/// ```
/// use iommu::pgtable::{Lpae4K, LpaeStage, PageTable};
/// use iommu::platform::{Arena, Frame};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 64].into_boxed_slice()))?;
/// let format = Lpae4K::new(LpaeStage::Two);
/// let table = PageTable::new(arena, format, format.config(40, 48))?;
/// let walk = table.lpae_walk();
/// assert_eq!((walk.t0sz, walk.granule, walk.start_level, walk.sl0), (24, 0, 1, 1));
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LpaeWalk {
    /// T0SZ, S2T0SZ: 64 less the width of an input address.
    pub t0sz: u8,
    /// TG0, S2TG: 0 for 4 KiB, 1 for 64 KiB, 2 for 16 KiB.
    pub granule: u8,
    /// Arm's level at which a walk starts, 0 to 2. At stage 1 it follows from T0SZ.
    pub start_level: u8,
    /// SL0, S2SL0: the start level as stage 2 says it.
    pub sl0: u8,
    /// IR0 and OR0: inner and outer cacheability of the walk. 1 is write-back, allocating, for walkers
    /// that snoop; 0 non-cacheable.
    pub cacheability: u8,
    /// SH0: 3 is inner shareable, for walkers that snoop; 2 outer shareable.
    pub shareability: u8,
}

impl<const G: u8, P: Platform> PageTable<Lpae<G>, P> {
    /// What the context that points to this table must say of it.
    pub fn lpae_walk(&self) -> LpaeWalk {
        let levels = self.levels();
        let (cacheability, shareability) = match self.walker() {
            WalkerCoherency::Snoops => (1, 3),
            WalkerCoherency::NeedsClean => (0, 2),
        };
        LpaeWalk {
            t0sz: 64u8.saturating_sub(self.input_bits()),
            granule: Lpae::<G>::TG,
            start_level: 4u8.saturating_sub(levels),
            // With 4 KiB level 2 is 0; with the others level 3 is. Each level higher up is one more.
            sl0: levels.saturating_sub(if G == 12 { 2 } else { 1 }),
            cacheability,
            shareability,
        }
    }

    /// The stage that the table is for.
    pub fn lpae_stage(&self) -> LpaeStage {
        self.format().stage
    }
}

impl<const G: u8> Lpae<G> {
    /// The granule as TG0 and S2TG say it.
    pub const TG: u8 = match Self::GRANULE_LOG2 {
        12 => 0,
        16 => 1,
        _ => 2,
    };
}
