//! Message-signalled interrupts: where a device writes to raise one.

use super::Iommu;
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::device::Device;
use crate::domain::{Domain, DomainKind};
use crate::error::{Error, InvalidReason, NoSpaceReason, Result};
use crate::ops::Stage;
use crate::platform::Platform;
use crate::prot::Prot;
use crate::region::RegionKind;

impl<P: Platform> Iommu<P> {
    /// The address that `device` must write to, in `domain`, to reach the interrupt controller's
    /// doorbell at `doorbell`.
    ///
    /// Where such writes are not translated (VT-d), or the domain does not translate, that is the
    /// doorbell itself. Where they are, the page of the doorbell is mapped in the window that the
    /// device reserves for it ([`RegionKind::SoftwareMsi`]), once for each domain; it stays mapped as
    /// long as the domain lives.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the window is full; those of [`Domain::map`];
    /// [`InvalidReason::NotPaging`] for a blocked domain, in which no interrupt arrives.
    #[doc(alias = "iommu_get_msi_cookie")]
    pub fn msi_address(&self, domain: &Domain, device: &Device, doorbell: PhysAddr) -> Result<Iova> {
        let window = device.reserved_regions()?.iter().find(|region| region.kind == RegionKind::SoftwareMsi);
        let untranslated = Iova::new(doorbell.as_u64());
        match (domain.kind(), window) {
            (DomainKind::Blocked, _) => Err(Error::Invalid(InvalidReason::NotPaging)),
            (DomainKind::Identity, _) | (DomainKind::Paging, None) => Ok(untranslated),
            (DomainKind::Paging, Some(window)) => map_doorbell(domain, window.range, doorbell),
        }
    }
}

fn map_doorbell(domain: &Domain, window: IovaRange, doorbell: PhysAddr) -> Result<Iova> {
    let bytes = domain.page_sizes().smallest().ok_or(Error::Invalid(InvalidReason::NoPageSize))?.bytes();
    let (page, offset) = (doorbell.align_down(bytes), doorbell.as_u64() & (bytes - 1));
    // A first stage cannot forbid reading.
    let access = if domain.ops().stage() == Some(Stage::First) { Prot::RW } else { Prot::WRITE };
    let mut next = Some(window.start());
    while let Some(iova) = next.filter(|iova| *iova <= window.last()) {
        match domain.iova_to_phys(iova) {
            Some(phys) if phys == page => return Ok(Iova::new(iova.as_u64() | offset)),
            Some(_) => next = iova.checked_add(bytes),
            None => {
                let range = IovaRange::from_len(iova, bytes)?;
                // SAFETY: the doorbell is a register of the interrupt controller, for devices to write.
                match unsafe { domain.ops().map_reserved(range, page, access | Prot::MMIO) } {
                    // Another processor was faster, with this doorbell or another one: look again.
                    Err(Error::Exists { .. }) => {}
                    Err(error) => return Err(error),
                    Ok(()) => return Ok(Iova::new(iova.as_u64() | offset)),
                }
            }
        }
    }
    Err(Error::NoSpace(NoSpaceReason::Doorbells))
}
