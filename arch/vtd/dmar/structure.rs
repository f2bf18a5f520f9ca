//! The structures of the table (VT-d sections 8.3 to 8.9).

use core::fmt;

use super::raw::{AnddBody, DrhdBody, FlagsBody, RhsaBody, RmrrBody, StructureHeader};
use super::scope::Scopes;
use crate::acpi::Part;
use crate::addr::{PhysAddr, PhysRange};
use crate::error::{ParseError, ParseErrorKind};

/// One structure of the table.
///
/// ```
/// use iommu::arch::vtd::dmar::Structure;
/// let structure = Structure::from_bytes(&[99, 0, 6, 0, 1, 2])?;
/// assert!(matches!(structure, Structure::Unknown { kind: 99, body: [1, 2] }));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Structure<'a> {
    /// A remapping unit.
    Drhd(Drhd<'a>),
    /// Memory that devices use on firmware's behalf.
    Rmrr(Rmrr<'a>),
    /// Root ports below which devices may use ATS.
    Atsr(Atsr<'a>),
    /// The NUMA node of a unit.
    Rhsa(Rhsa),
    /// The name of an ACPI device.
    Andd(Andd<'a>),
    /// Integrated devices with a translation cache.
    Satc(Satc<'a>),
    /// Properties of integrated devices.
    Sidp(Sidp<'a>),
    /// A type that this crate does not know.
    Unknown {
        /// The type's number, 7 or more.
        kind: u16,
        /// What follows type and length.
        body: &'a [u8],
    },
}

/// A DMA remapping hardware unit (VT-d section 8.3).
///
/// ```
/// use iommu::arch::vtd::dmar::Structure;
/// // Type, length, INCLUDE_PCI_ALL, one page, segment 0, registers at 0xfed9_0000.
/// let bytes = [0, 0, 16, 0, 1, 0, 0, 0, 0x00, 0x00, 0xd9, 0xfe, 0, 0, 0, 0];
/// let Structure::Drhd(unit) = Structure::from_bytes(&bytes)? else { unreachable!() };
/// assert!(unit.include_pci_all);
/// assert_eq!(unit.registers.bytes(), Some(4096));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Drhd<'a> {
    /// The unit translates every PCI function of its segment that no other unit names.
    pub include_pci_all: bool,
    /// The PCI segment of the devices it translates.
    pub segment: u16,
    /// Its registers: 4 KiB times a power of two. A unit may have more than an old table says; its
    /// capability registers tell.
    pub registers: PhysRange,
    /// What it translates. Beside [`Self::include_pci_all`], only what is not PCI: I/O APICs, HPETs
    /// and ACPI devices.
    pub scopes: Scopes<'a>,
}

/// Reserved memory (VT-d section 8.4): devices that are named need it mapped to itself, readable
/// and writable, as long as firmware may use them.
///
/// ```
/// use iommu::arch::vtd::dmar::Structure;
/// // Type, length, reserved, segment 0, 0xe0000 to 0xe0fff, for the endpoint 00:1d.0.
/// let mut bytes = [0; 32];
/// (bytes[0], bytes[2], bytes[10], bytes[18], bytes[17], bytes[16]) = (1, 32, 0x0e, 0x0e, 0x0f, 0xff);
/// (bytes[24], bytes[25], bytes[30]) = (1, 8, 0x1d);
/// let Structure::Rmrr(region) = Structure::from_bytes(&bytes)? else { unreachable!() };
/// assert_eq!(region.region.to_string(), "0xe0000..=0xe0fff");
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Rmrr<'a> {
    /// The PCI segment of the devices.
    pub segment: u16,
    /// The memory as firmware wrote it. It should begin and end at 4 KiB, but firmware errs:
    /// [`PhysRange::align_outward`].
    pub region: PhysRange,
    /// The devices that use it.
    pub scopes: Scopes<'a>,
}

/// Root ports that support ATS (VT-d section 8.5).
///
/// ```
/// use iommu::arch::vtd::dmar::Structure;
/// let Structure::Atsr(ports) = Structure::from_bytes(&[2, 0, 8, 0, 1, 0, 0, 0])? else { unreachable!() };
/// assert!(ports.all_ports);
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Atsr<'a> {
    /// Every root port of the segment does.
    pub all_ports: bool,
    /// The PCI segment of the root ports.
    pub segment: u16,
    /// The root ports, unless all.
    pub scopes: Scopes<'a>,
}

/// The NUMA node of a unit (VT-d section 8.6).
///
/// ```
/// use iommu::arch::vtd::dmar::Structure;
/// let bytes = [3, 0, 20, 0, 0, 0, 0, 0, 0x00, 0x00, 0xd9, 0xfe, 0, 0, 0, 0, 1, 0, 0, 0];
/// let Structure::Rhsa(affinity) = Structure::from_bytes(&bytes)? else { unreachable!() };
/// assert_eq!(affinity.proximity_domain, 1);
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Rhsa {
    /// Where the unit's registers are: the start of [`Drhd::registers`].
    pub base: PhysAddr,
    /// Its proximity domain, as in the SRAT.
    pub proximity_domain: u32,
}

/// The name of an ACPI device that is no PCI function (VT-d section 8.7).
///
/// ```
/// use iommu::arch::vtd::dmar::Structure;
/// let Structure::Andd(device) = Structure::from_bytes(b"\x04\0\x0e\0\0\0\0\x07\\_SB.\0")? else { unreachable!() };
/// assert_eq!((device.number, device.name_str()), (7, Some("\\_SB.")));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Andd<'a> {
    /// Its number: the enumeration id of a scope of kind `AcpiNamespace`.
    pub number: u8,
    /// Its path in the ACPI namespace, without the NUL that ends it.
    pub name: &'a [u8],
}

/// Integrated devices that have an address translation cache (VT-d section 8.8).
///
/// ```
/// use iommu::arch::vtd::dmar::Structure;
/// let Structure::Satc(caches) = Structure::from_bytes(&[5, 0, 8, 0, 1, 0, 0, 0])? else { unreachable!() };
/// assert!(caches.atc_required);
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Satc<'a> {
    /// The devices work correctly only with their cache (ATS) on.
    pub atc_required: bool,
    /// The PCI segment of the devices.
    pub segment: u16,
    /// The devices.
    pub scopes: Scopes<'a>,
}

/// Properties of integrated devices (VT-d section 8.9): the flags of each scope.
///
/// ```
/// use iommu::arch::vtd::dmar::{ScopeFlags, Structure};
/// // Type, length, reserved, segment 0, then the endpoint 00:02.0 with flag bit 4.
/// let bytes = [6, 0, 16, 0, 0, 0, 0, 0, 1, 8, 0b10000, 0, 0, 0, 2, 0];
/// let Structure::Sidp(mut properties) = Structure::from_bytes(&bytes)? else { unreachable!() };
/// assert_eq!(properties.scopes.next().unwrap().flags(), ScopeFlags::ATC_REQUIRED);
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Sidp<'a> {
    /// The PCI segment of the devices.
    pub segment: u16,
    /// The devices, each with its flags.
    pub scopes: Scopes<'a>,
}

impl<'a> Structure<'a> {
    /// The structure that `bytes` begin with, checked whole.
    ///
    /// # Errors
    /// As [`Dmar::parse`](super::Dmar::parse) for one structure; offsets count from the start of
    /// `bytes`.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, ParseError> {
        Self::read(Part::new(bytes)).map(|(structure, _)| structure)
    }

    /// The structure that `part` begins with, checked whole, and what follows it.
    pub(super) fn read(part: Part<'a>) -> Result<(Self, Part<'a>), ParseError> {
        const SHORT: ParseErrorKind = ParseErrorKind::Length;
        let (header, _) = part.take::<StructureHeader>(SHORT)?;
        let (whole, rest) = part.split(usize::from(header.length.get()), SHORT)?;
        // A length of less than the header's own ends here, so each step makes progress.
        let (_, body) = whole.take::<StructureHeader>(SHORT)?;
        let take_flags = || body.take::<FlagsBody>(SHORT).map_err(|_| whole.error(SHORT));
        let structure = match header.kind.get() {
            0 => Self::Drhd(Drhd::read(whole, body)?),
            1 => Self::Rmrr(Rmrr::read(whole, body)?),
            2 => {
                let (fixed, scopes) = take_flags()?;
                let all_ports = fixed.flags & 1 != 0;
                Self::Atsr(Atsr { all_ports, segment: fixed.segment.get(), scopes: Scopes::read(scopes)? })
            }
            3 => {
                let (fixed, _) = body.take::<RhsaBody>(SHORT).map_err(|_| whole.error(SHORT))?;
                let base = PhysAddr::new(fixed.base.get());
                Self::Rhsa(Rhsa { base, proximity_domain: fixed.proximity_domain.get() })
            }
            4 => {
                let (fixed, name) = body.take::<AnddBody>(SHORT).map_err(|_| whole.error(SHORT))?;
                let name = name.bytes().split(|&byte| byte == 0).next().unwrap_or_default();
                Self::Andd(Andd { number: fixed.number, name })
            }
            5 => {
                let (fixed, scopes) = take_flags()?;
                let atc_required = fixed.flags & 1 != 0;
                Self::Satc(Satc { atc_required, segment: fixed.segment.get(), scopes: Scopes::read(scopes)? })
            }
            6 => {
                let (fixed, scopes) = take_flags()?;
                Self::Sidp(Sidp { segment: fixed.segment.get(), scopes: Scopes::read(scopes)? })
            }
            kind => Self::Unknown { kind, body: body.bytes() },
        };
        Ok((structure, rest))
    }
}

impl<'a> Drhd<'a> {
    fn read(whole: Part<'a>, body: Part<'a>) -> Result<Self, ParseError> {
        let too_short = |_| whole.error(ParseErrorKind::Length);
        let (fixed, scopes) = body.take::<DrhdBody>(ParseErrorKind::Length).map_err(too_short)?;
        let bad_base = body.error_at(core::mem::offset_of!(DrhdBody, base), ParseErrorKind::Value);
        let base = PhysAddr::new(fixed.base.get());
        if base.as_u64() == 0 || !base.is_aligned(4096) {
            return Err(bad_base);
        }
        // Tables of any revision use this field; where it was still reserved it is zero, one page.
        let bytes = 4096_u64 << (fixed.size & 0xf);
        Ok(Self {
            include_pci_all: fixed.flags & 1 != 0,
            segment: fixed.segment.get(),
            registers: PhysRange::from_len(base, bytes).map_err(|_| bad_base)?,
            scopes: Scopes::read(scopes)?,
        })
    }
}

impl<'a> Rmrr<'a> {
    fn read(whole: Part<'a>, body: Part<'a>) -> Result<Self, ParseError> {
        let too_short = |_| whole.error(ParseErrorKind::Length);
        let (fixed, scopes) = body.take::<RmrrBody>(ParseErrorKind::Length).map_err(too_short)?;
        let bad_limit = body.error_at(core::mem::offset_of!(RmrrBody, limit), ParseErrorKind::Value);
        let (base, limit) = (PhysAddr::new(fixed.base.get()), PhysAddr::new(fixed.limit.get()));
        Ok(Self {
            segment: fixed.segment.get(),
            region: PhysRange::new(base, limit).map_err(|_| bad_limit)?,
            scopes: Scopes::read(scopes)?,
        })
    }
}

impl<'a> Andd<'a> {
    /// The name, if it is text.
    pub fn name_str(&self) -> Option<&'a str> {
        core::str::from_utf8(self.name).ok()
    }
}

impl fmt::Debug for Andd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Andd").field("number", &self.number).field("name", &Ascii(self.name)).finish()
    }
}

/// One line, as for a boot log.
impl fmt::Display for Structure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drhd(Drhd { include_pci_all, segment, registers, scopes }) => {
                write!(f, "DRHD segment {segment} registers {registers}{}", flag(*include_pci_all, "INCLUDE_PCI_ALL"))?;
                list(f, *scopes)
            }
            Self::Rmrr(Rmrr { segment, region, scopes }) => {
                write!(f, "RMRR segment {segment} memory {region}")?;
                list(f, *scopes)
            }
            Self::Atsr(Atsr { all_ports, segment, scopes }) => {
                write!(f, "ATSR segment {segment}{}", flag(*all_ports, "ALL_PORTS"))?;
                list(f, *scopes)
            }
            Self::Rhsa(Rhsa { base, proximity_domain }) => {
                write!(f, "RHSA registers {base} in proximity domain {proximity_domain}")
            }
            Self::Andd(Andd { number, name }) => write!(f, "ANDD {number} is {}", Ascii(name)),
            Self::Satc(Satc { atc_required, segment, scopes }) => {
                write!(f, "SATC segment {segment}{}", flag(*atc_required, "ATC_REQUIRED"))?;
                list(f, *scopes)
            }
            Self::Sidp(Sidp { segment, scopes }) => {
                write!(f, "SIDP segment {segment}")?;
                for scope in *scopes {
                    write!(f, ", {scope} {:#x}", scope.flags())?;
                }
                Ok(())
            }
            Self::Unknown { kind, body } => write!(f, "unknown type {kind}, {} bytes", body.len()),
        }
    }
}

fn flag(set: bool, name: &'static str) -> Flag {
    Flag(set.then_some(name))
}

struct Flag(Option<&'static str>);

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |name| write!(f, ", {name}"))
    }
}

fn list(f: &mut fmt::Formatter<'_>, scopes: Scopes<'_>) -> fmt::Result {
    for scope in scopes {
        write!(f, ", {scope}")?;
    }
    Ok(())
}

/// Firmware's bytes, made safe to print.
struct Ascii<'a>(&'a [u8]);

impl fmt::Display for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.iter().try_for_each(|&byte| match byte {
            b' '..=b'~' => f.write_char(char::from(byte)),
            _ => write!(f, "\\x{byte:02x}"),
        })
    }
}

impl fmt::Debug for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}
