//! Stage 1: from the address of a request to an intermediate one, or to a physical one without stage 2 (Arm ARM
//! D8.2 to D8.4; SMMU 3.4, 5.4, 7.3).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::format::{Format, Meaning, Tree};
use super::permissions::{self, Controls, Ownership};
use super::stage2::{contiguous_bits, has_access_flag, place, retained};
use super::{
    Attributes, Fault, Goal, Leaf, Lookup, Permissions, Privilege, Scope, Shareability, Stage, StreamWorld,
    StructureCache, effective_size, is_beyond, low_bits,
};
use crate::arch::smmuv3::device::Host;
use crate::arch::smmuv3::layout::context::Half;
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};
use crate::arch::smmuv3::layout::identification::Idr3;
use crate::arch::smmuv3::layout::{Cd, Identification, Ste};

/// What stage 1 goes by: valid structures.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::StreamWorld;
/// use iommu::arch::smmuv3::device::walk::stage1::Stage1;
/// use iommu::arch::smmuv3::layout::{Cd, Ste};
/// let (ste, cd) = (Ste::default(), Cd::default());
/// let root = Stage1 { ste: &ste, cd: &cd, world: StreamWorld::NsEl1 };
/// assert!(!root.cd.is_valid());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage1<'a> {
    /// The STE, whose stage 2, if it has one, tables go through.
    pub ste: &'a Ste,
    /// The CD.
    pub cd: &'a Cd,
    /// Whose tables they are.
    pub world: StreamWorld,
}

/// The tables of one half.
fn tree(identification: &Identification, cd: &Cd, half: Half) -> Option<Tree> {
    let table = cd.table(half);
    let format = Format::new(identification, table.granule?, cd.is_wide(), cd.is_big_endian());
    let input_bits = 64_u8.saturating_sub(table.tsz);
    let output_bits = effective_size(identification, cd.ips());
    let first = format.first_level(input_bits);
    Some(Tree::new(format, input_bits, output_bits, first, table.table.as_u64()))
}

/// Translates an address. What comes out has not been through stage 2, but the tables have.
///
/// Reads at most one descriptor for each of five levels, and for each of them at most five of stage 2.
///
/// # Errors
/// F_TRANSLATION, F_WALK_EABT, F_ADDR_SIZE, F_ACCESS and F_PERMISSION of stage 1; of stage 2 with CLASS TT.
pub fn stage1<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    identification: &Identification,
    root: &Stage1<'_>,
    lookup: &Lookup,
    cache: &mut C,
) -> Result<Leaf, Fault> {
    let Stage1 { ste, cd, .. } = *root;
    let half = half(identification, root, lookup)?;
    let tree = tree(identification, cd, half).ok_or(Fault::stage1(EventKind::F_TRANSLATION))?;
    check_range(&tree, root, half, lookup)?;
    let controls = controls(identification, root);
    let has_hierarchy = !(identification.idr3().contains(Idr3::HAD) && cd.table(half).hierarchy_disabled);
    let walk_attributes = Attributes::from_fields(cd.walk_attributes(half));

    let address = lookup.address;
    let kept = cache.table(Stage::One, address).filter(|structure| tree.has(structure));
    let mut at = kept.unwrap_or(tree.root());
    loop {
        let slot = tree.slot(at, address);
        let access = (slot, FaultClass::TranslationTable, walk_attributes);
        let (slot, snoop) = place(host, identification, ste, access, cache)?;
        let word = host
            .read(slot, snoop)
            .map_err(|_| Fault::walk_abort(Stage::One, FaultClass::TranslationTable, slot.as_u64()))?;
        let entry = tree.format.load(word);
        match tree.format.meaning(at.level, entry) {
            Meaning::Invalid => return Err(Fault::stage1(EventKind::F_TRANSLATION)),
            Meaning::Table(output) | Meaning::Leaf(output) if is_beyond(output, tree.output_bits) => {
                return Err(Fault::stage1(EventKind::F_ADDR_SIZE));
            }
            Meaning::Table(table) => {
                let left = if has_hierarchy {
                    permissions::hierarchical(entry, controls.ownership)
                } else {
                    Permissions::all()
                };
                at = tree.below(at, table, at.rights & left);
                cache.keep_table(Stage::One, address, at);
            }
            Meaning::Leaf(output) => {
                // Hardware update of the flag would be here.
                if !has_access_flag(entry) && !cd.access_flag_fault_disabled() {
                    return Err(Fault::stage1(EventKind::F_ACCESS));
                }
                let shareability = if tree.format.lacks_shareability() {
                    cd.table(half).shareability
                } else {
                    (entry >> 8 & 0b11) as u8
                };
                let leaf = Leaf {
                    output,
                    bits: tree.format.bits(at.level),
                    contiguous_bits: contiguous_bits(&tree, at.level, entry),
                    level: at.level,
                    granule: tree.format.granule,
                    permissions: permissions::stage1(entry, at.rights, &controls),
                    memory: attribute(cd, entry),
                    shareability: Shareability::from_bits(shareability),
                    scope: scope(root.world, entry),
                    retained: retained(identification, at.level, entry),
                };
                check(&leaf, root.world, lookup)?;
                return Ok(leaf);
            }
        }
    }
}

/// Whether a leaf of stage 1 permits what is asked; also for who kept one.
///
/// # Errors
/// F_PERMISSION.
pub fn check(leaf: &Leaf, world: StreamWorld, lookup: &Lookup) -> Result<(), Fault> {
    // 13.4.1.
    let privilege = match world {
        StreamWorld::NsEl2 => Privilege::Privileged,
        StreamWorld::NsEl1 | StreamWorld::NsEl2E2h => lookup.privilege,
    };
    if lookup.goal == Goal::Translation || leaf.permissions.permit(lookup.access, privilege) {
        return Ok(());
    }
    let lacks_read_only = leaf.permissions.lack_read_only(lookup.access, privilege);
    Err(Fault { lacks_read_only, ..Fault::stage1(EventKind::F_PERMISSION) })
}

/// The half that an address is in, unless nothing there is for who asks (SMMU 3.4.1, 5.4: EPD, E0PD). Whoever
/// finds a kept translation asks for E0PD as well.
fn half(identification: &Identification, root: &Stage1<'_>, lookup: &Lookup) -> Result<Half, Fault> {
    let fault = Err(Fault::stage1(EventKind::F_TRANSLATION));
    if root.world == StreamWorld::NsEl2 {
        return Ok(Half::Lower);
    }
    let half = if lookup.address >> 55 & 1 == 0 { Half::Lower } else { Half::Upper };
    let denies = identification.idr3().contains(Idr3::E0PD) && root.cd.denies_unprivileged(half);
    if denies && lookup.privilege == Privilege::Unprivileged {
        return fault;
    }
    if root.cd.table(half).walk_disabled { fault } else { Ok(half) }
}

/// Whether an address is one of those that a table is for: the unused upper bits are those of its half, but for
/// the topmost eight with TBI (SMMU 3.4.1).
fn check_range(tree: &Tree, root: &Stage1<'_>, half: Half, lookup: &Lookup) -> Result<(), Fault> {
    let looked_at = if root.cd.ignores_top_byte(half) { low_bits(56) } else { u64::MAX };
    let upper = match half {
        Half::Lower => lookup.address,
        Half::Upper => !lookup.address,
    };
    if is_beyond(upper & looked_at, tree.input_bits) {
        return Err(Fault::stage1(EventKind::F_TRANSLATION));
    }
    Ok(())
}

fn controls(identification: &Identification, root: &Stage1<'_>) -> Controls {
    let cd = root.cd;
    let bits = cd.permission_controls();
    Controls {
        ownership: match root.world {
            StreamWorld::NsEl2 => Ownership::OnePrivilege,
            StreamWorld::NsEl1 | StreamWorld::NsEl2E2h => Ownership::BothPrivileges,
        },
        no_execute_if_writable: bits & 0b001 != 0,
        no_privileged_access: bits & 0b100 != 0,
        enhanced: identification.idr3().contains(Idr3::EPAN) && cd.is_pan_enhanced(),
    }
}

/// The attribute of MAIR that AttrIndx names.
const fn attribute(cd: &Cd, entry: u64) -> u8 {
    let index = (entry >> 2 & 0b111) as u32;
    cd.memory_attributes().wrapping_shr(index.wrapping_mul(8)) as u8
}

/// nG; NS-EL2 has no ASIDs.
const fn scope(world: StreamWorld, entry: u64) -> Scope {
    match world {
        StreamWorld::NsEl2 => Scope::Global,
        _ if entry >> 11 & 1 == 0 => Scope::Global,
        _ => Scope::Asid,
    }
}
