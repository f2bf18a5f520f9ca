//! The observed build: a hook makes every change of hardware memory, and so sees each of them, in
//! the order in which they happen.
//!
//! Barriers and cache cleaning go through `Platform`, so an observer's platform sees those itself.

use core::sync::atomic::{AtomicPtr, Ordering};

/// Called with the address of a word (virtual) and what changes it. The hook calls `change` once; it
/// gives the new value, or `None` when a compare-exchange failed.
pub type Hook = fn(word: usize, change: &mut dyn FnMut() -> Option<u64>);

static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the hook for all changes of this program from now on.
pub fn set_hook(hook: Hook) {
    HOOK.store(hook as *mut (), Ordering::Release);
}

pub(super) fn change(word: usize, change: &mut dyn FnMut() -> Option<u64>) {
    let hook = HOOK.load(Ordering::Acquire);
    if hook.is_null() {
        change();
    } else {
        // SAFETY: only `set_hook` writes it, and only with a `Hook`.
        let hook: Hook = unsafe { core::mem::transmute(hook) };
        hook(word, change);
    }
}
