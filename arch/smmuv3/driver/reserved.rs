//! Memory that firmware has streams use before anybody attaches them (RMR; `iommu-addresses`): those streams
//! reach it, one to one, and nothing else, until they are attached for the first time.

use super::cd_table::CdTable;
use super::stream_table::Levels;
use super::translation::{Path, Served};
use super::unit::SmmuUnit;
use crate::arch::smmuv3::layout::StreamId;
use crate::domain::{Domain, DomainKind};
use crate::error::{Error, Result};
use crate::frames::Registry;
use crate::iommu::map_direct_region;
use crate::ops::DomainSpec;
use crate::platform::Platform;
use crate::region::{RegionKind, ReservedRegion};

/// What the streams of one region go through: it is never unmapped from, and its number is not given to
/// another domain, so that nothing is invalidated when they leave it.
pub(super) struct Reserved<P: Platform> {
    _domain: Domain,
    _cds: Option<CdTable<P>>,
}

/// All of them. They live as long as the unit walks its tables.
pub(super) type AllReserved<P> = Registry<Reserved<P>, P>;

impl<P: Platform> SmmuUnit<P> {
    /// Makes the entries of all streams that have such memory. Nothing of the tables is shown to hardware
    /// yet.
    ///
    /// # Errors
    /// [`Error::NoMemory`](crate::Error::NoMemory), [`Error::NoSpace`](crate::Error::NoSpace).
    pub(super) fn let_reserved_through(&self) -> Result<()> {
        let holders = self.firmware.streams_with_regions().filter(|(unit, ..)| *unit == self.index);
        holders.into_iter().try_for_each(|(_, first, last)| match self.let_through(first, last) {
            Err(error @ (Error::NoMemory | Error::NoSpace(_))) => Err(error),
            // Where no table of the unit reaches, its streams would not either: they are blocked.
            Err(error) => {
                #[cfg(feature = "log")]
                log::warn!("{self:?}: the memory of streams {first} to {last} cannot be mapped: {error}");
                let _ = error;
                Ok(())
            }
            Ok(()) => Ok(()),
        })
    }

    fn let_through(&self, first: StreamId, last: StreamId) -> Result<()> {
        let is_direct =
            |region: &ReservedRegion| matches!(region.kind, RegionKind::Direct | RegionKind::DirectRelaxable);
        let stage = self.usual_stage();
        let (Some(traits), true) =
            (self.stage_traits(stage), self.firmware.regions(self.index, first).any(|region| is_direct(&region)))
        else {
            return Ok(());
        };
        let domain =
            self.new_domain(DomainKind::Paging, &DomainSpec { stage, traits, windows: self.stage_windows(stage) })?;
        let granule = 1 << self.granule.log2();
        for region in self.firmware.regions(self.index, first).filter(is_direct) {
            map_direct_region(&domain, ReservedRegion { range: region.range.align_outward(granule), ..region })?;
        }
        let path = self.untagged(&domain)?;
        let cds = match path {
            Path::Stage1(cd) => {
                let cds = CdTable::new(self.visibility(), 0, Levels::One)?;
                cds.write(None, 0, cd, self)?;
                Some(cds)
            }
            _ => None,
        };
        let entry = path.entry(Served::No, cds.as_ref());
        self.reserved.insert(Reserved { _domain: domain, _cds: cds })?;
        // Firmware may name more than there can be entries for: the rest is blocked anyway.
        (first.0..=last.0)
            .map(StreamId)
            .take_while(|stream| self.tables.covers(*stream))
            .try_for_each(|stream| self.tables.replace(stream, entry, self).map(drop))
    }
}
