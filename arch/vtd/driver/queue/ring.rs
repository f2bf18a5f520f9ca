//! The ring's words, and what is written into them.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::Queue;
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::Descriptor;
use crate::arch::vtd::layout::descriptors::{Request, WaitFlags};
use crate::arch::vtd::layout::registers::DescriptorWidth;
use crate::platform::Platform;
use crate::sync::atomic::Ordering;

/// log2 of the bytes in a quadword.
const WORD_SHIFT: u32 = size_of::<u64>().ilog2();

impl<P: Platform> Queue<P> {
    /// Number of slots, a power of two.
    pub(super) fn entries(&self) -> u32 {
        (self.ring.view().len() as u32) >> self.width.shift().saturating_sub(WORD_SHIFT)
    }

    pub(super) fn slot(&self, position: u32) -> u32 {
        position & self.entries().wrapping_sub(1)
    }

    /// The index of the first quadword of a position.
    fn first_word(&self, position: u32) -> usize {
        (self.offset(position) >> WORD_SHIFT) as usize
    }

    /// The byte offset of a position, as IQH and IQT count.
    pub(super) fn offset(&self, position: u32) -> u32 {
        self.slot(position) << self.width.shift()
    }

    /// IQA.
    pub(super) fn address(&self) -> u64 {
        self.width.queue_address(self.ring.phys(), self.order)
    }

    #[inline(never)]
    pub(super) fn read(&self, position: u32) -> Descriptor {
        let mut descriptor = Descriptor::default();
        let first = self.first_word(position);
        for (word, entry) in descriptor.words.iter_mut().zip(self.ring.view().entries(first, self.width.words())) {
            *word = entry.load_relaxed();
        }
        descriptor
    }

    pub(super) fn write(&self, position: u32, descriptor: &Descriptor) {
        let (ring, first) = (self.ring.view(), self.first_word(position));
        let [low, high, third, fourth] = descriptor.words;
        let store = |index: usize, word| ring.entry(first | index).store(word);
        store(0, low);
        store(1, high);
        if self.width == DescriptorWidth::Bits256 {
            store(2, third);
            store(3, fourth);
        }
    }

    /// The wait that says that this batch is done.
    pub(super) fn status_wait(&self, sequence: u64) -> Descriptor {
        let flags = WaitFlags::STATUS_WRITE | WaitFlags::FENCE;
        Request::Wait { flags, address: self.status.phys(), data: sequence as u32 }.encode()
    }

    /// A wait that says nothing to anybody: what stands in for a refused request. It has the fence
    /// flag as well, since the next wait stands only for what follows this one.
    pub(super) fn idle_wait(&self) -> Descriptor {
        let flags = WaitFlags::STATUS_WRITE | WaitFlags::FENCE;
        let address = PhysAddr::new(self.status.phys().as_u64().wrapping_add(8));
        Request::Wait { flags, address, data: 0 }.encode()
    }

    /// Sequence number of the newest batch that is done.
    pub(super) fn completed(&self) -> u64 {
        // The status first: whatever it says has been submitted when `submitted` is read.
        let status = self.status.view().entry(0).load() as u32;
        let submitted = self.submitted.load(Ordering::Acquire);
        submitted.saturating_sub(u64::from((submitted as u32).wrapping_sub(status)))
    }

    /// Makes the status word say that everything submitted is done.
    pub(super) fn set_completed(&self) {
        self.status.view().entry(0).store(self.submitted.load(Ordering::Acquire) & 0xffff_ffff);
    }
}
