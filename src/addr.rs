//! Typed addresses and ranges.
//!
//! Three kinds of address must never be mixed up: what a device emits ([`Iova`]), what the memory
//! bus sees ([`PhysAddr`]) and what a guest takes for physical ([`GuestPhysAddr`]). Ranges hold
//! their first and their *last* address, so that the topmost page of a 64-bit space can be named.

use core::fmt;

use crate::error::{Error, InvalidReason};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this number.
            #[inline]
            pub const fn new(address: u64) -> Self {
                Self(address)
            }

            /// The number of this address.
            #[inline]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// Whether the address is a multiple of `bytes`, a power of two.
            #[inline]
            pub const fn is_aligned(self, bytes: u64) -> bool {
                self.0 & bytes.wrapping_sub(1) == 0
            }

            /// The address rounded down to a multiple of `bytes`, a power of two.
            #[inline]
            pub const fn align_down(self, bytes: u64) -> Self {
                Self(self.0 & !bytes.wrapping_sub(1))
            }

            /// The address `bytes` further up, or `None` beyond the top of the 64-bit space.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// An I/O virtual address: what a device puts on the bus, before the IOMMU.
    ///
    /// ```
    /// use iommu::Iova;
    /// assert_eq!(Iova::new(0x1234).align_down(0x1000), Iova::new(0x1000));
    /// ```
    Iova
}

address! {
    /// A physical address: what the memory bus sees, behind the IOMMU.
    ///
    /// ```
    /// use iommu::PhysAddr;
    /// assert!(PhysAddr::new(0x20_0000).is_aligned(0x1000));
    /// ```
    PhysAddr
}

address! {
    /// A guest physical address: what a virtual machine takes for physical.
    ///
    /// ```
    /// use iommu::GuestPhysAddr;
    /// assert_eq!(GuestPhysAddr::new(u64::MAX).checked_add(1), None);
    /// ```
    GuestPhysAddr
}

macro_rules! range {
    ($(#[$doc:meta])* $name:ident of $address:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            start: $address,
            last: $address,
        }

        impl $name {
            /// The range from `start` to `last`, both inside it.
            ///
            /// # Errors
            /// [`InvalidReason::EmptyRange`] when `last` lies below `start`.
            #[inline]
            pub const fn new(start: $address, last: $address) -> Result<Self, Error> {
                if last.0 < start.0 {
                    return Err(Error::Invalid(InvalidReason::EmptyRange));
                }
                Ok(Self { start, last })
            }

            /// The range of `bytes` bytes that begins at `start`.
            ///
            /// # Errors
            /// [`InvalidReason::EmptyRange`] for zero bytes, [`InvalidReason::AddressOverflow`] for
            /// a range that would pass the top of the 64-bit space.
            #[inline]
            pub const fn from_len(start: $address, bytes: u64) -> Result<Self, Error> {
                if bytes == 0 {
                    return Err(Error::Invalid(InvalidReason::EmptyRange));
                }
                match start.0.checked_add(bytes - 1) {
                    Some(last) => Ok(Self { start, last: $address(last) }),
                    None => Err(Error::Invalid(InvalidReason::AddressOverflow)),
                }
            }

            /// The whole 64-bit space.
            #[inline]
            pub const fn full() -> Self {
                Self { start: $address(0), last: $address(u64::MAX) }
            }

            /// The first address inside the range.
            #[inline]
            pub const fn start(&self) -> $address {
                self.start
            }

            /// The last address inside the range (inclusive).
            #[inline]
            pub const fn last(&self) -> $address {
                self.last
            }

            /// Length in bytes, or `None` for the whole 64-bit space, whose length needs 65 bits.
            #[inline]
            pub const fn bytes(&self) -> Option<u64> {
                (self.last.0 - self.start.0).checked_add(1)
            }

            /// Whether `address` lies inside.
            #[inline]
            pub const fn contains(&self, address: $address) -> bool {
                self.start.0 <= address.0 && address.0 <= self.last.0
            }

            /// Whether all of `other` lies inside.
            #[inline]
            pub const fn covers(&self, other: &Self) -> bool {
                self.start.0 <= other.start.0 && other.last.0 <= self.last.0
            }

            /// The part that both ranges share.
            #[inline]
            pub fn intersection(&self, other: &Self) -> Option<Self> {
                Self::new(self.start.max(other.start), self.last.min(other.last)).ok()
            }

            /// Whether first address and length are multiples of `bytes`, a power of two.
            #[inline]
            pub const fn is_aligned(&self, bytes: u64) -> bool {
                (self.start.0 | self.last.0.wrapping_add(1)) & bytes.wrapping_sub(1) == 0
            }

            /// The smallest range aligned to `bytes` (a power of two) that holds this one.
            #[inline]
            pub const fn align_outward(&self, bytes: u64) -> Self {
                let mask = bytes.wrapping_sub(1);
                Self { start: $address(self.start.0 & !mask), last: $address(self.last.0 | mask) }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}..={:#x}", self.start, self.last)
            }
        }
    };
}

range! {
    /// A range of I/O virtual addresses; first and last address are both inside.
    ///
    /// ```
    /// use iommu::{Iova, IovaRange};
    /// let range = IovaRange::from_len(Iova::new(0x1000), 0x2000)?;
    /// assert_eq!(range.last(), Iova::new(0x2fff));
    /// assert!(range.is_aligned(0x1000));
    /// # Ok::<(), iommu::Error>(())
    /// ```
    IovaRange of Iova
}

range! {
    /// A range of physical addresses; first and last address are both inside.
    ///
    /// ```
    /// use iommu::{PhysAddr, PhysRange};
    /// let top = PhysRange::new(PhysAddr::new(u64::MAX - 0xfff), PhysAddr::new(u64::MAX))?;
    /// assert_eq!(top.bytes(), Some(0x1000));
    /// # Ok::<(), iommu::Error>(())
    /// ```
    PhysRange of PhysAddr
}

#[cfg(test)]
mod tests {
    use super::{Iova, IovaRange};
    use crate::error::{Error, InvalidReason};

    #[test]
    fn the_whole_space_has_no_length_in_64_bits() {
        assert_eq!(IovaRange::full().bytes(), None);
        assert!(IovaRange::full().is_aligned(1 << 63));
    }

    #[test]
    fn bad_ranges_are_told_apart() {
        let empty = IovaRange::from_len(Iova::new(0x1000), 0);
        assert_eq!(empty, Err(Error::Invalid(InvalidReason::EmptyRange)));
        let wraps = IovaRange::from_len(Iova::new(u64::MAX), 2);
        assert_eq!(wraps, Err(Error::Invalid(InvalidReason::AddressOverflow)));
    }
}
