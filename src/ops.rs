//! What a backend implements: one [`IommuOps`] for each hardware unit, one [`DomainOps`] for each
//! domain.
//!
//! Both are object-safe and can be implemented outside this crate. The core calls them; kernels
//! call [`Iommu`](crate::Iommu) and [`Domain`].

use core::any::Any;
use core::fmt;
use core::ops::Deref;

use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::device::DeviceInfo;
use crate::domain::{DirtyBitmap, DirtyRead, DirtyTracking, Domain, DomainKind};
use crate::error::{Error, Result, UnsupportedReason};
use crate::fault::{DrainedFaults, FaultRecord, StallAnswer, StallTag};
use crate::frames::Ref;
use crate::id::SourceId;
use crate::iotlb::{CacheTag, Flush, Invalidation, Ticket};
use crate::pci::PciConfig;
use crate::pgtable::{AccessedDirty, PageSizes, Run, WalkerCoherency};
use crate::prot::Prot;
use crate::region::ReservedRegions;
pub use crate::requester::{Ats, FaultModel, Requester};
use crate::window::Windows;

/// A counted handle to a hardware unit.
///
/// ```
/// # fn example(unit: &iommu::ops::Unit) {
/// let same = unit.clone();
/// assert!(same.ptr_eq(unit));
/// # }
/// ```
#[derive(Clone)]
pub struct Unit(Ref<dyn IommuOps>);

impl Unit {
    /// A handle to the unit in this slot.
    pub fn new(ops: Ref<dyn IommuOps>) -> Self {
        Self(ops)
    }

    /// Whether both are the same unit.
    #[inline]
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Ref::ptr_eq(&self.0, &other.0)
    }
}

impl Deref for Unit {
    type Target = dyn IommuOps;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name(), self.base())
    }
}

/// Whether a unit translates the requests of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coverage {
    /// Firmware names the device, or a bridge above it, for this unit.
    Named,
    /// The unit takes what no other unit of the segment names.
    Rest,
    /// Not this unit.
    No,
}

/// Something that a unit, or a unit together with a device, can do (Linux's `enum iommu_cap`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Capability {
    /// Devices snoop the processor's caches.
    CacheCoherency,
    /// Mappings can forbid execution.
    NoExec,
    /// DMA was blocked before this kernel took over.
    PreBootProtection,
    /// Requests that ask not to snoop can be made to snoop: [`DomainFeatures::CACHE_COHERENCY`]. Units
    /// say so in their traits.
    EnforceCacheCoherency,
    /// An invalidation can be deferred.
    DeferredFlush,
    /// Hardware records which pages a device wrote: [`DomainFeatures::DIRTY_TRACKING`]. Units say so in
    /// their traits.
    DirtyTracking,
}

/// Which stage of translation a domain's table is.
///
/// ```
/// use iommu::domain::DomainOptions;
/// use iommu::ops::Stage;
/// assert_eq!(DomainOptions::default().stage, None::<Stage>);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The first (Arm: stage 1): the processor's own table format.
    First,
    /// The second (Arm: stage 2): what hypervisors give their guests.
    Second,
}

bitflags::bitflags! {
    /// What a domain asks of every unit that it is attached to, beyond translation.
    ///
    /// ```
    /// use iommu::ops::DomainFeatures;
    /// let wanted = DomainFeatures::DIRTY_TRACKING;
    /// assert!(DomainFeatures::all().contains(wanted));
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct DomainFeatures: u32 {
        /// Hardware records which pages devices write, while [`Domain::set_dirty_tracking`] has it on.
        /// The record lies in the page table, so a unit that does not snoop there cannot offer this.
        const DIRTY_TRACKING = 1 << 0;
        /// Every request snoops the processor's caches, whatever the device asks for.
        const CACHE_COHERENCY = 1 << 1;
    }
}

/// When a new mapping, which was not present before, must be flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapFlush {
    /// Never: hardware caches no absent entry.
    Never,
    /// After every map: the unit caches absent entries, or has a write buffer to flush.
    Always,
}

/// What must agree between a domain and every unit it is attached to.
///
/// | trait | a domain for several units has | attaching to a unit that differs |
/// |---|---|---|
/// | `driver` | the one they share | refused, [`Driver`](crate::IncompatibleReason::Driver) |
/// | `coherency` | `NeedsClean` if any unit needs it | refused if the unit needs it and the domain does not do it |
/// | `page_sizes` | those that all have | refused if the domain may use one that the unit lacks |
/// | `widths` | the largest that all have | refused if the unit lacks the domain's |
/// | `map_flush` | `Always` if any unit needs it | refused if the unit needs it and the domain does not do it |
/// | `features` | those that all have | refused if the domain has one that the unit lacks |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitTraits {
    /// Which backend, and which table format.
    pub driver: &'static str,
    /// Whether the unit's walker snoops the processor's caches.
    pub coherency: WalkerCoherency,
    /// Page sizes that the unit walks.
    pub page_sizes: PageSizes,
    /// Input widths that tables can have: bit n stands for n bits of IOVA.
    pub widths: u64,
    /// Whether maps must be flushed.
    pub map_flush: MapFlush,
    /// Of a unit: what its domains of this stage can have. Of a domain: what it has.
    pub features: DomainFeatures,
}

impl UnitTraits {
    /// The traits of a domain that fits both units.
    ///
    /// # Errors
    /// [`Error::Incompatible`] when no domain can.
    pub fn common(self, other: Self) -> Result<Self> {
        use crate::error::IncompatibleReason::{Driver, PageSize, Width};
        if self.driver != other.driver {
            return Err(Error::Incompatible(Driver));
        }
        let page_sizes = self.page_sizes.intersection(other.page_sizes);
        if page_sizes.smallest().is_none() {
            return Err(Error::Incompatible(PageSize));
        }
        let widths = self.widths & other.widths;
        if widths == 0 {
            return Err(Error::Incompatible(Width));
        }
        let clean = [self.coherency, other.coherency].contains(&WalkerCoherency::NeedsClean);
        let flush = [self.map_flush, other.map_flush].contains(&MapFlush::Always);
        Ok(Self {
            driver: self.driver,
            coherency: if clean { WalkerCoherency::NeedsClean } else { WalkerCoherency::Snoops },
            page_sizes,
            widths,
            map_flush: if flush { MapFlush::Always } else { MapFlush::Never },
            features: self.features & other.features,
        })
    }

    /// Checks that a domain with the traits `self` may be attached to a unit with the traits `unit`,
    /// but for the width, of which the domain has exactly `width` bits.
    ///
    /// # Errors
    /// [`Error::Incompatible`] with the first row of the table above that is violated.
    pub fn check_attach(self, width: u8, unit: Self) -> Result<()> {
        use crate::error::IncompatibleReason::{Coherency, Driver, Features, MapFlush as NoMapFlush, PageSize, Width};
        let refusal = if self.driver != unit.driver {
            Driver
        } else if unit.coherency == WalkerCoherency::NeedsClean && self.coherency == WalkerCoherency::Snoops {
            Coherency
        } else if !unit.page_sizes.covers(self.page_sizes) {
            PageSize
        } else if unit.widths.checked_shr(u32::from(width)).unwrap_or(0) & 1 == 0 {
            Width
        } else if unit.map_flush == MapFlush::Always && self.map_flush == MapFlush::Never {
            NoMapFlush
        } else if !unit.features.contains(self.features) {
            Features
        } else {
            return Ok(());
        };
        Err(Error::Incompatible(refusal))
    }
}

/// What a paging domain shall be able to do.
#[derive(Clone, Debug)]
pub struct DomainSpec {
    /// Which stage its table is, and with that the format.
    pub stage: Stage,
    /// What the units it is for have in common; the features are those that the domain shall have.
    pub traits: UnitTraits,
    /// The IOVAs that may be mapped.
    pub windows: Windows,
}

impl DomainSpec {
    /// What the table's format does with the bits that hardware sets.
    pub fn accessed_dirty(&self) -> AccessedDirty {
        if self.traits.features.contains(DomainFeatures::DIRTY_TRACKING) {
            AccessedDirty::Hardware
        } else {
            AccessedDirty::Unused
        }
    }
}

/// An interrupt that a unit raises for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum InterruptKind {
    /// A fault was recorded.
    Fault,
    /// An invalidation completed (unused by this crate, which polls).
    InvalidationDone,
    /// A device requests a page.
    PageRequest,
}

/// A message-signalled interrupt: what the unit writes, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    /// Physical address that is written.
    pub address: PhysAddr,
    /// The 32 bits written there.
    pub data: u32,
}

/// One hardware unit. Implementations serialise themselves; every method takes `&self`.
///
/// "Task" methods may wait for hardware (bounded) and may allocate frames; "any" methods neither
/// allocate nor take more than short locks.
///
/// A backend needs no more than the public items of this crate. This one drives a unit that knows
/// one source, whose entry is a register with the address of a page table, and a flush register.
///
/// ```
/// use core::any::Any;
/// use core::sync::atomic::{AtomicU64, Ordering};
/// # use iommu::device::{DeviceInfo, Trust};
/// use iommu::domain::{Domain, DomainKind, PagingDomain};
/// use iommu::frames::{IdBitmap, Ref, Slab};
/// use iommu::iotlb::{Invalidation, Last, Ticket};
/// use iommu::ops::{Capability, Coverage, DomainOps, DomainSpec, IommuOps, Requester, Stage, Unit, UnitTraits};
/// # use iommu::ops::{DomainFeatures, MapFlush};
/// # use iommu::pci::PciConfig;
/// use iommu::pgtable::{Config, PageTable, SecondStage};
/// # use iommu::pgtable::{PageSizes, WalkerCoherency};
/// # use iommu::platform::{Arena, Frame};
/// # use iommu::{DrainedFaults, Error, FaultRecord, IncompatibleReason, Iommu, Iova, IovaRange, NoSpaceReason, PhysAddr, Policy, Prot};
/// # use iommu::{ReservedRegions, Result, SourceId, Window, Windows};
/// # type Kernel = &'static Arena;
/// type Paging = PagingDomain<SecondStage, Kernel>;
///
/// struct Simple {
///     kernel: Kernel,
///     root: AtomicU64,  // stands for a register: zero blocks
///     flush: AtomicU64, // another one: drops what is cached under a number
///     ids: IdBitmap<Kernel>,
///     domains: Slab<Paging, Kernel>,
/// }
///
/// impl Simple {
///     /// After the register stopped pointing to `old`: flush all of it, then give the number back.
///     fn leave(&self, unit: &Unit, old: &Domain) {
///         let Some(paging) = old.ops().as_any().downcast_ref::<Paging>() else { return };
///         let found = paging.tags().read().iter().find(|(of, _)| of.ptr_eq(unit)).map(|(_, tag)| tag);
///         let Some(tag) = found else { return };
///         self.flush.store(u64::from(tag.id), Ordering::SeqCst);
///         match paging.tags().release(unit, tag) {
///             Ok(Last::Yes) => self.ids.free(tag.id),
///             Ok(Last::No) => {}
///             Err(_) => self.ids.quarantine(tag.id),
///         }
///     }
/// }
///
/// impl IommuOps for Simple {
///     fn domain_alloc_paging(&self, spec: &DomainSpec) -> Result<Domain> {
///         let slot = self.domains.insert_with(|_| {
///             let table = PageTable::new(self.kernel, SecondStage::default(), Config::new::<SecondStage>(4))?;
///             Ok(PagingDomain::new(self.kernel, DomainKind::Paging, spec, table))
///         })?;
///         Ok(Domain::new(Ref::map(slot, |domain| domain as &dyn DomainOps)))
///     }
///
///     fn attach(&self, unit: &Unit, _requester: &Requester, domain: &Domain, old: &Domain) -> Result<()> {
///         let mut root = 0;
///         if domain.kind() != DomainKind::Blocked {
///             let paging: Option<&Paging> = domain.ops().as_any().downcast_ref();
///             let paging = paging.ok_or(Error::Incompatible(IncompatibleReason::Driver))?;
///             let traits = self.traits(Stage::Second).ok_or(Error::Incompatible(IncompatibleReason::Stage))?;
///             paging.traits().check_attach(48, traits)?;
///             // First the tag, so that every unmap from now on flushes here; then the entry.
///             let tag = paging.tags().acquire(unit, None, &self.ids)?;
///             root = paging.table().root().as_u64() | u64::from(tag.id);
///         }
///         self.root.store(root, Ordering::SeqCst);
///         self.leave(unit, old);
///         Ok(())
///     }
///
///     fn block(&self, unit: &Unit, _requester: &Requester, old: &Domain) {
///         self.root.store(0, Ordering::SeqCst);
///         self.leave(unit, old);
///     }
///
///     fn invalidate(&self, invalidation: &Invalidation<'_>) -> Result<Ticket> {
///         self.flush.store(u64::from(invalidation.tag.id), Ordering::SeqCst);
///         Ok(Ticket(0))
///     }
///     fn wait(&self, _ticket: Ticket) -> Result<()> {
///         Ok(()) // this hardware is done at once
///     }
///     // ... and a dozen methods that say what the unit is.
/// #   fn as_any(&self) -> &dyn Any { self }
/// #   fn name(&self) -> &'static str { "simple unit" }
/// #   fn base(&self) -> PhysAddr { PhysAddr::new(0xfed9_0000) }
/// #   fn coverage(&self, _: &DeviceInfo, _: &dyn PciConfig) -> Coverage { Coverage::Rest }
/// #   fn traits(&self, stage: Stage) -> Option<UnitTraits> {
/// #       let (driver, coherency, map_flush) = ("simple", WalkerCoherency::Snoops, MapFlush::Never);
/// #       let features = DomainFeatures::empty();
/// #       let traits = UnitTraits { driver, coherency, page_sizes: SIZES, widths: 1 << 48, map_flush, features };
/// #       (stage == Stage::Second).then_some(traits)
/// #   }
/// #   fn default_stage(&self) -> Stage { Stage::Second }
/// #   fn windows(&self, _: Stage) -> Windows {
/// #       Windows::new(Window { range: IovaRange::from_len(Iova::new(0), 1 << 48).unwrap(), page_sizes: SIZES })
/// #   }
/// #   fn reserved_regions(&self, _: &DeviceInfo, _: &dyn PciConfig, _: &mut ReservedRegions) -> Result<()> { Ok(()) }
/// #   fn capable(&self, _: Capability) -> bool { false }
/// #   fn enable(&self) -> Result<()> { Ok(()) }
/// #   fn shutdown(&self) -> Result<()> { Ok(()) }
/// #   fn suspend(&self) -> Result<()> { Ok(()) }
/// #   fn resume(&self) -> Result<()> { Ok(()) }
/// #   fn drain_faults(&self, _: &mut dyn FnMut(FaultRecord)) -> DrainedFaults { DrainedFaults::default() }
/// }
/// # const SIZES: PageSizes = PageSizes::from_bits(1 << 12 | 1 << 21 | 1 << 30);
///
/// # let kernel = Arena::new(Box::leak(vec![Frame::ZERO; 64].into_boxed_slice()))?;
/// let iommu = Iommu::new(kernel, Policy::default())?;
/// let ids = IdBitmap::new(kernel, 255, NoSpaceReason::DomainIds)?;
/// ids.reserve(0)?;
/// let unit = Simple { kernel, root: 0.into(), flush: 0.into(), ids, domains: Slab::new(kernel)? };
/// let unit = Slab::new(kernel)?.insert(unit).map_err(|(error, _)| error)?;
/// iommu.add_unit(Ref::map(unit.clone(), |unit| unit as &dyn IommuOps))?;
/// let device = iommu.probe_platform(DeviceInfo::platform(&[SourceId::platform(0, 1)], Trust::Trusted)?)?;
/// let domain = iommu.paging_domain(&[&device])?;
/// let range = IovaRange::from_len(Iova::new(0x1000), 0x2000)?;
/// // SAFETY: nobody uses the memory, nor works on the range at the same time.
/// unsafe { domain.map(range, PhysAddr::new(0x8000), Prot::RW)? };
/// iommu.attach_device(&domain, &device)?;
/// let tag = unit.root.load(Ordering::SeqCst) & 0xfff;
/// // SAFETY: as above.
/// unsafe { domain.unmap_sync(range)? };
/// assert_eq!(unit.flush.load(Ordering::SeqCst), tag);
/// # drop((iommu, device, domain, unit));
/// # assert_eq!(kernel.frames_in_use(), 0);
/// # Ok::<(), iommu::Error>(())
/// ```
pub trait IommuOps: Any + Send + Sync {
    /// For the backend's own checked downcast.
    fn as_any(&self) -> &dyn Any;

    /// What kind of unit this is, for people.
    fn name(&self) -> &'static str;

    /// Physical address of its registers: the unit's identity for people.
    fn base(&self) -> PhysAddr;

    /// Whether requests of `device` arrive here. Task.
    fn coverage(&self, device: &DeviceInfo, pci: &dyn PciConfig) -> Coverage;

    /// Whether requests under both ids look the same here, so that they cannot go through different domains:
    /// StreamIDs are fewer than requester ids where firmware maps several to one. Any.
    fn is_same_source(&self, a: SourceId, b: SourceId) -> bool {
        a == b
    }

    /// What every domain of this stage must agree with; `None` when the unit has no such stage. Any.
    fn traits(&self, stage: Stage) -> Option<UnitTraits>;

    /// What the unit can translate in this stage, reserved regions of single devices not yet taken
    /// out; none when it has no such stage. Any.
    fn windows(&self, stage: Stage) -> Windows;

    /// The stage of a domain for this unit when nobody asks for one, which is one that it has. If it has
    /// both, the one that can do more: VT-d's second stage, which can forbid reading and enforces snooping
    /// page by page, or Arm's stage 1, without which there are no PASIDs. Any.
    fn default_stage(&self) -> Stage;

    /// Adds the regions that `device` cannot use freely. Task.
    ///
    /// # Errors
    /// [`Error::Capacity`].
    fn reserved_regions(&self, device: &DeviceInfo, pci: &dyn PciConfig, regions: &mut ReservedRegions) -> Result<()>;

    /// The kind of default domain that the device needs, if it needs one. Any.
    fn demanded_domain(&self, device: &DeviceInfo) -> Option<DomainKind> {
        let _ = device;
        None
    }

    /// Whether the device TLB of `device` can be used: the unit answers its requests, and firmware
    /// says that nothing on the way is against it. Task.
    fn supports_ats(&self, device: &DeviceInfo, pci: &dyn PciConfig) -> bool {
        let _ = (device, pci);
        false
    }

    /// Whether requests of `device` that fault may wait for an answer: the unit can hold them, and firmware
    /// says that the device and the way to it bear it. Task.
    fn supports_stalls(&self, device: &DeviceInfo) -> bool {
        let _ = device;
        false
    }

    /// Whether the unit can do it; not asked for what [`traits`](Self::traits) says. Any.
    fn capable(&self, capability: Capability) -> bool;

    /// A paging domain. Task.
    ///
    /// # Errors
    /// [`Error::NoMemory`], [`Error::Unsupported`].
    fn domain_alloc_paging(&self, spec: &DomainSpec) -> Result<Domain>;

    /// Lets requests of `requester` go through `domain` instead of `old`. In between a device sees the
    /// old translation, the new one, or a block. `unit` is the handle of this unit. Task.
    ///
    /// `old` is what the core attached last. A unit that has blocked a source on its own, after an
    /// error, remembers so and has nothing to take from `old`.
    ///
    /// With [`Requester::ats`] requests for translations and translated requests are let through as
    /// well. The core turns the device TLB on only afterwards, and off before [`block`](Self::block).
    ///
    /// With [`FaultModel::Stall`] requests that fault wait for an [answer](Self::answer_stall). Those that
    /// wait under `old` are terminated, as they are when the requester is blocked.
    ///
    /// # Errors
    /// [`Error::Incompatible`] when the domain does not fit, with nothing changed; after any other
    /// error the source is blocked or as before.
    fn attach(&self, unit: &Unit, requester: &Requester, domain: &Domain, old: &Domain) -> Result<()>;

    /// Blocks requests of `requester`, which went through `old`. Cannot fail: if the hardware does not
    /// answer, the unit fences itself and keeps quarantined what it may still use: the number, and
    /// the domain (a tag that is not released keeps its tables, or a handle does). Task.
    fn block(&self, unit: &Unit, requester: &Requester, old: &Domain);

    /// What [`DomainOps::features`] of an attached domain says has changed (dirty tracking turned on
    /// or off, coherency enforced): rewrites every entry that uses `domain` under `tag`, and
    /// invalidates in the documented order. Task.
    ///
    /// It may run beside [`attach`](Self::attach), which has published its tag before: attach reads
    /// the domain's features and writes the entry under the lock that this takes, or reads them again
    /// after it wrote the entry.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the unit's entries say nothing of this; those of
    /// [`invalidate`](Self::invalidate) and [`wait`](Self::wait), with what may still be used kept
    /// quarantined.
    fn refresh(&self, unit: &Unit, tag: CacheTag, domain: &Domain) -> Result<()> {
        let _ = (unit, tag, domain);
        Err(Error::Unsupported(UnsupportedReason::Operation))
    }

    /// Submits an invalidation: in the unit's cache and, when that is done, in the device TLBs. Any.
    ///
    /// What was stored before the call is to be visible to the unit before it executes the request: a
    /// barrier ([`Platform::publish`](crate::platform::Platform::publish)) of the unit's own.
    ///
    /// # Errors
    /// [`Error::Fenced`], [`Error::TimedOut`] when there is no room.
    fn invalidate(&self, invalidation: &Invalidation<'_>) -> Result<Ticket>;

    /// Waits until a submitted invalidation is done. Any.
    ///
    /// # Errors
    /// [`Error::Invalidation`] with the reason.
    fn wait(&self, ticket: Ticket) -> Result<()>;

    /// Starts translating; until then devices reach what firmware let them reach. Task.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    fn enable(&self) -> Result<()>;

    /// Stops translating and gives the hardware back as after reset. Task.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    fn shutdown(&self) -> Result<()>;

    /// Prepares for loss of power. Task.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    fn suspend(&self) -> Result<()>;

    /// Restores what [`suspend`](Self::suspend) found, or resets a fenced unit: queue and caches
    /// start anew, the tables stay. Quarantined memory may be freed afterwards. Task.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    fn resume(&self) -> Result<()>;

    /// Answers a request that waits, as a record of [`drain_faults`](Self::drain_faults) said. Any; also
    /// from inside that call.
    ///
    /// # Errors
    /// [`InvalidReason::NotWaiting`](crate::InvalidReason::NotWaiting) when it was answered or terminated
    /// already; those of [`invalidate`](Self::invalidate): it goes on waiting until the unit is reset.
    fn answer_stall(&self, tag: StallTag, answer: StallAnswer) -> Result<()> {
        let _ = (tag, answer);
        Err(Error::Unsupported(UnsupportedReason::Operation))
    }

    /// Gives every fault recorded since the last call. Any.
    ///
    /// A request that waits is given once, with [`FaultRecord::stalled`]; one of a requester that was not
    /// attached with [`FaultModel::Stall`] last is terminated instead, and given without.
    fn drain_faults(&self, visit: &mut dyn FnMut(FaultRecord)) -> DrainedFaults;

    /// Says how the unit shall raise its interrupt of this kind. Any.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it has none.
    fn set_interrupt(&self, kind: InterruptKind, msi: Msi) -> Result<()> {
        let _ = (kind, msi);
        Err(Error::Unsupported(UnsupportedReason::Operation))
    }
}

/// One domain. [`PagingDomain`](crate::domain::PagingDomain) implements it for every page-table
/// format; a backend needs its own only if its translations are not page tables.
///
/// Whoever maps or unmaps checks that the range lies inside a window. Defaults are those of a domain
/// in which nothing can be mapped.
pub trait DomainOps: Any + Send + Sync {
    /// For the backend's own checked downcast.
    fn as_any(&self) -> &dyn Any;

    /// What kind of domain this is.
    fn kind(&self) -> DomainKind;

    /// The IOVAs that may be mapped.
    fn windows(&self) -> &Windows;

    /// Page sizes that mappings may have.
    fn page_sizes(&self) -> PageSizes {
        PageSizes::NONE
    }

    /// Which stage its table is, if it has one.
    fn stage(&self) -> Option<Stage> {
        None
    }

    /// What is on at the moment: what the entries of units that use the domain must say. Any.
    fn features(&self) -> DomainFeatures {
        DomainFeatures::empty()
    }

    /// See [`Domain::enforce_cache_coherency`]. `domain` is the handle of this domain. Task.
    ///
    /// # Errors
    /// As there.
    fn enforce_cache_coherency(&self, domain: &Domain) -> Result<()> {
        let _ = domain;
        Err(NOT_PAGING)
    }

    /// See [`Domain::set_dirty_tracking`]. `domain` is the handle of this domain. Task.
    ///
    /// # Errors
    /// As there.
    fn set_dirty_tracking(&self, domain: &Domain, tracking: DirtyTracking) -> Result<()> {
        let _ = (domain, tracking);
        Err(NOT_PAGING)
    }

    /// See [`Domain::read_and_clear_dirty`].
    ///
    /// # Errors
    /// As there.
    fn read_and_clear_dirty(&self, range: IovaRange, read: DirtyRead, bitmap: &mut DirtyBitmap<'_>) -> Result<()> {
        let _ = (range, read, bitmap);
        Err(NOT_PAGING)
    }

    /// See [`Domain::map`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    unsafe fn map(&self, range: IovaRange, phys: PhysAddr, prot: Prot, sizes: PageSizes) -> Result<()> {
        let _ = (range, phys, prot, sizes);
        Err(NOT_PAGING)
    }

    /// Maps in a reserved region, which lies outside of every window: firmware's memory one to one,
    /// or the doorbell of an interrupt controller.
    ///
    /// # Errors
    /// As [`Domain::map`], but for the window.
    ///
    /// # Safety
    /// As [`Domain::map`].
    unsafe fn map_reserved(&self, range: IovaRange, phys: PhysAddr, prot: Prot) -> Result<()> {
        let _ = (range, phys, prot);
        Err(NOT_PAGING)
    }

    /// See [`Domain::unmap`]. What was unmapped is added to `flush`, also on an error.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    unsafe fn unmap(&self, range: IovaRange, flush: &mut Flush) -> Result<()> {
        let _ = (range, flush);
        Err(NOT_PAGING)
    }

    /// See [`Domain::cut`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    unsafe fn cut(&self, range: IovaRange, flush: &mut Flush) -> Result<()> {
        let _ = (range, flush);
        Err(NOT_PAGING)
    }

    /// See [`Domain::protect`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    unsafe fn protect(&self, range: IovaRange, prot: Prot, flush: &mut Flush) -> Result<()> {
        let _ = (range, prot, flush);
        Err(NOT_PAGING)
    }

    /// Invalidates and waits, then frees; `flush` is empty after success and whole after an error.
    ///
    /// # Errors
    /// Those of [`IommuOps::invalidate`] and [`IommuOps::wait`].
    fn sync(&self, flush: &mut Flush) -> Result<()> {
        let _ = flush;
        Ok(())
    }

    /// Keeps `flush` until [`flush_deferred`](Self::flush_deferred) succeeds.
    fn defer(&self, flush: &mut Flush) {
        let _ = flush;
    }

    /// Syncs everything deferred.
    ///
    /// # Errors
    /// As [`sync`](Self::sync); it stays deferred then.
    fn flush_deferred(&self) -> Result<()> {
        Ok(())
    }

    /// The first run of equal mappings that begins at or after `from` and at or before `last`.
    fn next_run(&self, from: Iova, last: Iova) -> Option<Run> {
        let _ = (from, last);
        None
    }

    /// Where `iova` goes.
    fn iova_to_phys(&self, iova: Iova) -> Option<PhysAddr> {
        let _ = iova;
        None
    }

    /// See [`Domain::iova_to_phys_unregistered`].
    ///
    /// # Safety
    /// As there.
    unsafe fn iova_to_phys_unregistered(&self, iova: Iova) -> Option<PhysAddr> {
        self.iova_to_phys(iova)
    }
}

const NOT_PAGING: Error = Error::Invalid(crate::error::InvalidReason::NotPaging);
