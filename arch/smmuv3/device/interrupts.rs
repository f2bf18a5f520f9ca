//! The interrupts of global errors, events and page requests: their registers, and when they are raised
//! (SMMU 3.18). That of CMD_SYNC is in the command.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::{Interrupt, Line};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::registers::IrqCtrl;
use crate::ops::Msi;

/// What an interrupt tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    GlobalErrors,
    Events,
    PageRequests,
}

impl Source {
    pub(super) const ALL: [Self; 3] = [Self::GlobalErrors, Self::Events, Self::PageRequests];

    /// Its bit of IRQ_CTRL.
    pub(super) const fn enable(self) -> IrqCtrl {
        match self {
            Self::GlobalErrors => IrqCtrl::GERROR,
            Self::Events => IrqCtrl::EVENTQ,
            Self::PageRequests => IrqCtrl::PRIQ,
        }
    }

    pub(super) const fn line(self) -> Line {
        match self {
            Self::GlobalErrors => Line::GlobalErrors,
            Self::Events => Line::Events,
            Self::PageRequests => Line::PageRequests,
        }
    }
}

/// CFG0, CFG1, CFG2 of one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Message {
    address: u64,
    data: u32,
    attributes: u32,
    due: bool,
}

/// All three.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Interrupts {
    errors: Message,
    events: Message,
    pages: Message,
}

/// Bits 55:2.
const ADDRESS: u64 = (1 << 56) - (1 << 2);
/// LO of PRIQ_IRQ_CFG2 (6.3.36).
const LAST_ONLY: u32 = 1 << 31;

impl Interrupts {
    /// As after a reset, where their values are not known.
    pub(super) const fn reset(unknown: u64) -> Self {
        let data = unknown as u32;
        let message = Message { address: unknown & ADDRESS, data, attributes: data & 0x3f, due: false };
        Self { errors: message, events: message, pages: message }
    }

    const fn of(&self, source: Source) -> &Message {
        match source {
            Source::GlobalErrors => &self.errors,
            Source::Events => &self.events,
            Source::PageRequests => &self.pages,
        }
    }

    const fn of_mut(&mut self, source: Source) -> &mut Message {
        match source {
            Source::GlobalErrors => &mut self.errors,
            Source::Events => &mut self.events,
            Source::PageRequests => &mut self.pages,
        }
    }

    /// The doubleword `index` of a source's registers.
    pub(super) const fn read(&self, source: Source, index: usize) -> u32 {
        let message = self.of(source);
        match index {
            0 => message.address as u32,
            1 => (message.address >> 32) as u32,
            2 => message.data,
            _ => message.attributes,
        }
    }

    /// Writes it.
    pub(super) const fn write(&mut self, source: Source, index: usize, value: u32) {
        let last_only = if matches!(source, Source::PageRequests) { LAST_ONLY } else { 0 };
        let message = self.of_mut(source);
        match index {
            0 => message.address = (message.address & !0xffff_ffff | value as u64) & ADDRESS,
            1 => message.address = (message.address & 0xffff_ffff | (value as u64) << 32) & ADDRESS,
            2 => message.data = value,
            _ => message.attributes = value & (0x3f | last_only),
        }
    }

    /// Whether only the last page request of a group is told.
    pub(super) const fn last_only(&self) -> bool {
        self.pages.attributes & LAST_ONLY != 0
    }

    pub(super) const fn raise(&mut self, source: Source) {
        self.of_mut(source).due = true;
    }

    pub(super) const fn is_due(&self, source: Source) -> bool {
        self.of(source).due
    }

    /// The interrupt, which counts as sent: a message where there is an address for one.
    pub(super) const fn take(&mut self, source: Source, messages: bool) -> Option<Interrupt> {
        let line = source.line();
        let message = self.of_mut(source);
        if !message.due {
            return None;
        }
        message.due = false;
        Some(match message.address {
            0 => Interrupt::Wired(line),
            _ if !messages => Interrupt::Wired(line),
            address => Interrupt::Message(Msi { address: PhysAddr::new(address), data: message.data }),
        })
    }
}
