//! Devices that did not answer an invalidation of their TLB.

use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::sync::Lock;
use crate::sync::atomic::{AtomicUsize, Ordering, fence};

/// Devices that are fenced at a time; a unit with one more is fenced itself.
pub const MAX_FENCED_DEVICES: usize = 16;

/// The devices of one unit that did not answer: each by the id `K` that the unit knows it by, with what `V`
/// is needed to reach it again. All methods are for any context.
///
/// ```
/// use iommu::iotlb::{FencedDevices, MAX_FENCED_DEVICES};
/// use iommu::platform::{Arena, Frame};
/// let platform = Arena::new(Box::leak(vec![Frame::ZERO; 2].into_boxed_slice()))?;
/// let fenced = FencedDevices::<u16, ()>::default();
/// assert_eq!(fenced.note(&platform, 8, ()), Some(()));
/// assert!(fenced.any(&platform, |device| device == 8));
/// fenced.forget(&platform, 8);
/// assert!(!fenced.any(&platform, |_| true));
/// for device in 0..MAX_FENCED_DEVICES as u16 {
///     fenced.note(&platform, device, ()).unwrap();
/// }
/// assert_eq!(fenced.note(&platform, 100, ()), None);
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Debug)]
pub struct FencedDevices<K, V> {
    /// How many there are, for those who would find none.
    count: AtomicUsize,
    /// Innermost.
    list: Lock<heapless::Vec<(K, V), MAX_FENCED_DEVICES>>,
}

impl<K, V> Default for FencedDevices<K, V> {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), list: Lock::new(heapless::Vec::new()) }
    }
}

impl<K: Copy + Eq, V: Copy> FencedDevices<K, V> {
    /// Whether one of them is meant. `is` is called with a lock held.
    #[inline(never)]
    pub fn any<P: Platform>(&self, platform: &P, mut is: impl FnMut(K) -> bool) -> bool {
        self.count.load(Ordering::SeqCst) != 0 && self.list.lock(platform).iter().any(|(device, _)| is(*device))
    }

    /// Nothing is let through for a device whose TLB may hold what is stale. What the caller wrote before is
    /// seen by whoever fences the device later.
    ///
    /// # Errors
    /// [`Error::Fenced`].
    pub fn refuse<P: Platform>(&self, platform: &P, device: K) -> Result<()> {
        fence(Ordering::SeqCst);
        if self.any(platform, |fenced| fenced == device) { Err(Error::Fenced) } else { Ok(()) }
    }

    /// All of them at this moment.
    pub fn all<P: Platform>(&self, platform: &P) -> heapless::Vec<(K, V), MAX_FENCED_DEVICES> {
        self.list.lock(platform).clone()
    }

    /// Adds a device, if it is not there; `None` when there is no room.
    pub fn note<P: Platform>(&self, platform: &P, device: K, reached_by: V) -> Option<()> {
        let mut list = self.list.lock(platform);
        if !list.iter().any(|(fenced, _)| *fenced == device) {
            list.push((device, reached_by)).ok()?;
            self.count.store(list.len(), Ordering::SeqCst);
        }
        Some(())
    }

    /// Takes a device out.
    pub fn forget<P: Platform>(&self, platform: &P, device: K) {
        let mut list = self.list.lock(platform);
        list.retain(|(fenced, _)| *fenced != device);
        self.count.store(list.len(), Ordering::SeqCst);
    }
}
