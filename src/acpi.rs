//! ACPI tables: what all of them begin with, and bytes that know where in a table they lie.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::error::{ParseError, ParseErrorKind};

/// Types as they lie in a table, of alignment 1: firmware aligns nothing.
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
pub(crate) use layouts;

/// What every table begins with (ACPI 6.5, section 5.2.6).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    length: U32,
    _revision: u8,
    checksum: u8,
    _rest: [u8; 26],
}
static_assertions::assert_eq_size!(Header, [u8; 36]);

impl Header {
    const LENGTH: u32 = core::mem::offset_of!(Self, length) as u32;
    const CHECKSUM: u32 = core::mem::offset_of!(Self, checksum) as u32;
}

/// The table that `bytes` begin with: signature, length and checksum are right, and it has room for
/// `fixed` bytes, 36 at the least.
pub(crate) fn table<'a>(bytes: &'a [u8], signature: &[u8; 4], fixed: usize) -> Result<Part<'a>, ParseError> {
    let all = Part::new(bytes);
    if !bytes.starts_with(signature) {
        let whole = bytes.len() >= signature.len();
        return Err(all.error(if whole { ParseErrorKind::Signature } else { ParseErrorKind::Truncated }));
    }
    all.split(fixed, ParseErrorKind::Truncated)?;
    let (header, _) = all.take::<Header>(ParseErrorKind::Truncated)?;
    let length = usize::try_from(header.length.get()).unwrap_or(usize::MAX);
    if length < fixed {
        return Err(ParseError { offset: Header::LENGTH, kind: ParseErrorKind::Length });
    }
    let (table, _) = all.split(length, ParseErrorKind::Truncated)?;
    if table.bytes().iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) != 0 {
        return Err(ParseError { offset: Header::CHECKSUM, kind: ParseErrorKind::Checksum });
    }
    Ok(table)
}

/// Bytes of the table, and where they begin in it.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    bytes: &'a [u8],
    offset: u32,
}

impl<'a> Part<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// An error about the beginning of this part.
    pub(crate) fn error(&self, kind: ParseErrorKind) -> ParseError {
        self.error_at(0, kind)
    }

    /// An error about the byte at `offset` in this part.
    pub(crate) fn error_at(&self, offset: usize, kind: ParseErrorKind) -> ParseError {
        ParseError { offset: self.offset.saturating_add(u32::try_from(offset).unwrap_or(u32::MAX)), kind }
    }

    /// The `T` that this part begins with, and what follows it; `kind` says what is wrong if it
    /// does not fit.
    pub(crate) fn take<T>(&self, kind: ParseErrorKind) -> Result<(&'a T, Self), ParseError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let (value, _) = T::ref_from_prefix(self.bytes).map_err(|_| self.error(kind))?;
        let (_, rest) = self.split(size_of::<T>(), kind)?;
        Ok((value, rest))
    }

    /// The first `length` bytes and those that follow; `kind` says what is wrong if there are
    /// fewer.
    pub(crate) fn split(&self, length: usize, kind: ParseErrorKind) -> Result<(Self, Self), ParseError> {
        let (bytes, rest) = self.bytes.split_at_checked(length).ok_or_else(|| self.error(kind))?;
        let after = self.error_at(length, kind).offset;
        Ok((Self { bytes, offset: self.offset }, Self { bytes: rest, offset: after }))
    }
}
