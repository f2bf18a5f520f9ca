//! One suite for every page-table format: the same tests, compiled once for each.

#![cfg(not(loom))]

mod formats;
mod model;
mod platform;
mod random;
mod setup;
mod suite;

use formats::{Identical, Large, Middle, Upper};
use iommu::pgtable::{AccessedDirty, SecondStage, X86_64, X86Io};

suite!(second_stage_3, SecondStage::default(), 3);
suite!(second_stage_4, SecondStage::default(), 4);
suite!(second_stage_5, SecondStage::default(), 5);
suite!(x86_io_first_stage, X86Io::FirstStage, 4);
suite!(x86_io_second_stage, X86Io::SecondStage(SecondStage::default()), 4);
suite!(second_stage_dirty, SecondStage { accessed_dirty: AccessedDirty::Hardware }, 4);
suite!(x86_64_4, X86_64::default(), 4);
suite!(x86_64_5, X86_64::default(), 5);
suite!(x86_64_dirty, X86_64 { accessed_dirty: AccessedDirty::Hardware }, 4);
// Formats that no hardware of this crate has yet, to prove that the engine has room for them.
suite!(upper_half_contiguous, Upper, 4);
suite!(concatenated_16k, Middle, 3);
suite!(granule_64k, Large, 3);
suite!(identical_items, Identical, 3);
