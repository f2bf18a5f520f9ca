//! Types of memory (SMMU 13.1.5 to 13.1.7, 5.4 MAIR).

use super::FULL;
use crate::arch::smmuv3::device::walk::attributes::{Attributes, Cacheability, Device, MemoryType, Shareability};
use crate::arch::smmuv3::layout::{Identification, Ste};
use crate::bus::Snoop;

const WB: Cacheability = Cacheability::WriteBack;
const WT: Cacheability = Cacheability::WriteThrough;
const NC: Cacheability = Cacheability::NonCacheable;

const fn normal(inner: Cacheability, outer: Cacheability, shareability: Shareability) -> Attributes {
    Attributes { memory: MemoryType::Normal { inner, outer }, shareability }
}

const fn device(device: Device) -> Attributes {
    Attributes { memory: MemoryType::Device(device), shareability: Shareability::Outer }
}

#[test]
fn memory_attribute_indirection() {
    let of = |bits| Attributes::from_mair(bits, Shareability::Inner);
    // The upper half is outer.
    for (bits, attributes) in [
        (0x00, device(Device::NgNrNe)),
        (0x04, device(Device::NgNrE)),
        (0x08, device(Device::NgRe)),
        (0x0c, device(Device::Gre)),
        (0x44, normal(NC, NC, Shareability::Outer)),
        (0xff, normal(WB, WB, Shareability::Inner)),
        (0xbb, normal(WT, WT, Shareability::Inner)),
        (0x4f, normal(WB, NC, Shareability::Inner)),
        (0x74, normal(NC, WB, Shareability::Inner)),
        (0x39, normal(WT, WT, Shareability::Inner)),
        // Reserved (5.4): devices by bits 3:2; tagged memory is write-through inside.
        (0x03, device(Device::NgNrNe)),
        (0x05, device(Device::NgNrE)),
        (0x0f, device(Device::Gre)),
        (0xf0, normal(WT, WB, Shareability::Inner)),
    ] {
        assert_eq!(of(bits), attributes, "{bits:#x}");
    }
}

/// The examples of 13.1.5.1.
#[test]
fn combined() {
    let one = normal(WB, NC, Shareability::Inner);
    assert_eq!(one.combine(device(Device::NgNrE)), device(Device::NgNrE));
    assert_eq!(device(Device::NgNrE).combine(device(Device::NgNrNe)), device(Device::NgNrNe));
    assert_eq!(one.combine(normal(WT, WT, Shareability::Outer)), normal(WT, NC, Shareability::Outer));
}

#[test]
fn stage2_types() {
    let of = |bits| Attributes::from_stage2(bits, Shareability::Inner);
    for (bits, attributes) in [
        (0b0000, device(Device::NgNrNe)),
        (0b0001, device(Device::NgNrE)),
        (0b0010, device(Device::NgRe)),
        (0b0011, device(Device::Gre)),
        (0b0101, normal(NC, NC, Shareability::Outer)),
        (0b1010, normal(WT, WT, Shareability::Inner)),
        (0b1111, normal(WB, WB, Shareability::Inner)),
        (0b1101, normal(NC, WB, Shareability::Inner)),
        (0b0100, device(Device::NgNrNe)),
        (0b1000, device(Device::NgNrNe)),
        (0b1100, device(Device::NgNrNe)),
    ] {
        assert_eq!(of(bits), attributes, "{bits:#b}");
    }
}

#[test]
fn stage2_that_forces() {
    let memory = normal(WT, WB, Shareability::Not);
    let registers = device(Device::NgRe);
    for (bits, of_memory, of_registers) in [
        (0b110, normal(WB, WB, Shareability::Inner), normal(WB, WB, Shareability::Outer)),
        (0b111, normal(WT, WB, Shareability::Inner), registers),
        (0b101, normal(NC, NC, Shareability::Outer), registers),
        (0b000, device(Device::NgNrNe), device(Device::NgNrNe)),
        (0b011, device(Device::Gre), registers),
    ] {
        assert_eq!(memory.forced(bits, Shareability::Inner), of_memory, "{bits:#b}");
        assert_eq!(registers.forced(bits, Shareability::Inner), of_registers, "{bits:#b}");
    }
}

#[test]
fn incoming() {
    let ste = |word1| Ste { words: [0b110 << 1 | 1, word1, 0, 0, 0, 0, 0, 0] };
    let of = |word1| Attributes::incoming(&FULL, &ste(word1));
    assert_eq!(of(1 << 44), normal(WB, WB, Shareability::Not));
    assert_eq!(of(3 << 44), normal(WB, WB, Shareability::Inner));
    assert_eq!(of(3 << 44 | 1 << 36 | 1 << 32), device(Device::NgNrE));
    assert_eq!(of(1 << 44 | 1 << 32), normal(WB, WB, Shareability::Not));
    let fixed = Identification { idr1: FULL.idr1 & !(1 << 27), ..FULL };
    assert_eq!(Attributes::incoming(&fixed, &ste(3 << 44 | 1 << 36)), Attributes::INCOMING);
}

#[test]
fn snooping() {
    let of = |fields| Attributes::from_fields(fields).snoop(&FULL);
    assert_eq!(of([1, 1, 3]), Snoop::Yes);
    assert_eq!(of([2, 3, 2]), Snoop::Yes);
    assert_eq!(of([1, 1, 0]), Snoop::No);
    assert_eq!(of([1, 1, 1]), Snoop::No);
    assert_eq!(of([0, 1, 3]), Snoop::No);
    assert_eq!(of([1, 0, 3]), Snoop::No);
    let apart = Identification { idr0: FULL.idr0 & !(1 << 4), ..FULL };
    assert_eq!(Attributes::from_fields([1, 1, 3]).snoop(&apart), Snoop::No);
}
