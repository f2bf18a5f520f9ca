//! What a paging domain for some devices must be: stage, traits, features, windows.

use super::Iommu;
use crate::device::{Device, DeviceIommu};
use crate::domain::{Domain, DomainOptions};
use crate::error::{Error, IncompatibleReason, Result, UnsupportedReason};
use crate::group::Group;
use crate::ops::{DomainFeatures, DomainSpec, Stage, Unit};
use crate::platform::Platform;
use crate::region::{RegionKind, ReservedRegions};
use crate::window::Windows;

impl<P: Platform> Iommu<P> {
    /// A new paging domain that fits every one of `devices`: their units agree on it, and its
    /// windows lie inside the windows of each. Its table is of the stage that the units
    /// [prefer](crate::ops::IommuOps::default_stage) if all of them have it (the second where they have
    /// both), else of the other one.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a device or for one that no IOMMU covers,
    /// [`Error::Incompatible`] when no domain fits all, [`Error::NoMemory`].
    #[doc(alias = "iommu_paging_domain_alloc")]
    pub fn paging_domain(&self, devices: &[&Device]) -> Result<Domain> {
        self.paging_domain_with(devices, DomainOptions::default())
    }

    /// As [`paging_domain`](Self::paging_domain), with the stage and the features that the caller
    /// wants. Nothing is allocated before they are found to be possible.
    ///
    /// # Errors
    /// As [`paging_domain`](Self::paging_domain); [`UnsupportedReason::Stage`] when a unit does not
    /// have the stage that is asked for, [`UnsupportedReason::Features`] when it lacks a feature.
    #[doc(alias = "iommu_paging_domain_alloc_flags")]
    pub fn paging_domain_with(&self, devices: &[&Device], options: DomainOptions) -> Result<Domain> {
        let first = devices.first().ok_or(Error::NoDevice)?.unit()?;
        let spec = choose(first, options, Relaxable::Usable, &mut |draft| {
            devices.iter().try_for_each(|device| draft.admit(device.iommu()?))
        })?;
        first.domain_alloc_paging(&spec)
    }

    /// A default domain that fits all members of a group.
    pub(super) fn default_paging(&self, group: &Group) -> Result<Domain> {
        let first = self.members(group).next().ok_or(Error::NoDevice)?;
        let first = first.unit()?;
        let spec = choose(first, DomainOptions::default(), Relaxable::Mapped, &mut |draft| {
            self.members(group).try_for_each(|device| draft.admit(device.iommu()?))
        })?;
        first.domain_alloc_paging(&spec)
    }
}

/// The specification of a default domain for the first device of a group.
pub(super) fn default_spec(unit: &Unit, windows: &Windows, regions: &ReservedRegions) -> Result<DomainSpec> {
    let mut draft = Draft { stage: unit.default_stage(), relaxable: Relaxable::Mapped, spec: None };
    draft.add(unit, windows, regions)?;
    draft.finish(DomainFeatures::empty())
}

/// Whether relaxable direct regions are free for other mappings, or mapped: in default domains.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Relaxable {
    Usable,
    Mapped,
}

/// The specification in the stage that is asked for; else in the one that `unit` prefers, or in the
/// other one if there is none. `admit` takes in the devices.
fn choose(
    unit: &Unit,
    options: DomainOptions,
    relaxable: Relaxable,
    admit: &mut dyn FnMut(&mut Draft) -> Result<()>,
) -> Result<DomainSpec> {
    let mut in_stage = |stage| {
        let mut draft = Draft { stage, relaxable, spec: None };
        admit(&mut draft)?;
        draft.finish(options.features)
    };
    let preferred = options.stage.unwrap_or(unit.default_stage());
    let refused = match in_stage(preferred) {
        Err(refused @ (Error::Incompatible(_) | Error::Unsupported(_))) => refused,
        result => return result,
    };
    if options.stage.is_some() {
        return Err(if refused == NO_STAGE { Error::Unsupported(UnsupportedReason::Stage) } else { refused });
    }
    let other = match preferred {
        Stage::First => Stage::Second,
        Stage::Second => Stage::First,
    };
    // Told is what was in the way of the stage that they have.
    in_stage(other).map_err(|error| if refused == NO_STAGE { error } else { refused })
}

const NO_STAGE: Error = Error::Incompatible(IncompatibleReason::Stage);

/// A specification that grows by one device after the other.
struct Draft {
    stage: Stage,
    relaxable: Relaxable,
    spec: Option<DomainSpec>,
}

impl Draft {
    /// Takes one more device in.
    fn admit(&mut self, device: &DeviceIommu) -> Result<()> {
        self.add(&device.unit, &device.windows, &device.regions)
    }

    /// Takes a device in, which has these windows in the stage that its unit prefers.
    #[inline(never)]
    fn add(&mut self, unit: &Unit, windows: &Windows, regions: &ReservedRegions) -> Result<()> {
        let traits = unit.traits(self.stage).ok_or(NO_STAGE)?;
        let mut windows = if self.stage == unit.default_stage() {
            windows.clone()
        } else {
            windows_without(unit.windows(self.stage), regions)?
        };
        if self.relaxable == Relaxable::Mapped {
            exclude(&mut windows, regions, |kind| kind == RegionKind::DirectRelaxable)?;
        }
        match &mut self.spec {
            None => self.spec = Some(DomainSpec { stage: self.stage, traits, windows }),
            Some(spec) => {
                spec.traits = spec.traits.common(traits)?;
                spec.windows.intersect(&windows)?;
            }
        }
        Ok(())
    }

    /// The specification with the features that are wanted, if all units have them.
    fn finish(self, wanted: DomainFeatures) -> Result<DomainSpec> {
        let mut spec = self.spec.ok_or(Error::NoDevice)?;
        if !spec.traits.features.contains(wanted) {
            return Err(Error::Unsupported(UnsupportedReason::Features));
        }
        spec.traits.features = wanted;
        Ok(spec)
    }
}

/// Whether the device can translate all that a domain of this stage does.
pub(super) fn covers(device: &DeviceIommu, stage: Option<Stage>, windows: &Windows) -> Result<bool> {
    match stage {
        Some(stage) if stage != device.unit.default_stage() => {
            device.unit.traits(stage).ok_or(NO_STAGE)?;
            Ok(windows_without(device.unit.windows(stage), &device.regions)?.covers(windows))
        }
        _ => Ok(device.windows.covers(windows)),
    }
}

/// What is left of a unit's windows for a device with these regions.
#[inline(never)]
pub(super) fn windows_without(mut windows: Windows, regions: &ReservedRegions) -> Result<Windows> {
    exclude(&mut windows, regions, |kind| kind != RegionKind::DirectRelaxable)?;
    Ok(windows)
}

/// Takes the regions of some kinds out of the windows.
#[inline(never)]
fn exclude(windows: &mut Windows, regions: &ReservedRegions, kinds: fn(RegionKind) -> bool) -> Result<()> {
    regions.iter().filter(|region| kinds(region.kind)).try_for_each(|region| windows.exclude(region.range))
}
