//! Whether a CD is valid (SMMU 5.4.2, CdIllegal, as far as it is of Non-secure streams).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::format::Format;
use super::ste::{has_endianness, is_size_legal};
use super::{Fault, StreamWorld, effective_size, is_beyond};
use crate::arch::smmuv3::layout::context::Half;
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::identification::{Idr0, StallModel};
use crate::arch::smmuv3::layout::{Cd, Identification, Ste};

/// Judges a CD that a valid STE led to. What the specification leaves open in SMMUv3.0 is illegal here, as it is
/// later.
///
/// # Errors
/// C_BAD_CD.
pub fn check(identification: &Identification, ste: &Ste, world: StreamWorld, cd: &Cd) -> Result<(), Fault> {
    if is_legal(identification, ste, world, cd) { Ok(()) } else { Err(Fault::configuration(EventKind::C_BAD_CD)) }
}

fn is_legal(identification: &Identification, ste: &Ste, world: StreamWorld, cd: &Cd) -> bool {
    let has = identification.idr0();
    if !cd.is_valid() || ste.disables_stalls() && cd.stalls() || has.contains(Idr0::TERM_MODEL) && !cd.aborts() {
        return false;
    }
    match identification.stall_model() {
        StallModel::TerminateOnly if cd.stalls() => return false,
        StallModel::StallOnly if !cd.stalls() => return false,
        _ => {}
    }
    // AA64: nothing else is walked here. HA and HD: no updates are made here.
    if !cd.is_aarch64() || !has.contains(Idr0::TTF_AARCH64) || cd.updates() != 0 {
        return false;
    }
    let tagged = world != StreamWorld::NsEl2;
    if tagged && !has.contains(Idr0::ASID16) && cd.asid().0 > 0xff {
        return false;
    }
    let lower = is_walked(world, cd, Half::Lower);
    let upper = is_walked(world, cd, Half::Upper);
    ((!lower && !upper) || has_endianness(identification, cd.is_big_endian()))
        && (!lower || is_table_legal(identification, cd, Half::Lower))
        && (!upper || is_table_legal(identification, cd, Half::Upper))
}

/// The effective EPD, reversed: NS-EL2 has one table, which cannot be switched off (SMMU 5.4, EPD0).
fn is_walked(world: StreamWorld, cd: &Cd, half: Half) -> bool {
    match (world, half) {
        (StreamWorld::NsEl2, Half::Lower) => true,
        (StreamWorld::NsEl2, Half::Upper) => false,
        _ => !cd.table(half).walk_disabled,
    }
}

/// TSZ, TG and TTB of a half.
fn is_table_legal(identification: &Identification, cd: &Cd, half: Half) -> bool {
    let table = cd.table(half);
    let Some(granule) = table.granule else {
        return false;
    };
    if !identification.has_granule(granule) {
        return false;
    }
    let format = Format::new(identification, granule, cd.is_wide(), cd.is_big_endian());
    let size = effective_size(identification, cd.ips()).min(format.address_bits());
    is_size_legal(identification, &format, table.tsz, identification.widest_input_bits())
        && !is_beyond(table.table.as_u64(), size)
}
