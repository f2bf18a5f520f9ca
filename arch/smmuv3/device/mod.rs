//! The device half: an SMMUv3 in software, as strict as hardware may be.
//!
//! | file | what it holds |
//! |---|---|
//! | `config` | what the unit is to be able to do |
//! | `host` | what it reaches: memory, interrupts, ATCs |
//! | `unit` | the unit and its registers from outside |
//! | `registers`, `interrupts` | what registers hold, what software must not do with them, interrupts |
//! | `step`, `queue` | what it does, which commands are valid, and in which order they may be executed |
//! | `output`, `events`, `page_requests` | the queues that it writes |
//! | `stalls` | requests that wait until software decides |
//! | `cache` | STEs, CDs, TLB, walk caches, and what invalidates them |
//! | `translate` | what becomes of what devices ask |
//! | `speculation` | walks for which nobody waits |
//! | `request` | what devices ask, and what it answers |
//! | `walk` | from the StreamID to the page |
//!
//! Who decides what the specification leaves open is a [`Chooser`]. What software does that it must not is
//! told by [`SmmuDevice::misuse`].
//!
//! A hypervisor lends it frames for its caches and implements [`Host`] over the memory of its guest. What
//! the guest does to the registers goes to [`Registers`](crate::platform::Registers), what devices do to
//! [`SmmuDevice::translate`], and a thread of its own calls [`SmmuDevice::run`] when a register was written:
//!
//! ```
//! use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
//! use iommu::PhysAddr;
//! use iommu::arch::smmuv3::device::{
//!     Access, DeviceAnswer, DeviceConfig, Host, Interrupt, Request, SmmuDevice, Snoop, Unreachable,
//! };
//! use iommu::arch::smmuv3::layout::events::EventKind;
//! use iommu::arch::smmuv3::layout::registers::{Cr0, Cr1, StreamTableFormat, StrtabBaseCfg, offset};
//! use iommu::arch::smmuv3::layout::stream_table::CdTableFormat;
//! use iommu::arch::smmuv3::layout::{Asid, Cd, Granule, Ste, StreamId};
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
//!     fn write64(&self, at: PhysAddr, value: u64) -> Result<(), Unreachable> {
//!         Ok(self.word(at)?.store(value, SeqCst))
//!     }
//!     fn compare_exchange(&self, at: PhysAddr, current: u64, new: u64) -> Result<bool, Unreachable> {
//!         Ok(self.word(at)?.compare_exchange(current, new, SeqCst, SeqCst).is_ok())
//!     }
//!     fn interrupt(&self, _: Interrupt) -> Result<(), Unreachable> {
//!         Ok(()) // To the guest's interrupt controller, or to its memory.
//!     }
//!     fn invalidate_atc(&self, _: StreamId, _: Option<u32>, _: u64, _: u8) -> DeviceAnswer {
//!         DeviceAnswer::None // No device here has one.
//!     }
//! }
//!
//! // The guest maps the page at 0x7000 of stream 2 to 0x6000: stream table, context descriptor, three levels.
//! let guest = Guest([const { AtomicU64::new(0) }; 4096]);
//! let put = |at: u64, words: &[u64]| {
//!     for (word, at) in words.iter().zip((at..).step_by(8)) {
//!         guest.write64(PhysAddr::new(at), *word).unwrap();
//!     }
//! };
//! put(0x1000 + 2 * 64, &Ste::stage1(PhysAddr::new(0x2000), CdTableFormat::Linear, 0).words);
//! put(0x2000, &Cd::new(Asid(7), PhysAddr::new(0x3000), Granule::Size4K, 39, 48).words);
//! put(0x3000, &[0x4003]);
//! put(0x4000, &[0x5003]);
//! put(0x5038, &[0x6c43]);
//! let frames = Arena::new(Box::leak(vec![Frame::ZERO; 128].into_boxed_slice()))?;
//! let unit = SmmuDevice::new(frames, guest, DeviceConfig::default())?;
//!
//! // Its driver says where that is, and turns the unit on.
//! unit.write32(offset::CR1, Cr1::SNOOPING.0);
//! unit.write64(offset::STRTAB_BASE, 0x1000);
//! unit.write32(offset::STRTAB_BASE_CFG, StrtabBaseCfg::new(StreamTableFormat::Linear, 4).0);
//! unit.write32(offset::CR0, Cr0::SMMUEN.bits());
//! unit.run();
//! assert_eq!(unit.read32(offset::CR0ACK), Cr0::SMMUEN.bits());
//!
//! // The device writes.
//! let answer = unit.translate(&Request::new(StreamId(2), 0x7123, Access::Write)).unwrap();
//! assert_eq!(answer.phys, PhysAddr::new(0x6123));
//! let blocked = unit.translate(&Request::new(StreamId(2), 0x8000, Access::Write)).unwrap_err();
//! assert_eq!(blocked.reason, Some(EventKind::F_TRANSLATION));
//! # Ok::<(), iommu::Error>(())
//! ```

mod cache;
mod config;
mod events;
mod host;
mod interrupts;
mod output;
mod page_requests;
mod queue;
mod registers;
mod request;
mod speculation;
mod stalls;
mod step;
#[cfg(test)]
mod tests;
mod translate;
mod unit;
pub mod walk;

pub use crate::bus::{Chooser, Fracture, InOrder, Precision, Retention, Seeded, Snoop, Unreachable};
pub use config::DeviceConfig;
pub use host::{DeviceAnswer, Host, Interrupt, Line};
pub use page_requests::PageRequestOutcome;
pub use registers::Misuse;
pub use request::{Answer, Blocked, Outcome, Request};
pub use step::Step;
pub use unit::SmmuDevice;
pub use walk::{Access, Privilege};
