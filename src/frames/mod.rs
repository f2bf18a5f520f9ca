//! Containers in frames: they grow with the machine and need no heap.
//!
//! - [`Slab`] holds values in numbered slots and hands out reference-counted handles ([`Ref`]).
//! - [`Registry`] is a slab that holds on to its values until they are removed.
//! - [`IdBitmap`] gives out numbers below 2^20: domain ids, PASIDs.
//! - [`Array`] is a slice that is written once.
//! - [`RadixMap`] finds a word by a 64-bit key, for instance a slot number by a source id.
//!
//! Lookups take no lock. No frame is allocated or freed under a lock; whatever fails for want of
//! memory changes nothing that a caller can see.

mod array;
mod id_bitmap;
mod radix;
mod reference;
mod registry;
mod slab;
#[cfg(all(test, not(loom)))]
mod testing;
mod words;

pub use array::Array;
pub use id_bitmap::IdBitmap;
pub use radix::{RadixIter, RadixMap, Word};
pub use reference::Ref;
pub use registry::Registry;
pub use slab::{Slab, SlabIter};
