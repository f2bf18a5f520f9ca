//! Access to a unit's registers, which may be memory, a model or a socket.

use core::ptr::NonNull;

/// The registers of one unit.
///
/// Offsets are in bytes from the unit's base and aligned to the access. Accesses beyond the end are
/// no panic: they read as all ones and write nothing, like a device that is gone.
pub trait Registers: Send + Sync + 'static {
    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;

    /// Reads 64 bits. The default reads the low half first.
    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset.wrapping_add(4))) << 32
    }

    /// Writes 32 bits.
    fn write32(&self, offset: usize, value: u32);

    /// Writes 64 bits. The default writes the low half first.
    fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset.wrapping_add(4), (value >> 32) as u32);
    }
}

/// Registers mapped in memory.
///
/// ```
/// use core::ptr::NonNull;
/// use iommu::platform::{Mmio, Registers};
/// let mut page = [0u64; 4];
/// // SAFETY: `page` outlives `registers` and nothing else uses it meanwhile.
/// let registers = unsafe { Mmio::new(NonNull::from(&mut page).cast(), size_of_val(&page)) };
/// registers.write32(4, 7);
/// assert_eq!(registers.read64(0), u64::from_ne_bytes([[0; 4], 7u32.to_ne_bytes()].concat().try_into().unwrap()));
/// assert_eq!(registers.read32(32), u32::MAX); // beyond the end
/// ```
#[derive(Debug)]
pub struct Mmio {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: every access is one volatile load or store; hardware orders them, and two processors may
// access registers at once.
unsafe impl Send for Mmio {}
// SAFETY: as above.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// Registers in the `bytes` bytes mapped at `base`.
    ///
    /// # Safety
    /// The bytes stay mapped as device memory (uncached) while this value lives, `base` is aligned
    /// to 8 bytes, and no Rust reference points into them.
    pub const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes }
    }

    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.bytes || offset & (align_of::<T>() - 1) != 0 {
            return None;
        }
        Some(self.base.as_ptr().wrapping_add(offset).cast())
    }
}

impl Registers for Mmio {
    fn read32(&self, offset: usize) -> u32 {
        match self.at::<u32>(offset) {
            // SAFETY: in bounds and aligned, and `new` was promised mapped registers.
            Some(register) => unsafe { register.read_volatile() },
            None => u32::MAX,
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        match self.at::<u64>(offset) {
            // SAFETY: as in `read32`.
            Some(register) => unsafe { register.read_volatile() },
            None => u64::MAX,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        if let Some(register) = self.at::<u32>(offset) {
            // SAFETY: as in `read32`.
            unsafe { register.write_volatile(value) }
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        if let Some(register) = self.at::<u64>(offset) {
            // SAFETY: as in `read32`.
            unsafe { register.write_volatile(value) }
        }
    }
}

/// No registers at all: for platforms that run page tables without hardware. Reads as all ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRegisters;

impl Registers for NoRegisters {
    fn read32(&self, _offset: usize) -> u32 {
        u32::MAX
    }

    fn write32(&self, _offset: usize, _value: u32) {}
}
