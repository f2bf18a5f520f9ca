//! Page requests, and what answers them (VT-d 7.4.1.1 and 7.6.1).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use bitflags::bitflags;

use crate::arch::vtd::layout::field;

/// What became of a group of page requests (VT-d 7.6.1, Table 32).
///
/// ```
/// use iommu::arch::vtd::layout::descriptors::ResponseCode;
/// assert_eq!(ResponseCode::Failure as u64, 0xf);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseCode {
    /// All were serviced.
    Success = 0,
    /// One at least was not.
    InvalidRequest = 1,
    /// The device is to send none any more.
    Failure = 15,
}

impl ResponseCode {
    /// The code with this encoding; `None` for encodings that are not used.
    pub const fn from_encoding(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Success),
            1 => Some(Self::InvalidRequest),
            15 => Some(Self::Failure),
            _ => None,
        }
    }
}

bitflags! {
    /// What a page request asks for (VT-d 7.4.1.1).
    ///
    /// ```
    /// use iommu::arch::vtd::layout::descriptors::PageRequestFlags;
    /// assert_eq!((PageRequestFlags::READ | PageRequestFlags::WRITE).bits(), 3);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PageRequestFlags: u8 {
        /// RDR: to read.
        const READ = 1 << 0;
        /// WRR: to write.
        const WRITE = 1 << 1;
        /// LPIG: it is the last of its group, and wants a response.
        const LAST = 1 << 2;
        /// EXR: to execute; means something with a PASID only.
        const EXECUTE = 1 << 3;
        /// PMR: for the supervisor; means something with a PASID only.
        const PRIVILEGED = 1 << 4;
    }
}

/// A page request, as a device sends it and as it stands in the page request queue (VT-d 7.4.1.1).
///
/// ```
/// use iommu::arch::vtd::layout::descriptors::{PageRequest, PageRequestFlags};
/// let request = PageRequest {
///     source: 0x10,
///     pasid: Some(5),
///     address: 0x7000,
///     group: 1,
///     flags: PageRequestFlags::READ | PageRequestFlags::LAST,
/// };
/// assert_eq!(request.encode(), [0x5_0010_0101, 0x700d, 0, 0]);
/// assert_eq!(PageRequest::decode(request.encode()), Some(request));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// Requester id of the device.
    pub source: u16,
    /// The PASID, 20 bits, if there is one.
    pub pasid: Option<u32>,
    /// The page, a multiple of 4096.
    pub address: u64,
    /// The group (PRGI), 9 bits.
    pub group: u16,
    /// What is asked for.
    pub flags: PageRequestFlags,
}

impl PageRequest {
    /// Bytes in the queue.
    pub const BYTES: usize = 32;

    /// The four quadwords in the queue. Fields that are too large for their place are cut.
    pub const fn encode(self) -> [u64; 4] {
        // Figure 7-1: type 7:0, PP 8, RID 31:16, PASID 51:32, EXR 52, PMR 53; RDR 64, WRR 65, LPIG 66,
        // PRGI 75:67, address 127:76.
        let pasid = match self.pasid {
            Some(pasid) => (pasid as u64 & 0xf_ffff) << 32 | 1 << 8,
            None => 0,
        };
        let flags = self.flags.bits() as u64;
        let low = 1 | pasid | (self.source as u64) << 16 | flags >> 3 << 52;
        let high = self.address & !0xfff | (self.group as u64 & 0x1ff) << 3 | flags & 7;
        [low, high, 0, 0]
    }

    /// The request in these quadwords; `None` when they hold something else.
    pub const fn decode(words: [u64; 4]) -> Option<Self> {
        let [low, high, ..] = words;
        if field(low, 7, 0) != 1 {
            return None;
        }
        let flags = field(high, 2, 0) | field(low, 53, 52) << 3;
        Some(Self {
            source: field(low, 31, 16) as u16,
            pasid: if low & 1 << 8 == 0 { None } else { Some(field(low, 51, 32) as u32) },
            address: high & !0xfff,
            group: field(high, 11, 3) as u16,
            flags: PageRequestFlags::from_bits_truncate(flags as u8),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{PageRequest, PageRequestFlags, ResponseCode};

    #[test]
    fn every_field_of_a_page_request() {
        let request = PageRequest {
            source: 0xabcd,
            pasid: Some(0xf_fffe),
            address: 0xffff_8000_0000_1000,
            group: 0x1ff,
            flags: PageRequestFlags::all(),
        };
        assert_eq!(request.encode(), [0x3f_fffe_abcd_0101, 0xffff_8000_0000_1fff, 0, 0]);
        assert_eq!(PageRequest::decode(request.encode()), Some(request));
        let plain = PageRequest { pasid: None, flags: PageRequestFlags::WRITE, ..request };
        assert_eq!(plain.encode(), [0xabcd_0001, 0xffff_8000_0000_1ffa, 0, 0]);
        assert_eq!(PageRequest::decode(plain.encode()), Some(plain));
        assert_eq!(PageRequest::decode([2, 0, 0, 0]), None);
    }

    #[test]
    fn response_codes() {
        for code in 0..16 {
            assert_eq!(
                ResponseCode::from_encoding(code).map(|code| code as u64),
                [0, 1, 15].contains(&code).then_some(code)
            );
        }
    }
}
