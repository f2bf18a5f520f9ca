//! What all engines share: a place, a workspace, one transfer at a time.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use iommu::{Iova, PciAddress, PhysAddr, SourceId};

use super::{Access, DmaDevice, DmaOutcome, NOT_READ, Workspace};
use crate::error::{Error, Result};
use crate::frames::FramePool;
use crate::model::DeviceTlb;
use crate::ram::GuestRam;

/// The order of a workspace, in frames.
const WORKSPACE_ORDER: u8 = 4;
/// Bytes of a workspace.
const WORKSPACE_BYTES: u64 = 4096 << WORKSPACE_ORDER;
/// Where the bounce buffer begins; before it is room for a script.
const BOUNCE: u64 = 4096;

/// What one kind of engine does. [`PciEngine`] makes a [`DmaDevice`] of it.
pub trait CopyEngine: Send + 'static {
    /// What it is called.
    const KIND: &'static str;
    /// The highest IOVA that it can emit.
    const LAST_IOVA: Iova;
    /// The most bytes that [`copy`](Self::copy) takes at once.
    const MAX_BYTES: usize;

    /// Copies up to [`MAX_BYTES`](Self::MAX_BYTES) bytes. The first 4096 bytes of `workspace`, which
    /// lies in `ram`, are for a script.
    ///
    /// # Errors
    /// What a lost machine gives.
    fn copy(&mut self, ram: &GuestRam, workspace: &Workspace, from: Iova, to: Iova, bytes: usize)
    -> Result<DmaOutcome>;

    /// One aligned access of 4 bytes; see [`DmaDevice::poke`].
    ///
    /// # Errors
    /// What a lost machine gives.
    fn poke(&mut self, ram: &GuestRam, workspace: &Workspace, iova: Iova, access: Access) -> Result<DmaOutcome>;

    /// See [`DmaDevice::device_tlb`].
    fn device_tlb(&self) -> Option<Arc<DeviceTlb>> {
        None
    }
}

/// A PCI function with an engine.
pub struct PciEngine<E> {
    name: String,
    address: PciAddress,
    requester: SourceId,
    pool: Arc<FramePool>,
    phys: PhysAddr,
    state: Mutex<State<E>>,
}

struct State<E> {
    engine: E,
    workspace: Iova,
}

impl<E: CopyEngine> PciEngine<E> {
    /// The function at `address`, whose requests the IOMMU sees as coming from `requester`. Its
    /// workspace is taken from `pool`; `engine` is made once that is known.
    ///
    /// # Errors
    /// [`Error::OutOfRam`] without room for the workspace, and those of `engine`.
    pub fn new(
        name: &str,
        address: PciAddress,
        requester: SourceId,
        pool: Arc<FramePool>,
        engine: impl FnOnce(&GuestRam, &Workspace) -> Result<E>,
    ) -> Result<Self> {
        // Every engine reaches the first 4 GiB.
        let phys = pool.alloc(WORKSPACE_ORDER, PhysAddr::new(u64::from(u32::MAX)));
        let phys = phys.ok_or(Error::OutOfRam { bytes: WORKSPACE_BYTES })?;
        let iova = Iova::new(phys.as_u64());
        let engine = engine(pool.ram(), &Workspace { iova, phys, bytes: WORKSPACE_BYTES })?;
        let state = Mutex::new(State { engine, workspace: iova });
        Ok(Self { name: name.to_owned(), address, requester, pool, phys, state })
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn workspace_at(&self, iova: Iova) -> Workspace {
        Workspace { iova, phys: self.phys, bytes: WORKSPACE_BYTES }
    }

    fn check(&self, iova: Iova, bytes: usize) -> Result<()> {
        let last = iova.checked_add((bytes as u64).saturating_sub(1));
        if last.is_some_and(|last| last <= E::LAST_IOVA) {
            return Ok(());
        }
        Err(Error::Transfer { device: self.name.clone(), why: "an address is beyond what the device can emit" })
    }

    fn copy_locked(&self, state: &mut State<E>, from: Iova, to: Iova, bytes: usize) -> Result<DmaOutcome> {
        self.check(from, bytes)?;
        self.check(to, bytes)?;
        let workspace = self.workspace_at(state.workspace);
        for done in (0..bytes).step_by(E::MAX_BYTES) {
            let at = |start: Iova| Iova::new(start.as_u64() + done as u64);
            let some = (bytes - done).min(E::MAX_BYTES);
            let outcome = state.engine.copy(self.pool.ram(), &workspace, at(from), at(to), some)?;
            if outcome != DmaOutcome::Done {
                return Ok(outcome);
            }
        }
        Ok(DmaOutcome::Done)
    }

    /// The bounce buffer: where it is, and where the device finds it.
    fn bounce(&self, state: &State<E>) -> (PhysAddr, Iova) {
        (PhysAddr::new(self.phys.as_u64() + BOUNCE), Iova::new(state.workspace.as_u64() + BOUNCE))
    }
}

/// The pieces of `bytes` bytes at `iova` that fit into the bounce buffer.
fn pieces(iova: Iova, bytes: usize) -> impl Iterator<Item = Result<(Iova, std::ops::Range<usize>)>> {
    let step = (WORKSPACE_BYTES - BOUNCE) as usize;
    (0..bytes).step_by(step).map(move |start| {
        let at = iova.checked_add(start as u64).ok_or(Error::OutOfRam { bytes: bytes as u64 })?;
        Ok((at, start..(start + step).min(bytes)))
    })
}

impl<E: CopyEngine> DmaDevice for PciEngine<E> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        E::KIND
    }

    fn address(&self) -> PciAddress {
        self.address
    }

    fn requester(&self) -> SourceId {
        self.requester
    }

    fn last_iova(&self) -> Iova {
        E::LAST_IOVA
    }

    fn workspace(&self) -> Workspace {
        self.workspace_at(self.lock().workspace)
    }

    fn place_workspace(&self, iova: Iova) {
        self.lock().workspace = iova;
    }

    fn copy(&self, from: Iova, to: Iova, bytes: usize) -> Result<DmaOutcome> {
        self.copy_locked(&mut self.lock(), from, to, bytes)
    }

    fn poke(&self, iova: Iova, access: Access) -> Result<DmaOutcome> {
        self.check(iova, 4)?;
        if !iova.is_aligned(4) {
            return Err(Error::Transfer { device: self.name.clone(), why: "a poke is aligned to 4 bytes" });
        }
        let mut state = self.lock();
        let workspace = self.workspace_at(state.workspace);
        state.engine.poke(self.pool.ram(), &workspace, iova, access)
    }

    fn dma_write(&self, iova: Iova, data: &[u8]) -> Result<DmaOutcome> {
        let mut state = self.lock();
        let (phys, bounce) = self.bounce(&state);
        for piece in pieces(iova, data.len()) {
            let (to, part) = piece?;
            self.pool.ram().write(phys, &data[part.clone()]);
            let outcome = self.copy_locked(&mut state, bounce, to, part.len())?;
            if outcome != DmaOutcome::Done {
                return Ok(outcome);
            }
        }
        Ok(DmaOutcome::Done)
    }

    fn dma_read(&self, iova: Iova, bytes: usize) -> Result<Vec<u8>> {
        let mut state = self.lock();
        let (phys, bounce) = self.bounce(&state);
        let mut read = vec![NOT_READ; bytes];
        for piece in pieces(iova, bytes) {
            let (from, part) = piece?;
            self.pool.ram().fill(phys, part.len(), NOT_READ);
            let outcome = self.copy_locked(&mut state, from, bounce, part.len())?;
            self.pool.ram().read(phys, &mut read[part]);
            if outcome != DmaOutcome::Done {
                break;
            }
        }
        Ok(read)
    }

    fn device_tlb(&self) -> Option<Arc<DeviceTlb>> {
        self.lock().engine.device_tlb()
    }
}

impl<E> Drop for PciEngine<E> {
    fn drop(&mut self) {
        self.pool.free(self.phys, WORKSPACE_ORDER);
    }
}

impl<E> fmt::Debug for PciEngine<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}
