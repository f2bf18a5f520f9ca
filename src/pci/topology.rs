//! Where a function is: what shares its bus, and the bridges above.

use heapless::Vec;

use super::capability::find_extended;
use super::function::header;
use super::{PciConfig, PciFunction, PciKind, extended_id};
use crate::error::{Error, Result};
use crate::id::PciAddress;

/// The most bridges between the root and a function; Thunderbolt's longest chain has 15.
pub const MAX_DEPTH: usize = 24;

/// The most requester ids under which one function's DMA may arrive.
pub const MAX_ALIASES: usize = 16;

/// The bridges above `function`, from the root down; empty on a root bus. Task only.
///
/// The bus is looked for below the bridges on bus 0, 1 and so on, so a root bus other than 0 is
/// found as one that no bridge leads to. Each step goes to a higher bus number, whatever the
/// registers say. A bus number that ends nowhere (virtual functions may have such) gives the bridges
/// that lead there. The function itself need not be present.
///
/// # Errors
/// [`Error::Capacity`] beyond [`MAX_DEPTH`] bridges.
pub fn path(config: &dyn PciConfig, function: PciAddress) -> Result<Vec<PciFunction, MAX_DEPTH>> {
    let (segment, target) = (function.segment(), function.bus());
    let mut path = Vec::new();
    let mut bus = 0;
    while bus < target {
        match bridge_to(config, segment, bus, target) {
            Some((bridge, secondary)) => {
                path.push(bridge).map_err(|_| Error::Capacity("pci::MAX_DEPTH"))?;
                bus = secondary;
            }
            None if path.is_empty() => bus = bus.saturating_add(1),
            None => break,
        }
    }
    Ok(path)
}

/// The bridge on `bus` that leads to `target`, and the bus below it.
fn bridge_to(config: &dyn PciConfig, segment: u16, bus: u8, target: u8) -> Option<(PciFunction, u8)> {
    BusFunctions::new(config, segment, bus).find_map(|address| {
        // Most functions are no bridges, and reading them whole takes long.
        let layout = config.read8(address, header::TYPE) & header::TYPE_LAYOUT;
        if !matches!(layout, header::LAYOUT_BRIDGE | header::LAYOUT_CARDBUS) {
            return None;
        }
        let bridge = PciFunction::read(config, address)?;
        let buses = bridge.buses.filter(|buses| buses.secondary > bus && buses.leads_to(target))?;
        Some((bridge, buses.secondary))
    })
}

/// The functions that answer on one bus, by rising number. They are looked for when the iterator is
/// made. Function numbers above 7 (ARI, PCIe 6.13) are included.
///
/// ```
/// use iommu::pci::{BusFunctions, PciConfig, PciFunction};
/// # struct Empty;
/// # impl PciConfig for Empty {
/// #     fn read32(&self, _: iommu::PciAddress, _: u16) -> u32 { u32::MAX }
/// #     fn write32(&self, _: iommu::PciAddress, _: u16, _: u32) {}
/// # }
/// # let config = Empty;
/// for address in BusFunctions::new(&config, 0, 0) {
///     println!("{address}: {:?}", PciFunction::read(&config, address));
/// }
/// # assert_eq!(BusFunctions::new(&config, 0, 0).count(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct BusFunctions {
    segment: u16,
    bus: u8,
    found: DevfnSet,
}

impl BusFunctions {
    /// The functions on `bus` of `segment`.
    pub fn new(config: &dyn PciConfig, segment: u16, bus: u8) -> Self {
        let mut this = Self { segment, bus, found: DevfnSet::EMPTY };
        for device in 0..32u8 {
            let function_0 = this.address(device << 3);
            if !is_present(config, function_0) {
                continue;
            }
            this.found.insert(function_0.devfn());
            if config.read8(function_0, header::TYPE) & header::TYPE_MULTIFUNCTION != 0 {
                for function in (1..8).map(|number| function_0.with_function(number)) {
                    if is_present(config, function) {
                        this.found.insert(function.devfn());
                    }
                }
            }
        }
        this.follow_ari(config);
        this
    }

    /// The device and function numbers.
    pub(super) fn numbers(&self) -> DevfnSet {
        self.found
    }

    /// The functions of device 0 above number 7: each tells the number of the next, which rises.
    fn follow_ari(&mut self, config: &dyn PciConfig) {
        let mut number = 0;
        while let Some(offset) = find_extended(config, self.address(number), extended_id::ARI) {
            let next = config.read8(self.address(number), offset.saturating_add(5));
            if next <= number {
                break;
            }
            number = next;
            if is_present(config, self.address(number)) {
                self.found.insert(number);
            }
        }
    }

    fn address(&self, devfn: u8) -> PciAddress {
        PciAddress::from_requester_id(self.segment, u16::from_be_bytes([self.bus, devfn]))
    }
}

impl Iterator for BusFunctions {
    type Item = PciAddress;

    fn next(&mut self) -> Option<PciAddress> {
        let devfn = self.found.first()?;
        self.found.remove(devfn);
        Some(self.address(devfn))
    }
}

fn is_present(config: &dyn PciConfig, function: PciAddress) -> bool {
    config.read16(function, header::VENDOR) != u16::MAX
}

/// A set of device and function numbers on one bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DevfnSet([u64; 4]);

impl DevfnSet {
    pub(super) const EMPTY: Self = Self([0; 4]);

    pub(super) fn insert(&mut self, devfn: u8) {
        if let Some(word) = self.0.get_mut(usize::from(devfn >> 6)) {
            *word |= 1 << (devfn & 63);
        }
    }

    pub(super) fn remove(&mut self, devfn: u8) {
        if let Some(word) = self.0.get_mut(usize::from(devfn >> 6)) {
            *word &= !(1 << (devfn & 63));
        }
    }

    pub(super) fn contains(&self, devfn: u8) -> bool {
        self.0.get(usize::from(devfn >> 6)).is_some_and(|word| word >> (devfn & 63) & 1 != 0)
    }

    pub(super) fn intersects(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(mine, others)| mine & others != 0)
    }

    pub(super) fn first(&self) -> Option<u8> {
        (0..=u8::MAX).find(|&devfn| self.contains(devfn))
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(move |&devfn| self.contains(devfn))
    }
}

/// The requester ids under which DMA of `function` may arrive at the root: its own first, then what
/// [`PciConfig::quirk_aliases`] adds, then those that bridges above put in its place, nearest first.
/// Task only.
///
/// A bridge from PCI Express to a conventional bus answers for its devices with its secondary bus
/// number and device and function 0; conventional bridges, and those from a conventional bus to PCI
/// Express, with their own number (PCI Express to PCI Bridge 1.0, 2.3). Phantom functions, which only
/// drivers enable (PCIe 2.2.6.2), are not considered. The function itself need not be present.
///
/// ```
/// use iommu::PciAddress;
/// use iommu::pci::{PciConfig, aliases};
/// # struct Empty;
/// # impl PciConfig for Empty {
/// #     fn read32(&self, _: PciAddress, _: u16) -> u32 { u32::MAX }
/// #     fn write32(&self, _: PciAddress, _: u16, _: u32) {}
/// # }
/// # let config = Empty;
/// let function = PciAddress::new(0, 0, 4, 0).unwrap();
/// assert_eq!(aliases(&config, function)?, [function]);
/// # Ok::<(), iommu::Error>(())
/// ```
///
/// # Errors
/// [`Error::Capacity`] beyond [`MAX_DEPTH`] bridges or [`MAX_ALIASES`] ids.
pub fn aliases(config: &dyn PciConfig, function: PciAddress) -> Result<Vec<PciAddress, MAX_ALIASES>> {
    let mut aliases = Vec::new();
    let mut result = Ok(());
    let mut add = |alias: PciAddress| {
        if !aliases.contains(&alias) && aliases.push(alias).is_err() {
            result = Err(Error::Capacity("pci::MAX_ALIASES"));
        }
    };
    let (segment, [bus, _]) = (function.segment(), function.requester_id().to_be_bytes());
    add(function);
    config.quirk_aliases(function, &mut |devfn| {
        add(PciAddress::from_requester_id(segment, u16::from_be_bytes([bus, devfn])));
    });
    for bridge in path(config, function)?.iter().rev() {
        match (bridge.kind, bridge.buses) {
            (PciKind::PcieToPciBridge, Some(buses)) => {
                add(PciAddress::from_requester_id(segment, u16::from_be_bytes([buses.secondary, 0])));
            }
            (PciKind::ConventionalBridge | PciKind::PciToPcieBridge, _) => add(bridge.address),
            _ => {}
        }
    }
    result.map(|()| aliases)
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
