//! Tables that a previous kernel left in force: replaced in one go, or copied entry by entry until a
//! device is attached for the first time (VT-d 6.6).
//!
//! Whatever is read here was written by a kernel that may have crashed. It is read once and checked; what
//! does not pass is not copied, and blocks.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::PreviousTables;
use super::context::ContextTables;
use super::registers::UnitRegisters;
use super::translation::{PASS_THROUGH_ID, RID_PASID};
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::registers::{TableMode, offset};
use crate::arch::vtd::layout::scalable::{
    self, PASID_ENTRIES, PASID_INDEX_BITS, PASID_WORDS, PasidDirectoryEntry, PasidEntry, PasidTranslation,
    ScalableContextEntry, ScalableRootEntry,
};
use crate::arch::vtd::layout::tables::{self, ROOT_ENTRIES, TranslationType};
use crate::arch::vtd::layout::{Cap, ContextEntry, DomainId, RootEntry};
use crate::error::{Error, InvalidReason, Result};
use crate::frames::IdBitmap;
use crate::platform::{Platform, Registers};

/// The most quadwords that are read of one unit's tables. What is left then is not copied.
const MAX_READS: u32 = 1 << 22;

/// What the first [`enable`](crate::ops::IommuOps::enable) finds in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Takeover {
    /// Nothing, or what ours can follow at once: domain ids that are cached are none of ours, or the unit
    /// forgets them by itself (ESRTPS).
    AtOnce,
    /// Translations cached under domain ids that are unknown: nothing of ours may be present before
    /// they are gone.
    ThroughBlocked,
}

/// Looks at what is in force, and copies it into `contexts` if that is wanted and can be: the mode is the
/// same. Domain ids found there are taken for good. Nothing in hardware changes.
///
/// # Errors
/// [`Error::NoMemory`], [`Error::NoDevice`].
pub(super) fn take_over<P: Platform>(
    registers: &UnitRegisters<P>,
    previous: PreviousTables<'_>,
    contexts: &ContextTables<P>,
    ids: &IdBitmap<P>,
) -> Result<Takeover> {
    let mode = contexts.mode();
    // In another mode translation goes off first, unless ESRTPS: then nothing cached is used either.
    if !registers.is_translating()? || !registers.is_in_mode(mode) {
        return Ok(Takeover::AtOnce);
    }
    let complete = match previous {
        PreviousTables::Replace => Complete::No,
        PreviousTables::CopyUntilClaimed(read) => {
            let root = registers.raw().read64(offset::RTADDR) & !0xfff;
            let mut copy = Copy { read, left: MAX_READS, contexts, ids, complete: Complete::Yes };
            copy.root_table(root)?;
            copy.complete
        }
    };
    let by_itself = registers.capabilities().cap.contains(Cap::ESRTPS);
    Ok(if by_itself || complete == Complete::Yes { Takeover::AtOnce } else { Takeover::ThroughBlocked })
}

/// Whether every entry was copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Complete {
    Yes,
    No,
}

/// Whether an entry may have the domain id of our pass-through entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Yes,
    No,
}

struct Copy<'a, P: Platform> {
    read: &'a dyn Fn(PhysAddr) -> Option<u64>,
    /// Reads that are left.
    left: u32,
    contexts: &'a ContextTables<P>,
    ids: &'a IdBitmap<P>,
    complete: Complete,
}

impl<P: Platform> Copy<'_, P> {
    /// Word `index` of the table at `base`; `None` where it cannot be read.
    #[inline(never)]
    fn word(&mut self, base: u64, index: usize) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let address = base.checked_add((index as u64).checked_mul(8)?)?;
        (self.read)(PhysAddr::new(address))
    }

    fn root_table(&mut self, root: u64) -> Result<()> {
        let scalable = self.contexts.mode() == TableMode::Scalable;
        for bus in 0..ROOT_ENTRIES {
            let first = bus.wrapping_mul(tables::ENTRY_WORDS);
            let (Some(low), Some(high)) = (self.word(root, first), self.word(root, first.wrapping_add(1))) else {
                self.complete = Complete::No;
                continue;
            };
            for devfn in 0..=0xff_u8 {
                let table = if scalable {
                    ScalableRootEntry { low, high }.context_table(devfn)
                } else {
                    RootEntry { low, high }.context_table()
                };
                let Some(table) = table else { continue };
                let requester = (bus as u16) << 8 | u16::from(devfn);
                let copied = if scalable {
                    let index = usize::from(devfn) % scalable::CONTEXT_ENTRIES;
                    self.scalable_entry(table.as_u64(), index, requester)
                } else {
                    self.legacy_entry(table.as_u64(), usize::from(devfn), requester)
                };
                if copied?.is_none() {
                    self.complete = Complete::No;
                }
            }
        }
        Ok(())
    }

    /// `None` when the entry was not copied although it is present, or could not be read.
    fn legacy_entry(&mut self, table: u64, index: usize, requester: u16) -> Result<Option<()>> {
        let first = index.wrapping_mul(tables::ENTRY_WORDS);
        let (Some(low), Some(high)) = (self.word(table, first), self.word(table, first.wrapping_add(1))) else {
            return Ok(None);
        };
        let entry = ContextEntry { low, high };
        if !entry.is_present() {
            return Ok(Some(()));
        }
        let sharing = match entry.translation_type() {
            Some(TranslationType::PassThrough) => Sharing::Yes,
            _ => Sharing::No,
        };
        if entry.has_reserved_bits() || entry.translation_type().is_none() || entry.width().is_none() {
            return Ok(None);
        }
        if self.take(entry.domain_id(), sharing)?.is_none() {
            return Ok(None);
        }
        self.contexts.find_or_make(requester)?.publish(entry);
        Ok(Some(()))
    }

    /// As [`legacy_entry`](Self::legacy_entry). The PASID tables stay where they are.
    fn scalable_entry(&mut self, table: u64, index: usize, requester: u16) -> Result<Option<()>> {
        let first = index.wrapping_mul(scalable::CONTEXT_WORDS);
        let mut words = [0; scalable::CONTEXT_WORDS];
        for (offset, word) in words.iter_mut().enumerate() {
            let Some(read) = self.word(table, first.wrapping_add(offset)) else { return Ok(None) };
            *word = read;
        }
        let entry = ScalableContextEntry { words };
        if !entry.is_present() {
            return Ok(Some(()));
        }
        if entry.has_reserved_bits() || self.directory(entry)?.is_none() {
            return Ok(None);
        }
        self.contexts.find_or_make(requester)?.publish(entry);
        Ok(Some(()))
    }

    /// Takes the domain ids of all PASIDs.
    fn directory(&mut self, entry: ScalableContextEntry) -> Result<Option<()>> {
        for index in 0..entry.directory_entries() {
            let Some(word) = self.word(entry.directory().as_u64(), index as usize) else { return Ok(None) };
            let Some(table) = (PasidDirectoryEntry { word }).table() else { continue };
            for pasid in 0..PASID_ENTRIES {
                let first = pasid.wrapping_mul(PASID_WORDS);
                let low = self.word(table.as_u64(), first);
                let (Some(low), Some(second)) = (low, self.word(table.as_u64(), first.wrapping_add(1))) else {
                    return Ok(None);
                };
                let entry = PasidEntry { words: [low, second, 0, 0, 0, 0, 0, 0] };
                // Ours pass as well, and first-stage tables of other PASIDs are told apart by PASID.
                let is_rid = index << PASID_INDEX_BITS | pasid as u32 == RID_PASID.as_u32();
                let sharing = match entry.translation() {
                    Some(PasidTranslation::PassThrough) => Sharing::Yes,
                    Some(PasidTranslation::FirstStage) if !is_rid => Sharing::Yes,
                    _ => Sharing::No,
                };
                if entry.is_present() && self.take(entry.domain_id(), sharing)?.is_none() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(()))
    }

    /// Takes a domain id, so that no domain of ours gets it. `None` for one that cannot be shared with
    /// what has it here, or that the unit does not have.
    fn take(&mut self, id: DomainId, with_ours: Sharing) -> Result<Option<()>> {
        if id == PASS_THROUGH_ID && with_ours == Sharing::No {
            return Ok(None);
        }
        match self.ids.reserve(u32::from(id.as_u16())) {
            Ok(()) | Err(Error::Invalid(InvalidReason::Duplicate)) => Ok(Some(())),
            Err(Error::Invalid(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
