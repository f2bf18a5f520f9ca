//! From any state that firmware or a previous kernel left to translating with our tables, and back (SMMU
//! 3.11, 6.3).

use super::registers::{Message, Untranslated};
use super::unit::SmmuUnit;
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::identification::Idr0;
use crate::arch::smmuv3::layout::registers::{Cr0, Cr1, Cr2, Gerror, IrqCtrl};
use crate::error::{Error, Result};
use crate::ops::Msi;
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;
use crate::sync::atomic::{Ordering, fence};

/// Everything that can be on.
const EVERYTHING: Cr0 = Cr0::SMMUEN.union(Cr0::PRIQEN).union(Cr0::EVENTQEN).union(Cr0::CMDQEN).union(Cr0::ATSCHK);

impl<P: Platform> SmmuUnit<P> {
    /// Makes the unit translate with the tables, and with nothing that it has cached.
    ///
    /// A unit that translates with other tables aborts what comes meanwhile: tables and their attributes
    /// can be changed only while it is off. One that does not goes on as it was, until it translates.
    pub(super) fn start(&self) -> Result<()> {
        let registers = &self.registers;
        if registers.is_translating()? {
            match registers.set_untranslated(Untranslated::Abort) {
                // It answers, but has no GBPA (QEMU before 8): there is no way to stop devices meanwhile.
                Err(Error::NoDevice) => {}
                other => other?,
            }
        }
        self.events.halt()?;
        registers.turn_off(EVERYTHING)?;
        registers.set_attributes(
            match self.coherency {
                WalkerCoherency::Snoops => Cr1::SNOOPING,
                WalkerCoherency::NeedsClean => Cr1::NON_CACHEABLE,
            },
            // Without E2H there are no ASIDs of EL2 streams, of which there are none (STE.STRW).
            Cr2::RECINVSID | Cr2::PTM,
        );
        registers.set_stream_table(self.tables.base(), self.tables.config());
        // From here on changes are told to the unit; those before are visible to it before it is turned on.
        self.shown.store(true, Ordering::SeqCst);
        self.queue.reset(registers)?;
        self.forget_everything()?;
        self.release_quarantined();
        // Turning translation off has ended them (6.3.9.6).
        self.stalls.clear(&self.platform);
        registers.acknowledge(Gerror::all());
        self.events.start(registers);
        registers.turn_on(Cr0::EVENTQEN)?;
        if self.capabilities().idr0().contains(Idr0::ATS) {
            registers.turn_on(Cr0::ATSCHK)?;
        }
        // It was lost, perhaps, with the power.
        let interrupt = *self.fault_interrupt.lock(&self.platform);
        self.route_interrupts(interrupt)?;
        registers.turn_on(Cr0::SMMUEN)?;
        // Ready for a fence, which then is one command. A unit without GBPA cannot be fenced.
        let _ = registers.set_untranslated(Untranslated::Abort);
        // A fence that came before found nothing to turn off.
        fence(Ordering::SeqCst);
        if self.queue.is_fenced() {
            self.fence();
            return Err(Error::Fenced);
        }
        self.retry_fenced_devices()
    }

    /// Stops translating; `requests` says what becomes of requests from now on. When this returns, the unit
    /// uses nothing in memory any more.
    pub(super) fn stop(&self, requests: Untranslated) -> Result<()> {
        let registers = &self.registers;
        // A unit that does not abort is to be stopped all the same.
        let _ = registers.set_untranslated(requests);
        registers.turn_off(Cr0::SMMUEN)?;
        self.queue.stop(registers)?;
        self.events.halt()?;
        registers.turn_off(EVERYTHING)?;
        registers.set_interrupts(IrqCtrl::empty())?;
        self.shown.store(false, Ordering::SeqCst);
        self.stalls.clear(&self.platform);
        self.release_quarantined();
        Ok(())
    }

    /// Turns the interrupts for events and global errors on: the message, or the wires without one.
    pub(super) fn route_interrupts(&self, message: Option<Msi>) -> Result<()> {
        // Messages can be set only while they are off.
        self.registers.set_interrupts(IrqCtrl::empty())?;
        if self.capabilities().idr0().contains(Idr0::MSI) {
            // A previous kernel's message must not go on; after reset there may be any.
            let Msi { address, data } = message.unwrap_or(Msi { address: PhysAddr::new(0), data: 0 });
            self.registers.set_message(Message::Events, address, data);
            self.registers.set_message(Message::GlobalErrors, address, data);
        }
        self.registers.set_interrupts(IrqCtrl::EVENTQ | IrqCtrl::GERROR)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "startup_tests.rs"]
mod tests;
