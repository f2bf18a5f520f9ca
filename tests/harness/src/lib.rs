//! Machines with an IOMMU to test drivers on.
//!
//! A [`Machine`] is guest RAM, PCI functions that do DMA, firmware tables and the registers of an
//! IOMMU. The driver under test runs in the test's own process, on a [`MachinePlatform`]: its frames
//! lie in the guest's RAM, and its register accesses go to the machine.
//!
//! There are two kinds: [`ModelX86`], the device half of the crate in this process, as strict as hardware
//! may be; and [`QemuX86`], hardware that nobody here wrote. Both are made from the same [`X86Options`],
//! so that a test written for [`Machine`] runs on either. [`ModelArm`] and [`QemuArm`] are the machines of
//! the other architecture, made from [`ArmOptions`].
//!
//! ```
//! use iommu_harness::{Machine, ModelX86, VtdOptions, X86Options};
//!
//! let machine = ModelX86::start(&X86Options::new().vtd(VtdOptions::default()).lsi("lsi0"))?;
//! let device = machine.device("lsi0");
//! let (from, to) = (machine.buffer(4096)?, machine.buffer(4096)?);
//! from.fill(0x5a);
//! // Translation is still off, so that an IOVA is a physical address.
//! device.copy(from.iova(), to.iova(), 4096)?;
//! assert_eq!(to.to_vec(), [0x5a; 4096]);
//! # Ok::<(), iommu_harness::Error>(())
//! ```
//!
//! | Module | What it does |
//! |---|---|
//! | [`model`] | the machine in this process, and what its unit is able to do |
//! | [`qemu`] | starts QEMU and speaks its qtest protocol |
//! | [`machine`] | the trait, and buffers in guest RAM |
//! | [`guest`] | the parts that every machine has |
//! | [`platform`] | `iommu::platform::Platform` over a machine |
//! | [`devices`] | PCI functions as DMA engines |
//! | [`pci`] | configuration space, bus numbers and BARs |
//! | [`firmware`] | ACPI tables |
//! | [`observed`] | memory that a device sees as late as hardware permits |
//! | [`options`] | which machine is wanted |
//! | [`quirks`] | what versions of QEMU do differently from the specification |
//! | [`runner`] | tests that can say *ignored, and why* |
#![deny(missing_docs)]

mod arm;
pub mod bus;
pub mod devices;
mod error;
pub mod firmware;
mod frames;
pub mod guest;
pub mod machine;
pub mod model;
pub mod observed;
pub mod options;
pub mod pci;
pub mod platform;
pub mod qemu;
pub mod quirks;
mod ram;
pub mod runner;
mod topology;
mod x86;

pub use devices::{Access, DmaDevice, DmaOutcome, Workspace};
pub use error::{Error, Result};
pub use frames::{FramePool, POISON};
pub use machine::{Buffer, Machine};
pub use model::{ArmModelOptions, DeviceTlb, ModelArm, ModelOptions, ModelX86, TlbAnswer, TlbScope};
pub use observed::{Adversary, ObservedMemory};
pub use options::{ArmOptions, Node, SmmuGranule, SmmuOptions, SmmuStages, Topology, VtdOptions, X86Options};
pub use platform::MachinePlatform;
pub use qemu::{QemuArm, QemuX86};
pub use quirks::{QemuQuirks, QemuVersion};
pub use ram::GuestRam;
pub use runner::{Suite, TestResult};
