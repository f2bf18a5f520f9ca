//! Machines with an IOMMU to test drivers on.
