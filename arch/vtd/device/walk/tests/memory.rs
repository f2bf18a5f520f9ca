//! Memory that a test fills word by word.

extern crate std;
use std::sync::Mutex;
use std::vec::Vec;

use crate::addr::PhysAddr;
use crate::arch::vtd::device::{DeviceAnswer, Host, Snoop, Unreachable};
use crate::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
use crate::ops::Msi;

/// 128 KiB at 0, and nothing above.
pub(super) struct Memory(Mutex<State>);

struct State {
    /// What the processor sees, and who snoops.
    cached: Vec<u64>,
    /// What is in memory, until the cache is cleaned.
    memory: Vec<u64>,
    reads: usize,
    /// Values that another one stores in an entry just before it is updated.
    interference: Vec<u64>,
    unwritable: bool,
}

const WORDS: usize = 0x4000;

impl Memory {
    pub(super) fn new(words: &[(u64, u64)]) -> Self {
        let state = State {
            cached: std::vec![0; WORDS],
            memory: std::vec![0; WORDS],
            reads: 0,
            interference: Vec::new(),
            unwritable: false,
        };
        let this = Self(Mutex::new(state));
        for &(address, value) in words {
            this.put(address, value);
        }
        this
    }

    /// Stores a word, and cleans the cache.
    pub(super) fn put(&self, address: u64, value: u64) {
        self.put_uncleaned(address, value);
        self.0.lock().unwrap().memory[address as usize / 8] = value;
    }

    /// Stores a word where only who snoops sees it.
    pub(super) fn put_uncleaned(&self, address: u64, value: u64) {
        self.0.lock().unwrap().cached[address as usize / 8] = value;
    }

    pub(super) fn get(&self, address: u64) -> u64 {
        self.0.lock().unwrap().cached[address as usize / 8]
    }

    /// How often it was read since the last call; a pair is read twice.
    pub(super) fn take_reads(&self) -> usize {
        std::mem::take(&mut self.0.lock().unwrap().reads)
    }

    /// From now on, each update of an entry finds that one of `values`, last first, was stored there.
    pub(super) fn interfere(&self, values: &[u64]) {
        self.0.lock().unwrap().interference = values.to_vec();
    }

    /// From now on, no update succeeds.
    pub(super) fn forbid_writes(&self) {
        self.0.lock().unwrap().unwritable = true;
    }
}

impl Host for Memory {
    fn read(&self, address: PhysAddr, snoop: Snoop) -> Result<u64, Unreachable> {
        assert!(address.is_aligned(8));
        let mut state = self.0.lock().unwrap();
        state.reads += 1;
        let words = match snoop {
            Snoop::Yes => &state.cached,
            Snoop::No => &state.memory,
        };
        words.get(address.as_u64() as usize / 8).copied().ok_or(Unreachable)
    }

    fn compare_exchange(&self, address: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
        let mut state = self.0.lock().unwrap();
        if state.unwritable {
            return Err(Unreachable);
        }
        if let Some(value) = state.interference.pop() {
            state.cached[address.as_u64() as usize / 8] = value;
        }
        let word = state.cached.get_mut(address.as_u64() as usize / 8).ok_or(Unreachable)?;
        let same = *word == current;
        if same {
            *word = new;
        }
        Ok(same)
    }

    fn write32(&self, _: PhysAddr, _: u32) -> Result<(), Unreachable> {
        panic!("a walk does not write");
    }

    fn write64(&self, _: PhysAddr, _: u64) -> Result<(), Unreachable> {
        panic!("a walk does not write");
    }

    fn interrupt(&self, _: Msi) {
        panic!("a walk does not interrupt");
    }

    fn invalidate_device_tlb(&self, _: u16, _: Option<DevicePasids>, _: DeviceRange) -> DeviceAnswer {
        panic!("a walk does not invalidate");
    }
}
