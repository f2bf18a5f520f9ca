//! Where the driver orders what a unit sees: each barrier, clean, command and wait by name.
//!
//! Cleans are for units that do not snoop (IDR0.COHACC).

use crate::sync::site::sites;

sites! {
    // Invalidations.
    STE = "SMMUv3: what was fetched of a stream table entry";
    STE_WAIT = "SMMUv3: wait for what was fetched of a stream table entry";
    CD = "SMMUv3: what was fetched of a context descriptor";
    CD_WAIT = "SMMUv3: wait for what was fetched of a context descriptor";
    TRANSLATIONS = "SMMUv3: translations under a number that a stream leaves";
    TRANSLATIONS_WAIT = "SMMUv3: wait for translations under a number that a stream leaves";
    ALL_ENTRIES = "SMMUv3: everything that was fetched of tables, before translation is on";
    ALL_TRANSLATIONS = "SMMUv3: all translations, before translation is on";
    ALL_WAIT = "SMMUv3: wait for everything to be forgotten, before translation is on";
    DEVICE_TLBS = "SMMUv3: device TLBs, of what was unmapped";
    DEVICE_TLBS_ORDER = "SMMUv3: the TLB, before device TLBs";
    WITHDRAW_DEVICE = "SMMUv3: device TLB, of an entry that was changed";
    WITHDRAW_DEVICE_WAIT = "SMMUv3: wait for the device TLB, of an entry that was changed";
    FENCE = "SMMUv3: what was fetched of the entry of a device that is fenced or answers again";
    FENCE_WAIT = "SMMUv3: wait for the entry of a device that is fenced or answers again";

    // Registers.
    UPDATE_IDLE_WAIT = "SMMUv3: wait for an earlier update of GBPA";
    UPDATE_WAIT = "SMMUv3: wait for GBPA to be in force";
    TURN_ON = "SMMUv3: tables and queues, before they are turned on";
    TURN_ON_WAIT = "SMMUv3: wait for what is turned on";
    TURN_OFF_WAIT = "SMMUv3: wait for what is turned off";
    INTERRUPTS_WAIT = "SMMUv3: wait for the interrupts to be on or off";
}
