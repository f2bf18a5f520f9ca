//! Fixed parts of the table's structures as they lie in memory (VT-d sections 8.1 to 8.8).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::acpi::layouts;

layouts! {
    /// The ACPI header with what DMAR adds to it.
    48 TableHeader {
        _signature: [u8; 4],
        _length: U32,
        revision: u8,
        _checksum: u8,
        _oem: [u8; 14],
        _oem_revision: U32,
        _creator: [u8; 8],
        width: u8,
        flags: u8,
        _reserved: [u8; 10],
    }
    /// Begins every structure. `length` counts this header.
    4 StructureHeader {
        kind: U16,
        length: U16,
    }
    /// DRHD after its header.
    12 DrhdBody {
        flags: u8,
        size: u8,
        segment: U16,
        base: U64,
    }
    /// RMRR after its header.
    20 RmrrBody {
        _reserved: U16,
        segment: U16,
        base: U64,
        limit: U64,
    }
    /// ATSR, SATC and SIDP (where the flags are reserved) after their header.
    4 FlagsBody {
        flags: u8,
        _reserved: u8,
        segment: U16,
    }
    /// RHSA after its header.
    16 RhsaBody {
        _reserved: U32,
        base: U64,
        proximity_domain: U32,
    }
    /// ANDD after its header, without the name that follows.
    4 AnddBody {
        _reserved: [u8; 3],
        number: u8,
    }
    /// Begins every device scope. `length` counts this header and the path.
    6 ScopeHeader {
        kind: u8,
        length: u8,
        flags: u8,
        _reserved: u8,
        enumeration_id: u8,
        start_bus: u8,
    }
    /// One step of a scope's path.
    2 PathEntry {
        device: u8,
        function: u8,
    }
}

impl TableHeader {
    pub(super) const REVISION: u32 = core::mem::offset_of!(Self, revision) as u32;
    pub(super) const WIDTH: u32 = core::mem::offset_of!(Self, width) as u32;
}
