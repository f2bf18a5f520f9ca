//! Time as a value: every bound in this crate is computed from what the platform's clock says.

use core::time::Duration;

/// A moment on the platform's clock, in nanoseconds since a fixed but unknown moment.
///
/// ```
/// use core::time::Duration;
/// use iommu::platform::Instant;
/// let deadline = Instant::from_nanos(5) + Duration::from_nanos(10);
/// assert!(deadline > Instant::from_nanos(14));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(u64);

impl Instant {
    /// The moment `nanos` nanoseconds after the clock's zero.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time that has passed since `earlier`; zero when `earlier` lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, rest: Duration) -> Self {
        let nanos = u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}
