//! What tests of whole VT-d units lay before the driver: the firmware's table, PCI functions, and a look
//! at what it wrote to memory.

use std::sync::atomic::Ordering;

use crate::hardware::word;

/// What the word holds.
pub(crate) fn load(address: u64) -> u64 {
    word(address).load(Ordering::Acquire)
}

/// A table with one unit at 0xfed90000 for all of segment 0 (VT-d 8.1, 8.3), and what follows.
pub(crate) fn dmar(flags: u8, more: &[u8]) -> Vec<u8> {
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"DMAR");
    (table[8], table[36], table[37]) = (1, 38, flags);
    table.extend([0, 0, 16, 0, 1, 0, 0, 0]);
    table.extend(0xfed9_0000u64.to_le_bytes());
    table.extend(more);
    table[4] = table.len() as u8;
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    table
}
