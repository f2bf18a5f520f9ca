//! Guest RAM, mapped into this process.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use iommu::{PhysAddr, PhysRange};

use crate::error::{Error, Result};

/// A range of physical addresses and where it lies in the mapping.
#[derive(Clone, Copy, Debug)]
struct Region {
    range: PhysRange,
    offset: usize,
}

/// The RAM of a machine: bytes that devices, the IOMMU and this process share.
///
/// Addresses outside RAM, and ranges that leave it, are a mistake in the test: they panic.
#[derive(Debug)]
pub struct GuestRam {
    base: NonNull<u8>,
    bytes: usize,
    regions: Vec<Region>,
}

// SAFETY: the mapping is plain memory that lives as long as the value; every access goes through raw
// pointers, and the memory is shared with devices anyway.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// RAM in a file that another process maps too. The ranges lie in the file one behind the other.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be mapped.
    pub fn shared(file: &File, ranges: &[PhysRange]) -> Result<Self> {
        Self::map(ranges, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// RAM of this process alone, for machines that are not another process.
    ///
    /// # Errors
    /// [`Error::Io`] when there is not enough address space.
    pub fn private(ranges: &[PhysRange]) -> Result<Self> {
        Self::map(ranges, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1)
    }

    /// The ranges of physical addresses that are RAM.
    pub fn ranges(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.regions.iter().map(|region| region.range)
    }

    /// Where the byte at `phys` is mapped, or `None` outside RAM.
    pub fn pointer(&self, phys: PhysAddr) -> Option<NonNull<u8>> {
        self.checked(phys, 1)
    }

    /// The physical address of a byte of this mapping.
    pub fn phys_of(&self, pointer: NonNull<u8>) -> Option<PhysAddr> {
        let offset = (pointer.as_ptr() as usize).checked_sub(self.base.as_ptr() as usize)?;
        let holds = |region: &&Region| {
            let bytes = region.range.bytes().map_or(usize::MAX, |bytes| bytes as usize);
            (region.offset..region.offset.saturating_add(bytes)).contains(&offset)
        };
        let region = self.regions.iter().find(holds)?;
        region.range.start().checked_add((offset - region.offset) as u64)
    }

    /// Reads `into.len()` bytes at `phys`.
    pub fn read(&self, phys: PhysAddr, into: &mut [u8]) {
        let from = self.at(phys, into.len());
        // SAFETY: `at` checked that the bytes are mapped, and `into` is ours.
        unsafe { ptr::copy(from.as_ptr(), into.as_mut_ptr(), into.len()) };
    }

    /// Writes `bytes` at `phys`.
    pub fn write(&self, phys: PhysAddr, bytes: &[u8]) {
        let to = self.at(phys, bytes.len());
        // SAFETY: as in `read`.
        unsafe { ptr::copy(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Sets `bytes` bytes at `phys` to `value`.
    pub fn fill(&self, phys: PhysAddr, bytes: usize, value: u8) {
        let to = self.at(phys, bytes);
        // SAFETY: as in `read`.
        unsafe { to.write_bytes(value, bytes) };
    }

    /// Whether `bytes` bytes at `phys` are all `value`.
    pub fn is_filled(&self, phys: PhysAddr, bytes: usize, value: u8) -> bool {
        let from = self.at(phys, bytes).as_ptr();
        // SAFETY: as in `read`; volatile, since a device may write meanwhile.
        (0..bytes).all(|at| unsafe { from.add(at).read_volatile() } == value)
    }

    fn map(ranges: &[PhysRange], flags: libc::c_int, fd: libc::c_int) -> Result<Self> {
        let mut regions = Vec::new();
        let mut bytes = 0;
        for range in ranges {
            let length = range.bytes().and_then(|length| usize::try_from(length).ok());
            regions.push(Region { range: *range, offset: bytes });
            bytes += length.ok_or(Error::OutOfRam { bytes: u64::MAX })?;
        }
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { base, bytes, regions }),
            _ => Err(Error::Io { doing: "mapping guest RAM", source: std::io::Error::last_os_error() }),
        }
    }

    fn checked(&self, phys: PhysAddr, bytes: usize) -> Option<NonNull<u8>> {
        let last = phys.checked_add((bytes as u64).saturating_sub(1))?;
        let region = self.regions.iter().find(|region| region.range.contains(phys) && region.range.contains(last))?;
        let offset = region.offset + (phys.as_u64() - region.range.start().as_u64()) as usize;
        // SAFETY: the offset is inside the mapping, since the region is.
        Some(unsafe { self.base.add(offset) })
    }

    #[track_caller]
    fn at(&self, phys: PhysAddr, bytes: usize) -> NonNull<u8> {
        match self.checked(phys, bytes) {
            Some(pointer) => pointer,
            None => panic!("{bytes:#x} bytes at {phys} are not in guest RAM"),
        }
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and pointers into it were only lent.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use iommu::{PhysAddr, PhysRange};

    use super::GuestRam;

    #[test]
    fn two_ranges_lie_behind_each_other() {
        let range = |start, bytes| PhysRange::from_len(PhysAddr::new(start), bytes).unwrap();
        let ram = GuestRam::private(&[range(0x1000, 0x1000), range(0x1_0000, 0x1000)]).unwrap();
        ram.write(PhysAddr::new(0x1_0000), b"high");
        ram.write(PhysAddr::new(0x1ffc), b"low!");
        let mut bytes = [0; 4];
        ram.read(PhysAddr::new(0x1_0000), &mut bytes);
        assert_eq!(&bytes, b"high");
        assert_eq!(ram.pointer(PhysAddr::new(0x2000)), None);
        assert!(ram.is_filled(PhysAddr::new(0x1000), 0xffc, 0));
        assert!(!ram.is_filled(PhysAddr::new(0x1000), 0xffd, 0));
    }
}
