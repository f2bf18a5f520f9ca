//! Fixed parts of the table's structures as they lie in memory (VT-d sections 8.1 to 8.8), and a
//! slice that knows where in the table it lies.
//!
//! All types have alignment 1: firmware aligns nothing.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::error::{ParseError, ParseErrorKind};

macro_rules! layouts {
    ($($(#[$doc:meta])* $bytes:literal $name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub(super) struct $name {
                $(pub(super) $field: $type,)*
            }
            static_assertions::assert_eq_size!($name, [u8; $bytes]);
            static_assertions::assert_eq_align!($name, u8);
        )*
    };
}

layouts! {
    /// The ACPI header with what DMAR adds to it.
    48 TableHeader {
        _signature: [u8; 4],
        length: U32,
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
    pub(super) const SIGNATURE_BYTES: usize = 4;
    pub(super) const LENGTH: u32 = core::mem::offset_of!(Self, length) as u32;
    pub(super) const REVISION: u32 = core::mem::offset_of!(Self, revision) as u32;
    pub(super) const CHECKSUM: u32 = core::mem::offset_of!(Self, _checksum) as u32;
    pub(super) const WIDTH: u32 = core::mem::offset_of!(Self, width) as u32;
}

/// Bytes of the table, and where they begin in it.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    bytes: &'a [u8],
    offset: u32,
}

impl<'a> Part<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// An error about the beginning of this part.
    pub(super) fn error(&self, kind: ParseErrorKind) -> ParseError {
        self.error_at(0, kind)
    }

    /// An error about the byte at `offset` in this part.
    pub(super) fn error_at(&self, offset: usize, kind: ParseErrorKind) -> ParseError {
        ParseError { offset: self.offset.saturating_add(u32::try_from(offset).unwrap_or(u32::MAX)), kind }
    }

    /// The `T` that this part begins with, and what follows it; `kind` says what is wrong if it
    /// does not fit.
    pub(super) fn take<T>(&self, kind: ParseErrorKind) -> Result<(&'a T, Self), ParseError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let (value, _) = T::ref_from_prefix(self.bytes).map_err(|_| self.error(kind))?;
        let (_, rest) = self.split(size_of::<T>(), kind)?;
        Ok((value, rest))
    }

    /// The first `length` bytes and those that follow; `kind` says what is wrong if there are
    /// fewer.
    pub(super) fn split(&self, length: usize, kind: ParseErrorKind) -> Result<(Self, Self), ParseError> {
        let (bytes, rest) = self.bytes.split_at_checked(length).ok_or_else(|| self.error(kind))?;
        let after = self.error_at(length, kind).offset;
        Ok((Self { bytes, offset: self.offset }, Self { bytes: rest, offset: after }))
    }
}
