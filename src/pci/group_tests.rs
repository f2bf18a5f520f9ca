use super::super::fake::Fake;
use super::super::{PciConfig, PciFunction, PciKind, aliases, extended_id};
use super::{enable_acs, group_key};
use crate::error::Error;
use crate::id::PciAddress;

fn key(fake: &Fake, function: PciAddress) -> PciAddress {
    group_key(fake, function).unwrap().anchor()
}

#[test]
fn an_absent_function_has_no_group() {
    assert_eq!(group_key(&Fake::new(), Fake::at(0, 4, 0)), Err(Error::NoDevice));
}

#[test]
fn single_functions_on_bus_0_are_alone() {
    let mut fake = Fake::new();
    let one = fake.conventional(0, 4, 0);
    let other = fake.express(0, 5, 0, PciKind::RootComplexEndpoint);
    assert_eq!((key(&fake, one), key(&fake, other)), (one, other));
}

#[test]
fn conventional_functions_share_their_device() {
    let mut fake = Fake::new();
    let first = fake.conventional(0, 0x1f, 0);
    let second = fake.conventional(0, 0x1f, 2);
    let other = fake.conventional(0, 0x1e, 0);
    assert_eq!((key(&fake, first), key(&fake, second), key(&fake, other)), (first, first, other));
}

#[test]
fn a_root_port_with_acs_separates() {
    let mut fake = Fake::new();
    let port = fake.isolating_port(0, 1, 0, PciKind::RootPort, 1..=1);
    let device = fake.express(1, 0, 0, PciKind::Endpoint);
    assert_eq!((key(&fake, port), key(&fake, device)), (port, device));
}

#[test]
fn a_root_port_without_acs_shares_with_what_is_below() {
    let mut fake = Fake::new();
    let port = fake.port(0, 1, 0, PciKind::RootPort, 1..=1);
    let device = fake.express(1, 0, 0, PciKind::Endpoint);
    let other_port = fake.port(0, 2, 0, PciKind::RootPort, 2..=2);
    let other = fake.express(2, 0, 0, PciKind::Endpoint);
    assert_eq!((key(&fake, port), key(&fake, device)), (port, port));
    assert_eq!((key(&fake, other_port), key(&fake, other)), (other_port, other_port));
}

#[test]
fn root_ports_in_one_device_share_without_acs() {
    let mut fake = Fake::new();
    let first = fake.isolating_port(0, 1, 0, PciKind::RootPort, 1..=1);
    let second = fake.port(0, 1, 1, PciKind::RootPort, 2..=2);
    let below_first = fake.express(1, 0, 0, PciKind::Endpoint);
    let below_second = fake.express(2, 0, 0, PciKind::Endpoint);
    for function in [first, second, below_first, below_second] {
        assert_eq!(key(&fake, function), first);
    }
    fake.add_extended(second, extended_id::ACS, &[0x001d_001d]);
    for function in [first, second, below_first, below_second] {
        assert_eq!(key(&fake, function), function);
    }
}

/// Root port, upstream port, two downstream ports, a device below each.
fn switch(fake: &mut Fake, isolating: [bool; 2]) -> [PciAddress; 6] {
    let root = fake.isolating_port(0, 1, 0, PciKind::RootPort, 1..=4);
    let upstream = fake.port(1, 0, 0, PciKind::UpstreamPort, 2..=4);
    let mut downstream = |device: u8, isolating: bool| {
        let below = device + 3..=device + 3;
        match isolating {
            true => fake.isolating_port(2, device, 0, PciKind::DownstreamPort, below),
            false => fake.port(2, device, 0, PciKind::DownstreamPort, below),
        }
    };
    let ports = [downstream(0, isolating[0]), downstream(1, isolating[1])];
    let devices = [3, 4].map(|bus| fake.express(bus, 0, 0, PciKind::Endpoint));
    [root, upstream, ports[0], ports[1], devices[0], devices[1]]
}

#[test]
fn a_switch_with_acs_separates() {
    let mut fake = Fake::new();
    for function in switch(&mut fake, [true, true]) {
        assert_eq!(key(&fake, function), function);
    }
}

#[test]
fn a_switch_without_acs_shares() {
    for isolating in [[false, false], [true, false], [false, true]] {
        let mut fake = Fake::new();
        let [root, upstream, shared @ ..] = switch(&mut fake, isolating);
        assert_eq!((key(&fake, root), key(&fake, upstream)), (root, upstream));
        for function in shared {
            assert_eq!(key(&fake, function), upstream);
        }
    }
}

#[test]
fn a_foreign_function_inside_a_switch_shares() {
    let mut fake = Fake::new();
    let [_, upstream, left, right, device, _] = switch(&mut fake, [true, true]);
    let alone = fake.express(2, 9, 0, PciKind::Endpoint);
    assert_eq!((key(&fake, alone), key(&fake, device)), (alone, device));
    let foreign = fake.conventional(2, 0, 1);
    for function in [alone, foreign, left, right, device] {
        assert_eq!(key(&fake, function), upstream);
    }
}

#[test]
fn functions_of_an_endpoint_share_without_acs() {
    let mut fake = Fake::new();
    fake.isolating_port(0, 1, 0, PciKind::RootPort, 1..=1);
    let functions = [0, 1, 3].map(|function| fake.express(1, 0, function, PciKind::Endpoint));
    assert!(functions.iter().all(|&function| key(&fake, function) == functions[0]));
    for function in &functions[..2] {
        fake.add_extended(*function, extended_id::ACS, &[0x000c_000c]);
    }
    assert!(functions.iter().all(|&function| key(&fake, function) == functions[0]), "one is not isolated");
    fake.add_extended(functions[2], extended_id::ACS, &[0x000c_000c]);
    assert!(functions.iter().all(|&function| key(&fake, function) == function));
}

#[test]
fn root_complex_endpoints_share_their_device_without_acs() {
    let mut fake = Fake::new();
    let first = fake.express(0, 0x14, 0, PciKind::RootComplexEndpoint);
    let second = fake.express(0, 0x14, 2, PciKind::RootComplexEndpoint);
    assert_eq!((key(&fake, first), key(&fake, second)), (first, first));
    fake.add_extended(first, extended_id::ACS, &[0]);
    fake.add_extended(second, extended_id::ACS, &[0]);
    assert_eq!((key(&fake, first), key(&fake, second)), (first, second));
}

#[test]
fn ari_functions_share_across_device_numbers() {
    let mut fake = Fake::new();
    fake.isolating_port(0, 1, 0, PciKind::RootPort, 1..=1);
    let first = fake.express(1, 0, 0, PciKind::Endpoint);
    fake.set8(first, 0x0e, 0x80);
    let far = fake.express(1, 2, 1, PciKind::Endpoint);
    fake.add_extended(first, extended_id::ARI, &[0x11 << 8]);
    fake.add_extended(far, extended_id::ARI, &[0]);
    assert_eq!((key(&fake, first), key(&fake, far)), (first, first));
    fake.add_extended(first, extended_id::ACS, &[0x000c_000c]);
    assert_eq!((key(&fake, first), key(&fake, far)), (first, first));
    fake.add_extended(far, extended_id::ACS, &[0x000c_000c]);
    assert_eq!((key(&fake, first), key(&fake, far)), (first, far));
}

#[test]
fn everything_behind_a_conventional_bridge_shares() {
    let mut fake = Fake::new();
    fake.isolating_port(0, 1, 0, PciKind::RootPort, 1..=2);
    let bridge = fake.port(1, 0, 0, PciKind::PcieToPciBridge, 2..=2);
    let one = fake.conventional(2, 1, 0);
    let other = fake.conventional(2, 2, 0);
    for function in [bridge, one, other] {
        assert_eq!(key(&fake, function), bridge);
    }
    let legacy = fake.conventional_bridge(0, 0x1e, 0, 3..=4);
    let outer = fake.conventional(3, 1, 0);
    fake.conventional_bridge(3, 2, 0, 4..=4);
    let inner = fake.conventional(4, 1, 0);
    for function in [legacy, outer, inner] {
        assert_eq!(key(&fake, function), legacy);
    }
}

#[test]
fn quirk_aliases_join() {
    let mut fake = Fake::new();
    let [a, b, c, d] = [1, 2, 3, 4].map(|device| fake.conventional(0, device, 0));
    fake.add_quirk(c, a.devfn());
    // Two functions that send under one number, at which nothing is.
    fake.add_quirk(b, 0xf8);
    fake.add_quirk(d, 0xf8);
    assert_eq!([a, b, c, d].map(|function| key(&fake, function)), [a, b, a, b]);
}

#[test]
fn acs_is_enabled_where_it_matters() {
    let mut fake = Fake::new();
    let functions = switch(&mut fake, [false, false]);
    let [root, _, left, right, device, _] = functions;
    for port in [left, right] {
        fake.add_extended(port, extended_id::ACS, &[0x0000_005f]);
    }
    assert_ne!(key(&fake, device), device);
    enable_acs(&fake, device).unwrap();
    for function in functions {
        assert_eq!(key(&fake, function), function);
    }
    let acs = PciFunction::read(&fake, right).unwrap().acs.unwrap();
    assert_eq!((acs.enabled.bits(), acs.capable.bits()), (0x1d, 0x5f));
    assert!(PciFunction::read(&fake, root).unwrap().is_isolated());
}

#[test]
fn capabilities_that_loop_do_not_hang() {
    let mut fake = Fake::new();
    let device = fake.express(0, 4, 1, PciKind::Endpoint);
    fake.conventional(0, 4, 0);
    fake.set32(device, 0x100, 0x100 << 20 | 1 << 16 | u32::from(extended_id::ARI));
    fake.set32(Fake::at(0, 4, 0), 0x0c, 0x80 << 16);
    assert_eq!(key(&fake, device), Fake::at(0, 4, 0));
}

/// Answers noise, the same for every read of a register.
struct Noise(u64);

impl PciConfig for Noise {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 4096, "{offset:#x}");
        let mut word = self.0 ^ u64::from(function.requester_id()) << 16 ^ u64::from(offset);
        for _ in 0..3 {
            word = (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(self.0);
        }
        match (offset, word >> 61) {
            // Some functions are absent, and many are PCI Express bridges.
            (0, 0..4) => u32::MAX,
            (0x0c, 0..5) => 1 << 16,
            (0x40..0x100, 0..2) => 0x0060_0010 | (word >> 32) as u32 & 0xfc00,
            _ => (word >> 24) as u32,
        }
    }

    fn write32(&self, _function: PciAddress, offset: u16, _value: u32) {
        assert!(offset.is_multiple_of(4) && offset < 4096, "{offset:#x}");
    }

    fn quirk_aliases(&self, function: PciAddress, add: &mut dyn FnMut(u8)) {
        add(self.read32(function, 0x200) as u8);
    }
}

#[test]
fn noise_neither_hangs_nor_panics() {
    let mut groups = 0;
    for seed in 1..=4u64 {
        let noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for rid in [0u16, 0x0108, 0x2fff, 0xff00] {
            let function = PciAddress::from_requester_id(0, rid);
            let _ = enable_acs(&noise, function);
            let _ = aliases(&noise, function);
            groups += u32::from(group_key(&noise, function).is_ok());
        }
    }
    assert_ne!(groups, 0);
}
