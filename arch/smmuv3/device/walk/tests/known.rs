//! Tables that QEMU's model of an SMMUv3 (7.2 and 10.0) is known to translate so, with the events that it was
//! seen to record.

use super::memory::Memory;
use super::{Access, Lookup, QEMU, read, request};
use crate::arch::smmuv3::layout::StreamId;

/// V, AA64, A, R, EPD1, 4 KiB, 48 bits of input, 44 of output, ASID 1.
const CD: u64 = 16 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 48;

/// Stage 1 with the CD at 0x2_0000, tables from 0x3_0000: 0x1000 is a page, and there are blocks of 2 MiB
/// and 1 GiB.
fn stage1() -> Memory {
    Memory::new(&[
        (0x1_0000, 0x2_0000 | 0b101 << 1 | 1),
        (0x2_0000, CD),
        (0x2_0008, 0x3_0000),
        (0x3_0000, 0x3_1003),
        (0x3_1000, 0x3_2003),
        (0x3_1008, 0x4000_0441),
        (0x3_2000, 0x3_3003),
        (0x3_2008, 0x60_0441),
        (0x3_3008, 0x7_7443),
    ])
}

#[test]
fn stage1_4k() {
    let memory = stage1();
    assert_eq!(read(&memory, &QEMU, 0x1234), Ok(0x7_7234));
    assert_eq!(read(&memory, &QEMU, 0x2f_fff8), Ok(0x6f_fff8));
    assert_eq!(read(&memory, &QEMU, 0x4abc_def8), Ok(0x4abc_def8));
}

#[test]
fn event_of_an_unmapped_page() {
    let memory = stage1();
    let lookup = Lookup::new(0x2345, Access::Read);
    let fault = request(&memory, &QEMU, 0, None, &lookup).unwrap_err();
    // Type, StreamID; CLASS IN and RnW; the address to the byte.
    let event = fault.event(StreamId(0), None, &lookup).encode();
    assert_eq!(event, [0x10, 0x208 << 32, 0x2345, 0]);
    let lookup = Lookup::new(0x2345, Access::Write);
    assert_eq!(fault.event(StreamId(8), None, &lookup).encode(), [8 << 32 | 0x10, 0x200 << 32, 0x2345, 0]);
}

#[test]
fn stage1_16k_and_64k() {
    // T0SZ 17 with 16 KiB: 47 bits, levels 1 to 3 of 11 bits each.
    let memory = Memory::new(&[
        (0x1_0000, 0x2_0000 | 0b101 << 1 | 1),
        (0x2_0000, CD & !0x3f | 17 | 2 << 6),
        (0x2_0008, 0x4_0000),
        (0x4_0000, 0x4_4003),
        (0x4_4000, 0x4_8003),
        (0x4_8008, 0x7_c443),
    ]);
    assert_eq!(read(&memory, &QEMU, 0x4123), Ok(0x7_c123));
    // T0SZ 22 with 64 KiB: 42 bits, levels 2 and 3 of 13 bits each.
    let memory = Memory::new(&[
        (0x1_0000, 0x2_0000 | 0b101 << 1 | 1),
        (0x2_0000, CD & !0x3f | 22 | 1 << 6),
        (0x2_0008, 0x4_0000),
        (0x4_0000, 0x5_0003),
        (0x5_0008, 0x7_0443),
    ]);
    assert_eq!(read(&memory, &QEMU, 0x1_1234), Ok(0x7_1234));
}

#[test]
fn nested_in_one_block_of_identity() {
    let memory = stage1();
    // S2AA64, S2R, S2PS 44 bits, 4 KiB, level 1 (S2SL0 1), 39 bits; VMID 5.
    let word2 = 5 | (25 | 1 << 6 | 4 << 16 | 1 << 19 | 1 << 26) << 32;
    memory.put_all(0x1_0000, &[0x2_0000 | 0b111 << 1 | 1, 0, word2, 0x6_0000]);
    // 1 GiB, AF, inner shareable, write-back, read and write.
    memory.put(0x6_0000, 0x7fd);
    assert_eq!(read(&memory, &QEMU, 0x1234), Ok(0x7_7234));
    // 0x4000_0000 of stage 1 is not in stage 2.
    let lookup = Lookup::new(0x4000_1238, Access::Read);
    let fault = request(&memory, &QEMU, 0, None, &lookup).unwrap_err();
    let event = fault.event(StreamId(0), None, &lookup).encode();
    assert_eq!(event, [0x10, 0x288 << 32, 0x4000_1238, 0x4000_1000]);
}
