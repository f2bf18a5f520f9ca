//! Cache tags: which caches may hold translations of a domain.
//!
//! Unmap reads them by snapshot, without a lock, and attach publishes them:
//!
//! - attach: publish the tag, *meet the readers*, then write the entry that lets hardware walk;
//! - unmap: clear the page-table entry, *register as a reader*, then read the tags;
//! - detach: withdraw the tag, wait until every reader that may have seen it has left, then reuse
//!   the number.
//!
//! "Meet" and "register" are read-modify-write operations on the same counters, so one of the two
//! comes first: either unmap sees the tag, or what attach lets hardware walk has the entry cleared
//! already. There are two counters, so that new readers cannot keep detach
//! waiting.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::slice;
use core::time::Duration;

use crate::addr::PhysAddr;
use crate::error::{Error, InvalidReason, Result, WaitReason};
use crate::frames::IdBitmap;
use crate::id::{Pasid, SourceId};
use crate::ops::{Ats, Requester, Unit};
use crate::platform::{FRAME_BYTES, Platform};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use crate::sync::{Lock, wait_until};

/// Where a unit may have cached translations of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheTag {
    /// The number under which the unit caches them: VT-d's domain id, Arm's ASID or VMID.
    pub id: u32,
    /// The PASID, where translations are cached by PASID.
    pub pasid: Option<Pasid>,
    /// The device TLB that is meant, which is filled from what the unit caches under the same number;
    /// `None` for the unit's own cache.
    pub device: Option<DeviceTlb>,
}

/// A device TLB (PCIe 10.1) that may hold translations of a domain.
///
/// ```
/// use iommu::SourceId;
/// use iommu::iotlb::DeviceTlb;
/// use iommu::ops::Ats;
/// let ats = Ats { physical_function: 0, max_pending: 32 };
/// let tlb = DeviceTlb { source: SourceId::pci(0, 0x20), pasid: None, ats };
/// assert_eq!(tlb.source.id(), 0x20);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceTlb {
    /// The device.
    pub source: SourceId,
    /// The PASID of the requests that it holds translations for; `None` for requests without one.
    pub pasid: Option<Pasid>,
    /// How it is told.
    pub ats: Ats,
}

impl DeviceTlb {
    /// The device TLB that the requests without PASID of `requester` fill, if it has one.
    pub fn of(requester: &Requester) -> Option<Self> {
        requester.ats.map(|ats| Self { source: requester.source, pasid: None, ats })
    }
}

/// Tags that need no frame of their own.
const INLINE_TAGS: usize = 2;
const CHUNK_TAGS: usize = (FRAME_BYTES as usize - 64) / size_of::<Slot>();
/// How long detach waits for readers: they hold on for one invalidation at the most.
const READER_LIMIT: Duration = Duration::from_secs(2);

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const LIVE: u32 = 2;
const WITHDRAWN: u32 = 3;

/// The cache tags of one domain.
#[derive(Debug)]
pub struct Tags<P: Platform> {
    platform: P,
    inline: [Slot; INLINE_TAGS],
    /// Address of the first [`Chunk`], or zero. Chunks are only added, and freed with the domain.
    chunks: AtomicUsize,
    /// Which counter new readers should use: 0 or 1.
    epoch: AtomicUsize,
    readers: [AtomicUsize; 2],
    /// Somebody waits for the readers. Two at once would send new ones to each other's counter.
    waiting: AtomicBool,
    /// Guards the `users` of all slots and the step from `FREE` to `TAKEN`. Innermost lock.
    users: Lock<()>,
}

#[derive(Debug)]
struct Slot {
    /// `FREE`, `TAKEN` (being filled), `LIVE` (readers use it) or `WITHDRAWN`.
    state: AtomicU32,
    users: UnsafeCell<u32>,
    content: UnsafeCell<MaybeUninit<(Unit, CacheTag)>>,
}

struct Chunk {
    /// The frame it lies in.
    frame: PhysAddr,
    next: AtomicUsize,
    slots: [Slot; CHUNK_TAGS],
}

const _: () = assert!(size_of::<Chunk>() <= FRAME_BYTES as usize);

// SAFETY: `users` is reached under the lock; `content` is written while the slot is `TAKEN`, by the
// one who took it, and read while it is `LIVE` by registered readers, whom `release` waits for.
unsafe impl<P: Platform> Send for Tags<P> {}
// SAFETY: as above.
unsafe impl<P: Platform> Sync for Tags<P> {}

impl<P: Platform> Tags<P> {
    /// No tag.
    pub fn new(platform: P) -> Self {
        Self {
            platform,
            inline: core::array::from_fn(|_| Slot::free()),
            chunks: AtomicUsize::new(0),
            epoch: AtomicUsize::new(0),
            readers: [AtomicUsize::new(0), AtomicUsize::new(0)],
            waiting: AtomicBool::new(false),
            users: Lock::new(()),
        }
    }

    /// The tag of `unit` for requests with `pasid`, made with a number of `ids` if there is none yet,
    /// else used once more. When this returns, every unmap from now on invalidates it. Task context.
    ///
    /// # Errors
    /// [`Error::NoSpace`] without a free number, [`Error::NoMemory`].
    pub fn acquire(&self, unit: &Unit, pasid: Option<Pasid>, ids: &IdBitmap<P>) -> Result<CacheTag> {
        if let Some(tag) = self.share(unit, pasid, None) {
            // Whoever made the tag may not have met the readers yet.
            self.meet_readers();
            return Ok(tag);
        }
        let id = ids.alloc()?;
        let added = self.add(unit, CacheTag { id, pasid, device: None });
        if !added.is_ok_and(|tag| tag.id == id) {
            ids.free(id);
        }
        added
    }

    /// The tag for a device TLB that is filled from what `unit` caches under `tag`, of which the caller
    /// holds a use, and gives it back after this one's. The tag has the same number. Task context.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn acquire_device(&self, unit: &Unit, tag: CacheTag, device: DeviceTlb) -> Result<CacheTag> {
        match self.share(unit, tag.pasid, Some(device)) {
            Some(tag) => {
                self.meet_readers();
                Ok(tag)
            }
            None => self.add(unit, CacheTag { device: Some(device), ..tag }),
        }
    }

    /// Adds a tag that was not found, unless another processor has done so meanwhile.
    fn add(&self, unit: &Unit, tag: CacheTag) -> Result<CacheTag> {
        let slot = self.take_slot()?;
        if let Some(tag) = self.share(unit, tag.pasid, tag.device) {
            slot.state.store(FREE, Ordering::Release);
            self.meet_readers();
            return Ok(tag);
        }
        // SAFETY: the slot is `TAKEN` by this call; nobody else reads or writes its content.
        unsafe { (*slot.content.get()).write((unit.clone(), tag)) };
        slot.state.store(LIVE, Ordering::Release);
        self.meet_readers();
        Ok(tag)
    }

    /// Gives back one use of a tag. When it was the last one of a unit's tag, the number may be reused.
    /// The caller has invalidated everything under the tag before. Task context.
    ///
    /// # Errors
    /// [`WaitReason::Readers`] when an unmap did not finish in its time: the number must stay quarantined,
    /// until a later call succeeds. [`InvalidReason::WrongDomain`] when there is no such tag.
    pub fn release(&self, unit: &Unit, tag: CacheTag) -> Result<Last> {
        if self.withdraw(unit, tag)? == Last::No {
            return Ok(Last::No);
        }
        self.wait_for_readers()?;
        let slot = {
            let _guard = self.users.lock(&self.platform);
            let slot = self.find(WITHDRAWN, unit, tag).ok_or(Error::Invalid(InvalidReason::WrongDomain))?;
            slot.state.store(TAKEN, Ordering::Release);
            slot
        };
        // SAFETY: it was withdrawn, every reader that may have seen it live has left, and this call has taken
        // it.
        unsafe { (*slot.content.get()).assume_init_drop() };
        slot.state.store(FREE, Ordering::Release);
        Ok(Last::Yes)
    }

    /// Takes one use from a tag, and with the last one the tag from readers that come later; a release
    /// that gave up is taken up again.
    fn withdraw(&self, unit: &Unit, tag: CacheTag) -> Result<Last> {
        let _guard = self.users.lock(&self.platform);
        let Some(slot) = self.find(LIVE, unit, tag) else {
            let given_up = self.find(WITHDRAWN, unit, tag);
            return given_up.map(|_| Last::Yes).ok_or(Error::Invalid(InvalidReason::WrongDomain));
        };
        // SAFETY: under the lock.
        let users = unsafe { &mut *slot.users.get() };
        *users = users.saturating_sub(1);
        if *users > 0 {
            return Ok(Last::No);
        }
        slot.state.store(WITHDRAWN, Ordering::Release);
        Ok(Last::Yes)
    }

    /// The slot of a tag in this state, `LIVE` or `WITHDRAWN`. Under the lock.
    #[inline(never)]
    fn find(&self, state: u32, unit: &Unit, tag: CacheTag) -> Option<&Slot> {
        self.slots().filter(|slot| slot.state.load(Ordering::Acquire) == state).find(|slot| {
            // SAFETY: filled before it became live, and dropped only by who takes it from this state, which
            // happens under the lock.
            let (of, found) = unsafe { (*slot.content.get()).assume_init_ref() };
            of.ptr_eq(unit) && *found == tag
        })
    }

    /// Registers as a reader and gives a snapshot of the tags. What the caller stored before is
    /// ordered before every tag published later. Any context.
    #[inline]
    pub fn read(&self) -> Snapshot<'_, P> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        let readers = if epoch == 0 { &self.readers[0] } else { &self.readers[1] };
        readers.fetch_add(1, Ordering::AcqRel);
        Snapshot { tags: self, readers }
    }

    /// Calls `visit` with each unit's own tag: of those that are there at the beginning and stay, with
    /// each at least once. The caller is not registered as a reader during a visit, which may wait.
    /// What it stored before is ordered before every tag published later. Task context.
    pub(crate) fn each(&self, visit: &mut dyn FnMut(&Unit, CacheTag)) {
        // Slots stay where they are, or move towards the end when a chunk is added.
        for index in 0.. {
            let found = {
                let _registered = self.read();
                let Some(slot) = self.slots().nth(index) else { return };
                slot.content().map(|(unit, tag)| (unit.clone(), *tag))
            };
            if let Some((unit, tag)) = found.filter(|(_, tag)| tag.device.is_none()) {
                visit(&unit, tag);
            }
        }
    }

    /// Whether no cache holds anything of the domain.
    pub fn is_empty(&self) -> bool {
        self.slots().all(|slot| slot.state.load(Ordering::Acquire) == FREE)
    }

    #[inline(never)]
    fn share(&self, unit: &Unit, pasid: Option<Pasid>, device: Option<DeviceTlb>) -> Option<CacheTag> {
        let _guard = self.users.lock(&self.platform);
        let slot = self.slots().find(|slot| {
            slot.content().is_some_and(|(u, t)| u.ptr_eq(unit) && t.pasid == pasid && t.device == device)
        })?;
        // SAFETY: under the lock.
        let users = unsafe { &mut *slot.users.get() };
        *users = users.checked_add(1)?;
        slot.content().map(|(_, tag)| *tag)
    }

    fn take_slot(&self) -> Result<&Slot> {
        loop {
            {
                let _guard = self.users.lock(&self.platform);
                if let Some(slot) = self.slots().find(|slot| slot.state.load(Ordering::Acquire) == FREE) {
                    slot.state.store(TAKEN, Ordering::Release);
                    // SAFETY: under the lock.
                    unsafe { *slot.users.get() = 1 };
                    return Ok(slot);
                }
            }
            self.grow()?;
        }
    }

    /// Adds a chunk of free slots in front of the others.
    fn grow(&self) -> Result<()> {
        let frame = self.platform.alloc_frames(0, PhysAddr::new(u64::MAX)).ok_or(Error::NoMemory)?;
        let chunk: NonNull<Chunk> = self.platform.phys_to_virt(frame).cast();
        let address = chunk.as_ptr().expose_provenance();
        loop {
            let next = self.chunks.load(Ordering::Acquire);
            // SAFETY: the frame is new, aligned, large enough (asserted), and not yet published.
            unsafe {
                chunk.write(Chunk {
                    frame,
                    next: AtomicUsize::new(next),
                    slots: core::array::from_fn(|_| Slot::free()),
                });
            }
            if self.chunks.compare_exchange(next, address, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Ok(());
            }
        }
    }

    fn slots(&self) -> Slots<'_> {
        Slots { rest: self.inline.iter(), next: &self.chunks }
    }

    /// The other half of [`read`](Self::read): after it, a reader sees what was published before, or
    /// its stores are visible here.
    fn meet_readers(&self) {
        for readers in &self.readers {
            readers.fetch_add(0, Ordering::AcqRel);
        }
    }

    /// Waits until every reader that registered before has left: until each counter was seen at
    /// zero once. New readers are sent to the other counter meanwhile; that is for progress only, for
    /// a reader may have read the epoch long ago.
    fn wait_for_readers(&self) -> Result<()> {
        wait_until(&self.platform, READER_LIMIT, WaitReason::Readers, || {
            (!self.waiting.swap(true, Ordering::Acquire)).then_some(())
        })?;
        let left = self.readers.iter().zip([1, 0]).try_for_each(|(readers, other)| {
            self.epoch.store(other, Ordering::Relaxed);
            wait_until(&self.platform, READER_LIMIT, WaitReason::Readers, || {
                // A read-modify-write, for it also orders as `meet_readers` does.
                (readers.fetch_add(0, Ordering::AcqRel) == 0).then_some(())
            })
        });
        self.waiting.store(false, Ordering::Release);
        left
    }
}

impl<P: Platform> Drop for Tags<P> {
    fn drop(&mut self) {
        for slot in self.slots() {
            if matches!(slot.state.load(Ordering::Acquire), LIVE | WITHDRAWN) {
                // SAFETY: live, or withdrawn by a release that gave up: filled, and nobody else is
                // left to read it.
                unsafe { (*slot.content.get()).assume_init_drop() };
            }
        }
        let mut next = self.chunks.load(Ordering::Acquire);
        while next != 0 {
            // SAFETY: a chunk of ours, which nobody else is left to use.
            let chunk = unsafe { &*ptr::with_exposed_provenance::<Chunk>(next) };
            let frame = chunk.frame;
            next = chunk.next.load(Ordering::Acquire);
            // SAFETY: allocated with order 0 by `grow`, and not used any more.
            unsafe { self.platform.free_frames(frame, 0) };
        }
    }
}

/// The slots of a domain, in use or not.
struct Slots<'a> {
    rest: slice::Iter<'a, Slot>,
    /// Where the address of the next chunk stands.
    next: &'a AtomicUsize,
}

impl<'a> Iterator for Slots<'a> {
    type Item = &'a Slot;

    #[inline]
    fn next(&mut self) -> Option<&'a Slot> {
        loop {
            if let Some(slot) = self.rest.next() {
                return Some(slot);
            }
            // SAFETY: zero or a chunk that lives as long as the tags, which are borrowed.
            let chunk = unsafe { ptr::with_exposed_provenance::<Chunk>(self.next.load(Ordering::Acquire)).as_ref() }?;
            (self.rest, self.next) = (chunk.slots.iter(), &chunk.next);
        }
    }
}

impl Slot {
    fn free() -> Self {
        Self { state: AtomicU32::new(FREE), users: UnsafeCell::new(0), content: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// The content of a slot that was seen `LIVE` by a registered reader or under the lock.
    #[inline]
    fn content(&self) -> Option<&(Unit, CacheTag)> {
        if self.state.load(Ordering::Acquire) != LIVE {
            return None;
        }
        // SAFETY: filled before it became live, and not dropped while readers or the lock's holder
        // may use it.
        Some(unsafe { (*self.content.get()).assume_init_ref() })
    }
}

/// Whether a use of a tag was the last one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Last {
    /// The number may be reused.
    Yes,
    /// Others still use the tag.
    No,
}

/// The tags at one moment. While it lives, none of them is reused.
#[derive(Debug)]
pub struct Snapshot<'a, P: Platform> {
    tags: &'a Tags<P>,
    readers: &'a AtomicUsize,
}

impl<P: Platform> Snapshot<'_, P> {
    /// Every unit with its tag.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (&Unit, CacheTag)> {
        self.all().filter(|(_, tag)| tag.device.is_none()).map(|(unit, tag)| (unit, *tag))
    }

    /// The tag that there is, if it is easy to see that there is no other, of a device TLB either.
    #[inline]
    pub fn only(&self) -> Option<(&Unit, CacheTag)> {
        let [first, second] = &self.tags.inline;
        let (unit, tag) = first.content()?;
        // A device TLB has a tag beside its unit's.
        let alone = second.content().is_none() && self.tags.chunks.load(Ordering::Acquire) == 0;
        alone.then_some((unit, *tag))
    }

    /// The device TLBs that are filled from what `unit` caches under `tag`.
    pub fn device_tlbs(&self, unit: &Unit, tag: CacheTag) -> impl Iterator<Item = DeviceTlb> {
        let filled = move |of: &Unit, from: &CacheTag| of.ptr_eq(unit) && (from.id, from.pasid) == (tag.id, tag.pasid);
        self.all().filter_map(move |(of, from)| from.device.filter(|_| filled(of, from)))
    }

    /// The tag of the device TLB of `source` that is filled from what `unit` caches, if there is one.
    pub fn device_tlb_of(&self, unit: &Unit, source: SourceId) -> Option<CacheTag> {
        self.iter().filter(|(of, _)| of.ptr_eq(unit)).find_map(|(_, tag)| {
            let device = self.device_tlbs(unit, tag).find(|device| device.source == source)?;
            Some(CacheTag { device: Some(device), ..tag })
        })
    }

    fn all(&self) -> impl Iterator<Item = (&Unit, &CacheTag)> {
        self.tags.slots().filter_map(|slot| slot.content().map(|(unit, tag)| (unit, tag)))
    }
}

impl<P: Platform> Drop for Snapshot<'_, P> {
    #[inline]
    fn drop(&mut self) {
        self.readers.fetch_sub(1, Ordering::AcqRel);
    }
}
