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
        let mut spec = |stage| {
            let mut spec = None;
            devices.iter().try_for_each(|device| admit(&mut spec, device.iommu()?, stage, &[]))?;
            with_features(spec, options.features)
        };
        let spec = match options.stage {
            None => of_either_stage(first, &mut spec),
            Some(stage) => spec(stage).map_err(|refused| match refused {
                Error::Incompatible(IncompatibleReason::Stage) => Error::Unsupported(UnsupportedReason::Stage),
                other => other,
            }),
        }?;
        first.domain_alloc_paging(&spec)
    }

    /// A default domain that fits all members of a group. It maps their relaxable direct regions.
    pub(super) fn default_paging(&self, group: &Group) -> Result<Domain> {
        let first = self.members(group).next().ok_or(Error::NoDevice)?;
        let first = first.unit()?;
        let spec = of_either_stage(first, &mut |stage| {
            let mut spec = None;
            self.members(group)
                .try_for_each(|device| admit(&mut spec, device.iommu()?, stage, &[RegionKind::DirectRelaxable]))?;
            with_features(spec, DomainFeatures::empty())
        })?;
        first.domain_alloc_paging(&spec)
    }
}

/// The specification in the stage that `unit` prefers; if there is none, in the other one.
fn of_either_stage(unit: &Unit, spec: &mut dyn FnMut(Stage) -> Result<DomainSpec>) -> Result<DomainSpec> {
    let preferred = unit.default_stage();
    let other = match preferred {
        Stage::First => Stage::Second,
        Stage::Second => Stage::First,
    };
    let refused = match spec(preferred) {
        Err(refused @ (Error::Incompatible(_) | Error::Unsupported(_))) => refused,
        result => return result,
    };
    spec(other).map_err(|error| match (refused, error) {
        (_, Error::Incompatible(IncompatibleReason::Stage)) => refused,
        (Error::Incompatible(IncompatibleReason::Stage), _) => error,
        _ => refused,
    })
}

/// Takes one more device into a specification; regions of the kinds `also` are left out as well.
fn admit(spec: &mut Option<DomainSpec>, device: &DeviceIommu, stage: Stage, also: &[RegionKind]) -> Result<()> {
    let traits = device.unit.traits(stage).ok_or(Error::Incompatible(IncompatibleReason::Stage))?;
    let mut windows = windows_of(device, stage)?;
    exclude(&mut windows, &device.regions, |kind| also.contains(&kind))?;
    match spec {
        None => *spec = Some(DomainSpec { stage, traits, windows }),
        Some(spec) => {
            spec.traits = spec.traits.common(traits)?;
            spec.windows.intersect(&windows)?;
        }
    }
    Ok(())
}

/// The specification with the features that are wanted, if all units have them.
fn with_features(spec: Option<DomainSpec>, wanted: DomainFeatures) -> Result<DomainSpec> {
    let mut spec = spec.ok_or(Error::NoDevice)?;
    if !spec.traits.features.contains(wanted) {
        return Err(Error::Unsupported(UnsupportedReason::Features));
    }
    spec.traits.features = wanted;
    Ok(spec)
}

/// The specification of a default domain for the first device of a group.
pub(super) fn default_spec(unit: &Unit, mut windows: Windows, regions: &ReservedRegions) -> Result<DomainSpec> {
    let stage = unit.default_stage();
    let traits = unit.traits(stage).ok_or(Error::Incompatible(IncompatibleReason::Stage))?;
    exclude(&mut windows, regions, |kind| kind == RegionKind::DirectRelaxable)?;
    with_features(Some(DomainSpec { stage, traits, windows }), DomainFeatures::empty())
}

/// What a domain of this stage, which the unit must have, can translate for the device.
pub(super) fn windows_of(device: &DeviceIommu, stage: Stage) -> Result<Windows> {
    if stage == device.unit.default_stage() {
        return Ok(device.windows.clone());
    }
    match device.unit.traits(stage) {
        Some(_) => windows_without(device.unit.windows(stage), &device.regions),
        None => Err(Error::Incompatible(IncompatibleReason::Stage)),
    }
}

/// What is left of a unit's windows for a device with these regions.
pub(super) fn windows_without(mut windows: Windows, regions: &ReservedRegions) -> Result<Windows> {
    exclude(&mut windows, regions, |kind| kind != RegionKind::DirectRelaxable)?;
    Ok(windows)
}

/// Takes the regions of some kinds out of the windows.
fn exclude(windows: &mut Windows, regions: &ReservedRegions, kinds: impl Fn(RegionKind) -> bool) -> Result<()> {
    regions.iter().filter(|region| kinds(region.kind)).try_for_each(|region| windows.exclude(region.range))
}
