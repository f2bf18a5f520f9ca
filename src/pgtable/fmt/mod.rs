//! The formats, one file or folder each.

mod lpae;
mod second_stage;
mod x86_64;
mod x86_io;

pub use lpae::{LPAE_MAIR, Lpae, Lpae4K, Lpae16K, Lpae64K, LpaeStage, LpaeWalk};
pub use second_stage::SecondStage;
pub use x86_64::X86_64;
pub use x86_io::X86Io;

/// What becomes of the *accessed* and *dirty* bits of leaves.
///
/// ```
/// use iommu::pgtable::{AccessedDirty, X86_64};
/// let format = X86_64 { accessed_dirty: AccessedDirty::Hardware };
/// assert_ne!(format, X86_64::default());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AccessedDirty {
    /// Nobody reads them. Where hardware would set them anyway, they are set from the start, which
    /// spares it the write.
    #[default]
    Unused,
    /// Hardware sets them and software reads them: no update of an entry may lose one.
    Hardware,
}
