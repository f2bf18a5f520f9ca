//! What firmware says, kept in frames.

use core::fmt::{self, Display, Write};

use super::device_tree::Tree;
use super::iort::Iort;
use super::types::{PciStreams, PlatformStream, UnitNode};
use crate::arch::smmuv3::layout::StreamId;
use crate::device::{DeviceInfo, Trust};
use crate::device_tree::DeviceTree;
use crate::error::{Error, Result};
use crate::frames::Array;
use crate::id::SourceId;
use crate::platform::Platform;
use crate::region::ReservedRegion;

/// What firmware says of SMMUs, from whichever source. It is made once and does not change; the memory
/// of the source may be reused afterwards. Every question is answered in any context, in a time that
/// grows with what firmware told, some hundred entries on the largest machines.
///
/// ```
/// use iommu::arch::smmuv3::firmware::Firmware;
/// use iommu::platform::{Arena, Frame};
/// use iommu::{ParseErrorKind, Error};
///
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 8].into_boxed_slice()))?;
/// let wrong = Firmware::from_iort(arena, b"DMAR").unwrap_err();
/// assert!(matches!(wrong, Error::Firmware(error) if error.kind == ParseErrorKind::Signature));
/// # Ok::<(), iommu::Error>(())
/// ```
pub struct Firmware<P: Platform> {
    units: Array<UnitNode, P>,
    pci: Array<PciStreams, P>,
    platform: Array<Named, P>,
    /// The names of platform devices, one behind the other.
    names: Array<u8, P>,
    regions: Array<ReservedRegion, P>,
    holders: Array<Holder, P>,
}

/// A [`PlatformStream`] as it is kept.
#[derive(Clone, Copy)]
struct Named {
    name: Span,
    unit: u16,
    stream: StreamId,
    pasid_bits: u8,
    stall: bool,
}

/// Who has regions.
#[derive(Clone, Copy)]
struct Holder {
    unit: u16,
    first: StreamId,
    last: StreamId,
    regions: Span,
}

impl Holder {
    fn has(&self, stream: StreamId) -> bool {
        self.first <= stream && stream <= self.last
    }
}

/// A part of an array.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    fn of<'a, T>(&self, list: &'a [T]) -> &'a [T] {
        list.get(self.start..self.end).unwrap_or_default()
    }
}

/// What a source tells, in its order.
pub(super) enum Item<'a> {
    /// Requester ids.
    Pci(PciStreams),
    /// A StreamID of the platform device that displays as `name`.
    Platform { name: &'a dyn Display, unit: u16, stream: StreamId, pasid_bits: u8, stall: bool },
    /// A region; its holders come later.
    Region(ReservedRegion),
    /// StreamIDs that have the last `regions` regions.
    Holder { unit: u16, first: StreamId, last: StreamId, regions: usize },
}

/// Takes what a source tells.
pub(super) type Emit<'a> = dyn FnMut(Item<'_>) -> Result<()> + 'a;

/// A kind of firmware. It tells the same whenever it is asked.
pub(super) trait Source {
    /// Tells every SMMU.
    fn units(&self, emit: &mut dyn FnMut(UnitNode) -> Result<()>) -> Result<()>;

    /// Tells everything else; SMMUs are named by their index in `units`.
    fn items(&self, units: &[UnitNode], emit: &mut Emit<'_>) -> Result<()>;
}

/// The index of the unit with this handle.
pub(super) fn unit_with(units: &[UnitNode], handle: u32) -> Option<u16> {
    let index = units.iter().position(|unit| unit.handle == Some(handle))?;
    u16::try_from(index).ok()
}

impl<P: Platform> Firmware<P> {
    /// From an ACPI table, as firmware left it. Task only.
    ///
    /// A platform device that passes the ids of others on has no StreamID of its own and is left out:
    /// [`Iort::stream_of`] tells those of the others.
    ///
    /// # Errors
    /// [`Error::Firmware`] as [`Iort::parse`] says, [`Error::NoMemory`].
    pub fn from_iort(platform: P, table: &[u8]) -> Result<Self> {
        Self::new(platform, &Iort::parse(table)?)
    }

    /// From a device tree. Task only.
    ///
    /// Nodes that are disabled are passed over, as are other IOMMUs. Finding a node by its phandle may
    /// look at every node, so the time may grow with the nodes times the phandles.
    ///
    /// # Errors
    /// [`Error::Firmware`] with the place of the node that is malformed ([`DeviceTree::position`]),
    /// [`Error::Capacity`] beyond [`MAX_DEPTH`](crate::device_tree::MAX_DEPTH) levels,
    /// [`Error::NoMemory`].
    pub fn from_device_tree<T: DeviceTree>(platform: P, tree: &T) -> Result<Self> {
        Self::new(platform, &Tree(tree))
    }

    fn new(platform: P, source: &dyn Source) -> Result<Self> {
        let mut count = 0_usize;
        source.units(&mut |_| {
            count = count.saturating_add(1);
            Ok(())
        })?;
        if u16::try_from(count).is_err() {
            return Err(Error::Capacity("SourceId::platform"));
        }
        let mut units = Array::new(platform.clone(), count)?;
        source.units(&mut |unit| units.push(unit))?;

        let mut counts = Counts::default();
        source.items(&units, &mut |item| counts.add(item))?;
        let mut firmware = Self {
            units,
            pci: Array::new(platform.clone(), counts.pci)?,
            platform: Array::new(platform.clone(), counts.platform)?,
            names: Array::new(platform.clone(), counts.names)?,
            regions: Array::new(platform.clone(), counts.regions)?,
            holders: Array::new(platform, counts.holders)?,
        };
        let Self { units, pci, platform, names, regions, holders } = &mut firmware;
        source.items(units, &mut |item| match item {
            Item::Pci(streams) => pci.push(streams),
            Item::Platform { name, unit, stream, pasid_bits, stall } => {
                let start = names.len();
                // `Array::push` fails for want of room only, and there is room.
                write!(Bytes(&mut |byte| names.push(byte)), "{name}").map_err(|_| Error::Capacity("Array::new"))?;
                let name = Span { start, end: names.len() };
                platform.push(Named { name, unit, stream, pasid_bits, stall })
            }
            Item::Region(region) => regions.push(region),
            Item::Holder { unit, first, last, regions: count } => {
                let end = regions.len();
                holders.push(Holder { unit, first, last, regions: Span { start: end.saturating_sub(count), end } })
            }
        })?;
        Ok(firmware)
    }

    /// The SMMUs. The index of one is its number in [`SourceId::platform`].
    pub fn units(&self) -> &[UnitNode] {
        &self.units
    }

    /// The SMMU at which requests of `source` arrive, by its index, and their StreamID. A platform
    /// device's source names both.
    pub fn stream_of(&self, source: SourceId) -> Option<(usize, StreamId)> {
        match source.pci_address() {
            Some(_) => {
                let (streams, stream) = self.pci_streams_of(source)?;
                Some((usize::from(streams.unit), stream))
            }
            None => {
                let unit = usize::from(source.segment());
                (unit < self.units.len()).then(|| (unit, StreamId(source.id())))
            }
        }
    }

    /// Who sends with this StreamID: a PCI function, one of those that share it, or else a platform
    /// device; `None` when firmware tells of neither, or contradicts itself about the function.
    pub fn source_of(&self, unit: usize, stream: StreamId) -> Option<SourceId> {
        let unit = u16::try_from(unit).ok()?;
        let of_pci = self.pci.iter().filter(|streams| streams.unit == unit).find_map(|streams| {
            let source = SourceId::pci(streams.segment, streams.requester_of(stream)?);
            // Another range may come first for this requester id.
            (self.stream_of(source) == Some((usize::from(unit), stream))).then_some(source)
        });
        of_pci.or_else(|| {
            let known = self.platform.iter().any(|named| (named.unit, named.stream) == (unit, stream));
            known.then(|| SourceId::platform(unit, stream.0))
        })
    }

    /// The range of requester ids to which a PCI source belongs.
    pub fn pci_streams(&self, source: SourceId) -> Option<&PciStreams> {
        self.pci_streams_of(source).map(|(streams, _)| streams)
    }

    /// Whether a PCI source may use ATS, as far as its host goes.
    pub fn ats_supported(&self, source: SourceId) -> bool {
        self.pci_streams(source).is_some_and(|streams| streams.ats)
    }

    /// Whether nobody but this PCI source sends with its StreamID.
    pub fn is_alone(&self, source: SourceId) -> bool {
        let Some((own, stream)) = self.pci_streams_of(source) else { return false };
        let shares = |other: &&PciStreams| other.unit == own.unit && other.requester_of(stream).is_some();
        let is_named = |named: &Named| (named.unit, named.stream) == (own.unit, stream);
        own.mask == u16::MAX && self.pci.iter().filter(shares).count() == 1 && !self.platform.iter().any(is_named)
    }

    /// Bits of PASID that a source may send; `None` when firmware does not say.
    pub fn pasid_bits(&self, source: SourceId) -> Option<u8> {
        match source.pci_address() {
            Some(_) => self.pci_streams(source)?.pasid_bits,
            None => self.platform_stream(source).map(|stream| stream.pasid_bits),
        }
    }

    /// The memory that requests with this StreamID need, or must not have, whatever the domain.
    pub fn regions(&self, unit: usize, stream: StreamId) -> impl Iterator<Item = ReservedRegion> + '_ {
        let holds = move |holder: &&Holder| usize::from(holder.unit) == unit && holder.has(stream);
        self.holders.iter().filter(holds).flat_map(|holder| holder.regions.of(&self.regions).iter().copied())
    }

    /// Every StreamID that has regions, once: unit, first and last of StreamIDs that have the same ones. Until
    /// such a device is claimed, its requests must go on reaching them.
    pub fn streams_with_regions(&self) -> impl Iterator<Item = (usize, StreamId, StreamId)> + '_ {
        (0..self.holders.len()).flat_map(|holder| self.parts_of(holder))
    }

    /// The StreamIDs of a holder that no holder before it has, in parts that no other one divides.
    fn parts_of(&self, index: usize) -> impl Iterator<Item = (usize, StreamId, StreamId)> + '_ {
        let (before, from) = self.holders.split_at_checked(index).unwrap_or_default();
        let mut next = from.first().map(|holder| holder.first);
        let parts = core::iter::from_fn(move || {
            let holder = from.first()?;
            let first = next.filter(|first| *first <= holder.last)?;
            let rivals = self.holders.iter().filter(|other| other.unit == holder.unit && other.last >= first);
            let ends =
                rivals.map(|other| if other.first > first { other.first.0.saturating_sub(1) } else { other.last.0 });
            let last = StreamId(ends.min()?);
            next = last.0.checked_add(1).map(StreamId);
            Some((holder.unit, first, last))
        });
        parts
            .filter(move |(unit, first, _)| !before.iter().any(|other| other.unit == *unit && other.has(*first)))
            .map(|(unit, first, last)| (usize::from(unit), first, last))
    }

    /// Every StreamID of every platform device.
    pub fn platform_streams(&self) -> PlatformStreams<'_> {
        PlatformStreams { rest: &self.platform, names: &self.names }
    }

    /// What is told of the StreamID of a platform device.
    pub fn platform_stream(&self, source: SourceId) -> Option<PlatformStream<'_>> {
        let wanted = (source.segment(), StreamId(source.id()));
        let mut streams = self.platform_streams();
        streams.find(|stream| !source.is_pci() && (stream.unit, stream.stream) == wanted)
    }

    /// The platform device of this name, to be probed: all its StreamIDs are sources.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when firmware maps none of this name to an SMMUv3, [`Error::Capacity`]
    /// beyond [`MAX_SOURCES`](crate::device::MAX_SOURCES).
    pub fn platform_device(&self, name: &str, trust: Trust) -> Result<DeviceInfo> {
        let mut info: Option<DeviceInfo> = None;
        for stream in self.platform_streams().filter(|stream| stream.name == name) {
            let source = SourceId::platform(stream.unit, stream.stream.0);
            match &mut info {
                None => {
                    let mut device = DeviceInfo::platform(&[source], trust)?;
                    device.features.pasid_bits = stream.pasid_bits;
                    info = Some(device);
                }
                Some(device) => device.sources.push(source).map_err(|_| Error::Capacity("MAX_SOURCES"))?,
            }
        }
        info.ok_or(Error::NoDevice)
    }

    fn pci_streams_of(&self, source: SourceId) -> Option<(&PciStreams, StreamId)> {
        let function = source.pci_address()?;
        let mut ranges = self.pci.iter().filter(|streams| streams.segment == function.segment());
        ranges.find_map(|streams| Some((streams, streams.stream_of(function.requester_id())?)))
    }
}

impl<P: Platform> fmt::Debug for Firmware<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Firmware")
            .field("units", &self.units)
            .field("pci", &self.pci)
            .field("platform", &self.platform_streams())
            .finish_non_exhaustive()
    }
}

/// StreamIDs of platform devices: an iterator over [`PlatformStream`], in the order of the firmware.
///
/// ```
/// # use iommu::{arch::smmuv3::firmware::Firmware, platform::Platform};
/// # fn show<P: Platform>(firmware: &Firmware<P>) {
/// for stream in firmware.platform_streams() {
///     println!("{}: {}", stream.name, stream.stream);
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct PlatformStreams<'a> {
    rest: &'a [Named],
    names: &'a [u8],
}

impl<'a> Iterator for PlatformStreams<'a> {
    type Item = PlatformStream<'a>;

    fn next(&mut self) -> Option<PlatformStream<'a>> {
        let (&Named { name, unit, stream, pasid_bits, stall }, rest) = self.rest.split_first()?;
        self.rest = rest;
        // Written as text.
        let name = core::str::from_utf8(name.of(self.names)).unwrap_or_default();
        Some(PlatformStream { name, unit, stream, pasid_bits, stall })
    }
}

impl fmt::Debug for PlatformStreams<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

/// How many of each kind there are.
#[derive(Default)]
struct Counts {
    pci: usize,
    platform: usize,
    names: usize,
    regions: usize,
    holders: usize,
}

impl Counts {
    fn add(&mut self, item: Item<'_>) -> Result<()> {
        let counter = match item {
            Item::Pci(_) => &mut self.pci,
            Item::Platform { name, .. } => {
                let names = &mut self.names;
                let mut count = |_| {
                    *names = names.saturating_add(1);
                    Ok(())
                };
                // Counting does not fail.
                let _ = write!(Bytes(&mut count), "{name}");
                &mut self.platform
            }
            Item::Region(_) => &mut self.regions,
            Item::Holder { .. } => &mut self.holders,
        };
        *counter = counter.saturating_add(1);
        Ok(())
    }
}

/// Text, byte by byte.
struct Bytes<'a>(&'a mut dyn FnMut(u8) -> Result<()>);

impl Write for Bytes<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().try_for_each(|byte| (self.0)(byte)).map_err(|_| fmt::Error)
    }
}
