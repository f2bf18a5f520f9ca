//! Second-stage tables (VT-d 3.7 and 9.8).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::entry::{
    EntryFaults, Manner, PAGE_SIZE, PAGING_ADDRESS, beyond_host, low_bits, page_bits, slot, used_entry,
};
use super::{Dirty, Leaf, Lookup, Mode, Rights, Stage, Structure, StructureCache, blocked, check_output};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::{Blocked, DeviceConfig, Host, Recorded, Snoop};
use crate::arch::vtd::layout::{AddressWidth, Cap, Ecap};
use crate::prot::Prot;

const SNP: u64 = 1 << 11;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// IW, which is reserved where the bits of the processor count; IR is then ignored (9.8).
const IO_WRITE: u64 = 1 << 62;

/// Which bits of an entry say what is permitted (VT-d 11.4.5, SSIRWE).
///
/// ```
/// use iommu::arch::vtd::device::walk::PermissionBits;
/// assert_ne!(PermissionBits::Shared, PermissionBits::Io);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PermissionBits {
    /// R and W, bits 0 and 1, shared with a processor that walks the table.
    Shared,
    /// IR and IW, bits 61 and 62, for devices alone.
    Io,
}

impl PermissionBits {
    fn of(self, entry: u64) -> Rights {
        let shift = match self {
            Self::Shared => 0,
            Self::Io => 61,
        };
        // READ and WRITE have the numbers of R and W.
        Rights::from_bits_truncate(entry.wrapping_shr(shift) as u8 & 3)
    }
}

/// A second-stage table, and how it is walked.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::device::walk::{Mode, PermissionBits, SecondStageRoot};
/// use iommu::arch::vtd::device::{DeviceConfig, Recorded, Snoop};
/// use iommu::arch::vtd::layout::AddressWidth;
/// let root = SecondStageRoot {
///     mode: Mode::Legacy,
///     table: PhysAddr::new(0x7000),
///     width: AddressWidth::Bits39,
///     snoop: Snoop::Yes,
///     permissions: PermissionBits::Shared,
///     keeps_dirty: false,
///     recorded: Recorded::Yes,
/// };
/// assert_eq!(root.last(&DeviceConfig::default()), (1 << 39) - 1);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondStageRoot {
    /// Whose codes its faults have.
    pub mode: Mode,
    /// The top table.
    pub table: PhysAddr,
    /// How wide its addresses are, and how many levels there are.
    pub width: AddressWidth,
    /// Whether the walker snoops it.
    pub snoop: Snoop,
    /// Where permissions are.
    pub permissions: PermissionBits,
    /// Whether accessed and dirty bits are set (SSADE).
    pub keeps_dirty: bool,
    /// How its faults, all of which are qualified, are recorded.
    pub recorded: Recorded,
}

impl SecondStageRoot {
    /// The last address that it translates: by its width, and by MGAW.
    pub const fn last(&self, config: &DeviceConfig) -> u64 {
        let (width, limit) = (self.width.bits(), config.cap.guest_address_bits());
        low_bits(if width < limit { width } else { limit })
    }

    const fn faults(&self) -> Faults {
        match self.mode {
            Mode::Legacy => Faults { overflow: 0x04, top: 0x03, unreadable: 0x07, reserved: 0x0c },
            Mode::Scalable => Faults { overflow: 0x84, top: 0x7b, unreadable: 0x78, reserved: 0x7a },
        }
    }
}

/// What the same condition is called in each mode (VT-d 7.1.3).
struct Faults {
    /// LGN.1.1, SGN.5.
    overflow: u8,
    /// LCT.4.3, SSS.4.
    top: u8,
    /// LSS.1, SSS.1.
    unreadable: u8,
    /// LSS.2, SSS.3.
    reserved: u8,
}

/// What an entry says.
enum Meaning {
    Table(PhysAddr, Rights),
    Page(Leaf),
    /// Nothing that it controls is translated, whatever is asked for.
    Nothing(Blocked),
}

/// Walks the second stage.
///
/// Reads at most one entry for each level, as long as nobody changes them meanwhile.
///
/// # Errors
/// LCT.4.3, LSS and LGN, or SSS and SGN.5 to SGN.8 of Table 30 (7.1.3).
pub fn second_stage<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    config: &DeviceConfig,
    root: &SecondStageRoot,
    lookup: &Lookup,
    cache: &mut C,
) -> Result<Leaf, Blocked> {
    translate(host, config, root, lookup, Output::Request, cache)
}

/// What becomes of the address that a walk finds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// The request goes there, so that it must not be an interrupt (LGN.4, SGN.8).
    Request,
    /// It is a first-stage table, or something that the caller checks.
    Unchecked,
}

/// As [`second_stage`], for requests and for first-stage tables.
pub(super) fn translate<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    config: &DeviceConfig,
    root: &SecondStageRoot,
    lookup: &Lookup,
    output: Output,
    cache: &mut C,
) -> Result<Leaf, Blocked> {
    let address = lookup.address;
    let faults = root.faults();
    if address > root.last(config) {
        return Err(blocked(faults.overflow, root.recorded));
    }
    let levels = root.width.levels() as u8;
    let start = cache.lookup(Stage::Second, address).filter(|found| found.level.saturating_add(1) < levels);
    let top = Structure { level: levels.saturating_sub(1), table: root.table, rights: Rights::all() };
    let mut at = start.unwrap_or(top);
    loop {
        let is_top = at.level.saturating_add(1) == levels;
        let entry_faults = EntryFaults {
            recorded: root.recorded,
            unreadable: if is_top { faults.top } else { faults.unreadable },
            forbidden: 0x7d,
            unsnooped: 0x7c, // SSS.5
            failed: 0x7d,    // SSS.6
        };
        let place = slot(at.table, at.level, address);
        let manner = Manner { snoop: root.snoop, updatable: true };
        let judge = |entry| judge(config, root, at, entry, lookup, output);
        match used_entry(host, place, manner, &entry_faults, judge) {
            Ok((entry, Meaning::Page(leaf))) => {
                let unsettled = root.keeps_dirty && entry & DIRTY == 0;
                return Ok(Leaf { dirty: if unsettled { Dirty::WalkToWrite } else { Dirty::Settled }, ..leaf });
            }
            Ok((_, Meaning::Table(table, rights))) => {
                at = Structure { level: at.level.saturating_sub(1), table, rights };
                if rights.intersects(Rights::READ | Rights::WRITE) {
                    cache.insert(Stage::Second, address, at);
                }
            }
            Ok((_, Meaning::Nothing(fault))) => {
                cache.missing(address, page_bits(at.level), fault);
                return Err(fault);
            }
            Err(fault) => return Err(fault),
        }
    }
}

/// What the entry of the table `at` says, and which of its bits must be set. A level-0 entry is never a
/// table.
fn judge(
    config: &DeviceConfig,
    root: &SecondStageRoot,
    at: Structure,
    entry: u64,
    lookup: &Lookup,
    output: Output,
) -> Result<(u64, Meaning), Blocked> {
    let goal = lookup.goal;
    let nothing = |reason| Ok((0, Meaning::Nothing(blocked(reason, root.recorded))));
    // LGN.2 and LGN.3 count what is not there as what is not permitted; SSS.2 does not.
    let absent = match root.mode {
        Mode::Legacy => goal.lacks_all().reason(root.mode),
        Mode::Scalable => 0x79,
    };
    let own = root.permissions.of(entry);
    if own.is_empty() {
        return nothing(absent);
    }
    let is_page = is_page(config, at.level, entry);
    if entry & reserved(config, root.permissions, at.level, is_page) != 0 {
        return nothing(root.faults().reserved);
    }
    let rights = at.rights & (own | Rights::USER | Rights::UPDATE);
    let accessed = if root.keeps_dirty { ACCESSED } else { 0 };
    if !is_page {
        return Ok((accessed, Meaning::Table(PhysAddr::new(entry & PAGING_ADDRESS), rights)));
    }
    let prot = Prot::from_bits_truncate(u32::from((rights & (Rights::READ | Rights::WRITE)).bits()));
    if prot.is_empty() {
        return nothing(absent);
    }
    if let Some(lack) = goal.lacks(config, prot) {
        return Err(blocked(lack.reason(root.mode), root.recorded));
    }
    let bits = page_bits(at.level);
    let leaf = Leaf {
        phys: PhysAddr::new(entry & PAGING_ADDRESS & !low_bits(u32::from(bits))),
        page_bits: bits,
        prot,
        enforces_snooping: entry & SNP != 0,
        dirty: Dirty::Settled,
    };
    if output == Output::Request {
        check_output(root.mode, root.recorded, &leaf, lookup.address, goal)?;
    }
    let dirty = if root.keeps_dirty && goal.writes() && prot.contains(Prot::WRITE) { DIRTY } else { 0 };
    Ok((accessed | dirty, Meaning::Page(leaf)))
}

/// Whether the entry maps a page. PS where the unit has no such pages is a reserved bit, not a page.
fn is_page(config: &DeviceConfig, level: u8, entry: u64) -> bool {
    let large = entry & PAGE_SIZE != 0;
    match level {
        0 => true,
        1 => large && config.cap.contains(Cap::LARGE_2M),
        2 => large && config.cap.contains(Cap::LARGE_1G),
        _ => false,
    }
}

/// The bits that must be zero (VT-d 3.7, Tables 41 to 47).
fn reserved(config: &DeviceConfig, permissions: PermissionBits, level: u8, is_page: bool) -> u64 {
    let beyond = PAGING_ADDRESS & beyond_host(config);
    let io = match permissions {
        PermissionBits::Shared => IO_WRITE,
        PermissionBits::Io => 0,
    };
    let kind = if is_page {
        let snoop = if config.ecap.contains(Ecap::SC) { 0 } else { SNP };
        snoop | PAGING_ADDRESS & low_bits(u32::from(page_bits(level)))
    } else {
        SNP | PAGE_SIZE
    };
    beyond | io | kind
}
