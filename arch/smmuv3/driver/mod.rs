//! The driver half: programs SMMUv3 units.
//!
//! | file | what it holds |
//! |---|---|
//! | `update` | the stores that turn one STE or CD into another |

mod update;

pub use update::Passage;
