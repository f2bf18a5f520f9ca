//! This crate's page table alone, without the domain above it.

use iommu::pgtable::{Config, Format, PageSizes, PageTable, TableList};
use iommu::{Iova, IovaRange, PhysAddr, Prot};

use super::Contender;
use crate::pool::Frames;

pub(crate) struct Engine<F: Format>(PageTable<F, Frames>);

impl<F: Format> Engine<F> {
    /// With four levels, which is 48 bits in all of these formats.
    pub(crate) fn new(format: F) -> Self {
        Self(PageTable::new(Frames, format, Config::new::<F>(4)).expect("a frame"))
    }
}

impl<F: Format> Contender for Engine<F> {
    fn map(&mut self, iova: u64, phys: u64, bytes: u64, page: u64) {
        let range = IovaRange::from_len(Iova::new(iova), bytes).expect("a range");
        let mut stray = TableList::new();
        // SAFETY: no device uses the table, and this is the only thread.
        unsafe { self.0.map(range, PhysAddr::new(phys), Prot::RW, PageSizes::from_bits(page), &mut stray) }
            .expect("not mapped yet");
        assert!(stray.is_empty());
    }

    fn unmap(&mut self, iova: u64, bytes: u64, _page: u64) {
        let range = IovaRange::from_len(Iova::new(iova), bytes).expect("a range");
        let mut stray = TableList::new();
        // SAFETY: no device uses the table, and this is the only thread; so nothing needs to be
        // invalidated before the tables are freed.
        unsafe {
            self.0.unmap(range, &mut stray).expect("whole pages");
            self.0.free(stray);
        }
    }

    fn iova_to_phys(&mut self, iova: u64) -> Option<u64> {
        // SAFETY: this is the only thread.
        unsafe { self.0.iova_to_phys_unregistered(Iova::new(iova)) }.map(PhysAddr::as_u64)
    }
}
