//! Reserved memory ranges (DEN 0049, section 3.1.1.7).

use core::fmt;
use core::mem::offset_of;

use bitflags::bitflags;
use zerocopy::FromBytes;

use super::raw::{NodeHeader, RawRange, RmrBody};
use crate::acpi::Part;
use crate::addr::{PhysAddr, PhysRange};
use crate::error::{ParseError, ParseErrorKind};

bitflags! {
    /// Flags of reserved memory (DEN 0049, table 18), but for the attributes.
    ///
    /// ```
    /// use iommu::arch::smmuv3::firmware::iort::RmrFlags;
    /// assert_eq!(RmrFlags::PRIVILEGED.bits(), 2);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RmrFlags: u32 {
        /// The memory may move, if the device is told; without, it stays mapped one to one.
        const REMAPPING_PERMITTED = 1 << 0;
        /// Accesses are privileged.
        const PRIVILEGED = 1 << 1;
        const _ = !0;
    }
}

/// The memory attributes of accesses to reserved memory (DEN 0049, table 18).
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::RmrAttributes;
/// assert_eq!(RmrAttributes::from_number(5), RmrAttributes::NormalWriteBack);
/// assert!(RmrAttributes::from_number(3).is_device());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RmrAttributes {
    /// Device-nGnRnE.
    DeviceNgnrne,
    /// Device-nGnRE.
    DeviceNgnre,
    /// Device-nGRE.
    DeviceNgre,
    /// Device-GRE.
    DeviceGre,
    /// Normal, non-cacheable, inner and outer.
    NormalNonCacheable,
    /// Normal, write-back, inner and outer.
    NormalWriteBack,
    /// One that this crate does not know.
    Unknown(u8),
}

/// Memory that devices use on firmware's behalf.
///
/// Its mappings say which: their output is StreamIDs at the SMMU to which they refer.
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{Node, NodeKind, RmrAttributes, RmrFlags};
/// let mut bytes = [0; 48];
/// (bytes[0], bytes[1], bytes[3]) = (6, 48, 3); // RMR, length, revision
/// (bytes[16], bytes[20], bytes[24]) = (5 << 2 | 1, 1, 28); // flags, one range at 28
/// (bytes[31], bytes[38]) = (0x80, 1); // 64 KiB at 2 GiB
/// let NodeKind::Rmr(reserved) = Node::from_bytes(&bytes)?.kind else { unreachable!() };
/// assert_eq!(reserved.flags, RmrFlags::REMAPPING_PERMITTED);
/// assert_eq!(reserved.attributes, RmrAttributes::NormalWriteBack);
/// assert_eq!(reserved.ranges().next().unwrap().to_string(), "0x80000000..=0x8000ffff");
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Rmr<'a> {
    /// What is permitted.
    pub flags: RmrFlags,
    /// The memory attributes of accesses.
    pub attributes: RmrAttributes,
    ranges: &'a [RawRange],
    /// Where `ranges` begin in the table.
    offset: u32,
}

impl<'a> Rmr<'a> {
    const ATTRIBUTES: u32 = 0xff << 2;

    /// The memory as firmware wrote it; no two ranges overlap. It should begin and end at 64 KiB,
    /// but firmware errs: [`PhysRange::align_outward`].
    pub fn ranges(&self) -> impl Iterator<Item = PhysRange> + Clone + use<'a> {
        // Checked, so none is left out.
        self.ranges.iter().filter_map(RawRange::decode)
    }

    /// `whole` is the node, `body` what follows its header.
    pub(super) fn read(whole: Part<'a>, body: Part<'a>) -> Result<Self, ParseError> {
        const SHORT: ParseErrorKind = ParseErrorKind::Length;
        let (fixed, _) = body.take::<RmrBody>(SHORT).map_err(|_| whole.error(SHORT))?;
        let start = usize::try_from(fixed.range_offset.get()).unwrap_or(usize::MAX);
        let bytes =
            usize::try_from(fixed.range_count.get()).unwrap_or(usize::MAX).saturating_mul(size_of::<RawRange>());
        let bad_count = |_| body.error_at(offset_of!(RmrBody, range_count), SHORT);
        let list = match bytes {
            0 => body.split(0, SHORT)?.0,
            _ if start < size_of::<NodeHeader>().saturating_add(size_of::<RmrBody>()) => {
                return Err(body.error_at(offset_of!(RmrBody, range_offset), ParseErrorKind::Value));
            }
            _ => whole.split(start, SHORT).and_then(|(_, rest)| rest.split(bytes, SHORT)).map_err(bad_count)?.0,
        };
        let flags = fixed.flags.get();
        Ok(Self {
            flags: RmrFlags::from_bits_retain(flags & !Self::ATTRIBUTES),
            attributes: RmrAttributes::from_number(((flags & Self::ATTRIBUTES) >> 2) as u8),
            ranges: <[RawRange]>::ref_from_bytes(list.bytes()).map_err(|_| list.error(SHORT))?,
            offset: list.error(SHORT).offset,
        })
    }

    /// Checks the ranges. Comparing every two is bounded by the length of a node: at most 3,276; in
    /// rising order, each is compared with one other.
    pub(super) fn check(&self) -> Result<(), ParseError> {
        let error = |index: usize, field: usize, kind| {
            let place = index.saturating_mul(size_of::<RawRange>()).saturating_add(field);
            ParseError { offset: self.offset.saturating_add(u32::try_from(place).unwrap_or(u32::MAX)), kind }
        };
        let mut highest: Option<PhysAddr> = None;
        for (index, raw) in self.ranges.iter().enumerate() {
            let bad_length = error(index, offset_of!(RawRange, length), ParseErrorKind::Value);
            let range = raw.decode().ok_or(bad_length)?;
            let rising = highest.is_none_or(|highest| range.start() > highest);
            let mut before = self.ranges.get(..index).unwrap_or_default().iter().filter_map(RawRange::decode);
            if !rising && before.any(|other| range.intersection(&other).is_some()) {
                return Err(error(index, offset_of!(RawRange, base), ParseErrorKind::Overlap));
            }
            highest = highest.max(Some(range.last()));
        }
        Ok(())
    }
}

impl RawRange {
    fn decode(&self) -> Option<PhysRange> {
        PhysRange::from_len(PhysAddr::new(self.base.get()), self.length.get()).ok()
    }
}

impl RmrAttributes {
    /// The attributes with this number in the table.
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::DeviceNgnrne,
            1 => Self::DeviceNgnre,
            2 => Self::DeviceNgre,
            3 => Self::DeviceGre,
            4 => Self::NormalNonCacheable,
            5 => Self::NormalWriteBack,
            other => Self::Unknown(other),
        }
    }

    /// Whether it is device memory, not RAM.
    pub const fn is_device(self) -> bool {
        matches!(self, Self::DeviceNgnrne | Self::DeviceNgnre | Self::DeviceNgre | Self::DeviceGre)
    }
}

impl fmt::Debug for Rmr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct List<'a>(Rmr<'a>);
        impl fmt::Debug for List<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(self.0.ranges()).finish()
            }
        }
        f.debug_struct("Rmr")
            .field("flags", &self.flags)
            .field("attributes", &self.attributes)
            .field("ranges", &List(*self))
            .finish()
    }
}
