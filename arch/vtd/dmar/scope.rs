//! Device scopes: how a structure names the devices it means (VT-d section 8.3.1).

use core::fmt;

use bitflags::bitflags;
use zerocopy::FromBytes;

use super::raw::{PathEntry, ScopeHeader};
use crate::acpi::Part;
use crate::error::{ParseError, ParseErrorKind};
use crate::id::PciAddress;

/// What a device scope names.
///
/// ```
/// use iommu::arch::vtd::dmar::ScopeKind;
/// assert_eq!(ScopeKind::from_number(3), ScopeKind::IoApic);
/// assert_eq!(ScopeKind::from_number(77), ScopeKind::Unknown(77));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScopeKind {
    /// One PCI function.
    PciEndpoint,
    /// A PCI bridge and everything below it.
    PciSubHierarchy,
    /// An I/O APIC; the enumeration id is its id in the MADT, the path its source id.
    IoApic,
    /// An HPET block that can send MSIs; the enumeration id is its number in the HPET table.
    Hpet,
    /// A device of the ACPI namespace; the enumeration id is its number in an ANDD structure, the
    /// path its source id.
    AcpiNamespace,
    /// A type that this crate does not know.
    Unknown(u8),
}

impl ScopeKind {
    /// The kind with this number in the table.
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::PciEndpoint,
            2 => Self::PciSubHierarchy,
            3 => Self::IoApic,
            4 => Self::Hpet,
            5 => Self::AcpiNamespace,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for ScopeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PciEndpoint => f.write_str("endpoint"),
            Self::PciSubHierarchy => f.write_str("bridge"),
            Self::IoApic => f.write_str("IOAPIC"),
            Self::Hpet => f.write_str("HPET"),
            Self::AcpiNamespace => f.write_str("ACPI device"),
            Self::Unknown(number) => write!(f, "scope type {number}"),
        }
    }
}

bitflags! {
    /// Properties of a device that an SIDP structure names (VT-d section 8.3.1); reserved in the
    /// scopes of other structures.
    ///
    /// ```
    /// use iommu::arch::vtd::dmar::ScopeFlags;
    /// assert_eq!(ScopeFlags::ATC_REQUIRED.bits(), 0x10);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ScopeFlags: u8 {
        /// Requests without PASID should not be translated by nested translation.
        const REQ_WO_PASID_NESTED_NOTALLOWED = 1 << 0;
        /// The PASID entry for requests without PASID should not set PWSNP.
        const REQ_WO_PASID_PWSNP_NOTALLOWED = 1 << 1;
        /// The PASID entry for requests without PASID should not set PGSNP.
        const REQ_WO_PASID_PGSNP_NOTALLOWED = 1 << 2;
        /// The device's translation cache is trusted to be as strict as the unit.
        const ATC_HARDENED = 1 << 3;
        /// The device works only with its translation cache on.
        const ATC_REQUIRED = 1 << 4;
        const _ = !0;
    }
}

/// One device scope of a structure.
///
/// ```
/// use iommu::arch::vtd::dmar::{DeviceScope, ScopeKind, resolve};
/// use iommu::PciAddress;
///
/// // An endpoint: from bus 0 through the bridge at device 0x1c, function 4, to device 0.
/// let scope = DeviceScope::from_bytes(&[1, 10, 0, 0, 0, 0, 0x1c, 4, 0, 0]).unwrap();
/// assert_eq!(scope.kind(), ScopeKind::PciEndpoint);
/// assert_eq!(scope.path().collect::<Vec<_>>(), [(0x1c, 4), (0, 0)]);
/// assert_eq!(scope.to_string(), "endpoint 00:1c.4/00.0");
///
/// // The bridge leads to bus 3.
/// let bridge = PciAddress::new(0, 0, 0x1c, 4);
/// let device = resolve(&scope, 0, |function| (Some(function) == bridge).then_some(3));
/// assert_eq!(device, PciAddress::new(0, 3, 0, 0));
/// ```
#[derive(Clone, Copy)]
pub struct DeviceScope<'a> {
    header: &'a ScopeHeader,
    path: &'a [PathEntry],
}

impl<'a> DeviceScope<'a> {
    /// The scope that `bytes` begin with.
    ///
    /// # Errors
    /// [`ParseErrorKind::Length`] when its length does not fit, [`ParseErrorKind::Value`] when a
    /// path entry is no device and function. Offsets count from the start of `bytes`.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, ParseError> {
        Self::read(Part::new(bytes)).map(|(scope, _)| scope)
    }

    /// What is named.
    pub fn kind(&self) -> ScopeKind {
        ScopeKind::from_number(self.header.kind)
    }

    /// Properties of the device, if the scope stands in an SIDP structure.
    pub fn flags(&self) -> ScopeFlags {
        ScopeFlags::from_bits_retain(self.header.flags)
    }

    /// The number of the I/O APIC, HPET block or ACPI device; without meaning for PCI.
    pub fn enumeration_id(&self) -> u8 {
        self.header.enumeration_id
    }

    /// The bus on which the path begins.
    pub fn start_bus(&self) -> u8 {
        self.header.start_bus
    }

    /// The path: device (0 to 31) and function (0 to 7) of each bridge on the way, and at last of
    /// the device itself. Never empty, save for unknown kinds of scope.
    pub fn path(&self) -> impl ExactSizeIterator<Item = (u8, u8)> + Clone + use<'a> {
        self.path.iter().map(|entry| (entry.device, entry.function))
    }

    pub(super) fn read(part: Part<'a>) -> Result<(Self, Part<'a>), ParseError> {
        let (header, _) = part.take::<ScopeHeader>(ParseErrorKind::Length)?;
        let (scope, rest) = part.split(usize::from(header.length), ParseErrorKind::Length)?;
        let (_, tail) = scope.take::<ScopeHeader>(ParseErrorKind::Length)?;
        if let ScopeKind::Unknown(_) = ScopeKind::from_number(header.kind) {
            return Ok((Self { header, path: &[] }, rest));
        }
        let path = <[PathEntry]>::ref_from_bytes(tail.bytes()).map_err(|_| scope.error(ParseErrorKind::Length))?;
        if path.is_empty() {
            return Err(scope.error(ParseErrorKind::Length));
        }
        for (index, entry) in path.iter().enumerate() {
            if PciAddress::new(0, 0, entry.device, entry.function).is_none() {
                return Err(tail.error_at(index.saturating_mul(size_of::<PathEntry>()), ParseErrorKind::Value));
            }
        }
        Ok((Self { header, path }, rest))
    }
}

impl fmt::Display for DeviceScope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind())?;
        if let ScopeKind::IoApic | ScopeKind::Hpet | ScopeKind::AcpiNamespace = self.kind() {
            write!(f, " {} at", self.enumeration_id())?;
        }
        write!(f, " {:02x}", self.start_bus())?;
        for (index, (device, function)) in self.path().enumerate() {
            write!(f, "{}{device:02x}.{function}", if index == 0 { ':' } else { '/' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for DeviceScope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The device scopes of a structure: an iterator over [`DeviceScope`].
///
/// ```
/// use iommu::arch::vtd::dmar::Structure;
/// // Every root port: no scope is needed.
/// let Structure::Atsr(ports) = Structure::from_bytes(&[2, 0, 8, 0, 1, 0, 0, 0])? else { unreachable!() };
/// assert_eq!(ports.scopes.count(), 0);
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Scopes<'a> {
    rest: Part<'a>,
}

impl<'a> Scopes<'a> {
    /// Checks the scopes that fill `part`.
    #[inline(never)]
    pub(super) fn read(part: Part<'a>) -> Result<Self, ParseError> {
        let mut rest = part;
        while !rest.bytes().is_empty() {
            (_, rest) = DeviceScope::read(rest)?;
        }
        Ok(Self { rest: part })
    }
}

impl<'a> Iterator for Scopes<'a> {
    type Item = DeviceScope<'a>;

    #[inline(never)]
    fn next(&mut self) -> Option<DeviceScope<'a>> {
        // Checked by `read`, so the only error that can be met is the end.
        let (scope, rest) = DeviceScope::read(self.rest).ok()?;
        self.rest = rest;
        Some(scope)
    }
}

impl fmt::Debug for Scopes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(*self).finish()
    }
}

/// The function to which a scope's path leads in PCI segment `segment`: the device, or the bridge
/// on top of a sub-hierarchy; for I/O APICs, HPETs and ACPI devices their source id.
///
/// `secondary_bus` reads the secondary bus number of a bridge from configuration space (offset
/// 0x19), and is `None` when there is no bridge. So is the answer when the path leads through a
/// function that is no bridge, or one that is not set up (secondary bus 0).
pub fn resolve(
    scope: &DeviceScope<'_>,
    segment: u16,
    mut secondary_bus: impl FnMut(PciAddress) -> Option<u8>,
) -> Option<PciAddress> {
    let mut bus = scope.start_bus();
    let mut steps = scope.path();
    loop {
        let (device, function) = steps.next()?;
        let address = PciAddress::new(segment, bus, device, function)?;
        if steps.len() == 0 {
            return Some(address);
        }
        bus = secondary_bus(address).filter(|&bus| bus != 0)?;
    }
}

/// How a scope in PCI segment `segment` covers a PCI function, if it does: `Some(0)` when the
/// function itself is named, `Some(n)` when it lies below a named bridge, the `n`-th of `bridges`.
///
/// `bridges` are those above `function`, the nearest first, up to the root port. `secondary_bus` is
/// as in [`resolve`].
pub fn covers(
    scope: &DeviceScope<'_>,
    segment: u16,
    function: PciAddress,
    bridges: &[PciAddress],
    secondary_bus: impl FnMut(PciAddress) -> Option<u8>,
) -> Option<usize> {
    let kind = scope.kind();
    if segment != function.segment() || !matches!(kind, ScopeKind::PciEndpoint | ScopeKind::PciSubHierarchy) {
        return None;
    }
    let named = resolve(scope, segment, secondary_bus)?;
    if named == function {
        return Some(0);
    }
    if kind == ScopeKind::PciEndpoint {
        return None;
    }
    bridges.iter().position(|&bridge| bridge == named).map(|above| above.saturating_add(1))
}
