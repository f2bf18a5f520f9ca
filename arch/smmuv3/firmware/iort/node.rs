//! The nodes of the table (DEN 0049, section 3).

use core::fmt;
use core::mem::offset_of;

use bitflags::bitflags;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::mapping::{Inputs, Mappings};
use super::raw::{
    ItsGroupBody, NamedComponentBody, NodeHeader, PmcgBody, RawMapping, RawMemoryAccess, RmrBody, RootComplexBody,
    RootComplexLimits, SmmuBody, SmmuV3Body, SmmuV3Later,
};
use super::rmr::Rmr;
use crate::acpi::Part;
use crate::addr::{PhysAddr, PhysRange};
use crate::error::{ParseError, ParseErrorKind};

/// One node of the table.
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{Node, NodeKind};
/// // Type 200, 18 bytes, revision 1, identifier 7, no mapping.
/// let node = Node::from_bytes(&[200, 18, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xaa, 0xbb])?;
/// assert_eq!((node.revision, node.identifier), (1, 7));
/// assert!(matches!(node.kind, NodeKind::Unknown { kind: 200, body: [0xaa, 0xbb] }));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Node<'a> {
    /// Where the node begins in the table: by this, other nodes refer to it.
    pub offset: u32,
    /// The revision of the node's type.
    pub revision: u8,
    /// The node's number, unique in tables of revision 3 and above; zero in older ones.
    pub identifier: u32,
    /// What the node is.
    pub kind: NodeKind<'a>,
    /// Which ids arrive where. None for unknown types.
    pub mappings: Mappings<'a>,
}

/// What a node is.
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{Node, NodeKind};
/// // ITS group, 24 bytes; one ITS, number 5.
/// let bytes = [0, 24, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0];
/// let NodeKind::ItsGroup(group) = Node::from_bytes(&bytes)?.kind else { unreachable!() };
/// assert!(group.identifiers().eq([5]));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum NodeKind<'a> {
    /// Interrupt translation services that are one to a device.
    ItsGroup(ItsGroup<'a>),
    /// A platform device.
    NamedComponent(NamedComponent<'a>),
    /// A PCI host.
    RootComplex(RootComplex),
    /// An SMMUv1 or SMMUv2.
    Smmu(Smmu),
    /// An SMMUv3.
    SmmuV3(SmmuV3),
    /// A group of performance counters.
    Pmcg(Pmcg),
    /// Memory that devices use on firmware's behalf.
    Rmr(Rmr<'a>),
    /// A type that this crate does not know.
    Unknown {
        /// The type's number, 7 or more.
        kind: u8,
        /// What follows the header.
        body: &'a [u8],
    },
}

/// Interrupt translation services that are one to a device (DEN 0049, section 3.1.2.1).
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{Node, NodeKind};
/// let bytes = [0, 20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// let NodeKind::ItsGroup(group) = Node::from_bytes(&bytes)?.kind else { unreachable!() };
/// assert_eq!(group.identifiers().count(), 0);
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy)]
pub struct ItsGroup<'a> {
    identifiers: &'a [U32],
}

bitflags! {
    /// How far a device's memory accesses are coherent with the processors (DEN 0049, table 15).
    ///
    /// ```
    /// use iommu::arch::smmuv3::firmware::iort::MemoryFlags;
    /// assert_eq!((MemoryFlags::CPM | MemoryFlags::DACS).bits(), 3);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct MemoryFlags: u8 {
        /// Coherent path to memory: accesses that snoop reach what the processors see.
        const CPM = 1 << 0;
        /// Device attributes are cacheable and inner shareable: accesses snoop unasked.
        const DACS = 1 << 1;
        /// Accesses can be made to snoop whatever the device asks for: write-back by stage 2.
        const CANWBS = 1 << 2;
        const _ = !0;
    }
}

/// How the memory accesses of a device behave (DEN 0049, table 14).
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{MemoryAccess, MemoryFlags};
/// let access = MemoryAccess { coherent: true, hints: 0, flags: MemoryFlags::CPM | MemoryFlags::DACS };
/// assert!(access.flags.contains(MemoryFlags::CPM));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryAccess {
    /// The device is fully coherent without software's doing (CCA).
    pub coherent: bool,
    /// Allocation hints: transient, write-allocate, read-allocate, override, from bit 0 up.
    pub hints: u8,
    /// How far the path is coherent.
    pub flags: MemoryFlags,
}

/// A platform device (DEN 0049, section 3.1.1.2).
///
/// Its ids are its *single* mappings. A device that passes ids of others on has ranges.
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{Node, NodeKind};
/// let mut bytes = *b"\x01\x26\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\x29\0\0\0\x01\0\0\0\0\0\0\x03\x30\\_SB.NET0";
/// let NodeKind::NamedComponent(device) = Node::from_bytes(&bytes)?.kind else { unreachable!() };
/// assert_eq!((device.name_str(), device.address_bits), (Some("\\_SB.NET0"), Some(48)));
/// assert!(device.stall_supported && device.pasid_bits == 20);
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct NamedComponent<'a> {
    /// Its transactions may be stalled.
    pub stall_supported: bool,
    /// Bits of SubstreamID that it can send, 0 to 20; 0 without.
    pub pasid_bits: u8,
    /// How its memory accesses behave.
    pub memory: MemoryAccess,
    /// How many bits an address that it sends has at most, if that is told.
    pub address_bits: Option<u8>,
    /// Its path in the ACPI namespace, without the NUL that ends it.
    pub name: &'a [u8],
}

bitflags! {
    /// What a root complex does about ATS (DEN 0049, table 12).
    ///
    /// ```
    /// use iommu::arch::smmuv3::firmware::iort::AtsFlags;
    /// assert_eq!(AtsFlags::ATS.bits(), 1);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct AtsFlags: u32 {
        /// Devices below may use ATS.
        const ATS = 1 << 0;
        /// Devices below may use PRI.
        const PRI = 1 << 1;
        /// PASIDs are passed on with translated requests.
        const PASID_FORWARDING = 1 << 2;
        const _ = !0;
    }
}

/// A PCI host (DEN 0049, section 3.1.1.3).
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{AtsFlags, Node, NodeKind};
/// let mut bytes = [0; 40];
/// (bytes[0], bytes[1], bytes[3]) = (2, 40, 4); // root complex, length, revision
/// (bytes[24], bytes[28], bytes[32], bytes[33], bytes[36]) = (1, 3, 64, 16, 1); // ATS, segment, limits
/// let NodeKind::RootComplex(host) = Node::from_bytes(&bytes)?.kind else { unreachable!() };
/// assert_eq!((host.segment, host.ats, host.pasid_bits), (3, AtsFlags::ATS, Some(16)));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RootComplex {
    /// How the memory accesses of devices below it behave.
    pub memory: MemoryAccess,
    /// What it does about ATS.
    pub ats: AtsFlags,
    /// Its PCI segment.
    pub segment: u16,
    /// How many bits an address from below has at most, if that is told.
    pub address_bits: Option<u8>,
    /// Bits of PASID that it passes on, 0 to 20. `None` where the table is too old to tell.
    pub pasid_bits: Option<u8>,
}

/// An SMMUv1 or SMMUv2 (DEN 0049, section 3.1.1.4), which this crate does not drive.
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{Node, NodeKind};
/// let mut bytes = [0; 60];
/// (bytes[0], bytes[1], bytes[18], bytes[26], bytes[32]) = (3, 60, 0x60, 1, 3);
/// let NodeKind::Smmu(smmu) = Node::from_bytes(&bytes)?.kind else { unreachable!() };
/// assert_eq!((smmu.registers.to_string().as_str(), smmu.model), ("0x600000..=0x60ffff", 3));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Smmu {
    /// Its registers.
    pub registers: PhysRange,
    /// Which implementation it is.
    pub model: u32,
    /// Distributed virtual memory is supported.
    pub dvm: bool,
    /// Its walks of tables are coherent.
    pub coherent_walk: bool,
}

bitflags! {
    /// Flags of an SMMUv3 (DEN 0049, table 10), but for the HTTU override.
    ///
    /// ```
    /// use iommu::arch::smmuv3::firmware::iort::SmmuV3Flags;
    /// assert_eq!(SmmuV3Flags::DEVICE_ID_VALID.bits(), 0x10);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SmmuV3Flags: u32 {
        /// Its accesses to tables and queues are coherent, whatever IDR0.COHACC says.
        const COHACC_OVERRIDE = 1 << 0;
        /// The proximity domain is told.
        const PROXIMITY_VALID = 1 << 3;
        /// The mapping for its own MSIs is told (node revision 5 and above).
        const DEVICE_ID_VALID = 1 << 4;
        const _ = !0;
    }
}

/// Which implementation an SMMUv3 is (DEN 0049, table 11).
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::Model;
/// assert_eq!(Model::from_number(2), Model::CaviumCn99xx);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Model {
    /// As the architecture says.
    Generic,
    /// HiSilicon Hi161x, whose prefetch commands do not work.
    HisiliconHi161x,
    /// Cavium CN99xx, which has all registers in page 0.
    CaviumCn99xx,
    /// One that this crate does not know.
    Unknown(u32),
}

/// An SMMUv3 (DEN 0049, section 3.1.1.5).
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{Node, NodeKind};
/// let mut bytes = [0; 68];
/// (bytes[0], bytes[1], bytes[3], bytes[18], bytes[19], bytes[24]) = (4, 68, 1, 0x05, 0x09, 0b101);
/// bytes[44] = 106; // the event queue's interrupt
/// let NodeKind::SmmuV3(smmu) = Node::from_bytes(&bytes)?.kind else { unreachable!() };
/// assert_eq!((smmu.base.as_u64(), smmu.event, smmu.pri, smmu.httu), (0x0905_0000, 106, 0, 2));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SmmuV3 {
    /// Where its registers begin.
    pub base: PhysAddr,
    /// What is told besides.
    pub flags: SmmuV3Flags,
    /// What counts instead of IDR0.HTTU: 0 no updates by hardware, 1 of the access flag, 2 of dirty
    /// state too.
    pub httu: u8,
    /// Where its VATOS page is, or zero.
    pub vatos: PhysAddr,
    /// Which implementation it is.
    pub model: Model,
    /// The GSIV of the event queue's interrupt; here and below, zero is no wired interrupt.
    pub event: u32,
    /// The GSIV of the page-request queue's interrupt.
    pub pri: u32,
    /// The GSIV of the interrupt for global errors.
    pub gerror: u32,
    /// The GSIV of the interrupt for completed CMD_SYNCs.
    pub sync: u32,
    /// Its proximity domain, as in the SRAT.
    pub proximity_domain: Option<u32>,
    /// Which of its mappings is that of its own MSIs.
    pub device_id_mapping: Option<u32>,
}

/// A group of performance counters (DEN 0049, section 3.1.1.6).
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::{Node, NodeKind};
/// let mut bytes = [0; 40];
/// (bytes[0], bytes[1], bytes[3], bytes[18], bytes[28]) = (5, 40, 1, 0x10, 48);
/// let NodeKind::Pmcg(counters) = Node::from_bytes(&bytes)?.kind else { unreachable!() };
/// assert_eq!((counters.base.as_u64(), counters.reference), (0x10_0000, 48));
/// # Ok::<(), iommu::ParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Pmcg {
    /// Where its registers begin.
    pub base: PhysAddr,
    /// The GSIV of its overflow interrupt; zero without.
    pub overflow: u32,
    /// Whom it counts for: a node, by its offset in the table.
    pub reference: u32,
}

impl<'a> Node<'a> {
    /// The node that `bytes` begin with, checked whole but for what its mappings refer to.
    ///
    /// # Errors
    /// As [`Iort::parse`](super::Iort::parse) for one node; offsets count from the start of `bytes`.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (node, _) = Self::read(Part::new(bytes))?;
        node.check()?;
        Ok(node)
    }

    /// Checks the lists of a node that was read.
    pub(super) fn check(&self) -> Result<(), ParseError> {
        if let NodeKind::Rmr(rmr) = &self.kind {
            rmr.check()?;
        }
        self.mappings.check(match self.kind {
            NodeKind::RootComplex(_) => Inputs::RangesOrSingle,
            NodeKind::NamedComponent(_) | NodeKind::Smmu(_) | NodeKind::SmmuV3(_) => Inputs::Ranges,
            _ => Inputs::None,
        })
    }

    /// The node that `part` begins with, checked but for its lists, and what follows it.
    pub(super) fn read(part: Part<'a>) -> Result<(Self, Part<'a>), ParseError> {
        let (header, whole, rest) = split(part)?;
        let offset = part.error(ParseErrorKind::Value).offset;
        // A length of less than the header's own ends here, so each step makes progress.
        let (_, body) = whole.take::<NodeHeader>(ParseErrorKind::Length)?;
        let (kind, fixed) = NodeKind::read(header, whole, body)?;
        let count = header.mapping_count.get();
        let bad_count = whole.error_at(offset_of!(NodeHeader, mapping_count), ParseErrorKind::Value);
        let mappings = match kind {
            NodeKind::Unknown { .. } => Mappings::default(),
            _ if count == 0 => Mappings::default(),
            NodeKind::ItsGroup(_) => return Err(bad_count),
            _ => {
                let start = usize::try_from(header.mapping_offset.get()).unwrap_or(usize::MAX);
                if start < fixed {
                    return Err(whole.error_at(offset_of!(NodeHeader, mapping_offset), ParseErrorKind::Value));
                }
                let bytes = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(size_of::<RawMapping>());
                let at_count = |error: ParseError| ParseError { offset: bad_count.offset, ..error };
                let (_, list) = whole.split(start, ParseErrorKind::Length).map_err(at_count)?;
                let (list, _) = list.split(bytes, ParseErrorKind::Length).map_err(at_count)?;
                Mappings::read(list)?
            }
        };
        let (revision, identifier) = (header.revision, header.identifier.get());
        let node = Self { offset, revision, identifier, kind, mappings };
        Ok((node, rest))
    }
}

/// The node that `part` begins with, as far as its length, and what follows it.
pub(super) fn split<'a>(part: Part<'a>) -> Result<(&'a NodeHeader, Part<'a>, Part<'a>), ParseError> {
    let (header, _) = part.take::<NodeHeader>(ParseErrorKind::Length)?;
    let length = usize::from(header.length.get());
    let (whole, rest) = part.split(length, ParseErrorKind::Length)?;
    if length < size_of::<NodeHeader>() {
        return Err(part.error(ParseErrorKind::Length));
    }
    Ok((header, whole, rest))
}

impl<'a> NodeKind<'a> {
    /// The kind of a node, and how many bytes its header and its fixed part have.
    fn read(header: &NodeHeader, whole: Part<'a>, body: Part<'a>) -> Result<(Self, usize), ParseError> {
        const SHORT: ParseErrorKind = ParseErrorKind::Length;
        let short = |_| whole.error(SHORT);
        let (kind, fixed) = match header.kind {
            0 => {
                let (fixed, list) = body.take::<ItsGroupBody>(SHORT).map_err(short)?;
                let bytes = usize::try_from(fixed.count.get()).unwrap_or(usize::MAX).saturating_mul(4);
                let (list, _) = list.split(bytes, SHORT).map_err(|_| body.error(SHORT))?;
                let identifiers = <[U32]>::ref_from_bytes(list.bytes()).map_err(|_| body.error(SHORT))?;
                (Self::ItsGroup(ItsGroup { identifiers }), size_of::<ItsGroupBody>())
            }
            1 => {
                let (fixed, rest) = body.take::<NamedComponentBody>(SHORT).map_err(short)?;
                let bits = (fixed.flags.get() >> 1 & 31) as u8;
                // The name ends at a NUL, or else where the mappings begin.
                let end = usize::try_from(header.mapping_offset.get()).unwrap_or(usize::MAX);
                let end = end.saturating_sub(size_of::<NodeHeader>().saturating_add(size_of::<NamedComponentBody>()));
                let name = if header.mapping_count.get() == 0 { None } else { rest.bytes().get(..end) };
                let name = name.unwrap_or(rest.bytes()).split(|&byte| byte == 0).next().unwrap_or_default();
                let component = NamedComponent {
                    stall_supported: fixed.flags.get() & 1 != 0,
                    pasid_bits: pasid_bits(bits, body.error_at(0, ParseErrorKind::Value))?,
                    memory: fixed.memory.decode(),
                    address_bits: limit(body, offset_of!(NamedComponentBody, address_bits), fixed.address_bits)?,
                    name,
                };
                (Self::NamedComponent(component), size_of::<NamedComponentBody>())
            }
            2 => {
                let (complex, bytes) = RootComplex::read(header.revision, whole, body)?;
                (Self::RootComplex(complex), bytes)
            }
            3 => {
                let (fixed, _) = body.take::<SmmuBody>(SHORT).map_err(short)?;
                let bad_span = body.error_at(offset_of!(SmmuBody, span), ParseErrorKind::Value);
                let base = PhysAddr::new(fixed.base.get());
                let smmu = Smmu {
                    registers: PhysRange::from_len(base, fixed.span.get()).map_err(|_| bad_span)?,
                    model: fixed.model.get(),
                    dvm: fixed.flags.get() & 1 != 0,
                    coherent_walk: fixed.flags.get() & 2 != 0,
                };
                (Self::Smmu(smmu), size_of::<SmmuBody>())
            }
            4 => (Self::SmmuV3(SmmuV3::read(header, whole, body)?), size_of::<SmmuV3Body>()),
            5 => {
                let (fixed, _) = body.take::<PmcgBody>(SHORT).map_err(short)?;
                let pmcg = Pmcg {
                    base: PhysAddr::new(fixed.base.get()),
                    overflow: fixed.overflow.get(),
                    reference: fixed.reference.get(),
                };
                (Self::Pmcg(pmcg), size_of::<PmcgBody>())
            }
            6 => (Self::Rmr(Rmr::read(whole, body)?), size_of::<RmrBody>()),
            kind => (Self::Unknown { kind, body: body.bytes() }, 0),
        };
        Ok((kind, fixed.saturating_add(size_of::<NodeHeader>())))
    }

    /// Whether ids of this kind of node may arrive at a node of type `target`. No node refers to one
    /// that can refer back, so no walk along the mappings comes to where it was. A type of the future
    /// may be referred to; walks end there.
    pub(super) fn may_refer_to(&self, target: u8) -> bool {
        let (its, smmu, unknown) = (target == 0, matches!(target, 3 | 4), target > 6);
        match self {
            Self::NamedComponent(_) | Self::RootComplex(_) => its || smmu || unknown,
            Self::Smmu(_) | Self::SmmuV3(_) | Self::Pmcg(_) => its || unknown,
            Self::Rmr(_) => smmu || unknown,
            Self::ItsGroup(_) | Self::Unknown { .. } => false,
        }
    }
}

impl RootComplex {
    fn read(revision: u8, whole: Part<'_>, body: Part<'_>) -> Result<(Self, usize), ParseError> {
        let (fixed, rest) =
            body.take::<RootComplexBody>(ParseErrorKind::Length).map_err(|_| whole.error(ParseErrorKind::Length))?;
        let bad_segment = body.error_at(offset_of!(RootComplexBody, segment), ParseErrorKind::Value);
        let mut complex = Self {
            memory: fixed.memory.decode(),
            ats: AtsFlags::from_bits_retain(fixed.ats.get()),
            segment: u16::try_from(fixed.segment.get()).map_err(|_| bad_segment)?,
            address_bits: None,
            pasid_bits: None,
        };
        let mut bytes = size_of::<RootComplexBody>();
        let short = |_| whole.error(ParseErrorKind::Length);
        if revision >= 1 {
            let (limits, later) = rest.take::<RootComplexLimits>(ParseErrorKind::Length).map_err(short)?;
            complex.address_bits = limit(rest, 0, limits.address_bits)?;
            bytes = bytes.saturating_add(size_of::<RootComplexLimits>());
            if revision >= 4 {
                let (flags, _) = later.take::<U32>(ParseErrorKind::Length).map_err(short)?;
                let bits = match flags.get() & 1 {
                    0 => 0,
                    _ => (limits.pasid.get() & 31) as u8,
                };
                let bad_bits = rest.error_at(offset_of!(RootComplexLimits, pasid), ParseErrorKind::Value);
                complex.pasid_bits = Some(pasid_bits(bits, bad_bits)?);
                bytes = bytes.saturating_add(size_of::<U32>());
            }
        }
        Ok((complex, bytes))
    }
}

impl SmmuV3 {
    fn read(header: &NodeHeader, whole: Part<'_>, body: Part<'_>) -> Result<Self, ParseError> {
        let short = |_| whole.error(ParseErrorKind::Length);
        let (fixed, rest) = body.take::<SmmuV3Body>(ParseErrorKind::Length).map_err(short)?;
        let base = PhysAddr::new(fixed.base.get());
        // Two pages of 64 KiB (section 6.1).
        if base.as_u64() == 0 || !base.is_aligned(0x1_0000) || base.checked_add(0x1_ffff).is_none() {
            return Err(body.error_at(offset_of!(SmmuV3Body, base), ParseErrorKind::Value));
        }
        let flags = SmmuV3Flags::from_bits_retain(fixed.flags.get() & !Self::HTTU);
        let [event, pri, gerror, sync] = [fixed.event, fixed.pri, fixed.gerror, fixed.sync].map(U32::get);
        let (mut proximity_domain, mut device_id_mapping) = (None, None);
        if header.revision >= 1 {
            let (later, _) = rest.take::<SmmuV3Later>(ParseErrorKind::Length).map_err(short)?;
            proximity_domain = flags.contains(SmmuV3Flags::PROXIMITY_VALID).then_some(later.proximity_domain.get());
            let index = later.device_id_mapping.get();
            // Older nodes have no flag: there it counts unless every interrupt is wired.
            let told = match header.revision {
                ..5 => index < header.mapping_count.get() && [event, pri, gerror, sync].contains(&0),
                _ => flags.contains(SmmuV3Flags::DEVICE_ID_VALID),
            };
            if told && index >= header.mapping_count.get() {
                return Err(rest.error_at(offset_of!(SmmuV3Later, device_id_mapping), ParseErrorKind::Value));
            }
            device_id_mapping = told.then_some(index);
        }
        Ok(Self {
            base,
            flags,
            httu: ((fixed.flags.get() & Self::HTTU) >> 1) as u8,
            vatos: PhysAddr::new(fixed.vatos.get()),
            model: Model::from_number(fixed.model.get()),
            event,
            pri,
            gerror,
            sync,
            proximity_domain,
            device_id_mapping,
        })
    }

    const HTTU: u32 = 3 << 1;
}

impl Pmcg {
    /// An error about whom a node at `offset` in the table counts for.
    pub(super) fn bad_reference(&self, offset: u32) -> ParseError {
        let place = size_of::<NodeHeader>().saturating_add(offset_of!(PmcgBody, reference));
        let place = offset.saturating_add(u32::try_from(place).unwrap_or(u32::MAX));
        ParseError { offset: place, kind: ParseErrorKind::Reference }
    }
}

impl Model {
    /// The model with this number in the table.
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Generic,
            1 => Self::HisiliconHi161x,
            2 => Self::CaviumCn99xx,
            other => Self::Unknown(other),
        }
    }
}

impl<'a> ItsGroup<'a> {
    /// The numbers of the services, as in the MADT.
    pub fn identifiers(&self) -> impl ExactSizeIterator<Item = u32> + Clone + use<'a> {
        self.identifiers.iter().map(|identifier| identifier.get())
    }
}

impl fmt::Debug for ItsGroup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ItsGroup").field(&self.identifiers).finish()
    }
}

impl<'a> NamedComponent<'a> {
    /// The name, if it is text.
    pub fn name_str(&self) -> Option<&'a str> {
        core::str::from_utf8(self.name).ok()
    }
}

impl fmt::Debug for NamedComponent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedComponent")
            .field("name", &Ascii(self.name))
            .field("stall_supported", &self.stall_supported)
            .field("pasid_bits", &self.pasid_bits)
            .field("memory", &self.memory)
            .field("address_bits", &self.address_bits)
            .finish()
    }
}

impl RawMemoryAccess {
    fn decode(&self) -> MemoryAccess {
        MemoryAccess {
            coherent: self.cache_coherency.get() == 1,
            hints: self.hints,
            flags: MemoryFlags::from_bits_retain(self.flags),
        }
    }
}

/// How many bits addresses have: the byte at `offset` of `part`.
fn limit(part: Part<'_>, offset: usize, bits: u8) -> Result<Option<u8>, ParseError> {
    match bits {
        0 => Ok(None),
        1..=64 => Ok(Some(bits)),
        _ => Err(part.error_at(offset, ParseErrorKind::Value)),
    }
}

/// How many bits PASIDs have, or `error` for more than a PASID can.
fn pasid_bits(bits: u8, error: ParseError) -> Result<u8, ParseError> {
    if bits <= 20 { Ok(bits) } else { Err(error) }
}

/// Firmware's bytes, made safe to print.
pub(in crate::arch::smmuv3::firmware) struct Ascii<'a>(pub(in crate::arch::smmuv3::firmware) &'a [u8]);

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
