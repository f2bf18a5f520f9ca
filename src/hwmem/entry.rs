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
        self.change(|word| {
            word.store(value, Ordering::Release);
            ((), Some(value))
        });
    }

    /// Writes the word and gives what was there, in one step.
    #[inline]
    pub fn swap(&self, value: u64) -> u64 {
        self.change(|word| (word.swap(value, Ordering::AcqRel), Some(value)))
    }

    /// Writes `new` if the word still is `current`; gives what is there otherwise.
    ///
    /// # Errors
    /// The value found, when it is not `current`.
    #[inline]
    pub fn compare_exchange(&self, current: u64, new: u64) -> Result<(), u64> {
        self.change(|word| {
            let result = word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
            (result.map(drop), result.is_ok().then_some(new))
        })
    }

    /// Makes a change, which gives its result and the new value if there is one, under the eyes of an
    /// observer.
    #[inline(always)]
    fn change<T>(&self, change: impl Fn(&AtomicU64) -> (T, Option<u64>)) -> T {
        #[cfg(observed)]
        {
            let mut result = None;
            super::observe::change(core::ptr::from_ref(self) as usize, &mut || {
                let (outcome, value) = change(&self.0);
                result = Some(outcome);
                value
            });
            // A hook that does not make the change would lose it.
            result.unwrap_or_else(|| change(&self.0).0)
        }
        #[cfg(not(observed))]
        change(&self.0).0
    }
}
