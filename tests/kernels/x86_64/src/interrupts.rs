//! Interrupts: descriptor tables, the local APIC, and messages that call a function.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use iommu::PhysAddr;
use iommu::ops::Msi;
use iommu::platform::{Mmio, Registers};
use spin::Once;

use crate::console::{Outcome, exit};
use crate::{port, println};

global_asm!(include_str!("interrupts.s"));

/// Vectors that are given out, from the first one behind the exceptions.
const FIRST_VECTOR: usize = 32;
const SPURIOUS_VECTOR: usize = 255;
static HANDLERS: [Once<fn()>; 4] = [const { Once::new() }; 4];

/// Takes a vector for `handler`, which runs with interrupts disabled, and gives the message that a
/// device raises it with. `None` when all are taken.
pub fn message_for(handler: fn()) -> Option<Msi> {
    let index = HANDLERS.iter().position(|taken| !taken.is_completed())?;
    HANDLERS.get(index)?.call_once(|| handler);
    const ID: usize = 0x20;
    let processor = u64::from(local_apic().read32(ID) >> 24);
    // SDM 3A, 12.11: physical destination, fixed delivery, edge triggered.
    Some(Msi { address: PhysAddr::new(0xfee0_0000 | processor << 12), data: (FIRST_VECTOR + index) as u32 })
}

/// Sets the processor up for interrupts and enables them.
///
/// # Safety
/// Called once.
pub unsafe fn init() {
    // The two old interrupt controllers, which firmware used, are masked.
    port::write8(0x21, 0xff);
    port::write8(0xa1, 0xff);
    // SAFETY: passed on from the caller.
    unsafe { load_tables() };
    const SPURIOUS: usize = 0xf0;
    const ENABLE: u32 = 1 << 8;
    local_apic().write32(SPURIOUS, ENABLE | SPURIOUS_VECTOR as u32);
    // SAFETY: from here on there is a handler for every vector.
    unsafe { asm!("sti", options(nostack)) };
}

fn local_apic() -> Mmio {
    const BASE: NonNull<u8> = NonNull::new(0xfee0_0000 as *mut u8).unwrap();
    // SAFETY: the page is mapped uncached for good, and its registers are reached this way only.
    unsafe { Mmio::new(BASE, 0x1000) }
}

/// What `interrupts.s` leaves on the stack.
#[repr(C)]
struct InterruptFrame {
    saved: [u64; 9],
    vector: usize,
    error: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

#[unsafe(no_mangle)]
extern "C" fn interrupt(frame: &InterruptFrame) {
    if frame.vector < FIRST_VECTOR {
        let address: u64;
        // SAFETY: reading CR2, the address of a page fault, has no effect.
        unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
        let InterruptFrame { vector, error, rip, .. } = frame;
        println!("EXCEPTION {vector} error {error:#x} at {rip:#x}, address {address:#x}");
        exit(Outcome::Fail);
    }
    if let Some(handler) = HANDLERS.get(frame.vector - FIRST_VECTOR).and_then(Once::get) {
        handler();
    }
    if frame.vector != SPURIOUS_VECTOR {
        const END_OF_INTERRUPT: usize = 0xb0;
        local_apic().write32(END_OF_INTERRUPT, 0);
    }
}

const CODE: u16 = 0x08; // as in boot.s
const TASK_STATE: u16 = 0x18;

/// What the processor reads whenever an interrupt arrives.
///
/// Precompiled Rust code keeps data below its stack pointer (the "red zone"), so that interrupts must
/// run on stacks of their own: the first for interrupts, the second for exceptions.
#[repr(C, align(16))]
struct Tables {
    stacks: [[u8; 16384]; 2],
    gates: [[u64; 2]; 256],
    segments: [u64; 5],
    task_state: [u32; 26],
}

struct Shared(UnsafeCell<Tables>);
// SAFETY: only `load_tables` reaches the cell, once.
unsafe impl Sync for Shared {}
static TABLES: Shared = Shared(UnsafeCell::new(Tables {
    stacks: [[0; 16384]; 2],
    gates: [[0; 2]; 256],
    segments: [0; 5],
    task_state: [0; 26],
}));

/// What `lgdt` and `lidt` take.
#[repr(C, packed)]
struct TablePointer {
    last: u16,
    base: u64,
}

/// Fills the tables and tells the processor where they are.
///
/// # Safety
/// Called once, with interrupts disabled.
unsafe fn load_tables() {
    unsafe extern "C" {
        /// The first of the stubs in `interrupts.s`.
        static interrupt_stubs: u8;
    }
    // SAFETY: this runs once, and the processor does not know the tables yet.
    let Tables { stacks, gates, segments, task_state } = unsafe { &mut *TABLES.0.get() };

    // SDM 3A, 9.7: words 9 to 12 are the addresses of the stacks, which grow down.
    for (stack, words) in stacks.iter().zip(task_state[9..13].chunks_exact_mut(2)) {
        let top = stack.as_ptr_range().end as u64;
        words.copy_from_slice(&[top as u32, (top >> 32) as u32]);
    }
    // SDM 3A, 9.2.3: a present 64-bit task state segment takes two entries.
    let (base, last) = (task_state.as_ptr() as u64, size_of_val(task_state) as u64 - 1);
    let descriptor = last | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    *segments = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, descriptor, base >> 32];
    // SDM 3A, 7.14.1: present interrupt gates.
    for (vector, gate) in gates.iter_mut().enumerate() {
        let stub = &raw const interrupt_stubs as u64 + vector as u64 * 16;
        let stack = if vector < FIRST_VECTOR { 2 } else { 1 };
        let low = stub & 0xffff | u64::from(CODE) << 16 | stack << 32 | 0x8e << 40 | (stub >> 16 & 0xffff) << 48;
        *gate = [low, stub >> 32];
    }

    let segments = TablePointer { last: size_of_val(segments) as u16 - 1, base: segments.as_ptr() as u64 };
    let gates = TablePointer { last: size_of_val(gates) as u16 - 1, base: gates.as_ptr() as u64 };
    // SAFETY: both tables are static and complete; the selectors in use mean what they did before.
    unsafe {
        asm!("lgdt [{}]", "ltr {:x}", "lidt [{}]", in(reg) &segments, in(reg) TASK_STATE, in(reg) &gates,
             options(nostack, preserves_flags));
    }
}
