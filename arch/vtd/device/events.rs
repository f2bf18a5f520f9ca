//! The three interrupts of a unit: their registers, and when they are raised (VT-d 6.5.2.10, 7.3, 7.5).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use crate::addr::PhysAddr;
use crate::arch::vtd::layout::registers::{EVENT_MASKED, EVENT_PENDING};
use crate::ops::Msi;

/// The four registers of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Event {
    /// IM and IP.
    control: u32,
    data: u32,
    address: u32,
    upper: u32,
}

/// Whether a unit has the upper half of message addresses: with ECAP.EIM (11.4.7.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum UpperAddress {
    Present,
    Reserved,
}

impl Event {
    /// As after a reset: masked.
    pub(super) const RESET: Self = Self { control: EVENT_MASKED, data: 0, address: 0, upper: 0 };

    /// The register `index` doublewords behind the control register.
    pub(super) const fn read(&self, index: usize) -> u32 {
        match index {
            0 => self.control,
            1 => self.data,
            2 => self.address,
            _ => self.upper,
        }
    }

    /// Writes the register `index` doublewords behind the control register.
    pub(super) const fn write(&mut self, index: usize, value: u32, upper: UpperAddress) {
        match index {
            0 => self.control = self.control & EVENT_PENDING | value & EVENT_MASKED,
            1 => self.data = value & 0xffff,
            2 => self.address = value & !3,
            _ => {
                if matches!(upper, UpperAddress::Present) {
                    self.upper = value;
                }
            }
        }
    }

    /// A condition occurred, and none was reported before that software still has to look at.
    pub(super) const fn raise(&mut self) {
        self.control |= EVENT_PENDING;
    }

    /// Software looked at every condition.
    pub(super) const fn settle(&mut self) {
        self.control &= !EVENT_PENDING;
    }

    /// Whether a message is to be sent.
    pub(super) const fn is_due(&self) -> bool {
        self.control & (EVENT_MASKED | EVENT_PENDING) == EVENT_PENDING
    }

    /// The message, which counts as sent.
    pub(super) const fn take(&mut self) -> Option<Msi> {
        if !self.is_due() {
            return None;
        }
        self.settle();
        Some(Msi { address: PhysAddr::new((self.upper as u64) << 32 | self.address as u64), data: self.data })
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, UpperAddress};
    use crate::addr::PhysAddr;
    use crate::ops::Msi;

    #[test]
    fn reserved_and_read_only_bits() {
        let mut event = Event::RESET;
        assert_eq!(event.read(0), 0x8000_0000);
        for index in 0..4 {
            event.write(index, u32::MAX, UpperAddress::Reserved);
        }
        assert_eq!([0, 1, 2, 3].map(|index| event.read(index)), [0x8000_0000, 0xffff, 0xffff_fffc, 0]);
        event.write(3, u32::MAX, UpperAddress::Present);
        event.write(0, 0x7fff_ffff, UpperAddress::Present);
        assert_eq!((event.read(0), event.read(3)), (0, u32::MAX), "IP cannot be written");
    }

    #[test]
    fn a_message_is_held_back_while_masked() {
        let mut event = Event::RESET;
        event.write(1, 0x41, UpperAddress::Present);
        event.write(2, 0xfee0_1000, UpperAddress::Present);
        event.write(3, 0x12, UpperAddress::Present);
        event.raise();
        assert_eq!((event.read(0), event.take()), (0xc000_0000, None));
        event.write(0, 0, UpperAddress::Present);
        assert_eq!(event.take(), Some(Msi { address: PhysAddr::new(0x12_fee0_1000), data: 0x41 }));
        assert_eq!((event.read(0), event.take()), (0, None));
        event.raise();
        event.settle();
        assert_eq!(event.take(), None);
    }
}
