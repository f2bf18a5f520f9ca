//! What distinguishes one of QEMU's machines from the others.

use std::ops::Range;

use iommu::PhysAddr;

use super::process::Target;
use super::qtest::Qtest;
use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::firmware::ConfigDevice;
use crate::guest::Layout;
use crate::quirks::QemuQuirks;
use crate::ram::GuestRam;

/// How registers of a unit are accessed, where that is not plain.
#[derive(Clone, Debug, Default)]
pub struct UnitAccess {
    /// Registers that take accesses of 32 bits only: those of 64 are made of two.
    pub narrow: Range<u64>,
    /// Registers of 32 bits among these, and the bits of them that a driver is not told of.
    pub hidden: Vec<(PhysAddr, u32)>,
}

/// A kind of machine, with the options that only it has.
pub trait Board: Clone + Send + Sync + 'static {
    /// The QEMU that has it.
    const TARGET: Target;

    /// What QEMU calls it.
    const NAME: &'static str;

    /// Where its configuration device is.
    const CONFIGURATION: ConfigDevice;

    /// A ROM whose processor waits for ever.
    fn rom() -> Vec<u8>;

    /// What is wanted, but not there in a QEMU with these quirks.
    fn lacks(&self, quirks: &QemuQuirks) -> Option<&'static str>;

    /// Where things lie with this much RAM.
    ///
    /// # Errors
    /// [`Error::OutOfRam`] for a size that is not possible.
    fn layout(&self, ram_bytes: u64) -> Result<Layout>;

    /// What `-machine` is given on a QEMU with these quirks.
    fn machine(&self, quirks: &QemuQuirks) -> String;

    /// Options that only this board has and their values. They stand before all devices.
    fn arguments(&self, quirks: &QemuQuirks) -> Vec<(&'static str, String)>;

    /// Configuration space of all its buses in memory.
    fn ecam(&self) -> Range<u64>;

    /// How registers of the unit are accessed on a QEMU with these quirks.
    fn unit_access(&self, quirks: &QemuQuirks) -> UnitAccess;

    /// What firmware does first.
    ///
    /// # Errors
    /// Those of the connection; [`Error::Unavailable`] when the machine turns out not to have what is wanted.
    fn power_on(&self, bus: &dyn Bus, qtest: &Qtest) -> Result<()>;

    /// Base of the IOMMU's registers, when there is one.
    fn iommu_base(&self) -> Option<PhysAddr>;

    /// See [`Machine::device_tree`](crate::Machine::device_tree).
    ///
    /// # Errors
    /// [`Error::Firmware`] when there is none.
    fn device_tree(ram: &GuestRam) -> Result<Vec<u8>> {
        let _ = ram;
        Err(Error::Firmware("this machine has no device tree"))
    }
}
