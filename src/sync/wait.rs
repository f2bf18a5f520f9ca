//! Waiting with a bound.

use core::time::Duration;

use super::relax;
use crate::error::{Error, Result, WaitReason};
use crate::platform::Platform;

/// Calls `poll` until it gives a value, at most for `limit` by the platform's clock.
///
/// `poll` is called at least twice, the last time after the limit has passed, so that a processor
/// that lost its turn meanwhile does not report a time-out that never was.
///
/// # Errors
/// [`Error::TimedOut`] with `reason`.
pub fn wait_until<P: Platform, T>(
    platform: &P,
    limit: Duration,
    reason: WaitReason,
    mut poll: impl FnMut() -> Option<T>,
) -> Result<T> {
    if let Some(value) = poll() {
        return Ok(value);
    }
    let deadline = platform.now() + limit;
    loop {
        let late = platform.now() >= deadline;
        if let Some(value) = poll() {
            return Ok(value);
        }
        if late {
            return Err(Error::TimedOut(reason));
        }
        relax(platform);
    }
}
