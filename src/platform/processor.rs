//! Barriers, cache maintenance and the interrupt flag, per processor architecture.

use core::ptr::NonNull;

use super::InterruptState;
use crate::sync::atomic::{Ordering, fence};

/// What a [`Platform`](super::Platform) needs to know of its processor.
///
/// The methods mean what the ones of the same name on [`Platform`](super::Platform) say.
pub trait Processor: 'static {
    /// Orders all stores before it, as devices see them, before all stores after it.
    fn publish();
    /// Writes cache lines back to memory.
    fn clean(start: NonNull<u8>, bytes: usize);
    /// Drops cache lines, after writing back what is dirty in them.
    fn invalidate(start: NonNull<u8>, bytes: usize);
    /// Disables interrupts and tells what was before.
    fn save_interrupts() -> InterruptState;
    /// Puts the interrupt state back.
    fn restore_interrupts(state: InterruptState);
    /// Stores 16 bytes at once, as every observer sees them, and in the order of other stores. `None`
    /// (the default) says that the processor cannot, and that nothing was stored.
    ///
    /// # Safety
    /// `target` is aligned to 16 bytes, and mapped as ordinary writable memory that is shared only with
    /// those who use atomics.
    unsafe fn store_128(target: NonNull<u128>, value: u128) -> Option<()> {
        let _ = (target, value);
        None
    }
}

/// Any processor under an operating system: devices are software and share the caches, and there are
/// no interrupts to disable.
#[derive(Clone, Copy, Debug)]
pub struct Hosted;

impl Processor for Hosted {
    #[inline]
    fn publish() {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn clean(_start: NonNull<u8>, _bytes: usize) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn invalidate(_start: NonNull<u8>, _bytes: usize) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn save_interrupts() -> InterruptState {
        InterruptState(0)
    }

    #[inline]
    fn restore_interrupts(_state: InterruptState) {}

    #[cfg(target_arch = "x86_64")]
    unsafe fn store_128(target: NonNull<u128>, value: u128) -> Option<()> {
        // SAFETY: passed on from the caller.
        unsafe { x86_64::store_128(target, value) }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86_64::X86_64;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid, _mm_clflush, _mm_mfence};
    use core::ptr::NonNull;

    use super::{InterruptState, Processor};
    use crate::sync::atomic::{Ordering, fence};

    /// An x86-64 kernel: ordinary memory is strongly ordered, lines are cleaned with `clflush`, and
    /// interrupts follow `RFLAGS.IF` (needs privilege level 0).
    #[derive(Clone, Copy, Debug)]
    pub struct X86_64;

    impl Processor for X86_64 {
        #[inline]
        fn publish() {
            // Stores to write-back memory and to uncached registers stay in order (SDM 3A 9.2.2);
            // only the compiler must be held.
            core::sync::atomic::compiler_fence(Ordering::SeqCst);
        }

        fn clean(start: NonNull<u8>, bytes: usize) {
            flush(start, bytes);
        }

        fn invalidate(start: NonNull<u8>, bytes: usize) {
            flush(start, bytes);
        }

        #[inline]
        fn save_interrupts() -> InterruptState {
            let flags: usize;
            // SAFETY: reads RFLAGS and clears IF; allowed at privilege level 0, where a kernel that
            // chose this helper runs.
            unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
            InterruptState(flags)
        }

        #[inline]
        fn restore_interrupts(state: InterruptState) {
            const IF: usize = 1 << 9;
            if state.0 & IF != 0 {
                // SAFETY: interrupts were enabled when the state was saved.
                unsafe { asm!("sti") };
            } else {
                fence(Ordering::SeqCst);
            }
        }

        unsafe fn store_128(target: NonNull<u128>, value: u128) -> Option<()> {
            // SAFETY: passed on from the caller.
            unsafe { store_128(target, value) }
        }
    }

    /// A locked 16-byte exchange, which is atomic for all agents in the system (SDM 3A 9.1.2). Every
    /// processor beside an IOMMU with scalable mode has it, as has all but the first x86-64 ones.
    pub(super) unsafe fn store_128(target: NonNull<u128>, value: u128) -> Option<()> {
        // CPUID.01H:ECX[13] (SDM 2A, CPUID).
        // SAFETY: every x86-64 processor has CPUID leaf 1. (The call is safe since Rust 1.90.)
        #[allow(unused_unsafe)]
        let features = unsafe { __cpuid(1) };
        if features.ecx >> 13 & 1 == 0 {
            return None;
        }
        let (low, high) = (value as u64, (value >> 64) as u64);
        // SAFETY: the processor has the instruction, which stores what it compares equal, or else loads
        // what to compare next; the target is aligned and writable, says the caller. RBX, which is no
        // operand because the compiler may need it, is put back.
        unsafe {
            asm!(
                "xchg {low}, rbx",
                "2:",
                "lock cmpxchg16b [rdi]",
                "jne 2b",
                "mov rbx, {low}",
                low = inout(reg) low => _,
                in("rcx") high,
                in("rdi") target.as_ptr(),
                inout("rax") 0u64 => _,
                inout("rdx") 0u64 => _,
                options(nostack),
            );
        }
        Some(())
    }

    fn flush(start: NonNull<u8>, bytes: usize) {
        // CPUID.01H:EBX[15:8] is the line size in units of 8 bytes (SDM 2A, CPUID).
        // SAFETY: every x86-64 processor has CPUID leaf 1. (The call is safe since Rust 1.90.)
        #[allow(unused_unsafe)]
        let features = unsafe { __cpuid(1) };
        let line = ((features.ebx >> 8 & 0xff) as usize * 8).max(8);
        let first = start.as_ptr() as usize & !(line - 1);
        let end = (start.as_ptr() as usize).saturating_add(bytes);
        // SAFETY: fences have no operands; the lines lie in memory that the caller owns, and flushing
        // a line changes no value.
        unsafe {
            _mm_mfence();
            for address in (first..end).step_by(line) {
                _mm_clflush(address as *const u8);
            }
            _mm_mfence();
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub use aarch64::Aarch64;

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use core::arch::asm;
    use core::ptr::NonNull;

    use super::{InterruptState, Processor};

    /// An AArch64 kernel: `dsb` orders, `dc` maintains caches to the point of coherency, and
    /// interrupts follow `DAIF` (needs EL1 or above).
    #[derive(Clone, Copy, Debug)]
    pub struct Aarch64;

    impl Processor for Aarch64 {
        #[inline]
        fn publish() {
            // SAFETY: a barrier has no operands. `st` orders stores; the device is in the outer
            // shareable domain or beyond, hence `sy` (Arm ARM B2.3.12).
            unsafe { asm!("dsb st", options(nostack, preserves_flags)) };
        }

        fn clean(start: NonNull<u8>, bytes: usize) {
            // SAFETY: cleaning a line changes no value.
            each_line(start, bytes, |line| unsafe { asm!("dc cvac, {}", in(reg) line, options(nostack)) });
        }

        fn invalidate(start: NonNull<u8>, bytes: usize) {
            // SAFETY: clean and invalidate, so that neighbours in the line keep their values.
            each_line(start, bytes, |line| unsafe { asm!("dc civac, {}", in(reg) line, options(nostack)) });
        }

        #[inline]
        fn save_interrupts() -> InterruptState {
            let daif: usize;
            // SAFETY: reads DAIF and masks IRQ; a kernel that chose this helper runs at EL1 or above.
            unsafe { asm!("mrs {}, daif", "msr daifset, #2", out(reg) daif) };
            InterruptState(daif)
        }

        #[inline]
        fn restore_interrupts(state: InterruptState) {
            // SAFETY: writes back what was read.
            unsafe { asm!("msr daif, {}", in(reg) state.0) };
        }
    }

    fn each_line(start: NonNull<u8>, bytes: usize, operation: impl Fn(usize)) {
        let ctr: usize;
        // SAFETY: CTR_EL0 is readable at every level a kernel runs at.
        unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack)) };
        // CTR_EL0.DminLine: log2 of the words in the smallest data line.
        let line = 4usize << (ctr >> 16 & 15);
        let first = start.as_ptr() as usize & !(line - 1);
        let end = (start.as_ptr() as usize).saturating_add(bytes);
        for address in (first..end).step_by(line) {
            operation(address);
        }
        // SAFETY: a barrier has no operands.
        unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    }
}

#[cfg(target_arch = "powerpc64")]
pub use powerpc64::PowerPc64;

#[cfg(target_arch = "powerpc64")]
mod powerpc64 {
    use core::arch::asm;
    use core::ptr::NonNull;

    use super::{InterruptState, Processor};

    /// A 64-bit PowerPC kernel: `sync` orders, I/O is always coherent, and interrupts follow
    /// `MSR.EE`.
    #[derive(Clone, Copy, Debug)]
    pub struct PowerPc64;

    impl Processor for PowerPc64 {
        #[inline]
        fn publish() {
            // SAFETY: a barrier has no operands.
            unsafe { asm!("sync", options(nostack, preserves_flags)) };
        }

        fn clean(_start: NonNull<u8>, _bytes: usize) {
            Self::publish();
        }

        fn invalidate(_start: NonNull<u8>, _bytes: usize) {
            Self::publish();
        }

        #[inline]
        fn save_interrupts() -> InterruptState {
            let msr: usize;
            // SAFETY: reads MSR and clears EE (`mtmsrd` with L=1 changes EE and RI only).
            unsafe { asm!("mfmsr {0}", "mtmsrd {1}, 1", out(reg) msr, in(reg) 2usize) };
            InterruptState(msr)
        }

        #[inline]
        fn restore_interrupts(state: InterruptState) {
            // SAFETY: puts back EE and RI as they were.
            unsafe { asm!("mtmsrd {}, 1", in(reg) state.0) };
        }
    }
}
