//! Where the driver orders what a unit sees: each barrier, clean, command and wait by name.
//!
//! Cleans are for units that do not snoop (IDR0.COHACC).

use crate::sync::site::sites;

sites! {
    // Registers.
    UPDATE_IDLE_WAIT = "SMMUv3: wait for an earlier update of GBPA";
    UPDATE_WAIT = "SMMUv3: wait for GBPA to be in force";
    TURN_ON = "SMMUv3: tables and queues, before they are turned on";
    TURN_ON_WAIT = "SMMUv3: wait for what is turned on";
    TURN_OFF_WAIT = "SMMUv3: wait for what is turned off";
    INTERRUPTS_WAIT = "SMMUv3: wait for the interrupts to be on or off";
}
