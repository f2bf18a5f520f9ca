//! Devices come and go.

use core::time::Duration;

use super::spec::{default_spec, windows_without};
use super::{BootPolicy, Iommu};
use crate::device::{Device, DeviceFeatures, DeviceId, DeviceInfo, DeviceIommu, DeviceSlot, Trust};
use crate::domain::DomainKind;
use crate::error::{BusyReason, Error, InvalidReason, Result, WaitReason};
use crate::group::{Group, GroupKey, GroupSlot, GroupState};
use crate::id::{PciAddress, SourceId};
use crate::ops::{Coverage, DomainSpec, Unit};
use crate::pci::{self, PciConfig, PciFunction};
use crate::platform::Platform;
use crate::region::ReservedRegions;
use crate::sync::{Lock, wait_until};

/// How long a probe waits for another processor's probe.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

impl<P: Platform> Iommu<P> {
    /// Takes in a PCI function: finds its unit, its aliases and its group, and lets it reach what
    /// the group's domain lets it reach. Bridges are probed like endpoints. Bus numbers must have
    /// been assigned, and the device should not do DMA yet.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when the function does not answer, when no IOMMU covers it (it is listed
    /// by [`uncovered`](Self::uncovered) then) or with [`BootPolicy::Off`];
    /// [`InvalidReason::Duplicate`] when it was probed before; [`InvalidReason::TwoGroups`] when
    /// devices of two groups cannot be told apart from it, so that it would have to be probed before
    /// them. After any error it is blocked.
    #[doc(alias = "iommu_probe_device")]
    pub fn probe_pci(&self, pci: &dyn PciConfig, address: PciAddress, trust: Trust) -> Result<Device> {
        let function = PciFunction::read(pci, address).ok_or(Error::NoDevice)?;
        if self.policy.boot != BootPolicy::Off {
            self.turn_off_leftover(pci, &function);
        }
        let bridges = pci::path(pci, address)?.iter().rev().map(|bridge| bridge.address).collect();
        let sources = pci::aliases(pci, address)?.iter().map(|alias| alias.source_id()).collect();
        pci::enable_acs(pci, address)?;
        let features = DeviceFeatures {
            ats: function.ats.is_some(),
            pri: function.pri.is_some(),
            pasid_bits: function.pasid.map_or(0, |pasid| pasid.width),
        };
        let info = DeviceInfo { id: DeviceId::Pci(address), sources, bridges, trust, features };
        let key = GroupKey::Pci(pci::group_key(pci, address)?);
        self.probe(info, key, pci)
    }

    /// Takes in a platform device. It shares its group with those that share a source id with it.
    ///
    /// # Errors
    /// As [`probe_pci`](Self::probe_pci).
    pub fn probe_platform(&self, info: DeviceInfo) -> Result<Device> {
        let key = GroupKey::Platform(*info.sources.first().ok_or(Error::NoDevice)?);
        self.probe(info, key, &NoPci)
    }

    /// Forgets a device, which may be gone already: its requests are blocked from now on. The
    /// handle stays valid but does nothing.
    ///
    /// # Errors
    /// [`BusyReason::Changing`] when another processor holds the group for too long;
    /// [`Error::NoDevice`] when it was released before.
    #[doc(alias = "iommu_release_device")]
    pub fn release_device(&self, device: &Device) -> Result<()> {
        let _probing = self.claim_probing()?;
        if !self.is_present(device) {
            return Err(Error::NoDevice);
        }
        // Held until the device is gone, so that nobody attaches it again.
        let claim = device.group().ok().map(|group| self.claim(group)).transpose()?;
        if let Some(claim) = &claim {
            claim.dismiss(device);
        }
        self.forget(device);
        Ok(())
    }

    fn probe(&self, mut info: DeviceInfo, key: GroupKey, pci: &dyn PciConfig) -> Result<Device> {
        if self.policy.boot == BootPolicy::Off {
            return Err(Error::NoDevice);
        }
        let mut sources = heapless::Vec::new();
        for source in &info.sources {
            if !sources.contains(source) {
                // No longer than the list it is copied from.
                let _ = sources.push(*source);
            }
        }
        info.sources = sources;
        let _probing = self.claim_probing()?;
        if self.devices().any(|device| device.id() == info.id) {
            return Err(Error::Invalid(InvalidReason::Duplicate));
        }
        let Some(unit) = self.unit_of(&info, pci) else {
            self.register(DeviceSlot { info, iommu: None })?;
            return Err(Error::NoDevice);
        };
        let mut regions = ReservedRegions::default();
        unit.reserved_regions(&info, pci, &mut regions)?;
        let windows = windows_without(unit.windows(unit.default_stage()), &regions)?;
        let group = match self.group_of_peers(&unit, key, &info.sources)? {
            Some(group) => group,
            None => self.new_group(&unit, &info, &default_spec(&unit, &windows, &regions)?)?,
        };
        let ats = self.ats_of(&info, &unit, pci);
        let fault_model = self.fault_model_of(&info, &unit);
        // From here on nobody else changes the group, of which the device is a member at once.
        let claim = self.claim(&group)?;
        let device = self.register(DeviceSlot {
            info,
            iommu: Some(DeviceIommu { unit, key, group: group.clone(), regions, windows, ats, fault_model }),
        })?;
        if let Err(error) = claim.admit(&device) {
            self.forget(&device);
            return Err(error);
        }
        Ok(device)
    }

    /// The unit that names the device, else the one that takes the rest of its segment.
    fn unit_of(&self, info: &DeviceInfo, pci: &dyn PciConfig) -> Option<Unit> {
        let mut rest = None;
        for unit in self.units() {
            match unit.coverage(info, pci) {
                Coverage::Named => return Some(unit),
                Coverage::Rest => rest = Some(unit),
                Coverage::No => {}
            }
        }
        rest
    }

    /// The group of the devices that cannot be told apart from a new one: by what its key says, or
    /// because requests of both arrive under one source id, or look the same to its unit. A group that all
    /// devices have left may still be held by somebody, and is not used again.
    fn group_of_peers(&self, unit: &Unit, key: GroupKey, sources: &[SourceId]) -> Result<Option<Group>> {
        let mut found: Option<Group> = None;
        for device in self.devices() {
            let Ok(peer) = device.iommu() else { continue };
            let shares =
                |theirs: &SourceId| sources.iter().any(|own| own == theirs || unit.is_same_source(*own, *theirs));
            if peer.key != key && !device.sources().iter().any(shares) {
                continue;
            }
            match &found {
                Some(group) if *group != peer.group => return Err(Error::Invalid(InvalidReason::TwoGroups)),
                _ => found = Some(peer.group.clone()),
            }
        }
        Ok(found)
    }

    fn new_group(&self, unit: &Unit, info: &DeviceInfo, spec: &DomainSpec) -> Result<Group> {
        let default = match self.default_kind(unit, info) {
            DomainKind::Identity => self.identity.clone(),
            DomainKind::Blocked => self.blocked.clone(),
            DomainKind::Paging => unit.domain_alloc_paging(spec)?,
        };
        let domain = if self.policy.boot == BootPolicy::IdentityUntilClaimed && info.trust == Trust::Trusted {
            self.identity.clone()
        } else {
            default.clone()
        };
        let state = GroupState { changing: false, domain, in_doubt: false, default, drivers: 0, owner: None };
        let slot = self.groups.insert(GroupSlot { state: Lock::new(state) }).map_err(|(error, _)| error)?;
        Ok(Group::new(slot))
    }

    /// What the unit demands; else a translation for what is not trusted; else the caller's choice.
    fn default_kind(&self, unit: &Unit, info: &DeviceInfo) -> DomainKind {
        match (unit.demanded_domain(info), info.trust) {
            (Some(kind), Trust::Trusted) => kind,
            (_, Trust::Untrusted) => DomainKind::Paging,
            (None, Trust::Trusted) => self.policy.default_domain,
        }
    }

    fn register(&self, slot: DeviceSlot) -> Result<Device> {
        let device = Device::new(self.devices.insert(slot)?);
        for source in device.sources() {
            match self.sources.insert(source.as_u64(), device.index()) {
                // Another device behind the same alias came first.
                Ok(()) | Err(Error::Invalid(InvalidReason::Duplicate)) => {}
                Err(error) => {
                    self.forget(&device);
                    return Err(error);
                }
            }
        }
        Ok(device)
    }

    /// Takes a device out of the tables; an alias goes to another device that has it.
    fn forget(&self, device: &Device) {
        self.devices.remove(device.index());
        for source in device.sources() {
            if self.sources.get(source.as_u64()) != Some(device.index()) {
                continue;
            }
            self.sources.remove(source.as_u64());
            if let Some(heir) = self.devices().find(|other| other.sources().contains(source)) {
                // The frames for this key are there already.
                let _ = self.sources.insert(source.as_u64(), heir.index());
            }
        }
    }

    fn claim_probing(&self) -> Result<Probing<'_, P>> {
        wait_until(&self.platform, PROBE_LIMIT, WaitReason::Claim, || {
            let mut probing = self.probing.lock(&self.platform);
            let free = !*probing;
            *probing = true;
            // Made only when it is granted: dropping one ends the other processor's right.
            free.then(|| Probing { iommu: self })
        })
        .map_err(|_| Error::Busy(BusyReason::Changing))
    }
}

/// What a platform device is probed with: no function answers.
struct NoPci;

impl PciConfig for NoPci {
    fn read32(&self, _function: PciAddress, _offset: u16) -> u32 {
        u32::MAX
    }

    fn write32(&self, _function: PciAddress, _offset: u16, _value: u32) {}
}

/// The right to add and remove devices.
struct Probing<'a, P: Platform> {
    iommu: &'a Iommu<P>,
}

impl<P: Platform> Drop for Probing<'_, P> {
    fn drop(&mut self) {
        *self.iommu.probing.lock(&self.iommu.platform) = false;
    }
}
