//! One suite for every page-table format: the same tests, compiled once for each.

#![cfg(not(loom))]

mod formats;
mod model;
mod platform;
mod random;
mod setup;
mod suite;

use formats::{Identical, Large, Middle, Upper};
use iommu::pgtable::{AccessedDirty, LiveSplit, Lpae, Lpae4K, Lpae16K, Lpae64K, LpaeStage, SecondStage, X86_64, X86Io};

suite!(second_stage_3, SecondStage::default(), 3);
suite!(second_stage_4, SecondStage::default(), 4);
suite!(second_stage_5, SecondStage::default(), 5);
suite!(x86_io_first_stage, X86Io::FirstStage, 4);
suite!(x86_io_second_stage, X86Io::SecondStage(SecondStage::default()), 4);
suite!(second_stage_dirty, SecondStage { accessed_dirty: AccessedDirty::Hardware }, 4);
suite!(x86_64_4, X86_64::default(), 4);
suite!(x86_64_5, X86_64::default(), 5);
suite!(x86_64_dirty, X86_64 { accessed_dirty: AccessedDirty::Hardware }, 4);
// Stage 1 of AArch64 in few and in all levels, with short roots; stage 2 with roots of several tables too.
const ONE_4K: Lpae4K = Lpae::new(LpaeStage::One);
const TWO_4K: Lpae4K = Lpae::new(LpaeStage::Two);
const ONE_16K: Lpae16K = Lpae::new(LpaeStage::One);
const TWO_16K: Lpae16K = Lpae::new(LpaeStage::Two);
const ONE_64K: Lpae64K = Lpae::new(LpaeStage::One);
const TWO_64K: Lpae64K = Lpae::new(LpaeStage::Two);
suite!(lpae_4k_stage1_39, ONE_4K, ONE_4K.config(39, 48));
suite!(lpae_4k_stage1_48, ONE_4K, ONE_4K.config(48, 48));
suite!(lpae_4k_stage2_40, TWO_4K, TWO_4K.config(40, 48));
suite!(lpae_4k_stage2_43, TWO_4K, TWO_4K.config(43, 48));
suite!(lpae_4k_stage2_48, TWO_4K, TWO_4K.config(48, 48));
suite!(lpae_16k_stage1_39, ONE_16K, ONE_16K.config(39, 48));
suite!(lpae_16k_stage1_48, ONE_16K, ONE_16K.config(48, 48));
suite!(lpae_16k_stage2_40, TWO_16K, TWO_16K.config(40, 48));
suite!(lpae_16k_stage2_48, TWO_16K, TWO_16K.config(48, 48));
suite!(lpae_64k_stage1_48, ONE_64K, ONE_64K.config(48, 48));
suite!(lpae_64k_stage1_52, ONE_64K, ONE_64K.config(52, 52));
suite!(lpae_64k_stage2_42, TWO_64K, TWO_64K.config(42, 48));
suite!(lpae_64k_stage2_52, TWO_64K, TWO_64K.config(52, 52));
// Units that change the size of pages in use without break-before-make.
const FREELY_4K: Lpae4K = Lpae { live_split: LiveSplit::Allowed, ..ONE_4K };
const FREELY_16K: Lpae16K = Lpae { live_split: LiveSplit::Allowed, ..TWO_16K };
const FREELY_64K: Lpae64K = Lpae { live_split: LiveSplit::Allowed, ..ONE_64K };
suite!(lpae_4k_live_split, FREELY_4K, FREELY_4K.config(48, 48));
suite!(lpae_16k_live_split, FREELY_16K, FREELY_16K.config(40, 48));
suite!(lpae_64k_live_split, FREELY_64K, FREELY_64K.config(52, 52));
// Formats that no hardware of this crate has yet, to prove that the engine has room for them.
suite!(upper_half_contiguous, Upper, 4);
suite!(concatenated_16k, Middle, 3);
suite!(granule_64k, Large, 3);
suite!(identical_items, Identical, 3);
