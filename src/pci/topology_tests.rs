extern crate std;
use std::vec::Vec;

use super::super::fake::Fake;
use super::super::{PciConfig, PciKind, extended_id};
use super::{BusFunctions, MAX_DEPTH, aliases, path};
use crate::error::Error;
use crate::id::PciAddress;

fn path_of(fake: &Fake, function: PciAddress) -> Vec<PciAddress> {
    path(fake, function).unwrap().iter().map(|bridge| bridge.address).collect()
}

#[test]
fn functions_on_a_root_bus_have_no_path_and_no_alias() {
    let mut fake = Fake::new();
    let device = fake.conventional(0, 4, 0);
    assert_eq!(path_of(&fake, device), []);
    assert_eq!(aliases(&fake, device).unwrap(), [device]);
    // Nor have those on another root bus, or on a bus that does not exist.
    fake.port(0, 1, 0, PciKind::RootPort, 1..=3);
    let other_root = fake.conventional(0x40, 1, 0);
    assert_eq!(path_of(&fake, other_root), []);
    assert_eq!(path_of(&fake, PciAddress::new(7, 9, 0, 0).unwrap()), []);
}

#[test]
fn the_path_goes_through_a_switch() {
    let mut fake = Fake::new();
    fake.port(0, 1, 0, PciKind::RootPort, 1..=1);
    let root = fake.port(0, 2, 0, PciKind::RootPort, 2..=6);
    let upstream = fake.port(2, 0, 0, PciKind::UpstreamPort, 3..=6);
    fake.port(3, 0, 0, PciKind::DownstreamPort, 4..=4);
    let downstream = fake.port(3, 1, 0, PciKind::DownstreamPort, 5..=6);
    let device = fake.express(5, 0, 0, PciKind::Endpoint);
    assert_eq!(path_of(&fake, device), [root, upstream, downstream]);
    assert_eq!(path_of(&fake, downstream), [root, upstream]);
    // A virtual function on a bus that no bridge names as its own.
    assert_eq!(path_of(&fake, Fake::at(6, 0, 3)), [root, upstream, downstream]);
    assert_eq!(aliases(&fake, device).unwrap(), [device]);
}

#[test]
fn below_another_root_bus() {
    let mut fake = Fake::new();
    fake.port(0, 1, 0, PciKind::RootPort, 1..=5);
    let root = fake.port(0x80, 3, 2, PciKind::RootPort, 0x81..=0x83);
    fake.port(0x80, 3, 0, PciKind::RootPort, 0x84..=0x84);
    fake.set8(Fake::at(0x80, 3, 0), 0x0e, 0x81);
    assert_eq!(path_of(&fake, Fake::at(0x81, 0, 0)), [root]);
}

#[test]
fn bridges_put_other_ids_in_place() {
    let mut fake = Fake::new();
    fake.port(0, 1, 0, PciKind::RootPort, 1..=3);
    fake.port(1, 0, 0, PciKind::PcieToPciBridge, 2..=3);
    let behind = fake.conventional(2, 5, 0);
    assert_eq!(aliases(&fake, behind).unwrap(), [behind, Fake::at(2, 0, 0)]);
    let first = fake.conventional(2, 0, 0);
    assert_eq!(aliases(&fake, first).unwrap(), [first]);
    let inner = fake.conventional_bridge(2, 6, 0, 3..=3);
    let deep = fake.conventional(3, 1, 0);
    assert_eq!(aliases(&fake, deep).unwrap(), [deep, inner, Fake::at(2, 0, 0)]);
    let bridge = fake.conventional_bridge(0, 6, 0, 4..=5);
    let device = fake.conventional(4, 2, 0);
    assert_eq!(aliases(&fake, device).unwrap(), [device, bridge]);
    let back = fake.port(4, 3, 0, PciKind::PciToPcieBridge, 5..=5);
    let express = fake.express(5, 0, 0, PciKind::Endpoint);
    assert_eq!(aliases(&fake, express).unwrap(), [express, back, bridge]);
}

#[test]
fn quirks_add_aliases() {
    let mut fake = Fake::new();
    let device = fake.express(3, 0, 0, PciKind::Endpoint);
    fake.add_quirk(device, 1);
    fake.add_quirk(device, 1);
    assert_eq!(aliases(&fake, device).unwrap(), [device, Fake::at(3, 0, 1)]);
    (2..50).for_each(|devfn| fake.add_quirk(device, devfn));
    assert_eq!(aliases(&fake, device), Err(Error::Capacity("pci::MAX_ALIASES")));
}

#[test]
fn depth_is_bounded() {
    let mut fake = Fake::new();
    for bus in 0..=MAX_DEPTH as u8 {
        fake.port(bus, 0, 0, PciKind::UpstreamPort, bus + 1..=255);
    }
    assert_eq!(path(&fake, Fake::at(MAX_DEPTH as u8, 0, 0)).unwrap().len(), MAX_DEPTH);
    let beyond = Fake::at(MAX_DEPTH as u8 + 1, 0, 0);
    assert_eq!(path(&fake, beyond), Err(Error::Capacity("pci::MAX_DEPTH")));
    assert_eq!(aliases(&fake, beyond), Err(Error::Capacity("pci::MAX_DEPTH")));
}

#[test]
fn bus_numbers_that_lead_back_are_ignored() {
    let mut fake = Fake::new();
    fake.port(0, 1, 0, PciKind::RootPort, 0..=255);
    let root = fake.port(0, 2, 0, PciKind::RootPort, 2..=9);
    fake.port(2, 0, 0, PciKind::UpstreamPort, 1..=9);
    fake.port(2, 1, 0, PciKind::UpstreamPort, 2..=9);
    assert_eq!(path_of(&fake, Fake::at(9, 0, 0)), [root]);
}

#[test]
fn absent_functions_are_not_listed() {
    let mut fake = Fake::new();
    assert_eq!(BusFunctions::new(&fake, 0, 0).next(), None);
    let first = fake.conventional(0, 3, 0);
    let second = fake.conventional(0, 3, 5);
    let third = fake.conventional(0, 31, 0);
    // Some devices answer for every function number, and only the header tells that there is one.
    fake.conventional(0, 7, 0);
    fake.conventional(0, 7, 1);
    fake.set8(Fake::at(0, 7, 0), 0x0e, 0);
    let listed: Vec<_> = BusFunctions::new(&fake, 0, 0).collect();
    assert_eq!(listed, [first, second, Fake::at(0, 7, 0), third]);
    assert_eq!(fake.read16(Fake::at(0, 3, 1), 0), 0xffff);
}

#[test]
fn functions_with_ari_are_listed() {
    let mut fake = Fake::new();
    let numbers = [0u8, 9, 200];
    for (index, number) in numbers.into_iter().enumerate() {
        let function = fake.express(1, number >> 3, number & 7, PciKind::Endpoint);
        let next = numbers.get(index + 1).copied().unwrap_or(0);
        fake.add_extended(function, extended_id::ARI, &[u32::from(next) << 8]);
    }
    let listed: Vec<_> = BusFunctions::new(&fake, 0, 1).map(PciAddress::devfn).collect();
    assert_eq!(listed, numbers);
}
