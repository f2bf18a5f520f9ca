//! PASID directory and PASID tables: how requests, with and without a PASID, are translated in scalable
//! mode (VT-d 3.4.3, 9.5, 9.6).
//!
//! | file | what it holds |
//! |---|---|
//! | `directory` | the directory of one requester, its tables and their entries |
//! | `transition` | the stores that turn one entry into another |
//! | `model` | for loom models outside of the crate |

mod directory;
#[cfg(loom)]
mod model;
mod transition;

#[cfg(loom)]
pub use model::OnePasid;

pub(super) use directory::{PasidDirectory, PasidSlot};
pub(super) use transition::{Invalidate, Passage};
