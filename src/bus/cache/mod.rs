//! Caches of units in software.

mod frames;
mod lines;

pub(crate) use frames::FrameSlice;
pub(crate) use lines::Lines;
