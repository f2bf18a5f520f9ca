//! Whether an STE is valid (SMMU 5.2.2, SteIllegal, as far as it is of Non-secure streams).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::format::Format;
use super::stream::ignores_world;
use super::{Fault, effective_size, is_beyond, output_size};
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::identification::{Idr0, Idr3, StallModel};
use crate::arch::smmuv3::layout::stream_table::{CdTableFormat, Config, Eats};
use crate::arch::smmuv3::layout::{Granule, Identification, Ste};

/// Judges an STE. What the specification leaves open in SMMUv3.0 is illegal here, as it is later.
///
/// # Errors
/// C_BAD_STE.
pub fn check(identification: &Identification, ste: &Ste) -> Result<(), Fault> {
    if is_legal(identification, ste) { Ok(()) } else { Err(Fault::configuration(EventKind::C_BAD_STE)) }
}

fn is_legal(identification: &Identification, ste: &Ste) -> bool {
    let config = ste.config();
    if !ste.is_valid() {
        return false;
    }
    if config == Config::Abort {
        return true;
    }
    has_stages(identification, config)
        && is_ats_legal(identification, ste)
        && (ignores_world(identification, config) || ste.stream_world() & 0b01 == 0)
        && (!config.has_stage1() || is_stage1_legal(identification, ste))
        && (!config.has_stage2() || is_stage2_legal(identification, ste))
        && is_vmid_legal(identification, ste)
}

fn has_stages(identification: &Identification, config: Config) -> bool {
    let has = identification.idr0();
    (!config.has_stage1() || has.contains(Idr0::S1P)) && (!config.has_stage2() || has.contains(Idr0::S2P))
}

fn is_ats_legal(identification: &Identification, ste: &Ste) -> bool {
    let config = ste.config();
    if !identification.idr0().contains(Idr0::ATS) || config == Config::Bypass {
        return true;
    }
    let stalls = ste.stage2_fields().stall;
    match ste.eats() {
        Eats::Split => config == Config::Nested && !stalls && !identification.idr0().contains(Idr0::NS1ATS),
        Eats::Full => !(stalls && config.has_stage2()),
        // Without DPT this is Off.
        Eats::Off | Eats::Dpt => true,
    }
}

fn is_stage1_legal(identification: &Identification, ste: &Ste) -> bool {
    if ste.disables_stalls() && identification.stall_model() != StallModel::Configurable {
        return false;
    }
    let most = identification.substream_id_bits();
    if most != 0 && ste.cd_max() > most {
        return false;
    }
    let two_levels = ste.cd_format() != CdTableFormat::Linear;
    if most != 0 && ste.cd_max() != 0 && two_levels && !identification.idr0().contains(Idr0::CD2L) {
        return false;
    }
    // 3.4.3 (1) and (2a): physical or intermediate, both have the output size.
    !is_beyond(ste.cd_table().as_u64(), output_size(identification))
}

fn is_stage2_legal(identification: &Identification, ste: &Ste) -> bool {
    let fields = ste.stage2_fields();
    match identification.stall_model() {
        StallModel::TerminateOnly if fields.stall => return false,
        StallModel::StallOnly if !fields.stall => return false,
        _ => {}
    }
    // S2AA64: nothing else is walked here.
    if !ste.has_aarch64_stage2() || !identification.idr0().contains(Idr0::TTF_AARCH64) {
        return false;
    }
    // S2HA and S2HD: no updates are made here.
    if ste.stage2_updates() != 0 || !has_endianness(identification, ste.has_big_endian_stage2()) {
        return false;
    }
    let Some(granule) = Granule::from_tg0(u64::from(fields.tg)) else {
        return false;
    };
    if !identification.has_granule(granule) {
        return false;
    }
    let format = Format::new(identification, granule, ste.has_wide_stage2(), ste.has_big_endian_stage2());
    let size = effective_size(identification, u64::from(fields.ps));
    if is_beyond(fields.table.as_u64(), size.min(format.address_bits())) {
        return false;
    }
    is_size_legal(identification, &format, fields.t0sz, output_size(identification))
        && is_start_consistent(identification, &format, ste)
}

/// STES2T0SZInvalid and CDTxSZInvalid: between the fewest and the most bits of input, `widest` of which the unit
/// has.
pub(super) fn is_size_legal(identification: &Identification, format: &Format, tsz: u8, widest: u8) -> bool {
    let most = match (identification.idr3().contains(Idr3::STT), format.granule) {
        (false, _) => 39,
        (true, Granule::Size64K) => 47,
        (true, Granule::Size4K | Granule::Size16K) => 48,
    };
    let widest = widest.min(format.address_bits());
    tsz >= 64_u8.saturating_sub(widest) && tsz <= most
}

/// Whether tables are read in this order of bytes (TTENDIAN; the reserved value is taken for mixed).
pub(super) fn has_endianness(identification: &Identification, big: bool) -> bool {
    match identification.idr0 >> 21 & 0b11 {
        0b10 => !big,
        0b11 => big,
        _ => true,
    }
}

/// STEWalkConfigInconsistentAA64 (Arm ARM D8.2.6): the level fits the granule, the size of physical addresses,
/// and the size of the input.
fn is_start_consistent(identification: &Identification, format: &Format, ste: &Ste) -> bool {
    let Some(level) = format.stage2_level(ste.stage2_start()) else {
        return false;
    };
    let physical = output_size(identification);
    let has_level = match (format.granule, level) {
        (Granule::Size4K, -1) => physical >= 52,
        (Granule::Size4K, 0) | (Granule::Size64K, 1) => physical >= 44,
        (Granule::Size4K, 3) => identification.idr3().contains(Idr3::STT),
        (Granule::Size16K, 1) => physical >= 42,
        _ => true,
    };
    let input_bits = 64_u8.saturating_sub(ste.stage2_fields().t0sz);
    let (fewest, most) = format.stage2_input(level);
    has_level && fewest <= input_bits && input_bits <= most
}

/// S2VMID, unless it is ignored (IgnoreSTES2VMID).
fn is_vmid_legal(identification: &Identification, ste: &Ste) -> bool {
    let config = ste.config();
    let has = identification.idr0();
    let ignored = !has.contains(Idr0::S2P)
        || config == Config::Bypass
        || !ignores_world(identification, config) && ste.stream_world() != 0;
    ignored || has.contains(Idr0::VMID16) || ste.vmid().0 <= 0xff
}
