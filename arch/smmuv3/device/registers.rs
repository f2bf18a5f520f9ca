//! The registers as software sees them (SMMU 6.3). Writing only records what is asked for; `step` does it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use bitflags::bitflags;

use super::interrupts::{Interrupts, Source};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::Identification;
use crate::arch::smmuv3::layout::identification::Idr0;
use crate::arch::smmuv3::layout::registers::{
    Cr0, Gbpa, Gerror, IrqCtrl, OVERFLOW_FLAG, QueueBase, QueueIndex, REGISTER_BYTES, offset,
};
use crate::bus::Snoop;

bitflags! {
    /// What software did that the specification calls CONSTRAINED UNPREDICTABLE, or does not permit. The
    /// unit goes on in one of the ways it may; a test wants to see none of these.
    ///
    /// ```
    /// use iommu::arch::smmuv3::device::Misuse;
    /// assert!((Misuse::GUARDED | Misuse::INDEX).contains(Misuse::INDEX));
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Misuse: u32 {
        /// A register was changed while what it configures is enabled. The write is ignored.
        const GUARDED = 1 << 0;
        /// CR0, IRQ_CTRL or GBPA was changed again before the last change was in force. The write is ignored.
        const UNFINISHED = 1 << 1;
        /// GBPA was written without Update. The write is ignored.
        const NO_UPDATE = 1 << 2;
        /// An error was acknowledged in GERRORN that is not active.
        const INACTIVE_ERROR = 1 << 3;
        /// A queue index was moved to where its queue cannot be.
        const INDEX = 1 << 4;
        /// A register of 32 bits was accessed with 64, or an address where there is none.
        const ACCESS = 1 << 5;
        /// A command has parameters that are out of range, so that it need not act.
        const PARAMETER = 1 << 6;
        /// The unit was enabled with a stream table or a queue larger than it can be.
        const SIZE = 1 << 7;
    }
}

/// What registers hold whose reset value is unknown: something that no driver wants.
const UNKNOWN: u64 = 0x5a5a_5a5a_5a5a_5a5a;
/// Bits 55:6, 55:5 and 62, 55:2: what the base registers keep.
const TABLE_BASE: u64 = 1 << 62 | ((1 << 56) - (1 << 6));
const QUEUE_BASE: u64 = 1 << 62 | ((1 << 56) - (1 << 5)) | 0x1f;
/// What of CR1 is guarded by SMMUEN, and what by the enables of the queues.
const CR1_TABLE: u32 = 0xfc0;
const CR1_QUEUE: u32 = 0x03f;
/// SPLIT, FMT, LOG2SIZE.
const TABLE_CFG: u32 = 0x3_07ff;
/// All of GBPA but Update and ABORT that are not reserved.
const GBPA_ATTRIBUTES: u32 = 0xf_3f1f;
/// ERR of CMDQ_CONS.
const CONS_ERROR: u32 = 0x7f00_0000;
const INDEX: u32 = 0xf_ffff;

/// The three registers of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Queue {
    base: u64,
    /// With the overflow flag of output queues.
    pub(super) prod: u32,
    /// With the overflow acknowledgment of output queues, or the error of the command queue.
    pub(super) cons: u32,
    /// log2 of the most entries.
    most: u8,
}

impl Queue {
    const fn reset(most: u8) -> Self {
        Self { base: UNKNOWN & QUEUE_BASE, prod: UNKNOWN as u32 & INDEX, cons: UNKNOWN as u32 & INDEX, most }
    }

    /// log2 of the entries (6.3.26: capped at what the unit has).
    pub(super) fn log2_size(&self) -> u8 {
        QueueBase(self.base).log2_size().min(self.most)
    }

    pub(super) const fn prod(&self) -> QueueIndex {
        QueueIndex::new(self.prod)
    }

    pub(super) const fn cons(&self) -> QueueIndex {
        QueueIndex::new(self.cons)
    }

    /// Entries that were produced and not consumed.
    pub(super) fn used(&self) -> u32 {
        QueueIndex::used(self.prod(), self.cons(), self.log2_size())
    }

    /// Where the entry at an index is; entries have `1 << entry_log2` bytes. The base is aligned to the size
    /// of the queue, or to 32 bytes.
    pub(super) fn address(&self, index: QueueIndex, entry_log2: u8) -> PhysAddr {
        let log2 = self.log2_size();
        let bits = log2.wrapping_add(entry_log2).max(5);
        let base = (self.base & QUEUE_BASE & !(1 << 62)) >> (bits & 63) << (bits & 63);
        PhysAddr::new(base | (index.slot(log2) as u64) << (entry_log2 & 63))
    }

    /// Whether an index is one that a queue of this size can have, `used` of them between.
    fn holds(&self, used: u32) -> bool {
        used <= 1 << (self.log2_size() & 31)
    }
}

/// All registers.
pub(super) struct RegisterFile {
    identification: Identification,
    /// CR0 and CR0ACK.
    cr0: Cr0,
    pub(super) enabled: Cr0,
    cr1: u32,
    pub(super) cr2: u32,
    /// GBPA in force, and as asked for.
    pub(super) gbpa: u32,
    gbpa_asked: Option<u32>,
    irq_ctrl: IrqCtrl,
    irq_enabled: IrqCtrl,
    gerror: Gerror,
    gerrorn: Gerror,
    pub(super) strtab_base: u64,
    pub(super) strtab_cfg: u32,
    pub(super) commands: Queue,
    pub(super) events: Queue,
    pub(super) pages: Queue,
    pub(super) interrupts: Interrupts,
    pub(super) misuse: Misuse,
}

impl RegisterFile {
    /// As after a reset.
    pub(super) fn new(identification: Identification) -> Self {
        Self {
            identification,
            cr0: Cr0::empty(),
            enabled: Cr0::empty(),
            cr1: UNKNOWN as u32 & (CR1_TABLE | CR1_QUEUE),
            cr2: UNKNOWN as u32 & cr2_mask(&identification),
            gbpa: Gbpa::SHCFG_INCOMING,
            gbpa_asked: None,
            irq_ctrl: IrqCtrl::empty(),
            irq_enabled: IrqCtrl::empty(),
            gerror: Gerror::empty(),
            gerrorn: Gerror::empty(),
            strtab_base: UNKNOWN & TABLE_BASE,
            strtab_cfg: UNKNOWN as u32 & TABLE_CFG,
            commands: Queue::reset(identification.command_queue_log2()),
            events: Queue::reset(identification.event_queue_log2()),
            pages: Queue::reset(identification.pri_queue_log2()),
            interrupts: Interrupts::reset(UNKNOWN),
            misuse: Misuse::empty(),
        }
    }

    pub(super) const fn identification(&self) -> &Identification {
        &self.identification
    }

    /// Bits of CR0 that the unit has.
    fn cr0_mask(&self) -> Cr0 {
        let idr0 = self.identification.idr0();
        let mut mask = Cr0::SMMUEN | Cr0::EVENTQEN | Cr0::CMDQEN;
        mask.set(Cr0::PRIQEN, idr0.contains(Idr0::PRI));
        mask.set(Cr0::ATSCHK, idr0.contains(Idr0::ATS));
        mask
    }

    fn irq_mask(&self) -> IrqCtrl {
        let mut mask = IrqCtrl::GERROR | IrqCtrl::EVENTQ;
        mask.set(IrqCtrl::PRIQ, self.identification.idr0().contains(Idr0::PRI));
        mask
    }

    fn gerror_mask(&self) -> Gerror {
        let idr0 = self.identification.idr0();
        let mut mask = Gerror::all();
        mask.set(Gerror::PRIQ_ABT_ERR, idr0.contains(Idr0::PRI));
        mask.set(Gerror::MSI_PRIQ_ABT_ERR, idr0.contains(Idr0::PRI | Idr0::MSI));
        let messages = Gerror::MSI_CMDQ_ABT_ERR | Gerror::MSI_EVENTQ_ABT_ERR | Gerror::MSI_GERROR_ABT_ERR;
        if !idr0.contains(Idr0::MSI) {
            mask.remove(messages);
        }
        mask
    }

    /// Whether any of these is on, or on the way to be on or off.
    fn guards(&self, enables: Cr0) -> bool {
        (self.cr0 | self.enabled).intersects(enables)
    }

    /// Reads the doubleword at `offset`.
    pub(super) fn read(&self, at: usize) -> u32 {
        let id = &self.identification;
        let has_pri = id.idr0().contains(Idr0::PRI);
        match at {
            offset::IDR0 => id.idr0,
            offset::IDR1 => id.idr1,
            offset::IDR2 => id.idr2,
            offset::IDR3 => id.idr3,
            offset::IDR4 => id.idr4,
            offset::IDR5 => id.idr5,
            offset::IIDR => id.iidr,
            offset::AIDR => id.aidr,
            offset::CR0 => self.cr0.bits(),
            offset::CR0ACK => self.enabled.bits(),
            offset::CR1 => self.cr1,
            offset::CR2 => self.cr2,
            offset::GBPA => self.gbpa_asked.map_or(self.gbpa, |asked| asked | Gbpa::UPDATE),
            offset::IRQ_CTRL => self.irq_ctrl.bits(),
            offset::IRQ_CTRLACK => self.irq_enabled.bits(),
            offset::GERROR => self.gerror.bits(),
            offset::GERRORN => self.gerrorn.bits(),
            offset::STRTAB_BASE_CFG => self.strtab_cfg,
            offset::CMDQ_PROD => self.commands.prod,
            offset::CMDQ_CONS => self.commands.cons,
            offset::EVENTQ_PROD => self.events.prod,
            offset::EVENTQ_CONS => self.events.cons,
            offset::PRIQ_PROD if has_pri => self.pages.prod,
            offset::PRIQ_CONS if has_pri => self.pages.cons,
            _ => match self.wide(at & !4) {
                Some(quadword) if at & 4 == 0 => quadword as u32,
                Some(quadword) => (quadword >> 32) as u32,
                None => self.interrupt_register(at).map_or(0, |(source, index)| self.interrupts.read(source, index)),
            },
        }
    }

    /// A register of 64 bits that is no message's address.
    fn wide(&self, at: usize) -> Option<u64> {
        match at {
            offset::STRTAB_BASE => Some(self.strtab_base),
            offset::CMDQ_BASE => Some(self.commands.base),
            offset::EVENTQ_BASE => Some(self.events.base),
            offset::PRIQ_BASE if self.identification.idr0().contains(Idr0::PRI) => Some(self.pages.base),
            _ => None,
        }
    }

    /// Whose message a register configures, and the doubleword of the four.
    fn interrupt_register(&self, at: usize) -> Option<(Source, usize)> {
        let (source, first) = match at & !0xf {
            // These begin in the middle of 16 bytes.
            0x60 if at >= offset::GERROR_IRQ_CFG0 => (Source::GlobalErrors, offset::GERROR_IRQ_CFG0),
            0x70 if at <= offset::GERROR_IRQ_CFG2 => (Source::GlobalErrors, offset::GERROR_IRQ_CFG0),
            offset::EVENTQ_IRQ_CFG0 => (Source::Events, offset::EVENTQ_IRQ_CFG0),
            offset::PRIQ_IRQ_CFG0 => (Source::PageRequests, offset::PRIQ_IRQ_CFG0),
            _ => return None,
        };
        let idr0 = self.identification.idr0();
        let index = at.checked_sub(first)? >> 2;
        // PRIQ_IRQ_CFG2.LO is there without messages.
        let present = match source {
            Source::PageRequests => idr0.contains(Idr0::PRI) && (idr0.contains(Idr0::MSI) || index == 3),
            _ => idr0.contains(Idr0::MSI),
        };
        present.then_some((source, index))
    }

    /// Writes the doubleword at `offset`.
    pub(super) fn write(&mut self, at: usize, value: u32) {
        match at {
            offset::CR0 => self.write_cr0(value),
            offset::CR1 => self.write_cr1(value),
            offset::CR2 => {
                let mask = cr2_mask(&self.identification);
                if self.may_change(Cr0::SMMUEN, self.cr2, value & mask) {
                    self.cr2 = value & mask;
                }
            }
            offset::GBPA => self.write_gbpa(value),
            offset::IRQ_CTRL => {
                let asked = IrqCtrl::from_bits_truncate(value) & self.irq_mask();
                let busy = self.irq_ctrl ^ self.irq_enabled;
                if (asked ^ self.irq_ctrl).intersects(busy) {
                    self.misuse |= Misuse::UNFINISHED;
                }
                self.irq_ctrl = asked & !busy | self.irq_ctrl & busy;
            }
            offset::GERRORN => {
                let acknowledged = Gerror::from_bits_truncate(value) & self.gerror_mask();
                if (acknowledged ^ self.gerrorn).intersects(!(self.gerror ^ self.gerrorn)) {
                    self.misuse |= Misuse::INACTIVE_ERROR;
                }
                self.gerrorn = acknowledged;
            }
            offset::STRTAB_BASE_CFG => {
                let two_level = self.identification.idr0().contains(Idr0::ST_TWO_LEVEL);
                let value = value & if two_level { TABLE_CFG } else { 0x3f };
                if self.may_change(Cr0::SMMUEN, self.strtab_cfg, value) {
                    self.strtab_cfg = value;
                }
            }
            offset::CMDQ_PROD => self.write_command_index(value & INDEX),
            offset::CMDQ_CONS => {
                if self.may_change(Cr0::CMDQEN, self.commands.cons & INDEX, value & INDEX) {
                    self.commands.cons = value & (INDEX | CONS_ERROR);
                }
            }
            offset::EVENTQ_PROD => {
                if self.may_change(Cr0::EVENTQEN, self.events.prod, value & (INDEX | OVERFLOW_FLAG)) {
                    self.events.prod = value & (INDEX | OVERFLOW_FLAG);
                }
            }
            offset::EVENTQ_CONS => self.misuse |= consume(&mut self.events, value, self.enabled, Cr0::EVENTQEN),
            offset::PRIQ_PROD if self.identification.idr0().contains(Idr0::PRI) => {
                if self.may_change(Cr0::PRIQEN, self.pages.prod, value & (INDEX | OVERFLOW_FLAG)) {
                    self.pages.prod = value & (INDEX | OVERFLOW_FLAG);
                }
            }
            offset::PRIQ_CONS if self.identification.idr0().contains(Idr0::PRI) => {
                self.misuse |= consume(&mut self.pages, value, self.enabled, Cr0::PRIQEN);
            }
            _ => self.write_wide(at, value),
        }
    }

    fn write_wide(&mut self, at: usize, value: u32) {
        if let Some(current) = self.wide(at & !4) {
            let merged = match at & 4 {
                0 => current & !0xffff_ffff | u64::from(value),
                _ => current & 0xffff_ffff | u64::from(value) << 32,
            };
            let (guard, merged) = match at & !4 {
                offset::STRTAB_BASE => (Cr0::SMMUEN, merged & TABLE_BASE),
                offset::CMDQ_BASE => (Cr0::CMDQEN, merged & QUEUE_BASE),
                offset::EVENTQ_BASE => (Cr0::EVENTQEN, merged & QUEUE_BASE),
                _ => (Cr0::PRIQEN, merged & QUEUE_BASE),
            };
            if self.guards(guard) {
                if merged != current {
                    self.misuse |= Misuse::GUARDED;
                }
                return;
            }
            match at & !4 {
                offset::STRTAB_BASE => self.strtab_base = merged,
                offset::CMDQ_BASE => self.commands.base = merged,
                offset::EVENTQ_BASE => self.events.base = merged,
                _ => self.pages.base = merged,
            }
        } else if let Some((source, index)) = self.interrupt_register(at) {
            if (self.irq_ctrl | self.irq_enabled).intersects(source.enable()) {
                if self.interrupts.read(source, index) != value {
                    self.misuse |= Misuse::GUARDED;
                }
                return;
            }
            self.interrupts.write(source, index, value);
        }
    }

    /// Whether a register that these enables guard may be changed now.
    fn may_change(&mut self, guard: Cr0, current: u32, value: u32) -> bool {
        let guarded = self.guards(guard);
        if guarded && current != value {
            self.misuse |= Misuse::GUARDED;
        }
        !guarded
    }

    fn write_cr0(&mut self, value: u32) {
        let asked = Cr0::from_bits_truncate(value) & self.cr0_mask();
        let busy = self.cr0 ^ self.enabled;
        if (asked ^ self.cr0).intersects(busy) {
            self.misuse |= Misuse::UNFINISHED;
        }
        self.cr0 = asked & !busy | self.cr0 & busy;
    }

    fn write_cr1(&mut self, value: u32) {
        let table = self.may_change(Cr0::SMMUEN, self.cr1 & CR1_TABLE, value & CR1_TABLE);
        let queues = Cr0::CMDQEN | Cr0::EVENTQEN | Cr0::PRIQEN;
        let queue = self.may_change(queues, self.cr1 & CR1_QUEUE, value & CR1_QUEUE);
        let mask = if table { CR1_TABLE } else { 0 } | if queue { CR1_QUEUE } else { 0 };
        self.cr1 = self.cr1 & !mask | value & mask;
    }

    fn write_gbpa(&mut self, value: u32) {
        if self.gbpa_asked.is_some() {
            self.misuse |= Misuse::UNFINISHED;
        } else if value & Gbpa::UPDATE == 0 {
            self.misuse |= Misuse::NO_UPDATE;
        } else {
            self.gbpa_asked = Some(value & (GBPA_ATTRIBUTES | Gbpa::ABORT));
        }
    }

    fn write_command_index(&mut self, value: u32) {
        let before = self.commands.used();
        self.commands.prod = value;
        let used = self.commands.used();
        // 7.1: commands may be taken back while an error stops them.
        let back = used < before && !self.active_errors().contains(Gerror::CMDQ_ERR);
        if self.enabled.contains(Cr0::CMDQEN) && (back || !self.commands.holds(used)) {
            self.misuse |= Misuse::INDEX;
        }
    }

    /// Bits of CR0 that are not in force yet.
    pub(super) fn changing(&self) -> Cr0 {
        self.cr0 ^ self.enabled
    }

    /// One of them comes into force.
    pub(super) fn follow(&mut self, bit: Cr0) {
        let on = self.cr0.contains(bit);
        let misfit = match bit {
            Cr0::CMDQEN => !self.commands.holds(self.commands.used()),
            Cr0::EVENTQEN => !self.events.holds(self.events.used()),
            Cr0::PRIQEN => !self.pages.holds(self.pages.used()),
            _ => false,
        };
        if on && misfit {
            self.misuse |= Misuse::INDEX;
        }
        let oversized = |queue: &Queue| QueueBase(queue.base).log2_size() > queue.most;
        let oversized = match bit {
            Cr0::CMDQEN => oversized(&self.commands),
            Cr0::EVENTQEN => oversized(&self.events),
            Cr0::PRIQEN => oversized(&self.pages),
            _ => false,
        };
        if on && oversized {
            self.misuse |= Misuse::SIZE;
        }
        self.enabled.set(bit, on);
    }

    /// Whether GBPA is to be taken over.
    pub(super) const fn gbpa_changes(&self) -> bool {
        self.gbpa_asked.is_some()
    }

    /// GBPA as asked for comes into force.
    pub(super) const fn follow_gbpa(&mut self) {
        if let Some(asked) = self.gbpa_asked.take() {
            self.gbpa = asked;
        }
    }

    /// Bits of IRQ_CTRL that are not in force yet.
    pub(super) fn irq_changing(&self) -> IrqCtrl {
        self.irq_ctrl ^ self.irq_enabled
    }

    /// One of them comes into force. What happened before is not told later (6.3.16).
    pub(super) fn follow_irq(&mut self, bit: IrqCtrl) {
        self.irq_enabled.set(bit, self.irq_ctrl.contains(bit));
    }

    /// A condition of a source occurred.
    pub(super) fn raise(&mut self, source: Source) {
        if self.irq_enabled.contains(source.enable()) {
            self.interrupts.raise(source);
        }
    }

    /// An error becomes active, unless it is (6.3.19).
    pub(super) fn report(&mut self, error: Gerror) {
        let news = error & !self.active_errors();
        if !news.is_empty() {
            self.gerror.toggle(news);
            // 7.5.1: its own message would be aborted again.
            if news != Gerror::MSI_GERROR_ABT_ERR {
                self.raise(Source::GlobalErrors);
            }
        }
    }

    pub(super) fn active_errors(&self) -> Gerror {
        self.gerror ^ self.gerrorn
    }

    /// Whether commands may be fetched (4.1.2).
    pub(super) fn fetches_commands(&self) -> bool {
        self.enabled.contains(Cr0::CMDQEN)
            && !self.active_errors().contains(Gerror::CMDQ_ERR)
            && self.commands.used() != 0
    }

    /// How queues are accessed.
    pub(super) fn queue_snoop(&self) -> Snoop {
        self.snoop(self.cr1 & CR1_QUEUE)
    }

    /// How the stream table is accessed.
    pub(super) fn table_snoop(&self) -> Snoop {
        self.snoop(self.cr1 >> 6)
    }

    /// An access sees caches where the unit can and it is cacheable and shareable (6.3.11).
    fn snoop(&self, attributes: u32) -> Snoop {
        let cacheable = |bits: u32| matches!(bits & 3, 0b01 | 0b10);
        let shareable = attributes >> 4 & 2 != 0;
        let coherent = self.identification.idr0().contains(Idr0::COHACC);
        match coherent && shareable && cacheable(attributes) && cacheable(attributes >> 2) {
            true => Snoop::Yes,
            false => Snoop::No,
        }
    }
}

/// Software consumed entries of an output queue.
fn consume(queue: &mut Queue, value: u32, enabled: Cr0, enable: Cr0) -> Misuse {
    let before = queue.used();
    queue.cons = value & (INDEX | OVERFLOW_FLAG);
    match enabled.contains(enable) && queue.used() > before {
        true => Misuse::INDEX,
        false => Misuse::empty(),
    }
}

/// REC_CFG_ATS is there with IDR0.ATSRECERR, PTM with BTM, E2H with Hyp.
fn cr2_mask(identification: &Identification) -> u32 {
    const ATSRECERR: u32 = 1 << 23;
    let idr0 = identification.idr0();
    let records = identification.idr0 & ATSRECERR != 0;
    1 << 1
        | u32::from(idr0.contains(Idr0::HYP))
        | u32::from(idr0.contains(Idr0::BTM)) << 2
        | u32::from(records && idr0.contains(Idr0::ATS)) << 3
}

/// Whether there is a place for a register at `offset`.
pub(super) const fn is_register(offset: usize) -> bool {
    offset & 3 == 0 && offset < REGISTER_BYTES
}

/// Whether a register of 64 bits begins at `offset`.
pub(super) const fn is_wide(at: usize) -> bool {
    matches!(
        at,
        offset::STRTAB_BASE
            | offset::CMDQ_BASE
            | offset::EVENTQ_BASE
            | offset::PRIQ_BASE
            | offset::GERROR_IRQ_CFG0
            | offset::EVENTQ_IRQ_CFG0
            | offset::PRIQ_IRQ_CFG0
    )
}
