//! Domains: I/O address spaces.

mod dirty;
mod features;
mod fixed;
mod paging;
mod site;
mod walk;

use core::fmt;

pub use crate::pgtable::DirtyRead;
pub use dirty::{DirtyBitmap, DirtyTracking};
pub use fixed::FixedDomain;
pub use paging::PagingDomain;
#[cfg(order_mutants)]
pub use site::SITES;
pub use walk::Walk;

use crate::addr::{Iova, IovaRange, PhysAddr, PhysRange};
use crate::error::{Error, InvalidReason, Result};
use crate::frames::Ref;
use crate::iotlb::{Flush, Gather};
use crate::ops::{DomainFeatures, DomainOps, Stage};
use crate::pgtable::PageSizes;
use crate::prot::Prot;
use crate::window::Windows;

/// What a domain does with the addresses of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DomainKind {
    /// No access at all.
    Blocked,
    /// Addresses pass unchanged.
    Identity,
    /// Addresses are translated as mapped.
    Paging,
}

/// What a caller wishes of a new paging domain.
///
/// ```
/// use iommu::domain::DomainOptions;
/// use iommu::ops::DomainFeatures;
/// let for_migration = DomainOptions { features: DomainFeatures::DIRTY_TRACKING, ..DomainOptions::default() };
/// assert_eq!(for_migration.stage, None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DomainOptions {
    /// The stage of translation; `None` leaves the choice to the core.
    pub stage: Option<Stage>,
    /// What the domain must be able to do.
    pub features: DomainFeatures,
}

/// A counted handle to a domain, an I/O address space.
///
/// Clones are the same domain; it goes when the last handle and the last attachment go. All methods
/// may be called from any context unless they say otherwise, and on several processors at once. The
/// last handle is for task context: dropping it gives frames back.
#[doc(alias = "iommu_domain")]
#[derive(Clone)]
pub struct Domain(Ref<dyn DomainOps>);

impl Domain {
    /// A handle to the domain in this slot; for backends.
    pub fn new(ops: Ref<dyn DomainOps>) -> Self {
        Self(ops)
    }

    /// The backend's side of the domain.
    #[inline]
    pub fn ops(&self) -> &dyn DomainOps {
        &*self.0
    }

    /// Whether both are the same domain.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Ref::ptr_eq(&self.0, &other.0)
    }

    /// What kind of domain this is.
    pub fn kind(&self) -> DomainKind {
        self.ops().kind()
    }

    /// The IOVAs that may be mapped, lowest first.
    pub fn windows(&self) -> &Windows {
        self.ops().windows()
    }

    /// The smallest range that holds every window (Linux's aperture), or `None` when nothing can be
    /// mapped. DMA outside faults.
    pub fn geometry(&self) -> Option<IovaRange> {
        self.windows().geometry()
    }

    /// Page sizes that mappings may have.
    pub fn page_sizes(&self) -> PageSizes {
        self.ops().page_sizes()
    }

    /// Maps `range` to the physical addresses from `phys` on, with the largest pages that fit. When
    /// this returns, devices can use the mapping.
    ///
    /// # Errors
    /// With nothing changed: [`Error::OutsideWindow`], [`Error::Invalid`] (misaligned, no
    /// permission), [`Error::OutOfRange`], [`Error::NoMemory`], [`Error::Exists`] (what this call
    /// had mapped is unmapped and invalidated again).
    ///
    /// # Safety
    /// Lends the memory to the domain's devices: until a gather that unmapped it was synced with
    /// success, devices may read and, with [`Prot::WRITE`], write it at any time. Calls for
    /// overlapping ranges of one domain must not run at the same time.
    #[doc(alias = "iommu_map")]
    #[inline]
    pub unsafe fn map(&self, range: IovaRange, phys: PhysAddr, prot: Prot) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.ops().map(range, phys, prot, PageSizes::ALL) }
    }

    /// As [`map`](Self::map), with pages of `sizes` only.
    ///
    /// # Errors
    /// As [`map`](Self::map); [`InvalidReason::NoPageSize`] when no size fits.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    #[inline]
    pub unsafe fn map_with(&self, range: IovaRange, phys: PhysAddr, prot: Prot, sizes: PageSizes) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.ops().map(range, phys, prot, sizes) }
    }

    /// Maps a list of physical ranges one after the other from `iova` on; neighbours are merged, so
    /// that they can share a large page. Gives the range mapped.
    ///
    /// # Errors
    /// As [`map`](Self::map), with nothing left mapped; [`InvalidReason::EmptyRange`] for an empty
    /// list.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    #[doc(alias = "iommu_map_sg")]
    pub unsafe fn map_sg(&self, iova: Iova, list: &[PhysRange], prot: Prot) -> Result<IovaRange> {
        // `None` when the top page was mapped: nothing can follow it.
        let mut next = Some(iova);
        let mut mapped = None;
        for chunk in list.chunk_by(|a, b| a.last().checked_add(1) == Some(b.start())) {
            let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else { continue };
            let mapping = PhysRange::new(first.start(), last.last())
                .and_then(|phys| phys.bytes().ok_or(TOP))
                .and_then(|bytes| IovaRange::from_len(next.ok_or(TOP)?, bytes))
                // SAFETY: passed on to the caller.
                .and_then(|range| unsafe { self.map(range, first.start(), prot) }.map(|()| range));
            match mapping {
                Ok(range) => {
                    mapped = Some(IovaRange::new(iova, range.last())?);
                    next = range.last().checked_add(1);
                }
                Err(error) => {
                    if let Some(range) = mapped {
                        let mut gather = self.gather();
                        // SAFETY: this call mapped it and nobody else may use it yet.
                        let _ = unsafe { self.unmap(range, &mut gather) };
                        gather.sync().map_err(Error::from)?;
                    }
                    return Err(error);
                }
            }
        }
        mapped.ok_or(Error::Invalid(InvalidReason::EmptyRange))
    }

    /// An empty gather for this domain.
    #[inline]
    pub fn gather(&self) -> Gather<'_> {
        Gather::new(self)
    }

    /// Unmaps `range`, holes included, and notes in `gather` what must be invalidated. The memory
    /// stays lent to devices until the gather was synced. The record of what devices wrote goes with
    /// the mapping, see [`read_and_clear_dirty`](Self::read_and_clear_dirty).
    ///
    /// # Errors
    /// [`Error::PartialPage`] at a large page that the range covers only partly: what lies in the
    /// range below it is unmapped; [`cut`](Self::cut) splits it. [`Error::OutsideWindow`],
    /// [`Error::Invalid`] with nothing changed.
    ///
    /// # Safety
    /// Calls for overlapping ranges of one domain must not run at the same time.
    #[doc(alias = "iommu_unmap")]
    #[inline]
    pub unsafe fn unmap(&self, range: IovaRange, gather: &mut Gather<'_>) -> Result<()> {
        if !core::ptr::eq(self, gather.domain()) && !self.ptr_eq(gather.domain()) {
            return Err(Error::Invalid(InvalidReason::WrongDomain));
        }
        // SAFETY: passed on to the caller.
        unsafe { self.ops().unmap(range, &mut gather.flush) }
    }

    /// Unmaps `range` and waits until no device can reach it any more: [`unmap`](Self::unmap) and
    /// [`Gather::sync`] in one.
    ///
    /// # Errors
    /// Of both. After an error of the invalidation the memory stays lent, see [`Gather`].
    ///
    /// # Safety
    /// As [`unmap`](Self::unmap).
    pub unsafe fn unmap_sync(&self, range: IovaRange) -> Result<()> {
        let mut flush = Flush::new();
        // SAFETY: passed on to the caller.
        let unmapped = unsafe { self.ops().unmap(range, &mut flush) };
        if !flush.is_empty()
            && let Err(error) = self.ops().sync(&mut flush)
        {
            self.ops().defer(&mut flush);
            return Err(error);
        }
        unmapped
    }

    /// Splits the large pages that reach across the ends of `range`, so that it can be unmapped
    /// alone. Devices see the same translations all the time.
    ///
    /// # Errors
    /// [`Error::NoMemory`], [`Error::Unsupported`] where the format does not allow it live; nothing
    /// is lost then.
    ///
    /// # Safety
    /// As [`unmap`](Self::unmap); the whole of each page that is split counts as part of the range.
    pub unsafe fn cut(&self, range: IovaRange) -> Result<()> {
        let mut gather = self.gather();
        // SAFETY: passed on to the caller.
        unsafe { self.ops().cut(range, &mut gather.flush) }?;
        gather.sync().map_err(Error::from)
    }

    /// Changes what the mappings in `range` permit, and waits until every device obeys.
    ///
    /// # Errors
    /// [`Error::NotMapped`] at the first hole, [`Error::PartialPage`]; what lies below has changed.
    ///
    /// # Safety
    /// As [`map`](Self::map), for the new permission.
    pub unsafe fn protect(&self, range: IovaRange, prot: Prot) -> Result<()> {
        let mut gather = self.gather();
        // SAFETY: passed on to the caller.
        let changed = unsafe { self.ops().protect(range, prot, &mut gather.flush) };
        gather.sync().map_err(Error::from)?;
        changed
    }

    /// Which features are on at the moment.
    pub fn features(&self) -> DomainFeatures {
        self.ops().features()
    }

    /// Makes every request of every device snoop the processor's caches, whatever the device asks
    /// for, from now on and for good: only units with [`DomainFeatures::CACHE_COHERENCY`] can be
    /// attached afterwards. Nobody may map at the same time. Task context.
    ///
    /// A second stage says it in each mapping, so it must be empty; for a first stage the units say it.
    ///
    /// # Errors
    /// With nothing changed: [`IncompatibleReason::Features`](crate::IncompatibleReason::Features) when
    /// a unit that uses the domain cannot; [`BusyReason::InUse`](crate::BusyReason::InUse) when a
    /// mapping is in the way; those of [`IommuOps::refresh`](crate::ops::IommuOps::refresh).
    pub fn enforce_cache_coherency(&self) -> Result<()> {
        self.ops().enforce_cache_coherency(self)
    }

    /// Turns the record of what devices write on or off, for a domain that was made with
    /// [`DomainFeatures::DIRTY_TRACKING`]. Task context.
    ///
    /// Turning it on forgets what was recorded before; after an error too, and it is off then.
    /// Turning it off keeps the record, which can still be read.
    ///
    /// # Errors
    /// [`UnsupportedReason::Features`](crate::UnsupportedReason::Features) for any other paging domain;
    /// those of [`IommuOps::refresh`](crate::ops::IommuOps::refresh) and
    /// [`IommuOps::wait`](crate::ops::IommuOps::wait).
    #[doc(alias = "iommu_domain_set_dirty_tracking")]
    pub fn set_dirty_tracking(&self, tracking: DirtyTracking) -> Result<()> {
        self.ops().set_dirty_tracking(self, tracking)
    }

    /// Sets the bits of the pages in `range` that a device wrote since they were mapped, or since
    /// their record was cleared. A large page has one record, for all bits that stand for it.
    ///
    /// With [`DirtyRead::Clear`] the record is cleared, and when this returns every cache that had the
    /// old record has dropped it: a write from then on is recorded anew. Copy the memory afterwards,
    /// and each write is either in the copy or in the next read. May be called beside every other
    /// call; what is mapped or unmapped meanwhile is read or not.
    ///
    /// Unmapping drops the record. Who must not lose it takes the permission to write away first
    /// ([`protect`](Self::protect)), then reads, then unmaps.
    ///
    /// # Errors
    /// - With nothing changed: [`UnsupportedReason::Features`](crate::UnsupportedReason::Features) for a
    ///   domain without [`DomainFeatures::DIRTY_TRACKING`]; [`InvalidReason::NoPageSize`] when a bit
    ///   stands for less than the smallest page, [`InvalidReason::Misaligned`] when the range cuts a
    ///   bit's pages, [`InvalidReason::Bitmap`] when it leaves the bitmap; [`Error::OutsideWindow`];
    ///   [`Error::NotMapped`] at the first hole; [`Error::PartialPage`] at a large page that the range
    ///   covers only partly.
    /// - Those of an invalidation. The bitmap holds what was read, and the same pages are recorded as
    ///   written again, so that the next read reports them once more.
    #[doc(alias = "iommu_read_and_clear_dirty")]
    pub fn read_and_clear_dirty(&self, range: IovaRange, read: DirtyRead, bitmap: &mut DirtyBitmap<'_>) -> Result<()> {
        self.ops().read_and_clear_dirty(range, read, bitmap)
    }

    /// Invalidates and frees what gathers left behind with [`Gather::defer`], or because an
    /// invalidation had failed. When another processor is at it, this waits until that one is done.
    ///
    /// # Errors
    /// As [`Gather::sync`]; [`Error::TimedOut`] when the other processor takes too long. Everything
    /// stays deferred.
    pub fn flush_deferred(&self) -> Result<()> {
        self.ops().flush_deferred()
    }

    /// Where `iova` goes, or `None` if a device would fault there. A snapshot: another processor
    /// may change it meanwhile.
    #[doc(alias = "iommu_iova_to_phys")]
    #[inline]
    pub fn iova_to_phys(&self, iova: Iova) -> Option<PhysAddr> {
        self.ops().iova_to_phys(iova)
    }

    /// As [`iova_to_phys`](Self::iova_to_phys), without registering as a reader, which costs more than
    /// the look-up itself.
    ///
    /// # Safety
    /// Nobody unmaps, or maps a large page where small ones were, during the call: the tables that
    /// are read must not be freed.
    #[inline]
    pub unsafe fn iova_to_phys_unregistered(&self, iova: Iova) -> Option<PhysAddr> {
        // SAFETY: passed on to the caller.
        unsafe { self.ops().iova_to_phys_unregistered(iova) }
    }

    /// The mappings in `range`: runs of equal pages, lowest first.
    pub fn walk(&self, range: IovaRange) -> Walk<'_> {
        Walk::new(self, range)
    }
}

/// Beyond the top of the 64-bit space.
const TOP: Error = Error::Invalid(InvalidReason::AddressOverflow);

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} domain", self.kind())?;
        for run in self.walk(IovaRange::full()) {
            write!(f, "\n  {run}")?;
        }
        Ok(())
    }
}
