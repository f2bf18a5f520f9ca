//! The stream table (SMMU 3.3.1, 5.1), and what an STE makes of a request.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::{Access, Fault, Lookup, Privilege, StructureCache, is_beyond, low_bits, output_size, quadword};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::Host;
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::identification::{Idr0, Idr1};
use crate::arch::smmuv3::layout::stream_table::{Config, DefaultSubstream, STE_WORDS};
use crate::arch::smmuv3::layout::{Identification, L1Std, Ste, StreamId};
use crate::bus::Snoop;

/// The stream table, as registers have it (SMMU 6.3.24, 6.3.25).
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::arch::smmuv3::device::Snoop;
/// use iommu::arch::smmuv3::device::walk::StreamTable;
/// let linear = StreamTable { base: PhysAddr::new(0x8_0000), log2: 6, split: None, snoop: Snoop::Yes };
/// assert_eq!(linear.split, None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamTable {
    /// ADDR of STRTAB_BASE. It is aligned to the size of the table before it is used.
    pub base: PhysAddr,
    /// LOG2SIZE: bits of a StreamID. More than the unit has count as what it has.
    pub log2: u8,
    /// SPLIT (6, 8 or 10) of a two-level table.
    pub split: Option<u8>,
    /// Whether it is read snooping (TABLE_IC, TABLE_OC and TABLE_SH of CR1).
    pub snoop: Snoop,
}

/// Reads the STE of a stream, in whatever state it is.
///
/// Reads at most nine quadwords.
///
/// # Errors
/// C_BAD_STREAMID, F_STE_FETCH.
pub fn stream<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    identification: &Identification,
    table: &StreamTable,
    stream: StreamId,
    cache: &mut C,
) -> Result<Ste, Fault> {
    let unknown = Fault::configuration(EventKind::C_BAD_STREAMID);
    let id = u64::from(stream.0);
    let log2 = table.log2.min(identification.stream_id_bits());
    if is_beyond(id, log2) {
        return Err(unknown);
    }
    let Some(split) = table.split else {
        let base = aligned(table.base, log2.saturating_add(6));
        return entry(host, identification, base, id, table.snoop);
    };
    let descriptor = match cache.stream_descriptor(stream) {
        Some(descriptor) => descriptor,
        None => {
            // 6.3.24: aligned to its size, and at least to an STE's.
            let size = log2.saturating_sub(split).saturating_add(3).max(6);
            let at = aligned(table.base, size) | id.wrapping_shr(u32::from(split)).wrapping_shl(3);
            let descriptor = L1Std(read(host, identification, (at, 0), table.snoop)?);
            cache.keep_stream_descriptor(stream, descriptor);
            descriptor
        }
    };
    // 5.1.1, 7.3.3.
    let below = id & low_bits(split);
    match descriptor.entries_log2() {
        Some(entries) if entries <= split && !is_beyond(below, entries) => {
            let base = aligned(descriptor.table(), entries.saturating_add(6));
            entry(host, identification, base, below, table.snoop)
        }
        _ => Err(unknown),
    }
}

fn entry<H: Host + ?Sized>(
    host: &H,
    identification: &Identification,
    base: u64,
    index: u64,
    snoop: Snoop,
) -> Result<Ste, Fault> {
    let base = base | index.wrapping_shl(6);
    let mut words = [0; STE_WORDS];
    for (word, at) in words.iter_mut().zip(0..) {
        *word = read(host, identification, (base, at), snoop)?;
    }
    Ok(Ste { words })
}

/// Reads a quadword of the structure at `base`, which a fault names. What is beyond the output size cannot be
/// read (3.4.3).
fn read<H: Host + ?Sized>(
    host: &H,
    identification: &Identification,
    (base, index): (u64, u64),
    snoop: Snoop,
) -> Result<u64, Fault> {
    let fault = Fault::fetch(EventKind::F_STE_FETCH, base);
    if is_beyond(base, output_size(identification)) {
        return Err(fault);
    }
    host.read(quadword(base, index), snoop).map_err(|_| fault)
}

const fn aligned(base: PhysAddr, log2: u8) -> u64 {
    base.as_u64() & !low_bits(log2)
}

/// Whose tables a stream has in stage 1 (SMMU 3.3.3), of those for Non-secure streams.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::StreamWorld;
/// assert_ne!(StreamWorld::NsEl1, StreamWorld::NsEl2);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamWorld {
    /// An operating system's: tagged with ASID and VMID.
    NsEl1,
    /// A hypervisor's: one table, and no tags.
    NsEl2,
    /// Those of a hypervisor that is an operating system: tagged with an ASID.
    NsEl2E2h,
}

/// CR2.E2H: what a stream with STRW 0b10 is.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{E2h, StreamWorld, world};
/// use iommu::arch::smmuv3::layout::{Identification, Ste};
/// assert_eq!(world(&Identification::default(), &Ste::abort(), E2h::On), StreamWorld::NsEl1);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum E2h {
    /// NS-EL2.
    Off,
    /// NS-EL2-E2H.
    On,
}

/// Whether STRW does not count (SMMU 5.2.2, IgnoreSTESTRW).
pub(super) fn ignores_world(identification: &Identification, config: Config) -> bool {
    !identification.idr0().contains(Idr0::S1P | Idr0::HYP) || config != Config::Stage1
}

/// The stream world of a valid STE (SMMU 5.2, STRW).
pub fn world(identification: &Identification, ste: &Ste, e2h: E2h) -> StreamWorld {
    if ignores_world(identification, ste.config()) || ste.stream_world() != 0b10 {
        return StreamWorld::NsEl1;
    }
    match e2h {
        E2h::Off => StreamWorld::NsEl2,
        E2h::On => StreamWorld::NsEl2E2h,
    }
}

/// Which way a request takes.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{Route, route};
/// use iommu::arch::smmuv3::layout::{Identification, Ste};
/// assert_eq!(route(&Identification::default(), &Ste::abort(), None), Ok(Route::Abort));
/// assert_eq!(route(&Identification::default(), &Ste::bypass(), None), Ok(Route::Onward { cd: None }));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// It is aborted, and nothing is recorded.
    Abort,
    /// Through stage 1 with the CD of this index, if there is one; then through stage 2, if Config says so.
    Onward {
        /// The index of the CD; `None` when stage 1 is bypassed.
        cd: Option<u32>,
    },
}

/// What a valid STE makes of a request with this SubstreamID, or without (SMMU 5.2: Config, S1CDMax, S1DSS).
///
/// # Errors
/// C_BAD_SUBSTREAMID, F_STREAM_DISABLED.
pub fn route(identification: &Identification, ste: &Ste, substream: Option<u32>) -> Result<Route, Fault> {
    let config = ste.config();
    let beyond = Err(Fault::configuration(EventKind::C_BAD_SUBSTREAMID));
    let disabled = Err(Fault::configuration(EventKind::F_STREAM_DISABLED));
    // S1CDMax is ignored without substreams.
    let most = if identification.substream_id_bits() == 0 { 0 } else { ste.cd_max() };
    match (config, substream) {
        (Config::Abort, _) => Ok(Route::Abort),
        (Config::Bypass | Config::Stage2, None) => Ok(Route::Onward { cd: None }),
        (Config::Bypass | Config::Stage2, Some(_)) => beyond,
        (Config::Stage1 | Config::Nested, None) if most == 0 => Ok(Route::Onward { cd: Some(0) }),
        (Config::Stage1 | Config::Nested, None) => match ste.default_substream() {
            DefaultSubstream::Bypass => Ok(Route::Onward { cd: None }),
            DefaultSubstream::Substream0 => Ok(Route::Onward { cd: Some(0) }),
            DefaultSubstream::Terminate | DefaultSubstream::Reserved => disabled,
        },
        (Config::Stage1 | Config::Nested, Some(id)) if most == 0 || is_beyond(u64::from(id), most) => beyond,
        (Config::Stage1 | Config::Nested, Some(0)) if ste.default_substream() == DefaultSubstream::Substream0 => {
            disabled
        }
        (Config::Stage1 | Config::Nested, Some(id)) => Ok(Route::Onward { cd: Some(id) }),
    }
}

/// What a valid STE makes of a request's privilege and kind (SMMU 13.1.4: PRIVCFG, INSTCFG).
pub fn overridden(identification: &Identification, ste: &Ste, lookup: &Lookup) -> Lookup {
    if !identification.idr1().contains(Idr1::ATTR_PERMS_OVR) {
        return *lookup;
    }
    let privilege = match ste.privilege() {
        0b10 => Privilege::Unprivileged,
        0b11 => Privilege::Privileged,
        _ => lookup.privilege,
    };
    let access = match (lookup.access, ste.instruction()) {
        (Access::Read | Access::Execute, 0b10) => Access::Read,
        (Access::Read | Access::Execute, 0b11) => Access::Execute,
        (access, _) => access,
    };
    Lookup { privilege, access, ..*lookup }
}
