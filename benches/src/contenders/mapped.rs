//! `MappedPageTable` of the `x86_64` crate: a page a call, no undo, no atomics, never frees a table.

use x86_64::structures::paging::mapper::PageTableFrameMapping;
use x86_64::structures::paging::{
    FrameAllocator, MappedPageTable, Mapper, Page, PageSize, PageTable, PageTableFlags, PhysFrame, Size1GiB, Size2MiB,
    Size4KiB, Translate,
};
use x86_64::{PhysAddr, VirtAddr};

use super::Contender;
use crate::pool;

struct Identity;

// SAFETY: the pool's physical addresses are virtual ones.
unsafe impl PageTableFrameMapping for Identity {
    #[inline]
    fn frame_to_pointer(&self, frame: PhysFrame) -> *mut PageTable {
        frame.start_address().as_u64() as *mut PageTable
    }
}

struct Frames;

// SAFETY: the pool gives each frame once.
unsafe impl FrameAllocator<Size4KiB> for Frames {
    #[inline]
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        pool::alloc().map(|frame| PhysFrame::containing_address(PhysAddr::new(frame)))
    }
}

pub(crate) struct Mapped(MappedPageTable<'static, Identity>);

impl Mapped {
    pub(crate) fn new() -> Self {
        let root = pool::alloc().expect("a frame") as *mut PageTable;
        // SAFETY: a frame of the pool, used for nothing else until the pool is reset, which is after
        // the last use of this value.
        Self(unsafe { MappedPageTable::new(&mut *root, Identity) })
    }

    #[inline(always)]
    fn map_pages<S: PageSize + std::fmt::Debug>(&mut self, iova: u64, phys: u64, bytes: u64)
    where
        MappedPageTable<'static, Identity>: Mapper<S>,
    {
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::USER_ACCESSIBLE;
        for offset in (0..bytes).step_by(S::SIZE as usize) {
            let page = Page::<S>::containing_address(VirtAddr::new_truncate(iova + offset));
            let frame = PhysFrame::containing_address(PhysAddr::new_truncate(phys + offset));
            // SAFETY: no processor uses these tables.
            unsafe { self.0.map_to(page, frame, flags, &mut Frames) }.expect("not mapped yet").ignore();
        }
    }

    #[inline(always)]
    fn unmap_pages<S: PageSize>(&mut self, iova: u64, bytes: u64)
    where
        MappedPageTable<'static, Identity>: Mapper<S>,
    {
        for offset in (0..bytes).step_by(S::SIZE as usize) {
            let page = Page::<S>::containing_address(VirtAddr::new_truncate(iova + offset));
            self.0.unmap(page).expect("mapped").1.ignore();
        }
    }
}

impl Contender for Mapped {
    fn map(&mut self, iova: u64, phys: u64, bytes: u64, page: u64) {
        match page {
            Size4KiB::SIZE => self.map_pages::<Size4KiB>(iova, phys, bytes),
            Size2MiB::SIZE => self.map_pages::<Size2MiB>(iova, phys, bytes),
            _ => self.map_pages::<Size1GiB>(iova, phys, bytes),
        }
    }

    fn unmap(&mut self, iova: u64, bytes: u64, page: u64) {
        match page {
            Size4KiB::SIZE => self.unmap_pages::<Size4KiB>(iova, bytes),
            Size2MiB::SIZE => self.unmap_pages::<Size2MiB>(iova, bytes),
            _ => self.unmap_pages::<Size1GiB>(iova, bytes),
        }
    }

    fn iova_to_phys(&mut self, iova: u64) -> Option<u64> {
        self.0.translate_addr(VirtAddr::new_truncate(iova)).map(PhysAddr::as_u64)
    }
}
