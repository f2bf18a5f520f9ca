//! Where the command queue orders what a unit sees: each barrier, clean, command and wait by name.
//!
//! Cleans are for units that do not snoop (IDR0.COHACC).

use crate::sync::site::sites;

sites! {
    COMMANDS = "SMMUv3: commands, before CMDQ_PROD";
    COMMANDS_CLEAN = "SMMUv3: clean of commands, before CMDQ_PROD";
    RECOVERY = "SMMUv3: a repaired queue, before the error is acknowledged";
    RECOVERY_CLEAN = "SMMUv3: clean of a command that was replaced, before the error is acknowledged";
    STOP_SYNC = "SMMUv3: the last CMD_SYNC, before the queue is off";
    GIVEN_UP = "SMMUv3: batches given up, before the queue begins anew";
}
