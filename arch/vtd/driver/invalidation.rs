//! Which descriptors drop a set of ranges (VT-d 6.5.2.3, 6.5.2.4).
#![deny(clippy::arithmetic_side_effects)]

use super::capabilities::Capabilities;
use crate::addr::{Iova, IovaRange};
use crate::arch::vtd::layout::descriptors::{Changed, Drain, IotlbScope, PasidIotlbScope, Request};
use crate::arch::vtd::layout::{Cap, Descriptor, DomainId};
use crate::id::Pasid;
use crate::iotlb::{CacheTag, Depth};

/// Page-selective requests for one invalidation. More cost more than dropping the whole domain.
pub(super) const MAX_PAGE_REQUESTS: usize = 8;

/// Blocks that one range is cut into before a single larger block is taken.
const BLOCKS_A_RANGE: usize = 4;

const PAGE_BITS: u32 = 12;

/// The requests of one invalidation.
pub(super) type Requests = heapless::Vec<Descriptor, MAX_PAGE_REQUESTS>;

/// Adds the IOTLB requests that drop `ranges` of what is cached under a tag to none; everything of it
/// when there is no range, or when that is cheaper.
pub(super) fn iotlb_requests(
    capabilities: &Capabilities,
    tag: CacheTag,
    ranges: &[IovaRange],
    depth: Depth,
    requests: &mut Requests,
) {
    let under = Under { domain: DomainId::new(tag.id as u16), pasid: tag.pasid, drain: drain(capabilities) };
    let max_mask = capabilities.cap.contains(Cap::PSI).then_some(capabilities.cap.max_address_mask());
    let selective = max_mask.filter(|_| !ranges.is_empty());
    if selective.and_then(|max_mask| page_requests(under, ranges, depth, max_mask, requests)).is_none() {
        requests.clear();
        // One always fits.
        let _ = requests.push(under.all());
    }
}

/// What is cached by domain, for a second-stage table, or by domain and PASID, for a first-stage table.
#[derive(Clone, Copy)]
struct Under {
    domain: DomainId,
    pasid: Option<Pasid>,
    /// Requests by PASID drain always (6.5.2.4).
    drain: Drain,
}

impl Under {
    fn all(self) -> Descriptor {
        let domain = self.domain;
        match self.pasid {
            None => Request::Iotlb(IotlbScope::Domain(domain), self.drain).encode(),
            Some(pasid) => Request::PasidIotlb(PasidIotlbScope::Pasid { domain, pasid: pasid.as_u32() }).encode(),
        }
    }

    fn pages(self, address: Iova, mask: u8, changed: Changed) -> Descriptor {
        let domain = self.domain;
        match self.pasid {
            None => Request::Iotlb(IotlbScope::Pages { domain, address, mask, changed }, self.drain).encode(),
            Some(pasid) => {
                let pasid = pasid.as_u32();
                Request::PasidIotlb(PasidIotlbScope::Pages { domain, pasid, address, mask, changed }).encode()
            }
        }
    }
}

/// Which requests in flight an invalidation waits for: all that the unit can drain (VT-d 6.5.4).
pub(super) fn drain(capabilities: &Capabilities) -> Drain {
    let reads = if capabilities.cap.contains(Cap::DRD) { Drain::READS } else { Drain::empty() };
    let writes = if capabilities.cap.contains(Cap::DWD) { Drain::WRITES } else { Drain::empty() };
    reads | writes
}

/// `None` when it takes too many requests, or one larger than the unit has.
fn page_requests(
    under: Under,
    ranges: &[IovaRange],
    depth: Depth,
    max_mask: u8,
    requests: &mut Requests,
) -> Option<()> {
    let changed = match depth {
        Depth::Leaves => Changed::Leaves,
        Depth::Tables => Changed::Tables,
    };
    let add = |requests: &mut Requests, (address, mask)| requests.push(under.pages(address, mask, changed)).ok();
    for range in ranges {
        let (address, mask) = covering_block(*range);
        // Mostly it is one page.
        if mask == 0 {
            add(requests, (address, mask))?;
        } else {
            blocks(*range, max_mask)?.into_iter().try_for_each(|block| add(requests, block))?;
        }
    }
    Some(())
}

/// Naturally aligned blocks of `1 << mask` pages that cover the range: exactly if a few do, else one.
fn blocks(range: IovaRange, max_mask: u8) -> Option<heapless::Vec<(Iova, u8), BLOCKS_A_RANGE>> {
    exact_blocks(range, max_mask).or_else(|| {
        let (address, mask) = covering_block(range);
        (mask <= max_mask).then(|| heapless::Vec::from_iter([(address, mask)]))
    })
}

fn exact_blocks(range: IovaRange, max_mask: u8) -> Option<heapless::Vec<(Iova, u8), BLOCKS_A_RANGE>> {
    let mut blocks = heapless::Vec::new();
    let mut page = range.start().as_u64() >> PAGE_BITS;
    let last = range.last().as_u64() >> PAGE_BITS;
    loop {
        let left = last.wrapping_sub(page);
        // The largest that is aligned here and does not pass the end.
        let fits = 63u32.wrapping_sub(left.saturating_add(1).leading_zeros());
        let mask = page.trailing_zeros().min(fits).min(u32::from(max_mask));
        blocks.push((Iova::new(page << PAGE_BITS), mask as u8)).ok()?;
        let past = 1u64.checked_shl(mask)?;
        if left < past {
            return Some(blocks);
        }
        page = page.checked_add(past)?;
    }
}

/// The one block that is aligned to its size and covers the range.
pub(super) fn covering_block(range: IovaRange) -> (Iova, u8) {
    let (first, last) = (range.start().as_u64() >> PAGE_BITS, range.last().as_u64() >> PAGE_BITS);
    let mask = 64u32.wrapping_sub((first ^ last).leading_zeros());
    let aligned = first.checked_shr(mask).and_then(|block| block.checked_shl(mask)).unwrap_or(0);
    (Iova::new(aligned << PAGE_BITS), mask as u8)
}

#[cfg(test)]
mod tests {
    use super::{blocks, covering_block};
    use crate::addr::{Iova, IovaRange};

    fn pages(first: u64, count: u64) -> IovaRange {
        IovaRange::from_len(Iova::new(first << 12), count << 12).unwrap()
    }

    fn block(page: u64, mask: u8) -> (Iova, u8) {
        (Iova::new(page << 12), mask)
    }

    #[test]
    fn aligned_ranges_take_one_block() {
        assert_eq!(blocks(pages(5, 1), 18).unwrap(), [block(5, 0)]);
        assert_eq!(blocks(pages(512, 512), 18).unwrap(), [block(512, 9)]);
    }

    #[test]
    fn a_few_blocks_are_exact() {
        assert_eq!(blocks(pages(3, 6), 18).unwrap(), [block(3, 0), block(4, 2), block(8, 0)]);
    }

    #[test]
    fn many_blocks_become_one() {
        assert_eq!(blocks(pages(1, 61), 18).unwrap(), [block(0, 6)]);
        assert_eq!(blocks(pages(1, 61), 5), None, "too large for the unit");
    }

    #[test]
    fn a_mask_limit_cuts() {
        assert_eq!(blocks(pages(0, 4), 1).unwrap(), [block(0, 1), block(2, 1)]);
    }

    #[test]
    fn the_whole_space() {
        assert_eq!(covering_block(IovaRange::full()), block(0, 52));
        assert_eq!(blocks(IovaRange::full(), 18), None);
        assert_eq!(blocks(pages((1 << 52) - 1, 1), 18).ok_or(()).unwrap_or_default(), [block((1 << 52) - 1, 0)]);
    }
}
