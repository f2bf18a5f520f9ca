//! Pages of memory that a device may be let at.

use iommu::PhysAddr;
use iommu::hwmem::FrameTable;

use crate::edu::DMA_BYTES;
use crate::failure::Failure;
use crate::platform::Kernel;

/// A page, given back to the kernel when it is dropped. Whoever lent it to a device owes the unmap
/// before.
pub struct Page(FrameTable<Kernel>);

impl Page {
    /// A page full of `pattern`.
    pub fn filled(kernel: Kernel, pattern: u64) -> Result<Self, Failure> {
        let page = Self(FrameTable::new(kernel, 0, PhysAddr::new(u64::MAX))?);
        page.fill(pattern);
        Ok(page)
    }

    /// Where it lies.
    pub fn phys(&self) -> PhysAddr {
        self.0.phys()
    }

    /// Writes `pattern` to all of it.
    pub fn fill(&self, pattern: u64) {
        self.0.view().entries(0, usize::MAX).iter().for_each(|word| word.store(pattern));
    }

    /// Whether the part that one DMA reaches is full of `pattern`.
    pub fn holds(&self, pattern: u64) -> bool {
        let words = DMA_BYTES as usize / size_of::<u64>();
        self.0.view().entries(0, words).iter().all(|word| word.load() == pattern)
    }
}
