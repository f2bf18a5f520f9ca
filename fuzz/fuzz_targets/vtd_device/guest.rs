//! The memory of a guest: 128 KiB at 0 that may change at each access, and remembers all that it held.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use iommu::PhysAddr;
use iommu::arch::vtd::device::{DeviceAnswer, Host, Snoop, Unreachable};
use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
use iommu::ops::Msi;

use crate::input::Input;

pub const PAGES: u64 = 32;
pub const BYTES: u64 = PAGES * 4096;
/// A word that held more values than this makes the oracle give up: it tries them all.
const VALUES: usize = 6;

pub struct Guest {
    state: Mutex<State>,
    host_bits: u8,
}

pub struct State {
    words: Vec<u64>,
    /// What words held that were ever written, the present value included.
    held: BTreeMap<u64, Vec<u64>>,
    /// Too much was written to know what may be cached.
    pub wild: bool,
    /// Changes that are still to come, last first: after so many accesses, this word gets this value.
    changes: Vec<(u8, u64, u64)>,
    pub accesses: usize,
    answer: DeviceAnswer,
}

impl Guest {
    pub fn new(host_bits: u8) -> Self {
        let state = State {
            words: vec![0; BYTES as usize / 8],
            held: BTreeMap::new(),
            wild: false,
            changes: Vec::new(),
            accesses: 0,
            answer: DeviceAnswer::Done,
        };
        Self { state: Mutex::new(state), host_bits }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn put(&self, address: u64, value: u64) {
        self.lock().put(address, value);
    }

    /// From now on memory changes under who reads it.
    pub fn change(&self, input: &mut Input<'_>) {
        let mut state = self.lock();
        for _ in 0..input.below(8) {
            let after = input.u8() & 15;
            let address = slot(input);
            let value = value(input, state.get(address).unwrap_or(0));
            state.changes.push((after, address, value));
        }
    }

    /// No change is under way.
    pub fn settle(&self) {
        self.lock().changes.clear();
    }

    /// How devices answer invalidations from now on.
    pub fn set_answer(&self, answer: DeviceAnswer) {
        self.lock().answer = answer;
    }

    fn access(&self, address: PhysAddr, align: u64) -> MutexGuard<'_, State> {
        assert!(address.is_aligned(align), "{address:?}");
        // Only a PASID directory reaches beyond the frame that a checked address names.
        assert!(address.as_u64() < (1 << self.host_bits) + (1 << 17), "{address:?} is beyond the host");
        let mut state = self.lock();
        state.accesses += 1;
        if let Some((after, at, value)) = state.changes.pop() {
            match after {
                0 => state.put(at, value),
                _ => state.changes.push((after - 1, at, value)),
            }
        }
        state
    }
}

impl State {
    pub fn get(&self, address: u64) -> Option<u64> {
        self.words.get(address as usize / 8).copied()
    }

    /// Everything that a word may still be cached as.
    pub fn held(&self, address: u64) -> Option<Vec<u64>> {
        let present = self.get(address)?;
        Some(self.held.get(&(address / 8)).cloned().unwrap_or_else(|| vec![present]))
    }

    fn put(&mut self, address: u64, value: u64) {
        let Some(word) = self.words.get_mut(address as usize / 8) else { return };
        let before = std::mem::replace(word, value);
        let held = self.held.entry(address / 8).or_insert_with(|| vec![before]);
        if !held.contains(&value) {
            self.wild |= held.len() >= VALUES;
            held.push(value);
        }
    }

    /// Nothing is cached any more.
    pub fn forget(&mut self) {
        self.held.clear();
        self.wild = false;
    }
}

impl Host for Guest {
    fn read(&self, address: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
        self.access(address, 8).get(address.as_u64()).ok_or(Unreachable)
    }

    fn read_pair(&self, address: PhysAddr, _: Snoop) -> Result<[u64; 2], Unreachable> {
        let state = self.access(address, 16);
        let word = |offset| state.get(address.as_u64() + offset).ok_or(Unreachable);
        Ok([word(0)?, word(8)?])
    }

    fn write32(&self, address: PhysAddr, value: u32) -> Result<(), Unreachable> {
        let mut state = self.access(address, 4);
        let word = address.as_u64() & !7;
        let shift = (address.as_u64() & 4) * 8;
        let old = state.get(word).ok_or(Unreachable)?;
        state.put(word, old & !(0xffff_ffff << shift) | u64::from(value) << shift);
        Ok(())
    }

    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable> {
        let mut state = self.access(address, 8);
        state.get(address.as_u64()).ok_or(Unreachable)?;
        state.put(address.as_u64(), value);
        Ok(())
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
        let mut state = self.access(address, 8);
        // Accessed and dirty bits of either stage, and nothing that was set is cleared.
        assert!(current & !new == 0 && (new & !current) & !0x760 == 0, "{current:#x} -> {new:#x}");
        let same = state.get(address.as_u64()).ok_or(Unreachable)? == current;
        if same {
            state.put(address.as_u64(), new);
        }
        Ok(same)
    }

    fn interrupt(&self, _: Msi) {}

    fn invalidate_device_tlb(&self, _: u16, _: Option<DevicePasids>, _: DeviceRange) -> DeviceAnswer {
        self.lock().answer
    }
}

/// A word that is likely to be in a table.
pub fn slot(input: &mut Input<'_>) -> u64 {
    let page = u64::from(input.u8()) % PAGES << 12;
    match input.u8() {
        // The first of each table, which most walks go through.
        0..64 => page,
        kind @ 64..128 => page | u64::from(kind & 31) << 3,
        // Entries of the second stage for tables of the first; other entries of a PASID.
        kind @ 128..160 => 0xc080 | u64::from(kind & 7) << 3,
        kind @ 160..192 => 0x7000 | u64::from(kind & 31) << 3,
        // Contexts of the other sources.
        kind @ 192..208 => [0x2100, 0x2900, 0x4200, 0x5200][usize::from(kind & 3)] | u64::from(kind >> 2 & 1) << 3,
        _ => page | u64::from(input.u16() & 511) << 3,
    }
}

/// A value that is likely to be in an entry, or near the one that is there.
pub fn value(input: &mut Input<'_>, present: u64) -> u64 {
    let page = |input: &mut Input<'_>| u64::from(input.u8()) % (PAGES + 2) << 12;
    match input.u8() {
        0..64 => present ^ 1 << (input.u8() & 63),
        64..96 => page(input) | 3,
        96..128 => page(input) | 0x67,
        128..160 => page(input) | u64::from(input.u16() & 0xfff),
        160..176 => 0,
        176..192 => u64::from(input.u8()) << 21 | u64::from(input.u16() & 0xfff) | 0x80,
        192..200 => 0xfee0_0000 | page(input) | 0x67,
        200..208 => present & !3,
        208..216 => present & !1 | 2,
        216..224 => present & !2 | 1,
        // Neither accessed nor dirty.
        224..232 => present & !0x760,
        _ => input.u64(),
    }
}
