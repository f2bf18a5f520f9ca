//! The caches of a unit, and what invalidates them (SMMU 3.17, 4.3, 4.4, 16.2).
//!
//! | cache | found by | invalidated by |
//! |---|---|---|
//! | STEs | StreamID | StreamID |
//! | level-1 stream descriptors | StreamID without the bits below SPLIT | StreamID, with all levels |
//! | CDs | StreamID, SubstreamID | the same |
//! | level-1 context descriptors | StreamID, SubstreamID without the bits below | the same, with all levels |
//! | translations of VAs | stream world, VMID, ASID or global and ASET, address | the same; stage 2 is a part of them |
//! | translations of IPAs | VMID, address | the same |
//! | tables of stage 1 | stream world, VMID, ASID, address | the same, with all levels |
//! | tables of stage 2 | VMID, address | the same, with all levels |
//!
//! Lines stay until something below removes them, or until there is no room. Whether what an STE or CD says
//! has changed meanwhile is not looked at.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod configuration;
mod tlb;

pub(super) use tlb::{Conflict, VaLine};

use configuration::Configuration;
use tlb::Tlb;

use super::walk::StreamWorld;
use crate::arch::smmuv3::layout::commands::Command;
use crate::bus::Precision;
use crate::error::Result;
use crate::platform::Platform;

/// All of them.
pub(super) struct Caches<P: Platform> {
    pub(super) configuration: Configuration<P>,
    pub(super) tlb: Tlb<P>,
}

impl<P: Platform> Caches<P> {
    /// Empty caches of `1 << order` frames each.
    ///
    /// # Errors
    /// [`Error::NoMemory`](crate::Error::NoMemory).
    pub(super) fn new(platform: &P, order: u8) -> Result<Self> {
        Ok(Self { configuration: Configuration::new(platform, order)?, tlb: Tlb::new(platform, order)? })
    }

    /// Drops what a command names, or all that its kind reaches. Whether it was one of those that do.
    /// `hypervisor` is the stream world of hypervisors by CR2.E2H.
    pub(super) fn invalidate(&mut self, command: Command, precision: Precision, hypervisor: StreamWorld) -> bool {
        match command {
            Command::ConfigSte { .. }
            | Command::ConfigSteRange { .. }
            | Command::ConfigCd { .. }
            | Command::ConfigCdAll { .. }
            | Command::ConfigAll => match precision {
                Precision::Coarse => self.configuration.clear(),
                Precision::Exact => self.configuration.invalidate(command),
            },
            Command::TlbNhAll { .. }
            | Command::TlbNhAsid { .. }
            | Command::TlbNhVaa { .. }
            | Command::TlbNhVa { .. }
            | Command::TlbEl2All
            | Command::TlbEl2Va { .. }
            | Command::TlbEl2Vaa { .. }
            | Command::TlbEl2Asid { .. }
            | Command::TlbS2Ipa { .. }
            | Command::TlbS12Vmall { .. }
            | Command::TlbNsnhAll => match precision {
                Precision::Coarse => self.tlb.clear(),
                Precision::Exact => self.tlb.invalidate(command, hypervisor),
            },
            _ => return false,
        }
        true
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.configuration.clear();
        self.tlb.clear();
    }
}
