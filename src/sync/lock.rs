//! A spin lock that is held with interrupts disabled.

use core::ops::{Deref, DerefMut};

use crate::platform::{InterruptState, Platform};

/// Data behind a spin lock. The holder runs with interrupts disabled, so that an interrupt handler
/// may take it as well.
///
/// Nothing that waits, and no call into the kernel, happens under such a lock: only short,
/// bounded changes of memory. Any context.
///
/// ```
/// use iommu::platform::{Arena, Frame};
/// use iommu::sync::Lock;
///
/// let platform = Arena::new(Box::leak(Box::new([Frame::ZERO])))?;
/// let counter = Lock::new(0);
/// *counter.lock(&platform) += 1;
/// assert_eq!(*counter.lock(&platform), 1);
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Lock<T> {
    #[cfg(not(loom))]
    inner: spin::Mutex<T>,
    #[cfg(loom)]
    inner: loom::sync::Mutex<T>,
}

impl<T> Lock<T> {
    /// A lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self { inner: spin::Mutex::new(value) }
    }

    /// A lock around `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self { inner: loom::sync::Mutex::new(value) }
    }

    /// Disables interrupts, then spins until the lock is free.
    #[inline]
    pub fn lock<'a, P: Platform>(&'a self, platform: &'a P) -> LockGuard<'a, T, P> {
        let interrupts = platform.save_interrupts();
        #[cfg(not(loom))]
        let guard = self.inner.lock();
        #[cfg(loom)]
        let guard = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        LockGuard { guard: core::mem::ManuallyDrop::new(guard), platform, interrupts }
    }

    /// The data, which an exclusive borrow makes safe to reach without locking.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        #[cfg(not(loom))]
        return self.inner.get_mut();
        #[cfg(loom)]
        return self.inner.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

#[cfg(not(loom))]
type Inner<'a, T> = spin::MutexGuard<'a, T>;
#[cfg(loom)]
type Inner<'a, T> = loom::sync::MutexGuard<'a, T>;

/// The right to use the data of a [`Lock`]. Dropping it unlocks, then puts the interrupt state back.
#[derive(Debug)]
#[must_use = "the lock is released at once"]
pub struct LockGuard<'a, T, P: Platform> {
    guard: core::mem::ManuallyDrop<Inner<'a, T>>,
    platform: &'a P,
    interrupts: InterruptState,
}

impl<T, P: Platform> Deref for LockGuard<'_, T, P> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, P: Platform> DerefMut for LockGuard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T, P: Platform> Drop for LockGuard<'_, T, P> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: dropped here and nowhere else; the guard is not used afterwards. The lock must be
        // free before interrupts are enabled again, else a handler could spin on it for ever.
        unsafe { core::mem::ManuallyDrop::drop(&mut self.guard) };
        self.platform.restore_interrupts(self.interrupts);
    }
}
