//! A map from 64-bit keys to words, looked up without a lock.

use core::fmt;
use core::marker::PhantomData;
use core::num::NonZeroU64;

use super::words::{INDEX_BITS, WORDS, Words};
use crate::addr::PhysAddr;
use crate::error::{Error, InvalidReason, Result};
use crate::platform::{FRAME_BYTES, Platform};
use crate::sync::atomic::{AtomicU64, Ordering};

/// What a [`RadixMap`] can hold: anything that fits a word and is never zero there.
///
/// ```
/// use core::num::NonZeroU64;
/// use iommu::frames::Word;
/// assert_eq!(u32::from_word(7u32.into_word()), 7);
/// assert_ne!(0u32.into_word().get(), 0);
/// ```
pub trait Word: Copy + Send + Sync + 'static {
    /// The value as a word.
    fn into_word(self) -> NonZeroU64;
    /// The value of a word that [`into_word`](Self::into_word) gave.
    fn from_word(word: NonZeroU64) -> Self;
}

impl Word for NonZeroU64 {
    fn into_word(self) -> NonZeroU64 {
        self
    }

    fn from_word(word: NonZeroU64) -> Self {
        word
    }
}

/// A number of 32 bits, zero included: usually that of a slot.
impl Word for u32 {
    fn into_word(self) -> NonZeroU64 {
        NonZeroU64::MIN.saturating_add(u64::from(self))
    }

    fn from_word(word: NonZeroU64) -> Self {
        (word.get() - 1) as Self
    }
}

/// A map from `u64` to words. It is as deep as its largest key needs: two frames are read to find a
/// key below 2^18, such as that of a PCI function on segment 0.
///
/// Every method may be called on several processors at once. [`get`](Self::get) and
/// [`remove`](Self::remove) take no lock and touch at most eight frames: any context.
/// [`insert`](Self::insert) may allocate frames: task only. Frames are freed with the map, not
/// earlier, since a lookup may be reading them.
///
/// ```
/// use iommu::SourceId;
/// use iommu::frames::RadixMap;
/// use iommu::platform::{Arena, Frame};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 8].into_boxed_slice()))?;
/// let slots = RadixMap::<u32, _>::new(arena);
/// slots.insert(SourceId::pci(0, 0x20).as_u64(), 3)?;
/// assert_eq!(slots.get(SourceId::pci(0, 0x20).as_u64()), Some(3));
/// assert_eq!(slots.get(SourceId::pci(1, 0x20).as_u64()), None);
/// # Ok::<(), iommu::Error>(())
/// ```
pub struct RadixMap<V: Word, P: Platform> {
    platform: P,
    /// Physical address of the topmost node, with the number of levels in the low bits; zero while
    /// the map is empty.
    root: AtomicU64,
    values: PhantomData<V>,
}

impl<V: Word, P: Platform> RadixMap<V, P> {
    /// An empty map, which needs no frame yet.
    pub fn new(platform: P) -> Self {
        Self { platform, root: AtomicU64::new(0), values: PhantomData }
    }

    /// The value at `key`. Any context.
    #[inline]
    pub fn get(&self, key: u64) -> Option<V> {
        value(self.find(key)?.load(Ordering::Acquire))
    }

    /// Puts `value` at `key`, where nothing is yet. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`], and [`InvalidReason::Duplicate`] when the key has a value; the map is
    /// as it was.
    pub fn insert(&self, key: u64, value: V) -> Result<()> {
        let word = self.find_or_grow(key)?;
        match word.compare_exchange(0, value.into_word().get(), Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Invalid(InvalidReason::Duplicate)),
        }
    }

    /// Takes the value at `key` out. Of several calls at once, one gets it. Any context.
    pub fn remove(&self, key: u64) -> Option<V> {
        value(self.find(key)?.swap(0, Ordering::AcqRel))
    }

    /// The first key at or above `from` that has a value, with that value. Any context, but not in
    /// constant time.
    pub fn next_from(&self, from: u64) -> Option<(u64, V)> {
        let (top, height) = split_root(self.root.load(Ordering::Acquire))?;
        let mut key = from;
        let (mut node, mut level) = (top, height);
        while covers(height, key) {
            let digit = digit_of(key, level);
            // SAFETY: nodes are freed by `drop` only.
            let words = unsafe { Words::at(&self.platform, node) };
            let found = (digit..WORDS).find_map(|index| match words.word(index).load(Ordering::Acquire) {
                0 => None,
                word => Some((index, word)),
            });
            let below = low_bits(INDEX_BITS * level);
            match found {
                None => {
                    // Nothing in the rest of this node: go on behind it, from the top.
                    key = (key | below).checked_add(1)?;
                    (node, level) = (top, height);
                }
                Some((index, word)) => {
                    if index != digit {
                        key = key & !below | (index as u64) << (INDEX_BITS * (level - 1));
                    }
                    if level == 1 {
                        return value(word).map(|value| (key, value));
                    }
                    (node, level) = (link_target(word), level - 1);
                }
            }
        }
        None
    }

    /// All keys with their values, in rising order. What is inserted or removed meanwhile may be
    /// seen or not.
    pub fn iter(&self) -> RadixIter<'_, V, P> {
        RadixIter { map: self, next: Some(0) }
    }

    #[inline(never)]
    fn find(&self, key: u64) -> Option<&AtomicU64> {
        let (mut node, height) = split_root(self.root.load(Ordering::Acquire))?;
        if !covers(height, key) {
            return None;
        }
        for level in (2..=height).rev() {
            // SAFETY: nodes are freed by `drop` only.
            let link = unsafe { Words::at(&self.platform, node) }.word(digit_of(key, level)).load(Ordering::Acquire);
            if link == 0 {
                return None;
            }
            node = link_target(link);
        }
        // SAFETY: as above.
        Some(unsafe { Words::at(&self.platform, node) }.word(digit_of(key, 1)))
    }

    fn find_or_grow(&self, key: u64) -> Result<&AtomicU64> {
        let (mut node, height) = self.root_for(key)?;
        for level in (2..=height).rev() {
            // SAFETY: nodes are freed by `drop` only.
            let word = unsafe { Words::at(&self.platform, node) }.word(digit_of(key, level));
            let mut link = word.load(Ordering::Acquire);
            if link == 0 {
                let child = Words::alloc(&self.platform)?;
                link = self.publish(word, 0, child, child.as_u64() | PRESENT);
            }
            node = link_target(link);
        }
        // SAFETY: as above.
        Ok(unsafe { Words::at(&self.platform, node) }.word(digit_of(key, 1)))
    }

    /// The topmost node and the number of levels, after putting new ones on top until the map
    /// covers `key`.
    fn root_for(&self, key: u64) -> Result<(PhysAddr, u32)> {
        let mut root = self.root.load(Ordering::Acquire);
        loop {
            let height = match split_root(root) {
                Some((top, height)) if covers(height, key) => return Ok((top, height)),
                Some((_, height)) => height + 1,
                None => height_for(key),
            };
            let node = Words::alloc(&self.platform)?;
            if let Some((top, _)) = split_root(root) {
                // SAFETY: allocated above. The old map covers the keys that begin with zeros.
                let words = unsafe { Words::at(&self.platform, node) };
                words.word(0).store(top.as_u64() | PRESENT, Ordering::Relaxed);
            }
            root = self.publish(&self.root, root, node, node.as_u64() | u64::from(height));
        }
    }

    /// Writes `link`, which points to `node`, to `word` if that still is `current`; gives the node
    /// back otherwise. What the word holds then.
    fn publish(&self, word: &AtomicU64, current: u64, node: PhysAddr, link: u64) -> u64 {
        match word.compare_exchange(current, link, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => link,
            Err(found) => {
                // SAFETY: allocated by the caller and seen by nobody.
                unsafe { Words::free(&self.platform, node) };
                found
            }
        }
    }

    /// Frees a node and everything below it; at most eight levels deep.
    fn free(&self, node: PhysAddr, level: u32) {
        if level > 1 {
            // SAFETY: the node is freed below.
            let words = unsafe { Words::at(&self.platform, node) };
            for index in 0..WORDS {
                match words.word(index).load(Ordering::Acquire) {
                    0 => {}
                    link => self.free(link_target(link), level - 1),
                }
            }
        }
        // SAFETY: called by `drop` only, once for each node.
        unsafe { Words::free(&self.platform, node) };
    }
}

impl<V: Word, P: Platform> Drop for RadixMap<V, P> {
    fn drop(&mut self) {
        if let Some((top, height)) = split_root(self.root.load(Ordering::Acquire)) {
            self.free(top, height);
        }
    }
}

impl<V: Word + fmt::Debug, P: Platform> fmt::Debug for RadixMap<V, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<'a, V: Word, P: Platform> IntoIterator for &'a RadixMap<V, P> {
    type Item = (u64, V);
    type IntoIter = RadixIter<'a, V, P>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Keys and values of a [`RadixMap`]; see [`RadixMap::iter`].
pub struct RadixIter<'a, V: Word, P: Platform> {
    map: &'a RadixMap<V, P>,
    next: Option<u64>,
}

impl<V: Word, P: Platform> Iterator for RadixIter<'_, V, P> {
    type Item = (u64, V);

    fn next(&mut self) -> Option<(u64, V)> {
        let found = self.next.and_then(|next| self.map.next_from(next));
        self.next = found.and_then(|(key, _)| key.checked_add(1));
        found
    }
}

impl<V: Word + fmt::Debug, P: Platform> fmt::Debug for RadixIter<'_, V, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RadixIter").field("next", &self.next).finish_non_exhaustive()
    }
}

/// Marks a link, whose target may be the frame at address zero.
const PRESENT: u64 = 1;

fn link_target(link: u64) -> PhysAddr {
    PhysAddr::new(link).align_down(FRAME_BYTES)
}

fn split_root(root: u64) -> Option<(PhysAddr, u32)> {
    if root == 0 { None } else { Some((link_target(root), (root & (FRAME_BYTES - 1)) as u32)) }
}

fn value<V: Word>(word: u64) -> Option<V> {
    NonZeroU64::new(word).map(V::from_word)
}

/// A number of `bits` ones.
fn low_bits(bits: u32) -> u64 {
    1u64.checked_shl(bits).map_or(u64::MAX, |above| above - 1)
}

/// Whether a map of `height` levels has a place for `key`.
fn covers(height: u32, key: u64) -> bool {
    key <= low_bits(INDEX_BITS * height)
}

/// The least number of levels that cover `key`.
fn height_for(key: u64) -> u32 {
    (u64::BITS - key.leading_zeros()).div_ceil(INDEX_BITS).max(1)
}

/// The index of `key` in a node at `level`, 1 being that of the values.
fn digit_of(key: u64, level: u32) -> usize {
    (key >> (INDEX_BITS * (level - 1))) as usize & (WORDS - 1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use std::collections::BTreeMap;
    use std::collections::btree_map::Entry;
    use std::vec::Vec;

    use super::super::testing::Counted;
    use super::RadixMap;
    use crate::error::{Error, InvalidReason};
    use crate::id::SourceId;

    #[test]
    fn agrees_with_a_btree() {
        let frames = Counted::new(4000);
        let map = RadixMap::<u32, _>::new(frames.clone());
        let mut oracle = BTreeMap::new();
        let mut seed = 1u64;
        for round in 0..20_000u32 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Few distinct keys of every magnitude.
            let key = (seed >> 40 & 15).wrapping_shl((seed >> 33) as u32 % 61);
            if seed >> 60 < 8 {
                let expected = match oracle.entry(key) {
                    Entry::Occupied(_) => Err(Error::Invalid(InvalidReason::Duplicate)),
                    Entry::Vacant(place) => {
                        place.insert(round);
                        Ok(())
                    }
                };
                assert_eq!(map.insert(key, round), expected);
            } else {
                assert_eq!(map.remove(key), oracle.remove(&key));
            }
            assert_eq!(map.get(key), oracle.get(&key).copied());
        }
        assert!(oracle.len() > 100);
        assert_eq!(map.iter().collect::<Vec<_>>(), oracle.into_iter().collect::<Vec<_>>());
        drop(map);
        assert_eq!(frames.in_use(), 0);
    }

    #[test]
    fn the_largest_keys_have_a_place() {
        let frames = Counted::new(64);
        let map = RadixMap::<u32, _>::new(frames.clone());
        let platform_device = SourceId::platform(0xffff, u32::MAX).as_u64();
        for key in [0, 511, 512, platform_device, u64::MAX] {
            assert_eq!(map.get(key), None);
            map.insert(key, key as u32).unwrap();
        }
        let found: Vec<_> = map.iter().map(|(key, _)| key).collect();
        assert_eq!(found, [0, 511, 512, platform_device, u64::MAX]);
        assert_eq!(map.next_from(513), Some((platform_device, u32::MAX)));
    }

    #[test]
    fn functions_of_one_segment_need_two_levels() {
        let frames = Counted::new(64);
        let map = RadixMap::<u32, _>::new(frames.clone());
        map.insert(SourceId::pci(0, 0xffff).as_u64(), 1).unwrap();
        assert_eq!(frames.in_use(), 2);
    }

    #[test]
    fn every_failed_allocation_leaves_the_map_as_it_was() {
        let frames = Counted::new(64);
        let mut failures = 0;
        for nth in 0.. {
            let map = RadixMap::<u32, _>::new(frames.clone());
            map.insert(5, 1).unwrap();
            frames.fail_nth(nth);
            let result = map.insert(1 << 40, 2);
            frames.fail_never();
            let expected = if result.is_ok() { std::vec![(5, 1), (1 << 40, 2)] } else { std::vec![(5, 1)] };
            assert_eq!(map.iter().collect::<Vec<_>>(), expected);
            if result == Err(Error::NoMemory) {
                failures += 1;
                map.insert(1 << 40, 2).unwrap();
                assert_eq!(map.get(1 << 40), Some(2));
            }
            drop(map);
            assert_eq!(frames.in_use(), 0);
            if result.is_ok() {
                break;
            }
        }
        assert_eq!(failures, 8, "four new roots, four nodes below");
    }
}
