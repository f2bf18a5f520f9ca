//! Giving stray tables back: freed at once, or parked while a reader may be inside.
//!
//! A reader registers, fences, then reads entries. Whoever frees has cleared the entries, fences,
//! then reads the count of readers. So one of them sees the other: either the list is parked, or the
//! reader finds nothing that leads to it. The last reader that leaves takes the parked lists and
//! frees them by the same rule, since a new reader may have come meanwhile.

use super::list::TableList;
use super::table::Kind;
use super::{Format, PageTable};
use crate::addr::PhysAddr;
use crate::hwmem::Table;
use crate::platform::Platform;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

/// Kept apart from what the hot paths read.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Reclaim {
    readers: AtomicUsize,
    /// Link to the first parked table, or zero.
    parked: AtomicU64,
}

impl Reclaim {
    pub(super) fn new() -> Self {
        Self { readers: AtomicUsize::new(0), parked: AtomicU64::new(0) }
    }
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// Frees the tables in `stray` and all tables below them, now or, if readers are registered, when
    /// the last of them leaves.
    ///
    /// # Safety
    /// The list was filled by operations on this page table, and since then an invalidation of
    /// everything that they detached has completed on every unit and device that uses the table.
    pub unsafe fn free(&self, stray: TableList) {
        if stray.is_empty() {
            return;
        }
        fence(Ordering::SeqCst);
        if self.reclaim.readers.load(Ordering::Acquire) == 0 {
            // SAFETY: hardware is done with the tables (the caller), and so is every reader: none is
            // registered, and one that registers now sees that they are detached.
            unsafe { self.free_now(stray) };
        } else {
            self.park(stray);
        }
    }

    pub(super) fn enter(&self) {
        self.reclaim.readers.fetch_add(1, Ordering::SeqCst);
        fence_after_increment();
    }

    pub(super) fn leave(&self) {
        if self.reclaim.readers.fetch_sub(1, Ordering::SeqCst) == 1 {
            fence_after_increment();
            if self.reclaim.parked.load(Ordering::Relaxed) != 0 {
                self.free_unread();
            }
        }
    }

    /// Frees what is parked, in a table that nobody reads.
    pub(super) fn free_parked(&mut self) {
        let parked = self.take_parked();
        // SAFETY: only what hardware is done with gets parked, and `&mut` excludes readers.
        unsafe { self.free_now(parked) };
    }

    #[cold]
    fn park(&self, stray: TableList) {
        let (head, tail) = stray.into_parts();
        // SAFETY: the list holds its tables.
        let link = unsafe { Table::from_phys(&self.platform, tail, 0) }.entry(0);
        let mut next = self.reclaim.parked.load(Ordering::Relaxed);
        loop {
            link.store(next);
            match self.reclaim.parked.compare_exchange_weak(next, head, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(found) => next = found,
            }
        }
        // The last reader may have left before it could see the list.
        fence(Ordering::SeqCst);
        if self.reclaim.readers.load(Ordering::Acquire) == 0 {
            self.free_unread();
        }
    }

    /// Takes what is parked and frees it, or parks it again if there are readers.
    #[cold]
    fn free_unread(&self) {
        let parked = self.take_parked();
        // SAFETY: it was given to `free` before, whose contract outlasts the parking.
        unsafe { self.free(parked) };
    }

    fn take_parked(&self) -> TableList {
        TableList::from_head(&self.platform, self.reclaim.parked.swap(0, Ordering::AcqRel))
    }

    /// # Safety
    /// Neither hardware nor a reader uses the tables.
    unsafe fn free_now(&self, mut stray: TableList) {
        while let Some((phys, level)) = stray.pop(&self.platform) {
            // SAFETY: passed on from the caller. The link in the first entry reads as absent; the
            // table that was there is in the list itself.
            unsafe { self.free_tree(phys, level) };
        }
    }

    /// # Safety
    /// Neither hardware nor software uses the table or one below it.
    pub(super) unsafe fn free_tree(&self, phys: PhysAddr, level: u8) {
        // SAFETY: passed on from the caller.
        unsafe {
            self.free_children(self.table(phys.as_u64()), level);
            self.free_table(phys);
        }
    }

    /// Frees the tables below a table of `level`; recursion ends at level 0.
    ///
    /// # Safety
    /// Neither hardware nor software uses them.
    pub(super) unsafe fn free_children(&self, table: Table<'_>, level: u8) {
        if level == 0 {
            return;
        }
        for entry in table.entries(0, table.len()) {
            if let Kind::Table(child) = self.kind(level, entry.load_relaxed()) {
                // SAFETY: passed on from the caller; each table is linked once.
                unsafe { self.free_tree(PhysAddr::new(child), level - 1) };
            }
        }
    }
}

/// Orders an atomic read-modify-write before all loads that follow.
#[inline(always)]
fn fence_after_increment() {
    // On x86 the locked instruction was a full barrier itself (SDM 3A 9.2.3.9), so only the compiler
    // must be held; a second barrier would triple what a reader costs.
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    fence(Ordering::SeqCst);
}
