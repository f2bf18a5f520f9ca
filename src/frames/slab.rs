//! Values in numbered slots that never move.

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::num::NonZeroU64;
use core::ptr::NonNull;

use super::radix::RadixMap;
use super::reference::{Head, Ref};
use super::words::ANYWHERE;
use crate::addr::PhysAddr;
use crate::error::{Error, InvalidReason, NoSpaceReason, Result};
use crate::platform::{FRAME_BYTES, Platform};
use crate::sync::Lock;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Values in numbered slots, which are reached through reference-counted handles.
///
/// Slots lie in frames that are allocated when needed, as many slots as fit in one frame (or one
/// slot in a block of frames when it is larger than one). The frames are freed when the slab and
/// the last handle are gone, not earlier, so that [`get`](Self::get) may look at any slot that ever
/// existed without a lock.
///
/// ```
/// use iommu::frames::{Ref, Slab};
/// use iommu::platform::{Arena, Frame};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 8].into_boxed_slice()))?;
/// let slab = Slab::new(arena)?;
/// let handle = slab.insert("a domain").map_err(|(error, _)| error)?;
/// let index = Ref::index(&handle);
/// assert_eq!(slab.get(index).as_deref(), Some(&"a domain"));
/// drop(handle);
/// assert!(slab.get(index).is_none());
/// # Ok::<(), iommu::Error>(())
/// ```
pub struct Slab<T: Send + Sync + 'static, P: Platform> {
    body: NonNull<Body<P>>,
    values: PhantomData<fn() -> T>,
}

// SAFETY: the body is shared between processors by design: it changes under its lock or through
// atomics, and the values are `Send + Sync`.
unsafe impl<T: Send + Sync + 'static, P: Platform> Send for Slab<T, P> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync + 'static, P: Platform> Sync for Slab<T, P> {}

impl<T: Send + Sync + 'static, P: Platform> Slab<T, P> {
    /// An empty slab, which needs one frame. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new(platform: P) -> Result<Self> {
        const { assert!(align_of::<Slot<T>>() <= FRAME_BYTES as usize) };
        let shape = Shape {
            slot_bytes: size_of::<Slot<T>>(),
            per_chunk: Slot::<T>::PER_CHUNK,
            order: Slot::<T>::ORDER,
            release: release_slot::<T, P>,
        };
        Ok(Self { body: Body::new(platform, shape)?, values: PhantomData })
    }

    /// Puts `value` into a free slot. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`], or [`NoSpaceReason::Slots`] when 2^32 slots are in use; the value comes
    /// back.
    pub fn insert(&self, value: T) -> core::result::Result<Ref<T>, (Error, T)> {
        match self.vacant() {
            Ok(vacant) => Ok(vacant.fill(value)),
            Err(error) => Err((error, value)),
        }
    }

    /// Fills a free slot with what `init` makes, which learns the slot's number and runs only when
    /// there is a slot. For values that are large, or must know their number. Task only.
    ///
    /// # Errors
    /// As [`insert`](Self::insert), and what `init` gives; the slot is free again then.
    pub fn insert_with(&self, init: impl FnOnce(u32) -> Result<T>) -> Result<Ref<T>> {
        let vacant = self.vacant()?;
        let value = init(vacant.index())?;
        Ok(vacant.fill(value))
    }

    /// A handle to the value in slot `index`, if there is one. Takes no lock and may run beside the
    /// drop of the last handle: then it gives `None`. Any context, but dropping what it gives may
    /// be the last drop.
    pub fn get(&self, index: u32) -> Option<Ref<T>> {
        self.body().acquire(index).map(|head| handle(head.cast()))
    }

    /// How many slots hold a value; one whose last handle is being dropped may still count.
    pub fn len(&self) -> u64 {
        self.body().references.load(Ordering::Relaxed) - 1
    }

    /// Whether no slot holds a value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Handles to all values, by rising slot number. What comes and goes meanwhile may be seen or
    /// not.
    pub fn iter(&self) -> SlabIter<'_, T, P> {
        SlabIter { slab: self, next: Some(0) }
    }

    fn body(&self) -> &Body<P> {
        // SAFETY: the body lives while the slab counts as a reference to it.
        unsafe { self.body.as_ref() }
    }

    /// Takes a slot off the free list, or else makes new ones.
    fn vacant(&self) -> Result<Vacant<'_, T, P>> {
        Ok(Vacant { slab: self, slot: Body::vacant(self.body)?.cast() })
    }
}

impl<T: Send + Sync + 'static, P: Platform> Drop for Slab<T, P> {
    fn drop(&mut self) {
        // SAFETY: gives up the slab's own reference, once.
        unsafe { Body::release(self.body) };
    }
}

impl<T: Send + Sync + fmt::Debug + 'static, P: Platform> fmt::Debug for Slab<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|handle| (Ref::index(&handle), handle))).finish()
    }
}

impl<'a, T: Send + Sync + 'static, P: Platform> IntoIterator for &'a Slab<T, P> {
    type Item = Ref<T>;
    type IntoIter = SlabIter<'a, T, P>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Handles to the values of a [`Slab`]; see [`Slab::iter`].
pub struct SlabIter<'a, T: Send + Sync + 'static, P: Platform> {
    slab: &'a Slab<T, P>,
    next: Option<u32>,
}

impl<T: Send + Sync + 'static, P: Platform> Iterator for SlabIter<'_, T, P> {
    type Item = Ref<T>;

    fn next(&mut self) -> Option<Ref<T>> {
        self.slab.body().acquire_next(&mut self.next).map(|head| handle(head.cast()))
    }
}

impl<T: Send + Sync + 'static, P: Platform> fmt::Debug for SlabIter<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlabIter").field("next", &self.next).finish_non_exhaustive()
    }
}

#[repr(C)]
struct Slot<T> {
    head: Head,
    /// A value while the count is not zero.
    value: UnsafeCell<MaybeUninit<T>>,
}

impl<T> Slot<T> {
    /// The least block of frames that holds a slot.
    const ORDER: u8 = order_for(size_of::<Self>());

    /// Slots in one block.
    #[cfg(not(loom))]
    const PER_CHUNK: u32 = ((FRAME_BYTES as usize) << Self::ORDER).div_euclid(size_of::<Self>()) as u32;
    /// A loom model explores every slot.
    #[cfg(loom)]
    const PER_CHUNK: u32 = if size_of::<Self>() * 2 <= FRAME_BYTES as usize { 2 } else { 1 };

    fn value(this: NonNull<Self>) -> NonNull<T> {
        // SAFETY: every caller has a slot in a live frame; only the address is taken.
        unsafe { NonNull::new_unchecked(&raw mut (*this.as_ptr()).value).cast() }
    }
}

/// The handle for one count that the caller has taken.
fn handle<T>(slot: NonNull<Slot<T>>) -> Ref<T> {
    // SAFETY: counted by the caller, and a counted slot holds a value until its last handle is gone.
    unsafe { Ref::from_parts(slot.cast(), Slot::value(slot)) }
}

/// A slot that is neither in use nor on the free list.
struct Vacant<'a, T: Send + Sync + 'static, P: Platform> {
    slab: &'a Slab<T, P>,
    slot: NonNull<Slot<T>>,
}

impl<T: Send + Sync + 'static, P: Platform> Vacant<'_, T, P> {
    fn index(&self) -> u32 {
        // SAFETY: a constructed slot of a live slab.
        unsafe { self.slot.as_ref() }.head.index()
    }

    fn fill(self, value: T) -> Ref<T> {
        let slot = self.slot;
        self.slab.body().references.fetch_add(1, Ordering::Relaxed);
        core::mem::forget(self);
        // SAFETY: the slot is this call's alone until its count says that it holds a value.
        unsafe {
            Slot::value(slot).write(value);
            slot.as_ref().head.publish();
        }
        handle(slot)
    }
}

impl<T: Send + Sync + 'static, P: Platform> Drop for Vacant<'_, T, P> {
    fn drop(&mut self) {
        self.slab.body().push(self.slot.cast());
    }
}

/// The slab's header, which outlives the slab while slots are in use. What it does is the same code for
/// values of every type.
struct Body<P: Platform> {
    /// The slab, and each slot that is in use.
    references: AtomicU64,
    /// Where the header itself lies.
    phys: PhysAddr,
    /// Number of a chunk to its physical address, with [`PRESENT`] set. Numbers have no gaps.
    chunks: RadixMap<NonZeroU64, P>,
    /// Taken with no other lock held. Guards the list and the `next` of every slot on it.
    free: Lock<FreeList>,
    platform: P,
    shape: Shape,
}

/// What the code for all types must know of a [`Slot`] of one.
#[derive(Clone, Copy)]
struct Shape {
    slot_bytes: usize,
    per_chunk: u32,
    /// Of a chunk.
    order: u8,
    /// What the last handle to a slot calls.
    release: unsafe fn(NonNull<Head>),
}

struct FreeList {
    first: Option<NonNull<Head>>,
    /// No chunk below this number is missing.
    chunks: u32,
}

/// Makes a word of the frame at address zero.
const PRESENT: NonZeroU64 = NonZeroU64::MIN;

const fn order_for(bytes: usize) -> u8 {
    bytes.div_ceil(FRAME_BYTES as usize).next_power_of_two().trailing_zeros() as u8
}

impl<P: Platform> Body<P> {
    const ORDER: u8 = order_for(size_of::<Self>());

    #[inline(never)]
    fn new(platform: P, shape: Shape) -> Result<NonNull<Self>> {
        const { assert!(align_of::<Self>() <= FRAME_BYTES as usize) };
        let phys = platform.alloc_frames(Self::ORDER, ANYWHERE).ok_or(Error::NoMemory)?;
        let body = platform.phys_to_virt(phys).cast::<Self>();
        let value = Self {
            references: AtomicU64::new(1),
            phys,
            chunks: RadixMap::new(platform.clone()),
            free: Lock::new(FreeList { first: None, chunks: 0 }),
            platform,
            shape,
        };
        // SAFETY: the block was just allocated, and its order was chosen for this size.
        unsafe { body.write(value) };
        Ok(body)
    }

    /// The slot `index`, in use or not, if it was ever made.
    fn slot(&self, index: u32) -> Option<NonNull<Head>> {
        let Shape { slot_bytes, per_chunk, .. } = self.shape;
        let word = self.chunks.get(u64::from(index / per_chunk))?;
        let chunk = self.platform.phys_to_virt(PhysAddr::new(word.get()).align_down(FRAME_BYTES));
        // SAFETY: a chunk holds `per_chunk` slots.
        Some(unsafe { chunk.byte_add((index % per_chunk) as usize * slot_bytes) }.cast())
    }

    /// The slot `index` with one count more, if it holds a value.
    #[inline(never)]
    fn acquire(&self, index: u32) -> Option<NonNull<Head>> {
        // SAFETY: slots are constructed before their chunk is published, and freed with the body.
        self.slot(index).filter(|head| unsafe { head.as_ref() }.try_acquire())
    }

    /// As [`acquire`](Self::acquire), for the first slot from `next` on that holds a value; `next` is what
    /// comes after it.
    #[inline(never)]
    fn acquire_next(&self, next: &mut Option<u32>) -> Option<NonNull<Head>> {
        while let Some(index) = *next {
            // Chunks are numbered without gaps: the first slot that is missing is the end.
            *next = self.slot(index).and_then(|_| index.checked_add(1));
            let found = self.acquire(index);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Takes a slot off the free list, or else makes new ones.
    #[inline(never)]
    fn vacant(this: NonNull<Self>) -> Result<NonNull<Head>> {
        // SAFETY: alive through the slab that is borrowed.
        let body = unsafe { this.as_ref() };
        match body.pop() {
            Some(head) => Ok(head),
            None => body.grow(this.cast()),
        }
    }

    fn pop(&self) -> Option<NonNull<Head>> {
        let mut free = self.free.lock(&self.platform);
        let head = free.first?;
        // SAFETY: the slot is on the list, so its `next` is guarded by the lock.
        free.first = unsafe { *head.as_ref().next.get() };
        Some(head)
    }

    fn push(&self, head: NonNull<Head>) {
        let mut free = self.free.lock(&self.platform);
        // SAFETY: the caller has the slot alone, and puts it on the list.
        unsafe { *head.as_ref().next.get() = free.first };
        free.first = Some(head);
    }

    /// Makes a chunk of slots: the first for the caller, the others for the free list.
    fn grow(&self, this: NonNull<()>) -> Result<NonNull<Head>> {
        let order = self.shape.order;
        let mut number = self.free.lock(&self.platform).chunks;
        let phys = self.platform.alloc_frames(order, ANYWHERE).ok_or(Error::NoMemory)?;
        let first = self.platform.phys_to_virt(phys).cast::<Head>();
        let word = PRESENT | phys.as_u64();
        let last = loop {
            // SAFETY: the block is not published yet, and was allocated for a chunk.
            let result = unsafe { construct_chunk(self.shape, this, first, number) }
                .and_then(|last| self.chunks.insert(u64::from(number), word).map(|()| last));
            match result {
                Ok(last) => break last,
                // Another processor was faster with this number.
                Err(Error::Invalid(InvalidReason::Duplicate)) => number = number.saturating_add(1),
                Err(error) => {
                    // SAFETY: allocated above, never published.
                    unsafe { self.platform.free_frames(phys, order) };
                    return Err(error);
                }
            }
        };
        let mut free = self.free.lock(&self.platform);
        free.chunks = free.chunks.max(number.saturating_add(1));
        // SAFETY: the chunk is live; its slots are on no list, but linked to each other from the
        // second on.
        unsafe {
            if let Some(second) = *first.as_ref().next.get() {
                *last.as_ref().next.get() = free.first;
                free.first = Some(second);
            }
        }
        Ok(first)
    }

    /// Ends the use of a slot.
    ///
    /// # Safety
    /// The slot is one of a slab on this platform, it was in use, and its value is gone.
    #[inline(never)]
    unsafe fn retire(head: NonNull<Head>) {
        // SAFETY: the body lives, because slots in use count as references to it.
        unsafe {
            let this = head.as_ref().slab.cast::<Self>();
            this.as_ref().push(head);
            Self::release(this);
        }
    }

    /// Gives up one reference; the last frees everything. Values are gone by then.
    ///
    /// # Safety
    /// The reference is the caller's, who does not touch the body afterwards.
    unsafe fn release(this: NonNull<Self>) {
        // SAFETY: alive through the caller's reference.
        let body = unsafe { this.as_ref() };
        // Release and acquire: whatever anybody did to the slab comes before its end.
        if body.references.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let (platform, phys, order) = (body.platform.clone(), body.phys, body.shape.order);
        for (_, word) in &body.chunks {
            let chunk = PhysAddr::new(word.get()).align_down(FRAME_BYTES);
            // SAFETY: no slot is in use, and there is no slab to find one with.
            unsafe { platform.free_frames(chunk, order) };
        }
        // SAFETY: this was the last reference; the block was allocated by `new`.
        unsafe {
            this.drop_in_place();
            platform.free_frames(phys, Self::ORDER);
        }
    }
}

/// Makes the slots of chunk `number`, all free, each but the last linked to the next. Gives the last.
///
/// # Safety
/// `first` points to a block for a chunk of slots of this shape that is the caller's alone; `slab` to the
/// body.
unsafe fn construct_chunk(shape: Shape, slab: NonNull<()>, first: NonNull<Head>, number: u32) -> Result<NonNull<Head>> {
    let full = Error::NoSpace(NoSpaceReason::Slots);
    let count = shape.per_chunk;
    let index = number.checked_mul(count).ok_or(full)?;
    index.checked_add(count - 1).ok_or(full)?;
    let mut next = None;
    let mut last = first;
    for offset in (0..count).rev() {
        // SAFETY: the block holds `count` slots, and nobody else knows of them.
        unsafe {
            let head = first.byte_add(offset as usize * shape.slot_bytes);
            head.write(Head::new(slab, index + offset, next, shape.release));
            if next.is_none() {
                last = head;
            }
            next = Some(head);
        }
    }
    Ok(last)
}

/// Ends the value of a slot, then its use.
///
/// # Safety
/// The slot is one of a `Slab<T, P>`, and its count has just become zero.
unsafe fn release_slot<T: Send + Sync + 'static, P: Platform>(head: NonNull<Head>) {
    let slot = head.cast::<Slot<T>>();
    // SAFETY: the slot holds a value that nobody can reach any more. It is dropped under no lock, since
    // its `drop` may do anything.
    unsafe {
        Slot::value(slot).drop_in_place();
        Body::<P>::retire(head);
    }
}

#[cfg(all(test, not(loom)))]
#[path = "slab_tests.rs"]
mod tests;
