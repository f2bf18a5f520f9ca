//! The one error type of the crate.

use core::fmt;

use crate::addr::{Iova, IovaRange};
use crate::pgtable::PageSize;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Why a call failed, with what the caller needs to do better.
///
/// [`Error::errno`] gives the number that Linux returns for the same failure.
///
/// ```
/// use iommu::{Error, InvalidReason};
/// assert_eq!(Error::NoMemory.errno(), 12);
/// assert_eq!(Error::Invalid(InvalidReason::NoPermission).to_string(), "invalid argument: neither read nor write permitted");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// `Platform::alloc_frames` had no frame left. Nothing was changed.
    NoMemory,
    /// An argument makes no sense, whatever the state.
    Invalid(InvalidReason),
    /// The address lies outside what the page table can express.
    OutOfRange {
        /// The first IOVA that cannot be translated, or whose target cannot be expressed.
        iova: Iova,
    },
    /// The range leaves every window of the domain.
    OutsideWindow {
        /// The window that lies nearest to the range.
        nearest: IovaRange,
    },
    /// Something is mapped there already. What this call had mapped is unmapped again.
    Exists {
        /// The first IOVA that was taken.
        iova: Iova,
    },
    /// Nothing is mapped there.
    NotMapped {
        /// The first IOVA without a translation.
        iova: Iova,
    },
    /// The range covers a large page only partly; `Domain::cut` splits it. What lies in the range
    /// below `page` has been worked on, nothing above.
    PartialPage {
        /// Where the large page begins.
        page: Iova,
        /// Its size.
        size: PageSize,
    },
    /// No such device, or no IOMMU translates its requests.
    NoDevice,
    /// The object is in use in a way that forbids this.
    Busy(BusyReason),
    /// Domain and device (or unit) do not fit; another domain may.
    Incompatible(IncompatibleReason),
    /// This hardware, or this kind of domain, cannot do that.
    Unsupported(UnsupportedReason),
    /// All numbers of a kind are taken.
    NoSpace(NoSpaceReason),
    /// A list of fixed size is full; the constant that sizes it is named.
    Capacity(&'static str),
    /// A firmware table is malformed.
    Firmware(ParseError),
    /// Hardware did not do within its time what it was told.
    TimedOut(WaitReason),
    /// An invalidation failed. The memory behind it stays lent to the device.
    Invalidation {
        /// What became of the request.
        reason: InvalidationReason,
        /// First quadword of the request that failed, as the hardware's manual defines it; zero
        /// when it cannot be told.
        request: u64,
    },
    /// The unit was fenced after an earlier failure and must be reset first.
    Fenced,
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)*
                })
            }
        }
    };
}

reasons! {
    /// What is wrong with an argument.
    InvalidReason {
        /// A range of zero bytes, or one whose last address lies below its first.
        EmptyRange => "the range is empty",
        /// The range passes the top of the address space.
        AddressOverflow => "the range passes the top of the address space",
        /// An address or a length is not a multiple of the smallest page.
        Misaligned => "not a multiple of the smallest page size",
        /// Neither read nor write is permitted.
        NoPermission => "neither read nor write permitted",
        /// A permission that this page-table format cannot express.
        Permission => "a permission that this format cannot express",
        /// None of the page sizes that the call allows is one that the domain has.
        NoPageSize => "no usable page size",
        /// The domain is not the one that is attached.
        WrongDomain => "not the domain that is attached",
        /// The caller is not the owner of this group.
        WrongOwner => "not the owner of this group",
        /// The device shares its group with others; attach the group.
        SharedGroup => "the device shares its group with others",
        /// The domain is not a paging domain, so nothing can be mapped in it.
        NotPaging => "not a paging domain",
        /// A PASID that is zero, or beyond what device and unit support.
        Pasid => "no usable PASID",
        /// A source id for which the unit's tables have no entry.
        SourceId => "a source id beyond the unit's tables",
        /// An id is registered already.
        Duplicate => "registered already",
        /// The device cannot be told apart from devices of two groups.
        TwoGroups => "not to be told apart from devices of two groups",
        /// The bitmap has no bit for a page of the range.
        Bitmap => "the range is not inside the bitmap",
        /// No request waits under this tag: it was answered already, or ended with its attachment.
        NotWaiting => "no request waits under this tag",
        /// The configuration contradicts itself.
        Configuration => "contradictory configuration",
    }
}

reasons! {
    /// Why something is in use.
    BusyReason {
        /// The group is attached to a domain that is not its default one.
        Attached => "attached to another domain",
        /// The group has a DMA owner.
        Owned => "the group has a DMA owner",
        /// Drivers use the default domain.
        DriversBound => "drivers use the default domain",
        /// Another processor is changing this object.
        Changing => "another processor is changing it",
        /// PASIDs are in use.
        PasidInUse => "PASIDs are in use",
        /// Devices are attached or mappings are present.
        InUse => "still in use",
        /// What was here before must be invalidated before something of another size takes its place.
        BreakBeforeMake => "caches must drop what was here before",
    }
}

reasons! {
    /// Why a domain does not fit a device or a unit.
    IncompatibleReason {
        /// The page-table format is not one that the unit walks.
        Format => "the unit does not walk this page-table format",
        /// The domain's address width is more than the unit's.
        Width => "the domain is wider than the unit",
        /// A page size of the domain is not one of the unit's.
        PageSize => "the unit lacks a page size of the domain",
        /// The domain's tables are not written back from the cache as this unit needs it.
        Coherency => "the unit does not snoop, the domain's tables are not cleaned",
        /// The domain has a feature (dirty tracking, enforced coherency) that the unit lacks.
        Features => "the unit lacks a feature of the domain",
        /// The unit does not have the stage of translation that the domain's table is, or the units
        /// have none in common.
        Stage => "the unit does not have the domain's stage",
        /// The unit caches absent entries, and the domain does not flush what it maps.
        MapFlush => "the unit caches absent entries, the domain does not flush its maps",
        /// The unit is of another driver.
        Driver => "another driver's domain",
        /// The domain's windows are not inside the device's.
        Window => "a window of the domain is outside the device's",
        /// Firmware demands a direct region for the device, and this domain has none.
        DirectRegion => "the device needs its direct region",
        /// The domain is translated already where the device reserves addresses.
        Reserved => "mappings lie in a reserved region of the device",
    }
}

reasons! {
    /// What is not supported.
    UnsupportedReason {
        /// This operation has no meaning for this kind of domain.
        DomainKind => "not for this kind of domain",
        /// The backend does not implement it.
        Operation => "the backend lacks the operation",
        /// The unit has no queued invalidation.
        QueuedInvalidation => "the unit has no queued invalidation",
        /// The unit has no address width that this crate can build.
        AddressWidth => "no usable address width",
        /// A unit does not have the stage of translation that is asked for.
        Stage => "a unit does not have this stage",
        /// A unit lacks a feature that is asked for.
        Features => "a unit lacks a feature",
        /// The unit lacks pass-through and the platform tells no map of RAM.
        Identity => "no pass-through, and no map of RAM",
        /// The unit has no page-table format that this crate builds.
        Format => "no usable page-table format",
        /// The unit's tables or queues are at addresses that software cannot choose.
        Preset => "tables or queues at fixed addresses",
        /// The unit does not translate DMA at all.
        Translation => "the unit does not translate DMA",
        /// A large page of this format cannot be split while devices use it.
        Split => "a live large page of this format cannot be split",
        /// This format has no way to change the kind of memory (cached, device) of a page in use.
        MemoryType => "a live page of this format keeps its kind of memory",
        /// The version of the unit is not known.
        Version => "unknown hardware version",
    }
}

reasons! {
    /// What has run out.
    NoSpaceReason {
        /// Domain ids of a unit.
        DomainIds => "domain ids",
        /// Pages for doorbells of interrupt controllers.
        Doorbells => "pages for interrupt doorbells",
        /// PASIDs.
        Pasids => "PASIDs",
        /// Slots of a slab.
        Slots => "slots",
    }
}

reasons! {
    /// What hardware was waited for.
    WaitReason {
        /// A register bit that acknowledges a command.
        Register => "a command register",
        /// Room in the invalidation queue.
        QueueSpace => "room in the invalidation queue",
        /// Readers of a shared structure.
        Readers => "readers of a shared structure",
        /// Another processor that changes the same object.
        Claim => "another processor's change",
    }
}

reasons! {
    /// What became of an invalidation.
    InvalidationReason {
        /// The hardware refused the request as malformed.
        Refused => "refused by the hardware",
        /// A device did not answer in time.
        DeviceTimeOut => "a device did not answer",
        /// The hardware reported a broken completion.
        CompletionError => "broken completion",
        /// The hardware did not complete it within the bound.
        TimedOut => "not completed in time",
    }
}

reasons! {
    /// What is wrong at a place in a firmware table.
    ParseErrorKind {
        /// The bytes end before the structure does.
        Truncated => "the table ends too early",
        /// The signature is another table's.
        Signature => "wrong signature",
        /// The bytes do not add up to zero.
        Checksum => "wrong checksum",
        /// The revision is not known.
        Revision => "unknown revision",
        /// A length is too small for its structure, or passes the end.
        Length => "wrong length",
        /// A field has a value that the specification does not allow.
        Value => "illegal value",
        /// It refers to nothing, or to what it must not refer to.
        Reference => "refers to nothing that fits",
        /// It says something else of what was said before.
        Overlap => "overlaps another",
        /// There are more than this crate takes.
        Capacity => "too many",
    }
}

/// A malformed firmware table.
///
/// ```
/// use iommu::{ParseError, ParseErrorKind};
/// let error = ParseError { offset: 48, kind: ParseErrorKind::Length };
/// assert_eq!(error.to_string(), "wrong length at byte 48");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParseError {
    /// Where, in bytes from the start of the table.
    pub offset: u32,
    /// What is wrong there.
    pub kind: ParseErrorKind,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.kind, self.offset)
    }
}

impl core::error::Error for ParseError {}

impl From<ParseError> for Error {
    fn from(error: ParseError) -> Self {
        Self::Firmware(error)
    }
}

impl Error {
    /// The positive errno of Linux for the same failure (`EINVAL` is 22, for instance).
    pub const fn errno(self) -> i32 {
        match self {
            Self::NoMemory => 12,
            Self::Invalid(InvalidReason::AddressOverflow) => 75,
            Self::Invalid(InvalidReason::SourceId) => 34,
            Self::Invalid(_) => 22,
            Self::OutOfRange { .. } | Self::OutsideWindow { .. } => 34,
            Self::Exists { .. } => 17,
            Self::NotMapped { .. } => 2,
            Self::PartialPage { .. } => 22,
            Self::NoDevice => 19,
            Self::Busy(BusyReason::DriversBound) => 1,
            Self::Busy(_) => 16,
            Self::Incompatible(_) => 22,
            Self::Unsupported(UnsupportedReason::QueuedInvalidation | UnsupportedReason::Version) => 19,
            Self::Unsupported(_) => 95,
            Self::NoSpace(_) => 28,
            Self::Capacity(_) => 7,
            Self::Firmware(_) => 22,
            Self::TimedOut(_) => 110,
            Self::Invalidation { reason: InvalidationReason::Refused, .. } => 22,
            Self::Invalidation { .. } => 110,
            Self::Fenced => 5,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("out of frames"),
            Self::Invalid(reason) => write!(f, "invalid argument: {reason}"),
            Self::OutOfRange { iova } => write!(f, "{iova} is beyond what the page table can express"),
            Self::OutsideWindow { nearest } => write!(f, "outside the domain's windows; the nearest is {nearest}"),
            Self::Exists { iova } => write!(f, "{iova} is mapped already"),
            Self::NotMapped { iova } => write!(f, "{iova} is not mapped"),
            Self::PartialPage { page, size } => write!(f, "the range covers the {size} page at {page} only partly"),
            Self::NoDevice => f.write_str("no such device behind an IOMMU"),
            Self::Busy(reason) => write!(f, "busy: {reason}"),
            Self::Incompatible(reason) => write!(f, "domain and device do not fit: {reason}"),
            Self::Unsupported(reason) => write!(f, "not supported: {reason}"),
            Self::NoSpace(what) => write!(f, "no {what} left"),
            Self::Capacity(constant) => write!(f, "list full: {constant}"),
            Self::Firmware(error) => write!(f, "firmware table: {error}"),
            Self::TimedOut(what) => write!(f, "timed out waiting for {what}"),
            Self::Invalidation { reason, request } => write!(f, "invalidation {request:#x} failed: {reason}"),
            Self::Fenced => f.write_str("the unit is fenced until it is reset"),
        }
    }
}

impl core::error::Error for Error {}

// Errors travel in registers and in queues of the caller.
const _: () = assert!(size_of::<Error>() < 32);
