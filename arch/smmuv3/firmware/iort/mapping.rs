//! Id mappings: which ids of a node arrive under which ids at another one (DEN 0049, section 3.1.1).

use core::fmt;
use core::mem::offset_of;

use zerocopy::FromBytes;

use super::raw::RawMapping;
use crate::acpi::Part;
use crate::error::{ParseError, ParseErrorKind};

/// One id mapping of a node.
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::Mapping;
/// let buses = Mapping { input: 0x100, last: 0x2ff, output: 0x8100, target: 48, single: false };
/// assert_eq!(buses.output_of(0x180), Some(0x8180));
/// assert_eq!(buses.output_of(0x300), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The first id that is mapped.
    pub input: u32,
    /// The last id that is mapped.
    pub last: u32,
    /// What `input` is mapped to; the ids after it follow.
    pub output: u32,
    /// The node to whose ids they are mapped, by its offset in the table.
    pub target: u32,
    /// The node has one id, `output`, whatever comes in: `input` and `last` say nothing.
    pub single: bool,
}

impl Mapping {
    /// What `id` is mapped to, if it is.
    pub const fn output_of(&self, id: u32) -> Option<u32> {
        if self.single {
            Some(self.output)
        } else if self.input <= id && id <= self.last {
            self.output.checked_add(id.saturating_sub(self.input))
        } else {
            None
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single {
            true => write!(f, "one id")?,
            false => write!(f, "{:#x}..={:#x}", self.input, self.last)?,
        }
        write!(f, " to {:#x} at {}", self.output, self.target)
    }
}

/// The id mappings of a node: an iterator over [`Mapping`], in the table's order.
///
/// ```
/// use iommu::arch::smmuv3::firmware::iort::Mappings;
/// assert_eq!(Mappings::default().count(), 0);
/// ```
#[derive(Clone, Copy, Default)]
pub struct Mappings<'a> {
    list: &'a [RawMapping],
    /// Where `list` begins in the table.
    offset: u32,
}

/// Whether ranges of ids may overlap: they say nothing where a node has only ids of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Inputs {
    /// The node passes ids on, so a range must be clear about each.
    Ranges,
    /// As `Ranges`, and a single mapping is one for every id.
    RangesOrSingle,
    /// Nothing comes in.
    None,
}

impl<'a> Mappings<'a> {
    /// The mappings that fill `part`.
    pub(super) fn read(part: Part<'a>) -> Result<Self, ParseError> {
        let error = part.error(ParseErrorKind::Length);
        let list = <[RawMapping]>::ref_from_bytes(part.bytes()).map_err(|_| error)?;
        Ok(Self { list, offset: error.offset })
    }

    /// Checks all mappings but for what they refer to.
    ///
    /// Comparing every two of them is bounded by the length of a node, a 16-bit number: at most
    /// 3,276 mappings. Where they stand in rising order, each is compared with one other.
    pub(super) fn check(&self, inputs: Inputs) -> Result<(), ParseError> {
        let mut highest: Option<Mapping> = None;
        for (index, raw) in self.list.iter().enumerate() {
            let Some(mapping) = raw.decode() else {
                return Err(self.error(index, offset_of!(RawMapping, id_count), ParseErrorKind::Value));
            };
            if inputs == Inputs::None || mapping.single && inputs == Inputs::Ranges {
                continue;
            }
            let rising =
                highest.is_none_or(|highest| !highest.single && !mapping.single && mapping.input > highest.last);
            let mut before = self.list.get(..index).unwrap_or_default().iter().filter_map(RawMapping::decode);
            if !rising && before.any(|other| overlap(&mapping, &other, inputs)) {
                return Err(self.error(index, offset_of!(RawMapping, input_base), ParseErrorKind::Overlap));
            }
            if highest.is_none_or(|highest| mapping.last > highest.last) {
                highest = Some(mapping);
            }
        }
        Ok(())
    }

    /// An error about what the mapping at `index` refers to.
    pub(super) fn bad_reference(&self, index: usize) -> ParseError {
        self.error(index, offset_of!(RawMapping, output_reference), ParseErrorKind::Reference)
    }

    fn error(&self, index: usize, field: usize, kind: ParseErrorKind) -> ParseError {
        let place = index.saturating_mul(size_of::<RawMapping>()).saturating_add(field);
        ParseError { offset: self.offset.saturating_add(u32::try_from(place).unwrap_or(u32::MAX)), kind }
    }

    /// What `id`, which a device or another node sends, is mapped to, and by which mapping.
    ///
    /// Some firmware counts the ids of a range one too high, so that its last id is also the first
    /// of another range: then that other one counts.
    pub fn find(&self, id: u32) -> Option<(Mapping, u32)> {
        let found =
            self.filter(|mapping| !mapping.single).filter_map(|mapping| Some((mapping, mapping.output_of(id)?)));
        found.max_by_key(|(mapping, _)| mapping.input)
    }

    /// The mapping at `index` in the table's order.
    pub fn get(&self, index: usize) -> Option<Mapping> {
        self.list.get(index).and_then(RawMapping::decode)
    }

    /// `mapping`, one of these, without its last id if another range begins there.
    pub fn without_shared_id(&self, mapping: Mapping) -> Mapping {
        let shared =
            mapping.input < mapping.last && self.into_iter().any(|other| !other.single && other.input == mapping.last);
        let last = if shared && !mapping.single { mapping.last.saturating_sub(1) } else { mapping.last };
        Mapping { last, ..mapping }
    }
}

/// Whether two mappings contradict each other: not in one id at the end of the one and the beginning
/// of the other.
fn overlap(a: &Mapping, b: &Mapping, inputs: Inputs) -> bool {
    match (a.single, b.single) {
        (false, false) => {
            let (low, high) = if a.input <= b.input { (a, b) } else { (b, a) };
            low.last > high.input || low.input == high.input
        }
        _ => inputs == Inputs::RangesOrSingle,
    }
}

impl RawMapping {
    const SINGLE: u32 = 1;

    /// `None` when the range passes the top of the ids, on either side.
    fn decode(&self) -> Option<Mapping> {
        let single = self.flags.get() & Self::SINGLE != 0;
        let (input, output, more) = (self.input_base.get(), self.output_base.get(), self.id_count.get());
        if !single {
            output.checked_add(more)?;
        }
        let last = if single { input } else { input.checked_add(more)? };
        Some(Mapping { input, last, output, target: self.output_reference.get(), single })
    }
}

impl Iterator for Mappings<'_> {
    type Item = Mapping;

    fn next(&mut self) -> Option<Mapping> {
        let (first, rest) = self.list.split_first()?;
        self.list = rest;
        // Checked by `read`, so there is always one.
        first.decode()
    }
}

impl fmt::Debug for Mappings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(*self).finish()
    }
}
