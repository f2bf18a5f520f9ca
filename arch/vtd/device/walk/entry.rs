//! Reading, judging and updating one entry of a page table.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::blocked;
use crate::addr::PhysAddr;
use crate::arch::vtd::device::{Blocked, DeviceConfig, Host, Recorded, Snoop};

/// Bits 63:12.
pub(super) const ADDRESS: u64 = !0xfff;
/// Bits 51:12 of a paging entry; 63:52 are no address.
pub(super) const PAGING_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// PS: a leaf above level 0.
pub(super) const PAGE_SIZE: u64 = 1 << 7;

/// How often an accessed or dirty bit is tried to be set while the entry changes under the walk,
/// before that counts as an error. Each try reads the entry again.
pub(super) const UPDATE_TRIES: u32 = 4;

/// The lowest `bits` bits.
pub(super) const fn low_bits(bits: u32) -> u64 {
    match 1_u64.checked_shl(bits) {
        Some(bit) => bit.wrapping_sub(1),
        None => u64::MAX,
    }
}

/// log2 of the bytes that an entry of this level controls.
pub(super) const fn page_bits(level: u8) -> u8 {
    match level {
        0 => 12,
        1 => 21,
        2 => 30,
        3 => 39,
        _ => 48,
    }
}

/// Bits 63:HAW, which are reserved wherever a table is named.
pub(super) const fn beyond_host(config: &DeviceConfig) -> u64 {
    !low_bits(config.host_address_bits as u32)
}

/// Where the entry for `address` is in a table of this level.
pub(super) const fn slot(table: PhysAddr, level: u8, address: u64) -> PhysAddr {
    let index = address.wrapping_shr(page_bits(level) as u32) & 0x1ff;
    PhysAddr::new(table.as_u64() | index.wrapping_shl(3))
}

/// Which fault it is when an entry cannot be read or updated.
pub(super) struct EntryFaults {
    pub recorded: Recorded,
    /// It cannot be read.
    pub unreadable: u8,
    /// A bit is to be set, and the second stage forbids it.
    pub forbidden: u8,
    /// A bit is to be set, and accesses do not snoop.
    pub unsnooped: u8,
    /// Setting the bit failed.
    pub failed: u8,
}

/// What accesses to a table are like.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    pub snoop: Snoop,
    /// Whether the second stage permits updates.
    pub updatable: bool,
}

/// Reads the entry at `slot`, lets `judge` say what it means and which bits it must have set, and sets
/// them if they are not, with one atomic operation on the entry that was judged. If that changed
/// meanwhile, all is done again.
///
/// Returns the entry as it is now in memory, and what the judge made of it.
pub(super) fn used_entry<H: Host + ?Sized, T>(
    host: &H,
    slot: PhysAddr,
    manner: Manner,
    faults: &EntryFaults,
    mut judge: impl FnMut(u64) -> Result<(u64, T), Blocked>,
) -> Result<(u64, T), Blocked> {
    let fault = |reason| blocked(reason, faults.recorded);
    for _ in 0..UPDATE_TRIES {
        let entry = host.read(slot, manner.snoop).map_err(|_| fault(faults.unreadable))?;
        let (flags, meaning) = judge(entry)?;
        let new = entry | flags;
        if new == entry {
            return Ok((entry, meaning));
        }
        if !manner.updatable {
            return Err(fault(faults.forbidden));
        }
        if manner.snoop == Snoop::No {
            return Err(fault(faults.unsnooped));
        }
        if host.compare_exchange(slot, entry, new).map_err(|_| fault(faults.failed))? {
            return Ok((new, meaning));
        }
    }
    Err(fault(faults.failed))
}
