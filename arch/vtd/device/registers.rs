//! The registers as software sees them (VT-d 11.4). Writing only records what is asked for; `step` does it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::DeviceConfig;
use super::events::{Event, UpperAddress};
use super::faults::Faults;
use crate::arch::vtd::layout::registers::{
    FAULT_RECORD_BYTES, Global, ICS_IWC, PMEN_EPM, PMEN_PRS, PageRequestStatus, TableMode, offset,
};
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::error::{Error, InvalidReason, Result};
use crate::platform::{FRAME_BYTES, Platform};

/// ICC and IVT: register-based invalidation is asked for.
const INVALIDATE: u64 = 1 << 63;
/// Bits 18:4 of IQH and IQT.
const QUEUE_OFFSET: u32 = 0x7_fff0;
/// Bits 18:5 of PQH and PQT.
const PAGE_QUEUE_OFFSET: u32 = 0x7_ffe0;
/// Bits of the protected memory registers that are reserved (N:0): regions are multiples of 2 MiB.
pub(super) const PROTECTED_GRANULE: u64 = 0x1f_ffff;

/// The doubleword of `value` at `offset`.
pub(super) const fn half(value: u64, offset: usize) -> u32 {
    if offset & 4 == 0 { value as u32 } else { (value >> 32) as u32 }
}

/// Replaces the doubleword of `target` at `offset`.
const fn set_half(target: &mut u64, offset: usize, value: u32) {
    *target = if offset & 4 == 0 {
        *target & !0xffff_ffff | value as u64
    } else {
        *target & 0xffff_ffff | (value as u64) << 32
    };
}

/// Where the registers are whose place varies, and where all of them end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Places {
    faults: usize,
    iotlb: usize,
    /// Bytes of the register set: whole pages.
    pub(super) bytes: usize,
}

impl Places {
    /// The places that capabilities tell.
    ///
    /// # Errors
    /// [`InvalidReason::Configuration`] when registers would overlap.
    pub(super) fn new(config: &DeviceConfig) -> Result<Self> {
        let (faults, iotlb) = (config.cap.fault_record_offset(), config.ecap.iotlb_offset());
        let faults_end = faults.saturating_add(config.cap.fault_records().saturating_mul(FAULT_RECORD_BYTES));
        let iotlb_end = iotlb.saturating_add(16);
        let fixed_end = match config.ecap.contains(Ecap::PRS) {
            true => offset::PAGE_REQUEST_END,
            false => offset::COMMON_END,
        };
        if faults < fixed_end || iotlb < fixed_end || (faults < iotlb_end && iotlb < faults_end) {
            return Err(Error::Invalid(InvalidReason::Configuration));
        }
        let bytes = faults_end.max(iotlb_end).next_multiple_of(FRAME_BYTES as usize);
        Ok(Self { faults, iotlb, bytes })
    }
}

/// What GCMD asks for and the unit has not done yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Commands {
    /// One shots: RTP, IRTP, WBF.
    pub(super) once: Global,
    /// What the others are to be.
    pub(super) levels: Global,
}

/// Which bits of GCMD are no one shots.
const LEVELS: Global = Global::TE.union(Global::QIE).union(Global::IRE).union(Global::CFI);

/// Registers that hold what was written.
pub(super) struct Registers {
    config: DeviceConfig,
    pub(super) places: Places,
    /// GSTS.
    pub(super) status: Global,
    pub(super) commands: Commands,
    /// RTADDR, and what SRTP took over of it.
    root: u64,
    pub(super) latched_root: u64,
    /// IRTA, and what SIRTP took over of it.
    interrupt_table: u64,
    pub(super) latched_interrupt_table: u64,
    /// CCMD, IVA and IOTLB.
    pub(super) context_command: u64,
    pub(super) invalidate_address: u64,
    pub(super) iotlb_command: u64,
    /// PMEN and its regions, which are PLM and PHM.
    pub(super) protected: u32,
    low_region: [u64; 2],
    high_region: [u64; 2],
    /// IQH, IQT, IQA.
    pub(super) queue_head: u32,
    pub(super) queue_tail: u32,
    pub(super) queue_address: u64,
    /// ICS and its interrupt.
    pub(super) completion: u32,
    pub(super) completion_event: Event,
    /// IQERCD.
    pub(super) queue_error: u64,
    /// PQH, PQT, PQA, PRS and its interrupt.
    pub(super) page_head: u32,
    pub(super) page_tail: u32,
    pub(super) page_address: u64,
    pub(super) page_status: PageRequestStatus,
    pub(super) page_event: Event,
}

impl Registers {
    /// As after a reset.
    pub(super) const fn new(config: DeviceConfig, places: Places) -> Self {
        Self {
            config,
            places,
            status: Global::empty(),
            commands: Commands { once: Global::empty(), levels: Global::empty() },
            root: 0,
            latched_root: 0,
            interrupt_table: 0,
            latched_interrupt_table: 0,
            context_command: 0,
            invalidate_address: 0,
            iotlb_command: 0,
            protected: 0,
            low_region: [0; 2],
            high_region: [0; 2],
            queue_head: 0,
            queue_tail: 0,
            queue_address: 0,
            completion: 0,
            completion_event: Event::RESET,
            queue_error: 0,
            page_head: 0,
            page_tail: 0,
            page_address: 0,
            page_status: PageRequestStatus::empty(),
            page_event: Event::RESET,
        }
    }

    /// TTM as taken over; `None` where the unit does not have that mode (RTA.1).
    pub(super) fn mode(&self) -> Option<TableMode> {
        let mode = TableMode::of_root_table_address(self.latched_root)?;
        let needs = match mode {
            TableMode::Legacy => Ecap::empty(),
            TableMode::Scalable => Ecap::SMTS,
            TableMode::AbortDma => Ecap::ADMS,
        };
        self.config.ecap.contains(needs).then_some(mode)
    }

    /// Takes over RTADDR.
    pub(super) const fn latch_root(&mut self) {
        self.latched_root = self.root;
    }

    /// Takes over IRTA.
    pub(super) const fn latch_interrupt_table(&mut self) {
        self.latched_interrupt_table = self.interrupt_table;
    }

    /// Whether CCMD asks for an invalidation.
    pub(super) const fn context_asked(&self) -> bool {
        self.context_command & INVALIDATE != 0
    }

    /// Whether the IOTLB register asks for an invalidation.
    pub(super) const fn iotlb_asked(&self) -> bool {
        self.iotlb_command & INVALIDATE != 0
    }

    /// CCMD is done: ICC clears, CAIG tells the granularity.
    pub(super) const fn finish_context(&mut self, granularity: u64) {
        self.context_command = self.context_command & !(INVALIDATE | 3 << 59) | granularity << 59;
    }

    /// The IOTLB register is done: IVT clears, IAIG tells the granularity.
    pub(super) const fn finish_iotlb(&mut self, granularity: u64) {
        self.iotlb_command = self.iotlb_command & !(INVALIDATE | 3 << 57) | granularity << 57;
    }

    /// Whether protected memory is to be what it is not yet.
    pub(super) const fn protection_asked(&self) -> bool {
        (self.protected & PMEN_EPM != 0) != (self.protected & PMEN_PRS != 0)
    }

    /// PRS follows EPM.
    pub(super) const fn follow_protection(&mut self) {
        self.protected ^= PMEN_PRS;
    }

    /// Whether this host-physical byte lies in protected memory (11.4.8).
    pub(super) const fn protects(&self, address: u64) -> bool {
        const fn within(region: [u64; 2], address: u64) -> bool {
            let [base, limit] = region;
            base <= address && address <= limit | PROTECTED_GRANULE
        }
        let cap = self.config.cap;
        self.protected & PMEN_PRS != 0
            && (cap.contains(Cap::PLMR) && self.is_region(self.low_region) && within(self.low_region, address)
                || cap.contains(Cap::PHMR) && self.is_region(self.high_region) && within(self.high_region, address))
    }

    /// A limit below the base disables the region.
    const fn is_region(&self, region: [u64; 2]) -> bool {
        let [base, limit] = region;
        base <= limit
    }

    fn has(&self, ecap: Ecap) -> bool {
        self.config.ecap.contains(ecap)
    }

    /// Reads the doubleword at `at`, a multiple of 4. What is reserved reads as zero.
    pub(super) fn read<P: Platform>(&self, at: usize, faults: &Faults<P>) -> u32 {
        let config = &self.config;
        match at {
            offset::VER => config.version,
            offset::GSTS => self.status.bits(),
            offset::FSTS => faults.status().bits(),
            offset::FECTL..=0x44 => faults.event.read(at.wrapping_sub(offset::FECTL) / 4),
            offset::PMEN => self.protected,
            offset::PLMBASE => self.low_region[0] as u32,
            offset::PLMLIMIT => self.low_region[1] as u32,
            offset::ICS => self.completion,
            offset::IECTL..=0xac if self.has(Ecap::QI) => {
                self.completion_event.read(at.wrapping_sub(offset::IECTL) / 4)
            }
            offset::IQH => self.queue_head,
            offset::IQT => self.queue_tail,
            offset::PQH if self.has(Ecap::PRS) => self.page_head,
            offset::PQT if self.has(Ecap::PRS) => self.page_tail,
            offset::PRS if self.has(Ecap::PRS) => self.page_status.bits(),
            offset::PECTL..=0xec if self.has(Ecap::PRS) => self.page_event.read(at.wrapping_sub(offset::PECTL) / 4),
            _ => half(self.quadword(at & !7).unwrap_or_else(|| self.elsewhere(at, faults)), at),
        }
    }

    /// A register of 64 bits at a fixed place.
    fn quadword(&self, at: usize) -> Option<u64> {
        match at {
            offset::CAP => Some(self.config.cap.bits()),
            offset::ECAP => Some(self.config.ecap.bits()),
            offset::RTADDR => Some(self.root),
            offset::CCMD => Some(self.context_command),
            offset::PHMBASE => Some(self.high_region[0]),
            offset::PHMLIMIT => Some(self.high_region[1]),
            offset::IQA => Some(self.queue_address),
            offset::IQERCD => Some(self.queue_error),
            offset::IRTA => Some(self.interrupt_table),
            offset::PQA if self.has(Ecap::PRS) => Some(self.page_address),
            _ => None,
        }
    }

    /// The registers whose place varies: the quadword that holds the doubleword at `at`.
    fn elsewhere<P: Platform>(&self, at: usize, faults: &Faults<P>) -> u64 {
        if let Some(offset) = at.checked_sub(self.places.faults)
            && offset < faults.bytes()
        {
            let doubleword = u64::from(faults.read(offset));
            return doubleword | doubleword << 32;
        }
        // IVA is write-only.
        if at & !7 == self.places.iotlb.wrapping_add(8) { self.iotlb_command } else { 0 }
    }

    /// Writes the doubleword at `at`, a multiple of 4. What is reserved or read-only is ignored.
    pub(super) fn write<P: Platform>(&mut self, at: usize, value: u32, faults: &mut Faults<P>) {
        let upper = if self.has(Ecap::EIM) { UpperAddress::Present } else { UpperAddress::Reserved };
        match at {
            offset::GCMD => self.command(Global::from_bits_retain(value)),
            offset::FSTS => faults.write_status(value),
            offset::FECTL..=0x44 => faults.event.write(at.wrapping_sub(offset::FECTL) / 4, value, upper),
            offset::RTADDR | 0x24 => {
                let mut root = self.root;
                set_half(&mut root, at, value);
                let enable = if self.has(Ecap::SSIRWS) { 1 << 7 } else { 0 };
                self.root = root & (!0xfff | 3 << 10 | enable);
            }
            // While a request is pending its register is the unit's (6.9).
            offset::CCMD | 0x2c if !self.context_asked() => {
                let mut command = self.context_command;
                set_half(&mut command, at, value);
                let granularity = self.context_command & 3 << 59;
                // Only the write of the upper half asks for something, and CAIG is read-only.
                let asks = if at == offset::CCMD { 0 } else { command & INVALIDATE };
                self.context_command = command & 0x6000_0003_ffff_ffff | granularity | asks;
            }
            offset::PMEN if self.config.cap.intersects(Cap::PLMR.union(Cap::PHMR)) => {
                self.protected = value & PMEN_EPM | self.protected & PMEN_PRS;
            }
            offset::PLMBASE..=0x7c if self.protected & PMEN_PRS == 0 => self.write_region(at, value),
            offset::IQT..=offset::IRTA | 0xbc => self.write_queue(at, value, upper),
            offset::PQH..=0xec if self.has(Ecap::PRS) => self.write_page_requests(at, value, upper),
            _ => self.write_elsewhere(at, value, faults),
        }
    }

    /// GCMD is written: one shots add up, the others are as written last.
    fn command(&mut self, value: Global) {
        let mut levels = Global::TE;
        levels.set(Global::QIE, self.has(Ecap::QI));
        levels.set(Global::IRE | Global::CFI, self.has(Ecap::IR));
        self.commands.levels = value & levels & LEVELS;
        if value.contains(Global::RTP) {
            self.status.remove(Global::RTP);
            self.commands.once.insert(Global::RTP);
        }
        if value.contains(Global::IRTP) && self.has(Ecap::IR) {
            self.status.remove(Global::IRTP);
            self.commands.once.insert(Global::IRTP);
        }
        if value.contains(Global::WBF) && self.config.cap.contains(Cap::RWBF) {
            self.status.insert(Global::WBF);
            self.commands.once.insert(Global::WBF);
        }
    }

    /// PLM and PHM.
    fn write_region(&mut self, at: usize, value: u32) {
        let (region, present) = match at {
            offset::PLMBASE | offset::PLMLIMIT => (&mut self.low_region, Cap::PLMR),
            _ => (&mut self.high_region, Cap::PHMR),
        };
        if !self.config.cap.contains(present) {
            return;
        }
        let [base, limit] = region;
        match at {
            offset::PLMBASE => *base = u64::from(value) & !PROTECTED_GRANULE,
            offset::PLMLIMIT => *limit = u64::from(value) & !PROTECTED_GRANULE,
            _ => {
                let half_of = if at & !7 == offset::PHMBASE { base } else { limit };
                set_half(half_of, at, value);
                *half_of &= !PROTECTED_GRANULE;
            }
        }
    }

    /// IQT to IRTA.
    fn write_queue(&mut self, at: usize, value: u32, upper: UpperAddress) {
        if at & !7 == offset::IRTA {
            if self.has(Ecap::IR) {
                set_half(&mut self.interrupt_table, at, value);
                let extended = if self.has(Ecap::EIM) { 1 << 11 } else { 0 };
                self.interrupt_table &= !0xfff | extended | 0xf;
            }
            return;
        }
        if !self.has(Ecap::QI) {
            return;
        }
        match at {
            offset::IQT => self.queue_tail = value & QUEUE_OFFSET,
            offset::IQA | 0x94 => {
                set_half(&mut self.queue_address, at, value);
                self.queue_address &= !0xfff | 1 << 11 | 7;
            }
            offset::ICS if value & ICS_IWC != 0 => {
                self.completion = 0;
                self.completion_event.settle();
            }
            offset::IECTL..=0xac => self.completion_event.write(at.wrapping_sub(offset::IECTL) / 4, value, upper),
            _ => {}
        }
    }

    /// PQH to PEUADDR.
    fn write_page_requests(&mut self, at: usize, value: u32, upper: UpperAddress) {
        match at {
            offset::PQH => self.page_head = value & PAGE_QUEUE_OFFSET,
            offset::PQT => self.page_tail = value & PAGE_QUEUE_OFFSET,
            offset::PQA | 0xd4 => {
                set_half(&mut self.page_address, at, value);
                self.page_address &= !0xfff | 7;
            }
            offset::PRS => {
                self.page_status.remove(PageRequestStatus::from_bits_truncate(value));
                if self.page_status.is_empty() {
                    self.page_event.settle();
                }
            }
            offset::PECTL..=0xec => self.page_event.write(at.wrapping_sub(offset::PECTL) / 4, value, upper),
            _ => {}
        }
    }

    /// The registers whose place varies.
    fn write_elsewhere<P: Platform>(&mut self, at: usize, value: u32, faults: &mut Faults<P>) {
        if let Some(offset) = at.checked_sub(self.places.faults)
            && offset < faults.bytes()
        {
            return faults.write(offset, value);
        }
        if self.iotlb_asked() {
            return;
        }
        match at.wrapping_sub(self.places.iotlb) {
            0 | 4 => set_half(&mut self.invalidate_address, at, value),
            8 | 12 => {
                let mut command = self.iotlb_command;
                set_half(&mut command, at, value);
                let granularity = self.iotlb_command & 3 << 57;
                let asks = if at & 4 == 0 { 0 } else { command & INVALIDATE };
                self.iotlb_command = command & 0x3003_ffff_0000_0000 | granularity | asks;
            }
            _ => {}
        }
    }
}
