//! Order mutants: each barrier, clean, request and wait of the drivers is left out once, and must be
//! missed. Needs `RUSTFLAGS="--cfg observed --cfg order_mutants"`.
#![cfg(all(observed, order_mutants, feature = "vtd", feature = "smmuv3"))]

mod common;
mod smmuv3;
mod vtd;
