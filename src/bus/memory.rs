//! How a unit in software reaches memory.

/// Why an access to memory failed: there is nothing at the address.
///
/// ```
/// use iommu::bus::Unreachable;
/// let read = |at: usize| [1_u64, 2].get(at).copied().ok_or(Unreachable);
/// assert_eq!(read(2), Err(Unreachable));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreachable;

/// Whether an access sees what the processor's caches hold.
///
/// ```
/// use iommu::bus::Snoop;
/// assert_ne!(Snoop::Yes, Snoop::No);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Snoop {
    /// It does.
    Yes,
    /// It sees memory, which may be older.
    No,
}
