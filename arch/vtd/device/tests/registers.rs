//! Registers: reset values, read-only, reserved and written-with-1-to-clear bits (VT-d 11.4).

use super::{unit, with};
use crate::arch::vtd::device::{DeviceConfig, VtdDevice};
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::error::{Error, InvalidReason};
use crate::platform::Registers;

#[test]
fn after_a_reset() {
    let unit = unit(with(Cap::empty(), Ecap::SMTS | Ecap::PRS | Ecap::DT));
    let masked = [0x38, 0xa0, 0xe0];
    for offset in (0..0x1000).step_by(4) {
        let expected = match offset {
            0x00 => 0x10,
            0x08 => 0x222f_0606,
            0x0c => 0x00d2_008c,
            0x10 => 0x20f0_0f47,
            0x14 => 0x0000_0800,
            _ if masked.contains(&offset) => 0x8000_0000,
            _ => 0,
        };
        assert_eq!(unit.read32(offset), expected, "{offset:#x}");
    }
}

/// Register, its value after all ones were written, without a step in between.
#[test]
fn what_can_be_written() {
    let everything =
        with(Cap::PLMR | Cap::PHMR, Ecap::SMTS | Ecap::PRS | Ecap::DT | Ecap::IR | Ecap::EIM | Ecap::SSIRWS);
    let all: [(usize, u64); 26] = [
        (0x00, 0x10),
        (0x18, 0),                     // GCMD reads as nothing
        (0x1c, 0),                     // GSTS
        (0x20, 0xffff_ffff_ffff_fc80), // RTADDR
        (0x34, 0),                     // FSTS
        (0x38, 0x8000_0000),           // FECTL
        (0x3c, 0xffff),                // FEDATA
        (0x40, 0xffff_fffc),           // FEADDR
        (0x44, 0xffff_ffff),           // FEUADDR
        (0x64, 0x8000_0000),           // PMEN
        (0x68, 0xffe0_0000),           // PLMBASE
        (0x6c, 0xffe0_0000),           // PLMLIMIT
        (0x70, 0xffff_ffff_ffe0_0000), // PHMBASE
        (0x78, 0xffff_ffff_ffe0_0000), // PHMLIMIT
        (0x80, 0),                     // IQH
        (0x88, 0x7_fff0),              // IQT
        (0x90, 0xffff_ffff_ffff_f807), // IQA
        (0x9c, 0),                     // ICS
        (0xa0, 0x8000_0000),           // IECTL
        (0xb0, 0),                     // IQERCD
        (0xb8, 0xffff_ffff_ffff_f80f), // IRTA
        (0xc0, 0x7_ffe0),              // PQH
        (0xc8, 0x7_ffe0),              // PQT
        (0xd0, 0xffff_ffff_ffff_f007), // PQA
        (0xdc, 0),                     // PRS
        (0xe0, 0x8000_0000),           // PECTL
    ];
    let wide = |offset| [0x20, 0x70, 0x78, 0x80, 0x88, 0x90, 0xb0, 0xb8, 0xc0, 0xc8, 0xd0].contains(&offset);
    let unit = super::unit(everything);
    for (offset, expected) in all {
        // GCMD aside, which asks for too much at once.
        if offset != 0x18 {
            unit.write32(offset, u32::MAX);
            if wide(offset) {
                unit.write32(offset + 4, u32::MAX);
            }
        }
        let value = if wide(offset) { unit.read64(offset) } else { u64::from(unit.read32(offset)) };
        assert_eq!(value, expected, "{offset:#x}");
    }
    // A unit without any of it.
    let config = DeviceConfig::default();
    let bare = super::unit(DeviceConfig { ecap: config.ecap - Ecap::QI, ..config });
    for offset in (0x44..0xe0).step_by(4).chain(0xe4..0xf0) {
        bare.write32(offset, u32::MAX);
        assert_eq!(bare.read32(offset & !3), 0, "{offset:#x}");
    }
    bare.write64(0x20, u64::MAX);
    assert_eq!(bare.read64(0x20), 0xffff_ffff_ffff_fc00, "SSIRWE is reserved");
}

#[test]
fn any_offset_is_an_access() {
    let unit = unit(DeviceConfig::default());
    assert_eq!(unit.register_bytes(), 0x1000);
    assert_eq!(unit.read64(0x04), 0x222f_0606 << 32, "no alignment to 8 bytes is needed");
    for offset in [1, 2, 3, 0x22, 0x1000, 0x1_0000, usize::MAX - 3, usize::MAX] {
        assert_eq!(unit.read32(offset), u32::MAX, "{offset:#x}");
        unit.write32(offset, 0);
        unit.write64(offset, 0);
    }
    assert_eq!(unit.read64(0xffc), 0xffff_ffff_0000_0000);
    unit.write64(usize::MAX - 3, u64::MAX);
    assert_eq!(unit.read64(usize::MAX - 3), 0x10_ffff_ffff, "the upper half is the first register");
}

#[test]
fn halves_of_registers_are_written_apart() {
    let unit = unit(DeviceConfig::default());
    unit.write32(0x24, 0x12);
    unit.write32(0x20, 0x3456_7000);
    assert_eq!(unit.read64(0x20), 0x12_3456_7000);
    unit.write64(0x90, 0xab_cdef_0003);
    assert_eq!((unit.read32(0x90), unit.read32(0x94)), (0xcdef_0003, 0xab));
}

#[test]
fn configurations_that_make_no_sense() {
    let plain = DeviceConfig::default();
    let refuse = |config| {
        let made = VtdDevice::new(super::arena(), super::Machine::default(), config);
        assert_eq!(made.err(), Some(Error::Invalid(InvalidReason::Configuration)));
    };
    // FRCD over the common registers, over the IOTLB registers, IOTLB over the common ones.
    refuse(DeviceConfig { cap: Cap::from_bits_retain(plain.cap.bits() & !(0x3ff << 24) | 0xb << 24), ..plain });
    refuse(DeviceConfig { cap: Cap::from_bits_retain(plain.cap.bits() & !(0x3ff << 24) | 0xf << 24), ..plain });
    refuse(DeviceConfig { ecap: Ecap::from_bits_retain(plain.ecap.bits() & !(0x3ff << 8)), ..plain });
    refuse(DeviceConfig { cache_order: 9, ..plain });
    refuse(DeviceConfig { host_address_bits: 65, ..plain });
    refuse(DeviceConfig { host_address_bits: 0, ..plain });
    // 256 records from the last place there is reach beyond the first page.
    let far = DeviceConfig { cap: Cap::from_bits_retain(plain.cap.bits() | 0x3ff << 24 | 0xff << 40), ..plain };
    assert_eq!(unit(far).register_bytes(), 0x5000);
}

#[test]
fn frames_are_given_back() {
    let arena = super::arena();
    let unit = VtdDevice::new(arena, super::Machine::default(), DeviceConfig::default()).unwrap();
    assert_eq!(arena.frames_in_use(), 1 + 4 * 8);
    drop(unit);
    assert_eq!(arena.frames_in_use(), 0);
}
