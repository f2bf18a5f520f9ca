//! Groups: devices that hardware cannot tell apart share one, and with it one domain.

use core::fmt;
use core::num::NonZeroU64;

use crate::domain::Domain;
use crate::frames::Ref;
use crate::id::SourceId;
use crate::pci;
use crate::sync::Lock;

/// Who owns the DMA of a group: any number that its owner alone uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(pub NonZeroU64);

/// A counted handle to a group of devices that cannot be isolated from each other.
///
/// Attaching works on groups: all devices of a group have the same domain.
#[derive(Clone)]
pub struct Group(Ref<GroupSlot>);

/// Devices with equal keys share a group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupKey {
    /// PCI functions that topology and ACS do not keep apart.
    Pci(pci::GroupKey),
    /// A platform device, by the first of its source ids.
    Platform(SourceId),
}

/// What lies in the slab for each group.
pub(crate) struct GroupSlot {
    /// Guards the state. Held for a few loads and stores; taken after no other lock.
    pub(crate) state: Lock<GroupState>,
}

pub(crate) struct GroupState {
    /// A processor is changing the group; the others wait without holding the lock.
    pub(crate) changing: bool,
    /// The domain that the group is attached to now.
    pub(crate) domain: Domain,
    /// Whether hardware has failed amid a change, so that some of its devices may be blocked instead.
    pub(crate) in_doubt: bool,
    /// The domain that it goes back to.
    pub(crate) default: Domain,
    /// Drivers that use the default domain.
    pub(crate) drivers: usize,
    /// Who has claimed the group, and how often.
    pub(crate) owner: Option<(Owner, usize)>,
}

impl Group {
    pub(crate) fn new(slot: Ref<GroupSlot>) -> Self {
        Self(slot)
    }

    pub(crate) fn slot(&self) -> &GroupSlot {
        &self.0
    }

    /// A number that no other group has while this one exists.
    #[doc(alias = "iommu_group_id")]
    pub fn id(&self) -> u32 {
        Ref::index(&self.0)
    }
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        Ref::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Group {}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.id())
    }
}
