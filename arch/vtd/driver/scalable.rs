//! Scalable mode: each requester has a PASID directory, in which one entry translates its requests
//! without PASID (VT-d 3.4.3).

use super::context::ContextTables;
use super::domains::table_of;
use super::pasid::{Invalidate, PasidDirectory, PasidSlot, Passage};
use super::site;
use super::translation::{Cached, RID_PASID, Translation, with_features};
use super::unit::{Changed, VtdUnit};
use crate::arch::vtd::layout::scalable::{PasidEntry, ScalableContextEntry};
use crate::domain::Domain;
use crate::error::Result;
use crate::frames::{RadixMap, Ref, Registry};
use crate::iotlb::CacheTag;
use crate::ops::Requester;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::sync::atomic::{Ordering, fence};

/// The PASID directories of a unit, by requester. They are made when a requester is first attached, and
/// live as long as the unit: a context entry leads to each.
///
/// Each requester has its own, aliases too: only the device itself sends PASIDs.
pub(super) struct Directories<P: Platform> {
    platform: P,
    coherency: WalkerCoherency,
    directories: Registry<PasidDirectory<P>, P>,
    slots: RadixMap<u32, P>,
}

impl<P: Platform> Directories<P> {
    pub(super) fn new(platform: &P, coherency: WalkerCoherency) -> Result<Self> {
        let (directories, slots) = (Registry::new(platform.clone())?, RadixMap::new(platform.clone()));
        Ok(Self { platform: platform.clone(), coherency, directories, slots })
    }

    /// The directory of a requester, if it has one.
    pub(super) fn find(&self, requester: u16) -> Option<Ref<PasidDirectory<P>>> {
        self.directories.get(self.slots.get(u64::from(requester))?)
    }

    /// The directory of a requester, to which its context entry leads. Task only.
    ///
    /// A context entry that leads here blocks as one that is absent does, as long as the PASID entries
    /// are absent: it is published once, and stays. What caches hold of its absence goes with that of
    /// the PASID entry.
    pub(super) fn find_or_make(
        &self,
        requester: &Requester,
        contexts: &ContextTables<P>,
    ) -> Result<Ref<PasidDirectory<P>>> {
        let (requester, ats) = (requester.source.id() as u16, requester.ats);
        let directory = match self.find(requester) {
            Some(directory) => directory,
            None => self.make(requester)?,
        };
        // So that a use of the entry cannot fail.
        directory.find_or_make(RID_PASID)?;
        let context = contexts.find_or_make(requester)?;
        // Neither present nor fenced.
        if context.read::<[u64; 2]>() == [0; 2] {
            let entry = ScalableContextEntry::new(directory.phys(), directory.size());
            context.publish(if ats.is_some() { entry.with_device_tlb() } else { entry });
        }
        Ok(directory)
    }

    /// Calls `visit` with every PASID entry of every directory.
    pub(super) fn each(&self, mut visit: impl FnMut(PasidSlot<'_, P>)) {
        self.directories.iter().for_each(|directory| directory.each(&mut visit));
    }

    /// A requester is attached by one processor at a time: its group is claimed.
    fn make(&self, requester: u16) -> Result<Ref<PasidDirectory<P>>> {
        let new = PasidDirectory::new(self.platform.clone(), self.coherency, 0)?;
        let directory = self.directories.insert(new)?;
        let slot = Ref::index(&directory);
        self.slots.insert(u64::from(requester), slot).inspect_err(|_| self.directories.remove(slot))?;
        Ok(directory)
    }
}

impl<P: Platform> VtdUnit<P> {
    /// Makes the context entry absent that was copied for a requester, which has no directory of ours yet.
    /// In legacy mode a copied entry is one like others. After an error it is absent, and told again
    /// with the next attach.
    pub(super) fn drop_copied(&self, requester: u16) -> Result<()> {
        let Some(directories) = &*self.directories else { return Ok(()) };
        let (None, Some(context)) = (directories.find(requester), self.tables.find(requester)) else {
            return Ok(());
        };
        if context.read::<[u64; 2]>() == [0; 2] {
            return Ok(());
        }
        context.withdraw::<ScalableContextEntry>();
        self.forget_copied_context(requester)?;
        context.clear();
        Ok(())
    }

    /// Makes the entry of a requester say `new`, or makes it absent; hitlessly, where hardware can see
    /// the old entry or the new one after each store.
    pub(super) fn change_pasid_entry(
        &self,
        slot: &PasidSlot<'_, P>,
        requester: u16,
        new: Option<Translation>,
    ) -> Changed {
        let Some(new) = new else { return self.remove_pasid_entry(slot, requester) };
        let before = Some(slot.read::<PasidEntry>()).filter(|old| old.is_present()).map(Cached::of_pasid_entry);
        let mut in_force = false;
        let passage = slot.replace(self.pasid_entry(new), |what| {
            in_force = what == Invalidate::Translations && slot.read::<PasidEntry>().is_present();
            before.map_or(Ok(()), |cached| self.forget_pasid_entry(requester, cached))
        });
        let passage = match passage {
            Ok(passage) => passage,
            Err(error) => {
                slot.clear();
                return Changed { before, gone: Err(error), shown: in_force.then_some(Err(error)) };
            }
        };
        let shown = match passage {
            // What was invalidated after the store has flushed write buffers as well (6.8).
            Passage::Hitless if before.is_some() => Ok(()),
            _ if self.capabilities().caches_absent() => self.forget_absent_pasid_entry(requester, new.cached()),
            _ => self.flush_write_buffer(site::PRESENT_WRITE_BUFFER),
        };
        Changed { before, gone: Ok(()), shown: Some(shown) }
    }

    /// P to NP: absent, PASID cache, IOTLB, wait, clear (6.5.3.3).
    fn remove_pasid_entry(&self, slot: &PasidSlot<'_, P>, requester: u16) -> Changed {
        let before = slot.withdraw().map(Cached::of_pasid_entry);
        let gone = before.map_or(Ok(()), |cached| self.forget_pasid_entry(requester, cached));
        slot.clear();
        Changed { before, gone, shown: None }
    }

    /// Lets the context entry of a requester say whether its device TLB may be used (DTE). That changes
    /// only if another device has come in the place of one, and takes a way through absent.
    pub(super) fn permit_device_tlb(&self, requester: &Requester, cached: Option<Cached>) -> Result<()> {
        let source = requester.source.id() as u16;
        let Some(context) = self.tables.find(source) else { return Ok(()) };
        let entry: ScalableContextEntry = context.read();
        if entry.permits_device_tlb() == requester.ats.is_some() {
            return Ok(());
        }
        let new = context.withdraw().unwrap_or(entry).without_device_tlb();
        let gone = self.forget_device(source, cached);
        context.clear();
        // If it is not known to be gone, the next attach finds it absent.
        gone?;
        context.publish(if requester.ats.is_some() { new.with_device_tlb() } else { new });
        // What is cached of its absence goes with that of the PASID entry, if that is absent.
        match cached {
            Some(_) if self.capabilities().caches_absent() => self.forget_absent_device(source),
            Some(_) => self.flush_write_buffer(site::DEVICE_WRITE_BUFFER),
            None => Ok(()),
        }
    }

    pub(super) fn pasid_entry(&self, translation: Translation) -> PasidEntry {
        translation.pasid_entry(self.capabilities())
    }

    /// See [`IommuOps::refresh`](crate::ops::IommuOps::refresh): entries stay present, and single bits
    /// change (6.5.3.3). If it is not confirmed, hardware may still have them cached as they were, with
    /// the same table and number.
    pub(super) fn refresh_entries(&self, tag: CacheTag, domain: &Domain) -> Result<()> {
        // Entries of legacy mode say nothing of features.
        let Some(directories) = &*self.directories else { return Ok(()) };
        // The switch was thrown: whoever attaches from now on sees it.
        fence(Ordering::SeqCst);
        let (features, table) = (domain.ops().features(), table_of::<P>(domain));
        let mut cached = None;
        directories.each(|slot| {
            let old: PasidEntry = slot.read();
            // The number alone may be another domain's, if this one has left the unit meanwhile.
            if !old.is_present() || Cached::of_pasid_entry(old).tag() != Some(tag) || old.table() != table {
                return;
            }
            let new = with_features(old, features);
            for (index, (old, new)) in old.words.into_iter().zip(new.words).enumerate() {
                // Unless whoever attaches has changed it meanwhile: then it is none of this domain's.
                if old != new && slot.word(index).compare_exchange(old, new).is_ok() {
                    slot.show(site::PASID_STEP, site::PASID_STEP_CLEAN);
                    cached = Some(Cached::of_pasid_entry(slot.read()));
                }
            }
        });
        cached.map_or(Ok(()), |cached| self.forget_features(cached))
    }
}
