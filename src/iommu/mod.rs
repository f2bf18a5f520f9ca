//! The core: units, devices, groups and their domains.

mod ats;
mod attach;
mod msi;
mod owner;
mod probe;
mod spec;
mod stall;

use core::fmt;

pub use ats::AtsPolicy;
#[cfg(any(feature = "vtd", feature = "smmuv3"))]
pub(crate) use attach::map_direct_region;
pub use stall::StallPolicy;

use crate::device::{Device, DeviceSlot};
use crate::domain::{Domain, DomainKind, FixedDomain};
use crate::error::Result;
use crate::fault::{FaultLog, FaultRecord, FaultsLeft, LostFaults};
use crate::frames::{RadixMap, Ref, Registry, Slab};
use crate::group::{Group, GroupSlot};
use crate::id::SourceId;
use crate::ops::{Capability, DomainFeatures, DomainOps, InterruptKind, IommuOps, Msi, Stage, Unit};
use crate::platform::Platform;
use crate::sync::Lock;
use crate::sync::atomic::AtomicBool;

/// What a probed device may do before somebody attaches a domain or binds a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BootPolicy {
    /// Nothing but the direct regions that firmware reserved for it: its default domain, empty.
    #[default]
    Blocked,
    /// Everything, until [`Iommu::use_default_domain`], an attach or a claim: for kernels that bring
    /// up drivers which do not know of IOMMUs yet. Untrusted devices are blocked all the same.
    IdentityUntilClaimed,
    /// The off switch: no unit translates, and no device has an IOMMU.
    Off,
}

/// How the core decides where the caller did not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// What a device may do at first.
    pub boot: BootPolicy,
    /// The kind of default domain: [`DomainKind::Paging`], or [`DomainKind::Identity`] by choice.
    /// Untrusted devices get a paging domain whatever this says, and a device that its unit demands
    /// another kind for gets that one.
    pub default_domain: DomainKind,
    /// Which devices may use their device TLBs.
    pub ats: AtsPolicy,
    /// Which requests wait for an answer when they fault.
    pub stalls: StallPolicy,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            boot: BootPolicy::default(),
            default_domain: DomainKind::Paging,
            ats: AtsPolicy::default(),
            stalls: StallPolicy::default(),
        }
    }
}

/// All IOMMUs of a machine, and the devices behind them.
///
/// Order at boot: parse the firmware tables; [`add_unit`](Self::add_unit) for every unit (backends
/// have a function that does both); probe every device, which maps its direct regions and attaches
/// its group's default domain; [`enable`](Self::enable). A device that is never probed is blocked
/// from then on.
///
/// Methods are for task context, unless they say *any context*.
///
/// ```no_run
/// # #[cfg(feature = "vtd")]
/// # fn example<P: iommu::platform::Platform>(
/// #     (kernel, config_space): (P, impl iommu::pci::PciConfig), dmar_table: &[u8], nic: iommu::PciAddress,
/// #     frames: iommu::PhysAddr, iommu::ops::Msi { address, data }: iommu::ops::Msi,
/// # ) -> iommu::Result<()> {
/// # use iommu::arch::vtd;
/// # use iommu::device::Trust;
/// # use iommu::ops::{InterruptKind, Msi};
/// # use iommu::pci::BusFunctions;
/// # use iommu::{Error, Iommu, Iova, IovaRange, Policy, Prot};
/// // Boot: tables, units, devices, enable. In this order.
/// let iommu = Iommu::new(kernel, Policy::default())?;
/// vtd::init(&iommu, dmar_table)?;                        // every unit of the machine
/// for function in (0..=255).flat_map(|bus| BusFunctions::new(&config_space, 0, bus)) {
///     match iommu.probe_pci(&config_space, function, Trust::Trusted) {
///         Ok(_) | Err(Error::NoDevice) => {}             // see iommu.uncovered()
///         Err(error) => println!("{function} stays blocked: {error}"),
///     }
/// }
/// iommu.set_fault_interrupt(Msi { address, data })?;     // or look from a timer
/// iommu.enable()?;
///
/// // A driver: a domain for its device, and memory lent to it.
/// let device = iommu.find(nic.source_id()).ok_or(Error::NoDevice)?;
/// let domain = iommu.paging_domain(&[&device])?;
/// iommu.attach_device(&domain, &device)?;
/// let buffer = IovaRange::from_len(Iova::new(0x10_0000), 0x4000)?;
/// // SAFETY: the frames stay ours until the gather below was synced.
/// unsafe { domain.map(buffer, frames, Prot::READ | Prot::WRITE) }?;
///
/// // Back again: only after `sync` may the frames be used for something else.
/// let mut gather = domain.gather();
/// // SAFETY: nobody else works on this range.
/// unsafe { domain.unmap(buffer, &mut gather) }?;
/// gather.sync()?;
///
/// // In the fault interrupt, or from a timer; then a task prints what there is:
/// iommu.handle_interrupt(InterruptKind::Fault);
/// while let Some(fault) = iommu.next_fault() {
///     println!("{fault}");  // 0000:00:04.0: write at 0x20000 refused: no write permission (reason 0x5, unit 0xfed90000)
/// }
/// # Ok(())
/// # }
/// ```
pub struct Iommu<P: Platform> {
    platform: P,
    policy: Policy,
    units: Registry<Unit, P>,
    devices: Registry<DeviceSlot, P>,
    groups: Slab<GroupSlot, P>,
    /// Source id to slot of the device, for [`find`](Self::find).
    sources: RadixMap<u32, P>,
    /// Claimed while a device is being added or removed, so that two functions of one group cannot
    /// make two groups.
    probing: Lock<bool>,
    blocked: Domain,
    identity: Domain,
    /// Between `enable` and `shutdown`, but for the moments in which device TLBs must be off.
    translating: AtomicBool,
    faults: Ref<FaultLog>,
}

impl<P: Platform> Iommu<P> {
    /// No unit and no device yet.
    ///
    /// # Errors
    /// [`Error::NoMemory`](crate::Error::NoMemory).
    pub fn new(platform: P, policy: Policy) -> Result<Self> {
        let fixed = Slab::new(platform.clone())?;
        Ok(Self {
            policy,
            units: Registry::new(platform.clone())?,
            devices: Registry::new(platform.clone())?,
            groups: Slab::new(platform.clone())?,
            sources: RadixMap::new(platform.clone()),
            probing: Lock::new(false),
            blocked: fixed_domain(&fixed, DomainKind::Blocked)?,
            identity: fixed_domain(&fixed, DomainKind::Identity)?,
            translating: AtomicBool::new(false),
            faults: fault_log(&platform)?,
            platform,
        })
    }

    /// The platform this runs on.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// Adds a unit that its backend has started. It translates from [`enable`](Self::enable) on.
    ///
    /// # Errors
    /// [`Error::NoMemory`](crate::Error::NoMemory).
    pub fn add_unit(&self, ops: Ref<dyn IommuOps>) -> Result<Unit> {
        let unit = Unit::new(ops);
        self.units.insert(unit.clone())?;
        Ok(unit)
    }

    /// The units. Any context.
    pub fn units(&self) -> impl Iterator<Item = Unit> {
        self.units.iter().map(|unit| (*unit).clone())
    }

    /// Turns translation on in every unit, or off with [`BootPolicy::Off`].
    ///
    /// # Errors
    /// The first unit's that fails; the others are tried all the same.
    pub fn enable(&self) -> Result<()> {
        match self.policy.boot {
            BootPolicy::Off => self.on_all_units(IommuOps::shutdown),
            _ => self.start_units(IommuOps::enable),
        }
    }

    /// Turns translation off and gives every unit back as after reset, for instance to boot another
    /// kernel. Devices must be quiet by then.
    ///
    /// # Errors
    /// As [`enable`](Self::enable).
    pub fn shutdown(&self) -> Result<()> {
        self.stop_device_tlbs();
        self.on_all_units(IommuOps::shutdown)
    }

    /// Prepares every unit for loss of power.
    ///
    /// # Errors
    /// As [`enable`](Self::enable).
    pub fn suspend(&self) -> Result<()> {
        self.stop_device_tlbs();
        self.on_all_units(IommuOps::suspend)
    }

    /// Restores every unit after [`suspend`](Self::suspend). It also resets units that were fenced
    /// ([`Error::Fenced`](crate::Error::Fenced)): their devices go on, and what was quarantined is
    /// freed. To reset one and leave the others alone, call [`IommuOps::resume`] of that
    /// [unit](Self::units), unless device TLBs are used ([`AtsPolicy`]): those behind it would keep what is
    /// stale. Invalidations that are under way in a unit fail when it is reset. A device
    /// that did not answer ([`DeviceTimeOut`](crate::InvalidationReason::DeviceTimeOut)) stays fenced
    /// until a reset that it answers after, or until it is taken out.
    ///
    /// # Errors
    /// As [`enable`](Self::enable).
    pub fn resume(&self) -> Result<()> {
        // What they hold may be stale: they are empty when they are turned on again.
        self.stop_device_tlbs();
        self.start_units(IommuOps::resume)
    }

    /// The device that sends requests under `source`; of several behind one alias the one that was
    /// probed first. Constant time. Any context.
    pub fn find(&self, source: SourceId) -> Option<Device> {
        let device = self.devices.get(self.sources.get(source.as_u64())?).map(Device::new)?;
        // Between the two looks the slot may have gone to another device.
        device.sources().contains(&source).then_some(device)
    }

    /// Every device that was probed, also those that no IOMMU covers.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        let mut slots = self.devices.iter();
        core::iter::from_fn(move || self.next_device(&mut slots))
    }

    #[inline(never)]
    fn next_device(&self, slots: &mut impl Iterator<Item = Ref<DeviceSlot>>) -> Option<Device> {
        slots.find(|slot| self.devices.holds(Ref::index(slot))).map(Device::new)
    }

    /// Whether the device was probed and not released since.
    #[inline(never)]
    fn is_present(&self, device: &Device) -> bool {
        let index = device.index();
        self.devices.holds(index) && self.devices.get(index).map(Device::new).as_ref() == Some(device)
    }

    /// The report of devices that no IOMMU covers: their DMA is not restricted.
    pub fn uncovered(&self) -> impl Iterator<Item = Device> {
        self.devices().filter(|device| device.iommu().is_err())
    }

    /// The devices of a group.
    #[doc(alias = "iommu_group_for_each_dev")]
    pub fn members(&self, group: &Group) -> impl Iterator<Item = Device> {
        self.devices().filter(move |device| device.group().is_ok_and(|theirs| theirs == group))
    }

    /// The domain in which nothing is reachable.
    pub fn blocked_domain(&self) -> &Domain {
        &self.blocked
    }

    /// The domain in which addresses pass unchanged.
    pub fn identity_domain(&self) -> &Domain {
        &self.identity
    }

    /// Whether the device's unit can do something, in a domain of one of its stages at least. `false`
    /// for a device without IOMMU.
    #[doc(alias = "device_iommu_capable")]
    pub fn capable(&self, device: &Device, capability: Capability) -> bool {
        let feature = match capability {
            Capability::EnforceCacheCoherency => DomainFeatures::CACHE_COHERENCY,
            Capability::DirtyTracking => DomainFeatures::DIRTY_TRACKING,
            other => return device.unit().is_ok_and(|unit| unit.capable(other)),
        };
        let has = |unit: &Unit, stage| unit.traits(stage).is_some_and(|traits| traits.features.contains(feature));
        device.unit().is_ok_and(|unit| [Stage::First, Stage::Second].into_iter().any(|stage| has(unit, stage)))
    }

    /// Whether the devices of the group can raise only their own interrupts. `false` until
    /// interrupts are remapped, which this crate does not do yet: a device can forge any interrupt.
    #[doc(alias = "iommu_group_has_isolated_msi")]
    pub fn isolated_msi(&self, group: &Group) -> bool {
        let _ = group;
        false
    }

    /// Routes the fault interrupt of every unit. Any context.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) when a unit has none.
    pub fn set_fault_interrupt(&self, msi: Msi) -> Result<()> {
        self.on_all_units(|unit| unit.set_interrupt(InterruptKind::Fault, msi))
    }

    /// Handles an interrupt of this kind: faults move into the log. Also the way to poll for faults,
    /// and to be called again soon when it says that there are [more](FaultsLeft::Some). Any context.
    pub fn handle_interrupt(&self, kind: InterruptKind) -> FaultsLeft {
        let mut left = FaultsLeft::None;
        if kind == InterruptKind::Fault {
            for unit in self.units.iter() {
                let drained = unit.drain_faults(&mut |record| self.take_fault(&unit, record));
                self.faults.add_overflows(&self.platform, drained.overflows);
                left = left.max(drained.left);
            }
        }
        left
    }

    /// Takes the oldest fault out of the log. Any context.
    pub fn next_fault(&self) -> Option<FaultRecord> {
        self.faults.pop(&self.platform)
    }

    /// How many faults were lost because the log was full or their source was muted. Any context.
    pub fn lost_faults(&self) -> LostFaults {
        self.faults.lost(&self.platform)
    }

    fn start_units(&self, start: impl Fn(&dyn IommuOps) -> Result<()>) -> Result<()> {
        self.on_all_units(start)?;
        self.start_device_tlbs();
        Ok(())
    }

    fn on_all_units(&self, operation: impl Fn(&dyn IommuOps) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        for unit in self.units.iter() {
            result = result.and(operation(&**unit));
        }
        result
    }
}

impl<P: Platform> Drop for Iommu<P> {
    /// Blocks every device, so that domains that live on need no unit, and stops the units. If one
    /// does not stop, what its tables reach is leaked.
    fn drop(&mut self) {
        self.devices().for_each(|device| {
            let _ = self.release_device(&device);
        });
        if self.shutdown().is_err() {
            self.units().for_each(core::mem::forget);
        }
    }
}

impl<P: Platform> fmt::Debug for Iommu<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommu").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// An empty log, in frames: an [`Iommu`] is moved to where the kernel keeps it, over the kernel's
/// stack, and the records would be nine tenths of it.
#[inline(never)]
fn fault_log<P: Platform>(platform: &P) -> Result<Ref<FaultLog>> {
    Slab::new(platform.clone())?.insert_with(|_| Ok(FaultLog::default()))
}

fn fixed_domain<P: Platform>(slab: &Slab<FixedDomain, P>, kind: DomainKind) -> Result<Domain> {
    let slot = slab.insert(FixedDomain::new(kind)).map_err(|(error, _)| error)?;
    Ok(Domain::new(Ref::map(slot, |domain| domain as &dyn DomainOps)))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;
    use std::vec::Vec;

    /// The lines of the first example in `text` that opens with `fence`, without `prefix`, and without
    /// those that the documentation hides.
    fn example(text: &str, prefix: &str, fence: &str) -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::trim);
        let example = lines.skip_while(|line| *line != fence).skip(1).take_while(|line| *line != "```");
        example.filter(|line| !line.starts_with("# ")).map(String::from).collect()
    }

    #[test]
    fn the_readme_shows_what_is_compiled_here() {
        let readme = example(include_str!("../../README.md"), "", "```rust,ignore");
        assert!(readme.len() > 20);
        assert_eq!(readme, example(include_str!("mod.rs"), "///", "```no_run"));
    }
}
