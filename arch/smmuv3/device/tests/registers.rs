//! Registers (SMMU 6.3).

use super::{running, settle, unit_with};
use crate::arch::smmuv3::device::{DeviceConfig, InOrder, Misuse, Step};
use crate::arch::smmuv3::layout::registers::{Cr0, Gbpa, IrqCtrl, offset};
use crate::platform::Registers;

fn unit() -> super::Unit {
    unit_with(DeviceConfig::default(), InOrder)
}

#[test]
fn a_bit_of_cr0_is_in_force_after_a_step() {
    let unit = unit();
    unit.write32(offset::CR0, 0xffff_ffff);
    assert_eq!((unit.read32(offset::CR0), unit.read32(offset::CR0ACK)), (0x1f, 0));
    assert_eq!(unit.step(), Step::Control(Cr0::SMMUEN));
    assert_eq!(unit.read32(offset::CR0ACK), 1);
    // The others are under way: they cannot be taken back.
    unit.write32(offset::CR0, 0);
    assert_eq!(unit.read32(offset::CR0), 0x1e);
    assert!(unit.misuse().contains(Misuse::UNFINISHED));
    settle(&unit);
    assert_eq!(unit.read32(offset::CR0ACK), 0x1e);
}

#[test]
fn gbpa_is_in_force_when_update_reads_as_zero() {
    let unit = unit();
    unit.write32(offset::GBPA, Gbpa::ABORT);
    assert_eq!((unit.read32(offset::GBPA), unit.misuse()), (0x1000, Misuse::NO_UPDATE));
    unit.write32(offset::GBPA, Gbpa::ABORT | Gbpa::UPDATE);
    assert_eq!(unit.read32(offset::GBPA), 0x8010_0000);
    unit.write32(offset::GBPA, Gbpa::UPDATE);
    assert!(unit.misuse().contains(Misuse::UNFINISHED));
    assert_eq!(unit.step(), Step::Bypass);
    assert_eq!(unit.read32(offset::GBPA), 0x10_0000);
}

#[test]
fn what_is_enabled_cannot_be_configured() {
    let unit = running(DeviceConfig::default(), InOrder);
    for at in [offset::STRTAB_BASE, offset::CMDQ_BASE, offset::EVENTQ_BASE] {
        unit.write64(at, unit.read64(at));
    }
    assert_eq!(unit.misuse(), Misuse::empty(), "the same value is no change");
    for at in [offset::STRTAB_BASE, offset::CMDQ_BASE, offset::EVENTQ_BASE] {
        let before = unit.read64(at);
        unit.write64(at, 0x5000);
        assert_eq!(unit.read64(at), before);
    }
    for at in [offset::STRTAB_BASE_CFG, offset::CR1, offset::CR2, offset::CMDQ_CONS, offset::EVENTQ_PROD] {
        let before = unit.read32(at);
        unit.write32(at, !before);
        assert_eq!(unit.read32(at), before, "{at:#x}");
    }
    unit.write32(offset::GERROR_IRQ_CFG1, 7);
    assert_eq!(unit.read32(offset::GERROR_IRQ_CFG1), 0);
    assert_eq!(unit.misuse(), Misuse::GUARDED);
    // Page requests are not on.
    unit.write64(offset::PRIQ_BASE, 0x5003);
    assert_eq!(unit.read64(offset::PRIQ_BASE), 0x5003);
}

#[test]
fn what_a_unit_lacks_reads_as_zero() {
    let mut config = DeviceConfig::default();
    config.identification.idr0 &= !(1 << 16 | 1 << 13 | 1 << 10);
    let unit = unit_with(config, InOrder);
    for at in [offset::PRIQ_BASE, offset::PRIQ_PROD, offset::PRIQ_IRQ_CFG2, offset::EVENTQ_IRQ_CFG0, 0x5000] {
        unit.write32(at, u32::MAX);
        assert_eq!(unit.read32(at), 0, "{at:#x}");
    }
    unit.write32(offset::IRQ_CTRL, u32::MAX);
    unit.write32(offset::CR0, u32::MAX);
    assert_eq!((unit.read32(offset::IRQ_CTRL), unit.read32(offset::CR0)), (0b101, 0b1101));
    assert_eq!(unit.read32(offset::IRQ_CTRLACK), 0);
    settle(&unit);
    assert_eq!(unit.read32(offset::IRQ_CTRLACK), (IrqCtrl::GERROR | IrqCtrl::EVENTQ).bits());
}

#[test]
fn nothing_is_zero_after_a_reset_that_need_not_be() {
    let mut unit = running(DeviceConfig::default(), InOrder);
    unit.reset();
    assert_eq!((unit.read32(offset::CR0), unit.read32(offset::CR0ACK), unit.read32(offset::GERROR)), (0, 0, 0));
    for at in [offset::STRTAB_BASE, offset::CMDQ_BASE, offset::EVENTQ_BASE, offset::EVENTQ_IRQ_CFG0] {
        assert_ne!(unit.read64(at), 0, "{at:#x}");
    }
    for at in [offset::CMDQ_PROD, offset::CMDQ_CONS, offset::EVENTQ_PROD, offset::EVENTQ_CONS, offset::CR1] {
        assert_ne!(unit.read32(at), 0, "{at:#x}");
    }
}

#[test]
fn an_access_of_64_bits_is_for_registers_of_64_bits() {
    let unit = unit();
    unit.write64(offset::CMDQ_BASE, 0x4000_0000_0012_3405);
    assert_eq!((unit.read32(offset::CMDQ_BASE), unit.read32(offset::CMDQ_BASE + 4)), (0x12_3405, 0x4000_0000));
    unit.write32(offset::CMDQ_BASE + 4, 0x3);
    assert_eq!(unit.read64(offset::CMDQ_BASE), 0x3_0012_3405);
    assert_eq!(unit.misuse(), Misuse::empty());
    unit.read64(offset::CMDQ_PROD);
    assert_eq!(unit.misuse(), Misuse::ACCESS);
}
