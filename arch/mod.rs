//! The hardware: one folder per IOMMU architecture. No backend names another.

#[cfg(feature = "vtd")]
pub mod vtd;

#[cfg(feature = "smmuv3")]
pub mod smmuv3;
