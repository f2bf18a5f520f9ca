//! Context descriptors: tables of them (SMMU 5.3, 5.4), and what a stream's requests are translated with.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::stage2::place;
use super::{Attributes, Fault, StreamWorld, StructureCache, is_beyond, low_bits, output_size, quadword};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::Host;
use crate::arch::smmuv3::layout::context::CD_WORDS;
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};
use crate::arch::smmuv3::layout::identification::Idr0;
use crate::arch::smmuv3::layout::stream_table::CdTableFormat;
use crate::arch::smmuv3::layout::{Asid, Cd, Identification, L1Cd, Ste, Vmid};
use crate::bus::Snoop;

/// What requests are translated with: valid structures.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{Context, StreamWorld, Tags};
/// use iommu::arch::smmuv3::layout::{Identification, Ste};
/// let bypass = Context { ste: Ste::bypass(), cd: None, world: StreamWorld::NsEl1 };
/// assert_eq!(bypass.tags(&Identification::default()).asid, None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// The STE.
    pub ste: Ste,
    /// The CD; `None` when stage 1 is bypassed.
    pub cd: Option<Cd>,
    /// Whose stage-1 tables they are.
    pub world: StreamWorld,
}

/// What a TLB tags translations with (SMMU 3.17).
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{StreamWorld, Tags};
/// use iommu::arch::smmuv3::layout::{Asid, Vmid};
/// let tags = Tags { world: StreamWorld::NsEl1, vmid: Vmid(0), asid: Some(Asid(7)), private: false };
/// assert_eq!(tags.asid, Some(Asid(7)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tags {
    /// The regime.
    pub world: StreamWorld,
    /// S2VMID; 0 where there is none: without stage 2 in the unit, and for hypervisors.
    pub vmid: Vmid,
    /// ASID of what stage 1 translates, where there are ASIDs.
    pub asid: Option<Asid>,
    /// ASET: the ASID takes no part in broadcast invalidation.
    pub private: bool,
}

impl Context {
    /// What its translations are tagged with.
    pub fn tags(&self, identification: &Identification) -> Tags {
        let has_vmid = self.world == StreamWorld::NsEl1 && identification.idr0().contains(Idr0::S2P);
        let has_asid = self.world != StreamWorld::NsEl2;
        Tags {
            world: self.world,
            vmid: if has_vmid { self.ste.vmid() } else { Vmid(0) },
            asid: self.cd.filter(|_| has_asid).map(|cd| cd.asid()),
            private: self.cd.is_some_and(|cd| cd.is_asid_private()),
        }
    }
}

/// Reads the CD of this index ([`Route`](super::Route) has it), in whatever state it is. The STE is valid.
///
/// Reads at most nine quadwords, and at most ten descriptors of stage 2.
///
/// # Errors
/// C_BAD_SUBSTREAMID of the level-1 table; F_CD_FETCH; those of stage 2, with CLASS CD.
pub fn context<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    identification: &Identification,
    ste: &Ste,
    index: u32,
    cache: &mut C,
) -> Result<Cd, Fault> {
    let reader = Reader { host, identification, ste };
    let base = ste.cd_table().as_u64();
    let max = if identification.substream_id_bits() == 0 { 0 } else { ste.cd_max() };
    let split = if max == 0 { None } else { ste.cd_format().split() };
    let index = u64::from(index);
    let Some(split) = split else {
        // Aligned to its size (S1Fmt).
        let base = base & !low_bits(max.saturating_add(6));
        return reader.descriptor(base | index.wrapping_shl(6), cache);
    };
    let pointer = match cache.context_descriptor(index as u32) {
        Some(pointer) => pointer,
        None => {
            let size = max.saturating_sub(split).saturating_add(3).max(6);
            let at = base & !low_bits(size) | index.wrapping_shr(u32::from(split)).wrapping_shl(3);
            let pointer = reader.level1(at, cache)?;
            cache.keep_context_descriptor(index as u32, pointer);
            pointer
        }
    };
    // 5.3.1; 3.4.3 (3) and (4a).
    let bad = Fault::configuration(EventKind::C_BAD_SUBSTREAMID);
    let table = pointer.table().ok_or(bad)?.as_u64();
    if is_beyond(table, output_size(identification)) {
        return Err(bad);
    }
    let table = match ste.cd_format() {
        CdTableFormat::TwoLevel64K => table & !low_bits(16),
        CdTableFormat::Linear | CdTableFormat::TwoLevel4K => table,
    };
    reader.descriptor(table | (index & low_bits(split)).wrapping_shl(6), cache)
}

struct Reader<'a, H: Host + ?Sized> {
    host: &'a H,
    identification: &'a Identification,
    ste: &'a Ste,
}

impl<H: Host + ?Sized> Reader<'_, H> {
    fn descriptor<C: StructureCache + ?Sized>(&self, address: u64, cache: &mut C) -> Result<Cd, Fault> {
        let (place, snoop) = self.place(address, cache)?;
        let mut words = [0; CD_WORDS];
        for (word, index) in words.iter_mut().zip(0..) {
            let at = quadword(place.as_u64(), index);
            *word = self.host.read(at, snoop).map_err(|_| fetch(place))?;
        }
        Ok(Cd { words })
    }

    fn level1<C: StructureCache + ?Sized>(&self, address: u64, cache: &mut C) -> Result<L1Cd, Fault> {
        let (place, snoop) = self.place(address, cache)?;
        self.host.read(place, snoop).map(L1Cd).map_err(|_| fetch(place))
    }

    fn place<C: StructureCache + ?Sized>(&self, address: u64, cache: &mut C) -> Result<(PhysAddr, Snoop), Fault> {
        let attributes = Attributes::from_fields(self.ste.cd_attributes());
        place(self.host, self.identification, self.ste, (address, FaultClass::Cd, attributes), cache)
    }
}

const fn fetch(place: PhysAddr) -> Fault {
    Fault::fetch(EventKind::F_CD_FETCH, place.as_u64())
}
