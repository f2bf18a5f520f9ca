//! One 64-bit word shared with hardware.

use crate::sync::atomic::{AtomicU64, Ordering};

/// A 64-bit word that hardware may read, and sometimes write, at any time.
///
/// Loads acquire and stores release: what was written before an entry is visible to whoever
/// follows it.
#[derive(Debug)]
#[repr(transparent)]
pub struct Entry(AtomicU64);

impl Entry {
    /// A word of zeros, for construction in place.
    pub(super) fn zero() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Reads the word; what its writer wrote before is visible afterwards.
    #[inline]
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Reads the word without ordering anything else.
    #[inline]
    pub fn load_relaxed(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Writes the word in one piece, after everything written before.
    #[inline]
    pub fn store(&self, value: u64) {
        self.observe(value);
        self.0.store(value, Ordering::Release);
    }

    /// Writes the word and gives what was there, in one step.
    #[inline]
    pub fn swap(&self, value: u64) -> u64 {
        self.observe(value);
        self.0.swap(value, Ordering::AcqRel)
    }

    /// Writes `new` if the word still is `current`; gives what is there otherwise.
    ///
    /// # Errors
    /// The value found, when it is not `current`.
    #[inline]
    pub fn compare_exchange(&self, current: u64, new: u64) -> Result<(), u64> {
        let result = self.0.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        if result.is_ok() {
            self.observe(new);
        }
        result.map(drop)
    }

    #[inline]
    fn observe(&self, value: u64) {
        #[cfg(observed)]
        super::observe::store(core::ptr::from_ref(self) as usize, value);
        #[cfg(not(observed))]
        let _ = value;
    }
}
