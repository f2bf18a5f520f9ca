//! The DMAR parser on any bytes, and every question that can be asked of a table that it accepts.
//!
//! The input is a table. It is tried as it is, and again with signature, length, revision and
//! checksum put right, so that the fuzzer need not guess them.
#![no_main]

use std::fmt::Write;

use iommu::PciAddress;
use iommu::arch::vtd::dmar::{Dmar, Scopes, Structure, covers, resolve};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    examine(bytes);
    if let Some(table) = put_right(bytes) {
        examine(&table);
    }
});

fn put_right(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut table = bytes.to_vec();
    let length = u32::try_from(table.len()).ok()?;
    table.get_mut(..48)?;
    table[..4].copy_from_slice(b"DMAR");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[8] |= 1;
    table[36] &= 63;
    table[9] = 0;
    table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    Some(table)
}

/// Bridges everywhere, but for some that are not set up and some that are none.
fn secondary_bus(at: PciAddress) -> Option<u8> {
    (at.function() != 7).then(|| at.bus().wrapping_mul(3) ^ at.devfn())
}

fn examine(bytes: &[u8]) {
    let dmar = match Dmar::parse(bytes) {
        Ok(dmar) => dmar,
        Err(error) => {
            assert!(error.offset as usize <= bytes.len(), "{error} in {} bytes", bytes.len());
            return;
        }
    };
    assert!(dmar.structures().count() <= bytes.len() / 4);
    let mut text = String::new();
    write!(text, "{dmar} {dmar:?}").unwrap();

    for structure in dmar.structures() {
        match structure {
            Structure::Drhd(unit) => {
                assert!(unit.registers.is_aligned(4096));
                ask_about(&dmar, unit.segment, unit.scopes);
            }
            Structure::Rmrr(rmrr) => {
                assert!(rmrr.region.align_outward(4096).covers(&rmrr.region));
                ask_about(&dmar, rmrr.segment, rmrr.scopes);
            }
            Structure::Atsr(atsr) => ask_about(&dmar, atsr.segment, atsr.scopes),
            Structure::Satc(satc) => ask_about(&dmar, satc.segment, satc.scopes),
            Structure::Sidp(sidp) => ask_about(&dmar, sidp.segment, sidp.scopes),
            _ => {}
        }
    }
}

/// Asks everything about each device that the scopes name, and about one below it.
fn ask_about(dmar: &Dmar<'_>, segment: u16, scopes: Scopes<'_>) {
    for scope in scopes {
        assert!(dmar.unit_naming(scope.kind(), scope.enumeration_id()).is_none_or(|(_, named)| {
            named.kind() == scope.kind() && named.enumeration_id() == scope.enumeration_id()
        }));
        let Some(named) = resolve(&scope, segment, secondary_bus) else { continue };
        assert_eq!(named.segment(), segment);
        let below = PciAddress::from_requester_id(segment, u16::from(secondary_bus(named).unwrap_or(1)) << 8);
        for (function, bridges) in [(named, &[][..]), (below, &[named][..])] {
            let unit = dmar.unit_of(function, bridges, secondary_bus);
            let is_named = |unit: &iommu::arch::vtd::dmar::Drhd<'_>| {
                let mut scopes = unit.scopes;
                scopes.any(|scope| covers(&scope, unit.segment, function, bridges, secondary_bus).is_some())
            };
            match unit {
                Some(unit) if is_named(&unit) => {}
                Some(unit) => {
                    assert!(unit.include_pci_all && unit.segment == segment);
                    assert!(!dmar.units().any(|unit| is_named(&unit)), "named by a unit that was not taken");
                }
                None => assert!(!dmar.units().any(|unit| unit.include_pci_all && unit.segment == segment)),
            }
            let regions = dmar.reserved_regions_of(function, bridges, secondary_bus).count();
            assert!(regions <= dmar.reserved_regions().count());
            let _ = dmar.root_port_supports_ats(function, secondary_bus);
            let _ = dmar.satc_of(function, bridges, secondary_bus);
            let _ = dmar.properties_of(function, bridges, secondary_bus);
        }
    }
}
