//! The engines of the model: objects that do what QEMU's devices of the same names do.

use std::sync::Arc;

use iommu::bus::{AddressType, Translation};
use iommu::{Iova, PciAddress, PhysAddr};

use super::device_tlb::{DeviceTlb, permits};
use super::system::System;
use super::unit::DeviceRequest;
use crate::devices::lsi::{INTERRUPT, LOAD_SCRATCH, MEMORY_MOVE, STORE_SCRATCH};
use crate::devices::{Access, CopyEngine, DmaOutcome, POKE, Workspace};
use crate::error::Result;
use crate::ram::GuestRam;

/// What a request may not pass.
const PAGE: u64 = 4096;
/// Bytes that either engine takes between reading and writing.
const CHUNK: usize = 4096;

/// A function's way to memory.
pub(super) struct Port {
    pub(super) system: Arc<System>,
    pub(super) address: PciAddress,
    /// The id under which its requests arrive at the root.
    pub(super) source: u16,
    pub(super) tlb: Option<Arc<DeviceTlb>>,
}

/// A part of a transfer was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stopped;

impl Port {
    /// Reads page by page. What is stopped reads as zeros, and does not stop the rest.
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Stopped> {
        let mut all = Ok(());
        for (at, part) in pages(iova, into.len()) {
            let into = &mut into[part];
            match self.place(at, Access::Read) {
                Some(phys) => self.system.memory().read(phys, into),
                None => {
                    into.fill(0);
                    all = Err(Stopped);
                }
            }
        }
        all
    }

    /// Writes page by page. What is stopped is lost, and does not stop the rest.
    fn write(&self, iova: u64, bytes: &[u8]) -> Result<(), Stopped> {
        let mut all = Ok(());
        for (at, part) in pages(iova, bytes.len()) {
            let bytes = &bytes[part];
            if self.system.take_message(self, at, bytes) {
                continue;
            }
            match self.place(at, Access::Write) {
                Some(phys) => self.system.deliver(phys, bytes),
                None => all = Err(Stopped),
            }
        }
        all
    }

    /// Where one request of the device arrives.
    fn place(&self, iova: u64, access: Access) -> Option<PhysAddr> {
        if !self.is_master() {
            return None;
        }
        let Some(tlb) = self.tlb.as_ref().filter(|_| self.system.config().ats_is_enabled(self.address)) else {
            return self.ask(iova, access, AddressType::Untranslated).map(|answer| answer.phys);
        };
        let known = tlb.find(Iova::new(iova), access);
        let phys = known.or_else(|| {
            let asked = tlb.now();
            let answer = self.ask(iova, access, AddressType::TranslationRequest)?;
            tlb.insert(asked, Iova::new(iova), &answer);
            permits(answer.prot, access).then_some(answer.phys)
        });
        match phys {
            Some(phys) => self.ask(phys.as_u64(), access, AddressType::Translated).map(|answer| answer.phys),
            // A device that is refused a translation may try without (PCIe 10.2.3.5); the unit then tells why.
            None => self.ask(iova, access, AddressType::Untranslated).map(|answer| answer.phys),
        }
    }

    fn ask(&self, address: u64, access: Access, address_type: AddressType) -> Option<Translation> {
        self.system.translate(&DeviceRequest { source: self.source, address, access, address_type })
    }

    /// Whether what the device sends leaves it, and the bridges above.
    pub(super) fn is_master(&self) -> bool {
        self.system.config().reaches_root(self.address)
    }
}

/// The pieces of `bytes` bytes at `iova` that lie in one page each.
fn pages(iova: u64, bytes: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let start = done;
        let at = iova + start as u64;
        done = bytes.min(start + (PAGE - at % PAGE) as usize);
        (start < bytes).then_some((at, start..done))
    })
}

/// An engine that moves bytes through a buffer of its own.
pub(super) struct ModelEdu {
    port: Port,
}

impl ModelEdu {
    pub(super) fn new(port: Port) -> Self {
        Self { port }
    }
}

impl CopyEngine for ModelEdu {
    const KIND: &'static str = "edu";
    const LAST_IOVA: Iova = Iova::new(u64::MAX);
    const MAX_BYTES: usize = 2048;

    fn copy(&mut self, _: &GuestRam, _: &Workspace, from: Iova, to: Iova, bytes: usize) -> Result<DmaOutcome> {
        self.port.system.memory().told();
        move_bytes(&self.port, from.as_u64(), to.as_u64(), bytes);
        Ok(DmaOutcome::Done)
    }

    fn poke(&mut self, _: &GuestRam, _: &Workspace, iova: Iova, access: Access) -> Result<DmaOutcome> {
        self.port.system.memory().told();
        // Nobody tells the device what became of it.
        let _ = match access {
            Access::Read => self.port.read(iova.as_u64(), &mut [0; 4]),
            Access::Write => self.port.write(iova.as_u64(), &POKE),
        };
        Ok(DmaOutcome::Done)
    }

    fn device_tlb(&self) -> Option<Arc<DeviceTlb>> {
        self.port.tlb.clone()
    }
}

/// A script processor that fetches its script from the workspace.
pub(super) struct ModelLsi {
    port: Port,
    scratch: [u8; 4],
}

impl ModelLsi {
    pub(super) fn new(port: Port) -> Self {
        Self { port, scratch: [0; 4] }
    }

    fn run(&mut self, ram: &GuestRam, workspace: &Workspace, script: [u32; 5]) -> DmaOutcome {
        let bytes: Vec<u8> = script.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.write(workspace.phys, &bytes);
        self.port.system.memory().told();
        match self.interpret(workspace.iova.as_u64()) {
            Some(()) => DmaOutcome::Done,
            None => DmaOutcome::NoScript,
        }
    }

    /// Runs the script at `at` up to its end. `None` when it cannot be fetched, or is none.
    fn interpret(&mut self, mut at: u64) -> Option<()> {
        loop {
            let instruction = self.fetch(&mut at)?;
            let operand = u64::from(self.fetch(&mut at)?);
            match instruction {
                INTERRUPT => return Some(()),
                STORE_SCRATCH => drop(self.port.write(operand, &self.scratch)),
                LOAD_SCRATCH => drop(self.port.read(operand, &mut self.scratch)),
                _ if instruction & !0xff_ffff == MEMORY_MOVE => {
                    let to = u64::from(self.fetch(&mut at)?);
                    move_bytes(&self.port, operand, to, (instruction & 0xff_ffff) as usize);
                }
                _ => return None,
            }
        }
    }

    fn fetch(&self, at: &mut u64) -> Option<u32> {
        let mut word = [0; 4];
        self.port.read(*at, &mut word).ok()?;
        *at += 4;
        Some(u32::from_le_bytes(word))
    }
}

impl CopyEngine for ModelLsi {
    const KIND: &'static str = "lsi";
    const LAST_IOVA: Iova = Iova::new(u32::MAX as u64);
    const MAX_BYTES: usize = (1 << 24) - 1;

    fn copy(&mut self, ram: &GuestRam, space: &Workspace, from: Iova, to: Iova, bytes: usize) -> Result<DmaOutcome> {
        let [from, to] = [from, to].map(|iova| iova.as_u64() as u32);
        Ok(self.run(ram, space, [MEMORY_MOVE | bytes as u32, from, to, INTERRUPT, 0]))
    }

    fn poke(&mut self, ram: &GuestRam, space: &Workspace, iova: Iova, access: Access) -> Result<DmaOutcome> {
        let instruction = match access {
            Access::Read => LOAD_SCRATCH,
            Access::Write => {
                self.scratch = POKE;
                STORE_SCRATCH
            }
        };
        Ok(self.run(ram, space, [instruction, iova.as_u64() as u32, INTERRUPT, 0, 0]))
    }

    fn device_tlb(&self) -> Option<Arc<DeviceTlb>> {
        self.port.tlb.clone()
    }
}

fn move_bytes(port: &Port, from: u64, to: u64, bytes: usize) {
    let mut buffer = [0; CHUNK];
    for done in (0..bytes).step_by(CHUNK) {
        let piece = &mut buffer[..(bytes - done).min(CHUNK)];
        // The engines do not notice that they were stopped.
        let _ = port.read(from + done as u64, piece);
        let _ = port.write(to + done as u64, piece);
    }
}

#[cfg(test)]
mod tests {
    use super::pages;

    #[test]
    fn requests_end_at_pages() {
        assert_eq!(pages(0xffe, 4).collect::<Vec<_>>(), [(0xffe, 0..2), (0x1000, 2..4)]);
        assert_eq!(pages(0x1000, 4096).count(), 1);
        assert_eq!(pages(0x1001, 4096).count(), 2);
        assert_eq!(pages(5, 0).count(), 0);
    }
}
