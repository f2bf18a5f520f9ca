//! Tests of the whole parser on tables written by hand.

extern crate std;

use std::string::ToString;
use std::vec::Vec;
use std::{format, vec};

use super::samples::{
    ANDD, ATSR, DRHD_ALL, DRHD_GRAPHICS, HEADER, RHSA, RMRR, SATC, SIDP, everything, finish, fix_checksum,
};
use super::{Dmar, DmarFlags, ScopeFlags, ScopeKind, Structure, resolve};
use crate::addr::{PhysAddr, PhysRange};
use crate::error::{ParseError, ParseErrorKind};
use crate::id::PciAddress;

fn pci(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function).unwrap()
}

/// 00:1c.4 leads to bus 3, 03:01.0 to bus 5; 00:1d.0 is a bridge that nobody has set up.
fn secondary_bus(bridge: PciAddress) -> Option<u8> {
    [(pci(0, 0x1c, 4), 3), (pci(3, 1, 0), 5), (pci(0, 0x1d, 0), 0)]
        .iter()
        .find(|(at, _)| *at == bridge)
        .map(|(_, b)| *b)
}

fn error_of(table: &[u8]) -> (u32, ParseErrorKind) {
    let ParseError { offset, kind } = Dmar::parse(table).expect_err("a malformed table was accepted");
    (offset, kind)
}

#[test]
fn everything_is_read_and_printed() {
    let table = everything();
    let dmar = Dmar::parse(&table).unwrap();
    assert_eq!(dmar.revision(), 1);
    assert_eq!(dmar.host_address_width(), 46);
    assert_eq!(dmar.flags(), DmarFlags::INTR_REMAP | DmarFlags::DMA_CTRL_PLATFORM_OPT_IN_FLAG);
    assert_eq!(
        dmar.to_string(),
        "DMAR revision 1, 46-bit physical addresses, INTR_REMAP, DMA_CTRL_PLATFORM_OPT_IN_FLAG
  DRHD segment 0 registers 0xfed90000..=0xfed90fff, endpoint 00:02.0
  DRHD segment 0 registers 0xfed92000..=0xfed93fff, bridge 00:1c.4
  DRHD segment 0 registers 0xfed94000..=0xfed94fff, endpoint 00:1c.4/01.0/00.0
  DRHD segment 0 registers 0xfed91000..=0xfed91fff, INCLUDE_PCI_ALL, IOAPIC 2 at f0:1f.0, HPET 0 at 00:1f.0, \
         ACPI device 7 at 00:1e.2
  DRHD segment 1 registers 0x10c0000000..=0x10c0000fff, INCLUDE_PCI_ALL
  RMRR segment 0 memory 0x7b800000..=0x7b820ffe, endpoint 00:14.0, bridge 00:1c.4
  ATSR segment 0, bridge 00:01.0
  ATSR segment 1, ALL_PORTS
  RHSA registers 0xfed91000 in proximity domain 3
  ANDD 7 is \\_SB.UA00
  SATC segment 0, ATC_REQUIRED, endpoint 00:02.0
  SIDP segment 0, endpoint 00:02.0 0x18
  unknown type 99, 3 bytes
  DRHD segment 2 registers 0xd0000000..=0xd0000fff, scope type 77 00"
    );
    let debug = format!("{dmar:?}");
    assert!(debug.contains("Andd { number: 7, name: \"\\_SB.UA00\" }"), "{debug}");
}

#[test]
fn the_unit_of_a_function_is_the_one_that_names_it_nearest() {
    let table = everything();
    let dmar = Dmar::parse(&table).unwrap();
    let unit = |function, bridges: &[PciAddress]| {
        dmar.unit_of(function, bridges, secondary_bus).map(|unit| unit.registers.start().as_u64())
    };
    // Named itself; a function beside it is not.
    assert_eq!(unit(pci(0, 2, 0), &[]), Some(0xfed9_0000));
    assert_eq!(unit(pci(0, 2, 1), &[]), Some(0xfed9_1000));
    // The bridge of a sub-hierarchy, and what is below it at any depth.
    let port = pci(0, 0x1c, 4);
    let switch = pci(3, 1, 0);
    assert_eq!(unit(port, &[]), Some(0xfed9_2000));
    assert_eq!(unit(pci(3, 0, 0), &[port]), Some(0xfed9_2000));
    assert_eq!(unit(pci(5, 0, 1), &[switch, port]), Some(0xfed9_2000));
    // An endpoint's own name comes before that of the hierarchy it is in.
    assert_eq!(unit(pci(5, 0, 0), &[switch, port]), Some(0xfed9_4000));
    // Everything else in the segment, and in another one; and a segment without such a unit.
    assert_eq!(unit(pci(0, 0x1f, 0), &[]), Some(0xfed9_1000));
    assert_eq!(unit(PciAddress::new(1, 0, 2, 0).unwrap(), &[]), Some(0x10_c000_0000));
    assert_eq!(unit(PciAddress::new(2, 0, 2, 0).unwrap(), &[]), None);
}

#[test]
fn paths_end_at_what_is_no_bridge() {
    let table = everything();
    let dmar = Dmar::parse(&table).unwrap();
    let deep = dmar.units().nth(2).unwrap().scopes.next().unwrap();
    assert_eq!(resolve(&deep, 0, secondary_bus), Some(pci(5, 0, 0)));
    assert_eq!(resolve(&deep, 0, |_| None), None);
    // A bridge that is not set up leads nowhere, and above all not to bus 0.
    assert_eq!(resolve(&deep, 0, |_| Some(0)), None);
    assert_eq!(resolve(&deep, 7, |_| Some(9)), PciAddress::new(7, 9, 0, 0));
}

#[test]
fn what_is_not_pci_is_found_by_its_number() {
    let table = everything();
    let dmar = Dmar::parse(&table).unwrap();
    let (unit, scope) = dmar.unit_naming(ScopeKind::IoApic, 2).unwrap();
    assert_eq!(unit.registers.start(), PhysAddr::new(0xfed9_1000));
    assert_eq!(resolve(&scope, unit.segment, |_| None), Some(pci(0xf0, 0x1f, 0)));
    assert!(dmar.unit_naming(ScopeKind::IoApic, 3).is_none());
    assert!(dmar.unit_naming(ScopeKind::Hpet, 0).is_some());
    assert!(dmar.unit_naming(ScopeKind::AcpiNamespace, 7).is_some());
    // The HPET's source id is a PCI function too, which its scope does not name.
    assert!(dmar.unit_of(pci(0, 0x1f, 0), &[], secondary_bus).unwrap().include_pci_all);
}

#[test]
fn reserved_regions_reach_whom_they_name() {
    let table = everything();
    let dmar = Dmar::parse(&table).unwrap();
    let regions = |function, bridges: &[PciAddress]| -> Vec<PhysRange> {
        dmar.reserved_regions_of(function, bridges, secondary_bus).map(|rmrr| rmrr.region).collect()
    };
    let region = PhysRange::new(PhysAddr::new(0x7b80_0000), PhysAddr::new(0x7b82_0ffe)).unwrap();
    assert_eq!(regions(pci(0, 0x14, 0), &[]), [region]);
    assert_eq!(regions(pci(3, 0, 0), &[pci(0, 0x1c, 4)]), [region]);
    assert_eq!(regions(pci(0, 2, 0), &[]), []);
    assert_eq!(regions(PciAddress::new(1, 0, 0x14, 0).unwrap(), &[]), []);
}

#[test]
fn ats_and_the_properties_of_integrated_devices() {
    let table = everything();
    let dmar = Dmar::parse(&table).unwrap();
    assert!(dmar.root_port_supports_ats(pci(0, 1, 0), secondary_bus));
    assert!(!dmar.root_port_supports_ats(pci(0, 0x1c, 4), secondary_bus));
    assert!(dmar.root_port_supports_ats(PciAddress::new(1, 0, 9, 0).unwrap(), secondary_bus));
    assert!(dmar.satc_of(pci(0, 2, 0), &[], secondary_bus).unwrap().atc_required);
    assert!(dmar.satc_of(pci(0, 3, 0), &[], secondary_bus).is_none());
    let properties = dmar.properties_of(pci(0, 2, 0), &[], secondary_bus);
    assert_eq!(properties, ScopeFlags::ATC_HARDENED | ScopeFlags::ATC_REQUIRED);
    assert_eq!(dmar.properties_of(pci(0, 3, 0), &[], secondary_bus), ScopeFlags::empty());
}

#[test]
fn a_table_cut_off_anywhere_is_truncated() {
    let table = everything();
    for length in 0..table.len() {
        let (offset, kind) = error_of(&table[..length]);
        assert_eq!((offset, kind), (0, ParseErrorKind::Truncated), "at {length} bytes");
    }
}

#[test]
fn a_table_that_says_it_is_shorter_is_never_misread() {
    // Cut the table at every byte, this time with a length and a checksum that agree: it is good
    // exactly where a structure ends.
    let table = everything();
    let mut ends = vec![48];
    while let Some(&end) = ends.last()
        && end < table.len()
    {
        ends.push(end + usize::from(table[end + 2]));
    }
    for length in 48..=table.len() {
        let cut = finish(&[&table[..length]]);
        assert_eq!(Dmar::parse(&cut).is_ok(), ends.contains(&length), "at {length} bytes");
        if let Err(error) = Dmar::parse(&cut) {
            let start = *ends.iter().rev().find(|end| **end < length).unwrap();
            assert_eq!(error, ParseError { offset: start as u32, kind: ParseErrorKind::Length }, "at {length} bytes");
        }
    }
}

#[test]
fn bytes_behind_the_table_are_none_of_its_business() {
    let mut table = everything();
    table.extend([0xff; 100]);
    assert!(Dmar::parse(&table).is_ok());
}

#[test]
fn malformed_headers_are_told_apart() {
    let good = finish(&[HEADER, DRHD_ALL]);
    let with = |changes: &[(usize, u8)]| {
        let mut table = good.clone();
        for &(at, byte) in changes {
            table[at] = byte;
        }
        fix_checksum(&mut table);
        error_of(&table)
    };
    assert_eq!(with(&[(0, b'X')]), (0, ParseErrorKind::Signature));
    assert_eq!(with(&[(4, 47)]), (4, ParseErrorKind::Length));
    assert_eq!(with(&[(4, 89)]), (0, ParseErrorKind::Truncated));
    assert_eq!(with(&[(7, 0xff)]), (0, ParseErrorKind::Truncated));
    assert_eq!(with(&[(8, 0)]), (8, ParseErrorKind::Revision));
    assert_eq!(with(&[(36, 64)]), (36, ParseErrorKind::Value));
    let mut table = good.clone();
    table[20] ^= 1;
    assert_eq!(error_of(&table), (9, ParseErrorKind::Checksum));
}

#[test]
fn malformed_structures_are_named_by_their_place() {
    for structure in [DRHD_GRAPHICS, RMRR, ATSR, RHSA, ANDD, SATC, SIDP] {
        let (kind, fixed) = (structure[0], [16, 24, 8, 20, 8, 8, 8][usize::from(structure[0])]);
        // Behind a good structure, one with every length there is.
        for length in 0..=255_u8 {
            let mut part = structure.to_vec();
            part[2] = length;
            let table = finish(&[HEADER, DRHD_ALL, &part]);
            let result = Dmar::parse(&table).map(|_| ());
            if length < fixed || usize::from(length) > structure.len() {
                assert_eq!(
                    result,
                    Err(ParseError { offset: 88, kind: ParseErrorKind::Length }),
                    "type {kind}, length {length}"
                );
            } else if usize::from(length) == structure.len() {
                assert_eq!(result, Ok(()), "type {kind}, length {length}");
            }
        }
    }
    let long = finish(&[HEADER, &[99, 0, 0, 1]]);
    assert_eq!(error_of(&long), (48, ParseErrorKind::Length));
    let empty = finish(&[HEADER, &[99, 0, 0, 0]]);
    assert_eq!(error_of(&empty), (48, ParseErrorKind::Length));
    let half_a_header = finish(&[HEADER, &[0, 0, 16]]);
    assert_eq!(error_of(&half_a_header), (48, ParseErrorKind::Length));
}

#[test]
fn malformed_scopes_are_named_by_their_place() {
    // The scope of DRHD_GRAPHICS lies at byte 64, its length at 65, its path at 70.
    let with = |at: usize, byte: u8| {
        let mut table = finish(&[HEADER, DRHD_GRAPHICS, DRHD_ALL]);
        table[at] = byte;
        fix_checksum(&mut table);
        error_of(&table)
    };
    for length in (0..8).chain(9..=255) {
        assert_eq!(with(65, length), (64, ParseErrorKind::Length), "scope of {length} bytes");
    }
    assert_eq!(with(70, 32), (70, ParseErrorKind::Value));
    assert_eq!(with(71, 8), (70, ParseErrorKind::Value));
}

#[test]
fn illegal_values_are_named_by_their_place() {
    let with = |structure: &[u8], at: usize, bytes: &[u8]| {
        let mut part = structure.to_vec();
        part[at..at + bytes.len()].copy_from_slice(bytes);
        let table = finish(&[HEADER, &part]);
        Dmar::parse(&table).map(|_| ()).map_err(|error| (error.offset, error.kind))
    };
    // Registers at zero, off a page, or past the top of the address space.
    assert_eq!(with(DRHD_ALL, 8, &[0; 8]), Err((56, ParseErrorKind::Value)));
    assert_eq!(with(DRHD_ALL, 8, &[4]), Err((56, ParseErrorKind::Value)));
    let top = 0xffff_ffff_ffff_f000_u64.to_le_bytes();
    assert_eq!(with(DRHD_ALL, 8, &top), Ok(()));
    let two_pages = [&[0, 1, 0, 0][..], &top].concat();
    assert_eq!(with(DRHD_ALL, 4, &two_pages), Err((56, ParseErrorKind::Value)));
    // A reserved region that ends before it begins; one of a single byte is odd but harmless.
    assert_eq!(with(RMRR, 16, &0x7b7f_ffff_u64.to_le_bytes()), Err((64, ParseErrorKind::Value)));
    assert_eq!(with(RMRR, 16, &0x7b80_0000_u64.to_le_bytes()), Ok(()));
}

#[test]
fn names_of_acpi_devices_end_at_nul_or_at_their_end() {
    let mut endless = ANDD.to_vec();
    endless[17..].copy_from_slice(b"XYZ");
    let mut bare = ANDD[..8].to_vec();
    bare[2] = 8;
    for (andd, expected) in [(ANDD, "\\_SB.UA00"), (&endless, "\\_SB.UA00XYZ"), (&bare, "")] {
        let table = finish(&[HEADER, andd]);
        let name = Dmar::parse(&table).unwrap().structures().find_map(|structure| match structure {
            Structure::Andd(andd) => andd.name_str().map(ToString::to_string),
            _ => None,
        });
        assert_eq!(name.as_deref(), Some(expected));
    }
}
