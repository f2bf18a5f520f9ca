//! Reserved regions: IOVAs of a device that are not free for mappings.

use crate::addr::IovaRange;
use crate::error::{Error, Result};
use crate::prot::Prot;

/// The most reserved regions that one device, or one group, has.
pub const MAX_RESERVED_REGIONS: usize = 16;

/// What a reserved region is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum RegionKind {
    /// Firmware's own: mapped one to one in every domain of the device, always.
    Direct,
    /// Firmware's own, one to one only until a driver owns the device.
    DirectRelaxable,
    /// Never to be mapped.
    Reserved,
    /// Writes are message-signalled interrupts and are not translated.
    Msi,
    /// Where software may place the mapping of the interrupt controller's doorbell; on hardware that
    /// translates message-signalled interrupts.
    SoftwareMsi,
}

/// A range of IOVAs that a device cannot use freely (Linux's `iommu_resv_region`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReservedRegion {
    /// First and last IOVA.
    pub range: IovaRange,
    /// What it is for.
    pub kind: RegionKind,
    /// What a direct region permits.
    pub prot: Prot,
}

/// The reserved regions of a device: sorted by kind and address, same-kind overlaps merged.
///
/// ```
/// use iommu::{Iova, IovaRange, Prot, RegionKind, ReservedRegion, ReservedRegions};
///
/// let mut regions = ReservedRegions::default();
/// for start in [0x2000, 0x1000] {
///     let range = IovaRange::from_len(Iova::new(start), 0x1000)?;
///     regions.add(ReservedRegion { range, kind: RegionKind::Direct, prot: Prot::RW })?;
/// }
/// assert_eq!(regions.iter().count(), 1);
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ReservedRegions {
    list: heapless::Vec<ReservedRegion, MAX_RESERVED_REGIONS>,
}

impl ReservedRegions {
    /// The regions.
    pub fn iter(&self) -> impl Iterator<Item = &ReservedRegion> {
        self.list.iter()
    }

    /// Adds a region; one of the same kind and permission that it touches or overlaps is merged.
    ///
    /// # Errors
    /// [`Error::Capacity`] beyond [`MAX_RESERVED_REGIONS`]; nothing is changed.
    pub fn add(&mut self, mut region: ReservedRegion) -> Result<()> {
        let mut list: heapless::Vec<ReservedRegion, MAX_RESERVED_REGIONS> = heapless::Vec::new();
        for old in &self.list {
            if old.kind == region.kind && old.prot == region.prot && touch(old.range, region.range) {
                let start = old.range.start().min(region.range.start());
                let last = old.range.last().max(region.range.last());
                region.range = IovaRange::new(start, last)?;
            } else {
                // No longer than the list it is copied from.
                let _ = list.push(*old);
            }
        }
        // What is in the list is in order already: a sort would be 3 KiB of code for one region.
        let key = |region: &ReservedRegion| (region.kind, region.range.start());
        let place = list.iter().position(|old| key(old) > key(&region)).unwrap_or(list.len());
        list.insert(place, region).map_err(|_| Error::Capacity("MAX_RESERVED_REGIONS"))?;
        self.list = list;
        Ok(())
    }

    /// Whether firmware demands a one-to-one mapping that no domain may lack.
    pub fn require_direct(&self) -> bool {
        self.list.iter().any(|region| region.kind == RegionKind::Direct)
    }
}

fn touch(a: IovaRange, b: IovaRange) -> bool {
    let adjacent = |low: IovaRange, high: IovaRange| low.last().checked_add(1) == Some(high.start());
    a.intersection(&b).is_some() || adjacent(a, b) || adjacent(b, a)
}
