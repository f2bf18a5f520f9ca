//! Attach, detach and replace: groups move from domain to domain.

use core::time::Duration;

use super::ats::uses_device_tlbs;
use super::spec::covers;
use super::{BootPolicy, Iommu};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::device::{Device, DeviceIommu, MAX_SOURCES, Trust};
use crate::domain::{Domain, DomainKind};
use crate::error::{BusyReason, Error, IncompatibleReason, InvalidReason, Result, WaitReason};
use crate::group::{Group, GroupState};
use crate::id::SourceId;
use crate::ops::{Stage, Unit};
use crate::platform::Platform;
use crate::prot::Prot;
use crate::region::{RegionKind, ReservedRegion};
use crate::sync::wait_until;

/// How long a change of a group waits for another processor's change of it.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);

/// How often a direct region is looked at again because somebody mapped it meanwhile.
const DIRECT_RETRIES: usize = 3;

impl<P: Platform> Iommu<P> {
    /// Attaches a domain to a device that is alone in its group.
    ///
    /// # Errors
    /// [`InvalidReason::SharedGroup`] when it is not alone; else as
    /// [`attach_group`](Self::attach_group).
    #[doc(alias = "iommu_attach_device")]
    pub fn attach_device(&self, domain: &Domain, device: &Device) -> Result<()> {
        self.claim_alone(device)?.attach(domain)
    }

    /// Puts the default domain back on a device that is alone in its group.
    ///
    /// # Errors
    /// As [`detach_group`](Self::detach_group).
    #[doc(alias = "iommu_detach_device")]
    pub fn detach_device(&self, domain: &Domain, device: &Device) -> Result<()> {
        self.claim_alone(device)?.detach(domain)
    }

    /// Attaches a domain to every device of a group that has its default domain, or is blocked.
    /// Direct regions of the devices are mapped first. In between a device sees the old
    /// translation, the new one, or a block. The same domain again is no action.
    ///
    /// # Errors
    /// [`BusyReason::Attached`] when the group has another domain: [`replace`](Self::replace) takes
    /// it anyway. [`Error::Incompatible`] when the domain does not fit a device, for instance a
    /// blocked one for a device with a direct region. After any error every device has the domain it
    /// had before, or, if the hardware failed, is blocked; then attaching the same domain anew is an
    /// action.
    #[doc(alias = "iommu_attach_group")]
    pub fn attach_group(&self, domain: &Domain, group: &Group) -> Result<()> {
        self.claim(group)?.attach(domain)
    }

    /// Attaches `domain` in place of whatever the group is attached to.
    ///
    /// # Errors
    /// As [`attach_group`](Self::attach_group), but for [`BusyReason::Attached`].
    #[doc(alias = "iommu_group_replace_domain")]
    pub fn replace(&self, domain: &Domain, group: &Group) -> Result<()> {
        self.claim(group)?.switch(domain)
    }

    /// Ends the attachment of `domain`: the group goes to its default domain, or, while it has an
    /// owner, to the blocked one. Should the hardware refuse, the devices are blocked.
    ///
    /// # Errors
    /// [`InvalidReason::WrongDomain`] when the group is not attached to `domain`.
    #[doc(alias = "iommu_detach_group")]
    pub fn detach_group(&self, domain: &Domain, group: &Group) -> Result<()> {
        self.claim(group)?.detach(domain)
    }

    /// The domain that a group is attached to. Any context.
    #[doc(alias = "iommu_get_domain_for_dev")]
    pub fn domain_of(&self, group: &Group) -> Domain {
        group.slot().state.lock(&self.platform).domain.clone()
    }

    /// The domain that a group goes back to when it is detached. Any context.
    pub fn default_domain_of(&self, group: &Group) -> Domain {
        group.slot().state.lock(&self.platform).default.clone()
    }

    /// Whether `domain` is one that a group has before anybody attached anything.
    pub(super) fn is_initial(&self, domain: &Domain) -> bool {
        let identity = self.policy.boot == BootPolicy::IdentityUntilClaimed && domain.ptr_eq(&self.identity);
        identity || domain.ptr_eq(&self.blocked)
    }

    /// The right to change a group. Others wait, without a lock being held meanwhile.
    #[inline(never)]
    pub(super) fn claim<'a>(&'a self, group: &'a Group) -> Result<Claim<'a, P>> {
        wait_until(&self.platform, CLAIM_LIMIT, WaitReason::Claim, || {
            let mut state = group.slot().state.lock(&self.platform);
            let free = !state.changing;
            state.changing = true;
            // Made only when it is granted: dropping one ends the other processor's claim.
            free.then(|| Claim { iommu: self, group })
        })
        .map_err(|_| Error::Busy(BusyReason::Changing))
    }

    /// The group of a device that was not released.
    pub(super) fn group_of<'a>(&self, device: &'a Device) -> Result<&'a Group> {
        if self.is_present(device) { device.group() } else { Err(Error::NoDevice) }
    }

    /// As [`claim`](Self::claim), for a device that is alone in its group and stays so meanwhile.
    fn claim_alone<'a>(&'a self, device: &'a Device) -> Result<Claim<'a, P>> {
        let group = self.group_of(device)?;
        let claim = self.claim(group)?;
        match self.members(group).nth(1) {
            Some(_) => Err(Error::Invalid(InvalidReason::SharedGroup)),
            None => Ok(claim),
        }
    }
}

/// A group that only this processor changes. Dropping it lets others.
pub(super) struct Claim<'a, P: Platform> {
    pub(super) iommu: &'a Iommu<P>,
    group: &'a Group,
}

impl<P: Platform> Claim<'_, P> {
    /// Looks at the state, under its lock.
    pub(super) fn read<T>(&self, look: impl FnOnce(&GroupState) -> T) -> T {
        look(&self.group.slot().state.lock(&self.iommu.platform))
    }

    /// Changes the state, under its lock.
    pub(super) fn write<T>(&self, change: impl FnOnce(&mut GroupState) -> T) -> T {
        change(&mut self.group.slot().state.lock(&self.iommu.platform))
    }

    /// See [`Iommu::attach_group`].
    fn attach(&self, domain: &Domain) -> Result<()> {
        let (current, default) = self.read(|state| (state.domain.clone(), state.default.clone()));
        if !current.ptr_eq(domain) && !current.ptr_eq(&default) && !self.iommu.is_initial(&current) {
            return Err(Error::Busy(BusyReason::Attached));
        }
        self.switch(domain)
    }

    /// See [`Iommu::detach_group`].
    fn detach(&self, domain: &Domain) -> Result<()> {
        let (current, target) = self.read(|state| {
            let target = if state.owner.is_some() { &self.iommu.blocked } else { &state.default };
            (state.domain.clone(), target.clone())
        });
        if !current.ptr_eq(domain) {
            return Err(Error::Invalid(InvalidReason::WrongDomain));
        }
        self.switch_or_block(&target);
        Ok(())
    }

    /// Moves every device of the group to `domain`, or leaves all where they are.
    pub(super) fn switch(&self, domain: &Domain) -> Result<()> {
        if self.iommu.members(self.group).next().is_none() {
            return Err(Error::NoDevice);
        }
        if self.read(|state| state.in_doubt) {
            self.check_members(domain, None)?;
            self.block_all();
        }
        let old = self.read(|state| state.domain.clone());
        if old.ptr_eq(domain) {
            return Ok(());
        }
        self.move_all(domain, &old, None)?;
        // The old handle is dropped outside the lock: it may be the last one.
        let _old = self.write(|state| core::mem::replace(&mut state.domain, domain.clone()));
        Ok(())
    }

    fn check_members(&self, domain: &Domain, newcomer: Option<&Device>) -> Result<()> {
        self.members(newcomer).try_for_each(|device| check(domain, device.iommu()?))
    }

    /// Moves the sources of every member but `newcomer` from `old` to `domain`, or none.
    fn move_all(&self, domain: &Domain, old: &Domain, newcomer: Option<&Device>) -> Result<()> {
        self.check_members(domain, newcomer)?;
        for device in self.members(newcomer) {
            map_direct_regions(domain, device.iommu()?, self.scope_of(domain))?;
        }
        if !uses_device_tlbs(domain) {
            self.turn_all_off(newcomer);
        }
        let mut moved = 0usize;
        let result = self.each_source(newcomer, &mut |unit, source| {
            unit.attach(unit, &self.requester(source), domain, old)?;
            moved += 1;
            Ok(())
        });
        let mut lets_through = domain;
        if let Err(error) = result {
            // Where the hardware failed, the device that it failed for may be blocked.
            let failed = matches!(error, Error::Fenced | Error::TimedOut(_) | Error::Invalidation { .. });
            lets_through = if failed { &self.iommu.blocked } else { old };
            self.turn_all_off(newcomer);
            let _ = self.each_source(newcomer, &mut |unit, source| {
                // Stops where the way there did.
                moved = moved.checked_sub(1).ok_or(error)?;
                if unit.attach(unit, &self.requester(source), old, domain).is_err() {
                    unit.block(unit, &self.requester(source), domain);
                    lets_through = &self.iommu.blocked;
                }
                Ok(())
            });
            let in_doubt = !lets_through.ptr_eq(old);
            self.write(|state| state.in_doubt |= in_doubt);
        }
        if uses_device_tlbs(lets_through) {
            self.members(newcomer).for_each(|device| self.turn_on(&device));
        }
        result
    }

    /// As [`switch`](Self::switch); devices that cannot be moved are blocked. Cannot fail.
    pub(super) fn switch_or_block(&self, domain: &Domain) {
        if self.switch(domain).is_err() {
            self.block_all();
        }
    }

    /// Blocks every device of the group, whatever hardware did before.
    fn block_all(&self) {
        let old = self.write(|state| {
            state.in_doubt = false;
            core::mem::replace(&mut state.domain, self.iommu.blocked.clone())
        });
        self.turn_all_off(None);
        let _ = self.each_source(None, &mut |unit, source| {
            unit.block(unit, &self.requester(source), &old);
            Ok(())
        });
    }

    /// Lets a device that joins the group reach what the others reach. After an error its sources
    /// are as before: blocked, but for those that others share.
    pub(super) fn admit(&self, device: &Device) -> Result<()> {
        self.refit_default(device)?;
        let domain = self.read(|state| state.domain.clone());
        let iommu = device.iommu()?;
        check(&domain, iommu)?;
        map_direct_regions(&domain, iommu, self.scope_of(&domain))?;
        let unit = &iommu.unit;
        let mut attached = 0;
        let sources = self.own_sources(device);
        let result = sources.iter().try_for_each(|source| {
            unit.attach(unit, &self.requester(*source), &domain, &self.iommu.blocked)?;
            attached += 1;
            Ok(())
        });
        if result.is_err() {
            sources.iter().take(attached).for_each(|source| unit.block(unit, &self.requester(*source), &domain));
        } else if uses_device_tlbs(&domain) {
            self.turn_on(device);
        }
        result
    }

    /// Blocks the sources of a device that leaves, but for those that another member shares.
    pub(super) fn dismiss(&self, device: &Device) {
        let domain = self.read(|state| state.domain.clone());
        self.turn_off(device);
        if let Ok(DeviceIommu { unit, .. }) = device.iommu() {
            self.own_sources(device).iter().for_each(|source| unit.block(unit, &self.requester(*source), &domain));
        }
    }

    /// Makes a new default domain when the old one does not fit a device that joins: because of its
    /// reserved regions, or because it is not trusted and the others were let through.
    fn refit_default(&self, newcomer: &Device) -> Result<()> {
        let (current, default, in_use) = self
            .read(|state| (state.domain.clone(), state.default.clone(), state.drivers > 0 || state.owner.is_some()));
        let untrusted = newcomer.trust() == Trust::Untrusted;
        let fits = check(&default, newcomer.iommu()?).is_ok() && !(untrusted && default.kind() != DomainKind::Paging);
        let let_through = untrusted && current.kind() == DomainKind::Identity;
        if fits && !let_through {
            return Ok(());
        }
        let is_default = current.ptr_eq(&default);
        if in_use || !(is_default || self.iommu.is_initial(&current)) {
            return Err(Error::Busy(BusyReason::InUse));
        }
        let target = if fits { default.clone() } else { self.iommu.default_paging(self.group)? };
        self.write(|state| state.default = target.clone());
        if is_default || let_through {
            if let Err(error) = self.move_all(&target, &current, Some(newcomer)) {
                self.write(|state| state.default = default);
                return Err(error);
            }
            self.write(|state| state.domain = target);
        }
        Ok(())
    }

    pub(super) fn members(&self, newcomer: Option<&Device>) -> impl Iterator<Item = Device> {
        self.iommu.members(self.group).filter(move |device| Some(device) != newcomer)
    }

    /// The sources of a device that no other member behind its unit shares.
    #[inline(never)]
    fn own_sources(&self, device: &Device) -> heapless::Vec<SourceId, MAX_SOURCES> {
        let shared = |source: &SourceId| self.members(Some(device)).any(|other| sends_as(&other, device, *source));
        device.sources().iter().copied().filter(|source| !shared(source)).collect()
    }

    /// Calls `visit` with every source id of the members and the unit that it is behind, each id once a
    /// unit, until it fails.
    #[inline(never)]
    fn each_source(
        &self,
        newcomer: Option<&Device>,
        visit: &mut dyn FnMut(&Unit, SourceId) -> Result<()>,
    ) -> Result<()> {
        for device in self.members(newcomer) {
            let Ok(DeviceIommu { unit, .. }) = device.iommu() else { continue };
            for source in device.sources() {
                let first_user = self.members(newcomer).find(|member| sends_as(member, &device, *source));
                if first_user.as_ref() == Some(&device) {
                    visit(unit, *source)?;
                }
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn turn_all_off(&self, newcomer: Option<&Device>) {
        self.members(newcomer).for_each(|device| self.turn_off(&device));
    }

    /// Relaxable direct regions belong to the default domain alone.
    fn scope_of(&self, domain: &Domain) -> DirectScope {
        if self.read(|state| state.default.ptr_eq(domain)) { DirectScope::WithRelaxable } else { DirectScope::Strict }
    }
}

impl<P: Platform> Drop for Claim<'_, P> {
    fn drop(&mut self) {
        self.write(|state| state.changing = false);
    }
}

/// Whether `other` is behind the unit of `device` and sends requests under `source`. Should firmware
/// put devices that share an alias behind different units, each unit knows of the alias.
fn sends_as(other: &Device, device: &Device, source: SourceId) -> bool {
    let (Ok(unit), Ok(theirs)) = (device.unit(), other.unit()) else { return false };
    theirs.ptr_eq(unit) && other.sources().iter().any(|theirs| unit.is_same_source(*theirs, source))
}

/// Which direct regions a domain must hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DirectScope {
    Strict,
    WithRelaxable,
}

/// Whether the domain may be given to the device at all.
pub(super) fn check(domain: &Domain, device: &DeviceIommu) -> Result<()> {
    match domain.kind() {
        DomainKind::Blocked if device.regions.require_direct() => {
            Err(Error::Incompatible(IncompatibleReason::DirectRegion))
        }
        DomainKind::Paging => {
            let covered = covers(device, domain.ops().stage(), domain.windows())?;
            if covered { Ok(()) } else { Err(Error::Incompatible(IncompatibleReason::Window)) }
        }
        _ => Ok(()),
    }
}

/// Maps the direct regions of a device one to one in a paging domain, as far as they are not.
/// They stay when the attach fails: they permit nothing that the firmware did not ask for.
pub(super) fn map_direct_regions(domain: &Domain, device: &DeviceIommu, scope: DirectScope) -> Result<()> {
    if domain.kind() != DomainKind::Paging {
        return Ok(());
    }
    for region in device.regions.iter() {
        let wanted = match region.kind {
            RegionKind::Direct => true,
            RegionKind::DirectRelaxable => scope == DirectScope::WithRelaxable,
            _ => false,
        };
        if wanted {
            let smallest = domain.page_sizes().smallest().ok_or(Error::Invalid(InvalidReason::NoPageSize))?;
            // Outward, so that no byte at either end is lost.
            let range = region.range.align_outward(smallest.bytes());
            map_direct_region(domain, ReservedRegion { range, ..*region })?;
        }
    }
    Ok(())
}

/// Maps a region one to one, as far as it is not. What is mapped there must be the same.
pub(crate) fn map_direct_region(domain: &Domain, region: ReservedRegion) -> Result<()> {
    // A second stage does not know who is privileged.
    let unknown = if domain.ops().stage() == Some(Stage::Second) { Prot::PRIV } else { Prot::empty() };
    let last = region.range.last();
    let mut next = Some(region.range.start());
    let mut retries = 0;
    while let Some(from) = next.filter(|from| *from <= last) {
        let run = domain.ops().next_run(from, last);
        let hole_last = match run {
            Some(run) if run.range.start() <= from => {
                // Other permissions are hints that not every format can express.
                let direct =
                    run.phys.as_u64() == run.range.start().as_u64() && run.prot.contains(region.prot & Prot::RW);
                if !direct {
                    return Err(Error::Incompatible(IncompatibleReason::Reserved));
                }
                next = run.range.last().checked_add(1);
                continue;
            }
            Some(run) => Iova::new(run.range.start().as_u64().wrapping_sub(1)),
            None => last,
        };
        let hole = IovaRange::new(from, hole_last)?;
        // SAFETY: firmware reserved this memory for the device; nobody else maps in a direct region,
        // which is outside every window, but another attach that maps the same.
        match unsafe { domain.ops().map_reserved(hole, PhysAddr::new(from.as_u64()), region.prot & !unknown) } {
            Ok(()) => next = hole.last().checked_add(1),
            // Another attach was faster: look again.
            Err(Error::Exists { .. }) if retries < DIRECT_RETRIES => retries += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
