//! The two lists of capabilities of a function.

use core::fmt;

use super::PciConfig;
use super::capability_id::EXPRESS;
use super::function::header;
use crate::id::PciAddress;

/// Capabilities that fit into the 192 bytes behind the header, four bytes each: a longer list loops.
const MAX_CAPABILITIES: u16 = 48;
/// The same for the extended part, of 3840 bytes.
const MAX_EXTENDED: u16 = 960;
/// Where the extended part begins, and the list in it.
const EXTENDED_START: u16 = 0x100;

/// Where capability `id` of `function` begins, in bytes. Numbers are in
/// [`capability_id`](super::capability_id).
pub fn find_capability(config: &dyn PciConfig, function: PciAddress, id: u8) -> Option<u16> {
    Capabilities::new(config, function).find(|&(found, _)| found == id).map(|(_, offset)| offset)
}

/// Where extended capability `id` of `function` begins, in bytes. Numbers are in
/// [`extended_id`](super::extended_id).
///
/// Only PCI Express functions have any; for others the extended part is not read, since some
/// hardware repeats the first 256 bytes there.
pub fn find_extended(config: &dyn PciConfig, function: PciAddress, id: u16) -> Option<u16> {
    find_capability(config, function, EXPRESS)?;
    ExtendedCapabilities::new(config, function).find(|&(found, _)| found == id).map(|(_, offset)| offset)
}

/// The capabilities of a function (PCI 6.7): number and offset of each. A list that loops ends after
/// 48.
///
/// ```
/// use iommu::PciAddress;
/// use iommu::pci::{Capabilities, PciConfig};
/// # struct Empty;
/// # impl PciConfig for Empty {
/// #     fn read32(&self, _: PciAddress, _: u16) -> u32 { u32::MAX }
/// #     fn write32(&self, _: PciAddress, _: u16, _: u32) {}
/// # }
/// fn has_msi(config: &dyn PciConfig, function: PciAddress) -> bool {
///     Capabilities::new(config, function).any(|(id, _)| id == 5)
/// }
/// # assert!(!has_msi(&Empty, PciAddress::new(0, 0, 4, 0).unwrap()));
/// ```
#[derive(Clone)]
pub struct Capabilities<'a> {
    config: &'a dyn PciConfig,
    function: PciAddress,
    next: u16,
    hops: u16,
}

impl<'a> Capabilities<'a> {
    /// The list of `function`, empty if it is absent.
    pub fn new(config: &'a dyn PciConfig, function: PciAddress) -> Self {
        let mut next = 0;
        if config.read16(function, header::VENDOR) != u16::MAX
            && config.read16(function, header::STATUS) & header::STATUS_CAPABILITIES != 0
        {
            let pointer = match config.read8(function, header::TYPE) & header::TYPE_LAYOUT {
                header::LAYOUT_CARDBUS => header::CARDBUS_CAPABILITIES,
                _ => header::CAPABILITIES,
            };
            next = u16::from(config.read8(function, pointer));
        }
        Self { config, function, next, hops: 0 }
    }
}

impl Iterator for Capabilities<'_> {
    type Item = (u8, u16);

    fn next(&mut self) -> Option<(u8, u16)> {
        // The two low bits are reserved and must be masked.
        let offset = self.next & 0xfc;
        if offset < header::BYTES || self.hops >= MAX_CAPABILITIES {
            return None;
        }
        let [id, next] = self.config.read16(self.function, offset).to_le_bytes();
        if id == u8::MAX {
            return None;
        }
        self.hops = self.hops.saturating_add(1);
        self.next = u16::from(next);
        Some((id, offset))
    }
}

impl fmt::Debug for Capabilities<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capabilities").field("function", &self.function).field("next", &self.next).finish()
    }
}

/// The extended capabilities of a PCI Express function (PCIe 7.6.3): number and offset of each. A
/// list that loops ends after 960. See [`find_extended`] for whom it may be asked of.
///
/// ```
/// use iommu::PciAddress;
/// use iommu::pci::{ExtendedCapabilities, PciConfig};
/// # struct Empty;
/// # impl PciConfig for Empty {
/// #     fn read32(&self, _: PciAddress, _: u16) -> u32 { u32::MAX }
/// #     fn write32(&self, _: PciAddress, _: u16, _: u32) {}
/// # }
/// # let (config, function) = (&Empty, PciAddress::new(0, 0, 4, 0).unwrap());
/// for (id, offset) in ExtendedCapabilities::new(config, function) {
///     println!("{id:#x} at {offset:#x}");
/// }
/// ```
#[derive(Clone)]
pub struct ExtendedCapabilities<'a> {
    config: &'a dyn PciConfig,
    function: PciAddress,
    next: u16,
    hops: u16,
}

impl<'a> ExtendedCapabilities<'a> {
    /// The list of `function`, empty if it has none.
    pub fn new(config: &'a dyn PciConfig, function: PciAddress) -> Self {
        Self { config, function, next: EXTENDED_START, hops: 0 }
    }
}

impl Iterator for ExtendedCapabilities<'_> {
    type Item = (u16, u16);

    fn next(&mut self) -> Option<(u16, u16)> {
        loop {
            let offset = self.next & 0xffc;
            if offset < EXTENDED_START || self.hops >= MAX_EXTENDED {
                return None;
            }
            let word = self.config.read32(self.function, offset);
            if word == u32::MAX || word == 0 {
                return None;
            }
            self.hops = self.hops.saturating_add(1);
            self.next = (word >> 20) as u16;
            // Number zero says that the list begins later.
            if word as u16 != 0 {
                return Some((word as u16, offset));
            }
        }
    }
}

impl fmt::Debug for ExtendedCapabilities<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtendedCapabilities").field("function", &self.function).field("next", &self.next).finish()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::super::fake::Fake;
    use super::super::{PciConfig, PciKind, extended_id};
    use super::{Capabilities, ExtendedCapabilities, find_capability, find_extended};

    #[test]
    fn lists_are_walked_in_order() {
        let mut fake = Fake::new();
        let function = fake.express(0, 4, 0, PciKind::Endpoint);
        fake.set8(function, 0x34, 0x43); // low bits are ignored
        fake.set16(function, 0x40, 0x5005);
        fake.set16(function, 0x50, 0x0010);
        fake.set32(function, 0x100, 0x140 << 20 | 1 << 16 | u32::from(extended_id::ATS));
        fake.set32(function, 0x140, u32::from(extended_id::PASID));
        assert_eq!(Capabilities::new(&fake, function).collect::<Vec<_>>(), [(5, 0x40), (0x10, 0x50)]);
        assert_eq!(find_extended(&fake, function, extended_id::PASID), Some(0x140));
        assert_eq!(find_extended(&fake, function, extended_id::PRI), None);
        assert_eq!(find_capability(&fake, function, 9), None);
    }

    #[test]
    fn loops_end() {
        let mut fake = Fake::new();
        let function = fake.express(0, 4, 0, PciKind::Endpoint);
        fake.set16(function, 0x40, 0x4010);
        fake.set32(function, 0x100, 0x100 << 20 | 1 << 16 | 0x7777);
        assert_eq!(Capabilities::new(&fake, function).count(), 48);
        assert_eq!(ExtendedCapabilities::new(&fake, function).count(), 960);
        assert_eq!(find_capability(&fake, function, 9), None);
        assert_eq!(find_extended(&fake, function, extended_id::ACS), None);
        // Also one of empty entries only.
        fake.set32(function, 0x100, 0x100 << 20 | 1 << 16);
        assert_eq!(ExtendedCapabilities::new(&fake, function).count(), 0);
    }

    #[test]
    fn a_pointer_into_the_header_ends_the_list() {
        let mut fake = Fake::new();
        let function = fake.express(0, 4, 0, PciKind::Endpoint);
        fake.set16(function, 0x40, 0x3c05);
        assert_eq!(Capabilities::new(&fake, function).count(), 1);
        fake.set32(function, 0x100, 0xfc << 20 | 0x7777);
        assert_eq!(ExtendedCapabilities::new(&fake, function).count(), 1);
    }

    #[test]
    fn an_absent_function_has_none() {
        let fake = Fake::new();
        let nobody = Fake::at(0, 9, 0);
        assert_eq!(fake.read32(nobody, 0), u32::MAX);
        assert_eq!(Capabilities::new(&fake, nobody).count(), 0);
        assert_eq!(ExtendedCapabilities::new(&fake, nobody).count(), 0);
    }

    #[test]
    fn conventional_functions_have_no_extended_part() {
        let mut fake = Fake::new();
        let function = fake.conventional(0, 4, 0);
        fake.set32(function, 0x100, u32::from(extended_id::ACS));
        assert_eq!(find_extended(&fake, function, extended_id::ACS), None);
    }

    #[test]
    fn narrow_accesses_merge() {
        let mut fake = Fake::new();
        let function = fake.conventional(0, 4, 0);
        fake.set32(function, 0x40, 0x4433_2211);
        assert_eq!((0..4).map(|byte| fake.read8(function, 0x40 + byte)).collect::<Vec<_>>(), [0x11, 0x22, 0x33, 0x44]);
        (&&fake as &dyn PciConfig).write16(function, 0x42, 0xbeef);
        assert_eq!(fake.read32(function, 0x40), 0xbeef_2211);
        fake.write16(function, 0x40, 0xcafe);
        assert_eq!(fake.read32(function, 0x40), 0xbeef_cafe);
    }
}
