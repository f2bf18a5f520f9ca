//! Device TLBs: which devices get one, and when it is on.
//!
//! It is on only while the unit's entry for the device permits it. The entry comes first, then the
//! device is turned on; the device is turned off, then the entry goes. A device that moves between
//! domains which both use it stays on, for the unit drops what it holds.

use super::attach::Claim;
use super::{Iommu, Policy};
use crate::device::{Device, DeviceAts, DeviceId, DeviceInfo, Trust};
use crate::domain::{Domain, DomainKind};
use crate::id::SourceId;
use crate::ops::{Ats, Requester, Unit};
use crate::pci::{AtsState, PciConfig, PciFunction};
use crate::platform::Platform;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Which devices may keep translations in a cache of their own (device TLB, PCIe 10.1).
///
/// Whatever this says, devices that are not [trusted](Trust::Trusted) have none, and none is used
/// without [`Platform::pci`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AtsPolicy {
    /// None. The default, because the rest is protection given up: the unit does not look up what a
    /// device says it has translated, so that a device which errs or lies reaches all memory; and an
    /// unmap waits for the device as well, which may not answer.
    #[default]
    Off,
    /// Trusted devices, where the unit and firmware allow it.
    Trusted,
}

impl<P: Platform> Iommu<P> {
    /// Turns off a device TLB that firmware or a previous kernel has left on.
    pub(super) fn turn_off_leftover(&self, pci: &dyn PciConfig, function: &PciFunction) {
        if let Some(ats) = function.ats
            && ats.state(pci, function.address) == AtsState::On
        {
            ats.disable(pci, function.address);
        }
    }

    /// The device TLB of a device that is being probed, if it may be used.
    pub(super) fn ats_of(&self, info: &DeviceInfo, unit: &Unit, pci: &dyn PciConfig) -> Option<DeviceAts> {
        let Policy { ats: AtsPolicy::Trusted, .. } = self.policy else { return None };
        let (DeviceId::Pci(address), [own]) = (info.id, info.sources.as_slice()) else { return None };
        // Who sends under the id of another device would have its translated requests let through.
        let alone = *own == address.source_id() && self.find(*own).is_none();
        if !info.features.ats || info.trust != Trust::Trusted || !alone || pci.quirk_ats_broken(address) {
            return None;
        }
        self.platform.pci()?;
        let capability = PciFunction::read(pci, address)?.ats?;
        let tlb = Ats { physical_function: 0, max_pending: capability.queue_depth };
        unit.supports_ats(info, pci).then(|| DeviceAts { address, capability, tlb, on: AtomicBool::new(false) })
    }

    /// Turns every device TLB on that is to be on. The units translate.
    pub(super) fn start_device_tlbs(&self) {
        self.translating.store(true, Ordering::SeqCst);
        self.each_device_tlb(|claim, device| {
            if claim.read(|state| uses_device_tlbs(&state.domain)) {
                claim.turn_on(device);
            }
        });
    }

    /// Turns every device TLB off: the units are about to stop, or to forget what they have cached.
    pub(super) fn stop_device_tlbs(&self) {
        self.translating.store(false, Ordering::SeqCst);
        self.each_device_tlb(|claim, device| claim.turn_off(device));
    }

    fn each_device_tlb(&self, turn: impl Fn(&Claim<'_, P>, &Device)) {
        for device in self.devices().filter(|device| ats(device).is_some()) {
            let claim = self.group_of(&device).and_then(|group| self.claim(group));
            // It may have left before the group was claimed.
            if let Ok(claim) = claim
                && self.is_present(&device)
            {
                turn(&claim, &device);
            }
        }
    }

    fn is_gone(&self, ats: &DeviceAts) -> bool {
        self.platform.pci().is_none_or(|pci| ats.capability.state(pci, ats.address) == AtsState::Gone)
    }
}

impl<P: Platform> Claim<'_, P> {
    /// `source` with the device TLB that is used under this id, if it answers.
    pub(super) fn requester(&self, source: SourceId) -> Requester {
        let of_source = |ats: &&DeviceAts| ats.address.source_id() == source;
        let used = self.members(None).find_map(|member| {
            let ats = ats(&member).filter(of_source).filter(|ats| !self.iommu.is_gone(ats))?;
            Some(ats.tlb)
        });
        Requester { source, ats: used, fault_model: self.fault_model(source) }
    }

    /// Turns the device TLB on: the unit's entry permits it by now.
    pub(super) fn turn_on(&self, device: &Device) {
        let (Some(ats), Some(pci)) = (ats(device), self.iommu.platform.pci()) else { return };
        if self.iommu.translating.load(Ordering::SeqCst) && !ats.on.load(Ordering::Relaxed) {
            let state = ats.capability.enable(pci, ats.address, None);
            ats.on.store(state == AtsState::On, Ordering::Relaxed);
        }
    }

    /// Turns the device TLB off: the unit's entry is about to go.
    pub(super) fn turn_off(&self, device: &Device) {
        let (Some(ats), Some(pci)) = (ats(device), self.iommu.platform.pci()) else { return };
        if ats.on.swap(false, Ordering::Relaxed) {
            ats.capability.disable(pci, ats.address);
        }
    }
}

/// Whether units let the device TLBs of a domain's devices be filled: only translations are kept.
pub(super) fn uses_device_tlbs(domain: &Domain) -> bool {
    domain.kind() == DomainKind::Paging
}

fn ats(device: &Device) -> Option<&DeviceAts> {
    device.iommu().ok()?.ats.as_ref()
}
