//! First-stage tables, alone and nested in the second stage (VT-d 3.6, 3.8 and 9.7).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::entry::{
    EntryFaults, Manner, PAGE_SIZE, PAGING_ADDRESS, beyond_host, low_bits, page_bits, slot, used_entry,
};
use super::second_stage::{Output, translate};
use super::{
    Dirty, Goal, Leaf, Lookup, Mode, Rights, SecondStageRoot, Stage, Structure, StructureCache, blocked, check_output,
};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::{Blocked, DeviceConfig, Host, Privilege, Recorded, RequestAccess, Snoop};
use crate::arch::vtd::layout::Cap;
use crate::arch::vtd::layout::scalable::FirstStageLevels;
use crate::prot::Prot;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const EXTENDED_ACCESSED: u64 = 1 << 10;
/// PAT of a large page, which is no part of its address.
const LARGE_PAT: u64 = 1 << 12;

/// A first-stage table, and how it is walked.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::vtd::device::walk::FirstStageRoot;
/// use iommu::arch::vtd::device::{Recorded, Snoop};
/// use iommu::arch::vtd::layout::scalable::FirstStageLevels;
/// let root = FirstStageRoot {
///     table: PhysAddr::new(0x7000),
///     levels: FirstStageLevels::Four,
///     snoop: Snoop::Yes,
///     protects_writes: false,
///     keeps_extended_accessed: false,
///     recorded: Recorded::Yes,
/// };
/// assert!(root.is_canonical(0xffff_8000_0000_0000) && !root.is_canonical(0x8000_0000_0000));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstStageRoot {
    /// The top table; a guest-physical address when nested.
    pub table: PhysAddr,
    /// How many levels there are.
    pub levels: FirstStageLevels,
    /// Whether the walker snoops it.
    pub snoop: Snoop,
    /// Whether supervisor requests obey R/W (WPE).
    pub protects_writes: bool,
    /// Whether extended accessed bits are set (EAFE).
    pub keeps_extended_accessed: bool,
    /// How its faults, all of which are qualified, are recorded.
    pub recorded: Recorded,
}

impl FirstStageRoot {
    /// Whether the unused upper bits of the address repeat its topmost (VT-d 3.6).
    pub const fn is_canonical(&self, address: u64) -> bool {
        let unused = match self.levels {
            FirstStageLevels::Four => 16,
            FirstStageLevels::Five => 7,
        };
        ((address << unused) as i64 >> unused) as u64 == address
    }

    const fn top(&self) -> u8 {
        match self.levels {
            FirstStageLevels::Four => 3,
            FirstStageLevels::Five => 4,
        }
    }
}

/// What an entry says.
enum Meaning {
    Table(u64, Rights),
    Page(Leaf),
}

/// Walks the first stage, and the second for its tables and its page if it is `nested`.
///
/// Reads at most one entry for each level, and nested at most one more for each level of the second
/// stage, for each table and for the page; as long as nobody changes them meanwhile.
///
/// # Errors
/// SFS, SGN.1, SGN.2, SGN.6 and SGN.8 of Table 30 (7.1.3); nested also SSS and SGN.7.
pub fn first_stage<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    config: &DeviceConfig,
    root: &FirstStageRoot,
    nested: Option<&SecondStageRoot>,
    lookup: &Lookup,
    cache: &mut C,
) -> Result<Leaf, Blocked> {
    let address = lookup.address;
    if !root.is_canonical(address) {
        return Err(blocked(0x80, root.recorded)); // SGN.1
    }
    let walk = Walk { host, config, root, nested, lookup };
    let start = cache.lookup(Stage::First, address).filter(|found| found.level < root.top());
    let mut at = match start {
        Some(found) => found,
        None => walk.table(root.top(), root.table.as_u64(), Rights::all(), 0x75, cache)?, // SFS.6
    };
    // An entry that is cached counts as encountered (SGN.2).
    walk.check_user(at.rights)?;
    loop {
        let is_top = at.level == root.top();
        let faults = EntryFaults {
            recorded: root.recorded,
            unreadable: if is_top { 0x73 } else { 0x70 }, // SFS.4, SFS.1
            forbidden: 0x77,                              // SFS.8
            unsnooped: 0x90,                              // SFS.9
            failed: 0x91,                                 // SFS.10
        };
        let manner = Manner { snoop: root.snoop, updatable: at.rights.contains(Rights::UPDATE) };
        let place = slot(at.table, at.level, address);
        let (entry, meaning) = used_entry(host, place, manner, &faults, |entry| walk.judge(at, entry, cache))?;
        match meaning {
            Meaning::Page(leaf) => {
                let own = if entry & DIRTY == 0 { Dirty::WalkToWrite } else { Dirty::Settled };
                return Ok(Leaf { dirty: leaf.dirty.and(own), ..leaf });
            }
            Meaning::Table(table, rights) => {
                at = walk.table(at.level.saturating_sub(1), table, rights, 0x76, cache)?; // SFS.7
                cache.insert(Stage::First, address, at);
            }
        }
    }
}

/// What does not change during a walk.
struct Walk<'a, H: Host + ?Sized> {
    host: &'a H,
    config: &'a DeviceConfig,
    root: &'a FirstStageRoot,
    nested: Option<&'a SecondStageRoot>,
    lookup: &'a Lookup,
}

impl<H: Host + ?Sized> Walk<'_, H> {
    /// Finds the table that an entry with these `rights` names. `unreadable` is the fault when the
    /// second stage forbids to read it.
    fn table<C: StructureCache + ?Sized>(
        &self,
        level: u8,
        table: u64,
        rights: Rights,
        unreadable: u8,
        cache: &mut C,
    ) -> Result<Structure, Blocked> {
        let Some(second) = self.nested else {
            return Ok(Structure { level, table: PhysAddr::new(table), rights });
        };
        // 3.8.1: where the second stage keeps dirty bits, tables are written as far as it knows.
        let access = if second.keeps_dirty { RequestAccess::Atomic } else { RequestAccess::Read };
        let place = slot(PhysAddr::new(table), level, self.lookup.address).as_u64();
        let lookup = Lookup { address: place, goal: Goal::Access(access), ..*self.lookup };
        let leaf =
            translate(self.host, self.config, second, &lookup, Output::Unchecked, cache).map_err(
                |fault| match fault.reason.0 {
                    0x85 | 0x86 => self.fault(unreadable),
                    _ => self.overflow(fault),
                },
            )?;
        let table = PhysAddr::new(leaf.output(place).as_u64() & PAGING_ADDRESS);
        let rights = rights.difference(Rights::UPDATE);
        let update = if leaf.prot.contains(Prot::WRITE) { Rights::UPDATE } else { Rights::empty() };
        Ok(Structure { level, table, rights: rights | update })
    }

    /// What an entry of the table `at` says, and which of its bits must be set. A level-0 entry is
    /// never a table.
    fn judge<C: StructureCache + ?Sized>(
        &self,
        at: Structure,
        entry: u64,
        cache: &mut C,
    ) -> Result<(u64, Meaning), Blocked> {
        if entry & PRESENT == 0 {
            return Err(self.fault(0x71)); // SFS.2
        }
        let is_page = self.is_page(at.level, entry);
        if entry & self.reserved(at.level, is_page) != 0 {
            return Err(self.fault(0x72)); // SFS.3
        }
        let mut named = entry & PAGING_ADDRESS;
        if is_page {
            named &= !low_bits(u32::from(page_bits(at.level)));
        }
        if self.nested.is_some_and(|second| named > second.last(self.config)) {
            return Err(self.fault(0x74)); // SFS.5
        }
        let mut rights = at.rights;
        rights.set(Rights::WRITE, rights.contains(Rights::WRITE) && entry & WRITE != 0);
        rights.set(Rights::USER, rights.contains(Rights::USER) && entry & USER != 0);
        self.check_user(rights)?;
        let mut flags = ACCESSED;
        if self.root.keeps_extended_accessed {
            flags |= EXTENDED_ACCESSED;
        }
        if !is_page {
            return Ok((flags, Meaning::Table(named, rights)));
        }
        let leaf = self.page(at.level, named, rights, cache)?;
        if self.lookup.goal.writes() && leaf.prot.contains(Prot::WRITE) {
            flags |= DIRTY;
        }
        Ok((flags, Meaning::Page(leaf)))
    }

    /// Whether entries with these rights may be used (SGN.2).
    fn check_user(&self, rights: Rights) -> Result<(), Blocked> {
        if self.lookup.privilege == Privilege::User && !rights.contains(Rights::USER) {
            return Err(self.fault(0x81));
        }
        Ok(())
    }

    /// The page that a valid leaf names, after all checks of permissions: a dirty bit must not be set
    /// for a write that is blocked.
    fn page<C: StructureCache + ?Sized>(
        &self,
        level: u8,
        named: u64,
        rights: Rights,
        cache: &mut C,
    ) -> Result<Leaf, Blocked> {
        let mut prot = Prot::READ;
        let ignores_write = self.lookup.privilege == Privilege::Supervisor && !self.root.protects_writes;
        prot.set(Prot::WRITE, rights.contains(Rights::WRITE) || ignores_write);
        if let Some(lack) = self.lookup.goal.lacks(self.config, prot) {
            return Err(self.fault(lack.reason(Mode::Scalable))); // SGN.6
        }
        prot.set(Prot::PRIV, !rights.contains(Rights::USER));
        let leaf = Leaf {
            phys: PhysAddr::new(named),
            page_bits: page_bits(level),
            prot,
            enforces_snooping: false,
            dirty: Dirty::Settled,
        };
        let Some(second) = self.nested else {
            check_output(Mode::Scalable, self.root.recorded, &leaf, self.lookup.address, self.lookup.goal)?;
            return Ok(leaf);
        };
        let guest = leaf.output(self.lookup.address).as_u64();
        // A write that the first stage forbids is none for the second, whose dirty bit stays clear; and of
        // a page that is translated for a device, only the part that both stages map counts.
        let (goal, output) = match self.lookup.goal {
            Goal::Translation(_) if !prot.contains(Prot::WRITE) => {
                (Goal::Translation(RequestAccess::Read), Output::Unchecked)
            }
            Goal::Translation(_) => (self.lookup.goal, Output::Unchecked),
            Goal::Access(_) => (self.lookup.goal, Output::Request),
        };
        let lookup = Lookup { address: guest, goal, ..*self.lookup };
        let host =
            translate(self.host, self.config, second, &lookup, output, cache).map_err(|fault| self.overflow(fault))?;
        // The smaller page, and what both permit.
        let page_bits = leaf.page_bits.min(host.page_bits);
        let within = host.output(guest).as_u64() & !low_bits(u32::from(page_bits));
        let permitted = prot & (host.prot | Prot::PRIV);
        let leaf = Leaf { phys: PhysAddr::new(within), page_bits, prot: permitted, ..host };
        check_output(Mode::Scalable, self.root.recorded, &leaf, self.lookup.address, self.lookup.goal)?;
        Ok(leaf)
    }

    /// Whether the entry maps a page. 2 MiB are always had; PS where there is no such page is reserved.
    fn is_page(&self, level: u8, entry: u64) -> bool {
        let large = entry & PAGE_SIZE != 0;
        match level {
            0 => true,
            1 => large,
            2 => large && self.config.cap.contains(Cap::FS1GP),
            _ => false,
        }
    }

    /// The bits that must be zero (VT-d 3.6, Tables 34 to 40). PAT of a 4 KiB page is where PS of others
    /// is.
    fn reserved(&self, level: u8, is_page: bool) -> u64 {
        let beyond = PAGING_ADDRESS & beyond_host(self.config);
        match (is_page, level) {
            (false, _) => beyond | PAGE_SIZE,
            (true, 0) => beyond,
            (true, _) => beyond | PAGING_ADDRESS & low_bits(u32::from(page_bits(level))) & !LARGE_PAT,
        }
    }

    /// An address of the guest that the second stage is too narrow for is the first stage's fault.
    fn overflow(&self, fault: Blocked) -> Blocked {
        if fault.reason.0 == 0x84 { self.fault(0x74) } else { fault } // SFS.5
    }

    fn fault(&self, reason: u8) -> Blocked {
        blocked(reason, self.root.recorded)
    }
}
