//! Who may use a group: drivers through the default domain, or one owner with domains of its own.

use super::Iommu;
use crate::device::Device;
use crate::error::{BusyReason, Error, InvalidReason, Result};
use crate::group::{Group, Owner};
use crate::platform::Platform;

impl<P: Platform> Iommu<P> {
    /// A driver is bound to the device and will use the group's default domain. Counted. With
    /// [`BootPolicy::IdentityUntilClaimed`](super::BootPolicy::IdentityUntilClaimed) the first one
    /// moves the group there.
    ///
    /// # Errors
    /// [`BusyReason::Owned`] while the group has an owner, [`BusyReason::Attached`] while it is
    /// attached to another domain; [`Error::NoDevice`].
    #[doc(alias = "iommu_device_use_default_domain")]
    pub fn use_default_domain(&self, device: &Device) -> Result<()> {
        let claim = self.claim(self.group_of(device)?)?;
        let (current, default, owned) =
            claim.read(|state| (state.domain.clone(), state.default.clone(), state.owner.is_some()));
        if owned {
            return Err(Error::Busy(BusyReason::Owned));
        }
        if !current.ptr_eq(&default) && !self.is_initial(&current) {
            return Err(Error::Busy(BusyReason::Attached));
        }
        claim.switch(&default)?;
        claim.write(|state| state.drivers = state.drivers.saturating_add(1));
        Ok(())
    }

    /// A driver that used the default domain is unbound.
    ///
    /// # Errors
    /// [`InvalidReason::WrongOwner`] when none is bound.
    #[doc(alias = "iommu_device_unuse_default_domain")]
    pub fn unuse_default_domain(&self, device: &Device) -> Result<()> {
        self.claim(device.group()?)?.write(|state| {
            state.drivers = state.drivers.checked_sub(1).ok_or(Error::Invalid(InvalidReason::WrongOwner))?;
            Ok(())
        })
    }

    /// Takes the DMA of a group for `owner`, who attaches domains of its own; until then the group
    /// is blocked. The same owner may claim again, counted.
    ///
    /// # Errors
    /// [`BusyReason::DriversBound`], [`BusyReason::Owned`], [`BusyReason::Attached`];
    /// [`Error::Incompatible`] for a device with a direct region, which cannot be blocked.
    #[doc(alias = "iommu_group_claim_dma_owner")]
    pub fn claim_dma_owner(&self, group: &Group, owner: Owner) -> Result<()> {
        let claim = self.claim(group)?;
        let again = claim.write(|state| match &mut state.owner {
            Some((current, count)) if *current == owner => {
                *count = count.saturating_add(1);
                Ok(true)
            }
            Some(_) => Err(Error::Busy(BusyReason::Owned)),
            None if state.drivers > 0 => Err(Error::Busy(BusyReason::DriversBound)),
            None if !state.domain.ptr_eq(&state.default) && !self.is_initial(&state.domain) => {
                Err(Error::Busy(BusyReason::Attached))
            }
            None => Ok(false),
        })?;
        if !again {
            claim.switch(&self.blocked)?;
            claim.write(|state| state.owner = Some((owner, 1)));
        }
        Ok(())
    }

    /// Gives a claim back; with the last one the group goes to its default domain.
    ///
    /// # Errors
    /// [`InvalidReason::WrongOwner`] when `owner` has no claim.
    #[doc(alias = "iommu_group_release_dma_owner")]
    pub fn release_dma_owner(&self, group: &Group, owner: Owner) -> Result<()> {
        let claim = self.claim(group)?;
        let last = claim.write(|state| match &mut state.owner {
            Some((current, count)) if *current == owner => {
                *count = count.saturating_sub(1);
                let last = *count == 0;
                if last {
                    state.owner = None;
                }
                Ok(last)
            }
            _ => Err(Error::Invalid(InvalidReason::WrongOwner)),
        })?;
        if last {
            let default = claim.read(|state| state.default.clone());
            claim.switch_or_block(&default);
        }
        Ok(())
    }

    /// Whether the group has an owner. Any context.
    #[doc(alias = "iommu_group_dma_owner_claimed")]
    pub fn dma_owner_claimed(&self, group: &Group) -> bool {
        group.slot().state.lock(&self.platform).owner.is_some()
    }
}
