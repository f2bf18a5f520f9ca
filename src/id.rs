//! Typed numbers: who a request comes from, and on whose behalf.

use core::fmt;

/// A process address space id: 20 bits that a device may send with a request (PCIe 6.20).
///
/// PASID 0 stands for requests *without* a PASID wherever a PASID is optional.
///
/// ```
/// use iommu::Pasid;
/// assert_eq!(Pasid::new(1 << 20), None);
/// assert_eq!(Pasid::new(7).unwrap().as_u32(), 7);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Pasid(u32);

impl Pasid {
    /// PASID 0.
    pub const ZERO: Self = Self(0);

    /// The PASID with this number, or `None` when it needs more than 20 bits.
    pub const fn new(pasid: u32) -> Option<Self> {
        if pasid < 1 << 20 { Some(Self(pasid)) } else { None }
    }

    /// The number.
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// A PCI function: segment (domain), bus, device, function.
///
/// ```
/// use iommu::PciAddress;
/// let edu = PciAddress::new(0, 0, 4, 0).unwrap();
/// assert_eq!(edu.to_string(), "0000:00:04.0");
/// assert_eq!(edu.requester_id(), 0x20);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    segment: u16,
    requester_id: u16,
}

impl PciAddress {
    /// The function at `segment:bus:device.function`, or `None` when `device` is above 31 or
    /// `function` above 7.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self { segment, requester_id: (bus as u16) << 8 | (device as u16) << 3 | function as u16 })
    }

    /// The function with this requester id (bus in the high byte, device and function in the low).
    pub const fn from_requester_id(segment: u16, requester_id: u16) -> Self {
        Self { segment, requester_id }
    }

    /// The PCI segment group.
    pub const fn segment(self) -> u16 {
        self.segment
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        (self.requester_id >> 8) as u8
    }

    /// The device number, 0 to 31.
    pub const fn device(self) -> u8 {
        (self.requester_id >> 3 & 31) as u8
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        (self.requester_id & 7) as u8
    }

    /// Device and function in one byte.
    pub const fn devfn(self) -> u8 {
        self.requester_id as u8
    }

    /// Bus, device and function as they stand in a request.
    pub const fn requester_id(self) -> u16 {
        self.requester_id
    }

    /// Another function of the same device.
    pub const fn with_function(self, function: u8) -> Self {
        Self { segment: self.segment, requester_id: self.requester_id & !7 | (function & 7) as u16 }
    }

    /// What the IOMMU sees of a request by this function.
    pub const fn source_id(self) -> SourceId {
        SourceId::pci(self.segment, self.requester_id)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who issued a request, as an IOMMU names it: a PCI segment with a requester id, or the stream id
/// of a platform device.
///
/// ```
/// use iommu::SourceId;
/// let source = SourceId::pci(1, 0x20);
/// assert_eq!((source.segment(), source.id()), (1, 0x20));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SourceId(u64);

impl SourceId {
    /// The source id of a PCI request.
    pub const fn pci(segment: u16, requester_id: u16) -> Self {
        Self((segment as u64) << 16 | requester_id as u64)
    }

    /// The source id of a platform device: the unit's number and the id it knows the device by.
    pub const fn platform(unit: u16, id: u32) -> Self {
        Self(1 << 48 | (unit as u64) << 32 | id as u64)
    }

    /// Whether this is a PCI request.
    pub const fn is_pci(self) -> bool {
        self.0 >> 48 == 0
    }

    /// PCI segment, or the unit's number for a platform device.
    pub const fn segment(self) -> u16 {
        if self.is_pci() { (self.0 >> 16) as u16 } else { (self.0 >> 32) as u16 }
    }

    /// Requester id (16 bits) or stream id (32 bits).
    pub const fn id(self) -> u32 {
        if self.is_pci() { self.0 as u32 & 0xffff } else { self.0 as u32 }
    }

    /// The PCI function of this source, unless it is a platform device.
    pub const fn pci_address(self) -> Option<PciAddress> {
        if self.is_pci() { Some(PciAddress::from_requester_id(self.segment(), self.id() as u16)) } else { None }
    }

    /// A number that is different for every source: the key of lookup tables.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pci_address() {
            Some(address) => fmt::Display::fmt(&address, f),
            None => write!(f, "unit {} stream {:#x}", self.segment(), self.id()),
        }
    }
}
