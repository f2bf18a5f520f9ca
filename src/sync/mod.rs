//! The only way to atomics, locks and waits.
//!
//! Three builds share this interface: the plain one, and the one for loom (`--cfg loom`), in which
//! every atomic, lock and spin is loom's, so that loom explores the real code.

mod lock;
pub mod site;
mod wait;

pub use lock::{Lock, LockGuard};
pub use site::Site;
pub use wait::wait_until;

/// Atomics: the processor's, or loom's.
pub mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(loom)]
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

/// One turn of a spin loop. Under loom it lets other threads run, else a model would never end.
#[inline]
pub fn relax<P: crate::platform::Platform>(platform: &P) {
    #[cfg(loom)]
    {
        let _ = platform;
        loom::thread::yield_now();
    }
    #[cfg(not(loom))]
    platform.spin_hint();
}
