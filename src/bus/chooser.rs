//! Who decides what the specification leaves open.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use crate::sync::atomic::{AtomicU64, Ordering};

/// Whether a cache line that is found is used.
///
/// ```
/// use iommu::bus::{Chooser, InOrder, Retention};
/// assert_eq!(InOrder.retention(), Retention::Keep);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retention {
    /// It is: lines leave when they are invalidated, or when there is no room.
    Keep,
    /// It is dropped first, as hardware may at any time.
    Evict,
}

/// How much an invalidation drops.
///
/// ```
/// use iommu::bus::{Chooser, InOrder, Precision};
/// assert_eq!(InOrder.precision(), Precision::Exact);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// What it must.
    Exact,
    /// Everything in the caches that it is for, as hardware may.
    Coarse,
}

/// How a translation by a large page is cached.
///
/// ```
/// use iommu::bus::{Chooser, Fracture, InOrder};
/// assert_eq!(InOrder.fracture(), Fracture::Whole);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fracture {
    /// In one piece.
    Whole,
    /// As the page of 4096 bytes that was asked for.
    Pieces,
}

/// Whether a unit that may cache that something is absent does so.
///
/// ```
/// use iommu::bus::{Absence, Chooser, InOrder};
/// assert_eq!(InOrder.absence(), Absence::Cached);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absence {
    /// As far as its mode permits.
    Cached,
    /// Tables are asked each time. A hypervisor whose unit may cache absence only to be told of new mappings
    /// needs no more, and gets along with guests that invalidate absent entries under wrong tags.
    Walked,
}

/// Decides where the specification permits several behaviours. Called without a lock.
///
/// The defaults are the strictest that a deterministic unit can be: everything is kept for as long as it
/// may be, and nothing is invalidated but what must be.
///
/// ```
/// use iommu::bus::{Chooser, InOrder, Seeded};
/// assert_eq!(InOrder.choose(5), 0);
/// let seeded = Seeded::new(1);
/// assert!((0..100).map(|_| seeded.choose(4)).any(|choice| choice != 0));
/// ```
pub trait Chooser: Send + Sync {
    /// One of `choices` things that may be done next, at least one; what it gives is taken modulo that.
    /// They are sorted: first what registers ask for, then entries of the queue that were fetched, oldest
    /// first, then the next entry, then interrupts.
    fn choose(&self, choices: usize) -> usize;

    /// Asked once for each request of a device.
    fn retention(&self) -> Retention {
        Retention::Keep
    }

    /// Asked once for each invalidation.
    fn precision(&self) -> Precision {
        Precision::Exact
    }

    /// Asked once for each request of a device.
    fn fracture(&self) -> Fracture {
        Fracture::Whole
    }

    /// Asked for each fault of a unit that may cache it.
    fn absence(&self) -> Absence {
        Absence::Cached
    }
}

/// Everything in the order in which it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InOrder;

impl Chooser for InOrder {
    fn choose(&self, _: usize) -> usize {
        0
    }
}

/// Any order, the same for the same seed if calls come in the same order. It evicts now and then, and
/// fractures half of the large pages; invalidations stay exact.
///
/// ```
/// use iommu::bus::{Chooser, Seeded};
/// assert_eq!(Seeded::new(7).choose(100), Seeded::new(7).choose(100));
/// ```
#[derive(Debug)]
pub struct Seeded(AtomicU64);

impl Seeded {
    /// The choices of this seed.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number (splitmix64, which is in the public domain).
    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

impl Chooser for Seeded {
    fn choose(&self, choices: usize) -> usize {
        self.next().checked_rem(choices as u64).unwrap_or(0) as usize
    }

    fn retention(&self) -> Retention {
        if self.next() & 0xf == 0 { Retention::Evict } else { Retention::Keep }
    }

    fn fracture(&self) -> Fracture {
        if self.next() & 1 == 0 { Fracture::Whole } else { Fracture::Pieces }
    }
}
