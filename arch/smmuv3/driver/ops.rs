//! An SMMUv3 as the core sees it.

use core::any::Any;

use heapless::VecView;

use super::invalidation::{CachedTable, MAX_TLB_COMMANDS, RangeCommands, Tagged, tlb_commands};
use super::queue;
use super::registers::Untranslated;
use super::unit::SmmuUnit;
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::arch::smmuv3::layout::commands::Command;
use crate::arch::smmuv3::layout::identification::{Idr0, Idr3};
use crate::device::DeviceInfo;
use crate::domain::{Domain, DomainKind};
use crate::error::{Error, Result, UnsupportedReason};
use crate::fault::{DrainedFaults, FaultRecord, StallAnswer, StallTag};
use crate::id::SourceId;
use crate::iotlb::{Invalidation, Ticket};
use crate::ops::{Capability, Coverage, DomainSpec, InterruptKind, IommuOps, Msi, Requester, Stage, Unit, UnitTraits};
use crate::pci::PciConfig;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::prot::Prot;
use crate::region::{RegionKind, ReservedRegion, ReservedRegions};
use crate::window::Windows;

/// The queue's batches end behind the first command.
const NOTHING_TO_WAIT_FOR: Ticket = Ticket(0);

/// Where doorbells of interrupt controllers are mapped, as Linux has it: messages are translated like any
/// other write. First address and bytes.
const DOORBELLS: (u64, u64) = (0x0800_0000, 0x10_0000);

impl<P: Platform> IommuOps for SmmuUnit<P> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &'static str {
        "SMMUv3"
    }

    fn base(&self) -> PhysAddr {
        self.base
    }

    fn coverage(&self, device: &DeviceInfo, _pci: &dyn PciConfig) -> Coverage {
        match device.sources.first() {
            Some(source) if self.stream_of(*source).is_some() => Coverage::Named,
            _ => Coverage::No,
        }
    }

    fn is_same_source(&self, a: SourceId, b: SourceId) -> bool {
        a == b || self.stream_of(a).is_some_and(|stream| self.stream_of(b) == Some(stream))
    }

    fn traits(&self, stage: Stage) -> Option<UnitTraits> {
        self.stage_traits(stage)
    }

    fn windows(&self, stage: Stage) -> Windows {
        self.stage_windows(stage)
    }

    fn default_stage(&self) -> Stage {
        self.usual_stage()
    }

    fn reserved_regions(&self, device: &DeviceInfo, _pci: &dyn PciConfig, regions: &mut ReservedRegions) -> Result<()> {
        let (start, bytes) = DOORBELLS;
        let range = IovaRange::from_len(Iova::new(start), bytes)?;
        regions.add(ReservedRegion { range, kind: RegionKind::SoftwareMsi, prot: Prot::WRITE })?;
        for stream in device.sources.iter().filter_map(|source| self.stream_of(*source)) {
            self.firmware.regions(self.index, stream).try_for_each(|region| regions.add(region))?;
        }
        Ok(())
    }

    fn supports_stalls(&self, device: &DeviceInfo) -> bool {
        let bears_it = |source: &SourceId| self.firmware.platform_stream(*source).is_some_and(|stream| stream.stall);
        self.capabilities().can_stall() && !device.sources.is_empty() && device.sources.iter().all(bears_it)
    }

    fn supports_ats(&self, device: &DeviceInfo, pci: &dyn PciConfig) -> bool {
        self.serves_device_tlb(device, pci)
    }

    fn capable(&self, capability: Capability) -> bool {
        match capability {
            Capability::CacheCoherency => self.coherency == WalkerCoherency::Snoops,
            Capability::DeferredFlush | Capability::NoExec => true,
            // Not offered by this driver.
            _ => false,
        }
    }

    fn domain_alloc_paging(&self, spec: &DomainSpec) -> Result<Domain> {
        self.new_domain(DomainKind::Paging, spec)
    }

    fn attach(&self, unit: &Unit, requester: &Requester, domain: &Domain, old: &Domain) -> Result<()> {
        self.set_domain(unit, requester, domain, old)
    }

    fn block(&self, unit: &Unit, requester: &Requester, old: &Domain) {
        if self.set_blocked(unit, requester, old).is_err() {
            // The entry blocks and its domain is quarantined; the unit is fenced if it has stopped
            // answering. Nothing more can be done before it is reset.
            #[cfg(feature = "log")]
            log::error!("{self:?}: blocking {} was not confirmed", requester.source);
        }
    }

    fn invalidate(&self, invalidation: &Invalidation<'_>) -> Result<Ticket> {
        if !self.may_cache() {
            return Ok(NOTHING_TO_WAIT_FOR);
        }
        let submitted = if invalidation.devices.is_empty() {
            self.submit_for_tlb(invalidation)
        } else {
            self.submit_with_devices(invalidation)
        };
        match submitted {
            Ok(ticket) => Ok(Ticket(ticket.end)),
            Err(error) => {
                self.contain(error);
                if error == Error::Fenced && !self.may_cache() { Ok(NOTHING_TO_WAIT_FOR) } else { Err(error) }
            }
        }
    }

    fn wait(&self, ticket: Ticket) -> Result<()> {
        if ticket == NOTHING_TO_WAIT_FOR {
            return Ok(());
        }
        self.queue.wait(&self.registers, queue::Ticket { end: ticket.0 }).inspect_err(|error| self.contain(*error))
    }

    fn enable(&self) -> Result<()> {
        self.start()
    }

    fn shutdown(&self) -> Result<()> {
        self.stop(Untranslated::Pass)
    }

    fn suspend(&self) -> Result<()> {
        self.stop(Untranslated::Abort)
    }

    fn resume(&self) -> Result<()> {
        self.start()
    }

    fn answer_stall(&self, tag: StallTag, answer: StallAnswer) -> Result<()> {
        self.stalls.answer(&self.platform, tag, answer, &mut |command| self.resume_request(command))
    }

    fn drain_faults(&self, visit: &mut dyn FnMut(FaultRecord)) -> DrainedFaults {
        self.visit_faults(visit)
    }

    /// A message for events and global errors. A unit without messages has wires, which firmware tells of
    /// and which are on: the kernel handles their interrupts.
    fn set_interrupt(&self, kind: InterruptKind, msi: Msi) -> Result<()> {
        if kind != InterruptKind::Fault || !self.capabilities().idr0().contains(Idr0::MSI) {
            return Err(Error::Unsupported(UnsupportedReason::Operation));
        }
        *self.fault_interrupt.lock(&self.platform) = Some(msi);
        if self.may_cache() { self.route_interrupts(Some(msi)) } else { Ok(()) }
    }
}

impl<P: Platform> SmmuUnit<P> {
    fn submit_for_tlb(&self, invalidation: &Invalidation<'_>) -> Result<queue::Ticket> {
        let mut commands: heapless::Vec<Command, MAX_TLB_COMMANDS> = heapless::Vec::new();
        self.add_tlb_commands(invalidation, &mut commands);
        self.queue.submit(&self.registers, &commands)
    }

    /// Adds the commands for the unit's TLB to none.
    pub(super) fn add_tlb_commands(&self, invalidation: &Invalidation<'_>, commands: &mut VecView<Command>) {
        let Invalidation { tag, ranges, depth, leaves, .. } = *invalidation;
        let ranged = self.capabilities().idr3().contains(Idr3::RIL);
        let table = CachedTable {
            tagged: Tagged::of(tag),
            granule: self.granule,
            range_commands: if ranged { RangeCommands::Present } else { RangeCommands::Absent },
        };
        tlb_commands(table, ranges, depth, leaves, commands);
    }
}
