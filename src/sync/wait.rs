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
    let mut deadline = None;
    loop {
        let late = deadline.is_some_and(|deadline| platform.now() >= deadline);
        if let Some(value) = poll() {
            return Ok(value);
        }
        if late {
            return Err(Error::TimedOut(reason));
        }
        match deadline {
            Some(_) => relax(platform),
            None => deadline = Some(platform.now() + limit),
        }
    }
}
