//! What the boot loader tells: where RAM is, and where the firmware tables begin.
//!
//! Source: Xen's "x86/HVM direct boot ABI" (PVH), `hvm_start_info` version 1.

use iommu::{PhysAddr, PhysRange};

/// `hvm_start_info`.
#[repr(C)]
pub struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// One entry of the memory map.
#[derive(Clone, Copy)]
#[repr(C)]
struct MemoryMapEntry {
    start: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

impl StartInfo {
    /// The structure at `address`. `None` when there is none of the version that has a memory map.
    ///
    /// # Safety
    /// `address` is what the loader passed in `ebx`, and the kernel leaves what it points to alone.
    pub unsafe fn at(address: usize) -> Option<&'static Self> {
        let start_info = address as *const Self;
        if start_info.is_null() || !start_info.is_aligned() {
            return None;
        }
        // SAFETY: the loader put the structure there, below 4 GiB, where everything is mapped.
        let start_info = unsafe { &*start_info };
        (start_info.magic == 0x336e_c578 && start_info.version >= 1).then_some(start_info)
    }

    /// Where the ACPI root pointer lies.
    pub fn rsdp(&self) -> PhysAddr {
        PhysAddr::new(self.rsdp)
    }

    /// The ranges of RAM.
    pub fn ram(&self) -> impl Iterator<Item = PhysRange> {
        let first = self.memory_map as *const MemoryMapEntry;
        // SAFETY: the loader put that many entries there and the kernel leaves them alone.
        let entries =
            (0..self.memory_map_entries as usize).map(move |index| unsafe { first.add(index).read_unaligned() });
        const RAM: u32 = 1;
        let ram = entries.filter(|entry| entry.kind == RAM);
        ram.filter_map(|entry| PhysRange::from_len(PhysAddr::new(entry.start), entry.bytes).ok())
    }
}
