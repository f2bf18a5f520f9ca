//! How tables become visible to a walker.

use super::Table;
use crate::addr::PhysAddr;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::sync::Site;

/// How tables of one unit become visible to its walker: whether it snoops, and if not through which
/// platform they are cleaned.
///
/// ```
/// use iommu::PhysAddr;
/// use iommu::hwmem::{FrameTable, Visibility};
/// use iommu::pgtable::WalkerCoherency;
/// use iommu::platform::{Arena, Frame};
/// use iommu::sync::Site;
///
/// const ENTRY_CLEAN: Site = Site::new("clean of an entry");
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 2].into_boxed_slice()))?;
/// let table = FrameTable::new(arena, 0, PhysAddr::new(u64::MAX))?;
/// let visibility = Visibility { platform: arena, coherency: WalkerCoherency::NeedsClean, last: PhysAddr::new(u64::MAX) };
/// table.view().entry(3).store(7);
/// visibility.clean(ENTRY_CLEAN, table.view(), 3, 1);
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Visibility<P: Platform> {
    /// Whose caches are cleaned.
    pub platform: P,
    /// Whether that is needed.
    pub coherency: WalkerCoherency,
    /// The last physical address that the walker reaches: no table is made beyond.
    pub last: PhysAddr,
}

impl<P: Platform> Visibility<P> {
    /// Writes `count` entries from `first` on back from the cache, if the walker does not snoop. Any
    /// context.
    #[inline(never)]
    pub fn clean(&self, site: Site, table: Table<'_>, first: usize, count: usize) {
        if self.coherency == WalkerCoherency::NeedsClean {
            table.clean(site, &self.platform, first, count);
        }
    }

    /// Drops `count` entries from `first` on from the cache, if what the unit writes is not snooped. Any
    /// context.
    pub fn invalidate(&self, site: Site, table: Table<'_>, first: usize, count: usize) {
        if self.coherency == WalkerCoherency::NeedsClean {
            table.invalidate(site, &self.platform, first, count);
        }
    }
}
