//! The processor's I/O ports.

use core::arch::asm;

/// Reads a byte.
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: a port access touches no memory of this program.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: as in `read8`; no port that this kernel writes starts a DMA.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads 32 bits.
pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `read8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes 32 bits.
pub fn write32(port: u16, value: u32) {
    // SAFETY: as in `write8`. Configuration space is a port too: what a device may do with the memory
    // it was given is what this kernel is about.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}
