//! Tables that the driver half's own engine builds, read back.

extern crate std;
use std::boxed::Box;
use std::vec;

use super::unit;
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::arch::vtd::device::walk::{
    Dirty, FirstStageRoot, Goal, Leaf, Lookup, Mode, NoStructureCache, PermissionBits, SecondStageRoot, first_stage,
    second_stage,
};
use crate::arch::vtd::device::{Blocked, DeviceAnswer, Host, Privilege, Recorded, RequestAccess, Snoop, Unreachable};
use crate::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
use crate::arch::vtd::layout::scalable::FirstStageLevels;
use crate::arch::vtd::layout::{AddressWidth, Cap, Ecap};
use crate::ops::Msi;
use crate::pgtable::{Config, Format, PageSizes, PageTable, SecondStage, TableList, X86_64};
use crate::platform::{Arena, Frame};
use crate::prot::Prot;

const FRAMES: usize = 600;

/// The memory of an [`Arena`], whose physical addresses are those of the test.
struct Frames {
    base: u64,
}

impl Frames {
    fn word(&self, address: PhysAddr) -> Result<&core::sync::atomic::AtomicU64, Unreachable> {
        let offset = address.as_u64().checked_sub(self.base).filter(|offset| *offset < FRAMES as u64 * 4096);
        offset.ok_or(Unreachable)?;
        // SAFETY: inside the arena, which lives for good, aligned; the engine uses atomics as well.
        Ok(unsafe { core::sync::atomic::AtomicU64::from_ptr(address.as_u64() as *mut u64) })
    }
}

use core::sync::atomic::Ordering::SeqCst;

impl Host for Frames {
    fn read(&self, address: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
        Ok(self.word(address)?.load(SeqCst))
    }
    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
        Ok(self.word(address)?.compare_exchange(current, new, SeqCst, SeqCst).is_ok())
    }
    fn write32(&self, _: PhysAddr, _: u32) -> Result<(), Unreachable> {
        Err(Unreachable)
    }
    fn write64(&self, _: PhysAddr, _: u64) -> Result<(), Unreachable> {
        Err(Unreachable)
    }
    fn interrupt(&self, _: Msi) {}
    fn invalidate_device_tlb(&self, _: u16, _: Option<DevicePasids>, _: DeviceRange) -> DeviceAnswer {
        DeviceAnswer::None
    }
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }
}

/// Blocks that are mapped: start, bytes, where to, permission. In each gigabyte one, so that none
/// overlap.
fn blocks(random: &mut Random, prots: &[Prot]) -> vec::Vec<(u64, u64, u64, Prot)> {
    let sizes = [0x1000, 0x20_0000, 0x4000_0000];
    let mut blocks = vec::Vec::new();
    for gigabyte in 0..60 {
        let size = sizes[random.below(3) as usize];
        let pages = 1 + random.below((0x4000_0000 / size).min(700));
        let first = random.below(0x4000_0000 / size - pages + 1);
        let phys = ((8 + random.below(64)) << 30) + random.below(0x4000_0000 / size) * size;
        let prot = prots[random.below(prots.len() as u64) as usize];
        // Some far up.
        let far = if random.below(4) == 0 { 0x7f00_0000_0000 } else { 0 };
        blocks.push((far + (gigabyte << 30) + first * size, pages * size, phys, prot));
    }
    blocks
}

/// Whether every request snoops.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Coherency {
    AsRequested,
    Enforced,
}

/// Maps random blocks and compares each walk near them with what was mapped.
fn compare<F: Format>(
    format: F,
    coherency: Coherency,
    levels: u8,
    prots: &[Prot],
    walk: impl Fn(&Frames, PhysAddr, u64, Goal) -> Result<Leaf, Blocked>,
) {
    for seed in 1..=8 {
        let mut random = Random(seed);
        let region = Box::leak(vec![Frame::ZERO; FRAMES].into_boxed_slice());
        let host = Frames { base: region.as_ptr() as u64 };
        let table = PageTable::new(Arena::new(region).unwrap(), format, Config::new::<F>(levels)).unwrap();
        if coherency == Coherency::Enforced {
            table.enforce_snoop().unwrap();
        }
        let blocks = blocks(&mut random, prots);
        for &(start, bytes, phys, prot) in &blocks {
            let range = IovaRange::from_len(Iova::new(start), bytes).unwrap();
            // SAFETY: only this test's walks use the table.
            unsafe { table.map(range, PhysAddr::new(phys), prot, PageSizes::ALL, &mut TableList::new()) }
                .map_err(|failed| failed.error)
                .unwrap();
        }
        for _ in 0..2000 {
            let (start, bytes, ..) = blocks[random.below(blocks.len() as u64) as usize];
            // Also shortly outside.
            let address = (start + random.below(bytes + 0x4000)).saturating_sub(0x2000);
            let mapped = blocks.iter().find(|(start, bytes, ..)| (*start..start + bytes).contains(&address));
            let found = walk(&host, table.root(), address, Goal::Translation(RequestAccess::Read));
            let Some(&(start, bytes, phys, prot)) = mapped else {
                assert!(found.is_err(), "{address:x} is not mapped: {found:?}");
                assert_eq!(table.iova_to_phys(Iova::new(address)), None);
                continue;
            };
            let leaf = found.unwrap();
            let output = phys + (address - start);
            assert_eq!(leaf.output(address), PhysAddr::new(output));
            assert_eq!(table.iova_to_phys(Iova::new(address)), Some(PhysAddr::new(output)));
            assert_eq!((leaf.prot, leaf.dirty), (prot, Dirty::Settled));
            // The largest page that both addresses allow, within the block.
            let run = table.reader().next_run(Iova::new(address), Iova::new(address)).unwrap();
            assert_eq!(u64::from(leaf.page_bits), u64::from(run.page_size.log2()), "{address:x}");
            let page = 1 << leaf.page_bits;
            assert!(address & !(page - 1) >= start && (address | (page - 1)) < start + bytes);
            // What is not permitted is a fault.
            for (access, needs) in [
                (RequestAccess::Read, Prot::READ),
                (RequestAccess::Write, Prot::WRITE),
                (RequestAccess::Atomic, Prot::RW),
            ] {
                let found = walk(&host, table.root(), address, Goal::Access(access));
                assert_eq!(found.is_ok(), prot.contains(needs), "{access:?} with {prot:?}: {found:?}");
            }
        }
    }
}

#[test]
fn second_stages() {
    let config = unit(Cap::LARGE_2M | Cap::LARGE_1G | Cap::SAGAW_57, Ecap::SC);
    let config = crate::arch::vtd::device::DeviceConfig { host_address_bits: 52, ..config };
    for (levels, width) in [(4, AddressWidth::Bits48), (5, AddressWidth::Bits57)] {
        for coherency in [Coherency::AsRequested, Coherency::Enforced] {
            compare(
                SecondStage::default(),
                coherency,
                levels,
                &[Prot::READ, Prot::WRITE, Prot::RW],
                |host, table, address, goal| {
                    let root = SecondStageRoot {
                        mode: Mode::Scalable,
                        table,
                        width,
                        snoop: Snoop::Yes,
                        permissions: PermissionBits::Shared,
                        keeps_dirty: false,
                        recorded: Recorded::Yes,
                    };
                    let lookup = Lookup { address, goal, privilege: Privilege::User };
                    let leaf = second_stage(host, &config, &root, &lookup, &mut NoStructureCache)?;
                    assert_eq!(leaf.enforces_snooping, coherency == Coherency::Enforced);
                    Ok(leaf)
                },
            );
        }
    }
}

/// The engine sets accessed and dirty bits from the start, so that a walker that does not snoop is
/// content (3.10).
#[test]
fn first_stages() {
    let config = unit(Cap::FS1GP | Cap::FS5LP, Ecap::FSTS);
    let config = crate::arch::vtd::device::DeviceConfig { host_address_bits: 52, ..config };
    for (levels, kind) in [(4, FirstStageLevels::Four), (5, FirstStageLevels::Five)] {
        compare(
            X86_64::default(),
            Coherency::AsRequested,
            levels,
            &[Prot::READ, Prot::RW],
            |host, table, address, goal| {
                let root = FirstStageRoot {
                    table,
                    levels: kind,
                    snoop: Snoop::No,
                    protects_writes: false,
                    keeps_extended_accessed: false,
                    recorded: Recorded::Yes,
                };
                let lookup = Lookup { address, goal, privilege: Privilege::User };
                let leaf = first_stage(host, &config, &root, None, &lookup, &mut NoStructureCache)?;
                // Of a page that is not writable D is not set, and need not be.
                let dirty = if leaf.prot.contains(Prot::WRITE) { leaf.dirty } else { Dirty::Settled };
                Ok(Leaf { dirty, ..leaf })
            },
        );
    }
}
