//! A table of STEs or CDs, in one level or two (SMMU 3.3.1, 3.3.2).

use super::update::WORDS;
use crate::addr::PhysAddr;
use crate::error::Result;
use crate::hwmem::{ENTRIES_PER_FRAME_LOG2, FrameTable, Leaves, Table, TableSites, TwoLevel, Visibility};
use crate::platform::Platform;
use crate::sync::Site;

/// Binary logarithm of the quadwords of an entry.
const WORDS_LOG2: u8 = WORDS.ilog2() as u8;
/// Binary logarithm of the entries in a frame; loom's frames hold less than one.
pub(super) const ENTRIES_LOG2: u8 = ENTRIES_PER_FRAME_LOG2.saturating_sub(WORDS_LOG2);
/// Binary logarithm of the descriptors in a frame.
pub(super) const DESCRIPTORS_LOG2: u8 = ENTRIES_PER_FRAME_LOG2;

/// Entries of 64 bytes. Dropping it frees all tables: hardware must have stopped walking them.
#[derive(Debug)]
pub(super) enum Entries<P: Platform> {
    /// One table of all entries.
    Linear { visibility: Visibility<P>, table: FrameTable<P> },
    /// A table of descriptors; each points to `1 << split` entries.
    TwoLevel { tables: TwoLevel<P>, split: u8 },
}

impl<P: Platform> Entries<P> {
    /// `1 << bits` entries in one table, which `fill` may make something of. Task only.
    pub(super) fn linear(visibility: Visibility<P>, bits: u8, clean: Site, fill: &dyn Fn(Table<'_>)) -> Result<Self> {
        let order = order(bits.saturating_add(WORDS_LOG2));
        let table = FrameTable::new(visibility.platform.clone(), order, visibility.last)?;
        fill(table.view());
        visibility.clean(clean, table.view(), 0, usize::MAX);
        Ok(Self::Linear { visibility, table })
    }

    /// `1 << bits` entries in tables of `1 << split`, to which descriptors point that are an address and
    /// the bits `link`. There is none yet. Task only.
    pub(super) fn two_level(
        visibility: Visibility<P>,
        bits: u8,
        split: u8,
        link: u64,
        sites: &'static TableSites,
    ) -> Result<Self> {
        let leaves = Leaves { order: order(split.saturating_add(WORDS_LOG2)), link, sites };
        let tables = TwoLevel::new(visibility, order(bits.saturating_sub(split)), leaves)?;
        Ok(Self::TwoLevel { tables, split })
    }

    /// Where the first table lies.
    pub(super) fn phys(&self) -> PhysAddr {
        match self {
            Self::Linear { table, .. } => table.phys(),
            Self::TwoLevel { tables, .. } => tables.phys(),
        }
    }

    /// How its tables become visible.
    pub(super) fn visibility(&self) -> &Visibility<P> {
        match self {
            Self::Linear { visibility, .. } => visibility,
            Self::TwoLevel { tables, .. } => tables.visibility(),
        }
    }

    /// The table with entry `index`, which is in range, and the lowest quadword of it there. `None` if
    /// there is no such table yet.
    pub(super) fn find(&self, index: u32) -> Option<(Table<'_>, usize)> {
        match self {
            Self::Linear { table, .. } => Some((table.view(), first_word(index))),
            Self::TwoLevel { tables, split } => {
                let (top, entry) = divide(index, *split);
                tables.find(top).map(|table| (table, first_word(entry)))
            }
        }
    }

    /// The same, a table being made if there is none, which `fill` may make something of; and whether
    /// there was none. Task only.
    pub(super) fn find_or_fill(&self, index: u32, fill: &dyn Fn(Table<'_>)) -> Result<((Table<'_>, usize), Made)> {
        match (self.find(index), self) {
            (Some(found), _) => Ok((found, Made::Before)),
            (None, Self::Linear { table, .. }) => Ok(((table.view(), first_word(index)), Made::Before)),
            (None, Self::TwoLevel { tables, split }) => {
                let (top, entry) = divide(index, *split);
                tables.find_or_fill(top, fill).map(|table| ((table, first_word(entry)), Made::Now))
            }
        }
    }
}

/// When the table of an entry was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Made {
    /// It was there.
    Before,
    /// By this call, or another processor meanwhile: the unit may have cached that there is none.
    Now,
}

/// Binary logarithm of the frames with `1 << log2` quadwords.
fn order(log2: u8) -> u8 {
    log2.saturating_sub(ENTRIES_PER_FRAME_LOG2)
}

fn divide(index: u32, split: u8) -> (usize, u32) {
    let top = index.checked_shr(u32::from(split)).unwrap_or(0);
    (top as usize, index & !(u32::MAX << (split & 31)))
}

/// The lowest quadword of an entry of a table.
fn first_word(entry: u32) -> usize {
    (entry as usize) << WORDS_LOG2
}

/// The lowest quadwords of all entries of a table.
pub(super) fn first_words(table: Table<'_>) -> impl Iterator<Item = usize> {
    (0..table.len()).step_by(WORDS)
}
