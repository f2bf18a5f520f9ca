//! Tables of both modes that fit together, for the fuzzer to spoil.

use iommu::arch::vtd::device::DeviceConfig;
use iommu::arch::vtd::layout::{Cap, Ecap};

use crate::guest::{Guest, PAGES, slot, value};
use crate::input::Input;

/// RTADDR for legacy mode: the table at 0x1000 names the context table at 0x2000.
pub const LEGACY: u64 = 0x1000;
/// RTADDR for scalable mode: the table at 0x3000 names the context tables at 0x4000 and 0x5000.
pub const SCALABLE: u64 = 0x3400;
/// Sources that have entries.
pub const SOURCES: [u16; 3] = [0x0000, 0x0010, 0x0090];

/// A unit with these and those capabilities, which it may really have.
pub fn config(input: &mut Input<'_>) -> DeviceConfig {
    // 48 bits, all widths, large pages; the fault recording registers and the IOTLB's beyond the others.
    let cap = 0x11d2_008c_222f_0e06_u64;
    let caps = [Cap::RWBF, Cap::CM, Cap::SAGAW_57, Cap::ZLR, Cap::LARGE_2M, Cap::LARGE_1G, Cap::FS1GP, Cap::FS5LP];
    let ecaps = [
        Ecap::C,
        Ecap::DT,
        Ecap::PT,
        Ecap::SC,
        Ecap::NEST,
        Ecap::PRS,
        Ecap::SRS,
        Ecap::NWFS,
        Ecap::EAFS,
        Ecap::PASID,
        Ecap::SSADS,
        Ecap::SSTS,
        Ecap::FSTS,
        Ecap::SMPWCS,
        Ecap::RPS,
        Ecap::RPRIVS,
    ];
    let mut config = DeviceConfig {
        version: [0x10, 0x60, 0x70][input.below(3)],
        cap: Cap::from_bits_retain(cap & !Cap::RWBF.bits() & !Cap::CM.bits()),
        ecap: Ecap::from_bits_retain(0x98_00f0_0f00) | Ecap::QI | Ecap::SMTS,
        host_address_bits: [52, 46, 40, 18][input.below(4)],
        ..DeviceConfig::default()
    };
    for ecap in ecaps {
        config.ecap |= ecap;
    }
    for _ in 0..input.below(6) {
        match input.u8() {
            kind @ 0..96 => config.cap ^= caps[usize::from(kind & 7)],
            kind @ 96..200 => config.ecap ^= ecaps[usize::from(kind & 15)],
            200..208 => config.ecap ^= Ecap::SSIRWS,
            208..216 => config.ecap ^= Ecap::PTRS,
            216..224 => config.ecap ^= Ecap::ADMS,
            224..232 => config.ecap ^= Ecap::MTS,
            // MGAW of 12 bits and more.
            232..240 => {
                let mgaw = u64::from(11 + input.u8() % 52);
                config.cap = Cap::from_bits_retain(config.cap.bits() & !(0x3f << 16) | mgaw << 16);
            }
            // ND.
            240..248 => {
                config.cap = Cap::from_bits_retain(config.cap.bits() & !7 | u64::from(input.u8() % 7));
            }
            _ => config.ecap ^= Ecap::SMTS,
        }
    }
    config
}

/// Both sets of tables. Page 6 and 7 are the PASID directory and table, 8 to 12 the second stage from
/// the fifth level down, 16 to 20 the first stage; what they map is the memory itself.
pub fn build(guest: &Guest, input: &mut Input<'_>) {
    let width = 1 + u64::from(input.u8() % 3);
    let mode = u64::from(input.u8() & 1);
    guest.put(0x1000, 0x2001);
    guest.put(0x3000, 0x4001);
    guest.put(0x3008, 0x5001);
    let second = (11 - width) << 12;
    let first = (17 - mode) << 12;
    for source in SOURCES {
        let at = 0x2000 + u64::from(source) * 16;
        guest.put(at, second | 1 | u64::from(input.u8() & 3) << 2);
        guest.put(at + 8, 0x100 * u64::from(1 + source % 7) | width);
        let at = 0x4000 + u64::from(source) * 32;
        guest.put(at, 0x6001 | u64::from(input.u8() & 0x5e));
        guest.put(at + 8, u64::from(input.u8() & 1));
    }
    guest.put(0x6000, 0x7001);
    for pasid in 0..4 {
        let at = 0x7000 + pasid * 64;
        let kind = u64::from(input.u8());
        guest.put(at, second | 1 | width << 2 | (1 + (kind & 3)) << 6 | (kind >> 2 & 1) << 9);
        guest.put(at + 8, (1 + pasid) | (kind >> 3 & 3) << 23);
        guest.put(at + 16, first | mode << 2 | kind >> 5 & 1 | (kind >> 6 & 1) << 4 | (kind >> 7) << 7);
    }
    for page in 8..12 {
        guest.put(page << 12, (page + 1) << 12 | 3);
    }
    for page in 16..20 {
        guest.put(page << 12, (page + 1) << 12 | 0x67);
    }
    let turn = u64::from(input.u8() & 31);
    for page in 0..PAGES {
        // Tables of the first stage stay where they are.
        let to = if page & !7 == 16 { page } else { page ^ turn & !16 };
        guest.put(0xc000 + page * 8, to << 12 | 3);
        guest.put(0x1_4000 + page * 8, page << 12 | 0x67);
    }
    guest.put(0xb008, 0x4000_0083);
    guest.put(0x1_3008, 0xe7);
    spoil(guest, input);
}

/// Changes some words, or none.
pub fn spoil(guest: &Guest, input: &mut Input<'_>) {
    for _ in 0..input.below(12).saturating_sub(8) {
        let at = slot(input);
        let present = guest.lock().get(at).unwrap_or(0);
        guest.put(at, value(input, present));
    }
}
