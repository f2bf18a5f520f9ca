//! What a loom model, outside of the crate, needs of a directory with one entry.

use super::PasidDirectory;
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::scalable::PasidEntry;
use crate::error::Result;
use crate::id::Pasid;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;

/// A directory with one PASID table.
#[derive(Debug)]
pub struct OnePasid<P: Platform>(PasidDirectory<P>);

impl<P: Platform> OnePasid<P> {
    /// The entry is absent.
    pub fn new(platform: P) -> Result<Self> {
        let directory = PasidDirectory::new(platform, WalkerCoherency::Snoops, 0)?;
        directory.find_or_make(Pasid::ZERO)?;
        Ok(Self(directory))
    }

    /// Where the directory lies.
    pub fn directory(&self) -> PhysAddr {
        self.0.phys()
    }

    /// Fills the entry, which is absent.
    pub fn publish(&self, entry: PasidEntry) {
        self.0.find(Pasid::ZERO).into_iter().for_each(|slot| slot.publish(entry));
    }

    /// Makes the entry absent; what it was.
    pub fn withdraw(&self) -> Option<PasidEntry> {
        self.0.find(Pasid::ZERO)?.withdraw()
    }

    /// Clears the entry, which is absent.
    pub fn clear(&self) {
        self.0.find(Pasid::ZERO).into_iter().for_each(|slot| slot.clear());
    }
}
