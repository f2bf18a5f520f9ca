//! Walks for which nobody waits.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::{Host, SmmuDevice};
use crate::arch::smmuv3::layout::registers::Cr0;
use crate::bus::Chooser;
use crate::platform::Platform;

impl<P: Platform, H: Host, C: Chooser> SmmuDevice<P, H, C> {
    /// Has a walk go on that began at some time, for whatever reason, through a table that is still kept: its
    /// descriptor is read, and nothing comes of it. The chooser says which.
    ///
    /// Hardware may do this until an invalidation of the table is complete, even when no entry leads there any
    /// more (SMMU 3.21.1); but not while SMMUEN is 0. So a host that knows which memory was given back learns who does not wait for that.
    /// Task only.
    pub fn speculate(&self) {
        let tables = {
            let state = self.state.lock(&self.platform);
            // 6.3.9.6: otherwise nothing is accessed.
            match state.registers.enabled.contains(Cr0::SMMUEN) {
                true => state.caches.tlb.physical_tables().count(),
                false => 0,
            }
        };
        let choice = match tables {
            0 => return,
            _ => self.chooser.choose(tables).checked_rem(tables).unwrap_or(0),
        };
        let (table, snoop) = {
            let state = self.state.lock(&self.platform);
            let Some(table) = state.caches.tlb.physical_tables().nth(choice) else { return };
            (table, state.registers.table_snoop())
        };
        // What it says, or that nothing is there, is of no use.
        let _ = self.host.read(table, snoop);
    }
}
