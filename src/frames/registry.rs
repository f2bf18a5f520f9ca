//! A slab that holds on to its values.

use super::{Ref, Slab};
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::sync::Lock;

/// Values that stay until they are removed, or the registry is dropped, whoever else has handles.
///
/// ```
/// use iommu::frames::{Ref, Registry};
/// use iommu::platform::{Arena, Frame};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 8].into_boxed_slice()))?;
/// let registry = Registry::new(arena)?;
/// let index = Ref::index(&registry.insert("edu")?);
/// assert_eq!(registry.get(index).as_deref(), Some(&"edu"));
/// registry.remove(index);
/// assert!(registry.get(index).is_none());
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Debug)]
pub struct Registry<T: Send + Sync + 'static, P: Platform> {
    platform: P,
    slab: Slab<Kept<T>, P>,
}

/// A value whose slot holds a handle to itself.
#[derive(Debug)]
struct Kept<T: Send + Sync + 'static> {
    value: T,
    own: Lock<Option<Ref<Kept<T>>>>,
}

impl<T: Send + Sync + 'static, P: Platform> Registry<T, P> {
    /// An empty registry. Task only.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new(platform: P) -> Result<Self> {
        Ok(Self { slab: Slab::new(platform.clone())?, platform })
    }

    /// Takes in a value, which is dropped on an error. Task only.
    ///
    /// # Errors
    /// As [`Slab::insert`].
    pub fn insert(&self, value: T) -> Result<Ref<T>> {
        let slot = self.slab.insert(Kept { value, own: Lock::new(None) }).map_err(|(error, _)| -> Error { error })?;
        *slot.own.lock(&self.platform) = Some(slot.clone());
        Ok(show(slot))
    }

    /// Lets go of the value in slot `index`; it is dropped with the last handle.
    pub fn remove(&self, index: u32) {
        if let Some(slot) = self.slab.get(index) {
            // Dropped outside the lock: the value's end may call into the kernel.
            let _own = slot.own.lock(&self.platform).take();
        }
    }

    /// The value in slot `index`. Any context.
    pub fn get(&self, index: u32) -> Option<Ref<T>> {
        self.slab.get(index).map(show)
    }

    /// Every value, by rising slot number. Also those that were removed and still have handles.
    pub fn iter(&self) -> impl Iterator<Item = Ref<T>> {
        self.slab.iter().map(show)
    }

    /// Whether the registry still holds the value in slot `index`.
    #[inline(never)]
    pub fn holds(&self, index: u32) -> bool {
        self.slab.get(index).is_some_and(|slot| slot.own.lock(&self.platform).is_some())
    }
}

impl<T: Send + Sync + 'static, P: Platform> Drop for Registry<T, P> {
    fn drop(&mut self) {
        for slot in self.slab.iter() {
            let _own = slot.own.lock(&self.platform).take();
        }
    }
}

fn show<T: Send + Sync + 'static>(slot: Ref<Kept<T>>) -> Ref<T> {
    Ref::map(slot, |kept| &kept.value)
}
