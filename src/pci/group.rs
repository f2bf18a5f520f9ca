//! Which functions cannot be told apart, or can reach each other without passing the IOMMU.

use super::capability::find_extended;
use super::function::{AcsFlags, PciFunction, PciKind};
use super::topology::{BusFunctions, DevfnSet, path};
use super::{PciConfig, extended_id};
use crate::error::{Error, Result};
use crate::id::PciAddress;

/// Names the group of a function: two functions belong to one group if and only if their keys are
/// equal. See [`group_key`].
///
/// ```
/// use iommu::PciAddress;
/// use iommu::pci::{GroupKey, PciConfig, group_key};
///
/// fn share_a_group(config: &dyn PciConfig, one: PciAddress, other: PciAddress) -> iommu::Result<bool> {
///     Ok(group_key(config, one)? == group_key(config, other)?)
/// }
/// # struct Empty;
/// # impl PciConfig for Empty {
/// #     fn read32(&self, _: PciAddress, _: u16) -> u32 { u32::MAX }
/// #     fn write32(&self, _: PciAddress, _: u16, _: u32) {}
/// # }
/// # let a = PciAddress::new(0, 0, 4, 0).unwrap();
/// # assert_eq!(share_a_group(&Empty, a, a), Err(iommu::Error::NoDevice));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupKey(PciAddress);

impl GroupKey {
    /// The function that stands for the group: the bridge that all its members are below, or the
    /// first of them.
    pub const fn anchor(self) -> PciAddress {
        self.0
    }
}

/// The group of `function`. Task only.
///
/// 1. A function *separates* what it is, or what is below it, from its neighbours if it
///    [is isolated](PciFunction::is_isolated), and so are all other functions of its device, and,
///    inside a switch, all other downstream ports: one that is not could send requests to its
///    isolated neighbours.
/// 2. The *anchor* is the topmost of the bridges above and the function itself that does not
///    separate, or the function when all do. Inside a switch it is the upstream port instead. Bridges to conventional buses never separate, so functions that share their
///    requester id share the anchor.
/// 3. All functions of the anchor's device belong together if one of them is not isolated, and so do
///    functions of which one sends under the other's requester id
///    ([`PciConfig::quirk_aliases`]). The key is the first of all these functions.
///
/// Linux (`pci_device_group`) groups the same way, except that it keeps isolated functions apart from
/// neighbours that are not, and switches without ACS apart by port.
///
/// The result depends on what is enabled, so [`enable_acs`] comes first, for all functions.
///
/// # Errors
/// [`Error::NoDevice`] when the function is absent, [`Error::Capacity`] beyond [`MAX_DEPTH`](super::MAX_DEPTH) bridges.
pub fn group_key(config: &dyn PciConfig, function: PciAddress) -> Result<GroupKey> {
    let own = PciFunction::read(config, function).ok_or(Error::NoDevice)?;
    let bridges = path(config, function)?;
    let mut above: Option<&PciFunction> = None;
    for candidate in bridges.iter().chain([&own]) {
        let switch = above.filter(|above| above.kind == PciKind::UpstreamPort);
        let neighbours_isolated = match switch {
            Some(_) => members_of_bus(config, candidate.address).all(|member| member.is_isolated()),
            None => shares_device(config, candidate).is_none(),
        };
        if !candidate.is_isolated() || !neighbours_isolated {
            return Ok(first_of_group(config, switch.unwrap_or(candidate)));
        }
        above = Some(candidate);
    }
    Ok(first_of_group(config, &own))
}

/// Enables what isolation needs ([`AcsFlags::ISOLATION`]) on `function`, on the bridges above and on
/// their neighbours, as far as they are capable of it. Task only.
///
/// # Errors
/// [`Error::Capacity`] beyond [`MAX_DEPTH`](super::MAX_DEPTH) bridges.
pub fn enable_acs(config: &dyn PciConfig, function: PciAddress) -> Result<()> {
    let bridges = path(config, function)?;
    for neighbour in bridges.iter().map(|bridge| bridge.address).chain([function]) {
        for member in BusFunctions::new(config, neighbour.segment(), neighbour.bus()) {
            if let Some(acs) = PciFunction::read(config, member).and_then(|member| member.acs) {
                let control = acs.offset.saturating_add(6);
                let before = config.read16(member, control);
                let after = before | (acs.capable & AcsFlags::ISOLATION).bits();
                if after != before {
                    config.write16(member, control, after);
                }
            }
        }
    }
    Ok(())
}

/// The functions of a device with several, if one of them is not isolated.
fn shares_device(config: &dyn PciConfig, function: &PciFunction) -> Option<DevfnSet> {
    if !function.multifunction {
        return None;
    }
    let mut members = DevfnSet::EMPTY;
    let mut isolated = true;
    let mut add = |member: PciFunction| {
        members.insert(member.address.devfn());
        isolated &= member.is_isolated();
    };
    for number in 0..8 {
        if let Some(member) = PciFunction::read(config, function.address.with_function(number)) {
            add(member);
        }
    }
    // Device numbers mean nothing to functions with ARI: the device has the bus for itself.
    let has_ari = |address| find_extended(config, address, extended_id::ARI).is_some();
    if has_ari(function.address) {
        members_of_bus(config, function.address).filter(|member| has_ari(member.address)).for_each(add);
    }
    (!isolated).then_some(members)
}

/// The first function of those that belong together with `anchor`, on its bus.
fn first_of_group(config: &dyn PciConfig, anchor: &PciFunction) -> GroupKey {
    let on_bus = |devfn| {
        let [bus, _] = anchor.address.requester_id().to_be_bytes();
        PciAddress::from_requester_id(anchor.address.segment(), u16::from_be_bytes([bus, devfn]))
    };
    let aliases_of = |devfn| {
        let mut aliases = DevfnSet::EMPTY;
        aliases.insert(devfn);
        config.quirk_aliases(on_bus(devfn), &mut |alias| aliases.insert(alias));
        aliases
    };
    let present = BusFunctions::new(config, anchor.address.segment(), anchor.address.bus()).numbers();
    let mut group = DevfnSet::EMPTY;
    let mut pending = DevfnSet::EMPTY;
    pending.insert(anchor.address.devfn());
    // Each number is taken out once.
    while let Some(devfn) = pending.first() {
        pending.remove(devfn);
        group.insert(devfn);
        let mut joining = aliases_of(devfn);
        // Absent functions can still be aliases of two others.
        if let Some(members) =
            PciFunction::read(config, on_bus(devfn)).and_then(|member| shares_device(config, &member))
        {
            members.iter().for_each(|member| joining.insert(member));
        }
        for other in present.iter().filter(|&other| aliases_of(other).intersects(&group)) {
            joining.insert(other);
        }
        joining.iter().filter(|&member| !group.contains(member)).for_each(|member| pending.insert(member));
    }
    let first = group.iter().find(|&devfn| present.contains(devfn));
    GroupKey(first.map_or(anchor.address, on_bus))
}

/// All functions on the bus of `beside`, that one included.
fn members_of_bus(config: &dyn PciConfig, beside: PciAddress) -> impl Iterator<Item = PciFunction> {
    BusFunctions::new(config, beside.segment(), beside.bus())
        .filter_map(move |address| PciFunction::read(config, address))
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
