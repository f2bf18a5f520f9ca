//! Literal descriptors, and widths.

extern crate std;
use std::boxed::Box;
use std::vec;

use super::{LPAE_MAIR, Lpae, Lpae4K, Lpae16K, Lpae64K, LpaeStage};
use crate::error::{Error, InvalidReason};
use crate::pgtable::{Config, Format, PageSizes, PageTable, WalkerCoherency};
use crate::platform::{Arena, Frame};
use crate::prot::Prot;

const ONE: Lpae4K = Lpae::new(LpaeStage::One);
const TWO: Lpae4K = Lpae::new(LpaeStage::Two);

fn leaf(format: impl Format, level: u8, item: u8, phys: u64, prot: Prot) -> u64 {
    format.leaf(level, item, phys, format.attributes(prot).unwrap())
}

/// What QEMU's unit is known to translate with: 0x443 for a page that may be read and written, 0x441 for
/// a block, 3 for a table (valid, page or table, AP\[1\], AF). Ours adds nG, what kind of memory it is and
/// how it is shared.
#[test]
fn stage1_is_what_is_known_to_work_and_what_belongs_to_the_kind_of_memory() {
    assert_eq!(leaf(ONE, 0, 0, 0x4000_1000, Prot::RW | Prot::CACHE), 0x4000_1000 | 0x443 | 1 << 11 | 3 << 8);
    assert_eq!(leaf(ONE, 1, 0, 0x4020_0000, Prot::RW | Prot::CACHE), 0x4020_0000 | 0x441 | 1 << 11 | 3 << 8);
    assert_eq!(leaf(ONE, 0, 0, 0, Prot::RW), 0xe47);
    assert_eq!(leaf(ONE, 0, 0, 0, Prot::RW | Prot::MMIO), 0xe4b);
    assert_eq!(ONE.table(0x4000_2000), 0x4000_2003);
    assert_eq!(LPAE_MAIR.to_le_bytes(), [0xff, 0x44, 0x04, 0, 0, 0, 0, 0]);
}

/// DDI 0487 D8.4: AP\[2:1\] 0b11 is read-only for all, 0b00 read and write for the privileged; UXN and PXN
/// are bits 54 and 53.
#[test]
fn stage1_permissions() {
    assert_eq!(leaf(ONE, 0, 0, 0, Prot::READ | Prot::CACHE), 0xfc3);
    assert_eq!(leaf(ONE, 0, 0, 0, Prot::RW | Prot::CACHE | Prot::PRIV), 0xf03);
    assert_eq!(leaf(ONE, 0, 0, 0, Prot::RW | Prot::CACHE | Prot::NOEXEC), 0x0060_0000_0000_0f43);
    let refused = Err(Error::Invalid(InvalidReason::Permission));
    assert_eq!(ONE.attributes(Prot::WRITE), refused);
    assert_eq!(TWO.attributes(Prot::READ | Prot::PRIV), refused);
    assert_eq!(ONE.attributes(Prot::CACHE), Err(Error::Invalid(InvalidReason::NoPermission)));
}

/// DDI 0487 D8.4 and D8.5: S2AP at 7:6 (1 read, 2 write, 3 both), MemAttr at 5:2 (0b1111 write-back,
/// 0b0101 non-cacheable, 0b0001 device-nGnRE), XN\[1\] at 54.
#[test]
fn stage2_descriptors() {
    assert_eq!(leaf(TWO, 0, 0, 0x4000_1000, Prot::RW | Prot::CACHE), 0x4000_1000 | 0x7ff);
    assert_eq!(leaf(TWO, 0, 0, 0, Prot::WRITE | Prot::CACHE), 0x7bf);
    assert_eq!(leaf(TWO, 1, 0, 0x20_0000, Prot::READ), 0x20_0000 | 0x655);
    assert_eq!(leaf(TWO, 2, 0, 0x4000_0000, Prot::RW | Prot::MMIO | Prot::NOEXEC), 0x0040_0000_4000_06c5);
    assert_eq!(TWO.table(0x4000_2000), 0x4000_2003);
}

/// Bit 52 says that entries belong together; each keeps its own address.
#[test]
fn contiguous_entries_are_marked() {
    for (level, first) in [(0, 0x1_0000), (1, 0x200_0000), (2, 0x4_0000_0000)] {
        let entry = leaf(ONE, level, 4, first, Prot::RW | Prot::CACHE);
        assert_eq!(entry, leaf(ONE, level, 0, first, Prot::RW | Prot::CACHE) | 1 << 52);
        assert_eq!((ONE.item(level, entry), ONE.leaf_phys(level, entry)), (4, first));
    }
    let sizes = |bits: &[u32]| PageSizes::from_bits(bits.iter().map(|bit| 1u64 << bit).sum());
    assert_eq!(sizes_of(ONE, 48), sizes(&[12, 16, 21, 25, 30, 34]));
    assert_eq!(sizes_of(Lpae16K::new(LpaeStage::One), 48), sizes(&[14, 21, 25, 30]));
    assert_eq!(sizes_of(Lpae64K::new(LpaeStage::One), 48), sizes(&[16, 21, 29, 34]));
    assert_eq!(sizes_of(Lpae64K::new(LpaeStage::One), 52), sizes(&[16, 21, 29, 34, 42]));
}

/// With the 64 KiB granule bits 51:48 of an address stand at 15:12 (DDI 0487 D8.3).
#[test]
fn addresses_of_52_bits() {
    let format = Lpae64K::new(LpaeStage::Two);
    let phys = 0x000a_8765_4321_0000;
    let entry = leaf(format, 0, 0, phys, Prot::RW | Prot::CACHE);
    assert_eq!(entry, 0x0000_8765_4321_a7ff);
    assert_eq!(format.leaf_phys(0, entry), phys);
    assert_eq!(format.table(phys), 0x0000_8765_4321_a003);
    assert_eq!(format.table_phys(format.table(phys)), phys);
}

/// A leaf says again what was asked for, so that a split page keeps it.
#[test]
fn leaves_read_back() {
    for flags in 0..64 {
        let prot = Prot::from_bits(flags).unwrap();
        for format in [ONE, TWO] {
            let Ok(attributes) = format.attributes(prot) else { continue };
            // Device memory is not cached, whatever is asked for.
            let expected = if prot.contains(Prot::MMIO) { prot - Prot::CACHE } else { prot };
            assert_eq!(format.prot(format.leaf(0, 0, 0x1000, attributes)), expected, "{prot:?}");
        }
    }
}

fn arena() -> &'static Arena {
    Arena::new(Box::leak(vec![Frame::ZERO; 1024].into_boxed_slice())).unwrap()
}

fn sizes_of<const G: u8>(format: Lpae<G>, output_bits: u8) -> PageSizes {
    PageTable::new(arena(), format, format.config(48, output_bits)).unwrap().page_sizes()
}

/// T0SZ, TG, start level and SL0 of each width, from the tables of DDI 0487 D8.2; and the bytes of the
/// root.
#[test]
fn widths_levels_and_start_levels() {
    use LpaeStage::{One, Two};
    #[track_caller]
    fn check<const G: u8>(stage: LpaeStage, bits: u8, expected: (u8, u8, u8, u8), root_frames: usize) {
        let (arena, format) = (arena(), Lpae::<G>::new(stage));
        let table = PageTable::new(arena, format, format.config(bits, 52)).unwrap();
        let walk = table.lpae_walk();
        assert_eq!((walk.t0sz, walk.granule, walk.start_level, walk.sl0), expected);
        assert_eq!(arena.frames_in_use(), root_frames);
        assert_eq!(table.range().last().as_u64(), (1 << bits) - 1);
        assert!(table.root().as_u64().is_multiple_of(root_frames as u64 * 4096));
    }
    // Stage 1 (SL0 means nothing there).
    check::<12>(One, 48, (16, 0, 0, 2), 1);
    check::<12>(One, 39, (25, 0, 1, 1), 1);
    check::<12>(One, 40, (24, 0, 0, 2), 1);
    check::<12>(One, 30, (34, 0, 2, 0), 1);
    check::<14>(One, 48, (16, 2, 0, 3), 1);
    check::<14>(One, 47, (17, 2, 1, 2), 4);
    check::<14>(One, 39, (25, 2, 1, 2), 1);
    check::<16>(One, 52, (12, 1, 1, 2), 2);
    check::<16>(One, 48, (16, 1, 1, 2), 1);
    check::<16>(One, 42, (22, 1, 2, 1), 16);
    // Stage 2.
    check::<12>(Two, 48, (16, 0, 0, 2), 1);
    check::<12>(Two, 44, (20, 0, 0, 2), 1);
    check::<12>(Two, 43, (21, 0, 1, 1), 16);
    check::<12>(Two, 40, (24, 0, 1, 1), 2);
    check::<12>(Two, 39, (25, 0, 1, 1), 1);
    check::<12>(Two, 32, (32, 0, 2, 0), 4);
    check::<14>(Two, 48, (16, 2, 1, 2), 8);
    check::<14>(Two, 40, (24, 2, 2, 1), 64);
    check::<16>(Two, 52, (12, 1, 1, 2), 2);
    check::<16>(Two, 48, (16, 1, 1, 2), 1);
    check::<16>(Two, 46, (18, 1, 2, 1), 256);
    check::<16>(Two, 40, (24, 1, 2, 1), 4);
}

/// Roots that hardware would not walk as they are meant are refused.
#[test]
fn widths_that_cannot_be() {
    use LpaeStage::{One, Two};
    fn refused<const G: u8>(stage: LpaeStage, levels: u8, input_bits: u8) {
        let format = Lpae::<G>::new(stage);
        let config = Config { input_bits, ..Config::new::<Lpae<G>>(levels) };
        let table = PageTable::new(arena(), format, config);
        assert_eq!(table.err(), Some(Error::Invalid(InvalidReason::Configuration)), "{G} {levels} {input_bits}");
    }
    for (levels, bits) in [(2, 24), (2, 31), (3, 30), (3, 40), (4, 39), (4, 49)] {
        refused::<12>(One, levels, bits);
    }
    for (levels, bits) in [(2, 35), (3, 30), (3, 44), (4, 39), (4, 49), (4, 52)] {
        refused::<12>(Two, levels, bits);
    }
    for (levels, bits) in [(3, 48), (4, 47)] {
        refused::<14>(One, levels, bits);
    }
    refused::<14>(Two, 4, 48);
    for (levels, bits) in [(2, 43), (3, 42), (3, 53)] {
        refused::<16>(One, levels, bits);
    }
}

#[test]
fn walkers_that_do_not_snoop_read_memory() {
    let config = Config { walker: WalkerCoherency::NeedsClean, ..ONE.config(39, 48) };
    let walk = PageTable::new(arena(), ONE, config).unwrap().lpae_walk();
    assert_eq!((walk.cacheability, walk.shareability), (0, 2));
    let walk = PageTable::new(arena(), ONE, ONE.config(39, 48)).unwrap().lpae_walk();
    assert_eq!((walk.cacheability, walk.shareability), (1, 3));
}
