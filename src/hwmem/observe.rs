//! The observed build: a hook sees every store to hardware memory before it happens.
//!
//! Barriers and cache cleaning go through `Platform`, so an observer's platform sees those itself.

use core::sync::atomic::{AtomicPtr, Ordering};

/// Called with the address of the word (virtual) and its new value.
pub type Hook = fn(address: usize, value: u64);

static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the hook for all stores of this program from now on.
pub fn set_hook(hook: Hook) {
    HOOK.store(hook as *mut (), Ordering::Release);
}

pub(super) fn store(address: usize, value: u64) {
    let hook = HOOK.load(Ordering::Acquire);
    if !hook.is_null() {
        // SAFETY: only `set_hook` writes it, and only with a `Hook`.
        let hook: Hook = unsafe { core::mem::transmute(hook) };
        hook(address, value);
    }
}
