//! Page request records (SMMU 8).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use bitflags::bitflags;

use super::{StreamId, field, with_field};

/// Quadwords of a page request record.
pub const PAGE_REQUEST_WORDS: usize = 2;
/// Bytes of a page request record.
pub const PAGE_REQUEST_BYTES: u64 = 16;

bitflags! {
    /// What a page request asks for.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct PageRequestFlags: u8 {
        /// Priv: for an operating system; with a SubstreamID only.
        const PRIVILEGED = 1 << 0;
        /// X: execution; with a SubstreamID only.
        const EXECUTE = 1 << 1;
        /// R.
        const READ = 1 << 2;
        /// W.
        const WRITE = 1 << 3;
        /// Last: the last request of its group.
        const LAST = 1 << 4;
    }
}

/// A page request: a device asks that a page be made present.
///
/// ```
/// use iommu::arch::smmuv3::layout::StreamId;
/// use iommu::arch::smmuv3::layout::page_requests::{PageRequest, PageRequestFlags};
/// let request = PageRequest {
///     stream: StreamId(8),
///     substream: Some(5),
///     group: 3,
///     address: 0x7000,
///     flags: PageRequestFlags::READ | PageRequestFlags::LAST,
/// };
/// assert_eq!(request.encode(), [1 << 63 | 1 << 62 | 1 << 60 | 5 << 32 | 8, 0x7003]);
/// assert_eq!(PageRequest::decode(request.encode()), request);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// StreamID.
    pub stream: StreamId,
    /// SubstreamID, if SSV is set.
    pub substream: Option<u32>,
    /// PRGIndex, 9 bits.
    pub group: u16,
    /// Page address, aligned to 4 KiB.
    pub address: u64,
    /// What is asked for.
    pub flags: PageRequestFlags,
}

/// Where the flags begin.
const FLAGS: u32 = 58;
const SUBSTREAM_VALID: u64 = 1 << 63;

impl PageRequest {
    /// The quadwords, lowest first.
    pub const fn encode(self) -> [u64; PAGE_REQUEST_WORDS] {
        let mut low = self.stream.0 as u64 | (self.flags.bits() as u64) << FLAGS;
        if let Some(substream) = self.substream {
            low = with_field(low | SUBSTREAM_VALID, 51, 32, substream as u64);
        }
        [low, self.address & !0xfff | self.group as u64 & 0x1ff]
    }

    /// What the quadwords say.
    pub const fn decode(words: [u64; PAGE_REQUEST_WORDS]) -> Self {
        let [low, high] = words;
        Self {
            stream: StreamId(field(low, 31, 0) as u32),
            substream: if low & SUBSTREAM_VALID == 0 { None } else { Some(field(low, 51, 32) as u32) },
            group: field(high, 8, 0) as u16,
            address: high & !0xfff,
            flags: PageRequestFlags::from_bits_truncate(field(low, 62, 58) as u8),
        }
    }

    /// Whether it is a marker that a device stopped using a SubstreamID, and no request.
    pub const fn is_stop_marker(self) -> bool {
        let asked = PageRequestFlags::LAST.union(PageRequestFlags::WRITE).union(PageRequestFlags::READ);
        self.substream.is_some() && self.flags.intersection(asked).bits() == PageRequestFlags::LAST.bits()
    }
}
