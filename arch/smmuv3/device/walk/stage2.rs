//! Stage 2: from an intermediate address to a physical one (Arm ARM D8.2 to D8.4; SMMU 3.4, 5.2, 7.3).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::format::{Format, Meaning, Tree};
use super::permissions::{self, ExecuteNever};
use super::{
    Access, Attributes, Fault, Goal, Leaf, Permissions, Privilege, Retained, Scope, Shareability, Stage,
    StructureCache, effective_size, is_beyond,
};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::Host;
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};
use crate::arch::smmuv3::layout::identification::{BreakBeforeMake, Idr3};
use crate::arch::smmuv3::layout::{Granule, Identification, Ste};
use crate::bus::Snoop;

/// What goes through stage 2.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::Attributes;
/// use iommu::arch::smmuv3::device::walk::stage2::Intermediate;
/// use iommu::arch::smmuv3::layout::events::FaultClass;
/// let fetch = Intermediate::structure(0x8000, FaultClass::Cd, Attributes::INCOMING);
/// assert!(fetch.access.is_read());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intermediate {
    /// The intermediate address.
    pub address: u64,
    /// What it is the address of.
    pub class: FaultClass,
    /// What is done there.
    pub access: Access,
    /// Who does it.
    pub privilege: Privilege,
    /// What for.
    pub goal: Goal,
    /// The type of memory that it has so far.
    pub attributes: Attributes,
}

impl Intermediate {
    /// The unit's own read of a CD or of a stage-1 table (SMMU 7.3.16: of data).
    pub const fn structure(address: u64, class: FaultClass, attributes: Attributes) -> Self {
        let (access, privilege) = (Access::Read, Privilege::Privileged);
        Self { address, class, access, privilege, goal: Goal::Access, attributes }
    }
}

/// The tables of stage 2, of a valid STE.
pub(super) fn tree(identification: &Identification, ste: &Ste) -> Option<Tree> {
    let fields = ste.stage2_fields();
    let granule = Granule::from_tg0(u64::from(fields.tg))?;
    let format = Format::new(identification, granule, ste.has_wide_stage2(), ste.has_big_endian_stage2());
    let first = format.stage2_level(ste.stage2_start())?;
    let input_bits = 64_u8.saturating_sub(fields.t0sz);
    let output_bits = effective_size(identification, u64::from(fields.ps));
    Some(Tree::new(format, input_bits, output_bits, first, fields.table.as_u64()))
}

/// Translates an intermediate address. The STE is valid, and has stage 2.
///
/// Reads at most one descriptor for each of five levels.
///
/// # Errors
/// F_TRANSLATION, F_WALK_EABT, F_ADDR_SIZE, F_ACCESS and F_PERMISSION of stage 2.
pub fn stage2<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    identification: &Identification,
    ste: &Ste,
    what: &Intermediate,
    cache: &mut C,
) -> Result<Leaf, Fault> {
    let ipa = what.address;
    let leaf = match cache.page(ipa) {
        Some(leaf) => leaf,
        None => {
            let leaf = walk(host, identification, ste, what, cache)?;
            if leaf.retained == Retained::Freely {
                cache.keep_page(ipa, leaf);
            }
            leaf
        }
    };
    let fault = Fault::stage2(EventKind::F_PERMISSION, what.class, ipa);
    if what.goal == Goal::Access && !leaf.permissions.permit(what.access, what.privilege) {
        let lacks_read_only = leaf.permissions.lack_read_only(what.access, what.privilege);
        return Err(Fault { lacks_read_only, ..fault });
    }
    // 5.2, S2PTW: nothing that the unit reads for itself is in a device.
    let for_itself = matches!(what.class, FaultClass::Cd | FaultClass::TranslationTable);
    if for_itself && ste.protects_walks() && attributes(identification, ste, what.attributes, &leaf).is_device() {
        return Err(fault);
    }
    Ok(leaf)
}

/// What stage 2 makes of a type of memory (SMMU 13.1.5, 13.1.6).
pub fn attributes(identification: &Identification, ste: &Ste, before: Attributes, leaf: &Leaf) -> Attributes {
    if identification.idr3().contains(Idr3::FWB) && ste.forces_write_back() {
        before.forced(leaf.memory, leaf.shareability)
    } else {
        before.combine(Attributes::from_stage2(leaf.memory, leaf.shareability))
    }
}

/// Where a CD or a stage-1 table is that the unit reads with these attributes, and whether it snoops: through
/// stage 2 if the stream has one.
pub(super) fn place<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    identification: &Identification,
    ste: &Ste,
    (address, class, before): (u64, FaultClass, Attributes),
    cache: &mut C,
) -> Result<(PhysAddr, Snoop), Fault> {
    if !ste.config().has_stage2() {
        return Ok((PhysAddr::new(address), before.snoop(identification)));
    }
    let what = Intermediate::structure(address, class, before);
    let leaf = stage2(host, identification, ste, &what, cache)?;
    let after = attributes(identification, ste, before, &leaf);
    Ok((PhysAddr::new(leaf.translate(address)), after.snoop(identification)))
}

fn walk<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    identification: &Identification,
    ste: &Ste,
    what: &Intermediate,
    cache: &mut C,
) -> Result<Leaf, Fault> {
    let ipa = what.address;
    let fault = |kind| Fault::stage2(kind, what.class, ipa);
    // A valid STE has tables.
    let tree = tree(identification, ste).ok_or(fault(EventKind::F_TRANSLATION))?;
    if is_beyond(ipa, tree.input_bits) {
        return Err(fault(EventKind::F_TRANSLATION));
    }
    let snoop = Attributes::from_fields(ste.stage2_walk_attributes()).snoop(identification);
    let kept = cache.table(Stage::Two, ipa).filter(|structure| tree.has(structure));
    let mut at = kept.unwrap_or(tree.root());
    loop {
        let slot = tree.slot(at, ipa);
        let word =
            host.read(PhysAddr::new(slot), snoop).map_err(|_| Fault::walk_abort(Stage::Two, what.class, slot))?;
        let entry = tree.format.load(word);
        match tree.format.meaning(at.level, entry) {
            Meaning::Invalid => return Err(fault(EventKind::F_TRANSLATION)),
            Meaning::Table(table) if is_beyond(table, tree.output_bits) => {
                return Err(fault(EventKind::F_ADDR_SIZE));
            }
            Meaning::Table(table) => {
                at = tree.below(at, table, Permissions::all());
                cache.keep_table(Stage::Two, ipa, at);
            }
            Meaning::Leaf(output) if is_beyond(output, tree.output_bits) => {
                return Err(fault(EventKind::F_ADDR_SIZE));
            }
            Meaning::Leaf(output) => {
                // Hardware update of the flag would be here.
                if !has_access_flag(entry) && !ste.stage2_fields().access_flag_fault_disabled {
                    return Err(fault(EventKind::F_ACCESS));
                }
                return Ok(leaf(identification, ste, &tree, at.level, entry, output));
            }
        }
    }
}

fn leaf(identification: &Identification, ste: &Ste, tree: &Tree, level: i8, entry: u64, output: u64) -> Leaf {
    let execute_never =
        if identification.idr3().contains(Idr3::XNX) { ExecuteNever::ForEach } else { ExecuteNever::ForAll };
    let shareability =
        if tree.format.lacks_shareability() { ste.stage2_fields().shareability } else { (entry >> 8 & 0b11) as u8 };
    Leaf {
        output,
        bits: tree.format.bits(level),
        contiguous_bits: contiguous_bits(tree, level, entry),
        level,
        granule: tree.format.granule,
        permissions: permissions::stage2(entry, execute_never),
        memory: (entry >> 2 & 0xf) as u8,
        shareability: Shareability::from_bits(shareability),
        scope: Scope::Global,
        retained: retained(identification, level, entry),
    }
}

/// AF of a leaf.
pub(super) const fn has_access_flag(entry: u64) -> bool {
    entry >> 10 & 1 != 0
}

/// A run that is larger than the input is none.
pub(super) const fn contiguous_bits(tree: &Tree, level: i8, entry: u64) -> u8 {
    let bits = tree.format.contiguous_bits(level, entry);
    if bits <= tree.input_bits { bits } else { tree.format.bits(level) }
}

/// nT of a block counts where blocks can be replaced live (SMMU 3.21.1.3).
pub(super) fn retained(identification: &Identification, level: i8, entry: u64) -> Retained {
    let replaceable = identification.break_before_make() != BreakBeforeMake::Required;
    if replaceable && level < super::format::LAST && entry >> 16 & 1 != 0 { Retained::Not } else { Retained::Freely }
}
