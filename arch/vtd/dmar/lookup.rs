//! Which structure concerns which device.

use super::scope::{ScopeFlags, Scopes, covers};
use super::{Atsr, DeviceScope, Dmar, Drhd, Rmrr, Satc, ScopeKind, Structure};
use crate::id::PciAddress;

/// In all of these, `bridges` are the bridges above the function, the nearest first, up to its root
/// port, and `secondary_bus` reads the secondary bus number of a bridge from configuration space
/// (offset 0x19; `None` where there is no bridge). A virtual function (SR-IOV) is treated as its
/// physical function: ask for that one.
impl<'a> Dmar<'a> {
    /// The unit that translates what `function` sends (VT-d section 8.3), or `None` when no unit
    /// does.
    ///
    /// A unit that names the function, or a bridge above it, comes before the one that has
    /// INCLUDE_PCI_ALL in the function's segment. Where several name it, which the specification
    /// does not allow, the nearest name decides, then the order of the table.
    pub fn unit_of(
        &self,
        function: PciAddress,
        bridges: &[PciAddress],
        mut secondary_bus: impl FnMut(PciAddress) -> Option<u8>,
    ) -> Option<Drhd<'a>> {
        let named = self
            .units()
            .filter_map(|unit| {
                let distance = nearest(unit.scopes, unit.segment, function, bridges, &mut secondary_bus)?;
                Some((distance, unit))
            })
            .min_by_key(|(distance, _)| *distance);
        match named {
            Some((_, unit)) => Some(unit),
            None => self.units().find(|unit| unit.include_pci_all && unit.segment == function.segment()),
        }
    }

    /// The unit that names an I/O APIC, an HPET block or an ACPI device by its enumeration id, and
    /// the scope in which it does; [`resolve`](super::resolve) finds the source id there.
    pub fn unit_naming(&self, kind: ScopeKind, enumeration_id: u8) -> Option<(Drhd<'a>, DeviceScope<'a>)> {
        self.units().find_map(|unit| {
            let mut scopes = unit.scopes;
            let scope = scopes.find(|scope| scope.kind() == kind && scope.enumeration_id() == enumeration_id)?;
            Some((unit, scope))
        })
    }

    /// The reserved regions that `function` must reach at all times (VT-d section 8.4).
    pub fn reserved_regions_of<'b>(
        &self,
        function: PciAddress,
        bridges: &'b [PciAddress],
        mut secondary_bus: impl FnMut(PciAddress) -> Option<u8> + 'b,
    ) -> impl Iterator<Item = Rmrr<'a>> + 'b
    where
        'a: 'b,
    {
        self.reserved_regions().filter(move |region| {
            nearest(region.scopes, region.segment, function, bridges, &mut secondary_bus).is_some()
        })
    }

    /// Whether devices below this root port may use ATS (VT-d section 8.5). For integrated devices,
    /// which have no root port, see [`Self::satc_of`].
    pub fn root_port_supports_ats(
        &self,
        root_port: PciAddress,
        mut secondary_bus: impl FnMut(PciAddress) -> Option<u8>,
    ) -> bool {
        self.structures().any(|structure| match structure {
            Structure::Atsr(Atsr { all_ports: true, segment, .. }) => segment == root_port.segment(),
            Structure::Atsr(Atsr { segment, scopes, .. }) => {
                nearest(scopes, segment, root_port, &[], &mut secondary_bus).is_some()
            }
            _ => false,
        })
    }

    /// What is said of an integrated device's translation cache (VT-d section 8.8).
    pub fn satc_of(
        &self,
        function: PciAddress,
        bridges: &[PciAddress],
        mut secondary_bus: impl FnMut(PciAddress) -> Option<u8>,
    ) -> Option<Satc<'a>> {
        self.structures().find_map(|structure| match structure {
            Structure::Satc(satc) => {
                nearest(satc.scopes, satc.segment, function, bridges, &mut secondary_bus).map(|_| satc)
            }
            _ => None,
        })
    }

    /// The properties of an integrated device (VT-d section 8.9); empty when none are told.
    pub fn properties_of(
        &self,
        function: PciAddress,
        bridges: &[PciAddress],
        mut secondary_bus: impl FnMut(PciAddress) -> Option<u8>,
    ) -> ScopeFlags {
        let mut flags = ScopeFlags::empty();
        for structure in self.structures() {
            let Structure::Sidp(sidp) = structure else { continue };
            for scope in sidp.scopes {
                if covers(&scope, sidp.segment, function, bridges, &mut secondary_bus).is_some() {
                    flags |= scope.flags();
                }
            }
        }
        flags
    }
}

/// How near to `function` what the scopes name is: see [`covers`].
fn nearest(
    mut scopes: Scopes<'_>,
    segment: u16,
    function: PciAddress,
    bridges: &[PciAddress],
    secondary_bus: &mut impl FnMut(PciAddress) -> Option<u8>,
) -> Option<usize> {
    let mut best = None;
    for scope in &mut scopes {
        if let Some(distance) = covers(&scope, segment, function, bridges, &mut *secondary_bus) {
            best = Some(best.map_or(distance, |best: usize| best.min(distance)));
        }
    }
    best
}
