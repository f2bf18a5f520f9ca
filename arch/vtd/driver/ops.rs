//! A VT-d unit as the core sees it.

use core::any::Any;

use super::firmware::secondary_bus;
use super::invalidation::{Requests, iotlb_requests};
use super::takeover::Takeover;
use super::translation::RID_PASID;
use super::unit::VtdUnit;
use super::{queue, site};
use crate::addr::{Iova, IovaRange, PhysAddr};
use crate::arch::vtd::dmar::DmarFlags;
use crate::arch::vtd::layout::{self, Cap};
use crate::device::{DeviceId, DeviceInfo};
use crate::domain::{Domain, DomainKind};
use crate::error::{BusyReason, Error, Result, UnsupportedReason};
use crate::fault::{Access, DrainedFaults, FaultKind, FaultRecord, FaultsLeft};
use crate::id::{PciAddress, SourceId};
use crate::iotlb::{CacheTag, Invalidation, Ticket};
use crate::ops::{Capability, Coverage, DomainSpec, InterruptKind, IommuOps, Msi, Requester, Stage, Unit, UnitTraits};
use crate::pci::{PciConfig, PciFunction};
use crate::platform::Platform;
use crate::prot::Prot;
use crate::region::{RegionKind, ReservedRegion, ReservedRegions};
use crate::sync::atomic::Ordering;
use crate::window::Windows;

/// The queue's sequence numbers begin at one.
const NOTHING_TO_WAIT_FOR: Ticket = Ticket(0);

/// Writes here are interrupts and are never translated (VT-d 3.14).
const INTERRUPT_RANGE: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

impl<P: Platform> IommuOps for VtdUnit<P> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &'static str {
        "VT-d"
    }

    fn base(&self) -> PhysAddr {
        self.base
    }

    fn coverage(&self, device: &DeviceInfo, pci: &dyn PciConfig) -> Coverage {
        let (DeviceId::Pci(function), Ok(dmar)) = (device.id, self.firmware.dmar()) else {
            return Coverage::No;
        };
        match dmar.unit_of(function, &device.bridges, secondary_bus(pci)) {
            Some(unit) if unit.registers.start() == self.base => Coverage::Named,
            _ => Coverage::No,
        }
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

    fn reserved_regions(&self, device: &DeviceInfo, pci: &dyn PciConfig, regions: &mut ReservedRegions) -> Result<()> {
        let (start, last) = INTERRUPT_RANGE;
        let range = IovaRange::new(Iova::new(start), Iova::new(last))?;
        regions.add(ReservedRegion { range, kind: RegionKind::Msi, prot: Prot::WRITE })?;
        let DeviceId::Pci(function) = device.id else { return Ok(()) };
        let dmar = self.firmware.dmar()?;
        let kind = direct_kind(pci, function);
        for reserved in dmar.reserved_regions_of(function, &device.bridges, secondary_bus(pci)) {
            let memory = reserved.region;
            let range = IovaRange::new(Iova::new(memory.start().as_u64()), Iova::new(memory.last().as_u64()))?;
            regions.add(ReservedRegion { range, kind, prot: Prot::RW })?;
        }
        Ok(())
    }

    fn supports_ats(&self, device: &DeviceInfo, pci: &dyn PciConfig) -> bool {
        self.serves_device_tlb(device, pci)
    }

    fn capable(&self, capability: Capability) -> bool {
        match capability {
            // DMA snoops on this architecture unless a device asks otherwise.
            Capability::CacheCoherency | Capability::DeferredFlush => true,
            Capability::PreBootProtection => {
                let opt_in = DmarFlags::DMA_CTRL_PLATFORM_OPT_IN_FLAG;
                self.firmware.dmar().is_ok_and(|dmar| dmar.flags().contains(opt_in))
            }
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
            // The entry is not present and its domain is quarantined; the unit is fenced if it has
            // stopped answering. Nothing more can be done before it is reset.
            #[cfg(feature = "log")]
            log::error!("{self:?}: blocking {} was not confirmed", requester.source);
        }
    }

    fn refresh(&self, unit: &Unit, tag: CacheTag, domain: &Domain) -> Result<()> {
        self.refresh_entries(tag, domain)?;
        self.empty_device_tlbs(unit, tag, domain)
    }

    fn invalidate(&self, invalidation: &Invalidation<'_>) -> Result<Ticket> {
        if !self.may_cache() {
            return Ok(NOTHING_TO_WAIT_FOR);
        }
        // Requests flush write buffers themselves (VT-d 6.8).
        let Invalidation { tag, devices, ranges, depth, leaves: _ } = *invalidation;
        let submitted = if devices.is_empty() {
            let mut requests = Requests::new();
            iotlb_requests(self.capabilities(), tag, ranges, depth, &mut requests);
            self.queue.submit(&self.registers, &requests)
        } else {
            self.submit_with_devices(invalidation)
        };
        match submitted {
            Ok(ticket) => Ok(Ticket(ticket.sequence)),
            Err(error) => {
                self.contain(error);
                if error == Error::Fenced && self.is_off() { Ok(NOTHING_TO_WAIT_FOR) } else { Err(error) }
            }
        }
    }

    fn wait(&self, ticket: Ticket) -> Result<()> {
        if ticket == NOTHING_TO_WAIT_FOR {
            return Ok(());
        }
        match self.queue.wait(&self.registers, queue::Ticket { sequence: ticket.0 }) {
            Ok(()) => Ok(()),
            failed => self.fence_with_queue(failed),
        }
    }

    fn enable(&self) -> Result<()> {
        // After a shutdown or a suspend the queue is off.
        match self.queue.start(&self.registers) {
            Ok(()) | Err(Error::Busy(BusyReason::InUse)) => {}
            Err(error) => return Err(error),
        }
        self.retry_fenced_devices()?;
        let is_first = !self.shown.load(Ordering::SeqCst);
        let blocked = is_first && self.takeover == Takeover::ThroughBlocked && self.registers.is_translating()?;
        if blocked {
            // What a previous kernel's tables left in caches may have our domain ids.
            self.fence();
        } else {
            self.unfence();
        }
        let mut installed = self.install_tables();
        if blocked && installed.is_ok() {
            self.unfence();
            installed = if self.capabilities().caches_absent() {
                self.forget_everything()
            } else {
                // No request follows that would do it.
                site::UNFENCED.publish(&self.platform);
                self.flush_write_buffer(site::UNFENCED_WRITE_BUFFER)
            };
        }
        if let Err(error) = installed {
            // What is still cached must not meet entries that were let through again.
            self.fence();
            return Err(error);
        }
        self.registers.enable_translation()?;
        self.release_quarantined();
        // It was masked when the unit was stopped, and may be lost.
        let interrupt = *self.fault_interrupt.lock(&self.platform);
        if let Some(msi) = interrupt {
            self.registers.set_fault_interrupt(msi.address.as_u64(), msi.data);
        }
        // Protected memory covered boot; from now on the tables protect.
        self.registers.disable_protected_memory()
    }

    fn shutdown(&self) -> Result<()> {
        self.stop()?;
        // What `enable` turned off, or what firmware left on for a kernel without IOMMU.
        self.registers.disable_protected_memory()
    }

    fn suspend(&self) -> Result<()> {
        self.stop()
    }

    fn resume(&self) -> Result<()> {
        self.queue.reset(&self.registers)?;
        self.faults.clear(&self.registers);
        self.enable()
    }

    fn drain_faults(&self, visit: &mut dyn FnMut(FaultRecord)) -> DrainedFaults {
        let drained = self.faults.drain(&self.registers, &mut |record| visit(self.vendor_neutral(record)));
        if drained.queue {
            self.queue.recover(&self.registers);
            // Nobody may be waiting for what the recovery gave up.
            if self.queue.is_fenced() {
                self.fence();
            }
        }
        DrainedFaults {
            left: if drained.pending { FaultsLeft::Some } else { FaultsLeft::None },
            overflows: u64::from(drained.lost),
        }
    }

    fn set_interrupt(&self, kind: InterruptKind, msi: Msi) -> Result<()> {
        match kind {
            InterruptKind::Fault => {
                *self.fault_interrupt.lock(&self.platform) = Some(msi);
                self.registers.set_fault_interrupt(msi.address.as_u64(), msi.data);
                Ok(())
            }
            _ => Err(Error::Unsupported(UnsupportedReason::Operation)),
        }
    }
}

impl<P: Platform> VtdUnit<P> {
    /// Makes the unit use the tables, and nothing that it has cached.
    fn install_tables(&self) -> Result<()> {
        // VT-d 11.4.5: the root table first; what was cached under the old one goes before the new
        // one is relied on.
        self.flush_write_buffer(site::ROOT_TABLE_WRITE_BUFFER)?;
        let (own_flush, mode) = (self.capabilities().cap.contains(Cap::ESRTPS), self.mode());
        // Without ESRTPS the mode may only change while translation is off (6.6); a previous kernel may
        // have left another. Abort-dma mode is one more mode, so that it cannot bridge the gap.
        if !own_flush && self.registers.is_translating()? && !self.registers.is_in_mode(mode) {
            self.registers.disable_translation()?;
        }
        self.shown.store(true, Ordering::SeqCst);
        self.registers.set_root_table(self.tables.root(), mode)?;
        // With ESRTPS the unit has dropped everything by itself. That drains nothing: what is
        // quarantined is not let go before a request has.
        if own_flush && !self.has_quarantined() { Ok(()) } else { self.forget_everything() }
    }

    /// Translation off, interrupt masked, queue off.
    pub(super) fn stop(&self) -> Result<()> {
        self.registers.mask_fault_interrupt();
        self.registers.disable_translation()?;
        self.queue.stop(&self.registers)?;
        // Nothing is walked now, and nothing cached is used again.
        self.shown.store(false, Ordering::SeqCst);
        self.release_quarantined();
        Ok(())
    }
}

impl<P: Platform> VtdUnit<P> {
    /// A hardware record in the core's words.
    fn vendor_neutral(&self, record: layout::FaultRecord) -> FaultRecord {
        let interrupt = record.reason.is_interrupt();
        FaultRecord {
            unit: self.base,
            source: SourceId::pci(self.segment, record.source),
            // Requests without PASID may be recorded with the one that translates them.
            pasid: record.pasid.filter(|pasid| *pasid != RID_PASID),
            iova: (!interrupt).then_some(Iova::new(record.address)),
            access: match record.access {
                _ if interrupt => Access::Interrupt,
                layout::fault::Access::Read => Access::Read,
                layout::fault::Access::Write => Access::Write,
                _ => Access::Unknown,
            },
            kind: kind_of(record.reason),
            reason: u32::from(record.reason.0),
            text: record.reason.text(),
            stalled: None,
        }
    }
}

/// What the direct regions of a device are for: firmware's own use of a USB controller or a display ends
/// when a driver takes over (as Linux has it), that of others may go on (VT-d 8.4).
fn direct_kind(pci: &dyn PciConfig, function: PciAddress) -> RegionKind {
    const DISPLAY: u32 = 0x03;
    const USB: u32 = 0x0c03;
    match PciFunction::read(pci, function).map(|function| function.class) {
        Some(class) if class >> 16 == DISPLAY || class >> 8 == USB => RegionKind::DirectRelaxable,
        _ => RegionKind::Direct,
    }
}

/// Groups the reasons of VT-d 7.1.3 (Table 30).
fn kind_of(reason: layout::FaultReason) -> FaultKind {
    match reason.0 {
        _ if reason.is_interrupt() => FaultKind::Interrupt,
        // An entry on the way to the domain is not present; abort-dma mode.
        0x1 | 0x2 | 0x33 | 0x39 | 0x41 | 0x51 | 0x59 => FaultKind::Blocked,
        0x4 | 0x80 | 0x83 | 0x84 => FaultKind::AddressSize,
        0x5 | 0x6 | 0x71 | 0x76 | 0x77 | 0x79 | 0x81 | 0x82 | 0x85 | 0x86 | 0xa3..=0xa5 => FaultKind::Translation,
        // Requests of a kind, or to a place, that is never translated, or not for this device.
        0xd | 0xe | 0x31 | 0x32 | 0x34 | 0x44..=0x49 | 0x5c | 0x5d | 0x60 | 0x87 | 0x89 => FaultKind::Request,
        // Tables that cannot be read or are malformed.
        0x3 | 0x7..=0xc | 0x30 | 0x38..=0x5b | 0x70..=0x7d | 0x90 | 0x91 | 0xa0..=0xa2 => FaultKind::Configuration,
        _ => FaultKind::Other,
    }
}
