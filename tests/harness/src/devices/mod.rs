//! PCI functions that do DMA when a test says so.
//!
//! Every engine can copy from one IOVA to another and make a single access of 4 bytes. The rest is
//! made of these: to write given bytes at an IOVA, they are put into the device's [`Workspace`], a
//! piece of guest RAM, and copied from there. **With translation on, a test maps the workspace** in
//! the domain of the device, readable and writable, where [`DmaDevice::workspace`] says:
//!
//! - `lsi` fetches its script from the workspace, so it does nothing at all without;
//! - `edu` needs it for [`dma_write`](DmaDevice::dma_write) and [`dma_read`](DmaDevice::dma_read)
//!   only.

pub(crate) mod edu;
mod engine;
pub(crate) mod lsi;

use std::fmt;
use std::sync::Arc;

use iommu::{Iova, PciAddress, PhysAddr, SourceId};

pub use edu::Edu;
pub use engine::{CopyEngine, PciEngine};
pub use lsi::Lsi;

use crate::error::Result;
use crate::model::DeviceTlb;

/// What [`DmaDevice::poke`] writes, in the order of its bytes in memory.
pub const POKE: [u8; 4] = *b"POKE";

/// What [`DmaDevice::dma_read`] gives for bytes that never arrived in the workspace.
pub const NOT_READ: u8 = 0xee;

/// What a device does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

/// What the device says of a transfer. No engine notices that the IOMMU stopped it: whether it
/// arrived is seen in memory, and why not in the unit's fault records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum DmaOutcome {
    /// The device believes that it did the whole transfer.
    Done,
    /// The device could not even fetch its script from the workspace, so it tried nothing else.
    NoScript,
}

/// A piece of guest RAM that a device works with, and where the device finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workspace {
    /// Where the device looks for it. At first that is its physical address.
    pub iova: Iova,
    /// Where it is; aligned to its size.
    pub phys: PhysAddr,
    /// Its length in bytes, a multiple of 4096.
    pub bytes: u64,
}

/// A PCI function that does DMA when told. Its calls exclude each other; several devices run at once.
///
/// Errors are those of the harness ([`Error::Transfer`](crate::Error::Transfer) for what the device
/// cannot express, and whatever a lost machine gives), never of the IOMMU.
pub trait DmaDevice: Send + Sync + fmt::Debug {
    /// The name that the test gave it.
    fn name(&self) -> &str;

    /// What it is: `"edu"`, `"lsi"`.
    fn kind(&self) -> &'static str;

    /// Where it is in configuration space.
    fn address(&self) -> PciAddress;

    /// Who the IOMMU takes its requests to come from. Behind some bridges that is not
    /// [`address`](Self::address).
    fn requester(&self) -> SourceId;

    /// The highest IOVA that it can emit.
    fn last_iova(&self) -> Iova;

    /// Its workspace.
    fn workspace(&self) -> Workspace;

    /// From now on the device looks for its workspace at `iova`, a multiple of 4096.
    fn place_workspace(&self, iova: Iova);

    /// Copies `bytes` bytes from one IOVA to another, any alignment. The device reads a piece and
    /// writes it before it reads the next one.
    ///
    /// # Errors
    /// See the trait.
    fn copy(&self, from: Iova, to: Iova, bytes: usize) -> Result<DmaOutcome>;

    /// One access of 4 bytes at `iova`, a multiple of 4, and apart from the script no other. Writes
    /// [`POKE`]; what it reads is lost. An access that is stopped gives exactly one fault.
    ///
    /// # Errors
    /// See the trait.
    fn poke(&self, iova: Iova, access: Access) -> Result<DmaOutcome>;

    /// Has the device write `data` at `iova`.
    ///
    /// # Errors
    /// See the trait.
    fn dma_write(&self, iova: Iova, data: &[u8]) -> Result<DmaOutcome>;

    /// Has the device read `bytes` bytes at `iova` and gives what arrived. Where the IOMMU stopped
    /// it that is zeros, older contents of the device, or [`NOT_READ`].
    ///
    /// # Errors
    /// See the trait.
    fn dma_read(&self, iova: Iova, bytes: usize) -> Result<Vec<u8>>;

    /// Its device-TLB, if the options gave it one ([`Node::ats`](crate::Node::ats)).
    fn device_tlb(&self) -> Option<Arc<DeviceTlb>> {
        None
    }
}
