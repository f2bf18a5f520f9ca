//! Which commands drop a set of ranges (SMMU 4.4, 4.5.1).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use heapless::VecView;

use crate::addr::IovaRange;
use crate::arch::smmuv3::layout::commands::{Command, Leaf, TlbRange};
use crate::arch::smmuv3::layout::{Asid, Granule, StreamId, Vmid};
use crate::iotlb::{Depth, GATHER_RANGES, MAX_DEVICE_TLBS};
use crate::pgtable::PageSizes;

/// TLB commands by address for one invalidation. Where more would be needed, all that is cached of the
/// table goes: a unit executes commands one by one, and all others wait behind them.
pub(super) const MAX_TLB_COMMANDS: usize = 64;

/// Commands of an invalidation that names device TLBs: those for the TLB, a CMD_SYNC, those for devices.
pub(super) const MAX_COMMANDS: usize = MAX_TLB_COMMANDS + 1 + MAX_DEVICE_TLBS * GATHER_RANGES;

/// NUM and SCALE of one command at the most: `(NUM + 1) << SCALE` granules (4.4.1.1). A sixth bit of SCALE came
/// later than the commands.
const MAX_NUM: u64 = 31;
const MAX_SCALE: u32 = 31;

/// Under which number a unit caches what it reads from a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tagged {
    /// A table of stage 1, without stage 2: the VMID is 0.
    Stage1(Asid),
    /// A table of stage 2. Without a stage 1 above it nothing is cached but by IPA.
    Stage2(Vmid),
}

/// Whether a unit has commands for ranges (IDR3.RIL).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RangeCommands {
    /// It has.
    Present,
    /// One command for each leaf entry.
    Absent,
}

/// A table as far as its invalidation depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CachedTable {
    pub(super) tagged: Tagged,
    pub(super) granule: Granule,
    pub(super) range_commands: RangeCommands,
}

/// Adds the commands that drop `ranges` of what is cached of a table to none; everything of it when there
/// is no range, or when that is cheaper.
///
/// `leaves` are the sizes of the leaf entries that were there; none stands for any.
pub(super) fn tlb_commands(
    table: CachedTable,
    ranges: &[IovaRange],
    depth: Depth,
    leaves: PageSizes,
    commands: &mut VecView<Command>,
) {
    let scope = Scope::new(table.granule, depth, leaves);
    let add = |range: &IovaRange, commands: &mut VecView<Command>| match table.range_commands {
        RangeCommands::Present => table.add_range(scope, range, commands),
        RangeCommands::Absent => table.add_leaves(scope, range, commands),
    };
    if ranges.is_empty() || ranges.iter().try_for_each(|range| add(range, commands)).is_none() {
        commands.clear();
        // One always fits.
        let _ = commands.push(table.tagged.everything());
    }
}

/// Adds a CMD_ATC_INV for each range, or for everything when there is none: behind a CMD_SYNC for the TLB
/// commands, for devices fill their TLBs from what the unit has cached (3.9.2, 4.5.1).
///
/// Where a range is no naturally aligned span, the one around it goes.
pub(super) fn device_commands(
    stream: StreamId,
    substream: Option<u32>,
    ranges: &[IovaRange],
    commands: &mut VecView<Command>,
) {
    let everything = ranges.is_empty().then_some((0, 64));
    for (address, size_log2) in ranges.iter().map(span).chain(everything) {
        // There is room for so many.
        let _ = commands.push(Command::AtcInvalidate { stream, substream, address, size_log2 });
    }
}

/// The naturally aligned span around a range, of at least 4 KiB.
fn span(range: &IovaRange) -> (u64, u8) {
    let (start, last) = (range.start().as_u64(), range.last().as_u64());
    let log2 = 64u32.wrapping_sub((start ^ last).leading_zeros()).max(12);
    (start & !low(log2), log2 as u8)
}

/// What the commands of one invalidation have in common.
#[derive(Clone, Copy)]
struct Scope {
    leaf: Leaf,
    /// The level of all leaves, as TTL says it; 0 when there are several.
    ttl: u8,
    /// Binary logarithm of what the smallest leaf entry maps by itself, contiguous or not: such a run may be
    /// cached entry by entry.
    step: u32,
}

impl Scope {
    fn new(granule: Granule, depth: Depth, leaves: PageSizes) -> Self {
        let block = |level: u32| u32::from(granule.log2()).wrapping_add(level.wrapping_mul(index_bits(granule)));
        // Levels are counted from below here.
        let level =
            |size: u8| u32::from(size.saturating_sub(granule.log2())).checked_div(index_bits(granule)).unwrap_or(0);
        let (smallest, largest) = match (leaves.smallest(), leaves.largest()) {
            (Some(smallest), Some(largest)) => (level(smallest.log2()), level(largest.log2())),
            _ => (0, u32::MAX),
        };
        match depth {
            Depth::Leaves => {
                let ttl = if smallest == largest { ttl(granule, smallest) } else { 0 };
                Self { leaf: Leaf::Only, ttl, step: block(smallest) }
            }
            // A table may have held nothing; those of the last level are the smallest.
            Depth::Tables => Self { leaf: Leaf::AllLevels, ttl: 0, step: block(smallest.min(1)) },
        }
    }
}

/// TTL of a level counted from below: none for level 0, nor for level 1 of 16 KiB, which takes
/// IDR5.DS (4.4.1.1).
fn ttl(granule: Granule, level: u32) -> u8 {
    match (granule, level) {
        (_, 0) => 3,
        (_, 1) => 2,
        (Granule::Size4K | Granule::Size64K, 2) => 1,
        _ => 0,
    }
}

/// Bits of an address that select an entry of a table.
fn index_bits(granule: Granule) -> u32 {
    u32::from(granule.log2()).wrapping_sub(3)
}

/// A number with the low `bits` bits set.
fn low(bits: u32) -> u64 {
    1u64.checked_shl(bits).unwrap_or(0).wrapping_sub(1)
}

impl CachedTable {
    fn at(self, range: TlbRange, leaf: Leaf) -> Command {
        match self.tagged {
            Tagged::Stage1(asid) => Command::TlbNhVa { vmid: Vmid(0), asid, range, leaf },
            Tagged::Stage2(vmid) => Command::TlbS2Ipa { vmid, range, leaf },
        }
    }

    /// One command for each smallest entry; `None` when they are too many.
    fn add_leaves(self, scope: Scope, range: &IovaRange, commands: &mut VecView<Command>) -> Option<()> {
        let (first, last) = (range.start().as_u64() >> scope.step, range.last().as_u64() >> scope.step);
        if last.wrapping_sub(first) >= MAX_TLB_COMMANDS as u64 {
            return None;
        }
        for entry in first..=last {
            self.add(TlbRange::page(entry << scope.step), scope.leaf, commands)?;
        }
        Some(())
    }

    /// Commands whose ranges follow each other; `None` when they are too many.
    fn add_range(self, scope: Scope, range: &IovaRange, commands: &mut VecView<Command>) -> Option<()> {
        let granule = u32::from(self.granule.log2());
        // With a level, addresses are those of its blocks; without, of granules (4.4.1.1).
        let aligned = if scope.ttl == 0 { granule } else { scope.step };
        let mut address = range.start().as_u64() & !low(aligned);
        let last = range.last().as_u64() | low(aligned);
        let mut left = (last.wrapping_sub(address) >> granule).saturating_add(1);
        while left != 0 {
            let scale = left.trailing_zeros().min(MAX_SCALE);
            let units = left >> scale;
            let units = if scale == MAX_SCALE { units.min(MAX_NUM.saturating_add(1)) } else { units & MAX_NUM };
            let granules = units << scale;
            let num = units.wrapping_sub(1) as u8;
            let range = if granules == 1 && scope.ttl == 0 {
                TlbRange::page(address) // With a granule it would be reserved.
            } else {
                TlbRange { address, granule: Some(self.granule), ttl: scope.ttl, num, scale: scale as u8 }
            };
            self.add(range, scope.leaf, commands)?;
            left = left.wrapping_sub(granules);
            // Past the last address only when nothing is left.
            address = address.wrapping_add(granules << granule);
        }
        Some(())
    }

    fn add(self, range: TlbRange, leaf: Leaf, commands: &mut VecView<Command>) -> Option<()> {
        if commands.len() >= MAX_TLB_COMMANDS {
            return None;
        }
        commands.push(self.at(range, leaf)).ok()
    }
}

#[cfg(test)]
#[path = "invalidation_tests.rs"]
mod tests;
