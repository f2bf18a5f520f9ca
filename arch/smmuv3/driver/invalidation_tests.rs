//! Commands read as a unit reads them: what they drop, against what was to be dropped.

extern crate std;
use std::vec::Vec;

use super::{
    CachedTable, MAX_COMMANDS, MAX_TLB_COMMANDS, RangeCommands, Tagged, device_commands, index_bits, tlb_commands,
};
use crate::addr::{Iova, IovaRange};
use crate::arch::smmuv3::layout::commands::{Command, Leaf, TlbRange};
use crate::arch::smmuv3::layout::{Asid, Granule, StreamId, Vmid};
use crate::iotlb::Depth;
use crate::pgtable::PageSizes;

const STAGE_1: Tagged = Tagged::Stage1(Asid(7));
const SIZE_4K: u64 = 1 << 12;
const SIZE_2M: u64 = 1 << 21;
const SIZE_1G: u64 = 1 << 30;

fn table(granule: Granule, range_commands: RangeCommands) -> CachedTable {
    CachedTable { tagged: STAGE_1, granule, range_commands }
}

fn bytes(start: u64, bytes: u64) -> IovaRange {
    IovaRange::from_len(Iova::new(start), bytes).unwrap()
}

fn tlb(table: CachedTable, ranges: &[IovaRange], depth: Depth, leaves: u64) -> Vec<Command> {
    let mut commands = heapless::Vec::<_, MAX_COMMANDS>::new();
    tlb_commands(table, ranges, depth, PageSizes::from_bits(leaves), &mut commands);
    commands.into_iter().collect()
}

/// The ranges of commands by address, and which entries they are for.
fn parts(commands: &[Command]) -> Vec<(TlbRange, Leaf)> {
    let part = |command: &Command| match *command {
        Command::TlbNhVa { vmid: Vmid(0), asid: Asid(7), range, leaf } => (range, leaf),
        Command::TlbS2Ipa { vmid: Vmid(9), range, leaf } => (range, leaf),
        other => panic!("{other:?}"),
    };
    commands.iter().map(part).collect()
}

fn nh_va(range: TlbRange, leaf: Leaf) -> Command {
    Command::TlbNhVa { vmid: Vmid(0), asid: Asid(7), range, leaf }
}

fn ranged(address: u64, num: u8, scale: u8, ttl: u8) -> TlbRange {
    TlbRange { address, granule: Some(Granule::Size4K), ttl, num, scale }
}

#[test]
fn a_page_is_one_command() {
    let page = [bytes(0x5000, SIZE_4K)];
    let with = table(Granule::Size4K, RangeCommands::Present);
    let without = table(Granule::Size4K, RangeCommands::Absent);
    assert_eq!(tlb(with, &page, Depth::Leaves, SIZE_4K), [nh_va(ranged(0x5000, 0, 0, 3), Leaf::Only)]);
    // NUM, SCALE and TTL must not all be 0 with a granule (4.4.1.1).
    assert_eq!(tlb(with, &page, Depth::Leaves, 0), [nh_va(TlbRange::page(0x5000), Leaf::Only)]);
    assert_eq!(tlb(with, &page, Depth::Tables, SIZE_4K), [nh_va(TlbRange::page(0x5000), Leaf::AllLevels)]);
    assert_eq!(tlb(without, &page, Depth::Leaves, SIZE_4K), [nh_va(TlbRange::page(0x5000), Leaf::Only)]);
    let stage_2 = CachedTable { tagged: Tagged::Stage2(Vmid(9)), ..with };
    let command = Command::TlbS2Ipa { vmid: Vmid(9), range: ranged(0x5000, 0, 0, 3), leaf: Leaf::Only };
    assert_eq!(tlb(stage_2, &page, Depth::Leaves, SIZE_4K), [command]);
}

#[test]
fn everything_goes_by_number() {
    let stage_1 = table(Granule::Size4K, RangeCommands::Present);
    let stage_2 = CachedTable { tagged: Tagged::Stage2(Vmid(9)), ..stage_1 };
    assert_eq!(tlb(stage_1, &[], Depth::Leaves, 0), [Command::TlbNhAsid { vmid: Vmid(0), asid: Asid(7) }]);
    assert_eq!(tlb(stage_2, &[], Depth::Tables, 0), [Command::TlbS12Vmall { vmid: Vmid(9) }]);
}

#[test]
fn a_long_range_is_few_commands_by_range() {
    let with = table(Granule::Size4K, RangeCommands::Present);
    let expected = [ranged(0x1000, 30, 0, 3), ranged(0x2_0000, 14, 5, 3)].map(|range| nh_va(range, Leaf::Only));
    assert_eq!(tlb(with, &[bytes(0x1000, 511 << 12)], Depth::Leaves, SIZE_4K), expected);
    // Blocks: aligned to them, with their level.
    let expected = [nh_va(ranged(2 << 30, 2, 9, 2), Leaf::Only)];
    assert_eq!(tlb(with, &[bytes(2 << 30, 3 << 21)], Depth::Leaves, SIZE_2M), expected);
    // Of several levels: none is named.
    let expected = [nh_va(ranged(2 << 30, 2, 9, 0), Leaf::Only)];
    assert_eq!(tlb(with, &[bytes(2 << 30, 3 << 21)], Depth::Leaves, SIZE_2M | SIZE_4K), expected);
}

#[test]
fn without_ranges_each_leaf_is_one_command_while_they_are_few() {
    let without = table(Granule::Size4K, RangeCommands::Absent);
    let most = MAX_TLB_COMMANDS as u64;
    assert_eq!(tlb(without, &[bytes(0, most << 12)], Depth::Leaves, SIZE_4K).len(), MAX_TLB_COMMANDS);
    let everything = [Command::TlbNhAsid { vmid: Vmid(0), asid: Asid(7) }];
    assert_eq!(tlb(without, &[bytes(0, (most + 1) << 12)], Depth::Leaves, SIZE_4K), everything);
    let halves = [bytes(0, most << 11), bytes(SIZE_1G, (most << 11) + SIZE_4K)];
    assert_eq!(tlb(without, &halves, Depth::Leaves, SIZE_4K), everything);
    let blocks = [0, SIZE_2M, 2 * SIZE_2M].map(|at| nh_va(TlbRange::page(at), Leaf::Only));
    assert_eq!(tlb(without, &[bytes(0, 3 * SIZE_2M)], Depth::Leaves, SIZE_2M | SIZE_1G), blocks);
    // Sixteen entries that are contiguous may be cached one by one.
    assert_eq!(tlb(without, &[bytes(0, 1 << 16)], Depth::Leaves, 1 << 16).len(), 16);
    // Tables of the last level below a block of 1 GiB.
    assert_eq!(tlb(without, &[bytes(0, 32 * SIZE_2M)], Depth::Tables, SIZE_1G).len(), 32);
}

#[test]
fn device_spans() {
    let spans = |ranges: &[IovaRange]| {
        let mut commands = heapless::Vec::<_, MAX_COMMANDS>::new();
        device_commands(StreamId(3), None, ranges, &mut commands);
        let span = |command| match command {
            Command::AtcInvalidate { stream: StreamId(3), substream: None, address, size_log2 } => (address, size_log2),
            other => panic!("{other:?}"),
        };
        commands.into_iter().map(span).collect::<Vec<_>>()
    };
    assert_eq!(spans(&[]), [(0, 64)]);
    assert_eq!(spans(&[IovaRange::full()]), [(0, 64)]);
    assert_eq!(spans(&[bytes(0x5000, SIZE_4K)]), [(0x5000, 12)]);
    // Over a large boundary: all below the next.
    assert_eq!(spans(&[bytes(0x7000, 2 * SIZE_4K)]), [(0, 16)]);
    assert_eq!(spans(&[bytes(0x6000, 2 * SIZE_4K), bytes(SIZE_2M, SIZE_2M)]), [(0x6000, 13), (SIZE_2M, 21)]);
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }
}

/// Bytes that a command drops, `None` without a granule: then it drops what is cached for one address.
fn dropped(range: TlbRange, leaf: Leaf, granule: Granule) -> Option<(u64, u64)> {
    let first = range.address;
    let Some(of) = range.granule else {
        assert_eq!((range.num, range.scale, range.ttl), (0, 0, 0), "RES0 without a granule");
        return None;
    };
    assert_eq!(of, granule);
    assert_ne!((range.num, range.scale, range.ttl), (0, 0, 0), "reserved");
    assert!(range.num <= 31 && range.scale <= 31);
    assert!(range.ttl == 0 || leaf == Leaf::Only);
    assert!(granule != Granule::Size16K || range.ttl != 1, "reserved without IDR5.DS");
    let aligned = match range.ttl {
        0 => u32::from(granule.log2()),
        ttl => u32::from(granule.log2()) + (3 - u32::from(ttl)) * index_bits(granule),
    };
    assert_eq!(first % (1 << aligned), 0, "the range would be unpredictable");
    let last = first.checked_add(range.bytes().unwrap() - 1).expect("it does not wrap");
    assert_eq!(last.wrapping_add(1) % (1 << aligned), 0);
    Some((first, last))
}

#[test]
fn random_ranges_are_covered_and_nothing_else() {
    let mut random = Random(1);
    for _ in 0..200_000 {
        let granule = Granule::ALL[random.below(3) as usize];
        let (page, bits) = (u32::from(granule.log2()), index_bits(granule));
        let range_commands = if random.below(2) == 0 { RangeCommands::Present } else { RangeCommands::Absent };
        let depth = if random.below(3) == 0 { Depth::Tables } else { Depth::Leaves };
        // Leaves of up to three levels, of which the range is whole ones of the smallest.
        let levels: Vec<u32> = (0..3).filter(|_| random.below(3) == 0).collect();
        let leaves: u64 = levels.iter().map(|level| 1 << (page + level * bits)).sum();
        let smallest = page + levels.first().unwrap_or(&0) * bits;
        let width = 64 - smallest;
        let bound = 1 << (1 + random.below(u64::from(width).min(40)));
        let count = 1 + random.below(bound);
        let first = random.below(1 << (width - 1).min(62)) >> random.below(20);
        let Some(count) = count.checked_sub((first + count).saturating_sub(1 << (width - 1))).filter(|c| *c != 0)
        else {
            continue;
        };
        let range = bytes(first << smallest, count << smallest);
        let commands = tlb(table(granule, range_commands), &[range], depth, leaves);
        assert!(commands.len() <= MAX_TLB_COMMANDS);
        if commands == [Command::TlbNhAsid { vmid: Vmid(0), asid: Asid(7) }] {
            let is_long = count << smallest > 1 << 52;
            assert!(range_commands == RangeCommands::Absent || is_long, "{range:?} takes few commands");
            continue;
        }
        let step = if depth == Depth::Tables { smallest.min(page + bits) } else { smallest };
        let mut next = range.start().as_u64();
        for (part, leaf) in parts(&commands) {
            assert_eq!(leaf, if depth == Depth::Tables { Leaf::AllLevels } else { Leaf::Only });
            assert_eq!(part.address, next, "no gap, nothing twice");
            assert!(range_commands == RangeCommands::Present || part.granule.is_none());
            next = match dropped(part, leaf, granule) {
                Some((_, last)) => last.wrapping_add(1),
                // What is cached for an address is the entry there.
                None if range_commands == RangeCommands::Absent => next + (1 << step),
                None => next + (1 << page),
            };
        }
        assert_eq!(next, range.last().as_u64().wrapping_add(1), "{range:?} {granule:?} {leaves:#x}");
    }
}

#[test]
fn the_ends_of_the_address_space() {
    for granule in Granule::ALL {
        let page = 1 << granule.log2();
        let with = table(granule, RangeCommands::Present);
        let everything = [Command::TlbNhAsid { vmid: Vmid(0), asid: Asid(7) }];
        assert_eq!(tlb(with, &[IovaRange::full()], Depth::Tables, 0), everything);
        let top = |bytes: u64| IovaRange::new(Iova::new(0u64.wrapping_sub(bytes)), Iova::new(u64::MAX)).unwrap();
        for range in [bytes(0, 1 << 52), top(page), top(33 * page), top(1 << 52), top((1 << 48) - page)] {
            let commands = tlb(with, &[range], Depth::Tables, 0);
            let parts = parts(&commands);
            let ends = parts.iter().map(|(part, leaf)| match dropped(*part, *leaf, granule) {
                Some((_, last)) => last,
                None => part.address + (page - 1),
            });
            assert_eq!(ends.max(), Some(range.last().as_u64()));
            assert_eq!(parts.iter().map(|(part, _)| part.address).min(), Some(range.start().as_u64()));
        }
    }
}
