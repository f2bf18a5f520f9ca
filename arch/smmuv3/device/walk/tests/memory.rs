//! Memory that a test fills word by word.

extern crate std;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::vec::Vec;

use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::{DeviceAnswer, Host, Interrupt, Snoop, Unreachable};
use crate::arch::smmuv3::layout::StreamId;

/// Zeroes but for what was put there, up to 52 bits.
#[derive(Default)]
pub(super) struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    words: BTreeMap<u64, u64>,
    /// Quadwords that cannot be read.
    holes: BTreeSet<u64>,
    reads: Vec<(u64, Snoop)>,
}

impl Memory {
    pub(super) fn new(words: &[(u64, u64)]) -> Self {
        let this = Self::default();
        for &(address, value) in words {
            this.put(address, value);
        }
        this
    }

    pub(super) fn put(&self, address: u64, value: u64) {
        assert_eq!(address % 8, 0);
        self.0.lock().unwrap().words.insert(address, value);
    }

    pub(super) fn put_all(&self, address: u64, values: &[u64]) {
        for (at, &value) in (address..).step_by(8).zip(values) {
            self.put(at, value);
        }
    }

    pub(super) fn get(&self, address: u64) -> u64 {
        self.0.lock().unwrap().words.get(&address).copied().unwrap_or(0)
    }

    /// From now on, this quadword cannot be read.
    pub(super) fn remove(&self, address: u64) {
        self.0.lock().unwrap().holes.insert(address);
    }

    /// What was read since the last call.
    pub(super) fn take_reads(&self) -> Vec<(u64, Snoop)> {
        std::mem::take(&mut self.0.lock().unwrap().reads)
    }
}

impl Host for Memory {
    fn read(&self, address: PhysAddr, snoop: Snoop) -> Result<u64, Unreachable> {
        assert!(address.is_aligned(8));
        let address = address.as_u64();
        let mut state = self.0.lock().unwrap();
        state.reads.push((address, snoop));
        if address >> 52 != 0 || state.holes.contains(&address) {
            return Err(Unreachable);
        }
        Ok(state.words.get(&address).copied().unwrap_or(0))
    }

    fn compare_exchange(&self, _: PhysAddr, _: u64, _: u64) -> Result<bool, Unreachable> {
        panic!("a walk does not write");
    }

    fn write64(&self, _: PhysAddr, _: u64) -> Result<(), Unreachable> {
        panic!("a walk does not write");
    }

    fn interrupt(&self, _: Interrupt) -> Result<(), Unreachable> {
        panic!("a walk does not interrupt");
    }

    fn invalidate_atc(&self, _: StreamId, _: Option<u32>, _: u64, _: u8) -> DeviceAnswer {
        panic!("a walk does not invalidate");
    }
}
