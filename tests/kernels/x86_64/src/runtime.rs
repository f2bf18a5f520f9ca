//! What compiled Rust code expects to find: memory functions and the panic handler.
//!
//! The string instructions keep the compiler from turning these functions into calls of themselves.

use core::arch::asm;
use core::panic::PanicInfo;

use crate::console::{Outcome, exit};
use crate::println;

/// The bytes of stack that were used so far: those above the lowest that is not zero any more.
pub fn stack_used() -> usize {
    unsafe extern "C" {
        /// The ends of the stack in `boot.s`.
        static stack_bottom: u64;
        static stack_top: u64;
    }
    let (bottom, top) = (&raw const stack_bottom, &raw const stack_top);
    let words = (top as usize - bottom as usize) / size_of::<u64>();
    // SAFETY: these are the words of the stack; volatile, for no variable of this program is read.
    let untouched = (0..words).take_while(|&word| unsafe { bottom.add(word).read_volatile() } == 0);
    (words - untouched.count()) * size_of::<u64>()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("PANIC {info}");
    exit(Outcome::Fail)
}

/// Copies `count` bytes between blocks that do not overlap.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller owns `count` bytes at both ends; the direction flag is clear (System V ABI).
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// Copies `count` bytes between blocks that may overlap.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: passed on from the caller; `to` does not begin inside the source, so that copying
        // upwards never overwrites what is still to be read.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller owns `count` bytes at both ends, and `count` is not zero here. The direction
    // flag is cleared again before anything else runs on this stack.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") to.add(count - 1) => _,
             inout("rsi") from.add(count - 1) => _, options(nostack));
    }
    to
}

/// Sets `count` bytes to the low byte of `value`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller owns `count` bytes; the direction flag is clear (System V ABI).
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8,
             options(nostack, preserves_flags));
    }
    to
}

/// Compares `count` bytes.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for index in 0..count {
        // SAFETY: the caller owns `count` bytes at both ends.
        let (left, right) = unsafe { (left.add(index).read(), right.add(index).read()) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

/// Compares `count` bytes; only zero and not zero are told apart.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: passed on from the caller.
    unsafe { memcmp(left, right, count) }
}

/// The precompiled `core` names it in its unwind tables, which the link script drops.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
