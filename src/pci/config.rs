//! Access to configuration space.

use crate::id::PciAddress;

/// Access to the configuration space of every PCI segment that the kernel knows.
///
/// Two methods are to be written: for a memory-mapped configuration space (ECAM) they load and store
/// at `base + (requester_id << 12 | offset)`, with ports 0xcf8 and 0xcfc they reach the first 256
/// bytes. Methods are called on any processor, without a lock of this crate held.
///
/// ```
/// use iommu::PciAddress;
/// use iommu::pci::PciConfig;
///
/// /// One function at 00:04.0 whose registers all read as 0x1234_8086.
/// struct OneDevice;
/// impl PciConfig for OneDevice {
///     fn read32(&self, function: PciAddress, _offset: u16) -> u32 {
///         if function.requester_id() == 0x20 { 0x1234_8086 } else { u32::MAX }
///     }
///     fn write32(&self, _function: PciAddress, _offset: u16, _value: u32) {}
/// }
///
/// let edu = PciAddress::new(0, 0, 4, 0).unwrap();
/// assert_eq!(OneDevice.read16(edu, 2), 0x1234);
/// ```
pub trait PciConfig: Send + Sync {
    /// Reads the register at `offset`, a multiple of 4 below 4096. What is absent or cannot be
    /// reached reads as all ones.
    fn read32(&self, function: PciAddress, offset: u16) -> u32;

    /// Writes the register at `offset`, a multiple of 4 below 4096.
    fn write32(&self, function: PciAddress, offset: u16, value: u32);

    /// Reads 16 bits at `offset`, a multiple of 2.
    fn read16(&self, function: PciAddress, offset: u16) -> u16 {
        let word = self.read32(function, offset & !3);
        (if offset & 2 == 0 { word } else { word >> 16 }) as u16
    }

    /// Reads the byte at `offset`.
    fn read8(&self, function: PciAddress, offset: u16) -> u8 {
        let half = self.read16(function, offset & !1);
        (if offset & 1 == 0 { half } else { half >> 8 }) as u8
    }

    /// Writes 16 bits at `offset`, a multiple of 2.
    ///
    /// Unless it is overridden this reads and writes 32 bits, which clears status bits of the other
    /// half that are cleared by writing one (status beside command in the header and in the PCIe and
    /// PRI capabilities). For those, use [`write32`](Self::write32) with zeros in the status half.
    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        let word = self.read32(function, offset & !3);
        let merged = if offset & 2 == 0 {
            word & 0xffff_0000 | u32::from(value)
        } else {
            word & 0xffff | u32::from(value) << 16
        };
        self.write32(function, offset & !3, merged);
    }

    /// Calls `add` with each device-and-function byte that requests of `function` carry besides or
    /// instead of its own, on the same bus. Such devices are broken, and only a list of them tells;
    /// the default knows none.
    fn quirk_aliases(&self, function: PciAddress, add: &mut dyn FnMut(u8)) {
        let _ = (function, add);
    }

    /// Whether the device TLB of `function` is known not to work, so that it stays off. Such devices
    /// are broken as well; the default knows none.
    fn quirk_ats_broken(&self, function: PciAddress) -> bool {
        let _ = function;
        false
    }
}

impl<C: PciConfig + ?Sized> PciConfig for &C {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        (**self).read32(function, offset)
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        (**self).write32(function, offset, value);
    }

    fn read16(&self, function: PciAddress, offset: u16) -> u16 {
        (**self).read16(function, offset)
    }

    fn read8(&self, function: PciAddress, offset: u16) -> u8 {
        (**self).read8(function, offset)
    }

    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        (**self).write16(function, offset, value);
    }

    fn quirk_aliases(&self, function: PciAddress, add: &mut dyn FnMut(u8)) {
        (**self).quirk_aliases(function, add);
    }

    fn quirk_ats_broken(&self, function: PciAddress) -> bool {
        (**self).quirk_ats_broken(function)
    }
}
