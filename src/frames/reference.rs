//! Reference-counted handles to the slots of a slab.

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::sync::atomic::{AtomicU64, Ordering};

/// A reference-counted handle to a value in a [`Slab`](super::Slab).
///
/// The value lives as long as a handle does, even when the slab itself is gone; the last handle
/// drops it, on whatever processor that happens. Cloning takes no lock: any context. Where the last
/// handle may be dropped depends on the value's `Drop`; freeing the slot may give frames back to the
/// platform once the slab is gone: task only.
///
/// As with `Arc`, what is not `Deref` is an associated function, called as `Ref::index(&handle)`.
///
/// ```
/// use core::fmt::Display;
/// use iommu::frames::{Ref, Slab};
/// use iommu::platform::{Arena, Frame};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 8].into_boxed_slice()))?;
/// let slab = Slab::new(arena)?;
/// let number = slab.insert(7u32).map_err(|(error, _)| error)?;
/// let shown: Ref<dyn Display + Send + Sync> = Ref::map(number, |number| number as _);
/// drop(slab);
/// assert_eq!(shown.to_string(), "7");
/// drop(shown);
/// assert_eq!(arena.frames_in_use(), 0);
/// # Ok::<(), iommu::Error>(())
/// ```
pub struct Ref<T: ?Sized> {
    head: NonNull<Head>,
    value: NonNull<T>,
}

// SAFETY: a handle gives `&T`, and the last one drops the slot's value, which is `Send + Sync`
// because slabs hold nothing else (the value may be of another type than T, see `Ref::map`).
unsafe impl<T: ?Sized + Send + Sync> Send for Ref<T> {}
// SAFETY: as above; `&Ref<T>` can be cloned.
unsafe impl<T: ?Sized + Send + Sync> Sync for Ref<T> {}

impl<T: ?Sized> Ref<T> {
    /// The slot's number, which it keeps; another value gets it once all handles are gone.
    pub fn index(this: &Self) -> u32 {
        this.head().index
    }

    /// Whether both are handles to one slot, whatever they show of it.
    pub fn ptr_eq<U: ?Sized>(this: &Self, other: &Ref<U>) -> bool {
        this.head == other.head
    }

    /// Where the value lies. It does not move.
    pub fn as_ptr(this: &Self) -> *const T {
        this.value.as_ptr()
    }

    /// How many handles there are; another processor may change that at any time.
    pub fn count(this: &Self) -> u64 {
        this.head().count.load(Ordering::Relaxed)
    }

    /// A handle to the same slot that shows a part of the value, or the value as a trait object.
    pub fn map<U: ?Sized + 'static>(this: Self, view: impl FnOnce(&T) -> &U) -> Ref<U> {
        let value = NonNull::from(view(&this));
        this.with_value(value)
    }

    /// As [`map`](Self::map), if there is such a view: a checked downcast, for instance.
    ///
    /// # Errors
    /// The handle, when `view` gives `None`.
    pub fn try_map<U: ?Sized + 'static>(
        this: Self,
        view: impl FnOnce(&T) -> Option<&U>,
    ) -> core::result::Result<Ref<U>, Self> {
        match view(&this).map(NonNull::from) {
            Some(value) => Ok(this.with_value(value)),
            None => Err(this),
        }
    }

    /// The handle of one count that the caller has taken.
    ///
    /// # Safety
    /// The count of `head` includes this handle, and `value` lives as long as the slot's value.
    pub(super) unsafe fn from_parts(head: NonNull<Head>, value: NonNull<T>) -> Self {
        Self { head, value }
    }

    /// Turns the handle into one to `value`, which came out of `&T`, borrowed for any lifetime: so it
    /// lives as long as the slot's value, which is never borrowed mutably while there are handles.
    fn with_value<U: ?Sized>(self, value: NonNull<U>) -> Ref<U> {
        let head = self.head;
        core::mem::forget(self);
        Ref { head, value }
    }

    fn head(&self) -> &Head {
        // SAFETY: the slot's frame lives while the slot has a handle.
        unsafe { self.head.as_ref() }
    }
}

impl<T: ?Sized> Clone for Ref<T> {
    fn clone(&self) -> Self {
        // 64 bits do not overflow: one clone a nanosecond would take 584 years.
        self.head().count.fetch_add(1, Ordering::Relaxed);
        Self { head: self.head, value: self.value }
    }
}

impl<T: ?Sized> Drop for Ref<T> {
    fn drop(&mut self) {
        // Release: what this handle did comes before the value's end. Acquire: the value's end comes
        // after what all other handles did.
        if self.head().count.fetch_sub(1, Ordering::AcqRel) == 1 {
            let release = self.head().release;
            // SAFETY: this was the last handle, and none comes into being from a count of zero.
            unsafe { release(self.head) };
        }
    }
}

impl<T: ?Sized> Deref for Ref<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the value lives, and is borrowed shared only, while there are handles.
        unsafe { self.value.as_ref() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// What comes before the value in a slot: all that a handle needs to know, whatever its type.
pub(super) struct Head {
    /// Handles to the value; zero while the slot is free.
    count: AtomicU64,
    /// Drops the value, frees the slot, and the slab if nothing holds it any more.
    release: unsafe fn(NonNull<Head>),
    /// The slab's header.
    pub(super) slab: NonNull<()>,
    /// The next free slot; guarded by the slab's lock.
    pub(super) next: UnsafeCell<Option<NonNull<Head>>>,
    index: u32,
}

impl Head {
    /// The head of the free slot `index`.
    pub(super) fn new(
        slab: NonNull<()>,
        index: u32,
        next: Option<NonNull<Head>>,
        release: unsafe fn(NonNull<Head>),
    ) -> Self {
        Self { count: AtomicU64::new(0), release, slab, next: UnsafeCell::new(next), index }
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Counts the first handle. What was written before is visible to whoever gets one.
    pub(super) fn publish(&self) {
        self.count.store(1, Ordering::Release);
    }

    /// Counts one handle more, unless there is none.
    pub(super) fn try_acquire(&self) -> bool {
        let mut count = self.count.load(Ordering::Relaxed);
        while count != 0 {
            // Acquire: the value that the count belongs to is visible.
            match self.count.compare_exchange_weak(count, count + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(found) => count = found,
            }
        }
        false
    }
}
