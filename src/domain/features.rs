//! What a paging domain can do beyond translating: record what devices write, enforce coherency.
//!
//! Which features are on stands in one word. A change of it and an attach meet in the cache tags: the
//! change writes the word, then reads the tags; an attach publishes its tag, then reads the word. So
//! either the change tells the unit, or the attach sees the change.

use core::time::Duration;

use super::{DirtyBitmap, DirtyTracking, Domain, DomainKind, PagingDomain};
use crate::addr::IovaRange;
use crate::error::{BusyReason, Error, IncompatibleReason, InvalidReason, Result, UnsupportedReason, WaitReason};
use crate::iotlb::Flush;
use crate::ops::{DomainFeatures, Stage};
use crate::pgtable::{DirtyRead, Format};
use crate::platform::Platform;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::wait_until;

/// How long a change of the features waits for another processor's.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// The features that are on.
#[derive(Debug)]
pub(super) struct Switches {
    on: AtomicU32,
    /// A processor is changing them.
    changing: AtomicBool,
}

impl Switches {
    pub(super) fn new(on: DomainFeatures) -> Self {
        Self { on: AtomicU32::new(on.bits()), changing: AtomicBool::new(false) }
    }

    pub(super) fn on(&self) -> DomainFeatures {
        DomainFeatures::from_bits_truncate(self.on.load(Ordering::Acquire))
    }

    fn turn_on(&self, feature: DomainFeatures) {
        self.on.fetch_or(feature.bits(), Ordering::AcqRel);
    }

    fn turn_off(&self, feature: DomainFeatures) {
        self.on.fetch_and(!feature.bits(), Ordering::AcqRel);
    }
}

/// The right to change the features of a domain.
struct Change<'a>(&'a Switches);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.changing.store(false, Ordering::Release);
    }
}

impl<F: Format, P: Platform> PagingDomain<F, P> {
    /// See [`Domain::enforce_cache_coherency`].
    pub(super) fn enforce_coherency(&self, domain: &Domain) -> Result<()> {
        let _change = self.change()?;
        let feature = DomainFeatures::CACHE_COHERENCY;
        if self.switches.on().contains(feature) {
            return Ok(());
        }
        // First the switch: attaches from now on check it.
        self.switches.turn_on(feature);
        let enforced = self.check_units(feature).and_then(|()| match Self::enforces_in_leaves(self.stage) {
            false => self.refresh(domain),
            true => self.table.enforce_snoop(),
        });
        self.or_turn_off(domain, feature, enforced)
    }

    /// Whether coherency is enforced in each leaf, not by the units' entries.
    pub(super) fn enforces_in_leaves(stage: Stage) -> bool {
        F::SNOOP != 0 && stage == Stage::Second
    }

    /// See [`Domain::set_dirty_tracking`].
    pub(super) fn track_dirty(&self, domain: &Domain, tracking: DirtyTracking) -> Result<()> {
        let _change = self.change()?;
        let feature = DomainFeatures::DIRTY_TRACKING;
        self.check_tracked()?;
        match (tracking, self.switches.on().contains(feature)) {
            (DirtyTracking::On, true) | (DirtyTracking::Off, false) => Ok(()),
            (DirtyTracking::Off, true) => {
                self.switches.turn_off(feature);
                self.refresh(domain)
            }
            (DirtyTracking::On, false) => {
                // A cached translation that hardware takes for recorded would hide a write.
                self.table.clear_dirty()?;
                self.invalidate(&Flush::new())?;
                self.switches.turn_on(feature);
                let told = self.refresh(domain);
                self.or_turn_off(domain, feature, told)
            }
        }
    }

    /// See [`Domain::read_and_clear_dirty`].
    pub(super) fn read_dirty(&self, range: IovaRange, read: DirtyRead, bitmap: &mut DirtyBitmap<'_>) -> Result<()> {
        self.check_tracked()?;
        self.windows.check(range)?;
        bitmap.check(range, self.table.page_sizes())?;
        let mut cleared = Flush::new();
        self.table.read_dirty(range, read, &mut |page| {
            bitmap.set(page);
            if read == DirtyRead::Clear {
                cleared.add(page);
            }
        })?;
        if cleared.is_empty() {
            return Ok(());
        }
        let invalidated = self.invalidate(&cleared);
        if invalidated.is_err() {
            // Hardware may go on writing through what it has cached, and record nothing.
            self.table.mark_dirty(range, &|page| bitmap.is_set(page.start()))?;
        }
        invalidated
    }

    #[inline(never)]
    fn check_tracked(&self) -> Result<()> {
        if self.kind != DomainKind::Paging {
            return Err(Error::Invalid(InvalidReason::NotPaging));
        }
        let tracked = self.traits.features.contains(DomainFeatures::DIRTY_TRACKING);
        if tracked { Ok(()) } else { Err(Error::Unsupported(UnsupportedReason::Features)) }
    }

    /// Checks that every unit that uses the domain has a feature.
    #[inline(never)]
    fn check_units(&self, feature: DomainFeatures) -> Result<()> {
        let lacks = |traits: Option<crate::ops::UnitTraits>| traits.is_none_or(|has| !has.features.contains(feature));
        if self.tags.read().iter().any(|(unit, _)| lacks(unit.traits(self.stage))) {
            return Err(Error::Incompatible(IncompatibleReason::Features));
        }
        Ok(())
    }

    /// Tells every unit that the features have changed; the others are told after an error as well.
    #[inline(never)]
    fn refresh(&self, domain: &Domain) -> Result<()> {
        let mut result = Ok(());
        self.tags.each(&mut |unit, tag| result = result.and(unit.refresh(unit, tag, domain)));
        result
    }

    /// Turns a feature off again after an error.
    #[inline(never)]
    fn or_turn_off(&self, domain: &Domain, feature: DomainFeatures, result: Result<()>) -> Result<()> {
        if result.is_err() {
            self.switches.turn_off(feature);
            // A unit that does not do this either has fenced itself.
            let _ = self.refresh(domain);
        }
        result
    }

    #[inline(never)]
    fn change(&self) -> Result<Change<'_>> {
        wait_until(&self.platform, CHANGE_LIMIT, WaitReason::Claim, || {
            let free = !self.switches.changing.swap(true, Ordering::Acquire);
            // Made only when it is granted: dropping one ends the other processor's right.
            free.then(|| Change(&self.switches))
        })
        .map_err(|_| Error::Busy(BusyReason::Changing))
    }
}
