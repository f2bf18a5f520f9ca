//! Why the kernel gives up.

use core::fmt;

/// Why the kernel gives up.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// The machine lacks something.
    Missing(&'static str),
    /// Something did not happen as told.
    Wrong(&'static str),
    /// The crate said no.
    Iommu(iommu::Error),
}

/// Whether something is as it was told.
pub fn expect(told: bool, otherwise: &'static str) -> Result<(), Failure> {
    if told { Ok(()) } else { Err(Failure::Wrong(otherwise)) }
}

impl From<iommu::Error> for Failure {
    fn from(error: iommu::Error) -> Self {
        Self::Iommu(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "this machine lacks {what}"),
            Self::Wrong(what) => f.write_str(what),
            Self::Iommu(error) => write!(f, "iommu: {error}"),
        }
    }
}
