//! The gather: what a caller has unmapped, on its way to the invalidation.

use core::fmt;

use super::Flush;
use crate::domain::Domain;
use crate::error::Error;

/// What was unmapped from one domain and is still lent to its devices.
///
/// `Domain::unmap` fills it; [`sync`](Self::sync) invalidates and frees. Until then devices may
/// reach the memory. Ranges are merged; when more than [`GATHER_RANGES`](super::GATHER_RANGES) lie
/// apart, the nearest two are joined. Dropping a gather syncs it; if that fails its tables stay in
/// the domain's quarantine.
///
/// See [`Domain::unmap`] for an example.
#[must_use = "unmapped memory stays lent to devices until the gather is synced"]
pub struct Gather<'d> {
    domain: &'d Domain,
    pub(crate) flush: Flush,
}

impl<'d> Gather<'d> {
    pub(crate) fn new(domain: &'d Domain) -> Self {
        Self { domain, flush: Flush::new() }
    }

    /// The domain it was made for.
    pub fn domain(&self) -> &'d Domain {
        self.domain
    }

    /// Whether there is nothing to invalidate.
    pub fn is_empty(&self) -> bool {
        self.flush.is_empty()
    }

    /// Invalidates what was unmapped in every cache that may hold it, waits until that is done, and
    /// frees the detached tables. The memory belongs to the caller again. Task context or any other
    /// that may spin for the platform's bound.
    ///
    /// # Errors
    /// The gather comes back with the reason: the memory is still lent. Try again after the unit was
    /// reset, or [`defer`](Self::defer) it into the domain's quarantine.
    #[expect(clippy::result_large_err, reason = "the gather itself comes back; there is no heap to box it")]
    pub fn sync(mut self) -> Result<(), SyncError<'d>> {
        match self.sync_in_place() {
            Ok(()) => Ok(()),
            Err(error) => Err(SyncError { gather: self, error }),
        }
    }

    /// As [`sync`](Self::sync), and the gather can be filled again afterwards.
    ///
    /// # Errors
    /// The reason; the gather keeps what it held.
    pub fn sync_in_place(&mut self) -> Result<(), Error> {
        if self.flush.is_empty() {
            return Ok(());
        }
        self.domain.ops().sync(&mut self.flush)
    }

    /// Leaves the invalidation to the domain's next `Domain::flush_deferred`. Until that succeeded
    /// the memory stays lent.
    pub fn defer(mut self) {
        self.domain.ops().defer(&mut self.flush);
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        if self.sync_in_place().is_err() {
            self.domain.ops().defer(&mut self.flush);
        }
    }
}

impl fmt::Debug for Gather<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather").field("flush", &self.flush).finish_non_exhaustive()
    }
}

/// An invalidation failed: the gather, whose memory is still lent, and the reason.
#[derive(Debug)]
pub struct SyncError<'d> {
    /// What was not invalidated.
    pub gather: Gather<'d>,
    /// Why.
    pub error: Error,
}

impl fmt::Display for SyncError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl core::error::Error for SyncError<'_> {}

impl From<SyncError<'_>> for Error {
    /// Leaves the gather in the domain's quarantine, without trying again.
    fn from(failed: SyncError<'_>) -> Self {
        let SyncError { gather, error } = failed;
        gather.defer();
        error
    }
}
