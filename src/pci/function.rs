//! What a PCI function is and what it offers.

use bitflags::bitflags;

use super::capability::{Capabilities, ExtendedCapabilities};
use super::{PciConfig, capability_id, extended_id};
use crate::id::PciAddress;

/// Registers of the header (PCI 6.1, PCIe 7.5.1).
pub(super) mod header {
    pub(in crate::pci) const VENDOR: u16 = 0x00;
    pub(in crate::pci) const STATUS: u16 = 0x06;
    pub(in crate::pci) const STATUS_CAPABILITIES: u16 = 1 << 4;
    pub(in crate::pci) const CLASS: u16 = 0x08;
    pub(in crate::pci) const TYPE: u16 = 0x0e;
    pub(in crate::pci) const TYPE_LAYOUT: u8 = 0x7f;
    pub(in crate::pci) const TYPE_MULTIFUNCTION: u8 = 0x80;
    pub(in crate::pci) const LAYOUT_BRIDGE: u8 = 1;
    pub(in crate::pci) const LAYOUT_CARDBUS: u8 = 2;
    pub(in crate::pci) const CARDBUS_CAPABILITIES: u16 = 0x14;
    pub(in crate::pci) const BUS_NUMBERS: u16 = 0x18;
    pub(in crate::pci) const CAPABILITIES: u16 = 0x34;
    pub(in crate::pci) const BYTES: u16 = 0x40;
}

/// What a function is, by its PCI Express capability (PCIe 7.5.3.2), or by its header without one.
///
/// ```
/// use iommu::pci::PciKind;
/// assert!(PciKind::RootPort.is_express());
/// assert!(!PciKind::Conventional.is_express());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PciKind {
    /// A PCI Express endpoint.
    Endpoint,
    /// A legacy PCI Express endpoint.
    LegacyEndpoint,
    /// A root port.
    RootPort,
    /// The upstream port of a switch.
    UpstreamPort,
    /// A downstream port of a switch.
    DownstreamPort,
    /// A bridge from PCI Express down to a conventional bus.
    PcieToPciBridge,
    /// A bridge from a conventional bus down to PCI Express.
    PciToPcieBridge,
    /// An endpoint inside the root complex.
    RootComplexEndpoint,
    /// A root complex event collector.
    RootComplexEventCollector,
    /// A PCI Express function of a kind that the specification reserves.
    UnknownExpress(u8),
    /// A bridge between conventional buses, or a CardBus bridge.
    ConventionalBridge,
    /// A conventional device.
    Conventional,
}

impl PciKind {
    /// The kind for the device/port type of a PCI Express capability.
    const fn from_express(number: u8) -> Self {
        match number {
            0 => Self::Endpoint,
            1 => Self::LegacyEndpoint,
            4 => Self::RootPort,
            5 => Self::UpstreamPort,
            6 => Self::DownstreamPort,
            7 => Self::PcieToPciBridge,
            8 => Self::PciToPcieBridge,
            9 => Self::RootComplexEndpoint,
            10 => Self::RootComplexEventCollector,
            other => Self::UnknownExpress(other),
        }
    }

    /// Whether the function has a PCI Express capability.
    pub const fn is_express(self) -> bool {
        !matches!(self, Self::Conventional | Self::ConventionalBridge)
    }
}

/// Bus numbers of a bridge (PCI-to-PCI Bridge Architecture 1.2, 3.2.5).
///
/// ```
/// use iommu::pci::BusNumbers;
/// assert!(BusNumbers { primary: 0, secondary: 1, subordinate: 3 }.leads_to(2));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusNumbers {
    /// The bus the bridge is on.
    pub primary: u8,
    /// The bus right below it.
    pub secondary: u8,
    /// The highest bus anywhere below it (inclusive).
    pub subordinate: u8,
}

impl BusNumbers {
    /// Whether `bus` lies below the bridge.
    pub const fn leads_to(self, bus: u8) -> bool {
        self.secondary <= bus && bus <= self.subordinate
    }
}

/// Address Translation Services of a function (PCIe 10.5.1).
///
/// ```
/// use iommu::pci::Ats;
/// let ats = Ats { offset: 0x100, queue_depth: 32, page_aligned: true, global_invalidate: false };
/// assert_eq!(ats.control(), 0x106);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ats {
    /// Where the extended capability begins, in bytes.
    pub offset: u16,
    /// Invalidations that the function takes before it slows its link down, 1 to 32.
    pub queue_depth: u8,
    /// Untranslated addresses in its requests are always aligned to 4096 bytes.
    pub page_aligned: bool,
    /// It honours the flag that invalidates for all PASIDs.
    pub global_invalidate: bool,
}

impl Ats {
    /// Offset of the control register, 16 bits; what is below it cannot be written.
    pub const fn control(&self) -> u16 {
        self.offset.wrapping_add(6)
    }
}

/// Page requests of a function (PCIe 10.5.2).
///
/// ```
/// use iommu::pci::Pri;
/// let pri = Pri { offset: 0x140, capacity: 64, response_needs_pasid: true };
/// assert_eq!(pri.capacity, 64);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pri {
    /// Where the extended capability begins, in bytes.
    pub offset: u16,
    /// How many page requests it can have outstanding.
    pub capacity: u32,
    /// Responses to requests with a PASID must carry it.
    pub response_needs_pasid: bool,
}

/// PASIDs of a function (PCIe 7.8.8).
///
/// ```
/// use iommu::pci::PasidCapability;
/// let pasid = PasidCapability { offset: 0x180, width: 20, execute: false, privileged: true };
/// assert_eq!(1u32 << pasid.width, 1 << 20);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidCapability {
    /// Where the extended capability begins, in bytes.
    pub offset: u16,
    /// Binary digits of the PASIDs it can send, at most 20.
    pub width: u8,
    /// It can ask for permission to execute.
    pub execute: bool,
    /// It can send privileged requests.
    pub privileged: bool,
}

bitflags! {
    /// Access Control Services (PCIe 7.7.8.2), as bits of the capability and of the control register.
    ///
    /// ```
    /// use iommu::pci::AcsFlags;
    /// assert_eq!(AcsFlags::ISOLATION.bits(), 0x1d);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct AcsFlags: u16 {
        /// Requests with a requester id from elsewhere are dropped.
        const SOURCE_VALIDATION = 1 << 0;
        /// Requests with a translated address are dropped.
        const TRANSLATION_BLOCKING = 1 << 1;
        /// Peer-to-peer requests go up to the root complex, and so to the IOMMU.
        const REQUEST_REDIRECT = 1 << 2;
        /// Peer-to-peer completions go up.
        const COMPLETION_REDIRECT = 1 << 3;
        /// What comes up and is addressed to below goes up nevertheless.
        const UPSTREAM_FORWARDING = 1 << 4;
        /// A vector of permitted peers.
        const EGRESS_CONTROL = 1 << 5;
        /// Requests with a translated address may go to peers directly.
        const DIRECT_TRANSLATED = 1 << 6;

        /// What isolation needs: no forged requester id, and nothing goes around the IOMMU.
        const ISOLATION = Self::SOURCE_VALIDATION.bits() | Self::REQUEST_REDIRECT.bits()
            | Self::COMPLETION_REDIRECT.bits() | Self::UPSTREAM_FORWARDING.bits();
    }
}

/// Access Control Services of a function (PCIe 6.12).
///
/// ```
/// use iommu::pci::{Acs, AcsFlags};
/// let off = Acs { offset: 0x148, capable: AcsFlags::ISOLATION, enabled: AcsFlags::empty() };
/// assert!(!off.isolates());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acs {
    /// Where the extended capability begins, in bytes.
    pub offset: u16,
    /// What can be enabled.
    pub capable: AcsFlags,
    /// What is enabled.
    pub enabled: AcsFlags,
}

impl Acs {
    /// Whether all that isolation needs is enabled. What the function does not implement it does not
    /// need: it must implement whatever applies to it (PCIe 6.12.1).
    pub const fn isolates(&self) -> bool {
        self.enabled.contains(AcsFlags::ISOLATION.intersection(self.capable))
    }
}

/// What configuration space tells of a function.
///
/// ```
/// use iommu::PciAddress;
/// use iommu::pci::{PciConfig, PciFunction, PciKind};
/// # struct Nic;
/// # impl PciConfig for Nic {
/// #     fn read32(&self, function: PciAddress, offset: u16) -> u32 {
/// #         match (function.requester_id(), offset) { (0x20, 0) => 0x100e_8086, (0x20, 8) => 0x0200_0000, (0x20, _) => 0, _ => u32::MAX }
/// #     }
/// #     fn write32(&self, _: PciAddress, _: u16, _: u32) {}
/// # }
/// # let config = Nic;
/// let nic = PciFunction::read(&config, PciAddress::new(0, 0, 4, 0).unwrap()).unwrap();
/// assert_eq!((nic.vendor, nic.device, nic.class), (0x8086, 0x100e, 0x020000));
/// assert_eq!(nic.kind, PciKind::Conventional);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Base class, sub-class and programming interface, in this order, one byte each.
    pub class: u32,
    /// What it is.
    pub kind: PciKind,
    /// Layout of the header: 0 for devices, 1 for bridges, 2 for CardBus bridges.
    pub layout: u8,
    /// It is one of several functions of its device.
    pub multifunction: bool,
    /// The buses of a bridge.
    pub buses: Option<BusNumbers>,
    /// Address translation services.
    pub ats: Option<Ats>,
    /// Page requests.
    pub pri: Option<Pri>,
    /// PASIDs.
    pub pasid: Option<PasidCapability>,
    /// Access control services.
    pub acs: Option<Acs>,
}

impl PciFunction {
    /// Reads what is at `address`, or `None` when nothing is.
    ///
    /// Virtual functions (SR-IOV) answer no vendor id, so they count as absent.
    pub fn read(config: &dyn PciConfig, address: PciAddress) -> Option<Self> {
        let id = config.read32(address, header::VENDOR);
        if id as u16 == u16::MAX {
            return None;
        }
        let type_register = config.read8(address, header::TYPE);
        let layout = type_register & header::TYPE_LAYOUT;
        let buses = matches!(layout, header::LAYOUT_BRIDGE | header::LAYOUT_CARDBUS).then(|| {
            let [primary, secondary, subordinate, _] = config.read32(address, header::BUS_NUMBERS).to_le_bytes();
            BusNumbers { primary, secondary, subordinate }
        });
        let express = Capabilities::new(config, address).find(|&(id, _)| id == capability_id::EXPRESS);
        let kind = match express {
            Some((_, offset)) => PciKind::from_express((config.read32(address, offset) >> 20 & 0xf) as u8),
            None if buses.is_some() => PciKind::ConventionalBridge,
            None => PciKind::Conventional,
        };
        let mut function = Self {
            address,
            vendor: id as u16,
            device: (id >> 16) as u16,
            class: config.read32(address, header::CLASS) >> 8,
            kind,
            layout,
            multifunction: type_register & header::TYPE_MULTIFUNCTION != 0 || address.function() != 0,
            buses,
            ats: None,
            pri: None,
            pasid: None,
            acs: None,
        };
        if express.is_some() {
            for (id, offset) in ExtendedCapabilities::new(config, address) {
                function.read_extended(config, id, offset);
            }
        }
        Some(function)
    }

    /// Whether DMA of this function, and of what is below it if it is a port, can neither reach its
    /// neighbours without passing the IOMMU nor carry their requester ids (PCIe 6.12.1).
    ///
    /// Ports need access control services for that, and so does each function of a device with
    /// several; a function alone in its device has no neighbour. On conventional buses, and so on
    /// both sides of bridges to them, there is no such thing.
    #[inline(never)]
    pub fn is_isolated(&self) -> bool {
        let enabled = self.acs.is_some_and(|acs| acs.isolates());
        match self.kind {
            PciKind::RootPort | PciKind::DownstreamPort => enabled,
            PciKind::Endpoint | PciKind::LegacyEndpoint | PciKind::UpstreamPort | PciKind::RootComplexEndpoint => {
                !self.multifunction || enabled
            }
            PciKind::PcieToPciBridge
            | PciKind::PciToPcieBridge
            | PciKind::RootComplexEventCollector
            | PciKind::UnknownExpress(_)
            | PciKind::ConventionalBridge
            | PciKind::Conventional => false,
        }
    }

    fn read_extended(&mut self, config: &dyn PciConfig, id: u16, offset: u16) {
        // Each has two words at least; what is cut off by the end of the space is none.
        if offset > 0x1000 - 8 {
            return;
        }
        let read = |at: u16| match offset.checked_add(at) {
            Some(register) if register < 0x1000 => config.read32(self.address, register),
            _ => 0,
        };
        let capability = read(4);
        let bit = |number: u32| capability >> number & 1 != 0;
        match id {
            extended_id::ACS => {
                let flags = |half: u32| AcsFlags::from_bits_truncate(half as u16);
                self.acs = Some(Acs { offset, capable: flags(capability), enabled: flags(capability >> 16) });
            }
            extended_id::ATS => {
                let queue_depth = match (capability & 0x1f) as u8 {
                    0 => 32,
                    depth => depth,
                };
                self.ats = Some(Ats { offset, queue_depth, page_aligned: bit(5), global_invalidate: bit(6) });
            }
            extended_id::PRI => {
                self.pri = Some(Pri { offset, capacity: read(8), response_needs_pasid: bit(31) });
            }
            extended_id::PASID => {
                let width = ((capability >> 8 & 0x1f) as u8).min(20);
                self.pasid = Some(PasidCapability { offset, width, execute: bit(1), privileged: bit(2) });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::super::{PciConfig, extended_id};
    use super::{AcsFlags, BusNumbers, PciFunction, PciKind};

    #[test]
    fn an_absent_function_is_none() {
        assert_eq!(PciFunction::read(&Fake::new(), Fake::at(0, 4, 0)), None);
    }

    #[test]
    fn extended_capabilities_are_read() {
        let mut fake = Fake::new();
        let function = fake.express(1, 0, 0, PciKind::Endpoint);
        fake.add_extended(function, extended_id::ATS, &[0x0020]);
        fake.add_extended(function, extended_id::PRI, &[0x8000_0000, 77]);
        fake.add_extended(function, extended_id::PASID, &[0x1f << 8 | 4]);
        fake.add_extended(function, extended_id::ACS, &[0x0004_001f]);
        let read = PciFunction::read(&fake, function).unwrap();
        let (ats, pri, pasid, acs) = (read.ats.unwrap(), read.pri.unwrap(), read.pasid.unwrap(), read.acs.unwrap());
        assert_eq!((ats.queue_depth, ats.page_aligned, ats.global_invalidate), (32, true, false));
        assert_eq!(ats.control(), ats.offset + 6);
        assert_eq!((pri.capacity, pri.response_needs_pasid), (77, true));
        assert_eq!((pasid.width, pasid.execute, pasid.privileged), (20, false, true));
        assert_eq!(acs.capable, AcsFlags::ISOLATION | AcsFlags::TRANSLATION_BLOCKING);
        assert_eq!(acs.enabled, AcsFlags::REQUEST_REDIRECT);
        assert_eq!(fake.read32(function, acs.offset) as u16, extended_id::ACS);
    }

    #[test]
    fn what_the_end_cuts_off_is_not_read() {
        let mut fake = Fake::new();
        let function = fake.express(1, 0, 0, PciKind::Endpoint);
        fake.set32(function, 0x100, 0xff8 << 20 | u32::from(extended_id::ACS));
        fake.set32(function, 0xff8, 0xffc << 20 | u32::from(extended_id::PRI));
        fake.set32(function, 0xffc, u32::from(extended_id::ATS));
        let read = PciFunction::read(&fake, function).unwrap();
        assert_eq!((read.acs.map(|acs| acs.offset), read.ats), (Some(0x100), None));
        assert_eq!(read.pri.map(|pri| (pri.offset, pri.capacity)), Some((0xff8, 0)));
    }

    #[test]
    fn bridges_tell_their_buses() {
        let mut fake = Fake::new();
        let port = fake.port(0, 1, 0, PciKind::RootPort, 3..=7);
        let read = PciFunction::read(&fake, port).unwrap();
        assert_eq!(read.kind, PciKind::RootPort);
        assert_eq!(read.buses, Some(BusNumbers { primary: 0, secondary: 3, subordinate: 7 }));
        assert_eq!((read.layout, read.class >> 8), (1, 0x0604));
        let bridge = fake.conventional_bridge(0, 2, 0, 8..=8);
        assert_eq!(PciFunction::read(&fake, bridge).unwrap().kind, PciKind::ConventionalBridge);
    }

    #[test]
    fn what_is_not_implemented_is_not_needed() {
        let mut fake = Fake::new();
        let function = fake.express(0, 4, 1, PciKind::Endpoint);
        let isolated = |fake: &Fake| PciFunction::read(fake, function).unwrap().is_isolated();
        assert!(!isolated(&fake), "one of several functions, without ACS");
        fake.add_extended(function, extended_id::ACS, &[0x0000_000c]);
        assert!(!isolated(&fake), "capable but not enabled");
        let offset = PciFunction::read(&fake, function).unwrap().acs.unwrap().offset;
        fake.write16(function, offset + 6, 0x0c);
        assert!(isolated(&fake));
    }
}
