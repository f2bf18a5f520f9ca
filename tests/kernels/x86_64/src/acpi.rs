//! Finds a firmware table by its signature (ACPI 6.5, 5.2.5 to 5.2.8).

use core::slice;

use iommu::PhysAddr;

/// Bytes in the header of a table.
const HEADER: usize = 36;

/// The bytes of the first table with this signature, header included; `None` when there is none.
/// Whoever reads the table checks its checksum: this crate's parsers do.
///
/// # Safety
/// `rsdp` is where the firmware put the root pointer, and the kernel leaves the tables alone.
pub unsafe fn find(rsdp: PhysAddr, signature: &[u8; 4]) -> Option<&'static [u8]> {
    // SAFETY: passed on from the caller; the first version of the structure has 20 bytes.
    let mut root_pointer = unsafe { bytes_at(rsdp.as_u64(), 20) }?;
    if !root_pointer.starts_with(b"RSD PTR ") {
        return None;
    }
    if root_pointer.get(15).is_some_and(|&revision| revision >= 2) {
        // SAFETY: as above; the second version has 36 bytes.
        root_pointer = unsafe { bytes_at(rsdp.as_u64(), 36) }?;
    }
    // The XSDT, whose entries have 8 bytes, where there is one; else the RSDT, whose have 4.
    let (root, entry_bytes) = match number(root_pointer, 24, 8) {
        Some(xsdt) if xsdt != 0 => (xsdt, 8),
        _ => (number(root_pointer, 16, 4)?, 4),
    };
    // SAFETY: the root pointer names a table.
    let root = unsafe { table_at(root) }?;
    root.get(HEADER..)?.chunks_exact(entry_bytes).find_map(|entry| {
        // SAFETY: the root table names tables.
        let table = unsafe { table_at(number(entry, 0, entry_bytes)?) }?;
        table.starts_with(signature).then_some(table)
    })
}

/// The table at `address`, as long as its header says.
///
/// # Safety
/// As for `find`: firmware named this address.
unsafe fn table_at(address: u64) -> Option<&'static [u8]> {
    // SAFETY: passed on from the caller.
    let bytes = number(unsafe { bytes_at(address, HEADER) }?, 4, 4)?;
    // SAFETY: passed on from the caller.
    unsafe { bytes_at(address, usize::try_from(bytes).ok()?.max(HEADER)) }
}

/// Memory as bytes, as far as it is mapped.
///
/// # Safety
/// Nobody writes there.
unsafe fn bytes_at(address: u64, bytes: usize) -> Option<&'static [u8]> {
    const MAPPED: u64 = 1 << 32;
    if address == 0 || address.checked_add(bytes as u64)? > MAPPED {
        return None;
    }
    // SAFETY: the first 4 GiB are mapped one to one, and the caller says that nobody writes there.
    Some(unsafe { slice::from_raw_parts(address as *const u8, bytes) })
}

/// The little-endian number of `bytes` bytes at `offset`.
fn number(table: &[u8], offset: usize, bytes: usize) -> Option<u64> {
    let field = table.get(offset..offset.checked_add(bytes)?)?;
    Some(field.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}
