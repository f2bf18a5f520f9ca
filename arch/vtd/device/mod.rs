//! The device half: a VT-d unit in software, as strict as hardware may be.
//!
//! | file | what it holds |
//! |---|---|
//! | `config` | what the unit is to be able to do |
//! | `host` | what it reaches: memory, interrupts, device-TLBs |
//! | `unit` | the unit and its registers from outside |
//! | `registers`, `events`, `faults` | what registers hold, interrupts, fault records |
//! | `step`, `queue` | what it does, and in which order it may execute the invalidation queue |
//! | `cache` | context cache, PASID cache, IOTLB, paging-structure caches |
//! | `translate`, `page_requests` | what becomes of what devices ask |
//! | `request` | what devices ask, and what it answers |
//! | `walk` | from the root table to the page |
//!
//! A hypervisor lends it frames for its caches and implements [`Host`] over the memory of its guest. What
//! the guest does to the registers goes to [`Registers`](crate::platform::Registers), what devices do to
//! [`VtdDevice::translate`], and a thread of its own calls [`VtdDevice::run`] when a register was written:
//!
//! ```
//! use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
//! use iommu::PhysAddr;
//! use iommu::arch::vtd::device::{
//!     DeviceAnswer, DeviceConfig, Host, Request, RequestAccess, Snoop, Unreachable, VtdDevice,
//! };
//! use iommu::arch::vtd::layout::descriptors::{DevicePasids, DeviceRange};
//! use iommu::arch::vtd::layout::registers::{Global, offset};
//! use iommu::ops::Msi;
//! use iommu::platform::{Arena, Frame, Registers};
//!
//! /// Memory of a guest, from 0.
//! struct Guest([AtomicU64; 4096]);
//!
//! impl Guest {
//!     fn word(&self, at: PhysAddr) -> Result<&AtomicU64, Unreachable> {
//!         self.0.get(at.as_u64() as usize / 8).ok_or(Unreachable)
//!     }
//! }
//!
//! impl Host for Guest {
//!     fn read(&self, at: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
//!         Ok(self.word(at)?.load(SeqCst))
//!     }
//!     fn write32(&self, at: PhysAddr, value: u32) -> Result<(), Unreachable> {
//!         let shift = at.as_u64() % 8 * 8;
//!         let put = |word| Some(word & !(0xffff_ffff << shift) | u64::from(value) << shift);
//!         self.word(at)?.fetch_update(SeqCst, SeqCst, put).map(drop).map_err(|_| Unreachable)
//!     }
//!     fn write64(&self, at: PhysAddr, value: u64) -> Result<(), Unreachable> {
//!         Ok(self.word(at)?.store(value, SeqCst))
//!     }
//!     fn compare_exchange(&self, at: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
//!         Ok(self.word(at)?.compare_exchange(current, new, SeqCst, SeqCst).is_ok())
//!     }
//!     fn interrupt(&self, _: Msi) {
//!         // To the guest's interrupt controllers.
//!     }
//!     fn invalidate_device_tlb(&self, _: u16, _: Option<DevicePasids>, _: DeviceRange) -> DeviceAnswer {
//!         DeviceAnswer::None // No device here has one.
//!     }
//! }
//!
//! // The guest maps the page at 0x7000 of 00:02.0 to 0x6000: root and context entry, then three levels.
//! let guest = Guest([const { AtomicU64::new(0) }; 4096]);
//! for (at, word) in [
//!     (0x1000, 0x2001),
//!     (0x2100, 0x3001),
//!     (0x2108, 7 << 8 | 1), // Domain 7, 39 bits.
//!     (0x3000, 0x4003),
//!     (0x4000, 0x5003),
//!     (0x5038, 0x6003),
//! ] {
//!     guest.write64(PhysAddr::new(at), word).unwrap();
//! }
//! let frames = Arena::new(Box::leak(vec![Frame::ZERO; 64].into_boxed_slice()))?;
//! let unit = VtdDevice::new(frames, guest, DeviceConfig::default())?;
//!
//! // Its driver says where that is, and turns translation on.
//! unit.write64(offset::RTADDR, 0x1000);
//! for command in [Global::RTP, Global::TE] {
//!     unit.write32(offset::GCMD, command.bits());
//!     unit.run();
//! }
//!
//! // The device writes.
//! let answer = unit.translate(&Request::new(0x10, 0x7123, RequestAccess::Write)).unwrap();
//! assert_eq!(answer.phys, PhysAddr::new(0x6123));
//! let blocked = unit.translate(&Request::new(0x10, 0x8000, RequestAccess::Write)).unwrap_err();
//! assert_eq!(blocked.reason.0, 5); // Without permission, of which the guest finds a record.
//! # Ok::<(), iommu::Error>(())
//! ```

mod cache;
mod config;
mod events;
mod faults;
mod host;
mod page_requests;
mod queue;
mod registers;
mod request;
mod step;
#[cfg(test)]
mod tests;
mod translate;
mod unit;
pub mod walk;

pub use crate::bus::{Absence, Chooser, Fracture, InOrder, Precision, Retention, Seeded, Snoop, Unreachable};
pub use config::DeviceConfig;
pub use host::{DeviceAnswer, Host};
pub use page_requests::PageRequestOutcome;
pub use request::{Answer, Blocked, Privilege, Recorded, Request, RequestAccess};
pub use step::Step;
pub use unit::VtdDevice;
