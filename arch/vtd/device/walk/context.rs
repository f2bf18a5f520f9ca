//! Root and context tables (VT-d 9.1 to 9.4).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::entry::{ADDRESS, beyond_host};
use super::{Mode, PermissionBits, SecondStageRoot, blocked, qualified};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::{Blocked, DeviceConfig, Host, Recorded, Snoop};
use crate::arch::vtd::layout::registers::TableMode;
use crate::arch::vtd::layout::scalable::{CONTEXT_WORDS, ScalableContextEntry, ScalableRootEntry};
use crate::arch::vtd::layout::tables::TranslationType;
use crate::arch::vtd::layout::{AddressWidth, Cap, ContextEntry, DomainId, Ecap, RootEntry};

/// RTADDR.SSIRWE: the second stage has permission bits of its own for devices (VT-d 11.4.5).
const SSIRWE: u64 = 1 << 7;

/// What the tables say of a requester: what the context cache holds (VT-d 6.2.3).
///
/// ```
/// use iommu::arch::vtd::device::walk::ContextInfo;
/// use iommu::arch::vtd::layout::scalable::ScalableContextEntry;
/// let info = ContextInfo::Scalable { entry: ScalableContextEntry { words: [0x7003, 0, 0, 0] } };
/// assert_eq!(info.recorded(), iommu::arch::vtd::device::Recorded::Suppressed); // FPD
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextInfo {
    /// Legacy mode: a context entry that is present and valid.
    Legacy {
        /// DID.
        domain: DomainId,
        /// TT.
        translation: TranslationType,
        /// The second-stage table; not to be walked with pass-through.
        root: SecondStageRoot,
    },
    /// Scalable mode: a context entry that is present and valid.
    Scalable {
        /// The entry.
        entry: ScalableContextEntry,
    },
}

impl ContextInfo {
    /// How qualified faults of the request are recorded, by the entries up to here.
    pub const fn recorded(&self) -> Recorded {
        match self {
            Self::Legacy { root, .. } => root.recorded,
            Self::Scalable { entry } => qualified(Recorded::Yes, entry.suppresses_faults()),
        }
    }
}

/// Finds the context entry of a requester. `root` is RTADDR as SRTP took it over.
///
/// Reads at most two entries, in pairs of quadwords.
///
/// # Errors
/// RTA.1 and RTA.4, LRT, LCT.1 to LCT.4, SRT, SCT.1 to SCT.4 of Table 30 (7.1.3).
pub fn context<H: Host + ?Sized>(
    host: &H,
    config: &DeviceConfig,
    root: u64,
    source: u16,
) -> Result<ContextInfo, Blocked> {
    let fault = |reason| Err(blocked(reason, Recorded::Yes));
    match TableMode::of_root_table_address(root) {
        Some(TableMode::Legacy) if permission_bits(config, root) == PermissionBits::Io => fault(0x30), // RTA.1.4
        Some(TableMode::Legacy) => legacy(host, config, root, source),
        Some(TableMode::Scalable) if config.ecap.contains(Ecap::SMTS) => scalable(host, config, root, source),
        Some(TableMode::AbortDma) if config.ecap.contains(Ecap::ADMS) => fault(0x33), // RTA.4
        _ => fault(0x30),                                                             // RTA.1.1 to RTA.1.3
    }
}

/// Which bits of the second stage hold permissions, by RTADDR.
pub(super) const fn permission_bits(config: &DeviceConfig, root: u64) -> PermissionBits {
    if root & SSIRWE != 0 && config.ecap.contains(Ecap::SSIRWS) { PermissionBits::Io } else { PermissionBits::Shared }
}

/// Whether the walker snoops root, context and PASID tables (VT-d 3.10, Table 5).
pub(super) const fn snoop_of_tables(config: &DeviceConfig) -> Snoop {
    if config.ecap.contains(Ecap::C) { Snoop::Yes } else { Snoop::No }
}

/// The bits of a domain id that the unit does not have.
pub(super) fn beyond_domains(config: &DeviceConfig, domain: DomainId) -> bool {
    let bits = config.cap.domain_id_bits().unwrap_or(16);
    u64::from(domain.as_u16()) & !super::entry::low_bits(bits) != 0
}

/// Whether the unit walks second-stage tables of this width (SAGAW).
pub(super) const fn has_width(cap: Cap, width: AddressWidth) -> bool {
    cap.contains(match width {
        AddressWidth::Bits39 => Cap::SAGAW_39,
        AddressWidth::Bits48 => Cap::SAGAW_48,
        AddressWidth::Bits57 => Cap::SAGAW_57,
    })
}

/// The widest second stage of the unit.
fn widest(cap: Cap) -> Option<AddressWidth> {
    [AddressWidth::Bits57, AddressWidth::Bits48, AddressWidth::Bits39].into_iter().find(|width| has_width(cap, *width))
}

/// Where the root entry of a requester's bus is. Bits 63:HAW of RTADDR are not implemented (11.4.5).
fn root_slot(config: &DeviceConfig, root: u64, source: u16) -> PhysAddr {
    let table = root & ADDRESS & !beyond_host(config);
    PhysAddr::new(table | u64::from(source >> 8) << 4)
}

fn legacy<H: Host + ?Sized>(host: &H, config: &DeviceConfig, root: u64, source: u16) -> Result<ContextInfo, Blocked> {
    let snoop = snoop_of_tables(config);
    let fault = |reason| blocked(reason, Recorded::Yes);

    let [low, high] = host.read_pair(root_slot(config, root, source), snoop).map_err(|_| fault(0x08))?; // LRT.1
    let entry = RootEntry { low, high };
    let table = entry.context_table().ok_or(fault(0x01))?; // LRT.2
    if entry.has_reserved_bits() || low & beyond_host(config) != 0 {
        return Err(fault(0x0a)); // LRT.3
    }

    let slot = PhysAddr::new(table.as_u64() | u64::from(source & 0xff) << 4);
    let [low, high] = host.read_pair(slot, snoop).map_err(|_| fault(0x09))?; // LCT.1
    let entry = ContextEntry { low, high };
    let recorded = qualified(Recorded::Yes, entry.suppresses_faults());
    let fault = |reason| blocked(reason, recorded);
    if !entry.is_present() {
        return Err(fault(0x02)); // LCT.2
    }
    let passes = entry.translation_type() == Some(TranslationType::PassThrough);
    if entry.has_reserved_bits()
        || low & beyond_host(config) != 0 && !passes
        || beyond_domains(config, entry.domain_id())
    {
        return Err(fault(0x0b)); // LCT.3
    }
    let translation = entry.translation_type().ok_or(fault(0x03))?; // LCT.4.2
    let (cap, ecap) = (config.cap, config.ecap);
    let has_type = match translation {
        TranslationType::Untranslated => true,
        TranslationType::DeviceTlb => ecap.contains(Ecap::DT),
        TranslationType::PassThrough => ecap.contains(Ecap::PT),
    };
    // 9.3, AW: with pass-through only the largest will do.
    let has_width = |width| if passes { widest(cap) == Some(width) } else { has_width(cap, width) };
    let width = entry.width().filter(|width| has_width(*width)).ok_or(fault(0x03))?; // LCT.4.1
    if !has_type {
        return Err(fault(0x03)); // LCT.4.2
    }
    let root = SecondStageRoot {
        mode: Mode::Legacy,
        table: entry.table(),
        width,
        snoop,
        permissions: PermissionBits::Shared,
        keeps_dirty: false,
        recorded,
    };
    Ok(ContextInfo::Legacy { domain: entry.domain_id(), translation, root })
}

fn scalable<H: Host + ?Sized>(host: &H, config: &DeviceConfig, root: u64, source: u16) -> Result<ContextInfo, Blocked> {
    let snoop = snoop_of_tables(config);
    let devfn = source as u8;
    let fault = |reason| blocked(reason, Recorded::Yes);

    let [low, high] = host.read_pair(root_slot(config, root, source), snoop).map_err(|_| fault(0x38))?; // SRT.1
    let entry = ScalableRootEntry { low, high };
    let table = entry.context_table(devfn).ok_or(fault(0x39))?; // SRT.2
    if entry.has_reserved_bits(devfn) || table.as_u64() & beyond_host(config) != 0 {
        return Err(fault(0x3a)); // SRT.3
    }

    let slot = table.as_u64() | u64::from(devfn & 0x7f) << 5;
    let [first, second] = host.read_pair(PhysAddr::new(slot), snoop).map_err(|_| fault(0x40))?; // SCT.1
    let [third, fourth] = host.read_pair(PhysAddr::new(slot | 16), snoop).map_err(|_| fault(0x40))?;
    let entry = ScalableContextEntry { words: [first, second, third, fourth] };
    let fault = |reason| Err(blocked(reason, qualified(Recorded::Yes, entry.suppresses_faults())));
    if !entry.is_present() {
        return fault(0x41); // SCT.2
    }
    if entry.has_reserved_bits() || has_reserved_fields(config, &entry.words) {
        return fault(0x42); // SCT.3
    }
    if entry.permits_page_requests() && !entry.permits_device_tlb() // SCT.4.1
        || entry.rid_pasid() >> 6 >= entry.directory_entries() // SCT.4.2
        || first & EPTR != 0 && !entry.permits_pasids()
    // SCT.4.3
    {
        return fault(0x43);
    }
    Ok(ContextInfo::Scalable { entry })
}

/// EPTR: translated requests may have a PASID.
const EPTR: u64 = 1 << 6;

/// Whether a field is set that is reserved on units without its capability (VT-d 9.4), or names a table
/// beyond the host. Host permission tables (HPTE) are not here on any unit.
fn has_reserved_fields(config: &DeviceConfig, words: &[u64; CONTEXT_WORDS]) -> bool {
    const DTE: u64 = 1 << 2;
    const PASIDE: u64 = 1 << 3;
    const PRE: u64 = 1 << 4;
    const HPTE: u64 = 1 << 5;
    const RID_PASID: u64 = 0xf_ffff;
    const RID_PRIV: u64 = 1 << 20;
    let [low, high, ..] = *words;
    let without = |capability: Ecap, field: u64| if config.ecap.contains(capability) { 0 } else { field };
    let low_reserved = beyond_host(config)
        | HPTE
        | without(Ecap::DT, DTE)
        | without(Ecap::PASID, PASIDE)
        | without(Ecap::PRS, PRE)
        | without(Ecap::PTRS, EPTR);
    let high_reserved = without(Ecap::RPS, RID_PASID) | without(Ecap::RPRIVS, RID_PRIV);
    low & low_reserved != 0 || high & high_reserved != 0
}
