//! The memory of a guest: 256 KiB at 0 that may change at each access.

use std::sync::{Mutex, MutexGuard};

use iommu::PhysAddr;
use iommu::arch::smmuv3::device::{DeviceAnswer, Host, Interrupt, Snoop, Unreachable};
use iommu::arch::smmuv3::layout::StreamId;

use crate::input::Input;

pub const BYTES: u64 = 0x4_0000;

pub struct Guest {
    state: Mutex<State>,
    output_bits: u32,
}

pub struct State {
    words: Vec<u64>,
    /// Changes that are still to come, last first: after so many accesses, this word gets this value.
    changes: Vec<(u8, u64, u64)>,
    pub accesses: usize,
    answer: DeviceAnswer,
}

impl Guest {
    pub fn new(output_bits: u32) -> Self {
        let words = vec![0; BYTES as usize / 8];
        let state = State { words, changes: Vec::new(), accesses: 0, answer: DeviceAnswer::Done };
        Self { state: Mutex::new(state), output_bits }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn put(&self, address: u64, value: u64) {
        self.lock().put(address, value);
    }

    /// Changes one word now.
    pub fn spoil(&self, input: &mut Input<'_>) {
        let address = slot(input);
        let mut state = self.lock();
        let value = value(input, state.get(address).unwrap_or(0));
        state.put(address, value);
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

    /// No change is under way, and devices answer.
    pub fn settle(&self) {
        let mut state = self.lock();
        state.changes.clear();
        state.answer = DeviceAnswer::Done;
    }

    /// How devices answer invalidations from now on.
    pub fn set_answer(&self, answer: DeviceAnswer) {
        self.lock().answer = answer;
    }

    fn access(&self, address: PhysAddr) -> MutexGuard<'_, State> {
        assert!(address.is_aligned(8), "{address:?}");
        assert!(address.as_u64() >> self.output_bits == 0, "{address:?} is beyond the output size");
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

    fn put(&mut self, address: u64, value: u64) {
        if let Some(word) = self.words.get_mut(address as usize / 8) {
            *word = value;
        }
    }
}

impl Host for Guest {
    fn read(&self, address: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
        self.access(address).get(address.as_u64()).ok_or(Unreachable)
    }

    fn write64(&self, address: PhysAddr, value: u64) -> Result<(), Unreachable> {
        let mut state = self.access(address);
        state.get(address.as_u64()).ok_or(Unreachable)?;
        state.put(address.as_u64(), value);
        Ok(())
    }

    fn compare_exchange(&self, _: PhysAddr, _: u64, _: u64) -> Result<bool, Unreachable> {
        panic!("tables are not updated");
    }

    fn interrupt(&self, interrupt: Interrupt) -> Result<(), Unreachable> {
        match interrupt {
            Interrupt::Message(msi) if msi.address.as_u64() >= BYTES => Err(Unreachable),
            _ => Ok(()),
        }
    }

    fn invalidate_atc(&self, _: StreamId, _: Option<u32>, _: u64, _: u8) -> DeviceAnswer {
        self.lock().answer
    }
}

/// A word that is likely to be in a table or a queue.
fn slot(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        // Stream table, CDs.
        0..64 => 0x1_0000 | u64::from(input.u8() & 127) << 3,
        64..96 => 0x1_2000 | u64::from(input.u8() & 63) << 3,
        // The first descriptors of the tables of both stages.
        kind @ 96..192 => {
            0x2_0000 | u64::from(kind & 1) << 16 | u64::from(input.u16() & 0x3) << 12 | u64::from(kind >> 1 & 7) << 3
        }
        // Tables of stage 1 and CDs in stage 2.
        192..208 => 0x3_2080 | u64::from(input.u8() & 31) << 3,
        // The queues.
        208..224 => 0x8000 | u64::from(input.u16() & 0x1fff) & !7,
        _ => u64::from(input.u32()) % BYTES & !7,
    }
}

/// A value that is likely there, or near the one that is.
fn value(input: &mut Input<'_>, present: u64) -> u64 {
    let page = |input: &mut Input<'_>| u64::from(input.u8() & 0x4f) << 12;
    match input.u8() {
        0..96 => present ^ 1 << (input.u8() & 63),
        96..128 => page(input) | 3,
        128..144 => page(input) | 0x743,
        144..160 => page(input) | 0x7ff,
        160..192 => page(input) | u64::from(input.u16() & 0xfff),
        192..208 => 0,
        _ => input.u64(),
    }
}
