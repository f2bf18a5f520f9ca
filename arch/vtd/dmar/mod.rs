//! The DMAR table: which units there are, and which devices they translate (VT-d section 8).
//!
//! [`Dmar::parse`] checks the whole table once; what is read from it afterwards cannot fail. Units
//! ([`Dmar::units`]) and reserved regions ([`Dmar::reserved_regions`]) say by *device scopes* which
//! devices they mean, and [`Dmar::unit_of`] answers the usual question: which unit translates this
//! function? A scope's path leads through bridges, whose bus numbers stand in configuration space,
//! so those calls ask the caller for the secondary bus of a bridge.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod lookup;
mod raw;
mod scope;
mod structure;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use core::fmt;

use bitflags::bitflags;

use crate::acpi::{self, Part};
use crate::error::{ParseError, ParseErrorKind};
use raw::TableHeader;

pub use scope::{DeviceScope, ScopeFlags, ScopeKind, Scopes, covers, resolve};
pub use structure::{Andd, Atsr, Drhd, Rhsa, Rmrr, Satc, Sidp, Structure};

bitflags! {
    /// Flags of the whole table (VT-d section 8.1).
    ///
    /// ```
    /// use iommu::arch::vtd::dmar::DmarFlags;
    /// assert_eq!(DmarFlags::DMA_CTRL_PLATFORM_OPT_IN_FLAG.bits(), 4);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct DmarFlags: u8 {
        /// The platform supports interrupt remapping.
        const INTR_REMAP = 1 << 0;
        /// Firmware asks not to use x2APIC. Only meaningful with [`Self::INTR_REMAP`].
        const X2APIC_OPT_OUT = 1 << 1;
        /// Firmware restricts DMA until it hands over, and asks the system to go on doing so.
        const DMA_CTRL_PLATFORM_OPT_IN_FLAG = 1 << 2;
        const _ = !0;
    }
}

/// A checked DMAR table.
///
/// ```
/// use iommu::arch::vtd::dmar::{Dmar, DmarFlags};
///
/// // 48 bytes of header; this table describes no unit.
/// let mut table = [0; 48];
/// table[..4].copy_from_slice(b"DMAR");
/// table[4] = 48; // length
/// table[8] = 1; // revision
/// table[36] = 38; // host address width, minus one
/// table[37] = 1; // INTR_REMAP
/// table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
///
/// let dmar = Dmar::parse(&table)?;
/// assert_eq!(dmar.host_address_width(), 39);
/// assert_eq!(dmar.flags(), DmarFlags::INTR_REMAP);
/// assert_eq!(dmar.units().count(), 0);
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Dmar<'a> {
    header: &'a TableHeader,
    structures: Part<'a>,
}

impl<'a> Dmar<'a> {
    /// Checks a table as firmware gives it. `bytes` begins at the signature and may be longer than
    /// the table.
    ///
    /// Structures and scopes of unknown types are kept, by their length. Revisions beyond those
    /// known are accepted: so far each only gave a meaning to reserved fields.
    ///
    /// # Errors
    /// The first thing that is wrong, and where: [`ParseErrorKind::Truncated`] when `bytes` end
    /// before the table does, [`ParseErrorKind::Signature`], [`ParseErrorKind::Checksum`],
    /// [`ParseErrorKind::Revision`] (zero), [`ParseErrorKind::Length`] of a table, structure or
    /// scope that is too short for what it must hold or passes the end of what holds it, and
    /// [`ParseErrorKind::Value`] of a field that cannot be used: a host address width above 64, a
    /// unit's registers at zero or off a 4 KiB boundary, a reserved region that ends before it
    /// begins, a path entry that is no device and function. A reserved region that does not begin
    /// or end at a page is accepted, for firmware has such.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let table = acpi::table(bytes, b"DMAR", size_of::<TableHeader>())?;
        let (header, structures) = table.take::<TableHeader>(ParseErrorKind::Truncated)?;
        if header.revision == 0 {
            return Err(ParseError { offset: TableHeader::REVISION, kind: ParseErrorKind::Revision });
        }
        if header.width > 63 {
            return Err(ParseError { offset: TableHeader::WIDTH, kind: ParseErrorKind::Value });
        }
        let mut rest = structures;
        while !rest.bytes().is_empty() {
            (_, rest) = Structure::read(rest)?;
        }
        Ok(Self { header, structures })
    }

    /// The table's revision, at least 1.
    pub fn revision(&self) -> u8 {
        self.header.revision
    }

    /// How many bits a physical address has at most, 1 to 64 ("host address width").
    pub fn host_address_width(&self) -> u8 {
        self.header.width.saturating_add(1)
    }

    /// Flags of the whole table.
    pub fn flags(&self) -> DmarFlags {
        DmarFlags::from_bits_retain(self.header.flags)
    }

    /// All structures in the table's order.
    pub fn structures(&self) -> impl Iterator<Item = Structure<'a>> + Clone + use<'a> {
        let mut rest = self.structures;
        core::iter::from_fn(move || next_structure(&mut rest))
    }

    /// The units ("DMA remapping hardware unit definitions").
    pub fn units(&self) -> impl Iterator<Item = Drhd<'a>> + Clone + use<'a> {
        self.structures().filter_map(|structure| match structure {
            Structure::Drhd(drhd) => Some(drhd),
            _ => None,
        })
    }

    /// The memory that devices use on firmware's behalf, for all devices.
    pub fn reserved_regions(&self) -> impl Iterator<Item = Rmrr<'a>> + Clone + use<'a> {
        self.structures().filter_map(|structure| match structure {
            Structure::Rmrr(rmrr) => Some(rmrr),
            _ => None,
        })
    }
}

#[inline(never)]
fn next_structure<'a>(rest: &mut Part<'a>) -> Option<Structure<'a>> {
    // Everything was checked by `parse`, so an error cannot be met here.
    let (structure, after) = Structure::read(*rest).ok()?;
    *rest = after;
    Some(structure)
}

/// One line for the table, then one for each structure.
impl fmt::Display for Dmar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DMAR revision {}, {}-bit physical addresses", self.revision(), self.host_address_width())?;
        for (name, _) in self.flags().iter_names() {
            write!(f, ", {name}")?;
        }
        for structure in self.structures() {
            write!(f, "\n  {structure}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Dmar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct List<'a>(Dmar<'a>);
        impl fmt::Debug for List<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(self.0.structures()).finish()
            }
        }
        f.debug_struct("Dmar")
            .field("revision", &self.revision())
            .field("host_address_width", &self.host_address_width())
            .field("flags", &self.flags())
            .field("structures", &List(*self))
            .finish()
    }
}
